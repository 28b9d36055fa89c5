"""One step of the reverse chain from t to s, with moving aggregation curves (theory 4).

With y = z / sqrt(abar) and r = sqrt((1 - abar) / abar) the probability-flow ODE is dy = eps^ dr + sum_i e^_i dW^i; its
integral over a step is m^_s = m^_t + sum_i (W_s^i - W_t^i) e^_i and z_s = sqrt(abar_s) m^_s + sqrt(1 - abar_s) eps^.

A `Step` is called as step(look, z, t, s, noise) and returns z_s (B, *Z), float64 like z: `look(z, t)` are the estimates of
the model at a state, with given values worked in (asked for the state that a step begins with, it has them already),
`look.process` is the forward process, `look.previous` what the last step saw, and `noise()` draws standard normal noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mtdiff.prediction import Prediction
from mtdiff.process import ForwardProcess


@dataclass(frozen=True)
class Guess:
    """The estimates that one sampler step works with, in float64: m^_t, and e^_i of every modality whose curve moves."""

    aggregate: Tensor
    codes: dict[str, Tensor]

    @classmethod
    def of(cls, process: ForwardProcess, prediction: Prediction) -> "Guess":
        """What a step needs of a prediction."""
        return cls(prediction.aggregate, {i: prediction.estimate[i] for i in process.moving})

    def noise(self, process: ForwardProcess, z: Tensor, t: int) -> Tensor:
        """The noise direction eps^ = (z_t - sqrt(abar_t) m^_t) / sqrt(1 - abar_t)."""
        at = process.at(t, z)
        return (z - at.signal * self.aggregate) / at.noise

    def moved(self, process: ForwardProcess, t: int, s: int) -> Tensor:
        """m^_s = m^_t + sum_i (W_s^i - W_t^i) e^_i."""
        now, then = process.at(t, self.aggregate), process.at(s, self.aggregate)
        return self.aggregate + then.mix(self.codes) - now.mix(self.codes)

    def towards(self, process: ForwardProcess, t: int, other: "Guess", at: int, share: float) -> "Guess":
        """The estimates at t, moved by a share of their way to another guess at step `at`; the curves stay where they are.

        What moves are the codes, and the part of the aggregate whose curves stand still.
        """
        here, there = process.at(t, self.aggregate), process.at(at, self.aggregate)
        codes = {i: torch.lerp(e, other.codes[i], share) for i, e in self.codes.items()}
        still = torch.lerp(self.aggregate - here.mix(self.codes), other.aggregate - there.mix(other.codes), share)
        return Guess(still + here.mix(codes), codes)


class Look(Protocol):
    """What a step sees of the model and of the chain.

    `previous` is what the last step began with, (t, guess), or None in the first and after noise was put back.
    """

    process: ForwardProcess
    previous: tuple[int, Guess] | None

    def __call__(self, z: Tensor, t: int) -> Guess:
        """The estimates at a state."""


Noise = Callable[[], Tensor]
Step = Callable[[Look, Tensor, int, int, Noise], Tensor]


def frozen(process: ForwardProcess, z: Tensor, guess: Guess, t: int, s: int) -> Tensor:
    """z_s of estimates that are frozen over the step, the curves exact: sqrt(abar_s) m^_s + sqrt(1 - abar_s) eps^."""
    at = process.at(s, z)
    return at.signal * guess.moved(process, t, s) + at.noise * guess.noise(process, z, t)


def ddim(look: Look, z: Tensor, t: int, s: int, noise: Noise) -> Tensor:
    """Order 1, no noise: the estimates at z_t, `frozen`. Source: Song et al. 2021 for constant curves."""
    return frozen(look.process, z, look(z, t), t, s)


def ddpm(look: Look, z: Tensor, t: int, s: int, noise: Noise) -> Tensor:
    """Ancestral: drawn from q(z_s | z_t, X) with the estimates for X. Source: Ho et al. 2020 for constant curves."""
    guess = look(z, t)
    mean, std = look.process.back(z, guess.aggregate, guess.moved(look.process, t, s), t, s)
    return mean + std * noise()


def heun(look: Look, z: Tensor, t: int, s: int, noise: Noise) -> Tensor:
    """Order 2, two looks: `ddim` by the mean of the estimates at both ends of the step.

    Heun's method as it is usually written takes the mean of the slopes of z / sqrt(abar) over noise / signal: of the same
    order, but where a step begins at almost no signal that mean is all noise.

    Source: Lu et al. 2022, DPM-Solver++(2S) with its second look at the end of the step; moving curves: theory 4.
    """
    guess = look(z, t)
    end = look(frozen(look.process, z, guess, t, s), s)
    return frozen(look.process, z, guess.towards(look.process, t, end, s, 0.5), t, s)


def dpm(look: Look, z: Tensor, t: int, s: int, noise: Noise) -> Tensor:
    """DPM-Solver++(2M) is `ddim` with e + (e - e_prev) / (2 r), r the last step over this one in half log-SNR.

    That is the line through the last two estimates, at the middle of the step; here at most one nat of log-SNR beyond t,
    and in the last step not beyond it at all. The order stays 2: short steps are not limited, and one step of order 1 costs
    an error of order 2.

    Source: Lu et al. 2022; in this form, with moving curves and its limits, theory 4.
    """
    process, guess = look.process, look(z, t)
    if look.previous is not None and s != process.first:
        before, old = look.previous
        log_snr = process.schedule.abar.logit()
        ahead = min(float(log_snr[s] - log_snr[t]) / 2, 1.0)
        guess = guess.towards(process, t, old, before, -ahead / float(log_snr[t] - log_snr[before]))
    return frozen(process, z, guess, t, s)


SAMPLERS: dict[str, Step] = {"ddpm": ddpm, "ddim": ddim, "heun": heun, "dpm++": dpm}
