"""Posteriors of a multimodal VAE: products of Gaussian experts, the sets they are made of, and how sets are drawn."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtdiff.checks import check_choice

KINDS = ("product", "mixture", "mopoe")
"""Multimodal posteriors: MVAE's product of experts, MMVAE's mixture of experts, MoPoE-VAE's mixture of products."""


@dataclass(frozen=True)
class Normal:
    """N(mean, diag(1 / precision)) over the latent, (B, d) each."""

    mean: Tensor
    precision: Tensor

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """Z = mean + eps / sqrt(precision), (B, d), differentiable in both."""
        eps = torch.randn(self.mean.shape, dtype=self.mean.dtype, device=self.mean.device, generator=generator)
        return self.mean + eps / self.precision.sqrt()

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at z (B, d), in nats, (B,)."""
        return 0.5 * (self.precision.log() - self.precision * (z - self.mean) ** 2 - _LOG_TAU).sum(1)

    def kl(self) -> Tensor:
        """KL(N(mean, 1 / precision) || N(0, I)) = 1/2 sum (1 / precision + mean^2 - 1 + log precision), in nats, (B,)."""
        return 0.5 * (1 / self.precision + self.mean**2 - 1 + self.precision.log()).sum(1)


_LOG_TAU = 1.8378770664093453  # log 2 pi


def product(experts: Mapping[str, Normal], present: Mapping[str, Tensor] | None = None) -> Normal:
    """The product of the prior and of all experts that are present, normalised: again a Gaussian.

        q_S(z) ~ N(z; 0, I) prod_{i in S} N(z; m_i, 1 / l_i),    precision 1 + sum_S l_i,    mean sum_S l_i m_i / precision.

    With nobody present it is the prior.

    Args:
        experts: {name: Normal of (B, d)}, at least one (else a ValueError).
        present: {name: (B,) bool}; None, and who is not named: present.

    Source: Wu and Goodman 2018 (the prior is one of the experts), second-hand.
    """
    if not experts:
        raise ValueError("experts is empty: a product needs at least one")
    like = next(iter(experts.values())).mean
    precision, weighted = torch.ones_like(like), torch.zeros_like(like)
    for name, expert in experts.items():
        here = (present or {}).get(name)
        share = expert.precision if here is None else expert.precision * here[:, None]
        precision, weighted = precision + share, weighted + share * expert.mean
    return Normal(weighted / precision, precision)


def subsets(n: int) -> Tensor:
    """All non-empty subsets of n modalities, (2^n - 1, n) bool, the smallest first."""
    rows = [row for row in itertools.product((False, True), repeat=n) if any(row)]
    return torch.tensor(sorted(rows, key=lambda row: (sum(row), [not one for one in row])))


def chances(kind: str, n: int) -> Tensor:
    """How often training draws each of `subsets`, (2^n - 1,) float64: of "mixture" the single ones, else all alike."""
    check_choice("experts", kind, KINDS)
    sets = subsets(n)
    wanted = sets.sum(1) == 1 if kind == "mixture" else torch.ones(len(sets), dtype=torch.bool)
    return wanted.double() / wanted.sum()


def stratified(chances: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """Numbers of sets for a batch, (size,): each comes size * chance times, rounded up or down, in random places.

    One uniform number shifts an even grid over the cumulative chances: every place still has exactly these chances.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    shift = torch.rand((), generator=generator, device=device, dtype=torch.float64)
    where = (torch.arange(size, device=device) + shift) / size
    row = torch.searchsorted(chances.to(device).cumsum(0), where, right=True).clamp(max=len(chances) - 1)
    return row[torch.randperm(size, generator=generator, device=device)]
