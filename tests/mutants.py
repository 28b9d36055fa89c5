"""Does a check check? Change the library in one place at a time and see whether a test fails.

    python tests/mutants.py                                # every change of the laws, the model, its losses and modalities
    python tests/mutants.py --file solvers.py --every 5    # a look: every fifth change of one file
    python tests/mutants.py --sample 30 --seed 1 --list    # only show which changes these would be
    python tests/mutants.py --out data/results/mutants.json

A change ("mutant") is one edit of the source text, found in the syntax tree: a number, a sign, an operator, a comparison,
`and` / `or`, a boolean, a step t that becomes t - 1 or t + 1, a function of torch that is left out or exchanged, a keyword
argument that is not passed on. Docstrings, messages and annotations are left alone. For each mutant the tests that call
the changed function run, cheapest first, until one fails. `REASONS` says why a survivor cannot be caught; an entry that
fits no mutant, or one that a test catches, is an error, so the table cannot go stale.

Torch takes seconds to import and a mutant about one to judge, so torch is imported once and every mutant is a fork of
this process. mutmut 3 forks too, but skips most decorated functions (`elbo`, the properties) and changes messages instead
of indices and tensor functions; cosmic-ray starts a process, with torch's import, for every mutant.

Everything takes about half an hour on one core; not part of CI. Needs `os.fork` (Linux, macOS).
"""

import argparse
import ast
import collections
import gc
import importlib
import importlib.machinery
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import pytest
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mtdiff"
LAWS = (
    "checks.py",
    "schedules.py",
    "process.py",
    "solvers.py",
    "elbo.py",
    "sampling.py",
    "exact/gaussian.py",
    "exact/mixture.py",
)
KINDS = ("base.py", "caption.py", "continuous.py", "encoded.py", "generators.py", "label.py", "maps.py")
FILES = (*LAWS, "laws.py", "prediction.py", "model.py", "state.py", "losses.py", *(f"modalities/{file}" for file in KINDS))
OF_LAWS = (
    "checks",
    "schedules",
    "process",
    "gaussian_gap",
    "exact",
    "elbo",
    "losses",
    "model",
    "solvers",
    "sampling",
    "state",
)
OF_NETWORKS = ("laws", "model", "state", "losses", "modalities", "encoders", "maps")
TESTS = {file: OF_LAWS if file in LAWS else OF_NETWORKS for file in FILES}
OUTCOMES = ("caught", "import", "timeout", "survived")
GOAL = 0.95  # of the mutants of every file
QUICK = ("-x", "-q", "-p", "no:cacheprovider", "--assert=plain")
PRELOADED = ("torch", "hypothesis.strategies", "safetensors.torch")
PRELOADED += ("diffusers.schedulers.scheduling_ddim", "diffusers.schedulers.scheduling_ddpm")
PATIENCE = 10  # times what its tests take, and a minute: a loop that has no end is noticed, too

OPERATORS = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.Pow: ("**", "*")}
OPERATORS |= {ast.BitOr: ("|", "&"), ast.BitAnd: ("&", "|"), ast.And: ("and", "or"), ast.Or: ("or", "and")}
OPERATORS |= {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")}
OPERATORS |= {ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in")}
OPERATORS |= {ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is")}
OPERATORS |= {ast.USub: ("-", ""), ast.Not: ("not ", ""), ast.Invert: ("~", "")}
DROPPED = ("sqrt", "log", "exp", "log_softmax", "sigmoid", "clamp", "round", "detach", "clone", "double", "T", "mT")
EXCHANGED = {"mean": "sum", "sum": "mean", "all": "any", "any": "all", "min": "max", "max": "min", "std": "var"}
EXCHANGED |= {"cos": "sin", "cumprod": "cumsum", "zeros": "ones", "zeros_like": "ones_like", "new_zeros": "new_ones"}
EXCHANGED |= {"ones": "zeros", "new_ones": "new_zeros"}
STEPS = ("t", "s", "at", "t_prev", "first", "steps")  # variables and attributes that index a curve
BUILT_IN = ("isinstance", "hasattr", "int", "len", "range")  # whose arguments are not shifted
PASSED_ON = ("given", "known", "present", "generator", "dtype")  # keyword arguments that are easily forgotten

# Why no test can tell a mutant from the library: (file, function, «old → new» in its line without the comment) -> reason.
FLOAT32_NOISE = "the law is the same: normal draws in float32 are normal, and the result is float64 by promotion"
SIGN_OF_NOISE = "the law is the same: the noise is symmetric"
TOLERANCE = "a tolerance, not a number that anything else depends on"
PROMOTED = "keeps its values, and is promoted to float64 by what it meets"
FAR_OUT = "so far out that float64 holds nothing of it either way"
MIRRORED = "a bin in the middle is its own mirror image"
REASONS = {
    (
        "elbo.py",
        "elbo",
        "readout = {name: prediction.law[name].log_prob(value)«.double() → » for name, value in read.items()}",
    ): PROMOTED,
    ("sampling.py", "run", "self.previous, z = None, mean «+ → -» std * self.noise()"): SIGN_OF_NOISE,
    (
        "modalities/base.py",
        "attach",
        "if not self.span or (self.channels and (self.channels.stop or «0 → 1») > self.space[0]):",
    ): "an open slice ends where the space does, and every space has a channel",
    (
        "laws.py",
        "log_prob",
        "low = torch.where(value - half <= -1, -«1e4 → 11000», (value - half - self.mean) / std)",
    ): FAR_OUT,
    (
        "laws.py",
        "log_prob",
        "high = torch.where(value + half >= 1, «1e4 → 11000», (value + half - self.mean) / std)",
    ): FAR_OUT,
    (
        "laws.py",
        "log_prob",
        "low, high = torch.where(low + high «> → >=» 0, -high, low), torch.where(low + high > 0, -low, high)",
    ): MIRRORED,
    (
        "laws.py",
        "log_prob",
        "low, high = torch.where(low + high > 0, -high, low), torch.where(low + high «> → >=» 0, -low, high)",
    ): MIRRORED,
    (
        "modalities/encoded.py",
        "build",
        "self.standard = nn.BatchNorm1d(code_size, eps=«1e-10 → 1.1e-10», affine=False)",
    ): TOLERANCE,
    (
        "modalities/encoded.py",
        "_tiles",
        "board = 1.0 - 2.0 * ((height[:, None] «+ → -» width[None]) % 2)",
    ): "a sum is even where the difference is",
    (
        "modalities/encoded.py",
        "_tiles",
        "tiles = torch.zeros(*shape[1:], side**«2 → 3», dtype=torch.float64)",
    ): "columns of nothing, which are cut off again",
    (
        "modalities/label.py",
        "simplex_codes",
        "basis = torch.ones(classes - 1, classes«, dtype=torch.float64 → »).tril()",
    ): PROMOTED,
    (
        "model.py",
        "check_prior",
        "if nats «> → >=» PRIOR_NATS:",
    ): TOLERANCE,
    (
        "model.py",
        "check_prior",
        "stacklevel=«3 → 4»,",
    ): "the line of the caller that a warning names",
    (
        "losses.py",
        "multitask_loss",
        "terms[name] = torch.where(mask, each, 0.0).sum() / count.to(each).clamp(min=«1e-6 → 1.1e-06»)",
    ): TOLERANCE,
    (
        "modalities/generators.py",
        "generator",
        "while doublings < 3 and all("
        "size % 2 ** (doublings + 1) == 0 and size >> doublings > «4 → 5» for size in (height, width_px)):",
    ): "5 is odd: it is not halved anyway",
    (
        "process.py",
        "__init__",
        "self.moving = tuple(name for name, table in self._weights.items() if bool((table != table[«0 → 1»]).any()))",
    ): "a table differs somewhere from its entry at 1 just where it differs somewhere from its entry at 0",
    (
        "sampling.py",
        "sample",
        "t, z, prediction = collections.deque(path, maxlen=«1 → 2»).pop()",
    ): "keeps one state more than it needs; the last one is the same",
    (
        "process.py",
        "times",
        "return torch.linspace(start, self.first, intervals + 1«, dtype=torch.float64 → »).round().long().tolist()",
    ): "float32 rounds to the same whole steps, except that it may break a tie the other way",
    (
        "sampling.py",
        "_informed",
        "if self.told «and → or» self.guidance != 1.0:",
    ): "costs a call of the network: from the same to the same, or all the way to told",
    (
        "exact/gaussian.py",
        "linear_gaussian_gap",
        "eye, a = torch.eye(d«, dtype=torch.float64 → »), abar[:, None, None]",
    ): PROMOTED,
    (
        "exact/gaussian.py",
        "linear_gaussian_gap",
        "trace = v.diagonal(dim1=-2, dim2=-1).sum(«- → »1)",
    ): "(T, d): axis 1 is the last one",
    (
        "exact/gaussian.py",
        "_checked",
        "matrices = {name: torch.as_tensor(a«, dtype=torch.float64 → ») for name, a in encoders.items()}",
    ): PROMOTED,
    (
        "exact/gaussian.py",
        "_check_covariance",
        "if not torch.allclose(c, c.T, rtol=«1e-9 → 1.1e-09», atol=1e-12) or bool(torch.linalg.cholesky_ex(c).info):",
    ): TOLERANCE,
    (
        "exact/gaussian.py",
        "_check_covariance",
        "if not torch.allclose(c, c.T, rtol=1e-9, atol=«1e-12 → 1.1e-12») or bool(torch.linalg.cholesky_ex(c).info):",
    ): TOLERANCE,
    (
        "exact/mixture.py",
        "__init__",
        "if bool((self.weights < 0).any()) or abs(float(self.weights.sum()) - 1) «> → >=» 1e-6:",
    ): TOLERANCE,
    (
        "exact/mixture.py",
        "__init__",
        "if bool((self.weights < 0).any()) or abs(float(self.weights.sum()) - 1) > «1e-6 → 1.1e-06»:",
    ): TOLERANCE,
    (
        "exact/mixture.py",
        "draw",
        "noise = torch.randn(n, *self.space«, dtype=torch.float64 → », generator=generator)",
    ): FLOAT32_NOISE,
    (
        "exact/mixture.py",
        "draw",
        'return {"x": self.means[label] «+ → -» self.stds[label, None] * noise, "label": label}',
    ): SIGN_OF_NOISE,
    (
        "exact/mixture.py",
        "_components",
        "log_r = torch.«zeros_like → ones_like»(log_r).masked_fill(~chosen, -torch.inf)",
    ): "log_softmax takes the constant out again",
}


@dataclass(frozen=True)
class Mutant:
    """One edit of one file: `source[start:end]` becomes `new` (bytes).

    Attributes:
        file: path below mtdiff/.
        line: line number of the edit.
        scope: name, first and last line of the function or method around it; None at the level of the module.
        change: the line with the edit in it, «old → new».
        code: the whole changed module.
    """

    file: str
    line: int
    scope: tuple[str, int, int] | None
    change: str
    code: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What `REASONS` knows it by: file, function and change."""
        return self.file, self.scope[0] if self.scope else "", self.change


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """All mutants of one module, in the order of their lines."""
    data = source.encode()
    starts = [0, *(m.end() for m in re.finditer(b"\n", data))]
    found = set()
    for scope, node in _nodes(ast.parse(source), None):
        for start, end, new in _edits(node, Text(data, starts)):
            found.add((start, end, new, scope))
    for start, end, new, scope in sorted(found, key=lambda edit: edit[:3]):
        code = (data[:start] + new + data[end:]).decode()
        left, right = data.rfind(b"\n", 0, start) + 1, data.find(b"\n", end)
        change = data[left:start] + "«".encode() + data[start:end] + " → ".encode() + new + "»".encode() + data[end:right]
        change = re.sub(r"\s*\n\s*", " ", change.decode().partition("  # ")[0].strip())
        yield Mutant(file, data.count(b"\n", 0, start) + 1, scope, change, code)


def _nodes(node: ast.AST, scope: tuple[str, int, int] | None) -> Iterator[tuple[tuple[str, int, int] | None, ast.AST]]:
    """Every node that may be changed, with the lines of the outermost function around it."""
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            skipped = isinstance(child, ast.Raise | ast.JoinedStr) or field in {"annotation", "returns"}
            if not isinstance(child, ast.AST) or skipped:
                continue
            inside = scope
            if isinstance(child, ast.FunctionDef) and scope is None:
                inside = child.name, min([child.lineno, *(d.lineno for d in child.decorator_list)]), child.end_lineno
            yield inside, child
            yield from _nodes(child, inside)


@dataclass(frozen=True)
class Text:
    """Where nodes are in the source, in bytes."""

    data: bytes
    starts: list[int]

    def start(self, node: ast.AST) -> int:
        return self.starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.AST) -> int:
        return self.starts[node.end_lineno - 1] + node.end_col_offset

    def of(self, node: ast.AST) -> bytes:
        return self.data[self.start(node) : self.end(node)]

    def token(self, start: int, end: int, old: str, new: str) -> tuple[int, int, bytes]:
        """The edit of an operator that stands somewhere between two operands."""
        at = self.data.index(old.encode(), start, end)
        return at, at + len(old), new.encode()


def _edits(node: ast.AST, text: Text) -> Iterator[tuple[int, int, bytes]]:
    """The edits of one node, as (start, end, new)."""
    start, end = (text.start(node), text.end(node)) if hasattr(node, "lineno") else (0, 0)

    def shifts(index):
        for shift in (b" - 1", b" + 1"):
            yield text.start(index), text.end(index), text.of(index) + shift

    match node:
        case ast.Constant(value=bool(value)):
            yield start, end, str(not value).encode()
        case ast.Constant(value=int(value)):
            for new in {0: (1,), 1: (0, 2)}.get(value, (value + 1,)):
                yield start, end, str(new).encode()
        case ast.Constant(value=float(value)):
            yield start, end, f"{1.1 * value:.12g}".encode() if value else b"1.0"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            yield text.token(text.end(left), text.start(right), *OPERATORS[type(op)])
        case ast.AugAssign(target=left, op=op, value=right) if type(op) in OPERATORS:
            yield text.token(text.end(left), text.start(right), *OPERATORS[type(op)])
        case ast.BoolOp(op=op, values=values):
            for left, right in itertools.pairwise(values):
                yield text.token(text.end(left), text.start(right), *OPERATORS[type(op)])
        case ast.Compare(left=first, ops=ops, comparators=rest):
            for left, op, right in zip([first, *rest], ops, rest, strict=False):
                yield text.token(text.end(left), text.start(right), *OPERATORS[type(op)])
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            yield text.token(start, text.start(operand), *OPERATORS[type(op)])
        case ast.Subscript(slice=index) if _is_step(index):
            yield from shifts(index)
        case ast.Attribute(attr=("T" | "mT") as name):
            yield end - len(name) - 1, end, b""
        case ast.Call(func=ast.Attribute(value=owner, attr=name) as func):
            after = text.end(func)
            is_module = isinstance(owner, ast.Name) and owner.id in {"torch", "math"}
            if name in EXCHANGED:
                yield after - len(name), after, EXCHANGED[name].encode()
            if name in DROPPED and not is_module:
                yield after - len(name) - 1, end, b""
            elif name in DROPPED and len(node.args) == 1:
                yield start, after, b""
            if name == "where":
                _, yes, no = node.args
                swapped = text.of(no) + text.data[text.end(yes) : text.start(no)] + text.of(yes)
                yield text.start(yes), text.end(no), swapped
    if isinstance(node, ast.Call):
        if getattr(node.func, "id", None) not in BUILT_IN:
            for argument in filter(_is_step, node.args):  # a step that is handed on, as in process.at(t, z).level
                yield from shifts(argument)
        for before, argument in itertools.pairwise([*node.args, *node.keywords]):
            if isinstance(argument, ast.keyword) and argument.arg in PASSED_ON:
                yield text.end(before), text.end(argument), b""


def _is_step(node: ast.AST) -> bool:
    return getattr(node, "id", None) in STEPS or getattr(node, "attr", None) in STEPS


class Baseline:
    """Pytest plugin for the unchanged library: what each test function takes, and which code it calls.

    What is called while tests are collected belongs to no test and is listed under "".
    """

    def __init__(self):
        self.seconds, self.calls, self.current = collections.Counter(), collections.defaultdict(set), ""
        self.files = {str(PACKAGE / file): file for file in FILES}

    def trace(self, frame, event, argument):
        file = self.files.get(frame.f_code.co_filename)
        if file:
            self.calls[self.current].add((file, frame.f_code.co_firstlineno))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.current = _function(item)
        return (yield)

    def pytest_runtest_logreport(self, report):
        self.seconds[self.current] += report.duration


class Chosen:
    """Pytest plugin for a mutant: these test functions in this order, and no others."""

    def __init__(self, order: list[str]):
        self.rank = {function: k for k, function in enumerate(order)}

    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((i for i in items if _function(i) in self.rank), key=lambda i: self.rank[_function(i)])


def _function(item: pytest.Item) -> str:
    """A test function, all of whose cases stay together: they may share a fixture."""
    return item.nodeid.partition("[")[0]


def _run(plugin, files, verbose: bool) -> int:
    """Run pytest here, in a child; its exit status."""
    if not verbose:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
    os.chdir(ROOT)
    return int(pytest.main([*QUICK, *files], plugins=[plugin]))


def _fork(function, *arguments):
    """Call the function in a copy of this process."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    child.start()
    return child


def baseline(verbose: bool) -> tuple[dict[str, float], dict[str, set]]:
    """Seconds of each test function and the code that it calls; the unchanged library has to pass."""
    here, there = multiprocessing.Pipe()
    child = _fork(_watch, there, verbose)
    there.close()
    status, seconds, calls = here.recv()
    child.join()
    if status:
        raise SystemExit("the unchanged library fails its tests (--verbose shows how)")
    return seconds, calls


def _watch(connection, verbose: bool) -> None:
    plugin = Baseline()
    sys.settrace(plugin.trace)
    status = _run(plugin, [f"tests/test_{name}.py" for name in dict.fromkeys((*OF_LAWS, *OF_NETWORKS))], verbose)
    sys.settrace(None)
    connection.send((status, dict(plugin.seconds), dict(plugin.calls)))


def _judge(module: str, code: CodeType, order: list[str], verbose: bool) -> None:
    """Import the changed code as this module, run the tests, exit with pytest's status."""
    load = importlib.machinery.SourceFileLoader.get_code
    importlib.machinery.SourceFileLoader.get_code = lambda self, name: code if name == module else load(self, name)
    sys.exit(_run(Chosen(order), sorted({function.partition("::")[0] for function in order}), verbose))


def outcome(mutant: Mutant, seconds: dict[str, float], calls: dict[str, set], verbose: bool) -> str:
    """Fork, run the tests that call the changed function, and say "caught", "import", "timeout" or "survived"."""

    def concerned(function: str) -> bool:
        if function.partition("::")[0].removeprefix("tests/test_").removesuffix(".py") not in TESTS[mutant.file]:
            return False
        if mutant.scope is None:
            return True
        _, low, high = mutant.scope
        return any(
            file == mutant.file and low <= line <= high for key in ("", function) for file, line in calls.get(key, ())
        )

    order = sorted(filter(concerned, seconds), key=seconds.get)
    if not order:
        return "survived"
    module = "mtdiff." + mutant.file.removesuffix(".py").replace("/", ".")
    code = compile(mutant.code, str(PACKAGE / mutant.file), "exec")  # here: an error of it must not count as caught
    child = _fork(_judge, module, code, order, verbose)
    child.join(60 + PATIENCE * sum(seconds[function] for function in order))
    if child.exitcode is None:
        child.kill()
        return "timeout"
    if child.exitcode < 0:
        return "caught"  # killed by a signal
    known = {pytest.ExitCode.OK: "survived", pytest.ExitCode.TESTS_FAILED: "caught", pytest.ExitCode.INTERRUPTED: "import"}
    return known[child.exitcode]


def preload() -> None:
    """Import what takes long and is not tested, for all children at once; they run on one thread each."""
    os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "MTDIFF_THREADS": "1"}
    sys.path.insert(0, str(ROOT))
    for name in PRELOADED:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    gc.freeze()  # what is here already need not be looked at when a child collects its garbage


def pick(arguments: argparse.Namespace) -> list[Mutant]:
    """The mutants asked for; refuses a reason that fits none."""
    everything = [m for file in FILES for m in mutants(file, (PACKAGE / file).read_text())]
    stale = set(REASONS) - {m.key for m in everything}
    if stale:
        raise SystemExit("REASONS has entries that fit no mutant:\n" + "\n".join(f"  {key}" for key in sorted(stale)))
    chosen = [m for m in everything if not arguments.file or m.file in arguments.file]
    if arguments.only:
        listed = {(s["file"], s["function"], s["change"]) for s in json.loads(arguments.only.read_text())["survivors"]}
        chosen = [m for m in chosen if m.key in listed]
    if arguments.sample:
        indices = random.Random(arguments.seed).sample(range(len(chosen)), min(arguments.sample, len(chosen)))
        chosen = [chosen[k] for k in sorted(indices)]
    return chosen[:: arguments.every]


def report(results: list[tuple[Mutant, str]]) -> dict:
    """Counts per file and the survivors; "rate" counts every mutant, "rate_catchable" those without a reason."""
    files = {}
    for file in dict.fromkeys(m.file for m, _ in results):
        outcomes = collections.Counter(o for m, o in results if m.file == file)
        excused = sum(o == "survived" and m.key in REASONS for m, o in results if m.file == file)
        files[file] = {"mutants": outcomes.total(), **{o: outcomes[o] for o in OUTCOMES}, "with_reason": excused}
    count, survived, excused = (sum(f[key] for f in files.values()) for key in ("mutants", "survived", "with_reason"))
    survivors = [
        {"file": m.file, "function": m.key[1], "line": m.line, "change": m.change, "reason": REASONS.get(m.key)}
        for m, o in results
        if o == "survived"
    ]
    return {
        "mutants": count,
        "rate": round(1 - survived / count, 4),
        "rate_catchable": round((count - survived) / max(count - excused, 1), 4),
        "files": files,
        "survivors": survivors,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", nargs="+", choices=FILES, help="only these files")
    parser.add_argument("--every", type=int, default=1, help="only every K-th mutant")
    parser.add_argument("--sample", type=int, help="only N mutants, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=Path, help="only the survivors listed in this earlier result")
    parser.add_argument("--seconds", type=float, default=math.inf, help="only the cheapest tests, this long together")
    parser.add_argument("--list", action="store_true", help="show the mutants and stop")
    parser.add_argument("--verbose", action="store_true", help="show what pytest says")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    chosen = pick(arguments)
    if arguments.list:
        for m in chosen:
            print(f"{m.file}:{m.line}: {m.change}")
    if arguments.list or not chosen:
        print(f"{len(chosen)} mutants")
        return

    began = time.monotonic()
    preload()
    seconds, calls = baseline(arguments.verbose)
    total = itertools.accumulate(sorted(seconds.values()))
    cheap = sum(t <= arguments.seconds for t in total)
    seconds = {function: seconds[function] for function in sorted(seconds, key=seconds.get)[:cheap]}
    print(f"{cheap} test functions, {sum(seconds.values()):.0f} s; {len(chosen)} mutants", flush=True)
    results = []
    for m in tqdm(chosen, mininterval=10):
        results.append((m, outcome(m, seconds, calls, arguments.verbose)))
        reason = REASONS.get(m.key)
        if results[-1][1] in {"survived", "timeout"} or reason:
            tqdm.write(f"{m.file}:{m.line}: {results[-1][1]}: {m.change}" + (f"  [{reason}]" if reason else ""))
    wrong = [m.change for m, o in results if o != "survived" and m.key in REASONS]
    result = report(results)
    print(json.dumps({**result, "survivors": len(result["survivors"])}, indent=1), f"{time.monotonic() - began:.0f} s")
    if arguments.out:
        from mtdiff.provenance import provenance  # only now: the forks must import mtdiff themselves

        result = {"provenance": {**provenance(), "command": " ".join(["python tests/mutants.py", *sys.argv[1:]])}, **result}
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if wrong:
        raise SystemExit("caught, although REASONS says they cannot be:\n  " + "\n  ".join(wrong))
    raise SystemExit(any(1 - f["survived"] / f["mutants"] < GOAL for f in result["files"].values()))


if __name__ == "__main__":
    main()
