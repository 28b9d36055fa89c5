"""Restoration by a plain model: against posteriors that are known, and against each other."""

import collections

import pytest
import torch
from helpers import generator, mixture, randn

import mtdiff as mt
from mtdiff.degradations import Degradation, Matrix, degradation
from mtdiff.exact import LabelledMixture
from mtdiff.exact.posterior import draw_posterior, mixture_posterior
from mtdiff.metrics import energy_distance
from mtdiff.sampling import sample_path
from mtdiff.zero_shot import WAYS, Look, reconciled, restore

A = Matrix([[1.0, 0.5]])
PROBLEM = Degradation(A, offset=0.2, noise=0.3)
PLAIN = {"limits": None, "name": "x"}


def clusters():
    """Three clusters in the plane, whose label is not in the chain."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(200, 8.0, -8.0), {"x": 1.0, "label": 0.0})
    means = [[-1.0, 0.8], [1.0, 0.6], [0.2, -1.2]]
    return LabelledMixture([0.5, 0.3, 0.2], means, [0.25, 0.35, 0.2], [[0.0, 0.0]] * 3, process)


def normal(d=3, T=200):
    """N(0, I)."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(T, 8.0, -8.0), {"x": 1.0, "label": 0.0})
    return LabelledMixture([1.0], [[0.0] * d], [1.0], [[0.0] * d], process)


def test_the_posterior_is_bayes_rule_on_a_grid():
    model, y = clusters(), torch.tensor([0.4], dtype=torch.float64)
    weights, means, covariances = mixture_posterior(model, y, PROBLEM)
    line = torch.linspace(-4, 4, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    normal = torch.distributions.MultivariateNormal
    prior = sum(
        w * normal(m, s**2 * torch.eye(2, dtype=torch.float64)).log_prob(grid).exp()
        for w, m, s in zip(model.weights, model.means, model.stds, strict=True)
    )
    likely = (-0.5 * ((y - PROBLEM.clean(grid)) / PROBLEM.noise).square().sum(1)).exp()
    exact = prior * likely / (prior * likely).sum() / (line[1] - line[0]) ** 2
    found = sum(w * normal(m, c).log_prob(grid).exp() for w, m, c in zip(weights, means, covariances, strict=True))
    assert float((found - exact).abs().max()) < 1e-6 * float(exact.max())


def test_draws_of_the_posterior_have_its_mean_and_covariance():
    model, y, n = clusters(), torch.tensor([0.4], dtype=torch.float64), 20_000
    weights, means, covariances = mixture_posterior(model, y, PROBLEM)
    drawn = draw_posterior(model, y, PROBLEM, n, generator())
    mean = weights @ means
    spread = torch.einsum("k,kij->ij", weights, covariances + (means - mean)[:, :, None] * (means - mean)[:, None])
    assert bool(((drawn.mean(0) - mean).abs() < 4 * (spread.diagonal() / n).sqrt()).all())
    torch.testing.assert_close(torch.cov(drawn.T), spread, rtol=0.05, atol=0.01)


def test_a_posterior_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="known for a Matrix and noise above 0"):
        mixture_posterior(clusters(), torch.zeros(1), Degradation(A))
    with pytest.raises(ValueError, match=r"expected y \(m,\) of a matrix \(m, 2\)"):
        mixture_posterior(clusters(), torch.zeros(2), PROBLEM)


def test_gaussian_guidance_is_exact_for_a_gaussian():
    """Mean and covariance of the posterior of N(0, I), by Kalman's formulas."""
    a, n = randn(2, 3, seed=5), 4000
    problem, y = Degradation(Matrix(a), noise=0.5), torch.tensor([0.7, -1.1], dtype=torch.float64)
    gain = a.T @ torch.linalg.inv(a @ a.T + 0.25 * torch.eye(2))
    drawn = restore(normal(), y.expand(n, 2), problem, "gaussian", steps=200, generator=generator(), **PLAIN)
    covariance = torch.eye(3) - gain @ a
    assert bool(((drawn.mean(0) - gain @ y).abs() < 4 * (covariance.diagonal() / n).sqrt() + 0.01).all())
    assert float((torch.cov(drawn.T) - covariance).abs().max()) < 0.08
    for way in ("dps", "null-space"):  # what is not exact can be told from it
        other = restore(normal(), y.expand(n, 2), problem, way, steps=200, generator=generator(), **PLAIN)
        off = (other.mean(0) - gain @ y).abs().max(), (torch.cov(other.T) - covariance).abs().max()
        assert float(max(off)) > 0.12, way


def test_the_likelihood_way_is_rule_2_towards_the_estimates_likelihood():
    """The sampler's own chain with `towards`, on the same noise: an implementation of its own."""
    model, y = clusters(), torch.tensor([0.4], dtype=torch.float64).expand(6, 1)
    found = restore(model, y, PROBLEM, "likelihood", scale=0.3, steps=20, generator=generator(), **PLAIN)

    def towards(prediction):
        misfit = y - PROBLEM.clean(prediction.estimate["x"])
        return -0.5 * (misfit / PROBLEM.noise).square().sum(1)

    path = sample_path(
        model, 6, sampler="ddpm", present={"x"}, steps=20, towards=towards, guidance=0.3, generator=generator()
    )  # fmt: skip
    t, z, _ = collections.deque(path, maxlen=1).pop()
    torch.testing.assert_close(found, model.predict(z, t, present={"x"}).estimate["x"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_comes_nearer_to_the_posterior_than_the_prior_is(way):
    model, y, n = clusters(), torch.tensor([-0.8], dtype=torch.float64), 600
    true = draw_posterior(model, y, PROBLEM, n, generator(1))
    prior = energy_distance(model.draw(n, generator(2))["x"], true)
    option = {"scale": 0.3} if WAYS[way].option == "scale" else {}
    drawn = restore(model, y.expand(n, 1), PROBLEM, way, steps=50, generator=generator(3), **option, **PLAIN)
    assert energy_distance(drawn, true) < 0.6 * prior


def test_without_noise_what_was_measured_is_met():
    model, problem = clusters(), Degradation(A, offset=0.2)
    y = torch.tensor([[0.3]], dtype=torch.float64).expand(5, 1)
    for way in ("null-space", "plug-in"):
        drawn = restore(model, y, problem, way, steps=10, generator=generator(), **PLAIN)
        torch.testing.assert_close(problem.clean(drawn), y, rtol=0, atol=1e-10)
        assert float(drawn.std(0).max()) > 0.01  # what A does not see is drawn
    with pytest.raises(ValueError, match="'likelihood' needs a measurement with noise"):
        restore(model, y, problem, "likelihood", steps=4, **PLAIN)


def test_the_plug_in_step_is_the_least_of_its_objective():
    model, z = clusters(), randn(4, 2, seed=8)
    at, y = model.process.at(90, z), randn(4, 1, seed=9)
    x = model.predict(z, 90, present={"x"}).estimate["x"]
    look = Look(z, x, at, PROBLEM, y, None, None, None)

    def objective(value):
        far = (value - x).square().sum(1) / (2 * look.level.squeeze(1) ** 2)
        return PROBLEM.residual(y, value).square().sum(1) / (2 * PROBLEM.noise**2) + 0.7 * far

    best = reconciled(look, 0.7).requires_grad_()
    (slope,) = torch.autograd.grad(objective(best).sum(), best)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10)


def test_a_trained_model_restores_digits():
    """The network's weights are left alone, and with them their gradients."""
    model = mt.load("image-label/digits")
    image = mt.datasets.digits("test").values["image"][:12]
    problem = degradation("denoise")
    y = problem(image, generator())
    error = {"y": (y.clamp(-1, 1) - image).square().mean()}
    for way in WAYS:
        drawn = restore(model, y, problem, way, steps=15, generator=generator(1))
        assert drawn.dtype == y.dtype
        assert float(drawn.abs().max()) <= 1
        error[way] = (drawn - image).square().mean()
    assert max(error[way] for way in WAYS) < 0.8 * error["y"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_does_not_fit_is_named():
    model, y = clusters(), torch.zeros(2, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"way must be one of \('dps', 'likelihood'"):
        restore(model, y, PROBLEM, "guess", **PLAIN)
    with pytest.raises(ValueError, match=r"way 'dps' has no option \['weight'\]; it has \['scale'\]"):
        restore(model, y, PROBLEM, "dps", weight=1.0, **PLAIN)
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        restore(model, y, PROBLEM, "dps", scale=0.0, **PLAIN)
    with pytest.raises(ValueError, match=r"the degraded picture must be floating point \(B, 1\)"):
        restore(model, torch.zeros(2, 2), PROBLEM, **PLAIN)
    with pytest.raises(ValueError, match="carries 'x' with weight 1"):
        restore(mixture(1.0, x=mt.fade_out(1.0)), y, PROBLEM, **PLAIN)
    with pytest.raises(ValueError, match="carries 'image' with weight 1"):
        restore(model, y, PROBLEM)
    told = mt.load("image-transition/shapes16")
    with pytest.raises(ValueError, match="restoring needs a chain that ends at noise"):
        restore(told, torch.zeros(2, 3, 16, 16), degradation("denoise"), name="target")
