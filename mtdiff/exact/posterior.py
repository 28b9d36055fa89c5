"""The posterior of a mixture of Gaussians after a linear measurement: what restoration should draw, in closed form."""

import torch
from torch import Tensor

from mtdiff.degradations import Degradation, Matrix
from mtdiff.exact.mixture import LabelledMixture


def mixture_posterior(model: LabelledMixture, y: Tensor, problem: Degradation) -> tuple[Tensor, Tensor, Tensor]:
    """p(x | y) for y = A x + b + sigma n: again a mixture of Gaussians.

    With the component N(m_k, s_k^2 I) and G_k = s_k^2 A A^T + sigma^2 I

        weight_k ~ w_k N(y; A m_k + b, G_k),
        mean_k = m_k + s_k^2 A^T G_k^{-1} (y - b - A m_k),
        covariance_k = s_k^2 I - s_k^4 A^T G_k^{-1} A.

    Args:
        model: a mixture whose label has weight 0: nothing of it is in x.
        y: (m,) one measurement.
        problem: its operator is a `Matrix` (m, d), its noise sigma > 0.

    Returns:
        weights (K,), means (K, d) and covariances (K, d, d), float64.

    Raises:
        ValueError: another operator, no noise, or a y that does not fit.

    Source: textbook (a Kalman update of each component).
    """
    if not isinstance(problem.operator, Matrix) or not problem.noise > 0:
        raise ValueError("the posterior is known for a Matrix and noise above 0")
    a = problem.operator.a  # (m, d)
    if y.shape != a.shape[:1] or a.shape[1] != model.means.shape[1]:
        raise ValueError(
            f"expected y (m,) of a matrix (m, {model.means.shape[1]}), got {tuple(y.shape)} of {tuple(a.shape)}"
        )
    s2 = model.stds.square()[:, None, None]  # (K, 1, 1)
    total = s2 * (a @ a.T) + problem.noise**2 * torch.eye(len(a), dtype=torch.float64)  # (K, m, m)
    left = y.double() - problem.offset - model.means @ a.T  # (K, m)
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(left), total).log_prob(left)
    weights = (model.weights.log() + evidence).softmax(0)
    gain = s2 * torch.linalg.solve(total, a.expand(len(left), -1, -1)).mT  # (K, d, m) s^2 A^T G^{-1}
    means = model.means + torch.einsum("kdm,km->kd", gain, left)
    return weights, means, s2 * (torch.eye(a.shape[1], dtype=torch.float64) - gain @ a)


def draw_posterior(model: LabelledMixture, y: Tensor, problem: Degradation, n: int, generator=None) -> Tensor:
    """Draws of p(x | y), (n, d) float64; see `mixture_posterior`."""
    weights, means, covariances = mixture_posterior(model, y, problem)
    k = torch.multinomial(weights, n, replacement=True, generator=generator)
    noise = torch.randn(n, means.shape[1], dtype=torch.float64, generator=generator)
    return means[k] + torch.einsum("nij,nj->ni", torch.linalg.cholesky(covariances)[k], noise)
