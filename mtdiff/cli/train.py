"""mtdiff train: one variant of an experiment, from the start or from where it stopped."""

import math
import re
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
import tyro

from mtdiff import distributed
from mtdiff.cli.common import DEVICE, Name, chosen_data, save_picture, trained_model, usable_device
from mtdiff.cli.own import Imports, chosen_backbone
from mtdiff.datasets.imagenet.packing import packs
from mtdiff.datasets.prepared import prepared
from mtdiff.experiments import EXPERIMENTS, budget
from mtdiff.files import CARD, WEIGHTS, check_weights, imports
from mtdiff.model import MTDiffusion
from mtdiff.provenance import provenance
from mtdiff.reading import read_json
from mtdiff.sampling import sample
from mtdiff.stopping import Interrupted
from mtdiff.training import PROGRESS, Trainer

PATHS = "For image-label and imagenet also the path of a folder of pictures, or of what data prepare wrote."


def _choices(what: str) -> str:
    """The data, or the variants, of every experiment, those with the same ones together."""
    found: dict[tuple, list[str]] = {}
    for name, experiment in EXPERIMENTS.items():
        found.setdefault(tuple(getattr(experiment, what)), []).append(name)
    lists = [f"{', '.join(names)}: {first} (default), {', '.join(rest)}" for (first, *rest), names in found.items()]
    return "; ".join(lists) + "."


def _steps(kind: str) -> str:
    """A budget with the least and the largest number of steps that it means."""
    found = [e.config(data, variant, kind).steps for e in EXPERIMENTS.values() for data in e.data for variant in e.variants]
    return f"{kind} ({min(found)} to {max(found)} steps)"


@dataclass
class Train:
    """Train one variant of an experiment; the same command again goes on where it stopped."""

    LIMITS: ClassVar = {"max_minutes": (0, math.inf), "look_every": (0, 10**9), "size": (8, 4096), "seed": (0, 2**32)}

    experiment: Name  # What to train.
    data: Annotated[str | None, tyro.conf.arg(help=f"What to train on. {_choices('data')} {PATHS}")] = None
    size: int | None = None  # Height and width at which a folder of pictures is packed; default 32.
    # A trained model to begin with, a folder or a name: its weights, but those of labels of other classes.
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    variant: Annotated[str | None, tyro.conf.arg(help=_choices("variants"))] = None
    budget: Annotated[
        Literal["quick", "full"] | None,
        tyro.conf.arg(help=f"How long: {_steps('quick')} or {_steps('full')}; default: variable MTDIFF_BUDGET, or quick."),
    ] = None
    # Optimiser steps, instead of the budget's. Others than a run in the same folder had make it longer or shorter: without a
    # trace before the last fifth, over which the learning rate falls; after that only longer, and the card says so.
    steps: int | None = None
    # The training is over after so long, if its steps are not taken before: the learning rate falls to 0 by then, and the
    # model is saved. It goes by the clock, so it is not exactly reproducible. (--max-minutes interrupts.)
    minutes: float | None = None
    batch_size: int | None = None  # Examples per step, instead of the budget's.
    # Learning rate, instead of the budget's; it is held, and falls to 0 over the last fifth of the steps.
    lr: float | None = None
    # Parts in which a batch is computed, one after the other, where memory is short: the same steps.
    accumulate: int | None = None
    precision: Literal["fp32", "bf16"] | None = None  # Of the network's products; bf16 is faster on a GPU.
    # The network: unet, dit, or MODULE:CLASS, an mt.Backbone of your own that is made as CLASS(space); with arguments, too:
    # "unet(base=32)", "dit(width=64)".
    backbone: str = "unet"
    imports: Imports = ()
    seed: int = 0  # Seed of the initial weights, batches and noise.
    out: Path | None = None  # Folder of the run; default runs/EXPERIMENT/DATA/VARIANT-SEED, or VARIANT-BACKBONE-SEED.
    # Where to train: cpu, cuda or cuda:1 ... (under torchrun cuda is each process's own GPU).
    device: str = DEVICE
    compile: bool = False  # Let torch.compile make one program of the network: faster on a GPU, after a minute.
    # Interrupt the training after so long, whatever is left of it; the same command goes on. (With --minutes it is over.)
    max_minutes: float = math.inf
    # Steps between two grids of samples, in the run's samples/, and two rows of the experiment's probe.
    look_every: int | None = None
    save_every: int | None = None  # Steps between two checkpoints.
    keep: int = 1  # How many checkpoints stay.
    # How far it is: a bar, lines (for a file), or none; default: a bar on a terminal, else lines.
    progress: Literal[PROGRESS] | None = None

    def run(self) -> None:
        """Train as one of several processes, or alone; the first one saves the averaged model, and says where."""
        experiment = EXPERIMENTS[self.experiment]
        variant = experiment.variant(self.variant)
        names = ("steps", "minutes", "batch_size", "lr", "accumulate", "precision", "save_every", "seed")
        chosen = {name: getattr(self, name) for name in names} | {"probe_every": self.look_every}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        options = {"compile": self.compile, "keep": self.keep, "draw": _grid if self.look_every else None}
        options["backbone"] = chosen_backbone(self.backbone)
        with distributed.joined(usable_device(self.device)) as device:
            options["parent"] = None if self.from_ is None else trained_model(self.from_, "cpu", self.imports)
            data = distributed.first(lambda: chosen_data(experiment, self.data, self.size, tell=True))
            config = experiment.config(data, variant, self.budget or budget())
            if data not in experiment.data:  # of few pictures a batch is all
                config.batch_size = min(config.batch_size, len(prepared(data, "train", ("image",))))
            config = replace(config, **chosen)
            named = re.sub(r"[^\w.]+", "-", self.backbone.rpartition(":")[2]).strip("-")
            which = variant if self.backbone == "unet" else f"{variant}-{named}"
            out = self.out or Path("runs") / self.experiment / Path(data).name / f"{which}-{self.seed}"
            trainer = experiment.trainer(data, variant, config, out, device, **options)
            with trainer.alone():
                self._go_on(trainer, out, variant, data)

    def _go_on(self, trainer: Trainer, out: Path, variant: str, data: str) -> None:
        """Train from where the folder stands, and save the model with its card."""
        say = print if distributed.rank() == 0 else lambda *_: None
        config, resumed = trainer.config, trainer.resume()
        if (out / CARD).is_file() and not resumed:
            raise ValueError(f"{out} holds a model that was not trained there: use another folder")
        if trainer.over and _is_saved(out, trainer.step):
            say(f"{out} is already trained: step {trainer.step} of {config.steps}")
            return
        if resumed:
            longer = "".join(f", longer than the {steps} it had at step {step}" for step, steps in trainer.lengthened)
            say(f"going on at step {trainer.step} of {config.steps} ({out}){longer}")
        elif self.from_ is not None:
            new = trainer.model.card.get("new modalities")
            kept = f"new are codes, embedding and head of {', '.join(new)}, all else is kept" if new else "all is kept"
            say(f"begins with the weights of {self.from_}: {kept}")
        try:
            model = trainer.run(self.progress or ("bar" if sys.stderr.isatty() else "lines"), self.max_minutes)
        except Interrupted as stopped:
            if stopped.number == signal.SIGINT:  # whoever pressed Ctrl-C does not want what would come next
                raise
            say(str(stopped))
            return
        if distributed.rank():
            return
        training = {**vars(config), "processes": distributed.world(), "wall_seconds": round(trainer.seconds, 1)}
        taken = {} if config.minutes is None else {"taken": trainer.step}  # of the steps that there were time for
        taken |= {} if self.backbone == "unet" else {"backbone": self.backbone}
        card = {
            "experiment": self.experiment,
            "data": {"name": trainer.data.name, "sha256": trainer.data.hash(), "examples": len(trainer.data)},
            "variant": variant,
            "training": training | taken | ({"lengthened": trainer.lengthened} if trainer.lengthened else {}),
            **({"probes": trainer.probes} if trainer.probes else {}),
            "provenance": provenance(str(trainer.device)),
        }
        model.save(out, card)
        say(f"trained {trainer.step} steps in {trainer.seconds:.0f} s; the model is in {out}")
        there = data in EXPERIMENTS[self.experiment].data or Path(data).parent == packs()
        own = " ".join(["", "--import", *found]) if (found := imports(model)) else ""
        judge = f"mtdiff evaluate {self.experiment} --models {out}" + ("" if there else f" --data {data}") + own
        say(f"look at it:  mtdiff sample {out}{own}      judge it:  {judge}")


def _grid(model: MTDiffusion, path: Path) -> None:
    """Sixteen examples of a model in training, from the same noise every time."""
    drawn = sample(model, 16, steps=25, generator=torch.Generator(model.device).manual_seed(0))
    save_picture(model, {name: value.cpu() for name, value in drawn.items()}, path)


def _is_saved(folder: Path, steps: int) -> bool:
    """Whether the folder holds the model of so many steps, whole."""
    try:
        card = read_json(folder / CARD, "is not a model card")
        check_weights(folder, card)
        training = card["training"]
        return training.get("taken", training["steps"]) == steps and (folder / WEIGHTS).is_file()
    except (AttributeError, FileNotFoundError, KeyError, TypeError, ValueError):
        return False
