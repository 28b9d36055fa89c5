"""MT-Diffusion: several modalities in one diffusion space, derived, implemented and trained."""

from mtdiff import exact
from mtdiff.backbones import MLP, Backbone, UNet
from mtdiff.checkpoint import load
from mtdiff.elbo import Bound, elbo
from mtdiff.fit import fit
from mtdiff.losses import multitask_loss
from mtdiff.modalities import (
    MISSING,
    Caption,
    Continuous,
    Encoded,
    Image,
    Label,
    LabelMap,
    Mask,
    Modality,
    Vector,
    vocabulary,
)
from mtdiff.model import MTDiffusion
from mtdiff.prediction import Denoiser, Prediction
from mtdiff.process import ForwardProcess
from mtdiff.sampling import sample, sample_path
from mtdiff.schedules import NoiseSchedule, constant, fade_in, fade_out

__version__ = "0.1.0"

__all__ = [
    "MISSING", "MLP", "Backbone", "Bound", "Caption", "Continuous", "Denoiser", "Encoded", "ForwardProcess", "Image",
    "Label", "LabelMap", "MTDiffusion", "Mask", "Modality", "NoiseSchedule", "Prediction", "UNet", "Vector", "constant",
    "elbo", "exact", "fade_in", "fade_out", "fit", "load", "multitask_loss", "sample", "sample_path",
    "vocabulary",
]  # fmt: skip
