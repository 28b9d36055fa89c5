"""A batch of noisy states, and what is known of them (theory 6): what the network sees, and what it leaves open."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtdiff.laws import Law
from mtdiff.modalities.base import View
from mtdiff.process import At, ForwardProcess, Present, Steps, per_example


@dataclass(frozen=True)
class State:
    """A batch of noisy states, with who is present, what is given, and which examples know it.

    Attributes:
        z: (B, *Z).
        at: what the process says of their steps.
        given: {name: value (B, ...)}.
        known: {name: (B,) bool} of those, which examples know it.
        present: {name: (B,) bool} of those that not all examples have.
        shift: (B, *Z) sum_j W_t^j E_j(x_j) over what is known: a shift of z, which carries no information.
        rest: (B, *Z) z less that shift.
    """

    process: ForwardProcess
    modalities: nn.ModuleDict
    z: Tensor
    at: At
    given: Mapping[str, Tensor]
    known: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    shift: Tensor
    rest: Tensor

    @classmethod
    def of(cls, process, modalities, z: Tensor, t: Steps, given, present: Present, known) -> "State":
        """States with what follows from them; of a value that `known` does not name all examples know."""
        present, everybody = process.masks(present, len(z), z.device), torch.ones(len(z), dtype=torch.bool, device=z.device)
        known = {name: known.get(name, everybody).to(z.device) for name in given}
        at, shift = process.at(t, z, present), torch.zeros_like(z)
        for name, value in given.items():
            if name in process.entering:
                shift = shift + at.W[name] * per_example(known[name], z) * modalities[name].encode(value).to(z.dtype)
        return cls(process, modalities, z, at, given, known, present, shift, z - at.signal * shift)

    def open(self, name: str) -> Tensor:
        """W_t of a modality, 0 where it is absent or known, (B, 1, ...)."""
        return self.at.W[name] * per_example(~self.known[name], self.z) if name in self.known else self.at.W[name]

    def sum(self, codes: Mapping[str, Tensor]) -> Tensor:
        """sum_j W_t^j e_j of these codes (B, *Z), as far as they are in the state and not known."""
        in_state = [self.open(name) * codes[name] for name in self.process.entering if name in codes]
        return sum(in_state, torch.zeros_like(self.z))

    def code(self, name: str, law: Law) -> Tensor:
        """E[E_i(x_i) | z_t] in the whole space, (B, *Z)."""
        return self.modalities[name].place(law.expected_code()).to(self.z.dtype)

    def left(self, codes: Mapping[str, Tensor], training: bool) -> Tensor:
        """The rest less these codes; in training without a gradient: each head answers to its own loss."""
        others = self.sum(codes)
        return self.rest - self.at.signal * (others.detach() if training else others)

    def sensed(self) -> dict[str, Law]:
        """{name: law} of the modalities that the network is shown as far as the rest shows them by themselves."""
        return {name: m.sensed(self.rest, *self.amid(name)) for name, m in self.modalities.items() if m.sense}

    def amid(self, name: str) -> tuple[Tensor, Tensor]:
        """Gain and variance as in `View`, of a code of which all else in its channels is taken for noise, (B, 1, ...)."""
        mine, power = self.at.signal * self.at.W[name], self.at.noise**2
        for other in self.process.entering:
            if other != name and self.modalities[other].shares(self.modalities[name]):
                power = power + (self.at.signal * self.open(other)) ** 2
        return mine / (mine**2 + power), power / (mine**2 + power)

    def seen(self, rest: Tensor, whole: bool) -> Tensor:
        """What the network sees of a state without what is known: at unit RMS, and each slice as its modality shows it.

        The RMS, for codes of unit RMS, is sqrt(abar_t sum_j (W_t^j)^2 + 1 - abar_t) over what is in the aggregate, in these
        channels, not known and not sensed (which is taken out, too, as far as it stands out).

        `rest` is the state less what is known and sensed; an output that is to speak of the whole state leaves its slices.
        """
        modalities, power = self.modalities, (self.at.noise**2).expand_as(self.z)
        for name in self.process.entering:
            if not modalities[name].sense:
                power = power + modalities[name].place((self.at.signal * self.open(name)) ** 2)
        state = rest / power.sqrt()
        if whole:
            return state
        for name, modality in modalities.items():
            part = modality.take(state)
            shown = modality.shown(part, self.view(name, rest))
            state = state if shown is part else state + modality.place(shown - part)
        return state

    def view(self, name, rest, features=None, pooled=None, aggregate=None, sensed=None) -> View:
        """What the head of a modality may look at."""
        at = self.at
        numbers = at.W[name], at.gain(name), at.variance(name)
        return View(features, pooled, self.z, rest, aggregate, *numbers, self.given, self.known, sensed)

    def inputs(
        self, sensed: Mapping[str, Law], absent: Mapping[str, Tensor], dtype: torch.dtype, removed: bool
    ) -> dict[str, Tensor]:
        """Arguments of the backbone: the sum of all vectors, the sum of all maps, and all tokens (see `mtdiff.backbones`).

        Where a modality is absent, its vector in `absent` is added. If what is known is `removed` from the state, it is all
        the same whether it was in the sum.
        """
        out = {"condition": torch.zeros_like(next(iter(absent.values())), dtype=dtype).expand(len(self.z), -1)}
        tokens, keep = [], []
        for name, law in sensed.items():
            unknown = ~self.known[name][:, None] if name in self.known else 1
            out["condition"] = out["condition"] + self.modalities[name].hint(law) * unknown
        for name, value in self.given.items():
            modality, known = self.modalities[name], self.known[name]
            embedded = modality.condition(value.to(dtype) if value.is_floating_point() else value)
            if modality.given_as == "tokens":
                tokens.append(embedded)
                keep.append(known[:, None].expand(embedded.shape[:2]))
            else:
                slot = "condition" if modality.given_as == "vector" else "context"
                out[slot] = out.get(slot, 0) + embedded * per_example(known, embedded)
        if tokens:
            out |= {"tokens": torch.cat(tokens, 1), "keep": torch.cat(keep, 1)}
        for name, here in self.present.items():
            here = here | self.known[name] if removed and name in self.known else here
            out["condition"] = out["condition"] + absent[name] * (~here)[:, None]
        return out

    def unknown(self, law: Mapping[str, Law]) -> Tensor | None:
        """(B, *Z) bool: the coordinates of the aggregate that what is given leaves open; None: all."""
        if not self.given and not self.present:
            return None
        found = torch.zeros_like(self.z, dtype=torch.bool)
        for name in self.process.entering:
            modality, mine = self.modalities[name], self.open(name) != 0
            if (known := getattr(law[name], "known", None)) is not None:
                mine = mine & ~known
            found = found | modality.place(mine)
        return found
