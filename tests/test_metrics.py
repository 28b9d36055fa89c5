import itertools
import math

import pytest
import torch
from helpers import randn
from hypothesis import given, settings
from hypothesis import strategies as st

from mtdiff.metrics import (
    calibration_error,
    energy_distance,
    fidelity,
    frechet_distance,
    precision_recall,
    psnr,
    ssim,
    temperature,
)


def exactly(mean, std, n=50, seed=0):
    """A sample whose own mean and (diagonal) covariance are the given ones, without sampling error."""
    mean, std = (torch.tensor(value, dtype=torch.float64) for value in (mean, std))
    x = randn(n, len(mean), seed=seed)
    white = torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(n - 1)
    return mean + std * white


@given(
    means=st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=5),
    stds=st.lists(st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)), min_size=5, max_size=5),
)
@settings(max_examples=20)
def test_frechet_distance_of_diagonal_gaussians(means, stds):
    (m_a, m_b), (s_a, s_b) = zip(*means, strict=True), zip(*stds[: len(means)], strict=True)
    expected = sum((a - b) ** 2 for a, b in zip(m_a, m_b, strict=True)) + sum(
        (a - b) ** 2 for a, b in zip(s_a, s_b, strict=True)
    )
    assert frechet_distance(exactly(m_a, s_a), exactly(m_b, s_b, seed=1)) == pytest.approx(expected, abs=1e-6)


def test_frechet_distance_of_correlated_gaussians():
    """Against (A^{1/2} B A^{1/2})^{1/2}, the form with symmetric roots."""
    a, b = randn(200, 3, seed=1) @ randn(3, 3, seed=2), randn(200, 3, seed=3) @ randn(3, 3, seed=4) + 1

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T

    A, B = a.T.cov(), b.T.cov()
    expected = (a.mean(0) - b.mean(0)).square().sum() + (A + B - 2 * root(root(A) @ B @ root(A))).trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_frechet_distance_of_one_feature():
    assert frechet_distance(exactly([0.0], [1.0]), exactly([2.0], [0.5], seed=1)) == pytest.approx(4.25)


def test_frechet_distance_to_itself_is_zero():
    images = torch.rand(300, 1, 4, 4)
    assert frechet_distance(images, images) < 1e-6
    assert frechet_distance(images[:5], images[:5]) < 1e-6


def test_energy_distance_of_two_normals():
    """In one dimension N(0, 1) and N(shift, 1): E|X - Y| of N(shift, 2) has a closed form."""
    shift, n = 1.5, 4000
    a, b = randn(n, 1, seed=1), randn(n, 1, seed=2) + shift

    def mean_abs(m):  # E|N(m, 2)|
        return 2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2)

    assert energy_distance(a, b) == pytest.approx(2 * mean_abs(shift) - 2 * mean_abs(0.0), abs=0.05)
    assert abs(energy_distance(a[: n // 2], a[n // 2 :])) < 0.005


def test_energy_distance_leaves_out_a_point_and_itself():
    """Two points a set: 2 E|a - b| - |a_1 - a_2| - |b_1 - b_2| by hand."""
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [5.0]])
    assert energy_distance(a, b) == pytest.approx(2 * (3 + 5 + 2 + 4) / 4 - 1 - 2)


def test_energy_distance_needs_two_comparable_sets():
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(3, 4\)"):
        energy_distance(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="N >= 2"):
        energy_distance(torch.zeros(1, 2), torch.zeros(3, 2))


def test_frechet_distance_needs_two_comparable_sets():
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(3, 4\)"):
        frechet_distance(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="N >= 2"):
        frechet_distance(torch.zeros(1, 2), torch.zeros(3, 2))


def test_psnr_by_hand():
    """Two channels of two pixels, one value off by 1, one by 2: the mean square is 5 / 4, of the first pixel alone 1 / 2."""
    a = torch.zeros(2, 2, 1, 2)
    b = a.clone()
    b[0, 0, 0, 0], b[0, 1, 0, 1] = 1.0, -2.0
    assert psnr(a, b).tolist() == [pytest.approx(10 * math.log10(4 / 1.25)), math.inf]
    mask = torch.tensor([True, False]).view(1, 1, 1, 2).expand(2, 1, 1, 2)
    assert psnr(a, b, mask)[0] == pytest.approx(10 * math.log10(4 / 0.5))
    assert psnr(a, b, ~mask)[0] == pytest.approx(10 * math.log10(4 / 2.0))
    assert psnr(a, b, torch.zeros_like(mask))[0].isnan()


def test_psnr_is_scikit_images():
    from skimage.metrics import peak_signal_noise_ratio

    a, b = torch.rand(2, 3, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = [peak_signal_noise_ratio(x, y, data_range=2) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert psnr(a, b).tolist() == pytest.approx(expected)


def test_ssim():
    """1 for equal images; falls as noise grows; by hand for one window: the formula with unbiased moments."""
    g = torch.Generator().manual_seed(0)
    a, noise = torch.rand(2, 4, 3, 16, 16, generator=g) * 2 - 1
    assert ssim(a, a).tolist() == pytest.approx([1.0] * 4)
    values = [ssim(a, a + scale * noise) for scale in (0.1, 0.3, 1.0)]
    assert all(bool((more > less).all()) for more, less in itertools.pairwise(values))
    x, y = a[:1, :1, :7, :7].double(), a[:1, 1:2, :7, :7].double()
    covariance = torch.stack([x.flatten(), y.flatten()]).cov()
    c1, c2 = 0.02**2, 0.06**2
    expected = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
    expected *= (2 * covariance[0, 1] + c2) / (covariance.trace() + c2)
    assert float(ssim(x, y)) == pytest.approx(float(expected))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_that_cannot_be_compared_are_refused(metric):
    a = torch.zeros(2, 3, 8, 8)
    for other in (a[:1], a[:, :1], a[..., :7], a[0]):
        with pytest.raises(ValueError, match=r"two equal sets of images \(B, C, H, W\), got \(2, 3, 8, 8\) and"):
            metric(a, other)
    with pytest.raises(ValueError, match=r"got \(3, 8, 8\) and \(3, 8, 8\)"):
        metric(a[0], a[0])


def test_masks_and_windows_that_do_not_fit_are_refused():
    a = torch.zeros(2, 3, 8, 8)
    for mask in (torch.ones(2, 1, 8, 8), torch.ones(2, 3, 8, 8, dtype=torch.bool), torch.ones(1, 1, 8, 8, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"mask must be bool \(2, 1, 8, 8\), got torch\.\w+ \("):
            psnr(a, a, mask)
    with pytest.raises(ValueError, match=r"at least 7 x 7, got \(2, 3, 6, 8\)"):
        ssim(a[:, :, :6], a[:, :, :6])


# ---- calibration, precision and recall ----


def test_calibration_error_by_hand():
    """Two bins: two guesses at 0.7 of which one is right, one at 0.9 that is right."""
    p = torch.tensor([[0.7, 0.3], [0.7, 0.3], [0.1, 0.9]], dtype=torch.float64)
    expected = 2 / 3 * abs(0.5 - 0.7) + 1 / 3 * abs(1 - 0.9)
    assert calibration_error(p.log(), torch.tensor([0, 1, 1])) == pytest.approx(expected)


def test_a_calibrated_classifier_has_a_small_error_and_needs_no_temperature():
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20000, 5, generator=g, dtype=torch.float64)
    label = torch.multinomial(logits.softmax(1), 1, generator=g).squeeze(1)
    assert calibration_error(logits, label) < 0.015
    assert temperature(logits, label) == pytest.approx(1, abs=0.04)
    for factor in (0.5, 3.0):
        assert temperature(factor * logits, label) == pytest.approx(factor * temperature(logits, label), rel=1e-6)
    assert calibration_error(3 * logits, label) > 0.1


def test_the_temperature_is_the_minimum_by_grid():
    g = torch.Generator().manual_seed(1)
    logits, label = torch.randn(50, 3, generator=g, dtype=torch.float64), torch.randint(0, 3, (50,), generator=g)
    logits[torch.arange(50), label] += 1

    def nats(t):
        return float(torch.nn.functional.cross_entropy(logits / t, label))

    best = temperature(logits, label)
    assert all(nats(best) <= nats(best * factor) for factor in (0.9, 0.99, 1.01, 1.1))
    assert temperature(100 * torch.eye(3), torch.arange(3)) == pytest.approx(0.01, rel=1e-3)


def test_precision_and_recall_of_a_law_that_misses_a_half():
    """Drawn from one of two far clusters: everything is real, half of what is real is missed; and the other way round."""
    g = torch.Generator().manual_seed(0)
    both = torch.randn(400, 2, generator=g) + 50 * (torch.arange(400)[:, None] % 2)
    one = torch.randn(400, 2, generator=g)
    scores = precision_recall(both, one)
    assert scores["precision"] > 0.93
    assert scores["recall"] == pytest.approx(0.5, abs=0.02)
    back = precision_recall(one, both)
    assert (back["precision"], back["recall"]) == (scores["recall"], scores["precision"])
    assert precision_recall(both, both) == {"precision": 1.0, "recall": 1.0}
    assert precision_recall(one, one + 100) == {"precision": 0.0, "recall": 0.0}


def test_precision_by_hand():
    """On a line with k = 1: the balls of 0, 1, 5 have radii 1, 1, 4; those of 1.5, 1.7, 20 have 0.2, 0.2, 18.3."""
    real, drawn = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[1.5], [1.7], [20.0]])
    assert precision_recall(real, drawn, k=1) == {"precision": pytest.approx(2 / 3), "recall": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    "call",
    [
        lambda: precision_recall(torch.rand(3, 2), torch.rand(9, 2)),
        lambda: precision_recall(torch.rand(9, 2), torch.rand(9, 3)),
        lambda: precision_recall(torch.rand(9, 2), torch.rand(9, 2), k=0),
        lambda: calibration_error(torch.rand(3, 2), torch.zeros(4).long()),
        lambda: temperature(torch.rand(0, 2), torch.zeros(0).long()),
    ],
)
def test_what_cannot_be_scored_is_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()


def test_frechet_distance_is_the_same_with_fewer_examples_than_features():
    """The nuclear norm of a b^T is the trace of the root of A B: features that are there twice change nothing but scale."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(40, 30, generator=g), 0.5 + 1.5 * torch.randn(35, 30, generator=g)
    wide = frechet_distance(torch.cat([a, a], 1), torch.cat([b, b], 1))
    assert wide == pytest.approx(2 * frechet_distance(a, b), rel=1e-6)


def test_fidelity_is_the_distance_of_all_and_the_shares_of_as_many():
    real, drawn = torch.rand(30, 2, generator=torch.Generator().manual_seed(0)), torch.rand(20, 2)
    expected = {"features": frechet_distance(drawn, real), **precision_recall(real[:20], drawn)}
    assert fidelity(real, drawn) == pytest.approx(expected)
