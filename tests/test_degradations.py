"""Degradations: operators with their adjoints and pseudo-inverses, and what is refused."""

import math

import pytest
import torch
from helpers import generator, randn

from mtdiff.datasets import masks
from mtdiff.degradations import LUMA, STRENGTHS, TASKS, Blur, Degradation, Diagonal, Grey, Matrix, Pool, degradation

SHAPE = (3, 8, 8)
MASK = masks(5, 8, hidden=0.4, seed=3).double()
OPERATORS = {
    "number": Diagonal(0.3),
    "mask": Diagonal(MASK),
    "pool": Pool(2),
    "grey": Grey(),
    "blur": Blur(1.0),
    "matrix": Matrix(randn(4, 6, seed=1)),
    "matrix of low rank": Matrix(randn(4, 2, seed=2) @ randn(2, 6, seed=3)),
}
each = pytest.mark.parametrize("name", OPERATORS)


def pair(name):
    """An operator, an x of it and a y."""
    operator = OPERATORS[name]
    x = randn(5, 6, seed=4) if "matrix" in name else randn(5, *SHAPE, seed=4)
    return operator, x, randn(5, *operator.shape(tuple(x.shape[1:])), seed=5)


@each
def test_the_adjoint_is_that_of_the_inner_product(name):
    operator, x, y = pair(name)
    left, right = (operator(x) * y).flatten(1).sum(1), (x * operator.adjoint(y)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


@each
def test_the_pseudo_inverse_is_moore_and_penroses(name):
    """All four conditions: A A+ A = A, A+ A A+ = A+, and A A+ and A+ A are symmetric."""
    operator, x, y = pair(name)
    ax, inverse = operator(x), operator.gain
    torch.testing.assert_close(operator(inverse(ax)), ax, rtol=0, atol=1e-9)
    torch.testing.assert_close(inverse(operator(inverse(y))), inverse(y), rtol=0, atol=1e-9)
    for both, u, v in (
        (lambda s: operator(inverse(s)), y, y.flip(0)),
        (lambda s: inverse(operator(s)), x, x.roll(1, -1)),
    ):
        left, right = (both(u) * v).flatten(1).sum(1), (u * both(v)).flatten(1).sum(1)
        torch.testing.assert_close(left, right, rtol=0, atol=1e-9)


@each
def test_solve_inverts_what_it_says(name):
    operator, _, y = pair(name)
    for w in (0.02, 3.0):
        solved = operator.solve(y, w)
        torch.testing.assert_close(operator(operator.adjoint(solved)) + w * solved, y, rtol=0, atol=1e-10)


def test_the_gain_is_the_ridge_regression_of_linear_algebra():
    a, y = OPERATORS["matrix"].a, randn(7, 4)
    expected = torch.linalg.solve(a.T @ a + 0.3 * torch.eye(6, dtype=a.dtype), a.T @ y.T).T
    torch.testing.assert_close(OPERATORS["matrix"].gain(y, 0.3), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        OPERATORS["matrix of low rank"].gain(y), y @ torch.linalg.pinv(OPERATORS["matrix of low rank"].a).T
    )


def test_each_operator_by_hand():
    x = randn(2, *SHAPE)
    assert torch.allclose(Pool(4)(x)[0, 1, 1, 0], x[0, 1, 4:, :4].mean())
    grey = sum(c * x[:, k] for k, c in enumerate(LUMA))
    torch.testing.assert_close(Grey()(x)[:, 0], grey)
    assert sum(LUMA) == pytest.approx(1.0)


def test_a_wave_keeps_its_form_and_loses_what_the_gaussian_takes_of_its_frequency():
    """The Fourier transform of a Gaussian of width s is exp(-2 pi^2 s^2 f^2); what falls below the limit is gone."""
    place = torch.arange(16, dtype=torch.float64)
    for cycles, left in ((1, None), (2, None), (7, 0.0)):
        wave = torch.cos(2 * math.pi * cycles * place / 16)[None, None, None].expand(1, 1, 16, 16)
        expected = math.exp(-2 * math.pi**2 * 1.5**2 * (cycles / 16) ** 2) if left is None else left
        torch.testing.assert_close(Blur(1.5)(wave), expected * wave, rtol=0, atol=1e-12)
    constant = torch.full((1, 3, 16, 16), 0.7, dtype=torch.float64)
    torch.testing.assert_close(Blur(1.5)(constant), constant)


def test_low_light_and_haze_are_what_they_are_in_light():
    x = randn(2, *SHAPE).clamp(-1, 1)
    light = (x + 1) / 2
    for task, expected in (
        ("brighten", 0.2 * light),
        ("dehaze", 0.4 * light + 0.9 * (1 - 0.4)),
    ):
        torch.testing.assert_close((degradation(task).clean(x) + 1) / 2, expected)


def test_noise_has_the_standard_deviation_that_was_asked_for():
    problem = degradation("denoise", noise=0.25)
    noise = problem(torch.zeros(40, *SHAPE), generator()).double()
    assert abs(float(noise.std()) - 0.25) < 4 * 0.25 / math.sqrt(2 * noise.numel())
    assert not problem.clean(torch.zeros(2, *SHAPE)).any()


@pytest.mark.parametrize("task", TASKS)
def test_every_task_measures_shows_and_accepts_its_own_measurements(task):
    mask = masks(4, 16, seed=1) if task == "inpaint" else None
    problem = degradation(task, mask)
    x = torch.rand(4, 3, 16, 16, generator=generator()) * 2 - 1
    y = problem(x, generator(1))
    problem.check(y, (3, 16, 16))
    assert problem.picture(y).shape == x.shape
    torch.testing.assert_close(problem.residual(y, x), y - problem.clean(x))
    with pytest.raises(ValueError, match=r"the degraded picture must lie in \["):
        problem.check(y * 127.5 + 127.5, (3, 16, 16))


def test_a_measurement_of_another_size_or_kind_is_refused():
    x = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"the degraded picture must be floating point \(B, 3, 4, 4\)"):
        degradation("super-resolve").check(x, (3, 16, 16))
    with pytest.raises(ValueError, match="factor must divide height and width of pictures"):
        degradation("super-resolve", factor=3)(x)
    with pytest.raises(ValueError, match=r"colourise needs pictures \(3, H, W\), got \(1, 16, 16\)"):
        degradation("colourise")(x[:, :1])
    with pytest.raises(ValueError, match="the mask must fit pictures"):
        degradation("inpaint", torch.ones(2, 1, 8, 8))(x)
    with pytest.raises(ValueError, match="a blur needs pictures"):
        Degradation(Blur(1.0))(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"the matrix needs vectors \(6,\)"):
        OPERATORS["matrix"].shape((7,))
    with pytest.raises(ValueError, match="not finite"):
        degradation("denoise")(x + torch.nan)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"task": "sharpen"}, "task must be one of"),
        ({"task": "inpaint"}, 'the task "inpaint" needs a mask'),
        ({"task": "deblur", "mask": torch.ones(1, 1, 8, 8)}, "and no other takes one"),
        ({"task": "deblur", "gain": 0.5}, r"'deblur' has no \['gain'\]; it has \['noise', 'width'\]"),
        ({"task": "denoise", "noise": -1.0}, "noise must be at least 0, got -1.0"),
        ({"task": "super-resolve", "factor": 2.5}, "factor must be a whole number, at least 2, got 2.5"),
        ({"task": "deblur", "width": 0.0}, "width must be positive"),
        ({"task": "brighten", "gain": 1.5}, r"gain must be in \(0, 1\]"),
        ({"task": "dehaze", "transmission": 0.0}, r"transmission must be in \(0, 1\]"),
        ({"task": "dehaze", "airlight": 2.0}, r"airlight must be in \[0, 1\]"),
    ],
)
def test_bad_strengths_are_named(words, message):
    with pytest.raises(ValueError, match=message):
        degradation(**words)


def test_every_task_has_a_strength():
    assert list(STRENGTHS) == list(TASKS)
