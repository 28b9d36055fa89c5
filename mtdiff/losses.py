"""The multi-task training loss (theory 3)."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from mtdiff.checks import check_names
from mtdiff.model import MTDiffusion
from mtdiff.schedules import Levels

Chances = Mapping[str, float | str]
"""{name: a probability in [0, 1], or the name of another modality, whose coin it then shares}; 0 where not named."""


def check_options(
    weights: Mapping[str, float] | None, drop: Chances | None, give: Chances | None, known: Collection[str] | None = None
) -> None:
    """Whether options of `multitask_loss` can work, for modalities that are known (None: unchecked).

    Raises:
        KeyError: a name is no modality.
        ValueError: a number out of range, weights that are all 0, or a name in drop or give that has no number there.
    """
    for what, numbers, top in (("weights", weights, math.inf), ("drop", drop, 1.0), ("give", give, 1.0)):
        for name, number in (numbers or {}).items():
            if known is not None:
                check_names(what, [name], [*known, "denoise"] if what == "weights" else known)
            if what != "weights" and isinstance(number, str):
                if not isinstance(numbers.get(number), Real):
                    raise ValueError(f"{what}[{name!r}] is {number!r}, which has no probability in {what}: {dict(numbers)}")
            elif not isinstance(number, Real) or not 0 <= number <= top or number == math.inf:
                raise ValueError(f"{what}[{name!r}] must be in [0, {top}], got {number!r}: expected a finite number")
    if known is not None and weights and not any(weights.get(name, 1.0) for name in ("denoise", *known)):
        raise ValueError(f"weights must not all be 0, got {dict(weights)}: there is nothing to learn")


def coins(
    chances: Chances | None, size: int, device: torch.device, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """{name: (B,) bool}: a coin for each of B examples and each modality with a chance above 0."""
    chances, own = chances or {}, {}
    for name, p in chances.items():
        if isinstance(p, Real) and p > 0:
            own[name] = torch.rand(size, generator=generator, device=device) < p
    return {name: own[name if name in own else p] for name, p in chances.items() if name in own or p in own}


@dataclass(frozen=True)
class Loss:
    """A training loss and its parts.

    Attributes:
        total: scalar; lambda_denoise denoise + sum_i lambda_i term_i.
        terms: {"denoise": scalar, name: scalar}, unweighted. Denoise and images are mean squares per coordinate in
            units of the target, labels are nats.
    """

    total: Tensor
    terms: dict[str, Tensor]

    def __post_init__(self):
        if taken := sorted({"step", "seconds", "total", "gradient"} & self.terms.keys()):
            raise ValueError(f"a term of a loss cannot be called {taken}: a row of the history says something else there")


@dataclass(frozen=True)
class Draw:
    """What is drawn for a batch before it is noised.

    Attributes:
        t: (B,) steps.
        present: {name: (B,) bool} who is in the aggregate; all that are not named.
        known: {name: (B,) bool} which examples are given the modality; of those not named none.
        scored: {name: (B,) bool} whose heads are scored; all that are not named.
    """

    t: Tensor
    present: dict[str, Tensor]
    known: dict[str, Tensor]
    scored: dict[str, Tensor]

    @classmethod
    def of(cls, model: MTDiffusion, batch: Mapping[str, Tensor], there, drop, give, levels, generator) -> "Draw":
        """A draw for examples of which `there` says {name: (B,) bool} who has a value, where some lack one."""
        value = next(iter(batch.values()))
        size, device = len(value), value.device
        t = model.process.draw_steps(size, levels, generator, device)
        everybody = torch.ones(size, dtype=torch.bool, device=device)
        present = {name: ~dropped for name, dropped in coins(drop, size, device, generator).items()}
        known = coins(give, size, device, generator) | dict.fromkeys(model.conditions, everybody)
        present |= {name: present.get(name, everybody) & here for name, here in there.items()}
        known |= {name: known[name] & here for name, here in there.items() if name in known}
        scored = {name: ~mask for name, mask in known.items()}
        scored |= {name: scored.get(name, everybody) & here for name, here in there.items()}
        return cls(t, present, known, scored)


def scored(
    model: MTDiffusion,
    batch: Mapping[str, Tensor],
    *,
    drop: Chances | None = None,
    give: Chances | None = None,
    missing: Collection[str] = (),
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """{name: on how many examples} `multitask_loss` is going to score each head that is not scored on all.

    A batch that is computed in parts needs this beforehand: the loss divides by what is scored in all of them. The generator
    is the one that the loss is going to draw from, and stays as it is.
    """
    draw = Draw.of(model, batch, _there(model, batch, missing), drop, give, None, generator.clone_state())
    return {name: mask.sum() for name, mask in draw.scored.items()}


def multitask_loss(
    model: MTDiffusion,
    batch: Mapping[str, Tensor],
    *,
    weights: Mapping[str, float] | None = None,
    drop: Chances | None = None,
    give: Chances | None = None,
    levels: Levels = None,
    missing: Collection[str] = (),
    counts: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Loss:
    """E over t, noise and the present set S: weight_t || m_t - E[m_t | z_t] ||^2 + sum_i lambda_i loss_i(x_i, D_i(z_t, t)).

    The weight makes the first term the squared error of the model's output (see `mtdiff.model.Aggregate`), the mean over the
    coordinates that are not known. Steps are stratified over the batch (one in each B-th part of first..T). S is drawn per
    example, independent of X: the aggregate runs over S only, which the model knows, and the heads still predict everything.

    Args:
        batch: {name: (B, ...)}, all modalities of the model.
        weights: {name or "denoise": lambda_i >= 0}, 1 where not named. What weighs 0 has a value, and costs no gradient.
        drop: chances that a modality is absent from S.
        levels: mean and standard deviation of the log-SNR that steps are drawn at (`NoiseSchedule.chances`); None: all
            alike, as in the bound. Every step's best answer is the same; what a small network cares for most is not.
        give: chances that the backbone is given the value (rule 3). The head of a given modality is not scored on that
            example: it would only copy. The model's `conditions` are always given.
        missing: names of modalities that some examples lack (a label of -1). There they are absent from S, are not
            given, and their head is not scored: the example is one of the others alone.
        counts: {name: scalar} what sums over scored examples are divided by, for a batch that is a part of a larger one
            (see `scored`); None or {}: the examples that are scored here.
        generator: source of steps, noise and sets.

    Raises:
        KeyError: batch, weights, drop, give or missing names an unknown modality, or batch lacks one.
        ValueError: an invalid value in the batch, a number out of range, or a name in drop or give that has no number there.

    Source: Chen et al. 2024 (multi-task loss); random present sets are ours (theory 2).
    """
    missing = check_names("missing", missing, list(model.modalities))
    there = _there(model, batch, missing)
    batch = _whole(model, batch, there)
    check_options(weights, drop, give, list(model.modalities))
    draw, codes = Draw.of(model, batch, there, drop, give, levels, generator), model.encode(batch)
    if draw.t.device.type == "cpu":  # elsewhere nothing is read back
        model.check_prior(codes, there)
    if model.training and give:
        model.teach(give)

    at = model.process.at(draw.t, next(iter(codes.values())), draw.present)
    m_t = at.mix(codes)
    eps = torch.randn(m_t.shape, dtype=m_t.dtype, device=m_t.device, generator=generator)
    given = {name: batch[name] for name in draw.known}
    prediction = model(at.signal * m_t + at.noise * eps, draw.t, given, draw.present, draw.known)

    square = (model.aggregate.weight(at) * (m_t - prediction.aggregate) ** 2).flatten(1)
    unknowns = square.shape[1] if prediction.unknown is None else prediction.unknown.flatten(1).sum(1).clamp(min=1)
    terms = {"denoise": (square.sum(1) / unknowns).mean()}
    for name in model.modalities:
        each = prediction.law[name].loss(batch[name])
        mask = draw.scored.get(name, torch.ones_like(each, dtype=torch.bool))
        count = counts[name] if counts and name in draw.scored else mask.sum()
        terms[name] = torch.where(mask, each, 0.0).sum() / count.to(each).clamp(min=1e-6)  # 0 where nobody is scored
    weigh = dict.fromkeys(terms, 1.0) | dict(weights or {})
    return Loss(sum(weigh[name] * term for name, term in terms.items() if weigh[name]), terms)


def _there(model: MTDiffusion, batch: Mapping[str, Tensor], missing: Collection[str]) -> dict[str, Tensor]:
    """{name: (B,) bool} which examples have a value, of modalities that some lack."""
    return {name: ~model.modalities[name].missing(batch[name]) for name in missing if name in batch}


def _whole(model: MTDiffusion, batch: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checked batch of all modalities, zeros in place of what is missing."""
    batch = {name: model.modalities[name].filled(value) if name in there else value for name, value in batch.items()}
    model.check(batch)
    lacking = [name for name in model.modalities if name not in batch]
    if lacking:
        raise KeyError(f"batch lacks {lacking}; it has {list(batch)}")
    return model.tidy(batch)
