import math

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

import mtdiff as mt
from mtdiff.schedules import tabulate

FAMILIES = {"cosine": mt.NoiseSchedule.cosine, "linear": mt.NoiseSchedule.linear, "log_snr": mt.NoiseSchedule.log_snr}


@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_ddpm_schedules_are_those_of_diffusers(ours, theirs):
    abar = FAMILIES[ours](1000).abar
    reference = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs).alphas_cumprod
    assert abar[0] == 1
    assert (abar[1:] - reference.double()).abs().max() < 1e-6


@given(T=st.integers(1, 300), family=st.sampled_from(sorted(FAMILIES)))
def test_every_schedule_decreases_in_float64(T, family):
    s = FAMILIES[family](T)
    assert s.steps == T
    assert s.abar.shape == (T + 1,)
    assert s.abar.dtype == torch.float64
    assert bool((s.abar.diff() < 0).all())
    assert 0 < s.abar[-1] < s.abar[0] <= 1


@given(T=st.integers(2, 200), high=st.floats(0, 13), low=st.floats(-13, -0.5))
def test_log_snr_is_straight(T, high, low):
    abar = mt.NoiseSchedule.log_snr(T, high, low).abar
    expected = high + (low - high) * torch.arange(T + 1).double() / T
    assert torch.allclose((abar / (1 - abar)).log(), expected, rtol=0, atol=1e-8)


def test_cosine_formula_away_from_the_cap():
    T = 100
    abar = mt.NoiseSchedule.cosine(T).abar
    f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T)]
    assert abar[:T].tolist() == pytest.approx([value / f[0] for value in f], abs=1e-12)
    assert float(1 - abar[T] / abar[T - 1]) == pytest.approx(0.999)


def test_linear_betas_scale_with_the_number_of_steps():
    abar = mt.NoiseSchedule.linear(500).abar
    betas = 1 - abar[1:] / abar[:-1]
    assert torch.allclose(betas, torch.linspace(2e-4, 0.04, 500, dtype=torch.float64), rtol=0, atol=1e-12)


def test_first_step_leaves_noise():
    assert mt.NoiseSchedule.linear(10).first == 1
    assert mt.NoiseSchedule.log_snr(10).first == 0
    assert mt.NoiseSchedule(torch.tensor([0.9, 0.5])).first == 0


def test_schedule_keeps_its_own_copy():
    curve = torch.tensor([0.9, 0.5], dtype=torch.float64)
    s = mt.NoiseSchedule(curve)
    curve[0] = 0.1
    assert s.abar.tolist() == [0.9, 0.5]


def test_tables_are_float64_without_a_graph_and_in_memory_of_their_own():
    single = torch.tensor([0.75, 0.5], requires_grad=True)
    for table in (mt.NoiseSchedule(single).abar, tabulate("x", single, 1)):
        assert table.dtype == torch.float64
        assert not table.requires_grad
        assert table.tolist() == [0.75, 0.5]
    weights = torch.ones(3, dtype=torch.float64)
    tabulate("x", weights, 2)[0] = 7.0
    assert weights.tolist() == [1, 1, 1]
    level = tabulate("x", 1.0, 2)
    level[0] = 7.0
    assert level.tolist() == [7, 1, 1]


def test_a_schedule_cannot_be_changed_and_is_only_itself():
    """What was computed from it stays true, and it can be compared and looked up: a tensor has no truth value."""
    s, same = mt.NoiseSchedule.linear(4), mt.NoiseSchedule.linear(4)
    for thing, name in ((s, "abar"), (mt.constant(1.0), "start")):
        with pytest.raises(AttributeError, match="cannot assign"):
            setattr(thing, name, 0.5)
    assert s != same
    assert {s: "s", same: "same"}[s] == "s"


@given(value=st.floats(-5, 5), u=st.floats(0, 1))
def test_curves_are_their_formulas(value, u):
    assert mt.constant(value)(u) == value
    assert mt.fade_in(value)(u) == pytest.approx(value * u, abs=1e-12)
    assert mt.fade_out(value)(u) == pytest.approx(value * (1 - u), abs=1e-12)
    assert mt.fade_in(value, start=0.1)(u) == pytest.approx(0.1 + (value - 0.1) * u, abs=1e-12)
    assert mt.fade_in(value)(0) == 0
    assert mt.fade_out(value)(1) == 0


def test_number_curve_and_table_are_the_same_weights():
    expected = torch.linspace(0, 2, 5, dtype=torch.float64)
    assert torch.equal(tabulate("x", mt.fade_in(2.0), 4), expected)
    assert torch.equal(tabulate("x", lambda u: 2 * u, 4), expected)
    assert torch.equal(tabulate("x", expected.float(), 4), expected)
    assert torch.equal(tabulate("x", 3, 4), torch.full((5,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("abar", "message"),
    [
        ([0.9, 0.5, 0.5], r"decrease, but abar\[2\] = 0.5 >= abar\[1\]"),
        ([0.9, 0.95], r"decrease, but abar\[1\]"),
        ([0.9], "T >= 1"),
        ([[0.9, 0.5]], r"\(1, 2\)"),
        ([1.1, 0.5], r"\(0, 1\]"),
        ([0.9, 0.0], r"\(0, 1\]"),
        ([0.9, -0.1], r"\(0, 1\]"),
        ([0.9, math.nan], "nan"),
        ([math.nan, 0.5], "nan"),
    ],
)
def test_bad_curves_are_refused(abar, message):
    with pytest.raises(ValueError, match=message):
        mt.NoiseSchedule(torch.tensor(abar))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("T", [0, -3, True, 2.5, "10", None])
def test_bad_step_counts_are_refused(family, T):
    with pytest.raises(ValueError, match="T must be a whole number"):
        FAMILIES[family](T)


@pytest.mark.parametrize(("high", "low"), [(1.0, 1.0), (-3.0, 3.0), (math.nan, -9.0)])
def test_log_snr_must_fall(high, low):
    with pytest.raises(ValueError, match="abar must"):
        mt.NoiseSchedule.log_snr(10, high, low)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(4), r"'label' needs 6 values .* got shape \(4,\)"),
        (torch.ones(6, 1), r"'label' needs 6 values"),
        (math.nan, "'label' has values that are not finite"),
        (lambda u: math.inf if u == 1 else u, "'label' has values that are not finite"),
    ],
)
def test_bad_aggregation_curves_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        tabulate("label", weight, 5)


# ---- levels of training ----


@pytest.mark.parametrize("schedule", [mt.NoiseSchedule.log_snr(90), mt.NoiseSchedule.cosine(90)], ids=["log_snr", "cosine"])
def test_chances_are_those_of_a_bell_over_log_snr(schedule):
    """Of each step: nine tenths of the bell's mass nearest to its log-SNR, and a tenth of what all steps share."""
    bell = torch.distributions.Normal(1.5, 2.4)
    log_snr, first = schedule.abar.logit()[schedule.first :], schedule.first
    edges = torch.cat([log_snr[:1], (log_snr[1:] + log_snr[:-1]) / 2, log_snr[-1:]])
    mass = -bell.cdf(edges).diff()
    expected = 0.9 * mass / mass.sum() + 0.1 / len(mass)
    found = schedule.chances((1.5, 2.4))
    assert torch.allclose(found[first:], expected, rtol=1e-6)
    assert not found[:first].any()
    assert float(found.sum()) == pytest.approx(1)


@pytest.mark.parametrize("schedule", [mt.NoiseSchedule.log_snr(10), mt.NoiseSchedule.cosine(10)], ids=["log_snr", "cosine"])
def test_without_levels_all_steps_are_alike(schedule):
    steps = 11 - schedule.first
    assert schedule.chances().tolist() == [0.0] * schedule.first + [pytest.approx(1 / steps)] * steps


@pytest.mark.parametrize("levels", [1.0, (1.0,), (1.0, 0.0), (1.0, -2.0), (math.nan, 1.0), (0.0, math.inf)])
def test_levels_that_are_no_bell_are_refused(levels):
    with pytest.raises(ValueError, match="mean and a positive standard deviation"):
        mt.NoiseSchedule.log_snr(10).chances(levels)
    with pytest.raises(ValueError, match="mean and a positive standard deviation"):
        mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), {"x": 1.0}).draw_steps(4, levels)


def test_levels_may_be_a_list():
    process, levels = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), {"x": 1.0}), (1.5, 2.4)
    a, b = (process.draw_steps(8, kind(levels), torch.Generator().manual_seed(0)) for kind in (tuple, list))
    assert torch.equal(a, b)
