"""Joint image-representation modelling: does a picture come easier with a summary of itself at its side?"""

from mtdiff.datasets.shapes import SETS
from mtdiff.experiments.base import Experiment, Look, by_size, feature_probe, noise_schedule, on_scenes, seeded
from mtdiff.experiments.representation_scores import evaluate
from mtdiff.judges import scene_judge
from mtdiff.modalities import Encoded, Image
from mtdiff.model import MTDiffusion
from mtdiff.representations import represented
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
    return on_scenes(budget, 5000, probe_every=200 if budget == "quick" else 1000, **options)


def probe(data: str, variant: str) -> Look:
    """Distances of `DRAWS` images to real ones, drawn alone and with their representations."""
    return feature_probe(scene_judge(data), represented(data, "test").values["image"], DRAWS, beside="representation")


EXPERIMENT = Experiment("image-representation", by_size(represented), VARIANTS, build, config, evaluate, probe=probe)
