"""Controls for notebooks. Every callback is a plain function that works, and is tested, without a browser."""

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ipywidgets
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mtdiff.datasets import MIXTURE, Dataset
from mtdiff.datasets.masks import MASKS, masks
from mtdiff.elbo import elbo
from mtdiff.evaluation import energy_distance, psnr, ssim
from mtdiff.exact import LabelledMixture, linear_gaussian_gap
from mtdiff.experiments import masked_image
from mtdiff.model import MTDiffusion
from mtdiff.plots import COLOURS, bound_terms, cloud, gap_bars, pair_grid, picture_rows, show, show_image
from mtdiff.process import ForwardProcess
from mtdiff.sampling import SAMPLERS, sample, sample_path
from mtdiff.schedules import NoiseSchedule, fade_in


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

    return _board(controls, redraw)


def draw_cloud(process: ForwardProcess, codes: Mapping[str, Tensor], label: Tensor, t: int = 0, seed: int = 0) -> Figure:
    """The cloud of z_t in the plane, coloured by label.

    Args:
        process: the forward process.
        codes: {name: (N, 2)}.
        label: (N,) class ids.
        t: step in 0..T.
        seed: seed of the noise.

    Returns:
        The figure; its title says how much signal and noise there are.
    """
    z, _ = process.diffuse(codes, t, generator=torch.Generator().manual_seed(seed))
    signal, noise = (float(part[0]) for part in process.level(t, z))
    figure, axis = plt.subplots(figsize=(3.4, 3.6), layout="constrained")
    cloud(axis, z, label, f"$z_{{{t}}}$: signal {signal:.2f}, noise {noise:.2f}")
    return figure


def cloud_slider(process: ForwardProcess, codes: Mapping[str, Tensor], label: Tensor) -> ipywidgets.Widget:
    """A slider over t above `draw_cloud`.

    Args:
        process: the forward process.
        codes: {name: (N, 2)}.
        label: (N,) class ids.

    Returns:
        The widget; its `.controls` are the sliders by name.
    """
    controls = {"t": ipywidgets.IntSlider(0, 0, process.steps, description="step t")}
    return _board(controls, lambda t: show(draw_cloud(process, codes, label, t), f"The cloud of z at step {t}"))


def draw_curve(start: float, end: float, bend: float, steps: int = 20, n: int = 500, seed: int = 0) -> Figure:
    """What the curve W(u) = start + (end - start) u^bend of a label does: injected weights, SNR, and samples.

    The problem is the mixture of the plane with its exact model, T = 100, log-SNR 8 to -8; the samples are drawn by DDIM.

    Args:
        start: W at t = 0.
        end: W at t = T.
        bend: 1 is a straight line, below 1 injects early, above 1 late; positive.
        steps: sampler steps.
        n: number of samples.
        seed: seed of samples and truth.

    Returns:
        The figure; the title of its last panel has the energy distance to as many true points.
    """

    def curve(u):
        return start + (end - start) * u**bend

    process = ForwardProcess(NoiseSchedule.log_snr(100, high=8.0, low=-8.0), {"x": 1.0, "label": curve})
    model = LabelledMixture(**MIXTURE, process=process)
    generator = torch.Generator().manual_seed(seed)
    truth, drawn = model.draw(n, generator), sample(model, n, sampler="ddim", steps=steps, generator=generator)
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.7), layout="constrained")
    for name in process.names:
        axes[0].plot(range(1, 101), process.injected(name)[1:], color=COLOURS[name], label=name)
        snr = process.snr(name)
        axes[1].plot(snr.log().where(snr > 0, float("nan")), color=COLOURS[name])
    axes[0].set(xlabel="step t", ylabel="injected $w_t$")
    axes[1].set(xlabel="step t", ylabel="log SNR (nats)")
    axes[0].legend(frameon=False)
    distance = energy_distance(drawn["x"], truth["x"])
    cloud(axes[2], drawn["x"], drawn["label"], f"{steps} steps: energy distance {distance:.3f}", reach=2.5)
    figure.suptitle(f"W from {start:g} to {end:g}, bend {bend:g}", fontsize=11)
    return figure


def curve_bender() -> ipywidgets.Widget:
    """Sliders that bend a label's curve over `draw_curve`.

    Returns:
        The widget; its `.controls` are the sliders by name.
    """
    slow = {"continuous_update": False}
    controls = {
        "start": ipywidgets.FloatSlider(0.0, min=0.0, max=3.0, step=0.1, description="start", **slow),
        "end": ipywidgets.FloatSlider(1.0, min=0.0, max=3.0, step=0.1, description="end", **slow),
        "bend": ipywidgets.FloatLogSlider(1.0, min=-1, max=1, step=0.1, description="bend", **slow),
        "steps": ipywidgets.IntSlider(20, 2, 100, description="steps", **slow),
    }
    return _board(controls, lambda **setting: show(draw_curve(**setting), f"Curves and samples for {setting}"))


def draw_bound(start: float, end: float, T: int = 20, low: float = -6.0, n: int = 2000, seed: int = 0) -> Figure:
    """The terms of the bound of the mixture's exact model, for a label whose weight goes from `start` to `end`.

    Args:
        start: W at t = 0.
        end: W at t = T.
        T: number of steps.
        low: log-SNR at t = T, below 6 (that at t = 0).
        n: number of examples, with four draws each.
        seed: seed of examples and draws.

    Returns:
        The figure; its title repeats the settings.
    """
    process = ForwardProcess(NoiseSchedule.log_snr(T, 6.0, low), {"x": 1.0, "label": fade_in(end, start)})
    model = LabelledMixture(**MIXTURE, process=process)
    generator = torch.Generator().manual_seed(seed)
    bound = elbo(model, model.draw(n, generator), samples=4, generator=generator)
    return bound_terms(bound, f"W from {start:g} to {end:g}, T = {T}, log-SNR 6 to {low:g}")


def bound_board() -> ipywidgets.Widget:
    """Sliders over `draw_bound`.

    Returns:
        The widget; its `.controls` are the sliders by name.
    """
    slow = {"continuous_update": False}
    controls = {
        "start": ipywidgets.FloatSlider(0.0, min=0.0, max=3.0, step=0.1, description="W at 0", **slow),
        "end": ipywidgets.FloatSlider(1.0, min=0.0, max=3.0, step=0.1, description="W at T", **slow),
        "T": ipywidgets.IntSlider(20, 2, 200, description="steps T", **slow),
        "low": ipywidgets.FloatSlider(-6.0, min=-8.0, max=2.0, step=0.5, description="log-SNR end", **slow),
    }
    return _board(controls, lambda **setting: show(draw_bound(**setting), f"Terms of the bound for {setting}"))


def draw_rules(
    weight: float,
    curve: str = "constant",
    rule: str = "substitute",
    guidance: float = 1.0,
    sampler: str = "ddpm",
    steps: int = 50,
    label: int = 2,
    n: int = 500,
    seed: int = 0,
) -> Figure:
    """Samples of the mixture's exact model for a given label, over true points of that label.

    Args:
        weight: the label's weight, at t = T if it fades in.
        curve: "constant" or "fade-in".
        rule: "substitute", "bayes" or "conditioned".
        guidance: scale of "bayes" and "conditioned"; "substitute" has none and goes without.
        sampler: as in `mtdiff.sample`.
        steps: sampler steps.
        label: the class that is asked for.
        n: how many points.
        seed: seed of the noise.

    Returns:
        The figure; its title repeats the settings and gives the energy distance to the truth.
    """
    process = ForwardProcess(
        NoiseSchedule.log_snr(200, 8.0, -8.0), {"x": 1.0, "label": fade_in(weight) if curve == "fade-in" else weight}
    )
    model, generator = LabelledMixture(**MIXTURE, process=process), torch.Generator().manual_seed(seed)
    scale = 1.0 if rule == "substitute" else guidance
    options = {"rule": rule, "guidance": scale, "sampler": sampler, "steps": steps, "generator": generator}
    given = torch.full((n,), label)
    points = sample(model, n, given={"label": given}, **options)["x"]
    noise = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    truth = model.means[label] + model.stds[label] * noise
    figure, axis = plt.subplots(figsize=(4.2, 4.2), layout="constrained")
    axis.scatter(*truth.T, s=4, color="0.75")
    name = rule if rule == "substitute" else f"{rule} x {guidance:g}"
    title = f"{name}, {sampler}, {steps} steps, {curve} W = {weight:g}\n"
    cloud(axis, points, given, title + f"energy distance to the truth {energy_distance(points, truth):.3f}")
    return figure


def rule_board() -> ipywidgets.Widget:
    """Controls over `draw_rules`.

    Returns:
        The widget; its `.controls` are the controls by name.
    """
    slow = {"continuous_update": False}
    controls = {
        "rule": ipywidgets.Dropdown(options=["substitute", "bayes", "conditioned"], description="rule"),
        "sampler": ipywidgets.Dropdown(options=list(SAMPLERS), description="sampler"),
        "curve": ipywidgets.Dropdown(options=["constant", "fade-in"], description="curve"),
        "weight": ipywidgets.FloatSlider(1.0, min=0.0, max=4.0, step=0.25, description="weight", **slow),
        "guidance": ipywidgets.FloatSlider(1.0, min=0.0, max=5.0, step=0.5, description="guidance", **slow),
        "steps": ipywidgets.IntSlider(50, 5, 200, description="steps", **slow),
        "label": ipywidgets.IntSlider(2, 0, 2, description="label", **slow),
    }
    return _board(controls, lambda **setting: show(draw_rules(**setting), f"Samples for {setting}"))


def _board(controls: dict[str, ipywidgets.Widget], redraw: Callable[..., None]) -> ipywidgets.Widget:
    """Controls above the picture that they redraw."""
    board = ipywidgets.VBox([*controls.values(), ipywidgets.interactive_output(redraw, controls)])
    board.controls = controls
    return board


@dataclass(frozen=True)
class Verdict:
    """The result of an exercise, shown as a green line where it is solved, an amber one with a hint where it is not.

    Attributes:
        solved: whether it is; also the verdict's truth value.
        message: what was found, or what to look at.
    """

    solved: bool
    message: str

    def __bool__(self) -> bool:
        return self.solved

    def _repr_html_(self) -> str:
        sign, colour, word = ("&#10003;", "#1a7f37", "Solved") if self.solved else ("&#9675;", "#9a6700", "Not yet")
        return f'<p style="color:{colour}"><b>{sign} {word}.</b> {html.escape(self.message)}</p>'


def draw_gap(problem: Callable, start: float, end: float, T: int, correlation: float, own_channels: bool) -> Figure:
    """What the bound loses, and where, when modality "y" is mixed in along a straight curve (x has weight 1).

    Args:
        problem: function of (correlation, own_channels) that gives covariance and encoders of "x" and "y".
        start: W of y at t = 0.
        end: W of y at t = T.
        T: number of steps; log-SNR goes from 6 to -6.
        correlation: between the modalities, as `problem` understands it.
        own_channels: whether y has channels of its own.

    Returns:
        The figure: a bar with the optimal reverse variance, one with the isotropic one.
    """
    covariance, encoders = problem(correlation, own_channels)
    process = ForwardProcess(NoiseSchedule.log_snr(T, 6.0, -6.0), {"x": 1.0, "y": fade_in(end, start)})
    kinds = ("optimal", "isotropic")
    gaps = {f"{kind} variance": linear_gaussian_gap(covariance, encoders, process, kind) for kind in kinds}
    lost = " and ".join(f"{gap.gap:.3f}" for gap in gaps.values())
    return gap_bars(gaps, f"W from {start:g} to {end:g}, T = {T}, correlation {correlation:g}: {lost} nats lost")


def gap_board(problem: Callable) -> ipywidgets.Widget:
    """Sliders over `draw_gap`.

    Args:
        problem: as in `draw_gap`.

    Returns:
        The widget; its `.controls` are the sliders by name.
    """
    controls = {
        "start": ipywidgets.FloatSlider(0.1, min=0.0, max=2.0, step=0.1, description="W at 0"),
        "end": ipywidgets.FloatSlider(1.0, min=0.0, max=2.0, step=0.1, description="W at T"),
        "T": ipywidgets.IntSlider(100, 10, 1000, description="steps T"),
        "correlation": ipywidgets.FloatSlider(0.8, min=0.0, max=0.95, step=0.05, description="correlation"),
        "own_channels": ipywidgets.Checkbox(False, description="own channels"),
    }
    return _board(controls, lambda **setting: show(draw_gap(problem, **setting), f"Terms of the gap for {setting}"))


def draw_noised_density(model: LabelledMixture, t: int, reach: float = 3.0) -> Figure:
    """The density of z_t, and below it the best guess of x given z_t, on the line.

    Args:
        model: a mixture on the line (d = 1) whose label has weight 0.
        t: step in 0..T.
        reach: the axes show -reach to reach.

    Returns:
        The figure; its title says how much signal and noise there are.

    Raises:
        ValueError: the model is not on the line, or its label is in z.
    """
    if model.space != (1,) or model.process.entering != ("x",):
        raise ValueError(f"expected x alone, on the line; got {model.process.entering} in a space {model.space}")
    z = torch.linspace(-reach, reach, 601, dtype=torch.float64)[:, None]
    signal, noise = (float(part[0]) for part in model.process.level(t, z))
    signal = signal * float(model.process.cumulative("x")[t])
    variance = signal**2 * model.stds**2 + noise**2  # of z_t given the component
    each = torch.exp(-0.5 * (z - signal * model.means.T) ** 2 / variance) / (2 * torch.pi * variance).sqrt()
    figure, axes = plt.subplots(2, 1, figsize=(5.5, 4), sharex=True, layout="constrained")
    axes[0].fill_between(z[:, 0], (model.weights * each).sum(1), color=COLOURS["x"], alpha=0.4)
    axes[1].plot(z, model.predict(z, t).estimate["x"], color=COLOURS["x"])
    for mean in model.means.flatten().tolist():
        axes[1].axhline(mean, color="0.6", linestyle=":")
    axes[0].set(ylabel="$q(z_t)$", ylim=(0, None), title=f"t = {t}: signal {signal:.2f}, noise {noise:.2f}")
    axes[1].set(xlabel="$z_t$", ylabel="$E[x\\,|\\,z_t]$", xlim=(-reach, reach), ylim=(-reach / 1.5, reach / 1.5))
    return figure


def noised_density_slider(model: LabelledMixture) -> ipywidgets.Widget:
    """A slider over t above `draw_noised_density`.

    Args:
        model: a mixture on the line (d = 1) whose label has weight 0.

    Returns:
        The widget; its `.controls` are the sliders by name.
    """
    controls = {"t": ipywidgets.IntSlider(0, 0, model.process.steps, description="step t")}
    return _board(controls, lambda t: show(draw_noised_density(model, t), f"Density of z and best guess at step {t}"))


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
    drawn = path[-1][2].params["target"].clamp(-1, 1)
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
    return _board(controls, lambda **setting: show(draw_transition(model, pairs, **setting), f"A transition for {setting}"))


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

    return _board(controls, redraw)
