"""The control without a shared space: every modality has a z_i and a time t_i of its own; only the trunk is shared."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mtdiff.backbones.base import NoiseLevel
from mtdiff.losses import Loss, coins
from mtdiff.modalities.base import View
from mtdiff.model import MTDiffusion
from mtdiff.prediction import Prediction
from mtdiff.process import Present, per_example


class Unshared(MTDiffusion):
    """Each modality is diffused alone, in its own channels and at its own time; one backbone denoises all of them.

    There is no aggregate across modalities; conditioning is a time: t_i = first step for what is given, T for what is
    absent, the same t for what is drawn jointly. `predict` takes a state at a common t and sees to that: it puts clean codes
    of given values, and plain noise for absent ones, into their channels. The arguments are those of `MTDiffusion`, with
    encoders that write disjoint channels and constant weights of 1.

    Source: the idea of one time per modality is UniDiffuser's (Bao et al. 2023); this small version is ours.
    """

    def __init__(self, process, modalities, backbone, space, prediction="v", rule="conditioned", sampler="ddim"):
        super().__init__(process, modalities, backbone, space, prediction, rule, sampler)
        self.levels = nn.ModuleDict({name: NoiseLevel(backbone.embedding) for name in modalities})

    def forward(
        self,
        z_t: Tensor,
        t: int | Tensor,
        given: Mapping[str, Tensor] | None = None,
        present: Present | None = None,
        known: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        """`predict` without checks, from a state in which all modalities are at t; `known` as in `MTDiffusion.forward`."""
        codes, there = self.encode(given or {}), self.process.masks(present, len(z_t), z_t.device)
        everybody = torch.ones(len(z_t), dtype=torch.bool, device=z_t.device)
        t, noise = torch.as_tensor(t, device=z_t.device).expand(len(z_t)), self.process.at(t, z_t).noise.clamp(min=1e-9)
        free, scale, clean, times = torch.ones_like(z_t), torch.ones_like(z_t), torch.zeros_like(z_t), {}
        for name, modality in self.modalities.items():
            told = (known or {}).get(name, everybody) if name in codes else ~everybody
            absent = ~there.get(name, everybody) & ~told
            times[name] = torch.where(told, self.process.first, torch.where(absent, self.process.steps, t))
            drawn = per_example(~told & ~absent, z_t)
            modality.take(free).copy_(drawn)
            modality.take(scale).copy_(drawn + per_example(absent, z_t) / noise)
            if name in codes:
                clean = clean + per_example(told, z_t) * codes[name].to(z_t)
        prediction = self.predict_at(scale * z_t + clean, times)
        aggregate = free * prediction.aggregate + clean
        estimate = {name: modality.place(modality.take(aggregate)) for name, modality in self.modalities.items()}
        return Prediction(aggregate, prediction.law, estimate)

    def predict_at(self, z: Tensor, times: Mapping[str, Tensor]) -> Prediction:
        """All modalities from states z (B, *Z), those of modality i at times[i] (B,); without estimates."""
        t, *_ = times.values()
        level = sum(self.levels[name](self.clock(times[name], len(z))) for name in list(times)[1:])
        features, pooled = self.backbone(z.to(self.dtype), self.clock(t, len(z)), level)
        signal, noise = self._amplitudes(z, times)
        aggregate = signal * z - noise * self.denoise(features).to(z.dtype)
        law = {}
        for name, modality in self.modalities.items():
            at = self.process.at(times[name], z)
            view = View(features, pooled, z, z, aggregate, at.W[name], at.gain(name), at.variance(name))
            law[name] = modality.head(view)
        return Prediction(aggregate, law, {})

    def loss(
        self,
        batch: Mapping[str, Tensor],
        generator: torch.Generator,
        weights: Mapping[str, float],
        drop: Mapping[str, float | str] | None = None,
        give: Mapping[str, float | str] | None = None,
    ) -> Loss:
        """|| v - output ||^2 in all channels, at independent times, plus the loss of each head.

        Without drop and give, a third of the times are at an end (clean or pure noise), so that given and absent values
        are trained. With them the ends come as often as `multitask_loss` gives and drops: given is clean, dropped and not
        given is noise; modalities that share a coin share their time.
        """
        size = self.check(batch)
        clean = sum(self.encode(batch).values())
        times = self._times(size, generator, drop or {}, give or {})
        eps = torch.randn(clean.shape, generator=generator, device=clean.device)
        signal, noise = self._amplitudes(clean, times)
        prediction = self.predict_at(signal * clean + noise * eps, times)
        terms = {"denoise": ((clean - prediction.aggregate) / noise).square().mean()}  # |v - v^|^2
        heads = [name for name, modality in self.modalities.items() if modality.has_head]
        terms |= {name: prediction.law[name].loss(batch[name]).mean() for name in heads}
        return Loss(terms["denoise"] + sum(weights.get(name, 1.0) * terms[name] for name in heads), terms)

    def _times(self, size: int, generator: torch.Generator, drop: Mapping, give: Mapping) -> dict[str, Tensor]:
        """A time for every example and modality, (size,) each."""
        first, last, device = self.process.first, self.process.steps, self.device
        dropped, told = (coins(chances, size, device, generator) for chances in (drop, give))
        times = {}
        for name in self.modalities:
            t = torch.randint(first, last + 1, (size,), generator=generator, device=device)
            if not drop and not give:
                end = torch.rand(size, generator=generator, device=device)
                t = torch.where(end < 1 / 6, first, torch.where(end > 5 / 6, last, t))
            t = times.get({**drop, **give}.get(name), t)  # of the modality whose coin it shares
            t = torch.where(dropped[name], last, t) if name in dropped else t
            times[name] = torch.where(told[name], first, t) if name in told else t
        return times

    def _amplitudes(self, z: Tensor, times: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """sqrt(abar) and sqrt(1 - abar) at each modality's own time, in its channels."""
        signal, noise = torch.ones_like(z), torch.zeros_like(z)
        for name, t in times.items():
            at = self.process.at(t, z)
            self.modalities[name].take(signal).copy_(at.signal)
            self.modalities[name].take(noise).copy_(at.noise)
        return signal, noise
