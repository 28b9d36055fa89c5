"""Where images, classes and boxes are in the folders that the archives of ImageNet and its subsets unpack to."""

import itertools
import operator
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtdiff.datasets.imagenet.tables import boxes_of, names_of, numbered_classes, solution

SPLITS = ("train", "val")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
IMAGENETTE = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip
"""The ten classes of Imagenette; its archives do not name them."""
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
UNKNOWN = (float("nan"),) * 4
"""The box of an image of which none is known."""


@dataclass(frozen=True)
class Listing:
    """The N images of K classes in one split, class by class; none of them is opened yet.

    Attributes:
        layout: "tiny-imagenet", "class folders", "kaggle" or "devkit": where the labels are from; or "own pictures".
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


def archived(tree: "Tree", split: str, classes: Sequence[str] | None = None, limit: int | None = None) -> Listing:
    """The images of Tiny-ImageNet, Imagenette, or an ILSVRC folder.

    Expected is train/<wnid>/ with the images in it, or in its folder images/; and, of val, one of: val_annotations.txt
    and images/ (Tiny-ImageNet), val/<wnid>/ (Imagenette), images in val/ with LOC_val_solution.csv (Kaggle's ILSVRC) or
    with ILSVRC2012_validation_ground_truth.txt and meta.mat (ILSVRC's development kit), in the folder or in
    ILSVRC2012_devkit_t12/data/. Kaggle's Data/CLS-LOC is found by itself. Boxes are read from Tiny-ImageNet's lists and
    Kaggle's tables, names from words.txt in the folder or Kaggle's table. The classes to keep are given by WordNet ids or
    names, in the order of their labels; None keeps all, in the order of their ids. Of each class at most `limit` images are
    taken, the first by name.

    Raises:
        ValueError: another layout, unknown or ambiguous or empty classes, a link to elsewhere, a list that cannot be read.
    """
    folders, beside = tree.look(tree.root / "train")
    words = _words(tree, [folder.name for folder in folders])
    wnids = wanted(words, classes)
    if split == "train":
        tree.leave(beside, "in no folder of a class")
        layout, rows = _train(tree, wnids)
    else:
        tree.left_out.clear()  # of train/
        layout, rows = _val(tree, words)
    return listing_of(tree, split, layout, rows, words, wnids, limit)


def listing_of(
    tree: "Tree", split: str, layout: str, rows: Iterable[tuple], words: Mapping, wnids: Sequence[str], limit: int | None
) -> Listing:
    """Of rows (class, box or None, path) those of the classes `wnids`, of {class: name}, at most `limit` of each."""
    for wnid, _, path in rows:
        if wnid not in words:
            tree.leave([path], f"of class {wnid}, which train/ does not have")
    rank, found = {wnid: k for k, wnid in enumerate(wnids)}, {wnid for wnid, _, _ in rows}
    empty = [wnid for wnid in wnids if wnid not in found]
    if empty:
        few = f"{len(empty)} of {len(wnids)} classes: {', '.join(empty[:5])}"
        raise ValueError(f"{tree.given} has no {split} image of {few}")
    rows = sorted((rank[wnid], path, box or UNKNOWN) for wnid, box, path in rows if wnid in rank)
    first = (itertools.islice(group, limit) for _, group in itertools.groupby(rows, operator.itemgetter(0)))
    label, files, boxes = zip(*itertools.chain.from_iterable(first), strict=True)
    names, boxes = tuple(words[wnid] for wnid in wnids), np.array(boxes, np.float32)
    return Listing(layout, list(files), np.array(label, np.int64), boxes, wnids, names, sorted(tree.left_out))


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
        return train.is_dir() and any(re.fullmatch(r"n\d{8}", path.name) for path in train.iterdir())

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


def _words(tree: Tree, known: Sequence[str]) -> dict[str, str]:
    """WordNet id -> a name of its own, from the list that comes with the images; where two share one, with the id."""
    path = tree.table("words.txt") or tree.table("LOC_synset_mapping.txt")
    listed = IMAGENETTE if path is None else names_of(path)
    names = {wnid: listed.get(wnid, wnid) for wnid in known}
    often = Counter(names.values())
    return {wnid: name if often[name] == 1 else f"{name} ({wnid})" for wnid, name in names.items()}


def wanted(words: Mapping[str, str], classes: Sequence[str] | None) -> tuple[str, ...]:
    """The WordNet ids of the classes to keep."""
    if classes is None:
        return tuple(words)
    found = {name: [w for w, text in words.items() if name in (w, text, text.removesuffix(f" ({w})"))] for name in classes}
    for name, wnids in found.items():
        if len(wnids) > 1:
            raise ValueError(f"{len(wnids)} classes are called {name!r}: give the id, {' or '.join(wnids)}")
    unknown, chosen = [name for name in found if not found[name]], tuple(itertools.chain(*found.values()))
    if unknown or not chosen or len(set(chosen)) < len(classes):
        problem = f"unknown classes {unknown}" if unknown else f"classes must be different, and some: {list(classes)}"
        raise ValueError(f"{problem}; there are {len(words)}, such as {', '.join([*words.values()][:5])}")
    return chosen


def _train(tree: Tree, wnids: Sequence[str]) -> tuple[str, list[tuple]]:
    """(wnid, box, path) of all training images of some classes."""
    table, rows, layout = tree.table("LOC_train_solution.csv"), [], "class folders"
    solved = {} if table is None else solution(table)
    for wnid in wnids:
        folder = tree.root / "train" / wnid
        listed = folder / f"{wnid}_boxes.txt"
        folders, images = tree.look(folder, listed.name)
        if folder / "images" in folders:
            tree.leave(images, "beside images/")
            images, layout = tree.images(folders.pop(folders.index(folder / "images"))), "tiny-imagenet"
        tree.leave(folders, "a folder in a folder of a class")
        boxes = boxes_of(listed, named=False) if listed.is_file() else {}
        for path in images:
            _, box = boxes.get(path.name) or solved.get(path.stem) or (wnid, None)
            rows.append((wnid, box, path))
    return layout, rows


def _val(tree: Tree, known: Mapping[str, str]) -> tuple[str, list[tuple]]:
    """(wnid, box, path) of all validation images."""
    folder, listed = tree.root / "val", tree.root / "val" / "val_annotations.txt"
    if not folder.is_dir():
        raise ValueError(f"{tree.root} has no folder val/: it holds {seen(tree.root)}")
    folders, flat = tree.look(folder, listed.name)
    table, truth = tree.table("LOC_val_solution.csv"), tree.table(TRUTH)
    if listed.is_file():
        tree.leave([*flat, *(path for path in folders if path.name != "images")], "beside images/")
        said, there = boxes_of(listed, named=True), {path.name: path for path in tree.images(folder / "images")}
        absent = [folder / "images" / name for name in said if name not in there]
        tree.leave(absent, f"in {listed.name}, but no image is there")
        tree.leave([path for name, path in there.items() if name not in said], f"not in {listed.name}")
        return "tiny-imagenet", [(*said[name], path) for name, path in there.items() if name in said]
    if any(path.name in known for path in folders):
        tree.leave(flat, "in no folder of a class")
        return "class folders", [(path.name, None, image) for path in folders for image in tree.images(path)]
    tree.leave(folders, "a folder beside images")
    if flat and table:
        said = solution(table)
        lacking = [path.name for path in flat if path.stem not in said]
        if lacking:
            raise ValueError(f"{table} says nothing of {len(lacking)} images in {folder}, such as {lacking[0]}")
        return "kaggle", [(*said[path.stem], path) for path in flat]
    if flat and truth:
        return "devkit", [(wnid, None, path) for wnid, path in zip(numbered_classes(truth, len(flat)), flat, strict=True)]
    expected = f"val/<wnid>/, val_annotations.txt, or images beside LOC_val_solution.csv or {TRUTH}"
    raise ValueError(f"{folder} holds {seen(folder)}: expected are {expected}")
