"""All ways to inpaint behind one call: those of a multi-modal model, and those of a plain model of images."""

import torch
from torch import Tensor

from mtdiff.baselines.images import repaint, sdedit
from mtdiff.prediction import Denoiser
from mtdiff.sampling import sample_many

WAYS = {
    "told": "masked image and mask are told at every step; it makes no difference whether they are in the chain",
    "repeated": "told, with fewer steps that are repeated, as RePaint does",
    "mean": "no draw but E[image | told], read at t = T by one evaluation",
    "substitute": "in the chain, by rule 1",
    "clean": "told to a model without a shared space: clean, in channels of their own",
    "sdedit": "the mean known colour in the hole, noised up to a strength and taken back",
    "repaint": "a plain chain whose known pixels are replaced after every step",
}


def inpaint(
    model: Denoiser,
    image: Tensor,
    mask: Tensor,
    way: str = "told",
    steps: int = 24,
    repeats: int = 4,
    strength: float = 0.6,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill what a mask hides; known pixels stay as they are.

    Args:
        model: of "image", "masked" and "mask"; of "image" alone for "sdedit" and "repaint".
        image: (N, 3, s, s); hidden pixels are not looked at.
        mask: (N, 1, s, s), 1 where a pixel is known.
        way: one of `WAYS`.
        steps: network evaluations, the final reading not counted.
        repeats: how often "repeated" and "repaint" take each of their steps / repeats steps.
        strength: of SDEdit.

    Returns:
        (N, 3, s, s), on the CPU.

    Raises:
        ValueError: an unknown way, or repeats that do not divide the steps.
    """
    if way not in WAYS:
        raise ValueError(f"unknown way {way!r} to inpaint: expected one of {list(WAYS)}")
    if way in ("repeated", "repaint") and steps % repeats:
        raise ValueError(f"repeats must divide the {steps} evaluations, got {repeats}")
    image, mask = image.to(model.device), mask.to(model.device)
    masked = torch.where(mask.bool(), image, 0.0)
    given = {"masked": masked, "mask": mask}
    if way == "mean":
        noise = torch.randn(len(image), *model.space, generator=generator, device=model.device)
        with torch.no_grad():
            drawn = model.predict(noise, model.process.steps, given=given, present={"image"}).law["image"].draw()
    elif way == "sdedit":
        filling = masked.sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True).clamp(min=1)
        drawn = sdedit(model, torch.where(mask.bool(), image, filling), strength, steps=steps, generator=generator)
    elif way == "repaint":
        drawn = repaint(model, image, mask, steps=steps // repeats, repeats=repeats, generator=generator)
    else:
        repeats = repeats if way == "repeated" else 1
        options = {"rule": "substitute" if way == "substitute" else "conditioned", "generator": generator}
        options |= {"steps": steps // repeats, "repeats": repeats}
        drawn = sample_many(model, len(image), given=given, **options)["image"]
    return torch.where(mask.bool(), image, drawn.to(image)).cpu()
