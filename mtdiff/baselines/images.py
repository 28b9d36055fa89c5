"""What a plain diffusion model of images can do without multi-modal training, and all ways to inpaint behind one call."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mtdiff.laws import Law
from mtdiff.losses import Loss
from mtdiff.model import MTDiffusion
from mtdiff.prediction import Denoiser
from mtdiff.sampling import sample, sample_many

WAYS = {
    "told": "masked image and mask are told at every step; it makes no difference whether they are in the chain",
    "repeated": "told, with fewer steps that are repeated, as RePaint does",
    "mean": "no draw but E[image | told], read at t = T by one evaluation",
    "heat": "no model: each hidden pixel the mean of its neighbours",
    "substitute": "in the chain, by rule 1",
    "sdedit": "the mean known colour in the hole, noised up to a strength and taken back",
    "repaint": "a plain chain whose known pixels are replaced after every step",
}


@torch.no_grad()
def mean_image(model: Denoiser, name: str, given: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
    """E[image | given] by one evaluation at t = T, (B, C, H, W): no draw, but the image of least mean square error."""
    return _from_noise(model, name, given, generator).draw()


def regression_loss(
    model: MTDiffusion, batch: Mapping[str, Tensor], generator: torch.Generator, *, name: str = "target"
) -> Loss:
    """Mean square error of what `mean_image` gives: an ordinary regression of one modality on the others, with no chain."""
    model.check(batch)
    given = {other: batch[other] for other in model.modalities if other != name}
    square = _from_noise(model, name, given, generator).mean.sub(batch[name]).square().mean()
    return Loss(square, {name: square})


def _from_noise(model: Denoiser, name: str, given: Mapping[str, Tensor], generator: torch.Generator | None) -> Law:
    """p(x_name | given) at t = T, from a state that is noise alone."""
    size = len(next(iter(given.values())))
    noise = torch.randn(size, *model.space, generator=generator, device=model.device)
    return model.predict(noise, model.process.steps, given=given, present={name}).law[name]


def sdedit(
    model: Denoiser,
    image: Tensor,
    strength: float,
    *,
    name: str = "image",
    given: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    **options,
) -> Tensor:
    """Noise a guide up to a step of the chain, and let the model of the wanted images take it back from there.

    Args:
        model: its chain ends at noise; the image modality `name` alone is in it, with what is given.
        image: (B, C, H, W) the guide: what is to be turned into the model's kind of image.
        strength: how far up the chain, in (0, 1]: 1 forgets the guide. ValueError for any other.
        **options: other arguments of `sample` (steps, sampler, rule ...).

    Returns:
        (B, C, H, W).

    Source: Meng et al. 2022.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength}")
    process, image = model.process, image.to(model.device)
    t = max(process.first + 1, round(strength * process.steps))
    options["steps"] = min(options.get("steps", 50), t - process.first)
    z, _ = process.diffuse(model.encode({name: image}), t, present={name}, generator=generator)
    present = {name, *(given or {})}
    return sample(model, len(image), given=given, present=present, start=(t, z), generator=generator, **options)[name]


@torch.no_grad()
def repaint(
    model: Denoiser,
    image: Tensor,
    mask: Tensor,
    *,
    name: str = "image",
    steps: int = 50,
    repeats: int = 2,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Inpainting with an unconditional model: noised data replace known pixels after each step, which is repeated.

    After a step from t to s the state is noised back to t and the step taken again, `repeats` times in all, so that the
    hidden part can adapt to the known one. The model is evaluated steps * repeats times.

    Args:
        model: its chain ends at noise; only the image modality `name` is in it.
        image: (B, C, H, W); hidden pixels are not looked at.
        mask: (B, 1, H, W), 1 where a pixel is known.

    Returns:
        (B, C, H, W), known pixels as given.

    Raises:
        ValueError: repeats < 1, steps out of range, or a mask that does not fit.

    Source: Lugmayr et al. 2022, algorithm 1, with jumps of one step.
    """
    image, mask = image.to(model.device), mask.to(model.device)
    if mask.shape != (len(image), 1, *image.shape[2:]):
        raise ValueError(f"mask must have shape {(len(image), 1, *image.shape[2:])}, got {tuple(mask.shape)}")
    known = model.encode({name: torch.where(mask.bool(), image, 0.0)})[name].double()

    def put_back(z: Tensor, s: int) -> Tensor:
        noise = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)
        return torch.where(mask.bool(), model.process.diffuse({name: known}, s, noise, {name})[0], z)

    options = {"sampler": "ddpm", "steps": steps, "repeats": repeats, "after_step": put_back}
    drawn = sample(model, len(image), present={name}, generator=generator, **options)[name]
    return torch.where(mask.bool(), image, drawn)


def heat(image: Tensor, mask: Tensor, rounds: int = 500) -> Tensor:
    """Hidden pixels as a plate of heat would have them (Laplace's equation), by so many rounds of averaging."""
    known = mask.bool()
    out = _in_mean_colour(image, known)
    cross = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], device=image.device, dtype=image.dtype)
    weight = cross.expand(image.shape[1], 1, 3, 3)
    neighbours = F.conv2d(torch.ones_like(image), weight, padding=1, groups=image.shape[1])
    for _ in range(rounds):
        out = torch.where(known, image, F.conv2d(out, weight, padding=1, groups=image.shape[1]) / neighbours)
    return out


def _in_mean_colour(image: Tensor, known: Tensor) -> Tensor:
    """An image whose hidden pixels have the mean colour of those that are known (B, 1, H, W) bool."""
    mean = torch.where(known, image, 0.0).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1)
    return torch.where(known, image, mean)


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
        way: one of `WAYS` (ValueError for any other).
        steps: network evaluations, the final reading not counted.
        repeats: how often "repeated" and "repaint" take each of their steps / repeats steps; ValueError where that is no
            whole number.
        strength: of SDEdit.

    Returns:
        (N, 3, s, s), on the CPU.
    """
    if way not in WAYS:
        raise ValueError(f"unknown way {way!r} to inpaint: expected one of {list(WAYS)}")
    repeats = repeats if way in ("repeated", "repaint") else 1
    if steps % repeats:
        raise ValueError(f"repeats must divide the {steps} evaluations, got {repeats}")
    image, mask = image.to(model.device), mask.to(model.device)
    masked, options = torch.where(mask.bool(), image, 0.0), {"steps": steps // repeats, "generator": generator}
    given = {"masked": masked, "mask": mask}
    if way == "mean":
        drawn = mean_image(model, "image", given, generator)
    elif way == "heat":
        drawn = heat(image, mask)
    elif way == "sdedit":
        drawn = sdedit(model, _in_mean_colour(image, mask.bool()), strength, **options)
    elif way == "repaint":
        drawn = repaint(model, image, mask, repeats=repeats, **options)
    else:
        rule = "substitute" if way == "substitute" else "conditioned"
        drawn = sample_many(model, len(image), given=given, rule=rule, repeats=repeats, **options)["image"]
    return torch.where(mask.bool(), image, drawn.to(image)).cpu()
