"""One file per setting: data, modalities, process, backbone and training budget."""

from mtdiff.experiments.any_to_any import EXPERIMENT as ANY_TO_ANY
from mtdiff.experiments.base import Experiment, budget, matched, recipe, trained_on
from mtdiff.experiments.dense import EXPERIMENT as DENSE
from mtdiff.experiments.image_label import EXPERIMENT as IMAGE_LABEL
from mtdiff.experiments.image_representation import EXPERIMENT as IMAGE_REPRESENTATION
from mtdiff.experiments.image_transition import EXPERIMENT as IMAGE_TRANSITION
from mtdiff.experiments.imagenet import EXPERIMENT as IMAGENET
from mtdiff.experiments.masked_image import EXPERIMENT as MASKED_IMAGE
from mtdiff.experiments.multimodal_vae import EXPERIMENT as MULTIMODAL_VAE
from mtdiff.experiments.restoration import EXPERIMENT as RESTORATION

_ALL = (
    IMAGE_LABEL, IMAGE_REPRESENTATION, IMAGE_TRANSITION, MASKED_IMAGE, ANY_TO_ANY, IMAGENET,
    DENSE, MULTIMODAL_VAE, RESTORATION,
)  # fmt: skip
EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in _ALL}

__all__ = ["EXPERIMENTS", "Experiment", "budget", "matched", "recipe", "trained_on"]
