"""What an experiment is: data, a model, a training budget and a way to judge it."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mtdiff.datasets.base import Dataset
from mtdiff.modalities import Label
from mtdiff.model import PRIOR_NATS, MTDiffusion
from mtdiff.process import ForwardProcess
from mtdiff.run_folder import RunFolder
from mtdiff.schedules import NoiseSchedule
from mtdiff.training import TrainConfig, Trainer


@dataclass(frozen=True)
class Experiment:
    """One setting of the course, behind every command.

    Attributes:
        name: what commands call it.
        data: {name of the data: function of the split ("train" | "test" | "all") -> Dataset}.
        variants: {name: one line on what it is}; the first is the headline.
        build: (data name, variant, seed) -> untrained model.
        config: (data name, variant, budget) -> training configuration.
        loss: (variant, config) -> loss function for the trainer, or None for the multi-task loss.
        evaluate: (model, data name, seed, n) -> metrics.
        probe: (data name, variant) -> what the trainer notes along the way (see `Trainer`), or None.
        examples: (training set, variant, seed) -> what of it the variant is shown, or None: everything.
    """

    name: str
    data: Mapping[str, Callable[[str], Dataset]]
    variants: Mapping[str, str]
    build: Callable[[str, str, int], MTDiffusion]
    config: Callable[[str, str, str], TrainConfig]
    loss: Callable[[str, TrainConfig], Callable | None]
    evaluate: Callable[[MTDiffusion, str, int, int], dict]
    probe: Callable[[str, str], Callable[[MTDiffusion], dict[str, float]]] | None = None
    examples: Callable[[Dataset, str, int], Dataset] | None = None

    def trainer(
        self, data: str, variant: str, config: TrainConfig, folder: str | Path | None, device: str = "cpu", **options
    ) -> Trainer:
        """A trainer of one variant; the model's initial weights follow the config's seed.

        Args:
            data: name of the data.
            variant: name of the variant.
            config: how to train.
            folder: where checkpoints go, or None.
            device: where to train.
            **options: other arguments of `Trainer`.

        Returns:
            The trainer, at step 0.

        Raises:
            ValueError: unknown data or variant.
        """
        for what, name, known in (("data", data, self.data), ("variant", variant, self.variants)):
            if name not in known:
                raise ValueError(f"{self.name} has no {what} {name!r}; it has {list(known)}")
        model, examples = self.build(data, variant, config.seed), self.data[data]("train")
        _go_on_as_begun(model, folder)
        examples = examples if self.examples is None else self.examples(examples, variant, config.seed)
        used = {name: value for name, value in examples.values.items() if name in model.modalities}
        look = self.probe(data, variant) if self.probe and config.probe_every else None
        return Trainer(
            model, replace(examples, values=used), config, folder, self.loss(variant, config), device, look, **options
        )


def noise_schedule(size: int, power: float) -> NoiseSchedule:
    """500 steps from log-SNR 8 to -8, for large images lower: SNR times dimension over 2 leaves at most `PRIOR_NATS` in z_T.

    The end moves and not the weights, because an image gets louder with its size as a code does.

    Args:
        size: height and width of the images, of three channels.
        power: mean square of the aggregate at T.

    Returns:
        The schedule; its end is a multiple of 1/2.

    Source: ours, theory 5.
    """
    end = math.log(2 * PRIOR_NATS / (power * 3 * size**2))
    return NoiseSchedule.log_snr(500, high=8.0, low=min(-8.0, math.floor(2 * end) / 2))


def _go_on_as_begun(model: MTDiffusion, folder: str | Path | None) -> None:
    """Give a model the schedule of the run in a folder, if that was begun when all sizes ended at log-SNR -8."""
    state = None if folder is None else RunFolder(folder).read(torch.device("cpu"))
    if state is None or state["architecture"] == model.fingerprint():
        return
    now = model.process
    schedule, curves = NoiseSchedule.log_snr(now.steps, high=8.0, low=-8.0), {n: now.cumulative(n) for n in now.names}
    model.process = ForwardProcess(schedule, curves, now.prior)
    if state["architecture"] != model.fingerprint():
        model.process = now


def matched(model: MTDiffusion, data: Dataset, elsewhere: bool = False) -> Dataset:
    """Data as a model knows them: those of the name in its card, with classes numbered as it numbers them.

    Args:
        model: the model; one without a card or a label has nothing to match there.
        data: any split of a data set.
        elsewhere: take other data than the card names, too, and classes in another order, matched by their names.

    Returns:
        The data set, its labels numbered anew where that is needed.

    Raises:
        ValueError: other data or another order, unless asked for; or other classes.
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
    """How long notebooks and commands train: the environment variable MTDIFF_BUDGET, "quick" (default) or "full".

    Raises:
        ValueError: any other value.
    """
    value = os.environ.get("MTDIFF_BUDGET", "quick")
    if value not in ("quick", "full"):
        raise ValueError(f'MTDIFF_BUDGET must be "quick" or "full", got {value!r}')
    return value
