"""Sampling: joint or with some modalities given, for exact and trained models alike (theory 4)."""

import collections
import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from mtdiff.checks import check_finite, check_names, check_real, check_whole
from mtdiff.laws import detached
from mtdiff.prediction import Denoiser, Given, Prediction
from mtdiff.process import ForwardProcess, Present, per_example
from mtdiff.solvers import SAMPLERS, Guess, Step

RULES = ("bayes", "substitute", "conditioned", "readout")
Towards = Callable[[Prediction], Tensor]
Guide = Callable[[Prediction, Tensor, int], Prediction]
AfterStep = Callable[[Tensor, int], Tensor]


def sample(
    model: Denoiser,
    n: int,
    *,
    given: Given = None,
    rule: str | Mapping[str, str] | None = None,
    sampler: str | Step | None = None,
    steps: int = 50,
    guidance: float = 1.0,
    present: Present = None,
    generator: torch.Generator | None = None,
    **options,
) -> dict[str, Tensor]:
    """Draw all modalities, some of which may be given: any to any.

    Args:
        given: {name: value}, n values or one for all; returned as given.
        rule: how given values act, one rule or {name: rule}; None is the model's own, or where it has none "conditioned" for
            what training gave it or what has no code, else "substitute".
            "conditioned": the backbone is given the value (rule 3; guidance is then classifier-free guidance).
            "bayes": gradient of the model's own head (rule 2; one given modality; guidance scales the gradient).
            "substitute": swaps the guess for the value (rule 1; biased, cannot be guided).
            "readout": no chain at all; z near t = 0 from the given values, heads read the others (rule 4).
        sampler: "ddpm" (ancestral), "ddim", "heun" or "dpm++" (2M), or a `mtdiff.solvers.Step` of your own; None is the
            model's own choice, "ddim" unless its card says that another one measured better.
        steps: number of intervals between t = T and the read-out, 1..T (Heun evaluates twice in each).
        guidance: scale of "bayes", "conditioned" or `towards`; 1 is none beyond the rule itself.
        present: the set S of modalities that the chain carries; None is all. The heads read the others off it. What is
            given outside of S only conditions the backbone.
        generator: source of all noise, on the model's device.
        **options: what else `sample_path` takes: `start`, `repeats`, `towards`, `guide`, `after_step`.

    Returns:
        {name: (n, ...)} all modalities, the given ones as copies.

    Raises:
        KeyError: given or rule names an unknown modality.
        ValueError: an unknown sampler or rule, steps out of range, guidance that is not finite or that the rule does not
            take, a given value that does not fit, rule "conditioned" for what the model was never given in training, a
            transition whose source is not given, a present set without something it needs, or a start that does not fit.
        FloatingPointError: the chain did not stay finite.

    Source: rules 1 and 2 follow Chen et al. 2024 (classifier guidance as a special case); see theory 4.
    """
    given, present = _values(model, n, given), _once(present)
    rules = _rules(model, given, rule)
    options |= {"sampler": sampler, "steps": steps, "guidance": guidance}
    path = sample_path(model, n, given=given, rule=rules, present=present, generator=generator, **options)
    if given and all(r == "readout" for r in rules.values()):
        _check_guidance(guidance, rules, options.get("towards"))
        if present is not None or options.get("start") is not None:
            raise ValueError('rule "readout" has no chain: it takes neither `present` nor `start`')
        t, codes, present, prediction = model.process.first, _double(model.encode(given)), set(given), None
        z, _ = model.process.diffuse(codes, t, _noise(model, n, generator), present)
        known = {}
    else:
        t, z, prediction = collections.deque(path, maxlen=1).pop()
        known = given
        if not bool(z.isfinite().all()):
            raise FloatingPointError("the chain left the finite numbers: try less guidance, or look at the model's weights")
    with torch.no_grad():
        drawn = model.read(z, t, given=known, present=present, prediction=prediction, generator=generator)
    return {**drawn, **{name: value.clone() for name, value in given.items()}}


def sample_path(
    model: Denoiser,
    n: int,
    *,
    given: Given = None,
    rule: str | Mapping[str, str] | None = None,
    present: Present = None,
    start: tuple[int, Tensor] | None = None,
    sampler: str | Step | None = None,
    steps: int = 50,
    repeats: int = 1,
    guidance: float = 1.0,
    towards: Towards | None = None,
    guide: Guide | None = None,
    after_step: AfterStep | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[int, Tensor, Prediction]]:
    """The reverse chain of `sample` as a generator; it takes the same but for rule "readout", which has no chain.

    Args:
        repeats: how often each interval is taken, with noise put back in between (`ForwardProcess.ahead`): as many times
            the evaluations. With a few long steps the parts of a draw agree better, and draws vary less than they should.
        start: (t, z_t) to start from in place of the chain's end, z_t (n, *Z): SDEdit's way.
        towards: prediction -> (n,) log p(what is wanted | z_t), by whose gradient the aggregate is moved as by rule 2.
        guide: (prediction, z_t, t) -> prediction, whatever else is to be done to what the model says.
        after_step: (z_s, s) -> z_s, whatever is to be done to the state after each step.

    Yields:
        (t, z_t, prediction) for the start and after each step, down to the read-out step; with repeats, each time that a
        step is taken, the state that it starts from. z_t is float64; the prediction has the given values worked in.

    Source: theory 4; the steps are in `mtdiff.solvers`.
    """
    given = _values(model, n, given)
    rules = _rules(model, given, rule)
    if "readout" in rules.values():
        raise ValueError(f'rule "readout" has no path and cannot be mixed with others, got {rules}: name one rule for all')
    _check_guidance(guidance, rules, towards)
    step, process = _step(model, sampler), model.process
    check_whole("repeats", repeats)
    codes = _double(model.encode(given)) if given else {}
    inform = _Informed(model, given, codes, rules, guidance, _carried(model, n, _once(present), rules), towards, guide)
    times = process.times(steps, None if start is None else start[0])
    z = _end(model, n, codes, generator) if start is None else _started(model, n, start[1])

    def noise() -> Tensor:
        return _noise(model, n, generator)

    look = _Chain(process, inform)
    for (t, s), again in itertools.product(itertools.pairwise(times), reversed(range(repeats))):
        yield t, z, look.predict(z, t)
        guess = look(z, t)
        z_s = step(look, z, t, s, noise)
        if z_s.shape != z.shape or z_s.dtype != z.dtype:
            raise ValueError(f"a step must return z_s {tuple(z.shape)} {z.dtype}, got {tuple(z_s.shape)} {z_s.dtype}")
        z_s = z_s if after_step is None else after_step(z_s, s)
        if again:
            mean, std = process.ahead(z_s, guess.moved(process, t, s), guess.aggregate, s, t)
            look.previous, z = None, mean + std * noise()
        else:
            look.previous, z = (t, guess), z_s
    yield times[-1], z, look.predict(z, times[-1])


def sample_many(model: Denoiser, n: int, batch: int = 250, given: Given = None, **options) -> dict[str, Tensor]:
    """`sample` in batches, so that memory does not grow with n; `given` holds n values of each name, never one."""
    parts = []
    for start in range(0, n, batch):
        rows = slice(start, min(start + batch, n))
        part = {name: value[rows] for name, value in (given or {}).items()}
        parts.append(sample(model, rows.stop - rows.start, given=part, **options))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class _Chain:
    """The model as a step sees it (`mtdiff.solvers.Look`); asked again for the last state, it does not compute."""

    def __init__(self, process: ForwardProcess, inform: Callable[[Tensor, int], Prediction]):
        self.process, self.previous, self.inform = process, None, inform
        self._last: tuple = (None, None, None)

    def predict(self, z: Tensor, t: int) -> Prediction:
        if self._last[0] is not z or self._last[1] != t:
            self._last = (z, t, self.inform(z, t))
        return self._last[2]

    def __call__(self, z: Tensor, t: int) -> Guess:
        return Guess.of(self.process, self.predict(z, t))


class _Informed:
    """The model's prediction with the given values worked in by their rules: conditioned, then Bayes, then substituted."""

    def __init__(self, model, given, codes, rules, guidance, present, towards, guide):
        self.model, self.codes, self.rules, self.present = model, codes, rules, present
        self.guidance, self.guide = guidance, guide
        self.given = {name: given[name] for name, r in rules.items() if r == "conditioned"}
        bayes = next((name for name, r in rules.items() if r == "bayes"), None)
        self.towards = towards
        if bayes is not None:
            value = model.tidy(given)[bayes]
            self.towards = lambda prediction: prediction.law[bayes].log_prob(value)
        self.absent = model.process.masks(present, 1, model.device) if isinstance(present, set) else {}

    def __call__(self, z: Tensor, t: int) -> Prediction:
        with torch.set_grad_enabled(self.towards is not None):
            leaf = z.detach().requires_grad_(self.towards is not None)
            prediction = self.model.predict(leaf, t, given=self.given or None, present=self.present)
            gradient = None
            if self.towards is not None:
                (gradient,) = torch.autograd.grad(self.towards(prediction).sum(), leaf)
        aggregate, unknown = prediction.aggregate.detach(), prediction.unknown
        law = {name: detached(each) for name, each in prediction.law.items()}
        estimate = {name: e.detach() for name, e in prediction.estimate.items()}
        at = self.model.process.at(t, z, self.present)
        if self.given and self.guidance != 1.0:
            aggregate, estimate = self._extrapolated(z, t, at, aggregate, estimate, unknown)
        if gradient is not None:  # theory 4, rule 2: Tweedie
            aggregate = aggregate + self.guidance * at.noise**2 / at.signal * gradient
            self._solve_moving(at, aggregate, estimate)
        for name, code in self.codes.items():
            if self.rules[name] == "substitute":  # theory 4, rule 1
                aggregate = aggregate + at.W[name] * (code - estimate[name])
            estimate[name] = code
        for name, mask in self.model.process.masks(self.present, len(z), z.device).items():
            estimate[name] = estimate[name] * per_example(mask, z)
        out = Prediction(aggregate, law, estimate, unknown)
        return out if self.guide is None else self.guide(out, z, t)

    def _extrapolated(self, z, t, at, aggregate, estimate, unknown):
        """Classifier-free guidance: from what the model says without the given values to what it says with them."""
        with torch.no_grad():
            without = self.model.predict(z, t, present=self.present)
        estimate = {name: torch.lerp(without.estimate[name], e, self.guidance) for name, e in estimate.items()}
        if unknown is None:
            return torch.lerp(without.aggregate, aggregate, self.guidance), estimate
        guided = {i: self.codes[i] if i in self.given else estimate[i] for i in self.model.process.entering}
        # made of the heads: what is known stays as it is
        return torch.where(unknown, at.mix(guided), aggregate), estimate

    def _solve_moving(self, at, aggregate, estimate) -> None:
        """Bayes corrects the aggregate only: what the known codes leave of it belongs to the one unknown that moves."""
        process = self.model.process
        unknown = [i for i in process.entering if i not in self.codes and i not in self.absent]
        moving = [i for i in unknown if i in process.moving]
        if moving and len(unknown) > 1:
            raise ValueError(f'rule "bayes" cannot tell the unknown {unknown} apart while {moving} moves; use "conditioned"')
        for j in moving:
            rest = aggregate - at.mix(self.codes)
            estimate[j] = torch.where(at.W[j] != 0, rest / at.W[j], estimate[j])


def _values(model: Denoiser, n: int, given: Given) -> dict[str, Tensor]:
    """Given values, n of each, on the model's device."""
    check_whole("n", n)
    values = {}
    for name, value in (given or {}).items():
        model.check({name: value}, "given")
        if len(value) not in (1, n):
            raise ValueError(f"given[{name!r}] has {len(value)} examples, expected {n} (or 1 for all)")
        values[name] = value.to(model.device).expand(n, *value.shape[1:])
    if model.process.prior is not None and model.process.prior not in values:
        raise ValueError(f"this process ends at {model.process.prior!r}: a sample needs it in `given`")
    missing = [name for name in model.conditions if name not in values]
    if missing:
        raise ValueError(f"this model was trained with {missing} always given: a sample needs it in `given`")
    return values


def _rules(model: Denoiser, values: Mapping[str, Tensor], rule: str | Mapping[str, str] | None) -> dict[str, str]:
    """{name: rule} for each given value: as asked for, or the model's own, or what training and the chain allow."""
    check_names("rule", rule if isinstance(rule, Mapping) else (), values)
    wanted = model.rule if rule is None else rule
    _check_known(wanted)
    if rule is None and set(values) == set(model.modalities):  # nothing is left to draw
        return dict.fromkeys(values, "readout")
    by_name = wanted if isinstance(wanted, Mapping) else dict.fromkeys(values, wanted)
    rules = {name: by_name.get(name) or _usual(model, name) for name in values}
    _check_rules(model, rules)
    return rules


def _usual(model: Denoiser, name: str) -> str:
    """The rule for a value of which nobody says how it acts."""
    conditioned = name not in model.process.entering or name in (model.taught or ())
    return "conditioned" if conditioned else "substitute"


def _check_known(rule: str | Mapping[str, str] | None) -> None:
    for each in rule.values() if isinstance(rule, Mapping) else [rule]:
        if each not in (None, *RULES):
            raise ValueError(f"rule must be one of {RULES}, got {each!r}")


def check_defaults(rule: str | Mapping[str, str] | None, sampler: str) -> None:
    """Refuse what cannot be a model's own rule, or its own sampler, which its card has to name."""
    _check_known(rule)
    if not isinstance(sampler, str) or sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {tuple(SAMPLERS)}, got {sampler!r}: give a step of your own to `sample`")


def _check_rules(model: Denoiser, rules: Mapping[str, str]) -> None:
    """Refuse rules that cannot do what they say."""
    for name, rule in rules.items():
        if name not in model.process.entering and rule in ("substitute", "readout"):
            raise ValueError(f'{name!r} is not in the chain: give it by rule "conditioned" or "bayes", not {rule!r}')
    conditioned = [name for name, rule in rules.items() if rule == "conditioned"]
    if model.taught is not None and (never := [name for name in conditioned if name not in model.taught]):
        text = f'rule "conditioned" for {never}, which this model was never given in training: draws would not follow it'
        raise ValueError(f"{text}. Train with `give`, or use another of {RULES}")
    if list(rules.values()).count("bayes") > 1:
        raise ValueError('rule "bayes" takes one given modality: heads do not give the joint p(x_K | z_t) (theory 4)')


def _check_guidance(guidance: float, rules: Mapping[str, str], towards: Towards | None) -> None:
    check_finite("guidance", guidance)
    if guidance != 1.0 and towards is None and not {"bayes", "conditioned"} & set(rules.values()):
        raise ValueError(f'guidance {guidance} needs rule "bayes" or "conditioned" for a given value, got {rules}')
    if towards is not None and "bayes" in rules.values():
        raise ValueError('`towards` and rule "bayes" both move the aggregate by a gradient: take one')


def _step(model: Denoiser, sampler: str | Step | None) -> Step:
    sampler = model.sampler if sampler is None else sampler
    if callable(sampler):
        return sampler
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {tuple(SAMPLERS)} or a step of your own, got {sampler!r}")
    return SAMPLERS[sampler]


def _double(codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: code.detach().double() for name, code in codes.items()}


def _noise(model: Denoiser, n: int, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise on the space, float64 and the same on every device that a generator is from."""
    return torch.randn((n, *model.space), dtype=torch.float64, device=model.device, generator=generator)


def _once(present: Present) -> Present:
    """The present set, whatever its names come in."""
    return present if present is None or isinstance(present, Mapping | str) else set(present)


def _carried(model: Denoiser, n: int, present: Present, rules: Mapping[str, str]) -> Present:
    """The present set, which must hold what rules work on in the chain."""
    if present is None:
        return None
    if isinstance(present, Mapping):
        return model.process.masks(present, n, model.device)
    check_names("present", present, list(model.modalities))
    left_out = [name for name, rule in rules.items() if rule != "conditioned" and name not in present]
    if not present or left_out or model.process.prior not in (None, *present):
        needed = left_out or [model.process.prior or "one modality"]
        raise ValueError(f"present must hold {needed}, got {sorted(present)}")
    return present


def _started(model: Denoiser, n: int, z: Tensor) -> Tensor:
    """A start that the caller chose, in float64."""
    check_real("start: z_t", z)
    if tuple(z.shape) != (n, *model.space):
        raise ValueError(f"start needs z_t of shape {(n, *model.space)}, got {tuple(z.shape)}")
    return z.to(model.device).double()


def _end(model: Denoiser, n: int, codes: Mapping[str, Tensor], generator: torch.Generator | None) -> Tensor:
    """z_T from N(0, I), or in transition mode from q(z_T | source), which is known exactly."""
    noise, prior = _noise(model, n, generator), model.process.prior
    if prior is None:
        return noise
    return model.process.diffuse({prior: codes[prior]}, model.process.steps, noise, {prior})[0]
