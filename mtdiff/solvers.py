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


def heun(process: ForwardProcess, z: Tensor, guess: Guess, t: int, s: int, end: Tensor, at_end: Guess) -> Tensor:
    """Order 2: the mean of both ends' slopes, of the noise direction as well as of the increment of the curves.

    Args:
        process: the forward process.
        z: (B, *Z) z_t.
        guess: the estimates at z_t.
        t: the step that is left.
        s: the step that is entered.
        end: (B, *Z) the `ddim` step from z.
        at_end: the estimates there.

    Returns:
        z_s (B, *Z).

    Source: Karras et al. 2022, algorithm 1, for constant curves.
    """
    (signal, noise), (signal_s, noise_s) = process.level(t, z), process.level(s, z)
    eps = (guess.noise(process, z, t) + at_end.noise(process, end, s)) / 2
    codes = {i: (e + at_end.codes[i]) / 2 for i, e in guess.codes.items()}
    shift = Guess(torch.zeros_like(z), codes).moved(process, t, s)
    return signal_s * (z / signal + (noise_s / signal_s - noise / signal) * eps + shift)


def extrapolate(process: ForwardProcess, t_prev: int, before: Guess, t: int, now: Guess, s: int) -> Guess:
    """DPM-Solver++(2M) is `ddim` with e + (e - e_prev) / (2 r), r the last step over this one in half log-SNR.

    Source: Lu et al. 2022; in this form, with moving curves, theory 4.
    """
    log_snr = torch.log(process.schedule.abar / (1 - process.schedule.abar))
    ahead = float((log_snr[s] - log_snr[t]) / (2 * (log_snr[t] - log_snr[t_prev])))  # 1 / (2 r)

    def rest(guess: Guess, at: int) -> Tensor:  # the part of the aggregate whose curves stand still
        return guess.aggregate - sum(process.weight(i, at, e) * e for i, e in guess.codes.items())

    still, still_before = rest(now, t), rest(before, t_prev)
    codes = {i: e + ahead * (e - before.codes[i]) for i, e in now.codes.items()}
    aggregate = still + ahead * (still - still_before)
    return Guess(aggregate + sum(process.weight(i, t, e) * e for i, e in codes.items()), codes)
