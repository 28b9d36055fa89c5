"""Joint image-label modelling: one model that draws pairs, draws a class, and names an image."""

import functools
from collections.abc import Callable

import torch

from mtdiff.backbones import UNet
from mtdiff.datasets import Dataset, digits, planted
from mtdiff.datasets.planted import SHARES
from mtdiff.datasets.shapes import SETS
from mtdiff.experiments.base import Experiment, noise_schedule
from mtdiff.experiments.label_scores import amplification, evaluate, named_shapes
from mtdiff.experiments.unshared import Unshared
from mtdiff.losses import Loss
from mtdiff.modalities import MISSING, Image, Label
from mtdiff.modalities.generators import KINDS
from mtdiff.model import MTDiffusion
from mtdiff.process import ForwardProcess
from mtdiff.schedules import constant, fade_in
from mtdiff.training import TrainConfig

VARIANTS = {
    "fade-in": "the paper's form: label codes superposed on the image and injected as the noise grows, W from 0.1 to 1",
    "from-zero": "the same with W from 0 to 1: no trace of the label at t = 0",
    "constant": "label codes superposed on the image with a constant weight: nothing is injected",
    "own-channels": "label codes in a channel of their own (concatenation), constant weight",
    "image-only": "the image alone, an ordinary diffusion model: what the label costs it and buys it",
    "unshared": "no shared space: image and label have their own noise and time, only the trunk is shared",
    "conditional": "told the label in nine of ten examples, never in the sum, never read: classifier-free guidance's model",
    "classifier": "the same backbone and as many steps for the label alone, of clean images",
    "noisy-classifier": "the same for the label alone, of images at every noise level",
    "learned": "fade-in with learned codes of fixed RMS",
    "generator": "fade-in with codes that a small network makes of an embedding, of fixed RMS",
    "token": "the label is not in the sum; the backbone attends to it, and a head reads it",
    "light": "fade-in, the label's loss weighs a tenth",
    "heavy": "fade-in, the label's loss weighs ten times as much",
    "labels-10": "fade-in, of which a tenth of the training images has a label",
    "labels-1": "fade-in, of which a hundredth of the training images has a label",
    "classifier-10": "the classifier, of the labelled tenth",
    "classifier-1": "the classifier, of the labelled hundredth",
}
DEFAULT_RULE = {"label": "conditioned", "image": "readout"}
DEFAULT_SAMPLER = "ddpm"
"""The rule and sampler whose samples the judge agreed with most (data/results/image-label-digits-fade-in.json)."""
LABEL_WEIGHT = {"light": 0.05, "heavy": 5.0}
"""Weight of the label's loss; 0.5 for all that are not named."""
DRAWS = 300
"""Planted scenes of each kind that are drawn for each note along the training."""


def build(data: str, variant: str, seed: int = 0, base: int | None = None) -> MTDiffusion:
    """An untrained model of one variant; about 0.3M parameters on digits and at 16x16.

    Args:
        data: name of the data.
        variant: one of `VARIANTS`.
        seed: seed of the initial weights.
        base: channels at the top of the U-Net; None: 32 on digits, 16 on shapes.

    Returns:
        The model.
    """
    test = EXPERIMENT.data[data]("test")
    shape, size, names = test.shape("image"), test.shape("image")[-1], test.names
    apart = variant in ("own-channels", "unshared")
    never = variant in ("conditional", "token") or "classifier" in variant  # the label is never in the sum
    sense = data != "digits" and not (apart or never or variant == "image-only")
    curves = {"image": 1.0, "label": fade_in(1.0, start=0.1)}
    if apart or variant == "constant":
        curves["label"] = constant(1.0)
    elif never or variant == "from-zero":
        curves["label"] = constant(0.0) if never else fade_in(1.0)
    alone = apart or never or variant == "image-only"  # the image, in its channels: the aggregate is its estimate
    levels, start = (17, "state") if data == "digits" else (256, "rest")
    mine, others = (slice(0, shape[0]), slice(shape[0], shape[0] + 1)) if apart else (None, None)
    codes, tell = variant if variant in KINDS else "simplex", "token" if variant == "token" else "vector"
    modalities = {
        "image": Image(shape, channels=mine, head=not alone, levels=levels, start=start),
        "label": Label(len(names), names=names, channels=others, codes=codes, tell=tell, sense=sense),
    }
    if variant == "image-only":
        del curves["label"], modalities["label"]
    rule = {name: DEFAULT_RULE[name] for name in modalities}
    if variant == "conditional":
        del rule["image"]  # its head never learned to read
    elif "classifier" in variant:
        del rule["label"]  # it never learned to draw
    process = ForwardProcess(noise_schedule(size, power=1.5), curves)
    space = (shape[0] + apart, size, size)
    multipliers = {8: (1, 1), 16: (1, 2, 2), 32: (1, 2, 2, 2)}[size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = UNet(
            space,
            base=base or (32 if size == 8 else 16),
            multipliers=multipliers,
            cross=(8,) if variant == "token" else (),
        )
        options = {"rule": rule, "sampler": DEFAULT_SAMPLER}
        if variant == "unshared":
            return Unshared(process, modalities, backbone, space, **options)
        return MTDiffusion(process, modalities, backbone, space, "heads" if sense else "v", remove_told=sense, **options)


def config(data: str, variant: str, budget: str) -> TrainConfig:
    """Quick is for a live demonstration (under a minute), full is what ships (minutes on one CPU thread)."""
    options = {"weights": {"label": LABEL_WEIGHT.get(variant, 0.5)}, "drop": {"label": 0.2}, "give": {"label": 0.2}}
    if variant == "image-only":
        options = {}
    elif variant == "conditional":
        options = {"weights": {"label": 0.0, "image": 0.0}, "give": {"label": 0.9}}
    elif "classifier" in variant:
        options = {"weights": {"denoise": 0.0, "image": 0.0}, "drop": {"label": 1.0}}
    elif variant == "token":
        options |= {"weights": {"label": 0.5, "image": 0.0}, "drop": {}, "give": {"label": 0.5}}
    elif data != "digits":
        options = {"weights": {**options["weights"], "image": 0.1}, "drop": {"label": 0.5}, "give": {"label": 0.3}}
    steps = {"digits": 5000, "shapes16": 2500, "shapes32": 4000}.get(data, 1500)
    full = {"steps": steps if budget == "full" else 600, "batch_size": 32 if data == "shapes32" else 64}
    if data in SHARES:
        options["probe_every"] = full["steps"] // 5
    return TrainConfig(**full, lr=2e-3, ema=0.998, save_every=600, **options)


def loss(variant: str, c: TrainConfig):
    """The losses of the model without a shared space and of the clean classifier; the others use the multi-task loss."""
    if variant == "unshared":
        return lambda model, batch, generator: model.loss(batch, generator, c.weights)
    return naming if variant.startswith("classifier") else None


def naming(model: MTDiffusion, batch, generator: torch.Generator) -> Loss:
    """Cross-entropy of the label of clean images, read near t = 0 with the image alone in the state."""
    t, n = model.process.first, model.check(batch)
    present = {name: torch.full((n,), name == "image", device=model.device) for name in model.modalities}
    z, _ = model.process.diffuse(model.encode({"image": batch["image"]}), t, present=present, generator=generator)
    nats = model(z, t, present=present).law["label"].loss(batch["label"]).mean()
    return Loss(nats, {"label": nats})


def examples(data: Dataset, variant: str, seed: int) -> Dataset:
    """What a variant is shown. Few labels are chosen by the seed, one of each class at least; a classifier sees only those.

    Args:
        data: the training set.
        variant: one of `VARIANTS`.
        seed: of the choice.

    Returns:
        The data set, labels that are taken away as -1; for a classifier the labelled examples, repeated to 64 at least.
    """
    kind, _, percent = variant.rpartition("-")
    if kind not in ("labels", "classifier"):
        return data
    label = data.values["label"]
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    kept = []
    for k in label.unique():
        mine = order[label[order] == k]
        kept.append(mine[: max(1, round(len(mine) * int(percent) / 100))])
    kept = torch.cat(kept)
    if kind == "classifier":
        rows = kept.repeat(-(-64 // len(kept)))
        return Dataset(f"{data.name}, {len(kept)} labelled", data[rows], data.names)
    few = torch.full_like(label, MISSING).index_copy(0, kept, label[kept])
    return Dataset(f"{data.name}, {len(kept)} labelled", {**data.values, "label": few}, data.names)


def probe(data: str, variant: str) -> Callable[[MTDiffusion], dict[str, float]] | None:
    """What is noted along the training on planted scenes: how often `DRAWS` shapes have their own colour, joint and told.

    Args:
        data: name of the data.
        variant: one of `VARIANTS`.

    Returns:
        Averaged model -> {"joint", "told": share of those of the right shape}; None for other data.
    """
    if data not in SHARES:
        return None

    def look(model: MTDiffusion) -> dict[str, float]:
        scores = amplification(model, SHARES[data], seed=0, n=DRAWS, scales=(1.0,))
        return {name: scores[kind]["own"] for name, kind in (("joint", "joint"), ("told", "guidance 1.0")) if kind in scores}

    return look


EXPERIMENT = Experiment(
    "image-label",
    {
        "digits": digits,
        **{name: functools.partial(named_shapes, name) for name in SETS},
        **{name: functools.partial(planted, share) for name, share in SHARES.items()},
    },
    VARIANTS,
    build,
    config,
    loss,
    evaluate,
    probe,
    examples,
)
