"""The files of a saved model, and writing a file whole or not at all."""

import os
import tempfile
from pathlib import Path

FORMAT = 1
WEIGHTS, CARD = "model.safetensors", "card.json"


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the new one, whatever happens in between.

    Raises:
        PermissionError: the folder cannot be written; the message names it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except PermissionError:
        raise PermissionError(f"cannot write to {path.parent}: no permission") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
