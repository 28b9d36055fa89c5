"""A mixture of Gaussians with labels: a model whose predictions are known in closed form (theory 4)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtdiff.modalities.base import gaussian_log_prob
from mtdiff.model import Prediction
from mtdiff.process import ForwardProcess, check_real


class LabelledMixture:
    """A mixture of isotropic Gaussians with labels: y ~ weights, x | y ~ N(mean_y, std_y^2 I), E_y = code_y, E_x = x.

    Given y, z_t is Gaussian with mean sqrt(abar_t) (W_t^x mean_y + W_t^label code_y) and variance
    abar_t (W_t^x)^2 std_y^2 + 1 - abar_t, so everything a network would have to learn is a softmax and a few
    Gaussian posteriors. It has the same `predict`, `log_prob` and `read` as a trained model.

    Args:
        weights: (K,) class probabilities, sum 1.
        means: (K, d).
        stds: (K,) positive.
        label_codes: (K, d) codes of the labels.
        process: forward process of the modalities "x" and "label".

    Raises:
        ValueError: shapes do not fit, weights do not sum to 1, a std is not positive, or the process has other names.

    Source: ours; the exact model behind the statements of theory 4.
    """

    rule, sampler = "bayes", "ddim"
    modalities = ("x", "label")

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        means: Sequence | Tensor,
        stds: Sequence[float] | Tensor,
        label_codes: Sequence | Tensor,
        process: ForwardProcess,
    ):
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
        self.device = torch.device("cpu")

    def draw(self, n: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """N examples {"x": (n, d), "label": (n,)} of the data's own law."""
        label = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.space, dtype=torch.float64, generator=generator)
        return {"x": self.means[label] + self.stds[label, None] * noise, "label": label}

    def check(self, values: Mapping[str, Tensor], what: str = "batch") -> int:
        """Values are "x" (B, d) or "label" (B,) ids, equally many; returns B.

        Raises:
            KeyError: an unknown modality.
            ValueError: an invalid value, different batch sizes, or no example.
        """
        if not values:
            raise ValueError(f"{what} is empty; this model has {list(self.modalities)}")
        for name, value in values.items():
            if name not in self.modalities:
                raise KeyError(f"{what} names an unknown modality {name!r}; this model has {list(self.modalities)}")
            if name == "x":
                check_real(f"{what}['x']", value)
                if tuple(value.shape[1:]) != self.space:
                    raise ValueError(f"{what}['x'] must be floating point (B, {self.space[0]}), got {tuple(value.shape)}")
            else:
                if value.is_floating_point() or value.dtype == torch.bool or value.ndim != 1 or not len(value):
                    raise ValueError(f"{what}['label'] must be integer (B,), got {value.dtype} {tuple(value.shape)}")
                wrong = value[(value < 0) | (value >= len(self.weights))]
                if len(wrong):
                    raise ValueError(f"{what}['label'] has values outside 0..{len(self.weights) - 1}: {wrong.tolist()[:8]}")
        sizes = {name: len(value) for name, value in values.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"{what} has different numbers of examples: {sizes}")
        return next(iter(sizes.values()))

    def encode(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Codes: x as it is, and the label's code, (B, d) float64."""
        return {name: self.codes[v.long()] if name == "label" else v.double() for name, v in values.items()}

    def predict(
        self,
        z_t: Tensor,
        t: int | Tensor,
        *,
        given: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        """E[m_t | z_t, given] exactly; arguments and result as `MTDiffusion.predict`.

        Args:
            z_t: (B, d).
            t: step in 0..T, an int or a (B,) int tensor.
            given: {"label": (B,)} or {"x": (B, d)}, conditioned on exactly.
            present: {name: (B,) bool} which modalities are in z_t; None: both.

        Returns:
            The prediction; params are the mean of x (B, d) and the log-probabilities of the label (B, K).

        Raises:
            KeyError: an unknown modality.
            ValueError: a value that does not fit.
        """
        log_r, mean_k, _ = self._components(z_t, t, given, present)
        r = log_r.exp()
        x = torch.einsum("bk,bkd->bd", r, mean_k)
        estimate = {"x": x, "label": r @ self.codes}
        weight_x, weight_y = self._weights_at(z_t.double(), t, present)
        aggregate = torch.einsum("bk,bkd->bd", r, weight_x[..., None] * mean_k + weight_y[..., None] * self.codes)
        return Prediction(aggregate, {"x": x, "label": log_r}, estimate)

    def log_prob(
        self,
        name: str,
        value: Tensor,
        z_t: Tensor,
        t: int | Tensor,
        *,
        given: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        prediction: Prediction | None = None,
    ) -> Tensor:
        """Log p(x_i = value | z_t, given) exactly, (B,), differentiable in z_t.

        Args:
            name: "x" or "label".
            value: its value.
            z_t: (B, d).
            t: step in 0..T, an int or a (B,) int tensor.
            given: as in `predict`.
            present: as in `predict`.
            prediction: not used; here so that exact and trained models are called alike.

        Returns:
            (B,) nats.

        Raises:
            KeyError: no such modality.
            ValueError: a value that does not fit.
        """
        if self.check({name: value}, "value") != len(z_t):
            raise ValueError(f"value has {len(value)} examples, z_t has {len(z_t)}")
        log_r, mean_k, variance_k = self._components(z_t, t, given, present)
        if name == "label":
            return log_r.gather(1, value.long()[:, None]).squeeze(1)
        return torch.logsumexp(log_r + self._each(value, mean_k, variance_k), 1)

    def read(
        self,
        z_t: Tensor,
        t: int,
        *,
        given: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
        prediction: Prediction | None = None,
    ) -> dict[str, Tensor]:
        """Draw (x, label) from their exact joint law given z_t and what is given: the label first, then x given both.

        Args:
            z_t: (B, d).
            t: step in 0..T.
            given: as in `predict`.
            present: as in `predict`.
            generator: source of the draws.
            prediction: not used, as in `log_prob`.

        Returns:
            {"x": (B, d), "label": (B,)}.
        """
        log_r, mean_k, variance_k = self._components(z_t, t, given, present)
        label = torch.multinomial(log_r.exp(), 1, generator=generator).squeeze(1)
        rows = torch.arange(len(z_t))
        noise = torch.randn(z_t.shape, dtype=torch.float64, generator=generator)
        return {"x": mean_k[rows, label] + variance_k[rows, label, None].sqrt() * noise, "label": label}

    def _weights_at(self, z_t, t, present):
        """W_t^x and W_t^label, each (B, 1), 0 where absent."""
        out = []
        for name in self.modalities:
            w = self.process.weight(name, t, z_t)
            mask = None if present is None else present.get(name)
            out.append(w if mask is None else torch.where(mask[:, None], w, 0.0))
        return out

    def _each(self, x, mean_k, variance_k):
        """Log N(x; mean_k, variance_k I) for every component, (B, K)."""
        b, k, d = mean_k.shape
        flat = x[:, None].expand(b, k, d).reshape(b * k, d), mean_k.reshape(b * k, d), variance_k.reshape(b * k, 1)
        return gaussian_log_prob(*flat).reshape(b, k)

    def _components(self, z_t, t, given, present):
        """Per label k: log p(k | z_t, given) (B, K), mean (B, K, d) and variance (B, K) of x | z_t, k, given."""
        if tuple(z_t.shape[1:]) != self.space:
            raise ValueError(f"z_t must have shape (B, {self.space[0]}), got {tuple(z_t.shape)}")
        check_real("z_t", z_t)
        if given and self.check(given, "given") != len(z_t):
            raise ValueError(f"given has {self.check(given, 'given')} examples, z_t has {len(z_t)}")
        z = z_t.double()
        signal, noise = self.process.level(t, z)
        weight_x, weight_y = self._weights_at(z, t, present)
        a = signal * weight_x  # (B, 1) x enters z_t as a x
        offset = (signal * weight_y)[..., None] * self.codes  # (B, K, d)
        prior_variance = self.stds**2
        total = a**2 * prior_variance + noise**2  # (B, K) variance of z_t | k
        log_r = self.weights.log() + self._each(z, offset + a[..., None] * self.means, total)
        gain = a * prior_variance / total
        mean_k = self.means + gain[..., None] * (z[:, None] - offset - a[..., None] * self.means)
        variance_k = prior_variance * noise**2 / total
        if given and "x" in given:  # p(z | x, k) p(x | k) instead of p(z | k)
            x = given["x"].double()
            at_x = self._each(z, offset + (a * x)[:, None], (noise**2).expand_as(total))
            log_r = self.weights.log() + at_x + self._each(x, self.means.expand_as(mean_k), prior_variance.expand_as(total))
            mean_k, variance_k = x[:, None].expand_as(mean_k), torch.zeros_like(variance_k)
        if given and "label" in given:
            chosen = torch.nn.functional.one_hot(given["label"].long(), len(self.weights)).bool()
            log_r = torch.zeros_like(log_r).masked_fill(~chosen, -torch.inf)
        return log_r.log_softmax(1), mean_k, variance_k
