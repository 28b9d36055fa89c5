"""Any to any: image, segmentation, depth, label and caption of a scene in one space; any draws the others, in one model."""

import functools

from mtdiff.datasets import Dataset
from mtdiff.datasets.shapes import OBJECTS, RENDERING, SHAPES, VOCABULARY, numbers, render
from mtdiff.experiments import any_scores
from mtdiff.experiments.base import Experiment, noise_schedule, on_scenes, seeded
from mtdiff.modalities import Caption, Image, Label, LabelMap
from mtdiff.model import MTDiffusion
from mtdiff.schedules import constant, fade_in
from mtdiff.training import TrainConfig

MODALITIES = ("image", "segmentation", "depth", "label", "caption")
SEGMENTS = ("background", *SHAPES)
VARIANTS = {
    "shared": "all superposed in four channels, an image's and its depth's; codes are injected as the noise grows",
    "own-channels": "the segmentation in channels of its own, too (concatenation), label and caption with constant weights",
}
WORLDS = {"shapes32": (32, 1), "scenes32": (32, None), "shapes16": (16, 1), "scenes16": (16, None)}
"""Data: height and width, and how many objects there are; None is one to three."""
EXAMPLES = 30_000
LEVELS = (0.5, 2.8)
"""Log-SNR at which it is trained: codes that fill the space stand out far lower than images do."""


@functools.lru_cache(4)
def world(data: str, split: str) -> Dataset:
    """Scenes as in `shapes` with all of `MODALITIES`: `EXAMPLES` to train on, 2000 to test on.

    Captions are as long as the world's longest: (N, 4) with one object, (N, 10) with up to three.
    """
    size, objects = WORLDS[data]
    values = render(numbers(split, EXAMPLES if split == "train" else 2000, objects=objects), size, modalities=MODALITIES)
    values["caption"] = values["caption"][:, : length(objects)]
    return Dataset(
        f"{data}-any/{split}", values, OBJECTS, f"scenes {split} {size}, objects {objects}, rendering {RENDERING}"
    )


def length(objects: int | None) -> int:
    """Words of a caption: the background, and three of each object."""
    return 1 + 3 * (objects or 3)


def build(data: str, variant: str, seed: int = 0) -> MTDiffusion:
    """0.5M parameters at 16x16, 1.5M at 32x32."""
    size, objects = WORLDS[data]
    apart = variant == "own-channels"
    codes, maps = (constant(1.0), constant(1.0)) if apart else (fade_in(1.0, start=0.1), fade_in(0.3, start=0.1))
    caption = Caption(VOCABULARY, length(objects), "simplex", tell="vector", sense=True)
    parts = {
        "image": (1.0, Image((3, size, size), channels=slice(0, 3), levels=256, start="rest", tell=True)),
        "depth": (1.0, Image((1, size, size), channels=slice(3, 4), start="rest", tell=True)),
        "segmentation": (maps, LabelMap(4, (size, size), SEGMENTS, slice(4, 7) if apart else None, tell=True)),
        "label": (codes, Label(len(OBJECTS), OBJECTS, sense=True)),
        "caption": (codes, caption),
    }
    options = {"prediction": "heads", "rule": "conditioned", "remove_known": True, "unet": {"cells": 4}}
    return seeded(seed, noise_schedule(size, power=3.0), (7 if apart else 4, size, size), parts, **options)


def config(data: str, variant: str, budget: str) -> TrainConfig:
    """Each modality is given in 0.4 of the examples and absent in 0.1, by coins of its own: every conditional is met."""
    weights = {"image": 0.1, "depth": 0.1, "segmentation": 0.3, "label": 0.3, "caption": 0.3}
    give, drop = dict.fromkeys(MODALITIES, 0.4), dict.fromkeys(MODALITIES, 0.1)
    return on_scenes(budget, LEVELS, weights=weights, give=give, drop=drop)


def evaluate(model: MTDiffusion, data: str, seed: int = 0, n: int = 200) -> dict:
    """Every conditional on held-out scenes; see `mtdiff.experiments.any_scores.evaluate`."""
    return any_scores.evaluate(model, world(data, "test"), seed, n)


EXPERIMENT = Experiment(
    "any-to-any", {name: functools.partial(world, name) for name in WORLDS}, VARIANTS, build, config, evaluate
)
