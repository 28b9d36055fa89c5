"""Boards over exact models: clouds, curves, bounds, rules, gaps."""

from collections.abc import Callable, Mapping

import ipywidgets
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mtdiff.datasets import MIXTURE
from mtdiff.elbo import elbo
from mtdiff.exact import LabelledMixture, linear_gaussian_gap
from mtdiff.metrics import energy_distance
from mtdiff.plots import COLOURS, bound_terms, cloud, gap_bars, show
from mtdiff.process import ForwardProcess
from mtdiff.sampling import SAMPLERS, sample
from mtdiff.schedules import NoiseSchedule, fade_in
from mtdiff.widgets.base import board


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
    signal, noise = (float(part[0]) for part in process.at(t, z).level)
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
    return board(controls, lambda t: show(draw_cloud(process, codes, label, t), f"The cloud of z at step {t}"))


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
    return board(controls, lambda **setting: show(draw_curve(**setting), f"Curves and samples for {setting}"))


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
    return board(controls, lambda **setting: show(draw_bound(**setting), f"Terms of the bound for {setting}"))


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
    return board(controls, lambda **setting: show(draw_rules(**setting), f"Samples for {setting}"))


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
    return board(controls, lambda **setting: show(draw_gap(problem, **setting), f"Terms of the gap for {setting}"))


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
    signal, noise = (float(part[0]) for part in model.process.at(t, z).level)
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
    return board(controls, lambda t: show(draw_noised_density(model, t), f"Density of z and best guess at step {t}"))
