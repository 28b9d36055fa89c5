"""Masked-image training: image, masked image and mask in one space; inpainting, and what it does to plain generation."""

import functools

import torch
from torch import Tensor

from mtdiff.baselines import inpaint
from mtdiff.datasets import Dataset, masks, shapes
from mtdiff.datasets.shapes import SETS
from mtdiff.experiments.base import (
    Experiment,
    Look,
    Make,
    alone,
    best_of,
    by_size,
    feature_probe,
    joint,
    noise_schedule,
    on_scenes,
    seeded,
)
from mtdiff.judges import scene_judge
from mtdiff.metrics import frechet_distance, hidden_psnr, ssim
from mtdiff.modalities import Image, Mask
from mtdiff.model import MTDiffusion
from mtdiff.schedules import constant, fade_in
from mtdiff.training import TrainConfig

VARIANTS = {
    "masked": "masked image and mask superposed on the image and injected, W from 0.1 to 0.3: the paper's setting, our form",
    "plain": "the image alone: the same images, as many steps, no masks",
    "augment": "told masked image and mask as often, but they are never in the sum, and no loss is theirs: augmentation",
    "own-channels": "each in channels of its own (concatenation), constant weights",
}
STEPS = 24
"""Network evaluations of every sample that is judged, the final reading not counted."""
HIDDEN = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of hidden pixels at which inpainting is judged."""
TRIED = {
    "repeated": ("repeats", (2, 4, 8)),
    "repaint": ("repeats", (1, 2, 4, 8)),
    "sdedit": ("strength", (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
}
"""{way to inpaint: (its option, values that are tried)}; each hidden share keeps the best of 64 training scenes."""
EXAMPLES = 30000
"""Training scenes, each with one mask."""


@functools.lru_cache(4)
def masked_scenes(data: str, split: str, n: int | None = None) -> Dataset:
    """Scenes with a mask: values "image" and "masked" (N, 3, s, s), "mask" (N, 1, s, s), 1 where a pixel is known.

    The masked image is the image where it is known and 0 (grey) elsewhere. Masks are of all kinds and hide 10 to 90%. There
    are n scenes; None: `EXAMPLES`, or 2000 to test on.
    """
    n, size = n or (EXAMPLES if split == "train" else 2000), SETS[data]
    scenes, seed = shapes(split, size=size, n=n, modalities=("image",)), 0 if split == "train" else 1
    image, mask = scenes.values["image"], masks(n, size, seed=seed)
    values = {"image": image, "masked": image * mask, "mask": mask}
    return Dataset(f"{data}-masked/{split}", values, source=f"{scenes.source}, masks seed {seed}")


def build(data: str, variant: str, seed: int = 0, backbone: Make | None = None) -> MTDiffusion:
    """0.3M parameters at 16x16."""
    size, apart = SETS[data], variant == "own-channels"
    shape = (3, size, size)
    image, masked, mask = (slice(0, 3), slice(3, 6), slice(6, 7)) if apart else (None, None, None)
    revealed = () if variant == "plain" else ("masked", "mask")
    curve = constant(1.0) if apart else constant(0.0) if variant == "augment" else fade_in(0.3, start=0.1)
    parts = {"image": (1.0, Image(shape, channels=image, revealed_by=revealed, start="rest"))}
    if variant != "plain":
        parts["masked"] = (curve, Image(shape, channels=masked, tell=True, start="rest" if apart else "nothing"))
        parts["mask"] = (curve, Mask((size, size), channels=mask, tell=True))
    options = {"prediction": "heads", "remove_known": variant != "plain"}
    space = (7, size, size) if apart else shape
    return seeded(seed, noise_schedule(size, power=1.0), space, parts, rule="conditioned", backbone=backbone, **options)


def config(data: str, variant: str, budget: str) -> TrainConfig:
    """Masked image and mask are told in seven of ten examples, and absent in eight of ten."""
    give, drop = {"masked": 0.7, "mask": "masked"}, {"masked": 0.8, "mask": "masked"}
    options: dict = {"give": give, "drop": drop, "weights": {"image": 0.1, "masked": 0.02, "mask": 0.02}}
    if variant == "plain":
        options = {"weights": {"image": 0.0}}
    elif variant == "augment":  # nothing but the image is in the sum, whose loss is then the image's
        options = {"give": give, "weights": {"image": 0.0, "masked": 0.0, "mask": 0.0}}
    return on_scenes(budget, probe_every=200 if budget == "quick" else 4000, **options)


def probe(data: str, variant: str) -> Look:
    """Distance of 500 images, drawn alone, to real ones."""
    return feature_probe(scene_judge(data), masked_scenes(data, "test").values["image"], 500)


def ways(model: MTDiffusion) -> tuple[str, ...]:
    """The ways to inpaint in which a model is judged."""
    if "mask" not in model.modalities:
        return ("repaint", "sdedit")
    return ("told", "repeated", "mean", *(("substitute",) if "mask" in model.process.entering else ()))


def evaluate(model: MTDiffusion, data: str, seed: int = 0, n: int = 1000) -> dict:
    """Plain and joint generation, and inpainting in all ways that the model has.

    A distance takes n images; inpainting a quarter as many scenes for each share.

    Returns:
        "alone" and, with masks, "joint": Frechet distances of drawn images to real ones, "features" in the judge's features
        and "frechet_pixels"; {way: {share: `inpainting_scores`}}, with the
        option that was best on training scenes where there is one (`TRIED`).
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    judge, test = scene_judge(data), masked_scenes(data, "test").values["image"]
    real, out = judge.features(test), {}
    for kind, draw in {"alone": alone, **({"joint": joint} if "mask" in model.process.entering else {})}.items():
        drawn = draw(model, n, steps=STEPS, generator=generator)
        features = frechet_distance(judge.features(drawn), real)
        out[kind] = {"features": features, "frechet_pixels": frechet_distance(drawn, test)}
    image = test[: max(4, n // 4)]
    for way in ways(model):
        out[way] = {}
        for share in HIDDEN:
            options = _best(model, data, share, way, generator) if way in TRIED else {}
            drawn, mask = filled(model, image, share, way, generator, **options)
            out[way][str(share)] = {**inpainting_scores(drawn, image, mask, judge), **options}
    return out


def filled(
    model: MTDiffusion, image: Tensor, share: float, way: str, generator: torch.Generator, seed: int = 2, **options
) -> tuple[Tensor, Tensor]:
    """Images (N, 3, s, s) whose holes, a share of the pixels, `inpaint` fills in `STEPS` evaluations; and their masks."""
    mask = masks(len(image), image.shape[-1], hidden=share, seed=seed)
    return inpaint(model, image, mask, way, STEPS, generator=generator, **options), mask


def inpainting_scores(drawn: Tensor, image: Tensor, mask: Tensor, judge) -> dict[str, float]:
    """Means: "psnr" as `hidden_psnr`, "ssim" of the whole; "scene": share that is read as the truth is."""
    right = (judge.read(drawn) == judge.read(image)).all(1).double()
    figures = {"psnr": hidden_psnr(drawn, image, mask), "ssim": ssim(drawn, image), "scene": right}
    return {name: float(each.mean()) for name, each in figures.items()}


def _best(model: MTDiffusion, data: str, share: float, way: str, generator: torch.Generator) -> dict[str, float]:
    """The option of a way with the best PSNR on 64 training scenes, as {option: value}."""
    image, (option, values) = masked_scenes(data, "train").values["image"][:64], TRIED[way]

    def score(value: float) -> float:
        drawn, mask = filled(model, image, share, way, generator, seed=3, **{option: value})
        return float(hidden_psnr(drawn, image, mask).mean())

    return best_of(option, values, score)


EXPERIMENT = Experiment("masked-image", by_size(masked_scenes), VARIANTS, build, config, evaluate, probe=probe)
