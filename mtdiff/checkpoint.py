"""Loading models that `MTDiffusion.save` wrote: weights from safetensors, everything else from a JSON card."""

import reprlib
from collections.abc import Mapping
from pathlib import Path

import torch

from mtdiff.backbones.base import Backbone
from mtdiff.files import CARD, FORMAT, OWN, WEIGHTS, check_weights
from mtdiff.modalities.base import Modality
from mtdiff.model import MTDiffusion
from mtdiff.process import ForwardProcess
from mtdiff.reading import Allowance, check_types, hints, naming, read_json, read_weights
from mtdiff.sampling import RULES
from mtdiff.schedules import NoiseSchedule
from mtdiff.solvers import SAMPLERS

DTYPES = ("float16", "bfloat16", "float32", "float64")


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
    card = read_json(folder / CARD, "is not a model card")
    if "config" not in card:
        raise ValueError(f"{folder / CARD} is not a model card: it lacks 'config'")
    if type(card.get("format")) is not int or card["format"] != FORMAT:
        raise ValueError(f"{folder / CARD} has format {reprlib.repr(card.get('format'))}, this version reads {FORMAT}")
    check_weights(folder, card)
    tensors = read_weights(folder / WEIGHTS)
    with naming(folder / WEIGHTS, "does not fit its card"), torch.random.fork_rng(devices=[]):  # first weights are replaced
        model = build(card["config"], tensors)
    model.card = {key: value for key, value in card.items() if key not in OWN}
    return (model if torch.device(device) == model.device else model.to(device)).eval()


def build(config: Mapping, tensors: dict[str, torch.Tensor]) -> MTDiffusion:
    """A model from a card's config and its tensors.

    Raises:
        KeyError: config or tensors lack an entry.
        RuntimeError: weights of other names or shapes.
        ValueError: an entry of another type than it should be, or an unknown kind, rule, sampler or dtype.
    """
    check_types({"config": config}, {"config": dict[str, object]}, "the card")
    own = {"kind": str, "dtype": str, "prior": str | None, "modalities": dict[str, dict]}
    check_types(config, {**hints(MTDiffusion), **own}, "the card's config")
    kinds = {"MTDiffusion": MTDiffusion, **MTDiffusion.kinds}
    for name, known in (("kind", kinds), ("dtype", DTYPES), ("sampler", SAMPLERS), ("rule", (None, *RULES))):
        values = config[name].values() if isinstance(config[name], dict) else [config[name]]
        if not set(values) <= set(known):
            raise ValueError(f"{name} must be one of {list(known)}, got {config[name]!r}")
    tables = {name: tensors.pop(f"process.{name}") for name in config["modalities"]}
    process = ForwardProcess(NoiseSchedule(tensors.pop("process/abar")), tables, config["prior"])
    chosen = {key: config[key] for key in ("prediction", "rule", "sampler")}
    chosen |= {key: config[key] for key in ("remove_told", "conditions") if config.get(key)}  # not in every card
    with Allowance(tensors):
        modalities = {name: Modality.from_config(entry) for name, entry in config["modalities"].items()}
        backbone = Backbone.from_config(config["backbone"])
        model = kinds[config["kind"]](process, modalities, backbone, tuple(config["space"]), **chosen)
    if model.dtype != (dtype := getattr(torch, config["dtype"])):
        model.to(dtype)
    model.load_state_dict(tensors)
    return model
