"""Any to any: image, segmentation, depth, label and caption of a scene in one space; any draws the others, in one model."""

import functools
import math
from collections.abc import Callable, Sequence

import torch

from mtdiff.baselines import Unshared
from mtdiff.datasets import Dataset
from mtdiff.datasets.shapes import OBJECTS, RENDERING, SHAPES, VOCABULARY, numbers, render
from mtdiff.experiments import any_scores
from mtdiff.experiments.base import Experiment, Make, noise_schedule, on_scenes, seeded
from mtdiff.modalities import MISSING, Caption, Image, Label, LabelMap
from mtdiff.model import MTDiffusion
from mtdiff.schedules import constant, fade_in
from mtdiff.training import TrainConfig

MODALITIES = ("image", "segmentation", "depth", "label", "caption")
SEGMENTS = ("background", *SHAPES)
SPECIALISTS = (("image", "caption"), ("caption", "image"), ("image", "segmentation"))
"""Pairs that have a model of their own, as a control: what is drawn, what is always given."""
SHARES = (50, 80)
"""Percentages of examples in which each modality is missing, by a coin of its own."""
VARIANTS = {
    "shared": "all superposed in four channels, an image's and its depth's; codes are injected as the noise grows",
    "own-channels": "the segmentation in channels of its own, too (concatenation), label and caption with constant weights",
    "unshared": "no shared space: channels and a time of its own for each modality, the trunk alone is shared",
    **{f"missing-{share}": f"shared, each modality missing in {share}% of the training examples" for share in SHARES},
    **{f"{given}-to-{drawn}": f"a specialist: {drawn} drawn, {given} always given" for drawn, given in SPECIALISTS},
}
WORLDS = {"shapes32": (32, 1), "scenes32": (32, None), "shapes16": (16, 1), "scenes16": (16, None)}
"""Data: height and width, and how many objects there are; None is one to three."""
EXAMPLES = 30_000
LEVELS = (0.5, 3.2)
"""Log-SNR at which it is trained: wide, because words stand out from noise far below images, and are decided there."""
GIVE = dict.fromkeys(MODALITIES, 0.4)
"""How often each modality is given."""
DROP = {"image": 0.1, "segmentation": 0.4, "depth": 0.3, "label": 0.6, "caption": 0.6}
"""How often each one that is not given is absent: a head that finds its own code in the state need not look elsewhere."""


@functools.lru_cache(4)
def world(data: str, split: str) -> Dataset:
    """Scenes with all of `MODALITIES`: `EXAMPLES` to train on, 2000 to test on."""
    return scenes(data, split, EXAMPLES if split == "train" else 2000)


def scenes(data: str, split: str, n: int, modalities: Sequence[str] = MODALITIES) -> Dataset:
    """The first n scenes of one of `WORLDS`, with these modalities of `shapes`.

    Captions are as long as the world's longest: (N, 4) with one object, (N, 10) with up to three.
    """
    size, objects = WORLDS[data]
    values = render(numbers(split, n, objects=objects), size, modalities=tuple(modalities))
    if "caption" in values:
        values["caption"] = values["caption"][:, : length(objects)]
    return Dataset(
        f"{data}-any/{split}", values, OBJECTS, f"scenes {split} {size}, objects {objects}, rendering {RENDERING}"
    )


def length(objects: int | None) -> int:
    """Words of a caption: the background, and three of each object."""
    return 1 + 3 * (objects or 3)


def pair(variant: str) -> tuple[str | None, str | None]:
    """What a specialist draws and what it is always given; None, None of the others."""
    given, to, drawn = variant.partition("-to-")
    return (drawn, given) if to else (None, None)


def build(data: str, variant: str, seed: int = 0, backbone: Make | None = None) -> MTDiffusion:
    """0.4M parameters at 16x16, 1.7M at 32x32."""
    (size, objects), (drawn, given) = WORLDS[data], pair(variant)
    unshared, apart = variant == "unshared", variant in ("own-channels", "unshared")
    codes, maps = (constant(1.0), constant(1.0)) if apart else (fade_in(1.0, start=0.1), fade_in(0.3, start=0.1))
    where = {"segmentation": slice(4, 7)} if apart else {}
    where |= {"label": slice(7, 8), "caption": slice(8, 9)} if unshared else {}
    words = {"sense": not unshared}
    pixels: dict = {"tell": True, "head": not unshared, "start": "state" if unshared else "rest"}
    parts = {
        "image": (1.0, Image((3, size, size), channels=slice(0, 3), levels=256, **pixels)),
        "depth": (1.0, Image((1, size, size), channels=slice(3, 4), **pixels)),
        "segmentation": (maps, LabelMap(4, (size, size), SEGMENTS, where.get("segmentation"), tell=True)),
        "label": (codes, Label(len(OBJECTS), OBJECTS, channels=where.get("label"), **words)),
        "caption": (codes, Caption(VOCABULARY, length(objects), "simplex", where.get("caption"), tell="vector", **words)),
    }
    options: dict = {"prediction": "heads", "rule": "conditioned", "remove_known": True}
    if unshared:
        options = {"kind": Unshared}
    elif drawn:
        parts = {drawn: parts[drawn], given: (0.0, parts[given][1])}
        options["conditions"] = [given]
    space = (9 if unshared else 7 if apart else 4, size, size)
    return seeded(
        seed,
        noise_schedule(size, power=6.0 if apart else 3.0),
        space,
        parts,
        unet={"cells": 4},
        backbone=backbone,
        **options,
    )


def config(data: str, variant: str, budget: str) -> TrainConfig:
    """By coins for each modality every conditional is met; see `GIVE` and `DROP`."""
    weights = {"image": 0.1, "depth": 0.1, "segmentation": 0.3, "label": 0.5, "caption": 0.5}
    drawn, _ = pair(variant)
    if drawn:
        return on_scenes(budget, LEVELS, weights={drawn: weights[drawn]})
    if variant == "unshared":
        del weights["image"], weights["depth"]  # which are their slices of the aggregate
    return on_scenes(budget, LEVELS, weights=weights, give=GIVE, drop=DROP)


def loss(variant: str, c: TrainConfig):
    """The loss of the model without a shared space; the others use the multi-task loss."""
    return functools.partial(Unshared.loss, weights=c.weights, drop=c.drop, give=c.give) if variant == "unshared" else None


def examples(data: Callable[[str], Dataset], variant: str, seed: int) -> Dataset:
    """What a variant is shown of a training set: of "missing-S" each modality is there in the other examples alone.

    Every modality has a coin of its own, which the seed throws.
    """
    train, (kind, _, percent) = data("train"), variant.partition("-")
    if kind != "missing":
        return train
    generator, values = torch.Generator().manual_seed(seed), {}
    for name, value in train.values.items():
        gone = torch.rand(len(value), generator=generator) < int(percent) / 100
        none = torch.full_like(value[:1], math.nan if value.is_floating_point() else MISSING)
        values[name] = torch.where(gone.reshape(-1, *[1] * (value.ndim - 1)), none, value)
    return Dataset(
        f"{train.name}, {percent}% missing", values, train.names, f"{train.source}, {percent}% missing, seed {seed}"
    )


def evaluate(model: MTDiffusion, data: str, seed: int = 0, n: int = 200) -> dict:
    """Every conditional on held-out scenes; see `mtdiff.experiments.any_scores.evaluate`."""
    return any_scores.evaluate(model, world(data, "test"), seed, n)


EXPERIMENT = Experiment(
    "any-to-any",
    {name: functools.partial(world, name) for name in WORLDS},
    VARIANTS,
    *(build, config, evaluate, loss),
    examples=examples,
)
