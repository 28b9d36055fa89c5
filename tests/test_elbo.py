"""mt.elbo against closed forms: the linear-Gaussian bound, the evidence of a mixture, a Gaussian KL."""

import math

import pytest
import torch
from helpers import generator, image_label_batch, image_label_model, mixture

import mtdiff as mt
from mtdiff.exact import linear_gaussian_gap


class LinearGaussian:
    """The exact model of X ~ N(0, C) with linear encoders, behind the interface of every model."""

    def __init__(self, covariance, encoders, process):
        self.c, self.encoders, self.process = covariance, encoders, process
        self.modalities, self.device = list(encoders), torch.device("cpu")
        self.sizes = [a.shape[1] for a in encoders.values()]

    def check(self, values, what="batch"):
        return len(next(iter(values.values())))

    def encode(self, values):
        return {name: value @ self.encoders[name].T for name, value in values.items()}

    def _posterior(self, t):
        """Gain (n, d) and covariance (n, n) of X | z_t at one step."""
        b = torch.cat([self.process.cumulative(n)[t] * a for n, a in self.encoders.items()], 1)
        abar = self.process.schedule.abar[t]
        s = abar * b @ self.c @ b.T + (1 - abar) * torch.eye(len(b), dtype=torch.float64)
        gain = abar.sqrt() * self.c @ b.T @ torch.linalg.inv(s)
        return gain, self.c - gain @ (abar.sqrt() * b @ self.c), b

    def predict(self, z, t, *, given=None, present=None):
        t = torch.as_tensor(t).expand(len(z))
        x, aggregate = torch.zeros(len(z), len(self.c), dtype=torch.float64), torch.zeros_like(z)
        for step in t.unique().tolist():
            gain, _, b = self._posterior(step)
            rows = t == step
            x[rows] = z[rows] @ gain.T
            aggregate[rows] = x[rows] @ b.T
        parts = dict(zip(self.encoders, x.split(self.sizes, 1), strict=True))
        return mt.Prediction(aggregate, parts, self.encode(parts))

    def log_prob(self, name, value, z, t, *, given=None, present=None, prediction=None):
        k = self.modalities.index(name)
        rows = slice(sum(self.sizes[:k]), sum(self.sizes[: k + 1]))
        mean = prediction.params[name]
        return torch.distributions.MultivariateNormal(mean, self._posterior(t)[1][rows, rows]).log_prob(value)


def gaussian(curve, schedule=None, seed=0):
    g = generator(seed)
    root = torch.randn(3, 3, dtype=torch.float64, generator=g)
    c = root @ root.T + 0.3 * torch.eye(3, dtype=torch.float64)
    encoders = {
        "a": torch.randn(3, 2, dtype=torch.float64, generator=g),
        "b": torch.randn(3, 1, dtype=torch.float64, generator=g),
    }
    process = mt.ForwardProcess(schedule or mt.NoiseSchedule.log_snr(12, 4, -4), {"a": 1.0, "b": curve})
    n = 20_000
    x = torch.randn(n, 3, dtype=torch.float64, generator=g) @ torch.linalg.cholesky(c).T
    return c, encoders, process, {"a": x[:, :2], "b": x[:, 2:]}


@pytest.mark.parametrize("importance", [True, False])
@pytest.mark.parametrize("curve", [0.7, mt.fade_in(1.2), mt.fade_out(1.0)], ids=["constant", "fade in", "fade out"])
def test_it_is_the_linear_gaussian_bound(curve, importance):
    """Within 4 standard errors, n = 20000; the reverse variance is beta~ I, hence the isotropic bound."""
    c, encoders, process, batch = gaussian(curve)
    exact = linear_gaussian_gap(c, encoders, process, "isotropic")
    b = mt.elbo(LinearGaussian(c, encoders, process), batch, importance=importance, generator=generator(1))
    assert b.stderr < 0.2
    assert abs(b.total - exact.bound) < 4 * b.stderr
    assert b.total == pytest.approx(-b.prior - b.diffusion + sum(b.readout.values()))


def test_in_ddpms_convention_too():
    c, encoders, process, batch = gaussian(mt.fade_in(1.0), mt.NoiseSchedule.cosine(12))
    exact = linear_gaussian_gap(c, encoders, process, "isotropic")
    b = mt.elbo(LinearGaussian(c, encoders, process), batch, generator=generator(2))
    assert abs(b.total - exact.bound) < 4 * b.stderr


def test_more_samples_mean_a_smaller_error_and_the_same_answer():
    c, encoders, process, batch = gaussian(0.7)
    few = {name: value[:500] for name, value in batch.items()}
    model = LinearGaussian(c, encoders, process)
    one, many = (mt.elbo(model, few, samples=s, generator=generator(3)) for s in (1, 20))
    assert many.stderr < one.stderr
    assert abs(one.total - many.total) < 4 * one.stderr


def test_it_never_exceeds_the_evidence_of_a_mixture_and_comes_close():
    """log p(x, y) is known; constant curve, T = 400, n = 4000."""
    model = mixture(mt.constant(1.0), T=400, high=9.0, low=-9.0)
    batch = model.draw(4000, generator(4))
    spread = model.stds[batch["label"], None]
    log_x = torch.distributions.Normal(model.means[batch["label"]], spread).log_prob(batch["x"]).sum(1)
    evidence = float((model.weights[batch["label"]].log() + log_x).mean())
    b = mt.elbo(model, batch, samples=8, generator=generator(5))
    assert b.total < evidence + 4 * b.stderr
    assert b.total > evidence - 0.1 - 4 * b.stderr


def test_the_prior_term_is_a_gaussian_kl():
    model, batch = image_label_model(), image_label_batch(6)
    mean, std = model.process.marginal({n: c.double() for n, c in model.encode(batch).items()}, 50)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std.expand_as(mean)), torch.distributions.Normal(0.0, 1.0)
    )
    b = mt.elbo(model, batch, generator=generator())
    assert b.prior == pytest.approx(float(kl.flatten(1).sum(1).mean()), rel=1e-6)


def test_one_modality_alone_in_bits_per_dimension():
    model, batch = image_label_model(), image_label_batch(40)
    alone = mt.elbo(model, {"image": batch["image"]}, present={"image"}, generator=generator())
    assert set(alone.readout) == {"image"}
    assert alone.bits_per_dim("image") == pytest.approx(-alone.total / (16 * math.log(2)))
    joint = mt.elbo(model, batch, generator=generator())
    with pytest.raises(ValueError, match="needs a bound with present="):
        joint.bits_per_dim("image")


def test_a_transition_bounds_the_target_given_its_source():
    """log p(x | y) is known; the end of the chain is known too, so its term is 0, and the source is not read."""
    model = mixture(mt.fade_in(1.0), T=400, x=mt.fade_out(1.0), prior="label")
    batch = model.draw(4000, generator(6))
    spread = model.stds[batch["label"], None]
    evidence = float(torch.distributions.Normal(model.means[batch["label"]], spread).log_prob(batch["x"]).sum(1).mean())
    b = mt.elbo(model, batch, samples=4, generator=generator(7))
    assert b.prior == 0.0
    assert set(b.readout) == {"x"}
    assert b.total < evidence + 4 * b.stderr
    with pytest.raises(ValueError, match="must be in the present set"):
        mt.elbo(model, batch, present={"x"})


def test_it_repeats_by_generator():
    model, batch = image_label_model(), image_label_batch(6)
    a, b, c = (mt.elbo(model, batch, generator=generator(s)) for s in (1, 1, 2))
    assert a == b
    assert a.total != c.total


@pytest.mark.parametrize(
    ("batch", "options", "error", "message"),
    [
        ({"image": torch.zeros(2, 1, 4, 4)}, {}, KeyError, r"batch lacks \['label'\]"),
        (image_label_batch(2), {"samples": 0}, ValueError, "samples >= 1"),
        (image_label_batch(2), {"present": ()}, ValueError, "a set of modalities"),
        ({"sound": torch.zeros(2)}, {}, KeyError, "unknown modality 'sound'"),
    ],
)
def test_what_does_not_fit_is_named(batch, options, error, message):
    with pytest.raises(error, match=message):
        mt.elbo(image_label_model(), batch, **options)
