"""How an any-to-any model is judged: for whatever is given, how much of it each drawn modality says, too."""

import itertools
from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mtdiff.datasets import Dataset
from mtdiff.datasets.shapes import COLOURS, SHAPES, VOCABULARY, as_picture
from mtdiff.judges import label_judge, scene_judge
from mtdiff.model import MTDiffusion
from mtdiff.sampling import sample_many

KINDS = ("background", "size", "colour", "shape")
"""Kinds of words in a caption: the first one, and the three of each object."""
WORDS: Mapping[str, tuple[str, ...]] = {
    "image": KINDS,
    "caption": KINDS,
    "segmentation": ("size", "shape"),
    "depth": ("size", "shape"),
    "label": (),
}
"""Which words of a scene's caption each modality says; a label says colour and shape of one object, not at which place."""
STEPS = 50
"""Sampler steps of every draw that is judged."""


def evaluate(model: MTDiffusion, data: Dataset, seed: int = 0, n: int = 200) -> dict:
    """All 31 sets of up to four given modalities, n draws each, on held-out scenes; of a specialist, what it is given.

    Returns:
        "given": {names of what is given: {drawn: {kind: share in [0, 1]}}}, see `agreement`; "joint": the same of modalities
        that are drawn from nothing, by pairs, the one that is read first; "judges": the same of true values, {read: kinds};
        "matrix": {one given: {drawn: mean over kinds}}; "pairs": the "mean" and the "least" of that.
    """
    truth, names = {name: value[:n] for name, value in data.values.items()}, list(model.modalities)
    size, found = truth["image"].shape[-1], {}
    for count in range(1, len(names)):
        for given in itertools.combinations(names, count):
            if not {*model.conditions} <= {*given}:
                continue
            drawn = _drawn(model, len(truth["label"]), {name: truth[name] for name in given}, seed)
            rest = {name: drawn[name] for name in names if name not in given}
            found["+".join(given)] = {name: agreement(name, value, truth, given, size) for name, value in rest.items()}
    joint, drawn = {}, {} if model.conditions else _drawn(model, n, {}, seed)
    for one in drawn:
        said = drawn if one == "label" else {**drawn, "caption": read(one, drawn[one], size)}
        if one == "image":
            said = {**said, "label": label_judge(f"shapes{size}").read(drawn["image"])}
        others = {name: drawn[name] for name in names if name != one}
        joint[one] = {name: agreement(name, value, said, [one], size) for name, value in others.items()}
    matrix = {one: {name: _mean(kinds) for name, kinds in found[one].items()} for one in names if one in found}
    scores = [share for row in matrix.values() for share in row.values()]
    return {
        "given": found,
        "joint": joint,
        "judges": {name: agreement(name, truth[name], truth, ["caption"], size) for name in names if name != "caption"},
        "matrix": matrix,
        "pairs": {"mean": sum(scores) / len(scores), "least": min(scores)},
    }


def _mean(kinds: Mapping[str, float]) -> float:
    return sum(kinds.values()) / len(kinds)


def _drawn(model: MTDiffusion, n: int, given: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """All modalities, on the CPU."""
    generator = torch.Generator(model.device).manual_seed(seed)
    return {k: v.cpu() for k, v in sample_many(model, n, given=given, steps=STEPS, generator=generator).items()}


def read(name: str, value: Tensor, size: int) -> Tensor:
    """The caption that an image, a segmentation, a depth or a caption says, tokens (N, 10)."""
    if name == "caption":
        return F.pad(value, (0, 10 - value.shape[1]))
    return scene_judge(f"shapes{size}" + ("" if name == "image" else f"-{name}")).read(as_picture(name, value))


def agreement(name: str, value: Tensor, truth: Mapping[str, Tensor], given: Collection[str], size: int) -> dict[str, float]:
    """How much of what is given a drawn modality says, too: shares in [0, 1] by kind of word, {} where they share nothing.

    Words are compared place by place with those of the true "caption". A label that is drawn is the true "label" where the
    image is given; else, and where a label alone is given, the kind "label" is the share of scenes with such an object, as
    far as the other modality says what it is.
    """
    words = {kind for other in given for kind in WORDS[other]}
    caption = read("caption", truth["caption"], size)
    if name == "label":
        right = value == truth["label"] if "image" in given else holds(caption, value, words)
        return {"label": float(right.double().mean())}
    said = read(name, value, size)
    if not words:
        return {"label": float(holds(said, truth["label"], WORDS[name]).double().mean())}
    out = {}
    for kind in KINDS:
        if kind in words and kind in WORDS[name]:
            k = KINDS.index(kind)
            places = slice(0, 1) if k == 0 else slice(k, None, 3)
            there = caption[:, places] > 0
            out[kind] = float((said == caption)[:, places][there].double().mean())
    return out


def holds(caption: Tensor, label: Tensor, words: Collection[str]) -> Tensor:
    """Whether a scene (N, 10) has an object of a label's shape, and of its colour where `words` know colours, (N,) bool."""
    right = caption[:, 3::3] == (VOCABULARY.index(SHAPES[0]) + label // len(COLOURS))[:, None]
    if "colour" in words:
        right = right & (caption[:, 2::3] == (VOCABULARY.index(COLOURS[0]) + label % len(COLOURS))[:, None])
    return right.any(1)
