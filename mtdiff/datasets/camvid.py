"""Street scenes with a class at every pixel: CamVid in the layout in which it is usually shared."""

from pathlib import Path

import numpy as np
import PIL.Image
import torch

from mtdiff.datasets.base import Dataset, one_of
from mtdiff.datasets.decoding import decoded

SPLITS = ("train", "val", "test")
CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
    "unlabelled",
)
"""The names of the ids 0 to 11; the last is no class, and no score should count it."""
PICTURES = (".png", ".jpg", ".jpeg")


def camvid(folder: str | Path, split: str = "train", size: tuple[int, int] | int = 64) -> Dataset:
    """CamVid's pictures and label maps, at a height and width (one number: both).

    The folder holds train/ trainannot/ val/ valannot/ test/ testannot/: a picture NAME.png or .jpg in the first of a pair
    and NAME.png in the second, of the same size, with one id 0..11 a pixel (grey or with a palette). Pictures are shrunk by
    averaging, maps by taking the nearest pixel, so that no class arises between two others. Nothing is downloaded.

    Returns:
        A data set of "image" (N, 3, H, W) in [-1, 1] and "segmentation" (N, H, W) int64, in the order of the names, whose
        `names` are `CLASSES`.

    Raises:
        FileNotFoundError: no such folder, or a part of the layout that is not there.
        ValueError: an unknown split, a size below 1, a picture without its map, or a map that is none.
    """
    one_of("split", split, SPLITS)
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size must be (height, width) of at least 1, got {size}")
    pictures, maps = Path(folder) / split, Path(folder) / f"{split}annot"
    for part in (pictures, maps):
        if not part.is_dir():
            layout = " ".join(f"{each}/ {each}annot/" for each in SPLITS)
            raise FileNotFoundError(f"{part} is no folder; CamVid is expected as {layout}")
    files = sorted(file for file in pictures.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise FileNotFoundError(f"{pictures} holds no picture ({', '.join(PICTURES)})")
    pairs = [_pair(file, maps / f"{file.stem}.png", (width, height)) for file in files]
    images, labels = (np.stack(part) for part in zip(*pairs, strict=True))
    image = torch.from_numpy(images).movedim(-1, 1).contiguous().float() / 127.5 - 1
    values = {"image": image, "segmentation": torch.from_numpy(labels).long()}
    return Dataset(f"camvid{height}x{width}/{split}", values, CLASSES)


def _pair(file: Path, label: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) and its map (H, W), bytes, at a width and height."""
    if not label.is_file():
        raise ValueError(f"{file} has no map: {label} is not there")
    try:
        with decoded(file) as (picture, _):
            found, small = picture.size, np.asarray(picture.resize(size, PIL.Image.Resampling.BOX))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a picture ({error})") from None
    try:
        with PIL.Image.open(label, formats=("PNG",)) as opened:
            mode, there = opened.mode, opened.size
            ids = np.asarray(opened)
            shrunk = np.asarray(opened.resize(size, PIL.Image.Resampling.NEAREST))
    except (OSError, ValueError) as error:
        raise ValueError(f"{label} cannot be read as a map ({error})") from None
    if mode not in ("L", "P"):
        raise ValueError(f"{label} is a picture of mode {mode}, expected one id 0..{len(CLASSES) - 1} a pixel")
    if there != found:
        raise ValueError(f"{label} is {there[0]}x{there[1]}, its picture {found[0]}x{found[1]}")
    if ids.max() >= len(CLASSES):
        raise ValueError(f"{label} has the id {ids.max()}, expected 0..{len(CLASSES) - 1}")
    return small, shrunk
