"""An ordinary classifier of clean images with the backbone of a diffusion model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mtdiff.losses import Loss
from mtdiff.model import MTDiffusion


def classifier_loss(model: MTDiffusion, batch: Mapping[str, Tensor], generator: torch.Generator) -> Loss:
    """-log p(label | image): cross-entropy in nats, read near t = 0 with the image alone in the state."""
    t = model.process.first
    model.check(batch)
    z, _ = model.process.diffuse(model.encode({"image": batch["image"]}), t, present={"image"}, generator=generator)
    nats = model(z, t, present={"image"}).law["label"].loss(batch["label"]).mean()
    return Loss(nats, {"label": nats})
