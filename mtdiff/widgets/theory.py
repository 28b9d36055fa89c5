"""Boards over exact models: clouds, curves, bounds, rules, gaps."""

from collections.abc import Callable, Mapping

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mtdiff.datasets import MIXTURE
from mtdiff.elbo import elbo
from mtdiff.exact import LabelledMixture, linear_gaussian_gap
from mtdiff.metrics import energy_distance
from mtdiff.plots import COLOURS, bound_terms, cloud, gap_bars, injection, panels
from mtdiff.process import ForwardProcess
from mtdiff.sampling import SAMPLERS, sample
from mtdiff.schedules import NoiseSchedule, fade_in
from mtdiff.widgets.base import Board


def draw_cloud(process: ForwardProcess, codes: Mapping[str, Tensor], label: Tensor, t: int = 0, seed: int = 0) -> Figure:
    """The cloud of z_t in the plane, of codes {name: (N, 2)}, coloured by label; signal and noise are in the title."""
    z, _ = process.diffuse(codes, t, generator=torch.Generator().manual_seed(seed))
    signal, noise = (float(part[0]) for part in process.at(t, z).level)
    figure, ((axis,),) = panels(1, 1, (3.4, 3.6))
    cloud(axis, z, label, f"$z_{{{t}}}$: signal {signal:.2f}, noise {noise:.2f}")
    return figure


cloud_slider = Board(
    draw_cloud, "The cloud of z at step {t}", text={"t": "step t"}, live=True,
    t=lambda process, codes, label: (0, 0, process.steps),
)  # fmt: skip


def _mixture(schedule: NoiseSchedule, weight) -> LabelledMixture:
    """The course's mixture of the plane with its exact model; the label's weight is a number or a curve."""
    return LabelledMixture(**MIXTURE, process=ForwardProcess(schedule, {"x": 1.0, "label": weight}))


def draw_curve(start: float, end: float, bend: float, steps: int = 20, n: int = 500, seed: int = 0) -> Figure:
    """What the curve W(u) = start + (end - start) u^bend of a label does: injected weights, SNR, and samples.

    The problem is the mixture of the plane with its exact model, T = 100, log-SNR 8 to -8; n samples are drawn by DDIM, and
    the last panel has the energy distance to as many true points. A bend of 1 is a straight line, a smaller one injects
    early, a larger one late.
    """
    model = _mixture(NoiseSchedule.log_snr(100, 8.0, -8.0), lambda u: start + (end - start) * u**bend)
    process, generator = model.process, torch.Generator().manual_seed(seed)
    truth, drawn = model.draw(n, generator), sample(model, n, sampler="ddim", steps=steps, generator=generator)
    figure, ((injected, ratio, axis),) = panels(1, 3, (9, 2.7), f"W from {start:g} to {end:g}, bend {bend:g}")
    injection(injected, ratio, process)
    injected.legend(frameon=False)
    distance = energy_distance(drawn["x"], truth["x"])
    cloud(axis, drawn["x"], drawn["label"], f"{steps} steps: energy distance {distance:.3f}", reach=2.5)
    return figure


curve_bender = Board(
    draw_curve, "Curves and samples for {setting}",
    start=(0.0, 0.0, 3.0, 0.1), end=(1.0, 0.0, 3.0, 0.1),
    bend=lambda: ipywidgets.FloatLogSlider(1.0, min=-1, max=1, step=0.1, description="bend", continuous_update=False),
    steps=(20, 2, 100),
)  # fmt: skip


def draw_bound(start: float, end: float, T: int = 20, low: float = -6.0, n: int = 2000, seed: int = 0) -> Figure:
    """The terms of the bound of the mixture's exact model, for a label whose weight goes from `start` to `end`.

    Of n examples with four draws each; the log-SNR goes from 6 at t = 0 to `low` at t = T.
    """
    model = _mixture(NoiseSchedule.log_snr(T, 6.0, low), fade_in(end, start))
    generator = torch.Generator().manual_seed(seed)
    bound = elbo(model, model.draw(n, generator), samples=4, generator=generator)
    return bound_terms(bound, f"W from {start:g} to {end:g}, T = {T}, log-SNR 6 to {low:g}")


bound_board = Board(
    draw_bound, "Terms of the bound for {setting}",
    text={"start": "W at 0", "end": "W at T", "T": "steps T", "low": "log-SNR end"},
    start=(0.0, 0.0, 3.0, 0.1), end=(1.0, 0.0, 3.0, 0.1), T=(20, 2, 200), low=(-6.0, -8.0, 2.0, 0.5),
)  # fmt: skip


def draw_rules(
    weight: float, curve: str = "constant", rule: str = "substitute", guidance: float = 1.0, sampler: str = "ddpm",
    steps: int = 50, label: int = 2, n: int = 500, seed: int = 0,
) -> Figure:  # fmt: skip
    """Samples of the mixture's exact model for a given label, over true points of that label.

    `weight` is the label's, at t = T where the curve is "fade-in" and not "constant"; "substitute" goes without guidance.
    The title gives the energy distance to the truth.
    """
    model = _mixture(NoiseSchedule.log_snr(200, 8.0, -8.0), fade_in(weight) if curve == "fade-in" else weight)
    generator = torch.Generator().manual_seed(seed)
    scale = 1.0 if rule == "substitute" else guidance
    options = {"rule": rule, "guidance": scale, "sampler": sampler, "steps": steps, "generator": generator}
    given = torch.full((n,), label)
    points = sample(model, n, given={"label": given}, **options)["x"]
    truth = model.means[label] + model.stds[label] * torch.randn(n, 2, dtype=torch.float64, generator=generator)
    figure, ((axis,),) = panels(1, 1, (4.2, 4.2))
    axis.scatter(*truth.T, s=4, color="0.75")
    name = rule if rule == "substitute" else f"{rule} x {guidance:g}"
    title = f"{name}, {sampler}, {steps} steps, {curve} W = {weight:g}\n"
    cloud(axis, points, given, title + f"energy distance to the truth {energy_distance(points, truth):.3f}")
    return figure


rule_board = Board(
    draw_rules, "Samples for {setting}",
    rule=["substitute", "bayes", "conditioned"], sampler=list(SAMPLERS), curve=["constant", "fade-in"],
    weight=(1.0, 0.0, 4.0, 0.25), guidance=(1.0, 0.0, 5.0, 0.5), steps=(50, 5, 200), label=(2, 0, 2),
)  # fmt: skip


def draw_gap(problem: Callable, start: float, end: float, T: int, correlation: float, own_channels: bool) -> Figure:
    """What the bound loses, and where, when modality "y" is mixed in along a straight curve (x has weight 1).

    `problem(correlation, own_channels)` gives covariance and encoders of "x" and "y"; W of y goes from `start` to `end`, the
    log-SNR from 6 to -6. A bar with the optimal reverse variance, one with the isotropic one.
    """
    covariance, encoders = problem(correlation, own_channels)
    process = ForwardProcess(NoiseSchedule.log_snr(T, 6.0, -6.0), {"x": 1.0, "y": fade_in(end, start)})
    kinds = ("optimal", "isotropic")
    gaps = {f"{kind} variance": linear_gaussian_gap(covariance, encoders, process, kind) for kind in kinds}
    lost = " and ".join(f"{gap.gap:.3f}" for gap in gaps.values())
    return gap_bars(gaps, f"W from {start:g} to {end:g}, T = {T}, correlation {correlation:g}: {lost} nats lost")


gap_board = Board(
    draw_gap, "Terms of the gap for {setting}",
    text={"start": "W at 0", "end": "W at T", "T": "steps T", "own_channels": "own channels"}, live=True,
    start=(0.1, 0.0, 2.0, 0.1), end=(1.0, 0.0, 2.0, 0.1), T=(100, 10, 1000), correlation=(0.8, 0.0, 0.95, 0.05),
    own_channels=False,
)  # fmt: skip


def draw_noised_density(model: LabelledMixture, t: int, reach: float = 3.0) -> Figure:
    """The density of z_t of a mixture on the line, and below it the best guess of x given z_t, from -reach to reach."""
    if model.space != (1,) or model.process.entering != ("x",):
        raise ValueError(f"expected x alone, on the line; got {model.process.entering} in a space {model.space}")
    z = torch.linspace(-reach, reach, 601, dtype=torch.float64)[:, None]
    signal, noise = (float(part[0]) for part in model.process.at(t, z).level)
    signal = signal * float(model.process.cumulative("x")[t])
    variance = signal**2 * model.stds**2 + noise**2  # of z_t given the component
    each = torch.exp(-0.5 * (z - signal * model.means.T) ** 2 / variance) / (2 * torch.pi * variance).sqrt()
    figure, ((density,), (guess,)) = panels(2, 1, (5.5, 4))
    density.fill_between(z[:, 0], (model.weights * each).sum(1), color=COLOURS["x"], alpha=0.4)
    guess.plot(z, model.predict(z, t).estimate["x"], color=COLOURS["x"])
    for mean in model.means.flatten().tolist():
        guess.axhline(mean, color="0.6", linestyle=":")
    title = f"t = {t}: signal {signal:.2f}, noise {noise:.2f}"
    density.set(ylabel="$q(z_t)$", xlim=(-reach, reach), ylim=(0, None), xticklabels=[], title=title)
    guess.set(xlabel="$z_t$", ylabel="$E[x\\,|\\,z_t]$", xlim=(-reach, reach), ylim=(-reach / 1.5, reach / 1.5))
    return figure


noised_density_slider = Board(
    draw_noised_density, "Density of z and best guess at step {t}", text={"t": "step t"}, live=True,
    t=lambda model: (0, 0, model.process.steps),
)  # fmt: skip
