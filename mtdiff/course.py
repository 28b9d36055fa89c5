"""The course, handed out and handed back: versions for students and for teachers, and grades for what returns."""

import html
import logging
import math
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mtdiff.optional import needed

with needed("the course"):
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from nbformat import NotebookNode

FOLDED = {"jupyter": {"source_hidden": True, "outputs_hidden": True}, "cellView": "form"}
"""What folds a solution away: JupyterLab and Notebook go by the first, Colab by the second; each ignores the other's."""
HIDDEN = "hide-cell"
"""The tag that folds it away in MyST and Jupyter Book."""
READING = ("theory.md", "walkthrough.md", "measured.md", "relatives.md", "quiz.md")
"""The pages that notebooks refer to."""


def home() -> Path:
    """The checkout that holds the course: that of this file, or the working directory.

    Raises:
        FileNotFoundError: neither is one, as with an installed wheel.
    """
    for place in (Path(__file__).parent.parent, Path.cwd()):
        if (place / "notebooks" / "00_quickstart.ipynb").is_file():
            return place
    raise FileNotFoundError("the notebooks do not come with the package: run this in a checkout of mtdiff's repository")


def pages(only: Collection[str] = ()) -> list[Path]:
    """The executed notebooks, in order: all, or those that some numbers or names ("05", "05_sampling") stand for.

    Raises:
        ValueError: a name stands for none.
    """
    found = sorted((home() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    for name in only:
        if not name or not any(page.stem.startswith(name) for page in found):
            raise ValueError(f"no notebook {name!r}; there are {[page.stem for page in found]}")
    return [page for page in found if not only or page.stem.startswith(tuple(only))]


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def fold(cell: NotebookNode) -> None:
    """Fold a cell away, in place."""
    cell.metadata.update(FOLDED, tags=[*(tag for tag in tags(cell) if tag != HIDDEN), HIDDEN])


def unfold(cell: NotebookNode) -> None:
    """Undo `fold`."""
    for name in FOLDED:
        cell.metadata.pop(name, None)
    if HIDDEN in tags(cell):
        cell.metadata["tags"] = [tag for tag in tags(cell) if tag != HIDDEN]


def student_version(notebook: NotebookNode) -> NotebookNode:
    """The notebook without outputs and solutions, nor what discusses them, up to the next exercise or heading."""
    kept, behind = [], False
    for cell in notebook.cells:
        if "solution" in tags(cell):
            behind = True
        elif behind:
            start = re.search(r"^(#|\*\*Exercise )", cell.source, re.M) if cell.cell_type == "markdown" else None
            if start:
                cell.source, behind = cell.source[start.start() :], False
        if not behind:
            kept.append(cell)
    notebook.cells = kept
    for cell in kept:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def hand_out(out: Path, only: Collection[str] = (), solutions: bool = False) -> list[Path]:
    """Write a version of the notebooks, and what they read and refer to, to a new folder.

    Args:
        out: the folder; notebooks in `notebooks/`, result files in `data/results/`.
        only: see `pages`.
        solutions: the teacher's version in place of the students'.

    Returns:
        The notebooks.

    Raises:
        ValueError: the folder holds something.
    """
    chosen, root, written = pages(only), home(), []
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: name a new folder, so that nobody's work is written over")
    (out / "notebooks").mkdir(parents=True)
    for page in chosen:
        notebook = nbformat.read(page, 4)
        if not solutions:
            notebook = student_version(notebook)
        for cell in notebook.cells:
            unfold(cell)
        notebook.metadata["mtdiff"] = page.stem
        written.append(out / "notebooks" / page.name)
        nbformat.write(notebook, written[-1])
    for name in READING:
        shutil.copy(root / "notebooks" / name, out / "notebooks")
    shutil.copytree(root / "data" / "results", out / "data" / "results")
    return written


@dataclass(frozen=True)
class Question:
    """One of the quiz: the notebook it is from, its options by their letters, the right letter, and why."""

    notebook: str
    text: str
    options: dict[str, str]
    right: str
    why: str


def quiz(only: Collection[str] = ()) -> list[Question]:
    """The questions of quiz.md, all or those of some notebooks ("05").

    Raises:
        ValueError: there is no question of one of them.
    """
    found = []
    for part in re.split(r"^## \d+ · notebook ", (home() / "notebooks" / "quiz.md").read_text(), flags=re.M)[1:]:
        text, answer = re.sub(r"\]\([^)]*\)", "]", part).split("<details>")  # links lead nowhere in a terminal
        (notebook, question), options = text.split("\n\n")[:2], dict(re.findall(r"^- \*\*(\w)\*\* (.*)$", text, re.M))
        right, why = re.search(r"\*\*(\w)\.\*\* (.*)", answer).groups()
        found.append(Question(notebook, question, options, right, why))
    for name in only:
        if name not in (known := sorted({one.notebook for one in found})):
            raise ValueError(f"no question on notebook {name!r}; there are some on {known}")
    return [one for one in found if not only or one.notebook in only]


@dataclass(frozen=True)
class Row:
    """What became of one exercise (0: of none, the file could not be graded); seconds are those of the whole notebook."""

    who: str
    notebook: str
    exercise: int
    passed: bool
    message: str
    seconds: float


def checks(notebook: NotebookNode) -> dict[int, NotebookNode]:
    """{k: the cell that defines check_k}."""
    found = {}
    for cell in notebook.cells:
        match = re.search(r"^def check_(\d+)\(", cell.source, re.M) if cell.cell_type == "code" else None
        if match:
            found[int(match[1])] = cell
    return found


class Runner(NotebookClient):
    """Keeps values and errors of cells; what they print and draw is dropped as it comes, however much it is."""

    def output(self, outs, msg, display_id, cell_index):
        """See NotebookClient."""
        if msg["msg_type"] in ("execute_result", "error"):
            return super().output(outs, msg, display_id, cell_index)
        return None

    def on_comm_open_jupyter_widget(self, msg):
        """No widget collects outputs: what its callback raises belongs to the cell, like any other error."""


def run(notebook: NotebookNode, minutes: float) -> str:
    """Execute a notebook in place, in a process and a folder of its own; cells may raise.

    Returns:
        Nothing if its end was reached, or what cut it off.

    Raises:
        KeyboardInterrupt: by Ctrl-C, or when this process is to end (SIGTERM).
    """
    end = time.monotonic() + 60 * minutes
    places = (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", ""))  # the same mtdiff, wherever it lies
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        shutil.copytree(home() / "data" / "results", Path(place, "data", "results"))
        (folder := Path(place, "notebooks")).mkdir()
        client = Runner(
            notebook,
            kernel_name="python3",
            allow_errors=True,
            timeout_func=lambda cell: max(1, math.ceil(end - time.monotonic())),
            shutdown_kernel="immediate",
            store_widget_state=False,
            resources={"metadata": {"path": str(folder)}},
            log=logging.Logger("quiet", logging.CRITICAL + 1),
        )
        try:
            client.execute(env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except CellTimeoutError:
            return f"cut off after {minutes:g} minutes in code cell {client.code_cells_executed}"
        except DeadKernelError:
            return f"the process died in code cell {client.code_cells_executed}"
        except Exception as error:  # a kernel that is lost shows in many ways
            if hasattr(client, "_async_cleanup_kernel_future"):  # nbclient heard Ctrl-C, and ended the kernel alone
                raise KeyboardInterrupt from None
            return f"lost in code cell {client.code_cells_executed} ({type(error).__name__} {error})"
    return ""


def raised(notebook: NotebookNode) -> dict[int, str]:
    """{k: what the k-th code cell raised}, but for the cells of checks."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    others = [(k, cell) for k, cell in enumerate(cells, 1) if cell not in checks(notebook).values()]
    return {k: f"{o.ename}: {o.evalue}" for k, cell in others for o in cell.outputs if o.output_type == "error"}


def verdict(cell: NotebookNode) -> tuple[bool, str] | None:
    """Whether a check is content, and its words; None if it gave no `Verdict`."""
    for output in cell.outputs:
        if output.output_type == "error":
            return False, f"{output.ename}: {output.evalue}"
        shown = re.fullmatch(r"<p .*?<b>.*?(Solved|Not yet)\.</b> (.*)</p>", output.data.get("text/html", ""), re.S)
        if shown:
            return shown[1] == "Solved", html.unescape(shown[2])
    return None


def graded(notebook: NotebookNode, ours: Mapping[int, NotebookNode], minutes: float) -> dict[int, tuple[bool, str]]:
    """Whether each exercise of a returned notebook is solved, by the course's own checks, and what they say.

    Args:
        notebook: its code is run, but for solutions; its checks are replaced.
        ours: see `checks`.
        minutes: time for the whole notebook.
    """
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "solution" not in tags(cell)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    theirs = checks(notebook)
    for number in theirs.keys() & ours.keys():
        theirs[number].source = ours[number].source
    cut = run(notebook, minutes)
    first, found = next(iter(raised(notebook).items()), None), {}
    for number in ours:
        if number not in theirs:
            found[number] = False, "the cell with its check is missing"
            continue
        solved, message = verdict(theirs[number]) or (False, cut or "the check gave no verdict")
        if first and not solved:
            message += f" (first, code cell {first[0]} raised {first[1]})"
        found[number] = solved, message
    return found


def grade(folder: Path, minutes: float) -> Iterator[Row]:
    """Grade every notebook below a folder, one after the other: a row for each exercise, whatever the file is.

    Who: the subfolder, or the name of a file that lies in none. Which notebook: what `hand_out` wrote in it, or a name of
    the course in the file's.

    Raises:
        ValueError: no such folder, or no notebooks in it.
    """
    course = {page.stem: page for page in pages()}
    files = [f for f in sorted(folder.rglob("*.ipynb")) if not any(p.startswith(".") for p in f.relative_to(folder).parts)]
    if not files:
        raise ValueError(f"there are no notebooks (*.ipynb) in {folder}")
    for file in files:
        inside, start = file.relative_to(folder), time.monotonic()
        who = inside.parts[0] if len(inside.parts) > 1 else file.stem
        stem = next((stem for stem in course if stem in file.stem), "")
        try:
            notebook = nbformat.read(file, 4)
            stem = said if (said := notebook.metadata.get("mtdiff")) in course else stem
            if not stem:
                raise ValueError(f"which notebook is {file.name}? Name it after one, such as {next(iter(course))}")
            found = graded(notebook, checks(nbformat.read(course[stem], 4)), minutes)
        except Exception as error:  # a returned file can be anything
            found = {0: (False, f"cannot be graded: {type(error).__name__} {error}")}
        seconds = round(time.monotonic() - start, 1)
        for number, (solved, message) in found.items():
            yield Row(_line(who), stem, number, solved, _line(message), seconds)


def _line(text: str) -> str:
    """A text as one short line."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text := " ".join(text.split())) <= 300 else text[:299] + "…"
