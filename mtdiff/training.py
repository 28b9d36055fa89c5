"""The training loop, for a laptop and for many GPUs: AdamW, EMA, progress, history, atomic checkpoints, exact resume."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from mtdiff import distributed
from mtdiff.datasets.base import Dataset
from mtdiff.losses import Loss, multitask_loss
from mtdiff.model import MTDiffusion
from mtdiff.run_folder import HISTORY, PROBES, RunFolder
from mtdiff.speed import matmul_peak, training_flops
from mtdiff.stopping import Interrupted, OutOfTime, stop_requests

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class TrainConfig:
    """How to train. The loss's own options (`weights`, `drop`, `give`) are those of `multitask_loss`."""

    steps: int = 2000  # optimiser steps
    batch_size: int = 64  # examples per step, of all processes together
    accumulate: int = 1  # parts in which each process computes its share of the batch, one after the other
    precision: str = "fp32"  # of the network's products: "fp32", or "bf16" by autocast
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
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {tuple(PRECISIONS)}, got {self.precision!r}")
        for name in ("steps", "batch_size", "accumulate", "log_every", "save_every"):
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


class Trainer:
    """Trains a model on a data set, and can stop and go on at any step without a trace.

    Each step's batch is cut into equal *shards*, `config.accumulate` for each process of torchrun, and each shard has a
    source of randomness of its own: two processes take the same steps as one that accumulates over two shards, and a
    training may go on with another division of as many shards. The first process alone writes, and looks at the model.

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
        draw: (averaged model, path of a PNG file) -> None, called when the probe is, for files in the folder's `samples/`.
        compile: let torch.compile make one program of the backbone: faster on a GPU, after a minute or so.
        keep: how many checkpoints stay: the last one, and those before it as `training-STEP.pt`.
        best: a figure of the probe; the averaged model with the smallest is kept in the folder's `best/`.

    Raises:
        ValueError: an example of the data does not fit the model, all values of a modality are missing, or the batch size
            does not fit the data or the number of shards.
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
        draw: Callable[[MTDiffusion, Path], None] | None = None,
        compile: bool = False,
        keep: int = 1,
        best: str | None = None,
    ):
        self.rank, self.shards = distributed.rank(), distributed.world() * config.accumulate
        if config.batch_size % self.shards:
            text = f"{distributed.world()} processes with accumulate = {config.accumulate}"
            raise ValueError(f"a batch of {config.batch_size} cannot be divided equally among {text}")
        self.missing = self._missing(model, data)
        filled = {name: model.modalities[name].filled(data.values[name]) for name in self.missing}
        model.check({**data.sample(), **filled}, f"data set {data.name!r}")
        lacking = [name for name in model.modalities if name not in data.values]
        if lacking:
            raise KeyError(f"data set {data.name!r} lacks {lacking}; it has {list(data.values)}")
        next(data.batches(config.batch_size, config.seed))
        self.data, self.config = data, config
        self.folder = None if folder is None else RunFolder(folder, keep)
        self.device = torch.device(device)
        self.model = model.to(self.device).train()
        if loss is None:  # what the card says of rule "conditioned"
            self.model.teach(config.give)
        self.loss, self.probe, self.draw = loss or self._multitask, probe, draw
        self.compile, self.best = compile, best
        self.step, self.seconds, self.history, self.probes = 0, 0.0, [], []
        self._flops, self._peak = 0.0, math.inf  # of an example, and of the device
        self._sums: dict[str, Tensor] = {}  # of every term since the last row of the history
        mine = range(self.rank * config.accumulate, (self.rank + 1) * config.accumulate)
        self.generators = [torch.Generator(self.device).manual_seed(config.seed + 1_000_003 * k) for k in mine]
        decay, rest = [], []
        for parameter in model.parameters():
            (decay if parameter.ndim > 1 else rest).append(parameter)
        groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), fused=True)
        self.ema = AveragedModel(self.model, multi_avg_fn=self._average)

    def run(self, progress: bool = True, max_minutes: float = math.inf) -> MTDiffusion:
        """Train to the last step.

        Args:
            progress: show a progress bar.
            max_minutes: stop after so long, between two steps.

        Returns:
            The averaged model, in evaluation mode. The history is in `.history`, and in the folder.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the step was finished and, with a folder, saved. `OutOfTime`: time is over.
            FloatingPointError: the loss or its gradient became NaN or infinite; the last good checkpoint stays.
            PermissionError: the folder cannot be written; said before the first step.
            ValueError: the folder holds another training, which was not resumed.
            torch.OutOfMemoryError: the device is too small for a shard; the last checkpoint stays.
        """
        config, entered = self.config, time.perf_counter()
        began = entered - self.seconds
        batches = self.data.batches(config.batch_size, config.seed, self.step, self.device, self._part())
        if self.folder and self.rank == 0:
            if self.step == 0 and self.folder.state.is_file():
                raise ValueError(f"{self.folder} holds a training already: call resume(), or use another folder")
            self.folder.write_rows(self.history, self.probes)
        objective = self._objective()
        bar = tqdm(
            total=config.steps, initial=self.step, disable=not progress or self.rank > 0, unit="step", mininterval=0.5
        )
        with bar, stop_requests() as requests:
            while self.step < config.steps:
                for name, value in self._one(objective, next(batches)).items():
                    self._sums[name] = self._sums.get(name, 0.0) + value
                bar.update()
                last = self.step == config.steps
                if self.step % config.log_every == 0 or last:
                    bar.set_postfix_str(self._log(began))
                self.seconds = time.perf_counter() - began
                if config.probe_every and (self.step % config.probe_every == 0 or last):
                    self._look()
                    began = time.perf_counter() - self.seconds
                over = time.perf_counter() - entered > 60 * max_minutes
                stop = self._stops(bool(requests) or over)
                if (self.step % config.save_every == 0 or last or stop) and self.folder:
                    self.save()
                if stop and not last:
                    raise (OutOfTime if over else Interrupted)(self._farewell())
        return self.averaged()

    def averaged(self) -> MTDiffusion:
        """The model with averaged weights, in evaluation mode."""
        return self.ema.module.eval()

    def save(self) -> None:
        """Write the whole state of the training to the folder, replacing the last one at once.

        Raises:
            FloatingPointError: the loss is not finite; nothing is written.
        """
        self._sums = distributed.mean(self._sums)
        self._check_finite()
        randomness = (
            [generator.get_state() for generator in self.generators],
            torch.get_rng_state(),
            torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        )
        shards, by_cpu, by_cuda = zip(*distributed.gathered(randomness), strict=True)
        if self.rank:
            return
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
            "generators": [one for process in shards for one in process],
            "torch": list(by_cpu),
            "cuda": list(by_cuda),
            "history": self.history,
            "probes": self.probes,
            "sums": self._sums,
        }
        self.folder.write(state, self.history, self.probes)

    def resume(self) -> bool:
        """Go on from the folder's checkpoint; False where there is none.

        Returns:
            Whether there was one.

        Raises:
            ValueError: the checkpoint is damaged, or belongs to another config, model or data set.
        """
        state = None if self.folder is None else self.folder.read(self.device)
        if state is None:
            return False
        path, mine = self.folder.state, {**asdict(self.config), "accumulate": self.shards}
        theirs = {**state["config"], "accumulate": len(state["generators"])}  # however divided among processes
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
        first = self.rank * self.config.accumulate
        for k, generator in enumerate(self.generators, first):
            generator.set_state(state["generators"][k].cpu())
        mine = self.rank % len(state["torch"])
        torch.set_rng_state(state["torch"][mine].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"][mine].cpu(), self.device)
        self.step, self.seconds = state["step"], state["seconds"]
        self.history, self.probes, self._sums = state["history"], state["probes"], state["sums"]
        return True

    def _objective(self) -> nn.Module:
        """The loss as a module: compiled, timed and shared among processes as was asked for."""
        if self.device.type == "cuda" and self.rank == 0:
            self._flops = training_flops(self.model, self.loss, self.data[:2])
            self._peak = matmul_peak(self.device, PRECISIONS[self.config.precision]) * distributed.world()
        if self.compile:
            self.model.backbone.compile()
        objective = Objective(self.model, self.loss, self.device.type, PRECISIONS[self.config.precision])
        if distributed.world() == 1:
            return objective
        return DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=True)

    def _part(self) -> slice:
        """The rows of each batch that are this process's."""
        share = self.config.batch_size // distributed.world()
        return slice(self.rank * share, (self.rank + 1) * share)

    def _one(self, objective: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One optimiser step; nothing in it waits for the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self._schedule(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        size, parts, terms = self.config.batch_size // self.shards, self.config.accumulate, {}
        for k, generator in enumerate(self.generators):
            shard = {name: value[k * size : (k + 1) * size] for name, value in batch.items()}
            more = k + 1 < parts and isinstance(objective, DistributedDataParallel)
            with objective.no_sync() if more else contextlib.nullcontext():  # gradients are exchanged once
                total, each = self._within_memory(objective, shard, generator)
            for name, value in {"total": total, **each}.items():
                terms[name] = terms.get(name, 0.0) + value.detach() / parts
        gradient = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        self.ema.update_parameters(self.model)
        return {**terms, "gradient": gradient}

    def _within_memory(self, objective: nn.Module, shard: Mapping[str, Tensor], generator: torch.Generator):
        """Loss and gradient of one shard; where the memory does not suffice, what would."""
        try:
            total, terms = objective(shard, generator)
            (total / self.config.accumulate).backward()
        except torch.OutOfMemoryError as error:
            text = f"out of memory at {len(next(iter(shard.values())))} examples at a time"
            kept = f"; the last checkpoint is in {self.folder}" if self.folder and self.folder.state.is_file() else ""
            more = f"try accumulate = {2 * self.config.accumulate}, which takes the same steps in smaller parts"
            raise torch.OutOfMemoryError(f"{text}: {more}, or a smaller batch_size{kept}") from error
        return total, terms

    def _stops(self, wish: bool) -> bool:
        """Whether to stop after this step; several processes ask each other only where they log."""
        if distributed.world() == 1:
            return wish
        return self.step % self.config.log_every == 0 and distributed.agreed(wish, self.device)

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

    def _log(self, began: float) -> str:
        """Average the terms since the last row, over processes too, into a new one; returns it for the progress bar."""
        self._sums = distributed.mean(self._sums)
        self._check_finite()
        self.seconds = time.perf_counter() - began  # the device has caught up
        last = self.history[-1] if self.history else {"step": 0, "seconds": 0.0}
        steps = self.step - last["step"]
        row = {name: float(value) / steps for name, value in self._sums.items()}
        self._sums = {}
        rate = steps * self.config.batch_size / max(self.seconds - last["seconds"], 1e-9)
        self.history.append({"step": self.step, "seconds": round(self.seconds, 2), **row})
        if self.folder and self.rank == 0:
            self.folder.append(HISTORY, self.history[-1])
        share = f" ({rate * self._flops / self._peak:.0%} of peak)" if self._flops else ""
        text = " ".join(f"{name} {value:.3f}" for name, value in row.items() if name != "gradient")
        return f"{text} {rate:,.0f}/s{share}"

    def _look(self) -> None:
        """Note what the probe measures of the averaged model, draw from it, and keep it if it is the best so far."""
        if self.rank:
            return
        model = self.averaged()
        if self.probe:
            row = {"step": self.step, "seconds": round(self.seconds, 2), **self.probe(model)}
            record = min((old[self.best] for old in self.probes), default=math.inf) if self.best else -math.inf
            self.probes.append(row)
            if self.folder:
                self.folder.append(PROBES, row)
            if self.folder and self.best and row[self.best] < record:
                model.save(self.folder.best, {"step": self.step, self.best: row[self.best]})
        if self.draw and self.folder:
            self.draw(model, self.folder.picture(self.step))

    def _check_finite(self) -> None:
        sums = {name: float(value) for name, value in self._sums.items()}
        if not all(map(math.isfinite, sums.values())):
            kept = f"; the last checkpoint in {self.folder} is from before" if self.folder else ""
            raise FloatingPointError(f"the loss is not finite by step {self.step}: {sums}{kept}. Try a lower lr")

    def _farewell(self) -> str:
        kept = f"saved in {self.folder}: run the same command again to go on" if self.folder else "nothing was saved"
        return f"stopped at step {self.step} of {self.config.steps}; {kept}"


class Objective(nn.Module):
    """A loss as a module, which is what processes can share.

    Args:
        model: the model.
        loss: (model, batch, generator) -> Loss.
        device: kind of device.
        dtype: torch.bfloat16 computes products in it.
    """

    def __init__(self, model: MTDiffusion, loss: Callable, device: str, dtype: torch.dtype):
        super().__init__()
        self.model, self.loss, self.kind, self.dtype = model, loss, device, dtype

    def forward(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and the terms without their gradients."""
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = self.loss(self.model, batch, generator)
        return loss.total, {name: term.detach() for name, term in loss.terms.items()}
