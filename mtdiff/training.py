"""The training loop, for a laptop and for many GPUs: AdamW, EMA, progress, history, atomic checkpoints, exact resume."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from mtdiff import distributed
from mtdiff.checkpoint import inherited, transfer
from mtdiff.checks import check_choice
from mtdiff.datasets.adapted import adapted
from mtdiff.datasets.base import Dataset
from mtdiff.losses import Loss, check_options, multitask_loss, scored
from mtdiff.model import MTDiffusion
from mtdiff.reading import naming
from mtdiff.run_folder import HISTORY, PROBES, RunFolder
from mtdiff.speed import matmul_peak, training_flops
from mtdiff.stopping import TIME, Agreement, Interrupted, OutOfTime, stop_requests
from mtdiff.train_config import PRECISIONS, TrainConfig
from mtdiff.train_state import collected, compare, drawing_from, restore, seeded_states

__all__ = ["PRECISIONS", "Interrupted", "Objective", "OutOfTime", "TrainConfig", "Trainer"]

PROGRESS = ("bar", "lines", "none")
PAUSE = 10.0
"""Seconds between two lines about a training."""


class Trainer:
    """Trains a model on a data set, and can stop and go on at any step without a trace.

    Each step's batch is cut into equal *shards*, `config.accumulate` for each process of torchrun, and each shard has a
    source of randomness of its own: two processes take the same steps as one that accumulates over two shards, and a
    training may go on with another division of as many shards. The first process alone writes, and looks at the model.

    With `config.minutes` progress is the share of the steps or of the minutes that is behind, whichever is more. How many
    steps it takes depends on the machine, so such a training is not exactly reproducible.

    Args:
        model: trained in place. A card that it has from before is kept as what it is "based on".
        data: the training set: a `Dataset`, a dict of tensors, whatever has a length and an example {name: value} at each
            number, or gives batches of such (`mtdiff.datasets.adapted`). Its `sample` is checked here, once. A label of -1
            is missing (see `multitask_loss`).
        folder: where checkpoints and the history go; None keeps everything in memory.
        loss: (model, batch, generator) -> Loss, whose terms are means over examples; None is `multitask_loss` with the
            config's options, whose heads are scored by the mean over what is scored in all shards.
        probe: averaged model -> {name: number}, called every `config.probe_every` steps and at the last one; the rows are
            in `.probes`. Its time does not count as training.
        draw: (averaged model, path of a PNG file in the folder's `samples/`) -> None, called when the probe is.
        compile: let torch.compile make one program of the backbone: faster on a GPU, after a minute or so.
        keep: how many checkpoints stay (see `RunFolder`).
        best: a figure of the probe; the averaged model with the smallest is kept in the folder's `best/`.
        log: called with every row of the history and of the probes, {"step", "seconds", name: number}, by the first process.
            Into TensorBoard: lambda row: [writer.add_scalar(name, value, row["step"]) for name, value in row.items()].
        parent: a trained model whose weights it begins with (`mtdiff.transfer`), unless it goes on from a checkpoint.

    Attributes:
        lengthened: [[step, steps]]: where a training that was to have so many steps was made longer after its learning rate
            had begun to fall.

    Raises:
        ValueError: an example of the data does not fit the model, all values of a modality are missing, the batch size
            does not fit the data or the number of shards, a number of the config is wrong, or several processes are to end
            after some minutes.
        KeyError: the data lack a modality of the model, or have one that it does not know, or the config names one.

    Source: EMA with a warm-up (1 + k) / (10 + k): Polyak averaging as in Ho et al. 2020, warm-up as in TensorFlow's.
    """

    def __init__(
        self,
        model: MTDiffusion,
        data: "Dataset | Mapping[str, Tensor] | torch.utils.data.Dataset | Iterable[Mapping[str, Tensor]]",
        config: TrainConfig,
        folder: str | Path | None = None,
        loss: Callable[[MTDiffusion, Mapping[str, Tensor], torch.Generator], Loss] | None = None,
        device: str | torch.device = "cpu",
        probe: Callable[[MTDiffusion], Mapping[str, float]] | None = None,
        draw: Callable[[MTDiffusion, Path], None] | None = None,
        compile: bool = False,
        keep: int = 1,
        best: str | None = None,
        log: Callable[[Mapping[str, float]], object] | None = None,
        parent: MTDiffusion | None = None,
    ):
        if parent is not None:
            transfer(model, parent)
        if best and not probe:
            raise ValueError(f"best names a figure of the probe, {best!r}, but there is no probe")
        self.config, self.device = replace(config), torch.device(device)  # fields can be set: checked again
        self.data = adapted(data, model.modalities)
        self.rank, self.shards = distributed.rank(), distributed.world() * config.accumulate
        self.missing = self._checked(model)
        self.folder = None if folder is None else RunFolder(folder, keep)
        self.model = model.to(self.device).train()
        taught = {} if model.taught is None or loss is not None else {"taught": sorted(model.taught)}
        model.card = {**inherited(model.card), **taught}
        if loss is None:  # what the card says of rule "conditioned"; another loss tells what it likes
            model.teach(config.give)
        self.loss, self.probe, self.draw = loss or self._multitask, probe, draw
        self.compile, self.best, self.log = compile, best, log
        self.step, self.seconds, self.history, self.probes, self.lengthened = 0, 0.0, [], [], []
        self._flops, self._peak = 0.0, math.inf  # of an example, and of the device
        self.sums, self.shares = {}, {}  # of each term times its share of a batch, since the last row; and of those shares
        self._shards, self._counts = None, {}  # of the step that is being taken
        mine = range(self.rank * config.accumulate, (self.rank + 1) * config.accumulate)
        self.generators = [torch.Generator(self.device).manual_seed(config.seed + 1_000_003 * k) for k in mine]
        self.states = seeded_states(config.seed + 1_000_003 * mine[0], self.device)  # of torch's global generators
        groups = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), fused=True)
        self.ema = AveragedModel(self.model)

    def _checked(self, model: MTDiffusion) -> tuple[str, ...]:
        """Whether data, model and config go together; which modalities some examples lack."""
        data, config = self.data, self.config
        if config.minutes is not None and distributed.world() > 1:
            raise ValueError(f"minutes = {config.minutes:g} is for one process, not for {distributed.world()}: set steps")
        if config.batch_size % self.shards:
            text = f"{distributed.world()} processes with accumulate = {config.accumulate}"
            raise ValueError(f"a batch of {config.batch_size} cannot be divided equally among {text}")
        next(data.batches(config.batch_size, config.seed))
        kinds, seen, missing = model.modalities, data.sample(), data.incomplete(model.modalities)
        there = {name: ~kinds[name].missing(seen[name]) for name in missing}
        seen |= {name: kinds[name].filled(seen[name]) for name in missing}
        model.check(seen, f"data set {data.name!r}")
        lacking = [name for name in kinds if name not in seen]
        if lacking:
            raise KeyError(f"data set {data.name!r} lacks {lacking}; it has {list(seen)}")
        check_options(config.weights, config.drop, config.give, list(kinds))
        if self.rank == 0:
            seen, there = ({n: v[:: len(v) // 256 + 1].to(model.device) for n, v in part.items()} for part in (seen, there))
            with torch.no_grad():
                model.check_prior(model.encode(seen), there)
        return missing

    def run(self, progress: bool | str = True, max_minutes: float = math.inf) -> MTDiffusion:
        """Train to the last step, or stop after so many minutes from now: the averaged model, in evaluation mode.

        The history is in `.history`, and in the folder. Whatever stops a training, the last checkpoint stays. How far it is
        is said by a bar, by "lines" for a file, of which there is one in `PAUSE` seconds, or not at all.

        Raises:
            Interrupted: Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 after a step, which a folder saves. `OutOfTime`: time is over.
            FloatingPointError: the loss or its gradient became NaN or infinite.
            OSError: the folder cannot be written (said at the start), the disk is full, or (`BlockingIOError`) the folder is
                in use by another process.
            ValueError: the folder holds another training, which was not resumed.
            torch.OutOfMemoryError: the device is too small for a shard.
        """
        if not max_minutes >= 0:
            raise ValueError(f"max_minutes must be a number of minutes, got {max_minutes}")
        progress = {True: "bar", False: "none"}.get(progress, progress)
        check_choice("progress", progress, PROGRESS)
        safe = self.folder.safe if self.folder else lambda: "nothing was saved"
        with self.alone(), stop_requests(safe) as requests:
            if self.folder:
                distributed.first(lambda: self.folder.begin(self.history, self.probes))
            reason = self._train(requests, progress, 60 * max_minutes)
            if reason:  # said here, where no traceback keeps what the processes share alive
                raise self._farewell(reason)
        return self.averaged()

    def alone(self) -> contextlib.AbstractContextManager:
        """Keep the folder for this training, or raise BlockingIOError; `run` and `resume` do so for their own time."""
        return self.folder.alone() if self.folder else contextlib.nullcontext()

    @property
    def over(self) -> bool:
        """Whether nothing is left to do: the last step is taken, or the config's minutes have passed."""
        return self._progress(self.step) >= 1

    def averaged(self) -> MTDiffusion:
        """The model with averaged weights, in evaluation mode."""
        return self.ema.module.eval()

    def save(self) -> None:
        """Replace the folder's checkpoint by the whole state of the training, unless its loss is not finite."""
        self._share_sums()
        state = collected(self)
        distributed.first(lambda: self.folder.write(state, self.history, self.probes))

    def resume(self) -> bool:
        """Go on from the folder's checkpoint; False where there is none.

        With other `steps` than there, it is made longer or shorter: exactly, where the learning rate has not begun to fall.
        After that it can only be made longer; the rate jumps up again, so the result is not that of a training that was to
        have so many steps from the start: `lengthened` says so. Moments and average go on.

        Raises:
            BlockingIOError: another process is at work in the folder.
            ValueError: the checkpoint is damaged, belongs to another config, model or data set, was computed in another
                number of shards, or was to have more steps, or it began with the weights of another model.
        """
        if self.folder is None:
            return False
        with self.alone():
            state = self.folder.read(self.device)
        if state is None:
            return False
        with naming(self.folder.state, "does not fit this training"):
            compare(self, state)
            restore(self, state)
        return True

    def _train(self, requests: list, progress: str, seconds: float) -> float:
        """All steps that are left, until a signal or so many seconds: why it stopped before the end, or 0."""
        config, entered, last = self.config, time.perf_counter(), self.over
        began = entered - self.seconds
        share = config.batch_size // distributed.world()
        part = slice(self.rank * share, (self.rank + 1) * share)  # of each batch, which is this process's
        batches = self.data.batches(config.batch_size, config.seed, self.step, self.device, part)
        objective, agreed = self._objective(), Agreement(self.step)
        hidden, said = progress != "bar" or self.rank > 0, -math.inf
        with tqdm(total=config.steps, initial=self.step, disable=hidden, unit="step", mininterval=0.5) as bar:
            while not last:
                self._one(objective, next(batches))
                self.seconds = time.perf_counter() - began
                last = self.over
                line = self._log(began) if self.step % config.log_every == 0 or last else ""
                if not requests:  # a terminal that closes takes no more
                    bar.update()
                    if line:
                        bar.set_postfix_str(line)
                    if line and progress == "lines" and self.rank == 0 and (last or self.seconds >= said + PAUSE):
                        print(f"step {self.step} of {config.steps}, {self.seconds:.0f} s: {line}", flush=True)
                        said = self.seconds
                if config.probe_every and (self.step % config.probe_every == 0 or last):
                    self._look()
                    began = time.perf_counter() - self.seconds
                over = time.perf_counter() - entered > seconds
                reason = agreed(self.step, requests[0] if requests else TIME * over)
                if self.folder and (self.step % config.save_every == 0 or last or reason):
                    self.save()
                if reason and not last:
                    return reason
        return 0.0

    def _objective(self) -> nn.Module:
        """The loss as a module: compiled, timed and shared among processes as was asked for."""
        dtype = PRECISIONS[self.config.precision]
        if self.device.type == "cuda" and self.rank == 0:
            two = {name: value[:2] for name, value in self.data.sample().items()}
            self._flops = training_flops(self.model, self.loss, two)
            self._peak = matmul_peak(self.device, dtype, repeats=5) * distributed.world()
        if self.compile:
            self.model.backbone.compile()
        objective = Objective(self.model, self.loss, self.device.type, dtype)
        if distributed.world() == 1:
            return objective
        return DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=True)

    def _one(self, objective: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """One optimiser step, added to the next row: of each term as much as heads were scored on. No waiting here."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self._schedule(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        size, parts, terms = self.config.batch_size // self.shards, self.config.accumulate, {}
        shards = [{name: value[k * size : (k + 1) * size] for name, value in batch.items()} for k in range(parts)]
        self._shards, self._counts = shards, {}
        with drawing_from(self.states, self.device):
            for k, (shard, generator) in enumerate(zip(shards, self.generators, strict=True)):
                more = k + 1 < parts and isinstance(objective, DistributedDataParallel)
                with objective.no_sync() if more else contextlib.nullcontext():  # gradients are exchanged once
                    total, each = self._within_memory(objective, shard, generator)
                for name, value in {"total": total, **each}.items():
                    terms[name] = terms.get(name, 0.0) + value.detach() / parts
        counts, self._shards, self._counts = self._counts, None, {}
        gradient = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        self._follow()
        for name, value in {**terms, "gradient": gradient}.items():
            share = counts[name] / size if name in counts else 1.0
            self.sums[name] = self.sums.get(name, 0.0) + share * value
            self.shares[name] = self.shares.get(name, 0.0) + share

    def _within_memory(self, objective: nn.Module, shard: Mapping[str, Tensor], generator: torch.Generator):
        """Loss and gradient of one shard; where the memory does not suffice, what would."""
        try:
            total, terms = objective(shard, generator)
            (total / self.config.accumulate).backward()
        except torch.OutOfMemoryError as error:
            text = f"out of memory at {len(next(iter(shard.values())))} examples at a time"
            kept = f"; the last checkpoint is in {self.folder}" if self.folder and self.folder.step is not None else ""
            more = f"try accumulate = {2 * self.config.accumulate}, which computes a batch in smaller parts"
            raise torch.OutOfMemoryError(f"{text}: {more}, or a smaller batch_size{kept}") from error
        return total, terms

    def _multitask(self, model: MTDiffusion, batch: Mapping[str, Tensor], generator: torch.Generator) -> Loss:
        """The loss of a shard, of which the mean over all shards and processes is the loss of the whole batch."""
        c = self.config
        options = {"drop": c.drop, "give": c.give, "missing": self.missing}
        if self._shards:  # the first of them in this step: none has drawn yet
            pairs = zip(self._shards, self.generators, strict=True)
            found = [scored(model, shard, **options, generator=generator) for shard, generator in pairs]
            counts = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
            self._shards, self._counts = None, distributed.mean(counts)
        options |= {"weights": c.weights, "levels": c.levels, "counts": self._counts}
        return multitask_loss(model, batch, **options, generator=generator)

    def _progress(self, step: int) -> float:
        """Share of the steps that is behind, or of the minutes where that is more."""
        limit = math.inf if self.config.minutes is None else 60 * self.config.minutes
        return max(step / self.config.steps, self.seconds / limit)

    def _schedule(self, step: int) -> float:
        """Learning rate over its peak: a linear rise, held, and at the end a fall to 0 by 1 - sqrt (Haegele et al. 2024)."""
        rise = min(1.0, (step + 1) / max(1, self.config.warmup))
        left = (1 - self._progress(step)) / max(1e-9, self.config.decay)
        return rise * (1 - math.sqrt(max(0.0, 1 - left)))

    @torch.no_grad()
    def _follow(self) -> None:
        """The averaged weights after step k: EMA with decay min(ema, (1 + k) / (10 + k)), from the weights after the first.

        By hand, because `AveragedModel.update_parameters` copies its counter to the device, and waits for that.
        """
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step)) if self.ema.n_averaged else 0.0
        torch._foreach_lerp_(list(self.ema.module.parameters()), list(self.model.parameters()), 1 - decay)
        for averaged, current in zip(self.ema.module.buffers(), self.model.buffers(), strict=True):
            averaged.copy_(current)
        self.ema.n_averaged += 1

    def _log(self, began: float) -> str:
        """Average the terms since the last row, over processes too, into a new one; returns it for the progress bar."""
        self._share_sums()
        self.seconds = time.perf_counter() - began  # the device has caught up
        row = {name: float(value) / max(float(self.shares[name]), 1e-9) for name, value in self.sums.items()}
        self.sums, self.shares = {}, {}
        last = self.history[-1] if self.history else {"step": 0, "seconds": 0.0}
        rate = (self.step - last["step"]) * self.config.batch_size / max(self.seconds - last["seconds"], 1e-9)
        self._add_row(HISTORY, self.history, row)
        share = f" ({rate * self._flops / self._peak:.0%} of peak)" if self._flops else ""
        text = " ".join(f"{name} {value:.3f}" for name, value in row.items() if name != "gradient")
        return f"{text} {rate:,.0f}/s{share}"

    def _look(self) -> None:
        """Note what the probe measures of the averaged model, draw from it, and keep it if it is the best so far."""
        if self.rank:
            return
        model = self.averaged()
        if self.probe:
            found = dict(self.probe(model))
            if {"step", "seconds"} & found.keys() or (self.best and self.best not in found):
                text = f"a probe gives figures of other names than step and seconds, {self.best!r} too"
                raise ValueError(f"{text}: {list(found)}")
            before, figure = [row[self.best] for row in self.probes if self.best], found.get(self.best, math.nan)
            self._add_row(PROBES, self.probes, found)
            if self.folder and not math.isnan(figure) and not any(figure >= old for old in before):  # NaN is the worst
                with self.folder.writing():
                    model.save(self.folder.best, {"step": self.step, self.best: figure})
        if self.draw and self.folder:
            with self.folder.writing():
                self.draw(model, self.folder.picture(self.step))

    def _add_row(self, file: str, rows: list, found: Mapping[str, float]) -> None:
        """Add figures of this step to rows, and to their file."""
        rows.append({"step": self.step, "seconds": round(self.seconds, 2), **found})
        if self.folder and self.rank == 0:
            self.folder.append(file, rows[-1])
        if self.log and self.rank == 0:
            self.log(rows[-1])

    def _share_sums(self) -> None:
        """Average the sums over processes; they have to be finite."""
        self.sums = distributed.mean(self.sums)
        sums = {name: float(value) for name, value in self.sums.items()}
        if not all(map(math.isfinite, sums.values())):
            kept = f"; the last checkpoint in {self.folder} is from before" if self.folder else ""
            raise FloatingPointError(f"the loss is not finite by step {self.step}: {sums}{kept}. Try a lower lr")

    def _farewell(self, reason: float) -> Interrupted:
        """What to raise for a stop after this step, and why."""
        kept = f"saved in {self.folder}: run the same command again to go on" if self.folder else "nothing was saved"
        why = "time is over" if reason == TIME else signal.Signals(int(reason)).name
        text = f"{why}: stopped at step {self.step} of {self.config.steps}; {kept}"
        return OutOfTime(text) if reason == TIME else Interrupted(text, int(reason))


class Objective(nn.Module):
    """A loss as a module, which is what processes can share; with torch.bfloat16 it computes products in that."""

    def __init__(self, model: MTDiffusion, loss: Callable, device: str, dtype: torch.dtype):
        super().__init__()
        self.model, self.loss, self.kind, self.dtype = model, loss, device, dtype

    def forward(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and the terms without their gradients."""
        with torch.autocast(self.kind, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = self.loss(self.model, batch, generator)
        return loss.total, {name: term.detach() for name, term in loss.terms.items()}
