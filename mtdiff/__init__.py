"""MT-Diffusion: several modalities in one diffusion space, derived, implemented and trained."""

from mtdiff import exact
from mtdiff.backbones import MLP, UNet
from mtdiff.checkpoint import load
from mtdiff.elbo import Bound, elbo
from mtdiff.fit import fit
from mtdiff.losses import multitask_loss
from mtdiff.modalities import MISSING, Caption, Encoded, Image, Label, LabelMap, Mask, Vector
from mtdiff.model import MTDiffusion
from mtdiff.prediction import Denoiser, Prediction
from mtdiff.process import ForwardProcess
from mtdiff.sampling import sample, sample_path
from mtdiff.schedules import NoiseSchedule, constant, fade_in, fade_out

__version__ = "0.1.0"

__all__ = [
    "MISSING", "MLP", "Bound", "Caption", "Denoiser", "Encoded", "ForwardProcess", "Image", "Label", "LabelMap",
    "MTDiffusion", "Mask", "NoiseSchedule", "Prediction", "UNet", "Vector", "constant", "elbo", "exact", "fade_in",
    "fade_out", "fit", "load", "multitask_loss", "sample", "sample_path",
]  # fmt: skip
