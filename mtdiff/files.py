"""The files of a saved model, JSON, and writing a file whole or not at all."""

import hashlib
import json
import math
import os
import reprlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from torch import nn

from mtdiff.reading import Allowance, check_types, hints, naming, read_json, read_weights

Network = TypeVar("Network", bound=nn.Module)

FORMAT = 1
WEIGHTS, CARD = "model.safetensors", "card.json"
OWN = ("format", "config", "sha256")
"""What a card says to the program that reads it, beside what people should know."""


def to_json(value, indent: int | None = None) -> str:
    """The text of a value as JSON, which has no number that is not finite: null stands for it."""

    def finite(part):
        if isinstance(part, Mapping):
            return {key: finite(entry) for key, entry in part.items()}
        if isinstance(part, list | tuple):
            return [finite(entry) for entry in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    return json.dumps(finite(value), indent=indent, allow_nan=False)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the new one, whatever happens in between.

    Raises:
        OSError: the folder cannot be written (PermissionError), the disk is full ...; the message names the folder.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            kind = PermissionError if isinstance(error, PermissionError) else OSError
            why = error.strerror or error
            raise kind(f"cannot write to {path.parent} ({why}): nothing was changed at {path.name}") from None
        raise


def clear_unfinished(folder: Path, *names: str) -> None:
    """Remove what is left of writes of these files that were killed. Nobody else may be writing there."""
    for name in names:
        for path in folder.glob(f".{name}.{'?' * 8}"):
            path.unlink(missing_ok=True)


def write_model(folder: Path, tensors: Mapping[str, torch.Tensor], entries: Mapping) -> None:
    """Write weights and then their card, which holds their hash: neither passes with another's.

    Raises:
        OSError: as in `write_atomic`.
    """
    weights = safetensors.torch.save(dict(tensors))
    text = to_json({**entries, "format": FORMAT, "sha256": hashlib.sha256(weights).hexdigest()}, indent=1) + "\n"
    write_atomic(folder / WEIGHTS, weights)
    write_atomic(folder / CARD, text.encode())


def check_weights(folder: Path, card: Mapping) -> None:
    """Raise ValueError where the weights are not those that the card was written with, as far as it says."""
    path, digest = folder / WEIGHTS, hashlib.sha256()
    if "sha256" not in card or not path.is_file():
        return
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    if digest.hexdigest() != card["sha256"]:
        raise ValueError(f"{path} is truncated or damaged, or of another save than its card: sha256 {digest.hexdigest()}, "
                         f"the card says {reprlib.repr(card['sha256'])}")  # fmt: skip


def save_network(path: str | Path, network: nn.Module, config: Mapping, card: Mapping) -> Path:
    """Write the weights of a small network, as float16, and a card to a folder, each file whole or not at all.

    Args:
        path: the folder; made where it does not exist.
        network: the network.
        config: arguments that build it again.
        card: what people should know.

    Returns:
        The folder.

    Raises:
        OSError: the folder cannot be written.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    write_model(Path(path), tensors, {**card, "config": {"kind": type(network).__name__, **config}})
    return Path(path)


def load_network(folder: Path, kind: type[Network], what: str) -> tuple[Network, dict]:
    """What `save_network` wrote: the network, in evaluation mode and without gradients, and its card.

    Args:
        folder: the folder.
        kind: class of the network.
        what: what people call it, for errors: "a judge".

    Returns:
        The network and the card.

    Raises:
        FileNotFoundError: there is a card but no weights.
        ValueError: the files are damaged, of another format or kind, or do not fit each other.
    """
    card = read_json(folder / CARD, f"is not {what}'s card")
    config = card.get("config")
    said = card.get("format"), config.get("kind") if isinstance(config, dict) else None
    if type(said[0]) is not int or said != (FORMAT, kind.__name__):
        wanted = f"{what}'s card of format {FORMAT} and kind {kind.__name__}"
        raise ValueError(f"{folder / CARD} is not {wanted}: format {reprlib.repr(said[0])}, config {reprlib.repr(config)}")
    config = {name: value for name, value in config.items() if name != "kind"}
    check_weights(folder, card)
    tensors = read_weights(folder / WEIGHTS)
    with naming(folder / WEIGHTS, "does not fit its card"):
        check_types(config, hints(kind), f"{what}'s card")
        with Allowance(tensors), torch.random.fork_rng(devices=[]):  # the weights it begins with are replaced
            network = kind(**config)
        network.load_state_dict({name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()})
    card = {key: value for key, value in card.items() if key not in OWN}
    return network.eval().requires_grad_(False), card
