"""Judges of drawn scenes: small networks that read a caption or a label off an image and never saw a generator."""

import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import torch
import tyro
from torch import Tensor, nn

from mtdiff.checkpoint import load
from mtdiff.datasets.base import Dataset
from mtdiff.datasets.shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, VOCABULARY, render, shapes
from mtdiff.files import CARD, save
from mtdiff.fit import fit
from mtdiff.optional import needed
from mtdiff.provenance import provenance
from mtdiff.recorded import Recorded

STREAM = 5 * 10**8
"""Index of the first scene that judges are trained on: far from those of generators (from 0) and of tests (from 10**9)."""


class Judge(Recorded, nn.Module):
    """Reads the modality `reads` off scenes of `mtdiff.datasets.shapes`: a convolutional network, 100,000 parameters.

    Images are of `size` 16 or 32; they can be compared in `width` features, of which the head makes so many outputs. Its
    `card` says how it was trained and how good it is.
    """

    reads: ClassVar[str]

    def __init__(self, size: int, width: int, outputs: int):
        super().__init__()
        if size not in (16, 32):
            raise ValueError(f"size must be 16 or 32, got {size}")
        self.size, self.width, self.card = size, width, {}
        stem = nn.Conv2d(3, 24, 3, padding=1, bias=False) if size == 16 else nn.Conv2d(3, 24, 4, 2, 1, bias=False)

        def block(c: int, d: int) -> tuple[nn.Module, ...]:
            return nn.Conv2d(c, d, 3, padding=1, bias=False), nn.BatchNorm2d(d), nn.ReLU()

        self.body = nn.Sequential(
            *(stem, nn.BatchNorm2d(24), nn.ReLU()),
            *(*block(24, 32), nn.MaxPool2d(2)),  # (B, 32, 8, 8)
            *(*block(32, 48), *block(48, 48), nn.MaxPool2d(2)),  # (B, 48, 4, 4): where counts, so nothing is averaged
            *(nn.Flatten(), nn.Linear(48 * 16, width), nn.BatchNorm1d(width), nn.ReLU()),
        )
        self.head = nn.Linear(width, outputs)

    def features(self, image: Tensor) -> Tensor:
        """What the last layer sees of images (B, 3, size, size) in [-1, 1]: (B, width); for a Frechet distance."""
        if image.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"image must be (B, 3, {self.size}, {self.size}), got {tuple(image.shape)}")
        return self.body(image)

    def save(self, path: str | Path, card: Mapping | None = None) -> Path:
        """Write it to a folder, weights as float16; see `mtdiff.files.save`."""
        return save(path, self, card, half=True)


class SceneJudge(Judge):
    """Reads the caption of a scene."""

    reads = "caption"

    def __init__(self, size: int = 16, width: int = 64):
        super().__init__(size, width, 10 * len(VOCABULARY))
        self.register_buffer("possible", _possible(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of each word at each place of the caption, (B, 10, V); -inf for words that cannot stand there."""
        return self.head(self.features(image)).unflatten(1, (10, -1)).masked_fill(~self.possible, -torch.inf)

    @torch.no_grad()
    def read(self, image: Tensor) -> Tensor:
        """The likeliest well-formed caption of each image, tokens (B, 10)."""
        log_p = self(image).log_softmax(-1)
        best, words = log_p[..., 1:].max(-1)  # of the words that are not padding
        there, gone = best[:, 1:].unflatten(1, (3, 3)).sum(-1), log_p[:, 1:, 0].unflatten(1, (3, 3)).sum(-1)
        score = torch.stack([there[:, :n].sum(1) + gone[:, n:].sum(1) for n in (1, 2, 3)], 1)
        length = 1 + 3 * (1 + score.argmax(1, keepdim=True))
        return (words + 1) * (torch.arange(10, device=image.device) < length)


class LabelJudge(Judge):
    """Reads the label of a scene: shape and colour of its nearest object."""

    reads = "label"

    def __init__(self, size: int = 16, width: int = 64):
        super().__init__(size, width, len(SHAPES) * len(COLOURS))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of each label, (B, 18)."""
        return self.head(self.features(image))

    @torch.no_grad()
    def read(self, image: Tensor) -> Tensor:
        """The likeliest label of each image, (B,)."""
        return self(image).argmax(1)


def scene_judge(name: str | Path = "shapes16") -> SceneJudge:
    """A judge of captions: "shapes16" or "shapes32", which come with mtdiff, or one in a folder; see `mtdiff.load`."""
    return load(name, kind=SceneJudge, room="judge").requires_grad_(False)


def label_judge(name: str | Path = "shapes16") -> LabelJudge:
    """A judge of labels, as `scene_judge` is one of captions."""
    name = name if (Path(name) / CARD).is_file() else f"{name}-label"
    return load(name, kind=LabelJudge, room="judge").requires_grad_(False)


def svm_judge(data: Dataset) -> Callable[[Tensor], Tensor]:
    """A support-vector classifier (scikit-learn's) of pixels, of real images and labels alone: images -> class ids (B,)."""
    with needed("a judge of pixels"):
        from sklearn.svm import SVC
    machine = SVC(C=10.0, gamma=0.05).fit(data.values["image"].flatten(1).numpy(), data.values["label"].numpy())
    return lambda image: torch.from_numpy(machine.predict(image.detach().cpu().flatten(1).numpy()))


def caption_accuracy(read: Tensor, caption: Tensor) -> dict[str, float]:
    """How much is right of captions that were read or drawn, both (N, 10) tokens (ValueError for others).

    Returns:
        Shares in [0, 1]: "background" and "count" of the scenes, "size", "colour" and "shape" of all objects that
        there should be, "scene": every token of the scene.
    """
    if read.shape != caption.shape or caption.shape[1:] != (10,):
        raise ValueError(f"read and caption must both be (N, 10), got {tuple(read.shape)} and {tuple(caption.shape)}")
    right, there = (read == caption).double(), caption[:, 1:].unflatten(1, (3, 3)) > 0
    objects = right[:, 1:].unflatten(1, (3, 3))
    count = ((read > 0).sum(1) == (caption > 0).sum(1)).double()
    kinds = {name: objects[..., k][there[..., k]] for k, name in enumerate(("size", "colour", "shape"))}
    parts = {"background": right[:, 0], "count": count, **kinds, "scene": right.prod(1)}
    return {name: float(part.mean()) for name, part in parts.items()}


def label_accuracy(read: Tensor, label: Tensor) -> dict[str, float]:
    """How many labels (N,) are right: shares in [0, 1] of the "label", and of its parts "shape" and "colour"."""
    if read.shape != label.shape or label.ndim != 1:
        raise ValueError(f"read and label must both be (N,), got {tuple(read.shape)} and {tuple(label.shape)}")
    k = len(COLOURS)
    right = {"label": read == label, "shape": read // k == label // k, "colour": read % k == label % k}
    return {name: float(each.double().mean()) for name, each in right.items()}


def told_apart(
    real: Mapping[str, Tensor],
    drawn: Mapping[str, Tensor],
    noise: float = 0.0,
    steps: int = 600,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[str, float]:
    """How well a fresh network tells drawn examples from real ones, all their modalities together: 0.5 is not at all.

    Values {name: (N, ...)} are images, class ids, tokens or label maps; as many of each are used. A small convolutional
    network is trained on half of both and judged on the rest, then the other way around. Noise of this standard deviation
    is added to pictures and maps of both: what only shows below it, as in areas that are not quite flat, tells little then.

    Returns:
        "accuracy" on all, in [0, 1], and its binomial "stderr".

    Source: classifier two-sample test: Lopez-Paz and Oquab 2017.
    """
    n = min(len(value) for values in (real, drawn) for value in values.values())
    maps, vectors = zip(*(_as_inputs({k: v[:n] for k, v in values.items()}, real) for values in (real, drawn)), strict=True)
    maps, vectors, truth = torch.cat(maps), torch.cat(vectors), torch.arange(2 * n) // n
    generator, right = torch.Generator().manual_seed(seed), 0.0
    maps = maps + noise * torch.randn(maps.shape, generator=torch.Generator().manual_seed(seed + 1))
    order = torch.randperm(2 * n, generator=generator)

    def loss(network: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
        return nn.functional.cross_entropy(network(maps[rows], vectors[rows]), truth[rows])

    for train, test in itertools.permutations(order.chunk(2)):
        batches = (train[torch.randint(len(train), (batch_size,), generator=generator)] for _ in range(steps))
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            network = _Telling(maps.shape[1], vectors.shape[1])
            fit(network, batches, loss, steps, lr=2e-3, generator=generator)
        with torch.no_grad():
            said = torch.cat([network(maps[rows], vectors[rows]).argmax(1) for rows in test.split(250)])
        right += float((said == truth[test]).sum())
    accuracy = right / (2 * n)
    return {"accuracy": accuracy, "stderr": (accuracy * (1 - accuracy) / (2 * n)) ** 0.5}


def _as_inputs(values: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Maps (N, C, H, W) and vectors (N, D) of all modalities, ids as one-hot; the real ones say how many ids there are."""
    maps, vectors = [], []
    for name in sorted(real):
        value = values[name].cpu()
        if not value.is_floating_point():
            value = nn.functional.one_hot(value.long(), int(real[name].max()) + 1).float().movedim(-1, 1)
        (maps if value.ndim == 4 else vectors).append(value if value.ndim == 4 else value.flatten(1))
    n = len(values[min(real)])
    return torch.cat(maps or [torch.zeros(n, 1, 4, 4)], 1), torch.cat([torch.zeros(n, 0), *vectors], 1)


class _Telling(nn.Module):
    """Real or drawn? Logits (N, 2) of maps and vectors."""

    def __init__(self, channels: int, size: int):
        super().__init__()

        def block(c: int, d: int) -> tuple[nn.Module, ...]:
            return nn.Conv2d(c, d, 3, padding=1, bias=False), nn.BatchNorm2d(d), nn.ReLU()

        self.body = nn.Sequential(*block(channels, 24), nn.MaxPool2d(2), *block(24, 48), nn.MaxPool2d(2), *block(48, 64))
        self.head = nn.Sequential(nn.Linear(64 + size, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 2))

    def forward(self, maps: Tensor, vectors: Tensor) -> Tensor:
        return self.head(torch.cat([self.body(maps).mean((2, 3)), vectors], 1))


def train_judge(
    size: int = 16, steps: int = 2000, seed: int = 0, batch_size: int = 256, lr: float = 4e-3, kind: type[Judge] = SceneJudge
) -> Judge:
    """Train a judge on an endless stream of scenes, slightly spoilt so that it bears with a generator's artefacts.

    `seed` is that of weights, scenes and what spoils them; for `lr` see `fit`.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        judge = kind(size)

    def loss(judge: Judge, scenes: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        logits = judge(spoil(scenes["image"], generator))
        return nn.functional.cross_entropy(logits.flatten(0, -2), scenes[judge.reads].flatten())

    starts = itertools.count(STREAM, batch_size)
    scenes = (render(range(k, k + batch_size), size, seed, ("image", kind.reads)) for k in starts)
    fit(judge, scenes, loss, steps, lr, generator=torch.Generator().manual_seed(seed))
    return judge


def spoil(image: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Images (N, 3, s, s) with a little noise (up to 0.15), blur, and other brightness and contrast, differing by image."""
    noise, blur, gain, shift = torch.rand(4, len(image), 1, 1, 1, generator=generator)
    smooth = nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    image = (image + 0.5 * blur * (smooth - image)) * (0.9 + 0.2 * gain) + 0.1 * (2 * shift - 1)
    return image + 0.15 * noise * torch.randn(image.shape, generator=generator)


def _possible() -> Tensor:
    """Which words can stand at each place of a caption, (10, V) bool; the first object is always there."""
    kinds = [[*BACKGROUNDS]] + [[*names, *([""] if k else [])] for k in range(3) for names in (SIZES, COLOURS, SHAPES)]
    return torch.tensor([[word in names for word in VOCABULARY] for names in kinds])


def make_judge(
    size: Literal[16, 32], out: Path, steps: int = 2000, seed: int = 0, reads: Literal["caption", "label"] = "caption"
) -> None:
    """Train a judge of scenes, measure it on 2,000 held-out ones and save it.

    Args:
        size: height and width of the images.
        out: folder that it is saved to.
        steps: optimiser steps.
        seed: seed of weights and scenes.
        reads: what it reads, a caption or the label of the nearest object.
    """
    begin, kind = time.perf_counter(), SceneJudge if reads == "caption" else LabelJudge
    judge = train_judge(size, steps, seed, kind=kind)
    training = {"seed": seed, "steps": steps, "batch_size": 256, "wall_seconds": round(time.perf_counter() - begin, 1)}
    test = shapes("test", size, modalities=("image", reads))
    image, score = test.values["image"], caption_accuracy if reads == "caption" else label_accuracy
    looks = {"clean": image, "spoilt": spoil(image, torch.Generator().manual_seed(1))}
    metrics = {name: score(judge.read(x), test.values[reads]) for name, x in looks.items()}
    card = {
        "judge": f"reads {reads}s off shapes at {size}x{size}",
        "parameters": sum(p.numel() for p in judge.parameters()),
        "training": training,
        "metrics": {**metrics, "n": len(test), "test_sha256": test.hash()},
        "provenance": provenance(),
    }
    judge.save(out, card)
    print(f"{out}: {training['wall_seconds']} s, {metrics}")


if __name__ == "__main__":
    tyro.cli(make_judge, prog="python -m mtdiff.judges")
