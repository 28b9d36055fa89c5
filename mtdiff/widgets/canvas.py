"""A picture to paint with the mouse."""

from collections.abc import Sequence
from pathlib import Path

import traitlets
from torch import Tensor

from mtdiff.optional import needed
from mtdiff.plots import class_colours

with needed("mtdiff.widgets"):
    import anywidget


class Canvas(anywidget.AnyWidget):
    """Paint a class at each pixel: `value` is the list of class ids, row by row, or empty where nothing is painted.

    Raises:
        traitlets.TraitError: a value of another length, or with other classes.
    """

    _esm = Path(__file__).with_name("canvas.js")
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    colours = traitlets.List(traitlets.Unicode()).tag(sync=True)
    size = traitlets.Int().tag(sync=True)
    value = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(self, names: Sequence[str], size: int, **more):
        super().__init__(names=list(names), size=size, colours=class_colours(len(names)), **more)

    @traitlets.validate("value")
    def _fits(self, proposal) -> list[int]:
        value = proposal["value"]
        if value and (len(value) != self.size**2 or not 0 <= min(value) <= max(value) < len(self.names)):
            raise traitlets.TraitError(f"a painting has {self.size**2} classes in 0..{len(self.names) - 1}")
        return value

    def paint(self, classes: Tensor) -> None:
        """Show a map of classes (H, W)."""
        self.value = classes.flatten().tolist()
