"""The training loop: AdamW, warm-up, EMA, progress, history, atomic checkpoints and exact resume."""

import contextlib
import io
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from mtdiff.datasets.base import Dataset
from mtdiff.files import write_atomic
from mtdiff.losses import Loss, multitask_loss
from mtdiff.model import MTDiffusion

STATE, HISTORY, PROBES = "training.pt", "history.json", "probes.json"


@dataclass
class TrainConfig:
    """How to train. The loss's own options (`weights`, `drop`, `give`) are those of `multitask_loss`."""

    steps: int = 2000  # optimiser steps
    batch_size: int = 64  # examples per step
    lr: float = 1e-3  # peak learning rate of AdamW; falls along a cosine to 0 at the last step
    warmup: int = 100  # steps over which the learning rate rises from 0
    weight_decay: float = 0.01  # of AdamW
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.999  # decay of the averaged weights at the end of its own warm-up
    weights: dict[str, float] = field(default_factory=dict)  # lambda of each modality's loss
    drop: dict[str, float | str] = field(default_factory=dict)  # how often a modality is absent from the aggregate
    give: dict[str, float | str] = field(default_factory=dict)  # how often the backbone is told a value (rule 3)
    seed: int = 0  # of batches, steps, noise and sets
    log_every: int = 50  # steps between two rows of the history
    save_every: int = 1000  # steps between two checkpoints
    probe_every: int = 0  # steps between two looks at the averaged model (see `Trainer`); 0: none

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "probe_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C or SIGTERM; the message says what was saved and how to go on."""


class Trainer:
    """Trains a model on a data set, and can stop and go on at any step without a trace.

    Args:
        model: the model; trained in place.
        data: the training set; its `sample` is checked once, here: all of it, or a part of images that are packed in a
            file. A label of -1 is one that is missing (see `multitask_loss`).
        config: how to train.
        folder: where checkpoints and the history go; None keeps everything in memory.
        loss: (model, batch, generator) -> Loss; None is `multitask_loss` with the config's options.
        device: where to train.
        probe: averaged model -> {name: number}, called every `config.probe_every` steps and at the last one; the rows are
            in `.probes`. Its time does not count as training, and it must not draw from torch's global generator.

    Raises:
        ValueError: an example of the data does not fit the model, all values of a modality are missing, or the batch size
            does not fit the data.
        KeyError: the data lack a modality of the model, or have one that it does not know.

    Source: EMA with a warm-up (1 + k) / (10 + k): Polyak averaging as in Ho et al. 2020, warm-up as in TensorFlow's.
    """

    def __init__(
        self,
        model: MTDiffusion,
        data: Dataset,
        config: TrainConfig,
        folder: str | Path | None = None,
        loss: Callable[[MTDiffusion, Mapping[str, Tensor], torch.Generator], Loss] | None = None,
        device: str | torch.device = "cpu",
        probe: Callable[[MTDiffusion], Mapping[str, float]] | None = None,
    ):
        self.missing = self._missing(model, data)
        filled = {name: model.modalities[name].filled(data.values[name]) for name in self.missing}
        model.check({**data.sample(), **filled}, f"data set {data.name!r}")
        lacking = [name for name in model.modalities if name not in data.values]
        if lacking:
            raise KeyError(f"data set {data.name!r} lacks {lacking}; it has {list(data.values)}")
        next(data.batches(config.batch_size, config.seed))
        self.data, self.config = data, config
        self.folder = None if folder is None else Path(folder)
        self.device = torch.device(device)
        self.model = model.to(self.device).train()
        self.loss, self.probe = loss or self._multitask, probe
        self.step, self.seconds, self.history, self.probes = 0, 0.0, [], []
        self._sums: dict[str, Tensor] = {}  # of every term since the last row of the history
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        decay, rest = [], []
        for parameter in model.parameters():
            (decay if parameter.ndim > 1 else rest).append(parameter)
        groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), fused=True)
        self.ema = AveragedModel(self.model, multi_avg_fn=self._average)

    def run(self, progress: bool = True) -> MTDiffusion:
        """Train to the last step.

        Args:
            progress: show a progress bar.

        Returns:
            The averaged model, in evaluation mode. The history is in `.history`, and in the folder.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the step was finished and, with a folder, saved.
            FloatingPointError: the loss or its gradient became NaN or infinite; the last good checkpoint stays.
            PermissionError: the folder cannot be written; said before the first step.
            ValueError: the folder holds another training, which was not resumed.
        """
        config, began = self.config, time.perf_counter() - self.seconds
        batches = self.data.batches(config.batch_size, config.seed, self.step, self.device)
        if self.folder:
            if self.step == 0 and (self.folder / STATE).is_file():
                raise ValueError(f"{self.folder} holds a training already: call resume(), or use another folder")
            self._write_history()
        bar = tqdm(total=config.steps, initial=self.step, disable=not progress, unit="step", mininterval=0.5)
        with bar, _stop_requests() as stop:
            while self.step < config.steps:
                for name, value in self._one(next(batches)).items():
                    self._sums[name] = self._sums.get(name, 0.0) + value.detach()
                bar.update()
                self.seconds = time.perf_counter() - began
                last = self.step == config.steps
                if self.step % config.log_every == 0 or last:
                    bar.set_postfix_str(self._log())
                if self.probe and config.probe_every and (self.step % config.probe_every == 0 or last):
                    self._look()
                    began = time.perf_counter() - self.seconds
                if (self.step % config.save_every == 0 or last or stop) and self.folder:
                    self.save()
                if stop and not last:
                    raise Interrupted(self._farewell())
        return self.averaged()

    def averaged(self) -> MTDiffusion:
        """The model with averaged weights, in evaluation mode."""
        return self.ema.module.eval()

    def save(self) -> None:
        """Write the whole state of the training to the folder, replacing the last one at once.

        Raises:
            FloatingPointError: the loss is not finite; nothing is written.
        """
        self._check_finite()
        state = {
            "step": self.step,
            "device": self.device.type,
            "seconds": self.seconds,
            "config": asdict(self.config),
            "data": self.data.hash(),
            "architecture": self.model.fingerprint(),
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "history": self.history,
            "probes": self.probes,
            "sums": self._sums,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.folder / STATE, buffer.getvalue())
        self._write_history()

    def resume(self) -> bool:
        """Go on from the folder's checkpoint; False where there is none.

        Returns:
            Whether there was one.

        Raises:
            ValueError: the checkpoint is damaged, or belongs to another config, model or data set.
        """
        path = None if self.folder is None else self.folder / STATE
        if path is None or not path.is_file():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            mine, theirs = asdict(self.config), state["config"]
        except Exception as error:  # torch raises many kinds for a damaged file
            raise ValueError(f"{path} is truncated or damaged ({type(error).__name__}): delete it to start again") from None
        different = [f"{k}: {theirs.get(k)} there, {v} here" for k, v in mine.items() if theirs.get(k) != v]
        if different:
            raise ValueError(f"{path} was trained with another config ({'; '.join(different)}): use another folder")
        if state["device"] != self.device.type:
            raise ValueError(f"{path} was trained on {state['device']}, and can only go on there, not on {self.device.type}")
        if state["data"] != self.data.hash():
            raise ValueError(f"{path} was trained on other data than {self.data.name!r}: use another folder")
        if state["architecture"] != self.model.fingerprint():
            raise ValueError(f"{path} belongs to another model (process, modalities or backbone): use another folder")
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"].cpu(), self.device)
        self.step, self.seconds = state["step"], state["seconds"]
        self.history, self.probes, self._sums = state["history"], state["probes"], state["sums"]
        return True

    def _one(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One optimiser step; nothing in it waits for the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self._schedule(self.step)
        loss = self.loss(self.model, batch, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        gradient = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        self.ema.update_parameters(self.model)
        return {"total": loss.total, **loss.terms, "gradient": gradient}

    @staticmethod
    def _missing(model: MTDiffusion, data: Dataset) -> tuple[str, ...]:
        """The modalities that some examples lack."""
        found = []
        for name in model.modalities:
            gone = model.modalities[name].missing(data.values[name]) if name in data.values else torch.zeros(1).bool()
            if bool(gone.all()):
                raise ValueError(f"data set {data.name!r} has no example with a {name!r}: all of them are missing")
            found += [name] if bool(gone.any()) else []
        return tuple(found)

    def _multitask(self, model: MTDiffusion, batch: Mapping[str, Tensor], generator: torch.Generator) -> Loss:
        c = self.config
        options = {"weights": c.weights, "drop": c.drop, "give": c.give, "missing": self.missing}
        return multitask_loss(model, batch, **options, generator=generator)

    def _schedule(self, step: int) -> float:
        """Learning rate over its peak: a linear rise, then a cosine to 0."""
        rise = min(1.0, (step + 1) / max(1, self.config.warmup))
        return rise * 0.5 * (1 + math.cos(math.pi * step / self.config.steps))

    def _average(self, averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        """EMA with decay min(ema, (1 + k) / (10 + k)) at step k, all tensors in one call."""
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def _log(self) -> str:
        """Average the terms since the last row into a new one; returns it for the progress bar."""
        self._check_finite()
        steps = self.step - (self.history[-1]["step"] if self.history else 0)
        row = {name: float(value) / steps for name, value in self._sums.items()}
        self.history.append({"step": self.step, "seconds": round(self.seconds, 2), **row})
        self._sums = {}
        return " ".join(f"{name} {value:.3f}" for name, value in row.items() if name != "gradient")

    def _look(self) -> None:
        """Note what the probe measures of the averaged model."""
        self.probes.append({"step": self.step, "seconds": round(self.seconds, 2), **self.probe(self.averaged())})

    def _check_finite(self) -> None:
        sums = {name: float(value) for name, value in self._sums.items()}
        if not all(map(math.isfinite, sums.values())):
            kept = f"; the last checkpoint in {self.folder} is from before" if self.folder else ""
            raise FloatingPointError(f"the loss is not finite by step {self.step}: {sums}{kept}. Try a lower lr")

    def _write_history(self) -> None:
        write_atomic(self.folder / HISTORY, (json.dumps(self.history, indent=1) + "\n").encode())
        if self.probes:
            write_atomic(self.folder / PROBES, (json.dumps(self.probes, indent=1) + "\n").encode())

    def _farewell(self) -> str:
        kept = f"saved in {self.folder}: run the same command again to go on" if self.folder else "nothing was saved"
        return f"stopped at step {self.step} of {self.config.steps}; {kept}"


@contextlib.contextmanager
def _stop_requests() -> Iterator[list]:
    """Ctrl-C and SIGTERM become a note in a list, so that a step is never torn apart. A second one stops at once."""
    requests: list[int] = []

    def note(number, frame):
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs the thread handles signals
        before = {}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
