"""PolyMNIST's idea without a download: one digit in three worlds, each in its own handwriting on its own photograph."""

import gzip
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtdiff.datasets.base import Dataset, one_of
from mtdiff.datasets.digits import digits
from mtdiff.optional import needed

WORLDS = {
    "temple": ("china.jpg", (120, 350), (80, 350), 1),
    "trees": ("china.jpg", (290, 427), (330, 640), 1),
    "flower": ("flower.jpg", (90, 350), (170, 450), -1),
}
"""{modality: (photograph of scikit-learn, rows, columns that patches are cut from, ink: white 1 or black -1)}."""
COUNTS = {"train": 20_000, "test": 2_000}
"""Triples of each split, unless somebody says."""
MNIST = "MTDIFF_MNIST"
"""The environment variable that says where the user's MNIST is: a folder of IDX files (gzip or not), or a file .npz."""


def polydigits(split: str = "train", n: int | None = None) -> Dataset:
    """Triples of images {"temple", "trees", "flower"}, (N, 3, 16, 16) in [-1, 1], and "label" (N,): 0..9.

    The three show the same digit, each written by somebody else, on a patch of a photograph: all they share is the class.
    Ink is white on temple and trees, black on the flower, and patches are dimmed or paled for contrast. Digits are those of
    `digits` (the splits share none), enlarged.

    Source: the idea is PolyMNIST's (Sutter et al. 2021), second-hand; photographs: scikit-learn's samples (CC BY).
    """
    one_of("split", split, COUNTS)
    real = digits(split)
    ink, label = (real.values["image"] + 1) / 2, real.values["label"]
    return _triples("polydigits", split, ink, label, n, 16)


def polymnist(split: str = "train", n: int | None = None) -> Dataset:
    """`polydigits` at 32x32, of the digits of the user's own MNIST (see `MNIST`), with a margin: 60,000 or 10,000.

    Raises:
        FileNotFoundError: the variable is not set, or there is no MNIST at its path.
        ValueError: files of another layout.
    """
    one_of("split", split, COUNTS)
    image, label = read_mnist(os.environ.get(MNIST), split)
    return _triples("polymnist", split, F.pad(image[:, None].float() / 255, (2, 2, 2, 2)), label.long(), n, 32)


def read_mnist(path: str | None, split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 28, 28) uint8 and labels (N,) of MNIST in its official layouts; see `polymnist` for errors."""
    if not path:
        raise FileNotFoundError(f"set {MNIST} to your MNIST: a folder of IDX files, or a file .npz; nothing is downloaded")
    place, short = Path(path), "train" if split == "train" else "t10k"
    if place.is_file():
        with np.load(place) as file:
            names = [f"{what}_{split}" for what in "xy"]
            if not set(names) <= set(file):
                raise ValueError(f"{place} has {sorted(file)}, expected {names}")
            image, label = (file[name] for name in names)
    else:
        image, label = (_idx(place, f"{short}-{what}") for what in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    if image.shape[1:] != (28, 28) or label.shape != image.shape[:1] or image.dtype != np.uint8:
        raise ValueError(
            f"{place}: images are {image.dtype} {image.shape}, labels {label.shape}; expected uint8 (N, 28, 28), (N,)"
        )
    return torch.from_numpy(image), torch.from_numpy(label)


def _idx(folder: Path, name: str) -> np.ndarray:
    """An IDX file of bytes, packed or not."""
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise FileNotFoundError(f"no {name} or {name}.gz in {folder}")
    data = found[0].read_bytes()
    data = gzip.decompress(data) if found[0].suffix == ".gz" else data
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{found[0]} is no IDX file of bytes")
    rank = data[3]
    shape = np.frombuffer(data, ">i4", rank, 4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if shape.prod() != len(values):
        raise ValueError(f"{found[0]} is truncated: it says {shape.tolist()}, and has {len(values)} bytes")
    return values.reshape(shape).copy()


def photograph(name: str) -> Tensor:
    """The part of a photograph that a world's patches are cut from, (3, H, W) in [-0.8, 0.8], at half its size.

    Half of its contrast is left, and it is 0.3 darker where ink is white, 0.3 brighter where it is black.
    """
    with needed("polydigits"):
        from sklearn.datasets import load_sample_image
    file, rows, columns, ink = WORLDS[name]
    image = torch.from_numpy(load_sample_image(file)[slice(*rows), slice(*columns)].copy()).movedim(-1, 0)
    return 0.5 * F.avg_pool2d(image.float() / 127.5 - 1, 2) - 0.3 * ink


def _triples(name: str, split: str, ink: Tensor, label: Tensor, n: int | None, size: int) -> Dataset:
    """Examples from digits (M, 1, h, w) in [0, 1] with labels (M,): a class each, and three of its digits."""
    n = COUNTS[split] if n is None else n
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    generator = torch.Generator().manual_seed(0 if split == "train" else 1)
    order, count = label.argsort(stable=True), label.bincount(minlength=10)
    drawn = torch.randint(10, (n,), generator=generator)
    start = (count.cumsum(0) - count)[drawn]
    values: dict[str, Tensor] = {}
    for world in WORLDS:
        rows = order[start + (torch.rand(n, generator=generator) * count[drawn]).long()]  # of the class, any as likely
        written = F.interpolate(ink[rows], size=(size, size), mode="bilinear", align_corners=False)
        values[world] = _on_patches(written, photograph(world), WORLDS[world][-1], generator)
    values["label"] = drawn
    source = f"{name} {split} {n}, digits {len(label)}, worlds {list(WORLDS)}"
    return Dataset(f"{name}/{split}", values, tuple(map(str, range(10))), source)


def _on_patches(written: Tensor, picture: Tensor, ink: float, generator: torch.Generator) -> Tensor:
    """Digits d (N, 1, s, s) on random patches of a picture: x = (1 - d) patch + d ink."""
    size = written.shape[-1]
    tops, lefts = (picture.shape[k] - size for k in (1, 2))
    top = torch.randint(tops + 1, (len(written),), generator=generator)
    left = torch.randint(lefts + 1, (len(written),), generator=generator)
    y, x = (start[:, None] + torch.arange(size) for start in (top, left))
    patch = picture[:, y[:, :, None], x[:, None, :]].movedim(0, 1)  # (N, 3, s, s)
    return (1 - written) * patch + written * ink
