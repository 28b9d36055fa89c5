"""The gap of the multi-modal bound, term by term, where everything is Gaussian (theory 3, "Gap identity").

X ~ N(0, C) and E_i(x_i) = A_i x_i, so m_t = B_t X with B_t = [W_t^1 A_1, ..., W_t^N A_N], and all laws are Gaussian.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtdiff.checks import check_choice
from mtdiff.process import ForwardProcess


@dataclass(frozen=True)
class GaussianGap:
    """The expected bound of a linear-Gaussian problem, and where it falls short. All in nats.

    log_evidence - bound = prior + moving_target + history + factorisation + reverse; every term is >= 0.

    Attributes:
        log_evidence: E log q(X) = -H(X), the best that any model can do.
        bound: E[ELBO] with exact heads and the chosen reverse process, read at the process' first step.
        prior: KL(q(z_T) || N(0, I)).
        moving_target: sum_t I(z_{t-1}; z_{t+1..T} | z_t), 0 iff the chain of z is Markov.
        history: H(X | z_0) - H(X | z_{0..T}), what the heads would know if they saw the whole chain.
        factorisation: TC(x_1; ...; x_N | z_0), what separate heads lose.
        reverse: sum_t E KL(q(z_{t-1} | z_t) || p(z_{t-1} | z_t)), 0 for the optimal reverse process.
    """

    log_evidence: float
    bound: float
    prior: float
    moving_target: float
    history: float
    factorisation: float
    reverse: float

    @property
    def gap(self) -> float:
        """log_evidence - bound."""
        return self.log_evidence - self.bound


def linear_gaussian_gap(
    covariance: Tensor, encoders: Mapping[str, Tensor], process: ForwardProcess, reverse_variance: str = "optimal"
) -> GaussianGap:
    """The gap identity on X ~ N(0, covariance) with linear encoders, exactly.

    The bound comes from its own definition (prior, diffusion and read-out terms), the five terms of the gap from entropies
    of q: that they add up is a theorem (theory 3), not how they are computed.

    Args:
        covariance: (n, n) of the stacked modalities, symmetric positive definite.
        encoders: {name: (d, n_i)} the matrices A_i, in stacking order; the n_i add up to n.
        process: forward process of the same modalities, ending at noise.
        reverse_variance: "optimal", the full covariance of q(z_{t-1} | z_t); or "isotropic", beta~_t I.

    Raises:
        ValueError: an argument is not as it says there.

    Source: ours, theory 3.
    """
    c, matrices = _checked(covariance, encoders, process, reverse_variance)
    first, abar = process.first, process.schedule.abar
    weights = torch.stack([process.cumulative(name) for name in matrices], 1)  # (T+1, N)
    sizes = [a.shape[1] for a in matrices.values()]
    d = next(iter(matrices.values())).shape[0]
    by_column = weights.repeat_interleave(torch.tensor(sizes), 1)  # (T+1, n)
    b = torch.cat(list(matrices.values()), 1) * by_column[:, None]  # (T+1, d, n) B_t

    # laws of the chain: S_t = Cov(z_t), V_t = Cov(z_{t-1} | z_t), t = first+1 .. T
    eye, a = torch.eye(d, dtype=torch.float64), abar[:, None, None]
    s = a * b @ c @ b.mT + (1 - a) * eye
    alpha = (abar[1:] / abar[:-1])[first:]
    before, after, a_before = slice(first, -1), slice(first + 1, None), a[first:-1]
    cross = (a_before * a[after]).sqrt() * b[before] @ c @ b[after].mT + alpha.sqrt()[:, None, None] * (1 - a_before) * eye
    v = s[before] - cross @ torch.linalg.solve(s[after], cross.mT)
    beta = (1 - alpha) * (1 - abar[before]) / (1 - abar[after])
    entropy_back = _entropy(v).sum()

    # X seen through z_first alone, and through the whole chain, whose increments are independent given X
    information = abar[first] / (1 - abar[first]) * b[first].T @ b[first]
    moved = b[after] - b[before]
    chain = information + ((abar[after] / (1 - alpha))[:, None, None] * moved.mT @ moved).sum(0)
    given_first = torch.linalg.inv(torch.linalg.inv(c) + information)
    rows = given_first.split(sizes)
    entropy_heads = sum(_entropy(row.split(sizes, 1)[k]) for k, row in enumerate(rows))
    entropy_given_chain = _entropy(torch.linalg.inv(torch.linalg.inv(c) + chain))

    reverse, cross_entropy_back = 0.0, entropy_back
    if reverse_variance == "isotropic":
        trace = v.diagonal(dim1=-2, dim2=-1).sum(-1)
        cross_entropy_back = 0.5 * (d * (2 * math.pi * beta).log() + trace / beta).sum()
        reverse = 0.5 * (trace / beta - d + d * beta.log() - torch.linalg.slogdet(v).logabsdet).sum()

    # E KL(q(z_T | X) || p(z_T)); sum_t E KL(q(z_{t-1} | z_t, X) || p(z_{t-1} | z_t)); H(z_first..T)
    prior_term = 0.5 * (d * math.log(2 * math.pi) + s[-1].trace()) - _noise_entropy(1 - abar[-1], d)
    diffusion_term = cross_entropy_back - _noise_entropy(beta, d)
    noise = _noise_entropy(torch.cat([(1 - abar[first])[None], 1 - alpha]), d)  # H(z_first..T | X)
    entropy_chain = _entropy(c) - entropy_given_chain + noise
    return GaussianGap(
        log_evidence=-float(_entropy(c)),
        bound=-float(prior_term + diffusion_term + entropy_heads),
        prior=float(0.5 * (s[-1].trace() - d - torch.linalg.slogdet(s[-1]).logabsdet)),
        moving_target=float(entropy_back + _entropy(s[-1]) - entropy_chain),
        history=float(_entropy(given_first) - entropy_given_chain),
        factorisation=float(entropy_heads - _entropy(given_first)),
        reverse=float(reverse),
    )


def _entropy(covariance: Tensor) -> Tensor:
    """Entropy of a Gaussian in nats: 1/2 log det(2 pi e covariance), over leading batch dimensions."""
    return 0.5 * torch.linalg.slogdet(2 * math.pi * math.e * covariance).logabsdet


def _noise_entropy(variances: Tensor, d: int) -> Tensor:
    """Entropy of independent noise in d dimensions at each step, in nats."""
    return d / 2 * torch.log(2 * math.pi * math.e * variances).sum()


def _check_covariance(c: Tensor) -> None:
    if c.ndim != 2 or c.shape[0] != c.shape[1]:
        raise ValueError(f"covariance must be (n, n), got {tuple(c.shape)}")
    if not torch.allclose(c, c.T, rtol=1e-9, atol=1e-12) or bool(torch.linalg.cholesky_ex(c).info):
        raise ValueError("covariance must be symmetric and positive definite")


def _checked(covariance, encoders, process, reverse_variance) -> tuple[Tensor, dict[str, Tensor]]:
    """The arguments in float64, or a ValueError that says what does not fit."""
    c = torch.as_tensor(covariance, dtype=torch.float64)
    matrices = {name: torch.as_tensor(a, dtype=torch.float64) for name, a in encoders.items()}
    _check_covariance(c)
    if set(matrices) != set(process.names):
        raise ValueError(f"encoders are for {list(matrices)}, but the process has {list(process.names)}")
    shapes = {name: tuple(a.shape) for name, a in matrices.items()}
    if {len(shape) for shape in shapes.values()} != {2} or len({shape[0] for shape in shapes.values()}) != 1:
        raise ValueError(f"encoders must be (d, n_i) with one d, got {shapes}")
    if sum(a.shape[1] for a in matrices.values()) != len(c):
        raise ValueError(f"the columns of the encoders {shapes} must add up to n = {len(c)}")
    if process.prior is not None:
        raise ValueError(f"the process ends at {process.prior!r}; the gap is that of a chain that ends at noise")
    check_choice("reverse_variance", reverse_variance, ("optimal", "isotropic"))
    return c, matrices
