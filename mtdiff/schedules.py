"""Everything that depends on the step alone: noise schedules and aggregation curves (theory 2)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtdiff.checks import check_whole

Levels = tuple[float, float] | None
"""Mean and standard deviation of the log-SNR at which a model is trained; None: all steps alike."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """How much of the signal is left at each step: the curve abar_t, t = 0..T.

    z_t = sqrt(abar_t) m_t + sqrt(1 - abar_t) eps, and alpha_t = abar_t / abar_{t-1}.

    Args:
        abar: (T+1,) decreasing values in (0, 1], T >= 1, else a ValueError. Only abar_0 may be 1, which is DDPM's
            convention: then z_0 is noise-free and everything is read at t = 1 (theory 3, "Ends").

    Source: Ho et al. 2020 for the curve; the index t = 0 with noise left is ours (theory 3).
    """

    abar: Tensor

    def __post_init__(self):
        abar = torch.as_tensor(self.abar, dtype=torch.float64).detach().clone()
        if abar.ndim != 1 or len(abar) < 2:
            raise ValueError(f"abar must be a curve (T+1,) with T >= 1, got shape {tuple(abar.shape)}")
        if not bool(((abar > 0) & (abar <= 1)).all()):
            raise ValueError(f"abar must stay in (0, 1], got values in [{abar.min():.4g}, {abar.max():.4g}]")
        rises = (abar.diff() >= 0).nonzero()
        if len(rises):
            t = int(rises[0]) + 1
            raise ValueError(f"abar must decrease, but abar[{t}] = {abar[t]:.6g} >= abar[{t - 1}] = {abar[t - 1]:.6g}")
        object.__setattr__(self, "abar", abar)

    @property
    def steps(self) -> int:
        """T, the number of forward steps."""
        return len(self.abar) - 1

    def said(self) -> str:
        """The schedule in a few words: how many steps, between which log-SNR."""
        high, low = self.abar.logit()[[0, -1]].tolist()
        return f"{self.steps} steps from log-SNR {high:.3g} to {low:.3g}"

    @property
    def first(self) -> int:
        """The step at which modalities are read: 0, or 1 where abar_0 = 1 leaves no noise at 0."""
        return int(self.abar[0] == 1)

    def chances(self, levels: Levels = None) -> Tensor:
        """How often a training draws each step, (T+1,) float64: all from `first` on alike, or more often where levels say.

        Levels (mean, std > 0) are those of a bell over the log-SNR of abar, N(mean, std^2). A tenth of the steps is drawn as
        without them, so that none is left untrained.

        Source: the bell over log-SNR: Karras et al. 2022, section 5; the tenth is ours.
        """
        before, steps = self.abar.new_zeros(self.first), self.steps + 1 - self.first
        chances = self.abar.new_full((steps,), 1 / steps)
        if levels is not None:
            mean, std = check_levels(levels)
            level = self.abar[self.first :].logit()
            edges = torch.cat([level[:1], (level[1:] + level[:-1]) / 2, level[-1:]])  # of the levels nearest to each step
            bell = -torch.special.ndtr((edges - mean) / std).diff()
            chances = 0.9 * bell / bell.sum() + 0.1 * chances
        return torch.cat([before, chances])

    @classmethod
    def cosine(cls, T: int) -> "NoiseSchedule":
        """Cosine schedule: abar_t ~ cos^2((t/T + s) / (1 + s) * pi/2), s = 0.008, with beta_t <= 0.999, and abar_0 = 1.

        Source: Nichol and Dhariwal 2021, eq. 17.
        """
        check_whole(T=T)
        u = torch.arange(T + 1, dtype=torch.float64) / T
        f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls._from_betas((1 - f[1:] / f[:-1]).clamp(max=0.999))

    @classmethod
    def linear(cls, T: int) -> "NoiseSchedule":
        """Linear schedule: beta_t from 1e-4 to 0.02 at T = 1000, scaled by 1000/T for other T, and abar_0 = 1.

        Source: Ho et al. 2020, section 4.
        """
        check_whole(T=T)
        scale = 1000 / T
        betas = torch.linspace(1e-4 * scale, 0.02 * scale, T, dtype=torch.float64)
        return cls._from_betas(betas.clamp(max=0.999))

    @classmethod
    def log_snr(cls, T: int, high: float = 9.0, low: float = -9.0) -> "NoiseSchedule":
        """Schedule that is straight in log signal-to-noise ratio: abar_t = sigmoid(linspace(high, low, T+1)).

        The ends are in nats; a `high` of 9 leaves noise of standard deviation 0.011 at t = 0.

        Source: Kingma et al. 2021 (the parametrisation); ours for the end points (theory 3).
        """
        check_whole(T=T)
        return cls(torch.sigmoid(torch.linspace(high, low, T + 1, dtype=torch.float64)))

    @classmethod
    def _from_betas(cls, betas: Tensor) -> "NoiseSchedule":
        return cls(torch.cat([betas.new_ones(1), (1 - betas).cumprod(0)]))


@dataclass(frozen=True)
class Curve:
    """A straight aggregation curve: W(u) = start + (end - start) u, with u = t/T in [0, 1].

    Any function of u will do in its place; this one also prints and compares well.
    """

    start: float
    end: float

    def __call__(self, u):
        """W at u, a number or a tensor in [0, 1]."""
        return self.start + (self.end - self.start) * u


def check_levels(levels: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation as numbers; a ValueError where they are none."""
    if not isinstance(levels, Sequence) or len(levels) != 2 or not all(map(math.isfinite, levels)) or levels[1] <= 0:
        raise ValueError(f"levels must be a mean and a positive standard deviation of log-SNR, got {levels!r}")
    return float(levels[0]), float(levels[1])


def constant(value: float) -> Curve:
    """W_t = value: nothing is injected, an ordinary diffusion of the aggregate (theory 2, regime "constant")."""
    return Curve(value, value)


def fade_in(value: float, start: float = 0.0) -> Curve:
    """W_t = start + (value - start) t/T: mixed in as the noise grows (theory 2, the paper's form).

    With start = 0 the modality is absent at t = 0 and has to be read off the others there. A small start keeps a
    trace of its code in z_0, by which it can be read together with them (theory 3, factorised heads).
    """
    return Curve(start, value)


def fade_out(value: float) -> Curve:
    """W_t = value * (1 - t/T): present at t = 0, gone at t = T (theory 2, the target of a transition)."""
    return Curve(value, 0.0)


def tabulate(name: str, weight: float | Tensor | Callable, T: int) -> Tensor:
    """The cumulative weights W_0..W_T of one modality, (T+1,) float64, from a number, a function of u = t/T or a table.

    A table of another length, or a value that is not finite, is a ValueError.
    """
    values = [float(weight(t / T)) for t in range(T + 1)] if callable(weight) else weight
    table = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    table = table.expand(T + 1).clone() if table.ndim == 0 else table
    if table.shape != (T + 1,):
        raise ValueError(f"the curve of {name!r} needs {T + 1} values (t = 0..{T}), got shape {tuple(table.shape)}")
    if not bool(table.isfinite().all()):
        raise ValueError(f"the curve of {name!r} has values that are not finite")
    return table
