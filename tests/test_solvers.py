"""One step of each solver against the integral that it stands for, on states and estimates of any value."""

import math

import pytest
import torch
from helpers import generator
from hypothesis import given, settings
from hypothesis import strategies as st

import mtdiff as mt
from mtdiff.solvers import Guess, ddim, ddpm, dpm, frozen, heun

SHAPE = (3, 2)


class Step:
    """A process with random curves ("still" stands still, "up" and "bent" move) and three falling steps r > t > s."""

    def __init__(self, seed: int):
        self.g = generator(seed)
        T = 6
        falls = 0.2 + torch.rand(T, dtype=torch.float64, generator=self.g)
        abar = torch.sigmoid(2.5 - torch.cat([torch.zeros(1), falls.cumsum(0)]))
        curves = {"still": 0.8, "up": mt.fade_in(1.2, 0.3), "bent": 0.5 + torch.rand(T + 1, generator=self.g)}
        self.process = mt.ForwardProcess(mt.NoiseSchedule(abar), curves)
        self.s, self.t, self.r = torch.randperm(T + 1, generator=self.g)[:3].sort().values.tolist()

    def randn(self) -> torch.Tensor:
        return torch.randn(SHAPE, dtype=torch.float64, generator=self.g)

    def curve(self, name: str, t: int) -> float:
        return float(self.process.cumulative(name)[t])

    def guess(self, codes: dict[str, torch.Tensor], still: torch.Tensor, t: int) -> Guess:
        """The estimates whose aggregate is `still` and the codes under their weights at t."""
        return Guess(still + sum(self.curve(i, t) * e for i, e in codes.items()), codes)

    def levels(self, t: int) -> tuple[float, float]:
        """Signal and noise at t."""
        abar = float(self.process.schedule.abar[t])
        return abar**0.5, (1 - abar) ** 0.5

    def log_snr(self, t: int) -> float:
        signal, noise = self.levels(t)
        return math.log(signal / noise)


class Look:
    """A model that says what a test wants: {step: guess}, whatever the state."""

    def __init__(self, process, says, previous=None):
        self.process, self.says, self.previous = process, says, previous

    def __call__(self, z, t):
        return self.says[t]


def close(a, b):
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


seeds = given(seed=st.integers(0, 10**6))


@seeds
def test_ddim_keeps_the_noise_and_moves_the_aggregate(seed):
    """From sqrt(abar_t) m_t + sqrt(1 - abar_t) eps to the same eps and the same codes at s."""
    step = Step(seed)
    codes, still, eps = {"up": step.randn(), "bent": step.randn()}, step.randn(), step.randn()
    (signal, noise), (signal_s, noise_s) = step.levels(step.t), step.levels(step.s)
    here, there = step.guess(codes, still, step.t), step.guess(codes, still, step.s)
    z = signal * here.aggregate + noise * eps
    assert close(here.noise(step.process, z, step.t), eps)
    assert close(here.moved(step.process, step.t, step.s), there.aggregate)
    expected = signal_s * there.aggregate + noise_s * eps
    assert close(frozen(step.process, z, here, step.t, step.s), expected)
    assert close(ddim(Look(step.process, {step.t: here}), z, step.t, step.s, None), expected)


@seeds
def test_an_ancestral_step_is_the_posterior_of_the_process_that_has_these_two_steps_alone(seed):
    """q(z_s | z_t, X = estimates) + its standard deviation times n, also where steps are left out."""
    step = Step(seed)
    s, t = step.s, step.t
    codes, still, z, n = {"up": step.randn(), "bent": step.randn()}, step.randn(), step.randn(), step.randn()
    short = mt.NoiseSchedule(step.process.schedule.abar[[s, t]])
    curves = {name: step.process.cumulative(name)[[s, t]] for name in codes}
    mean, std = mt.ForwardProcess(short, {"still": 1.0, **curves}).posterior(z, {"still": still, **codes}, 1)
    look = Look(step.process, {t: step.guess(codes, still, t)})
    assert close(ddpm(look, z, t, s, lambda: n), mean + std * n)


@seeds
def test_heun_is_exact_where_estimates_stand_still_at_the_mean_of_both_ends(seed):
    """y = z / sqrt(abar): y_s / r_s - y_t / r_t = integral of e_i d(W^i / r), r = noise / signal; half of each end's e_i."""
    step = Step(seed)
    s, t = step.s, step.t
    z, still, still_s = step.randn(), step.randn(), step.randn()
    codes, codes_s = ({"up": step.randn(), "bent": step.randn()} for _ in range(2))
    (signal, noise), (signal_s, noise_s) = step.levels(t), step.levels(s)
    moved = (still + still_s) / 2 * (signal_s / noise_s - signal / noise)
    for i in codes:
        up, up_s = step.curve(i, t) * signal / noise, step.curve(i, s) * signal_s / noise_s
        moved = moved + (codes[i] + codes_s[i]) / 2 * (up_s - up)
    here, there = step.guess(codes, still, t), step.guess(codes_s, still_s, s)
    assert close(heun(Look(step.process, {t: here, s: there}), z, t, s, None), noise_s * (z / noise + moved))


@seeds
def test_heun_forgets_no_signal_where_there_is_almost_none(seed):
    """A step that begins at noise / signal = 20,000 lands within the estimates and the noise that it keeps."""
    g = generator(seed)
    process = mt.ForwardProcess(mt.NoiseSchedule(torch.tensor([0.9, 2.5e-9])), {"x": 1.0})
    z, m, m_s = (torch.randn(SHAPE, dtype=torch.float64, generator=g) for _ in range(3))
    look = Look(process, {1: Guess(m, {}), 0: Guess(m_s, {})})
    off = heun(look, z, 1, 0, None) - (0.9**0.5 * (m + m_s) / 2 + 0.1**0.5 * z)
    assert float(off.abs().max()) < 1e-3


def beyond(step: Step) -> float:
    """Where DPM-Solver++ evaluates its line: half of the step, but half a nat of half log-SNR at most, beyond t."""
    return 0.0 if step.s == 0 else min((step.log_snr(step.s) - step.log_snr(step.t)) / 2, 0.5)


@seeds
def test_dpm_extrapolates_to_the_middle_of_the_step(seed):
    """Codes and the rest of the aggregate that are linear in log-SNR, between t and s; `r` came before t."""
    step = Step(seed)
    lines = {name: (step.randn(), step.randn()) for name in ("up", "bent", "rest")}

    def at(log_snr, weights_at):
        line = {i: c + d * log_snr for i, (c, d) in lines.items()}
        return step.guess({i: line[i] for i in ("up", "bent")}, line["rest"], weights_at)

    before, now = at(step.log_snr(step.r), step.r), at(step.log_snr(step.t), step.t)
    middle = at(step.log_snr(step.t) + beyond(step), step.t)
    z, look = step.randn(), Look(step.process, {step.t: now}, (step.r, before))
    assert close(dpm(look, z, step.t, step.s, None), frozen(step.process, z, middle, step.t, step.s))
    look.previous = None
    assert close(dpm(look, z, step.t, step.s, None), frozen(step.process, z, now, step.t, step.s))


@settings(max_examples=10)
@seeds
def test_with_constant_curves_dpm_is_the_published_update(seed):
    """z_s = sigma_s / sigma_t z - alpha_s (e^{-h} - 1) D, D = (1 + 1 / 2r) x_t - 1 / 2r x_before (Lu et al. 2022)."""
    step = Step(seed)
    process = mt.ForwardProcess(step.process.schedule, {"x": 1.0})
    z, x, x_before = step.randn(), step.randn(), step.randn()
    h, h_before = step.log_snr(step.s) - step.log_snr(step.t), step.log_snr(step.t) - step.log_snr(step.r)
    (_, noise), (signal_s, noise_s) = step.levels(step.t), step.levels(step.s)
    share = beyond(step) / h_before  # 1 / 2r, r = h_before / h, in a short step that is not the last
    published = noise_s / noise * z - signal_s * math.expm1(-h) * ((1 + share) * x - share * x_before)
    look = Look(process, {step.t: Guess(x, {})}, (step.r, Guess(x_before, {})))
    assert close(dpm(look, z, step.t, step.s, None), published)


def test_a_guess_takes_what_moves():
    step = Step(0)
    codes = {name: step.randn() for name in step.process.names}
    prediction = mt.Prediction(step.randn(), {}, codes)
    guess = Guess.of(step.process, prediction)
    assert torch.equal(guess.aggregate, prediction.aggregate)
    assert set(guess.codes) == {"up", "bent"}
    with pytest.raises(AttributeError, match="cannot assign"):
        guess.aggregate = step.randn()


@seeds
def test_going_back_up_is_the_forward_transition(seed):
    """From q(z_s | X) to q(z_t | X) with the true codes: its mean, and noise that adds up to 1 - abar_t."""
    step = Step(seed)
    codes, still, eps, n = {"up": step.randn(), "bent": step.randn()}, step.randn(), step.randn(), step.randn()
    s, t = step.s, step.t
    (signal, noise), (signal_s, noise_s) = step.levels(t), step.levels(s)
    z_s = signal_s * step.guess(codes, still, s).aggregate + noise_s * eps
    guess = step.guess(codes, still, t)
    old, new = signal / signal_s * noise_s, (1 - (signal / signal_s) ** 2) ** 0.5
    mean, std = step.process.ahead(z_s, guess.moved(step.process, t, s), guess.aggregate, s, t)
    assert close(mean + std * n, signal * guess.aggregate + old * eps + new * n)
    assert old**2 + new**2 == pytest.approx(noise**2)
