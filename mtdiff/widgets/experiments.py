"""Boards over trained models: a class, a transition, an inpainting, guidance, what lies between two representations."""

import ipywidgets
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mtdiff.datasets import Dataset
from mtdiff.datasets.masks import MASKS, masks
from mtdiff.exact import planted_mixture, sample_group
from mtdiff.experiments import masked_image
from mtdiff.metrics import psnr, ssim
from mtdiff.model import MTDiffusion
from mtdiff.plots import CLASSES, pair_grid, picture_rows, show, show_image
from mtdiff.sampling import sample, sample_path
from mtdiff.widgets.base import board


def draw_class(model: MTDiffusion, label: int, guidance: float = 1.0, steps: int = 25, seed: int = 0, n: int = 10) -> Figure:
    """Samples of one class as a figure.

    Args:
        model: a model with "image" and "label".
        label: the class id.
        guidance: classifier-free guidance; 1 is the plain conditional.
        steps: sampler steps.
        seed: seed of the noise.
        n: how many.

    Returns:
        The figure; its title repeats the settings.
    """
    names = model.modalities["label"].names
    generator = torch.Generator(model.device).manual_seed(seed)
    given = {"label": torch.tensor([label], device=model.device)}
    drawn = sample(model, n, given=given, rule="conditioned", guidance=guidance, steps=steps, generator=generator)
    title = f"label {names[label]} given, guidance {guidance:g}, {steps} steps, seed {seed}"
    return pair_grid(drawn["image"], drawn["label"], names, columns=n, title=title)


def class_sampler(model: MTDiffusion, n: int = 10) -> ipywidgets.Widget:
    """Sliders for class, guidance, steps and seed over `draw_class`, which draws again as soon as one is let go.

    Args:
        model: a model with "image" and "label".
        n: how many samples.

    Returns:
        The widget; its `.controls` are the sliders by name.
    """
    slow = {"continuous_update": False}
    controls = {
        "label": ipywidgets.IntSlider(3, 0, model.modalities["label"].classes - 1, description="label", **slow),
        "guidance": ipywidgets.FloatSlider(1.0, min=0.0, max=5.0, step=0.5, description="guidance", **slow),
        "steps": ipywidgets.IntSlider(25, 2, 100, description="steps", **slow),
        "seed": ipywidgets.IntSlider(0, 0, 99, description="seed", **slow),
    }

    def redraw(**settings):
        show(draw_class(model, n=n, **settings), f"{n} samples of one class")

    return board(controls, redraw)


def draw_transition(
    model: MTDiffusion, pairs: Dataset, direction: str, scene: int = 0, steps: int = 25, seed: int = 0
) -> Figure:
    """One transition: the source, five states on the way, the drawn target and the true one.

    Args:
        model: a model with "source", "target" and "direction".
        pairs: held-out pairs with these values; their names are the directions.
        direction: one of `pairs.names`.
        scene: which of the pairs of this direction, counted from 0; past the last it starts again.
        steps: sampler steps, at least 4.
        seed: seed of the noise of the start and of all steps.

    Returns:
        The figure; its title gives the settings and the SSIM of drawn and true target.

    Raises:
        ValueError: an unknown direction, or fewer than 4 steps.
    """
    if direction not in pairs.names or steps < 4:
        raise ValueError(f"expected one of {tuple(pairs.names)} and at least 4 steps, got {direction!r} and {steps}")
    k = pairs.names.index(direction)
    rows = (pairs.values["direction"] == k).nonzero().flatten()
    row = rows[scene % len(rows)].reshape(1)
    source, target = (pairs.values[name][row].to(model.device) for name in ("source", "target"))
    given = {"source": source, "direction": torch.tensor([k], device=model.device)}
    generator = torch.Generator(model.device).manual_seed(seed)
    path = list(sample_path(model, 1, given=given, steps=steps, generator=generator))
    drawn = path[-1][2].law["target"].draw()
    on_the_way = [path[i] for i in torch.linspace(0, steps, 5).round().long().tolist()]
    pictures = [(source, "source"), *((z / 2, f"t = {t}") for t, z, _ in on_the_way), (drawn, "drawn"), (target, "truth")]
    figure, axes = plt.subplots(1, len(pictures), figsize=(1.0 * len(pictures), 1.6), layout="constrained")
    for axis, (picture, text) in zip(axes, pictures, strict=True):
        show_image(axis, picture[0], text)
    close = float(ssim(drawn.to(target.dtype), target)[0])
    figure.suptitle(f"{direction}, scene {scene}, seed {seed}, {steps} steps: SSIM {close:.3f} with the truth", fontsize=10)
    return figure


def transition_board(model: MTDiffusion, pairs: Dataset) -> ipywidgets.Widget:
    """Controls over `draw_transition`.

    Args:
        model: a model with "source", "target" and "direction".
        pairs: as in `draw_transition`.

    Returns:
        The widget; its `.controls` are the controls by name.
    """
    slow = {"continuous_update": False}
    controls = {
        "direction": ipywidgets.Dropdown(options=list(pairs.names), description="direction"),
        "scene": ipywidgets.IntSlider(0, 0, len(pairs) // len(pairs.names) - 1, description="scene", **slow),
        "steps": ipywidgets.IntSlider(25, 4, 100, description="steps", **slow),
        "seed": ipywidgets.IntSlider(0, 0, 99, description="seed", **slow),
    }
    return board(controls, lambda **setting: show(draw_transition(model, pairs, **setting), f"A transition for {setting}"))


def draw_inpainting(
    model: MTDiffusion,
    plain: MTDiffusion,
    image: Tensor,
    kind: str = "box",
    hidden: float = 0.5,
    scene: int = 0,
    seed: int = 0,
    way: str = "told",
    n: int = 5,
) -> Figure:
    """An image, what is known of it, and a few ways to fill in the rest, by 24 evaluations of a network each.

    Args:
        model: a model of the masked-image experiment, which is told masked image and mask.
        plain: a model of images alone, for the other ways.
        image: (N, 3, s, s) images to choose from.
        kind: a kind of mask, as in `mtdiff.datasets.masks`.
        hidden: share of hidden pixels, in (0, 1).
        scene: which image.
        seed: seed of mask and noise.
        way: "told", "repeated", "repaint" or "sdedit", as in `mtdiff.experiments.masked_image.inpaint`.
        n: how many fillings.

    Returns:
        The figure; its title repeats the settings and gives the mean PSNR of hidden pixels.
    """
    truth, mask = image[scene : scene + 1], masks(1, image.shape[-1], kind, hidden, seed)
    rows, generator = (truth.expand(n, -1, -1, -1), mask.expand(n, -1, -1, -1)), torch.Generator().manual_seed(seed)
    drawn = masked_image.inpaint(model if way in ("told", "repeated") else plain, *rows, way, generator=generator)
    decibel = float(psnr(drawn, rows[0], ~rows[1].bool()).mean())
    names = ["image", "known", *(f"draw {k + 1}" for k in range(n))]
    title = f"{kind}, {hidden:.0%} hidden, {way}: {decibel:.1f} dB on average"
    return picture_rows({f"seed {seed}": torch.cat([truth, truth * mask, drawn])}, names, title)


def inpainting_board(model: MTDiffusion, plain: MTDiffusion, image: Tensor) -> ipywidgets.Widget:
    """Controls over `draw_inpainting`.

    Args:
        model: as in `draw_inpainting`.
        plain: as in `draw_inpainting`.
        image: as in `draw_inpainting`.

    Returns:
        The widget; its `.controls` are the controls by name.
    """
    slow = {"continuous_update": False}
    controls = {
        "kind": ipywidgets.Dropdown(options=list(MASKS), description="mask"),
        "hidden": ipywidgets.FloatSlider(0.5, min=0.1, max=0.9, step=0.1, description="hidden", **slow),
        "scene": ipywidgets.IntSlider(0, 0, len(image) - 1, description="scene", **slow),
        "seed": ipywidgets.IntSlider(0, 0, 99, description="seed", **slow),
        "way": ipywidgets.Dropdown(options=["told", "repeated", "repaint", "sdedit"], description="way"),
    }

    def redraw(**setting):
        show(draw_inpainting(model, plain, image, **setting), f"Fillings of one hole for {setting}")

    return board(controls, redraw)


def draw_amplification(
    share: float = 0.8, guidance: float = 2.0, across: float = 1.0, seed: int = 0, n: int = 1500
) -> Figure:
    """Guided draws of the left shape of `mtdiff.exact.planted_mixture`, and the share of own colours over the guidance.

    Args:
        share: how often a shape has its own colour in the data.
        guidance: scale of the draws that are shown.
        across: half the distance of the shapes; that of the colours is 1.
        seed: seed of data and noise.
        n: how many points.

    Returns:
        The figure.
    """
    mix = planted_mixture(share, across)
    data = mix.draw(n, torch.Generator().manual_seed(seed))
    scales = sorted({0.0, 1.0, 2.0, 4.0, guidance})
    drawn = {g: sample_group(mix, [0, 1], n, g, 50, torch.Generator().manual_seed(seed)) for g in scales}
    own = {g: float((x[:, 1] > 0).double().mean()) for g, x in drawn.items()}
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.9), layout="constrained")
    axes[0].scatter(*data["x"].T, s=3, alpha=0.4, c=[CLASSES[int(k > 1)] for k in data["label"]])
    axes[0].set_title(f"data: {share:.0%} in their own colour", fontsize=9)
    axes[1].scatter(*drawn[guidance].T, s=3, alpha=0.4, color=CLASSES[0])
    axes[1].set_title(f"left, guidance {guidance:g}: {own[guidance]:.0%} up", fontsize=9)
    for axis in axes[:2]:
        axis.set(xlim=(-5, 5), ylim=(-5, 5), xlabel="shape", ylabel="colour")
    axes[2].plot(scales, [own[g] for g in scales], marker="o")
    axes[2].axhline(share, color="black", linewidth=0.8)
    axes[2].set(xlabel="guidance", ylabel="own colour", ylim=(0, 1.02))
    axes[2].set_title(f"shapes {2 * across:g} apart; the line is the data", fontsize=9)
    return figure


def amplification_board() -> ipywidgets.Widget:
    """Controls over `draw_amplification`.

    Returns:
        The widget; its `.controls` are the sliders by name.
    """
    slow = {"continuous_update": False}
    controls = {
        "share": ipywidgets.FloatSlider(0.8, min=0.5, max=0.95, step=0.05, description="share", **slow),
        "guidance": ipywidgets.FloatSlider(2.0, min=0.0, max=5.0, step=0.5, description="guidance", **slow),
        "across": ipywidgets.FloatSlider(1.0, min=0.5, max=3.0, step=0.25, description="across", **slow),
        "seed": ipywidgets.IntSlider(0, 0, 99, description="seed", **slow),
    }

    def redraw(**setting):
        show(draw_amplification(**setting), f"Guided draws of four clusters for {setting}")

    return board(controls, redraw)


def draw_between(
    model: MTDiffusion, scenes: Dataset, first: int = 0, second: int = 1, guidance: float = 1.0, seed: int = 0, n: int = 6
) -> Figure:
    """Images for the representations on the way from one scene's to another's: what does a representation keep?

    Args:
        model: a model with "image" and "representation" that can be told the latter.
        scenes: scenes with these values.
        first: row of the scene to start from.
        second: row of the scene to end at.
        guidance: how far to go from the untold estimate towards the told one; 1 is no guidance.
        seed: seed of the noise; every column starts from its own.
        n: images for each representation.

    Returns:
        The figure: a row for each of five representations, the two scenes at its left and right ends.
    """
    image, value = scenes.values["image"], scenes.values["representation"]
    options = {"rule": "conditioned", "present": {"image"}, "guidance": guidance, "steps": 25, "sampler": "ddim"}
    rows = {}
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        given = torch.lerp(value[first], value[second], share).expand(n, -1).to(model.device)
        generator = torch.Generator(model.device).manual_seed(seed)
        drawn = sample(model, n, given={"representation": given}, generator=generator, **options)["image"].cpu()
        scene = {0.0: image[first], 1.0: image[second]}.get(share, torch.ones_like(image[first]))
        rows[f"{share:.0%} of {second}"] = torch.cat([scene[None], drawn])
    titles = ["scene", *(f"draw {k + 1}" for k in range(n))]
    title = f"From scene {first} to scene {second} by representations; guidance {guidance:g}, seed {seed}"
    return picture_rows(rows, titles, title)


def representation_board(model: MTDiffusion, scenes: Dataset) -> ipywidgets.Widget:
    """Controls over `draw_between`.

    Args:
        model: as in `draw_between`.
        scenes: as in `draw_between`.

    Returns:
        The widget; its `.controls` are the sliders by name.
    """
    slow = {"continuous_update": False}
    controls = {
        "first": ipywidgets.IntSlider(0, 0, len(scenes) - 1, description="first", **slow),
        "second": ipywidgets.IntSlider(1, 0, len(scenes) - 1, description="second", **slow),
        "guidance": ipywidgets.FloatSlider(1.0, min=0.0, max=4.0, step=0.5, description="guidance", **slow),
        "seed": ipywidgets.IntSlider(0, 0, 99, description="seed", **slow),
    }
    return board(controls, lambda **setting: show(draw_between(model, scenes, **setting), f"Drawn between for {setting}"))
