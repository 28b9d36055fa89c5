"""What a model says of a noisy state, and what samplers and bounds ask of a model, trained or exact."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mtdiff.checks import Checked, check_real, check_values
from mtdiff.laws import Law
from mtdiff.process import ForwardProcess, Present, Steps

Given = Mapping[str, Tensor] | None
"""{name: value (B, ...)} that is known; None: nothing."""


@dataclass(frozen=True)
class Prediction:
    """What a model says about a noisy state.

    Attributes:
        aggregate: (B, *Z) E[m_t | z_t].
        law: {name: p(x_i | z_t)}, see `mtdiff.laws`.
        estimate: {name: (B, *Z)} E[E_i(x_i) | z_t]; for discrete data the softmax-averaged code.
        unknown: (B, *Z) bool, the coordinates of the aggregate that given values leave open, where the aggregate is made of
            what the heads say; None: all.
    """

    aggregate: Tensor
    law: dict[str, Law]
    estimate: dict[str, Tensor]
    unknown: Tensor | None = None


class Denoiser(Protocol):
    """A model that can be sampled, bounded and judged: `MTDiffusion`, one of `mtdiff.exact`, or a subclass of this one.

    A subclass implements `encode` and `predict`; the rest it can leave as it is.

    Attributes:
        space: shape of one z.
        modalities: {name: what can check a value of it}.
        dtype: of the values that it reads.
        rule: as `sampler`, what `sample` does by default.
        conditions: modalities that are always given.
        taught: those that it can be given by rule "conditioned"; None: not known.
        remove_known: whether codes of given values are taken out of z_t before it is looked at.
    """

    process: ForwardProcess
    space: tuple[int, ...]
    modalities: Mapping[str, Checked]
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float64
    rule: str | Mapping[str, str] | None = None
    sampler: str = "ddim"
    conditions: Sequence[str] = ()
    taught: Collection[str] | None = None
    remove_known: bool = False

    def check(self, values: Mapping[str, Tensor], what: str = "batch", n: int | None = None) -> int:
        """Values are known modalities (else KeyError), valid, and equally many, n if given (else ValueError): how many."""
        return check_values(self.modalities, values, what, n)

    def tidy(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values without what others among them make irrelevant."""
        return dict(values)

    def encode(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The codes E_i(x_i) of checked values, {name: (B, *Z)}."""
        raise NotImplementedError

    def predict(self, z_t: Tensor, t: Steps, *, given: Given = None, present: Present = None) -> Prediction:
        """E[m_t | z_t, given], and what the heads say of every modality, in the dtype of z_t (B, *Z)."""
        raise NotImplementedError

    def log_prob(
        self, name: str, value: Tensor, z_t: Tensor, t: Steps, *, given: Given = None, present: Present = None
    ) -> Tensor:
        """Log p(x_i = value | z_t, given) of what is not known already, (B,) nats, differentiable in z_t."""
        self.check({name: value}, "value", len(z_t))
        law = self.predict(z_t, t, given=given, present=present).law[name]
        return law.log_prob(self.tidy({**(given or {}), name: value})[name])

    def read(
        self, z_t: Tensor, t: int, *, given: Given = None, present: Present = None, prediction=None, generator=None
    ) -> dict[str, Tensor]:
        """Every modality drawn jointly at one state, {name: value} in `dtype` (theory 3: at one time, not along the path).

        A `Prediction` that is there already is read as it is.
        """
        prediction = self.predict(z_t, t, given=given, present=present) if prediction is None else prediction
        values = {name: law.draw(generator) for name, law in prediction.law.items()}
        return {name: v.to(self.dtype) if v.is_floating_point() else v for name, v in values.items()}


def check_state(model: Denoiser, z_t: Tensor, given: Given) -> None:
    """Refuse states and values that do not fit the model; steps and the present set are the process's to check."""
    check_real("z_t", z_t, model.space)
    if given:
        check_values(model.modalities, given, "given", len(z_t))
