"""A dense generalist: depth, segments, instances and restoration of a picture, drawn as pictures by one told network."""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mtdiff.datasets import Dataset, unpalette
from mtdiff.datasets.dense import BLUR, CLASSES, NOISE, TASKS, distance, ids_of, tasks
from mtdiff.datasets.shapes import RENDERING, SETS, SHAPES, numbers
from mtdiff.dense_scores import depth_errors, mean_iou, panoptic_quality
from mtdiff.experiments.base import Experiment, Make, by_size, joint, noise_schedule, on_scenes, seeded
from mtdiff.judges import scene_judge
from mtdiff.metrics import frechet_distance, psnr
from mtdiff.modalities import Image, Label
from mtdiff.model import MTDiffusion
from mtdiff.training import TrainConfig

VARIANTS = {
    "generalist": "one network told the task, all four tasks in every batch",
    "tuned": "the generalist's training, begun with the weights of a plain generator (--from)",
    "generator": "pictures from noise: given grey in place of a picture, and a task that means nothing",
    **{
        task: f"a specialist: {task} alone, a quarter of the steps, as many as are the generalist's for it" for task in TASKS
    },
    **{f"{task}-long": f"a specialist: {task} alone, as many steps as the generalist's for all tasks" for task in TASKS},
}
STEPS = 4
"""Network evaluations of every answer that is judged, the final reading not counted."""
EXAMPLES = 24_000
"""Training questions: four for each of 6,000 scenes."""
LEVELS = (-2.0, 3.0)
"""Log-SNR at which it is trained: where little is seen of the answer, and the picture has to say it."""
FULL = 1800
"""Optimiser steps of the generalist."""


@functools.lru_cache(4)
def questions(data: str, split: str, n: int | None = None) -> Dataset:
    """Pictures with a task and its answer, as `mtdiff.datasets.dense.tasks`; the data set's names are the tasks.

    There are n, a multiple of four; None: `EXAMPLES`, or 2000 to test on.
    """
    n, seed = n or (EXAMPLES if split == "train" else 2000), 0 if split == "train" else 1
    values = tasks(torch.from_numpy(numbers(split, n // len(TASKS))), SETS[data], seed)
    source = f"shapes {split} {SETS[data]} seed 0, rendering {RENDERING}, all tasks"
    source += f", blur {BLUR:g}, noise {NOISE:g} of seed {seed}"
    return Dataset(f"{data}-dense/{split}", values, TASKS, source)


def build(data: str, variant: str, seed: int = 0, backbone: Make | None = None) -> MTDiffusion:
    """0.3M parameters at 16x16, the same for all variants: a specialist is told its only task."""
    size = SETS[data]
    space = (3, size, size)
    parts = {
        "target": (1.0, Image(space, start="rest")),
        "image": (0.0, Image(space, tell=True)),
        "task": (0.0, Label(len(TASKS), names=TASKS)),
    }
    options = {"prediction": "heads", "rule": "conditioned", "remove_known": True, "conditions": ["image", "task"]}
    return seeded(seed, noise_schedule(size, power=1.0), space, parts, backbone=backbone, **options)


def config(data: str, variant: str, budget: str) -> TrainConfig:
    """The aggregate is the head's, whose loss says it all. A specialist has as many steps as the generalist for its task."""
    found = on_scenes(budget, LEVELS, weights={"denoise": 0.0, "target": 2.0}, warmup=50)
    steps = FULL if budget == "full" else 400
    return replace(found, steps=steps // len(TASKS) if variant in TASKS else steps, ema=0.99)


def examples(data: Callable[[str], Dataset], variant: str, seed: int) -> Dataset:
    """What a variant is shown of a training set: a specialist its task alone, the generator pictures as targets and grey."""
    train = data("train")
    values, asked = train.values, variant.removesuffix("-long")
    if asked in TASKS:
        mine = values["task"] == TASKS.index(asked)
        values = {name: value[mine] for name, value in values.items()}
    elif variant == "generator":
        restored = (values["task"] == TASKS.index("restoration"))[:, None, None, None]
        picture = torch.where(restored, values["target"], values["image"])
        values = {"image": torch.zeros_like(picture), "task": values["task"], "target": picture}
    else:
        return train
    return Dataset(f"{train.name}, {variant}", values, train.names, f"{train.source}, as {variant} is shown them")


def solve(model: MTDiffusion, image: Tensor, task: str | Tensor, steps: int = STEPS, **options) -> Tensor:
    """Answers (N, 3, s, s) to a task, by its name, or ids (N,), for pictures (N, 3, s, s), by so many steps of DDIM.

    `options` are other ones of `sample`. ValueError for an unknown task, or pictures that do not fit the model.
    """
    if isinstance(task, str):
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}: expected one of {list(TASKS)}")
        task = torch.full((len(image),), TASKS.index(task))
    options = {"sampler": "ddim", "steps": steps, **options}
    return joint(model, len(image), "target", given={"image": image, "task": task}, **options).to(image)


def scores(task: str, drawn: Tensor, target: Tensor) -> dict[str, float]:
    """How good answers to a task are, of pictures (N, 3, s, s).

    Returns:
        "depth": "rmse" and "delta" of `distance`; "segmentation": "miou"; "instances": "quality", "segmentation" and
        "recognition" of `panoptic_quality`, of objects; "restoration": "psnr", the mean in dB.
    """
    if task == "depth":
        return depth_errors(distance(drawn), distance(target))
    if task == "segmentation":
        return {"miou": mean_iou(unpalette(drawn), unpalette(target), 1 + len(SHAPES))}
    if task == "instances":
        ids = (ids_of(picture, len(CLASSES)) for picture in (drawn, target))
        return panoptic_quality(*ids, CLASSES, counted={*CLASSES} - {0})
    return {"psnr": float(psnr(drawn, target).clamp(max=60).mean())}


def evaluate(model: MTDiffusion, data: str, seed: int = 0, n: int = 400) -> dict:
    """All tasks that a variant was taught, n held-out pictures each, at `STEPS` network evaluations.

    Returns:
        {task: `scores`}; of a generator "alone": {"features": Frechet distance of n drawn pictures to real ones in the
        judge's features}.
    """
    generator, out = torch.Generator(model.device).manual_seed(seed), {}
    asked = model.card.get("variant", "generalist").removesuffix("-long")
    test, grey = questions(data, "test", len(TASKS) * n), torch.zeros(n, *model.space)
    if asked == "generator":
        judge, real = scene_judge(data), test.values["target"][TASKS.index("restoration") :: len(TASKS)]
        drawn = solve(model, grey, torch.arange(n) % len(TASKS), 25, generator=generator)
        return {"alone": {"features": frechet_distance(judge.features(drawn), judge.features(real))}}
    for task in TASKS if asked in ("generalist", "tuned") else (asked,):
        part = test[test.values["task"] == TASKS.index(task)]
        drawn = solve(model, part["image"], task, generator=generator)
        out[task] = scores(task, drawn, part["target"])
    return out


EXPERIMENT = Experiment("dense", by_size(questions), VARIANTS, build, config, evaluate, examples=examples)
