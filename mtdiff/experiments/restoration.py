"""Restoration: seven tasks of low-level vision by one model, trained on pairs of pictures and what is left of them."""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from mtdiff.baselines import mean_image
from mtdiff.datasets import Dataset, masks, shapes
from mtdiff.datasets.shapes import SETS
from mtdiff.degradations import TASKS, Degradation, degradation
from mtdiff.experiments.base import Experiment, Make, by_size, joint, on_scenes, seeded
from mtdiff.experiments.image_transition import END, LEVELS, falling, matched, rising
from mtdiff.judges import scene_judge
from mtdiff.metrics import frechet_distance, psnr, ssim
from mtdiff.modalities import Continuous, Image, Label, Mask
from mtdiff.model import MTDiffusion
from mtdiff.process import ForwardProcess
from mtdiff.schedules import NoiseSchedule
from mtdiff.training import TrainConfig

VARIANTS = {
    "told": "a diffusion of pictures that is told the degraded one, the task and the mask: one model for all tasks",
    "transition": "the same pairs and steps, but the chain ends at the degraded picture, as in image-transition",
}
NAMES = tuple(TASKS)
"""The tasks, by the number that the model is told."""
SHIFTED = {"super-resolve": {"factor": 2}, "deblur": {"width": 1.0}, "denoise": {"noise": 0.8}}
"""Other strengths than the models were trained on."""
STEPS = 25
"""Network evaluations of every draw that is judged, the final reading not counted."""
EXAMPLES = 30000
"""Training pairs, one seventh of them of each task."""


def degraded(image: Tensor, task: str, seed: int, **strength) -> tuple[Tensor, Tensor, Degradation]:
    """Pictures (N, 3, s, s) spoiled: what is measured, the mask (N, 1, s, s), all 1 but for "inpaint", and the degradation.

    Masks are of all kinds and hide 10 to 90%, as in masked-image.
    """
    n, size = len(image), image.shape[-1]
    mask = masks(n, size, seed=seed) if task == "inpaint" else torch.ones(n, 1, size, size)
    problem = degradation(task, mask if task == "inpaint" else None, **strength)
    return problem(image, torch.Generator().manual_seed(seed)), mask, problem


@functools.lru_cache(4)
def pairs(data: str, split: str, n: int | None = None) -> Dataset:
    """Scenes and what is left of them: "image" and "degraded" (N, 3, s, s), "mask" (N, 1, s, s) and "task" (N,).

    Scene i takes task i modulo 7. There are n; None: `EXAMPLES`, or 1400 to test on. A degraded picture has the size of the
    picture (`Degradation.picture`) and may leave [-1, 1] by its noise.
    """
    n = n or (EXAMPLES if split == "train" else 1400)
    scenes, seed = shapes(split, size=SETS[data], n=n, modalities=("image",)), 0 if split == "train" else 1
    image, task = scenes.values["image"], torch.arange(n) % len(NAMES)
    left, mask = torch.empty_like(image), torch.ones(n, 1, *image.shape[2:])
    for k, name in enumerate(NAMES):
        mine = slice(k, None, len(NAMES))
        if len(image[mine]):
            y, mask[mine], problem = degraded(image[mine], name, 10 * seed + k)
            left[mine] = problem.picture(y)
    values = {"image": image, "degraded": left, "mask": mask, "task": task}
    return Dataset(f"{data}-restoration/{split}", values, NAMES, f"{scenes.source}, degraded")


def build(data: str, variant: str, seed: int = 0, backbone: Make | None = None) -> MTDiffusion:
    """0.3M parameters at 16x16, 1.1M at 32x32; as in image-transition, the picture has the same SNR in both variants."""
    size, moves = SETS[data], variant == "transition"
    space = (3, size, size)
    parts = {
        "image": (falling if moves else 1.0, Image(space, start="rest")),
        "degraded": (rising if moves else 0.0, Continuous(space, tell=True)),
        "mask": (0.0, Mask((size, size), tell=True)),
        "task": (0.0, Label(len(NAMES), names=NAMES)),
    }
    schedule = NoiseSchedule.log_snr(500, high=8.0, low=END)
    schedule = schedule if moves else matched(ForwardProcess(schedule, {"target": falling}))
    options = {"prediction": "heads", "rule": "conditioned", "remove_known": True, "conditions": list(parts)[1:]}
    return seeded(seed, schedule, space, parts, "degraded" if moves else None, backbone=backbone, **options)


def config(data: str, variant: str, budget: str) -> TrainConfig:
    """The aggregate is the head's: its loss would say the same again."""
    levels = LEVELS["transition" if variant == "transition" else "conditional"]
    return on_scenes(budget, levels, weights={"denoise": 0.0, "image": 2.0})


def restored(
    model: MTDiffusion, y: Tensor, mask: Tensor, problem: Degradation, way: str = "draw", steps: int = STEPS, generator=None
) -> Tensor:
    """Pictures for measurements y by a model that was trained on pairs: a "draw", or their "mean" by one evaluation.

    Returns:
        (N, 3, s, s) in [-1, 1]; of "inpaint" the known pixels are as they were measured.

    Raises:
        ValueError: y cannot be of this degradation, or a way of another name.
    """
    if way not in ("draw", "mean"):
        raise ValueError(f"way must be 'draw' or 'mean', got {way!r}")
    shape = model.modalities["image"].shape
    problem.check(y, shape)
    task = torch.full((len(y),), NAMES.index(problem.task))
    given = {"degraded": problem.picture(y), "mask": mask, "task": task}
    if way == "mean":
        given = {name: value.to(model.device) for name, value in given.items()}
        x = mean_image(model, "image", given, generator).clamp(-1, 1).to(y)
    else:
        x = joint(model, len(y), given=given, steps=steps, generator=generator).to(y)
    return torch.where(mask.bool(), y, x) if problem.task == "inpaint" else x


def scores(drawn: Tensor, image: Tensor, real: Tensor | None = None, judge=None) -> dict[str, float]:
    """Means of "psnr" in dB (at most 60) and "ssim"; "features", Frechet distance to features of real scenes, by a judge."""
    out = {"psnr": float(psnr(drawn, image).clamp(max=60).mean()), "ssim": float(ssim(drawn, image).mean())}
    return out if judge is None else {**out, "features": frechet_distance(judge.features(drawn), real)}


def problems(n: int, data: str, split: str = "test") -> Mapping[str, tuple[Tensor, Tensor, Tensor, Degradation]]:
    """{task: (image, y, mask, degradation)}, n scenes each, and "TASK, shifted" for those of another strength."""
    image = shapes(split, size=SETS[data], n=n, modalities=("image",)).values["image"]
    asked = {**{task: (task, {}) for task in NAMES}, **{f"{task}, shifted": (task, s) for task, s in SHIFTED.items()}}
    return {name: (image, *degraded(image, task, seed=5, **strength)) for name, (task, strength) in asked.items()}


def evaluate(model: MTDiffusion, data: str, seed: int = 0, n: int = 100) -> dict:
    """All tasks of a model on n held-out scenes, at `STEPS` network evaluations.

    Returns:
        {way: {task: `scores`}}: "draw", and for a model whose chain ends at noise "mean"; "input" is the degraded picture as
        it is.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    judge, out = scene_judge(data), {}
    real = judge.features(shapes("test", size=SETS[data], modalities=("image",)).values["image"])
    ways = ("draw",) if model.process.prior else ("draw", "mean")
    for task, (image, y, mask, problem) in problems(n, data).items():
        drawn = {way: restored(model, y, mask, problem, way, generator=generator) for way in ways}
        for way, x in {**drawn, "input": problem.picture(y).clamp(-1, 1)}.items():
            out.setdefault(way, {})[task] = scores(x, image, real, judge)
    return out


EXPERIMENT = Experiment("restoration", by_size(pairs), VARIANTS, build, config, evaluate)
