"""The multi-task training loss (theory 3)."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from mtdiff.model import MTDiffusion


def check_options(
    weights: Mapping[str, float] | None,
    drop: Mapping[str, float | str] | None,
    give: Mapping[str, float | str] | None,
    known: Collection[str] | None = None,
) -> None:
    """Whether options of `multitask_loss` can work: numbers in their range, and names of modalities.

    Args:
        weights: as there.
        drop: as there.
        give: as there.
        known: the model's modalities; None leaves names unchecked.

    Raises:
        KeyError: a name is no modality.
        ValueError: a number out of range, or a name in drop or give that has no number there.
    """
    for what, numbers, top in (("weights", weights, math.inf), ("drop", drop, 1.0), ("give", give, 1.0)):
        for name, number in (numbers or {}).items():
            if known is not None and name not in known and (what, name) != ("weights", "denoise"):
                raise KeyError(f"{what} names an unknown modality {name!r}; this model has {list(known)}")
            if what != "weights" and isinstance(number, str):
                if not isinstance(numbers.get(number), Real):
                    raise ValueError(f"{what}[{name!r}] is {number!r}, which has no probability in {what}: {dict(numbers)}")
            elif not isinstance(number, Real) or not 0 <= number <= top or number == math.inf:
                raise ValueError(f"{what}[{name!r}] must be in [0, {top}], got {number!r}: expected a finite number")


def coins(
    chances: Mapping[str, float | str] | None, size: int, device: torch.device, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """A coin for each of B examples and each modality with a chance above 0; one with another's name shares its coin.

    Args:
        chances: {name: probability, or the name of a modality that has one}.
        size: B.
        device: where the coins are.
        generator: source of the coins.

    Returns:
        {name: (B,) bool}.
    """
    odds = {name: chances.get(p, p) for name, p in (chances or {}).items()}
    thrown = {}
    for name, p in odds.items():
        if p > 0 and p == chances[name]:
            thrown[name] = torch.rand(size, generator=generator, device=device) < p
    return {name: thrown[name if name in thrown else chances[name]] for name, p in odds.items() if p > 0}


@dataclass(frozen=True)
class Loss:
    """A training loss and its parts.

    Attributes:
        total: scalar; lambda_denoise denoise + sum_i lambda_i term_i.
        terms: {"denoise": scalar, name: scalar}, unweighted. Denoise and images are mean squares per coordinate in
            units of the target, labels are nats.

    Raises:
        ValueError: a term is called as something else in a row of the history.
    """

    total: Tensor
    terms: dict[str, Tensor]

    def __post_init__(self):
        taken = {"step", "seconds", "total", "gradient"} & self.terms.keys()
        if taken:
            raise ValueError(
                f"a term of a loss cannot be called {sorted(taken)}: a row of the history says something else there"
            )


def scored(
    model: MTDiffusion,
    batch: Mapping[str, Tensor],
    *,
    drop: Mapping[str, float | str] | None = None,
    give: Mapping[str, float | str] | None = None,
    missing: Collection[str] = (),
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """On how many examples `multitask_loss` is going to score each head that is not scored on all; the generator stays.

    A batch that is computed in parts needs this beforehand: the loss divides by what is scored in all of them.

    Args:
        model: the model.
        batch: as in `multitask_loss`.
        drop: as there.
        give: as there.
        missing: as there.
        generator: the one that the loss is going to draw from.

    Returns:
        {name: number}.
    """
    there = _there(model, batch, missing)
    return {name: mask.sum() for name, mask in _sets(model, batch, there, drop, give, generator.clone_state())[3].items()}


def multitask_loss(
    model: MTDiffusion,
    batch: Mapping[str, Tensor],
    *,
    weights: Mapping[str, float] | None = None,
    drop: Mapping[str, float | str] | None = None,
    give: Mapping[str, float | str] | None = None,
    missing: Collection[str] = (),
    counts: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Loss:
    """E over t, noise and the present set S: || target - output ||^2 + sum_i lambda_i loss_i(x_i, D_i(z_t, t)).

    The steps are stratified over the batch (one in each B-th part of first..T). S is drawn per example, independent
    of X: the aggregate runs over S only and the model is told S, while the heads still predict everything. An aggregate
    that the heads make up is scored by the mean over the coordinates that what is told leaves open, in each example.

    Args:
        model: the model; its modalities are all in the batch.
        batch: {name: (B, ...)}.
        weights: {name or "denoise": lambda_i >= 0}, 1 where not named.
        drop: {name: probability in [0, 1] that a modality is absent from S}, 0 where not named. The name of another
            modality in place of a number: absent together with that one.
        give: {name: probability in [0, 1] that the backbone is told the value, or a name as in drop} (rule 3). The head
            of a told modality is not scored on that example: it would only copy. The model's `conditions` are
            always told.
        missing: names of modalities that some examples lack (a label of -1). There they are absent from S, are not
            told, and their head is not scored: the example is one of the others alone.
        counts: {name: scalar} what sums over scored examples are divided by, for a batch that is a part of a larger one
            (see `scored`); None or {}: the examples that are scored here.
        generator: source of steps, noise and sets.

    Returns:
        The loss.

    Raises:
        KeyError: batch, weights, drop, give or missing names an unknown modality, or batch lacks one.
        ValueError: an invalid value in the batch, a number out of range, or a name in drop or give that has no number there.

    Source: Chen et al. 2024 (multi-task loss); random present sets are ours (theory 2).
    """
    unknown = [name for name in missing if name not in model.modalities]
    if unknown:
        raise KeyError(f"missing names unknown modalities {unknown}; this model has {list(model.modalities)}")
    there = _there(model, batch, missing)
    batch = {name: model.modalities[name].filled(value) if name in there else value for name, value in batch.items()}
    model.check(batch)
    batch = model.tidy(batch)
    lacking = [name for name in model.modalities if name not in batch]
    if lacking:
        raise KeyError(f"batch lacks {lacking}; it has {list(batch)}")
    check_options(weights, drop, give, list(model.modalities))
    process, device = model.process, next(iter(batch.values())).device
    t, present, known, marked = _sets(model, batch, there, drop, give, generator)

    codes = model.encode(batch)
    if device.type == "cpu":  # elsewhere nothing is read back
        model.check_prior(codes, there)
    at = process.at(t, next(iter(codes.values())), present)
    m_t = at.mix(codes)
    eps = torch.randn(m_t.shape, dtype=m_t.dtype, device=device, generator=generator)
    prediction = model(at.signal * m_t + at.noise * eps, t, {name: batch[name] for name in known}, present, known)

    square = (model.aggregate.weight(at) * (m_t - prediction.aggregate) ** 2).flatten(1)
    unknowns = square.shape[1] if prediction.unknown is None else prediction.unknown.flatten(1).sum(1).clamp(min=1)
    terms = {"denoise": (square.sum(1) / unknowns).mean()}
    for name in model.modalities:
        each = prediction.law[name].loss(batch[name])
        mask = marked.get(name, torch.ones_like(each, dtype=torch.bool))
        count = counts[name] if counts and name in marked else mask.sum()
        terms[name] = torch.where(mask, each, 0.0).sum() / count.to(each).clamp(min=1e-6)  # 0 where nobody is scored
    weighted = {name: (weights or {}).get(name, 1.0) * term for name, term in terms.items()}
    return Loss(weighted["denoise"] + sum(weighted[name] for name in model.modalities), terms)


def _there(model: MTDiffusion, batch: Mapping[str, Tensor], missing: Collection[str]) -> dict[str, Tensor]:
    """{name: (B,) bool} which examples have a value, of modalities that some lack."""
    return {name: ~model.modalities[name].missing(batch[name]) for name in missing if name in batch}


def _sets(model, batch, there, drop, give, generator) -> tuple[Tensor, dict, dict, dict]:
    """Steps (B,), and {name: (B,) bool} of who is present, who is told, and who is scored: all of those not named."""
    value = next(iter(batch.values()))
    size, device, process = len(value), value.device, model.process
    where = (torch.arange(size, device=device) + torch.rand(size, generator=generator, device=device)) / size
    steps = process.steps - process.first + 1
    t = process.first + (where * steps).long().clamp(max=steps - 1)
    present = {name: ~dropped for name, dropped in coins(drop, size, device, generator).items()}
    told = coins(give, size, device, generator) | {
        name: torch.ones(size, dtype=torch.bool, device=device) for name in model.conditions
    }
    for name, here in there.items():
        present[name] = present[name] & here if name in present else here
        if name in told:
            told[name] = told[name] & here
    marked = {name: ~mask for name, mask in told.items()}
    marked |= {name: marked[name] & here if name in marked else here for name, here in there.items()}
    return t, present, told, marked
