"""Metrics of tensors: distances of laws, calibration, similarity of images. No model is involved."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two Gaussians fitted to features: |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^{1/2}).

    On flattened pixels it is a distance in pixel space, not an FID.

    Args:
        a: (N, d) features, N > d for a covariance of full rank.
        b: (M, d) features.

    Returns:
        The distance, >= 0, in squared units of the features.

    Raises:
        ValueError: different numbers of features, or fewer than two examples.

    Source: Dowson and Landau 1982; Heusel et al. 2017.
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected two sets (N >= 2, d) of equal d, got {tuple(a.shape)} and {tuple(b.shape)}")
    means = (a.mean(0) - b.mean(0)).square().sum()
    if a.shape[1] <= min(len(a), len(b)):
        cov_a, cov_b = torch.atleast_2d(a.T.cov()), torch.atleast_2d(b.T.cov())
        root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()  # A B has real eigenvalues >= 0
        traces = cov_a.trace() + cov_b.trace()
    else:  # with centred rows scaled so that A = a^T a and B = b^T b, the root's trace is the nuclear norm of a b^T
        a, b = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))
        root, traces = torch.linalg.svdvals(a @ b.T).sum(), a.square().sum() + b.square().sum()
    return max(0.0, float(means + traces - 2 * root))


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Energy distance of two laws from samples: 2 E|a - b| - E|a - a'| - E|b - b'|, 0 for equal laws only.

    The pairs of a point with itself are left out, so the estimate is unbiased and may be slightly negative.

    Args:
        a: (N, d) draws of one law, N >= 2.
        b: (M, d) draws of the other, M >= 2.

    Returns:
        The distance, in units of the data.

    Raises:
        ValueError: different numbers of coordinates, or fewer than two draws.

    Source: Szekely and Rizzo 2013.
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"expected two sets (N >= 2, d) of equal d, got {tuple(a.shape)} and {tuple(b.shape)}")

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float(2 * torch.cdist(a, b).mean() - within(a) - within(b))


def precision_recall(real: Tensor, drawn: Tensor, k: int = 3) -> dict[str, float]:
    """Improved precision and recall: how many drawn points lie among the real ones, and the other way round.

    A set's manifold is the union of balls around its points, each as large as the distance to its k-th neighbour in the set.

    Args:
        real: (N, d) features, N > k.
        drawn: (M, d) features, M > k; compare sets of the same sizes only.
        k: which neighbour.

    Returns:
        Shares in [0, 1]: "precision" of the drawn points that are in the real manifold (fidelity), "recall" of the real
        points that are in the drawn one (diversity).

    Raises:
        ValueError: different numbers of features, or too few points.

    Source: Kynkaanniemi et al. 2019.
    """
    real, drawn = real.flatten(1).double(), drawn.flatten(1).double()
    if real.shape[1] != drawn.shape[1] or not 1 <= k < min(len(real), len(drawn)):
        raise ValueError(
            f"expected two sets of more than {k} points of equal size, got {tuple(real.shape)}, {tuple(drawn.shape)}"
        )

    def covered(points: Tensor, centres: Tensor) -> float:
        radius = torch.cdist(centres, centres).kthvalue(k + 1).values  # the first neighbour is the point itself
        return float((torch.cdist(points, centres) <= radius).any(1).double().mean())

    return {"precision": covered(drawn, real), "recall": covered(real, drawn)}


def calibration_error(logits: Tensor, label: Tensor, bins: int = 15) -> float:
    """Expected calibration error: sum_b n_b / n |accuracy_b - confidence_b| over bins of equal width of the confidence.

    Args:
        logits: (N, K).
        label: (N,) class ids.
        bins: number of bins in [0, 1].

    Returns:
        The error in [0, 1]. Of a perfectly calibrated classifier it is not 0 for finite N, but of the order of
        sqrt(bins / N) times the width of the confidences.

    Raises:
        ValueError: sizes that do not fit, or none.

    Source: Guo et al. 2017.
    """
    _same_labels(logits, label)
    confidence, guess = logits.double().softmax(1).max(1)
    gap = confidence - (guess == label).double()
    bin_ = (confidence * bins).long().clamp(max=bins - 1)
    return float(torch.zeros(bins, dtype=gap.dtype, device=gap.device).index_add(0, bin_, gap).abs().sum() / len(gap))


def temperature(logits: Tensor, label: Tensor) -> float:
    """The T > 0 that minimises the cross-entropy of softmax(logits / T): found by bisection, for it is convex in 1 / T.

    Args:
        logits: (N, K).
        label: (N,) class ids.

    Returns:
        T, limited to [0.01, 100]: where all labels are the likeliest class there is no smallest one.

    Raises:
        ValueError: sizes that do not fit, or none.

    Source: Guo et al. 2017.
    """
    _same_labels(logits, label)
    logits = logits.double()
    right = logits.gather(1, label[:, None]).mean()
    low, high = -math.log(100.0), math.log(100.0)  # of log 1 / T
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((math.exp(middle) * logits).softmax(1) * logits).sum(1).mean() - right  # d cross-entropy / d (1 / T)
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def _same_labels(logits: Tensor, label: Tensor) -> None:
    """Raise ValueError unless there are logits (N, K) and labels (N,), N >= 1."""
    if logits.ndim != 2 or label.shape != logits.shape[:1] or not len(label):
        raise ValueError(
            f"expected logits (N, K) and labels (N,), N >= 1, got {tuple(logits.shape)} and {tuple(label.shape)}"
        )


def mean_and_error(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean over seeds, its standard error (None for one seed) and how many: {"mean", "stderr", "n"}."""
    n = len(values)
    mean = sum(values) / n
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None
    return {"mean": mean, "stderr": error, "n": n}


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of images in [-1, 1]: 10 log10(2^2 / mean |a - b|^2), infinite for equal ones.

    Args:
        a: (B, C, H, W).
        b: (B, C, H, W).
        mask: (B, 1, H, W) bool; only the pixels where it is True count. All do unless given.

    Returns:
        (B,) in dB, of all channels; not a number for an image of which no pixel counts.

    Raises:
        ValueError: images of different shapes, or a mask that does not fit them.
    """
    _same_images(a, b)
    error = (a.double() - b.double()).square().mean(1, keepdim=True)  # (B, 1, H, W)
    mask = torch.ones_like(error, dtype=torch.bool) if mask is None else mask
    if mask.dtype != torch.bool or mask.shape != error.shape:
        raise ValueError(f"mask must be bool {tuple(error.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    mean = (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)
    return 10 * (4 / mean).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of images in [-1, 1], 1 for equal ones: scikit-image's, with its 7 x 7 window.

    Args:
        a: (B, C, H, W), H and W at least 7.
        b: (B, C, H, W).

    Returns:
        (B,), of all channels.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: images of different shapes, or smaller than the window.

    Source: Wang et al. 2004.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        raise ImportError("ssim comes with scikit-image: pip install 'mtdiff[notebooks]'") from None
    _same_images(a, b)
    if min(a.shape[2:]) < 7:
        raise ValueError(f"images must be at least 7 x 7, got {tuple(a.shape)}")
    pairs = zip(a.detach().cpu().double().numpy(), b.detach().cpu().double().numpy(), strict=True)
    values = [structural_similarity(x, y, data_range=2, channel_axis=0) for x, y in pairs]
    return torch.tensor(values, dtype=torch.float64, device=a.device)


def _same_images(a: Tensor, b: Tensor) -> None:
    """Raise ValueError unless both are images (B, C, H, W) of one shape."""
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"expected two equal sets of images (B, C, H, W), got {tuple(a.shape)} and {tuple(b.shape)}")
