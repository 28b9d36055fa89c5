"""Three frameworks, one family: DDPM, annealed Langevin dynamics and the reverse SDE, on the same model (theory 7).

A state z = signal x + noise eps (variance preserving, VP) is y = z / signal = x + sigma eps (variance exploding, VE) with
sigma = noise / signal: the same random variable in other units, and the same prediction E[x | z] serves all three. What
DDPM calls the aggregate and a score network s(z) = grad log p(z) are each other's linear functions (Tweedie's formula),

    s(z) = (signal E[x | z] - z) / noise^2.

Samplers here are steps for `mt.sample(sampler=...)`, see `mtdiff.solvers`; they are for constant curves, where nothing is
injected.
"""

import itertools
import math

import torch
from torch import Tensor

from mtdiff.checks import check_real, check_whole
from mtdiff.prediction import Denoiser
from mtdiff.process import ForwardProcess
from mtdiff.solvers import Look, Noise, Step, ddpm


def to_ve(process: ForwardProcess, z: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """(y, sigma) of a state z (B, *Z) at step t: y = z / signal, sigma = noise / signal (B, 1, ...)."""
    at = process.at(t, z)
    return z / at.signal, at.noise / at.signal


def to_vp(y: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(z, abar) of y = x + sigma eps: z = y / sqrt(1 + sigma^2), abar = 1 / (1 + sigma^2)."""
    return y / (1 + sigma**2).sqrt(), 1 / (1 + sigma**2)


def carries(process: ForwardProcess, name: str) -> bool:
    """Whether a chain ends at noise and carries a modality as it is, with weight 1 at every step."""
    return name in process.names and process.prior is None and bool((process.cumulative(name) == 1).all())


def score(process: ForwardProcess, z: Tensor, aggregate: Tensor, t: int) -> Tensor:
    """grad_z log p(z_t) from E[m_t | z_t], (B, *Z): Tweedie's formula. Source: Robbins 1956; Efron 2011."""
    at = process.at(t, z)
    return (at.signal * aggregate - z) / at.noise**2


def _still(process: ForwardProcess) -> None:
    if process.moving:
        raise ValueError(f"this sampler is for constant curves, but {list(process.moving)} moves: take one of SAMPLERS")


def reverse_sde(look: Look, z: Tensor, t: int, s: int, noise: Noise) -> Tensor:
    """Euler-Maruyama on dz = [-z/2 - score] db + dw, backwards, with b = log(abar_s / abar_t) the time that passes.

    z_s = z + (z / 2 + score) b + sqrt(b) eps: to first order in b DDPM's ancestral step.

    Source: Song et al. 2021, VP-SDE and its reversal by Anderson 1982.
    """
    _still(look.process)
    b = _passed(look.process, t, s)
    return z + (z / 2 + score(look.process, z, look(z, t).aggregate, t)) * b + math.sqrt(b) * noise()


def _passed(process: ForwardProcess, t: int, s: int) -> float:
    return float(process.schedule.abar[s].log() - process.schedule.abar[t].log())


def _corrected(look: Look, z: Tensor, t: int, noise: Noise, ratio: float) -> Tensor:
    """One step of Langevin dynamics at a level, of size e = 2 (ratio * noise)^2: z + e score + sqrt(2 e) eps."""
    at = look.process.at(t, z)
    e = 2 * (ratio * at.noise) ** 2
    return z + e * score(look.process, z, look(z, t).aggregate, t) + (2 * e).sqrt() * noise()


def langevin(corrections: int = 2, ratio: float = 0.3) -> Step:
    """Annealed Langevin dynamics: the state goes to the next level as it is in VE, and then moves by the score there.

    Nothing is predicted: y = z / signal stays, and so many steps of Langevin dynamics let it forget that it is too wide. The
    number of evaluations is `corrections` for each level.

    Args:
        corrections: steps at each level, at least 1.
        ratio: step size e = 2 (ratio * noise)^2, in (0, 0.7]: a Gaussian of the level's own width is left stable.

    Source: Song and Ermon 2019.
    """
    check_whole(corrections=corrections)
    _check_ratio(ratio)

    def step(look: Look, z: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        _still(look.process)
        z = z * look.process.at(s, z).signal / look.process.at(t, z).signal
        for _ in range(corrections):
            z = _corrected(look, z, s, noise, ratio)
        return z

    return step


def predictor_corrector(predictor: Step = ddpm, corrections: int = 1, ratio: float = 0.2) -> Step:
    """A step of a predictor, then Langevin dynamics at the level that it came to: 1 + corrections evaluations each.

    Args: as of `langevin`; the predictor is any step.

    Source: Song et al. 2021, predictor-corrector samplers.
    """
    check_whole(corrections=corrections)
    _check_ratio(ratio)

    def step(look: Look, z: Tensor, t: int, s: int, noise: Noise) -> Tensor:
        _still(look.process)
        z = predictor(look, z, t, s, noise)
        for _ in range(corrections):
            z = _corrected(look, z, s, noise, ratio)
        return z

    return step


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 0.7:
        raise ValueError(f"ratio must be in (0, 0.7], got {ratio}")


def flow_log_prob(model: Denoiser, value: Tensor, name: str = "x", stride: int = 1) -> Tensor:
    """Log-density of data under the probability-flow ODE of a model, (B,) nats.

    In VE's units y = z / signal, l = log sigma, the flow is dy/dl = y - E[x | y], and along it

        log p_0(y_0) = log p_T(y_T) + integral of div(y - E[x | y]) dl,        p_T = N(0, 1 / signal_T^2 I).

    It is integrated over the model's own steps by Heun's rule, and the divergence is exact, one gradient a coordinate: for
    data of few numbers. What is found is the density of data noised up to the first step.

    Args:
        model: its chain ends at noise and carries `name` alone, with weight 1.
        value: (B, d) data; flattened if they have more axes.
        stride: every so many steps of the schedule, T / stride + 1 evaluations.

    Raises:
        ValueError: a model whose curve moves or is not 1, or values that do not fit.

    Source: Chen et al. 2018 for the change of density; Song et al. 2021 for the flow.
    """
    process = model.process
    if not carries(process, name):
        raise ValueError(f"the flow needs a model whose chain ends at noise and carries {name!r} with weight 1: {process!r}")
    check_real("value", value, model.space)
    check_whole(stride=stride)
    y, d = value.double(), value[0].numel()
    times = [*range(process.first, process.steps, stride), process.steps]

    def slope(y: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """dy/dl and its divergence."""
        signal = process.at(t, y).signal
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            flow = y - model.predict(signal * y, t, present={name}).estimate[name].double()
            flat, trace = flow.flatten(1), y.new_zeros(len(y))
            for k in range(d):
                row = torch.autograd.grad(flat[:, k].sum(), y, retain_graph=k < d - 1)[0]
                trace = trace + row.flatten(1)[:, k]
        return flow.detach(), trace

    log_sigma = -process.schedule.abar.logit() / 2
    total, (flow, trace) = torch.zeros(len(y), dtype=torch.float64), slope(y, times[0])
    for t, s in itertools.pairwise(times):
        h = float(log_sigma[s] - log_sigma[t])
        ahead, _ = slope(y + h * flow, s)
        y = y + h * (flow + ahead) / 2
        before = trace
        flow, trace = slope(y, s)
        total = total + h * (before + trace) / 2
    signal = process.at(process.steps, y).signal
    square = (signal * y).flatten(1).square().sum(1)
    return total - 0.5 * (square + d * math.log(2 * math.pi)) + d * signal.flatten()[0].log()
