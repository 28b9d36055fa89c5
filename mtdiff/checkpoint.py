"""Loading saved models by their folder, or by the name of one that comes with mtdiff; and beginning with one's weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from mtdiff import files, hub
from mtdiff.files import CARD, Network
from mtdiff.model import MTDiffusion
from mtdiff.reading import read_json
from mtdiff.trainable import Model
from mtdiff.vae import MultimodalVAE  # noqa: F401  (a card may name it)

SAYS = ("classes", "names", "vocabulary", "length", "codes", "seed")
"""Arguments of what a modality can say and of its codes: with others its weights would mean something else."""
FREE = (*SAYS, "levels", "dropout", "rule", "sampler", "dtype")
"""Arguments in which a model may differ from one that it takes weights from."""
BEGINNING = ("based on", "new modalities")
"""What a card says of the model that a training began with."""


def shipped() -> Path:
    """The folder of the checkpoints that come with mtdiff, in an installed wheel or in the source tree."""
    inside = Path(__file__).parent / "checkpoints"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "data" / "checkpoints"


def load(
    path_or_name: str | Path, device: str | torch.device = "cpu", kind: type[Network] = Model, room: str = ""
) -> Network:
    """Rebuild a saved model, in evaluation mode; `.card` holds its card.

    Args:
        path_or_name: a folder that `save` wrote, the name of a shipped model such as "image-label/digits", or
            "hf:USER/MODEL" on the Hugging Face hub (see `mtdiff.hub`).
        kind: what it has to be.
        room: the folder of shipped checkpoints that names are looked up in.

    Raises:
        FileNotFoundError: neither a folder nor a shipped name, or a folder without weights.
        ValueError: the files are damaged, of another format or kind, or do not fit each other.
    """
    if str(path_or_name).startswith(hub.PREFIX):
        return files.load(hub.fetched(str(path_or_name)), kind).to(device)
    ships = shipped() / room
    folder = next((each for each in (Path(path_or_name), ships / path_or_name) if (each / CARD).is_file()), None)
    if folder is None:
        cards = {str(card.parent.relative_to(ships)): read_json(card, "is not a card") for card in ships.rglob(CARD)}
        names = sorted(name for name, card in cards.items() if card["config"]["kind"] in kind.known())
        what = kind.family
        raise FileNotFoundError(f"no {what} at {str(path_or_name)!r}, and no shipped {what} of that name: {names}")
    return files.load(folder, kind).to(device)


def transfer(model: MTDiffusion, trained: MTDiffusion) -> list[str]:
    """Begin a model with what a trained one has learned: all its weights, but those of modalities that say something else.

    Labels of other classes, captions of other words, and codes of another kind stay new, with their embeddings and heads.
    All else has to agree. The card says what the model is "based on", without the other's figures, and which are its
    "new modalities".

    Returns:
        Names of the modalities that are new.

    Raises:
        ValueError: space, modalities, noise schedule, a curve or the architecture are not the same in both.
    """
    _check_fit(model, trained)
    there = dict(trained.modalities.items())
    new = [n for n, kind in model.modalities.items() if any(kind.config.get(k) != there[n].config.get(k) for k in SAYS)]
    left = tuple(f"modalities.{name}." for name in new)
    kept = {name: value for name, value in trained.state_dict().items() if not name.startswith(left)}
    model.load_state_dict(kept, strict=False)
    taught = {} if trained.taught is None else {"taught": sorted(trained.taught - set(new))}
    model.card = {"based on": {}, **inherited(trained.card), **({"new modalities": new} if new else {}), **taught}
    return new


def inherited(card: Mapping) -> dict:
    """The card of a model that is trained further: what was true of steps, figures and commands is the parent's alone."""
    parent = {key: value for key, value in card.items() if key not in ("metrics", "probes", "taught")}
    return {"based on": parent} if parent.keys() - {*BEGINNING} else parent


def _check_fit(model: MTDiffusion, trained: MTDiffusion) -> None:
    """Refuse a trained model whose weights would mean something else in this one, for the first reason there is."""
    for one in (trained, model):
        if not isinstance(one, MTDiffusion):
            raise ValueError(f"only MT-Diffusion begins with another's weights, not a {type(one).__name__}")
    there, here = trained.process, model.process
    if trained.space != model.space:
        _refuse("the space (channels, height, width)", trained.space, model.space)
    if {*trained.modalities} != {*model.modalities}:
        _refuse("the list of modalities", [*trained.modalities], [*model.modalities])
    if not _close(there.schedule.abar, here.schedule.abar):
        _refuse("the noise schedule", there.schedule.said(), here.schedule.said())
    for name in here.names:
        if not _close(there.cumulative(name), here.cumulative(name)):
            _refuse(f"the curve of {name!r}", there.said(name), here.said(name))
    a, b = _flat(trained.architecture()), _flat(model.architecture())
    for what in a | b:
        if a.get(what) != b.get(what):
            _refuse(what, a.get(what), b.get(what))


def _refuse(what: str, there: object, here: object) -> NoReturn:
    """Say what is not the same."""
    raise ValueError(f"the trained model does not fit: {what} is {there} there, {here} here")


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tables are the same, but for rounding."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-6, atol=0)


def _flat(config: Mapping, lead: str = "") -> dict[str, object]:
    """{path: value} of a nested config, without what is free."""
    found: dict[str, object] = {}
    for name, value in config.items():
        if name not in FREE:
            found |= _flat(value, f"{lead}{name}.") if isinstance(value, Mapping) else {lead + name: value}
    return found
