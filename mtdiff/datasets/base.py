"""What every data set is: a dict of tensors, one per modality, and where it came from."""

import functools
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

ALL = slice(None)


@dataclass(frozen=True, repr=False)
class Dataset:
    """Examples in memory, by modality.

    Attributes:
        name: what results call it.
        values: {modality: (N, ...)}, equally many of each.
        names: class names, where there is a label.
        source: the rule that made the values, where they follow from it; "" where they are what they are.
        vocabulary: the words of captions, as `mtdiff.modalities.Caption` takes them, where they are not known otherwise.
    """

    name: str
    values: Mapping[str, Tensor]
    names: tuple[str, ...] = ()
    source: str = ""
    vocabulary: tuple[str, ...] = ()

    def __post_init__(self):
        sizes = {name: len(value) for name, value in self.values.items()}
        if not sizes or len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise ValueError(f"data set {self.name!r} needs equally many, and some, examples of each modality: {sizes}")

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {self.shape(name)}" for name in self.values)
        classes = f"; {len(self.names)} classes" if self.names else ""
        return f"{type(self).__name__}({self.name!r}, {len(self):,} examples: {shapes}{classes})"

    def __getitem__(self, rows) -> dict[str, Tensor]:
        """The examples at an index, a slice or an index tensor, {modality: (B, ...)}."""
        if isinstance(rows, str):
            raise KeyError(f"a data set is indexed by example; for all examples of {rows!r} write .values[{rows!r}]")
        return {name: value[rows] for name, value in self.values.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one example of a modality, as models take it."""
        if name not in self.values:
            raise KeyError(f"data set {self.name!r} has no {name!r}, it has {list(self.values)}")
        return tuple(self[:1][name].shape[1:])

    def hash(self) -> str:
        """SHA-256 of what a result was measured on: `digest` of the values and their source."""
        return self._hash

    @functools.cached_property
    def _hash(self) -> str:
        return digest(self.values, self.source)

    def has_hash(self, found: str) -> bool:
        """Whether a hash is this set's, or that of all its bytes, as in files from before sets had a source."""
        return found == self.hash() or (bool(self.source) and found == digest(self.values))

    def batches(
        self, size: int, seed: int, start: int = 0, device: str | torch.device = "cpu", part: slice = ALL
    ) -> Iterator[dict]:
        """An endless stream of batches {modality: (size, ...)}, in a new order every epoch; an incomplete one is left out.

        Batch k depends on seed and k alone, so a stream that starts at k continues one that was interrupted there. The data
        are moved to the device once. Of every batch only the rows `part` are wanted, where processes share it.
        """
        data = {name: value.to(device) for name, value in self.values.items()}
        for rows in self.orders(size, seed, start, device):
            yield {name: value[rows[part]] for name, value in data.items()}

    def orders(self, size: int, seed: int, start: int = 0, device: str | torch.device = "cpu") -> Iterator[Tensor]:
        """The rows of every batch, (size,); see `batches`."""
        if not 1 <= size <= len(self):
            raise ValueError(f"batch size must be in 1..{len(self)} (the examples of {self.name!r}), got {size}")
        for k in itertools.count(start):
            epoch, at = divmod(k, len(self) // size)
            if k == start or at == 0:
                generator = torch.Generator().manual_seed(seed + 1_000_003 * epoch)
                order = torch.randperm(len(self), generator=generator).to(device)
            yield order[at * size : (at + 1) * size]

    def sample(self) -> dict[str, Tensor]:
        """What is looked at to see whether a model fits: everything."""
        return dict(self.values)

    def incomplete(self, kinds: Mapping) -> tuple[str, ...]:
        """Which of a model's modalities {name: kind} some examples lack; ValueError for one that all of them lack."""
        gone = {name: kinds[name].missing(self.values[name]) for name in kinds if name in self.values}
        for name, mask in gone.items():
            if bool(mask.all()):
                raise ValueError(f"data set {self.name!r} has no example with a {name!r}: all of them are missing")
        return tuple(name for name, mask in gone.items() if bool(mask.any()))


def digest(values: Mapping[str, Tensor], source: str = "") -> str:
    """SHA-256 over names and shapes of tensors, and over their source, or without one their bytes.

    Numbers that a rule computes may differ in their last bit from one processor to the next; what they follow from does not.
    """
    found = hashlib.sha256(source.encode())
    for name in sorted(values):
        value = values[name].contiguous()
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        if not source:
            found.update(value.cpu().numpy().tobytes())
    return found.hexdigest()


def ahead(function: Callable, items: Iterable, most: int, workers: int = 1) -> Iterator:
    """map(function, items) by threads, at most so many items ahead of whoever asks; an error comes where its item is due."""
    threads, due, items = ThreadPoolExecutor(workers, "mtdiff-ahead"), deque(), iter(items)
    try:
        due.extend(threads.submit(function, item) for item in itertools.islice(items, most))
        while due:
            result = due.popleft().result()
            due.extend(threads.submit(function, item) for item in itertools.islice(items, 1))
            yield result
    finally:
        threads.shutdown(cancel_futures=True)


def one_of(what: str, given: object, known: Collection) -> None:
    """Refuse (ValueError) what is not among the known."""
    if given not in known:
        raise ValueError(f"{what} must be one of {tuple(known)}, got {given!r}")


def some_of(what: str, given: Collection, known: Collection) -> None:
    """Refuse (ValueError) a selection that is empty, a text, or has something unknown."""
    if isinstance(given, str) or not given or set(given) - set(known):
        raise ValueError(f"{what} must be some of {tuple(known)}, got {given!r}")
