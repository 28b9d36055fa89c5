"""A linear-Gaussian latent model: evidence, posteriors and every sub-sampled bound of a multimodal VAE in closed form."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtdiff.checks import check_names, check_real


@dataclass(frozen=True)
class LinearLatent:
    """z ~ N(0, I_d), x_i = A_i z + r_i eps_i: what a multimodal VAE would be if everything were linear. In float64.

    Values are {name: (B, n_i)}, and S is the set of their names. An unknown name is a KeyError, a shape that does not fit a
    ValueError.

    Attributes:
        loadings: {name: (n_i, d)} the matrices A_i.
        noise: {name: r_i > 0} standard deviations.

    Source: ours.
    """

    loadings: Mapping[str, Tensor]
    noise: Mapping[str, float]

    def __post_init__(self):
        loadings = {name: torch.as_tensor(a, dtype=torch.float64) for name, a in self.loadings.items()}
        shapes = {name: tuple(a.shape) for name, a in loadings.items()}
        if not loadings or any(len(s) != 2 for s in shapes.values()) or len({s[1] for s in shapes.values()}) != 1:
            raise ValueError(f"loadings must be (n_i, d) with one d, got {shapes}")
        if set(self.noise) != set(loadings) or not all(r > 0 for r in self.noise.values()):
            raise ValueError(f"noise must be a positive number for each of {list(loadings)}, got {dict(self.noise)}")
        object.__setattr__(self, "loadings", loadings)

    @property
    def size(self) -> int:
        """The dimension d of the latent."""
        return next(iter(self.loadings.values())).shape[1]

    def draw(self, n: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Values of all modalities of n examples."""

        def noise(k: int) -> Tensor:
            return torch.randn(n, k, dtype=torch.float64, generator=generator)

        z = noise(self.size)
        return {name: z @ a.T + self.noise[name] * noise(len(a)) for name, a in self.loadings.items()}

    def precision(self, names: Collection[str]) -> Tensor:
        """Of p(z | x_S): I + sum_{i in S} A_i^T A_i / r_i^2, (d, d)."""
        check_names("names", names, self.loadings)
        experts = [self.loadings[name].T @ self.loadings[name] / self.noise[name] ** 2 for name in names]
        return sum(experts, torch.eye(self.size, dtype=torch.float64))

    def posterior(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """p(z | x_S) as mean (B, d) and covariance (d, d): exactly the product of the prior and one expert for each x_i."""
        self._check(values)
        weighted = sum(x @ self.loadings[name] / self.noise[name] ** 2 for name, x in values.items())
        covariance = torch.linalg.inv(self.precision(values))
        return weighted @ covariance, covariance

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """Log p(x_S) in nats, (B,)."""
        self._check(values)
        a, x = torch.cat([self.loadings[name] for name in values]), torch.cat(list(values.values()), 1)
        own = torch.cat([a.new_full((len(self.loadings[name]),), self.noise[name] ** 2) for name in values])
        return torch.distributions.MultivariateNormal(x.new_zeros(x.shape[1]), a @ a.T + own.diag()).log_prob(x)

    def bound(self, values: Mapping[str, Tensor], mean: Tensor, covariance: Tensor) -> Tensor:
        """E_q log p(x_S | z) - KL(q || N(0, I)) <= log p(x_S) for q = N(mean, covariance), S the names of values: (B,) nats.

        q may be made of anything: of a subset of the values it is a sub-sampled bound.
        """
        self._check(values)
        spread = covariance.diagonal().sum() + mean.square().sum(1)
        total = -0.5 * (spread - self.size - torch.linalg.slogdet(covariance).logabsdet)
        for name, x in values.items():
            a, variance = self.loadings[name], self.noise[name] ** 2
            square = (x - mean @ a.T).square().sum(1) + (a @ covariance @ a.T).diagonal().sum()
            total = total - 0.5 * (square / variance + len(a) * math.log(2 * math.pi * variance))
        return total

    def ratios(self, given: Collection[str]) -> Tensor:
        """Eigenvalues m_k >= 1 of P P_S^{-1}, (d,): how much narrower the posterior of all is than that of `given`."""
        whole, part = self.precision(self.loadings), self.precision(given)
        half = torch.linalg.cholesky(whole)
        return torch.linalg.eigvalsh(half.T @ torch.linalg.inv(part) @ half)

    def information(self, given: Collection[str]) -> float:
        """I(z; the others | x_S) = 1/2 sum log m_k, in nats: what the absent modalities would still say of the latent."""
        return float(0.5 * self.ratios(given).log().sum())

    def gap(self, given: Collection[str]) -> float:
        """E[log p(X) - L_S] for q_S = p(z | x_S), the exact posterior of a part: sum (m_k - 1 - 1/2 log m_k), in nats."""
        m = self.ratios(given)
        return float((m - 1 - 0.5 * m.log()).sum())

    def least_gap(self, given: Collection[str]) -> float:
        """The same for the best q_S there is, N(E[z | x_S], P^{-1}): 1/2 sum (m_k - 1), in nats.

        Its mean is that of the part, but its covariance is that of all: it claims to know what it does not.
        """
        return float(0.5 * (self.ratios(given) - 1).sum())

    def _check(self, values: Mapping[str, Tensor]) -> None:
        if not values:
            raise ValueError(f"values is empty; the model has {list(self.loadings)}")
        check_names("values", values, self.loadings)
        for name, x in values.items():
            check_real(f"values[{name!r}]", x, (len(self.loadings[name]),))
