"""How image-label models are judged: samples by every rule, the label head and its calibration, guidance, amplification."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtdiff.datasets import Dataset, digits, planted
from mtdiff.datasets.planted import OWN
from mtdiff.datasets.shapes import COLOURS, SHAPES
from mtdiff.evaluation import (
    LABEL_RULES,
    Judge,
    bound_draws,
    evaluate_image_label,
    head_logits,
    image_label_bounds,
    image_label_metrics,
    image_metrics,
    learned,
    svm_judge,
)
from mtdiff.experiments.unshared import Unshared
from mtdiff.judges import label_judge, scene_judge
from mtdiff.metrics import calibration_error, frechet_distance, precision_recall, temperature
from mtdiff.model import MTDiffusion
from mtdiff.sampling import sample_many

GUIDANCE = (1.0, 1.5, 2.0, 4.0)
"""Scales of classifier-free guidance that are compared."""
FOLDS = 5
"""Parts of the held-out images, each scaled by a temperature that was fitted to the others."""
LEVELS = 11
"""Number of noise levels at which the label head is judged."""
EXAMPLES = 30_000
"""Training images of the shapes world."""


@functools.lru_cache(4)
def named_shapes(data: str, split: str) -> Dataset:
    """Images (N, 3, s, s) of one large shape on grey and labels (N,), 18 classes: colour and shape.

    Colour and shape are independent of each other, as is all else that a scene has.

    Args:
        data: "shapes16" or "shapes32".
        split: "train" (`EXAMPLES`) or "test" (2,000).

    Returns:
        The data set; names are "red circle" ....
    """
    scenes = planted(1 / len(COLOURS), split, int(data[6:]), EXAMPLES if split == "train" else None)
    label = len(COLOURS) * scenes.values["label"] + scenes.values["colour"]
    names = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
    return Dataset(f"{data}/{split}", {"image": scenes.values["image"], "label": label}, names, f"{scenes.source}, named")


@dataclass(frozen=True)
class Referee:
    """Who judges the samples of a data set, and what they are compared with.

    Attributes:
        judge: images -> class ids.
        accuracy: of the judge on held-out images.
        test: held-out images and labels.
        real: real images that drawn ones are compared with.
        features: images -> (N, d), for distances, precision and recall.
        steps: sampler steps of every sample that is judged.
    """

    judge: Callable[[Tensor], Tensor]
    accuracy: float
    test: Dataset
    real: Tensor
    features: Callable[[Tensor], Tensor]
    steps: int


@functools.cache
def referee(data: str) -> Referee:
    """The referee of "digits", "shapes16" or "shapes32"."""
    if data == "digits":
        judge, test = svm_judge(digits("train")), digits("test")
        real, features, steps = digits("all").values["image"], lambda image: image.flatten(1), 50
    else:
        test = named_shapes(data, "test")
        judge, real, features, steps = label_judge(data).read, test.values["image"], scene_judge(data).features, 25
    accuracy = float((judge(test.values["image"]) == test.values["label"]).double().mean())
    return Referee(judge, accuracy, test, real, features, steps)


def evaluate(model: MTDiffusion, data: str, seed: int = 0, n: int = 2000, rules: Sequence[str] = LABEL_RULES) -> dict:
    """All that a variant can do, and the judge's own accuracy.

    Args:
        model: the trained model; its default rules say what it learned: "label" to be told labels, "image" to read them.
        data: name of the data.
        seed: seed of all noise.
        n: samples for each line.
        rules: rules for a given label; one that has no code in the chain can only be told.

    Returns:
        The metrics of `evaluate_image_label`, `head_scores`, `guidance_scores` and `code_scores`, as far as the model has
        them: for "unshared" its own way of conditioning stands as "conditioned", and it has no bound; for "image-only"
        those of its images. For planted scenes `amplification`.
    """
    if data.startswith("planted"):
        return amplification(model, int(data[7:]) / 100, seed, n)
    r = referee(data)
    halves = r.real[torch.randperm(len(r.real), generator=torch.Generator().manual_seed(0))].chunk(2)
    known = {"judge_accuracy": r.accuracy, "frechet_pixels_of_two_real_halves": frechet_distance(*halves)}
    generator = torch.Generator(model.device).manual_seed(seed)
    if "label" not in model.modalities:
        drawn, by_ddim = (
            sample_many(model, n, steps=r.steps, sampler=sampler, generator=generator) for sampler in (None, "ddim")
        )
        lines = {"joint": image_metrics(drawn["image"], r.real), "joint_ddim": image_metrics(by_ddim["image"], r.real)}
        bound = image_label_bounds(model, r.test, bound_draws(n, r.test), generator)
        return {**lines, **_distances(drawn["image"], r), "bound": bound, **known}
    if isinstance(model, Unshared):
        return {**_unshared(model, r, n, generator), **known}
    out: dict = {}
    if {"label", "image"} <= set(learned(model)):
        rules = rules if "label" in model.process.entering else ("conditioned",)
        out |= evaluate_image_label(model, r.test, r.real, r.judge, rules, n, r.steps, seed=seed)
        drawn = sample_many(model, n, steps=r.steps, generator=torch.Generator(model.device).manual_seed(seed))
        out |= _distances(drawn["image"], r)
    if "image" in learned(model):
        out |= head_scores(model, r.test, seed)
    if "label" in learned(model):
        out["guidance"] = guidance_scores(model, r, n, seed)
    if "label" in model.process.entering:
        out["codes"] = code_scores(model.modalities["label"].table())
    return {**out, **known}


def head_scores(model: MTDiffusion, test: Dataset, seed: int = 0) -> dict:
    """What the label head is worth on held-out images, alone in the state.

    Args:
        model: the model.
        test: held-out images and labels.
        seed: of the noise.

    Returns:
        "head": "accuracy", "nats" (cross-entropy), "calibration_error", and after temperature scaling, of the images
        "temperature" (of all), "nats_scaled" and "calibration_error_scaled" (each fifth scaled by what fits the others);
        "levels": {t: "accuracy" and "nats" at that step}.
    """
    label, n = test.values["label"], len(test)
    generator = torch.Generator(model.device).manual_seed(seed)
    logits = head_logits(model, test, generator=generator).cpu()
    fold, scaled = torch.arange(n) % FOLDS, logits.clone()
    for k in range(FOLDS):
        scaled[fold == k] /= temperature(logits[fold != k], label[fold != k])
    head = {**_naming(logits, label), "calibration_error": calibration_error(logits, label)}
    head |= {"temperature": temperature(logits, label)}
    head |= {"nats_scaled": _naming(scaled, label)["nats"], "calibration_error_scaled": calibration_error(scaled, label)}
    first, last = model.process.first, model.process.steps
    levels = {}
    for t in torch.linspace(first, last, LEVELS).round().long().tolist():
        levels[str(t)] = _naming(head_logits(model, test, t=t, generator=generator).cpu(), label)
    return {"head": head, "levels": levels}


def code_scores(codes: Tensor) -> dict[str, float]:
    """How far apart the codes of classes are.

    Args:
        codes: (K, *slice).

    Returns:
        "nearest": the least distance of two codes over the largest that it can be at their RMS, which is that of a simplex;
        "directions": how many the codes use, (sum l)^2 / sum l^2 of the eigenvalues l of their covariance, at most K - 1.
    """
    codes = codes.detach().flatten(1).double().cpu()
    k, n = codes.shape
    bound = (2 * n * float(codes.square().mean()) * k / (k - 1)) ** 0.5
    power = torch.linalg.svdvals(codes - codes.mean(0)).square()
    return {"nearest": float(torch.pdist(codes).min()) / bound, "directions": float(power.sum() ** 2 / power.square().sum())}


def _naming(logits: Tensor, label: Tensor) -> dict[str, float]:
    """Accuracy and cross-entropy."""
    right = (logits.argmax(1) == label).double().mean()
    return {"accuracy": float(right), "nats": float(torch.nn.functional.cross_entropy(logits.double(), label))}


def guidance_scores(model: MTDiffusion, r: Referee, n: int, seed: int = 0) -> dict:
    """Fidelity against diversity: samples of given labels by rule "conditioned" at every scale of `GUIDANCE`.

    Args:
        model: the model.
        r: who judges.
        n: samples at each scale, equally many of every class.
        seed: of the noise, the same at every scale.

    Returns:
        {scale: "agreement", "spread", "frechet_pixels", "features", "precision", "recall"}.
    """
    label = torch.arange(n, device=model.device) % model.modalities["label"].classes
    out = {}
    for scale in GUIDANCE:
        generator = torch.Generator(model.device).manual_seed(seed)
        options = {"rule": "conditioned", "guidance": scale, "steps": r.steps, "generator": generator}
        drawn = sample_many(model, n, given={"label": label}, **options)
        out[str(scale)] = {**image_label_metrics(drawn, r.judge, r.real), **_distances(drawn["image"], r)}
    return out


def _distances(image: Tensor, r: Referee) -> dict[str, float]:
    """Frechet distance of the referee's features, and precision and recall of as many drawn as real ones."""
    real, drawn = r.features(r.real), r.features(image.cpu())
    k = min(len(real), len(drawn))
    mixed = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))][:k]
    return {"features": frechet_distance(drawn, real), **precision_recall(mixed, drawn[:k])}


def _unshared(model: Unshared, r: Referee, n: int, generator: torch.Generator) -> dict:
    """The control without a shared space, which samples and reads in its own way."""
    label = torch.arange(n, device=model.device) % model.modalities["label"].classes
    right = model.classify(r.test.values["image"], generator).cpu() == r.test.values["label"]
    return {
        "joint": image_label_metrics(model.sample(n, generator=generator), r.judge, r.real),
        "joint_ddim": image_label_metrics(model.sample(n, sampler="ddim", generator=generator), r.judge, r.real),
        "conditioned": image_label_metrics(model.sample(n, {"label": label}, generator=generator), r.judge, r.real),
        "head_accuracy": float(right.double().mean()),
    }


def amplification(model: MTDiffusion, share: float, seed: int, n: int, scales: Sequence[float] = GUIDANCE) -> dict:
    """Is a planted correlation of shape and colour reproduced, amplified or reduced?

    Args:
        model: a model of images and shapes ("label").
        share: how often a shape has its own colour in the training data.
        seed: of the noise.
        n: samples of each kind.
        scales: of guidance.

    Returns:
        {"joint", "joint, ddim", "guidance S" for each scale: `colour_scores`}; given labels by the model's own sampler.
    """
    judges, out = shape_and_colour(), {}
    label = torch.arange(n, device=model.device) % len(SHAPES)
    kinds = {"joint": {}, "joint, ddim": {"sampler": "ddim"}} if "image" in learned(model) else {}
    kinds |= {f"guidance {scale}": {"guidance": scale, "rule": "conditioned"} for scale in scales}
    for kind, options in kinds.items():
        given = {"label": label} if "guidance" in options else None
        generator = torch.Generator(model.device).manual_seed(seed)
        drawn = sample_many(model, n, given=given, steps=25, generator=generator, **options)
        out[kind] = colour_scores(*(read(drawn["image"].cpu()) for read in judges), drawn["label"].cpu(), share)
    return out


@functools.cache
def shape_and_colour() -> tuple[Judge, Judge]:
    """Judges of shape and of colour: support-vector machines, trained on scenes in which neither tells of the other."""
    data = planted(1 / len(COLOURS), n=4000, seed=1)
    colours = {"image": data.values["image"], "label": data.values["colour"]}
    return svm_judge(data), svm_judge(Dataset(data.name, colours))


def colour_scores(shape: Tensor, colour: Tensor, label: Tensor, share: float) -> dict[str, float]:
    """Colours of drawn scenes, of those whose shape is the one that the label says.

    Args:
        shape: (N,) shapes, as a judge reads the images.
        colour: (N,) colours, as another reads them.
        label: (N,) shapes.
        share: how often a shape has its own colour in the training data.

    Returns:
        "agreement": share of all scenes that are such; "own": how many of them have the shape's own colour, mean over
        shapes; "amplified": own less `share`; "others": how evenly the five other colours come, their entropy over log 5.
    """
    right, own, counts = shape == label, [], torch.zeros(len(COLOURS) - 1, dtype=torch.float64)
    for k in range(len(SHAPES)):
        mine = colour[right & (label == k)]
        own.append(float((mine == OWN[k]).double().mean()))
        away = (mine - OWN[k]) % len(COLOURS)
        counts += away[away > 0].bincount(minlength=len(COLOURS))[1:]
    p = counts / counts.sum()
    evenness = float(torch.special.entr(p).sum() / torch.tensor(len(p)).double().log())
    mean = sum(own) / len(own)
    return {"agreement": float(right.double().mean()), "own": mean, "amplified": mean - share, "others": evenness}
