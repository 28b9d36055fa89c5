"""Data of other makers as a data set: dicts of tensors, torch's data sets and loaders, Hugging Face's data sets."""

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor

from mtdiff.datasets.base import ALL, Dataset, digest

SEEN = 256
"""Examples that are looked at to see whether a model fits."""


def adapted(data: Any, modalities: Collection[str]) -> "Dataset | Stream":
    """What a `Trainer` is given, as a data set of its model's modalities; what else there is of an example is left out.

    - A `Dataset` stays as it is.
    - {name: all values (N, ...)}: tensors, arrays or lists of numbers, in memory.
    - Two methods, `__len__` and `__getitem__(number) -> {name: value}`: a map-style `torch.utils.data.Dataset`, a Hugging
      Face data set `.with_format("torch")`, a list of dicts. Examples are read when they are due, in the order of
      `Dataset.orders`, each with torch's CPU generator seeded for it: a training goes on exactly, with random augmentation
      too, as long as that draws from torch alone. (Another set of as many examples of these shapes is not noticed.)
    - One method, `__iter__`, over batches {name: (B, ...)}: a `DataLoader`. It is used as it comes, epoch after epoch, and
      has to give the config's batch size; a smaller last batch is left out. A training goes on at its step, but with other
      batches, of which it warns. Where several processes train, each takes its part of its own batches, which have to be
      the same in all of them.

    Of what is read on the way, any example may lack any modality (-1 or NaN, see `Modality.missing`).

    Raises:
        ValueError: nothing of these, no examples, an example or a batch that is no dict, values that are no numbers or of
            different shapes.
        KeyError: a modality that an example or a batch lacks.
    """
    if isinstance(data, Dataset):
        return data
    name = getattr(data, "name", None)
    name = name if isinstance(name, str) else type(data).__name__
    if isinstance(data, Mapping):
        return Dataset(name, _tensors(data, modalities, f"data set {name!r}"))
    numbered = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if numbered and not isinstance(data, torch.utils.data.IterableDataset):
        if not len(data):
            raise ValueError(f"data set {name!r} has no examples")
        seen = torch.linspace(0, len(data) - 1, min(len(data), SEEN)).round().long().tolist()
        return Rows(name, _read(data, name, modalities, seen, seen), rows=data)
    if not hasattr(data, "__iter__"):
        expected = "a Dataset, a dict of tensors, a map-style data set or an iterable of batches"
        raise ValueError(f"data must be {expected}, got {short(data)}")
    if (stream := iter(data)) is data:
        raise ValueError(f"{name!r} can be read only once: give what can be iterated again, such as a DataLoader")
    if (first := next(stream, None)) is None:
        raise ValueError(f"data set {name!r} has no batches")
    return Stream(name, data, _tensors(first, modalities, f"batch 0 of {name!r}"))


@dataclass(frozen=True, repr=False)
class Rows(Dataset):
    """Examples that an object gives by their number, read when they are due; `values` holds some from all over the set."""

    rows: Any = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows) -> dict[str, Tensor]:
        """The examples at a slice or an index tensor."""
        rows = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        return _read(self.rows, self.name, self.values, rows, rows)

    def hash(self) -> str:
        """SHA-256 of names, shapes, types and the number of examples: all that is the same each time."""
        return digest({name: value[:0] for name, value in self.values.items()}, f"{len(self)} rows")

    def incomplete(self, kinds: Mapping) -> tuple[str, ...]:
        """All: nobody has looked at every example."""
        return tuple(kinds)

    def batches(
        self, size: int, seed: int, start: int = 0, device: str | torch.device = "cpu", part: slice = ALL
    ) -> Iterator[dict]:
        """Batches as of any `Dataset`."""
        for k, rows in enumerate(self.orders(size, seed, start), start):
            seeds = [seed + 1_000_003 * number for number in range(k * size, (k + 1) * size)[part]]
            batch = _read(self.rows, self.name, self.values, rows[part].tolist(), seeds)
            yield {name: value.to(device) for name, value in batch.items()}


class Stream:
    """Batches that come as they come, epoch after epoch: as much of a data set as a `Trainer` needs."""

    def __init__(self, name: str, stream: Iterable, first: Mapping[str, Tensor]):
        self.name, self.stream, self.first = name, stream, first

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, batches of {_shapes(self.first)})"

    def sample(self) -> dict[str, Tensor]:
        """What is looked at to see whether a model fits: the first batch."""
        return dict(self.first)

    def hash(self) -> str:
        """SHA-256 of names, shapes and types."""
        return digest({name: value[:0] for name, value in self.first.items()}, "batches")

    def has_hash(self, found: str) -> bool:
        """Whether a hash is this stream's."""
        return found == self.hash()

    def incomplete(self, kinds: Mapping) -> tuple[str, ...]:
        """All: nobody has looked at every example."""
        return tuple(kinds)

    def batches(
        self, size: int, seed: int, start: int = 0, device: str | torch.device = "cpu", part: slice = ALL
    ) -> Iterator[dict]:
        """An endless stream of batches {modality: (size, ...)}; from a later start on, a warning. The seed has no say."""
        if start:
            text = f"data set {self.name!r} comes as it comes: the training goes on at step {start}, with other batches"
            warnings.warn(f"{text} than it would have had without the stop", stacklevel=2)
        while True:
            for batch in self._epoch(size):
                yield {name: value[part].to(device, non_blocking=True) for name, value in batch.items()}

    def _epoch(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Once through, without a smaller last batch; ValueError for any other size, or where no batch is left."""
        last, taken = "", False
        for k, batch in enumerate(self.stream):
            if last:
                raise ValueError(f"{last}; only the last batch may be smaller")
            values = _tensors(batch, self.first, f"batch {k} of {self.name!r}")
            sizes = {len(value) if value.ndim else 0 for value in values.values()}
            text = f"batch {k} of {self.name!r} is {_shapes(values)}, expected {size} examples of each (the batch size)"
            if len(sizes) > 1 or max(sizes) > size:
                make = f"torch.utils.data.DataLoader(data, batch_size={size}) makes batches of single examples"
                raise ValueError(f"{text}; {make}")
            last = text if max(sizes) < size else ""
            if not last:
                taken = True
                yield values
        if not taken:
            raise ValueError(last or f"data set {self.name!r} has no batches")


def _read(data: Any, name: str, names: Collection[str], rows: Sequence[int], seeds: Sequence[int]) -> dict[str, Tensor]:
    """Examples by their numbers, stacked; torch's CPU generator is seeded for each, and as it was in the end."""
    examples = []
    with torch.random.fork_rng(devices=[]):
        for row, seed in zip(rows, seeds, strict=True):
            torch.default_generator.manual_seed(seed)
            examples.append(_tensors(data[row], names, f"example {row} of {name!r}"))
    for row, example in zip(rows, examples, strict=True):
        for key, value in example.items():
            if value.shape != (shape := examples[0][key].shape):
                what = f"examples {rows[0]} and {row} of {name!r} have {key!r} of different shapes"
                raise ValueError(f"{what}: {tuple(shape)} and {tuple(value.shape)}")
    return {key: torch.stack([example[key] for example in examples]) for key in names}


def _tensors(values: object, names: Collection[str], what: str) -> dict[str, Tensor]:
    """The values of these names as tensors."""
    if not isinstance(values, Mapping):
        form = ", ".join(f"{name!r}: ..." for name in names)
        raise ValueError(f"{what} is {short(values)}: expected a dict {{{form}}}")
    if lacking := [name for name in names if name not in values]:
        raise KeyError(f"{what} lacks {lacking}; it has {list(values)}")
    found = {}
    for name in names:
        try:
            found[name] = torch.as_tensor(values[name])
        except (RuntimeError, TypeError, ValueError):
            text = f"{name!r} of {what} is {short(values[name])}"
            raise ValueError(f"{text}: expected a tensor, an array or numbers") from None
    return found


def _shapes(values: Mapping[str, Tensor]) -> str:
    """The shapes of tensors, by name."""
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in values.items())
