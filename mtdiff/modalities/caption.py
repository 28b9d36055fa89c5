"""Captions: words as sequences of tokens, which the backbone can attend to (the paper's third kind of encoder)."""

import difflib
from collections.abc import Sequence
from reprlib import repr as short

import torch
from torch import Tensor, nn

from mtdiff.checks import check_choice, check_ids, check_whole
from mtdiff.modalities.generators import KINDS
from mtdiff.modalities.label import Words


class Caption(Words):
    """A caption of L tokens out of V words, (B, L) integer: read by an MLP, position by position.

    Without codes it is no part of z_t: E = 0, its weight in the process has to be 0; given, it conditions the backbone.
    With codes, E(x) = sum_l c_{l, x_l}: a code for each position and word.

    Args:
        vocabulary: the V words; at least 2, all different. "" pads shorter captions, "?" takes words that are not known.
        length: L, at least 1.
        codes: "none", "simplex" (fixed, see `simplex_codes`), or learned, see `CodeTable`: "learned" or "generator".
        channels: slice of the space that the codes are written to; None is all of it.
        tell: how the backbone is given a caption: as "tokens" that it attends to, or as one "vector", which every backbone
            takes: sum_l e_{l, x_l} / sqrt(L), an embedding for each position and word.
        sense: True tells the backbone the posterior of the words in the state, and takes the expected code out; see `Label`.
        seed: seed of the simplices.

    Source: cross-attention into the backbone: Chen et al. 2024; head, codes and vector are ours (theory 1, 5).
    """

    def __init__(
        self,
        vocabulary: Sequence[str | int],
        length: int,
        codes: str = "none",
        channels: slice | None = None,
        tell: str = "tokens",
        sense: bool = False,
        seed: int = 0,
    ):
        vocabulary = [str(word) for word in vocabulary]
        if len(vocabulary) < 2 or len(set(vocabulary)) < len(vocabulary):
            raise ValueError(f"vocabulary must be at least two different words, got {vocabulary[:8]}")
        check_whole(length=length)
        check_choice("codes", codes, ("none", "simplex", *KINDS))
        if sense and codes == "none":
            raise ValueError('a caption without codes is never in the state: sense needs codes="simplex", or learned ones')
        super().__init__(channels)
        self.given_as = check_choice("tell", tell, ("tokens", "vector"))
        self.vocabulary, self.length, self.has_code = vocabulary, length, codes != "none"
        self.places, self.words, self.sense, self._codes, self._seed = (length,), len(vocabulary), sense, codes, seed

    def build(self, backbone: nn.Module) -> None:
        """Create embeddings, codes and head."""
        if self.given_as == "tokens":
            self.embed = nn.Embedding(self.words, backbone.embedding)
            self.position = nn.Parameter(torch.randn(self.length, backbone.embedding))
        else:
            self.embed = nn.Embedding(self.length * self.words, backbone.embedding)
        self.build_words(backbone, self._codes if self.has_code else None)

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

    def condition(self, value: Tensor) -> Tensor:
        """Tokens (B, L, embedding), or a vector (B, embedding): what the words are, and where."""
        if self.given_as == "tokens":
            return self.embed(value.long()) + self.position
        rows = value.long() + len(self.vocabulary) * torch.arange(self.length, device=value.device)  # (B, L)
        return self.embed(rows).sum(1) / self.length**0.5


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
