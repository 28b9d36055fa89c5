"""What notebooks show. Colours are colour-blind safe, and a modality keeps its colour through the course."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

_CYCLE = sns.color_palette("colorblind")
COLOURS = {"image": _CYCLE[0], "label": _CYCLE[1], "denoise": _CYCLE[2], "x": _CYCLE[0], "total": _CYCLE[7]}
"""One colour for each modality, everywhere."""


def style() -> None:
    """Set the course's look: quiet axes, readable sizes, 90 dots per inch."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.9)
    plt.rcParams.update({"figure.dpi": 90, "savefig.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})


def show_image(axis: Axes, image: Tensor, title: str = "", colour=None) -> None:
    """One image (C, H, W) in [-1, 1], grey for one channel, its first three channels as colours otherwise.

    Args:
        axis: where to draw.
        image: (C, H, W).
        title: text above it.
        colour: of the text.
    """
    picture = ((image.detach().cpu().float().clamp(-1, 1) + 1) / 2).numpy()
    if len(picture) < 3:
        axis.imshow(picture[0], cmap="gray", vmin=0, vmax=1)
    else:
        axis.imshow(picture[:3].transpose(1, 2, 0))
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=9, pad=2, color=colour)


def pair_grid(
    image: Tensor, label: Tensor, names: Sequence[str], columns: int = 10, title: str = "", wrong: Tensor | None = None
) -> Figure:
    """Images with their labels above them.

    Args:
        image: (N, C, H, W) in [-1, 1].
        label: (N,) class ids.
        names: class names.
        columns: images in a row.
        title: text above the figure.
        wrong: (N,) bool, labels to print in red.

    Returns:
        The figure.
    """
    columns = min(columns, len(image))
    rows = -(-len(image) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(0.72 * columns, 0.9 * rows + 0.35 * bool(title)), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(image) :]:
        axis.set_axis_off()
    for k, (axis, x, y) in enumerate(zip(axes.flat, image, label.tolist(), strict=False)):
        show_image(axis, x, names[y], _CYCLE[3] if wrong is not None and wrong[k] else COLOURS["label"])
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def loss_curves(history: Sequence[Mapping[str, float]], title: str = "") -> Figure:
    """The terms of the training loss against the step, one panel each: their units differ.

    Args:
        history: rows of `Trainer.history`.
        title: text above the figure.

    Returns:
        The figure.
    """
    terms = [name for name in history[0] if name not in ("step", "seconds", "total")]
    figure, axes = plt.subplots(1, len(terms), figsize=(3.1 * len(terms), 2.3), squeeze=False, layout="constrained")
    steps = [row["step"] for row in history]
    for axis, name in zip(axes.flat, terms, strict=True):
        axis.plot(steps, [row[name] for row in history], color=COLOURS.get(name))
        unit = "nats" if name == "label" else "mean square"
        axis.set(xlabel="step", ylabel=f"{name} ({unit})", ylim=(0, None))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def trajectory(states: Sequence[Tensor], steps: Sequence[int], rows: int = 3, title: str = "") -> Figure:
    """A few states of a chain, left to right, one example in a row.

    Args:
        states: tensors (B, C, H, W), one per shown step.
        steps: the step t of each.
        rows: how many examples.
        title: text above the figure.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(
        rows, len(states), figsize=(0.8 * len(states), 0.85 * rows + 0.5), squeeze=False, layout="constrained"
    )
    for column, (z, t) in enumerate(zip(states, steps, strict=True)):
        for row in range(rows):
            show_image(axes[row, column], z[row] / z[row].abs().max().clamp(min=1), f"t = {t}" if row == 0 else "")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def save_grid(drawn: Mapping[str, Tensor], names: Sequence[str], path: str | Path) -> None:
    """Write (image, label) samples as a picture file.

    Args:
        drawn: {"image": (N, C, H, W), "label": (N,)}.
        names: class names.
        path: the file; its ending says the format.

    Raises:
        OSError: the file cannot be written.
    """
    style()
    figure = pair_grid(drawn["image"], drawn["label"], names)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
