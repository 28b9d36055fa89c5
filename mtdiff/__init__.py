"""MT-Diffusion: several modalities in one diffusion space, derived, implemented and trained."""

from mtdiff import datasets, exact
from mtdiff.backbones import MLP, Backbone, UNet
from mtdiff.checkpoint import load
from mtdiff.datasets import Dataset
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
from mtdiff.training import TrainConfig, Trainer

__version__ = "0.1.0"

__all__ = [
    "MISSING", "MLP", "Backbone", "Bound", "Caption", "Continuous", "Dataset", "Denoiser", "Encoded", "ForwardProcess",
    "Image", "Label", "LabelMap", "MTDiffusion", "Mask", "Modality", "NoiseSchedule", "Prediction", "TrainConfig", "Trainer",
    "UNet", "Vector", "constant", "datasets", "elbo", "exact", "fade_in", "fade_out", "fit", "load", "multitask_loss",
    "sample", "sample_path", "vocabulary",
]  # fmt: skip
