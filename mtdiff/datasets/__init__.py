"""Data sets: each yields dicts {modality: tensor}. None is downloaded."""

from mtdiff.datasets.base import Dataset
from mtdiff.datasets.digits import digits
from mtdiff.datasets.masks import masks
from mtdiff.datasets.planted import planted
from mtdiff.datasets.polydigits import polydigits, polymnist
from mtdiff.datasets.prepared import folder
from mtdiff.datasets.shapes import palette, shapes, unpalette
from mtdiff.datasets.toy import MIXTURE, toy

__all__ = [
    "MIXTURE", "Dataset", "digits", "folder", "masks", "palette", "planted", "polydigits", "polymnist", "shapes", "toy",
    "unpalette",
]  # fmt: skip
