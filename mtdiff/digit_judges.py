"""A judge of digits on photographs: a small network that reads a class off an image and never saw a generator."""

import functools
import time
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from mtdiff.checkpoint import load
from mtdiff.datasets import Dataset
from mtdiff.datasets.polydigits import WORLDS, polydigits, polymnist
from mtdiff.fit import fit
from mtdiff.judges import Judge, spoil
from mtdiff.provenance import provenance

SETS = {"polydigits": (polydigits, 16), "polymnist": (polymnist, 32)}
"""{data: (split -> data, height and width)}."""


class DigitJudge(Judge):
    """Reads the digit of an image of any of the worlds of `mtdiff.datasets.polydigits`."""

    reads = "label"

    def __init__(self, size: int = 16, width: int = 64):
        super().__init__(size, width, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of each digit, (B, 10)."""
        return self.head(self.features(image))

    @torch.no_grad()
    def read(self, image: Tensor) -> Tensor:
        """The likeliest digit of each image, (B,)."""
        return self(image).argmax(1)


@functools.lru_cache(2)
def digit_judge(data: str = "polydigits") -> DigitJudge:
    """The judge that comes with mtdiff, of "polydigits"; one of "polymnist" is trained when it is asked for, in minutes."""
    judge = load(data, kind=DigitJudge, room="judge") if data == "polydigits" else train_digit_judge(data)
    return judge.requires_grad_(False).eval()


def train_digit_judge(data: str = "polydigits", steps: int = 400, seed: int = 0, batch_size: int = 64) -> DigitJudge:
    """Train a judge on the training images of all worlds, slightly spoilt (`mtdiff.judges.spoil`)."""
    load_split, size = SETS[data]
    train = load_split("train")
    image, label = _stacked(train)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        judge = DigitJudge(size)

    def loss(judge: DigitJudge, rows: Tensor, generator: torch.Generator) -> Tensor:
        return nn.functional.cross_entropy(judge(spoil(image[rows], generator)), label[rows], label_smoothing=0.05)

    generator = torch.Generator().manual_seed(seed)
    batches = (torch.randint(len(label), (batch_size,), generator=generator) for _ in range(steps))
    fit(judge, batches, loss, steps, 4e-3, generator=generator)
    return judge


def _stacked(data: Dataset) -> tuple[Tensor, Tensor]:
    """The images of all worlds, one after the other, and their labels."""
    return torch.cat([data.values[world] for world in WORLDS]), data.values["label"].repeat(len(WORLDS))


def make_digit_judge(out: Path, steps: int = 400, seed: int = 0) -> None:
    """Train the judge of polydigits, measure it on the held-out images and save it.

    Args:
        out: folder that it is saved to.
        steps: optimiser steps.
        seed: seed of weights, batches and what spoils images.
    """
    begin, judge = time.perf_counter(), train_digit_judge("polydigits", steps, seed)
    training = {"seed": seed, "steps": steps, "batch_size": 64, "wall_seconds": round(time.perf_counter() - begin, 1)}
    test = polydigits("test")
    right = {world: float((judge.read(test.values[world]) == test.values["label"]).double().mean()) for world in WORLDS}
    card = {
        "judge": "reads digits off polydigits at 16x16",
        "parameters": sum(p.numel() for p in judge.parameters()),
        "training": training,
        "metrics": {**right, "n": len(test), "test_sha256": test.hash()},
        "provenance": provenance(),
    }
    judge.save(out, card)
    print(f"{out}: {training['wall_seconds']} s, {right}")


if __name__ == "__main__":
    tyro.cli(make_digit_judge, prog="python -m mtdiff.digit_judges")
