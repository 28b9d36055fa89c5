"""Other people's ways, behind the same calls: editing by a plain model, inpainting, a classifier, no shared space."""

from mtdiff.baselines.classifier import classifier_loss
from mtdiff.baselines.guided import representation_guidance
from mtdiff.baselines.images import WAYS, inpaint, mean_image, regression_loss, repaint, sdedit
from mtdiff.baselines.unshared import Unshared

__all__ = [
    "WAYS", "Unshared", "classifier_loss", "inpaint", "mean_image", "regression_loss", "repaint", "representation_guidance",
    "sdedit",
]  # fmt: skip
