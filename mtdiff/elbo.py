"""The multi-modal evidence lower bound of any model, term by term (theory 3)."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtdiff.checks import check_names, check_whole
from mtdiff.prediction import Denoiser, Prediction
from mtdiff.process import ForwardProcess


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

        Raises:
            ValueError: the bound was not computed with present={name}: a joint total has no share that is one modality's.
        """
        if self.present != {name}:
            raise ValueError(f"bits_per_dim({name!r}) needs a bound with present={{{name!r}}}, this has {set(self.present)}")
        return (self.prior + self.diffusion - self.readout[name]) / (self.dims[name] * math.log(2))


@torch.no_grad()
def elbo(
    model: Denoiser,
    batch: Mapping[str, Tensor],
    samples: int = 1,
    *,
    present: Collection[str] | None = None,
    given: Collection[str] = (),
    importance: bool = True,
    generator: torch.Generator | None = None,
) -> Bound:
    """Monte Carlo estimate of the bound that theory 3 derives, unbiased for any number of draws.

    The reverse process is p(z_{t-1} | z_t) = q(z_{t-1} | z_t, X = prediction), `ForwardProcess.back` with the model's
    aggregates, so that a step costs |mu - mu^|^2 / (2 beta~_t). One step t is drawn per example and draw; all modalities are
    read at the first step. In transition mode (`process.prior`) the source is given at every step and not read: the result
    bounds log p(the others | source).

    Args:
        batch: {name: (B, ...)} all modalities that are read.
        samples: draws per example, at least 1.
        present: the set S of modalities in the aggregate; None is all. Then only these are read: the result bounds
            log p_S of them alone, tight only for a set that training has seen (`multitask_loss(drop=...)`).
        given: modalities that are given at every step and not read (a model's `conditions` always are): the result bounds
            log p(the others | given).
        importance: draw t in proportion to a rough cost, 1/2 (SNR_{t-1} - SNR_t) with SNR limited to that of unit-variance
            data, instead of uniformly; the weights keep it unbiased.

    Raises:
        KeyError: the batch lacks a modality that is read, or names an unknown one.
        ValueError: an invalid value, samples < 1, an empty present set, one without the source of a transition or
            something given, or nothing that is left to read.

    Source: ours, theory 3; importance sampling of t: Kingma et al. 2021.
    """
    size, batch, process = model.check(batch), model.tidy(batch), model.process
    check_whole(samples=samples)
    given, read = _sets(model, batch, present, given)
    codes = {name: code.double() for name, code in model.encode({**given, **read}).items()}
    only = None if present is None else {*given, *read}
    prior, draws = process.prior_kl(codes, only), []
    chances = _step_chances(process, importance).to(prior.device)
    for _ in range(samples):
        row = torch.multinomial(chances, size, replacement=True, generator=generator)
        t = row + process.first + 1
        z, _ = process.diffuse(codes, t, present=only, generator=generator)
        prediction = model.predict(z, t, given=given, present=only)
        diffusion = _step_cost(process, codes, z, t, prediction, given, only) / chances[row]
        z, _ = process.diffuse(codes, process.first, present=only, generator=generator)
        prediction = model.predict(z, process.first, given=given, present=only)
        readout = {name: prediction.law[name].log_prob(value).double() for name, value in read.items()}
        draws.append({"prior": prior, "diffusion": diffusion, **readout})
    terms = {name: torch.stack([draw[name] for draw in draws]).mean(0) for name in draws[0]}  # (B,) each
    total = sum(terms[name] for name in read) - terms["prior"] - terms["diffusion"]
    mean = {name: float(term.mean()) for name, term in terms.items()}
    return Bound(
        prior=mean.pop("prior"),
        diffusion=mean.pop("diffusion"),
        readout=mean,
        total=float(total.mean()),
        stderr=float(total.std() / size**0.5) if size > 1 else math.nan,  # draws of one example are averaged
        present=frozenset(codes),
        dims={name: value[0].numel() for name, value in read.items()},
        totals=total,
    )


def _sets(model: Denoiser, batch, present, given) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is in the aggregate: the values that are given, and those that are left to be read."""
    every, prior = list(model.modalities), model.process.prior
    names = every if present is None else list(check_names("present", present, every))
    given = {*check_names("given", given, every), *model.conditions, prior} - {None}
    missing, absent = [name for name in names if name not in batch], sorted(given - {*names})
    if missing:
        raise KeyError(f"batch lacks {missing}; it has {list(batch)}")
    if prior in absent:
        raise ValueError(f"the process ends at {prior!r}: it must be in the present set, got {names}")
    if absent:
        raise ValueError(f"given names {absent}, which are not in the present set {names}")
    read = {name: batch[name] for name in names if name not in given}
    if not read:
        raise ValueError(f"nothing is left to read: given are {sorted(given)} of the present set {names}")
    return {name: batch[name] for name in names if name in given}, read


def _step_cost(process: ForwardProcess, codes, z: Tensor, t: Tensor, prediction: Prediction, known, present) -> Tensor:
    """KL(q(z_{t-1} | z_t, X) || p(z_{t-1} | z_t)) = |mu - mu^|^2 / (2 beta~_t) at a drawn z_t, in nats, (B,)."""
    guess = {name: codes[name] if name in known else prediction.estimate[name] for name in codes if name in process.moving}
    now, then = (process.at(step, z, present) for step in (t, t - 1))
    guessed = prediction.aggregate + then.mix(guess) - now.mix(guess)  # m^_{t-1}
    mean, std = process.back(z, now.mix(codes), then.mix(codes), t, t - 1)
    mean_hat, _ = process.back(z, prediction.aggregate, guessed, t, t - 1)
    return ((mean - mean_hat) ** 2 / (2 * std**2)).flatten(1).sum(1)


def _step_chances(process: ForwardProcess, importance: bool) -> Tensor:
    """Probabilities of t = first+1 .. T, (T - first,) float64."""
    abar = process.schedule.abar[process.first :]
    if not importance:
        return torch.full((len(abar) - 1,), 1 / (len(abar) - 1), dtype=torch.float64)
    snr = abar / (1 - abar)
    cost = (snr[:-1] - snr[1:]) / (1 + snr[1:])  # dSNR times the variance that is left of unit-variance data
    cost = cost + 0.1 * cost.mean()  # no step is all but left out, whatever the curves do there
    return cost / cost.sum()
