"""What a `Trainer` trains and commands save, load and sample: MT-Diffusion, and its neighbours that are no such model."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from mtdiff.files import save, to_json
from mtdiff.recorded import Recorded


class Model(Recorded, nn.Module):
    """A model of several modalities with a card, in a folder as `mtdiff.load` reads it.

    Attributes:
        card: what people should know (data, seed, steps, hardware, metrics ...).
    """

    family = "model"
    card: dict

    def fingerprint(self) -> str:
        """SHA-256 of architecture, schedule and curves: equal for models that can share weights and mean the same."""
        digest = hashlib.sha256(to_json(self.architecture()).encode())
        for table in self.tables().values():
            digest.update(table.numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path, card: Mapping | None = None, half: bool = False) -> Path:
        """Write the model to a folder; see `mtdiff.files.save`."""
        return save(path, self, card, half)
