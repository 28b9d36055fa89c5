"""MT-Diffusion: a forward process, modalities and one shared backbone behind one method, `predict`."""

import html
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtdiff.backbones.base import Backbone
from mtdiff.checks import check_choice
from mtdiff.hub import published
from mtdiff.laws import Law
from mtdiff.modalities.base import Modality
from mtdiff.prediction import Denoiser, Given, Prediction, check_state
from mtdiff.process import At, ForwardProcess, Present, Steps
from mtdiff.reading import check_types
from mtdiff.sampling import Rule, check_defaults
from mtdiff.schedules import NoiseSchedule
from mtdiff.state import State
from mtdiff.trainable import Model

RENAMED = {"remove_told": "remove_known"}
"""What arguments were called in cards that were written before."""
DTYPES = ("float16", "bfloat16", "float32", "float64")
TAKEN = ("denoise", "total", "gradient", "step", "seconds", "prior", "diffusion")
"""What a loss, a row of the history and a bound say beside the names of modalities."""
PRIOR_NATS = 0.1
"""The most that a training batch may leave in z_T, in nats of prior KL, before a model warns."""


@dataclass(frozen=True)
class Aggregate:
    """How E[m | z_t] is had from a network, where it is an output of its own; `HEADS` has none.

    Attributes:
        estimate: (output, state, at) -> (B, *Z).
        weight: at -> (B, 1, ...), the factor at |m_t - E[m_t | z_t]|^2 that makes it the squared error of the output.
    """

    estimate: Callable[[Tensor, Tensor, At], Tensor] | None
    weight: Callable[[At], Tensor]


V = Aggregate(lambda v, z, at: at.signal * z - at.noise * v, lambda at: 1 / at.noise**2)
"""v = sqrt(abar_t) eps - sqrt(1 - abar_t) m_t, so that |v - v^|^2 = |m - m^|^2 / (1 - abar_t). Salimans and Ho 2022."""
EPS = Aggregate(lambda eps, z, at: (z - at.noise * eps) / at.signal, lambda at: (at.signal / at.noise) ** 2)
"""The noise, so that |eps - eps^|^2 = SNR_t |m - m^|^2. Ho et al. 2020."""
X = Aggregate(lambda x, z, at: x, lambda at: torch.ones_like(at.noise))
"""The aggregate itself."""
HEADS = Aggregate(None, V.weight)
"""What is known, and what the heads say of the rest: sum_i W_t^i e_i, so that the two always agree. Scored like v."""
AGGREGATES = {"v": V, "eps": EPS, "x": X, "heads": HEADS}


class MTDiffusion(Model, Denoiser):
    """All modalities of an example, diffused in one space and denoised by one backbone with a head each.

    Args:
        process: the forward process; its names are the model's modalities.
        modalities: {name: Modality}, in the order in which they are read.
        space: shape of the diffusion space, (C, H, W) or (d,), on which the backbone works.
        prediction: what the denoising output stands for: "v", "eps" or "x" (the aggregate itself). "heads" does without:
            the aggregate is then sum_i W_t^i e_i of what is known and what the heads estimate, so that the two always agree.
        rule: as `sampler`, what `sample` does by default (theory 4).
        remove_known: True takes the codes of what is known out of z_t before the network sees it, and scales what is left to
            unit RMS. A known shift carries no information, but a network that sees it has to learn to undo it. Known codes
            in the sum are then as good as absent. With prediction "heads", known pixels (`Image(revealed_by=...)`) are
            seen without noise.
        conditions: modalities that are always given, in training and in sampling, and never read: the source of a
            transition (which need not be named), an instruction.

    Raises:
        ValueError: names, space or prediction do not fit together, or a name that means something else (`TAKEN`).

    Source: Chen et al. 2024 for the architecture; v-prediction: Salimans and Ho 2022.
    """

    apart = ("process",)

    def __init__(
        self,
        process: ForwardProcess,
        modalities: Mapping[str, Modality],
        backbone: Backbone,
        space: tuple[int, ...],
        prediction: str = "v",
        rule: Rule = None,
        sampler: str = "ddim",
        remove_known: bool = False,
        conditions: Sequence[str] = (),
    ):
        super().__init__()
        _check_parts(process, modalities, backbone, space, prediction, conditions)
        check_defaults(rule, sampler)
        self.process, self.space, self.prediction = process, tuple(space), prediction
        self.rule, self.sampler, self.remove_known = rule, sampler, remove_known
        self.conditions = tuple(name for name in modalities if name in conditions or name == process.prior)
        self.card: dict = {}
        self._prior_checked = False
        self.modalities = nn.ModuleDict(modalities)
        self._attach(backbone)
        self.order = sorted(modalities, key=lambda name: modalities[name].reads_rest)
        self.backbone = backbone
        self.aggregate = AGGREGATES[prediction]
        self.denoise = None if self.aggregate is HEADS else backbone.readout(self.space)
        self.absent = nn.ParameterDict({name: torch.zeros(backbone.embedding) for name in modalities})

    def rows(self) -> list[dict[str, str]]:
        """What each modality is and does: its kind, its part of the space, its curve, whether training gave its value."""
        given = {name: "always" if name in self.conditions else "at times" for name in self.taught or self.conditions}
        return [
            {
                "modality": name,
                "kind": type(modality).__name__,
                "code": "x".join(map(str, modality.slice_shape)) if name in self.process.entering else "none",
                "W": self.process.said(name),
                "given": given.get(name, "not known" if self.taught is None else "never"),
            }
            for name, modality in self.modalities.items()
        ]

    def __repr__(self) -> str:
        size, noise = sum(p.numel() for p in self.parameters()), self.process.schedule.said()
        made = f"{size:,} parameters, {type(self.backbone).__name__}, predicts {self.prediction}"
        lines = [f"{type(self).__name__} on {'x'.join(map(str, self.space))}: {made}, {noise}"]
        lines += ["  {modality}: {kind}, code {code}, W {W}, given {given}".format(**row) for row in self.rows()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        lead, rows = repr(self).splitlines()[0], self.rows()
        lines = [("th", rows[0]), *(("td", row.values()) for row in rows)]
        table = "".join(f"<tr>{''.join(f'<{tag}>{html.escape(x)}</{tag}>' for x in cells)}</tr>" for tag, cells in lines)
        return f"<p>{html.escape(lead)}</p><table>{table}</table>"

    def _attach(self, backbone: Backbone) -> None:
        """Bind the modalities to the space, the backbone and each other."""
        for name, modality in self.modalities.items():
            modality.attach(name, self.space, backbone)
            if not modality.has_code and name in self.process.entering:
                raise ValueError(f"{name!r} has no code, so its weight must be 0 at every step")
            if not modality.has_head and self.prediction == "heads":
                raise ValueError(f'{name!r} has no head, which prediction "heads" needs')
        for modality in self.modalities.values():
            modality.join(dict(self.modalities.items()), self.process)

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
        """The modalities that training gave the backbone at times, or None where the card does not say."""
        if "taught" in self.card:
            return {*self.card["taught"], *self.conditions}
        give = self.card["training"].get("give") if isinstance(self.card.get("training"), dict) else None
        return None if give is None else {*_ever_given(give), *self.conditions}

    def teach(self, give: Mapping[str, float | str]) -> None:
        """Note in the card what a training gives the backbone (`taught`); a card without such a note stays without."""
        if self.taught is not None or not self.card:
            self.card = {**self.card, "taught": sorted({*(self.taught or ()), *_ever_given(give)})}

    def tidy(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values without what others among them make irrelevant: hidden pixels of a masked picture are 0."""
        for modality in self.modalities.values():
            values = modality.tidy(values)
        return dict(values)

    def encode(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The codes E_i(x_i) of checked values, {name: (B, *Z)}."""
        return {name: self.modalities[name].encode(value) for name, value in self.tidy(values).items()}

    def clock(self, t: Steps, n: int) -> Tensor:
        """The noise level u = t/T as the backbone gets it: (n,), in float32 at least."""
        u = torch.as_tensor(t, device=self.device).expand(n)
        return u.to(torch.promote_types(self.dtype, torch.float32)) / self.process.steps

    def check_prior(self, codes: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> None:
        """Warn where z_T is not noise: E KL(q(z_T | X) || N(0, I)) over a batch is above `PRIOR_NATS`.

        A model looks once: when a `Trainer` is made, or at the first batch of `multitask_loss` on a CPU. Images count like
        everything else: what a chain leaves of them is a start that samples do not have. Transition mode is exempt.

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
        self, z_t: Tensor, t: Steps, given: Given = None, present: Present = None, known: Given = None
    ) -> Prediction:
        """`predict` without checks, and with given values that only some examples know: known {name: (B,) bool}; None: all.

        Take out what is known, look once, let the heads read in order, add up.
        """
        state = State.of(self.process, self.modalities, z_t, t, self.tidy(given or {}), present, known or {})
        law, codes = state.sensed(), {}
        inputs = state.inputs(law, self.absent, self.dtype, self.remove_known)
        features, pooled = self.backbone(self._seen(state, law).to(self.dtype), self.clock(t, len(z_t)), **inputs)
        output = None if self.denoise is None else self._output(state, self.denoise(features).to(z_t.dtype))
        for name in self.order:
            view = state.view(name, state.left(codes, self.training), features, pooled, output, law.get(name))
            law[name] = self.modalities[name].head(view)
            codes[name] = state.code(name, law[name])
        law, codes = ({name: each[name] for name in self.modalities} for each in (law, codes))
        if output is not None:
            return Prediction(output, law, codes)
        return Prediction(state.shift + state.sum(codes), law, codes, state.unknown(law))

    def _seen(self, state: State, sensed: Mapping[str, Law]) -> Tensor:
        """What the network sees of the state (theory 6): without what is known, if so it was made, and what is sensed."""
        codes = state.at.signal * state.sum({name: state.code(name, law) for name, law in sensed.items()})
        return state.seen(state.rest - codes, whole=self.denoise is not None) if self.remove_known else state.z - codes

    def _output(self, state: State, output: Tensor) -> Tensor:
        """E[m_t | z_t] from the denoising output, which speaks of what the network sees."""
        seen, shift = (state.rest, state.shift) if self.remove_known else (state.z, 0)
        return self.aggregate.estimate(output, seen, state.at) + shift

    @torch.no_grad()
    def features(
        self, values: Mapping[str, Tensor], t: int | None = None, generator: torch.Generator | None = None, batch: int = 500
    ) -> Tensor:
        """The backbone's pooled vector of values alone in the state at step t, as the heads see it: (N, P) on the CPU.

        Without t it is the first step, as good as clean. See `linear_probe` and `nearest` in `mtdiff.representations`.
        """
        t, found = self.process.first if t is None else t, []
        hook = self.backbone.register_forward_hook(lambda module, inputs, output: found.append(output[1].cpu()))
        try:
            for rows in torch.arange(self.check(values)).split(batch):
                part = {name: value[rows].to(self.device) for name, value in values.items()}
                z, _ = self.process.diffuse(self.encode(part), t, present=set(part), generator=generator)
                self.predict(z, t, present=set(part))
        finally:
            hook.remove()
        return torch.cat(found)

    def predict(self, z_t: Tensor, t: Steps, *, given: Given = None, present: Present = None) -> Prediction:
        """E[m_t | z_t], and what the heads say; the network computes in its own dtype (see `Denoiser.predict`)."""
        check_state(self, z_t, given)
        return self(z_t, t, given, present)

    def extended(self, name: str, modality: Modality, curve: Callable[[float], float] | float = 0.0) -> "MTDiffusion":
        """A copy with one more modality, whose encoder and head are new: all other weights are this model's.

        With the weight 0 of the curve it is given to the backbone and read off it, and never in the sum: then what the trunk
        sees of the others stays what it was trained on, and it can be frozen.

        Raises:
            ValueError: there is one of this name, or it does not fit the space.
        """
        if name in self.modalities:
            raise ValueError(f"the model has a modality {name!r} already")
        curves = {known: self.process.cumulative(known) for known in self.process.names} | {name: curve}
        process = ForwardProcess(self.process.schedule, curves, self.process.prior)
        rest = {key: value for key, value in self.architecture().items() if key not in ("prior", "dtype")}
        rest["modalities"] = {**rest["modalities"], name: modality.config}
        made = type(self).from_config(rest, process=process).to(self.device, self.dtype)
        made.load_state_dict(self.state_dict(), strict=False)
        made.card = dict(self.card)  # a trainer notes it as what the model is based on
        return made

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
        rest = {RENAMED.get(name, name): value for name, value in architecture.items()}
        dtype = check_choice("dtype", rest.pop("dtype", None), DTYPES)
        tables = {name: tensors.pop(f"process.{name}") for name in rest.get("modalities", {})}
        process = ForwardProcess(NoiseSchedule(tensors.pop("process/abar")), tables, rest.pop("prior", None))
        return cls.from_config(rest, process=process).to(getattr(torch, dtype))

    def push_to_hub(self, repo: str, license: str, private: bool = False) -> str:
        """Upload the model to the Hugging Face hub as USER/MODEL; see `mtdiff.hub.published`."""
        return published(self, repo, license, private)


def _check_parts(process, modalities, backbone, space, prediction, conditions) -> None:
    """Refuse parts that do not make a model."""
    if set(modalities) != set(process.names):
        raise ValueError(f"modalities are {sorted(modalities)}, but the process has {sorted(process.names)}")
    if tuple(backbone.space) != tuple(space):
        raise ValueError(f"the backbone works on {tuple(backbone.space)}, but the space is {tuple(space)}")
    check_choice("prediction", prediction, AGGREGATES)
    if odd := [n for n in modalities if n in ("", *TAKEN) or "." in n or hasattr(nn.ModuleDict(), n)]:
        raise ValueError(f"modalities cannot be called {odd}: these names, or signs in them, mean something else")
    if unknown := [name for name in conditions if name not in modalities]:
        raise ValueError(f"conditions names {unknown}, the modalities are {sorted(modalities)}")


def _ever_given(give: Mapping[str, float | str]) -> list[str]:
    """The names with a chance above 0, their own or the one they share."""
    return [name for name, chance in give.items() if give.get(chance, chance)]
