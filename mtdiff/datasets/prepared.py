"""Packed images as a data set: bytes in memory or mapped from a file, decoded a batch at a time where they are used."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtdiff.datasets.base import ALL, Dataset, ahead, one_of, some_of
from mtdiff.datasets.imagenet.folders import HASHED, OWN
from mtdiff.datasets.imagenet.layouts import SPLITS
from mtdiff.datasets.imagenet.packing import BOXES, CAPTIONS, DAMAGED, IMAGES, LABELS, pack, read_meta
from mtdiff.datasets.imagenet.tables import text_of
from mtdiff.datasets.masks import masks
from mtdiff.modalities import vocabulary
from mtdiff.reading import naming

MODALITIES = ("image", "label", "box", "masked", "mask")
POOL = 4096
"""Masks that are drawn once; every example of every batch takes one of them at random."""
ROOM = 0.5
"""Share of a GPU's free memory that a data set may fill."""
AHEAD = 3
"""Batches that are gathered while the GPU computes."""


def folder(path: str | Path, size: int | None = None, split: str = "train", **options) -> "Prepared":
    """A split of a folder of pictures, packed at a size (32) where it is not yet; see `mtdiff.datasets.imagenet.pack`.

    Options and other errors are those of `prepared`.
    """
    return prepared(pack(path, size), split, **options)


def prepared(
    folder: str | Path, split: str = "train", modalities: Sequence[str] | None = None, flip: bool | None = None
) -> "Prepared":
    """A split that `mtdiff data prepare` wrote; its pixels stay in the file until they are used.

    "test" is another word for "val". None of the modalities is "image" and what comes with it: "label" of two classes at
    least, "caption" and pictures beside it such as "mask". Of `MODALITIES`, "masked" is the image where the "mask" is 1 and
    grey where it hides; those masks are of all kinds and hide 10 to 90% (`mtdiff.datasets.masks`). To flip is to mirror a
    random half of every batch; None does so in "train" only, and not with own pictures, which may be of letters.

    Raises:
        FileNotFoundError: no such set, or a file of it is missing.
        ValueError: files that do not fit their description, splits of different classes, or labels of one class or boxes
            that the set lacks.
    """
    split = "val" if split == "test" else split
    one_of("split", split, SPLITS)
    path, beside = (Path(folder) / name for name in (split, "train" if split == "val" else "val"))
    meta = read_meta(path)
    if beside.is_dir() and read_meta(beside)["names"] != meta["names"]:
        raise ValueError(f"train and val do not have the same classes in {folder}: delete it, and prepare both together")
    pictures, several = meta.get("beside") or [], len(meta["names"]) > 1
    natural = ["image", *["label"] * several, *["caption"] * bool(meta.get("captions")), *pictures]
    modalities = natural if modalities is None else modalities
    some_of("modalities", modalities, dict.fromkeys((*MODALITIES, *natural)))
    if "masked" in modalities and "image" not in modalities:
        raise ValueError("the modality 'masked' is made of 'image': ask for both")
    if "label" in modalities and not several:
        raise ValueError(f"{path} has one class, {meta['names'][0]!r}: labels need two at least, a sub-folder for each")
    masked = "masked" in modalities or ("mask" in modalities and "mask" not in pictures)
    stored = {name: f"{name}.bin" for name in pictures if name in modalities and (name != "mask" or not masked)}
    stored["image"] = IMAGES
    lacking = [name for name in (LABELS, BOXES, *stored.values()) if not (path / name).is_file()]
    if lacking:
        raise FileNotFoundError(f"{path} lacks {', '.join(lacking)}: delete the folder and prepare it again")
    n, size = meta["count"], meta["size"]
    values = {
        "label": _array(path / LABELS, np.int64, (n,), 0, len(meta["names"]) - 1),
        "box": _array(path / BOXES, np.float32, (n, 4), 0, 1),
        **dict.fromkeys(("masked", "mask"), torch.arange(n) % POOL),
        **{name: _pixels(path / file, (n, 3, size, size)) for name, file in stored.items()},
    }
    words: list[str] = []
    if "caption" in modalities:
        words, values["caption"] = _captions(path, beside, n)
    without = int(values["box"].isnan().any(1).sum())
    if "box" in modalities and without:
        raise ValueError(f"{without:,} of {n:,} images in {path} have no box: leave out the modality 'box'")
    return Prepared(
        f"{Path(folder).name}/{split}",
        {name: values[name] for name in modalities},
        tuple(meta["names"]),
        vocabulary=tuple(words),
        size=size,
        sha256=meta["sha256"],
        flip=split == "train" and meta.get("layout") not in (OWN, HASHED) if flip is None else flip,
        pool=masks(min(n, POOL), size, seed=0 if split == "train" else 1).bool() if masked else None,
    )


def _pixels(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A file of bytes, mapped."""
    found, expected = path.stat().st_size, math.prod(shape)
    if found != expected:
        raise ValueError(f"{path} has {found:,} bytes, expected {expected:,}: it is truncated; prepare it again")
    return torch.from_numpy(np.memmap(path, np.uint8, "c", shape=shape))


def _captions(path: Path, beside: Path, n: int) -> tuple[list[str], Tensor]:
    """The words of train's captions, and a split's as tokens (N, L) of the longest caption of both; others are "?"."""
    said = {each.name: text_of(each / CAPTIONS).split("\n") for each in (path, beside) if (each / CAPTIONS).is_file()}
    with naming(path / CAPTIONS, DAMAGED):
        if len(said[path.name]) != n:
            raise ValueError(f"it has {len(said[path.name])} lines, expected {n}")
        words = vocabulary(said.get("train", said[path.name]), unknown=True)
        length = max(len(text.split()) for texts in said.values() for text in texts)
        token = {word: k for k, word in enumerate(words)}
        rows = [[token.get(word, token["?"]) for word in text.lower().split()] for text in said[path.name]]
        return words, torch.tensor([row + [token[""]] * (length - len(row)) for row in rows])


@dataclass(frozen=True)
class Prepared(Dataset):
    """Images (N, 3, s, s) as uint8, labels, boxes (N, 4) and numbers of masks in `values`; batches hold what models take.

    A batch has "image" (B, 3, s, s) in [-1, 1], "label" (B,), "box" (B, 1, s, s), a mask of one object, "mask" likewise,
    1 where a pixel is known, and "masked" (B, 3, s, s), the image there. Examples that are picked by their index have the
    mask of that index; those of `batches` one drawn at random. Of own pictures there may be "caption" (B, L), tokens of the
    `vocabulary`, a "mask" that is 1 where the stored one is more white than black, and others, which are as images.

    Where a GPU has room, all bytes are moved there once; otherwise a thread gathers pinned batches ahead. (Not a process,
    which would copy the mapped file where it is not forked, and wants scripts to guard `__main__`.)

    Attributes:
        size: height and width.
        sha256: of the files, as `prepare` found it.
        flip: whether a random half of every batch is mirrored.
        pool: (M, 1, s, s) bool, the masks.
    """

    size: int = 0
    sha256: str = ""
    flip: bool = False
    pool: Tensor | None = None

    def hash(self) -> str:
        """SHA-256 of the files, as `prepare` found it."""
        return self.sha256

    def __getitem__(self, rows) -> dict[str, Tensor]:
        """The examples at an index tensor or a slice, as models take them."""
        return self._decoded(super().__getitem__(rows))

    def sample(self) -> dict[str, Tensor]:
        """Up to 256 examples from all over the set, which is in the order of its classes."""
        return self[torch.linspace(0, len(self) - 1, min(len(self), 256)).round().long()]

    def batches(
        self, size: int, seed: int, start: int = 0, device: str | torch.device = "cpu", part: slice = ALL
    ) -> Iterator[dict]:
        """Batches as of any `Dataset`, whatever the device and however the bytes come there."""
        device = torch.device(device)
        fits, plan = self._fits(device), self._plan(size, seed, start, part)
        data = {name: value.to(device) for name, value in self.values.items()} if fits else self.values
        pool = None if self.pool is None else self.pool.to(device)

        def gather(batch: tuple[Tensor, Tensor | None, dict]) -> tuple[dict[str, Tensor], Tensor | None]:
            rows, mirrored, picked = batch
            rows = _moved(rows, device) if fits else rows
            stored = {name: value[rows] for name, value in data.items()} | picked
            return {name: _pinned(value, device) for name, value in stored.items()}, mirrored

        for stored, mirrored in map(gather, plan) if fits else ahead(gather, plan, AHEAD):
            yield self._decoded({name: _moved(value, device) for name, value in stored.items()}, mirrored, pool)

    def _fits(self, device: torch.device) -> bool:
        """Whether all bytes may lie on the device."""
        if device.type != "cuda":
            return True
        return sum(value.nbytes for value in self.values.values()) <= ROOM * torch.cuda.mem_get_info(device)[0]

    def _plan(self, size: int, seed: int, start: int, part: slice = ALL) -> Iterator[tuple[Tensor, Tensor | None, dict]]:
        """The rows of each batch, or of a part of it, which of them are mirrored, and the numbers of their masks."""
        for k, rows in enumerate(self.orders(size, seed, start), start):
            generator = torch.Generator().manual_seed(2_000_003 * (seed + 1) + k)
            mirrored = torch.rand(size, generator=generator)[part] < 0.5 if self.flip else None
            picked = {}
            if self.pool is not None:
                number = torch.randint(len(self.pool), (size,), generator=generator)[part]
                picked = dict.fromkeys({"mask", "masked"} & self.values.keys(), number)
            yield rows[part], mirrored, picked

    def _decoded(
        self, stored: Mapping[str, Tensor], mirrored: Tensor | None = None, pool: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Stored bytes, labels, boxes and numbers of masks as models take them; some of the examples mirrored."""
        out, pool = dict(stored), self.pool if pool is None else pool
        pictures = [name for name, value in stored.items() if value.dtype == torch.uint8]
        for name in pictures:
            out[name] = stored[name].float() / 127.5 - 1
            if name == "mask":
                out[name] = (out[name].mean(1, keepdim=True) > 0).float()
        if "box" in stored:
            out["box"] = box_masks(stored["box"], self.size)
        if mirrored is not None:
            for name in {*pictures, "box"} & stored.keys():
                turned = _moved(mirrored, out[name].device).view(-1, 1, 1, 1)
                out[name] = torch.where(turned, out[name].flip(3), out[name])
        for name in {"mask", "masked"} & stored.keys() if pool is not None else ():
            known = pool[stored[name]].float()
            out[name] = known if name == "mask" else out["image"] * known
        return out


def _array(path: Path, dtype: type, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """A file of numbers, checked: its type and shape before it is read, and that all are in low..high, or NaN."""
    with naming(path, DAMAGED):
        found = np.load(path, mmap_mode="r")
        if found.dtype != dtype or found.shape != shape:
            raise ValueError(f"expected {np.dtype(dtype)} {shape}, got {found.dtype} {found.shape}")
        if ((found < low) | (found > high)).any():
            raise ValueError(f"expected values in {low}..{high}, got {found.min()}..{found.max()}")
        return torch.from_numpy(np.array(found))


def _pinned(value: Tensor, device: torch.device) -> Tensor:
    """A tensor where a device can take it from without anybody waiting."""
    return value.pin_memory() if device.type == "cuda" and value.device.type == "cpu" else value


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for it."""
    return _pinned(value, device).to(device, non_blocking=True)


def box_masks(boxes: Tensor, size: int) -> Tensor:
    """Masks (N, 1, s, s) of boxes (N, 4) as in `prepare`: 1.0 where a pixel's centre is inside, in one pixel at least."""
    centre = (torch.arange(size, device=boxes.device) + 0.5) / size
    low, high = boxes.float().view(-1, 2, 2, 1).unbind(1)  # (N, 2, 1) each: left and top, right and bottom
    nearest = (centre - (low + high) / 2).abs().argmin(-1, keepdim=True)
    columns, rows = ((centre >= low) & (centre < high)).scatter(-1, nearest, True).unbind(1)  # (N, s) each
    return (rows[:, None, :, None] & columns[:, None, None, :]).float()
