"""One file per setting: data, modalities, process, backbone and training budget."""

from mtdiff.experiments.base import Experiment, budget, provenance
from mtdiff.experiments.image_label import EXPERIMENT as IMAGE_LABEL

EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in (IMAGE_LABEL,)}

__all__ = ["EXPERIMENTS", "Experiment", "budget", "provenance"]
