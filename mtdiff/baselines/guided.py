"""Guidance by a representation that the model itself draws beside the image."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mtdiff.model import MTDiffusion
from mtdiff.prediction import Prediction


class RepresentationGuided:
    """A joint model whose image estimate is pushed from what it is without the representation to what it is with it.

    With e the image's estimate: e + (s - 1) (e - e'), where e' is the estimate from the state without the representation's
    code, z_t - sqrt(abar_t) W_t E[r | z_t], and with the network told that it is absent (the present set S = {image}).
    Everything else is the model's own, so that `mtdiff.sample` takes it as a model.

    Scale s = 1 is no guidance.

    Raises:
        ValueError: the representation is not in the model's chain.

    Source: representation guidance: Kouzelis et al. 2025 (ReDi); by a present set: ours.
    """

    def __init__(self, model: MTDiffusion, scale: float):
        if "representation" not in model.process.entering:
            raise ValueError("representation guidance needs a model whose chain carries the representation")
        self.model, self.scale = model, scale

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def predict(self, z_t: Tensor, t: int | Tensor, *, given: Mapping | None = None, present: Mapping | None = None):
        """`MTDiffusion.predict`, guided; where the representation is told or absent it is the model's own."""
        joint = self.model.predict(z_t, t, given=given, present=present)
        if self.scale == 1 or given or present:
            return joint
        process, name = self.model.process, "representation"
        at = process.at(t, z_t)
        mask = {name: torch.zeros(len(z_t), dtype=torch.bool, device=z_t.device)}
        without = self.model.predict(z_t - at.signal * at.W[name] * joint.estimate[name], t, present=mask)
        push = (self.scale - 1) * (joint.estimate["image"] - without.estimate["image"])
        estimate = {**joint.estimate, "image": joint.estimate["image"] + push}
        aggregate = joint.aggregate + at.W["image"] * push
        law = joint.law["image"]
        image = replace(law, mean=law.mean + self.model.modalities["image"].take(push))
        return Prediction(aggregate, {**joint.law, "image": image}, estimate)
