"""Class labels: fixed or learned codes of unit RMS in the diffusion space, a categorical head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtdiff.backbones.base import vector_head
from mtdiff.checks import check_choice, check_ids
from mtdiff.laws import Categorical
from mtdiff.modalities.base import Modality, View
from mtdiff.modalities.generators import KINDS, CodeTable

MISSING = -1
"""The label of a training example whose class is not known, as in scikit-learn."""


class Label(Modality):
    """A class label 0..K-1: E(y) = c_y, a code per class; p(y | z_t) = softmax of an MLP head on the pooled vector.

    Args:
        classes: K, at least 2.
        names: K class names, for people; None counts 0..K-1.
        codes: "simplex" (see `simplex_codes`), or numbers (K, *slice) that are used as they are. Or learned: "learned",
            every number free, or "generator", a small network that makes them of embeddings; see `CodeTable`.
        channels: slice of the space that the codes are written to; None is all of it (superposed).
        seed: seed of the simplex.
        tell: how the backbone is given a label: "vector" adds an embedding to that of the noise level, "token" lets the
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
        check_choice("tell", tell, ("vector", "token"))
        names = class_names(classes, names)
        if isinstance(codes, str):
            check_choice("codes", codes, ("simplex", *KINDS), ": else give numbers (K, ...)")
        super().__init__(channels)
        self.given_as = "tokens" if tell == "token" else "vector"
        self.classes, self.names, self.sense, self._codes, self._seed = classes, names, sense, codes, seed

    def build(self, backbone: nn.Module) -> None:
        """Create codes, embedding and head."""
        codes, shape = self._codes, (self.classes, *self.slice_shape)
        learned = isinstance(codes, str) and codes != "simplex"
        if isinstance(codes, str):
            codes = None if learned else simplex_codes(self.classes, self.slice_shape, self._seed)
        elif tuple((codes := torch.as_tensor(codes, dtype=torch.float32)).shape) != shape:
            raise ValueError(f"codes of {self.name!r} must have shape {shape}, got {tuple(codes.shape)}")
        self.register_buffer("codes", codes)
        self.embed = nn.Embedding(self.classes, backbone.embedding)
        self.out = vector_head(backbone.pooled, self.classes)
        self.learned = CodeTable(self._codes, shape[:1], self.slice_shape) if learned else None
        if self.sense:
            self.notice = nn.Linear(self.classes, backbone.embedding)

    def check(self, value: Tensor) -> None:
        """Raise ValueError unless value is an integer (B,) tensor of class ids."""
        check_ids(repr(self.name), value, self.classes, "class ids (B,)")

    def missing(self, value: Tensor) -> Tensor:
        """(B,) bool: where the label is `MISSING`."""
        return value == MISSING

    def table(self) -> Tensor:
        """The codes of all classes, (K, *slice)."""
        return self.codes if self.learned is None else self.learned()

    def code(self, value: Tensor) -> Tensor:
        """The code of each label, (B, *slice)."""
        return self.table()[value.long()]

    def condition(self, value: Tensor) -> Tensor:
        """A learned embedding of each label, (B, embedding), or (B, 1, embedding) as a token."""
        embedded = self.embed(value.long())
        return embedded[:, None] if self.given_as == "tokens" else embedded

    def head(self, view: View) -> Categorical:
        """Softmax of an MLP of the pooled vector.

        Of a label that is sensed, the logits h have the gradient of h + s in evaluation, s the code's own logits (theory 6):
        log p(y | z) = log p(y | code) + log p(y | rest) + const, logits add. The values of s are in h already, as they were
        part of its input, but not their gradient, which vanishes where that is a probability near 0 or 1. In training it is
        h as it is (notebook 08).
        """
        logits = self.out(view.pooled).to(view.z.dtype)
        if view.sensed is not None and self.name not in view.given and not self.training:
            logits = logits + (view.sensed.logits - view.sensed.logits.detach())
        return Categorical(logits, self._mix)

    def sensed(self, rest: Tensor, gain: Tensor, variance: Tensor) -> Categorical:
        """The posterior of equally likely classes by the code alone: logits s_k = k_t / variance_t <z, c_k>."""
        flat = self.take(rest).flatten(1) @ self.table().to(rest.dtype).flatten(1).T
        return Categorical((gain / variance).flatten(1) * flat, self._mix)

    def hint(self, law: Categorical) -> Tensor:
        """The posterior, embedded; with a gradient in training alone: a softmax that is sure has none left."""
        chances = law.probs.to(self.notice.weight.dtype)
        return self.notice(chances if self.training else chances.detach())

    def _mix(self, chances: Tensor) -> Tensor:
        """sum_k p_k c_k: the softmax-averaged code, (B, K) -> (B, *slice)."""
        return torch.tensordot(chances, self.table().to(chances.dtype), dims=1)


def class_names(classes: int, names: Sequence[str | int] | None) -> list[str]:
    """The names of K classes, counted where there are none; ValueError for other numbers of names, or of classes."""
    if not 2 <= classes <= 1_000_000:
        raise ValueError(f"classes must be {'at least 2' if classes < 2 else 'at most a million'}, got {classes}")
    names = [str(k) for k in range(classes)] if names is None else [str(name) for name in names]
    if len(names) != classes:
        raise ValueError(f"names has {len(names)} entries for {classes} classes")
    return names


def simplex_codes(classes: int, shape: Sequence[int], seed: int = 0) -> Tensor:
    """K codes of unit RMS, centred over the classes, all equally far apart: a regular simplex in a random position.

    With fewer than K - 1 dimensions no such simplex exists; the codes are then random directions, not centred. In one
    dimension there are only two codes of unit RMS: more are a ValueError. Returns (K, *shape) float32.
    """
    size, generator = torch.Size(shape).numel(), torch.Generator().manual_seed(seed)
    if size == 1 and classes > 2:
        raise ValueError(f"{classes} classes need more than one dimension, got a code of shape {tuple(shape)}")
    if size < classes - 1:
        codes = torch.randn(classes, size, dtype=torch.float64, generator=generator)
    else:
        k = torch.arange(1, classes, dtype=torch.float64)
        basis = torch.ones(classes - 1, classes, dtype=torch.float64).tril()  # (K-1, K) Helmert's: orthonormal, sums to 0
        basis[:, 1:] -= k.diag()
        frame, triangle = torch.linalg.qr(torch.randn(size, classes - 1, dtype=torch.float64, generator=generator))
        frame = frame * triangle.diagonal().sign()  # which sign a column has is LAPACK's choice, and differs by processor
        codes = (basis / (k * (k + 1)).sqrt()[:, None]).T @ frame.T  # (K, size)
    codes = codes / codes.square().mean(1, keepdim=True).sqrt()
    return codes.reshape(classes, *shape).float()
