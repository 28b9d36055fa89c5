"""What a model knows, asked without a sampler: what it was taught, what its heads say, what its trunk sees."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mtdiff.datasets.base import Dataset
from mtdiff.prediction import Denoiser


def learned(model: Denoiser) -> Mapping[str, str | None]:
    """The model's default rule of each modality; one that it lacks was not learned to be told, or to be drawn from.

    ValueError where the model has no default rules, so that nobody knows.
    """
    if model.rule is None:
        raise ValueError('the model has no default rules, which say what can be judged: make it with rule={"image": ...}')
    return model.rule if isinstance(model.rule, Mapping) else dict.fromkeys(model.modalities, model.rule)


def each_class(model: Denoiser, n: int) -> Tensor:
    """(n,) labels, equally many of every class."""
    return torch.arange(n, device=model.device) % model.modalities["label"].classes


def levels(model: Denoiser, n: int) -> list[int]:
    """N steps t, evenly from the first to the last."""
    return model.process.times(n - 1)[::-1]


def noised(
    model: Denoiser, values: Mapping[str, Tensor], t: int, generator: torch.Generator | None = None
) -> tuple[Tensor, set[str]]:
    """A state z_t of these values alone, and the set S of their names as `predict` takes it."""
    values = {name: value.to(model.device) for name, value in values.items()}
    z, _ = model.process.diffuse(model.encode(values), t, present=set(values), generator=generator)
    return z, set(values)


def head_accuracy(model: Denoiser, data: Dataset, generator: torch.Generator | None = None) -> float:
    """Share in [0, 1] of clean examples whose most likely label, read as by `head_logits`, is right."""
    logits = head_logits(model, data, generator=generator)
    return float((logits.argmax(1).cpu() == data.values["label"].cpu()).double().mean())


@torch.no_grad()
def head_logits(
    model: Denoiser, data: Dataset, t: int | None = None, generator: torch.Generator | None = None, batch: int = 2500
) -> Tensor:
    """What the label's head says of examples, (N, K) logits, with the set's other modalities in the state and not the label.

    Without a step t it is asked at the first, as good as clean.
    """
    t, logits = model.process.first if t is None else t, []
    for rows in torch.arange(len(data)).split(batch):
        values = {k: v for k, v in data[rows].items() if k in model.modalities and k != "label"}
        z, present = noised(model, values, t, generator)
        logits.append(model.predict(z, t, present=present).law["label"].logits)
    return torch.cat(logits)
