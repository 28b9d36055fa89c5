"""Sampling: joint or with some modalities given, for exact and trained models alike (theory 4)."""

import collections
import itertools
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mtdiff.checks import check_choice, check_names, check_real, check_whole
from mtdiff.laws import detached
from mtdiff.prediction import Denoiser, Given, Prediction
from mtdiff.process import Present, per_example
from mtdiff.solvers import SAMPLERS, Guess, Step

RULES = ("bayes", "substitute", "conditioned", "readout")
Towards = Callable[[Prediction], Tensor]
Guide = Callable[[Prediction, Tensor, int], Prediction]
AfterStep = Callable[[Tensor, int], Tensor]
Rule = str | Mapping[str, str] | None
"""One of `RULES` for all that is given, or {name: rule}; None: as the model has it."""
OF_A_PATH = ("start", "repeats", "towards", "guide", "after_step")
"""Options of `sample` that are explained in `sample_path`."""


def sample(
    model: Denoiser,
    n: int,
    *,
    given: Given = None,
    rule: Rule = None,
    sampler: str | Step | None = None,
    steps: int = 50,
    guidance: float = 1.0,
    present: Present = None,
    chain: str | Sequence[str | tuple[str, Mapping]] = (),
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
        guidance: scale of "bayes", "conditioned" or `towards`; 1 is none beyond the rule itself. Of "conditioned" it is
            classifier-free guidance; a model with `remove_known` must have been trained with the given modality absent, too.
        present: the set S of modalities that the chain carries; None is all. The heads read the others off it. What is
            given outside of S only conditions the backbone.
        chain: what to draw first, one after the other, each for what is given and drawn before: names, or (name, options of
            its own such as {"steps": 20, "guidance": 2.0}; guidance is 1 there). All modalities are carried each time, and
            one is kept; the last time draws the rest.
        generator: source of all noise, on the model's device.
        **options: what else `sample_path` takes, `OF_A_PATH`.

    Returns:
        {name: (n, ...)} all modalities, the given ones as copies.

    Raises:
        KeyError: given, rule or chain names an unknown modality.
        TypeError: an option that neither has.
        ValueError: an unknown sampler or rule, steps out of range, guidance that is not finite or that the rule does not
            take, a given value that does not fit, rule "conditioned" for what the model was never given in training, a
            transition whose source is not given, a present set without something it needs, a start that does not fit, or a
            chain that names something twice, or what is given.
        FloatingPointError: the chain did not stay finite.

    Source: rules 1 and 2 follow Chen et al. 2024 (classifier guidance as a special case); see theory 4.
    """
    if not hasattr(model, "predict"):  # a model without a common chain, such as a multimodal VAE
        usual = {"rule": rule, "sampler": sampler, "guidance": guidance, "present": present, "chain": chain}
        return model.draw(n, given=given, steps=steps, generator=generator, **usual, **options)
    if unknown := sorted(options.keys() - OF_A_PATH):
        raise TypeError(f"sample() got unexpected options {unknown}; beside its own it takes {list(OF_A_PATH)}")
    if chain:
        usual = {"sampler": sampler, "steps": steps, "guidance": guidance, "present": present, **options}
        return _one_by_one(model, n, dict(given or {}), rule, chain, generator, usual)
    chain = _Chain(model, n, given, rule, generator)
    path = chain.run(sampler=sampler, steps=steps, guidance=guidance, present=present, **options)
    if set(chain.rules.values()) == {"readout"}:
        _check_guidance(guidance, chain.rules, options.get("towards"))
        if present is not None or options.get("start") is not None:
            raise ValueError('rule "readout" has no chain: it takes neither `present` nor `start`')
        t, known, present, prediction = model.process.first, {}, set(chain.given), None
        z, _ = model.process.diffuse(chain.codes, t, present=present, generator=generator)
    else:
        t, z, prediction = collections.deque(path, maxlen=1).pop()
        known, present = chain.given, chain.present
        if not bool(z.isfinite().all()):
            raise FloatingPointError("the chain left the finite numbers: try less guidance, or look at the model's weights")
    with torch.no_grad():
        drawn = model.read(z, t, given=known, present=present, prediction=prediction, generator=generator)
    return {**drawn, **{name: value.clone() for name, value in chain.given.items()}}


def _one_by_one(model, n, given, rule, chain, generator, usual) -> dict[str, Tensor]:
    """`sample` of what a chain names, one after the other, and then of the rest."""
    for name, own in [*_stages(model, given, chain), ("", {})]:
        rules = {k: each for k, each in rule.items() if k in given} if isinstance(rule, Mapping) else rule
        drawn = sample(model, n, given=given, rule=rules, generator=generator, **{**usual, **own})
        given = {**given, name: drawn[name]} if name else given
        if len(given) == len(model.modalities):
            break
    return drawn


def _stages(model, given, chain) -> list[tuple[str, dict]]:
    """(name, its options) of what a chain draws first; guidance is 1 unless it has its own."""
    chain = [chain] if isinstance(chain, str) else chain
    stages = [(stage, {}) if isinstance(stage, str) else stage for stage in chain]
    names = check_names("chain", [name for name, _ in stages], list(model.modalities))
    twice = sorted({name for name in names if name in given or names.count(name) > 1})
    if twice:
        raise ValueError(f"chain names {twice}, which is given or named before: {list(names)}, given {sorted(given)}")
    return [(name, {"guidance": 1.0, **own}) for name, own in stages]


def sample_path(
    model: Denoiser,
    n: int,
    *,
    given: Given = None,
    rule: Rule = None,
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
    chain = _Chain(model, n, given, rule, generator)
    yield from chain.run(present, start, sampler, steps, repeats, guidance, towards, guide, after_step)


def sample_many(model: Denoiser, n: int, batch: int = 250, given: Given = None, **options) -> dict[str, Tensor]:
    """`sample` in batches, so that memory does not grow with n; `given` holds n values of each name, never one."""
    parts = []
    for rows in torch.arange(n).split(batch):
        part = {name: value[rows] for name, value in (given or {}).items()}
        parts.append(sample(model, len(rows), given=part, **options))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class _Chain:
    """A reverse chain: what is given, by which rules, and the model as a step sees it (`mtdiff.solvers.Look`)."""

    def __init__(self, model: Denoiser, n: int, given: Given, rule: Rule, generator):
        self.model, self.process, self.n, self.generator = model, model.process, n, generator
        self.given = _values(model, n, given)
        self.rules = _rules(model, self.given, rule)
        codes = model.encode(self.given) if self.given else {}
        self.codes = {name: code.detach().double() for name, code in codes.items()}
        self.told = {name: self.given[name] for name, rule in self.rules.items() if rule == "conditioned"}
        self.previous: tuple[int, Guess] | None = None
        self._last: tuple = (None, None, None)

    def run(
        self, present=None, start=None, sampler=None, steps=50, repeats=1, guidance=1.0, towards=None, guide=None,
        after_step=None,
    ) -> Iterator[tuple[int, Tensor, Prediction]]:  # fmt: skip
        """The path; arguments as in `sample_path`."""
        if "readout" in self.rules.values():
            text = 'rule "readout" has no path and cannot be mixed with others'
            raise ValueError(f"{text}, got {self.rules}: name one rule for all")
        _check_guidance(guidance, self.rules, towards)
        check_whole(repeats=repeats)
        sampler = self.model.sampler if sampler is None else sampler
        step = sampler if callable(sampler) else SAMPLERS[check_choice("sampler", sampler, SAMPLERS)]
        process, self.guidance, self.towards, self.guide = self.process, guidance, self._wanted(towards), guide
        self.present = _carried(self.model, present, self.rules)
        self.masks = process.masks(self.present, self.n, self.model.device)
        first, z = start or (None, None)
        times, z = process.times(steps, first), self._begun(z)
        for (t, s), again in itertools.product(itertools.pairwise(times), reversed(range(repeats))):
            yield t, z, self.predict(z, t)
            guess = self(z, t)
            z_s = step(self, z, t, s, self.noise)
            if z_s.shape != z.shape or z_s.dtype != z.dtype:
                raise ValueError(f"a step must return z_s {tuple(z.shape)} {z.dtype}, got {tuple(z_s.shape)} {z_s.dtype}")
            z_s = z_s if after_step is None else after_step(z_s, s)
            if again:
                mean, std = process.ahead(z_s, guess.moved(process, t, s), guess.aggregate, s, t)
                self.previous, z = None, mean + std * self.noise()
            else:
                self.previous, z = (t, guess), z_s
        yield times[-1], z, self.predict(z, times[-1])

    def noise(self) -> Tensor:
        """Standard normal noise on the space, float64 and the same on every device that a generator is from."""
        shape = (self.n, *self.model.space)
        return torch.randn(shape, dtype=torch.float64, device=self.model.device, generator=self.generator)

    def __call__(self, z: Tensor, t: int) -> Guess:
        """What a step works with."""
        return Guess.of(self.process, self.predict(z, t))

    def predict(self, z: Tensor, t: int) -> Prediction:
        """The model's prediction with the given values worked in; asked again for the last state, it does not compute."""
        if self._last[0] is not z or self._last[1] != t:
            self._last = (z, t, self._informed(z, t))
        return self._last[2]

    def _begun(self, z: Tensor | None) -> Tensor:
        """The start that the caller chose, or z_T from N(0, I), in transition mode from q(z_T | source), known exactly."""
        prior, process = self.process.prior, self.process
        if z is not None:
            check_real("start: z_t", z, self.model.space)
            if len(z) != self.n:
                raise ValueError(f"start needs {self.n} states z_t, got {len(z)}")
            return z.to(self.model.device).double()
        if prior is None:
            return self.noise()
        return process.diffuse({prior: self.codes[prior]}, process.steps, self.noise(), {prior})[0]

    def _wanted(self, towards: Towards | None) -> Towards | None:
        """Towards what the aggregate is moved: by rule "bayes" the given value."""
        bayes = next((name for name, rule in self.rules.items() if rule == "bayes"), None)
        if bayes is None:
            return towards
        value = self.model.tidy(self.given)[bayes]
        return lambda prediction: prediction.law[bayes].log_prob(value)

    def _informed(self, z: Tensor, t: int) -> Prediction:
        """The given values worked in by their rules: conditioned, then Bayes, then substituted."""
        moved = self.towards is not None
        with torch.set_grad_enabled(moved):
            leaf = z.detach().requires_grad_(moved)
            prediction = self.model.predict(leaf, t, given=self.told or None, present=self.present)
            gradient = torch.autograd.grad(self.towards(prediction).sum(), leaf)[0] if moved else None
        aggregate, unknown = prediction.aggregate.detach(), prediction.unknown
        law = {name: detached(each) for name, each in prediction.law.items()}
        estimate = {name: e.detach() for name, e in prediction.estimate.items()}
        at = self.process.at(t, z, self.masks)
        if self.told and self.guidance != 1.0:
            aggregate, estimate = self._extrapolated(z, t, at, aggregate, estimate, unknown)
        if moved:  # theory 4, rule 2: Tweedie
            aggregate = aggregate + self.guidance * at.noise**2 / at.signal * gradient
            self._solve_moving(at, aggregate, estimate)
        for name, code in self.codes.items():
            if self.rules[name] == "substitute":  # theory 4, rule 1
                aggregate = aggregate + at.W[name] * (code - estimate[name])
            estimate[name] = code
        for name, mask in self.masks.items():
            estimate[name] = estimate[name] * per_example(mask, z)
        out = Prediction(aggregate, law, estimate, unknown)
        return out if self.guide is None else self.guide(out, z, t)

    def _extrapolated(self, z, t, at, aggregate, estimate, unknown):
        """Classifier-free guidance: from what the model says without the given values to what it says with them.

        Where their codes are taken out of z_t before the network sees it, they are not in what it sees without them either.
        """
        kept = {self.process.prior, *self.model.conditions}
        told = {n: c for n, c in self.codes.items() if self.model.remove_known and n in self.told and n not in kept}
        nobody = torch.zeros(self.n, dtype=torch.bool, device=z.device)
        present = self.masks | dict.fromkeys(told, nobody) if told else self.present
        shift = at.mix(told)
        with torch.no_grad():
            without = self.model.predict(z - at.signal * shift, t, present=present)
        estimate = {name: torch.lerp(without.estimate[name], e, self.guidance) for name, e in estimate.items()}
        if unknown is None:
            return torch.lerp(without.aggregate + shift, aggregate, self.guidance), estimate
        guided = {i: self.codes[i] if i in self.told else estimate[i] for i in self.process.entering}
        # made of the heads: what is known stays as it is
        return torch.where(unknown, at.mix(guided), aggregate), estimate

    def _solve_moving(self, at, aggregate, estimate) -> None:
        """Bayes corrects the aggregate only: what the known codes leave of it belongs to the one unknown that moves."""
        here = self.present if isinstance(self.present, set) else self.process.names
        unknown = [i for i in self.process.entering if i in here and i not in self.codes]
        moving = [i for i in unknown if i in self.process.moving]
        if moving and len(unknown) > 1:
            raise ValueError(f'rule "bayes" cannot tell the unknown {unknown} apart while {moving} moves; use "conditioned"')
        for j in moving:
            rest = aggregate - at.mix(self.codes)
            estimate[j] = torch.where(at.W[j] != 0, rest / at.W[j], estimate[j])


def _values(model: Denoiser, n: int, given: Given) -> dict[str, Tensor]:
    """Given values, n of each, on the model's device."""
    check_whole(n=n)
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


def _rules(model: Denoiser, values: Mapping[str, Tensor], rule: Rule) -> dict[str, str]:
    """{name: rule} for each given value: as asked for, or the model's own, or what training and the chain allow."""
    check_names("rule", rule if isinstance(rule, Mapping) else (), values)
    wanted = model.rule if rule is None else rule
    _check_known(wanted)
    if rule is None and set(values) == set(model.modalities):  # nothing is left to draw
        return dict.fromkeys(values, "readout")
    by_name = wanted if isinstance(wanted, Mapping) else dict.fromkeys(values, wanted)
    to_network = {*values} - {*model.process.entering} | {*(model.taught or ())}
    rules = {name: by_name.get(name) or ("conditioned" if name in to_network else "substitute") for name in values}
    _check_rules(model, rules)
    return rules


def check_defaults(rule: Rule, sampler: str) -> None:
    """Refuse what cannot be a model's own rule, or its own sampler, which its card has to name."""
    _check_known(rule)
    check_choice("sampler", sampler, SAMPLERS, ": give a step of your own to `sample`")


def _check_known(rule: Rule) -> None:
    for each in rule.values() if isinstance(rule, Mapping) else [rule]:
        check_choice("rule", each, (None, *RULES))


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
    if not isinstance(guidance, numbers.Real) or not math.isfinite(guidance):
        raise ValueError(f"guidance must be a finite number, got {guidance!r}")
    if guidance != 1.0 and towards is None and not {"bayes", "conditioned"} & set(rules.values()):
        raise ValueError(f'guidance {guidance} needs rule "bayes" or "conditioned" for a given value, got {rules}')
    if towards is not None and "bayes" in rules.values():
        raise ValueError('`towards` and rule "bayes" both move the aggregate by a gradient: take one')


def _carried(model: Denoiser, present: Present, rules: Mapping[str, str]) -> Present:
    """The present set, names as a set; it must hold what rules work on in the chain."""
    if present is None or isinstance(present, Mapping):
        return present
    present = set(check_names("present", present, list(model.modalities)))
    left_out = [name for name, rule in rules.items() if rule != "conditioned" and name not in present]
    if not present or left_out or model.process.prior not in (None, *present):
        needed = left_out or [model.process.prior or "one modality"]
        raise ValueError(f"present must hold {needed}, got {sorted(present)}")
    return present
