"""Joint image-label modelling: one model that draws pairs, draws a class, and names an image."""

import functools
from collections.abc import Sequence

import torch

from mtdiff.backbones import UNet
from mtdiff.datasets import digits
from mtdiff.evaluation import (
    LABEL_RULES,
    bound_draws,
    evaluate_image_label,
    frechet_distance,
    image_label_bounds,
    image_label_metrics,
    image_metrics,
    sample_many,
    svm_judge,
)
from mtdiff.experiments.base import Experiment
from mtdiff.experiments.unshared import Unshared
from mtdiff.modalities import Image, Label
from mtdiff.model import MTDiffusion
from mtdiff.process import ForwardProcess
from mtdiff.schedules import NoiseSchedule, constant, fade_in
from mtdiff.training import TrainConfig

VARIANTS = {
    "fade-in": "the paper's form: label codes superposed on the image and injected as the noise grows, W from 0.1 to 1",
    "from-zero": "the same with W from 0 to 1: no trace of the label at t = 0",
    "constant": "label codes superposed on the image with a constant weight: nothing is injected",
    "own-channels": "label codes in a channel of their own (concatenation), constant weight",
    "image-only": "the image alone, an ordinary diffusion model: what the label costs it and buys it",
    "unshared": "no shared space: image and label have their own noise and time, only the trunk is shared",
}
DEFAULT_RULE = {"label": "conditioned", "image": "readout"}
DEFAULT_SAMPLER = "ddpm"
"""The rule and sampler whose samples the judge agreed with most (data/results/image-label-digits-fade-in.json)."""


def build(data: str, variant: str, seed: int = 0, base: int = 32) -> MTDiffusion:
    """An untrained model of one variant; about 0.3M parameters on digits.

    Args:
        data: name of the data.
        variant: one of `VARIANTS`.
        seed: seed of the initial weights.
        base: channels at the top of the U-Net.

    Returns:
        The model.
    """
    shape, names = (1, 8, 8), [str(k) for k in range(10)]
    apart = variant in ("own-channels", "unshared")
    space = (2, 8, 8) if apart else shape
    curve = {"fade-in": fade_in(1.0, start=0.1), "from-zero": fade_in(1.0)}.get(variant, constant(1.0))
    curves = {"image": 1.0, "label": curve}
    headless = apart or variant == "image-only"  # the image is alone in its channels: the aggregate is its estimate
    modalities = {
        "image": Image(shape, channels=slice(0, 1) if apart else None, head=not headless, levels=17),
        "label": Label(len(names), names=names, channels=slice(1, 2) if apart else None),
    }
    if variant == "image-only":
        del curves["label"], modalities["label"]
    process = ForwardProcess(NoiseSchedule.log_snr(500, high=8.0, low=-8.0), curves)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = UNet(space, base=base, multipliers=(1, 1), blocks=1)
        kind = Unshared if variant == "unshared" else MTDiffusion
        rule = {name: DEFAULT_RULE[name] for name in modalities}
        return kind(process, modalities, backbone, space, rule=rule, sampler=DEFAULT_SAMPLER)


def config(data: str, variant: str, budget: str) -> TrainConfig:
    """Quick is for a live demonstration (under a minute), full is what ships (under three minutes on two cores)."""
    label = {} if variant == "image-only" else {"weights": {"label": 0.5}, "drop": {"label": 0.2}, "give": {"label": 0.2}}
    return TrainConfig(
        steps=600 if budget == "quick" else 5000,
        batch_size=64,
        lr=2e-3,
        ema=0.998,
        save_every=600,
        **label,
    )


def loss(variant: str, c: TrainConfig):
    """The loss of the model without a shared space; the others use the multi-task loss."""
    if variant != "unshared":
        return None
    return lambda model, batch, generator: model.loss(batch, generator, c.weights)


@functools.cache
def _referee():
    """The judge, its accuracy on held-out images, the held-out set and all real images."""
    judge, test = svm_judge(digits("train")), digits("test")
    accuracy = float((judge(test.values["image"]) == test.values["label"]).double().mean())
    return judge, accuracy, test, digits("all").values["image"]


def evaluate(
    model: MTDiffusion,
    data: str,
    seed: int = 0,
    n: int = 2000,
    rules: Sequence[str] = LABEL_RULES,
) -> dict:
    """Joint and conditional samples by every rule, the label head, and the judge's own accuracy.

    Args:
        model: the trained model.
        data: name of the data.
        seed: seed of all noise.
        n: samples for each line.
        rules: rules for a given label.

    Returns:
        The metrics of `evaluate_image_label`; for "unshared" its own way of conditioning stands as "conditioned", and it
        has no bound; for "image-only" those of its images.
    """
    judge, accuracy, test, real = _referee()
    halves = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))].chunk(2)
    known = {"judge_accuracy": accuracy, "frechet_pixels_of_two_real_halves": frechet_distance(*halves)}
    if "label" in model.modalities and not isinstance(model, Unshared):
        return {**evaluate_image_label(model, test, real, judge, rules, n, seed=seed), **known}
    generator = torch.Generator(model.device).manual_seed(seed)
    if "label" not in model.modalities:
        drawn, by_ddim = (sample_many(model, n, sampler=sampler, generator=generator) for sampler in (None, "ddim"))
        lines = {"joint": image_metrics(drawn["image"], real), "joint_ddim": image_metrics(by_ddim["image"], real)}
        return {**lines, "bound": image_label_bounds(model, test, bound_draws(n, test), generator), **known}
    label = torch.arange(n, device=model.device) % 10
    right = model.classify(test.values["image"], generator).cpu() == test.values["label"]
    return {
        "joint": image_label_metrics(model.sample(n, generator=generator), judge, real),
        "joint_ddim": image_label_metrics(model.sample(n, sampler="ddim", generator=generator), judge, real),
        "conditioned": image_label_metrics(model.sample(n, {"label": label}, generator=generator), judge, real),
        "head_accuracy": float(right.double().mean()),
        **known,
    }


EXPERIMENT = Experiment("image-label", {"digits": digits}, VARIANTS, build, config, loss, evaluate)
