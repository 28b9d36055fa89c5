"""How to train: the numbers of `Trainer`, checked before anything is computed."""

import math
from dataclasses import dataclass, field
from numbers import Integral, Real

import torch

from mtdiff.losses import check_options
from mtdiff.schedules import check_levels

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEAST = {"steps": 1, "batch_size": 1, "accumulate": 1, "log_every": 1, "save_every": 1, "warmup": 0, "probe_every": 0}
"""What is counted, and the least that it can be."""


@dataclass
class TrainConfig:
    """How to train. The loss's own options (`weights`, `drop`, `give`) are those of `multitask_loss`.

    Raises:
        ValueError: a number that is not finite, out of range, or no whole number where one is counted.
    """

    steps: int = 2000  # optimiser steps; a training can be made longer, see `Trainer.resume`
    minutes: float | None = None  # it ends after so many, if that is before its last step, and its learning rate with it
    batch_size: int = 64  # examples per step, of all processes together
    accumulate: int = 1  # parts in which each process computes its share of the batch, one after the other
    precision: str = "fp32"  # of the network's products: "fp32", or "bf16" by autocast
    lr: float = 1e-3  # learning rate of AdamW
    warmup: int = 100  # steps over which it rises from 0
    decay: float = 0.2  # share of the steps (or minutes), the last ones, over which it falls to 0
    weight_decay: float = 0.01  # of AdamW
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.999  # decay of the averaged weights at the end of its own warm-up
    weights: dict[str, float] = field(default_factory=dict)  # lambda of each modality's loss
    drop: dict[str, float | str] = field(default_factory=dict)  # how often a modality is absent from the aggregate
    give: dict[str, float | str] = field(default_factory=dict)  # how often the backbone is told a value (rule 3)
    levels: tuple[float, float] | None = None  # mean and std of the log-SNR of training; None: all steps alike
    seed: int = 0  # of batches, steps, noise, sets and dropout
    log_every: int = 50  # steps between two rows of the history
    save_every: int = 1000  # steps between two checkpoints
    probe_every: int = 0  # steps between two looks at the averaged model (see `Trainer`); 0: none

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {tuple(PRECISIONS)}, got {self.precision!r}")
        for name in (*LEAST, "seed"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
            setattr(self, name, int(value))  # of numpy's, too
        for name in ("lr", "clip", "weight_decay", "decay", "ema", *(["minutes"] if self.minutes is not None else [])):
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value!r}")
            setattr(self, name, float(value))
            if name in ("lr", "clip", "minutes") and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name, least in {**LEAST, "weight_decay": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must {'be at least 1' if least else 'not be negative'}, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be a share of the steps, in [0, 1], got {self.decay}")
        if self.levels is not None:
            self.levels = check_levels(self.levels)
        if not abs(self.seed) < 2**62:
            raise ValueError(f"seed must be less than 2**62 from 0, got {self.seed}")
        check_options(self.weights, self.drop, self.give)
        for name in ("weights", "drop", "give"):
            numbers = getattr(self, name).items()
            setattr(self, name, {key: value if isinstance(value, str) else float(value) for key, value in numbers})
