"""Controls for notebooks. Every callback is a plain function that works, and is tested, without a browser."""

import html
from dataclasses import dataclass

import ipywidgets
import torch
from matplotlib.figure import Figure

from mtdiff.model import MTDiffusion
from mtdiff.plots import pair_grid, show
from mtdiff.sampling import sample


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

    box = ipywidgets.VBox([*controls.values(), ipywidgets.interactive_output(redraw, controls)])
    box.controls = controls
    return box


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
