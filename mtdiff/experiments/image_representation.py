"""Joint image-representation modelling: does a picture come easier with a summary of itself at its side?"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mtdiff.baselines import representation_guidance
from mtdiff.datasets import Dataset, shapes
from mtdiff.datasets.shapes import SETS, VOCABULARY
from mtdiff.experiments.base import Experiment, Look, Make, alone, by_size, feature_probe, noise_schedule, on_scenes, seeded
from mtdiff.judges import label_judge, scene_judge
from mtdiff.metrics import fidelity, frechet_distance
from mtdiff.modalities import Encoded, Image, LabelMap
from mtdiff.model import MTDiffusion
from mtdiff.probes import levels, noised
from mtdiff.representations import FITTED, PCA, linear_probe, representation, represented
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
ORACLES = {
    "caption": "all words of the scene's caption, as 16 principal components",
    "features": "what the network that judges images sees of it, as 16 principal components",
    "segments": "the kind of shape at each pixel, in channels of its own: a plan that says where",
}
"""Summaries that know more than our encoder learns: named like this, joint in the sum; also told, also predicted."""
VARIANTS |= ORACLES | {f"{o}-{way}": f"{o}, as {way}" for o in ORACLES for way in ("told", "predicted")}
JOINT = ("lifted", "own-channels", "random", *ORACLES)
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


def oracle(variant: str) -> str | None:
    """Which of `ORACLES` takes the place of our encoder's representation in a variant; None: none does."""
    return next((name for name in ORACLES if name in (variant, *variant.split("-")[:-1])), None)


@functools.lru_cache(8)
def summary(data: str, of: str | None) -> Callable[[Tensor], Tensor]:
    """What says a representation: images (N, 3, s, s) -> (N, 16); of an oracle, or of our encoder."""
    if of is None:
        return representation(data)
    judge = scene_judge(data)

    def seen(image: Tensor) -> Tensor:
        found = torch.cat([(judge.features if of == "features" else judge.read)(part) for part in image.split(500)])
        return found if of == "features" else F.one_hot(found, len(VOCABULARY)).flatten(1).float()

    known = seen(represented(data, "train").values["image"][:FITTED])
    pca = PCA(known.shape[1], COMPONENTS).fit(known)
    return lambda image: pca(seen(image))


@functools.lru_cache(4)
def scenes(data: str, split: str, of: str | None = None) -> Dataset:
    """Scenes as `represented` has them; "representation" is what an oracle says of each, if one does."""
    known = represented(data, split)
    if of is None:
        return known
    if of == "segments":
        value = shapes(split, size=SETS[data], n=len(known), modalities=("segmentation",)).values["segmentation"]
    else:
        value = summary(data, of)(known.values["image"])
    values = {**known.values, "representation": value}
    return replace(known, name=f"{known.name}, {of}", values=values, source=f"{known.source}, {of}")


def examples(data: Callable[[str], Dataset], variant: str, seed: int) -> Dataset:
    """What a variant is shown in training."""
    name, split = data("train").name.split("-represented/")
    return scenes(name, split, oracle(variant))


def build(data: str, variant: str, seed: int = 0, backbone: Make | None = None) -> MTDiffusion:
    """0.3M parameters at 16x16, 1.1M at 32x32."""
    size, in_sum, spatial = SETS[data], variant in JOINT, oracle(variant) == "segments"
    apart = {"own-channels": 1, "segments": 3}.get(variant, 0)
    mine, others = (slice(0, 3), slice(3, 3 + apart)) if apart else (None, None)
    image = Image((3, size, size), channels=mine, levels=256, head=in_sum and not apart, start="rest")
    sense = in_sum and variant not in ("random", "segments")
    frame = "tiles" if sense else "lift"
    if spatial:
        value: Encoded | LabelMap = LabelMap(4, (size, size), channels=others, tell=True)
    else:
        value = Encoded((COMPONENTS,), frame, others, tell=True, sense=sense)
    curve = constant(float(in_sum)) if apart or not in_sum else fade_in(1.0 if sense else 0.5, start=0.1)
    parts, rule = {"image": (1.0, image)}, {"image": "readout"}
    if variant != "image-only":
        parts["representation"], rule["representation"] = (curve, value), "conditioned"
    options = {"rule": rule, "remove_known": sense, "backbone": backbone}
    return seeded(seed, noise_schedule(size, power=1.5), (3 + apart, size, size), parts, **options)


def config(data: str, variant: str, budget: str) -> TrainConfig:
    """The representation is worth a tenth where it is read, is told in a fifth of examples, and absent in three tenths."""
    superposed = variant in JOINT and variant not in ("own-channels", "segments")
    options: dict = {"weights": {"image": 0.5 if superposed else 0.0}}
    if variant != "image-only":
        options["weights"]["representation"] = 0.0 if variant.endswith("told") else 0.1
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
    variant = model.card.get("variant", "")
    of, generator = oracle(variant), torch.Generator(model.device).manual_seed(seed)
    test = scenes(data, "test", of)
    judge, options = scene_judge(data), {"steps": STEPS, "generator": generator}
    real = judge.features(test.values["image"])
    out = {"alone": fidelity(real, judge.features(alone(model, n, **options)))}
    if "representation" in model.process.entering:
        out["guidance"] = {}
        for scale in GUIDANCE:
            drawn = sample_many(model, n, guide=representation_guidance(model, scale), **options)
            out["guidance"][str(scale)] = fidelity(real, judge.features(drawn["image"].cpu()))
            if scale == 1 and of != "segments":
                out["drawn"] = drawn_scores(drawn, data, of)
    if "representation" in model.modalities:
        out["given"] = given_scores(model, data, of, min(n, len(test)), generator)
        if not variant.endswith("told"):
            out["read"] = read_scores(model, test, generator)
    return {**out, "trunk": trunk_scores(model, data, generator)}


def drawn_scores(drawn: Mapping[str, Tensor], data: str, of: str | None = None) -> dict[str, float]:
    """Do jointly drawn images and representations (vectors, by `summary`) belong together?

    Returns:
        "cosine": mean cosine of the drawn representation and that of the drawn image; "shuffled": the same for another
        drawn image; "label": how often a linear probe of the drawn representation, fitted to real ones, says what the
        judge reads off the drawn image; "label_encoded": the same of the drawn image's own representation, the ceiling.
    """
    image, value = drawn["image"].cpu(), drawn["representation"].cpu()
    own, known, label = summary(data, of)(image), scenes(data, "train", of)[:10000], label_judge(data).read(image)
    out = {"cosine": F.cosine_similarity(value, own), "shuffled": F.cosine_similarity(value, own.roll(1, 0))}
    for name, x in (("label", value), ("label_encoded", own)):
        out[name] = (linear_probe(known["representation"], known["label"], x) == label).double()
    return {name: float(each.mean()) for name, each in out.items()}


def given_scores(model: MTDiffusion, data: str, of: str | None, n: int, generator: torch.Generator) -> dict[str, float]:
    """Images drawn for the representations of held-out ones: what of the image does a representation keep?

    Returns:
        "label": share in which the judge reads the label of the image that the representation is from; "features": Frechet
        distance of the drawn images; of vectors also "retrieval": share whose own representation is nearest, among n
        held-out ones, to the one that was given; and "cosine" of the two.
    """
    values, judge = scenes(data, "test", of).values, scene_judge(data)
    given, label = values["representation"][:n], values["label"][:n]
    options = {"rule": "conditioned", "steps": STEPS, "generator": generator}
    image = alone(model, n, given={"representation": given.to(model.device)}, **options)
    out = {
        "label": float((label_judge(data).read(image) == label).double().mean()),
        "features": frechet_distance(judge.features(image), judge.features(values["image"])),
    }
    if of == "segments":
        return out
    own = summary(data, of)(image)
    retrieval = float((torch.cdist(own, given).argmin(1) == torch.arange(n)).double().mean())
    return {"retrieval": retrieval, "cosine": float(F.cosine_similarity(own, given).mean()), **out}


@torch.no_grad()
def read_scores(model: MTDiffusion, test: Dataset, generator: torch.Generator) -> dict[str, float]:
    """The head that reads the representation off an image, along the noise: {t: 1 - mean square error / variance}.

    Of segments {t: share of pixels whose class it calls the likeliest}.
    """
    image = test.values["image"][:PROBED]
    truth, out = test.values["representation"][: len(image)].to(model.device), {}
    for t in levels(model, LEVELS):
        z, present = noised(model, {"image": image}, t, generator)
        mean = model.predict(z, t, present=present).law["representation"].draw()
        spatial = not truth.is_floating_point()
        right = (mean == truth).double().mean() if spatial else 1 - (mean - truth).square().mean() / truth.var(0).mean()
        out[str(t)] = float(right)
    return out


@torch.no_grad()
def trunk_scores(model: MTDiffusion, data: str, generator: torch.Generator) -> dict[str, float]:
    """What the trunk knows, when: {t: accuracy} of a linear probe of the pooled vector for the label, S = {image}.

    Fitted to `PROBED` training images and judged on as many held-out ones.
    """
    out, sets = {}, [represented(data, split)[:PROBED] for split in ("train", "test")]
    for t in levels(model, LEVELS):
        known = [model.features({"image": values["image"]}, t, generator) for values in sets]
        guess = linear_probe(known[0], sets[0]["label"], known[1])
        out[str(t)] = float((guess == sets[1]["label"]).double().mean())
    return out


EXPERIMENT = Experiment(
    "image-representation", by_size(represented), VARIANTS, build, config, evaluate, probe=probe, examples=examples
)
