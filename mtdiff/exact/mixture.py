"""A mixture of Gaussians with labels: a model whose predictions are known in closed form (theory 4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from mtdiff.checks import check_ids, check_real
from mtdiff.laws import Categorical, gaussian_log_prob
from mtdiff.prediction import Denoiser, Given, Prediction, check_state
from mtdiff.process import At, ForwardProcess, Present, Steps


class LabelledMixture(Denoiser):
    """A mixture of isotropic Gaussians with labels: y ~ weights, x | y ~ N(mean_y, std_y^2 I), E_y = code_y, E_x = x.

    Given y, z_t is Gaussian with mean sqrt(abar_t) (W_t^x mean_y + W_t^label code_y) and variance
    abar_t (W_t^x)^2 std_y^2 + 1 - abar_t, so everything a network would have to learn is a softmax and a few
    Gaussian posteriors. It is called like a trained model (`mtdiff.prediction.Denoiser`).

    Args:
        weights: (K,) class probabilities, sum 1; like the next three a tensor or nested sequences of numbers.
        means: (K, d).
        stds: (K,) positive.
        label_codes: (K, d) codes of the labels.
        process: forward process of the modalities "x" and "label".

    Source: ours; the exact model behind the statements of theory 4.
    """

    rule = "bayes"

    def __init__(self, weights, means, stds, label_codes, process: ForwardProcess):
        arrays = (torch.as_tensor(a, dtype=torch.float64) for a in (weights, means, stds, label_codes))
        self.weights, self.means, self.stds, self.codes = arrays
        k = len(self.weights)
        if self.means.ndim != 2 or len(self.means) != k or self.stds.shape != (k,) or self.codes.shape != self.means.shape:
            shapes = [tuple(a.shape) for a in (self.weights, self.means, self.stds, self.codes)]
            raise ValueError(f"expected weights (K,), means (K, d), stds (K,), label_codes (K, d), got {shapes}")
        if bool((self.weights < 0).any()) or abs(float(self.weights.sum()) - 1) > 1e-6:
            raise ValueError(f"weights must be probabilities that sum to 1, got {self.weights.tolist()}")
        self.weights = self.weights / self.weights.sum()  # to float64, where they came as float32
        if bool((self.stds <= 0).any()):
            raise ValueError(f"stds must be positive, got {self.stds.tolist()}")
        if set(process.names) != {"x", "label"}:
            raise ValueError(f'the process must have the modalities "x" and "label", got {process.names}')
        self.process = process
        self.space = (self.means.shape[1],)
        self.modalities = {
            "x": SimpleNamespace(check=lambda value: check_real("'x'", value, self.space)),
            "label": SimpleNamespace(check=lambda value: check_ids("'label'", value, k, "labels (B,)")),
        }

    def draw(self, n: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """N examples {"x": (n, d), "label": (n,)} of the data's own law."""
        label = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.space, dtype=torch.float64, generator=generator)
        return {"x": self.means[label] + self.stds[label, None] * noise, "label": label}

    def encode(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Codes: x as it is, and the label's code, (B, d) float64."""
        return {name: self.codes[v.long()] if name == "label" else v.double() for name, v in values.items()}

    def predict(self, z_t: Tensor, t: Steps, *, given: Given = None, present: Present = None) -> Prediction:
        """E[m_t | z_t, given] exactly, and the laws of x, a mixture (`Mixture`), and of the label (`Categorical`)."""
        check_state(self, z_t, given)
        at = self.process.at(t, z_t.double(), present)
        law = self._components(z_t.double(), at, given)
        r = law.log_weights.exp()
        aggregate = torch.einsum("bk,bkd->bd", r, at.W["x"][..., None] * law.means + at.W["label"][..., None] * self.codes)
        label = Categorical(law.log_weights, mix=lambda probs: probs @ self.codes)
        return Prediction(aggregate, {"x": law, "label": label}, {"x": law.mean, "label": r @ self.codes})

    def read(self, z_t: Tensor, t: int, *, prediction=None, generator=None, **conditions) -> dict[str, Tensor]:
        """Draw (x, label) from their exact joint law given z_t and what is given: the label first, then x given both."""
        label, x = self.predict(z_t, t, **conditions).law["x"].draw_both(generator)
        return {"x": x, "label": label}

    def _components(self, z: Tensor, at: At, given: Given) -> "Mixture":
        """Per label k: log p(k | z_t, given), and mean and variance of x | z_t, k, given."""
        a = at.signal * at.W["x"]  # (B, 1) x enters z_t as a x
        offset = (at.signal * at.W["label"])[..., None] * self.codes  # (B, K, d)
        prior_variance = self.stds**2
        total = a**2 * prior_variance + at.noise**2  # (B, K) variance of z_t | k
        log_r = self.weights.log() + _each(z, offset + a[..., None] * self.means, total)
        gain = a * prior_variance / total
        mean_k = self.means + gain[..., None] * (z[:, None] - offset - a[..., None] * self.means)
        variance_k = prior_variance * at.noise**2 / total
        if given and "x" in given:  # p(z | x, k) p(x | k) instead of p(z | k)
            x = given["x"].double()
            at_x = _each(z, offset + (a * x)[:, None], (at.noise**2).expand_as(total))
            log_r = self.weights.log() + at_x + _each(x, self.means.expand_as(mean_k), prior_variance.expand_as(total))
            mean_k, variance_k = x[:, None].expand_as(mean_k), torch.zeros_like(variance_k)
        if given and "label" in given:
            chosen = torch.nn.functional.one_hot(given["label"].long(), len(self.weights)).bool()
            log_r = torch.zeros_like(log_r).masked_fill(~chosen, -torch.inf)
        return Mixture(log_r.log_softmax(1), mean_k, variance_k)


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of isotropic Gaussians, one for each example; a `mtdiff.laws.Law` of x, which is its own code.

    The log-weights and variances are (B, K), the means (B, K, d).
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean of the mixture, (B, d)."""
        return torch.einsum("bk,bkd->bd", self.log_weights.exp(), self.means)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of the density at a value (B, d), (B,)."""
        return torch.logsumexp(self.log_weights + _each(value, self.means, self.variances), 1)

    def loss(self, value: Tensor) -> Tensor:
        """-log p, (B,)."""
        return -self.log_prob(value)

    def draw_both(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """A component (B,), and a value of it (B, d)."""
        k = torch.multinomial(self.log_weights.exp(), 1, generator=generator).squeeze(1)
        rows = torch.arange(len(k))
        mean, std = self.means[rows, k], self.variances[rows, k, None].sqrt()
        return k, torch.normal(mean, std.expand_as(mean), generator=generator)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """A value, (B, d)."""
        return self.draw_both(generator)[1]

    def expected_code(self) -> Tensor:
        """The mean."""
        return self.mean


def _each(x: Tensor, mean_k: Tensor, variance_k: Tensor) -> Tensor:
    """Log N(x; mean_k, variance_k I) for every component, (B, K)."""
    b, k, d = mean_k.shape
    flat = x[:, None].expand(b, k, d).reshape(b * k, d), mean_k.reshape(b * k, d), variance_k.reshape(b * k, 1)
    return gaussian_log_prob(*flat).reshape(b, k)
