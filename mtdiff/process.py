"""The forward process of several modalities in one diffusion space (theory 2). Tensors in, tensors out; no network."""

import math
import numbers
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from mtdiff.schedules import NoiseSchedule, tabulate


class ForwardProcess:
    """Aggregates the codes of all modalities and adds noise: q(z_t | X) = N(sqrt(abar_t) m_t(X), (1 - abar_t) I).

    The aggregate is m_t(X) = sum_i W_t^i E_i(x_i), with *cumulative* weights W_t^i. The paper's kernel
    q(z_t | z_{t-1}, X) = N(sqrt(alpha_t) (z_{t-1} + sum_i w_t^i E_i(x_i)), (1 - alpha_t) I) injects
    w_t^i = sqrt(abar_{t-1}) (W_t^i - W_{t-1}^i); with one modality and W = 1 all of this is DDPM.

    Args:
        schedule: the noise schedule, T steps.
        weights: name -> W^i as a number, a function of u = t/T, or a (T+1,) tensor.
        prior: name of the modality that the chain ends at (transition mode), or None where it ends at noise.

    Attributes:
        moving: names of the modalities whose curve is not constant: those that are injected at some step.
        entering: names of the modalities whose weight is not 0 throughout.

    Raises:
        ValueError: no modality, a curve of the wrong length, or another modality than `prior` is left at T.
        KeyError: prior is not one of the modalities.

    Source: Chen et al. 2024, transition kernel; cumulative weights and closed forms are ours (theory 2).
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        weights: Mapping[str, float | Tensor | Callable],
        prior: str | None = None,
    ):
        if not weights:
            raise ValueError("weights names no modality")
        self.schedule = schedule
        self.prior = prior
        self._weights = {name: tabulate(name, weight, schedule.steps) for name, weight in weights.items()}
        self._moved: dict[torch.device, dict[str, Tensor]] = {}
        self.moving = tuple(name for name, table in self._weights.items() if bool((table != table[0]).any()))
        self.entering = tuple(name for name, table in self._weights.items() if bool((table != 0).any()))
        if prior is not None:
            self._table(prior)
            left = [name for name, table in self._weights.items() if name != prior and table[-1] != 0]
            if left:
                raise ValueError(f"the chain should end at {prior!r} alone, but {left} have weight left at t = T")

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, in order."""
        return tuple(self._weights)

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return self.schedule.steps

    @property
    def first(self) -> int:
        """The step at which modalities are read (0, or 1 where abar_0 = 1)."""
        return self.schedule.first

    def cumulative(self, name: str) -> Tensor:
        """W_t of one modality, (T+1,) float64.

        Raises:
            KeyError: no such modality.
        """
        return self._table(name).clone()

    def injected(self, name: str) -> Tensor:
        """The paper's w_t = sqrt(abar_{t-1}) (W_t - W_{t-1}) of one modality, (T+1,) float64; entry 0 is 0.

        Raises:
            KeyError: no such modality.
        """
        increments = self._table(name).diff()
        return torch.cat([increments.new_zeros(1), self.schedule.abar[:-1].sqrt() * increments])

    def snr(self, name: str) -> Tensor:
        """Signal-to-noise ratio of one modality with codes of unit RMS: (W_t)^2 abar_t / (1 - abar_t), (T+1,).

        Raises:
            KeyError: no such modality.
        """
        abar, w = self.schedule.abar, self._table(name)
        return torch.where(w == 0, 0.0, w**2 * abar / (1 - abar))

    def aggregate(self, codes: Mapping[str, Tensor], t: int | Tensor, present: Mapping | None = None) -> Tensor:
        """The aggregate of all modalities: m_t(X) = sum_i W_t^i E_i(x_i).

        Args:
            codes: {name: (B, *Z)} encoded modalities E_i(x_i). One whose weight is 0 throughout may be left out.
            t: step in 0..T, an int or a (B,) int tensor.
            present: {name: (B,) bool}; an absent modality contributes nothing. None: all are present.

        Returns:
            (B, *Z), in the dtype of the codes.

        Raises:
            KeyError: codes or present names an unknown modality, or a modality that is present has no code.
            ValueError: shapes do not fit, or t leaves 0..T.
        """
        like = self._check(codes, present, self.entering)
        t = self._steps(t, like, lowest=0)
        return self._mix(codes, lambda table: table[t], like, present)

    def increment(
        self, codes: Mapping[str, Tensor], t: int | Tensor, s: int | Tensor, present: Mapping | None = None
    ) -> Tensor:
        """How far the aggregate moves between two steps: m_s - m_t = sum_i (W_s^i - W_t^i) E_i(x_i).

        Args:
            codes: {name: (B, *Z)}; only those that move are needed.
            t: step in 0..T that is left, an int or a (B,) int tensor.
            s: step in 0..T that is entered, likewise.
            present: {name: (B,) bool}, as in `aggregate`.

        Returns:
            (B, *Z).

        Raises:
            KeyError: as in `aggregate`.
            ValueError: as in `aggregate`.
        """
        like = self._check(codes, present, self.moving)
        t, s = self._steps(t, like, lowest=0), self._steps(s, like, lowest=0)
        return self._mix(codes, lambda table: table[s] - table[t], like, present)

    def marginal(
        self, codes: Mapping[str, Tensor], t: int | Tensor, present: Mapping | None = None
    ) -> tuple[Tensor, Tensor]:
        """Law of z_t given every modality: q(z_t | X) = N(sqrt(abar_t) m_t(X), (1 - abar_t) I).

        Args:
            codes: {name: (B, *Z)} encoded modalities E_i(x_i).
            t: step in 0..T, an int or a (B,) int tensor.
            present: {name: (B,) bool}; an absent modality contributes nothing.

        Returns:
            mean (B, *Z) and std (B, 1, ...) of the Gaussian.

        Raises:
            KeyError: as in `aggregate`.
            ValueError: as in `aggregate`.

        Source: the closed form of the paper's kernel is ours (theory 2, by induction).
        """
        m_t = self.aggregate(codes, t, present)
        signal, noise = self.level(t, m_t)
        return signal * m_t, noise

    def prior_kl(self, codes: Mapping[str, Tensor], present: Mapping | None = None) -> Tensor:
        """How far z_T is from noise: KL(q(z_T | X) || N(0, I)) = 1/2 [abar_T (|m_T|^2 - d) - d log(1 - abar_T)], d = dim Z.

        That is about 1/2 abar_T |m_T|^2, for one code of unit RMS half of SNR times dimension: the same weight speaks louder
        in a larger space. On average over X it is the prior term of the bound, and no less than what z_T tells of X.

        Args:
            codes: {name: (B, *Z)}, of images too: they are part of what is left.
            present: {name: (B,) bool}.

        Returns:
            (B,) nats, float64; 0 in transition mode, where the chain starts at what is left.

        Raises:
            KeyError: as in `aggregate`.
            ValueError: as in `aggregate`.

        Source: ours, theory 5.
        """
        m_T, abar = self.aggregate(codes, self.steps, present).double().flatten(1), float(self.schedule.abar[-1])
        if self.prior is not None:
            return m_T.new_zeros(len(m_T))
        return 0.5 * (abar * (m_T.square().sum(1) - m_T.shape[1]) - m_T.shape[1] * math.log1p(-abar))

    def transition(
        self, z_prev: Tensor, codes: Mapping[str, Tensor], t: int | Tensor, present: Mapping | None = None
    ) -> tuple[Tensor, Tensor]:
        """One forward step: q(z_t | z_{t-1}, X) = N(sqrt(alpha_t) z_{t-1} + sqrt(abar_t) (m_t - m_{t-1}), (1 - alpha_t) I).

        Args:
            z_prev: (B, *Z), z_{t-1}.
            codes: {name: (B, *Z)}.
            t: step in 1..T, an int or a (B,) int tensor.
            present: {name: (B,) bool}.

        Returns:
            mean (B, *Z) and std (B, 1, ...).

        Raises:
            KeyError: as in `aggregate`.
            ValueError: as in `aggregate`, or t = 0.

        Source: Chen et al. 2024, transition kernel, written with cumulative weights.
        """
        like = self._check(codes, present, self.entering, z_prev=z_prev)
        t = self._steps(t, like, lowest=1)
        abar = self._on(like.device)["abar"]
        alpha = abar[t] / abar[t - 1]
        moved = self._mix(codes, lambda table: table[t] - table[t - 1], like, present)
        mean = _per_example(alpha.sqrt(), z_prev) * z_prev + _per_example(abar[t].sqrt(), z_prev) * moved
        return mean, _per_example((1 - alpha).sqrt(), z_prev)

    def posterior(
        self, z_t: Tensor, codes: Mapping[str, Tensor], t: int | Tensor, present: Mapping | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step back, knowing every modality: q(z_{t-1} | z_t, X) = N(mu, beta~_t I).

        mu = [sqrt(alpha_t) (1 - abar_{t-1}) (z_t - sqrt(abar_t) (m_t - m_{t-1})) + sqrt(abar_{t-1}) (1 - alpha_t) m_{t-1}]
        / (1 - abar_t), beta~_t = (1 - alpha_t) (1 - abar_{t-1}) / (1 - abar_t): DDPM's posterior with the
        injection taken out.

        Args:
            z_t: (B, *Z).
            codes: {name: (B, *Z)}.
            t: step in 1..T, an int or a (B,) int tensor.
            present: {name: (B,) bool}.

        Returns:
            mean (B, *Z) and std (B, 1, ...).

        Raises:
            KeyError: as in `aggregate`.
            ValueError: as in `aggregate`, or t = 0.

        Source: Chen et al. 2024 states it with an explicit aggregation term; this form is derived in theory 2.
        """
        like = self._check(codes, present, self.entering, z_t=z_t)
        t = self._steps(t, like, lowest=1)
        table = self._on(like.device)["abar"]
        abar, abar_prev = table[t], table[t - 1]
        alpha = abar / abar_prev
        moved = self._mix(codes, lambda w: w[t] - w[t - 1], like, present)
        m_prev = self._mix(codes, lambda w: w[t - 1], like, present)
        of_z = _per_example(alpha.sqrt() * (1 - abar_prev) / (1 - abar), z_t)
        of_m = _per_example(abar_prev.sqrt() * (1 - alpha) / (1 - abar), z_t)
        mean = of_z * (z_t - _per_example(abar.sqrt(), z_t) * moved) + of_m * m_prev
        return mean, _per_example(((1 - alpha) * (1 - abar_prev) / (1 - abar)).sqrt(), z_t)

    def diffuse(
        self,
        codes: Mapping[str, Tensor],
        t: int | Tensor,
        noise: Tensor | None = None,
        present: Mapping | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw z_t = sqrt(abar_t) m_t(X) + sqrt(1 - abar_t) eps.

        Args:
            codes: {name: (B, *Z)}.
            t: step in 0..T, an int or a (B,) int tensor.
            noise: (B, *Z) eps; drawn where None.
            present: {name: (B,) bool}.
            generator: source of the noise.

        Returns:
            z_t (B, *Z) and the noise eps (B, *Z).

        Raises:
            KeyError: as in `aggregate`.
            ValueError: as in `aggregate`.
        """
        mean, std = self.marginal(codes, t, present)
        if noise is None:
            noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
        check_real("noise", noise)
        if noise.shape != mean.shape:
            raise ValueError(f"noise must have shape {tuple(mean.shape)} like the codes, got {tuple(noise.shape)}")
        return mean + std * noise, noise

    def level(self, t: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise amplitude at t: sqrt(abar_t) and sqrt(1 - abar_t).

        Args:
            t: step in 0..T, an int or a (B,) int tensor.
            like: (B, *Z) tensor that gives batch, device and dtype.

        Returns:
            Two tensors (B, 1, ...) that broadcast over `like`.

        Raises:
            ValueError: t leaves 0..T.
        """
        abar = self._on(like.device)["abar"][self._steps(t, like, lowest=0)]
        return _per_example(abar.sqrt(), like), _per_example((1 - abar).sqrt(), like)

    def weight(self, name: str, t: int | Tensor, like: Tensor) -> Tensor:
        """W_t of one modality as (B, 1, ...), to broadcast over `like` (B, *Z).

        Raises:
            KeyError: no such modality.
            ValueError: t leaves 0..T.
        """
        self._table(name)
        return _per_example(self._on(like.device)[name][self._steps(t, like, lowest=0)], like)

    def wiener(
        self, name: str, t: int | Tensor, like: Tensor, present: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior of a unit-variance Gaussian coordinate seen through z_t: x | z_t ~ N(k_t z_t, 1 / (1 + SNR_t)).

        k_t = W_t sqrt(abar_t) / (W_t^2 abar_t + 1 - abar_t). It is the best linear guess, from which heads start;
        for W = 1 it is k = sqrt(abar), variance 1 - abar: v-prediction's parametrisation. What is absent leaves no trace
        in z_t: gain 0, variance 1.

        Args:
            name: the modality.
            t: step in 0..T, an int or a (B,) int tensor.
            like: (B, *Z) tensor that gives batch, device and dtype.
            present: {name: (B,) bool}, as in `aggregate`.

        Returns:
            Gain k_t and variance, each (B, 1, ...).

        Raises:
            KeyError: no such modality.
            ValueError: t leaves 0..T.

        Source: ours; the Wiener filter of the marginal in theory 2.
        """
        self._table(name)
        tables, t = self._on(like.device), self._steps(t, like, lowest=0)
        abar, w = tables["abar"][t], tables[name][t]
        if present is not None and name in present:
            w = w * present[name].to(w.device)
        power = w**2 * abar + 1 - abar
        gain = torch.where(w == 0, 0.0, w * abar.sqrt() / power)
        variance = torch.where(w == 0, 1.0, (1 - abar) / power)
        return _per_example(gain, like), _per_example(variance, like)

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

    def _steps(self, t: int | Tensor, like: Tensor, lowest: int) -> Tensor:
        """T as a (B,) index tensor. A tensor on a GPU is not read back, hence not range-checked."""
        if not like.is_floating_point() or not like.ndim or not len(like):
            expected = "floating point (B, *Z) with at least one example"
            raise ValueError(f"like must be {expected}, got {like.dtype} {tuple(like.shape)}")
        if not isinstance(t, Tensor):
            if isinstance(t, bool) or not hasattr(t, "__index__"):
                raise ValueError(f"t must be an int or an int tensor, got {t!r}")
            if not lowest <= t <= self.steps:
                raise ValueError(f"t must be in {lowest}..{self.steps}, got {t}")
            return torch.full((len(like),), int(t), device=like.device)
        if t.is_floating_point() or t.dtype == torch.bool:
            raise ValueError(f"t must be an int tensor, got {t.dtype}")
        if t.ndim == 0:
            t = t.expand(len(like))
        if t.shape != (len(like),):
            raise ValueError(f"t must be an int or have shape ({len(like)},), got {tuple(t.shape)}")
        if t.device.type == "cpu" and len(t) and not lowest <= int(t.min()) <= int(t.max()) <= self.steps:
            raise ValueError(f"t must be in {lowest}..{self.steps}, got values in {int(t.min())}..{int(t.max())}")
        return t.to(like.device).long()

    def _check(
        self,
        codes: Mapping[str, Tensor],
        present: Mapping | None,
        needed: tuple[str, ...],
        **state: Tensor,
    ) -> Tensor:
        """Codes, masks and a state fit each other and the process; returns a tensor of the common shape (B, *Z)."""
        for name in (*codes, *(present or {})):
            self._table(name)
        if not codes:
            raise KeyError(f"codes is empty; the process has {list(self._weights)}")
        real = {**state, **{f"codes[{name!r}]": code for name, code in codes.items()}}
        for what, value in real.items():
            check_real(what, value)
        like = next(iter(real.values()))
        for name, mask in (present or {}).items():
            if mask.dtype != torch.bool or mask.shape != (len(like),):
                raise ValueError(f"present[{name!r}] must be bool ({len(like)},), got {mask.dtype} {tuple(mask.shape)}")
        for what, value in real.items():
            if value.shape != like.shape:
                raise ValueError(f"{what} has shape {tuple(value.shape)}, expected {tuple(like.shape)} like the others")
        for name in needed:
            if name not in codes and (name not in (present or {}) or bool(present[name].any())):
                raise KeyError(f"codes lacks {name!r}, which is present")
        return like

    def _mix(self, codes: Mapping[str, Tensor], pick: Callable, like: Tensor, present: Mapping | None) -> Tensor:
        """sum_i pick(W^i) E_i(x_i) over the present modalities, the weights computed in float64."""
        tables = self._on(like.device)
        total = torch.zeros_like(like)
        for name, code in codes.items():
            w = pick(tables[name])
            if present is not None and name in present:
                w = torch.where(present[name].to(w.device), w, 0.0)
            total = total + _per_example(w, code) * code
        return total


def check_real(what: str, value: Tensor) -> None:
    """Raise ValueError unless value is a floating-point tensor (B, ...) of at least one example and, on a CPU, finite.

    What a learned encoder makes in training is not looked at: that is the trainer's, which says what to do about it.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.ndim or not len(value):
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(f"{what} must be a floating-point tensor of at least one example, got {got}")
    if value.device.type == "cpu" and not value.requires_grad and not bool(value.isfinite().all()):
        raise ValueError(f"{what} has values that are not finite (NaN or inf)")


def check_finite(what: str, number: float) -> None:
    """Raise ValueError unless it is a finite number."""
    if not isinstance(number, numbers.Real) or not math.isfinite(number):
        raise ValueError(f"{what} must be a finite number, got {number!r}")


def check_names(what: str, names: Collection[str]) -> tuple[str, ...]:
    """The names as a tuple, whatever they come in; a string is no collection of names.

    Raises:
        ValueError: a string.
    """
    if isinstance(names, str):
        raise ValueError(f"{what} must be a collection of names, got the string {names!r}")
    return tuple(names)


def _per_example(value: Tensor, like: Tensor) -> Tensor:
    """A (B,) tensor as (B, 1, ...), in the dtype of `like`, computed before in float64."""
    return value.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
