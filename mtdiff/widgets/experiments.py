"""Boards over trained models: a class, a transition, an inpainting, guidance, what lies between two representations."""

from collections.abc import Sequence
from textwrap import shorten

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mtdiff.datasets import Dataset
from mtdiff.datasets.masks import MASKS, masks
from mtdiff.datasets.shapes import as_picture, read_caption
from mtdiff.exact import planted_mixture, sample_group
from mtdiff.experiments import masked_image
from mtdiff.metrics import psnr, ssim
from mtdiff.modalities import Caption, Label
from mtdiff.model import MTDiffusion
from mtdiff.plots import CLASSES, pair_grid, panels, picture_rows
from mtdiff.sampling import sample, sample_path
from mtdiff.widgets.base import Board
from mtdiff.widgets.canvas import Canvas


def draw_class(model: MTDiffusion, label: int, guidance: float = 1.0, steps: int = 25, seed: int = 0, n: int = 10) -> Figure:
    """Samples of one class, by the rule "conditioned"; the title repeats the settings."""
    names = model.modalities["label"].names
    generator = torch.Generator(model.device).manual_seed(seed)
    given = {"label": torch.tensor([label], device=model.device)}
    drawn = sample(model, n, given=given, rule="conditioned", guidance=guidance, steps=steps, generator=generator)
    title = f"label {names[label]} given, guidance {guidance:g}, {steps} steps, seed {seed}"
    return pair_grid(drawn["image"], drawn["label"], names, columns=n, title=title)


class_sampler = Board(
    draw_class, "{n} samples of one class",
    label=lambda model: (3, 0, model.modalities["label"].classes - 1), guidance=(1.0, 0.0, 5.0, 0.5),
    steps=(25, 2, 100), seed=(0, 0, 99),
)  # fmt: skip


def draw_transition(
    model: MTDiffusion, pairs: Dataset, direction: str, scene: int = 0, steps: int = 25, seed: int = 0
) -> Figure:
    """One transition: the source, five states on the way, the drawn target and the true one, their SSIM in the title.

    Of the pairs of this direction, one of `pairs.names`, it is the one at `scene`, counted from 0 and again after the last.
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
    names = ["source", *(f"t = {t}" for t, _, _ in on_the_way), "drawn", "truth"]
    close = float(ssim(drawn.to(target.dtype), target)[0])
    title = f"{direction}, scene {scene}, seed {seed}, {steps} steps: SSIM {close:.3f} with the truth"
    return picture_rows({"": torch.cat([source, *(z / 2 for _, z, _ in on_the_way), drawn, target])}, names, title)


transition_board = Board(
    draw_transition, "A transition for {setting}",
    direction=lambda model, pairs: list(pairs.names),
    scene=lambda model, pairs: (0, 0, len(pairs) // len(pairs.names) - 1), steps=(25, 4, 100), seed=(0, 0, 99),
)  # fmt: skip


def draw_inpainting(
    model: MTDiffusion, plain: MTDiffusion, image: Tensor, kind: str = "box", hidden: float = 0.5, scene: int = 0,
    seed: int = 0, way: str = "told", n: int = 5,
) -> Figure:  # fmt: skip
    """An image, what is known of it, and n ways to fill in the rest, by 24 evaluations of a network each.

    The ways are those of `mtdiff.experiments.masked_image.inpaint`: "told" and "repeated" of a model that is told masked
    image and mask, "repaint" and "sdedit" of a `plain` one of images alone. `kind` and `hidden`, a share in (0, 1), are of
    the mask (`mtdiff.datasets.masks`); the title has the mean PSNR of hidden pixels.
    """
    truth, mask = image[scene : scene + 1], masks(1, image.shape[-1], kind, hidden, seed)
    rows, generator = (truth.expand(n, -1, -1, -1), mask.expand(n, -1, -1, -1)), torch.Generator().manual_seed(seed)
    drawn = masked_image.inpaint(model if way in ("told", "repeated") else plain, *rows, way, generator=generator)
    decibel = float(psnr(drawn, rows[0], ~rows[1].bool()).mean())
    names = ["image", "known", *(f"draw {k + 1}" for k in range(n))]
    title = f"{kind}, {hidden:.0%} hidden, {way}: {decibel:.1f} dB on average"
    return picture_rows({f"seed {seed}": torch.cat([truth, truth * mask, drawn])}, names, title)


inpainting_board = Board(
    draw_inpainting, "Fillings of one hole for {setting}", text={"kind": "mask"},
    kind=list(MASKS), hidden=(0.5, 0.1, 0.9, 0.1), scene=lambda model, plain, image: (0, 0, len(image) - 1),
    seed=(0, 0, 99), way=["told", "repeated", "repaint", "sdedit"],
)  # fmt: skip


def draw_amplification(
    share: float = 0.8, guidance: float = 2.0, across: float = 1.0, seed: int = 0, n: int = 1500
) -> Figure:
    """Guided draws of the left shape of `mtdiff.exact.planted_mixture`, and the share of own colours over the guidance.

    `share` is how often a shape has its own colour in the data, `across` half the distance of the shapes where that of the
    colours is 1.
    """
    mix = planted_mixture(share, across)
    data = mix.draw(n, torch.Generator().manual_seed(seed))
    scales = sorted({0.0, 1.0, 2.0, 4.0, guidance})
    drawn = {g: sample_group(mix, [0, 1], n, g, 50, torch.Generator().manual_seed(seed)) for g in scales}
    own = {g: float((x[:, 1] > 0).double().mean()) for g, x in drawn.items()}
    figure, (axes,) = panels(1, 3, (9, 2.9))
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


amplification_board = Board(
    draw_amplification, "Guided draws of four clusters for {setting}",
    share=(0.8, 0.5, 0.95, 0.05), guidance=(2.0, 0.0, 5.0, 0.5), across=(1.0, 0.5, 3.0, 0.25), seed=(0, 0, 99),
)  # fmt: skip


def draw_between(
    model: MTDiffusion, scenes: Dataset, first: int = 0, second: int = 1, guidance: float = 1.0, seed: int = 0, n: int = 6
) -> Figure:
    """Images for the representations on the way from one scene's to another's: what does a representation keep?

    A row for each of five, from the scene at row `first` to that at `second`, which stand at its left; every column starts
    from its own noise. The model can be told representations; guidance goes from the untold estimate towards the told one.
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


representation_board = Board(
    draw_between, "Drawn between for {setting}",
    first=lambda model, scenes: (0, 0, len(scenes) - 1), second=lambda model, scenes: (1, 0, len(scenes) - 1),
    guidance=(1.0, 0.0, 4.0, 0.5), seed=(0, 0, 99),
)  # fmt: skip


def draw_any(
    model: MTDiffusion, scenes: Dataset, given: tuple[str, ...] = (), words: str = "", painted: Sequence[int] = (),
    scene: int = 0, steps: int = 12, seed: int = 0,
) -> Figure:  # fmt: skip
    """All modalities of a scene, those that are given and the others: as they would be read at five steps, and drawn.

    Given are those of one of the scenes, or a caption in words of its own, or a segmentation that was painted (its classes,
    row by row); words that are no scene of the shapes world are left out, and the title says why. Caption and label stand in
    the title.
    """
    values, title = {name: scenes.values[name][scene : scene + 1].to(model.device) for name in given}, []
    try:
        if words:
            values["caption"] = model.modalities["caption"].tokens(read_caption(words, seed)).to(model.device)
    except ValueError as error:
        title.append(shorten(str(error), 90))
    if painted:
        values["segmentation"] = torch.tensor(painted, device=model.device).reshape(1, *scenes.shape("segmentation"))
    generator = torch.Generator(model.device).manual_seed(seed)
    path = list(sample_path(model, 1, given=values, steps=steps, generator=generator))
    looks, rows = [path[i] for i in torch.linspace(0, steps, 6).round().long().tolist()], {}
    for name, modality in model.modalities.items():
        known = f"{name}{' (given)' * (name in values)}"
        drawn = [values[name] if name in values else look.law[name].draw() for _, _, look in looks]
        if isinstance(modality, Caption):
            title.append(f"{known}: {modality.text(drawn[-1])[0]}")
        elif isinstance(modality, Label):
            title.append(f"{known}: {modality.names[int(drawn[-1])]}")
        else:
            rows[known] = torch.cat([as_picture(name, value) for value in drawn])
    return picture_rows(rows, [*(f"t = {t}" for t, _, _ in looks[:-1]), "drawn"], "   ".join(title))


any_board = Board(
    draw_any, "What a model draws for what is given: {given}, words {words!r}, scene {scene}, seed {seed}",
    given=lambda model, scenes: ipywidgets.SelectMultiple(options=list(model.modalities), description="given"),
    words=lambda model, scenes: ipywidgets.Text(
        placeholder="a small red circle on grey", continuous_update=False, description="words"
    ),
    painted=lambda model, scenes: Canvas(model.modalities["segmentation"].names, scenes.shape("segmentation")[0]),
    scene=lambda model, scenes: (0, 0, min(99, len(scenes) - 1)), steps=(12, 5, 50), seed=(0, 0, 99),
)  # fmt: skip
