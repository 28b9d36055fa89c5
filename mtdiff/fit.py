"""The training loop, to hold in the head: batch, loss, gradient, step, and an average of the weights."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mtdiff.losses import Loss


def fit(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[..., Loss | Tensor],
    steps: int,
    lr: float = 1e-3,
    ema: float = 0.0,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> list[dict[str, float]]:
    """Train a network in place, by AdamW along one cycle of the learning rate; it ends in evaluation mode.

    What has to survive (checkpoints, exact resume, many processes) is trained by a `Trainer`.

    Args:
        batches: one for each step, in whatever form the loss takes; an endless stream will do.
        loss: (model, batch, generator=...) -> a `Loss` or a scalar. `multitask_loss` fits as it is, or with options:
            functools.partial(multitask_loss, give={"label": 0.2}).
        lr: peak of the learning rate, which it reaches after 0.3 of the steps.
        ema: decay of the weights' average, which the model holds in the end; 0 is the last weights. At step k it is
            average <- decay average + (1 - decay) weights with decay = min(ema, (1 + k) / (10 + k)).
        generator: handed to the loss.

    Returns:
        For each step {"total": loss, name: each of its terms}.

    Raises:
        ValueError: fewer batches than steps, or a loss that is not finite.
    """
    weights, history = list(model.parameters()), []
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for k, batch in tqdm(zip(range(steps), batches, strict=False), total=steps, disable=not progress):
        found = loss(model, batch, generator=generator)
        found = found if isinstance(found, Loss) else Loss(found, {})
        if k % 100 == 0:
            _check(float(found.total.detach()), k, lr)
        optimizer.zero_grad()
        found.total.backward()
        optimizer.step()
        schedule.step()
        history.append({name: term.detach() for name, term in (("total", found.total), *found.terms.items())})
        for mean, weight in zip(average, weights, strict=True):
            mean.lerp_(weight.detach(), 1 - min(ema, (1 + k) / (10 + k)))
    for weight, mean in zip(weights, average, strict=True):
        weight.detach().copy_(mean)
    model.eval()
    history = [{name: float(term) for name, term in row.items()} for row in history]
    if len(history) < steps:
        raise ValueError(f"the batches ended after {len(history)} of {steps} steps")
    for k, row in enumerate(history):
        _check(row["total"], k, lr)
    return history


def _check(loss: float, step: int, lr: float) -> None:
    """Raise ValueError where a loss is not finite, and say where to look."""
    if not math.isfinite(loss):
        where = f"try a smaller lr than {lr}" if step else "before any update: look at the batch and at the network"
        raise ValueError(f"the loss was {loss} at step {step}: {where}")
