"""Real images: fetch an archive, find what is in a folder, and pack it at one size for training."""

from mtdiff.datasets.imagenet.download import ARCHIVES, get
from mtdiff.datasets.imagenet.folders import find
from mtdiff.datasets.imagenet.layouts import Listing
from mtdiff.datasets.imagenet.packing import pack, prepare

__all__ = ["ARCHIVES", "Listing", "find", "get", "pack", "prepare"]
