import math

import pytest
import torch
from helpers import generator, mixture, randn, standard_error
from hypothesis import given
from hypothesis import strategies as st

import mtdiff as mt
from mtdiff.datasets import MIXTURE

CURVES = {
    "constant": (1.0, mt.constant(1.0)),
    "fade-in": (1.0, mt.fade_in(0.5)),
    "transition": (mt.fade_out(1.0), mt.fade_in(1.0)),
}
LINE = {"weights": (0.5, 0.3, 0.2), "means": ((1.5,), (-1.0,), (0.2,)), "stds": (0.35, 0.25, 0.6)}
LINE_CODES = ((1.0,), (-0.5,), (0.3,))


def on_a_line(curves, T=20):
    x, label = CURVES[curves]
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(T, 5, -5), {"x": x, "label": label})
    return mt.exact.LabelledMixture(**LINE, label_codes=LINE_CODES, process=process)


def integrated(model, z, t, has_x=True, has_label=True):
    """p(x, k | z_t = z) on a grid of x, by brute force: (G,), (G, K) summing to 1."""
    x = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    weights, stds = (torch.tensor(LINE[name], dtype=torch.float64) for name in ("weights", "stds"))
    means, codes = (torch.tensor(v, dtype=torch.float64)[:, 0] for v in (LINE["means"], LINE_CODES))
    abar = model.process.schedule.abar[t]
    w_x, w_y = (model.process.cumulative(name)[t] * has for name, has in (("x", has_x), ("label", has_label)))
    data = weights * torch.distributions.Normal(means, stds).log_prob(x[:, None]).exp()
    seen = torch.distributions.Normal(abar.sqrt() * (w_x * x[:, None] + w_y * codes), (1 - abar).sqrt())
    joint = data * seen.log_prob(torch.as_tensor(z, dtype=torch.float64)).exp()
    return x, joint / joint.sum()


@pytest.mark.parametrize("curves", CURVES)
@pytest.mark.parametrize("t", [0, 4, 11, 20])
def test_predictions_against_numerical_integration(curves, t):
    model, codes = on_a_line(curves), torch.tensor(LINE_CODES, dtype=torch.float64)[:, 0]
    z = torch.tensor([[-1.3], [0.1], [0.9]], dtype=torch.float64)
    p = model.predict(z, t)
    W_x, W_y = (float(model.process.cumulative(name)[t]) for name in ("x", "label"))
    for b in range(3):
        x, joint = integrated(model, z[b, 0], t)
        label = joint.sum(0)
        mean_x, mean_code = (joint.sum(1) * x).sum(), (label * codes).sum()
        assert torch.allclose(p.law["label"].logits[b].exp(), label, atol=1e-8)
        assert float(p.law["x"].mean[b]) == pytest.approx(float(mean_x), abs=1e-8)
        assert float(p.estimate["label"][b]) == pytest.approx(float(mean_code), abs=1e-8)
        assert float(p.aggregate[b]) == pytest.approx(float(W_x * mean_x + W_y * mean_code), abs=1e-8)


@pytest.mark.parametrize("curves", CURVES)
@pytest.mark.parametrize("t", [2, 11, 20])
def test_log_prob_against_numerical_integration(curves, t):
    model = on_a_line(curves)
    z = torch.tensor([[0.3]], dtype=torch.float64)
    x, joint = integrated(model, 0.3, t)
    density = joint.sum(1) / (x[1] - x[0])
    for row in (9_000, 10_000, 10_700):
        assert float(model.log_prob("x", x[row].reshape(1, 1), z, t).exp()) == pytest.approx(float(density[row]), abs=1e-6)
    for k in range(3):
        assert float(model.log_prob("label", torch.tensor([k]), z, t).exp()) == pytest.approx(
            float(joint.sum(0)[k]), abs=1e-8
        )


@pytest.mark.parametrize("curves", CURVES)
def test_conditionals_against_numerical_integration(curves):
    model, t, z = on_a_line(curves), 9, torch.tensor([[0.3]], dtype=torch.float64)
    x, joint = integrated(model, 0.3, t)
    for k in range(3):
        given_k = joint[:, k] / joint[:, k].sum()
        told = model.predict(z, t, given={"label": torch.tensor([k])})
        assert float(told.law["x"].mean) == pytest.approx(float((given_k * x).sum()), abs=1e-8)
        assert told.law["label"].logits.exp()[0, k] == 1
    for row in (9_000, 10_700):
        told = model.predict(z, t, given={"x": x[row].reshape(1, 1)})
        assert torch.allclose(told.law["label"].logits[0].exp(), joint[row] / joint[row].sum(), atol=1e-8)
        assert float(told.law["x"].mean) == pytest.approx(float(x[row]), abs=1e-12)


@pytest.mark.parametrize("has", [(True, False), (False, True), (False, False)])
def test_absent_modalities_against_numerical_integration(has):
    model, t, z = on_a_line("fade-in"), 9, torch.tensor([[0.3]], dtype=torch.float64)
    x, joint = integrated(model, 0.3, t, *has)
    p = model.predict(z, t, present={name: torch.tensor([on]) for name, on in zip(("x", "label"), has, strict=True)})
    assert float(p.law["x"].mean) == pytest.approx(float((joint.sum(1) * x).sum()), abs=1e-8)
    assert torch.allclose(p.law["label"].logits[0].exp(), joint.sum(0), atol=1e-8)


@given(curves=st.sampled_from(sorted(CURVES)), t=st.integers(0, 200), seed=st.integers(0, 1000))
def test_tweedie(curves, t, seed):
    """E[m_t | z_t] = (z + (1 - abar) grad log q(z)) / sqrt(abar), q built from torch's own mixture."""
    x, label = CURVES[curves]
    model = mixture(label, x=x)
    abar = model.process.schedule.abar[t]
    w_x, w_y = (model.process.cumulative(name)[t] for name in ("x", "label"))
    weights, means, stds, codes = (torch.tensor(value, dtype=torch.float64) for value in MIXTURE.values())
    std = (abar * w_x**2 * stds**2 + 1 - abar).sqrt()
    parts = torch.distributions.Normal(abar.sqrt() * (w_x * means + w_y * codes), std[:, None].expand(3, 2))
    q = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(weights), torch.distributions.Independent(parts, 1)
    )
    z = randn(5, 2, seed=seed).requires_grad_()
    (score,) = torch.autograd.grad(q.log_prob(z).sum(), z)
    expected = (z + (1 - abar) * score) / abar.sqrt()
    assert torch.allclose(model.predict(z.detach(), t).aggregate, expected.detach(), rtol=1e-8, atol=1e-8)


@given(curves=st.sampled_from(sorted(CURVES)), t=st.integers(0, 200), label=st.integers(0, 2))
def test_bayes_rule_for_the_aggregate(curves, t, label):
    """E[m | z, y] = E[m | z] + (1 - abar) / sqrt(abar) grad log p(y | z) (theory 4, rule 2)."""
    x, curve = CURVES[curves]
    model, y = mixture(curve, x=x), torch.full((4,), label)
    z, abar = randn(4, 2, seed=t).requires_grad_(), model.process.schedule.abar[t]
    (gradient,) = torch.autograd.grad(model.log_prob("label", y, z, t).sum(), z)
    plain, told = model.predict(z.detach(), t), model.predict(z.detach(), t, given={"label": y})
    assert torch.allclose(told.aggregate, plain.aggregate + (1 - abar) / abar.sqrt() * gradient, rtol=1e-8, atol=1e-7)


def test_a_tensor_of_steps_is_each_step_alone():
    model, z, t = mixture(mt.fade_in(0.5)), randn(3, 2), torch.tensor([0, 90, 200])
    whole = model.predict(z, t)
    for b in range(3):
        assert torch.allclose(whole.aggregate[b : b + 1], model.predict(z[b : b + 1], int(t[b])).aggregate, atol=1e-12)


def test_reading_draws_from_the_joint_posterior():
    """20,000 draws at one noisy state of a few long steps: frequencies and means within 4 standard errors; seed 0."""
    model, n, t = mixture(mt.constant(0.3), T=4), 20_000, 2
    z = torch.tensor([[0.1, 0.2]], dtype=torch.float64)
    drawn, p = model.read(z.expand(n, 2), t, generator=generator(0)), model.predict(z, t)
    for k, probability in enumerate(p.law["label"].logits[0].exp().tolist()):
        rows = drawn["label"] == k
        assert abs(float(rows.double().mean()) - probability) < 4 * standard_error(probability, n)
        told = model.predict(z, t, given={"label": torch.tensor([k])}).law["x"].mean
        x = drawn["x"][rows]
        assert ((x.mean(0) - told).abs() < 4 * x.std(0) / math.sqrt(len(x))).all()


def test_draw_has_the_law_that_the_toy_data_have():
    """Class weights and means of 20,000 draws within 4 standard errors; seed 0."""
    drawn, n = mixture(1.0).draw(20_000, generator(0)), 20_000
    for k, (weight, mean, std) in enumerate(zip(MIXTURE["weights"], MIXTURE["means"], MIXTURE["stds"], strict=True)):
        x = drawn["x"][drawn["label"] == k]
        assert abs(len(x) / n - weight) < 4 * standard_error(weight, n)
        assert (x.mean(0) - torch.tensor(mean)).abs().max() < 4 * std / math.sqrt(len(x))


def test_draws_repeat_by_their_generator():
    model = mixture(mt.constant(1.0))
    z = randn(5, 2)
    for draw in (lambda g: model.draw(5, g), lambda g: model.read(z, 100, generator=g)):
        one, same, other = (draw(generator(seed)) for seed in (1, 1, 2))
        assert all(torch.equal(one[name], same[name]) for name in ("x", "label"))
        assert not torch.equal(one["x"], other["x"])
        assert one["x"].dtype == torch.float64
        assert one["x"].shape == (5, 2)
        assert one["label"].shape == (5,)


def test_what_is_given_is_read_back():
    model, drawn = mixture(mt.constant(0.3)), mixture(1.0).draw(20, generator(3))
    z = randn(20, 2)
    for name in ("x", "label"):
        read = model.read(z, 150, given={name: drawn[name]}, generator=generator())
        assert torch.equal(read[name], drawn[name])


def test_log_probs_are_one_number_an_example():
    """A batch is its examples one by one, and an example of its own is a batch of one."""
    model, z, t = mixture(mt.fade_in(0.5), T=20), randn(3, 2), 11
    values = {"x": randn(3, 2, seed=1), "label": torch.tensor([0, 2, 1])}
    for name, value in values.items():
        whole = model.log_prob(name, value, z, t)
        single = [model.log_prob(name, value[b : b + 1], z[b : b + 1], t) for b in range(3)]
        assert whole.shape == (3,)
        assert all(one.shape == (1,) for one in single)
        assert torch.allclose(whole, torch.cat(single), atol=1e-12)


def test_everything_is_float64_whatever_comes_in():
    weights = torch.tensor([0.7, 0.2, 0.1])
    model = mt.exact.LabelledMixture(**{**MIXTURE, "weights": weights, "process": PROCESS})
    assert float(model.weights.sum()) == pytest.approx(1, abs=1e-15)
    x, z = randn(3, 2).float(), randn(3, 2, seed=1).float()
    assert model.encode({"x": x})["x"].dtype == torch.float64
    single, double = (model.predict(a, 2, given={"x": b}) for a, b in ((z, x), (z.double(), x.double())))
    assert single.aggregate.dtype == torch.float64
    assert torch.equal(single.aggregate, double.aggregate)


def test_a_class_of_no_weight_is_as_good_as_none():
    """Never drawn, never predicted, and no infinity elsewhere."""
    without = mt.exact.LabelledMixture(
        (0.6, 0.4), MIXTURE["means"][:2], MIXTURE["stds"][:2], MIXTURE["label_codes"][:2], PROCESS
    )
    model = mt.exact.LabelledMixture(**{**MIXTURE, "weights": (0.6, 0.4, 0.0), "process": PROCESS})
    z = randn(5, 2)
    a, b = model.predict(z, 2), without.predict(z, 2)
    assert torch.allclose(a.aggregate, b.aggregate, atol=1e-12)
    assert torch.allclose(a.law["label"].logits[:, :2], b.law["label"].logits, atol=1e-12)
    assert bool((a.law["label"].logits[:, 2] == -math.inf).all())
    assert int(model.draw(1000, generator())["label"].max()) == 1


PROCESS = mt.ForwardProcess(mt.NoiseSchedule.log_snr(4), {"x": 1.0, "label": 1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": (0.5, 0.3, 0.3)}, "probabilities that sum to 1"),
        ({"weights": (1.2, -0.4, 0.2)}, "probabilities"),
        ({"means": (1.0, 2.0, 3.0), "label_codes": (1.0, 2.0, 3.0)}, r"expected weights \(K,\), means \(K, d\)"),
        ({"weights": (0.5, 0.5), "stds": (0.3, 0.3)}, r"expected weights \(K,\), means \(K, d\)"),
        ({"stds": (0.3, 0.3)}, r"stds \(K,\)"),
        ({"weights": (0.5, 0.5)}, r"expected weights \(K,\), means \(K, d\)"),
        ({"stds": (0.3, 0.0, 0.3)}, r"stds must be positive, got \[0.3, 0.0, 0.3\]"),
        ({"label_codes": ((1.0,), (2.0,), (3.0,))}, r"label_codes \(K, d\)"),
        ({"process": mt.ForwardProcess(PROCESS.schedule, {"x": 1.0, "class": 1.0})}, '"x" and "label"'),
    ],
)
def test_bad_mixtures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        mt.exact.LabelledMixture(**{**MIXTURE, "process": PROCESS, **change})


Z = torch.zeros(3, 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("z", "t", "given", "error", "message"),
    [
        (Z, 1, {"sound": Z}, KeyError, "given names an unknown modality 'sound'"),
        (Z, 1, {"label": torch.tensor([0, 1, 3])}, ValueError, r"given: 'label' has values outside 0\.\.2: \[3\]"),
        (
            Z,
            1,
            {"label": torch.zeros(3)},
            ValueError,
            r"given: 'label' must be an integer tensor of labels \(B,\), got torch.float32",
        ),
        (Z, 1, {"x": torch.zeros(3, 5)}, ValueError, r"given: 'x' must be floating point \(B, 2\), got .* \(3, 5\)"),
        (Z, 1, {"label": torch.tensor([0])}, ValueError, r"1 example|expected 3"),
        (
            Z,
            1,
            {"label": torch.ones(3, dtype=torch.bool)},
            ValueError,
            r"given: 'label' must be an integer tensor of labels \(B,\)",
        ),
        (Z, 1, {"x": Z * math.nan}, ValueError, r"given: 'x' has values that are not finite"),
        (Z, 1, {"x": Z.long()}, ValueError, r"given: 'x' must be floating point \(B, 2\), got torch.int64"),
        (Z.long(), 1, None, ValueError, r"z_t must be floating point \(B, 2\), got torch.int64"),
        (Z[:0], 1, None, ValueError, "must be .* of at least one example"),
        (Z + math.inf, 1, None, ValueError, "z_t has values that are not finite"),
        (Z, 5, None, ValueError, r"t must be in 0\.\.4, got 5"),
        (Z[:, :1], 1, None, ValueError, r"\(B, 2\)"),
    ],
)
def test_predict_names_what_is_wrong(z, t, given, error, message):
    with pytest.raises(error, match=message):
        mt.exact.LabelledMixture(**MIXTURE, process=PROCESS).predict(z, t, given=given)


def test_check_counts_and_compares():
    model = mt.exact.LabelledMixture(**MIXTURE, process=PROCESS)
    assert model.check({"x": Z, "label": torch.tensor([0, 1, 2])}) == 3
    with pytest.raises(ValueError, match=r"different numbers of examples: \{'x': 3, 'label': 2\}"):
        model.check({"x": Z, "label": torch.tensor([0, 1])})
    with pytest.raises(ValueError, match="batch is empty"):
        model.check({})
    with pytest.raises(ValueError, match="must have at least one example"):
        model.check({"label": torch.zeros(0, dtype=torch.long)})
    with pytest.raises(ValueError, match="at least one example"):
        model.check({"x": Z[:0]})


def test_log_prob_needs_as_many_values_as_states():
    with pytest.raises(ValueError, match=r"1 example|expected 3"):
        mt.exact.LabelledMixture(**MIXTURE, process=PROCESS).log_prob("label", torch.tensor([0]), Z, 2)


def test_a_float32_state_is_seen_by_weights_in_float64():
    model, z = mixture(mt.constant(0.3)), randn(20, 2).float()
    for t in (0, 100):
        single, double = model.predict(z, t), model.predict(z.double(), t)
        assert torch.equal(single.aggregate, double.aggregate)


def test_a_label_that_is_read_repeats_by_generator():
    """At t = T nothing is known: two hundred labels are drawn from the prior."""
    model, z = mixture(mt.constant(1.0)), randn(200, 2)
    labels = [model.read(z, 200, generator=generator(seed))["label"] for seed in (0, 0, 1)]
    assert torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0], labels[2])


# ---- groups of labels, guided ----


def test_guidance_of_scale_one_draws_the_group():
    """The law of x given the group: shares of its two clusters, their means and spread."""
    mix = mt.exact.planted_mixture(0.8)
    x = mt.exact.sample_group(mix, [0, 1], 4000, generator=generator())
    own = x[:, 1] > 0
    assert abs(float(own.double().mean()) - 0.8) < 4 * (0.16 / 4000) ** 0.5 + 0.01
    assert (x[own].mean(0) - torch.tensor([-1.0, 1.0])).abs().max() < 0.05
    assert float(x[:, 0].std()) == pytest.approx(0.45, abs=0.02)


def test_the_guided_estimate_is_an_extrapolation_from_untold_to_told():
    """By the other way: E[m | z, group] is the mean of the group's components, renormalised."""
    mix, t = mt.exact.planted_mixture(0.7), 250
    z = 2 * randn(6, 2)
    law = mix.predict(z, t).law["x"]
    log_r, mean = law.log_weights, law.means
    told = torch.einsum("bk,bkd->bd", log_r[:, :2].softmax(1), mean[:, :2])
    leaf = z.clone().requires_grad_()
    prediction = mix.predict(leaf, t)
    (gradient,) = torch.autograd.grad(prediction.law["label"].logits[:, :2].logsumexp(1).sum(), leaf)
    signal, noise = mix.process.at(t, z).level
    torch.testing.assert_close(prediction.aggregate.detach() + noise**2 / signal * gradient, told)


def test_guidance_amplifies_what_goes_along_with_the_group():
    shares = {}
    for scale in (0.0, 1.0, 3.0):
        x = mt.exact.sample_group(mt.exact.planted_mixture(0.8), [0, 1], 2000, scale, generator=generator())
        shares[scale] = float((x[:, 1] > 0).double().mean())
    assert shares[0.0] == pytest.approx(0.5, abs=0.05)
    assert shares[3.0] > shares[1.0] + 0.05


@pytest.mark.parametrize("group", [[], [4], [0, -1]])
def test_groups_of_unknown_labels_are_refused(group):
    with pytest.raises(ValueError, match=r"group must be some of 0\.\.3"):
        mt.exact.sample_group(mt.exact.planted_mixture(0.8), group, 2)


def test_bad_shares_and_labels_in_the_state_are_refused():
    with pytest.raises(ValueError, match="share must be in"):
        mt.exact.planted_mixture(1.0)
    with pytest.raises(ValueError, match="the label's weight must be 0"):
        mt.exact.sample_group(mixture(mt.constant(1.0)), [0], 2)
    with pytest.raises(ValueError, match="guidance must be a finite number, got nan"):
        mt.exact.sample_group(mt.exact.planted_mixture(0.8), [0], 2, math.nan)


def test_the_law_of_x_is_the_mixture_that_it_says_it_is():
    """Its density against one by hand, its loss and its draws; it cannot be changed."""
    mix = mixture(mt.fade_in(1.0))
    z = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    law = mix.predict(z, 120).law["x"]
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parts = torch.distributions.Independent(torch.distributions.Normal(law.means, law.variances.sqrt()[..., None]), 1)
    by_hand = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=law.log_weights), parts)
    torch.testing.assert_close(law.log_prob(x), by_hand.log_prob(x))
    torch.testing.assert_close(law.loss(x), -by_hand.log_prob(x))
    torch.testing.assert_close(law.mean, by_hand.mean)
    many = type(law)(*(part[:1].expand(20_000, *part.shape[1:]) for part in (law.log_weights, law.means, law.variances)))
    drawn = many.draw(torch.Generator().manual_seed(2))
    assert drawn.shape == (20_000, 2)
    assert float((drawn.mean(0) - law.mean[0]).abs().max()) < 4 * float(drawn.std(0).max()) / 20_000**0.5
    assert law == law != mix.predict(z, 120).law["x"], "one law is itself alone"
    with pytest.raises(AttributeError, match="cannot assign"):
        law.means = law.means + 1
