"""The folder of a training: its newest checkpoints, its history as lines of JSON, the best model, pictures."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mtdiff.files import write_atomic
from mtdiff.reading import check_types, said

STATE, HISTORY, PROBES, BEST, SAMPLES = "training.pt", "history.jsonl", "probes.jsonl", "best", "samples"
TYPES = {"step": int, "seconds": float, "history": list[dict], "probes": list[dict], "generators": list, "torch": list}
TYPES |= dict.fromkeys(("config", "model", "ema", "optimizer", "sums"), dict[str, object])
TYPES |= dict.fromkeys(("device", "data", "architecture"), str)
"""What a state holds."""


class RunFolder:
    """Files of one training. Every file is written whole or not at all, or line by line.

    Args:
        path: the folder; made when something is written.
        keep: how many checkpoints stay: the last, and those before it as `training-STEP.pt`.

    Raises:
        ValueError: keep is less than 1.
    """

    def __init__(self, path: str | Path, keep: int = 1):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.path, self.keep = Path(path), keep
        self.state, self.best = self.path / STATE, self.path / BEST

    def __str__(self) -> str:
        return str(self.path)

    def write(self, state: Mapping, history: Sequence[Mapping], probes: Sequence[Mapping]) -> None:
        """Replace the checkpoint by a state with a "step", and the rows by those that lead to it.

        Raises:
            OSError: the folder cannot be written, or the disk is full; the last checkpoint stays.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.state, buffer.getvalue())
        if self.keep > 1:
            self._set_aside(state["step"])
        self.write_rows(history, probes)

    def read(self, device: torch.device) -> dict | None:
        """The last state, or None where there is none.

        Raises:
            ValueError: the file is damaged, or no state of a training.
        """
        if not self.state.is_file():
            return None
        try:
            with zipfile.ZipFile(self.state) as parts:  # torch packs nothing, and checks no sums
                if any(part.compress_type or part.external_attr for part in parts.infolist()) or parts.testzip():
                    raise zipfile.BadZipFile("a part of it has changed")
            state = torch.load(self.state, map_location=device, weights_only=True)
            check_types({"state": state}, {"state": dict[str, object]}, "the file")
            check_types({name: state.get(name) for name in TYPES}, TYPES, "the state")
            if not 0 <= state["step"] <= state["config"]["steps"]:
                raise ValueError(f"step {state['step']} of {state['config']['steps']}")
        except Exception as error:  # torch raises many kinds for a damaged file
            before = [path.name for path in self._older()]
            instead = f"rename {before[-1]}, the one before, to {STATE}" if before else "delete it to start again"
            raise ValueError(f"{self.state} is truncated or damaged ({said(error)}): {instead}") from None
        return state

    def write_rows(self, history: Sequence[Mapping], probes: Sequence[Mapping]) -> None:
        """Write the rows up to the saved state: those of steps that a crash took back are gone."""
        for name, rows in ((HISTORY, history), (PROBES, probes)):
            if rows or name == HISTORY:
                write_atomic(self.path / name, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def append(self, name: str, row: Mapping) -> None:
        """Add a row to `HISTORY` or `PROBES`."""
        with (self.path / name).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def picture(self, step: int) -> Path:
        """Where a picture of this step goes; the folder is there."""
        folder = self.path / SAMPLES
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{step:07d}.png"

    def _older(self) -> list[Path]:
        """Checkpoints with a step in their name, the oldest first."""
        return sorted(self.path.glob(f"{self.state.stem}-*{self.state.suffix}"))

    def _set_aside(self, step: int) -> None:
        """Give this checkpoint a second name that the next one will not take, and remove the oldest."""
        mine = self.state.with_stem(f"{self.state.stem}-{step:07d}")
        mine.unlink(missing_ok=True)
        try:
            os.link(self.state, mine)
        except OSError:  # a file system without links
            shutil.copyfile(self.state, mine)
        for path in self._older()[: -self.keep]:
            path.unlink()
