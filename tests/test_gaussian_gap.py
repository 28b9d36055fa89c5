"""The gap identity of theory 3 on linear-Gaussian problems."""

import math

import pytest
import torch
from helpers import generator
from hypothesis import given
from hypothesis import strategies as st

import mtdiff as mt
from mtdiff.exact import linear_gaussian_gap

CURVES = {
    "constant": 0.8,
    "fade in": mt.fade_in(1.3),
    "fade in from a trace": mt.fade_in(1.0, start=0.2),
    "fade out": mt.fade_out(0.7),
    "bent": lambda u: 0.3 + math.sin(3 * u),
}


def problem(seed=0, sizes=(2, 1), d=3):
    """A random covariance and random encoders."""
    g, n = generator(seed), sum(sizes)
    root = torch.randn(n, n, dtype=torch.float64, generator=g)
    encoders = {f"m{i}": torch.randn(d, k, dtype=torch.float64, generator=g) for i, k in enumerate(sizes)}
    return root @ root.T + 0.3 * torch.eye(n, dtype=torch.float64), encoders


def process(*curves, schedule=None):
    return mt.ForwardProcess(schedule or mt.NoiseSchedule.log_snr(20, 4, -4), {f"m{i}": c for i, c in enumerate(curves)})


def total(g):
    return g.prior + g.moving_target + g.history + g.factorisation + g.reverse


def joint_covariance(c, encoders, p):
    """Covariance of (X, z_first, ..., z_T) by the paper's kernel: loadings on X and on every noise, propagated."""
    n, d = len(c), next(iter(encoders.values())).shape[0]
    abar, first = p.schedule.abar, p.first
    count = p.steps - first + 1
    loadings = torch.zeros(count, d, n + count * d, dtype=torch.float64)
    mixed = torch.cat([p.cumulative(name)[first] * a for name, a in encoders.items()], 1)
    loadings[0, :, :n] = abar[first].sqrt() * mixed
    loadings[0, :, n : n + d] = (1 - abar[first]).sqrt() * torch.eye(d, dtype=torch.float64)
    for k in range(1, count):
        t = first + k
        alpha = abar[t] / abar[t - 1]
        injected = torch.cat([p.injected(name)[t] * a for name, a in encoders.items()], 1)
        loadings[k] = alpha.sqrt() * loadings[k - 1]
        loadings[k, :, :n] += alpha.sqrt() * injected
        loadings[k, :, n + k * d : n + (k + 1) * d] = (1 - alpha).sqrt() * torch.eye(d, dtype=torch.float64)
    rows = torch.cat([torch.eye(n, n + count * d, dtype=torch.float64), loadings.reshape(count * d, -1)])
    source = torch.block_diag(c, torch.eye(count * d, dtype=torch.float64))
    return rows @ source @ rows.T


class Entropies:
    """Entropies of groups of variables of the joint law: "x" is X, an int pair is a slice of X, z(k) a state."""

    def __init__(self, c, encoders, p):
        self.cov, self.n, self.d = joint_covariance(c, encoders, p), len(c), next(iter(encoders.values())).shape[0]
        self.count = p.steps - p.first + 1

    def x(self, start=0, stop=None):
        return list(range(start, self.n if stop is None else stop))

    def z(self, *ks):
        return [self.n + k * self.d + j for k in ks for j in range(self.d)]

    def h(self, rows, given=()):
        def joint(index):
            block = self.cov[index][:, index]
            return 0.5 * float(torch.linalg.slogdet(2 * math.pi * math.e * block).logabsdet) if len(index) else 0.0

        return joint([*rows, *given]) - joint(list(given))


@pytest.mark.parametrize(
    "schedule", [mt.NoiseSchedule.log_snr(5, 3, -2), mt.NoiseSchedule.cosine(5)], ids=["log_snr", "cosine"]
)
@pytest.mark.parametrize("first", CURVES)
@pytest.mark.parametrize("second", ["constant", "fade in"])
def test_every_term_is_the_entropy_that_it_is_called(first, second, schedule):
    sizes = (2, 1)
    c, encoders = problem(1, sizes)
    p = process(CURVES[first], CURVES[second], schedule=schedule)
    g, e = linear_gaussian_gap(c, encoders, p), Entropies(c, encoders, p)
    last = e.count - 1
    cov_last = e.cov[e.z(last)][:, e.z(last)]
    moving = sum(e.h(e.z(k - 1), e.z(k)) - e.h(e.z(k - 1), e.z(*range(k, e.count))) for k in range(1, e.count))
    parts = e.h(e.x(0, 2), e.z(0)) + e.h(e.x(2, 3), e.z(0))
    expected = {
        "log_evidence": -e.h(e.x()),
        "prior": 0.5 * float(cov_last.trace() - e.d - torch.linalg.slogdet(cov_last).logabsdet),
        "moving_target": moving,
        "history": e.h(e.x(), e.z(0)) - e.h(e.x(), e.z(*range(e.count))),
        "factorisation": parts - e.h(e.x(), e.z(0)),
        "reverse": 0.0,
    }
    for name, value in expected.items():
        assert getattr(g, name) == pytest.approx(value, abs=1e-9), name


@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    d=st.integers(1, 4),
    names=st.lists(st.sampled_from(sorted(CURVES)), min_size=3, max_size=3),
    T=st.integers(1, 60),
    high=st.floats(1, 9),
    variance=st.sampled_from(["optimal", "isotropic"]),
)
def test_the_terms_add_up_to_the_gap(seed, sizes, d, names, T, high, variance):
    c, encoders = problem(seed, tuple(sizes), d)
    curves = [CURVES[name] for name in names[: len(sizes)]]
    p = process(*curves, schedule=mt.NoiseSchedule.log_snr(T, high, -6.0))
    g = linear_gaussian_gap(c, encoders, p, variance)
    assert g.gap == pytest.approx(total(g), abs=1e-8)
    for term in (g.prior, g.moving_target, g.history, g.factorisation, g.reverse):
        assert term > -1e-8


@pytest.mark.parametrize("schedule", [mt.NoiseSchedule.linear(30), mt.NoiseSchedule.cosine(30)], ids=["linear", "cosine"])
def test_the_terms_add_up_in_ddpms_convention(schedule):
    """abar_0 = 1: read at t = 1, one step less."""
    c, encoders = problem(3)
    g = linear_gaussian_gap(c, encoders, process(0.8, mt.fade_in(1.0), schedule=schedule))
    assert g.gap == pytest.approx(total(g), abs=1e-8)


def test_the_bound_is_the_mean_of_sampled_bounds():
    """log p(z_T) + sum log p(z_{t-1} | z_t) + sum log p_i(x_i | z_0) - log q(z | X): 4 standard errors, n = 20000."""
    c, encoders = problem(5)
    p = process(0.9, mt.fade_in(1.2), schedule=mt.NoiseSchedule.log_snr(4, 2, -2))
    g, n, gen = linear_gaussian_gap(c, encoders, p), 20_000, generator(0)
    cov = Entropies(c, encoders, p).cov
    everything = torch.randn(n, len(cov), dtype=torch.float64, generator=gen) @ torch.linalg.cholesky(cov).T
    nx, d, T = len(c), 3, 4

    def log_density(rows, given=()):
        """log q(rows | given) from the joint covariance."""
        rows, given = list(rows), list(given)
        if not given:
            mean, v = torch.zeros(n, len(rows), dtype=torch.float64), cov[rows][:, rows]
        else:
            gain = torch.linalg.solve(cov[given][:, given], cov[given][:, rows])
            mean, v = everything[:, given] @ gain, cov[rows][:, rows] - cov[rows][:, given] @ gain
        return torch.distributions.MultivariateNormal(mean, v).log_prob(everything[:, rows])

    z = [range(nx + k * d, nx + (k + 1) * d) for k in range(T + 1)]
    log_p = torch.distributions.Normal(0, 1).log_prob(everything[:, list(z[T])]).sum(1)
    for t in range(1, T + 1):
        log_p = log_p + log_density(z[t - 1], z[t])
    log_p = log_p + log_density(range(2), z[0]) + log_density(range(2, 3), z[0])
    log_q = log_density(range(nx, len(cov)), range(nx))
    elbo = log_p - log_q
    assert abs(float(elbo.mean()) - g.bound) < 4 * float(elbo.std()) / n**0.5


def test_constant_curves_cost_neither_a_moving_target_nor_history():
    c, encoders = problem(7)
    g = linear_gaussian_gap(c, encoders, process(0.8, 1.1))
    assert abs(g.moving_target) < 1e-9
    assert abs(g.history) < 1e-9
    assert g.factorisation > 1e-3


def test_moving_curves_cost_both_and_markov_ones_history_alone():
    """W_t = c (1 - abar_t) / abar_t moves and is Markov all the same; what z_T knows more than z_0 is still lost."""
    c, encoders = problem(8, (1,), 1)
    schedule = mt.NoiseSchedule.log_snr(20, 3, -3)
    moving = linear_gaussian_gap(c, encoders, process(mt.fade_in(1.0), schedule=schedule))
    special = 0.1 * (1 - schedule.abar) / schedule.abar
    markov = linear_gaussian_gap(c, encoders, process(special, schedule=schedule))
    assert moving.moving_target > 1e-3
    assert moving.history > 1e-3
    assert abs(markov.moving_target) < 1e-9
    assert markov.history > 1e-3


def test_orthogonal_encoders_and_constant_curves_leave_prior_and_factorisation_only():
    """Isometric orthogonal encoders: no loss at any T, and the factorisation goes to 0 with the noise at t = 0."""
    c = problem(9)[0]
    encoders = {"m0": torch.eye(3, 2), "m1": torch.eye(3)[:, 2:]}
    gaps = [
        linear_gaussian_gap(c, encoders, process(1.0, 1.0, schedule=mt.NoiseSchedule.log_snr(T, high, -9.0)))
        for T, high in ((3, 9.0), (300, 9.0), (3, 3.0))
    ]
    assert gaps[0].gap == pytest.approx(gaps[0].prior + gaps[0].factorisation, abs=1e-9)
    assert gaps[0].gap == pytest.approx(gaps[1].gap, abs=1e-7)
    assert gaps[2].factorisation > 100 * gaps[0].factorisation


def test_one_identity_modality_is_tight_up_to_the_prior():
    c = problem(10, (3,))[0]
    g = linear_gaussian_gap(c, {"m0": torch.eye(3)}, process(1.0))
    assert g.gap == pytest.approx(g.prior, abs=1e-9)


def test_the_price_of_an_isotropic_reverse_variance_falls_as_one_over_T():
    c, encoders = problem(11)
    price = [
        linear_gaussian_gap(c, encoders, process(1.0, 1.0, schedule=mt.NoiseSchedule.log_snr(T, 4, -4)), "isotropic").reverse
        for T in (100, 200, 400)
    ]
    assert price[0] / price[1] == pytest.approx(2, rel=0.1)
    assert price[1] / price[2] == pytest.approx(2, rel=0.05)


def test_moving_and_history_tend_to_the_integral_of_theory_3():
    """1/2 integral E |W'(tau) (E - E[E | z])|^2 dtau, tau = (1 - abar) / abar, here in closed form for one dimension."""
    variance, high, low = 1.7, 3.0, -3.0

    def cost(T):
        p = process(mt.fade_in(1.0), schedule=mt.NoiseSchedule.log_snr(T, high, low))
        g = linear_gaussian_gap(torch.tensor([[variance]]), {"m0": torch.ones(1, 1)}, p)
        return g.moving_target + g.history

    u = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    tau = torch.exp(-(high + (low - high) * u))
    left = 1 / (1 / variance + u**2 / tau)  # Var(x | z) with W = u
    integrand = 0.5 * left / (tau * (high - low))  # (dW/dtau)^2 dtau = du / (tau (high - low))
    integral = float(torch.trapezoid(integrand, u))
    errors = [abs(cost(T) - integral) for T in (200, 400, 800)]
    assert errors[2] < 0.01 * integral
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)


def test_a_gap_cannot_be_changed():
    c, encoders = problem()
    g = linear_gaussian_gap(c, encoders, process(1.0, 1.0))
    with pytest.raises(AttributeError, match="cannot assign"):
        g.bound = 0.0


ONE = torch.eye(2)


@pytest.mark.parametrize(
    ("covariance", "encoders", "options", "message"),
    [
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), {"m0": ONE}, {}, "positive definite"),
        (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), {"m0": ONE}, {}, "symmetric"),
        (torch.ones(2, 3), {"m0": ONE}, {}, r"\(n, n\), got \(2, 3\)"),
        (torch.eye(3), {"m0": ONE}, {}, "add up to n = 3"),
        (torch.eye(2), {"other": ONE}, {}, r"encoders are for \['other'\]"),
        (torch.eye(2), {"m0": torch.ones(2)}, {}, r"encoders must be \(d, n_i\)"),
        (torch.eye(2), {"m0": ONE}, {"reverse_variance": "learned"}, "'learned'"),
    ],
)
def test_what_does_not_fit_is_named(covariance, encoders, options, message):
    with pytest.raises(ValueError, match=message):
        linear_gaussian_gap(covariance, encoders, process(1.0), **options)


def test_a_chain_that_ends_at_a_source_is_refused():
    weights = {"m0": mt.fade_in(1.0), "m1": mt.fade_out(1.0)}
    p = mt.ForwardProcess(mt.NoiseSchedule.log_snr(5), weights, prior="m0")
    with pytest.raises(ValueError, match="ends at 'm0'"):
        linear_gaussian_gap(torch.eye(2), {"m0": torch.ones(1, 1), "m1": torch.ones(1, 1)}, p)
