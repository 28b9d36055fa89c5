"""Metrics of tensors: distances of laws, calibration, similarity of images. No model is involved."""

import math

import torch
from torch import Tensor

from mtdiff.optional import needed


class Moments:
    """Mean and covariance of d = `width` features that come in batches, without keeping them; n examples came."""

    def __init__(self, width: int):
        self.n, self.width = 0, width
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._square = torch.zeros(width, width, dtype=torch.float64)
        self._shift: Tensor | None = None  # of the first batch: sums of squares around it lose no digits

    def update(self, features: Tensor) -> "Moments":
        """Add a batch (B, d); ValueError for another number of features."""
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(f"expected features (B, {self.width}), got {tuple(features.shape)}")
        rows = features.detach().cpu().double()
        self._shift = rows.mean(0) if self._shift is None else self._shift
        rows = rows - self._shift
        self.n += len(rows)
        self._sum += rows.sum(0)
        self._square += rows.T @ rows
        return self

    @property
    def mean(self) -> Tensor:
        """(d,) float64."""
        return self._shift + self._sum / self.n

    @property
    def covariance(self) -> Tensor:
        """(d, d) float64, with n - 1."""
        return (self._square - torch.outer(self._sum, self._sum) / self.n) / (self.n - 1)


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """Frechet distance of two Gaussians fitted to features: |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^{1/2}).

    Of features (N, d) or `Moments`, N > d for a covariance of full rank; in squared units of the features. On flattened
    pixels it is a distance in pixel space, and on any network's features but Inception's it is not an FID. With roots
    A = a^T a and B = b^T b, such as centred rows or what eigenvalues give, tr (A B)^{1/2} is the nuclear norm of a b^T.

    Raises:
        ValueError: different numbers of features, or fewer than two examples.

    Source: Dowson and Landau 1982; Heusel et al. 2017.
    """
    a, b = (x if isinstance(x, Moments) else x.detach().cpu().flatten(1).double() for x in (a, b))
    shapes = [(x.n, x.width) if isinstance(x, Moments) else tuple(x.shape) for x in (a, b)]
    if shapes[0][1] != shapes[1][1] or min(n for n, _ in shapes) < 2:
        raise ValueError(f"expected two sets (N >= 2, d) of equal d, got {shapes[0]} and {shapes[1]}")
    (mean_a, a), (mean_b, b) = _mean_and_root(a), _mean_and_root(b)
    traces, root = a.square().sum() + b.square().sum(), torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float((mean_a - mean_b).square().sum() + traces - 2 * root))


def _mean_and_root(features: Tensor | Moments) -> tuple[Tensor, Tensor]:
    """Mean (d,) of features, and a root (k, d) of their covariance."""
    if not isinstance(features, Moments):
        n, width = features.shape
        if n <= width:
            return features.mean(0), (features - features.mean(0)) / (n - 1) ** 0.5
        features = Moments(width).update(features)
    values, vectors = torch.linalg.eigh(features.covariance)
    return features.mean, values.clamp(min=0).sqrt()[:, None] * vectors.T


def _two_sets(a: Tensor, b: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Two sets of vectors in float64, at least so many of the same size in each; else ValueError."""
    a, b = a.flatten(1).double(), b.flatten(1).double()
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < least:
        raise ValueError(f"expected two sets (N >= {least}, d) of equal d, got {tuple(a.shape)} and {tuple(b.shape)}")
    return a, b


def kernel_distance(a: Tensor, b: Tensor, subsets: int = 50, size: int = 1000, seed: int = 0) -> dict[str, float]:
    """Kernel distance of two sets of features: unbiased squared MMD with the kernel (x y / d + 1)^3, the mean over subsets.

    On Inception's features it is the KID. It may be slightly negative. The subsets, at most so many and of so many examples
    of the smaller set at least, share no example and use all, so that their mean is as sure as they are many.

    Returns:
        "mean" over subsets, and "stderr", how far it would spread over fresh sets of both; not a number for fewer than four
        examples.

    Raises:
        ValueError: different numbers of features, fewer than two examples, or no subset.

    Source: Binkowski et al. 2018; the variance of a U-statistic of two samples by Hoeffding's decomposition.
    """
    a, b = _two_sets(a, b)
    if min(subsets, size) < 1:
        raise ValueError(f"subsets and size must be at least 1, got {subsets} and {size}")
    generator, parts = torch.Generator().manual_seed(seed), max(1, min(subsets, min(len(a), len(b)) // size))
    a, b = (s[torch.randperm(len(s), generator=generator).to(s.device)].tensor_split(parts) for s in (a, b))
    mean, variance = torch.tensor([_squared_mmd(x, y) for x, y in zip(a, b, strict=True)], dtype=torch.float64).mean(0)
    return {"mean": float(mean), "stderr": float((variance / parts).sqrt())}


def _squared_mmd(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Unbiased squared MMD, and an estimate of its variance.

    Let g be an example's mean kernel with its own set less that with the other, and v the mean square that is left of a
    matrix of kernels without the means of its rows and columns. The variance is 4 var(g_x) / n + 4 var(g_y) / m, in which
    each v is counted twice, less 2 v_xx / n^2 + 2 v_yy / m^2 + 4 v_xy / n m.
    """
    (n, d), m = x.shape, len(y)
    xx, yy, xy = ((s @ t.T / d + 1) ** 3 for s, t in ((x, x), (y, y), (x, y)))
    own_x, own_y = ((k.sum(1) - k.diagonal()) / (len(k) - 1) for k in (xx, yy))
    value = own_x.mean() + own_y.mean() - 2 * xy.mean()
    if min(n, m) < 4:
        return float(value), math.nan

    def left(k: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return (k - rows[:, None] - columns + rows.mean()).square()

    first = 4 * ((own_x - xy.mean(1)).var() / n + (own_y - xy.mean(0)).var() / m)
    second = 4 * left(xy, xy.mean(1), xy.mean(0)).mean() / (n * m)
    for k, own in ((xx, own_x), (yy, own_y)):
        second += 2 * left(k, own, own).fill_diagonal_(0).sum() / (len(k) * (len(k) - 1)) ** 2
    return float(value), float(torch.maximum(first - second, first / 2))


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Energy distance of two laws from draws (N, d), (M, d): 2 E|a - b| - E|a - a'| - E|b - b'|, 0 for equal laws only.

    In units of the data. The pairs of a point with itself are left out, so the estimate is unbiased and may be slightly
    negative. ValueError for different numbers of coordinates, or fewer than two draws.

    Source: Szekely and Rizzo 2013.
    """
    a, b = _two_sets(a, b)

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float(2 * torch.cdist(a, b).mean() - within(a) - within(b))


def precision_recall(real: Tensor, drawn: Tensor, k: int = 3) -> dict[str, float]:
    """Improved precision and recall: how many drawn points lie among the real ones, and the other way round.

    A set's manifold is the union of balls around its points, each as large as the distance to its k-th neighbour in the set.
    Compare sets (N, d) of the same sizes only. ValueError for different numbers of features, k < 1, or at most k points.

    Returns:
        Shares in [0, 1]: "precision" of the drawn points that are in the real manifold (fidelity), "recall" of the real
        points that are in the drawn one (diversity).

    Source: Kynkaanniemi et al. 2019.
    """
    if k < 1:
        raise ValueError(f"expected a k-th neighbour, k >= 1, got {k}")
    real, drawn = _two_sets(real, drawn, k + 1)

    def covered(points: Tensor, centres: Tensor) -> float:
        radius = torch.cdist(centres, centres).kthvalue(k + 1).values  # the first neighbour is the point itself
        return float((torch.cdist(points, centres) <= radius).any(1).double().mean())

    return {"precision": covered(drawn, real), "recall": covered(real, drawn)}


def fidelity(real: Tensor, drawn: Tensor) -> dict[str, float]:
    """`frechet_distance` of (N, d) "features", and `precision_recall` of as many drawn as real ones, the first of each."""
    k = min(len(real), len(drawn))
    return {"features": frechet_distance(drawn, real), **precision_recall(real[:k], drawn[:k])}


def calibration_error(logits: Tensor, label: Tensor, bins: int = 15) -> float:
    """Expected calibration error: sum_b n_b / n |accuracy_b - confidence_b| over bins of equal width of the confidence.

    Of logits (N, K) and labels (N,), in [0, 1]; ValueError where sizes do not fit. For a perfectly calibrated classifier it
    is not 0 for finite N, but of the order of sqrt(bins / N) times the width of the confidences.

    Source: Guo et al. 2017.
    """
    _same_labels(logits, label)
    confidence, guess = logits.double().softmax(1).max(1)
    gap = confidence - (guess == label).double()
    bin_ = (confidence * bins).long().clamp(max=bins - 1)
    return float(torch.zeros(bins, dtype=gap.dtype, device=gap.device).index_add(0, bin_, gap).abs().sum() / len(gap))


TEMPERATURES = (0.01, 100.0)
"""The range in which `temperature` looks for one."""


def temperature(logits: Tensor, label: Tensor) -> float:
    """The T > 0 that minimises the cross-entropy of softmax(logits / T): found by bisection, for it is convex in 1 / T.

    Of logits (N, K) and labels (N,); ValueError where sizes do not fit. A value at an end of `TEMPERATURES` is no best
    temperature but a bound of one: where all labels are the likeliest class, there is no smallest.

    Source: Guo et al. 2017.
    """
    _same_labels(logits, label)
    logits = logits.double()
    right = logits.gather(1, label[:, None]).mean()
    high, low = (-math.log(end) for end in TEMPERATURES)  # of log 1 / T
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((math.exp(middle) * logits).softmax(1) * logits).sum(1).mean() - right  # d cross-entropy / d (1 / T)
        low, high = (low, middle) if slope > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def _same_labels(logits: Tensor, label: Tensor) -> None:
    """Raise ValueError unless there are logits (N, K) and labels (N,), N >= 1."""
    if logits.ndim != 2 or label.shape != logits.shape[:1] or not len(label):
        shapes = f"{tuple(logits.shape)} and {tuple(label.shape)}"
        raise ValueError(f"expected logits (N, K) and labels (N,), N >= 1, got {shapes}")


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of images in [-1, 1], (B,) in dB: 10 log10(2^2 / mean |a - b|^2), infinite for equal ones.

    The mean is over all channels of (B, C, H, W); with a mask (B, 1, H, W) bool, over the pixels where it is True alone, and
    not a number where it is nowhere. ValueError for different shapes, or a mask that does not fit.
    """
    _same_images(a, b)
    error = (a.double() - b.double()).square().mean(1, keepdim=True)  # (B, 1, H, W)
    mask = torch.ones_like(error, dtype=torch.bool) if mask is None else mask
    if mask.dtype != torch.bool or mask.shape != error.shape:
        raise ValueError(f"mask must be bool {tuple(error.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    mean = (error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)
    return 10 * (4 / mean).log10()


def hidden_psnr(drawn: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """`psnr` of the pixels that a mask (B, 1, H, W), 1 where one is known, hides: (B,) in dB, at most 60."""
    return psnr(drawn, image, ~mask.bool()).clamp(max=60)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (B,) of images (B, C, H, W) in [-1, 1], 1 for equal ones: scikit-image's, its window 7 x 7.

    Raises:
        ImportError: scikit-image is not installed.
        ValueError: images of different shapes, or smaller than the window.

    Source: Wang et al. 2004.
    """
    with needed("ssim"):
        from skimage.metrics import structural_similarity
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
