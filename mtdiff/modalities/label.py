"""Class labels: fixed or learned codes of unit RMS in the diffusion space, a categorical head."""

from collections.abc import Sequence

from torch import Tensor, nn

from mtdiff.checks import check_choice, check_ids
from mtdiff.modalities.generators import KINDS
from mtdiff.modalities.words import Words


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
