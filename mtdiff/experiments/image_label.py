"""Joint image-label modelling: one model that draws pairs, draws a class, and names an image."""

import functools

import torch

from mtdiff.baselines import Unshared, classifier_loss
from mtdiff.datasets import Dataset, digits, planted
from mtdiff.datasets.planted import SHARES
from mtdiff.datasets.prepared import prepared
from mtdiff.experiments.base import Experiment, Look, Make, by_size, noise_schedule, on_scenes, seeded
from mtdiff.experiments.label_scores import amplification, evaluate, named_shapes
from mtdiff.modalities import MISSING, Image, Label
from mtdiff.modalities.generators import KINDS
from mtdiff.model import MTDiffusion
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
DEFAULT_RULE = {"image": "readout", "label": "conditioned"}
"""The rules whose samples the judge agreed with most (data/results/image-label-digits-fade-in.json)."""
LABEL_WEIGHT = {"light": 0.05, "heavy": 5.0}
"""Weight of the label's loss; 0.5 for all that are not named."""
DRAWS = 300
"""Planted scenes of each kind that are drawn for each note along the training."""


def build(data: str, variant: str, seed: int = 0, base: int | None = None, backbone: Make | None = None) -> MTDiffusion:
    """About 0.3M parameters on digits, with 32 channels at the top of the U-Net, and at 16x16; see `UNETS`."""
    test, scenes = EXPERIMENT.on(data)("test"), data != "digits"
    channels, size, _ = test.shape("image")
    apart = variant in ("own-channels", "unshared")
    never = variant in ("conditional", "token") or "classifier" in variant  # the label is never in the sum
    alone = apart or never or variant == "image-only"  # the image, in its channels: the aggregate is its estimate
    sense = scenes and not alone
    if apart or variant == "constant":
        curve = constant(1.0)
    elif never or variant == "from-zero":
        curve = constant(0.0) if never else fade_in(1.0)
    else:
        curve = fade_in(1.0, start=0.1)
    mine, others = (slice(0, channels), slice(channels, channels + 1)) if apart else (None, None)
    levels, start = (256, "rest") if scenes else (17, "state")
    codes, tell = variant if variant in KINDS else "simplex", "tokens" if variant == "token" else "vector"
    image = Image((channels, size, size), channels=mine, head=not alone, levels=levels, start=start)
    label = Label(len(test.names), names=test.names, channels=others, codes=codes, tell=tell, sense=sense)
    parts = {"image": (1.0, image), "label": (curve, label)}
    unlearned = {"image-only": "label", "conditional": "image"}.get(variant, "label" if "classifier" in variant else None)
    options: dict = {"rule": {name: rule for name, rule in DEFAULT_RULE.items() if name != unlearned}}
    if variant == "image-only":
        del parts["label"]
    elif variant == "unshared":
        options["kind"] = Unshared
    elif sense:
        options |= {"prediction": "heads", "remove_known": True}
    unet = {"base": base or 32} if base or not scenes else {}
    unet |= {"cross": (8,)} if variant == "token" else {}
    options |= {"unet": unet, "backbone": backbone}
    return seeded(seed, noise_schedule(size, power=1.5), (channels + apart, size, size), parts, **options)


def config(data: str, variant: str, budget: str) -> TrainConfig:
    """As `on_scenes`, also of packs, planted ones with probes; of digits quick takes under a minute, full minutes."""
    options: dict = {"weights": {"label": LABEL_WEIGHT.get(variant, 0.5)}, "drop": {"label": 0.2}, "give": {"label": 0.2}}
    if variant == "image-only":
        options = {}
    elif variant == "conditional":
        options = {"weights": {"label": 0.0, "image": 0.0}, "give": {"label": 0.9}}
    elif "classifier" in variant:
        options = {"weights": {"denoise": 0.0, "image": 0.0}, "drop": {"label": 1.0}}
    elif variant == "token":
        options = {"weights": {"label": 0.5, "image": 0.0}, "give": {"label": 0.5}}
    elif data != "digits":
        options = {"weights": {**options["weights"], "image": 0.1}, "drop": {"label": 0.5}, "give": {"label": 0.3}}
    if data == "digits":
        steps = 5000 if budget == "full" else 600
        return TrainConfig(steps=steps, batch_size=64, lr=2e-3, ema=0.998, save_every=600, **options)
    if data in SHARES:
        options["probe_every"] = 1000 if budget == "full" else 120
    return on_scenes(budget, **options)


def loss(variant: str, c: TrainConfig):
    """The losses of the model without a shared space and of the clean classifier; the others use the multi-task loss."""
    if variant == "unshared":
        return functools.partial(Unshared.loss, weights=c.weights)
    return classifier_loss if variant.startswith("classifier") else None


def labelled(data: Dataset, variant: str, seed: int) -> Dataset:
    """What a variant is shown of a training set: few labels, chosen by the seed, one of each class at least.

    Labels that are taken away are -1; a classifier sees the labelled examples alone, repeated to 64 at least.
    """
    kind, _, percent = variant.rpartition("-")
    if kind not in ("labels", "classifier"):
        return data
    label = data.values["label"]
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    each = [order[label[order] == k] for k in label.unique()]
    kept = torch.cat([mine[: max(1, round(len(mine) * int(percent) / 100))] for mine in each])
    name = f"{data.name}, {len(kept)} labelled"
    if kind == "classifier":
        return Dataset(name, data[kept.repeat(-(-64 // len(kept)))], data.names)
    few = torch.full_like(label, MISSING).index_copy(0, kept, label[kept])
    return Dataset(name, {**data[:], "label": few}, data.names)


def probe(data: str, variant: str) -> Look | None:
    """How often `DRAWS` planted scenes of the right shape have its own colour: "joint" and "told"; None for other data."""
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
        **by_size(named_shapes),
        **{name: functools.partial(planted, share) for name, share in SHARES.items()},
    },
    VARIANTS,
    *(build, config, evaluate, loss, probe),
    lambda data, variant, seed: labelled(data("train"), variant, seed),
    packed=functools.partial(prepared, modalities=("image", "label")),
)
