"""Sampling: joint or with some modalities given, for exact and trained models alike (theory 4)."""

import collections
import functools
import itertools
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from mtdiff.model import Prediction
from mtdiff.process import check_finite, check_names, check_real
from mtdiff.solvers import Guess, ancestral, ddim, extrapolate, heun, renoise

SAMPLERS = ("ddpm", "ddim", "heun", "dpm++")
RULES = ("bayes", "substitute", "conditioned", "readout")


def sample(
    model,
    n: int,
    *,
    given: Mapping[str, Tensor] | None = None,
    rule: str | Mapping[str, str] | None = None,
    sampler: str | None = None,
    steps: int = 50,
    repeats: int = 1,
    guidance: float = 1.0,
    present: Collection[str] | None = None,
    start: tuple[int, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Draw all modalities, some of which may be given: any to any.

    Args:
        model: anything with `process`, `space`, `modalities`, `device`, `rule`, `check`, `encode`, `predict`,
            `log_prob` and `read`: `MTDiffusion` or a model of `mtdiff.exact`.
        n: number of examples.
        given: {name: value}, n values or one for all; returned as given.
        rule: how given values act, one rule or {name: rule}; None is the model's own default.
            "conditioned": the backbone is told (rule 3; guidance is then classifier-free guidance).
            "bayes": gradient of the model's own head (rule 2; one given modality; guidance scales the gradient).
            "substitute": swaps the guess for the value (rule 1; biased, cannot be guided).
            "readout": no chain at all; z near t = 0 from the given values, heads read the others (rule 4).
        sampler: "ddpm" (ancestral), "ddim", "heun" or "dpm++" (2M); None is the model's own choice, "ddim" unless its
            card says that another one measured better.
        steps: number of intervals between t = T and the read-out, 1..T (Heun evaluates twice in each).
        repeats: how often each interval is taken, with noise put back in between (`mtdiff.solvers.renoise`): as many times
            the evaluations. With a few long steps the parts of a draw agree better, and draws vary less than they should.
        guidance: scale of "bayes" or "conditioned"; 1 is none beyond the rule itself.
        present: the set S of modalities that the chain carries; None is all. The heads read the others off it. What is
            given outside of S is only told, by the rule "conditioned".
        start: (t, z_t) to start from in place of the chain's end, z_t (n, *Z): SDEdit's way.
        generator: source of all noise, on the model's device.

    Returns:
        {name: (n, ...)} all modalities, the given ones as copies.

    Raises:
        KeyError: given or rule names an unknown modality.
        ValueError: an unknown sampler or rule, steps out of range, guidance that is not finite or that the rule does not
            take, a given value that does not fit, rule "conditioned" for what the model was never told in training, a
            transition whose source is not given, a present set without something it needs, or a start that does not fit.
        FloatingPointError: the chain did not stay finite.

    Source: rules 1 and 2 follow Chen et al. 2024 (classifier guidance as a special case); see theory 4.
    """
    _check_repeats(repeats)
    given, rules = _given(model, n, given, rule, guidance)
    present = None if present is None else check_names("present", present)
    if given and all(r == "readout" for r in rules.values()):
        if present is not None or start is not None:
            raise ValueError('rule "readout" has no chain: it takes neither `present` nor `start`')
        mask = _mask(model, n, given)
        t, codes = model.process.first, _double(model.encode(given))
        z, _ = model.process.diffuse(codes, t, _noise(model, n, generator), mask)
        with torch.no_grad():
            drawn = model.read(z, t, present=mask, generator=generator)
    else:
        path = sample_path(
            model, n, given=given, rule=rules, sampler=sampler, steps=steps, repeats=repeats, guidance=guidance,
            present=present, start=start, generator=generator,
        )  # fmt: skip
        t, z, prediction = collections.deque(path, maxlen=1).pop()
        if not bool(z.isfinite().all()):
            raise FloatingPointError("the chain left the finite numbers: try less guidance, or look at the model's weights")
        with torch.no_grad():
            mask = None if present is None else _mask(model, n, present)
            drawn = model.read(z, t, given=given, present=mask, generator=generator, prediction=prediction)
    return {**drawn, **{name: value.clone() for name, value in given.items()}}


def sample_path(
    model,
    n: int,
    *,
    given: Mapping[str, Tensor] | None = None,
    rule: str | Mapping[str, str] | None = None,
    sampler: str | None = None,
    steps: int = 50,
    repeats: int = 1,
    guidance: float = 1.0,
    present: Collection[str] | None = None,
    start: tuple[int, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[int, Tensor, Prediction]]:
    """The reverse chain as a generator; arguments as in `sample`.

    One step from t to s, any sampler (`mtdiff.solvers`): m^_s = m^_t + sum_i (W_s^i - W_t^i) e^_i, then
    z_s = sqrt(abar_s) m^_s + sqrt(1 - abar_s - sigma^2) eps^ + sigma n.

    Args:
        model: as in `sample`.
        n: as in `sample`.
        given: as in `sample`.
        rule: as in `sample`, but not "readout".
        sampler: as in `sample`.
        steps: as in `sample`.
        repeats: as in `sample`.
        guidance: as in `sample`.
        present: as in `sample`.
        start: as in `sample`.
        generator: as in `sample`.

    Yields:
        (t, z_t, prediction) for the start and after each step, down to the read-out step; with repeats, each time that a
        step is taken, the state that it starts from. z_t is float64; the prediction has the given values worked in.

    Raises:
        KeyError: as in `sample`.
        ValueError: as in `sample`.

    Source: Song et al. 2021 (DDIM, probability flow); Lu et al. 2022 (DPM-Solver++ 2M); moving curves: theory 4.
    """
    given, rules = _given(model, n, given, rule, guidance)
    if "readout" in rules.values():
        raise ValueError(f'rule "readout" has no path and cannot be mixed with others, got {rules}: name one rule for all')
    sampler = getattr(model, "sampler", "ddim") if sampler is None else sampler
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {SAMPLERS}, got {sampler!r}")
    process = model.process
    known = _double(model.encode(given)) if given else {}
    absent = _absent(model, present, rules)
    top, z = (process.steps, _start(model, n, known, generator)) if start is None else _started(model, n, *start)
    if not isinstance(steps, int) or not 1 <= steps <= top - process.first:
        raise ValueError(f"steps must be in 1..{top - process.first} from t = {top}, got {steps!r}")
    _check_repeats(repeats)
    times = torch.linspace(top, process.first, steps + 1, dtype=torch.float64).round().long().tolist()
    inform = functools.partial(_informed, model, given=given, known=known, rules=rules, guidance=guidance, absent=absent)
    previous: tuple[int, Guess] | None = None
    for (t, s), again in itertools.product(itertools.pairwise(times), reversed(range(repeats))):
        prediction = inform(z, t)
        yield t, z, prediction
        guess = Guess.of(process, prediction)
        if sampler == "ddpm":
            z_next = ancestral(process, z, guess, t, s, _noise(model, n, generator))
        elif sampler == "heun":
            end = ddim(process, z, guess, t, s)
            z_next = heun(process, z, guess, t, s, Guess.of(process, inform(end, s)))
        elif sampler == "dpm++" and previous is not None:
            z_next = ddim(process, z, extrapolate(process, *previous, t, guess, s), t, s)
        else:
            z_next = ddim(process, z, guess, t, s)
        if again:
            previous, z = None, renoise(process, z_next, guess, t, s, _noise(model, n, generator))
        else:
            previous, z = (t, guess), z_next
    yield times[-1], z, inform(z, times[-1])


def sample_many(model, n: int, batch: int = 250, given: Mapping[str, Tensor] | None = None, **options) -> dict[str, Tensor]:
    """`mtdiff.sample` in batches, so that memory does not grow with n; `given` holds n values of each name, never one."""
    parts = []
    for start in range(0, n, batch):
        rows = slice(start, min(start + batch, n))
        part = {name: value[rows] for name, value in (given or {}).items()}
        parts.append(sample(model, rows.stop - rows.start, given=part, **options))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _given(model, n, given, rule, guidance):
    """Checked values (n of each) and {name: rule} for each of them."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a positive int, got {n!r}")
    check_finite("guidance", guidance)
    values = {}
    for name, value in (given or {}).items():
        model.check({name: value}, "given")
        if len(value) not in (1, n):
            raise ValueError(f"given[{name!r}] has {len(value)} examples, expected {n} (or 1 for all)")
        values[name] = value.to(model.device).expand(n, *value.shape[1:])
    if model.process.prior is not None and model.process.prior not in values:
        raise ValueError(f"this process ends at {model.process.prior!r}: a sample needs it in `given`")
    missing = [name for name in getattr(model, "conditions", ()) if name not in values]
    if missing:
        raise ValueError(f"this model was trained with {missing} always given: a sample needs it in `given`")
    chosen = model.rule if rule is None else rule
    for r in chosen.values() if isinstance(chosen, Mapping) else [chosen]:
        if r is not None and r not in RULES:
            raise ValueError(f"rule must be one of {RULES}, got {r!r}")
    rules = {}
    for name in values:
        wanted, coded = chosen.get(name) if isinstance(chosen, Mapping) else chosen, name in model.process.entering
        rules[name] = wanted or ("substitute" if coded else "conditioned")
        if not coded and rules[name] in ("substitute", "readout"):
            raise ValueError(f'{name!r} is not in the chain: give it by rule "conditioned" or "bayes", not {wanted!r}')
    if rule is None and set(values) == set(model.modalities):  # nothing is left to draw
        rules = dict.fromkeys(values, "readout")
    if isinstance(rule, Mapping):
        for name in rule:
            if name not in values:
                raise KeyError(f"rule names {name!r}, which is not given; given are {list(values)}")
    taught = getattr(model, "taught", None)
    never = [name for name, r in rules.items() if r == "conditioned" and taught is not None and name not in taught]
    if never:
        text = f'rule "conditioned" for {never}, which this model was never told in training: draws would not follow it'
        raise ValueError(f"{text}. Train with `give`, or use another of {RULES}")
    if list(rules.values()).count("bayes") > 1:
        raise ValueError('rule "bayes" takes one given modality: heads do not give the joint p(x_K | z_t) (theory 4)')
    if guidance != 1.0 and not {"bayes", "conditioned"} & set(rules.values()):
        raise ValueError(f'guidance {guidance} needs rule "bayes" or "conditioned" for a given value, got {rules}')
    return values, rules


def _check_repeats(repeats):
    if not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats must be a whole number from 1 on, got {repeats!r}")


def _double(codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: code.detach().double() for name, code in codes.items()}


def _noise(model, n, generator):
    """Standard normal noise on the space, float64 and the same on every device that a generator is from."""
    return torch.randn((n, *model.space), dtype=torch.float64, device=model.device, generator=generator)


def _mask(model, n, names):
    """{name: (n,) bool}: whether it is one of `names`."""
    return {name: torch.full((n,), name in names, device=model.device) for name in model.modalities}


def _absent(model, present, rules):
    """The modalities that the chain does not carry, checked."""
    if present is None:
        return ()
    present = check_names("present", present)
    for name in present:
        if name not in model.modalities:
            raise KeyError(f"present names an unknown modality {name!r}; this model has {list(model.modalities)}")
    left_out = [name for name, rule in rules.items() if rule != "conditioned" and name not in present]
    if not present or left_out or model.process.prior not in (None, *present):
        needed = left_out or [model.process.prior or "one modality"]
        raise ValueError(f"present must hold {needed}, got {list(present)}")
    return tuple(name for name in model.modalities if name not in present)


def _started(model, n, t, z):
    """A start that the caller chose, checked: the step and z_t in float64."""
    first, last = model.process.first, model.process.steps
    if not isinstance(t, int) or not first < t <= last:
        raise ValueError(f"start needs a step in {first + 1}..{last}, got {t!r}")
    check_real("start: z_t", z)
    if tuple(z.shape) != (n, *model.space):
        raise ValueError(f"start needs z_t of shape {(n, *model.space)}, got {tuple(z.shape)}")
    return t, z.to(model.device).double()


def _start(model, n, known, generator):
    """z_T from N(0, I), or in transition mode from q(z_T | source), which is known exactly."""
    noise = _noise(model, n, generator)
    prior = model.process.prior
    if prior is None:
        return noise
    return model.process.diffuse({prior: known[prior]}, model.process.steps, noise, _mask(model, n, [prior]))[0]


def _informed(model, z, t, *, given, known, rules, guidance, absent) -> Prediction:
    """The model's prediction with the given values worked in by their rules: told, then Bayes, then substituted."""
    told = {name: given[name] for name, r in rules.items() if r == "conditioned"}
    bayes = next((name for name, r in rules.items() if r == "bayes"), None)
    mask = _mask(model, len(z), [i for i in model.modalities if i not in absent]) if absent else None
    with torch.set_grad_enabled(bayes is not None):
        leaf = z.detach().requires_grad_(bayes is not None)
        prediction = model.predict(leaf, t, given=told or None, present=mask)
        if bayes is not None:
            log_p = model.log_prob(bayes, given[bayes], leaf, t, given=told or None, present=mask, prediction=prediction)
            (gradient,) = torch.autograd.grad(log_p.sum(), leaf)
    aggregate = prediction.aggregate.detach()
    estimate = {name: e.detach() for name, e in prediction.estimate.items()}
    params = {name: p.detach() for name, p in prediction.params.items()}
    if told and guidance != 1.0:  # classifier-free guidance: extrapolate from untold to told
        with torch.no_grad():
            untold = model.predict(z, t, present=mask)
        estimate = {name: torch.lerp(untold.estimate[name], e, guidance) for name, e in estimate.items()}
        if prediction.open is None:
            aggregate = torch.lerp(untold.aggregate, aggregate, guidance)
        else:  # made of the heads: what is known stays as it is
            guided = {name: known[name] if name in told else estimate[name] for name in model.process.entering}
            aggregate = torch.where(prediction.open, model.process.aggregate(guided, t, mask), aggregate)
    if bayes is not None:  # theory 4, rule 2: Tweedie
        signal, noise = model.process.level(t, z)
        aggregate = aggregate + guidance * noise**2 / signal * gradient
        _solve_moving(model.process, t, aggregate, known, estimate, absent)
    for name, code in known.items():
        if rules[name] == "substitute":  # theory 4, rule 1
            aggregate = aggregate + model.process.weight(name, t, z) * (code - estimate[name])
        estimate[name] = code
    for name in absent:
        estimate[name] = torch.zeros_like(z)
    return Prediction(aggregate, params, estimate)


def _solve_moving(process, t, aggregate, known, estimate, absent) -> None:
    """Bayes corrects the aggregate only: what the known codes leave of it belongs to the one unknown that moves."""
    unknown = [i for i in process.entering if i not in known and i not in absent]
    moving = [i for i in unknown if i in process.moving]
    if moving and len(unknown) > 1:
        raise ValueError(f'rule "bayes" cannot tell the unknown {unknown} apart while {moving} moves; use "conditioned"')
    for j in moving:
        weight, rest = process.weight(j, t, aggregate), sum(process.weight(i, t, c) * c for i, c in known.items())
        estimate[j] = torch.where(weight != 0, (aggregate - rest) / weight, estimate[j])
