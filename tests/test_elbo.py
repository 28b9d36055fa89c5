"""mt.elbo against closed forms: the linear-Gaussian bound, the evidence of a mixture, a Gaussian KL."""

import math

import pytest
import torch
from helpers import Real, generator, image_label_batch, image_label_model, mixture

import mtdiff as mt
from mtdiff.elbo import _step_chances
from mtdiff.exact import linear_gaussian_gap
from mtdiff.laws import Gaussian


class FullGaussian(Gaussian):
    """N(mean, covariance): here `variance` is a matrix."""

    def log_prob(self, value):
        return torch.distributions.MultivariateNormal(self.mean, self.variance).log_prob(value)


class LinearGaussian(mt.Denoiser):
    """The exact model of X ~ N(0, C) with linear encoders, behind the interface of every model."""

    def __init__(self, covariance, encoders, process):
        self.c, self.encoders, self.process = covariance, encoders, process
        self.modalities = {name: Real() for name in encoders}
        self.sizes = [a.shape[1] for a in encoders.values()]

    def encode(self, values):
        return {name: value @ self.encoders[name].T for name, value in values.items()}

    def _posterior(self, t, present):
        """Gain (n, d) and covariance (n, n) of X | z_t at one step; what is present is the same for all examples."""
        on = {name: present is None or name in present for name in self.encoders}
        b = torch.cat([self.process.cumulative(n)[t] * on[n] * a for n, a in self.encoders.items()], 1)
        abar = self.process.schedule.abar[t]
        s = abar * b @ self.c @ b.T + (1 - abar) * torch.eye(len(b), dtype=torch.float64)
        gain = abar.sqrt() * self.c @ b.T @ torch.linalg.inv(s)
        return gain, self.c - gain @ (abar.sqrt() * b @ self.c), b

    def predict(self, z, t, *, given=None, present=None):
        t = torch.as_tensor(t).expand(len(z))
        x, aggregate = torch.zeros(len(z), len(self.c), dtype=torch.float64), torch.zeros_like(z)
        left = torch.zeros(len(z), *self.c.shape, dtype=torch.float64)
        for step in t.unique().tolist():
            gain, covariance, b = self._posterior(step, present)
            rows = t == step
            x[rows], left[rows] = z[rows] @ gain.T, covariance
            aggregate[rows] = x[rows] @ b.T
        parts = dict(zip(self.encoders, x.split(self.sizes, 1), strict=True))
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        law = {
            name: FullGaussian(parts[name], left[:, end - size : end, end - size : end])
            for name, size, end in zip(self.encoders, self.sizes, ends, strict=True)
        }
        return mt.Prediction(aggregate, law, self.encode(parts))


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


@pytest.mark.parametrize("importance", [True, False])
@pytest.mark.parametrize("T", [1, 3])
def test_with_a_few_long_steps_too(T, importance):
    """Neighbouring steps differ as much as they can: an index that is off by one shows; n = 20000."""
    c, encoders, process, batch = gaussian(mt.fade_in(1.2), mt.NoiseSchedule.log_snr(T, 3, -3))
    exact = linear_gaussian_gap(c, encoders, process, "isotropic")
    b = mt.elbo(LinearGaussian(c, encoders, process), batch, importance=importance, generator=generator(8))
    assert b.stderr < 0.01 * abs(exact.bound)
    assert abs(b.total - exact.bound) < 4 * b.stderr


@pytest.mark.parametrize("curve", [0.7, mt.fade_in(1.2)], ids=["constant", "fade in"])
def test_one_modality_alone_is_its_own_problem(curve):
    """present={"b"}: the bound of X_b ~ N(0, C_bb) in a process that has no other modality."""
    c, encoders, process, batch = gaussian(curve, mt.NoiseSchedule.log_snr(3, 3, -3))
    alone = mt.ForwardProcess(process.schedule, {"b": curve})
    exact = linear_gaussian_gap(c[2:, 2:], {"b": encoders["b"]}, alone, "isotropic")
    b = mt.elbo(LinearGaussian(c, encoders, process), {"b": batch["b"]}, present={"b"}, generator=generator(9))
    assert b.present == {"b"}
    assert abs(b.total - exact.bound) < 4 * b.stderr


class Oracle(LinearGaussian):
    """Knows the batch: its aggregate is the true one, and a value's log-probability is the value."""

    def __init__(self, codes, *arguments):
        super().__init__(*arguments)
        self.codes = codes

    def predict(self, z, t, *, given=None, present=None):
        return mt.Prediction(self.process.aggregate(self.codes, t), {"a": First(z, z), "b": First(z, z)}, self.codes)


class First(Gaussian):
    """A law by which a value's log-probability is its first number."""

    def log_prob(self, value):
        return value[:, 0]


def test_an_oracle_pays_the_prior_alone_and_has_the_error_of_a_mean():
    """No diffusion term, so nothing is random: the total is the mean of 7 known numbers, its error their std / sqrt(7)."""
    c, encoders, process, batch = gaussian(mt.fade_in(1.2))
    few = {name: value[:7] for name, value in batch.items()}
    codes = LinearGaussian(c, encoders, process).encode(few)
    mean, std = process.marginal(codes, process.steps)
    end = torch.distributions.Normal(mean, std.expand_as(mean))
    prior = torch.distributions.kl_divergence(end, torch.distributions.Normal(0.0, 1.0)).sum(1)
    totals = few["a"][:, 0] + few["b"][:, 0] - prior
    b = mt.elbo(Oracle(codes, c, encoders, process), few, samples=3, generator=generator(10))
    assert b.diffusion == pytest.approx(0, abs=1e-12)
    assert b.total == pytest.approx(float(totals.mean()))
    assert b.stderr == pytest.approx(float(totals.std()) / math.sqrt(7))


def test_one_example_has_no_standard_error_and_two_have():
    model, batch = image_label_model(), image_label_batch(2)
    one = mt.elbo(model, {name: value[:1] for name, value in batch.items()}, generator=generator())
    assert math.isnan(one.stderr)
    assert one.dims == {"image": 16, "label": 1}
    assert mt.elbo(model, batch, generator=generator()).stderr > 0


def test_steps_are_drawn_by_their_cost_for_unit_variance_data():
    """1/2 (SNR_{t-1} - SNR_t) Var(x | z_t) for x ~ N(0, 1), with the Wiener filter's variance, and a tenth of the mean."""
    for schedule in (mt.NoiseSchedule.log_snr(12, 4, -4), mt.NoiseSchedule.cosine(12)):
        process = mt.ForwardProcess(schedule, {"x": 1.0})
        t = torch.arange(process.first + 1, process.steps + 1)
        variance = process.at(t, torch.zeros(len(t), 1, dtype=torch.float64)).variance("x")[:, 0]
        cost = 0.5 * (process.snr("x")[t - 1] - process.snr("x")[t]) * variance
        expected = (cost + 0.1 * cost.mean()) / (1.1 * cost.sum())
        assert torch.allclose(_step_chances(process, importance=True), expected, rtol=1e-12, atol=0)
        uniform = _step_chances(process, importance=False)
        assert torch.equal(uniform, torch.full((len(t),), 1 / len(t), dtype=torch.float64))


def test_importance_is_the_default_and_worth_it():
    """On data of unit variance, for which the costs are right, the same number of draws has a clearly smaller error."""
    eye, schedule = torch.eye(2, dtype=torch.float64), mt.NoiseSchedule.log_snr(100)
    model = LinearGaussian(eye, {"a": eye}, mt.ForwardProcess(schedule, {"a": 1.0}))
    batch = {"a": torch.randn(1000, 2, dtype=torch.float64, generator=generator(11))}
    b, same, uniform = (
        mt.elbo(model, batch, generator=generator(12), **o) for o in ({}, {"samples": 1}, {"importance": False})
    )
    assert b == same
    assert b.stderr < 0.75 * uniform.stderr


def test_a_bound_cannot_be_changed():
    b = mt.elbo(image_label_model(), image_label_batch(2), generator=generator())
    with pytest.raises(AttributeError, match="cannot assign"):
        b.total = 0.0


def test_more_samples_mean_a_smaller_error_and_the_same_answer():
    c, encoders, process, batch = gaussian(0.7)
    few = {name: value[:500] for name, value in batch.items()}
    model = LinearGaussian(c, encoders, process)
    one, many = (mt.elbo(model, few, samples=s, generator=generator(3)) for s in (1, 20))
    assert many.stderr < one.stderr
    assert many.total == pytest.approx(-many.prior - many.diffusion + sum(many.readout.values()))
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
    assert alone.totals.shape == (40,)
    assert float(alone.totals.mean()) == pytest.approx(alone.total)
    assert float(alone.totals.std()) / 40**0.5 == pytest.approx(alone.stderr)
    assert "totals" not in repr(alone)
    joint = mt.elbo(model, batch, generator=generator())
    with pytest.raises(ValueError, match="needs a bound with present="):
        joint.bits_per_dim("image")


def test_a_transition_bounds_the_target_given_its_source():
    """log p(x | y) is known; the end of the chain is known too, so its term is 0, and the source is not read."""
    model = mixture(mt.fade_in(1.0), T=400, x=mt.fade_out(1.0), prior="label")
    batch = model.draw(4000, generator(6))
    spread = model.stds[batch["label"], None]
    evidence = float(torch.distributions.Normal(model.means[batch["label"]], spread).log_prob(batch["x"]).sum(1).mean())
    b = mt.elbo(model, batch, samples=20, generator=generator(7))
    assert b.prior == 0.0
    assert set(b.readout) == {"x"}
    assert b.total < evidence + 4 * b.stderr
    assert b.total > evidence - 0.1 - 4 * b.stderr
    with pytest.raises(ValueError, match="must be in the present set"):
        mt.elbo(model, batch, present={"x"})


def test_the_source_of_a_transition_is_told_at_every_step_and_at_the_read_out():
    model = mixture(mt.fade_in(1.0), x=mt.fade_out(1.0), prior="label")
    batch, told, predict = model.draw(3, generator(6)), [], model.predict

    def spy(*arguments, given=None, **options):
        told.append(given["label"])
        return predict(*arguments, given=given, **options)

    model.predict = spy
    mt.elbo(model, batch, generator=generator())
    assert len(told) == 2
    assert all(label is batch["label"] for label in told)


def test_the_terms_of_a_float32_network_add_up_in_float64():
    b = mt.elbo(image_label_model(), image_label_batch(40), samples=2, generator=generator())
    assert b.total == pytest.approx(-b.prior - b.diffusion + sum(b.readout.values()), rel=1e-13)


def test_it_repeats_by_generator():
    model, batch = image_label_model(), image_label_batch(6)
    a, b, c = (mt.elbo(model, batch, generator=generator(s)) for s in (1, 1, 2))
    assert a == b
    assert a.total != c.total


@pytest.mark.parametrize(
    ("batch", "options", "error", "message"),
    [
        ({"image": torch.zeros(2, 1, 4, 4)}, {}, KeyError, r"batch lacks \['label'\]"),
        (image_label_batch(2), {"samples": 0}, ValueError, "samples must be a whole number from 1 on, got 0"),
        (image_label_batch(2), {"samples": 1.5}, ValueError, "samples must be a whole number from 1 on, got 1.5"),
        (image_label_batch(2), {"present": "image"}, ValueError, "present must be a collection of names, got the string"),
        (image_label_batch(2), {"given": "label"}, ValueError, "given must be a collection of names, got the string"),
        (image_label_batch(2), {"present": ()}, ValueError, "nothing is left to read"),
        ({"sound": torch.zeros(2)}, {}, KeyError, "unknown modality 'sound'"),
    ],
)
def test_what_does_not_fit_is_named(batch, options, error, message):
    with pytest.raises(error, match=message):
        mt.elbo(image_label_model(), batch, **options)


# ---- something given ----


@pytest.mark.parametrize("curve", [mt.constant(1.0), mt.fade_in(0.5)], ids=["constant", "fade in"])
@pytest.mark.parametrize(("given", "read"), [("label", "x"), ("x", "label")])
def test_what_is_given_is_told_and_not_read(curve, given, read):
    """It bounds log p(the other | given) of the mixture from below, within 4 standard errors; n = 4000, T = 400.

    For points it is tight to 0.15 nats.
    """
    model = mixture(curve, T=400, high=9.0, low=-9.0)
    batch = model.draw(4000, generator(4))
    every = torch.distributions.Normal(model.means, model.stds[:, None].expand_as(model.means))
    log_joint = every.log_prob(batch["x"][:, None]).sum(2) + model.weights.log()  # (B, K)
    picked = log_joint.gather(1, batch["label"][:, None]).squeeze(1)
    log_given = model.weights[batch["label"]].log() if given == "label" else log_joint.logsumexp(1)
    evidence = float((picked - log_given).mean())
    b = mt.elbo(model, batch, samples=8, given=(given,), generator=generator(5))
    assert set(b.readout) == {read}
    assert b.dims == {read: batch[read][0].numel()}
    assert b.total <= evidence + 4 * b.stderr
    if given == "label":
        assert b.total > evidence - 0.15 - 4 * b.stderr
    assert b.prior > 0


def test_given_the_source_a_transition_says_what_it_says_anyway():
    model = mixture(mt.fade_in(1.0), x=mt.fade_out(1.0), prior="label")
    batch = model.draw(50, generator(6))
    a, b = (mt.elbo(model, batch, given=given, generator=generator(1)) for given in ((), ("label",)))
    assert a == b


def test_what_is_given_is_told_at_every_step_and_at_the_read_out(monkeypatch):
    model, batch, seen = image_label_model(), image_label_batch(6), []
    predict = model.predict

    def spy(z, t, *, given=None, present=None):
        seen.append(given)
        return predict(z, t, given=given, present=present)

    monkeypatch.setattr(model, "predict", spy)
    mt.elbo(model, batch, samples=2, given=("label",), generator=generator())
    assert len(seen) == 4
    assert all(list(given) == ["label"] and given["label"] is batch["label"] for given in seen)


def test_the_error_of_what_is_given_is_no_part_of_a_step():
    """A wrong estimate of a told label whose curve moves costs nothing: its code is known."""
    model = mixture(mt.fade_in(1.0), T=50)
    batch, predict = model.draw(200, generator(6)), model.predict
    right = mt.elbo(model, batch, given=("label",), generator=generator(1))

    def wrong(*arguments, **options):
        p = predict(*arguments, **options)
        return mt.Prediction(p.aggregate, p.law, {**p.estimate, "label": p.estimate["label"] + 5})

    model.predict = wrong
    assert mt.elbo(model, batch, given=("label",), generator=generator(1)) == right
    assert mt.elbo(model, batch, generator=generator(1)).diffusion > right.diffusion + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"given": ("label", "image")}, "nothing is left to read: given are"),
        ({"given": ("label",), "present": {"image"}}, r"given names \['label'\], which are not in the present set"),
        ({"given": ("sound",)}, r"given names an unknown modality 'sound'"),
    ],
)
def test_a_given_set_that_does_not_fit_is_named(options, message):
    with pytest.raises((ValueError, KeyError), match=message):
        mt.elbo(image_label_model(), image_label_batch(3), **options)
