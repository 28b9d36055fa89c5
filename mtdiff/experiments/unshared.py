"""The control without a shared space: every modality has a z_i and a time t_i of its own; only the trunk is shared."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from mtdiff.backbones.base import NoiseLevel
from mtdiff.losses import Loss, coins
from mtdiff.modalities.base import View
from mtdiff.model import MTDiffusion
from mtdiff.prediction import Prediction
from mtdiff.solvers import Guess, frozen


class Unshared(MTDiffusion):
    """Each modality is diffused alone, in its own channels and at its own time; one backbone denoises all of them.

    There is no common z_t, hence no aggregate; conditioning is a time: t_i = first step for what is given, T for
    what is absent, the same t for what is drawn jointly. The arguments are those of `MTDiffusion`, with encoders that
    write disjoint channels and constant weights of 1.

    Source: the idea of one time per modality is UniDiffuser's (Bao et al. 2023); this small version is ours.
    """

    def __init__(self, process, modalities, backbone, space, prediction="v", rule="conditioned", sampler="ddim"):
        super().__init__(process, modalities, backbone, space, prediction, rule, sampler)
        self.levels = nn.ModuleDict({name: NoiseLevel(backbone.embedding) for name in modalities})

    def forward(self, *args, **kwargs) -> Prediction:
        """There is no common z_t to predict from.

        Raises:
            ValueError: always; `sample` and `classify` are this model's own.
        """
        raise ValueError("this control has a time per modality and no common z_t: use its .sample and .classify")

    def predict_at(self, z: Tensor, times: Mapping[str, Tensor]) -> Prediction:
        """All modalities from states at their own times.

        Args:
            z: (B, *Z), channels of modality i at time times[i].
            times: {name: (B,) int}.

        Returns:
            The prediction; aggregate holds E[E_i(x_i) | z] in the channels of i.
        """
        first = next(iter(self.modalities))
        times = {name: t.to(z.device) for name, t in times.items()}
        levels = [self.levels[name](self.clock(t, len(z))) for name, t in times.items() if name != first]
        features, pooled = self.backbone(z.to(self.dtype), self.clock(times[first], len(z)), sum(levels))
        output = self.denoise(features).to(z.dtype)
        signal, noise = self._amplitudes(z, times)
        aggregate, one = signal * z - noise * output, z.new_ones(len(z), *[1] * (z.ndim - 1))
        view = View(features, pooled, z, z, aggregate, one, one, one)
        law = {name: modality.head(view) for name, modality in self.modalities.items()}
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
        are trained. With them the ends come as often as `multitask_loss` tells and drops: told is clean, dropped and not
        told is noise; modalities that share a coin share their time.

        Args:
            batch: {name: (B, ...)}.
            generator: source of times and noise.
            weights: {name: lambda_i} of the heads, 1 where not named.
            drop: as in `multitask_loss`.
            give: as in `multitask_loss`.

        Returns:
            The loss.
        """
        size = self.check(batch)
        clean = self._clean(batch)
        if drop or give:
            times = self._times_by_coins(size, clean.device, generator, drop, give)
        else:
            times = {name: self._times(size, clean.device, generator) for name in self.modalities}
        eps = torch.randn(clean.shape, generator=generator, device=clean.device)
        signal, noise = self._amplitudes(clean, times)
        prediction = self.predict_at(signal * clean + noise * eps, times)
        terms = {"denoise": ((clean - prediction.aggregate) / noise).square().mean()}  # |v - v^|^2
        for name, modality in self.modalities.items():
            if modality.has_head:
                terms[name] = prediction.law[name].loss(batch[name]).mean()
        total = sum((1.0 if name == "denoise" else weights.get(name, 1.0)) * term for name, term in terms.items())
        return Loss(total, terms)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        given: Mapping[str, Tensor] | None = None,
        steps: int = 50,
        sampler: str = "ddpm",
        present: Collection[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """All unknown modalities go back at a common time, given ones stay clean at the first step, absent ones at T.

        Args:
            n: number of examples.
            given: {name: (n, ...)}.
            steps: intervals.
            sampler: "ddpm" (ancestral) or "ddim".
            present: names of the modalities that are drawn or given; the others stay noise. None: all.
            generator: source of the noise.

        Returns:
            {name: (n, ...)}.
        """
        given, first = {name: v.to(self.device, copy=True) for name, v in (given or {}).items()}, self.process.first
        z = torch.randn((n, *self.space), generator=generator, dtype=torch.float64, device=self.device)
        codes = {name: self.modalities[name].encode(value).double() for name, value in given.items()}
        grid = torch.linspace(self.process.steps, first, steps + 1).round().long().tolist()
        absent = [] if present is None else [name for name in self.modalities if name not in present]
        for t, s in zip(grid, [*grid[1:], first], strict=True):
            for name, code in codes.items():
                self._write(z, name, code)
            for name in absent:
                self._write(z, name, torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device))
            at = {name: first if name in given else self.process.steps if name in absent else t for name in self.modalities}
            times = {name: self._full(n, step) for name, step in at.items()}
            prediction = self.predict_at(z, times)
            if t == first:
                break
            mean, std = self.process.back(z, prediction.aggregate, prediction.aggregate, t, s)
            noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
            z = mean + std * noise if sampler == "ddpm" else frozen(self.process, z, Guess(prediction.aggregate, {}), t, s)
        drawn = {name: law.draw(generator) for name, law in prediction.law.items()}
        return {**{k: v.float() if v.is_floating_point() else v for k, v in drawn.items()}, **given}

    @torch.no_grad()
    def classify(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The most likely label of clean images: the image at the first step, the label's channels pure noise."""
        z = torch.randn((len(image), *self.space), generator=generator, device=self.device)
        self._write(z, "image", self.modalities["image"].encode(image.to(self.device)))
        times = {"image": self._full(len(z), self.process.first), "label": self._full(len(z), self.process.steps)}
        return self.predict_at(z, times).law["label"].logits.argmax(1)

    def _clean(self, batch: Mapping[str, Tensor]) -> Tensor:
        """All codes, each in its own channels."""
        return sum(self.encode(batch).values())

    def _times(self, size: int, device: torch.device, generator: torch.Generator) -> Tensor:
        first, last = self.process.first, self.process.steps
        t = torch.randint(first, last + 1, (size,), generator=generator, device=device)
        end = torch.rand(size, generator=generator, device=device)
        return torch.where(end < 1 / 6, first, torch.where(end > 5 / 6, last, t))

    def _times_by_coins(self, size, device, generator, drop, give) -> dict[str, Tensor]:
        first, last = self.process.first, self.process.steps
        dropped, told = (coins(chances, size, device, generator) for chances in (drop, give))
        partner = {
            name: other for chances in (drop or {}, give or {}) for name, other in chances.items() if other in chances
        }
        times = {}
        for name in self.modalities:
            t = torch.randint(first, last + 1, (size,), generator=generator, device=device)
            t = times.get(partner.get(name), t)
            t = torch.where(dropped[name], last, t) if name in dropped else t
            times[name] = torch.where(told[name], first, t) if name in told else t
        return times

    def _full(self, n: int, t: int) -> Tensor:
        return torch.full((n,), t, device=self.device)

    def _write(self, z: Tensor, name: str, code: Tensor) -> None:
        modality = self.modalities[name]
        z[:, modality.span.start : modality.span.stop] = modality.take(code)

    def _amplitudes(self, z: Tensor, times: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """sqrt(abar) and sqrt(1 - abar) at each modality's own time, written to its channels."""
        signal, noise = torch.ones_like(z), torch.zeros_like(z)
        for name, t in times.items():
            span = self.modalities[name].span
            a, b = self.process.at(t, z).level
            signal[:, span.start : span.stop], noise[:, span.start : span.stop] = a, b
        return signal, noise
