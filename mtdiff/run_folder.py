"""The folder of a training: its newest checkpoints, its history as lines of JSON, the best model, pictures."""

import contextlib
import io
import os
import platform
import shlex
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from mtdiff import distributed
from mtdiff.files import CARD, WEIGHTS, clear_unfinished, to_json, write_atomic
from mtdiff.reading import check_types, said

try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None

STATE, HISTORY, PROBES, BEST, SAMPLES, LOCK = (
    "training.pt", "history.jsonl", "probes.jsonl", "best", "samples", ".lock"
)  # fmt: skip
TYPES = {"step": int, "seconds": float, "history": list[dict], "probes": list[dict], "lengthened": list[list[int]]}
TYPES |= dict.fromkeys(("config", "model", "ema", "optimizer", "sums", "shares"), dict[str, object])
TYPES |= dict.fromkeys(("device", "data", "architecture"), str) | dict.fromkeys(("generators", "torch", "cuda"), list)
"""What a state holds."""


class RunFolder:
    """Files of one training. Every file is written whole or not at all, or line by line; the folder is made for the first.

    Args:
        keep: how many checkpoints stay: the last, and those before it as `training-STEP.pt`.

    Attributes:
        step: of the checkpoint that was last written or read here; None: of none.
    """

    def __init__(self, path: str | Path, keep: int = 1):
        if not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep!r}: expected a whole number")
        self.path, self.keep = Path(path), keep
        self.state, self.best = self.path / STATE, self.path / BEST
        self.step: int | None = None
        self._known, self._locked, self._users = None, None, 0

    def __str__(self) -> str:
        return str(self.path)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other training out, at the latest until this process ends in whatever way; may be nested.

        Raises:
            BlockingIOError: another process is at work in the folder; the message says which.
            OSError: the folder cannot be written.
        """
        if not self._users:
            distributed.first(self._lock)
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users and self._locked:
                self._locked.close()

    def begin(self, history: Sequence[Mapping], probes: Sequence[Mapping]) -> None:
        """Write the rows before the first step, or ValueError: the checkpoint is not the last one written or read here."""
        if self.state.is_file() and self._identity() != self._known:
            text = "holds a training already, which this one does not go on from"
            raise ValueError(f"{self} {text}: call resume(), or use another folder")
        self._write_rows(history, probes)

    def write(self, state: Mapping, history: Sequence[Mapping], probes: Sequence[Mapping]) -> None:
        """Replace the checkpoint by a state, and the rows by those that lead to it; after an OSError the last one stays."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with self.writing():
            write_atomic(self.state, buffer.getvalue())
            self.step, self._known = state["step"], self._identity()
            if self.keep > 1:
                self._set_aside(state["step"])
            self._write_rows(history, probes)

    def read(self, device: torch.device) -> dict | None:
        """The last state, or None where there is none; ValueError where the file is damaged, or no state of a training."""
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
        self.step, self._known = state["step"], self._identity()
        return state

    def append(self, name: str, row: Mapping) -> None:
        """Add a row to `HISTORY` or `PROBES`."""
        with self.writing(), (self.path / name).open("a") as file:
            file.write(to_json(row) + "\n")

    def picture(self, step: int) -> Path:
        """Where a picture of this step goes; the folder is there."""
        folder = self.path / SAMPLES
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{step:07d}.png"

    def safe(self) -> str:
        """What a stop at any moment would leave, in words."""
        return f"nothing is saved in {self} yet" if self.step is None else f"step {self.step} is safe in {self}"

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Where something cannot be written, say what is safe and how to go on."""
        try:
            yield
        except PermissionError:
            raise
        except OSError as error:
            what = f"cannot write to {self} ({error.strerror})" if error.strerror else str(error)
            raise OSError(f"{what}. {self.safe()}; make room and run the same command again to go on") from None

    def _write_rows(self, history: Sequence[Mapping], probes: Sequence[Mapping]) -> None:
        """Write the rows up to the saved state: those of steps that a crash took back are gone."""
        for name, rows in ((HISTORY, history), (PROBES, probes)):
            if rows or name == HISTORY:
                write_atomic(self.path / name, "".join(to_json(row) + "\n" for row in rows).encode())

    def _lock(self) -> None:
        """Hold the lock's file open, which the system lets go of with its process, even a killed one; and clear up."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / LOCK).open("a+")
        except OSError as error:
            kind = PermissionError if isinstance(error, PermissionError) else OSError
            raise kind(f"cannot write to {self} ({error.strerror})") from None
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read() or "another process"
            file.close()
            raise BlockingIOError(f"{self} is in use by {who}. Wait for it, stop it, or use another folder") from None
        except OSError as error:
            warnings.warn(f"{self} cannot be locked ({error.strerror}): start no second training there", stacklevel=5)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}: {shlex.join(sys.argv)}")
        file.flush()
        self._locked = file
        clear_unfinished(self.path, STATE, f"{self.state.stem}-*.pt", HISTORY, PROBES, WEIGHTS, CARD)
        clear_unfinished(self.best, WEIGHTS, CARD)
        clear_unfinished(self.path / SAMPLES, "*.png")

    def _identity(self) -> tuple[int, int, int]:
        """Of the checkpoint's file: another one after every write."""
        found = self.state.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size

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
            write_atomic(mine, self.state.read_bytes())
        for path in self._older()[: -self.keep]:
            path.unlink()
