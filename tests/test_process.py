import math

import pytest
import torch
from diffusers import DDPMScheduler
from helpers import generator, randn
from hypothesis import given
from hypothesis import strategies as st

import mtdiff as mt
from mtdiff.modalities.label import simplex_codes

SHAPES = [(3,), (2, 4, 4)]


@st.composite
def cases(draw):
    """A process with random schedule and curves, codes on a random space, and the batch size."""
    T, n, seed = draw(st.integers(1, 12)), draw(st.integers(1, 3)), draw(st.integers(0, 2**20))
    g = generator(seed)
    falls = 0.1 + 2 * torch.rand(T, dtype=torch.float64, generator=g)
    log_snr = draw(st.floats(0, 9)) - torch.cat([torch.zeros(1), falls.cumsum(0)])
    abar = torch.sigmoid(log_snr)
    if draw(st.booleans()):
        abar[0] = 1.0
    weights = {}
    for i in range(n):
        curves = [mt.fade_in(0.7), mt.fade_out(-1.3), 0.9, torch.randn(T + 1, dtype=torch.float64, generator=g)]
        weights[f"m{i}"] = draw(st.sampled_from(curves))
    shape = (draw(st.integers(1, 3)), *draw(st.sampled_from(SHAPES)))
    codes = {name: torch.randn(shape, dtype=torch.float64, generator=g) for name in weights}
    return mt.ForwardProcess(mt.NoiseSchedule(abar), weights), codes, g


def close(a, b, atol=1e-10):
    return torch.allclose(a, b, rtol=0, atol=atol)


def linear(T=1000):
    """The DDPM case: one modality, weight 1."""
    return mt.ForwardProcess(mt.NoiseSchedule.linear(T), {"x": 1.0})


def reference(process):
    """diffusers' scheduler on the same curve, in float64 (that its own curve is the same is tested in test_schedules)."""
    scheduler = DDPMScheduler(num_train_timesteps=process.steps, beta_schedule="linear", clip_sample=False)
    scheduler.alphas_cumprod = process.schedule.abar[1:]
    scheduler.set_timesteps(process.steps)
    return scheduler


@given(case=cases())
def test_marginal_is_the_composition_of_the_transitions(case):
    p, codes, _ = case
    abar = p.schedule.abar
    mean = abar[0].sqrt() * p.aggregate(codes, 0)
    variance = 1 - abar[0]
    for t in range(1, p.steps + 1):
        mean, std = p.transition(mean, codes, t)
        variance = abar[t] / abar[t - 1] * variance + std**2
        marginal, marginal_std = p.marginal(codes, t)
        assert close(mean, marginal)
        assert close(variance, (marginal_std**2).expand_as(variance))


@given(case=cases())
def test_posterior_is_bayes_rule(case):
    p, codes, g = case
    for t in range(1, p.steps + 1):
        root_alpha = (p.schedule.abar[t] / p.schedule.abar[t - 1]).sqrt()
        before, before_std = p.marginal(codes, t - 1)
        offset, step_std = p.transition(torch.zeros_like(before), codes, t)
        z_t = torch.randn(before.shape, dtype=torch.float64, generator=g)
        gain = root_alpha * before_std**2 / (root_alpha**2 * before_std**2 + step_std**2)
        mean, std = p.posterior(z_t, codes, t)
        assert close(mean, before + gain * (z_t - root_alpha * before - offset))
        assert close(std**2, before_std**2 * (1 - gain * root_alpha))


@given(case=cases())
def test_posterior_mean_is_ddpms_minus_the_aggregation_term(case):
    p, codes, g = case
    for t in range(1, p.steps + 1):
        abar, alpha = p.schedule.abar[t], p.schedule.abar[t] / p.schedule.abar[t - 1]
        z_t, eps = p.diffuse(codes, t, generator=g)
        ddpm = (z_t - (1 - alpha) / (1 - abar).sqrt() * eps) / alpha.sqrt()
        injected = sum(p.injected(name)[t] * code for name, code in codes.items())
        assert close(p.posterior(z_t, codes, t)[0], ddpm - injected)


@given(case=cases())
def test_transition_is_the_papers_kernel(case):
    p, codes, g = case
    for t in range(1, p.steps + 1):
        alpha = p.schedule.abar[t] / p.schedule.abar[t - 1]
        z = torch.randn(next(iter(codes.values())).shape, dtype=torch.float64, generator=g)
        injected = sum(p.injected(name)[t] * code for name, code in codes.items())
        mean, std = p.transition(z, codes, t)
        assert close(mean, alpha.sqrt() * (z + injected))
        assert close(std**2, (1 - alpha).expand_as(std))


@given(case=cases())
def test_injected_weights_add_up_to_the_cumulative_ones(case):
    p, _, _ = case
    for name in p.names:
        W, w = p.cumulative(name), p.injected(name)
        assert w[0] == 0
        assert close(W, W[0] + torch.cat([torch.zeros(1), (w[1:] / p.schedule.abar[:-1].sqrt()).cumsum(0)]))
        assert (name in p.moving) == bool((w != 0).any())


@given(case=cases())
def test_masked_modalities_contribute_nothing(case):
    p, codes, g = case
    n = len(next(iter(codes.values())))
    present = {name: torch.rand(n, generator=g) < 0.5 for name in codes}
    masked = {name: code * present[name].double().reshape(-1, *[1] * (code.ndim - 1)) for name, code in codes.items()}
    z = torch.randn(next(iter(codes.values())).shape, dtype=torch.float64, generator=g)
    t = p.steps
    assert close(p.aggregate(codes, t, present), p.aggregate(masked, t))
    assert close(p.marginal(codes, t, present)[0], p.marginal(masked, t)[0])
    assert close(p.transition(z, codes, t, present)[0], p.transition(z, masked, t)[0])
    assert close(p.posterior(z, codes, t, present)[0], p.posterior(z, masked, t)[0])
    assert close(p.diffuse(codes, t, z, present)[0], p.diffuse(masked, t, z)[0])
    names = {name for name in codes if bool(present[name].all())}
    everybody = {name: torch.full((n,), name in names) for name in codes}
    assert close(p.aggregate(codes, t, names), p.aggregate(codes, t, everybody)), "names are masks that are all alike"


@given(case=cases())
def test_a_tensor_of_steps_is_each_step_alone(case):
    p, codes, g = case
    z = torch.randn(next(iter(codes.values())).shape, dtype=torch.float64, generator=g)
    t = torch.randint(1, p.steps + 1, (len(z),), generator=g)
    for b in range(len(z)):
        one, step = {name: code[b : b + 1] for name, code in codes.items()}, int(t[b])
        assert close(p.aggregate(codes, t)[b : b + 1], p.aggregate(one, step))
        for whole, single in (
            (p.marginal(codes, t), p.marginal(one, step)),
            (p.transition(z, codes, t), p.transition(z[b : b + 1], one, step)),
            (p.posterior(z, codes, t), p.posterior(z[b : b + 1], one, step)),
        ):
            assert close(whole[0][b : b + 1], single[0])
            assert close(whole[1][b : b + 1], single[1])


@given(case=cases())
def test_ahead_and_back_over_any_steps_are_those_of_the_process_that_has_these_alone(case):
    """What `transition` and `posterior` are for one step, with steps left out."""
    p, codes, g = case
    t = int(torch.randint(1, p.steps + 1, (), generator=g))
    s = int(torch.randint(0, t, (), generator=g))
    z = torch.randn(next(iter(codes.values())).shape, dtype=torch.float64, generator=g)
    short = mt.NoiseSchedule(p.schedule.abar[[s, t]])
    two = mt.ForwardProcess(short, {name: p.cumulative(name)[[s, t]] for name in p.names})
    m_s, m_t = p.aggregate(codes, s), p.aggregate(codes, t)
    for found, expected in (
        (p.ahead(z, m_s, m_t, s, t), two.transition(z, codes, 1)),
        (p.back(z, m_t, m_s, t, s), two.posterior(z, codes, 1)),
    ):
        assert close(found[0], expected[0])
        assert close(found[1], expected[1])


def test_steps_that_are_not_in_order_and_states_of_other_shapes_are_refused():
    p, x = linear(10), randn(2, 3)
    with pytest.raises(ValueError, match=r"s must be before t, got s = \[4, 4\] and t = \[4, 4\]"):
        p.back(x, x, x, 4, 4)
    with pytest.raises(ValueError, match=r"s must be before t, got s = \[5, 5\]"):
        p.ahead(x, x, x, 5, torch.tensor([6, 4]))
    with pytest.raises(ValueError, match=r"must have one shape, got \[\(2, 3\), \(1, 3\), \(2, 3\)\]"):
        p.ahead(x, x[:1], x, 1, 2)


@given(case=cases())
def test_at_is_the_tables_at_a_step(case):
    p, codes, g = case
    like = next(iter(codes.values()))
    t = torch.randint(0, p.steps + 1, (len(like),), generator=g)
    at = p.at(t, like)
    assert close(at.mix(codes), p.aggregate(codes, t))
    assert close(at.signal.flatten(), p.schedule.abar[t].sqrt())
    assert close(at.noise.flatten(), (1 - p.schedule.abar[t]).sqrt())
    assert all(close(at.W[name].flatten(), p.cumulative(name)[t]) for name in p.names)


@given(case=cases())
def test_gain_and_variance_are_the_conditional_of_a_gaussian_pair(case):
    p, codes, _ = case
    z = next(iter(codes.values()))
    for name in p.names:
        for t in range(p.first, p.steps + 1):
            a = p.schedule.abar[t].sqrt() * p.cumulative(name)[t]  # z = a x + noise, x ~ N(0, 1)
            joint = torch.stack([torch.stack([torch.ones(()).double(), a]), torch.stack([a, a**2 + 1 - p.schedule.abar[t]])])
            precision_of_x = torch.linalg.inv(joint)[0, 0]
            gain, variance = p.at(t, z).gain(name), p.at(t, z).variance(name)
            assert close(gain, (joint[0, 1] / joint[1, 1]).expand_as(gain))
            assert close(variance, (1 / precision_of_x).expand_as(variance), atol=1e-8)


def test_gain_and_variance_of_weight_one_are_the_parametrisation_of_v_prediction():
    p = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20), {"x": 1.0})
    t = torch.arange(21)
    at = p.at(t, torch.zeros(21, 1, dtype=torch.float64))
    assert close(at.gain("x")[:, 0], p.schedule.abar.sqrt())
    assert close(at.variance("x")[:, 0], 1 - p.schedule.abar)


def test_snr_formula_and_the_peak_of_a_linear_fade_in():
    p = mt.ForwardProcess(mt.NoiseSchedule.log_snr(900), {"image": 1.0, "label": mt.fade_in(0.5)})
    assert close(p.snr("image").log(), torch.linspace(9, -9, 901, dtype=torch.float64))
    u = torch.arange(901).double() / 900
    assert close(p.snr("label"), (0.5 * u) ** 2 * (9 - 18 * u).exp())
    assert int(p.snr("label").argmax()) == 100  # u = 1/9 (theory 2)


@pytest.mark.parametrize("space", [(1, 8, 8), (3, 16, 16), (3, 32, 32)])
def test_what_is_left_of_a_code_is_half_of_snr_times_dimension(space):
    """For codes of unit RMS; and for any codes it is the sum over coordinates of KL(N(mean, std) || N(0, 1))."""
    p = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10, 8.0, -8.0), {"x": 0.5, "y": mt.fade_in(1.0)})
    code = torch.sign(randn(4, *space, seed=1))
    half = float(p.snr("y")[-1]) * math.prod(space) / 2
    alone = {"x": torch.zeros(4, dtype=torch.bool)}
    assert p.prior_kl({"y": code}, alone).tolist() == pytest.approx([half] * 4, rel=1e-3)
    codes = {"x": randn(4, *space, seed=2), "y": code}
    mean, std = p.marginal(codes, 10)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, std.expand_as(mean)), normal(0.0, 1.0))
    assert torch.allclose(p.prior_kl(codes), kl.flatten(1).sum(1), rtol=1e-9)
    assert p.prior_kl({name: value.float() for name, value in codes.items()}).dtype == torch.float64


def test_a_chain_that_starts_at_its_source_has_nothing_left():
    p = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10, 8.0, -2.0), {"x": mt.fade_out(1.0), "y": mt.fade_in(1.0)}, "y")
    assert p.prior_kl({"x": randn(3, 2, seed=1), "y": randn(3, 2, seed=2)}).tolist() == [0.0] * 3


@pytest.mark.parametrize(("space", "nats"), [((1, 8, 8), 0.01), ((3, 32, 32), 0.48), ((3, 64, 64), 1.49)])
def test_what_the_end_tells_of_ten_classes_grows_with_the_space(space, nats):
    """H(y) - H(y | z_T) by Bayes' rule at log-SNR -8 and weight 1; 20,000 draws, standard error 0.007 at 64x64."""
    table = simplex_codes(10, space).flatten(1).double()
    p = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10, 8.0, -8.0), {"label": 1.0})
    gram, snr, y = table @ table.T, float(p.snr("label")[-1]), torch.arange(20_000) % 10
    values, vectors = torch.linalg.eigh(gram)
    seen = randn(20_000, 10, seed=3) * values.clamp(min=0).sqrt() @ vectors.T  # the noise's inner products with the codes
    log_p = (snr * gram[y] + snr**0.5 * seen).log_softmax(1).gather(1, y[:, None])
    tells = float(log_p.mean()) + math.log(10)
    assert tells == pytest.approx(nats, abs=0.03)
    assert tells < float(p.prior_kl({"label": table[:1]})) + 0.03


def test_an_absent_modality_has_no_signal_where_there_is_no_noise():
    p = mt.ForwardProcess(mt.NoiseSchedule.linear(10), {"image": 1.0, "label": mt.fade_in(1.0)})
    assert p.snr("image")[0] == math.inf
    assert p.snr("label")[0] == 0


def test_one_modality_with_weight_one_diffuses_like_ddpm():
    p = linear()
    scheduler = reference(p)
    x, noise, t = randn(5, 2, 3, 3, seed=1), randn(5, 2, 3, 3, seed=2), torch.tensor([1, 2, 37, 500, 1000])
    assert close(p.diffuse({"x": x}, t, noise)[0], scheduler.add_noise(x, noise, t - 1))


@pytest.mark.parametrize("t", [1, 2, 3, 37, 500, 1000])
def test_one_modality_with_weight_one_has_ddpms_posterior(t):
    p = linear()
    scheduler = reference(p)
    x = randn(4, 3, seed=t)
    z, eps = p.diffuse({"x": x}, t, generator=generator(t))
    mean, std = p.posterior(z, {"x": x}, t)
    theirs = scheduler.step(eps, t - 1, z, generator=generator(9)).prev_sample
    noise = torch.randn(z.shape, dtype=torch.float64, generator=generator(9)) if t > 1 else torch.zeros_like(z)
    assert close(theirs, mean + std * noise)
    if t > 1:
        assert close(std**2, scheduler._get_variance(t - 1).expand_as(std))


def test_noise_free_start():
    """With abar_0 = 1 the posterior at t = 1 is the point m_0."""
    p = mt.ForwardProcess(mt.NoiseSchedule.cosine(10), {"x": mt.fade_out(0.8), "y": mt.fade_in(0.5)})
    codes = {"x": randn(3, 2, seed=1), "y": randn(3, 2, seed=2)}
    mean, std = p.posterior(randn(3, 2, seed=3), codes, 1)
    assert p.first == 1
    assert close(mean, 0.8 * codes["x"])
    assert bool((std == 0).all())


def test_diffuse_uses_the_noise_it_is_given_and_returns_it():
    p = linear(10)
    x, noise = randn(3, 2, seed=1), randn(3, 2, seed=2)
    z, back = p.diffuse({"x": x}, 4, noise)
    abar = p.schedule.abar[4]
    assert back is noise
    assert close(z, abar.sqrt() * x + (1 - abar).sqrt() * noise)


def test_the_ends_are_steps_too():
    """0 and T, as numbers and as tensors, wherever a step may be one of them."""
    p, codes = mt.ForwardProcess(mt.NoiseSchedule.log_snr(4), {"x": mt.fade_out(1.0)}), {"x": randn(2, 3)}
    for zero, last in ((0, 4), (torch.tensor(0), torch.tensor(4)), (torch.tensor([0, 0]), torch.tensor([4, 4]))):
        assert float(p.at(zero, codes["x"]).W["x"][0]) == 1
        assert float(p.at(last, codes["x"]).W["x"][0]) == 0
        assert close(p.at(zero, codes["x"]).level[0][0, 0], p.schedule.abar[0].sqrt())
        assert close(p.at(last, codes["x"]).level[1][0, 0], (1 - p.schedule.abar[4]).sqrt())
        at = p.at(last, codes["x"])
        assert at.gain("x").tolist() == [[0], [0]]
        assert at.variance("x").tolist() == [[1], [1]]
    for t in (1, torch.tensor(1), torch.tensor([1, 1])):
        assert close(p.posterior(codes["x"], codes, t)[1], p.posterior(codes["x"], codes, torch.tensor([1, 1]))[1])


def test_noise_is_drawn_in_the_dtype_of_the_codes():
    for dtype in (torch.float32, torch.float64):
        z, noise = linear(4).diffuse({"x": torch.zeros(2, 3, dtype=dtype)}, 2)
        assert z.dtype == noise.dtype == dtype


def test_diffuse_draws_standard_noise_from_its_generator():
    """Mean and variance of 40,000 draws within 4 standard errors; seed 0."""
    p, x = linear(10), torch.zeros(20_000, 2, dtype=torch.float64)
    first, again, other = (p.diffuse({"x": x}, 5, generator=generator(seed))[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert abs(float(first.mean())) < 4 / math.sqrt(first.numel())
    assert abs(float(first.var()) - 1) < 4 * math.sqrt(2 / first.numel())


def test_float32_codes_stay_float32_and_accurate():
    weights = {"x": 1.0, "y": mt.fade_in(0.5)}
    p = mt.ForwardProcess(mt.NoiseSchedule.log_snr(1000, high=13.0), weights)
    codes = {"x": randn(4, 3, seed=1), "y": randn(4, 3, seed=2)}
    single = {name: code.float() for name, code in codes.items()}
    z, t = randn(4, 3, seed=3), torch.tensor([1, 2, 500, 1000])
    for exact, rounded in (
        (p.marginal(codes, t), p.marginal(single, t)),
        (p.transition(z, codes, t), p.transition(z.float(), single, t)),
        (p.posterior(z, codes, t), p.posterior(z.float(), single, t)),
    ):
        for a, b in zip(exact, rounded, strict=True):
            assert b.dtype == torch.float32
            assert torch.allclose(a, b.double(), rtol=2e-6, atol=2e-6)


def test_a_modality_without_weight_needs_no_code():
    p = mt.ForwardProcess(mt.NoiseSchedule.log_snr(5), {"x": 1.0, "caption": 0.0})
    x = randn(2, 3)
    assert close(p.aggregate({"x": x}, 3), x)


def test_a_chain_may_end_at_a_modality():
    weights = {"target": mt.fade_out(1.0), "source": mt.fade_in(1.0)}
    p = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10, 8, 0), weights, prior="source")
    codes = {"target": randn(2, 3, seed=1), "source": randn(2, 3, seed=2)}
    assert p.prior == "source"
    assert close(p.marginal(codes, 10)[0], p.schedule.abar[10].sqrt() * codes["source"])
    assert close(p.marginal(codes, 0)[0], p.schedule.abar[0].sqrt() * codes["target"])


def test_bad_processes_are_refused():
    s = mt.NoiseSchedule.log_snr(4)
    with pytest.raises(ValueError, match="no modality"):
        mt.ForwardProcess(s, {})
    with pytest.raises(ValueError, match=r"'x' needs 5 values"):
        mt.ForwardProcess(s, {"x": torch.ones(4)})
    with pytest.raises(KeyError, match="no modality 'source'"):
        mt.ForwardProcess(s, {"x": 1.0}, prior="source")
    with pytest.raises(ValueError, match=r"end at 'y' alone, but \['x'\] have weight left"):
        mt.ForwardProcess(s, {"x": 1.0, "y": mt.fade_in(1.0)}, prior="y")


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("codes", "t", "present", "error", "message"),
    [
        ({"x": X, "z": X}, 1, None, KeyError, "codes names an unknown modality 'z'"),
        ({"x": X}, 1, None, KeyError, "codes lacks 'y'"),
        ({}, 1, None, KeyError, "codes is empty"),
        ({"x": X, "y": X}, 1, {"z": torch.ones(2, dtype=torch.bool)}, KeyError, "present names an unknown modality 'z'"),
        ({"x": X}, 1, {"y": torch.tensor([False, True])}, KeyError, "codes lacks 'y'"),
        ({"x": X, "y": X[:1]}, 1, None, ValueError, r"codes\['y'\] has shape \(1, 3\), expected \(2, 3\)"),
        ({"x": X, "y": X}, 1, {"y": torch.ones(2)}, ValueError, r"present\['y'\] must be bool \(2,\), got torch.float32"),
        ({"x": X, "y": X}, 1, {"y": torch.ones(3, dtype=torch.bool)}, ValueError, r"present\['y'\]"),
        ({"x": X, "y": X}, 0, None, ValueError, r"t must be in 1\.\.4, got 0"),
        ({"x": X, "y": X}, 5, None, ValueError, r"t must be in 1\.\.4, got 5"),
        ({"x": X, "y": X}, True, None, ValueError, "t must be an int"),
        ({"x": X, "y": X}, 1.0, None, ValueError, "t must be an int"),
        (
            {"x": X, "y": X},
            torch.tensor([1.0, 2.0]),
            None,
            ValueError,
            r"t must be an int or an int tensor \(2,\), got torch.float32",
        ),
        ({"x": X, "y": X}, torch.tensor([1, 2, 3]), None, ValueError, r"int tensor \(2,\), got torch.int64 \(3,\)"),
        ({"x": X, "y": X}, torch.tensor([1, 9]), None, ValueError, r"t must be in 1\.\.4, got values in 1\.\.9"),
        ({"x": X, "y": X}, torch.tensor([2, -1]), None, ValueError, r"t must be in 1\.\.4, got values in -1\.\.2"),
    ],
)
def test_bad_arguments_are_named(codes, t, present, error, message):
    p = mt.ForwardProcess(mt.NoiseSchedule.log_snr(4), {"x": 1.0, "y": mt.fade_in(1.0)})
    for call in (p.transition, p.posterior):
        with pytest.raises(error, match=message):
            call(X, codes, t, present)
    if not (isinstance(t, int) and t == 0):
        with pytest.raises(error, match=message.replace(r"in 1\.\.4", r"in 0\.\.4")):
            p.marginal(codes, t, present)


NO_NUMBERS = {
    "integers": X.long(),
    "bools": X.bool(),
    "nothing": X[:0],
    "a list": X.tolist(),
    "nan": X * torch.nan,
    "inf": torch.tensor([[0.0, 0.0, 0.0], [0.0, math.inf, 0.0]]),
}


@pytest.mark.parametrize("bad", NO_NUMBERS)
def test_states_codes_and_noise_are_finite_real_numbers_of_somebody(bad):
    """Integers would take amplitudes of 0, and an empty batch has no mean: said by name, whatever is asked for."""
    p, value = mt.ForwardProcess(mt.NoiseSchedule.log_snr(4), {"x": 1.0, "y": mt.fade_in(1.0)}), NO_NUMBERS[bad]
    good, expected = {"x": X, "y": X}, "has values that are not finite" if bad in ("nan", "inf") else "must be a floating"
    calls = [
        p.aggregate, p.marginal, p.diffuse,
        lambda codes, t: p.transition(X, codes, t), lambda codes, t: p.posterior(X, codes, t),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match=rf"codes\['y'\] {expected}"):
            call({**good, "y": value}, 1)
    for name, call in {"z_prev": p.transition, "z_t": p.posterior}.items():
        with pytest.raises(ValueError, match=f"{name} {expected}"):
            call(value, good, 1)
    with pytest.raises(ValueError, match=f"noise {expected}"):
        p.diffuse(good, 1, value)
    if bad in ("integers", "bools", "nothing"):
        for call in (lambda: p.at(1, value).level, lambda: p.at(1, value).W["x"], lambda: p.at(1, value).gain("x")):
            with pytest.raises(ValueError, match=r"states must be floating point \(B, \*Z\) of at least one example, got"):
                call()


def test_noise_is_not_broadcast():
    with pytest.raises(ValueError, match=r"noise has shape \(1, 3\), expected \(2, 3\) like the others"):
        linear(4).diffuse({"x": X}, 1, X[:1])


def test_codes_of_an_encoder_in_training_are_the_trainers_to_watch():
    """It says by how much to lower the learning rate, where a code that is not finite would only be named here."""
    code = torch.full((2, 3), math.nan, requires_grad=True)
    assert bool(linear(4).aggregate({"x": code}, 1).isnan().all())


@pytest.mark.parametrize("call", ["cumulative", "injected", "snr"])
def test_unknown_modalities_are_named(call):
    with pytest.raises(KeyError, match="no modality 'sound'; it has"):
        getattr(linear(4), call)("sound")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_steps_of_any_integer_type_mean_the_same(dtype):
    p, x = linear(4), randn(3, 2)
    t = torch.tensor([0, 1, 4])
    assert torch.equal(p.marginal({"x": x}, t.to(dtype))[0], p.marginal({"x": x}, t)[0])


def test_z_must_have_the_shape_of_the_codes():
    with pytest.raises(ValueError, match=r"z_t has shape \(2, 4\), expected \(2, 3\)"):
        linear(4).posterior(torch.zeros(2, 4), {"x": X}, 1)


def test_tables_cannot_be_changed_from_outside():
    p = linear(4)
    p.cumulative("x")[:] = 7.0
    assert bool((p.cumulative("x") == 1).all())


def test_without_noise_a_coordinate_is_what_is_seen():
    """At t = 0 of a schedule with abar_0 = 1: gain 1 / W and nothing left open; what is not there is all open."""
    p = mt.ForwardProcess(mt.NoiseSchedule.cosine(4), {"x": 1.0, "y": 2.0, "none": mt.fade_in(1.0)})
    at = p.at(0, torch.zeros(1, 2))
    assert [float(at.gain(name)) for name in p.names] == [1.0, 0.5, 0.0]
    assert [float(at.variance(name)) for name in p.names] == [0.0, 0.0, 1.0]
    with pytest.raises(AttributeError, match="cannot assign"):
        at.noise = at.signal


# ---- steps of training ----


@pytest.mark.parametrize("levels", [None, (1.5, 2.4)])
@pytest.mark.parametrize("schedule", [mt.NoiseSchedule.log_snr(40), mt.NoiseSchedule.cosine(40)], ids=["log_snr", "cosine"])
def test_steps_are_drawn_by_their_chances(schedule, levels):
    """Stratified: with 4,000 draws the count of every step is within 2 of what its chance says."""
    process = mt.ForwardProcess(schedule, {"image": 1.0})
    t = process.draw_steps(4000, levels, torch.Generator().manual_seed(0))
    assert (torch.bincount(t, minlength=41) - 4000 * schedule.chances(levels)).abs().max() < 2
