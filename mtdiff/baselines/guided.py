"""Guidance by what the model itself draws beside the image."""

from dataclasses import replace

import torch
from torch import Tensor

from mtdiff.checks import check_names
from mtdiff.model import MTDiffusion
from mtdiff.prediction import Prediction
from mtdiff.sampling import Guide


def representation_guidance(model: MTDiffusion, scale: float, by: str = "representation", less: float = 1.0) -> Guide:
    """A guide of joint draws (`sample(guide=...)`): the image is pushed through what it is with another modality.

    With e the image's estimate: e + (s - 1) (e - e'), where e' is the estimate from the state in which the code of the other
    weighs less, z_t - less sqrt(abar_t) W_t E[r | z_t]. With less = 1 nothing is left, and the network is told that it is
    absent (the present set S without it); with less than 1 it is as if it were noised more, beside an image that is not: no
    training shows such a state. Scale s = 1 is no guidance. A representation that is given has no code in what the network
    sees: guide by the rule then.

    Raises:
        KeyError: `by` is no modality.
        ValueError: it is not in the model's chain, or less is not in (0, 1].

    Source: representation guidance: Kouzelis et al. 2025 (ReDi); by a present set, or a weight: ours.
    """
    check_names("by", [by], list(model.modalities))
    if by not in model.process.entering:
        raise ValueError(f"guidance by {by!r} needs a model whose chain carries it: it has {list(model.process.entering)}")
    if not 0 < less <= 1:
        raise ValueError(f"less must be in (0, 1], got {less}")
    rest = {*model.modalities} - ({by} if less == 1 else set())

    @torch.no_grad()
    def guide(joint: Prediction, z_t: Tensor, t: int | Tensor) -> Prediction:
        if scale == 1:
            return joint
        at = model.process.at(t, z_t)
        without = model.predict(z_t - less * at.signal * at.W[by] * joint.estimate[by], t, present=rest)
        push = (scale - 1) * (joint.estimate["image"] - without.estimate["image"])
        image = replace(joint.law["image"], mean=joint.law["image"].mean + model.modalities["image"].take(push))
        estimate = {**joint.estimate, "image": joint.estimate["image"] + push}
        return Prediction(joint.aggregate + at.W["image"] * push, {**joint.law, "image": image}, estimate)

    return guide
