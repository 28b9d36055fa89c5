"""Class labels, and what captions share with them: one of K words at each place, a code for each, a categorical head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtdiff.backbones.base import vector_head
from mtdiff.checks import check_choice, check_ids
from mtdiff.laws import Categorical
from mtdiff.modalities.base import Modality, View
from mtdiff.modalities.generators import KINDS, CodeTable


class Words(Modality):
    """One of K words at each of some places: E(x) = sum_l c_{l, x_l}, a code for each place and word.

    The head is an MLP of the pooled vector, softmax at each place. Of what is sensed, the backbone gets to see the posterior
    of the words by their codes, and the expected code is taken out of the state.

    Attributes:
        places: () for a label, one id; (L,) for a caption of L.
        words: K.
        embed: by which the backbone is given them.
    """

    places: tuple[int, ...]
    words: int
    embed: nn.Embedding

    def build_words(self, backbone: nn.Module, codes: str | Tensor | None) -> None:
        """Create codes, head and what is noticed. Codes: as a kind of `CodeTable`, as "simplex", as numbers, or None."""
        learned = isinstance(codes, str) and codes != "simplex"
        rows = (*self.places, self.words)
        if codes is None or learned:
            table = None
        elif isinstance(codes, str):
            table = simplex_codes(self.words, self.slice_shape, self._seed, *self.places)
        elif tuple((table := torch.as_tensor(codes, dtype=torch.float32)).shape) != (*rows, *self.slice_shape):
            raise ValueError(
                f"codes of {self.name!r} must have shape {(*rows, *self.slice_shape)}, got {tuple(table.shape)}"
            )
        self.register_buffer("codes", table)
        count = torch.Size(rows).numel()
        self.out = vector_head(backbone, count)
        self.learned = CodeTable(codes, rows, self.slice_shape) if learned else None
        if self.sense:
            self.notice = nn.Linear(count, backbone.embedding)

    def table(self) -> Tensor:
        """The codes of all places and words, (*places, K, *slice)."""
        return self.codes if self.learned is None else self.learned()

    def code(self, value: Tensor) -> Tensor:
        """The sum of the codes of its words, (B, *slice); zeros where there are none."""
        if not self.has_code:
            return self.embed.weight.new_zeros(len(value), *self.slice_shape)
        if not self.places:
            return self.table()[value.long()]
        return self._mix(F.one_hot(value.long(), self.words).movedim(-1, 1).to(self.embed.weight.dtype))

    def head(self, view: View) -> Categorical:
        """Softmax of an MLP of the pooled vector: logits (B, K, *places).

        Of what is sensed, the logits h have the gradient of h + s in evaluation, s the code's own logits (theory 6):
        log p(y | z) = log p(y | code) + log p(y | rest) + const, logits add. The values of s are in h already, as they were
        part of its input, but not their gradient, which vanishes where that is a probability near 0 or 1. In training it is
        h as it is (notebook 08).
        """
        logits = self._laid(self.out(view.pooled)).to(view.z.dtype)
        if view.sensed is not None and self.name not in view.given and not self.training:
            logits = logits + (view.sensed.logits - view.sensed.logits.detach())
        return Categorical(logits, self._mix)

    def sensed(self, rest: Tensor, gain: Tensor, variance: Tensor) -> Categorical:
        """The posterior of equally likely words by their codes alone: logits s_{l, k} = k_t / variance_t <z, c_{l, k}>.

        It is exact for "simplex" codes, which are equally long and of different places orthogonal.
        """
        codes = self.table().to(rest.dtype).flatten(0, len(self.places)).flatten(1)  # (places * K, slice)
        return Categorical(self._laid((gain / variance).flatten(1) * (self.take(rest).flatten(1) @ codes.T)), self._mix)

    def hint(self, law: Categorical) -> Tensor:
        """The posterior, embedded; with a gradient in training alone: a softmax that is sure has none left."""
        chances = law.probs.to(self.notice.weight.dtype).movedim(1, -1).flatten(1)
        return self.notice(chances if self.training else chances.detach())

    def _laid(self, flat: Tensor) -> Tensor:
        """(B, places * K) -> (B, K, *places)."""
        return flat.unflatten(1, (*self.places, self.words)).movedim(-1, 1)

    def _mix(self, chances: Tensor) -> Tensor:
        """sum_l sum_k p(x_l = k) c_{l, k}: the softmax-averaged code, (B, K, *places) -> (B, *slice)."""
        if not self.has_code:
            return chances.new_zeros(len(chances), *self.slice_shape)
        return torch.tensordot(chances.movedim(1, -1), self.table().to(chances.dtype), dims=1 + len(self.places))


class Label(Words):
    """A class label 0..K-1: E(y) = c_y, a code per class; p(y | z_t) = softmax of an MLP head on the pooled vector.

    Args:
        classes: K, at least 2.
        names: K class names, for people; None counts 0..K-1.
        codes: "simplex" (see `simplex_codes`), or numbers (K, *slice) that are used as they are. Or learned: "learned",
            every number free, or "generator", a small network that makes them of embeddings; see `CodeTable`.
        channels: slice of the space that the codes are written to; None is all of it (superposed).
        seed: seed of the simplex.
        tell: how the backbone is given a label: "vector" adds an embedding to that of the noise level, "tokens" lets the
            backbone attend to it (the paper's third kind of encoder).
        sense: True tells the backbone the posterior of the classes in the state, and takes the expected code out: a
            convolution can neither tell codes apart that fill the whole image, nor look past them.

    Source: MLP head for labels: Chen et al. 2024; the codes are ours (theory 5: unit RMS, centred over the classes).
    """

    def __init__(
        self,
        classes: int,
        names: Sequence[str | int] | None = None,
        codes: str | Tensor | list = "simplex",
        channels: slice | None = None,
        seed: int = 0,
        tell: str = "vector",
        sense: bool = False,
    ):
        check_choice("tell", tell, ("vector", "tokens"))
        names = class_names(classes, names)
        if isinstance(codes, str):
            check_choice("codes", codes, ("simplex", *KINDS), ": else give numbers (K, ...)")
        super().__init__(channels)
        self.given_as, self.places, self.words = tell, (), classes
        self.classes, self.names, self.sense, self._codes, self._seed = classes, names, sense, codes, seed

    def build(self, backbone: nn.Module) -> None:
        """Create codes, embedding and head."""
        self.embed = nn.Embedding(self.classes, backbone.embedding)
        self.build_words(backbone, self._codes)

    def check(self, value: Tensor) -> None:
        """Raise ValueError unless value is an integer (B,) tensor of class ids."""
        check_ids(repr(self.name), value, self.classes, "class ids (B,)")

    def condition(self, value: Tensor) -> Tensor:
        """A learned embedding of each label, (B, embedding), or (B, 1, embedding) as a token."""
        embedded = self.embed(value.long())
        return embedded[:, None] if self.given_as == "tokens" else embedded


def class_names(classes: int, names: Sequence[str | int] | None) -> list[str]:
    """The names of K classes, counted where there are none; ValueError for other numbers of names, or of classes."""
    if not 2 <= classes <= 1_000_000:
        raise ValueError(f"classes must be {'at least 2' if classes < 2 else 'at most a million'}, got {classes}")
    names = [str(k) for k in range(classes)] if names is None else [str(name) for name in names]
    if len(names) != classes:
        raise ValueError(f"names has {len(names)} entries for {classes} classes")
    return names


def simplex_codes(classes: int, shape: Sequence[int], seed: int = 0, places: int | None = None) -> Tensor:
    """K codes of unit RMS, centred over the classes, all equally far apart: a regular simplex in a random position.

    With fewer than K - 1 dimensions no such simplex exists; the codes are then random directions, not centred. In one
    dimension there are only two codes of unit RMS: more are a ValueError. Returns (K, *shape) float32.

    For sequences of L `places`, (L, K, *shape): a simplex at each place, orthogonal to the others where L (K - 1) dimensions
    are there, of RMS 1 / sqrt(L), so that the sum of a code from each place has RMS 1.
    """
    size, count, generator = torch.Size(shape).numel(), places or 1, torch.Generator().manual_seed(seed)
    if size == 1 and classes > 2:
        raise ValueError(f"{classes} classes need more than one dimension, got a code of shape {tuple(shape)}")
    if size < count * (classes - 1):
        codes = torch.randn(count, classes, size, dtype=torch.float64, generator=generator)
    else:
        k = torch.arange(1, classes, dtype=torch.float64)
        basis = torch.ones(classes - 1, classes, dtype=torch.float64).tril()  # (K-1, K) Helmert's: orthonormal, sums to 0
        basis[:, 1:] -= k.diag()
        drawn = torch.randn(size, count * (classes - 1), dtype=torch.float64, generator=generator)
        frame, triangle = torch.linalg.qr(drawn)
        frame = frame * triangle.diagonal().sign()  # which sign a column has is LAPACK's choice, and differs by processor
        codes = (basis / (k * (k + 1)).sqrt()[:, None]).T @ frame.T.unflatten(0, (count, -1))  # (L, K, size)
    codes = codes / codes.square().mean(-1, keepdim=True).sqrt() / count**0.5
    return codes.reshape(*(() if places is None else (places,)), classes, *shape).float()
