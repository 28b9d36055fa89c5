"""Saved networks: weights, a JSON card and what becomes of them on a disk; and writing a file whole or not at all."""

import hashlib
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

from mtdiff.reading import Allowance, fits, naming, read_json
from mtdiff.recorded import Recorded, UnknownKind

Network = TypeVar("Network", bound=nn.Module)

FORMAT = 1
WEIGHTS, CARD = "model.safetensors", "card.json"
OWN = ("format", "config", "sha256", "imports")
"""What a card says to the program that reads it, beside what people should know."""


def save(folder: str | Path, network: nn.Module, card: Mapping | None = None, half: bool = False) -> Path:
    """Write any network that is `Recorded` to a folder: its weights, then its card, each replaced whole or not at all.

    The card holds the hash of the weights, so that neither passes with another's.

    Args:
        folder: made where it does not exist; returned.
        card: what people should know (data, seed, steps, hardware, metrics ...; JSON values), added to the network's.
        half: store the weights as float16; tables stay as they are.

    Raises:
        OSError: the folder cannot be written; what was there stays.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    weights = safetensors.torch.save({**tensors, **network.tables()})
    entries = {**network.card, **(card or {}), "config": network.architecture()}
    entries |= {"imports": found} if (found := imports(network)) else {}
    entries |= {"format": FORMAT, "sha256": hashlib.sha256(weights).hexdigest()}
    write_atomic(Path(folder) / WEIGHTS, weights)
    write_atomic(Path(folder) / CARD, (to_json(entries, indent=1) + "\n").encode())
    return Path(folder)


def imports(network: nn.Module) -> list[str]:
    """The modules, other than mtdiff's own, of the classes that a network is made of: to be imported before it is loaded."""
    homes = {type(part).__module__ for part in network.modules() if isinstance(part, Recorded)}
    return sorted(home for home in homes if home != "__main__" and home.partition(".")[0] != "mtdiff")


def load(folder: Path, kind: type[Network]) -> Network:
    """Rebuild what `save` wrote, of one class or those below it; see `mtdiff.load`. Nothing is imported for a card."""
    card = read_json(folder / CARD, what := f"is not a {kind.family} card")
    try:
        return _built(folder, kind, card, what)
    except ValueError as error:
        homes = card["imports"] if fits(card.get("imports"), list[str]) else ()
        homes = [home for home in homes if all(part.isidentifier() for part in home.split("."))]  # may get to a shell
        if not homes or not isinstance(error.__cause__, UnknownKind):
            raise
        which = f"{folder / CARD}: {error.__cause__}. It says that it needs {', '.join(homes)}"
        add = f"import {', '.join(homes)}, or add --import {' '.join(homes)} to the command"
        raise ValueError(f"{which}: if you trust that, {add}") from None


def _built(folder: Path, kind: type[Network], card: Mapping, what: str) -> Network:
    """The network of a card, with its weights."""
    with naming(folder / CARD, what):
        made = kind.kind_of(card.get("config"))
    if type(card.get("format")) is not int or card["format"] != FORMAT:
        raise ValueError(f"{folder / CARD} has format {reprlib.repr(card.get('format'))}, this version reads {FORMAT}")
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} has a card but no {WEIGHTS}")
    check_weights(folder, card)
    with naming(folder / WEIGHTS, "is truncated or damaged"):
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    with naming(folder / WEIGHTS, "does not fit its card"), torch.random.fork_rng(devices=[]):  # first weights are replaced
        with Allowance(tensors):
            network = made.restored(card["config"], tensors)
        network.load_state_dict(tensors)
    network.card = {key: value for key, value in card.items() if key not in OWN}
    return network.eval()


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


def to_json(value, indent: int | None = None) -> str:
    """The text of a value as JSON, which has no number that is not finite: null stands for it."""
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    return json.dumps(finite, indent=indent, allow_nan=False)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the new one, whatever happens; an OSError names the folder."""
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
