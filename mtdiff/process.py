"""The forward process of several modalities in one diffusion space (theory 2). Tensors in, tensors out; no network."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtdiff.checks import check_names, check_real, check_steps
from mtdiff.schedules import Levels, NoiseSchedule, check_levels, tabulate

Present = Collection[str] | Mapping[str, Tensor] | None
"""Who is in the aggregate: names, the same for all examples, or {name: (B,) bool} of those not all have; None: all."""
Codes = Mapping[str, Tensor]
"""{name: E_i(x_i) (B, *Z)}."""
Steps = int | Tensor
"""A step t in 0..T: an int, or a (B,) int tensor."""


@dataclass(frozen=True)
class At:
    """What a process says of a batch at its steps t: numbers (B, 1, ...) that broadcast over the state, in its dtype.

    `signal` is sqrt(abar_t), `noise` sqrt(1 - abar_t), `W` {name: W_t}, 0 where a modality is absent.
    """

    signal: Tensor
    noise: Tensor
    W: dict[str, Tensor]

    @property
    def level(self) -> tuple[Tensor, Tensor]:
        """Signal and noise."""
        return self.signal, self.noise

    def mix(self, codes: Codes) -> Tensor:
        """sum_i W_t^i E_i(x_i) over these codes (B, *Z)."""
        return sum(self.W[name] * code for name, code in codes.items())

    def gain(self, name: str) -> Tensor:
        """k_t = W_t sqrt(abar_t) / (W_t^2 abar_t + 1 - abar_t), by which k_t z_t is the best linear guess of a modality.

        For x ~ N(0, 1) in z_t = sqrt(abar_t) W_t x + sqrt(1 - abar_t) eps it gives E[x | z_t]; for W = 1 it is sqrt(abar_t),
        v-prediction's. With sigma = noise / (W signal) it is EDM's c_skip(sigma) / (W signal) for data of variance 1. It
        is 0 for what is absent.

        Source: Karras et al. 2022, table 1 (c_skip); as a Wiener filter, theory 2.
        """
        mine = self.W[name] * self.signal
        return torch.where(mine == 0, 0.0, mine / (mine**2 + self.noise**2))

    def variance(self, name: str) -> Tensor:
        """1 / (1 + SNR_t), what z_t leaves open of that coordinate; 1 for what is absent.

        Source: Karras et al. 2022, table 1: c_out(sigma)^2 for data of variance 1.
        """
        mine = self.W[name] * self.signal
        return torch.where(mine == 0, 1.0, self.noise**2 / (mine**2 + self.noise**2))


class ForwardProcess:
    """Aggregates the codes of all modalities and adds noise: q(z_t | X) = N(sqrt(abar_t) m_t(X), (1 - abar_t) I).

    The aggregate is m_t(X) = sum_i W_t^i E_i(x_i), with *cumulative* weights W_t^i. The paper's kernel
    q(z_t | z_{t-1}, X) = N(sqrt(alpha_t) (z_{t-1} + sum_i w_t^i E_i(x_i)), (1 - alpha_t) I) injects
    w_t^i = sqrt(abar_{t-1}) (W_t^i - W_{t-1}^i); with one modality and W = 1 all of this is DDPM.

    In all methods codes are of every modality that is present and has any weight. A mean is (B, *Z), a standard deviation
    (B, 1, ...), both in the dtype of the codes. An unknown name, or a code that is missing, is a KeyError; shapes that do
    not fit, numbers that are not finite and a t out of range are a ValueError.

    Args:
        weights: name -> W^i as a number, a function of u = t/T, or a (T+1,) tensor.
        prior: name of the modality that the chain ends at (transition mode), or None where it ends at noise.

    Attributes:
        names: the modalities, in order.
        moving: those whose curve is not constant, which are injected at some step.
        entering: those whose weight is not 0 throughout.
        first: the step at which modalities are read (0, or 1 where abar_0 = 1).

    Source: Chen et al. 2024, transition kernel; cumulative weights and closed forms are ours (theory 2).
    """

    def __init__(self, schedule: NoiseSchedule, weights: Mapping[str, float | Tensor | Callable], prior: str | None = None):
        if not weights:
            raise ValueError("weights names no modality")
        self.schedule, self.steps, self.first = schedule, schedule.steps, schedule.first
        self.prior, self.names = prior, tuple(weights)
        self._weights = {name: tabulate(name, weight, schedule.steps) for name, weight in weights.items()}
        self._moved: dict[torch.device, dict[str, Tensor]] = {}
        self._ends: dict[tuple[torch.device, Levels], Tensor] = {}  # the chance of each step or one before, on a device
        self.moving = tuple(name for name, table in self._weights.items() if bool((table != table[0]).any()))
        self.entering = tuple(name for name, table in self._weights.items() if bool((table != 0).any()))
        if prior is not None:
            self._table(prior)
            left = [name for name, table in self._weights.items() if name != prior and table[-1] != 0]
            if left:
                raise ValueError(f"the chain should end at {prior!r} alone, but {left} have weight left at t = T")

    def __repr__(self) -> str:
        curves = ", ".join(f"{name} W {self.said(name)}" for name in self.names)
        end = f", ends at {self.prior!r}" if self.prior else ""
        return f"ForwardProcess({self.schedule.said()}: {curves}{end})"

    def said(self, name: str) -> str:
        """The curve of a modality in a few characters: where W begins and ends, if it moves."""
        first, last = (f"{float(value):.3g}" for value in self._table(name)[[0, -1]])
        return f"{first} to {last}" if name in self.moving else first

    def cumulative(self, name: str) -> Tensor:
        """W_t of one modality, (T+1,) float64."""
        return self._table(name).clone()

    def injected(self, name: str) -> Tensor:
        """The paper's w_t = sqrt(abar_{t-1}) (W_t - W_{t-1}) of one modality, (T+1,) float64; entry 0 is 0."""
        increments = self._table(name).diff()
        return torch.cat([increments.new_zeros(1), self.schedule.abar[:-1].sqrt() * increments])

    def snr(self, name: str) -> Tensor:
        """Signal-to-noise ratio of one modality with codes of unit RMS: (W_t)^2 abar_t / (1 - abar_t), (T+1,) float64."""
        abar, w = self.schedule.abar, self._table(name)
        return torch.where(w == 0, 0.0, w**2 * abar / (1 - abar))

    def times(self, intervals: int, start: int | None = None) -> list[int]:
        """The steps of a chain from `start` (None: T) down to the first, in so many intervals of about the same length.

        Raises:
            ValueError: a start that is not above the first step, or not 1..start - first intervals.
        """
        start = self.steps if start is None else start
        if not isinstance(start, int) or not self.first < start <= self.steps:
            raise ValueError(f"start must be a step in {self.first + 1}..{self.steps}, got {start!r}")
        if not isinstance(intervals, int) or not 1 <= intervals <= start - self.first:
            raise ValueError(f"steps must be in 1..{start - self.first} from t = {start}, got {intervals!r}")
        return torch.linspace(start, self.first, intervals + 1, dtype=torch.float64).round().long().tolist()

    def draw_steps(
        self, n: int, levels: Levels = None, generator: torch.Generator | None = None, device: str | torch.device = "cpu"
    ) -> Tensor:
        """Steps (n,) to train at, stratified: one in each n-th part of `NoiseSchedule.chances`."""
        key = torch.device(device), None if levels is None else check_levels(levels)
        if key not in self._ends:
            self._ends[key] = self.schedule.chances(key[1]).cumsum(0).to(device)
        where = (torch.arange(n, device=device) + torch.rand(n, generator=generator, device=device)) / n
        return torch.searchsorted(self._ends[key], where.double(), right=True).clamp(self.first, self.steps)

    def at(self, t: Steps, like: Tensor, present: Present = None) -> At:
        """Signal, noise and weights at t, for states like (B, *Z)."""
        t, tables = self._steps(t, like), self._on(like.device)
        masks = self.masks(present, len(like), like.device)
        W = {name: per_example(tables[name][t], like) for name in self.names}
        W |= {name: W[name] * per_example(mask, like) for name, mask in masks.items()}
        abar = tables["abar"][t]
        return At(per_example(abar.sqrt(), like), per_example((1 - abar).sqrt(), like), W)

    def masks(self, present: Present, n: int, device: torch.device) -> dict[str, Tensor]:
        """Who is present as {name: (n,) bool}, of the modalities that not all examples have."""
        if present is None:
            return {}
        check_names("present", present, self.names)
        if not isinstance(present, Mapping):
            return {name: torch.zeros(n, dtype=torch.bool, device=device) for name in self.names if name not in present}
        for name, mask in present.items():
            if mask.dtype != torch.bool or mask.shape != (n,):
                raise ValueError(f"present[{name!r}] must be bool ({n},), got {mask.dtype} {tuple(mask.shape)}")
        return {name: mask.to(device) for name, mask in present.items()}

    def aggregate(self, codes: Codes, t: Steps, present: Present = None) -> Tensor:
        """The aggregate of all modalities: m_t(X) = sum_i W_t^i E_i(x_i), (B, *Z)."""
        return self.at(t, self._checked(codes, present), present).mix(codes)

    def marginal(self, codes: Codes, t: Steps, present: Present = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z_t given every modality: q(z_t | X) = N(sqrt(abar_t) m_t(X), (1 - abar_t) I).

        Source: the closed form of the paper's kernel is ours (theory 2, by induction).
        """
        at = self.at(t, self._checked(codes, present), present)
        return at.signal * at.mix(codes), at.noise

    def ahead(self, z_s: Tensor, m_s: Tensor, m_t: Tensor, s: Steps, t: Steps) -> tuple[Tensor, Tensor]:
        """From s up to any t > s: q(z_t | z_s) = N(sqrt(a) z_s + sqrt(abar_t) (m_t - m_s), (1 - a) I), a = abar_t / abar_s.

        The aggregates m_s and m_t (B, *Z) are given: true ones, or a model's. Returns mean and standard deviation.

        Source: Chen et al. 2024, transition kernel, over several steps and with cumulative weights (theory 2).
        """
        abar_s, abar_t = self._abar(s, t, z_s, m_s, m_t)
        a = abar_t / abar_s
        mean = per_example(a.sqrt(), z_s) * z_s + per_example(abar_t.sqrt(), z_s) * (m_t - m_s)
        return mean, per_example((1 - a).sqrt(), z_s)

    def back(self, z_t: Tensor, m_t: Tensor, m_s: Tensor, t: Steps, s: Steps) -> tuple[Tensor, Tensor]:
        """From t back to any s < t, knowing every modality: q(z_s | z_t, X) = N(mu, beta~ I).

        With a = abar_t / abar_s:

            mu = [sqrt(a) (1 - abar_s) (z_t - sqrt(abar_t) (m_t - m_s)) + sqrt(abar_s) (1 - a) m_s] / (1 - abar_t),
            beta~ = (1 - a) (1 - abar_s) / (1 - abar_t).

        DDPM's posterior with the injection taken out. With a model's estimates of the aggregates it is the ancestral step.
        Returns mean and standard deviation.

        Source: Chen et al. 2024 state it with an explicit aggregation term; this form is derived in theory 2.
        """
        abar_s, abar_t = self._abar(s, t, z_t, m_s, m_t)
        a = abar_t / abar_s
        of_z = per_example(a.sqrt() * (1 - abar_s) / (1 - abar_t), z_t)
        of_m = per_example(abar_s.sqrt() * (1 - a) / (1 - abar_t), z_t)
        mean = of_z * (z_t - per_example(abar_t.sqrt(), z_t) * (m_t - m_s)) + of_m * m_s
        return mean, per_example(((1 - a) * (1 - abar_s) / (1 - abar_t)).sqrt(), z_t)

    def transition(self, z_prev: Tensor, codes: Codes, t: Steps, present: Present = None) -> tuple[Tensor, Tensor]:
        """One forward step, q(z_t | z_{t-1}, X): `ahead` from t - 1."""
        t = self._steps(t, self._checked(codes, present, z_prev=z_prev), lowest=1)
        m_s, m_t = (self.at(step, z_prev, present).mix(codes) for step in (t - 1, t))
        return self.ahead(z_prev, m_s, m_t, t - 1, t)

    def posterior(self, z_t: Tensor, codes: Codes, t: Steps, present: Present = None) -> tuple[Tensor, Tensor]:
        """One step back, q(z_{t-1} | z_t, X): `back` to t - 1."""
        t = self._steps(t, self._checked(codes, present, z_t=z_t), lowest=1)
        m_s, m_t = (self.at(step, z_t, present).mix(codes) for step in (t - 1, t))
        return self.back(z_t, m_t, m_s, t, t - 1)

    def diffuse(
        self,
        codes: Codes,
        t: Steps,
        noise: Tensor | None = None,
        present: Present = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw z_t = sqrt(abar_t) m_t(X) + sqrt(1 - abar_t) eps; returns z_t and eps, drawn where it is not given."""
        at = self.at(t, self._checked(codes, present, noise=noise), present)
        mean = at.signal * at.mix(codes)
        if noise is None:
            noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
        return mean + at.noise * noise, noise

    def prior_kl(self, codes: Codes, present: Present = None) -> Tensor:
        """How far z_T is from noise: KL(q(z_T | X) || N(0, I)) = 1/2 [abar_T (|m_T|^2 - d) - d log(1 - abar_T)], d = dim Z.

        That is about 1/2 abar_T |m_T|^2, for one code of unit RMS half of SNR times dimension: the same weight speaks louder
        in a larger space. On average over X it is the prior term of the bound, and no less than what z_T tells of X.
        In nats, (B,) float64; 0 in transition mode, where the chain starts at what is left.

        Source: ours, theory 5.
        """
        m_T, abar = self.aggregate(codes, self.steps, present).double().flatten(1), float(self.schedule.abar[-1])
        if self.prior is not None:
            return m_T.new_zeros(len(m_T))
        return 0.5 * (abar * (m_T.square().sum(1) - m_T.shape[1]) - m_T.shape[1] * math.log1p(-abar))

    def _table(self, name: str) -> Tensor:
        if name not in self._weights:
            raise KeyError(f"the process has no modality {name!r}; it has {list(self._weights)}")
        return self._weights[name]

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        """The tables on a device, moved there once: a step on a GPU copies nothing."""
        if device not in self._moved:
            tables = {"abar": self.schedule.abar, **self._weights}
            self._moved[device] = {name: table.to(device) for name, table in tables.items()}
        return self._moved[device]

    def _abar(self, s: Steps, t: Steps, *states: Tensor) -> tuple[Tensor, Tensor]:
        """abar_s and abar_t, (B,) float64, of steps s < t; the states have one shape."""
        like = states[0]
        if any(state.shape != like.shape for state in states):
            raise ValueError(f"state and aggregates must have one shape, got {[tuple(state.shape) for state in states]}")
        s, t, abar = self._steps(s, like), self._steps(t, like), self._on(like.device)["abar"]
        if like.device.type == "cpu" and bool((s >= t).any()):
            raise ValueError(f"s must be before t, got s = {s.tolist()[:8]} and t = {t.tolist()[:8]}")
        return abar[s], abar[t]

    def _steps(self, t: Steps, like: Tensor, lowest: int = 0) -> Tensor:
        """T as a (B,) index tensor. A tensor on a GPU is not read back, hence not range-checked."""
        if not like.is_floating_point() or not like.shape or not len(like):
            raise ValueError(
                f"states must be floating point (B, *Z) of at least one example, got {like.dtype} {tuple(like.shape)}"
            )
        if not isinstance(t, Tensor):
            if isinstance(t, bool) or not hasattr(t, "__index__"):
                raise ValueError(f"t must be an int or an int tensor, got {t!r}")
            if not lowest <= t <= self.steps:
                raise ValueError(f"t must be in {lowest}..{self.steps}, got {t}")
            return torch.full((len(like),), int(t), device=like.device)
        check_steps(t, len(like), lowest, self.steps)
        return t.expand(len(like)).to(like.device).long()

    def _checked(self, codes: Codes, present: Present, **more: Tensor | None) -> Tensor:
        """A tensor of the common shape (B, *Z) of codes, state and noise, which fit each other and the process."""
        check_names("codes", codes, self.names)
        if not codes:
            raise KeyError(f"codes is empty; the process has {list(self.names)}")
        like = next(iter(codes.values()))
        for what, value in ({f"codes[{name!r}]": code for name, code in codes.items()} | more).items():
            if value is not None:
                check_real(what, value)
                if value.shape != like.shape:
                    raise ValueError(f"{what} has shape {tuple(value.shape)}, expected {tuple(like.shape)} like the others")
        masks = self.masks(present, len(like), like.device)
        for name in self.entering:
            if name not in codes and (name not in masks or bool(masks[name].any())):
                raise KeyError(f"codes lacks {name!r}, which is present")
        return like


def per_example(value: Tensor, like: Tensor) -> Tensor:
    """A (B,) tensor as (B, 1, ...), in the dtype of `like`, computed before in float64."""
    return value.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
