"""mtdiff info: what a model is."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from mtdiff.cards import facts, figures
from mtdiff.cli.common import trained_model
from mtdiff.cli.own import Imports


@dataclass
class Info:
    """Say what a model is: its modalities and their curves, how it was trained, and how good it is."""

    model: Annotated[str, tyro.conf.Positional]  # A folder that train wrote, or the name of a shipped model.
    imports: Imports = ()

    def run(self) -> None:
        """Print the model, and its card below."""
        model = trained_model(self.model, "cpu", self.imports)
        print(model)
        for line in facts(model.card):
            print(line)
        for name, value in figures(model.card.get("metrics", {})).items():
            print(f"  {name}: {value:.4g}")
