"""mtdiff export: a trained model for elsewhere."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from mtdiff.cli.common import trained_model
from mtdiff.cli.own import Imports
from mtdiff.export import export_onnx


@dataclass
class Export:
    """Write what a model predicts as an ONNX graph, and the tables that a sampler needs as JSON beside it."""

    FILES: ClassVar = ("out",)

    model: Annotated[str, tyro.conf.Positional]  # A folder that train wrote, or the name of a shipped model.
    out: Annotated[Path, tyro.conf.Positional]  # The file to write, NAME.onnx.
    imports: Imports = ()

    def run(self) -> None:
        """Write both, and say what goes in and out."""
        export_onnx(trained_model(self.model, "cpu", self.imports), self.out)
        tables = self.out.with_suffix(".json")
        about = json.loads(tables.read_text())
        print(f"{self.out}: opset {about['opset']}, {self.out.stat().st_size / 1e6:.1f} MB; tables for sampling in {tables}")
        for which in ("inputs", "outputs"):
            parts = [f"{name} ({', '.join(map(str, each['shape']))})" for name, each in about[which].items()]
            print(f"{which}: {', '.join(parts)}")
