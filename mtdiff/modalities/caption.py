"""Captions: sequences of tokens that the backbone attends to (the paper's third kind of encoder)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtdiff.backbones.base import vector_head
from mtdiff.checks import check_choice, check_ids, check_whole
from mtdiff.laws import Categorical
from mtdiff.modalities.base import Modality, View
from mtdiff.modalities.generators import KINDS, CodeTable


class Caption(Modality):
    """A caption of L tokens out of V words, (B, L) integer: given by cross-attention, read by an MLP, position by position.

    Without codes it is no part of z_t: E = 0, its weight in the process has to be 0; given, it conditions the backbone.
    With codes, E(x) = sum_l c_{l, x_l}: a learned code for each position and word (see `CodeTable`).

    Args:
        vocabulary: the V words, for people; at least 2, all different. Pad shorter captions by a word of its own.
        length: L, at least 1.
        codes: "none", "learned" (every number free), or "generator" (a small network makes codes of embeddings).
        channels: slice of the space that the codes are written to; None is all of it.

    Source: cross-attention into the backbone: Chen et al. 2024; head and codes are ours (theory 1, 5).
    """

    given_as = "tokens"

    def __init__(self, vocabulary: Sequence[str | int], length: int, codes: str = "none", channels: slice | None = None):
        vocabulary = [str(word) for word in vocabulary]
        if len(vocabulary) < 2 or len(set(vocabulary)) < len(vocabulary):
            raise ValueError(f"vocabulary must be at least two different words, got {vocabulary[:8]}")
        check_whole(length=length)
        check_choice("codes", codes, ("none", *KINDS))
        super().__init__(channels)
        self.vocabulary, self.length, self.has_code = vocabulary, length, codes != "none"

    def build(self, backbone: nn.Module) -> None:
        """Create tokens, head and codes."""
        words = len(self.vocabulary)
        self.embed = nn.Embedding(words, backbone.embedding)
        self.position = nn.Parameter(torch.randn(self.length, backbone.embedding))
        self.out = vector_head(backbone.pooled, self.length * words)
        self.table = CodeTable(self.config["codes"], (self.length, words), self.slice_shape) if self.has_code else None

    def check(self, value: Tensor) -> None:
        """Raise ValueError unless value is an integer (B, L) tensor of token ids."""
        check_ids(repr(self.name), value, len(self.vocabulary), f"token ids (B, {self.length})", self.length)

    def text(self, tokens: Tensor) -> list[str]:
        """The words of each caption, joined by spaces."""
        return [" ".join(self.vocabulary[k] for k in row) for row in tokens.tolist()]

    def code(self, value: Tensor) -> Tensor:
        """The sum of the codes of its words, (B, *slice); zeros where there are none."""
        one_hot = F.one_hot(value.long(), len(self.vocabulary)).movedim(-1, 1)  # (B, V, L)
        return self._mix(one_hot.to(self.position.dtype))

    def condition(self, value: Tensor) -> Tensor:
        """Tokens (B, L, embedding): what the word is, and where."""
        return self.embed(value.long()) + self.position

    def head(self, view: View) -> Categorical:
        """A word at each position, independently: logits (B, V, L)."""
        logits = self.out(view.pooled).unflatten(1, (self.length, -1)).movedim(-1, 1)
        return Categorical(logits.to(view.z.dtype), self._mix)

    def _mix(self, chances: Tensor) -> Tensor:
        """sum_l sum_v p(x_l = v) c_{l, v}, (B, V, L) -> (B, *slice)."""
        if self.table is None:
            return chances.new_zeros(len(chances), *self.slice_shape)
        return torch.tensordot(chances.movedim(1, -1), self.table().to(chances.dtype), dims=2)
