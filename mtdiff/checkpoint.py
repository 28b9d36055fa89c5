"""Loading models that `MTDiffusion.save` wrote: weights from safetensors, everything else from a JSON card."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from mtdiff.backbones.base import Backbone
from mtdiff.files import CARD, FORMAT, OWN, WEIGHTS, check_weights
from mtdiff.modalities.base import Modality
from mtdiff.model import MTDiffusion
from mtdiff.process import ForwardProcess
from mtdiff.schedules import NoiseSchedule


def shipped() -> Path:
    """The folder of the checkpoints that come with mtdiff, in an installed wheel or in the source tree."""
    inside = Path(__file__).parent / "checkpoints"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "data" / "checkpoints"


def load(path_or_name: str | Path, device: str | torch.device = "cpu") -> MTDiffusion:
    """Rebuild a saved model, in evaluation mode.

    Args:
        path_or_name: a folder that `save` wrote, or the name of a shipped model such as "image-label/digits".
        device: where to put it.

    Returns:
        The model; `.card` holds its card.

    Raises:
        FileNotFoundError: neither a folder nor a shipped name.
        ValueError: the files are damaged, of another format, or do not fit each other.
    """
    folder = Path(path_or_name)
    if not (folder / CARD).is_file():
        folder = shipped() / path_or_name
    if not (folder / CARD).is_file():
        names = sorted(str(p.parent.relative_to(shipped())) for p in shipped().rglob(CARD))
        names = [name for name in names if not name.startswith("judge")]
        raise FileNotFoundError(f"no model at {str(path_or_name)!r}, and no shipped model of that name: {names}")
    try:
        card = json.loads((folder / CARD).read_text())
        config = card["config"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / CARD} is not a model card: {error}") from None
    if card.get("format") != FORMAT:
        raise ValueError(f"{folder / CARD} has format {card.get('format')}, this version reads {FORMAT}")
    check_weights(folder, card)
    try:
        tensors = safetensors.torch.load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} has a card but no {WEIGHTS}") from None
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is truncated or damaged: {error}") from None
    try:
        with torch.random.fork_rng(devices=[]):  # the weights it begins with are replaced
            model = build(config, tensors)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit its card: {error}") from None
    model.card = {key: value for key, value in card.items() if key not in OWN}
    return model.to(device).eval()


def build(config: Mapping, tensors: dict[str, torch.Tensor]) -> MTDiffusion:
    """A model from a card's config and its tensors.

    Raises:
        KeyError: config or tensors lack an entry.
        RuntimeError: weights of other names or shapes.
        ValueError: an unknown kind of modality or backbone.
    """
    tables = {name: tensors.pop(f"process.{name}") for name in config["modalities"]}
    process = ForwardProcess(NoiseSchedule(tensors.pop("process/abar")), tables, config["prior"])
    modalities = {name: Modality.from_config(entry) for name, entry in config["modalities"].items()}
    backbone = Backbone.from_config(config["backbone"])
    kind = {"MTDiffusion": MTDiffusion, **MTDiffusion.kinds}[config["kind"]]
    chosen = {key: config[key] for key in ("prediction", "rule", "sampler")}
    chosen |= {key: config[key] for key in ("remove_told", "conditions") if config.get(key)}  # not in every card
    model = kind(process, modalities, backbone, tuple(config["space"]), **chosen)
    model.to(getattr(torch, config["dtype"])).load_state_dict(tensors)
    return model
