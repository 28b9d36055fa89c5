"""What all boards share: controls above the picture that they redraw, and the verdict on an exercise."""

import html
from collections.abc import Callable
from dataclasses import dataclass

import ipywidgets


def board(controls: dict[str, ipywidgets.Widget], redraw: Callable[..., None]) -> ipywidgets.Widget:
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
