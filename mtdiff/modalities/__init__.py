"""One file per kind of modality; all share `Modality`."""

from mtdiff.modalities.base import MISSING, Modality, View
from mtdiff.modalities.caption import Caption, vocabulary
from mtdiff.modalities.continuous import Continuous, Image, Vector
from mtdiff.modalities.encoded import Encoded
from mtdiff.modalities.label import Label, simplex_codes
from mtdiff.modalities.maps import LabelMap, Mask

__all__ = [
    "MISSING", "Caption", "Continuous", "Encoded", "Image", "Label", "LabelMap", "Mask", "Modality", "Vector", "View",
    "simplex_codes", "vocabulary",
]  # fmt: skip
