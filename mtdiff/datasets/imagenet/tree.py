"""A folder of images as it is searched, and what was found in it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SPLITS = ("train", "val")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
OWN, HASHED = "own pictures", "own pictures, held out by a hash of their names"
"""The layouts of a folder that is none of an archive, with a folder of held-out pictures and without."""
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Listing:
    """The N images of K classes in one split, class by class; none of them is opened yet.

    Attributes:
        layout: "tiny-imagenet", "class folders", "kaggle" or "devkit": where the labels are from; else `OWN` or `HASHED`.
        label: (N,) int64, 0..K-1.
        boxes: (N, 4) float32, left, top, right, bottom of one object in stored pixels of the file, NaN where unknown.
        wnids, names: WordNet ids, and different names for people.
        left_out: [(path, why), ...] of all that is there and in no class, but what is hidden (begins with a dot).
        captions: a line of text for each image, or none at all.
        beside: {modality: N files}, pictures of the same names and sizes, such as masks.
    """

    layout: str
    files: list[Path]
    label: np.ndarray
    boxes: np.ndarray
    wnids: tuple[str, ...]
    names: tuple[str, ...]
    left_out: list[tuple[Path, str]]
    captions: Sequence[str] = ()
    beside: Mapping[str, Sequence[Path]] = field(default_factory=dict)


class Tree:
    """The folder of a data set, and what is left out of it."""

    def __init__(self, given: Path):
        if not given.is_dir():
            raise FileNotFoundError(f"there is no folder {given}")
        places = (given, given / "Data" / "CLS-LOC", given / "ILSVRC" / "Data" / "CLS-LOC")
        self.given, self.root = given, next((place for place in places if (place / "train").is_dir()), given)
        self.left_out: list[tuple[Path, str]] = []

    @property
    def of_wordnet(self) -> bool:
        """Whether the classes in train/ are called by WordNet ids."""
        train = self.root / "train"
        return train.is_dir() and any(WNID.fullmatch(path.name) for path in train.iterdir())

    def leave(self, paths: Iterable[Path], why: str) -> None:
        """Say why something is left out."""
        self.left_out += [(path, why) for path in paths]

    def look(self, folder: Path, known: str = "") -> tuple[list[Path], list[Path]]:
        """Folders and images in a folder, sorted; what is hidden is not seen, all else but a known list is left out."""
        found = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.name != known]
        folders = [path for path in found if path.is_dir()]
        astray = [path for path in (folder, *folders) if self._leads_out(path)]
        if astray:
            raise ValueError(f"{astray[0]} is a link that leads out of {self.given}: name the folder where the images are")
        reasons = {path: self._why_not(path) for path in found if not path.is_dir()}
        self.left_out += [(path, why) for path, why in reasons.items() if why]
        return folders, [path for path, why in reasons.items() if not why]

    def images(self, folder: Path) -> list[Path]:
        """The images in a folder that should hold nothing else."""
        folders, images = self.look(folder)
        self.leave(folders, "a folder in a folder of a class")
        return images

    def _leads_out(self, path: Path) -> bool:
        return path.is_symlink() and not path.resolve().is_relative_to(self.given.resolve())

    def _why_not(self, path: Path) -> str:
        """Why a file is no image of the set; "" if it is."""
        if not path.is_file():
            return "not a regular file"
        if path.suffix.lower() not in SUFFIXES:
            return f"not one of {', '.join(SUFFIXES)}"
        return "a link that leads out of the folder" if self._leads_out(path) else ""

    def table(self, name: str) -> Path | None:
        """A list that comes with the data: in their folder, or where Kaggle's archive and ILSVRC's kit have it."""
        folders, above = [self.root, self.given], [*self.root.absolute().parents]
        if name.startswith("LOC_") and self.root.absolute().parts[-3:] == ("ILSVRC", "Data", "CLS-LOC"):
            folders += above[1:3]  # beside Data/ and beside ILSVRC/
        if name == TRUTH:
            folders += [folder / "ILSVRC2012_devkit_t12" / "data" for folder in folders]
        return next((folder / name for folder in folders if (folder / name).is_file()), None)


def seen(folder: Path) -> str:
    """The first few names in a folder, for errors."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return (", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")) or "nothing"
