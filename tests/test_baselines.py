"""SDEdit and RePaint, where the answer is known in closed form."""

import itertools
import math

import pytest
import torch
from helpers import Real, generator

import mtdiff as mt
from mtdiff.baselines import repaint, sdedit
from mtdiff.baselines.images import heat
from mtdiff.exact import LabelledMixture
from mtdiff.laws import Gaussian


class GaussianImage(mt.Denoiser):
    """The exact model of an image x ~ N(mean, covariance) of 1x1x2 pixels, alone in its chain."""

    sampler, modalities, space = "ddpm", {"image": Real()}, (1, 1, 2)
    mean = torch.tensor([0.3, -0.4], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.35], [0.35, 0.4]], dtype=torch.float64)

    def __init__(self, T=200):
        self.process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(T, 7, -7), {"image": 1.0})

    def encode(self, values):
        return dict(values)

    def predict(self, z, t, *, given=None, present=None):
        signal, noise = (float(a.flatten()[0]) for a in self.process.at(t, z).level)
        gain = signal * self.covariance @ torch.linalg.inv(signal**2 * self.covariance + noise**2 * torch.eye(2))
        m = (self.mean + (z.reshape(-1, 2) - signal * self.mean) @ gain.T).reshape(z.shape)
        return mt.Prediction(m, {"image": Gaussian(m, torch.ones_like(m))}, {"image": m})

    def draw(self, n, seed=0):
        root = torch.linalg.cholesky(self.covariance)
        return (self.mean + torch.randn(n, 2, dtype=torch.float64, generator=generator(seed)) @ root.T).reshape(n, 1, 1, 2)


KNOWN_FIRST = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
N = 2000


def fill(repeats, known, steps=50):
    model = GaussianImage()
    image = torch.tensor([known, math.nan], dtype=torch.float64).expand(N, 1, 1, 2)
    return repaint(model, image, KNOWN_FIRST.expand(N, 1, 1, 2), steps=steps, repeats=repeats, generator=generator(3))


def test_repaint_with_many_repeats_has_the_conditional_law():
    """2,000 fillings, 200 steps of 8 repeats: mean and variance of the hidden pixel given the other; seed 3.

    The mean within 4 standard errors and what the steps leave (0.01); the variance within 4 and 4%.
    """
    drawn, (a, b) = fill(8, 1.2, 200)[:, 0, 0, 1], GaussianImage.covariance
    mean = GaussianImage.mean[1] + b[0] / a[0] * (1.2 - GaussianImage.mean[0])
    variance = b[1] - b[0] ** 2 / a[0]
    assert abs(float(drawn.mean() - mean)) < 4 * math.sqrt(variance / N) + 0.01
    assert float(drawn.var() / variance) == pytest.approx(1, abs=4 * math.sqrt(2 / N) + 0.04)


def test_repeats_bring_the_hidden_pixel_closer():
    mean = GaussianImage.mean[1] + 0.7 * (1.2 - GaussianImage.mean[0])
    off = [abs(float(fill(repeats, 1.2)[:, 0, 0, 1].mean() - mean)) for repeats in (1, 2, 8)]
    assert off[0] > off[1] > off[2]
    assert off[0] > 0.05


def test_repaint_returns_known_pixels_as_given_and_does_not_look_at_others():
    model = GaussianImage()
    image, mask = (
        model.draw(5),
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]).reshape(5, 1, 1, 2),
    )
    out = repaint(model, image, mask, steps=5, generator=generator())
    assert torch.equal(out[mask.bool()], image[mask.bool()])
    assert bool((out[~mask.bool()] != image[~mask.bool()]).all())
    hidden = torch.where(mask.bool(), image, math.nan)
    assert torch.equal(repaint(model, hidden, mask, steps=5, generator=generator()), out)


def test_repaint_of_nothing_known_is_a_plain_sample():
    model, nothing = GaussianImage(), torch.zeros(N, 1, 1, 2)
    drawn = repaint(model, nothing, nothing, steps=200, repeats=1, generator=generator(1)).reshape(N, 2)
    error = (model.covariance.diag() / N).sqrt()
    assert bool(((drawn.mean(0) - model.mean).abs() < 4 * error + 0.01).all())
    assert torch.allclose(drawn.T.cov(), model.covariance, atol=0.08)


def repeated_covariance(model, steps, repeats):
    """Covariance of ancestral samples with repeated steps, pushed through by hand: every step is linear."""
    P, eye = torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    abar, times = model.process.schedule.abar, torch.linspace(200, 0, steps + 1).round().long().tolist()

    def gain(t):
        return abar[t].sqrt() * model.covariance @ torch.linalg.inv(abar[t] * model.covariance + (1 - abar[t]) * eye)

    for t, s in itertools.pairwise(times):
        fresh = (1 - abar[t] / abar[s]) * (1 - abar[s]) / (1 - abar[t])
        keep = ((1 - abar[s] - fresh) / (1 - abar[t])).sqrt()
        M = (abar[s].sqrt() - keep * abar[t].sqrt()) * gain(t) + keep * eye
        for again in range(repeats):
            P = M @ P @ M.T + fresh * eye
            if again < repeats - 1:
                P = abar[t] / abar[s] * P + (1 - abar[t] / abar[s]) * eye
    return gain(0) @ P @ gain(0).T


@pytest.mark.parametrize(("steps", "repeats"), [(6, 1), (6, 3), (100, 3)])
def test_repeated_steps_have_the_law_of_their_linear_maps(steps, repeats):
    """5,000 samples, each entry of the covariance within 4 standard errors; with short steps it is close to the data's."""
    model, n = GaussianImage(), 5000
    expected = repeated_covariance(model, steps, repeats)
    drawn = mt.sample(model, n, sampler="ddpm", steps=steps, repeats=repeats, generator=generator(1))["image"].reshape(n, 2)
    error = ((expected**2 + expected.diag()[:, None] * expected.diag()) / n).sqrt()
    assert bool(((drawn.T.cov() - expected).abs() < 4 * error).all())
    narrow = float(expected.det() / model.covariance.det())
    assert narrow > 0.85 if steps == 100 else narrow < 0.5


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_sdedit_of_the_models_own_images_keeps_their_law(sampler):
    """The guide noised is q(z_t), so the law comes back whatever the strength; 2,000 images, 4 standard errors + 0.01."""
    model = GaussianImage()
    guide = model.draw(N)
    for strength in (0.3, 0.6, 1.0):
        out = sdedit(model, guide, strength, sampler=sampler, steps=200, generator=generator(2)).reshape(N, 2)
        assert bool(((out.mean(0) - model.mean).abs() < 4 * (model.covariance.diag() / N).sqrt() + 0.01).all())
        assert torch.allclose(out.T.cov(), model.covariance, atol=0.08)


def test_strength_is_how_much_of_the_guide_is_forgotten():
    model = GaussianImage()
    guide = model.draw(N)
    apart = [
        float((sdedit(model, guide, strength, generator=generator(2)) - guide).square().mean())
        for strength in (0.005, 0.3, 0.5, 1.0)
    ]
    assert apart == sorted(apart)
    assert apart[0] < 2e-3  # the noise of the first step
    assert apart[-1] == pytest.approx(2 * 0.45, rel=0.1)  # independent: twice the mean variance


def test_sdedit_carries_the_image_and_what_is_given():
    """With a mixture's points as images: a class that is given decides where a guide of another class ends."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(100), {"x": 1.0, "label": mt.fade_in(0.5)})
    codes = [[1.0, 0.0], [-1.0, 0.0]]
    model = LabelledMixture([0.5, 0.5], [[2.0, 0.0], [-2.0, 0.0]], [0.3, 0.3], codes, process)
    guide = torch.tensor([[2.0, 0.0]]).expand(500, 2)
    given = {"label": torch.ones(500, dtype=torch.long)}
    out = sdedit(model, guide, 0.95, name="x", given=given, rule="conditioned", generator=generator())
    alone = sdedit(model, guide, 0.3, name="x", generator=generator())
    assert float((out[:, 0] < 0).double().mean()) > 0.99
    assert float((alone[:, 0] > 0).double().mean()) > 0.99


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.1])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ValueError, match=r"strength must be in \(0, 1\]"):
        sdedit(GaussianImage(), GaussianImage().draw(2), strength)


@pytest.mark.parametrize(
    ("mask", "options", "message"),
    [
        (KNOWN_FIRST, {"repeats": 0}, "repeats must be a whole number from 1 on, got 0"),
        (KNOWN_FIRST, {"steps": 0}, r"steps must be in 1\.\.200 from t = 200, got 0"),
        (KNOWN_FIRST, {"steps": 201}, r"steps must be in 1\.\.200"),
        (KNOWN_FIRST[0], {}, r"mask must have shape \(1, 1, 1, 2\), got \(1, 1, 2\)"),
        (KNOWN_FIRST[..., :1], {}, "mask must have shape"),
    ],
)
def test_repaint_names_what_is_wrong(mask, options, message):
    with pytest.raises(ValueError, match=message):
        repaint(GaussianImage(), GaussianImage().draw(1), mask, **options)


def test_heat_fills_a_hole_by_the_solution_of_laplaces_equation():
    """A plane is harmonic: it is had back from its border; and what is hidden is not looked at."""
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    plane = ((row + 2 * column) / 12 - 0.8).expand(2, 3, 8, 8)
    mask = torch.ones(2, 1, 8, 8)
    mask[:, :, 2:6, 2:6] = 0
    assert torch.allclose(heat(plane * mask, mask), plane, atol=1e-4)
    assert torch.equal(heat(plane, mask), heat(torch.where(mask.bool(), plane, 1.0), mask))
