"""One step of the reverse chain from t to s, with moving aggregation curves (theory 4).

With y = z / sqrt(abar) and r = sqrt((1 - abar) / abar) the probability-flow ODE is dy = eps^ dr + sum_i e^_i dW^i; its
integral over a step is m^_s = m^_t + sum_i (W_s^i - W_t^i) e^_i and z_s = sqrt(abar_s) m^_s + sqrt(1 - abar_s) eps^.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtdiff.model import Prediction
from mtdiff.process import ForwardProcess


@dataclass(frozen=True)
class Guess:
    """The estimates that one sampler step works with, in float64.

    Attributes:
        aggregate: (B, *Z) m^_t.
        codes: {name: (B, *Z)} e^_i of every modality whose curve moves.
    """

    aggregate: Tensor
    codes: dict[str, Tensor]

    @classmethod
    def of(cls, process: ForwardProcess, prediction: Prediction) -> "Guess":
        """What a step needs of a prediction."""
        return cls(prediction.aggregate, {i: prediction.estimate[i] for i in process.moving})

    def noise(self, process: ForwardProcess, z: Tensor, t: int) -> Tensor:
        """The noise direction eps^ = (z_t - sqrt(abar_t) m^_t) / sqrt(1 - abar_t)."""
        signal, noise = process.level(t, z)
        return (z - signal * self.aggregate) / noise

    def moved(self, process: ForwardProcess, t: int, s: int) -> Tensor:
        """m^_s = m^_t + sum_i (W_s^i - W_t^i) e^_i."""
        return self.aggregate + process.increment(self.codes, t, s) if self.codes else self.aggregate

    def towards(self, process: ForwardProcess, t: int, other: "Guess", at: int, share: float) -> "Guess":
        """The estimates at t, moved by a share of their way to another guess at step `at`; the curves stay where they are.

        What moves are the codes, and the part of the aggregate whose curves stand still.
        """

        def still(guess: Guess, step: int) -> Tensor:
            return guess.aggregate - sum(process.weight(i, step, e) * e for i, e in guess.codes.items())

        codes = {i: torch.lerp(e, other.codes[i], share) for i, e in self.codes.items()}
        aggregate = torch.lerp(still(self, t), still(other, at), share)
        return Guess(aggregate + sum(process.weight(i, t, e) * e for i, e in codes.items()), codes)


def ddim(process: ForwardProcess, z: Tensor, guess: Guess, t: int, s: int) -> Tensor:
    """Order 1: the estimates are frozen over the step, the curves are exact.

    Source: Song et al. 2021 for constant curves.
    """
    signal_s, noise_s = process.level(s, z)
    return signal_s * guess.moved(process, t, s) + noise_s * guess.noise(process, z, t)


def ancestral(process: ForwardProcess, z: Tensor, guess: Guess, t: int, s: int, n: Tensor) -> Tensor:
    """DDPM: sigma^2 = (1 - abar_t / abar_s) (1 - abar_s) / (1 - abar_t), n standard normal.

    Source: Ho et al. 2020 for constant curves.
    """
    (signal, noise), (signal_s, noise_s) = process.level(t, z), process.level(s, z)
    variance = (1 - (signal / signal_s) ** 2) * (noise_s / noise) ** 2
    direction = (noise_s**2 - variance).sqrt() * guess.noise(process, z, t)
    return signal_s * guess.moved(process, t, s) + direction + variance.sqrt() * n


def renoise(process: ForwardProcess, z: Tensor, guess: Guess, t: int, s: int, n: Tensor) -> Tensor:
    """Back up the chain from z_s to z_t: the forward transition of theory 2 over all steps from s to t, n standard normal.

    z_t = sqrt(abar_t / abar_s) z_s + sqrt(abar_t) (m_t - m_s) + sqrt(1 - abar_t / abar_s) n, the codes as guessed.

    Source: Lugmayr et al. 2022 (there called resampling) for constant curves.
    """
    signal, signal_s = process.level(t, z)[0], process.level(s, z)[0]
    up = process.increment(guess.codes, s, t) if guess.codes else 0.0
    return signal / signal_s * z + signal * up + (1 - (signal / signal_s) ** 2).sqrt() * n


def heun(process: ForwardProcess, z: Tensor, guess: Guess, t: int, s: int, at_end: Guess) -> Tensor:
    """Order 2: `ddim` by the mean of the estimates at both ends of the step.

    Heun's method as it is usually written takes the mean of the slopes of z / sqrt(abar) over noise / signal: of the same
    order, but where a step begins at almost no signal that mean is all noise.

    Args:
        process: the forward process.
        z: (B, *Z) z_t.
        guess: the estimates at z_t.
        t: the step that is left.
        s: the step that is entered.
        at_end: the estimates where `ddim` leads to from z.

    Returns:
        z_s (B, *Z).

    Source: Lu et al. 2022, DPM-Solver++(2S) with its second look at the end of the step; moving curves: theory 4.
    """
    return ddim(process, z, guess.towards(process, t, at_end, s, 0.5), t, s)


def extrapolate(process: ForwardProcess, t_prev: int, before: Guess, t: int, now: Guess, s: int) -> Guess:
    """DPM-Solver++(2M) is `ddim` with e + (e - e_prev) / (2 r), r the last step over this one in half log-SNR.

    That is the line through the last two estimates, at the middle of the step; here at most one nat of log-SNR beyond t,
    and in the last step not beyond it at all. The order stays 2: short steps are not limited, and one step of order 1 costs
    an error of order 2.

    Source: Lu et al. 2022; in this form, with moving curves and its limits, theory 4.
    """
    if s == process.first:
        return now
    log_snr = torch.log(process.schedule.abar / (1 - process.schedule.abar))
    ahead = min(float(log_snr[s] - log_snr[t]) / 2, 1.0)
    return now.towards(process, t, before, t_prev, -ahead / float(log_snr[t] - log_snr[t_prev]))
