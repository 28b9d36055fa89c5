"""What a plain diffusion model can do without multi-modal training: SDEdit and RePaint."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mtdiff.prediction import Denoiser
from mtdiff.sampling import sample


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
        model: a model with the image modality `name`, whose chain ends at noise.
        image: (B, C, H, W) the guide: what is to be turned into the model's kind of image.
        strength: how far up the chain, in (0, 1]: 1 forgets the guide.
        name: the image modality; it alone is in the chain, with what is given.
        given: {name: (B, ...)} other modalities, as in `sample`.
        generator: source of all noise.
        **options: other arguments of `sample` (steps, sampler, rule ...).

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: strength out of range.

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
        model: a model with the image modality `name`, whose chain ends at noise; only the image is in the chain.
        image: (B, C, H, W); hidden pixels are not looked at.
        mask: (B, 1, H, W), 1 where a pixel is known.
        name: the image modality.
        steps: intervals of the chain.
        repeats: how often each is taken, at least 1.
        generator: source of all noise.

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
