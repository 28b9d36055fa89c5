"""What notebooks show. Colours are colour-blind safe, and a modality keeps its colour through the course."""

import io
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtdiff.comparison import Difference
from mtdiff.elbo import Bound
from mtdiff.exact import GaussianGap
from mtdiff.files import write_atomic
from mtdiff.optional import needed
from mtdiff.process import ForwardProcess

with needed("mtdiff.plots"):
    import matplotlib.pyplot as plt
    import seaborn as sns
    from IPython.display import display
    from matplotlib.axes import Axes
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

_CYCLE = sns.color_palette("colorblind")
COLOURS = {"image": _CYCLE[0], "label": _CYCLE[1], "denoise": _CYCLE[2], "x": _CYCLE[0], "total": _CYCLE[7]}
COLOURS |= {"segmentation": _CYCLE[3], "depth": _CYCLE[9], "caption": _CYCLE[4]}
"""One colour for each modality, everywhere."""
CLASSES = (_CYCLE[4], _CYCLE[2], _CYCLE[3])
"""Colours of the values of a label, where points are coloured by it."""


def style() -> None:
    """Set the course's look: quiet axes, readable sizes, 90 dots per inch."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.9)
    plt.rcParams.update({"figure.dpi": 90, "savefig.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})


def show(figure: Figure, alt: str) -> None:
    """Display a figure in a notebook with a text for those who cannot see it, and close it."""
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def panels(rows: int, columns: int, size: tuple[float, float], title: str = "") -> tuple[Figure, np.ndarray]:
    """A figure of a size in inches with a text above it, and its axes (rows, columns)."""
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure, axes


def show_image(axis: Axes, image: Tensor, title: str = "", colour="black") -> None:
    """One image (C, H, W) in [-1, 1], grey for one channel, its first three channels as colours otherwise."""
    picture = ((image.detach().cpu().float().clamp(-1, 1) + 1) / 2).numpy()
    if len(picture) < 3:
        axis.imshow(picture[0], cmap="gray", vmin=0, vmax=1)
    else:
        axis.imshow(picture[:3].transpose(1, 2, 0))
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=9, pad=2, color=colour)


def pair_grid(
    image: Tensor, label: Tensor | None, names: Sequence[str], columns: int = 10, title: str = "",
    wrong: Tensor | None = None,
) -> Figure:  # fmt: skip
    """Images (N, C, H, W) in [-1, 1] with the names of their labels (N,) above them, if they have any.

    `columns` images stand in a row; labels that are `wrong`, (N,) bool, are printed in red.
    """
    columns = min(columns, len(image))
    rows = -(-len(image) // columns)
    titles = [""] * len(image) if label is None else [textwrap.fill(names[y], 10) for y in label.tolist()]
    height = 0.9 + 0.14 * max(text.count("\n") for text in titles)
    figure, axes = panels(rows, columns, (0.72 * columns, height * rows + 0.35 * bool(title)), title)
    for axis in axes.flat[len(image) :]:
        axis.set_axis_off()
    for k, (axis, x, text) in enumerate(zip(axes.flat, image, titles, strict=False)):
        show_image(axis, x, text, _CYCLE[3] if wrong is not None and wrong[k] else COLOURS["label"])
    return figure


def loss_curves(history: Sequence[Mapping[str, float]], title: str = "") -> Figure:
    """The terms of the training loss in `Trainer.history` against the step, one panel each: their units differ."""
    terms = [name for name in history[0] if name not in ("step", "seconds", "total", "gradient")]
    figure, axes = panels(1, len(terms), (3.1 * len(terms), 2.6), title)
    steps = [row["step"] for row in history]
    for axis, name in zip(axes.flat, terms, strict=True):
        axis.plot(steps, [row[name] for row in history], color=COLOURS.get(name))
        unit = "nats" if name == "label" else "mean square"
        axis.set(xlabel="step", ylabel=f"{name} ({unit})", ylim=(0, None))
    return figure


def forward_picture(process: ForwardProcess, codes: Mapping[str, Tensor], steps: Sequence[int], noise: Tensor) -> Figure:
    """How one example enters the diffusion space: what each modality adds, their sum m_t, and the noisy z_t.

    Rows are W_t E(x) of each code (1, C, H, W), m_t and z_t, on the same grey scale; columns are steps, with the same noise.
    """
    rows = [f"$W_t\\,E$({name})" for name in codes] + ["$m_t$ (sum)", "$z_t$ (noisy)"]
    figure, axes = panels(len(rows), len(steps), (1.05 * len(steps) + 1, 1.05 * len(rows)))
    for column, t in enumerate(steps):
        parts = [process.at(t, code).W[name] * code for name, code in codes.items()]
        z, _ = process.diffuse(codes, t, noise)
        for axis, picture in zip(axes[:, column], [*parts, sum(parts), z], strict=True):
            axis.imshow(picture[0, 0].cpu(), cmap="gray", vmin=-2, vmax=2)
            axis.set(xticks=[], yticks=[], frame_on=False)
        axes[0, column].set_title(f"t = {t}", fontsize=9)
    for axis, row, name in zip(axes[:, 0], rows, [*codes, None, None], strict=True):
        axis.set_ylabel(row, rotation=0, ha="right", va="center", color=COLOURS.get(name, "black"))
    return figure


def curve_panels(process: ForwardProcess, title: str = "") -> Figure:
    """Cumulative weights W_t, the injected weights w_t they imply, and the signal-to-noise ratio of each modality."""
    figure, ((cumulative, injected, ratio),) = panels(1, 3, (9, 2.4), title)
    for name in process.names:
        cumulative.plot(process.cumulative(name), color=COLOURS.get(name), label=name)
    cumulative.set(xlabel="step t", ylabel="cumulative $W_t$")
    cumulative.legend(frameon=False)
    injection(injected, ratio, process, 1000)
    injected.set_ylabel("injected $w_t$ (1/1000)")
    return figure


def injection(injected: Axes, ratio: Axes, process: ForwardProcess, scale: float = 1.0) -> None:
    """On two axes, the injected weights w_t, times a scale, and the signal-to-noise ratio of each modality."""
    for name in process.names:
        look, snr = {"label": name, "color": COLOURS.get(name)}, process.snr(name)
        injected.plot(range(1, process.steps + 1), scale * process.injected(name)[1:], **look)
        ratio.plot(snr.log().where(snr > 0, float("nan")), **look)
    injected.set(xlabel="step t", ylabel="injected $w_t$")
    ratio.set(xlabel="step t", ylabel="log SNR (nats)")


def bound_terms(bound: Bound, title: str = "") -> Figure:
    """The terms of a bound as a cascade: what each adds to the cost of an example, and the cost they add up to.

    A read-out that gains nats (a density) goes to the left.
    """
    rows = [("prior", bound.prior, "0.6"), ("diffusion", bound.diffusion, COLOURS["denoise"])]
    rows += [(f"read {name}", -value, COLOURS.get(name)) for name, value in bound.readout.items()]
    figure, ((axis,),) = panels(1, 1, (7.5, 0.42 * len(rows) + 1.2))
    left = 0.0
    for k, (_, value, colour) in enumerate(rows):
        axis.barh(k, value, left=left, color=colour)
        axis.annotate(f" {value:+.3f} ", (max(left, left + value), k), va="center", fontsize=9)
        left += value
    axis.barh(len(rows), left, color=COLOURS["total"])
    axis.annotate(f" {left:.3f} ± {bound.stderr:.3f} ", (max(left, 0.0), len(rows)), va="center", fontsize=9)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows) + 1), [name for name, *_ in rows] + ["cost = -bound"])
    axis.invert_yaxis()
    axis.use_sticky_edges = False
    axis.margins(x=0.12)
    axis.set(xlabel="nats per example", title=title)
    return figure


def cloud(axis: Axes, points: Tensor, label: Tensor, title: str = "", reach: float = 4.0) -> None:
    """Points (N, 2) coloured by their label (N,), at most as many as `CLASSES`, on axes that are always -reach to reach."""
    axis.scatter(*points.detach().cpu().T, s=3, c=[CLASSES[k] for k in label.tolist()])
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, fontsize=10)


def trajectory(states: Sequence[Tensor], steps: Sequence[int], title: str = "") -> Figure:
    """The first example of a few states (B, C, H, W) of one chain, left to right, on a scale from -2 to 2."""
    return picture_rows({"": torch.stack([z[0] for z in states]) / 2}, [f"t = {t}" for t in steps], title)


def error_bars(axis: Axes, x: Iterable[float], cells: Iterable[Mapping], **look) -> None:
    """Means over seeds at places x, of cells {"mean", "stderr"} of a result file, with standard errors as bars.

    A single seed has none. `look` is options of `Axes.errorbar`.
    """
    cells = list(cells)
    mean, error = [cell["mean"] for cell in cells], [cell["stderr"] or 0.0 for cell in cells]
    axis.errorbar(list(x), mean, error, **{"marker": "o", "markersize": 3, "capsize": 2} | look)


def differences(axis: Axes, rows: Mapping[str, Difference | None], xlabel: str, less: bool | None = None, **look) -> None:
    """Paired differences, a row each, with standard errors as bars, around 0: a full dot is clear, an open one is not.

    How many pairs there are is added to the label of the axis, with the unit and what is better. A single pair has no bar,
    None is an empty row. Where `less` says whether lower is better, what is worse is red.
    """
    for k, difference in enumerate(rows.values()):
        if difference is not None:
            colour = _CYCLE[3 if less is not None and (difference.mean < 0) != less else 0]
            dot = {"marker": "o", "color": colour, "mfc": colour if difference.clear else "white", "capsize": 2}
            axis.errorbar(difference.mean, k, xerr=difference.stderr, **dot | look)
    axis.axvline(0, color="black", linewidth=0.8)
    pairs = " or ".join(str(n) for n in sorted({difference.n for difference in rows.values() if difference}))
    axis.set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.5))
    axis.set_xlabel(f"{xlabel}\n(n = {pairs})")


def difference_panels(found: Mapping[str, Mapping[str, Difference]], less: Collection[str] = (), title: str = "") -> Figure:
    """`differences` of several figures, {figure: {what is compared: Difference}}, with the same rows in each panel.

    `less` names the figures of which lower is better.
    """
    rows = list(dict.fromkeys(row for column in found.values() for row in column))
    figure, (axes,) = panels(1, len(found), (1.2 + 1.9 * len(found), 1.0 + 0.27 * len(rows)), title)
    for axis, (name, column) in zip(axes, found.items(), strict=True):
        better = "lower" if name in less else "higher"
        label = f"{textwrap.fill(name, 22)}\n{better} is better"
        differences(axis, {row: column.get(row) for row in rows}, label, name in less)
        axis.xaxis.label.set_size(8)
        axis.tick_params(labelsize=8)
        axis.locator_params(axis="x", nbins=4)
        axis.label_outer()
    return figure


def picture_rows(rows: Mapping[str, Tensor], titles: Sequence[str] = (), title: str = "") -> Figure:
    """Pictures of the same examples below each other: a row for each kind, a column for each example.

    Rows are {what it is, or "": (N, C, H, W) in [-1, 1], or a mask (N, 1, H, W) bool}; the titles stand above the columns.
    """
    columns = min(len(picture) for picture in rows.values())
    size = (0.78 * columns + 1.2 * any(rows), 0.8 * len(rows) + 0.3 * bool(title) + 0.2 * bool(titles))
    figure, axes = panels(len(rows), columns, size, title)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=False):
            show_image(axis, picture.float() * 2 - 1 if picture.dtype == torch.bool else picture)
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    for axis, text in zip(axes[0], titles, strict=False):
        axis.set_title(text, fontsize=8, pad=2)
    return figure


def coloured(classes: Tensor) -> Tensor:
    """A class at each pixel, (N, H, W) ids, as a picture (N, 3, H, W) in [-1, 1]: 0 nearly black, others a colour each."""
    colours = torch.tensor([to_rgb(colour) for colour in class_colours(int(classes.max()) + 1)])
    return (2 * colours[classes.cpu()] - 1).movedim(-1, 1)


def class_colours(n: int) -> list[str]:
    """Colours of n classes, "#rrggbb": the first nearly black."""
    return ["#1a1a1a", *sns.color_palette("colorblind", n - 1).as_hex()]


def save_grid(drawn: Mapping[str, Tensor], labels: Mapping[str, Sequence[str]], path: str | Path) -> None:
    """Write what `sample` drew as a picture file, whole or not at all: a grid for one kind of picture, else a row for each.

    `labels` are {name of a label: its class names}; the file's ending says the format, PNG without one (ValueError for one
    that is not known).
    """
    style()
    pictures = {name: value if value.ndim == 4 else coloured(value) for name, value in drawn.items() if value.ndim >= 3}
    label, names = next(iter(labels.items()), (None, ()))
    if len(pictures) == 1:
        figure = pair_grid(*pictures.values(), drawn.get(label), names)
    else:
        rows = {name: v.bool() if set(v.unique().tolist()) <= {0.0, 1.0} else v for name, v in pictures.items()}
        figure = picture_rows(rows, [names[y] for y in drawn[label].tolist()] if label else ())
    data = io.BytesIO()
    figure.savefig(data, format=Path(path).suffix[1:] or "png")
    plt.close(figure)
    write_atomic(Path(path), data.getvalue())


def gap_bars(gaps: Mapping[str, GaussianGap], title: str = "") -> Figure:
    """Where bounds fall short: a bar for each, from the bound up to the log-evidence, made of the terms of the gap.

    The number left of a bar is the bound, a black line at its right end the log-evidence.
    """
    terms = {"prior": 7, "moving_target": 2, "history": 5, "factorisation": 4, "reverse": 8}
    figure, ((axis,),) = panels(1, 1, (8.5, 0.5 * len(gaps) + 1.4), title)
    for row, gap in enumerate(gaps.values()):
        right = gap.log_evidence
        axis.plot([right, right], [row - 0.42, row + 0.42], color="black", linewidth=2)
        for term, colour in terms.items():
            value = getattr(gap, term)
            label = term.replace("_", " ") if row == 0 else None
            axis.barh(row, -value, left=right, height=0.7, color=_CYCLE[colour], label=label)
            right -= value
        axis.text(right, row, f"{gap.bound:.3f}  ", ha="right", va="center", fontsize=9)
    low, high = min(gap.bound for gap in gaps.values()), max(gap.log_evidence for gap in gaps.values())
    axis.set(yticks=range(len(gaps)), yticklabels=list(gaps), xlabel="nats (black line: log-evidence; number: bound)")
    axis.set_xlim(low - 0.2 * (high - low), high + 0.03 * (high - low))
    axis.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=len(terms), frameon=False, fontsize=9)
    return figure
