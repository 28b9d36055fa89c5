"""A multimodal VAE: one latent behind all modalities, whose posterior is a product of experts or a mixture of such."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from mtdiff.backbones import MLP, Backbone
from mtdiff.checks import check_choice, check_values, check_whole
from mtdiff.elbo import elbo
from mtdiff.losses import Loss, multitask_loss
from mtdiff.modalities import Image, Modality, Vector
from mtdiff.model import MTDiffusion
from mtdiff.process import ForwardProcess
from mtdiff.sampling import sample
from mtdiff.schedules import Levels, NoiseSchedule
from mtdiff.trainable import Model
from mtdiff.vae.experts import KINDS, Normal, chances, product, stratified, subsets
from mtdiff.vae.networks import Encoder, FeedForward, Hint, drawn_shape, numbers

SOURCES = ("diffusion", "normal")
"""Where the latent comes from when nothing is given: the auxiliary diffusion model, or the prior N(0, I) itself."""


NOBODY: Mapping = MappingProxyType({})


class MultimodalVAE(Model):
    """p(X) = E_{z ~ N(0, I)} prod_i p(x_i | z), with q_S(z | x_S) for every subset S of the modalities.

    Args:
        modalities: {name: `Image`, `Vector`, `LabelMap`, `Label` or `Caption`}: what values are; the codes and heads that
            they have in MT-Diffusion are not used.
        experts: the posterior, one of `KINDS`. q_S is a product in all of them (`product`). What differs is which S training
            draws ("mixture": single modalities), and what it scores: "product" x_S alone, the others all of X.
        latent: dimension d of z.
        width: channels of encoders and decoders.
        diffused: {name of an image: the backbone of its diffusion decoder}. Its p(x | z) is an `MTDiffusion` that is always
            given z; all others are feed-forward.

    Attributes:
        prior: MT-Diffusion of the latent alone, for draws with nothing given; it is trained along, and changes nothing else.

    Raises:
        ValueError: unknown experts, no modality, or a modality that no network is there for, or that cannot be diffused.

    Source: MVAE: Wu and Goodman 2018; MMVAE: Shi et al. 2019; MoPoE-VAE: Sutter et al. 2021; diffusion decoder and auxiliary
        model of the latent: Wesego and Rooshenas 2024, all second-hand. One loss for all of them: ours.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        experts: str = "mopoe",
        latent: int = 16,
        width: int = 32,
        diffused: Mapping[str, Backbone] = NOBODY,
    ):
        super().__init__()
        check_whole(latent=latent, width=width)
        if not modalities:
            raise ValueError("modalities is empty: a multimodal VAE needs at least one")
        for name, modality in modalities.items():
            modality.name = name
            drawn_shape(modality)
        for name in diffused:
            if not isinstance(modalities.get(name), Image):
                raise ValueError(f"diffused names {name!r}, which is no image of this model: {list(modalities)}")
        self.experts, self.latent, self.card = check_choice("experts", experts, KINDS), latent, {}
        self.modalities = nn.ModuleDict(modalities)
        self.encoders = nn.ModuleDict({name: Encoder(m, latent, width) for name, m in modalities.items()})
        self.decoders = nn.ModuleDict(
            {
                name: diffusion_decoder(name, modality.shape, diffused[name], latent, width)
                if name in diffused
                else FeedForward(modality, latent, width)
                for name, modality in modalities.items()
            }
        )
        process = ForwardProcess(NoiseSchedule.log_snr(500, 8.0, -9.0), {"latent": 1.0})
        self.prior = MTDiffusion(process, {"latent": Vector(latent, head=False)}, MLP((latent,), 64, 2), (latent,))
        self.register_buffer("sets", subsets(len(modalities)), persistent=False)
        self.register_buffer("chances", chances(experts, len(modalities)), persistent=False)

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.parameters())
        lines = [f"{type(self).__name__} ({self.experts}), latent {self.latent}: {size:,} parameters"]
        kinds = {name: "diffusion" if name in self.diffused else "feed-forward" for name in self.modalities}
        lines += [f"  {name}: {type(m).__name__}, {kinds[name]} decoder" for name, m in self.modalities.items()]
        return "\n".join(lines)

    @property
    def diffused(self) -> tuple[str, ...]:
        """The modalities with a diffusion decoder."""
        return tuple(name for name, decoder in self.decoders.items() if isinstance(decoder, MTDiffusion))

    @property
    def backbone(self) -> Backbone:
        """The network of the first diffusion decoder, or where there is none the latent's."""
        return next((self.decoders[name] for name in self.diffused), self.prior).backbone

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    taught = None
    """A VAE is given nothing by a backbone: see `MTDiffusion.taught`."""

    def check(self, values: Mapping[str, Tensor], what: str = "batch", n: int | None = None) -> int:
        """How many; values are known modalities (else KeyError), valid, and equally many (else ValueError)."""
        return check_values(self.modalities, values, what, n)

    def encode(self, values: Mapping[str, Tensor]) -> dict[str, Normal]:
        """The expert of each value, {name: Normal}."""
        return {name: self.encoders[name](numbers(self.modalities[name], value)) for name, value in values.items()}

    def check_prior(self, codes: object, present: object = None) -> None:
        """A VAE has no chain whose end could be off."""

    def posterior(self, values: Mapping[str, Tensor]) -> Normal:
        """q_S(z | x_S) of the values, S their names: the product of their experts and the prior.

        KeyError for an unknown modality; ValueError for none at all, or values that do not fit.
        """
        self.check(values, "values")
        return product(self.encode({name: value.to(self.device) for name, value in values.items()}))

    @torch.no_grad()
    def features(self, values: Mapping[str, Tensor]) -> Tensor:
        """The posterior mean of values, (N, d) on the CPU: what `mtdiff.representations.linear_probe` takes."""
        return self.posterior(values).mean.cpu()

    def loss(self, batch: Mapping[str, Tensor], generator: torch.Generator | None, levels: Levels = None) -> Loss:
        """The negative sub-sampled bound, in nats per number of an example, and the loss of the latent's diffusion model.

            -L_S = KL(q_S(z | x_S) || N(0, I)) - sum_i E_{q_S} log p(x_i | z),

        a set S for every example (`stratified`), i over S ("product") or over all. Of what is missing (NaN, or -1) no expert
        is in S, and nothing is scored. A diffused modality costs its bound, `diffusion_nats`.

        Returns:
            Terms "kl", one for each modality (nats) and "latent", mean over examples.

        Source: ours: one loss, of which the three posteriors are cases.
        """
        there = {name: ~m.missing(batch[name]) for name, m in self.modalities.items() if name in batch}
        batch = {name: self.modalities[name].filled(value) if name in there else value for name, value in batch.items()}
        size = self.check(batch)
        if lacking := [name for name in self.modalities if name not in batch]:
            raise KeyError(f"batch lacks {lacking}; it has {list(batch)}")
        drawn = self.sets[stratified(self.chances, size, generator)]
        present = {name: drawn[:, k] & there[name] for k, name in enumerate(self.modalities)}
        posterior = product(self.encode(batch), present)
        z = posterior.draw(generator)
        terms, scale = {"kl": posterior.kl().mean()}, 0
        for name, value in batch.items():
            scored = present[name] if self.experts == "product" else there[name]
            terms[name] = torch.where(scored, self._nats(name, value, z, generator, levels), 0.0).mean()
            scale += value[0].numel()
        bound = sum(terms.values()) / scale
        latent = multitask_loss(self.prior, {"latent": z.detach()}, weights={"latent": 0.0}, generator=generator)
        return Loss(bound + latent.total, {**terms, "latent": latent.total})

    def _nats(self, name: str, value: Tensor, z: Tensor, generator, levels: Levels) -> Tensor:
        """-log p(x_i | z), or a draw of what bounds it, (B,) nats."""
        decoder = self.decoders[name]
        if name in self.diffused:
            return diffusion_nats(decoder, name, value, z, generator, levels)
        return -decoder.law(z).log_prob(value)

    @torch.no_grad()
    def bound(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> dict[str, float]:
        """The bound on log p(X) with S all modalities, in nats per example: "total", and -"kl" + sum of the others.

        Of a diffused modality it is `mtdiff.elbo`'s, so that the total stays below log p(X).
        """
        self.check(batch)
        posterior = self.posterior(batch)
        z, found = posterior.draw(generator), {"kl": float(posterior.kl().mean())}
        for name, value in batch.items():
            if name in self.diffused:
                found[name] = elbo(self.decoders[name], {name: value, "latent": z}, generator=generator).total
            else:
                found[name] = float(self.decoders[name].law(z).log_prob(value).mean())
        return {"total": sum(found[name] for name in batch) - found["kl"], **found}

    @torch.no_grad()
    def draw(
        self,
        n: int,
        given: Mapping[str, Tensor] | None = None,
        latent: str = "diffusion",
        steps: int = 50,
        generator: torch.Generator | None = None,
        **others,
    ) -> dict[str, Tensor]:
        """Draw all modalities, some of which may be given; `mtdiff.sample` calls it, and takes the same.

        A latent is drawn from q_S of what is given; a mixture draws one of the experts for each example. With nothing given
        it comes from one of `SOURCES`. Then every decoder draws from it once.

        Args:
            steps: intervals of each reverse chain: the latent's, and that of a diffusion decoder.
            others: options of a chain that all modalities share, such as a rule or guidance: a ValueError, unless they are
                what `mtdiff.sample` has by default.
        """
        usual = {"rule": None, "sampler": None, "guidance": 1.0, "present": None, "chain": (), "repeats": 1}
        if odd := sorted(name for name, value in others.items() if name not in usual or value != usual[name]):
            raise ValueError(f"a multimodal VAE has no options {odd}: it draws a latent, and each modality from that")
        check_choice("latent", latent, SOURCES)
        check_whole(n=n, steps=steps)
        given = {name: value.to(self.device) for name, value in (given or {}).items()}
        given = {name: value.expand(n, *value.shape[1:]) if len(value) == 1 else value for name, value in given.items()}
        if given:
            if (size := self.check(given, "given")) != n:
                raise ValueError(f"given has {size} examples, expected 1 or {n}")
            z = product(self.encode(given), self._chosen(given, n, generator)).draw(generator)
        elif latent == "normal":
            z = torch.randn(n, self.latent, generator=generator, device=self.device)
        else:
            z = sample(self.prior, n, steps=steps, generator=generator)["latent"]
        return {
            name: given[name].clone() if name in given else self.decoded(name, z, steps, generator) for name in self.decoders
        }

    def _chosen(self, given: Mapping[str, Tensor], n: int, generator) -> dict[str, Tensor] | None:
        """Whose expert is used for each example: of a mixture one, each as likely; None: all."""
        if self.experts != "mixture":
            return None
        which = torch.randint(len(given), (n,), generator=generator, device=self.device)
        return {name: which == k for k, name in enumerate(given)}

    def decoded(self, name: str, z: Tensor, steps: int = 50, generator: torch.Generator | None = None) -> Tensor:
        """A modality drawn from latents z (B, d): by a chain, or the mean of its law."""
        decoder = self.decoders[name]
        if name not in self.diffused:
            drawn = decoder.draw(z)
            return drawn.clamp(-1, 1) if isinstance(self.modalities[name], Image) else drawn
        return sample(decoder, len(z), given={"latent": z}, steps=steps, generator=generator)[name]


def diffusion_decoder(name: str, shape: tuple[int, ...], backbone: Backbone, latent: int, width: int) -> MTDiffusion:
    """p(x | z) as an MT-Diffusion of the image alone that is always given z as a `Hint`, with 500 steps."""
    process = ForwardProcess(NoiseSchedule.log_snr(500, 8.0, -9.0), {name: 1.0, "latent": 0.0})
    kinds = {name: Image(shape, head=False), "latent": Hint(latent, width)}
    return MTDiffusion(process, kinds, backbone, shape, sampler="ddpm", conditions=("latent",))


def diffusion_nats(
    decoder: MTDiffusion, name: str, value: Tensor, z: Tensor, generator: torch.Generator | None, levels: Levels = None
) -> Tensor:
    """One draw of what the chain of a diffusion decoder costs, weighted, in nats, (B,).

        1/2 (lambda_0 - lambda_T) w_t SNR_t |x - E[x | x_t, z]|^2,    lambda = log SNR.

    The schedule is straight in lambda, so with w = 1 and steps drawn alike (no `levels`) this is the bound's sum of KLs,
    as its integral over lambda. With levels steps are drawn by them and w_t = 1 / abar_t, the error of v instead of the
    noise: training pays more for what shows in strong noise, which the latent can tell.

    Source: bound as an integral over log SNR: Kingma et al. 2021; weighted: Kingma and Gao 2023, second-hand.
    """
    process, schedule = decoder.process, decoder.process.schedule
    t = process.draw_steps(len(value), levels, generator, value.device)
    z_t, _ = process.diffuse({name: value}, t, generator=generator)
    at = process.at(t, value)
    prediction = decoder(z_t, t, given={"latent": z})
    span = float(schedule.abar[0].logit() - schedule.abar[-1].logit())
    error = (value - prediction.aggregate) ** 2 / (at.noise**2 if levels is not None else (at.noise / at.signal) ** 2)
    return 0.5 * span * error.flatten(1).sum(1)
