"""What a plain diffusion model can do without multi-modal training: SDEdit and RePaint."""

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from mtdiff.sampling import sample
from mtdiff.solvers import Guess, ancestral, renoise


def sdedit(
    model,
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
    only = {i: torch.full((len(image),), i == name, device=image.device) for i in process.names}
    z, _ = process.diffuse(model.encode({name: image}), t, present=only, generator=generator)
    present = {name, *(given or {})}
    return sample(model, len(image), given=given, present=present, start=(t, z), generator=generator, **options)[name]


@torch.no_grad()
def repaint(
    model,
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
    process, image, mask = model.process, image.to(model.device), mask.to(model.device)
    if repeats < 1 or not 1 <= steps <= process.steps - process.first:
        raise ValueError(f"repeats must be >= 1 and steps in 1..{process.steps - process.first}, got {repeats} and {steps}")
    if mask.shape != (len(image), 1, *image.shape[2:]):
        raise ValueError(f"mask must have shape {(len(image), 1, *image.shape[2:])}, got {tuple(mask.shape)}")
    only = {i: torch.full((len(image),), i == name, device=image.device) for i in model.modalities}
    known = model.encode({name: torch.where(mask.bool(), image, 0.0)})[name].double()

    def noise() -> Tensor:
        return torch.randn(known.shape, dtype=torch.float64, device=known.device, generator=generator)

    z = noise()
    times = torch.linspace(process.steps, process.first, steps + 1).round().long().tolist()
    for t, s in itertools.pairwise(times):
        for repeat in range(repeats):
            prediction = model.predict(z, t, present=only)
            guess = Guess(prediction.aggregate, {i: prediction.estimate[i] for i in process.moving if i == name})
            z_s = ancestral(process, z, guess, t, s, noise())
            z_s = torch.where(mask.bool(), process.diffuse({name: known}, s, noise(), only)[0], z_s)
            if repeat < repeats - 1:
                z = renoise(process, z_s, guess, t, s, noise())
        z = z_s
    drawn = model.read(z, times[-1], present=only, generator=generator)[name]
    return torch.where(mask.bool(), image, drawn)
