"""What all boards share: controls above the picture that they redraw, and the verdict on an exercise."""

import html
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mtdiff.optional import needed
from mtdiff.plots import show

with needed("mtdiff.widgets"):
    import ipywidgets
    from IPython.display import clear_output
    from matplotlib.figure import Figure


class Board:
    """Controls above the picture that they redraw: `board(*shown)` is a widget that shows `draw(*shown, **setting)`.

    Args:
        draw: function of what is shown, and of the value of every control by name.
        alt: what the figure shows, in words; arguments of `draw`, or all of the {setting}, stand in it in braces.
        text: {name of a control: what is written beside it}, where that is not the name.
        live: whether sliders redraw while they move, and not only when they are let go.
        **controls: {argument of `draw`: its control}. A bool is a box; a list a choice; (value, low, high, step), the step 1
            if it is left out, a slider, of whole numbers where the value is one; (value, [choices]) a slider over choices.
            A function makes one of these, or a widget, of what is shown.
    """

    def __init__(self, draw: Callable[..., Figure], alt: str, text: Mapping[str, str] | None = None, live=False, **controls):
        self.draw, self.alt, self.text, self.live, self.controls = draw, alt, text or {}, live, controls

    def __call__(self, *shown, **options) -> ipywidgets.Widget:
        """The widget; its `.controls` are the controls by name. Options are arguments of `draw` without a control.

        While a picture is drawn the old one is faint, below the word "drawing"; where a setting cannot be drawn it stays so,
        below the reason.
        """
        controls = {name: self._control(name, s(*shown) if callable(s) else s) for name, s in self.controls.items()}
        picture, said = ipywidgets.Output(), ipywidgets.HTML()
        faint = f"<style>.mtdiff-{picture.model_id} {{opacity: 0.35}}</style>"

        def redraw(_=None) -> None:
            setting = {name: control.value for name, control in controls.items()}
            call = inspect.signature(self.draw).bind(*shown, **options, **setting)
            call.apply_defaults()
            said.value = f"{faint}drawing ..."
            with picture:
                clear_output(wait=True)
                try:
                    figure = self.draw(*shown, **options, **setting)
                except (ValueError, KeyError, FloatingPointError) as error:
                    said.value = f"{faint}{html.escape(str(error.args[0]))}"
                else:
                    show(figure, self.alt.format(setting=setting, **call.arguments))
                    said.value = "&nbsp;"

        picture.add_class(f"mtdiff-{picture.model_id}")
        for control in controls.values():
            control.tooltip = getattr(control, "description", "")  # else JupyterLab shows "null" where the mouse rests
            control.observe(redraw, "value")
        redraw()
        widget = ipywidgets.VBox([*controls.values(), said, picture])
        widget.controls, widget.said = controls, said
        return widget

    def _control(self, name: str, control) -> ipywidgets.Widget:
        text, moves = {"description": self.text.get(name, name)}, {"continuous_update": self.live}
        match control:
            case bool():
                return ipywidgets.Checkbox(control, **text)
            case list():
                return ipywidgets.Dropdown(options=control, **text)
            case value, list() as choices:
                return ipywidgets.SelectionSlider(options=choices, value=value, **text, **moves)
            case value, low, high, *step:
                slider = ipywidgets.IntSlider if isinstance(value, int) else ipywidgets.FloatSlider
                return slider(value, min=low, max=high, step=(*step, 1)[0], **text, **moves)
        return control


@dataclass(frozen=True)
class Verdict:
    """Whether an exercise is solved, and what was found or is to be looked at, shown as a green line or an amber one."""

    solved: bool
    message: str

    def __bool__(self) -> bool:
        return self.solved

    def _repr_html_(self) -> str:
        sign, colour, word = ("&#10003;", "#1a7f37", "Solved") if self.solved else ("&#9675;", "#9a6700", "Not yet")
        return f'<p style="color:{colour}"><b>{sign} {word}.</b> {html.escape(self.message)}</p>'
