"""What models and their samples are worth, judged by somebody who never saw the generator; see also `mtdiff.metrics`."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mtdiff.comparison import mean_and_error
from mtdiff.datasets.base import Dataset
from mtdiff.elbo import elbo
from mtdiff.metrics import energy_distance, frechet_distance, psnr, ssim
from mtdiff.sampling import sample_many

__all__ = [
    "LABEL_RULES", "Judge", "bound_draws", "energy_distance", "evaluate_image_label", "frechet_distance", "head_accuracy",
    "head_logits",    "image_label_bounds", "image_label_metrics", "image_metrics", "mean_and_error", "pooled", "psnr",
    "ssim", "svm_judge",
]  # fmt: skip

Judge = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) -> class ids (B,)."""

LABEL_RULES = ("substitute", "bayes", "conditioned")
"""The rules for a given label that are compared everywhere."""


def learned(model) -> Mapping[str, str | None]:
    """The model's default rule of each modality; one that it lacks was not learned to be told, or to be drawn from.

    Raises:
        ValueError: the model has no default rules, so nobody knows.
    """
    if model.rule is None:
        raise ValueError('the model has no default rules, which say what can be judged: make it with rule={"image": ...}')
    return model.rule if isinstance(model.rule, Mapping) else dict.fromkeys(model.modalities, model.rule)


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
    logits = head_logits(model, data, name, generator=generator)
    return float((logits.argmax(1).cpu() == data.values[name].cpu()).double().mean())


@torch.no_grad()
def head_logits(
    model,
    data: Dataset,
    name: str = "label",
    t: int | None = None,
    generator: torch.Generator | None = None,
    batch: int = 2500,
) -> Tensor:
    """What the head of a label says of held-out examples, with the set's other modalities in the state and not the label.

    Args:
        model: a model with a discrete modality `name`.
        data: the held-out set.
        name: the modality that is read.
        t: the step of the state; None: the first, as good as clean.
        generator: source of the noise.
        batch: how many at a time.

    Returns:
        (N, K) logits.
    """
    t, logits = model.process.first if t is None else t, []
    values = {k: v for k, v in data.values.items() if k in model.modalities and k != name}
    for rows in torch.arange(len(data)).split(batch):
        part = {k: v[rows].to(model.device) for k, v in values.items()}
        present = {k: torch.full((len(rows),), k in part, device=model.device) for k in model.modalities}
        z, _ = model.process.diffuse(model.encode(part), t, present=present, generator=generator)
        logits.append(model.predict(z, t, present=present).params[name])
    return torch.cat(logits)


@torch.no_grad()
def pooled(model, image: Tensor, t: int, generator: torch.Generator | None = None, batch: int = 500) -> Tensor:
    """The backbone's pooled vector of noisy images, as the heads see it with S = {image}.

    Args:
        model: a model with a modality "image".
        image: (N, C, H, W).
        t: the step.
        generator: source of the noise.
        batch: how many at a time.

    Returns:
        (N, P), on the CPU.
    """
    found = []
    hook = model.backbone.register_forward_hook(lambda module, inputs, output: found.append(output[1].cpu()))
    try:
        for part in image.to(model.device).split(batch):
            present = {i: torch.full((len(part),), i == "image", device=model.device) for i in model.modalities}
            z, _ = model.process.diffuse(model.encode({"image": part}), t, present=present, generator=generator)
            model.predict(z, t, present=present)
    finally:
        hook.remove()
    return torch.cat(found)


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
