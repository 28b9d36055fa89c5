"""Controls for notebooks. Every callback is a plain function that works, and is tested, without a browser."""

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ipywidgets
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mtdiff.datasets import MIXTURE
from mtdiff.evaluation import energy_distance
from mtdiff.exact import LabelledMixture
from mtdiff.model import MTDiffusion
from mtdiff.plots import COLOURS, cloud, pair_grid, show
from mtdiff.process import ForwardProcess
from mtdiff.sampling import sample
from mtdiff.schedules import NoiseSchedule


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
