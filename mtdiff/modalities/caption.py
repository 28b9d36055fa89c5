"""Captions: sequences of tokens that the backbone attends to (the paper's third kind of encoder)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtdiff.modalities.base import Modality, View
from mtdiff.modalities.generators import KINDS, CodeTable


class Caption(Modality):
    """A caption of L tokens out of V words, (B, L) integer: told by cross-attention, read by an MLP, position by position.

    Without codes it is no part of z_t: E = 0, its weight in the process has to be 0, and what is given can only be told.
    With codes, E(x) = sum_l c_{l, x_l}: a learned code for each position and word (see `CodeTable`).

    Args:
        vocabulary: the V words, for people; at least 2, all different. Pad shorter captions by a word of its own.
        length: L, at least 1.
        codes: "none", "learned" (every number free), or "generator" (a small network makes codes of embeddings).
        channels: slice of the space that the codes are written to; None is all of it.

    Raises:
        ValueError: fewer than two words or a word twice, no length, or an unknown kind of codes.

    Source: cross-attention into the backbone: Chen et al. 2024; head and codes are ours (theory 1, 5).
    """

    told_as = "tokens"

    def __init__(self, vocabulary: Sequence[str | int], length: int, codes: str = "none", channels: slice | None = None):
        vocabulary = [str(word) for word in vocabulary]
        if len(vocabulary) < 2 or len(set(vocabulary)) < len(vocabulary):
            raise ValueError(f"vocabulary must be at least two different words, got {vocabulary[:8]}")
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if codes not in ("none", *KINDS):
            raise ValueError(f"codes must be one of {('none', *KINDS)}, got {codes!r}")
        super().__init__(channels)
        self.vocabulary, self.length, self.has_code = vocabulary, length, codes != "none"

    def build(self, backbone: nn.Module) -> None:
        """Create tokens, head and codes; see `Modality.build`."""
        if not backbone.attends:
            kind = type(backbone).__name__
            raise ValueError(f"{self.name!r} is told as tokens, which this {kind} cannot attend to: use UNet(cross=...)")
        words = len(self.vocabulary)
        self.embed = nn.Embedding(words, backbone.embedding)
        self.position = nn.Parameter(torch.randn(self.length, backbone.embedding))
        self.out = nn.Sequential(
            nn.Linear(backbone.pooled, backbone.pooled), nn.SiLU(), nn.Linear(backbone.pooled, self.length * words)
        )
        nn.init.zeros_(self.out[2].weight)
        nn.init.zeros_(self.out[2].bias)
        self.table = CodeTable(self.config["codes"], (self.length, words), self.slice_shape) if self.has_code else None

    def check(self, value: Tensor) -> None:
        """Raise ValueError unless value is an integer (B, L) tensor of token ids."""
        whole = isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool
        if not whole or tuple(value.shape[1:]) != (self.length,):
            self.refuse(value, f"an integer tensor of token ids (B, {self.length})")
        if value.device.type == "cpu":
            wrong = value[(value < 0) | (value >= len(self.vocabulary))]
            if len(wrong):
                top = len(self.vocabulary) - 1
                raise ValueError(f"{self.name!r} has values outside 0..{top}: {wrong.unique().tolist()[:8]}")

    def text(self, tokens: Tensor) -> list[str]:
        """The words of each caption, joined by spaces."""
        return [" ".join(self.vocabulary[k] for k in row) for row in tokens.tolist()]

    def code(self, value: Tensor) -> Tensor:
        """The sum of the codes of its words, (B, *slice); zeros where there are none."""
        return self._mean_code(F.one_hot(value.long(), len(self.vocabulary)).to(self.position.dtype))

    def condition(self, value: Tensor) -> Tensor:
        """Tokens (B, L, embedding): what the word is, and where."""
        return self.embed(value.long()) + self.position

    def head(self, view: View) -> Tensor:
        """Logits (B, L, V)."""
        return self.out(view.pooled).unflatten(1, (self.length, -1))

    def log_prob(self, value: Tensor, params: Tensor, variance: Tensor) -> Tensor:
        """Log softmax at each token, summed over positions, in nats, (B,)."""
        return params.log_softmax(2).gather(2, value.long()[..., None]).flatten(1).sum(1)

    def loss(self, value: Tensor, params: Tensor, variance: Tensor) -> Tensor:
        """Cross-entropy in nats per token, (B,)."""
        return -self.log_prob(value, params, variance) / self.length

    def expected_code(self, params: Tensor) -> Tensor:
        """sum_l sum_v p(x_l = v | z_t) c_{l, v}: exact, for the code is linear in the one-hot tokens."""
        return self._mean_code(params.softmax(2))

    def draw(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A token drawn at each position, independently, (B, L) int64."""
        rows = params.float().softmax(2).flatten(0, 1)
        return torch.multinomial(rows, 1, generator=generator).reshape(params.shape[:2])

    def _mean_code(self, chances: Tensor) -> Tensor:
        """(B, L, V) probabilities -> (B, *slice)."""
        if self.table is None:
            return chances.new_zeros(len(chances), *self.slice_shape)
        return torch.tensordot(chances, self.table().to(chances.dtype), dims=2)
