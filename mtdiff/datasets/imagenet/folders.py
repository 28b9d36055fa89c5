"""Pictures of your own: classes, captions and pictures beside pictures, by where files lie and what they are called."""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short

from mtdiff.datasets.base import one_of
from mtdiff.datasets.imagenet.layouts import SPLITS, Listing, Tree, archived, listing_of, seen, wanted
from mtdiff.datasets.imagenet.tables import lines, text_of
from mtdiff.reading import naming

OWN, HASHED = "own pictures", "own pictures, held out by a hash of their names"
"""Layouts, with a folder of held-out pictures and without."""
HELD_OUT = 0.1
"""Share of the pictures that are held out where no folder says which."""
TEST = ("val", "test", "validation", "valid")
"""What the folder of held-out pictures beside train/ may be called; the first that is there is taken."""
TABLES = ("metadata.jsonl", "metadata.csv")
TAKEN = ("image", "label", "box", "masked", "caption")
"""Modalities that no folder beside images/ can be."""


def find(root: str | Path, split: str = "train", classes: Sequence[str] | None = None, limit: int | None = None) -> Listing:
    """The pictures of a folder: as `archived` where the classes in train/ are called by WordNet ids, else your own.

    Classes are sub-folders; pictures in the folder itself are of one class, of its name. Held out is what is in one of
    `TEST` beside train/; without such a folder a hash of its name says whether a picture is, whatever else is there: about
    `HELD_OUT` of them, and of a class with none the one with the least hash. A caption is in NAME.txt beside its picture, or
    in one of `TABLES` in its folder or above, with the columns file_name (from there) and caption or text, as in Hugging
    Face's ImageFolder. Where the pictures are in images/, folders beside it hold others of the same names: masks/ is the
    modality "mask", others are called as their folder.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: as of `archived`; no pictures, two of one name, captions or other pictures of some of them only, a table
            that cannot be read.
    """
    one_of("split", split, SPLITS)
    tree = Tree(Path(root))
    if tree.of_wordnet:
        return archived(tree, split, classes, limit)
    train, held = tree.root / "train", next((tree.root / name for name in TEST if (tree.root / name).is_dir()), None)
    if held and not train.is_dir():
        raise ValueError(f"{root} has no folder train/ beside {held.name}/: it holds {seen(tree.root)}")
    place = train if train.is_dir() else tree.root
    if place == train:
        tree.leave((path for paths in tree.look(tree.root) for path in paths if path not in (train, held)), "beside train/")
    found, home, siblings = _classes(tree, place)
    words = {name: name for name in found}
    if held and split == "val":
        tree.left_out.clear()  # of train/
        place = held
        found, home, siblings = _classes(tree, place)
    pictures = _by_name((path for paths in found.values() for path in paths), home)
    captions = _captions(tree, [tree.root, place, home, *(home / name for name in found)], list(pictures.values()))
    beside = _beside(tree, home, siblings, pictures)
    if not held:
        found = {name: _part(name, paths, split == "val") for name, paths in found.items()}
        if split == "val":
            tree.left_out.clear()  # of the whole folder, said of train
    rows = [(name, None, path) for name, paths in found.items() for path in paths]
    listing = listing_of(tree, split, OWN if held else HASHED, rows, words, wanted(words, classes), limit)
    beside = {name: [there[path] for path in listing.files] for name, there in beside.items()}
    return replace(listing, captions=[captions[path] for path in listing.files if captions], beside=beside)


def _classes(tree: Tree, place: Path) -> tuple[dict[str, list[Path]], Path, list[Path]]:
    """{class: its pictures} in the folder of a split; where they are, in it or in its images/; and what is beside that."""
    (folders, loose), home, siblings = tree.look(place), place, []
    if place / "images" in folders:
        home, siblings = place / "images", [folder for folder in folders if folder.name != "images"]
        tree.leave(loose, "beside images/")
        folders, loose = tree.look(home)
    found = {folder.name: tree.images(folder) for folder in folders}
    tree.leave((home / name for name, paths in found.items() if not paths), "a folder without pictures")
    found = {name: paths for name, paths in found.items() if paths}
    if home != place and {"train", *TEST} & found.keys():
        raise ValueError(f"{home} holds {seen(home)}: expected are train/images/ and val/images/")
    if found:
        tree.leave(loose, "in no folder of a class")
    elif loose:
        found = {tree.root.resolve().name: loose}
    else:
        expected = "expected are pictures, or a sub-folder for each class"
        raise ValueError(f"{home} has no pictures, it holds {seen(home)}: {expected}")
    return found, home, siblings


def _part(name: str, paths: Sequence[Path], held_out: bool) -> list[Path]:
    """The pictures of a class that are held out, or the others."""
    if len(paths) < 2:
        raise ValueError(f"class {name} has one picture, {paths[0]}: expected are two at least, of which one is held out")
    share = {path: int(hashlib.sha256(path.stem.encode()).hexdigest()[:8], 16) / 16**8 for path in paths}
    first, *_, last = sorted(paths, key=share.get)
    return [path for path in paths if (path == first or (share[path] < HELD_OUT and path != last)) == held_out]


def _by_name(paths: Iterable[Path], home: Path) -> dict[str, Path]:
    """{path from home without the suffix: path}."""
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(path.relative_to(home).with_suffix("").as_posix(), path)
        if other != path:
            raise ValueError(f"{other} and {path.name} have one name: expected is one picture of each")
    return found


def _beside(tree: Tree, home: Path, siblings: Iterable[Path], pictures: Mapping[str, Path]) -> dict[str, dict[Path, Path]]:
    """{modality: {picture: the one of its name}} of the folders beside images/."""
    out: dict[str, dict[Path, Path]] = {}
    for folder in siblings:
        name = {"masks": "mask"}.get(folder.name, folder.name)
        folders, paths = tree.look(folder)
        there = _by_name([*paths, *(path for each in folders for path in tree.images(each))], folder)
        lacking = [key for key in pictures if key not in there]
        if name in TAKEN or name in out or len(lacking) == len(pictures):
            tree.leave([folder], "its name is taken" if name in TAKEN or name in out else "no picture of a name in images/")
            continue
        if lacking:
            few = f"{len(pictures) - len(lacking)} of the {len(pictures)} pictures in {home}, and none for {lacking[0]}"
            raise ValueError(f"{folder} has {few}: expected is one for each")
        tree.leave((path for key, path in there.items() if key not in pictures), "no picture of that name in images/")
        out[name] = {path: there[key] for key, path in pictures.items()}
    return out


def _captions(tree: Tree, folders: Iterable[Path], pictures: Sequence[Path]) -> dict[Path, str]:
    """What is said of each picture, in one line; nothing where nothing is said of any."""
    tables = [path for folder in dict.fromkeys(folders) for name in TABLES if (path := folder / name).is_file()]
    said = [(table.parent / file, text, table) for table in tables for file, text in _rows(table)]
    tree.leave((path for path, _, table in said if not path.is_file()), "in a table of captions, but no picture is there")
    said += [(path, text_of(text), text) for path in pictures if (text := path.with_suffix(".txt")).is_file()]
    found: dict[Path, tuple[str, Path]] = {}
    for path, text, source in said:
        if path in found:
            raise ValueError(f"{path} has two captions, in {found[path][1]} and {source}: expected is one")
        found[path] = (" ".join(text.split()), source)
    sources = {*tables, *(source for *_, source in said)}
    tree.left_out = [(path, why) for path, why in tree.left_out if path not in sources]
    captions = {path: found[path][0] for path in pictures if path in found and found[path][0]}
    if captions and len(captions) < len(pictures):
        lacking = next(path for path in pictures if path not in captions)
        few = f"{len(captions)} of {len(pictures)} pictures have a caption, and {lacking} has none"
        raise ValueError(f"{few}: expected is one for each, in NAME.txt or {' or '.join(TABLES)}")
    return captions


def _rows(table: Path) -> list[tuple[str, str]]:
    """(file, caption) of each row of a table."""
    found = []
    with naming(table, "cannot be read"):
        rows: Iterable = enumerate(csv.DictReader(io.StringIO(text_of(table), newline="")), 2)
        for number, row in rows if table.suffix == ".csv" else lines(table):
            with naming(f"row {number}", "does not fit"):
                row = json.loads(row) if isinstance(row, str) else row
                file, text = row.get("file_name"), row.get("caption", row.get("text"))
                if not isinstance(file, str) or not isinstance(text, str):
                    raise ValueError(f"expected the columns file_name and caption, got {short(row)}")
                if Path(file).is_absolute() or ".." in Path(file).parts:
                    raise ValueError(f"expected a file in the folder of the table, got {file!r}")
                found.append((file, text))
    return found
