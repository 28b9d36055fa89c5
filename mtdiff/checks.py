"""Arguments that are refused: an error says which one, what came and what was expected."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Checked(Protocol):
    """What can say whether a value is one of its own."""

    def check(self, value: Tensor) -> None:
        """Raise ValueError unless it is a valid batch (B, ...)."""


def check_real(what: str, value: Tensor, sizes: Sequence[int] | None = None) -> None:
    """Raise ValueError unless value is floating point, (B, *sizes) or not empty, and, on a CPU, finite.

    What a learned encoder makes in training is not looked at: that is the trainer's, which says what to do about it.
    """
    wrong = not isinstance(value, Tensor) or not value.is_floating_point() or not value.ndim
    if wrong or (not len(value) if sizes is None else tuple(value.shape[1:]) != tuple(sizes)):
        expected = "a floating-point tensor of at least one example"
        expected = expected if sizes is None else f"floating point (B, {', '.join(map(str, sizes))})"
        raise ValueError(f"{what} must be {expected}, got {described(value)}")
    if value.device.type == "cpu" and not value.requires_grad and not bool(value.isfinite().all()):
        rows = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"{what} has values that are not finite (NaN or inf) in rows {rows[:8]}")


def check_ids(what: str, value: Tensor, classes: int, shape: str, *sizes: int) -> None:
    """Raise ValueError unless value is an integer tensor (B, *sizes) in 0..classes-1 (not read back from a GPU)."""
    whole = isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool
    if not whole or not value.ndim or tuple(value.shape[1:]) != sizes:
        raise ValueError(f"{what} must be an integer tensor of {shape}, got {described(value)}")
    if value.device.type == "cpu":
        wrong = value[(value < 0) | (value >= classes)]
        if len(wrong):
            raise ValueError(f"{what} has values outside 0..{classes - 1}: {wrong.unique().tolist()[:8]}")


def check_steps(t: Tensor, n: int, lowest: int, highest: int) -> None:
    """Raise ValueError unless t is an int tensor of n steps in a range (not read back from a GPU), or of one for all."""
    if t.is_floating_point() or t.dtype == torch.bool or t.shape not in ((), (n,)):
        raise ValueError(f"t must be an int or an int tensor ({n},), got {t.dtype} {tuple(t.shape)}")
    readable = t.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and not lowest <= int(t.min()) <= int(t.max()) <= highest:
        raise ValueError(f"t must be in {lowest}..{highest}, got values in {int(t.min())}..{int(t.max())}")


def check_whole(**numbers: int | Sequence[int]) -> None:
    """Raise ValueError, by its name, unless each is a whole number from 1 on, or a sequence of such that is not empty."""
    for name, number in numbers.items():
        several = isinstance(number, Sequence) and not isinstance(number, str)
        each = tuple(number) if several else (number,)
        if not each or any(type(one) is not int or one < 1 for one in each):
            expected = "whole numbers" if several else "a whole number"
            raise ValueError(f"{name} must be {expected} from 1 on, got {number!r}")


def check_choice(what: str, value: object, choices: Collection, hint: str = "") -> object:
    """The value; ValueError, which may end with a hint, unless it is one of the choices."""
    if value not in tuple(choices):
        raise ValueError(f"{what} must be one of {tuple(choices)}, got {value!r}{hint}")
    return value


def check_names(what: str, names: Collection[str], known: Collection[str]) -> tuple[str, ...]:
    """The names as a tuple; ValueError for a string, which is no collection of names, KeyError for one that is not known."""
    if isinstance(names, str):
        raise ValueError(f"{what} must be a collection of names, got the string {names!r}")
    names = tuple(names)
    for name in names:
        if name not in known:
            raise KeyError(f"{what} names an unknown modality {name!r}; known are {list(known)}")
    return names


def check_values(known: Mapping[str, Checked], values: Mapping[str, Tensor], what: str, n: int | None = None) -> int:
    """How many; KeyError for an unknown modality, ValueError unless values are valid and equally many (n, if given)."""
    if not values:
        raise ValueError(f"{what} is empty; this model has {list(known)}")
    check_names(what, values, known)
    for name, value in values.items():
        try:
            known[name].check(value)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
    sizes = {name: len(value) for name, value in values.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{what} has different numbers of examples: {sizes}")
    if 0 in sizes.values():
        raise ValueError(f"{what} must have at least one example, got {sizes}")
    size = next(iter(sizes.values()))
    if n not in (None, size):
        raise ValueError(f"{what} has {size} examples, z_t has {n}")
    return size


def described(value: object) -> str:
    """A value in an error: of a tensor dtype and shape."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
