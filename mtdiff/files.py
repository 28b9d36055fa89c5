"""The files of a saved model, and writing a file whole or not at all."""

import json
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
        PermissionError: the folder cannot be written.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    text = json.dumps({**card, "format": FORMAT, "config": {"kind": type(network).__name__, **config}}, indent=1) + "\n"
    write_atomic(Path(path) / WEIGHTS, safetensors.torch.save(tensors))
    write_atomic(Path(path) / CARD, text.encode())
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
    tensors = read_weights(folder / WEIGHTS)
    with naming(folder / WEIGHTS, "does not fit its card"):
        check_types(config, hints(kind), f"{what}'s card")
        with Allowance(tensors):
            network = kind(**config)
        network.load_state_dict({name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()})
    card = {key: value for key, value in card.items() if key not in ("format", "config")}
    return network.eval().requires_grad_(False), card
