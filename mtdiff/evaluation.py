"""Metrics: what samples are worth, judged by somebody who never saw the generator."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mtdiff.datasets.base import Dataset
from mtdiff.elbo import elbo
from mtdiff.sampling import sample

Judge = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) -> class ids (B,)."""

LABEL_RULES = ("substitute", "bayes", "conditioned")
"""The rules for a given label that are compared everywhere."""


def svm_judge(data: Dataset) -> Judge:
    """A support-vector classifier of the pixels, trained on real images alone.

    Args:
        data: images and labels to train on.

    Returns:
        The judge.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.svm import SVC
    except ImportError:
        raise ImportError("the judge comes with scikit-learn: pip install 'mtdiff[notebooks]'") from None
    machine = SVC(C=10.0, gamma=0.05).fit(data.values["image"].flatten(1).numpy(), data.values["label"].numpy())
    return lambda image: torch.from_numpy(machine.predict(image.detach().cpu().flatten(1).numpy()))


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
    cov_a, cov_b = torch.atleast_2d(a.T.cov()), torch.atleast_2d(b.T.cov())
    root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()  # A B has real eigenvalues >= 0
    means = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, float(means + cov_a.trace() + cov_b.trace() - 2 * root))


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


def mean_and_error(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean over seeds, its standard error (None for one seed) and how many: {"mean", "stderr", "n"}."""
    n = len(values)
    mean = sum(values) / n
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None
    return {"mean": mean, "stderr": error, "n": n}


def image_label_metrics(drawn: Mapping[str, Tensor], judge: Judge, real: Tensor) -> dict[str, float | int]:
    """How good (image, label) pairs are.

    Args:
        drawn: {"image": (N, C, H, W), "label": (N,)}.
        judge: reads a class off an image.
        real: (M, C, H, W) real images.

    Returns:
        "agreement": share of images that the judge calls by their label; "classes": number of classes drawn; and
        those of `image_metrics`.
    """
    image, label = drawn["image"].cpu(), drawn["label"].cpu()
    agreement = float((judge(image) == label).double().mean())
    return {"agreement": agreement, "classes": int(label.unique().numel()), **image_metrics(image, real)}


def image_metrics(image: Tensor, real: Tensor) -> dict[str, float]:
    """How good drawn images are, whatever they show.

    Args:
        image: (N, C, H, W).
        real: (M, C, H, W) real images.

    Returns:
        "spread": pixel standard deviation over the real one; "frechet_pixels": `frechet_distance` of pixels.
    """
    image = image.cpu()
    return {"spread": float(image.std() / real.std()), "frechet_pixels": frechet_distance(image, real)}


def sample_many(model, n: int, batch: int = 250, given: Mapping[str, Tensor] | None = None, **options) -> dict[str, Tensor]:
    """`mtdiff.sample` in batches, so that memory does not grow with n.

    Args:
        model: as in `sample`.
        n: number of examples.
        batch: how many at a time.
        given: {name: (n, ...)}.
        **options: the other arguments of `sample`.

    Returns:
        {name: (n, ...)}.
    """
    parts = []
    for start in range(0, n, batch):
        rows = slice(start, min(start + batch, n))
        part = {name: value[rows] for name, value in (given or {}).items()}
        parts.append(sample(model, rows.stop - rows.start, given=part, **options))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def head_accuracy(model, data: Dataset, name: str = "label", generator: torch.Generator | None = None) -> float:
    """Share of held-out clean examples whose most likely class, read off z near t = 0 (S = the others), is right.

    Args:
        model: a model with a discrete modality `name`.
        data: the held-out set.
        name: the modality that is read.
        generator: source of the little noise that is left at the read-out step.

    Returns:
        Accuracy in [0, 1].
    """
    values, n = {k: v.to(model.device) for k, v in data.values.items()}, len(data)
    present = {k: torch.full((n,), k != name, device=model.device) for k in model.modalities}
    codes = model.encode({k: v for k, v in values.items() if k != name})
    z, _ = model.process.diffuse(codes, model.process.first, present=present, generator=generator)
    logits = model.predict(z, model.process.first, present=present).params[name]
    return float((logits.argmax(1) == values[name]).double().mean())


def evaluate_image_label(
    model,
    test: Dataset,
    real: Tensor,
    judge: Judge,
    rules: Sequence[str] = LABEL_RULES,
    n: int = 2000,
    steps: int = 50,
    sampler: str | None = None,
    seed: int = 0,
) -> dict[str, dict | float]:
    """All of an image-label model: joint samples, conditional samples by each rule, and the label head.

    Args:
        model: the model.
        test: held-out images and labels.
        real: real images that pixel statistics are compared with.
        judge: reads a class off an image.
        rules: rules for a given label.
        n: samples for each line, the same number of every class where the label is given.
        steps: sampler steps.
        sampler: the sampler; None is the model's own.
        seed: seed of all noise.

    Returns:
        {"joint": metrics, "joint_ddim": the same by DDIM, rule: metrics ..., "head_accuracy": number, "bound": nats};
        metrics as in `image_label_metrics`, nats as in `image_label_bounds`.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    options = {"steps": steps, "sampler": sampler, "generator": generator}
    out: dict[str, dict | float] = {"joint": image_label_metrics(sample_many(model, n, **options), judge, real)}
    by_ddim = sample_many(model, n, **{**options, "sampler": "ddim"})
    out["joint_ddim"] = image_label_metrics(by_ddim, judge, real)
    label = torch.arange(n, device=model.device) % model.modalities["label"].classes
    for rule in rules:
        drawn = sample_many(model, n, given={"label": label}, rule=rule, **options)
        out[rule] = image_label_metrics(drawn, judge, real)
    out["head_accuracy"] = head_accuracy(model, test, generator=generator)
    out["bound"] = image_label_bounds(model, test, bound_draws(n, test), generator)
    return out


def bound_draws(n: int, test: Dataset) -> int:
    """Draws per held-out example for a bound as costly as the samples it stands beside: about 10 n in all."""
    return max(1, round(10 * n / len(test)))


@torch.no_grad()
def image_label_bounds(model, test: Dataset, samples: int = 1, generator: torch.Generator | None = None) -> dict[str, float]:
    """Likelihood of held-out examples, as bounded by `mtdiff.elbo`, and what the label head adds to it.

    Args:
        model: a model of "image" and, unless it is the image-only control, "label".
        test: held-out images and labels.
        samples: draws per example.
        generator: source of all draws.

    Returns:
        "image": bound on log p(image) alone (S = {image}), in nats per example, "image_stderr" its standard error and
        "image_bits_per_dim" the same in bits; with a label also "label_given_image": mean log p(label | z near t = 0) with
        S = {image}; "sum" of the two, a bound on log p(image, label) with only the image in z; and "joint": the bound
        with both in z, with its "joint_stderr".
    """
    values = {name: value.to(model.device) for name, value in test.values.items() if name in model.modalities}
    alone = elbo(model, values, samples, present={"image"}, generator=generator)
    out = {"image": alone.total, "image_stderr": alone.stderr, "image_bits_per_dim": alone.bits_per_dim("image")}
    if "label" not in values:
        return out
    both = elbo(model, values, samples, generator=generator)
    t, n = model.process.first, len(test)
    present = {"image": torch.ones(n, dtype=torch.bool, device=model.device)}
    present["label"] = ~present["image"]
    z, _ = model.process.diffuse(model.encode({"image": values["image"]}), t, present=present, generator=generator)
    read = float(model.log_prob("label", values["label"], z, t, present=present).double().mean())
    joint = {"joint": both.total, "joint_stderr": both.stderr}
    return {**out, "label_given_image": read, "sum": alone.total + read, **joint}


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
