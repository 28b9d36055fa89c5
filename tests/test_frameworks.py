"""DDPM, Langevin dynamics and the reverse SDE on one model; the likelihood of the probability-flow ODE."""

import math

import pytest
import torch
from helpers import generator, mixture, randn
from test_zero_shot import clusters, normal

import mtdiff as mt
from mtdiff.exact.mixture import LabelledMixture, Mixture
from mtdiff.frameworks import flow_log_prob, langevin, predictor_corrector, reverse_sde, score, to_ve, to_vp
from mtdiff.metrics import energy_distance
from mtdiff.solvers import ddpm


def law(model, n, t=None):
    """Law of z_t of a mixture as `Mixture`; without t that of the data."""
    signal, noise = (
        (1.0, 0.0)
        if t is None
        else (float(a[0, 0]) for a in model.process.at(t, torch.zeros(1, 2, dtype=torch.float64)).level)
    )
    rows = (model.weights.log(), signal * model.means, (signal * model.stds) ** 2 + noise**2)
    return Mixture(*(row[None].expand(n, *row.shape) for row in rows))


def test_units_of_both_kinds_go_to_and_fro():
    model, z = clusters(), randn(5, 2)
    y, sigma = to_ve(model.process, z, 70)
    back, abar = to_vp(y, sigma)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(abar, model.process.schedule.abar[70].expand_as(abar))


def test_a_ve_state_is_data_and_noise_of_its_sigma():
    model, x, eps = clusters(), randn(5, 2), randn(5, 2, seed=1)
    z, _ = model.process.diffuse({"x": x}, 120, eps, {"x"})
    y, sigma = to_ve(model.process, z, 120)
    torch.testing.assert_close(y, x + sigma * eps)


@pytest.mark.parametrize("t", [1, 60, 150, 200])
def test_the_score_is_the_gradient_of_the_log_density(t):
    model, z = clusters(), randn(7, 2).requires_grad_()
    (expected,) = torch.autograd.grad(law(model, 7, t).log_prob(z).sum(), z)
    found = score(model.process, z.detach(), model.predict(z.detach(), t, present={"x"}).aggregate, t)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


class Seen:
    """What a step sees."""

    def __init__(self, model):
        self.model, self.process, self.previous = model, model.process, None

    def __call__(self, z, t):
        return self.model.predict(z, t, present={"x"})


def test_the_reverse_sde_is_the_ancestral_step_to_first_order():
    """Halving the time that passes divides the difference of means by four, and the noise's by about as much."""
    model, z, off = clusters(), randn(9, 2), []
    look = Seen(model)
    look.__class__.__call__ = lambda self, z, t: type("G", (), {
        "aggregate": self.model.predict(z, t, present={"x"}).aggregate,
        "moved": lambda s, process, t, s_: s.aggregate,
    })()  # fmt: skip
    for gap in (8, 4, 2):
        means = [step(look, z, 100, 100 - gap, lambda: torch.zeros_like(z)) for step in (ddpm, reverse_sde)]
        off.append(float((means[0] - means[1]).abs().max()))
    assert 3.2 < off[0] / off[1] < 5
    assert 3.2 < off[1] / off[2] < 5


@pytest.mark.parametrize(
    ("step", "steps"),
    [("ddpm", 100), (reverse_sde, 200), (langevin(4, 0.4), 100), (predictor_corrector(), 50)],
    ids=["ddpm", "reverse SDE", "Langevin", "predictor-corrector"],
)
def test_every_framework_draws_the_mixture(step, steps):
    model, n = clusters(), 2000
    drawn = mt.sample(model, n, sampler=step, steps=steps, present={"x"}, generator=generator(1))["x"]
    data = [model.draw(n, generator(seed))["x"] for seed in range(2, 8)]
    floor = [energy_distance(a, data[0]) for a in data[1:]]
    spread = torch.tensor(floor).std()
    assert abs(energy_distance(drawn, data[0])) < max(floor) + 4 * float(spread) + 0.002


def test_langevin_without_corrections_would_be_too_wide_and_one_step_has_its_closed_form():
    """Of a Gaussian state N(0, v) at a level whose law is N(0, 1): v (1 - e)^2 + 2 e with e = 2 ratio^2 noise^2."""
    model, n, ratio = normal(1), 200_000, 0.3
    z = 2.0 * torch.randn(n, 1, dtype=torch.float64, generator=generator())
    t, s = 100, 96
    look, g = Seen(model), generator(1)
    found = langevin(1, ratio)(look, z, t, s, lambda: torch.randn(n, 1, dtype=torch.float64, generator=g))
    a, b = (model.process.at(k, z) for k in (t, s))
    v = 4.0 * float((b.signal / a.signal)[0, 0]) ** 2
    e = 2 * (ratio * float(b.noise[0, 0])) ** 2
    expected = v * (1 - e) ** 2 + 2 * e
    assert abs(float(found.var()) / expected - 1) < 4 * math.sqrt(2 / n)


def wide(T=500, end=13.0):
    """The clusters on a schedule that leaves nothing at either end."""
    plain = clusters()
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(T, end, -end), {"x": 1.0, "label": 0.0})
    return LabelledMixture(plain.weights, plain.means, plain.stds, plain.codes, process)


def test_the_flows_likelihood_is_the_mixtures_density_at_every_point():
    model = wide()
    x = model.draw(40, generator())["x"]
    found, exact = flow_log_prob(model, x), law(model, 40).log_prob(x)
    assert float((found - exact).abs().max()) < 0.01
    coarse = flow_log_prob(model, x, stride=20)
    assert float((coarse - exact).abs().max()) > 0.01  # a test of the integration, too


def test_the_flows_likelihood_of_a_gaussian_is_its_own():
    model, x = normal(3, T=600), randn(6, 3)
    expected = -0.5 * (x.square().sum(1) + 3 * math.log(2 * math.pi))
    torch.testing.assert_close(flow_log_prob(model, x), expected, rtol=0, atol=2e-3)


def test_the_bound_is_below_the_flows_likelihood():
    model = wide(T=100)
    x = model.draw(100, generator())["x"]
    bound = mt.elbo(model, {"x": x, "label": torch.zeros(100, dtype=torch.long)}, 20, present={"x"}, generator=generator())
    assert bound.total + 4 * bound.stderr < float(flow_log_prob(model, x).mean()) + 4 * bound.stderr
    assert bound.total < float(flow_log_prob(model, x).mean())


def test_what_does_not_fit_is_named():
    moving = mixture(mt.fade_in(1.0))
    for step in (reverse_sde, langevin(), predictor_corrector()):
        with pytest.raises(ValueError, match=r"for constant curves, but \['label'\] moves"):
            mt.sample(moving, 2, sampler=step, steps=2)
    with pytest.raises(ValueError, match="carries 'x' with weight 1"):
        flow_log_prob(mixture(1.0, x=mt.fade_out(1.0)), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="stride must be"):
        flow_log_prob(clusters(), torch.zeros(2, 2), stride=0)
    for make in (langevin, predictor_corrector):
        with pytest.raises(ValueError, match=r"ratio must be in \(0, 0.7\], got 2"):
            make(ratio=2.0)
        with pytest.raises(ValueError, match="corrections must be"):
            make(corrections=0)
