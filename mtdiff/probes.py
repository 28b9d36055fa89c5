"""What a model knows, asked without a sampler: what it was taught, what its heads say, what its trunk sees."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mtdiff.datasets.base import Dataset


def learned(model) -> Mapping[str, str | None]:
    """The model's default rule of each modality; one that it lacks was not learned to be told, or to be drawn from.

    Raises:
        ValueError: the model has no default rules, so nobody knows.
    """
    if model.rule is None:
        raise ValueError('the model has no default rules, which say what can be judged: make it with rule={"image": ...}')
    return model.rule if isinstance(model.rule, Mapping) else dict.fromkeys(model.modalities, model.rule)


def levels(model, n: int) -> list[int]:
    """N steps t, evenly from the first to the last."""
    return torch.linspace(model.process.first, model.process.steps, n).round().long().tolist()


def noised(
    model, values: Mapping[str, Tensor], t: int, generator: torch.Generator | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """A state z_t of these values alone, and the set S of their names as `predict` takes it."""
    values = {name: value.to(model.device) for name, value in values.items()}
    n = len(next(iter(values.values())))
    present = {name: torch.full((n,), name in values, device=model.device) for name in model.modalities}
    z, _ = model.process.diffuse(model.encode(values), t, present=present, generator=generator)
    return z, present


@torch.no_grad()
def head_accuracy(model, data: Dataset, name: str = "label", generator: torch.Generator | None = None) -> float:
    """Share in [0, 1] of clean examples whose most likely class, read as by `head_logits`, is right."""
    logits = head_logits(model, data, name, generator=generator)
    return float((logits.argmax(1).cpu() == data.values[name].cpu()).double().mean())


@torch.no_grad()
def head_logits(
    model,
    data: Dataset,
    name: str = "label",
    t: int | None = None,
    generator: torch.Generator | None = None,
    batch: int = 2500,
) -> Tensor:
    """What a label's head says of examples, (N, K) logits, with the set's other modalities in the state and not the label.

    Without a step t it is asked at the first, as good as clean.
    """
    t, logits = model.process.first if t is None else t, []
    values = {k: v for k, v in data.values.items() if k in model.modalities and k != name}
    for rows in torch.arange(len(data)).split(batch):
        z, present = noised(model, {k: v[rows] for k, v in values.items()}, t, generator)
        logits.append(model.predict(z, t, present=present).law[name].logits)
    return torch.cat(logits)


@torch.no_grad()
def pooled(model, image: Tensor, t: int, generator: torch.Generator | None = None, batch: int = 500) -> Tensor:
    """The backbone's pooled vector of noisy images (N, C, H, W), as the heads see it with S = {image}: (N, P) on the CPU."""
    found = []
    hook = model.backbone.register_forward_hook(lambda module, inputs, output: found.append(output[1].cpu()))
    try:
        for part in image.split(batch):
            z, present = noised(model, {"image": part}, t, generator)
            model.predict(z, t, present=present)
    finally:
        hook.remove()
    return torch.cat(found)
