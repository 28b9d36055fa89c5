"""Captions: words as sequences of tokens, which the backbone can attend to (the paper's third kind of encoder)."""

import difflib
from collections.abc import Sequence
from reprlib import repr as short

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtdiff.backbones.base import vector_head
from mtdiff.checks import check_choice, check_ids, check_whole
from mtdiff.laws import Categorical
from mtdiff.modalities.base import Modality, View
from mtdiff.modalities.generators import KINDS, CodeTable


class Caption(Modality):
    """A caption of L tokens out of V words, (B, L) integer: read by an MLP, position by position.

    Without codes it is no part of z_t: E = 0, its weight in the process has to be 0; given, it conditions the backbone.
    With codes, E(x) = sum_l c_{l, x_l}: a learned code for each position and word (see `CodeTable`).

    Args:
        vocabulary: the V words; at least 2, all different. "" pads shorter captions, "?" takes words that are not known.
        length: L, at least 1.
        codes: "none", "learned" (every number free), or "generator" (a small network makes codes of embeddings).
        channels: slice of the space that the codes are written to; None is all of it.
        tell: how the backbone is given a caption: as "tokens" that it attends to, or as one "vector", which every backbone
            takes: sum_l e_{l, x_l} / sqrt(L), an embedding for each position and word.

    Source: cross-attention into the backbone: Chen et al. 2024; head, codes and vector are ours (theory 1, 5).
    """

    def __init__(
        self,
        vocabulary: Sequence[str | int],
        length: int,
        codes: str = "none",
        channels: slice | None = None,
        tell: str = "tokens",
    ):
        vocabulary = [str(word) for word in vocabulary]
        if len(vocabulary) < 2 or len(set(vocabulary)) < len(vocabulary):
            raise ValueError(f"vocabulary must be at least two different words, got {vocabulary[:8]}")
        check_whole(length=length)
        check_choice("codes", codes, ("none", *KINDS))
        super().__init__(channels)
        self.given_as = check_choice("tell", tell, ("tokens", "vector"))
        self.vocabulary, self.length, self.has_code = vocabulary, length, codes != "none"

    def build(self, backbone: nn.Module) -> None:
        """Create tokens, head and codes."""
        words = len(self.vocabulary)
        if self.given_as == "tokens":
            self.embed = nn.Embedding(words, backbone.embedding)
            self.position = nn.Parameter(torch.randn(self.length, backbone.embedding))
        else:
            self.embed = nn.Embedding(self.length * words, backbone.embedding)
        self.out = vector_head(backbone.pooled, self.length * words)
        self.table = CodeTable(self.config["codes"], (self.length, words), self.slice_shape) if self.has_code else None

    def check(self, value: Tensor) -> None:
        """Raise ValueError unless value is an integer (B, L) tensor of token ids."""
        check_ids(repr(self.name), value, len(self.vocabulary), f"token ids (B, {self.length})", self.length)

    def tokens(self, texts: str | Sequence[str]) -> Tensor:
        """One or more texts as token ids (N, L) int64: their words, split at white space, then padding.

        Case counts unless the whole vocabulary is in lower case.

        Raises:
            ValueError: no texts, a word that is not known, more words than L, or fewer where there is no padding.
        """
        return torch.tensor([self._row(text) for text in _several(texts)])

    def text(self, tokens: Tensor) -> list[str]:
        """The words of captions (N, L), joined by spaces, without padding."""
        check_ids("tokens", tokens, len(self.vocabulary), f"token ids (N, {self.length})", self.length)
        return [" ".join(word for k in row if (word := self.vocabulary[k])) for row in tokens.tolist()]

    def _row(self, text: str) -> list[int]:
        """The token ids of a text."""
        token, known = {word: k for k, word in enumerate(self.vocabulary)}, " ".join(self.vocabulary)
        words = (text.lower() if known == known.lower() else text).split()
        rest = self.length - len(words)
        if rest < 0 or (rest and "" not in token):
            fit = f"at most {self.length}" if "" in token else f"exactly {self.length}"
            raise ValueError(f"{short(text)} is of {len(words)} words, a caption is of {fit}")
        if "?" not in token:
            self._check_words(words)
        return [token.get(word, token.get("?")) for word in words] + rest * [token.get("")]

    def _check_words(self, words: Sequence[str]) -> None:
        """Refuse the first word that is not known, and say what a caption looks like."""
        word = next((word for word in words if word not in self.vocabulary), None)
        if word is not None:
            near = difflib.get_close_matches(word, self.vocabulary)
            near = f"the nearest are {near}" if near else "no other is like it"
            example = " ".join([known for known in self.vocabulary if known][: self.length])
            raise ValueError(f"{word!r} is not in the vocabulary: {near}. A caption looks like {example!r}")

    def code(self, value: Tensor) -> Tensor:
        """The sum of the codes of its words, (B, *slice); zeros where there are none."""
        one_hot = F.one_hot(value.long(), len(self.vocabulary)).movedim(-1, 1)  # (B, V, L)
        return self._mix(one_hot.to(self.embed.weight.dtype))

    def condition(self, value: Tensor) -> Tensor:
        """Tokens (B, L, embedding), or a vector (B, embedding): what the words are, and where."""
        if self.given_as == "tokens":
            return self.embed(value.long()) + self.position
        rows = value.long() + len(self.vocabulary) * torch.arange(self.length, device=value.device)  # (B, L)
        return self.embed(rows).sum(1) / self.length**0.5

    def head(self, view: View) -> Categorical:
        """A word at each position, independently: logits (B, V, L)."""
        logits = self.out(view.pooled).unflatten(1, (self.length, -1)).movedim(-1, 1)
        return Categorical(logits.to(view.z.dtype), self._mix)

    def _mix(self, chances: Tensor) -> Tensor:
        """sum_l sum_v p(x_l = v) c_{l, v}, (B, V, L) -> (B, *slice)."""
        if self.table is None:
            return chances.new_zeros(len(chances), *self.slice_shape)
        return torch.tensordot(chances.movedim(1, -1), self.table().to(chances.dtype), dims=2)


def vocabulary(texts: str | Sequence[str], unknown: bool = False) -> list[str]:
    """A vocabulary for `Caption`: padding "", "?" if words may be unknown, and the words of texts, in lower case, in order.

    With it, names of classes are captions: `caption.tokens(names)[label]`.
    """
    words = [word for text in _several(texts) for word in text.lower().split()]
    return list(dict.fromkeys(["", *(["?"] if unknown else []), *words]))


def _several(texts: str | Sequence[str]) -> list[str]:
    """Texts as a list; ValueError for none, and for what is no text."""
    several = [texts] if isinstance(texts, str) else list(texts)
    if not several or not all(isinstance(text, str) for text in several):
        raise ValueError(f"texts must be a text or some texts, got {short(several)}")
    return several
