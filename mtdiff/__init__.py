"""MT-Diffusion: several modalities in one diffusion space, derived, implemented and trained."""

import importlib
import importlib.util
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtdiff import datasets, exact
    from mtdiff.backbones import MLP, Backbone, DiT, UNet
    from mtdiff.checkpoint import load, transfer
    from mtdiff.datasets import Dataset
    from mtdiff.elbo import Bound, elbo
    from mtdiff.export import export_onnx
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

HOMES = {
    "mtdiff.backbones": "MLP Backbone DiT UNet",
    "mtdiff.checkpoint": "load transfer",
    "mtdiff.datasets": "Dataset",
    "mtdiff.elbo": "Bound elbo",
    "mtdiff.export": "export_onnx",
    "mtdiff.fit": "fit",
    "mtdiff.losses": "multitask_loss",
    "mtdiff.modalities": "MISSING Caption Continuous Encoded Image Label LabelMap Mask Modality Vector vocabulary",
    "mtdiff.model": "MTDiffusion",
    "mtdiff.prediction": "Denoiser Prediction",
    "mtdiff.process": "ForwardProcess",
    "mtdiff.sampling": "sample sample_path",
    "mtdiff.schedules": "NoiseSchedule constant fade_in fade_out",
    "mtdiff.training": "TrainConfig Trainer",
}
"""Where public names are from. Each is imported when it is asked for, so that `mtdiff --help` does not wait for torch."""

__all__ = [
    "MISSING", "MLP", "Backbone", "Bound", "Caption", "Continuous", "Dataset", "Denoiser", "DiT", "Encoded",
    "ForwardProcess", "Image", "Label", "LabelMap", "MTDiffusion", "Mask", "Modality", "NoiseSchedule", "Prediction",
    "TrainConfig", "Trainer", "UNet", "Vector", "constant", "datasets", "elbo", "exact", "export_onnx", "fade_in",
    "fade_out", "fit", "load", "multitask_loss", "sample", "sample_path", "transfer", "vocabulary",
]  # fmt: skip


def __getattr__(name: str):
    home = next((home for home, names in HOMES.items() if name in names.split()), "mtdiff")
    if home != "mtdiff":
        found = globals()[name] = getattr(importlib.import_module(home), name)
        return found
    if name.startswith("_") or importlib.util.find_spec(f"mtdiff.{name}") is None:
        raise AttributeError(f"module 'mtdiff' has no attribute {name!r}")
    return importlib.import_module(f"mtdiff.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """`mtdiff.elbo` and `mtdiff.fit` are functions, also after the modules of the same names were imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not isinstance(value, types.ModuleType) or f"mtdiff.{name}" not in HOMES:
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
