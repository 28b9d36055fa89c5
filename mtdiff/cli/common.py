"""What commands share: data and models by their names or paths, devices, pictures of what was drawn."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from mtdiff.checkpoint import load
from mtdiff.cli.own import imported
from mtdiff.datasets.imagenet import pack
from mtdiff.datasets.imagenet.layouts import SPLITS
from mtdiff.datasets.imagenet.packing import LABELS, packs, read_meta
from mtdiff.experiments import EXPERIMENTS, Experiment, recipe, trained_on
from mtdiff.modalities import Label
from mtdiff.model import MTDiffusion
from mtdiff.reading import check_types

Name = Annotated[Literal[tuple(EXPERIMENTS)], tyro.conf.Positional]
"""The name of an experiment."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where commands compute, unless they are told."""


def chosen_data(experiment: Experiment, name: str | None, size: int | None = None, tell: bool = False) -> str:
    """The chosen data of an experiment, its first unless a name is given; or the pack of a folder, which it may make now."""
    name = name or next(iter(experiment.data))
    if name in experiment.data:
        if size is not None:
            raise ValueError(f"size is for a folder of pictures, {name} has its own")
        return name
    if not experiment.packed or not Path(name).is_dir():
        path = ", and there is no such folder" if experiment.packed else ""
        raise ValueError(f"{experiment.name} has no data {name!r}{path}; it has {list(experiment.data)}")
    recipe(size or 32)
    folder = pack(name, size)
    if tell:
        tell_pack(folder)
    return str(folder)


def tell_pack(folder: Path) -> None:
    """Say what a pack holds, what is held out, and what was left out of it, and why."""
    for split in SPLITS:
        meta = read_meta(folder / split)
        counts = np.bincount(np.load(folder / split / LABELS), minlength=len(meta["names"]))
        each = ", ".join(f"{name} {count:,}" for name, count in zip(meta["names"][:6], counts, strict=False))
        each += f" and {len(counts) - 6} more" if len(counts) > 6 else ""
        text = f"{split}: {meta['count']:,} images of {len(counts)} class{'es' * (len(counts) > 1)} ({each})"
        numbers = {"with a box": meta["boxes"], "enlarged": meta["enlarged"]}
        text += "".join(f", {number:,} {what}" for what, number in numbers.items() if number)
        text += "".join(f", {name}" for name in ["captions"] * bool(meta.get("captions")) + (meta.get("beside") or []))
        print(f"{text}; {meta['layout']}; sha256 {meta['sha256'][:12]}")
        for what in ("skipped", "left_out"):
            for path, why in meta[what][:10]:
                print(f"  {what.replace('_', ' ')} {path}: {why}")
            if len(meta[what]) > 10:
                print(f"  and {len(meta[what]) - 10} more, see {folder / split / 'meta.json'}")
    print(f"the packed images are in {folder}")


def data_of(model: MTDiffusion, experiment: Experiment, name: str | None) -> str:
    """The data of this name or path, else what the model's card says that it was trained on, if that is there."""
    trained = (trained_on(model) or "").split("/")[0]
    if name is None and trained and experiment.packed and (packs() / trained).is_dir():
        name = trained if trained in experiment.data else str(packs() / trained)
    name = name or next((key for key in experiment.data if re.fullmatch(rf"{key}(-[a-z]+)?", trained)), None)
    if name is None:
        raise ValueError(f"the model's card names no data of {experiment.name} ({trained_on(model)}): add --data")
    return name if name in experiment.data else chosen_data(experiment, name, model.space[-1])


def trained_model(name: str, device: str, imports: Iterable[str] = ()) -> MTDiffusion:
    """A trained model, whose card names what it was trained for as commands can use it, if at all.

    Modules that it is made of may be imported before.
    """
    imported(imports)
    model = load(name, device)
    check_types(model.card, {"experiment": str, "variant": str}, f"the card of {name}")
    return model


def usable_device(name: str) -> str:
    """The device's name, if it is there and has float64, in which samplers and bounds compute."""
    try:
        float(torch.zeros(1, dtype=torch.float64, device=name))
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None
    return name


def save_picture(model: MTDiffusion, drawn: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a picture of what was drawn."""
    from mtdiff.plots import save_grid

    labels = {name: m.names for name, m in model.modalities.items() if isinstance(m, Label)}
    save_grid(drawn, labels, path)
