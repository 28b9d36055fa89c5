"""Small models and measures that several tests use."""

import math

import torch
from torch import nn

import mtdiff as mt
from mtdiff.checks import check_real
from mtdiff.datasets import MIXTURE
from mtdiff.laws import Gaussian, Law
from mtdiff.modalities import Modality, View


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """Give every parameter a random value: nothing is left zero-initialised."""
    g = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=g))
    return module


class Output(nn.Module):
    """Stands in for a readout: puts out what it is made with."""

    def __init__(self, value: torch.Tensor):
        super().__init__()
        self.value = value

    def forward(self, features):
        return self.value


def law_of(modality: Modality, output: torch.Tensor, variance: torch.Tensor | None = None) -> Law:
    """What a modality says of a state of zeros where its readout puts out these numbers; variance (B, 1, ...), 1 if None."""
    modality.out = Output(output)
    z = output.new_zeros(len(output), *modality.space)
    one = z.new_ones(len(z), *[1] * (z.ndim - 1))
    return modality.head(View(None, None, z, z, None, one, one, one if variance is None else variance))


def tensors(law: Law) -> list[torch.Tensor]:
    """All that a law holds."""
    return [part for part in vars(law).values() if isinstance(part, torch.Tensor)]


def mixture(label, T: int = 200, x=1.0, prior: str | None = None, high: float = 8.0, low: float = -8.0):
    """The labelled mixture of theory 4 under a process with the given curves."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(T, high, low), {"x": x, "label": label}, prior)
    return mt.exact.LabelledMixture(**MIXTURE, process=process)


def image_label_model(prediction: str = "v", curve=None, channels: int = 1, seed: int = 0, **options) -> mt.MTDiffusion:
    """A small network on 4x4 images with three classes, all weights random."""
    schedule = options.pop("schedule", None) or mt.NoiseSchedule.log_snr(50)
    process = mt.ForwardProcess(schedule, {"image": 1.0, "label": mt.fade_in(0.5) if curve is None else curve})
    space = (channels, 4, 4)
    torch.manual_seed(seed)
    modalities = {"image": mt.Image(space), "label": mt.Label(3, names=["a", "b", "c"])}
    return randomise(
        mt.MTDiffusion(process, modalities, mt.MLP(space, width=16, blocks=1), space, prediction, **options), seed
    )


def image_label_batch(n: int, channels: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    g = generator(seed)
    image = torch.rand(n, channels, 4, 4, generator=g) * 2 - 1
    return {"image": image, "label": torch.randint(0, 3, (n,), generator=g)}


def point_model(width: int = 32, seed: int = 0, dropout: float = 0.0, curve=None) -> mt.MTDiffusion:
    """An untrained MLP for points in the plane with three classes."""
    curve = mt.fade_in(1.0) if curve is None else curve
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(100), {"x": 1.0, "label": curve})
    torch.manual_seed(seed)
    backbone = mt.MLP((2,), width=width, blocks=2, dropout=dropout)
    return mt.MTDiffusion(process, {"x": mt.Vector(2), "label": mt.Label(3)}, backbone, (2,))


class Real:
    """A modality that takes any real numbers."""

    def check(self, value):
        check_real("value", value)


class OneModality(mt.Denoiser):
    """A model of one modality "x" alone, whose aggregate is any function (z, t) -> E[m_t | z_t]."""

    modalities = {"x": Real()}  # noqa: RUF012

    def __init__(self, process: mt.ForwardProcess, space: tuple[int, ...], aggregate):
        self.process, self.space, self.aggregate = process, space, aggregate

    def predict(self, z_t, t, *, given=None, present=None) -> mt.Prediction:
        m = self.aggregate(z_t, t)
        x = m / self.process.at(t, z_t).W["x"]
        return mt.Prediction(m, {"x": Gaussian(x, torch.ones_like(x))}, {"x": x})


def gaussian_model(process: mt.ForwardProcess, mean: float, std: float) -> OneModality:
    """The exact model of x ~ N(mean, std^2) in one dimension."""

    def aggregate(z, t):
        at = process.at(t, z)
        a = at.signal * at.W["x"]
        x = mean + a * std**2 / (a**2 * std**2 + at.noise**2) * (z - a * mean)
        return at.W["x"] * x

    return OneModality(process, (1,), aggregate)


def slope(steps: list[int], errors: list[float]) -> float:
    """Order of convergence: minus the slope of log error over log steps, by least squares."""
    x, y = torch.tensor(steps).double().log(), torch.tensor(errors).double().log()
    return float(-((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def standard_error(p: float, n: int) -> float:
    """Of a frequency p among n draws."""
    return math.sqrt(p * (1 - p) / n)
