"""What every data set is: a dict of tensors, one per modality, and where it came from."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

ALL = slice(None)


@dataclass(frozen=True)
class Dataset:
    """Examples in memory, by modality.

    Attributes:
        name: what results call it.
        values: {modality: (N, ...)}, equally many of each.
        names: class names, where there is a label.
        source: the rule that made the values, where they follow from it; "" where they are what they are.
    """

    name: str
    values: Mapping[str, Tensor]
    names: tuple[str, ...] = field(default=())
    source: str = ""

    def __post_init__(self):
        sizes = {name: len(value) for name, value in self.values.items()}
        if not sizes or len(set(sizes.values())) > 1 or 0 in sizes.values():
            raise ValueError(f"data set {self.name!r} needs equally many, and some, examples of each modality: {sizes}")

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, rows) -> dict[str, Tensor]:
        """The examples at an index, a slice or an index tensor, {modality: (B, ...)}."""
        if isinstance(rows, str):
            raise KeyError(f"a data set is indexed by example; for all examples of {rows!r} write .values[{rows!r}]")
        return {name: value[rows] for name, value in self.values.items()}

    def hash(self) -> str:
        """SHA-256 of what a result was measured on: names and shapes, and the source, or without one all bytes.

        Numbers that a rule computes may differ in their last bit from one processor to the next; what they follow from
        does not.
        """
        return self._hash

    @functools.cached_property
    def _hash(self) -> str:
        return digest(self.values, self.source)

    def has_hash(self, found: str) -> bool:
        """Whether a hash is this set's, or that of all its bytes: as sets with a source were hashed in older files."""
        return found == self.hash() or (bool(self.source) and found == digest(self.values))

    def batches(
        self, size: int, seed: int, start: int = 0, device: str | torch.device = "cpu", part: slice = ALL
    ) -> Iterator[dict]:
        """An endless stream of batches: a new random order every epoch, the last incomplete batch left out.

        Batch k depends on seed and k alone, so a stream that starts at k continues one that was interrupted there.

        Args:
            size: examples per batch; at most N.
            seed: seed of the orders.
            start: number of batches to skip.
            device: where batches are wanted; the data are moved there once.
            part: the rows of every batch that are wanted, for processes that share one.

        Yields:
            {modality: (size, ...)}, or its part.

        Raises:
            ValueError: size is not in 1..N.
        """
        data = {name: value.to(device) for name, value in self.values.items()}
        for rows in self.orders(size, seed, start, device):
            yield {name: value[rows[part]] for name, value in data.items()}

    def orders(self, size: int, seed: int, start: int = 0, device: str | torch.device = "cpu") -> Iterator[Tensor]:
        """The rows of every batch, (size,); see `batches`."""
        if not 1 <= size <= len(self):
            raise ValueError(f"batch size must be in 1..{len(self)} (the examples of {self.name!r}), got {size}")
        per_epoch = len(self) // size
        epoch, k = divmod(start, per_epoch)
        while True:
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed + 1_000_003 * epoch))
            order = order.to(device)
            for k in range(k, per_epoch):  # noqa: B020  (the first epoch begins where `start` says)
                yield order[k * size : (k + 1) * size]
            epoch, k = epoch + 1, 0

    def sample(self) -> dict[str, Tensor]:
        """What is looked at to see whether a model fits: everything."""
        return dict(self.values)


def digest(values: Mapping[str, Tensor], source: str = "") -> str:
    """SHA-256 over names and shapes of tensors, and over their source, or without one their bytes."""
    found = hashlib.sha256(source.encode())
    for name in sorted(values):
        value = values[name].contiguous()
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        if not source:
            found.update(value.cpu().numpy().tobytes())
    return found.hexdigest()
