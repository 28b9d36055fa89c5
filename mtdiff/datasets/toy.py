"""Points in the plane with labels: what one can see whole."""

import math

import torch

from mtdiff.datasets.base import Dataset, one_of

MIXTURE = {
    "weights": (0.5, 0.3, 0.2),
    "means": ((1.5, 0.0), (-1.0, 1.2), (-0.8, -1.3)),
    "stds": (0.35, 0.25, 0.3),
    "label_codes": ((1.0, 0.0), (-0.5, 0.866), (-0.5, -0.866)),
}
"""Arguments of `mtdiff.exact.LabelledMixture` for the mixture that `toy("mixture")` draws from."""


def toy(kind: str = "moons", n: int = 2000, seed: int = 0) -> Dataset:
    """Points "x" (n, 2), of about unit scale, and the "label" (n,) of the part that they come from.

    Kinds are "moons" (two arcs), "spiral" (three arms) and "mixture" (three Gaussians, `MIXTURE`).
    """
    one_of("kind", kind, ("moons", "spiral", "mixture"))
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    g = torch.Generator().manual_seed(seed)
    if kind == "moons":
        label = torch.randint(0, 2, (n,), generator=g)
        angle = math.pi * torch.rand(n, generator=g) + math.pi * label
        x = torch.stack([angle.cos() + label - 0.5, angle.sin() + 0.5 * label - 0.25], 1) * 1.1
        x = x + 0.08 * torch.randn(n, 2, generator=g)
    elif kind == "spiral":
        label = torch.randint(0, 3, (n,), generator=g)
        along = torch.rand(n, generator=g).sqrt()
        angle = 1.2 * math.pi * along + 2 * math.pi / 3 * label
        x = 1.8 * along[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(n, 2, generator=g)
    else:
        label = torch.multinomial(torch.tensor(MIXTURE["weights"]), n, replacement=True, generator=g)
        spread = torch.tensor(MIXTURE["stds"])[label, None]
        x = torch.tensor(MIXTURE["means"])[label] + spread * torch.randn(n, 2, generator=g)
    names = ("0", "1") if kind == "moons" else ("0", "1", "2")
    return Dataset(f"toy/{kind}", {"x": x, "label": label}, names)
