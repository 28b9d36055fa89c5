"""What a network is told about a batch, and what that leaves unknown of its states (theory 4, rule 3)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtdiff.process import ForwardProcess


@dataclass(frozen=True)
class Telling:
    """A batch of noisy states together with what is given and present.

    Attributes:
        process: the forward process.
        modalities: {name: modality}.
        z_t: (B, *Z).
        t: step in 0..T, an int or a (B,) int tensor.
        given: {name: value (B, ...)}.
        present: {name: (B,) bool} which modalities are in the aggregate; all that are not named.
        told: {name: (B,) bool} which examples may use `given[name]`; all, for None and for a name that is not there.
    """

    process: ForwardProcess
    modalities: nn.ModuleDict
    z_t: Tensor
    t: int | Tensor
    given: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    told: Mapping[str, Tensor] | None

    def heard(self, name: str) -> Tensor:
        """(B,) bool: which examples are told a modality."""
        if self.told is None or name not in self.given or name not in self.told:
            return torch.full((len(self.z_t),), name in self.given, device=self.z_t.device)
        return self.told[name].to(self.z_t.device)

    def inputs(self, sensed: Tensor, absent: Mapping[str, Tensor], dtype: torch.dtype, removed: bool) -> dict[str, Tensor]:
        """Arguments of the backbone: the sum of all vectors, the sum of all maps, and all tokens.

        Args:
            sensed: (B, embedding) what the state shows of modalities that are sensed; see `sensing`.
            absent: {name: (embedding,)} what is added to the vector where a modality is absent.
            dtype: in which the network computes.
            removed: whether what is told is taken out of the state: then it is all the same whether it was in the sum.

        Returns:
            "condition" and, where there are any, "context", "tokens" and "keep" (see `mtdiff.backbones`).
        """
        out = {"condition": sensed}
        tokens, keep = [], []
        for name, value in self.given.items():
            modality, heard = self.modalities[name], self.heard(name)
            embedded = modality.condition(value.to(dtype) if value.is_floating_point() else value)
            if modality.told_as == "tokens":
                tokens.append(embedded)
                keep.append(heard[:, None].expand(embedded.shape[:2]))
            else:
                slot = "condition" if modality.told_as == "vector" else "context"
                out[slot] = out.get(slot, 0) + embedded * _as(heard, embedded)
        if tokens:
            out |= {"tokens": torch.cat(tokens, 1), "keep": torch.cat(keep, 1)}
        for name, mask in self.present.items():
            here = mask.to(self.z_t.device) | self.heard(name) if removed else mask.to(self.z_t.device)
            out["condition"] = out["condition"] + absent[name] * (~here)[:, None]
        return out

    def sensing(self, rest: Tensor, embedding: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What a state shows of the modalities that the backbone senses, each as if all else in its channels were noise.

        Args:
            rest: (B, *Z) what is left of z_t without the codes that are told.
            embedding: width of the backbone's vector.
            dtype: in which the network computes.

        Returns:
            The sum of what they are told as (B, embedding), and of W_t times their expected codes (B, *Z).
        """
        told, codes = rest.new_zeros(len(rest), embedding, dtype=dtype), torch.zeros_like(rest)
        for name, modality in self.modalities.items():
            if not modality.sense:
                continue
            vector, code = modality.sensed(rest, *self.amid(name))
            silent = _as(~self.heard(name), rest)
            told = told + vector * silent.flatten(1)
            codes = codes + self._weight(name) * silent * code
        return told, codes

    def amid(self, name: str) -> tuple[Tensor, Tensor]:
        """Gain and variance as in `View`, of a code of which all else in its channels is taken for noise, (B, 1, ...)."""
        signal, noise = self.process.level(self.t, self.z_t)
        mine, power = signal * self._weight(name), noise**2
        for other in self.process.entering:
            if other != name and set(self.modalities[other].span) & set(self.modalities[name].span):
                power = power + (signal * self._weight(other) * _as(~self.heard(other), self.z_t)) ** 2
        return mine / (mine**2 + power), power / (mine**2 + power)

    def shown(self, picture: str, mask: str) -> Tensor:
        """(B, 1, H, W) bool, or all sizes 1: the pixels of `picture` that are told, as both are and `mask` is 1 there."""
        if picture not in self.given or mask not in self.given:
            return self.z_t.new_zeros(len(self.z_t), *[1] * (self.z_t.ndim - 1), dtype=torch.bool)
        return self.given[mask].bool() & _as(self.heard(picture) & self.heard(mask), self.given[mask])

    def revealed(self, picture: str, mask: str, value: Tensor) -> Tensor:
        """A value (B, C, H, W) with the pixels of `picture` where they are shown: told, not predicted."""
        if picture not in self.given or mask not in self.given:
            return value
        return torch.where(self.shown(picture, mask), self.given[picture].to(value.dtype), value)

    def open(self) -> Tensor:
        """(B, *Z) bool: the coordinates of the aggregate that what is told does not determine."""
        found = torch.zeros_like(self.z_t, dtype=torch.bool)
        for name in self.process.entering:
            modality = self.modalities[name]
            unknown = _as(~self.heard(name), self.z_t) & (self._weight(name) != 0)
            if modality.revealed_by:
                unknown = unknown & ~self.shown(*modality.revealed_by)
            found = found | modality.place(unknown.expand(-1, *modality.slice_shape))
        return found

    def known(self) -> Tensor:
        """sum_j W_t^j E_j(x_j) over what is told and in the aggregate, (B, *Z)."""
        total = torch.zeros_like(self.z_t)
        for name, value in self.given.items():
            if name in self.process.entering:
                code = self.modalities[name].encode(value).to(self.z_t.dtype)
                total = total + self._weight(name) * _as(self.heard(name), code) * code
        return total

    def spread(self) -> Tensor:
        """RMS of what is left of z_t when the known codes are taken out, for codes of unit RMS, (B, *Z).

        sqrt(abar_t sum_j (W_t^j)^2 + 1 - abar_t) over what is in the aggregate, in these channels, and not told.
        """
        signal, noise = self.process.level(self.t, self.z_t)
        power = (noise**2).expand_as(self.z_t)
        for name in self.process.entering:
            modality = self.modalities[name]
            if modality.sense:  # taken out, too, as far as it stands out
                continue
            mine = (signal * self._weight(name) * _as(~self.heard(name), self.z_t)) ** 2
            power = power + modality.place(mine.expand(-1, *modality.slice_shape))
        return power.sqrt()

    def guessed(self, estimate: Mapping[str, Tensor | None], without: str | None = None) -> Tensor:
        """sum_j W_t^j e_j over what is in the aggregate and not told, as far as heads have estimated it, (B, *Z).

        Args:
            estimate: {name: (B, *Z)}, None for what no head has looked at yet.
            without: a modality to leave out.
        """
        total = torch.zeros_like(self.z_t)
        for name in self.process.entering:
            if name != without and estimate[name] is not None:
                total = total + self._weight(name) * _as(~self.heard(name), self.z_t) * estimate[name]
        return total

    def _weight(self, name: str) -> Tensor:
        """W_t of a modality, 0 where it is absent, (B, 1, ...)."""
        weight = self.process.weight(name, self.t, self.z_t)
        return weight * _as(self.present[name].to(weight.device), weight) if name in self.present else weight


def _as(mask: Tensor, like: Tensor) -> Tensor:
    """A (B,) mask as (B, 1, ...)."""
    return mask.reshape(-1, *[1] * (like.ndim - 1))
