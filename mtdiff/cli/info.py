"""mtdiff info: what a model is."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from mtdiff.cli.common import trained_model
from mtdiff.cli.own import Imports
from mtdiff.files import to_json

SAID = ("experiment", "variant", "data", "training", "provenance", "based on", "new modalities")
"""Parts of a card that are printed, in this order; the figures come last."""


@dataclass
class Info:
    """Say what a model is: its modalities and their curves, how it was trained, and how good it is."""

    model: Annotated[str, tyro.conf.Positional]  # A folder that train wrote, or the name of a shipped model.
    imports: Imports = ()

    def run(self) -> None:
        """Print the model, and its card below."""
        model = trained_model(self.model, "cpu", self.imports)
        print(model)
        for key in SAID:
            if key in model.card:
                print(f"{key}: {_short(model.card[key])}")
        for name, value in _leaves(model.card.get("metrics", {})):
            print(f"  {name}: {value:.4g}")


def _short(value: object) -> str:
    """A part of a card in one line."""
    if not isinstance(value, dict):
        return str(value)
    said = {key: each if isinstance(each, str) else to_json(each) for key, each in value.items() if each not in ({}, None)}
    return ", ".join(f"{key} {each}" for key, each in said.items())


def _leaves(metrics: dict, lead: str = "") -> list[tuple[str, float]]:
    """All numbers of nested figures, by their path."""
    found = []
    for key, value in metrics.items():
        name = f"{lead}{key}"
        found += _leaves(value, f"{name} / ") if isinstance(value, dict) else [(name, value)]
    return found
