"""How image-representation models are judged: images, guidance, retrieval, probes of what was drawn and of the trunk."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mtdiff.baselines import representation_guidance
from mtdiff.datasets import Dataset
from mtdiff.experiments.base import alone
from mtdiff.judges import label_judge, scene_judge
from mtdiff.metrics import fidelity, frechet_distance
from mtdiff.model import MTDiffusion
from mtdiff.probes import levels, noised, pooled
from mtdiff.representations import linear_probe, representation, represented
from mtdiff.sampling import sample_many

STEPS = 25
"""Network evaluations of every sample that is judged."""
GUIDANCE = (1.0, 1.5, 2.0)
"""Scales of representation guidance that are compared."""
LEVELS = 9
"""Number of noise levels at which head and trunk are looked at."""
PROBED = 2000
"""Held-out images that are read, and training images that a probe of the trunk is fitted to."""


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
        out["given"] = given_scores(model, test, data, min(n, len(test)), generator)
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
    own, train = representation(data)(image), represented(data, "train")
    label = label_judge(data).read(image)
    fit = train.values["representation"][:10000], train.values["label"][:10000]
    said = {name: linear_probe(*fit, x) for name, x in (("label", value), ("label_encoded", own))}
    return {
        "cosine": float(F.cosine_similarity(value, own).mean()),
        "shuffled": float(F.cosine_similarity(value, own.roll(1, 0)).mean()),
        **{name: float((guess == label).double().mean()) for name, guess in said.items()},
    }


def given_scores(model: MTDiffusion, test: Dataset, data: str, n: int, generator) -> dict[str, float]:
    """Images drawn for the representations of held-out ones: what of the image does a representation keep?

    Returns:
        "retrieval": share whose own representation is nearest, among n held-out ones, to the one that was given; "cosine"
        of the two; "label": share in which the judge reads the label of the image that the representation is from;
        "features": Frechet distance of the drawn images.
    """
    given = test.values["representation"][:n]
    options = {"given": {"representation": given.to(model.device)}, "rule": "conditioned", "present": {"image"}}
    image = sample_many(model, n, steps=STEPS, generator=generator, **options)["image"].cpu()
    own = representation(data)(image)
    nearest = torch.cdist(own, given).argmin(1)
    label, judge = label_judge(data).read(image), scene_judge(data)
    return {
        "retrieval": float((nearest == torch.arange(n)).double().mean()),
        "cosine": float(F.cosine_similarity(own, given).mean()),
        "label": float((label == test.values["label"][:n]).double().mean()),
        "features": frechet_distance(judge.features(image), judge.features(test.values["image"])),
    }


@torch.no_grad()
def read_scores(model: MTDiffusion, test: Dataset, generator) -> dict[str, float]:
    """The head that reads the representation off an image, along the noise: {t: 1 - mean square error / variance}."""
    image = test.values["image"][:PROBED]
    truth, out = test.values["representation"][: len(image)].to(model.device), {}
    for t in levels(model, LEVELS):
        z, present = noised(model, {"image": image}, t, generator)
        mean = model.predict(z, t, present=present).law["representation"].draw()
        out[str(t)] = float(1 - (mean - truth).square().mean() / truth.var(0).mean())
    return out


@torch.no_grad()
def trunk_scores(model: MTDiffusion, data: str, generator) -> dict[str, float]:
    """What the trunk knows, when: {t: accuracy} of a linear probe of the pooled vector for the label, S = {image}.

    Fitted to `PROBED` training images and judged on as many held-out ones.
    """
    out, sets = {}, [represented(data, split)[:PROBED] for split in ("train", "test")]
    for t in levels(model, LEVELS):
        known = [pooled(model, values["image"], t, generator) for values in sets]
        guess = linear_probe(known[0], sets[0]["label"], known[1])
        out[str(t)] = float((guess == sets[1]["label"]).double().mean())
    return out
