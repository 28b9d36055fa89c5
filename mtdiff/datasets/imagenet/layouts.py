"""Where images, classes and boxes are in the folders that the archives of ImageNet and its subsets unpack to."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SPLITS = ("train", "val")
SUFFIXES = (".jpeg", ".jpg", ".png")
IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""The ten classes of Imagenette; its archives do not name them."""
TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class Listing:
    """The images of one split, none of them opened yet.

    Attributes:
        layout: "tiny-imagenet", "class folders", "kaggle" or "devkit": where the labels are from.
        files: N paths, class by class.
        label: (N,) int64, 0..K-1.
        boxes: (N, 4) float32, left, top, right, bottom of one object in pixels of the file, NaN where unknown.
        wnids: K WordNet ids.
        names: K names for people.
    """

    layout: str
    files: list[Path]
    label: np.ndarray
    boxes: np.ndarray
    wnids: tuple[str, ...]
    names: tuple[str, ...]


def find(root: str | Path, split: str = "train", classes: Sequence[str] | None = None) -> Listing:
    """The images of Tiny-ImageNet, Imagenette, or an ILSVRC folder.

    Expected is train/<wnid>/ with the images in it, or in its folder images/; and, of val, one of: val_annotations.txt
    and images/ (Tiny-ImageNet), val/<wnid>/ (Imagenette), images in val/ with LOC_val_solution.csv (Kaggle's ILSVRC) or
    with ILSVRC2012_validation_ground_truth.txt and meta.mat (ILSVRC's development kit), in the folder or in
    ILSVRC2012_devkit_t12/data/. Kaggle's Data/CLS-LOC is found by itself. Boxes are read from Tiny-ImageNet's lists and
    Kaggle's tables.

    Args:
        root: the folder that the archive unpacked to.
        split: "train" or "val".
        classes: WordNet ids or names to keep, in the order of their labels; None keeps all, in the order of their ids.

    Returns:
        The listing.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: another layout (the message says what was found), an unknown class, or one without an image.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    root = _data_root(Path(root))
    known = sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir())
    if not known:
        raise ValueError(f"{root / 'train'} has no folder of a class (train/<wnid>/): it holds {_seen(root / 'train')}")
    words = _words(root)
    wnids = _chosen(known, words, classes)
    layout, rows = _train(root, wnids) if split == "train" else _val(root, known)
    by_class: dict[str, list] = {wnid: [] for wnid in wnids}
    for wnid, path, box in rows:
        if wnid in by_class:
            by_class[wnid].append((path, box))
    empty = [wnid for wnid, images in by_class.items() if not images]
    if empty:
        raise ValueError(f"{root} has no {split} image of {len(empty)} of {len(wnids)} classes: {', '.join(empty[:5])}")
    images = [(k, *image) for k, wnid in enumerate(wnids) for image in sorted(by_class[wnid], key=lambda image: image[0])]
    label, files, boxes = zip(*images, strict=True)
    unknown = (float("nan"),) * 4
    boxes = np.array([unknown if box is None else box for box in boxes], np.float32)
    return Listing(layout, list(files), np.array(label, np.int64), boxes, wnids, tuple(words.get(w, w) for w in wnids))


def _data_root(root: Path) -> Path:
    """The folder that holds train/, which may be Data/CLS-LOC below."""
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    for folder in (root, root / "Data" / "CLS-LOC", root / "ILSVRC" / "Data" / "CLS-LOC"):
        if (folder / "train").is_dir():
            return folder
    raise ValueError(
        f"{root} has no folder train/: it holds {_seen(root)}. Expected is what an archive unpacks to: train/<wnid>/"
    )


def _seen(folder: Path) -> str:
    """The first few names in a folder, for errors."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return (", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")) or "nothing"


def _around(root: Path, *names: str) -> Path | None:
    """A file of one of these names beside the data, or above them (Kaggle's tables lie beside ILSVRC/)."""
    folders = [root, *list(root.parents)[:3], root / "ILSVRC2012_devkit_t12" / "data"]
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def _words(root: Path) -> dict[str, str]:
    """WordNet id -> first name, from the list that comes with the images."""
    path = _around(root, "words.txt", "LOC_synset_mapping.txt")
    if path is None:
        return dict(IMAGENETTE)
    rows = (line.replace("\t", " ", 1).partition(" ") for line in path.read_text().splitlines() if line.strip())
    return {wnid: text.split(",")[0].strip() for wnid, _, text in rows}


def _chosen(known: Sequence[str], words: Mapping[str, str], classes: Sequence[str] | None) -> tuple[str, ...]:
    """The WordNet ids of the classes to keep."""
    if classes is None:
        return tuple(known)
    by_name: dict[str, str] = {}
    for wnid in known:
        by_name.setdefault(words.get(wnid, wnid), wnid)
    chosen = [name if name in known else by_name.get(name) for name in classes]
    unknown = [name for name, wnid in zip(classes, chosen, strict=True) if wnid is None]
    if unknown or len(set(chosen)) < len(chosen) or not chosen:
        problem = f"unknown classes {unknown}" if unknown else f"classes must be different, and some: {list(classes)}"
        raise ValueError(f"{problem}; there are {len(known)}, such as {', '.join(words.get(w, w) for w in known[:5])}")
    return tuple(chosen)


def _images(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]


def _train(root: Path, wnids: Sequence[str]) -> tuple[str, list[tuple]]:
    """(wnid, path, box) of all training images of some classes."""
    table, rows, layout = _around(root, "LOC_train_solution.csv"), [], "class folders"
    solution = {} if table is None else _solution(table)
    for wnid in wnids:
        folder = root / "train" / wnid
        listed = folder / f"{wnid}_boxes.txt"
        if (folder / "images").is_dir():
            folder, layout = folder / "images", "tiny-imagenet"
        boxes = {name: box for name, _, box in _tabs(listed, named=False)} if listed.is_file() else {}
        for path in _images(folder):
            rows.append((wnid, path, boxes.get(path.name) or solution.get(path.stem, (None, None))[1]))
    return layout, rows


def _val(root: Path, known: Sequence[str]) -> tuple[str, list[tuple]]:
    """(wnid, path, box) of all validation images."""
    folder = root / "val"
    if not folder.is_dir():
        raise ValueError(f"{root} has no folder val/: it holds {_seen(root)}")
    if (folder / "val_annotations.txt").is_file():
        listed = _tabs(folder / "val_annotations.txt", named=True)
        return "tiny-imagenet", [(wnid, folder / "images" / name, box) for name, wnid, box in listed]
    if any((folder / wnid).is_dir() for wnid in known):
        there = [wnid for wnid in known if (folder / wnid).is_dir()]
        return "class folders", [(wnid, path, None) for wnid in there for path in _images(folder / wnid)]
    flat = sorted(_images(folder))
    table, truth = _around(root, "LOC_val_solution.csv"), _around(root, TRUTH)
    if flat and table:
        solution = _solution(table)
        lacking = [path.name for path in flat if path.stem not in solution]
        if lacking:
            raise ValueError(f"{table} says nothing of {len(lacking)} images in {folder}, such as {lacking[0]}")
        return "kaggle", [(solution[path.stem][0], path, solution[path.stem][1]) for path in flat]
    if flat and truth:
        classes = _devkit(truth, len(flat))
        return "devkit", [(wnid, path, None) for wnid, path in zip(classes, flat, strict=True)]
    raise ValueError(
        f"{folder} holds {_seen(folder)}: expected are val/<wnid>/, val_annotations.txt, or images beside "
        f"LOC_val_solution.csv or {TRUTH}"
    )


def _tabs(path: Path, named: bool) -> list[tuple]:
    """Tiny-ImageNet's lists: file name, WordNet id (where `named`), and a box, whose right and bottom are the last pixel."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        name, *rest = line.split("\t")
        wnid = rest.pop(0) if named and rest else None
        try:
            left, top, right, bottom = map(float, rest)
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: expected {5 + named} fields with a box of four numbers, got {line!r}"
            ) from None
        rows.append((name, wnid, (left, top, right + 1, bottom + 1)))
    return rows


def _solution(path: Path) -> dict[str, tuple]:
    """Kaggle's tables: image -> (WordNet id, its first box); "n01440764 111 108 233 230 n01440764 ..."."""
    found = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                wnid, *box = row["PredictionString"].split()[:5]
                found[row["ImageId"]] = (wnid, tuple(map(float, box)) if len(box) == 4 else None)
            except (KeyError, ValueError, AttributeError):
                raise ValueError(f"{path}: expected the columns ImageId and PredictionString, got {row}") from None
    return found


def _devkit(truth: Path, count: int) -> list[str]:
    """ILSVRC's development kit: the WordNet id of each validation image, in the order of their names."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ImportError("ILSVRC's development kit is read by scipy: pip install 'mtdiff[notebooks]'") from None
    meta = truth.parent / "meta.mat"
    if not meta.is_file():
        raise ValueError(f"{truth} numbers the classes as meta.mat does, which is not beside it")
    synsets = np.atleast_1d(loadmat(meta, squeeze_me=True)["synsets"])
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    numbers = [int(line) for line in truth.read_text().split()]
    if len(numbers) != count:
        raise ValueError(f"{truth} has {len(numbers)} lines, but there are {count} validation images")
    return [wnids[number] for number in numbers]
