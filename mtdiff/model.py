"""MT-Diffusion: a forward process, modalities and one shared backbone behind one method, `predict`."""

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mtdiff.backbones.base import Backbone
from mtdiff.files import save, to_json
from mtdiff.modalities.base import Modality, View
from mtdiff.process import ForwardProcess, check_real
from mtdiff.reading import check_types
from mtdiff.recorded import Recorded
from mtdiff.schedules import NoiseSchedule
from mtdiff.telling import Telling

PREDICTIONS = ("v", "eps", "x", "heads")
DTYPES = ("float16", "bfloat16", "float32", "float64")
TAKEN = ("denoise", "total", "gradient", "step", "seconds", "prior", "diffusion")
"""What a loss, a row of the history and a bound say beside the names of modalities."""
PRIOR_NATS = 0.1
"""The most that a training batch may leave in z_T, in nats of prior KL, before a model warns."""


@dataclass(frozen=True)
class Prediction:
    """What a model says about a noisy state.

    Attributes:
        aggregate: (B, *Z) E[m_t | z_t].
        params: {name: head output}: the mean of a continuous modality, the logits of a label.
        estimate: {name: (B, *Z)} E[E_i(x_i) | z_t]; for discrete data the softmax-averaged code.
        output: (B, *Z) what the network put out (v, eps or x), or None where the aggregate is not an output of its own.
        known: (B, *Z) sum_j W_t^j E_j(x_j) over what was told, where it was taken out of the state (`remove_told`): the
            output then speaks of the rest of the aggregate. None: nothing was.
        open: (B, *Z) bool, the coordinates of the aggregate that are not known from what was told. None: all.
    """

    aggregate: Tensor
    params: dict[str, Tensor]
    estimate: dict[str, Tensor]
    output: Tensor | None = None
    known: Tensor | None = None
    open: Tensor | None = None


class MTDiffusion(Recorded, nn.Module):
    """All modalities of an example, diffused in one space and denoised by one backbone with a head each.

    Args:
        process: the forward process; its names are the model's modalities.
        modalities: {name: Modality}, in the order in which they are read.
        backbone: network on the space.
        space: shape of the diffusion space, (C, H, W) or (d,).
        prediction: what the denoising output stands for: "v", "eps" or "x" (the aggregate itself). "heads" does without:
            the aggregate is then sum_i W_t^i e_i of what is told and what the heads estimate, so that the two always agree.
        rule: how `sample` treats given modalities unless it is told: a rule, or {name: rule} (theory 4).
        sampler: the solver that `sample` uses unless it is told.
        remove_told: True takes the codes of what is told out of z_t before the network sees it, and scales what is left to
            unit RMS. A known shift carries no information, but a network that sees it has to learn to undo it. Told codes
            in the sum are then as good as absent. With prediction "heads", revealed pixels (`Image(revealed_by=...)`) are
            shown without noise.
        conditions: modalities that are always given, in training and in sampling, and never read: the source of a
            transition (which need not be named), an instruction.

    Raises:
        ValueError: names, space or prediction do not fit together, or a name that means something else (`TAKEN`).

    Source: Chen et al. 2024 for the architecture; v-prediction: Salimans and Ho 2022.
    """

    family, apart = "model", ("process",)

    def __init__(
        self,
        process: ForwardProcess,
        modalities: Mapping[str, Modality],
        backbone: Backbone,
        space: tuple[int, ...],
        prediction: str = "v",
        rule: str | Mapping[str, str] | None = None,
        sampler: str = "ddim",
        remove_told: bool = False,
        conditions: Sequence[str] = (),
    ):
        super().__init__()
        if set(modalities) != set(process.names):
            raise ValueError(f"modalities are {sorted(modalities)}, but the process has {sorted(process.names)}")
        if tuple(backbone.space) != tuple(space):
            raise ValueError(f"the backbone works on {tuple(backbone.space)}, but the space is {tuple(space)}")
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {PREDICTIONS}, got {prediction!r}")
        odd = [n for n in modalities if n in TAKEN or not n or "." in n or hasattr(nn.ModuleDict(), n)]
        if odd:
            raise ValueError(f"modalities cannot be called {odd}: these names, or signs in them, mean something else")
        self.process, self.space, self.prediction = process, tuple(space), prediction
        self.rule, self.sampler, self.remove_told = rule, sampler, remove_told
        unknown = [name for name in conditions if name not in modalities]
        if unknown:
            raise ValueError(f"conditions names {unknown}, the modalities are {sorted(modalities)}")
        self.conditions = tuple(name for name in modalities if name in conditions or name == process.prior)
        self.card: dict = {}
        self._prior_checked = False
        self.modalities = nn.ModuleDict(modalities)
        for name, modality in self.modalities.items():
            modality.attach(name, space, backbone)
            if not modality.has_code and name in process.entering:
                raise ValueError(f"{name!r} has no code, so its weight must be 0 at every step")
        self._check_headless()
        self._check_revealed()
        self.backbone = backbone
        self.denoise = None if prediction == "heads" else backbone.readout(self.space)
        self.absent = nn.ParameterDict({name: torch.zeros(backbone.embedding) for name in modalities})

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the network computes."""
        return next(self.backbone.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.backbone.parameters()).device

    @property
    def taught(self) -> set[str] | None:
        """The modalities that training told the backbone at times, or None where the card does not say."""
        if "taught" in self.card:
            return {*self.card["taught"], *self.conditions}
        give = self.card["training"].get("give") if isinstance(self.card.get("training"), dict) else None
        return None if give is None else {*_told(give), *self.conditions}

    def teach(self, give: Mapping[str, float | str]) -> None:
        """Note in the card what a training tells the backbone, by its `give`: see `taught`."""
        if self.taught is not None or not self.card:
            self.card = {**self.card, "taught": sorted({*(self.taught or ()), *_told(give)})}

    def check(self, values: Mapping[str, Tensor], what: str = "batch") -> int:
        """Values are known modalities, valid, and equally many; returns how many.

        Raises:
            KeyError: an unknown modality.
            ValueError: an invalid value, different batch sizes, or no example.
        """
        if not values:
            raise ValueError(f"{what} is empty; this model has {list(self.modalities)}")
        for name, value in values.items():
            if name not in self.modalities:
                raise KeyError(f"{what} names an unknown modality {name!r}; this model has {list(self.modalities)}")
            try:
                self.modalities[name].check(value)
            except ValueError as error:
                raise ValueError(f"{what}: {error}") from None
        sizes = {name: len(value) for name, value in values.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{what} has different numbers of examples: {sizes}")
        if 0 in sizes.values():
            raise ValueError(f"{what} must have at least one example, got {sizes}")
        return next(iter(sizes.values()))

    def cleared(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values without what others among them make irrelevant: a picture that reveals is 0 where its mask is 0."""
        values = dict(values)
        for modality in self.modalities.values():
            if modality.revealed_by and set(modality.revealed_by) <= set(values):
                picture, mask = modality.revealed_by
                values[picture] = torch.where(values[mask].bool(), values[picture], 0.0)
        return values

    def encode(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The codes E_i(x_i) of checked values, {name: (B, *Z)}."""
        return {name: self.modalities[name].encode(value) for name, value in self.cleared(values).items()}

    def clock(self, t: int | Tensor, n: int) -> Tensor:
        """The noise level u = t/T as the backbone is told it: (n,), in float32 at least."""
        u = torch.as_tensor(t, device=self.device).expand(n)
        return u.to(torch.promote_types(self.dtype, torch.float32)) / self.process.steps

    def check_prior(self, codes: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> None:
        """Warn where z_T is not noise: E KL(q(z_T | X) || N(0, I)) over a batch is above `PRIOR_NATS`.

        A model looks once: when a `Trainer` is made, or at the first batch of `multitask_loss` on a CPU. Images count like
        everything else: what a chain leaves of them is a start that samples do not have. Transition mode is exempt.

        Args:
            codes: {name: (B, *Z)}.
            present: {name: (B,) bool}.

        Source: ours, theory 5.
        """
        if self._prior_checked:
            return
        self._prior_checked = True
        nats = float(self.process.prior_kl(codes, present).detach().mean())
        if nats > PRIOR_NATS:
            shares = {n: float(self.process.snr(n)[-1] * c.detach().square().sum() / (2 * len(c))) for n, c in codes.items()}
            found = ", ".join(f"{name} {share:.2g}" for name, share in shares.items() if share)
            low = math.floor(10 * (float(self.process.schedule.abar[-1].logit()) + math.log(PRIOR_NATS / nats))) / 10
            warnings.warn(
                f"z_T is not noise: a batch leaves {nats:.2g} nats of prior KL ({found}), expected at most {PRIOR_NATS}. "
                f"SNR times dimension decides (theory 5): let the log-SNR end at {low}, or scale the weights",
                stacklevel=3,
            )

    def forward(
        self,
        z_t: Tensor,
        t: int | Tensor,
        given: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        told: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        """`predict` without checks, and with given values that only some examples are told (for training).

        Args:
            z_t: (B, *Z).
            t: step in 0..T, an int or a (B,) int tensor.
            given: {name: value (B, ...)} to condition the backbone on (theory 4, rule 3).
            present: {name: (B,) bool} which modalities are in the aggregate; None: all.
            told: {name: (B,) bool} which examples may use `given[name]`; None: all.

        Returns:
            The prediction, in the dtype of z_t.
        """
        telling = Telling(self.process, self.modalities, z_t, t, self.cleared(given or {}), present or {}, told)
        signal = self.process.level(t, z_t)[0]
        known = telling.known() if given and self._looks_at_told else torch.zeros_like(z_t)
        rest = z_t - signal * known
        sensed, codes = telling.sensing(rest, self.backbone.embedding, self.dtype)
        state = self._seen(telling, rest - signal * codes) if self.remove_told else z_t - signal * codes
        inputs = telling.inputs(sensed, self.absent, self.dtype, self.remove_told)
        features, pooled = self.backbone(state.to(self.dtype), self.clock(t, len(z_t)), **inputs)
        output, aggregate, removed = None, None, known if given and self.remove_told else None
        if self.denoise is not None:
            output = self.denoise(features).to(z_t.dtype)
            aggregate = self._to_aggregate(output, rest if self.remove_told else z_t, t)
            aggregate = aggregate if removed is None else aggregate + removed
        params, estimate = dict.fromkeys(self.modalities), dict.fromkeys(self.modalities)
        for name, modality in sorted(self.modalities.items(), key=lambda item: item[1].start == "rest"):
            start = z_t
            if modality.start == "rest":  # in training without a gradient: each head answers to its own loss
                others = telling.guessed(estimate, without=name)
                start = rest - signal * (others.detach() if self.training else others)
            gain, variance = self.process.wiener(name, t, z_t, present)
            weight = self.process.weight(name, t, z_t)
            params[name] = modality.head(View(features, pooled, start, aggregate, weight, gain, variance))
            if modality.revealed_by:
                params[name] = telling.revealed(*modality.revealed_by, params[name])
            estimate[name] = modality.estimate(params[name]).to(z_t.dtype)
        unknown = None
        if aggregate is None:
            aggregate = known + telling.guessed(estimate)
            unknown = telling.open() if given or present else None
        return Prediction(aggregate, params, estimate, output, removed, unknown)

    def predict(
        self,
        z_t: Tensor,
        t: int | Tensor,
        *,
        given: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        """E[m_t | z_t], and what the heads say of every modality.

        Args:
            z_t: (B, *Z); its dtype is that of the result, the network computes in its own.
            t: step in 0..T, an int or a (B,) int tensor.
            given: {name: value (B, ...)} that the backbone is conditioned on.
            present: {name: (B,) bool} which modalities are in z_t; None: all are.

        Returns:
            `.aggregate` (B, *Z), `.params[name]`, `.estimate[name]` (B, *Z).

        Raises:
            ValueError: z_t, t or a given value has the wrong shape, dtype or range.
            KeyError: given or present names an unknown modality.
        """
        if tuple(z_t.shape[1:]) != self.space:
            raise ValueError(f"z_t must have shape (B, {', '.join(map(str, self.space))}), got {tuple(z_t.shape)}")
        check_real("z_t", z_t)
        if given and self.check(given, "given") != len(z_t):
            raise ValueError(f"given has {self.check(given, 'given')} examples, z_t has {len(z_t)}")
        for name, mask in (present or {}).items():
            if name not in self.modalities:
                raise KeyError(f"present names an unknown modality {name!r}; this model has {list(self.modalities)}")
            if mask.dtype != torch.bool or mask.shape != (len(z_t),):
                raise ValueError(f"present[{name!r}] must be bool ({len(z_t)},), got {mask.dtype} {tuple(mask.shape)}")
        if isinstance(t, Tensor) and t.ndim and t.shape != (len(z_t),):
            raise ValueError(f"t must be an int or have shape ({len(z_t)},), got {tuple(t.shape)}")
        return self(z_t, t, given, present)

    def log_prob(
        self,
        name: str,
        value: Tensor,
        z_t: Tensor,
        t: int | Tensor,
        *,
        given: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        prediction: Prediction | None = None,
    ) -> Tensor:
        """Log p(x_i = value | z_t) of the modality's head, differentiable in z_t in evaluation mode; of what is not known.

        Of a label whose code is sensed, the gradient is log p(y | code) + log p(y | rest)'s and not the value's own, which
        vanishes where the network is told a probability near 0 or 1: see `Label.steered`.

        Args:
            name: the modality.
            value: (B, ...) its value.
            z_t: (B, *Z).
            t: step in 0..T, an int or a (B,) int tensor.
            given: as in `predict`.
            present: as in `predict`.
            prediction: the result of `predict` for the same arguments, where it is there already.

        Returns:
            (B,) nats.

        Raises:
            KeyError: no such modality.
            ValueError: the value does not fit.
        """
        if self.check({name: value}, "value") != len(z_t):
            raise ValueError(f"value has {len(value)} examples, z_t has {len(z_t)}")
        prediction = self.predict(z_t, t, given=given, present=present) if prediction is None else prediction
        modality, variance = self.modalities[name], self.process.wiener(name, t, z_t, present)[1]
        value = self.cleared({**(given or {}), name: value})[name]
        telling = Telling(self.process, self.modalities, z_t, t, given or {}, present or {}, None)
        params = prediction.params[name]
        if modality.sense and name not in telling.given:
            params = modality.steered(params, z_t, *telling.amid(name))
        if not modality.revealed_by:
            return modality.log_prob(value, params, variance)
        return modality.log_prob(value, params, variance, where=~telling.shown(*modality.revealed_by))

    def read(
        self,
        z_t: Tensor,
        t: int,
        *,
        given: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        prediction: Prediction | None = None,
    ) -> dict[str, Tensor]:
        """Read every modality jointly at one state: draw from each head (theory 3: at one time, not along the path).

        Args:
            z_t: (B, *Z), near t = 0.
            t: its step.
            given: as in `predict`.
            present: as in `predict`.
            generator: source of the draws.
            prediction: what the heads say, where it is there already; `given` is then not looked at.

        Returns:
            {name: value}, in the network's dtype.
        """
        prediction = self.predict(z_t, t, given=given, present=present) if prediction is None else prediction
        params = prediction.params
        values = {name: m.draw(params[name], generator) for name, m in self.modalities.items()}
        return {name: v.to(self.dtype) if v.is_floating_point() else v for name, v in values.items()}

    def target(self, m_t: Tensor, eps: Tensor, t: int | Tensor) -> Tensor:
        """What the denoising output should be: v = sqrt(abar_t) eps - sqrt(1 - abar_t) m_t, or eps, or m_t itself."""
        if self.prediction == "v":
            signal, noise = self.process.level(t, m_t)
            return signal * eps - noise * m_t
        return eps if self.prediction == "eps" else m_t

    def architecture(self) -> dict:
        """What a card says of it; with the tables it is enough to rebuild the model."""
        defaults = {name: getattr(self, name) for name in ("rule", "sampler") if name in self.config}  # may be set later
        more = {"prior": self.process.prior, "dtype": str(self.dtype).removeprefix("torch.")}
        return {**self.config, **defaults, **more}

    def tables(self) -> dict[str, Tensor]:
        """Schedule and curves, float64."""
        curves = {f"process.{name}": self.process.cumulative(name) for name in self.process.names}
        return {"process/abar": self.process.schedule.abar, **curves}

    @classmethod
    def restored(cls, architecture: Mapping, tensors: dict[str, Tensor]) -> "MTDiffusion":
        """Build it from its architecture and its tables, which are taken out of the tensors.

        Raises:
            KeyError: the tables lack an entry.
            ValueError: an entry of another type than it should be, or an unknown dtype.
        """
        check_types(architecture, {"prior": str | None, "dtype": str, "modalities": dict[str, object]}, "the model")
        rest = {name: value for name, value in architecture.items() if value or name not in ("remove_told", "conditions")}
        if (dtype := rest.pop("dtype", None)) not in DTYPES:
            raise ValueError(f"dtype must be one of {list(DTYPES)}, got {dtype!r}")
        tables = {name: tensors.pop(f"process.{name}") for name in rest.get("modalities", {})}
        process = ForwardProcess(NoiseSchedule(tensors.pop("process/abar")), tables, rest.pop("prior", None))
        return cls.from_config(rest, process=process).to(getattr(torch, dtype))

    def fingerprint(self) -> str:
        """SHA-256 of architecture, schedule and curves: equal for models that can share weights and mean the same."""
        digest = hashlib.sha256(to_json(self.architecture()).encode())
        for table in self.tables().values():
            digest.update(table.numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path, card: Mapping | None = None, half: bool = False) -> Path:
        """Write the model to a folder; see `mtdiff.files.save`."""
        return save(path, self, card, half)

    def _to_aggregate(self, output: Tensor, z_t: Tensor, t: int | Tensor) -> Tensor:
        """m^_t from v (sqrt(abar) z - sqrt(1 - abar) v), eps ((z - sqrt(1 - abar) eps) / sqrt(abar)) or x."""
        if self.prediction == "x":
            return output
        signal, noise = self.process.level(t, z_t)
        if self.prediction == "v":
            return signal * z_t - noise * output
        return (z_t - noise * output) / signal

    def _seen(self, telling: Telling, rest: Tensor) -> Tensor:
        """What the network sees of a state less what is told: at unit RMS, but the best linear guess of a revealed picture.

        That guess is the pixel itself where it is known, and k_t times the rest where it is hidden. Where others write
        into the picture's channels, the rest says something of them at every pixel, and stays.
        """
        state = rest / telling.spread()
        if self.denoise is not None:  # an output for the whole state needs all of it
            return state
        for name, modality in self.modalities.items():
            others = (self.modalities[n] for n in self.process.entering if n not in (name, *modality.revealed_by))
            if modality.revealed_by and not any(set(m.span) & set(modality.span) for m in others):
                told = telling.heard(modality.revealed_by[0]) & telling.heard(modality.revealed_by[1])
                gain = self.process.wiener(name, telling.t, rest)[0]
                guess = telling.revealed(*modality.revealed_by, gain * modality.take(rest))
                part = modality.take(state)
                state = state + modality.place(torch.where(told.reshape(-1, 1, 1, 1), guess, part) - part)
        return state

    @property
    def _looks_at_told(self) -> bool:
        """Whether codes of what is told are used, and not only their conditions."""
        looks = any(m.start == "rest" or m.sense for m in self.modalities.values())
        return looks or self.remove_told or self.denoise is None

    def _check_revealed(self) -> None:
        """A modality that others reveal needs these two: pictures of its own shape, and a mask of their pixels."""
        for name, modality in self.modalities.items():
            if not modality.revealed_by:
                continue
            picture, mask = (dict(self.modalities).get(other) for other in modality.revealed_by)
            binary = getattr(mask, "binary", False)
            if getattr(picture, "shape", None) != modality.shape or not binary or mask.size != modality.shape[1:]:
                raise ValueError(
                    f"{name!r} is revealed by {modality.revealed_by}: expected a picture of its shape and a mask"
                )

    def _check_headless(self) -> None:
        """A modality without a head reads its slice of the aggregate: nobody else may write there, and W_t > 0."""
        for name, modality in self.modalities.items():
            if getattr(modality, "has_head", True):
                continue
            if self.prediction == "heads":
                raise ValueError(f'{name!r} has no head, which prediction "heads" needs')
            if bool((self.process.cumulative(name) == 0).any()):
                raise ValueError(f"{name!r} has no head, so its weight must not be 0 at any step")
            for other, rival in self.modalities.items():
                shared = set(modality.span) & set(rival.span)
                if other != name and shared and other in self.process.entering:
                    raise ValueError(f"{name!r} has no head but shares channels {sorted(shared)} with {other!r}")


def _told(give: Mapping[str, float | str]) -> list[str]:
    """The names with a chance above 0, their own or the one they share."""
    return [name for name, chance in give.items() if give.get(chance, chance)]
