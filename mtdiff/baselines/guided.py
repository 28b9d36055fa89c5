"""Guidance by a representation that the model itself draws beside the image."""

from dataclasses import replace

import torch
from torch import Tensor

from mtdiff.model import MTDiffusion
from mtdiff.prediction import Prediction
from mtdiff.sampling import Guide


def representation_guidance(model: MTDiffusion, scale: float) -> Guide:
    """A guide of joint draws (`sample(guide=...)`): the image is pushed through what it is with the representation.

    With e the image's estimate: e + (s - 1) (e - e'), where e' is the estimate from the state without the representation's
    code, z_t - sqrt(abar_t) W_t E[r | z_t], and with the network given that it is absent (the present set S = {image}).
    Scale s = 1 is no guidance. ValueError where the representation is not in the model's chain.

    Source: representation guidance: Kouzelis et al. 2025 (ReDi); by a present set: ours.
    """
    name = "representation"
    if name not in model.process.entering:
        raise ValueError("representation guidance needs a model whose chain carries the representation")

    @torch.no_grad()
    def guide(joint: Prediction, z_t: Tensor, t: int | Tensor) -> Prediction:
        if scale == 1:
            return joint
        at = model.process.at(t, z_t)
        without = model.predict(z_t - at.signal * at.W[name] * joint.estimate[name], t, present={*model.modalities} - {name})
        push = (scale - 1) * (joint.estimate["image"] - without.estimate["image"])
        image = replace(joint.law["image"], mean=joint.law["image"].mean + model.modalities["image"].take(push))
        estimate = {**joint.estimate, "image": joint.estimate["image"] + push}
        return Prediction(joint.aggregate + at.W["image"] * push, {**joint.law, "image": image}, estimate)

    return guide
