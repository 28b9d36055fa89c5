"""The multi-modal evidence lower bound of any model, term by term (theory 3)."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtdiff.process import check_names


@dataclass(frozen=True)
class Bound:
    """A lower bound on log p(X), in nats per example: total = -prior - diffusion + sum_i readout_i.

    Attributes:
        prior: E KL(q(z_T | X) || N(0, I)), or 0 in transition mode, where the end of the chain is known.
        diffusion: sum_t E KL(q(z_{t-1} | z_t, X) || p(z_{t-1} | z_t)).
        readout: {name: E log p_i(x_i | z_first)}.
        total: the bound.
        stderr: standard error of the total over examples and draws.
        present: the set S of modalities in the aggregate.
        dims: {name: numbers in one example}.
        totals: (B,) float64, the bound of each example, the mean over its draws.
    """

    prior: float
    diffusion: float
    readout: dict[str, float]
    total: float
    stderr: float
    present: frozenset[str]
    dims: dict[str, int]
    totals: Tensor = field(repr=False, compare=False)

    def bits_per_dim(self, name: str) -> float:
        """(prior + diffusion - readout) / (dimensions log 2): an upper bound on the code length of one modality alone.

        Args:
            name: the modality.

        Returns:
            Bits per dimension.

        Raises:
            ValueError: the bound was not computed with present={name}: a joint total has no share that is one modality's.
        """
        if self.present != {name}:
            raise ValueError(f"bits_per_dim({name!r}) needs a bound with present={{{name!r}}}, this has {set(self.present)}")
        return (self.prior + self.diffusion - self.readout[name]) / (self.dims[name] * math.log(2))


@torch.no_grad()
def elbo(
    model,
    batch: Mapping[str, Tensor],
    samples: int = 1,
    *,
    present: Collection[str] | None = None,
    given: Collection[str] = (),
    importance: bool = True,
    generator: torch.Generator | None = None,
) -> Bound:
    """Monte Carlo estimate of the bound that theory 3 derives, unbiased for any number of draws.

    The reverse process is p(z_{t-1} | z_t) = q(z_{t-1} | z_t, X = prediction) with variance beta~_t, so with
    d_t = m_t - m^_t a step costs abar_{t-1} |(1 - alpha_t) / (1 - abar_t) d_t - (d_t - d_{t-1})|^2 / (2 beta~_t). One step t
    is drawn per example and draw; all modalities are read at the first step. In transition mode (`process.prior`) the
    source is told at every step and not read: the result bounds log p(the others | source).

    Args:
        model: anything with `process`, `modalities`, `check`, `encode`, `predict` and `log_prob`.
        batch: {name: (B, ...)} all modalities that are read.
        samples: draws per example, at least 1.
        present: the set S of modalities in the aggregate; None is all. Then only these are read: the result bounds
            log p_S of them alone.
        given: modalities that are told at every step and not read (a model's `conditions` always are): the result bounds
            log p(the others | given).
        importance: draw t in proportion to a rough cost, 1/2 (SNR_{t-1} - SNR_t) with SNR limited to that of unit-variance
            data, instead of uniformly; the weights keep it unbiased.
        generator: source of all draws.

    Returns:
        The terms, averaged over the batch.

    Raises:
        KeyError: the batch lacks a modality that is read, or names an unknown one.
        ValueError: an invalid value, samples < 1, an empty present set, one without the source of a transition or
            something given, or nothing that is left to read.

    Source: ours, theory 3; importance sampling of t: Kingma et al. 2021.
    """
    size, batch = model.check(batch), getattr(model, "cleared", dict)(batch)
    names = list(model.modalities) if present is None else list(check_names("present", present))
    if not isinstance(samples, int) or samples < 1 or not names:
        raise ValueError(f"expected samples >= 1 and a set of modalities, got {samples!r} and {names}")
    missing = [name for name in names if name not in batch]
    if missing:
        raise KeyError(f"batch lacks {missing}; it has {list(batch)}")
    process, device = model.process, next(iter(batch.values())).device
    if process.prior is not None and process.prior not in names:
        raise ValueError(f"the process ends at {process.prior!r}: it must be in the present set, got {names}")
    given = {*check_names("given", given), *getattr(model, "conditions", ())}
    absent = [name for name in given if name not in names]
    if absent:
        raise ValueError(f"given names {absent}, which are not in the present set {names}")
    codes = {name: code.double() for name, code in model.encode({name: batch[name] for name in names}).items()}
    told = {name: batch[name] for name in names if name in given or name == process.prior}
    read = {name: batch[name] for name in names if name not in told}
    if not read:
        raise ValueError(f"everything in the present set {names} is given: nothing is left to read")
    mask = {n: torch.full((size,), n in names, device=device) for n in process.names} if present is not None else None
    chances = _step_chances(process, importance).to(device)

    shape, totals = next(iter(codes.values())).shape, []
    parts = {"prior": 0.0, "diffusion": 0.0, **dict.fromkeys(read, 0.0)}

    def noise() -> Tensor:
        return torch.randn(shape, dtype=torch.float64, device=device, generator=generator)

    prior = process.prior_kl(codes, mask)
    for _ in range(samples):
        row = torch.multinomial(chances, size, replacement=True, generator=generator)
        diffusion = _step_cost(model, codes, row + process.first + 1, told, mask, noise()) / chances[row]
        z, _ = process.diffuse(codes, process.first, noise(), mask)
        prediction = model.predict(z, process.first, given=told, present=mask)
        known = {"given": told, "present": mask, "prediction": prediction}
        values = {name: model.log_prob(name, v, z, process.first, **known).double() for name, v in read.items()}
        totals.append(sum(values.values()) - prior - diffusion)
        for name, value in {"prior": prior, "diffusion": diffusion, **values}.items():
            parts[name] += float(value.mean()) / samples
    total = torch.stack(totals).mean(0)  # (B,) draws of one example are averaged: examples are independent
    error = float(total.std() / size**0.5) if size > 1 else math.nan
    readout = {name: parts[name] for name in read}
    dims = {name: v[0].numel() for name, v in read.items()}
    return Bound(parts["prior"], parts["diffusion"], readout, float(total.mean()), error, frozenset(names), dims, total)


def _step_cost(model, codes, t: Tensor, told, mask, noise: Tensor) -> Tensor:
    """KL(q(z_{t-1} | z_t, X) || p(z_{t-1} | z_t)) at a drawn z_t, in nats, (B,)."""
    process = model.process
    z, _ = process.diffuse(codes, t, noise, mask)
    prediction = model.predict(z, t, given=told, present=mask)
    d_t = process.aggregate(codes, t, mask) - prediction.aggregate
    errors = {name: codes[name] - prediction.estimate[name] for name in process.moving if name in codes}
    errors |= {name: torch.zeros_like(z) for name in errors if name in told}  # what is told is known, not estimated
    d_back = d_t + process.increment(errors, t, t - 1, mask) if errors else d_t  # d_{t-1}
    (signal, noise_t), (signal_back, noise_back) = process.level(t, z), process.level(t - 1, z)
    one_minus_alpha = 1 - (signal / signal_back) ** 2
    beta = one_minus_alpha * (noise_back / noise_t) ** 2
    difference = one_minus_alpha / noise_t**2 * d_t - (d_t - d_back)
    return (signal_back**2 * difference**2 / (2 * beta)).flatten(1).sum(1)


def _step_chances(process, importance: bool) -> Tensor:
    """Probabilities of t = first+1 .. T, (T - first,) float64."""
    abar = process.schedule.abar[process.first :]
    if not importance:
        return torch.full((len(abar) - 1,), 1 / (len(abar) - 1), dtype=torch.float64)
    snr = abar / (1 - abar)
    cost = (snr[:-1] - snr[1:]) / (1 + snr[1:])  # dSNR times the variance that is left of unit-variance data
    cost = cost + 0.1 * cost.mean()  # no step is all but left out, whatever the curves do there
    return cost / cost.sum()
