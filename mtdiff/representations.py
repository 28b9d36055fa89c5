"""Representations of images: a small self-supervised encoder, large pretrained ones, and what PCA leaves of either."""

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from mtdiff.checkpoint import load
from mtdiff.datasets.base import Dataset, digest
from mtdiff.datasets.shapes import SETS, render, shapes
from mtdiff.files import save
from mtdiff.fit import fit
from mtdiff.optional import needed
from mtdiff.provenance import provenance
from mtdiff.recorded import Recorded

STREAM = 6 * 10**8
"""Index of the first scene that encoders are trained on: far from those of generators, judges and tests."""

FITTED = 10_000
"""Scenes that the PCA is fitted to."""
EXAMPLES = 30000
"""Scenes that generators of images and representations are trained on."""

PRETRAINED = {
    "dinov2-small": ("timm", "vit_small_patch14_dinov2.lvd142m"),
    "dinov2-base": ("timm", "vit_base_patch14_dinov2.lvd142m"),
    "clip-b32": ("open_clip", "ViT-B-32/laion2b_s34b_b79k"),
    "clip-b16": ("open_clip", "ViT-B-16/laion2b_s34b_b88k"),
}
"""Pretrained encoders by name: the library that has them, and what they are called there."""


class Encoder(nn.Module):
    """A convolutional encoder of images of `shape` (C, s, s), s a multiple of 8: (B, C, s, s) -> (B, width) features."""

    def __init__(self, shape: Sequence[int] = (3, 16, 16), width: int = 64):
        super().__init__()
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] % 8:
            raise ValueError(f"shape must be (C, s, s), s a multiple of 8, got {tuple(shape)}")
        self.shape, self.width = tuple(shape), width

        def block(c: int, d: int, stride: int) -> tuple[nn.Module, ...]:
            return nn.Conv2d(c, d, 3, stride, 1, bias=False), nn.BatchNorm2d(d), nn.ReLU()

        strides = (1, 2, 1, 2) if shape[1] <= 16 else (2, 2, 1, 2)
        size = shape[1] // (4 if shape[1] <= 16 else 8)
        widths = (shape[0], 24, 32, 48, 48)
        blocks = [layer for k in range(4) for layer in block(widths[k], widths[k + 1], strides[k])]
        self.body = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(48 * size**2, width), nn.BatchNorm1d(width), nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, width) of images (B, C, s, s) in [-1, 1]."""
        if tuple(image.shape[1:]) != self.shape:
            raise ValueError(f"image must be (B, {', '.join(map(str, self.shape))}), got {tuple(image.shape)}")
        return self.body(image)


class Pretrained(nn.Module):
    """A large network behind the same interface: images (B, 3, H, W) in [-1, 1], any size -> (B, width) features.

    `network` is (B, 3, size, size) -> (B, width), of images in [0, 1] that are normalised by mean and std of each channel.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], size: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network, self.size = network, size
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Features (B, width)."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"image must be (B, 3, H, W), got {tuple(image.shape)}")
        image = F.interpolate(image, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False)
        return self.network((image.clamp(-1, 1) / 2 + 0.5 - self.mean) / self.std)


def pretrained(name: str) -> Pretrained:
    """An encoder of `PRETRAINED`: DINOv2 through timm, CLIP through open_clip. Downloads its weights the first time.

    ImportError where the library is not installed, ValueError for an unknown name.
    """
    if name not in PRETRAINED:
        raise ValueError(f"encoder must be one of {list(PRETRAINED)}, got {name!r}")
    library, model = PRETRAINED[name]
    with needed(name, "representations"):
        if library == "timm":
            import timm

            network = timm.create_model(model, pretrained=True, num_classes=0).eval().requires_grad_(False)
            config = timm.data.resolve_model_data_config(network)
            return Pretrained(network, config["input_size"][-1], config["mean"], config["std"]).eval()
        import open_clip
    kind, weights = model.split("/")
    clip = open_clip.create_model(kind, pretrained=weights).eval().requires_grad_(False)
    size = clip.visual.image_size
    size = size if isinstance(size, int) else size[0]
    return Pretrained(clip.encode_image, size, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD).eval()


class PCA(nn.Module):
    """The first d principal components of features, each of mean 0 and variance 1 on the data that it was fitted to.

    With u_k the k-th eigenvector of the features' covariance and l_k its eigenvalue: x_k = u_k^T (f - mean) / sqrt(l_k).
    Unit variance in every coordinate is what the noise schedule counts on (theory 1, 5). `explained` is the share of the
    variance that the components hold.
    """

    def __init__(self, width: int, d: int):
        super().__init__()
        if not 1 <= d <= width:
            raise ValueError(f"the number of components must be in 1..{width}, the width of the features, got {d}")
        self.d = d
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("components", torch.zeros(d, width))
        self.register_buffer("explained", torch.zeros(()))

    def fit(self, features: Tensor) -> "PCA":
        """Find mean and components of features (N, width), N > d; returns itself.

        ValueError for another shape, features that are not finite, or that vary in fewer than d directions.
        """
        n, width = features.shape if features.ndim == 2 else (0, 0)
        if width != len(self.mean) or n <= self.d:
            expected = f"(N, {len(self.mean)}) with N > {self.d}"
            raise ValueError(f"features must be {expected}, got {tuple(features.shape)}")
        if not bool(features.isfinite().all()):
            raise ValueError("features have values that are not finite (NaN or inf)")
        mean = features.double().mean(0)
        _, s, v = torch.linalg.svd(features.double() - mean, full_matrices=False)
        rank = int((s > 1e-6 * s[0]).sum()) if s[0] > 0 else 0
        if rank < self.d:
            raise ValueError(f"degenerate PCA: {self.d} components wanted, but the features vary in {rank} directions only")
        scale = s[: self.d] / (n - 1) ** 0.5
        self.mean.copy_(mean)
        self.components.copy_(v[: self.d] / scale[:, None])
        self.explained.copy_(s[: self.d].square().sum() / s.square().sum())
        return self

    def forward(self, features: Tensor) -> Tensor:
        """(N, width) -> (N, d)."""
        return (features - self.mean) @ self.components.T


class Representation(Recorded, nn.Module):
    """Images (N, C, s, s) -> representations (N, d): the features of an `Encoder`, reduced and normalised by PCA."""

    def __init__(self, shape: Sequence[int] = (3, 16, 16), width: int = 64, d: int = 16):
        super().__init__()
        self.encoder, self.pca, self.card = Encoder(shape, width), PCA(width, d), {}

    @torch.no_grad()
    def forward(self, image: Tensor, batch: int = 500) -> Tensor:
        """Representations (N, d), a batch at a time."""
        return torch.cat([self.pca(self.encoder(part)) for part in image.split(batch)])

    def save(self, path: str | Path, card: Mapping | None = None) -> Path:
        """Write it to a folder, weights as float16; see `mtdiff.files.save`."""
        return save(path, self, card, half=True)


def representation(name: str | Path = "shapes16") -> Representation:
    """A representation: "shapes16" or "shapes32", which come with mtdiff, or one in a folder; see `mtdiff.load`."""
    return load(name, kind=Representation, room="representation").requires_grad_(False)


@functools.lru_cache(4)
def represented(data: str, split: str) -> Dataset:
    """Scenes of "shapes16" or "shapes32", split "train" or "test": "representation" (N, 16), "image", "label", "caption"."""
    wanted = ("image", "label", "caption")
    scenes = shapes(split, size=SETS[data], n=EXAMPLES if split == "train" else None, modalities=wanted)
    encoder = representation(data)
    values = {**scenes.values, "representation": encoder(scenes.values["image"])}
    source = f"{scenes.source}, represented by {digest(encoder.state_dict())}"
    return replace(scenes, name=f"{data}-represented/{split}", values=values, source=source)


def contrastive_loss(a: Tensor, b: Tensor, temperature: float = 0.2) -> Tensor:
    """NT-Xent: each view has to find the other one of its image among all 2N - 1 others, in nats.

        - mean_i log [ exp(s_{i, i'} / T) / sum_{k != i} exp(s_{i, k} / T) ],   s the cosine similarity

    Of projected features (N, d), N > 1, of one view and another of the same images, at the temperature T.

    Source: Chen et al. 2020 (SimCLR), eq. 1.
    """
    n, both = len(a), F.normalize(torch.cat([a, b]), dim=1)
    similarity = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * n, device=a.device).roll(n)
    return F.cross_entropy(similarity, partner)


def views(image: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Another look at images (N, C, s, s): shifted by up to a tenth, zoomed by up to 15%, mirrored, paler, noisier.

    Colours are not turned into others: what an augmentation changes, a representation learns to forget.
    """
    n = len(image)
    u = torch.rand(n, 6, generator=generator, device=image.device)
    zoom, mirror = 0.85 + 0.3 * u[:, 0], torch.where(u[:, 1] < 0.5, -1.0, 1.0)
    zero = torch.zeros_like(zoom)
    rows = [torch.stack(row, 1) for row in ([zoom * mirror, zero, 0.4 * u[:, 2] - 0.2], [zero, zoom, 0.4 * u[:, 3] - 0.2])]
    grid = F.affine_grid(torch.stack(rows, 1), list(image.shape), align_corners=False)
    moved = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    moved = moved * (0.8 + 0.3 * u[:, 4, None, None, None]) + 0.2 * (u[:, 5, None, None, None] - 0.5)
    return (moved + 0.05 * torch.randn(image.shape, generator=generator, device=image.device)).clamp(-1, 1)


def train_representation(
    size: int = 16, steps: int = 1500, seed: int = 0, d: int = 16, batch_size: int = 192, lr: float = 2e-3
) -> Representation:
    """Train an encoder on an endless stream of scenes without any label, by SimCLR, and fit the PCA to `FITTED` of them.

    `seed` is that of weights, scenes and views; each of `batch_size` scenes comes in two views; for `lr` see `fit`.

    Source: Chen et al. 2020 (SimCLR): two views, a projection head that is thrown away, NT-Xent.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        made = Representation((3, size, size), d=d)
        project = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))

    def loss(network: nn.Module, scenes: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        both = torch.cat([views(scenes["image"], generator), views(scenes["image"], generator)])
        return contrastive_loss(*network(both).chunk(2))

    scenes = (render(range(k, k + batch_size), size, seed, ("image",)) for k in itertools.count(STREAM, batch_size))
    fit(nn.Sequential(made.encoder, project), scenes, loss, steps, lr, generator=torch.Generator().manual_seed(seed))
    made.eval()
    image = render(range(STREAM - FITTED, STREAM), size, seed, ("image",))["image"]
    with torch.no_grad():
        made.pca.fit(torch.cat([made.encoder(part) for part in image.split(500)]))
    return made.requires_grad_(False)


def linear_probe(features: Tensor, label: Tensor, test: Tensor, penalty: float = 1e-3) -> Tensor:
    """Classes (M,) of test features (M, d) by ridge regression to one-hot labels: what can be read off by a linear map.

    It is fitted to features (N, d) and class ids (N,); `penalty` is of the squared weights, relative to the mean square of
    the features.
    """
    if features.ndim != 2 or label.shape != features.shape[:1] or test.shape[1:] != features.shape[1:]:
        shapes_ = tuple(features.shape), tuple(label.shape), tuple(test.shape)
        raise ValueError(f"expected features (N, d), labels (N,) and test features (M, d), got {shapes_}")
    mean = features.double().mean(0)
    x, y = features.double() - mean, F.one_hot(label).double()
    square = x.T @ x / len(x)
    ridge = penalty * square.diagonal().mean() * torch.eye(len(square), dtype=x.dtype, device=x.device)
    weights = torch.linalg.solve(square + ridge, x.T @ (y - y.mean(0)) / len(x))
    return ((test.double() - mean) @ weights + y.mean(0)).argmax(1)


def nearest(features: Tensor, wanted: Tensor, k: int = 1) -> Tensor:
    """Retrieval: the k of features (N, d) that are nearest to each that is wanted (M, d), by cosine: indices (M, k).

    The best comes first. ValueError where the widths differ, or k is not in 1..N.
    """
    if features.ndim != 2 or wanted.shape[1:] != features.shape[1:]:
        raise ValueError(f"expected features (N, d) and wanted (M, d), got {tuple(features.shape)}, {tuple(wanted.shape)}")
    if not 1 <= k <= len(features):
        raise ValueError(f"k must be in 1..{len(features)}, the number of features, got {k}")
    return (F.normalize(wanted.double(), dim=1) @ F.normalize(features.double(), dim=1).T).topk(k, dim=1).indices


def probes(represent: Callable[[Tensor], Tensor], size: int) -> dict[str, float]:
    """What a linear map reads off representations of scenes of a size: accuracy on 2,000 held-out ones, fitted to 10,000.

    With `represent` images -> (N, d): shares in [0, 1] of "background", "count" and "label" (of the nearest object).
    """
    found = []
    for split in ("train", "test"):
        values = shapes(split, size, modalities=("image", "label", "caption")).values
        caption = values["caption"]
        truth = {"background": caption[:, 0] - 1, "count": ((caption > 0).sum(1) - 4) // 3, "label": values["label"]}
        found.append((represent(values["image"]), truth))
    (fitted, known), (test, truth) = found
    return {name: float((linear_probe(fitted, known[name], test) == truth[name]).double().mean()) for name in truth}


def make_representation(size: Literal[16, 32], out: Path, steps: int = 1500, seed: int = 0, d: int = 16) -> None:
    """Train a representation of scenes by SimCLR, measure what a linear map reads off it, and save it.

    Args:
        size: height and width of the images.
        out: folder that it is saved to.
        steps: optimiser steps.
        seed: seed of weights, scenes and views.
        d: number of principal components.
    """
    begin = time.perf_counter()
    made = train_representation(size, steps, seed, d)
    training = {"seed": seed, "steps": steps, "batch_size": 192, "wall_seconds": round(time.perf_counter() - begin, 1)}
    metrics = {"pca": probes(made, size), "features": probes(lambda image: made.encoder(image), size)}
    card = {
        "representation": f"SimCLR on shapes at {size}x{size}, {d} principal components",
        "parameters": sum(p.numel() for p in made.encoder.parameters()),
        "training": training,
        "metrics": {"explained_variance": float(made.pca.explained), "probes": metrics},
        "provenance": provenance(),
    }
    made.save(out, card)
    print(f"{out}: {training['wall_seconds']} s, {card['metrics']}")


if __name__ == "__main__":
    tyro.cli(make_representation, prog="python -m mtdiff.representations")
