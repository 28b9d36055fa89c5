"""Loading saved models by their folder, or by the name of one that comes with mtdiff."""

from pathlib import Path

import torch

from mtdiff import files
from mtdiff.files import CARD, Network
from mtdiff.model import MTDiffusion
from mtdiff.reading import read_json


def shipped() -> Path:
    """The folder of the checkpoints that come with mtdiff, in an installed wheel or in the source tree."""
    inside = Path(__file__).parent / "checkpoints"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "data" / "checkpoints"


def load(
    path_or_name: str | Path, device: str | torch.device = "cpu", kind: type[Network] = MTDiffusion, room: str = ""
) -> Network:
    """Rebuild a saved model, in evaluation mode; `.card` holds its card.

    Args:
        path_or_name: a folder that `save` wrote, or the name of a shipped model such as "image-label/digits".
        kind: what it has to be.
        room: the folder of shipped checkpoints that names are looked up in.

    Raises:
        FileNotFoundError: neither a folder nor a shipped name, or a folder without weights.
        ValueError: the files are damaged, of another format or kind, or do not fit each other.
    """
    ships = shipped() / room
    folder = next((each for each in (Path(path_or_name), ships / path_or_name) if (each / CARD).is_file()), None)
    if folder is None:
        cards = {str(card.parent.relative_to(ships)): read_json(card, "is not a card") for card in ships.rglob(CARD)}
        names = sorted(name for name, card in cards.items() if card["config"]["kind"] in kind.known())
        what = kind.family
        raise FileNotFoundError(f"no {what} at {str(path_or_name)!r}, and no shipped {what} of that name: {names}")
    return files.load(folder, kind).to(device)
