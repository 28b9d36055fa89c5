import inspect
import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from helpers import (
    OneModality,
    gaussian_model,
    generator,
    image_label_batch,
    image_label_model,
    mixture,
    slope,
    standard_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import mtdiff as mt
from mtdiff import sampling
from mtdiff.datasets import MIXTURE
from mtdiff.exact import LabelledMixture
from mtdiff.metrics import energy_distance
from mtdiff.sampling import sample_many
from mtdiff.solvers import SAMPLERS

CURVES = {"constant": mt.constant(1.0), "fade-in": mt.fade_in(0.5)}
BUDGET = {"ddpm": 200, "ddim": 100, "heun": 50, "dpm++": 50}
N = 2000


def final(path):
    """The last state of a path."""
    return list(path)[-1][1]


# ---- against diffusers, one modality ----


def nonlinear(schedule=None):
    """One modality on DDPM's schedule or another, with a made-up network that is far from linear."""
    process = mt.ForwardProcess(schedule or mt.NoiseSchedule.linear(1000), {"x": 1.0})

    def aggregate(z, t):
        signal, noise = process.at(t, z).level
        return torch.tanh(2 * z + z.flip(1)) * signal + 0.1 * noise

    return OneModality(process, (4,), aggregate)


def scheduler(kind, process, steps):
    """diffusers' scheduler on the same curve in float64; its t is ours minus 1."""
    out = kind(num_train_timesteps=process.steps, beta_schedule="linear", clip_sample=False, prediction_type="sample")
    out.alphas_cumprod = process.schedule.abar[1:]
    out.set_timesteps(steps)
    return out


@pytest.mark.parametrize("steps", [27, 37])
def test_ddim_is_diffusers_ddim(steps):
    """999 = 27 * 37 intervals: both walk the same grid, from t = 1000 down to the read-out at t = 1."""
    model = nonlinear()
    reference = scheduler(DDIMScheduler, model.process, steps)
    path = list(mt.sample_path(model, 3, sampler="ddim", steps=steps, generator=generator(1)))
    assert [t for t, _, _ in path] == list(range(1000, 0, -999 // steps))
    z = torch.randn(3, 4, dtype=torch.float64, generator=generator(1))
    for (t, ours, prediction), (_, after, _) in itertools.pairwise(path):
        assert torch.allclose(ours, z, atol=1e-9)
        z = reference.step(model.aggregate(z, t), t - 1, z, eta=0.0).prev_sample
        assert torch.allclose(after, z, atol=1e-9)
        assert torch.equal(prediction.aggregate, model.aggregate(ours, t))


def test_ddpm_is_diffusers_ddpm():
    """All 999 steps with the same noise: mean and variance of every step."""
    model = nonlinear()
    reference, g = scheduler(DDPMScheduler, model.process, 1000), generator(1)
    z = torch.randn(3, 4, dtype=torch.float64, generator=g)
    for t in range(1000, 1, -1):
        z = reference.step(model.aggregate(z, t), t - 1, z, generator=g).prev_sample
    ours = final(mt.sample_path(model, 3, sampler="ddpm", steps=999, generator=generator(1)))
    assert torch.allclose(ours, z, atol=1e-8)


def test_a_ddpm_step_is_the_posterior_at_the_prediction():
    """With moving curves, a step of one is q(z_{t-1} | z_t, X = prediction); 20,000 draws, 4 standard errors, seed 0."""
    model, n = mixture(mt.fade_in(1.0), T=20), 20_000
    (t, z, p), (s, after, _) = itertools.islice(
        mt.sample_path(model, n, sampler="ddpm", steps=20, generator=generator(0)), 2
    )
    codes = {"label": p.estimate["label"], "x": p.aggregate - model.process.at(t, z).W["label"] * p.estimate["label"]}
    mean, std = model.process.posterior(z, codes, t)
    assert (t, s) == (20, 19)
    standard = (after - mean) / std
    assert float(standard.mean(0).abs().max()) < 4 / math.sqrt(n)
    assert float((standard.var(0) - 1).abs().max()) < 4 * math.sqrt(2 / n)


# ---- against the published algorithms, one modality ----


def walk(model, sampler, steps):
    """The path of a sampler, and for each t its signal and noise amplitudes as numbers."""
    path = list(mt.sample_path(model, 3, sampler=sampler, steps=steps, generator=generator(1)))
    return path, {t: tuple(float(a[0]) for a in model.process.at(t, z).level) for t, z, _ in path}


def test_heun_is_the_published_single_step_method():
    """DPM-Solver++(2S), Lu et al. 2022, algorithm 1 with r = 1: u is the step of order 1, D the mean of both estimates."""
    model = nonlinear()
    path, levels = walk(model, "heun", 9)
    half_log_snr = {t: math.log(signal / noise) for t, (signal, noise) in levels.items()}
    z = path[0][1]
    for (t, _, _), (s, after, _) in itertools.pairwise(path):
        keep, gain = levels[s][1] / levels[t][1], -levels[s][0] * math.expm1(half_log_snr[t] - half_log_snr[s])
        x = model.aggregate(z, t)
        u = keep * z + gain * x
        z = keep * z + gain * (x + model.aggregate(u, s)) / 2
        assert torch.allclose(after, z, rtol=0, atol=1e-9)


def test_dpm_is_the_published_two_step_method():
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2, in short steps; D looks back one step but in the first and the last."""
    model = nonlinear(schedule=mt.NoiseSchedule.log_snr(1000))
    path, levels = walk(model, "dpm++", 12)
    half_log_snr = {t: math.log(signal / noise) for t, (signal, noise) in levels.items()}
    z, before, h_before = path[0][1], None, None
    for (t, _, _), (s, after, _) in itertools.pairwise(path):
        h, x = half_log_snr[s] - half_log_snr[t], model.aggregate(z, t)
        r = math.inf if before is None or s == 0 else h_before / h
        d = x if r == math.inf else (1 + 1 / (2 * r)) * x - 1 / (2 * r) * before
        z = levels[s][1] / levels[t][1] * z - levels[s][0] * math.expm1(-h) * d
        before, h_before = x, h
        assert torch.allclose(after, z, rtol=0, atol=1e-9)


# ---- order of convergence ----

STEPS = [25, 50, 100, 200]
ORDERS = [("ddim", 1), ("heun", 2), ("dpm++", 2)]


@pytest.mark.parametrize(("sampler", "order"), ORDERS)
@pytest.mark.parametrize("curve", [mt.constant(1.0), lambda u: 1.0 + u**2], ids=["constant", "moving"])
def test_order_on_a_gaussian_whose_flow_is_known(sampler, order, curve):
    """z_t = mean_t + (z_T - mean_T) std_t / std_T along the probability-flow ODE of a Gaussian."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(800), {"x": curve})
    mean, std = 0.7, 0.4
    abar, W = process.schedule.abar, process.cumulative("x")
    means, stds = abar.sqrt() * W * mean, (abar * (W * std) ** 2 + 1 - abar).sqrt()
    z_T = torch.randn(50, 1, dtype=torch.float64, generator=generator(0))
    truth = means[0] + (z_T - means[-1]) * stds[0] / stds[-1]
    model = gaussian_model(process, mean, std)
    errors = [
        float((final(mt.sample_path(model, 50, sampler=sampler, steps=k, generator=generator(0))) - truth).abs().mean())
        for k in STEPS
    ]
    assert abs(slope(STEPS, errors) - order) < 0.25
    assert errors[-1] < {1: 0.01, 2: 5e-4}[order]


@pytest.fixture(scope="module")
def fine():
    """The mixture with a fade-in label, and a very fine solution of its probability-flow ODE."""
    model = mixture(mt.fade_in(0.5), T=800)
    return model, final(mt.sample_path(model, 200, sampler="dpm++", steps=800, generator=generator(0)))


@pytest.mark.parametrize(("sampler", "order"), ORDERS)
def test_order_on_a_mixture_with_a_moving_curve(fine, sampler, order):
    """Mean distance to the fine solution at 25 / 50 / 100 / 200 steps; 200 chains, seed 0."""
    model, truth = fine
    errors = [
        float(
            (final(mt.sample_path(model, 200, sampler=sampler, steps=k, generator=generator(0))) - truth).norm(dim=1).mean()
        )
        for k in STEPS
    ]
    assert abs(slope(STEPS, errors) - order) < 0.3
    assert errors[-1] < {"ddim": 0.011, "heun": 2.5e-4, "dpm++": 2.5e-4}[sampler]


@pytest.mark.parametrize(
    ("schedule", "curve"),
    [
        (mt.NoiseSchedule.cosine(100), 0.3),
        (mt.NoiseSchedule.cosine(1000), mt.fade_in(1.0)),
        (mt.NoiseSchedule.linear(1000), 0.3),
        (mt.NoiseSchedule.log_snr(1000, 13.0, -13.0), mt.fade_in(1.0)),
    ],
    ids=["cosine100", "cosine1000", "linear1000", "wide"],
)
def test_no_solver_is_worse_than_ddim_in_long_steps_or_at_almost_no_signal(schedule, curve):
    """Mean distance to a fine solution over DDIM's: at most 0.99, and 0.64 in 25 steps, over 6 seeds; here seed 0."""
    model = LabelledMixture(**MIXTURE, process=mt.ForwardProcess(schedule, {"x": 1.0, "label": curve}))

    def end(sampler, steps):
        return final(mt.sample_path(model, 200, sampler=sampler, steps=steps, generator=generator(0)))

    fine = end("heun", min(200, model.process.steps - model.process.first))
    for steps in (3, 5, 8, 25):
        error = {sampler: float((end(sampler, steps) - fine).norm(dim=1).mean()) for sampler in ("ddim", "heun", "dpm++")}
        assert max(error.values()) == error["ddim"], steps
    assert max(error["heun"], error["dpm++"]) < 0.8 * error["ddim"]


@given(at=st.tuples(st.integers(1, 40), st.integers(0, 39)), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_ddim_is_exact_where_the_estimates_stand_still(at, seed):
    """A point mass: whatever the curve, one step lands on the marginal with the same noise."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(at[0]), {"x": mt.fade_out(1.0) if at[1] % 2 else 1.0})
    model = OneModality(process, (2,), lambda z, t: process.at(t, z).W["x"] * torch.full_like(z, 0.3))
    model.predict = lambda z, t, **_: mt.Prediction(model.aggregate(z, t), {}, {"x": torch.full_like(z, 0.3)})
    code = {"x": torch.full((4, 2), 0.3, dtype=torch.float64)}
    first, last = list(mt.sample_path(model, 4, steps=1, generator=generator(seed)))
    eps = (first[1] - process.marginal(code, first[0])[0]) / process.at(first[0], first[1]).level[1]
    assert torch.allclose(last[1], process.diffuse(code, 0, eps)[0], atol=1e-9)


# ---- laws, on the exact mixture ----


def truth(model, label=None):
    """Draws of the data, of one class if it is asked for."""
    drawn = model.draw(12 * N, generator(99))
    rows = slice(None) if label is None else drawn["label"] == label
    return drawn["x"][rows][:N], drawn["label"][rows][:N]


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("sampler", BUDGET)
def test_joint_samples_are_at_the_noise_floor(curve, sampler):
    """Energy distance of 2,000 points (five seeds: 0.000 ± 0.0013, of a class 0.001 ± 0.001), class frequencies; seed 0."""
    model = mixture(CURVES[curve])
    out = mt.sample(model, N, sampler=sampler, steps=BUDGET[sampler], generator=generator(0))
    x, _ = truth(model)
    assert energy_distance(out["x"], x) < 0.012
    for k, weight in enumerate(model.weights.tolist()):
        assert abs(float((out["label"] == k).double().mean()) - weight) < 4 * standard_error(weight, N)
        own = truth(model, k)[0]
        assert energy_distance(out["x"][out["label"] == k], own) < 0.03


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("sampler", BUDGET)
def test_bayes_samples_are_at_the_noise_floor(curve, sampler):
    model = mixture(CURVES[curve])
    out = mt.sample(
        model, N, given={"label": torch.tensor([1])}, sampler=sampler, steps=BUDGET[sampler], generator=generator(0)
    )
    assert energy_distance(out["x"], truth(model, 1)[0]) < 0.012


@pytest.mark.parametrize("first", ["x", "label"])
def test_one_after_the_other_is_at_the_noise_floor_too(first):
    """p(first) p(other | first) is the joint law; the same bars as for joint samples, seed 0."""
    model = mixture(mt.fade_in(0.5))
    out = mt.sample(model, N, chain=[(first, {"steps": 60})], rule="bayes", steps=100, generator=generator(0))
    assert energy_distance(out["x"], truth(model)[0]) < 0.012
    for k, weight in enumerate(model.weights.tolist()):
        assert abs(float((out["label"] == k).double().mean()) - weight) < 4 * standard_error(weight, N)
        assert energy_distance(out["x"][out["label"] == k], truth(model, k)[0]) < 0.03


def test_a_chain_is_the_calls_that_it_stands_for():
    """Options of the last call hold for all but guidance; a rule by name holds for what is given by then."""
    model, image = image_label_model(rule={"label": "conditioned"}), image_label_batch(3)["image"]
    g, options = generator(0), {"steps": 7, "sampler": "ddpm"}
    label = mt.sample(model, 3, generator=g, steps=4, sampler="ddpm")["label"]
    expected = mt.sample(model, 3, given={"label": label}, guidance=2.0, generator=g, **options)
    chain = [("label", {"steps": 4})]
    out = mt.sample(model, 3, chain=chain, rule={"label": "conditioned"}, guidance=2.0, generator=generator(0), **options)
    assert all(torch.equal(out[name], expected[name]) for name in expected)
    drawn = mt.sample(model, 3, given={"image": image}, generator=generator(1), **options)
    last = mt.sample(model, 3, given={"image": image}, chain="label", generator=generator(1), **options)
    assert all(torch.equal(last[name], drawn[name]) for name in drawn)  # nothing is left to be drawn


def test_labels_given_points_follow_the_exact_posterior():
    """Points between the classes: label frequencies of 4,000 draws within 4 standard errors; seed 0."""
    model = mixture(mt.constant(1.0))
    x = torch.tensor([[-0.8, -0.1]], dtype=torch.float64)
    posterior = model.log_prob("label", torch.arange(3), torch.zeros(3, 2), 200, given={"x": x.expand(3, 2)}).exp()
    for rule in ("conditioned", "bayes"):
        out = mt.sample(model, 4000, given={"x": x}, rule=rule, steps=100, generator=generator(0))
        for k, p in enumerate(posterior.tolist()):
            assert abs(float((out["label"] == k).double().mean()) - p) < 4 * standard_error(p, 4000) + 1e-3, rule


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("sampler", BUDGET)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_conditioned_is_bayes_on_an_exact_model(curve, sampler, guidance):
    options = {"given": {"label": torch.arange(60) % 3}, "sampler": sampler, "steps": 20, "guidance": guidance}
    model = mixture(CURVES[curve])
    a, b = (
        final(mt.sample_path(model, 60, rule=rule, generator=generator(0), **options)) for rule in ("bayes", "conditioned")
    )
    assert torch.allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("known", ["x", "label"])
def test_bayes_solves_for_the_one_unknown_that_moves(known):
    """Along the whole path, where its weight is not near 0: the estimate is E[code | z_t, known] exactly."""
    model = mixture(mt.fade_in(1.0), x=mt.fade_out(1.0))
    (unknown,) = set(model.modalities) - {known}
    value, weight = {known: model.draw(30, generator(5))[known]}, model.process.cumulative(unknown)
    for t, z, p in mt.sample_path(model, 30, given=value, steps=20, generator=generator(0)):
        if weight[t] >= 0.1:
            assert torch.allclose(p.estimate[unknown], model.predict(z, t, given=value).estimate[unknown], atol=1e-7)


@pytest.mark.parametrize("rule", ["bayes", "conditioned"])
def test_what_is_given_by_any_rule_also_holds_at_the_read_out(rule):
    """Codes against the data: z_0 alone leaves the label open, and with it the point."""
    means = torch.tensor(MIXTURE["means"], dtype=torch.float64)
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(200, 8.0, -8.0), {"x": 1.0, "label": 1.5})
    settings = {**MIXTURE, "label_codes": -means / means.norm(dim=1, keepdim=True)}
    model = mt.exact.LabelledMixture(**settings, process=process)
    drawn = mt.sample(model, 1000, given={"label": torch.tensor([2])}, rule=rule, steps=50, generator=generator(0))
    nearest = torch.cdist(drawn["x"], means).argmin(1)
    assert (nearest == 2).double().mean() > 0.99


@pytest.mark.parametrize(
    ("curve", "low", "high"),
    [(mt.fade_in(0.5), 0.6, 1.4), (mt.constant(0.5), 0.25, 0.6), (mt.constant(2.0), 0.0, 0.03)],
    ids=["fade-in 0.5", "constant 0.5", "constant 2"],
)
def test_substitution_is_biased_and_less_so_with_weight(curve, low, high):
    """Theory 4's table, ancestral sampling of the class where it shows most: 0.97, 0.41 and 0.008; seed 0."""
    model = mixture(curve)
    options = {"given": {"label": torch.tensor([2])}, "rule": "substitute", "sampler": "ddpm", "steps": 200}
    out = mt.sample(model, N, generator=generator(0), **options)
    assert low < energy_distance(out["x"], truth(model, 2)[0]) < high


def test_read_out_names_points_and_places_labels():
    """With a constant weight the label is left in z_0, and so is the point: each tells the other; seed 0."""
    model = mixture(mt.constant(1.0))
    drawn = model.draw(500, generator(3))
    named = mt.sample(model, 500, given={"x": drawn["x"]}, rule="readout", generator=generator(0))
    assert float((named["label"] == drawn["label"]).double().mean()) > 0.98
    label = torch.ones(N, dtype=torch.long)
    placed = mt.sample(model, N, given={"label": label}, rule="readout", generator=generator(0))
    assert energy_distance(placed["x"], truth(model, 1)[0]) < 0.012


# ---- transition ----


def transition():
    """From a label's code, at the end of the chain, to points."""
    return mixture(mt.fade_in(1.0), x=mt.fade_out(1.0), prior="label", low=0.0)


def test_a_transition_starts_from_its_noisy_source():
    """Mean and standard deviation of q(z_T | source) within 4 standard errors; seed 0."""
    model, label = transition(), torch.tensor([1])
    _, z, _ = next(mt.sample_path(model, 4000, given={"label": label}, steps=5, generator=generator(0)))
    abar = model.process.schedule.abar[-1]
    assert float(abar) == pytest.approx(0.5)
    assert float((z.mean(0) - abar.sqrt() * model.codes[1]).abs().max()) < 4 * math.sqrt(0.5 / 4000)
    assert float((z.std(0) - math.sqrt(0.5)).abs().max()) < 4 * math.sqrt(0.5 / 8000)


@pytest.mark.parametrize("rule", ["conditioned", "bayes"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "dpm++"])
def test_a_transition_reaches_its_target(rule, sampler):
    model = transition()
    out = mt.sample(
        model,
        N,
        given={"label": torch.tensor([1])},
        rule=rule,
        sampler=sampler,
        steps=BUDGET[sampler],
        generator=generator(0),
    )
    assert energy_distance(out["x"], truth(model, 1)[0]) < 0.012


def test_a_transition_starts_at_the_last_step():
    """With two long steps: the first state is the source's law at T, with the first noise that is drawn."""
    model, label = mixture(mt.fade_in(1.0), T=2, x=mt.fade_out(1.0), prior="label", low=0.0), torch.tensor([0, 1, 2])
    t, z, _ = next(mt.sample_path(model, 3, given={"label": label}, steps=2, generator=generator(1)))
    noise = torch.randn(3, 2, dtype=torch.float64, generator=generator(1))
    assert t == 2
    assert torch.allclose(z, math.sqrt(0.5) * (model.codes + noise), rtol=0, atol=1e-12)


def test_a_transition_needs_its_source():
    with pytest.raises(ValueError, match="ends at 'label': a sample needs it in `given`"):
        mt.sample(transition(), 3)


# ---- paths ----


@pytest.mark.parametrize("sampler", BUDGET)
@pytest.mark.parametrize(("schedule", "first"), [(mt.NoiseSchedule.log_snr(50), 0), (mt.NoiseSchedule.cosine(50), 1)])
def test_a_path_falls_from_the_end_to_the_first_step(sampler, schedule, first):
    model = image_label_model(schedule=schedule)
    path = list(mt.sample_path(model, 2, sampler=sampler, steps=7, generator=generator(1)))
    times = [t for t, _, _ in path]
    assert len(path) == 8
    assert (times[0], times[-1]) == (50, first)
    assert all(a > b for a, b in itertools.pairwise(times))
    for t, z, p in path:
        assert z.dtype == torch.float64
        assert z.shape == p.aggregate.shape == (2, 1, 4, 4)
        with torch.no_grad():
            assert torch.equal(model.predict(z, t).aggregate, p.aggregate)


@pytest.mark.parametrize(
    "options", [{}, {"given": {"label": torch.tensor([0, 1, 2])}, "rule": "conditioned"}], ids=["joint", "told"]
)
def test_a_sample_is_its_path_read_out(options):
    model = image_label_model()
    g = generator(4)
    z = final(mt.sample_path(model, 3, steps=6, generator=g, **options))
    read = model.read(z, 0, given=options.get("given"), generator=g)
    out = mt.sample(model, 3, steps=6, generator=generator(4), **options)
    assert torch.equal(out["image"], read["image"])
    if not options:
        assert torch.equal(out["label"], read["label"])


@pytest.mark.parametrize("rule", ["bayes", "conditioned", "substitute"])
def test_what_is_given_is_known_at_the_read_out_too(rule):
    """On a chain that stops at much noise an exact model reads x with the label that was given."""
    model, label = mixture(mt.constant(0.3), T=4, high=-2.0, low=-6.0), torch.arange(30) % 3
    options = {"given": {"label": label}, "rule": rule, "steps": 4}
    g = generator(4)
    z = final(mt.sample_path(model, 30, generator=g, **options))
    read = model.read(z, 0, given={"label": label}, generator=g)
    assert torch.equal(mt.sample(model, 30, generator=generator(4), **options)["x"], read["x"])


@pytest.mark.parametrize("make", [image_label_model, lambda: mixture(mt.constant(1.0), T=4, high=2.0)])
def test_a_read_out_is_one_noisy_state_read(make):
    """Rule 4: z at the first step from what is given alone, then the heads, all from one generator."""
    model, g, label = make(), generator(4), torch.tensor([2, 0, 1])
    codes = {name: code.detach().double() for name, code in model.encode({"label": label}).items()}
    present = {name: torch.full((3,), name == "label") for name in model.modalities}
    noise = torch.randn(3, *model.space, dtype=torch.float64, generator=g)
    z = model.process.diffuse(codes, model.process.first, noise, present)[0]
    read = model.read(z, model.process.first, present=present, generator=g)
    out = mt.sample(model, 3, given={"label": label}, rule="readout", generator=generator(4))
    (other,) = set(model.modalities) - {"label"}
    assert torch.equal(out[other], read[other])


@given(T=st.integers(1, 60), part=st.floats(0, 1), first=st.booleans())
@settings(max_examples=20)
def test_steps_are_as_even_as_whole_numbers_can_be(T, part, first):
    """Each time is at most 1/2 from T - k (T - first) / steps."""
    schedule = mt.NoiseSchedule.linear(T + 1) if first else mt.NoiseSchedule.log_snr(T)
    process = mt.ForwardProcess(schedule, {"x": 1.0})
    model, steps = gaussian_model(process, 0.7, 0.4), 1 + round(part * (T - 1))
    times = [t for t, _, _ in mt.sample_path(model, 1, steps=steps, generator=generator())]
    even = [process.steps - k * (process.steps - process.first) / steps for k in range(steps + 1)]
    assert all(abs(t - e) <= 0.5 + 1e-9 for t, e in zip(times, even, strict=True))


def test_fifty_steps_are_the_default():
    model = mixture(mt.constant(1.0))
    assert len(list(mt.sample_path(model, 1))) == 51
    one, same = (mt.sample(model, 2, generator=generator(), **options) for options in ({}, {"steps": 50}))
    assert torch.equal(one["x"], same["x"])


@pytest.mark.parametrize("rule", ["bayes", "substitute", "conditioned"])
@pytest.mark.parametrize("exact", [False, True])
def test_a_path_carries_no_graph(rule, exact):
    """A chain that kept one would hold the activations of all its steps. The network has one, or else the given value."""
    model, values = image_label_model(), {"label": torch.tensor([0])}
    if exact:
        model, values = mixture(mt.fade_in(0.5)), {"x": torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)}
    for _, z, p in mt.sample_path(model, 2, given=values, rule=rule, steps=3, generator=generator()):
        parts = [part for law in p.law.values() for part in vars(law).values() if isinstance(part, torch.Tensor)]
        assert not any(a.requires_grad for a in (z, p.aggregate, *p.estimate.values(), *parts))


@pytest.mark.parametrize("curve", CURVES)
def test_substitution_swaps_the_guess_for_the_value(curve):
    """Rule 1 on an exact model, whose aggregate is the sum of its weighted estimates: one of them is the value's code."""
    model, label = mixture(CURVES[curve]), torch.tensor([0, 1, 2])
    path = mt.sample_path(model, 3, given={"label": label}, rule="substitute", steps=10, generator=generator())
    for t, z, p in path:
        assert torch.equal(p.estimate["label"], model.codes)
        codes = {"x": model.predict(z, t).estimate["x"], "label": model.codes}
        assert torch.allclose(p.aggregate, model.process.aggregate(codes, t), atol=1e-12)


def test_two_rules_that_leave_nothing_unknown_find_the_aggregate():
    """Told the label and with Bayes' rule for x, an exact model knows m_t."""
    model = mixture(mt.fade_in(0.5))
    values = model.draw(5, generator(2))
    rules = {"label": "conditioned", "x": "bayes"}
    for t, _, p in mt.sample_path(model, 5, given=values, rule=rules, steps=10, generator=generator()):
        assert torch.allclose(p.aggregate, model.process.aggregate(model.encode(values), t), atol=1e-7)


@pytest.mark.parametrize("rule", ["bayes", "substitute", "conditioned", "readout", None])
def test_given_values_come_back_as_given(rule):
    model, label = image_label_model(), torch.tensor([2, 0, 1])
    out = mt.sample(model, 3, given={"label": label}, rule=rule, steps=3, generator=generator())
    assert torch.equal(out["label"], label)
    assert out["image"].shape == (3, 1, 4, 4)
    one = mt.sample(model, 3, given={"label": label[:1]}, rule=rule, steps=3, generator=generator())
    assert one["label"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("rule", ["conditioned", "readout"])
@pytest.mark.parametrize("many", [1, 3])
def test_a_given_value_comes_back_as_a_copy(rule, many):
    label = torch.tensor([2, 0, 1])[:many]
    out = mt.sample(image_label_model(), 3, given={"label": label}, rule=rule, steps=2, generator=generator())
    out["label"][0] = 1
    assert label.tolist() == [2, 0, 1][:many]
    assert out["label"].tolist() == ([1, 0, 1] if many == 3 else [1, 2, 2])


def test_what_a_model_was_never_told_is_refused():
    """Where the card knows it: of a model that has none nobody does."""
    options = {"given": {"label": torch.tensor([0])}, "steps": 2, "generator": generator()}
    model = image_label_model()
    mt.sample(model, 2, rule="conditioned", **options)
    model.card = {"taught": []}
    with pytest.raises(ValueError, match=r"for \['label'\], which this model was never given in training"):
        mt.sample(model, 2, rule="conditioned", **options)
    for rule in ("bayes", "substitute", "readout"):
        mt.sample(model, 2, rule=rule, **options)
    model.card = {"taught": ["label"]}
    mt.sample(model, 2, rule="conditioned", **options)


@pytest.mark.parametrize("rule", ["bayes", "substitute", "conditioned", "readout", None])
def test_samples_carry_no_graph(rule):
    out = mt.sample(image_label_model(), 2, given={"label": torch.tensor([0])}, rule=rule, steps=2, generator=generator())
    assert not out["image"].requires_grad


def test_every_modality_may_be_given():
    model, batch = image_label_model(), image_label_batch(2)
    out = mt.sample(model, 2, given=batch, rule={"image": "substitute", "label": "bayes"}, steps=3, generator=generator())
    assert all(torch.equal(out[name], batch[name]) for name in batch)


@pytest.mark.parametrize("sampler", BUDGET)
@pytest.mark.parametrize("rule", ["bayes", "readout"])
def test_its_generator_determines_a_sample(sampler, rule):
    def once(seed, elsewhere):
        torch.manual_seed(elsewhere)
        options = {"given": {"label": torch.tensor([1])}, "rule": rule, "sampler": sampler, "steps": 5}
        return mt.sample(image_label_model(), 3, generator=generator(seed), **options)["image"]

    assert torch.equal(once(1, 0), once(1, 1))
    assert not torch.equal(once(1, 0), once(2, 0))


def test_trained_models_use_their_own_rule():
    options = {"given": {"label": torch.tensor([1])}, "steps": 5}

    def image(model, rule=None):
        return mt.sample(model, 3, rule=rule, generator=generator(), **options)["image"]

    for rule in ("bayes", "substitute", "conditioned"):
        expected = image(image_label_model(), rule)
        assert torch.equal(image(image_label_model(rule=rule)), expected)
        assert torch.equal(image(image_label_model(rule={"label": rule, "image": "readout"})), expected)
    assert torch.equal(image(image_label_model()), image(image_label_model(), "substitute"))


# ---- guidance ----


def test_guidance_scales_what_the_value_adds():
    """conditioned: untold + g (told - untold); bayes: g times the gradient. 1 is the plain rule, 0 no rule at all."""
    model, label = image_label_model(curve=mt.constant(0.5)), torch.tensor([0, 1, 2])

    def first(rule, guidance):
        path = mt.sample_path(model, 3, given={"label": label}, rule=rule, guidance=guidance, steps=5, generator=generator())
        _, z, p = next(path)
        return z, p.aggregate

    for rule in ("conditioned", "bayes"):
        z, plain = first(rule, 1.0)
        with torch.no_grad():
            untold = model.predict(z, 50).aggregate
        assert not torch.allclose(plain, untold, atol=1e-4)
        for g in (0.0, 1.0 + 1e-12, 1.1, 2.5):
            assert torch.allclose(first(rule, g)[1], untold + g * (plain - untold), atol=1e-5)


def test_guidance_of_an_aggregate_that_heads_make_up():
    """What is told keeps its code, the rest is untold + g (told - untold), weighed by the curves at the step.

    The untold estimate has not heard it in z_t either: the known code is taken out, as before the told one.
    """
    model, label = image_label_model("heads", remove_known=True), torch.tensor([0, 1, 2])
    path = mt.sample_path(model, 3, given={"label": label}, rule="conditioned", guidance=2.5, steps=5, generator=generator())
    t, z, guided = list(path)[2]
    with torch.no_grad():
        code, at = model.encode({"label": label})["label"].double(), model.process.at(t, z)
        told = model.predict(z, t, given={"label": label})
        untold = model.predict(z - at.signal * at.W["label"] * code, t, present={"image"})
        image = untold.estimate["image"] + 2.5 * (told.estimate["image"] - untold.estimate["image"])
        expected = model.process.aggregate({"image": image, "label": code}, t)
    assert (guided.aggregate - expected).abs().max() < 1e-5
    assert (guided.aggregate - told.aggregate).abs().max() > 1e-3


def test_guidance_of_what_is_taken_out_is_by_the_gradient_of_the_rest():
    """Theory 4: m^ = W E + m' + g (1 - abar) / sqrt(abar) grad_r log p(y | r), r the state without y; for g = 1 rule 2."""
    model, label = mixture(mt.fade_in(1.0)), torch.tensor([0, 1, 2])
    model.remove_known, code = True, model.encode({"label": label})["label"]
    for g in (1.0, 2.5):
        options = {"given": {"label": label}, "rule": "conditioned", "guidance": g, "steps": 5, "generator": generator()}
        t, z, guided = list(mt.sample_path(model, 3, **options))[2]
        at = model.process.at(t, z)
        rest = (z - at.signal * at.W["label"] * code).requires_grad_()
        gradient = torch.autograd.grad(model.log_prob("label", label, rest, t, present={"x"}).sum(), rest)[0]
        without = model.predict(rest.detach(), t, present={"x"}).aggregate
        expected = at.W["label"] * code + without + g * at.noise**2 / at.signal * gradient
        assert (guided.aggregate - expected).abs().max() < 1e-9
        bayes = model.predict(z, t, given={"label": label}).aggregate
        assert torch.allclose(guided.aggregate, bayes, atol=1e-9) == (g == 1)


def test_what_is_taken_out_may_be_in_the_sum_or_not():
    """With `remove_known`, guidance by a given label is the same whether the chain carries the label or not."""
    model, label = image_label_model(remove_known=True), torch.tensor([0, 1, 2])
    code, start = model.encode({"label": label})["label"], torch.randn(3, *model.space, generator=generator()).double()

    def carried(t):
        at = model.process.at(t, start)
        return at.signal * at.W["label"] * code

    def path(guidance, z, present=None):
        options = {"given": {"label": label}, "rule": "conditioned", "sampler": "ddim", "steps": 5, "present": present}
        return [(t, z) for t, z, _ in mt.sample_path(model, 3, guidance=guidance, start=(50, z), **options)]

    guided, plain, apart = path(2.5, start + carried(50)), path(1.0, start + carried(50)), path(2.5, start, {"image"})
    for (t, z), (_, without) in zip(guided, apart, strict=True):
        assert torch.allclose(z - carried(t), without, atol=1e-6)
    assert not torch.allclose(guided[-1][1], plain[-1][1], atol=1e-2)


def test_the_untold_prediction_of_guidance_knows_what_is_present():
    model, label = image_label_model(curve=mt.constant(0.5)), torch.tensor([0, 1, 2])
    options = {"given": {"label": label}, "rule": "conditioned", "guidance": 2.0, "present": {"image"}, "steps": 5}
    _, z, guided = next(mt.sample_path(model, 3, generator=generator(), **options))
    mask = {"image": torch.ones(3, dtype=torch.bool), "label": torch.zeros(3, dtype=torch.bool)}
    with torch.no_grad():
        told = model.predict(z, 50, given={"label": label}, present=mask).aggregate
        untold = model.predict(z, 50, present=mask).aggregate
    assert torch.allclose(guided.aggregate, untold + 2 * (told - untold), atol=1e-5)


def test_what_is_not_in_the_chain_is_told_or_refused():
    model, label = image_label_model(curve=mt.constant(0.0)), torch.tensor([0, 1, 2])
    assert mt.sample(model, 3, given={"label": label}, steps=2, generator=generator())["label"].equal(label)
    for rule in ("substitute", "readout"):
        with pytest.raises(ValueError, match=f"'label' is not in the chain.*not '{rule}'"):
            mt.sample(model, 3, given={"label": label}, rule=rule, steps=2)


def test_what_was_always_given_must_be_given():
    model, label = image_label_model(conditions=("label",)), torch.tensor([0, 1, 2])
    assert mt.sample(model, 3, given={"label": label}, steps=2, generator=generator())["label"].equal(label)
    with pytest.raises(ValueError, match=r"trained with \['label'\] always given"):
        mt.sample(model, 3, steps=2)


def test_guidance_of_two_rules_scales_each_once():
    model, batch = image_label_model(curve=mt.constant(0.5)), image_label_batch(3)
    rules = {"label": "conditioned", "image": "bayes"}

    def first(guidance):
        path = mt.sample_path(model, 3, given=batch, rule=rules, guidance=guidance, steps=5, generator=generator())
        return next(path)[2].aggregate

    one, two, three = (first(g) for g in (1.0, 2.0, 3.0))
    assert torch.allclose(three - two, two - one, rtol=1e-3, atol=1e-4)


def test_guidance_sharpens():
    model = mixture(mt.constant(1.0))
    spread = [
        float(
            mt.sample(model, 500, given={"label": torch.tensor([1])}, guidance=g, generator=generator())["x"].std(0).mean()
        )
        for g in (1.0, 3.0)
    ]
    assert spread[1] < 0.9 * spread[0]


# ---- errors ----

LABEL = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ValueError, "n must be a whole number from 1 on, got 0"),
        ({"n": 2.5}, ValueError, "n must be a whole number from 1 on, got 2.5"),
        ({"steps": 51}, ValueError, r"steps must be in 1\.\.50 from t = 50, got 51"),
        ({"steps": 0}, ValueError, r"steps must be in 1\.\.50"),
        ({"steps": 2.5}, ValueError, r"steps must be in 1\.\.50 from t = 50, got 2.5"),
        ({"repeats": 0}, ValueError, "repeats must be a whole number from 1 on, got 0"),
        ({"sampler": "euler"}, ValueError, "sampler must be one of .* got 'euler'"),
        ({"given": {"label": LABEL}, "rule": "magic"}, ValueError, "rule must be one of .* got 'magic'"),
        ({"rule": "magic"}, ValueError, "magic"),
        ({"given": {"label": LABEL}, "rule": {"sound": "bayes"}}, KeyError, "rule names an unknown modality .sound."),
        ({"given": {"sound": LABEL}}, KeyError, "given names an unknown modality 'sound'"),
        ({"given": {"label": LABEL + 1}}, ValueError, r"given: 'label' has values outside 0\.\.2: \[3\]"),
        ({"given": {"label": LABEL[:2]}}, ValueError, r"given\['label'\] has 2 examples, expected 3"),
        (
            {"given": {"image": torch.full((3, 1, 4, 4), math.nan)}},
            ValueError,
            "given: 'image' has values that are not finite",
        ),
        ({"given": {"label": LABEL}, "rule": "substitute", "guidance": 2.0}, ValueError, "guidance 2.0 needs rule"),
        ({"given": {"label": LABEL}, "rule": "readout", "guidance": 2.0}, ValueError, "guidance 2.0 needs rule"),
        ({"guidance": 2.0}, ValueError, "guidance 2.0"),
        ({"guidance": math.nan}, ValueError, "guidance must be a finite number, got nan"),
        ({"given": {"label": LABEL}, "rule": "bayes", "guidance": math.inf}, ValueError, "finite number, got inf"),
        ({"given": {"label": LABEL}, "rule": "bayes", "guidance": "2"}, ValueError, "finite number, got '2'"),
        ({"given": {"label": LABEL[:0]}}, ValueError, "given must have at least one example"),
        ({"given": image_label_batch(3), "rule": "bayes"}, ValueError, '"bayes" takes one given modality'),
        ({"given": image_label_batch(3), "rule": {"image": "readout", "label": "bayes"}}, ValueError, "readout"),
        ({"chain": ["sound"]}, KeyError, "chain names an unknown modality 'sound'"),
        ({"chain": ["label", "image", "label"]}, ValueError, r"chain names \['label'\], which is given or named before"),
        ({"chain": ["label"], "given": {"label": LABEL}}, ValueError, r"chain names \['label'\], which is given"),
    ],
)
def test_sample_names_what_is_wrong(options, error, message):
    with pytest.raises(error, match=message):
        mt.sample(image_label_model(), **{"n": 3, "steps": 5, **options})


def test_a_read_out_has_no_path():
    with pytest.raises(ValueError, match='"readout" has no path'):
        next(mt.sample_path(image_label_model(), 3, given={"label": LABEL}, rule="readout"))


def test_bayes_says_which_unknowns_it_cannot_tell_apart():
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), {"x": 1.0, "y": mt.fade_in(1.0), "label": mt.fade_in(1.0)})
    modalities = {"x": mt.Vector(2), "y": mt.Vector(2), "label": mt.Label(3)}
    model = mt.MTDiffusion(process, modalities, mt.MLP((2,), width=8), (2,))
    with pytest.raises(ValueError, match=r"cannot tell the unknown \['x', 'y'\] apart while \['y'\] moves"):
        mt.sample(model, 3, given={"label": LABEL}, rule="bayes", steps=5)


def test_steps_are_counted_from_the_first_readable_one():
    model = image_label_model(schedule=mt.NoiseSchedule.cosine(50))
    mt.sample(model, 1, steps=49, generator=generator())
    with pytest.raises(ValueError, match=r"steps must be in 1\.\.49"):
        mt.sample(model, 1, steps=50, generator=generator())


def test_known_draws_need_no_numbers_of_their_own():
    """A given value of one example stands for all: the same as giving it n times."""
    model = mixture(mt.fade_in(0.5))
    one, many = (
        mt.sample(model, 4, given={"label": torch.full((k,), 2)}, steps=10, generator=generator())["x"] for k in (1, 4)
    )
    assert torch.equal(one, many)


# ---- present sets, and other starts ----


@pytest.mark.parametrize("sampler", BUDGET)
def test_a_chain_of_one_modality_draws_its_marginal(sampler):
    """present={"x"}: the law of the points, at the noise floor, and labels read off them; seed 0."""
    model = mixture(mt.fade_in(0.5))
    out = mt.sample(model, N, present={"x"}, sampler=sampler, steps=BUDGET[sampler], generator=generator(0))
    assert energy_distance(out["x"], truth(model)[0]) < 0.012
    for k, weight in enumerate(model.weights.tolist()):
        assert abs(float((out["label"] == k).double().mean()) - weight) < 4 * standard_error(weight, N)


@pytest.mark.parametrize("sampler", BUDGET)
def test_it_is_the_chain_of_a_process_that_has_nothing_else(sampler):
    whole, alone = mixture(mt.constant(1.0)), mixture(0.0)
    a = mt.sample_path(whole, 50, present={"x"}, sampler=sampler, steps=20, generator=generator(1))
    b = mt.sample_path(alone, 50, sampler=sampler, steps=20, generator=generator(1))
    for (t, z, p), (s, y, q) in zip(a, b, strict=True):
        assert t == s
        assert torch.allclose(z, y, atol=1e-9)
        assert torch.allclose(p.aggregate, q.aggregate, atol=1e-9)
        assert not p.estimate["label"].any()


@pytest.mark.parametrize("sampler", BUDGET)
def test_what_is_told_need_not_be_in_the_chain(sampler):
    """A label outside of the chain, told: the law of its class, at the noise floor."""
    model = mixture(mt.constant(1.0))
    out = mt.sample(
        model, N, given={"label": torch.tensor([1])}, rule="conditioned", present={"x"}, sampler=sampler,
        steps=BUDGET[sampler], generator=generator(0),
    )  # fmt: skip
    assert energy_distance(out["x"], truth(model, 1)[0]) < 0.012
    assert bool((out["label"] == 1).all())


def test_a_network_is_told_who_is_present_at_every_step(monkeypatch):
    model, seen = image_label_model(), []
    predict = model.predict

    def spy(z, t, *, given=None, present=None):
        seen.append(present)
        return predict(z, t, given=given, present=present)

    monkeypatch.setattr(model, "predict", spy)
    mt.sample(model, 3, present=["image"], steps=5, generator=generator())
    assert len(seen) == 6
    assert all(present == {"image"} for present in seen)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"present": {"sound"}}, KeyError, "present names an unknown modality 'sound'"),
        ({"present": ()}, ValueError, r"present must hold \['one modality'\]"),
        ({"present": {"x"}, "given": {"label": LABEL[:1]}}, ValueError, r"present must hold \['label'\], got \['x'\]"),
        ({"present": {"x"}, "given": {"label": LABEL[:1]}, "rule": "substitute"}, ValueError, r"must hold \['label'\]"),
        ({"present": {"x"}, "given": {"label": LABEL[:1]}, "rule": "readout"}, ValueError, "neither `present` nor `start`"),
        ({"start": (5, torch.zeros(3, 2)), "given": {"label": LABEL}, "rule": "readout"}, ValueError, "has no chain"),
        ({"start": (0, torch.zeros(3, 2))}, ValueError, r"start must be a step in 1\.\.200, got 0"),
        ({"start": (201, torch.zeros(3, 2))}, ValueError, r"start must be a step in 1\.\.200, got 201"),
        ({"start": (5.0, torch.zeros(3, 2))}, ValueError, r"got 5\.0"),
        ({"present": "x"}, ValueError, "present must be a collection of names, got the string 'x'"),
        ({"start": (5, torch.full((3, 2), math.nan))}, ValueError, "start: z_t has values that are not finite"),
        ({"start": (5, torch.zeros(3, 2, dtype=torch.long))}, ValueError, r"start: z_t must be floating point \(B, 2\)"),
        ({"start": (5, torch.zeros(2, 2))}, ValueError, "start needs 3 states z_t, got 2"),
        ({"start": (3, torch.zeros(3, 2))}, ValueError, r"steps must be in 1\.\.3 from t = 3, got 5"),
    ],
)
def test_present_and_start_name_what_is_wrong(options, error, message):
    with pytest.raises(error, match=message):
        mt.sample(mixture(mt.constant(1.0)), **{"n": 3, "steps": 5, **options})


def test_names_may_come_in_anything_that_can_be_gone_through_once():
    model, batch = image_label_model(), image_label_batch(3)
    a, b = (mt.sample(model, 3, present=p, steps=3, generator=generator()) for p in ({"image"}, iter(["image"])))
    assert torch.equal(a["image"], b["image"])
    bounds = [
        mt.elbo(model, batch, present=kind(["image", "label"]), given=kind(["label"]), generator=generator())
        for kind in (set, iter)
    ]
    assert bounds[0].readout == bounds[1].readout


def test_the_source_of_a_transition_is_always_present():
    model = mixture(mt.fade_in(1.0), x=mt.fade_out(1.0), prior="label")
    with pytest.raises(ValueError, match=r"present must hold \['label'\]"):
        mt.sample(model, 3, given={"label": LABEL}, rule="conditioned", present={"x"}, steps=5)


@pytest.mark.parametrize("sampler", BUDGET)
def test_a_start_at_the_end_is_the_plain_chain(sampler):
    model = image_label_model()
    g = generator(1)
    z = torch.randn(3, *model.space, dtype=torch.float64, generator=g)
    a = mt.sample(model, 3, sampler=sampler, steps=8, start=(50, z), generator=g)
    b = mt.sample(model, 3, sampler=sampler, steps=8, generator=generator(1))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("sampler", BUDGET)
def test_a_start_in_the_middle_keeps_the_law(curve, sampler):
    """From 2,000 states of q(z_t) half way: the joint law at the noise floor; seed 0."""
    model = mixture(CURVES[curve])
    data = model.draw(N, generator(5))
    z, _ = model.process.diffuse(model.encode(data), 100, generator=generator(6))
    steps = min(100, BUDGET[sampler])
    out = mt.sample(model, N, sampler=sampler, steps=steps, start=(100, z), generator=generator(0))
    assert energy_distance(out["x"], truth(model)[0]) < 0.012
    for k, weight in enumerate(model.weights.tolist()):
        assert abs(float((out["label"] == k).double().mean()) - weight) < 4 * standard_error(weight, N)
        assert energy_distance(out["x"][out["label"] == k], truth(model, k)[0]) < 0.03


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("sampler", BUDGET)
def test_repeated_steps_keep_the_law(curve, sampler):
    """2,000 samples, every step twice: the joint law at the noise floor; seed 0."""
    model = mixture(CURVES[curve])
    out = mt.sample(model, N, sampler=sampler, steps=BUDGET[sampler], repeats=2, generator=generator(0))
    assert energy_distance(out["x"], truth(model)[0]) < 0.012
    for k, weight in enumerate(model.weights.tolist()):
        assert abs(float((out["label"] == k).double().mean()) - weight) < 4 * standard_error(weight, N)
        assert energy_distance(out["x"][out["label"] == k], truth(model, k)[0]) < 0.03


def test_a_chain_of_its_own_start_falls_from_there():
    path = list(mt.sample_path(mixture(mt.constant(1.0)), 2, steps=4, start=(80, torch.zeros(2, 2))))
    assert [t for t, _, _ in path] == [80, 60, 40, 20, 0]
    assert not path[0][1].any()
    assert path[0][1].dtype == torch.float64


# ---- an open sampler ----


def dpm_sde(look, z, t, s, noise):
    """DPM-Solver++(2M) with noise (Lu et al. 2022, SDE-DPM-Solver++): an ancestral step by extrapolated estimates."""
    process, guess = look.process, look(z, t)
    if look.previous is not None and s != process.first:
        before, old = look.previous
        log_snr = process.schedule.abar.logit()
        guess = guess.towards(
            process, t, old, before, -float((log_snr[s] - log_snr[t]) / (log_snr[t] - log_snr[before])) / 2
        )
    mean, std = process.back(z, guess.aggregate, guess.moved(process, t, s), t, s)
    return mean + std * noise()


@pytest.mark.parametrize("curve", CURVES)
def test_a_step_of_ones_own_draws_from_the_law(curve):
    """2,000 samples by a step that the library does not have: the joint law at the noise floor; seed 0."""
    model = mixture(CURVES[curve])
    out = mt.sample(model, N, sampler=dpm_sde, steps=100, generator=generator(0))
    assert energy_distance(out["x"], truth(model)[0]) < 0.012
    for k, weight in enumerate(model.weights.tolist()):
        assert abs(float((out["label"] == k).double().mean()) - weight) < 4 * standard_error(weight, N)


@pytest.mark.parametrize("sampler", BUDGET)
def test_a_sampler_by_name_is_the_step_of_that_name(sampler):
    model = mixture(mt.fade_in(1.0))
    a, b = (mt.sample(model, 5, sampler=s, steps=7, generator=generator(2)) for s in (sampler, SAMPLERS[sampler]))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_step_is_asked_once_for_each_interval_and_the_model_once_for_each_state():
    model, calls, states = mixture(mt.fade_in(1.0)), [], []
    predict = model.predict

    def step(look, z, t, s, noise):
        calls.append((t, s, look.previous and look.previous[0]))
        look(z, t)
        return SAMPLERS["ddim"](look, z, t, s, noise)

    model.predict = lambda z, t, **options: states.append(t) or predict(z, t, **options)
    mt.sample(model, 2, sampler=step, steps=4, generator=generator())
    assert calls == [(200, 150, None), (150, 100, 200), (100, 50, 150), (50, 0, 100)]
    assert states == [200, 150, 100, 50, 0, 0], "the last for the joint law that is read"


def test_towards_a_label_is_the_rule_of_bayes():
    """The same number for number: `towards` its own head, or the label given by that rule, at any scale."""
    model = mixture(0.0)
    for guidance in (1.0, 2.5):
        options = {"sampler": "ddim", "steps": 20, "guidance": guidance}
        ruled = mt.sample_path(model, 3, given={"label": LABEL}, rule="bayes", generator=generator(1), **options)
        moved = mt.sample_path(model, 3, towards=lambda p: p.law["label"].log_prob(LABEL), generator=generator(1), **options)
        for (t, z, p), (u, y, q) in zip(ruled, moved, strict=True):
            assert t == u
            assert torch.equal(z, y)
            assert torch.equal(p.aggregate, q.aggregate)


def test_a_guide_says_what_a_step_works_with():
    """One that knows the data leads to them, whatever the model says."""
    model = mixture(0.0)
    x, asked = torch.tensor([[0.3, -0.2]], dtype=torch.float64), []

    def guide(prediction, z, t):
        assert z.shape == (4, 2)
        asked.append(t)
        return mt.Prediction(x.expand(4, 2), prediction.law, {**prediction.estimate, "x": x.expand(4, 2)})

    t, z, p = list(mt.sample_path(model, 4, sampler="ddim", steps=10, guide=guide, generator=generator()))[-1]
    assert torch.equal(p.aggregate, x.expand(4, 2))
    assert asked == model.process.times(10)
    at = model.process.at(t, z)
    assert float((z - at.signal * x).abs().max()) < 5 * float(at.noise[0])


def test_what_is_done_after_a_step_is_where_the_next_begins():
    model, seen = mixture(mt.fade_in(1.0)), []

    def keep(z, s):
        seen.append(s)
        return z.clamp(-0.5, 0.5)

    path = list(mt.sample_path(model, 6, steps=4, after_step=keep, generator=generator()))
    assert seen == [t for t, _, _ in path][1:] == [150, 100, 50, 0]
    assert all(float(z.abs().max()) <= 0.5 for _, z, _ in path[1:])
    assert float(path[0][1].abs().max()) > 0.5


def test_two_gradients_are_refused():
    with pytest.raises(ValueError, match="both move the aggregate by a gradient"):
        mt.sample(
            mixture(0.0),
            3,
            given={"label": LABEL},
            rule="bayes",
            towards=lambda p: p.aggregate.sum(1),
            generator=generator(),
        )


@pytest.mark.parametrize("sampler", BUDGET)
def test_present_sets_may_differ_from_example_to_example(sampler):
    """Masks {name: (n,) bool}: rows without the label are those of present={"x"}, rows with it of the whole chain."""
    model, mask = mixture(mt.fade_in(1.0)), torch.tensor([True, False, True, False])
    options = {"sampler": sampler, "steps": 6}
    mixed, whole, alone = (
        list(mt.sample_path(model, 4, present=present, generator=generator(4), **options))[-1][1]
        for present in ({"label": mask}, None, {"x"})
    )
    torch.testing.assert_close(mixed[mask], whole[mask])
    torch.testing.assert_close(mixed[~mask], alone[~mask])


@pytest.mark.parametrize("wrong", [lambda z: z.float(), lambda z: z[:1], lambda z: z[:, :1]])
def test_a_step_that_returns_no_state_is_named(wrong):
    with pytest.raises(ValueError, match=r"a step must return z_s \(3, 2\) torch.float64, got"):
        mt.sample(mixture(0.0), 3, sampler=lambda look, z, t, s, noise: wrong(z), steps=3, generator=generator())


def test_without_a_rule_of_its_own_a_model_is_conditioned_on_what_training_gave_it():
    model = image_label_model()
    given = {"label": torch.tensor([0, 1, 2])}
    mt.multitask_loss(model.train(), image_label_batch(6), give={"label": 0.3}, generator=generator())
    ruled, bare, swapped = (
        mt.sample(model.eval(), 3, given=given, rule=rule, steps=4, generator=generator(3))
        for rule in ("conditioned", None, "substitute")
    )
    assert torch.equal(bare["image"], ruled["image"])
    assert not torch.equal(bare["image"], swapped["image"])
    with pytest.raises(ValueError, match="was never given in training"):
        mt.sample(model, 3, given={"image": torch.zeros(3, 1, 4, 4)}, rule="conditioned", steps=4)


def test_many_are_drawn_in_batches_and_given_values_stay_with_their_row():
    """As one would by hand, batch by batch from one generator; the last is what is left."""
    model, label = mixture(0.0), torch.tensor([0, 1, 2, 2, 1, 0, 1])
    options = {"steps": 3, "rule": "bayes"}
    many = sample_many(model, 7, batch=3, given={"label": label}, generator=generator(5), **options)
    g = generator(5)
    parts = [
        mt.sample(model, len(rows), given={"label": label[rows]}, generator=g, **options)
        for rows in torch.arange(7).split(3)
    ]
    for name in ("x", "label"):
        assert torch.equal(many[name], torch.cat([part[name] for part in parts]))
    assert torch.equal(many["label"], label)


def test_a_batch_is_of_250_unless_one_says(monkeypatch):
    sizes = []
    monkeypatch.setattr(sampling, "sample", lambda model, n, **options: sizes.append(n) or {"x": torch.zeros(n)})
    assert len(sample_many(mixture(0.0), 501)["x"]) == 501
    assert sizes == [250, 250, 1]


def test_one_state_that_is_not_finite_is_enough():
    model = OneModality(mt.ForwardProcess(mt.NoiseSchedule.log_snr(20), {"x": 1.0}), (2,), lambda z, t: z)

    def spoil(z, s):
        return torch.where(torch.arange(3)[:, None] == 1, math.nan, z) if s == 0 else z

    model.predict = lambda z, t, **options: mt.Prediction(z.nan_to_num(), {}, {"x": z.nan_to_num()})
    with pytest.raises(FloatingPointError, match="left the finite numbers"):
        mt.sample(model, 3, steps=4, after_step=spoil, generator=generator())


@pytest.mark.parametrize("chain", [(), "label"])
def test_an_option_that_there_is_not_is_named(chain):
    with pytest.raises(TypeError, match=r"sample\(\) got unexpected options \['step'\]; beside its own it takes \['start'"):
        mt.sample(image_label_model(), 2, chain=chain, step=5)


def test_every_option_of_a_path_is_one_of_sample():
    own = inspect.signature(mt.sample).parameters.keys()
    assert inspect.signature(mt.sample_path).parameters.keys() - own == set(sampling.OF_A_PATH)
