"""Reading what somebody else may have written: an error names the file, comes soon, and takes little memory."""

import contextlib
import json
import math
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LARGEST = 2**24
"""Bytes of the largest file of JSON that is read."""


@contextlib.contextmanager
def naming(path: str | Path, what: str = "is damaged") -> Iterator[None]:
    """Around the use of a file's content: whatever is wrong with it becomes one ValueError, "<path> <what>: <why>".

    An error that names the file already passes, and so does an OSError.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} {what}: {said(error)}") from error


def said(error: Exception) -> str:
    """What an error says, in one line."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if isinstance(error, KeyError) and " " not in text:
        return f"it lacks {text!r}"
    text = " ".join(text.split())
    text = text if len(text) < 500 else f"{text[:500]} ..."
    return text if isinstance(error, ValueError | KeyError | RuntimeError) else f"{type(error).__name__}: {text}"


def read_json(path: Path, what: str) -> dict:
    """An object from a file of JSON; of a file that holds something else is said `what`: "is not a model card".

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it holds something else, is nested too deeply, or has more than `LARGEST` bytes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with naming(path, what):
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        found = json.loads(data.decode())
        if not isinstance(found, dict):
            raise ValueError(f"expected an object, got {reprlib.repr(found)}")
    return found


def fits(value: object, hint: object) -> bool:
    """Whether a value from JSON is of an annotated type, as far as that is known here.

    Lists stand for tuples, slices and tensors; numbers are finite.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if hint is float:
        return type(value) in (int, float) and abs(value) < math.inf
    if hint in (int, bool, str, types.NoneType):
        return type(value) is hint
    if hint is slice:
        return fits(value, list[int | None]) and len(value) == 2
    if origin in (Sequence, list, tuple):
        return isinstance(value, list | tuple) and all(fits(each, inner[0]) for each in value)
    if origin in (Mapping, dict):
        return isinstance(value, dict) and all(fits(each, inner[1]) for each in value.values())
    return isinstance(value, hint if hint in (list, dict) else list if hint is Tensor else object)


def _named(hint: object) -> str:
    """An annotated type as people call what JSON has for it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_named, inner))
    if origin in (Sequence, list, tuple, Mapping, dict):
        kind, each = ("an object", inner[1]) if origin in (Mapping, dict) else ("a list", inner[0])
        return kind if each is object else f"{kind}, each entry {_named(each)}"
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", types.NoneType: "null"}
    words |= {slice: "a list of two whole numbers", list: "a list", Tensor: "a list", dict: "an object"}
    return words.get(hint, str(hint))


def check_types(values: Mapping, hints: Mapping, what: str) -> None:
    """Raise ValueError, naming it, where a value of `what` is not of the type that is annotated for its name, if one is."""
    for name, value in values.items():
        if not fits(value, hint := hints.get(name, object)):
            raise ValueError(f"{name} of {what} must be {_named(hint)}, got {reprlib.repr(value)}")


class Allowance(TorchFunctionMode):
    """Inside, making more than a few times the numbers that a file holds is a ValueError: its card asks for too much.

    What a card describes is built before it can be compared with the file, and a few bytes there ask for any size and any
    number of layers. Every tensor costs its numbers and a bit, and a decomposition its work; so loops end, too. First
    weights are not drawn: others are about to be loaded.
    """

    BIT = 1024

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        self.held = sum(tensor.numel() for tensor in tensors.values())
        self.left = 2**22 + 8 * (self.held + self.BIT * len(tensors))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Pay for a tensor, then make it."""
        kwargs = kwargs or {}
        if func in DRAWN and isinstance(kwargs.get("tensor"), nn.Parameter):
            return kwargs["tensor"]
        if func in COSTS:
            self.left -= COSTS[func](*args, **kwargs) + self.BIT
            if self.left < 0:
                raise ValueError(f"the card asks for far more than the {self.held:,} numbers that the file holds")
        return func(*args, **kwargs)


def _product(*sizes, size: Sequence[int] = (), **_) -> int:
    """Numbers in a tensor, whose sizes come one by one or as one sequence."""
    sizes = sizes or (size,)
    return math.prod(map(abs, sizes if isinstance(sizes[0], int) else sizes[0]))


def _work(matrix: Tensor, *_, **__) -> int:
    """What a decomposition of a matrix takes, in units of a thousand operations."""
    return matrix.numel() * min(matrix.shape) // 1024


COSTS = dict.fromkeys((torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn), _product)
COSTS |= dict.fromkeys((torch.arange, torch.linspace), lambda *bounds, **_: max(map(abs, bounds)))
COSTS |= {torch.eye: lambda n, *_, **__: n * n, torch.linalg.svd: _work, torch.linalg.qr: _work}
DRAWN = {nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_}
