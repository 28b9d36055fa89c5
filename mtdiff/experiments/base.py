"""What an experiment is: data, a model, a training budget and a way to judge it."""

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from mtdiff.backbones import Backbone, UNet
from mtdiff.datasets.base import Dataset
from mtdiff.datasets.shapes import SETS
from mtdiff.metrics import frechet_distance
from mtdiff.modalities import Label, Modality
from mtdiff.model import PRIOR_NATS, MTDiffusion
from mtdiff.prediction import Denoiser
from mtdiff.process import ForwardProcess
from mtdiff.sampling import sample_many
from mtdiff.schedules import NoiseSchedule
from mtdiff.training import TrainConfig, Trainer

Made = TypeVar("Made")
Look = Callable[[MTDiffusion], dict[str, float]]
"""What a trainer notes along the way: averaged model -> figures."""
Make = Callable[[tuple[int, ...]], Backbone] | Mapping
"""What makes a backbone for a space; or arguments of the U-Net, in place of those of the experiment."""
UNETS: Mapping[int, dict] = {
    8: {"base": 16, "multipliers": (1, 1)},
    16: {"base": 16, "multipliers": (1, 2, 2)},
    32: {"base": 16, "multipliers": (1, 2, 4, 4), "attention": (8,)},
    64: {"base": 32, "multipliers": (1, 2, 2, 3), "blocks": 2, "attention": (8,)},
}
"""U-Nets by the size of the images: 0.3M parameters at 16x16, 1.1M at 32x32, for a CPU; 3.4M at 64x64, for a GPU.

Images of another size take that of the nearest smaller one whose levels they have, see `recipe`."""
LEVELS = (1.5, 2.4)
"""Log-SNR at which models of images are trained: its mean and standard deviation (`tests/benchmarks/recipe.py`)."""


def recipe(size: int) -> int:
    """The size in `UNETS` whose network fits images of a size; ValueError where none does."""
    fitting = [known for known, unet in UNETS.items() if known <= size and size % 2 ** (len(unet["multipliers"]) - 1) == 0]
    if not fitting:
        raise ValueError(f"size must be even and at least {min(UNETS)}, so that the U-Net can halve it, got {size}")
    return max(fitting)


def by_size(scenes: Callable[[str, str], Dataset]) -> dict[str, Callable[[str], Dataset]]:
    """Data of an `Experiment` from a function of their name, "shapes16" or "shapes32", and the split."""
    return {name: functools.partial(scenes, name) for name in SETS}


@dataclass(frozen=True)
class Experiment:
    """One setting of the course, behind every command."""

    name: str  # what commands call it
    data: Mapping[str, Callable[[str], Dataset]]  # {name: split "train", "test" or "all" -> data}; the first is the default
    variants: Mapping[str, str]  # {name: one line on what it is}; the first is the headline
    # (data name, variant, seed of the initial weights, backbone in place of the U-Net) -> untrained model
    build: Callable[..., MTDiffusion]
    config: Callable[[str, str, str], TrainConfig]  # (data name, variant, budget "quick" or "full") -> how to train
    evaluate: Callable[..., dict]  # (model, data name, seed of all noise, n samples a figure, **own options) -> metrics
    loss: Callable[[str, TrainConfig], Callable | None] = lambda variant, config: None  # None: the multi-task loss
    probe: Callable[[str, str], Look | None] = lambda data, variant: None  # what the trainer notes along the way
    # (split -> data, variant, seed) -> the training set that the variant is shown
    examples: Callable[[Callable[..., Dataset], str, int], Dataset] = lambda data, variant, seed: data("train")
    options: tuple[str, ...] = ()  # names of the options that evaluate takes besides
    packed: Callable[..., Dataset] | None = None  # (folder of a pack, split) -> data, where packs can be used by their path

    def on(self, data: str) -> Callable[..., Dataset]:
        """Split -> data, of a name or the path of a pack; ValueError for another name."""
        if data not in self.data and self.packed is None:
            raise ValueError(f"{self.name} has no data {data!r}; it has {list(self.data)}")
        return self.data[data] if data in self.data else functools.partial(self.packed, data)

    def variant(self, name: str | None = None) -> str:
        """The name of a variant, the first unless one is given; ValueError for another."""
        if name is not None and name not in self.variants:
            raise ValueError(f"{self.name} has no variant {name!r}; it has {list(self.variants)}")
        return name or next(iter(self.variants))

    def trainer(
        self, data: str, variant: str, config: TrainConfig, folder: str | Path | None, device: str = "cpu",
        backbone: Make | None = None, **options,
    ) -> Trainer:  # fmt: skip
        """A `Trainer` of one variant, at step 0, with its other options; the initial weights follow the config's seed."""
        examples = self.examples(self.on(data), self.variant(variant), config.seed)
        model = self.build(data, variant, config.seed, backbone=backbone)
        used = {name: value for name, value in examples.values.items() if name in model.modalities}
        look = self.probe(data, variant) if config.probe_every else None
        examples, loss = replace(examples, values=used), self.loss(variant, config)
        return Trainer(model, examples, config, folder, loss, device, look, **options)


def noise_schedule(size: int, power: float) -> NoiseSchedule:
    """500 steps from log-SNR 8 to -8, for large images lower: SNR times dimension over 2 leaves at most `PRIOR_NATS` in z_T.

    The end, a multiple of 1/2, moves and not the weights, because an image of three channels gets louder with its size as
    a code does; power is the mean square of the aggregate at T.

    Source: ours, theory 5.
    """
    end = math.log(2 * PRIOR_NATS / (power * 3 * size**2))
    return NoiseSchedule.log_snr(500, high=8.0, low=min(-8.0, math.floor(2 * end) / 2))


def sized(space: tuple[int, ...], unet: Mapping) -> UNet:
    """The U-Net of `UNETS` that fits a space, with some arguments of one's own; ValueError where it takes none of a name."""
    size, known = space[-1], recipe(space[-1])
    if unknown := sorted(unet.keys() - (takes := inspect.signature(UNet).parameters).keys()):
        raise ValueError(f"the U-Net takes no {unknown}; it takes {[name for name in takes if name != 'space']}")
    unet = {**UNETS[known], **unet}
    unet |= {name: tuple(size * height // known for height in unet[name]) for name in {"attention", "cross"} & unet.keys()}
    return UNet(space, **unet)


def seeded(
    seed: int,
    schedule: NoiseSchedule,
    space: tuple[int, ...],
    parts: Mapping[str, tuple[Callable[[float], float] | float, Modality]],
    prior: str | None = None,
    kind: type[MTDiffusion] = MTDiffusion,
    unet: Mapping | None = None,
    backbone: Make | None = None,
    **options,
) -> MTDiffusion:
    """A model of modalities and their curves, {name: (W, modality)}, whose initial weights are those of a seed.

    It is sampled by "ddpm". `unet` holds arguments of the U-Net in place of those in `UNETS`, a backbone that is a mapping
    more of them; `options` are those of the model.
    """
    if not callable(backbone):
        backbone = functools.partial(sized, unet={**(unet or {}), **(backbone or {})})
    process = ForwardProcess(schedule, {name: curve for name, (curve, _) in parts.items()}, prior)
    modalities = {name: modality for name, (_, modality) in parts.items()}
    return with_seed(seed, lambda: kind(process, modalities, backbone(space), space, sampler="ddpm", **options))


def with_seed(seed: int, make: Callable[[], Made]) -> Made:
    """What a function makes, whose initial weights are those of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def on_scenes(budget: str, levels: tuple[float, float] = LEVELS, **options) -> TrainConfig:
    """Quick is for a live demonstration; full is what ships: half an hour at 16x16, two hours at 32x32, on one thread."""
    if budget == "quick":
        return TrainConfig(steps=600, batch_size=16, lr=2e-3, ema=0.998, save_every=500, levels=levels, **options)
    return TrainConfig(steps=20_000, batch_size=32, lr=2e-3, ema=0.999, save_every=500, levels=levels, **options)


def best_of(option: str, values: Iterable[float], score: Callable[[float], float]) -> dict[str, float]:
    """{option: the value with the largest score}; one whose score is not a number only where all are such."""
    found = {value: score(value) for value in values}
    return {option: max(found, key=lambda value: -math.inf if math.isnan(found[value]) else found[value])}


def joint(model: Denoiser, n: int, name: str = "image", **options) -> Tensor:
    """Images drawn together with all else, (n, 3, s, s) on the CPU; options as in `sample`."""
    return sample_many(model, n, **options)[name].cpu()


def alone(model: Denoiser, n: int, **options) -> Tensor:
    """Images drawn with nothing else in the chain, S = {image}, as by `joint`."""
    return joint(model, n, present={"image"}, **options)


def feature_probe(judge, real: Tensor, n: int, beside: str = "") -> Look:
    """Notes "features", the distance of n images drawn alone to real ones; "joint" too if that modality is in the chain.

    Images are drawn by 25 DDIM steps, from the same noise every time, and compared in the judge's features (Frechet).
    """
    features = judge.features(real)

    def look(model: MTDiffusion) -> dict[str, float]:
        out = {}
        for name, draw in {"features": alone, **({"joint": joint} if beside in model.process.entering else {})}.items():
            image = draw(model, n, steps=25, sampler="ddim", generator=torch.Generator(model.device).manual_seed(0))
            out[name] = frechet_distance(judge.features(image), features)
        return out

    return look


def matched(model: MTDiffusion, data: Dataset, elsewhere: bool = False) -> Dataset:
    """Data as a model knows them: those of the name in its card, with classes numbered as it numbers them.

    A model without a card or a label has nothing to match there. With `elsewhere` other data than the card names are taken,
    too, and labels of classes in another order are numbered anew, by their names. ValueError for other data or another order
    without it, or other classes.
    """
    here = data.name.split("/")[0]
    trained = (trained_on(model) or here).split("/")[0]
    if trained != here and not elsewhere:
        raise ValueError(f"the model was trained on {trained}, the data are {here}: judge it there, or add --elsewhere")
    label = dict(model.modalities.items()).get("label")
    if not isinstance(label, Label) or not data.names or tuple(label.names) == data.names:
        return data
    if sorted(label.names) != sorted(data.names):
        strange = [name for name in (*data.names, *label.names) if (name in data.names) != (name in label.names)]
        raise ValueError(f"the model and {data.name} do not have the same classes; in one of them only: {strange[:6]}")
    if not elsewhere:
        k = next(k for k, names in enumerate(zip(label.names, data.names, strict=True)) if len(set(names)) > 1)
        first = f"class {k} is {label.names[k]!r} to the model and {data.names[k]!r} there"
        raise ValueError(f"{data.name} numbers its classes otherwise: {first}. Add --elsewhere to match them by name")
    values, table = dict(data.values), torch.tensor([label.names.index(name) for name in data.names])
    if "label" in values:
        values["label"] = torch.where(values["label"] < 0, values["label"], table[values["label"]])  # -1 is no label
    return replace(data, values=values, names=tuple(label.names))


def trained_on(model: MTDiffusion) -> str | None:
    """Name of the training data, "digits/train" or the like, as far as the model's card says it."""
    said = model.card.get("data")
    name = said.get("name") if isinstance(said, Mapping) else None
    return name if isinstance(name, str) else None


def budget() -> str:
    """How long notebooks and commands train: the environment variable MTDIFF_BUDGET, "quick" (default) or "full"."""
    if (value := os.environ.get("MTDIFF_BUDGET", "quick")) not in ("quick", "full"):
        raise ValueError(f'MTDIFF_BUDGET must be "quick" or "full", got {value!r}')
    return value
