"""Joint image-representation modelling: does a picture come easier with a summary of itself at its side?"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mtdiff.baselines import representation_guidance
from mtdiff.datasets import Dataset
from mtdiff.datasets.shapes import SETS
from mtdiff.experiments.base import Experiment, Look, alone, by_size, feature_probe, noise_schedule, on_scenes, seeded
from mtdiff.judges import label_judge, scene_judge
from mtdiff.metrics import fidelity, frechet_distance
from mtdiff.modalities import Encoded, Image
from mtdiff.model import MTDiffusion
from mtdiff.probes import levels, noised, pooled
from mtdiff.representations import linear_probe, representation, represented
from mtdiff.sampling import sample_many
from mtdiff.schedules import constant, fade_in
from mtdiff.training import TrainConfig

VARIANTS = {
    "lifted": "the paper's form: the representation, tiled over the image (an isometry), W from 0.1 to 1; sensed",
    "own-channels": "the representation in a channel of its own (concatenation), constant weight; sensed",
    "image-only": "the image alone: the same images, as many steps",
    "predicted": "never in the sum, but a head has to predict it: a multi-task loss without the shared space",
    "told": "told as often as in the joint models, never in the sum, and never predicted: augmentation",
    "random": "a first attempt: superposed along random directions, W from 0.1 to 0.5, and not sensed",
}
JOINT = ("lifted", "own-channels", "random")
"""The variants with the representation in the sum."""
DRAWS = 500
"""Images that are drawn for each note along the training."""
COMPONENTS = 16
"""Numbers in a representation."""
STEPS = 25
"""Network evaluations of every sample that is judged."""
GUIDANCE = (1.0, 1.5, 2.0)
"""Scales of representation guidance that are compared."""
LEVELS = 9
"""Number of noise levels at which head and trunk are looked at."""
PROBED = 2000
"""Held-out images that are read, and training images that a probe of the trunk is fitted to."""


def build(data: str, variant: str, seed: int = 0) -> MTDiffusion:
    """0.3M parameters at 16x16."""
    size, apart = SETS[data], variant == "own-channels"
    in_sum, sense = variant in JOINT, variant in ("lifted", "own-channels")
    mine, others = (slice(0, 3), slice(3, 4)) if apart else (None, None)
    image = Image((3, size, size), channels=mine, levels=256, head=in_sum and not apart, start="rest")
    value = Encoded((COMPONENTS,), "tiles" if sense else "lift", channels=others, tell=True, sense=sense)
    curve = constant(0.0) if not in_sum else constant(1.0) if apart else fade_in(1.0 if sense else 0.5, start=0.1)
    parts, rule = {"image": (1.0, image)}, {"image": "readout"}
    if variant != "image-only":
        parts["representation"], rule["representation"] = (curve, value), "conditioned"
    space = (3 + apart, size, size)
    return seeded(seed, noise_schedule(size, power=1.5), space, parts, rule=rule, remove_known=sense)


def config(data: str, variant: str, budget: str) -> TrainConfig:
    """The representation is worth a tenth where it is read, is told in a fifth of examples, and absent in three tenths."""
    options: dict = {"weights": {"image": 0.5 if variant in ("lifted", "random") else 0.0}}
    if variant != "image-only":
        options["weights"]["representation"] = 0.0 if variant == "told" else 0.1
        options["give"] = {"representation": 0.2}
    if variant in JOINT:
        options["drop"] = {"representation": 0.3}
    return on_scenes(budget, probe_every=200 if budget == "quick" else 4000, **options)


def probe(data: str, variant: str) -> Look:
    """Distances of `DRAWS` images to real ones, drawn alone and with their representations."""
    return feature_probe(scene_judge(data), represented(data, "test").values["image"], DRAWS, beside="representation")


def evaluate(model: MTDiffusion, data: str, seed: int = 0, n: int = 1000) -> dict:
    """Image quality with and without the representation, n images for each figure, and what the representation is worth.

    Returns:
        "alone": `fidelity` of images drawn with S = {image}, in the judge's features; for a model whose chain carries the
        representation "guidance": {scale: the same of joint samples}, "drawn": `drawn_scores`; for one that can be told it
        "given": `given_scores`; for one whose head was trained "read": `read_scores`; and "trunk": `trunk_scores`.
    """
    test, generator = represented(data, "test"), torch.Generator(model.device).manual_seed(seed)
    judge, options = scene_judge(data), {"steps": STEPS, "generator": generator}
    real = judge.features(test.values["image"])
    out = {"alone": fidelity(real, judge.features(alone(model, n, **options)))}
    if "representation" in model.process.entering:
        out["guidance"] = {}
        for scale in GUIDANCE:
            drawn = sample_many(model, n, guide=representation_guidance(model, scale), **options)
            out["guidance"][str(scale)] = fidelity(real, judge.features(drawn["image"].cpu()))
            if scale == 1:
                out["drawn"] = drawn_scores(drawn, data)
    if "representation" in model.modalities:
        out["given"] = given_scores(model, data, min(n, len(test)), generator)
        if model.card.get("variant") != "told":
            out["read"] = read_scores(model, test, generator)
    return {**out, "trunk": trunk_scores(model, data, generator)}


def drawn_scores(drawn: Mapping[str, Tensor], data: str) -> dict[str, float]:
    """Do jointly drawn images and representations belong together?

    Returns:
        "cosine": mean cosine of the drawn representation and that of the drawn image; "shuffled": the same for another
        drawn image; "label": how often a linear probe of the drawn representation, fitted to real ones, says what the
        judge reads off the drawn image; "label_encoded": the same of the drawn image's own representation, the ceiling.
    """
    image, value = drawn["image"].cpu(), drawn["representation"].cpu()
    own, known, label = representation(data)(image), represented(data, "train")[:10000], label_judge(data).read(image)
    out = {"cosine": F.cosine_similarity(value, own), "shuffled": F.cosine_similarity(value, own.roll(1, 0))}
    for name, x in (("label", value), ("label_encoded", own)):
        out[name] = (linear_probe(known["representation"], known["label"], x) == label).double()
    return {name: float(each.mean()) for name, each in out.items()}


def given_scores(model: MTDiffusion, data: str, n: int, generator: torch.Generator) -> dict[str, float]:
    """Images drawn for the representations of held-out ones: what of the image does a representation keep?

    Returns:
        "retrieval": share whose own representation is nearest, among n held-out ones, to the one that was given; "cosine"
        of the two; "label": share in which the judge reads the label of the image that the representation is from;
        "features": Frechet distance of the drawn images.
    """
    values, judge = represented(data, "test").values, scene_judge(data)
    given, label = values["representation"][:n], values["label"][:n]
    options = {"rule": "conditioned", "steps": STEPS, "generator": generator}
    image = alone(model, n, given={"representation": given.to(model.device)}, **options)
    own = representation(data)(image)
    return {
        "retrieval": float((torch.cdist(own, given).argmin(1) == torch.arange(n)).double().mean()),
        "cosine": float(F.cosine_similarity(own, given).mean()),
        "label": float((label_judge(data).read(image) == label).double().mean()),
        "features": frechet_distance(judge.features(image), judge.features(values["image"])),
    }


@torch.no_grad()
def read_scores(model: MTDiffusion, test: Dataset, generator: torch.Generator) -> dict[str, float]:
    """The head that reads the representation off an image, along the noise: {t: 1 - mean square error / variance}."""
    image = test.values["image"][:PROBED]
    truth, out = test.values["representation"][: len(image)].to(model.device), {}
    for t in levels(model, LEVELS):
        z, present = noised(model, {"image": image}, t, generator)
        mean = model.predict(z, t, present=present).law["representation"].draw()
        out[str(t)] = float(1 - (mean - truth).square().mean() / truth.var(0).mean())
    return out


@torch.no_grad()
def trunk_scores(model: MTDiffusion, data: str, generator: torch.Generator) -> dict[str, float]:
    """What the trunk knows, when: {t: accuracy} of a linear probe of the pooled vector for the label, S = {image}.

    Fitted to `PROBED` training images and judged on as many held-out ones.
    """
    out, sets = {}, [represented(data, split)[:PROBED] for split in ("train", "test")]
    for t in levels(model, LEVELS):
        known = [pooled(model, values["image"], t, generator) for values in sets]
        guess = linear_probe(known[0], sets[0]["label"], known[1])
        out[str(t)] = float((guess == sets[1]["label"]).double().mean())
    return out


EXPERIMENT = Experiment("image-representation", by_size(represented), VARIANTS, build, config, evaluate, probe=probe)
