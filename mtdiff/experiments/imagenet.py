"""Real photographs, packed by `mtdiff data prepare`: plain diffusion, + masked image, + label, + box, at equal compute."""

import functools
from collections.abc import Mapping
from pathlib import Path

from mtdiff.baselines import classifier_loss
from mtdiff.datasets.imagenet import ARCHIVES
from mtdiff.datasets.imagenet.packing import FOLDER, packs
from mtdiff.datasets.prepared import Prepared, prepared
from mtdiff.experiments.base import LEVELS, Experiment, Look, Make, noise_schedule, recipe, seeded
from mtdiff.experiments.imagenet_scores import evaluate as scores
from mtdiff.experiments.imagenet_scores import progress
from mtdiff.modalities import Image, Label, Mask
from mtdiff.model import MTDiffusion
from mtdiff.schedules import constant, fade_in
from mtdiff.training import TrainConfig

VARIANTS = {
    "masked": "image, masked image and mask superposed and injected: the paper's masked-image setting, our form",
    "plain": "the image alone: the same images, as many steps",
    "label": "image and label superposed, the code injected: the paper's image-label setting",
    "box": "image, label and the mask of a box around the object, all three in one space",
    "conditional": "told the label in nine of ten examples, never in the sum, never read: classifier-free guidance's model",
    "classifier": "the same backbone and as many steps for the label alone, of clean images",
    "noisy-classifier": "the same for the label alone, of images at every noise level",
}
MODALITIES = {
    "masked": ("image", "masked", "mask"),
    "plain": ("image",),
    "label": ("image", "label"),
    "box": ("image", "label", "box"),
    **dict.fromkeys(("conditional", "classifier", "noisy-classifier"), ("image", "label")),
}
"""What each variant is shown."""
SETS = {f"{name}{size}": (name, size) for name in ("imagenette", "tiny-imagenet") for size in (32, 64)}
"""Packed sets: the name of what `mtdiff data get` fetches for each, and the height and width of its images."""
LOSSES: Mapping[str, dict] = {
    "masked": {
        "weights": {"image": 0.1, "masked": 0.02, "mask": 0.02},
        "drop": {"masked": 0.8, "mask": "masked"},
        "give": {"masked": 0.5, "mask": "masked"},
    },
    "plain": {"weights": {"image": 0.0}},
    "label": {"weights": {"image": 0.1, "label": 0.5}, "drop": {"label": 0.7}, "give": {"label": 0.3}},
    "box": {
        "weights": {"image": 0.1, "label": 0.5, "box": 0.5},
        "drop": {"label": 0.5, "box": 0.5},
        "give": {"label": 0.3, "box": 0.3},
    },
    "conditional": {"weights": {"image": 0.0, "label": 0.0}, "give": {"label": 0.9}},
    "classifier": {"weights": {"denoise": 0.0, "image": 0.0}, "drop": {"label": 1.0}},
    "noisy-classifier": {"weights": {"denoise": 0.0, "image": 0.0}, "drop": {"label": 1.0}},
}
"""How each variant is trained: options of `multitask_loss`."""


def packed(data: str, split: str, variant: str | None = None) -> Prepared:
    """The "train" or "test" split of one of `SETS` or of a pack's folder, with what a variant is shown, or all it has."""
    return prepared(packed_folder(data), split, MODALITIES[variant] if variant else None)


def packed_folder(data: str) -> Path:
    """The folder of a packed set; FileNotFoundError where one of `SETS` is not there, with the commands that make it."""
    folder = packs() / data if data in SETS else Path(data)
    if data in SETS and not folder.is_dir():
        name, size = SETS[data]
        pack = f"mtdiff data prepare data/raw/{ARCHIVES[name].folder} --size {size} --out {folder}"
        commands = f"mtdiff data get {name} && {pack}"
        raise FileNotFoundError(f"{data} is not in {folder.parent} ({FOLDER} names another folder). To make it: {commands}")
    return folder


def build(data: str, variant: str, seed: int = 0, backbone: Make | None = None) -> MTDiffusion:
    """Of the size of the images."""
    test = packed(data, "test", "plain")
    return assemble(test.size, variant, test.names, seed, backbone)


def assemble(size: int, variant: str, names: tuple[str, ...], seed: int = 0, backbone: Make | None = None) -> MTDiffusion:
    """The model of a variant for images of a size and classes of these names."""
    shape, used = (3, size, size), MODALITIES[variant]
    outside = variant == "conditional" or "classifier" in variant  # the label is never in the sum
    known, curve = ("masked", "mask") if "mask" in used else (), fade_in(0.3, start=0.1)
    label = constant(0.0) if outside else fade_in(1.0, start=0.1)
    made = {  # {name: (its curve, what makes it)}
        "image": (1.0, lambda: Image(shape, levels=256, start="rest", revealed_by=known)),
        "masked": (curve, lambda: Image(shape, start="nothing", tell=True)),
        "mask": (curve, lambda: Mask((size, size), tell=True)),
        "label": (label, lambda: Label(len(names), names=names, sense=not outside)),
        "box": (curve, lambda: Mask((size, size), tell=True)),
    }
    parts = {name: (made[name][0], made[name][1]()) for name in used}
    rule = {name: "readout" if name == "image" else "conditioned" for name in used}
    if outside:  # a classifier never learned to draw, the other never to read
        del rule["image" if variant == "conditional" else "label"]
    options: dict = {"rule": rule, "prediction": "heads", "remove_known": variant != "plain" and not outside}
    return seeded(seed, noise_schedule(size, power=2.0), shape, parts, backbone=backbone, **options)


def config(data: str, variant: str, budget: str) -> TrainConfig:
    """Full: from 64x64 on for minutes of a GPU (with --precision bf16 --compile), below for two hours of a CPU."""
    size = SETS[data][1] if data in SETS else packed(data, "train", "plain").size
    steps, batch_size, lr = (12_000, 256, 1e-3) if recipe(size) == 64 else (20_000, 32, 2e-3)
    steps, probe_every = (steps, steps // 5) if budget == "full" else (300, 0)
    options = {"batch_size": batch_size, "lr": lr, "probe_every": probe_every, **LOSSES[variant]}
    return TrainConfig(steps=steps, ema=0.999, save_every=500, levels=LEVELS, **options)


def loss(variant: str, c: TrainConfig):
    """The loss of the classifier; the others use the multi-task loss."""
    return classifier_loss if variant == "classifier" else None


def probe(data: str, variant: str) -> Look:
    """See `mtdiff.experiments.imagenet_scores.progress`."""
    return functools.partial(progress, test=packed(data, "test", variant))


def evaluate(model: MTDiffusion, data: str, seed: int = 0, n: int = 2000, features: str | None = None) -> dict:
    """What a variant can do on the held-out part of a packed set; see `mtdiff.experiments.imagenet_scores.evaluate`."""
    shown = tuple(name for name in model.modalities if name not in ("masked", "mask"))
    return scores(model, prepared(packed_folder(data), "test", shown), seed, n, features)


EXPERIMENT = Experiment(
    "imagenet",
    {name: functools.partial(packed, name) for name in SETS},
    VARIANTS,
    *(build, config, evaluate, loss, probe),
    lambda data, variant, seed: data("train", variant),
    options=("features",),
    packed=packed,
)
