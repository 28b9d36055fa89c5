"""The lists that come with ImageNet and its subsets: names, boxes and classes of validation images."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mtdiff.optional import needed

Box = tuple[float, float, float, float]


def text_of(path: Path) -> str:
    """What a text file in UTF-8 says, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8 ({error})") from None


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file in UTF-8; blank ones are left out."""
    return ((number, line) for number, line in enumerate(text_of(path).splitlines(), 1) if line.strip())


def names_of(path: Path) -> dict[str, str]:
    """WordNet id -> first name, of lines "wnid name, another name"."""
    rows = (line.split(maxsplit=1) for _, line in lines(path))
    return {row[0]: row[-1].split(",")[0].strip() for row in rows}


def boxes_of(path: Path, named: bool) -> dict[str, tuple[str | None, Box]]:
    """Tiny-ImageNet's lists: file -> (WordNet id, where `named`; a box, whose right and bottom are the last pixel there)."""
    found: dict[str, tuple[str | None, Box]] = {}
    for number, line in lines(path):
        name, *rest = line.split("\t")
        wnid = rest.pop(0) if named and rest else None
        if name in (".", "..") or set(name) & set("/\\\0"):
            raise ValueError(f"{path}, line {number}: expected the plain name of a file, got {name!r}")
        try:
            left, top, right, bottom = map(float, rest)
        except ValueError:
            expected = f"{5 + named} fields with a box of four numbers"
            raise ValueError(f"{path}, line {number}: expected {expected}, got {line!r}") from None
        if found.setdefault(name, (wnid, (left, top, right + 1, bottom + 1)))[0] != wnid:
            raise ValueError(f"{path} says that {name} is of two classes, {found[name][0]} and {wnid}")
    return found


def solution(path: Path) -> dict[str, tuple[str, Box | None]]:
    """Kaggle's tables: image -> (WordNet id, its first box); "n01440764 111 108 233 230 n01440764 ..."."""
    found = {}
    for row in csv.DictReader(line for _, line in lines(path)):
        try:
            wnid, *box = row["PredictionString"].split()[:5]
            found[row["ImageId"]] = (wnid, tuple(map(float, box)) if len(box) == 4 else None)
        except (KeyError, ValueError, AttributeError):
            raise ValueError(f"{path}: expected the columns ImageId and PredictionString, got {row}") from None
    return found


def numbered_classes(truth: Path, count: int) -> list[str]:
    """ILSVRC's development kit: the WordNet id of each of `count` validation images, in the order of their names."""
    with needed("ILSVRC's development kit"):
        from scipy.io import loadmat
    meta = truth.parent / "meta.mat"
    if not meta.is_file():
        raise ValueError(f"{truth} numbers the classes as meta.mat does, which is not beside it")
    synsets = np.atleast_1d(loadmat(meta, squeeze_me=True)["synsets"])
    wnids = {str(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    numbers = [line.strip() for _, line in lines(truth)]
    if len(numbers) != count:
        raise ValueError(f"{truth} has {len(numbers)} lines, but there are {count} validation images")
    unknown = [number for number in numbers if number not in wnids]
    if unknown:
        raise ValueError(f"{truth} has numbers that {meta.name} does not know: {unknown[:5]}")
    return [wnids[number] for number in numbers]
