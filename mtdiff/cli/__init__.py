"""The command line: mtdiff train | sample | evaluate, over the same experiments as the notebooks; mtdiff data and course."""

import csv
import io
import itertools
import json
import math
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import numpy as np
import torch
import tyro

from mtdiff import distributed
from mtdiff.checkpoint import load
from mtdiff.comparison import mean_and_error
from mtdiff.datasets.decoding import decoded
from mtdiff.datasets.imagenet import ARCHIVES, get, pack, prepare
from mtdiff.datasets.imagenet.layouts import SPLITS
from mtdiff.datasets.imagenet.packing import LABELS, packs, read_meta
from mtdiff.datasets.prepared import prepared
from mtdiff.datasets.shapes import VOCABULARY, read_caption
from mtdiff.experiments import EXPERIMENTS, Experiment, budget, matched, recipe, trained_on
from mtdiff.experiments.report import markdown
from mtdiff.files import CARD, WEIGHTS, check_weights, to_json, write_atomic
from mtdiff.modalities import Caption, Image, Label, Mask
from mtdiff.model import MTDiffusion
from mtdiff.provenance import provenance
from mtdiff.reading import check_types, read_json
from mtdiff.sampling import RULES, SAMPLERS, sample
from mtdiff.stopping import Interrupted
from mtdiff.training import Trainer

LIMITS = {
    "Sample.n": (1, 1024), "Evaluate.n": (4, 10**7), "Sample.repeats": (1, 1000), "Sample.guidance": (-1000, 1000),
    "Train.max_minutes": (0, math.inf), "Train.look_every": (0, 10**9), "Prepare.size": (8, 4096),
    "Train.size": (8, 4096), "Train.seed": (0, 2**32), "Sample.seed": (0, 2**32), "Evaluate.seed": (0, 2**32),
    "Grade.minutes": (0.01, 10**4),
}  # fmt: skip
"""Ranges of numbers that nobody else checks at once, and in these words."""
PATHS = "For image-label and imagenet also the path of a folder of pictures, or of what data prepare wrote."
FILES = ("Sample.out", "Evaluate.out", "Grade.out")
"""Places to write that are a file; those of other commands are a folder."""


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


Name = Annotated[Literal[tuple(EXPERIMENTS)], tyro.conf.Positional]


@dataclass
class Train:
    """Train one variant of an experiment; the same command again goes on where it stopped."""

    experiment: Name  # What to train.
    data: Annotated[str | None, tyro.conf.arg(help=f"What to train on. {_choices('data')} {PATHS}")] = None
    size: int | None = None  # Height and width at which a folder of pictures is packed; default 32.
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
    seed: int = 0  # Seed of the initial weights, batches and noise.
    out: Path | None = None  # Folder of the run; default runs/EXPERIMENT/DATA/VARIANT-SEED.
    # Where to train: cpu, cuda or cuda:1 ... (under torchrun cuda is each process's own GPU).
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    compile: bool = False  # Let torch.compile make one program of the network: faster on a GPU, after a minute.
    # Interrupt the training after so long, whatever is left of it; the same command goes on. (With --minutes it is over.)
    max_minutes: float = math.inf
    # Steps between two grids of samples, in the run's samples/, and two rows of the experiment's probe.
    look_every: int | None = None
    save_every: int | None = None  # Steps between two checkpoints.
    keep: int = 1  # How many checkpoints stay.

    def run(self) -> None:
        """Train as one of several processes, or alone; the first one saves the averaged model, and says where."""
        experiment = EXPERIMENTS[self.experiment]
        variant = experiment.variant(self.variant)
        names = ("steps", "minutes", "batch_size", "lr", "accumulate", "precision", "save_every", "seed")
        chosen = {name: getattr(self, name) for name in names} | {"probe_every": self.look_every}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        options = {"compile": self.compile, "keep": self.keep, "draw": _grid if self.look_every else None}
        with distributed.joined(_device(self.device)) as device:
            data = distributed.first(lambda: _data(experiment, self.data, self.size, tell=True))
            config = experiment.config(data, variant, self.budget or budget())
            if data not in experiment.data:  # of few pictures a batch is all
                config.batch_size = min(config.batch_size, len(prepared(data, "train", ("image",))))
            config = replace(config, **chosen)
            out = self.out or Path("runs") / self.experiment / Path(data).name / f"{variant}-{self.seed}"
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
        try:
            model = trainer.run(max_minutes=self.max_minutes)
        except Interrupted as stopped:
            if stopped.number == signal.SIGINT:  # whoever pressed Ctrl-C does not want what would come next
                raise
            say(str(stopped))
            return
        if distributed.rank():
            return
        training = {**vars(config), "processes": distributed.world(), "wall_seconds": round(trainer.seconds, 1)}
        taken = {} if config.minutes is None else {"taken": trainer.step}  # of the steps that there were time for
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
        judge = f"mtdiff evaluate {self.experiment} --models {out}" + ("" if there else f" --data {data}")
        say(f"look at it:  mtdiff sample {out}      judge it:  {judge}")


@dataclass
class Sample:
    """Draw from a trained model into a picture, with some modalities given if you like."""

    # A folder that train wrote, or the name of a shipped model.
    model: Annotated[str, tyro.conf.Positional] = "image-label/digits"
    n: int = 20  # How many examples.
    # Known modalities as NAME=VALUE: a class (label=3), words (caption="grey small red circle"), a picture file
    # (source=night.png), an example of the held-out data (source=test:7).
    given: tuple[str, ...] = ()
    rule: Literal[RULES] | None = None  # How given values act; default: what the model's card says.
    sampler: Literal[tuple(SAMPLERS)] | None = None  # The solver of the reverse chain; default: what the model's card says.
    steps: int = 50  # Intervals of the reverse chain.
    repeats: int = 1  # How often each interval is taken, with noise put back in between.
    guidance: float = 1.0  # Guidance scale of the rules bayes and conditioned; 1 is the plain conditional.
    data: str | None = None  # What test:7 is an example of; default: what the model was trained on.
    seed: int = 0  # Seed of the noise.
    out: Path = Path("samples.png")  # The picture to write.
    device: str = "cpu"  # Where to sample: cpu or cuda.

    def run(self) -> None:
        """Draw, write the picture, and say what is in it."""
        model = _model(self.model, _device(self.device))
        pairs = dict(text.partition("=")[::2] for text in self.given)
        if len(pairs) < len(self.given):
            raise ValueError(f"--given {' '.join(self.given)}: one value for each modality")
        given = {}
        for name, value in pairs.items():
            try:
                given[name] = self._given(model, name, value).to(self.device)
            except ValueError as error:
                raise ValueError(f"--given {name}={value}: {error}") from None
        generator = torch.Generator(self.device).manual_seed(self.seed)
        drawn = sample(
            model, self.n, given=given, rule=self.rule, sampler=self.sampler, steps=self.steps, repeats=self.repeats,
            guidance=self.guidance, generator=generator,
        )  # fmt: skip
        _save_grid(model, drawn, self.out)
        for name, modality in model.modalities.items():
            if isinstance(modality, Label):
                print(f"{name}s: {', '.join(modality.names[k] for k in drawn[name].tolist())}")
            if isinstance(modality, Caption):
                print(f"{name}s:", *modality.text(drawn[name]), sep="\n  ")
        print(f"picture: {self.out}")

    def _given(self, model: MTDiffusion, name: str, value: str) -> torch.Tensor:
        """A class by its name or number, a caption in words, a picture file, or a held-out example."""
        if not value:
            raise ValueError("expected NAME=VALUE")
        if name not in model.modalities:
            raise ValueError(f"unknown modality {name!r}; this model has {list(model.modalities)}")
        modality = model.modalities[name]
        if value.startswith("test:"):
            return _held_out(model, name, value[5:], self.data)
        if isinstance(modality, Label):
            if modality.names.count(value) != 1:
                problem = "is more than one of" if value in modality.names else "is not one of"
                raise ValueError(f"{value!r} {problem} {modality.names}")
            return torch.tensor([modality.names.index(value)])
        if isinstance(modality, Caption):
            of_shapes = tuple(modality.vocabulary) == VOCABULARY
            return modality.tokens([read_caption(value, self.seed + k) for k in range(self.n)] if of_shapes else value)
        if isinstance(modality, Image | Mask):
            return _picture(modality, value)
        raise ValueError(f"only classes, captions, pictures and masks can be given, or an example as {name}=test:K")


def _held_out(model: MTDiffusion, name: str, index: str, data: str | None) -> torch.Tensor:
    """One value of the held-out set that the model's experiment is judged on."""
    experiment = EXPERIMENTS.get(model.card.get("experiment"))
    if experiment is None:
        raise ValueError("the model's card names no experiment whose held-out data could be used")
    held_out = matched(model, experiment.on(_data_of(model, experiment, data))("test"), elsewhere=True)
    if name not in held_out.values:
        raise ValueError(f"the held-out data have {list(held_out.values)}")
    if not index.isdecimal() or int(index) >= len(held_out):
        raise ValueError(f"expected an example in test:0..test:{len(held_out) - 1}")
    return held_out[torch.tensor([int(index)])][name]


def _data_of(model: MTDiffusion, experiment: Experiment, name: str | None) -> str:
    """The data of this name or path, else what the model's card says that it was trained on, if that is there."""
    trained = (trained_on(model) or "").split("/")[0]
    if name is None and trained and experiment.packed and (packs() / trained).is_dir():
        name = trained if trained in experiment.data else str(packs() / trained)
    name = name or next((key for key in experiment.data if re.fullmatch(rf"{key}(-[a-z]+)?", trained)), None)
    if name is None:
        raise ValueError(f"the model's card names no data of {experiment.name} ({trained_on(model)}): add --data")
    return name if name in experiment.data else _data(experiment, name, model.space[-1])


def _picture(modality: Image | Mask, path: str) -> torch.Tensor:
    """A picture file, read as `prepare` reads it, as one image in [-1, 1], or as a mask of zeros and ones (white is 1)."""
    channels, height, width = (1, *modality.size) if isinstance(modality, Mask) else modality.shape
    if channels not in (1, 3):
        raise ValueError(f"a picture file has 1 or 3 channels, {modality.name!r} has {channels}")
    try:
        with decoded(path) as (picture, _):
            picture = picture.convert("L") if channels == 1 else picture
    except Exception as error:  # a broken file makes decoders raise anything
        raise ValueError(f"{path} cannot be read as a picture ({error})") from None
    if picture.size != (width, height):
        raise ValueError(f"the picture is {picture.width}x{picture.height}, expected {width}x{height}")
    value = torch.from_numpy(np.array(picture)).float().reshape(1, height, width, channels).movedim(-1, 1)
    return (value > 127).float() if isinstance(modality, Mask) else value / 127.5 - 1


@dataclass
class Evaluate:
    """Judge trained models (several seeds of one variant are averaged) and write the figures as JSON."""

    experiment: Name  # What the models were trained for.
    # Folders that train wrote, or names of shipped models; default: the shipped model of the experiment and data.
    models: tuple[str, ...] = ()
    data: str | None = None  # What to judge on, as in train; default: what the first model was trained on.
    # Judge on other data than the models were trained on, or where classes are numbered otherwise; matched by name.
    elsewhere: bool = False
    n: int = 2000  # Samples for each figure.
    # imagenet: who compares images. inception (FID and KID), dinov2-small, dinov2-base, clip-b32, clip-b16, a trained model
    # of images and labels, or MODULE:FUNCTION; default: pixels at 8x8.
    features: str | None = None
    device: str = "cpu"  # Where to evaluate: cpu or cuda.
    seed: int = 0  # Seed of the first model's noise; the others follow.
    out: Path | None = None  # The JSON file to write; default: print only.
    publish: Path | None = None  # Also save the first model here, in half precision, with its own figures in its card.

    def run(self) -> None:
        """Evaluate every model, average by variant, print and write."""
        experiment, device = EXPERIMENTS[self.experiment], _device(self.device)
        if self.features and "features" not in experiment.options:
            able = " and ".join(name for name, each in EXPERIMENTS.items() if each.options)
            raise ValueError(f"--features is for {able}, {self.experiment} has judges of its own")
        names = self.models or (f"{self.experiment}/{_data(experiment, self.data)}",)
        models = [(name, self._trained(name)) for name in names]
        known = self.data or (None if trained_on(models[0][1]) else next(iter(experiment.data)))
        data = _data_of(models[0][1], experiment, known)
        test = experiment.on(data)("test")
        if len(test) < LIMITS["Evaluate.n"][0]:
            raise ValueError(f"{data} holds out {len(test)} pictures: to judge takes {LIMITS['Evaluate.n'][0]} at least")
        for name, model in models:
            try:
                matched(model, test, self.elsewhere)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        _refuse_repeats([(name, model.card) for name, model in models])
        rows = [self._row(name, model, data, k) for k, (name, model) in enumerate(models)]
        variants: dict[str, list] = {}
        for row in rows:
            variants.setdefault(row["variant"], []).append(row["metrics"])
        result = {"experiment": self.experiment, "data": Path(data).name, "n": self.n, "provenance": provenance(device)}
        averages = {name: _average(found) for name, found in variants.items()}
        result = _rounded({**result, "variants": averages, "runs": rows})
        if self.out:
            write_atomic(self.out, (to_json(result, indent=1) + "\n").encode())
        print(markdown([result]), end=f"written: {self.out}\n" if self.out else "")

    def _trained(self, name: str) -> MTDiffusion:
        """A model that was trained for this experiment."""
        model = _model(name, self.device)
        if model.card.get("experiment", self.experiment) != self.experiment:
            raise ValueError(f"{name} was trained for {model.card['experiment']}, not for {self.experiment}")
        return model

    def _row(self, name: str, model: MTDiffusion, data: str, k: int) -> dict:
        """The figures of the k-th model; the first is published, if any, and judged as it is there: rounded."""
        published = self.publish if k == 0 else None
        if published:
            model = load(model.save(published, half=True), self.device)
        options = {"features": self.features} if self.features else {}
        metrics = EXPERIMENTS[self.experiment].evaluate(model, data, self.seed + k, self.n, **options)
        print(f"{name}: {to_json(_rounded(metrics))}")
        row = {"model": name, "variant": model.card.get("variant", name), "card": model.card, "metrics": metrics}
        if published:
            model.save(published, {"metrics": {"n": self.n, "seed": self.seed, **_rounded(metrics)}}, half=True)
        return row


@dataclass
class Get:
    """Fetch and unpack an archive; a broken transfer goes on, and what is there already is left alone."""

    # What to fetch: Tiny-ImageNet (237 MiB), or Imagenette at 160 pixels (94 MiB), 320 (326 MiB) or full size (1.5 GiB).
    name: Annotated[Literal[tuple(ARCHIVES)], tyro.conf.Positional]
    out: Path = Path("data/raw")  # Folder to unpack it in.

    def run(self) -> None:
        """Fetch it and say what to do next."""
        folder = get(self.name, self.out)
        pack = f"mtdiff data prepare {folder} --size 64 --out data/prepared/{self.name}64"
        print(f"the images are in {folder}", f"pack them:  {pack}", sep="\n")


@dataclass
class Prepare:
    """Pack images at one size for training: your own, or as the archive of Tiny-ImageNet, Imagenette or ILSVRC unpacks."""

    root: Annotated[Path, tyro.conf.Positional]  # The folder with the images, or with train/ and val/.
    out: Path  # Folder to write.
    size: int = 64  # Height and width: the centred square of each image, averaged over areas.
    classes: tuple[str, ...] = ()  # WordNet ids or names to keep, in the order of their labels; default: all.
    limit: int | None = None  # At most so many images of each class.

    def run(self) -> None:
        """Pack both splits and say what is in them."""
        prepare(self.root, self.out, self.size, self.classes or None, limit=self.limit)
        _tell(self.out)
        print(f"train on them:  mtdiff train imagenet --data {self.out}")


@dataclass
class Data:
    """Fetch real images and pack them for training."""

    action: tyro.conf.OmitSubcommandPrefixes[Get | Prepare]

    def run(self) -> None:
        """Do what was asked for."""
        self.action.run()


@dataclass
class Students:
    """Write the notebooks for students: stubs and checks, without solutions and outputs."""

    # A new folder: notebooks/, and the result files that they read in data/.
    out: Annotated[Path, tyro.conf.Positional]
    only: tuple[str, ...] = ()  # Numbers or names of notebooks, such as 00 05; default: all.

    def run(self) -> None:
        """Write them and say where."""
        written = _course().hand_out(self.out, self.only, solutions=isinstance(self, Solutions))
        print(f"{len(written)} notebooks are in {written[0].parent}")


@dataclass
class Solutions(Students):
    """Write the notebooks for teachers: executed, with solutions in view."""


@dataclass
class Grade:
    """Run returned notebooks, each in a process of its own, and say which exercises the course's checks pass.

    A process is no sandbox: what students wrote runs with your rights, so use an account or a container that may be lost.
    """

    # Notebooks, in subfolders named after students or in files named after both: anna/05_x.ipynb, 05_x_anna.ipynb.
    folder: Annotated[Path, tyro.conf.Positional]
    minutes: float = 10.0  # Time for each notebook, as a whole.
    out: Path | None = None  # Also write the table: a .csv or a .json file.

    def run(self) -> None:
        """Grade, print a line for each exercise, and write the table."""
        course, kind = _course(), self.out.suffix if self.out else ".csv"
        if kind not in (".csv", ".json"):
            raise ValueError(f"--out {self.out} must end in .csv or .json")
        rows = []
        for row in course.grade(self.folder, self.minutes):
            rows.append(vars(row))
            word = "passed" if row.passed else "open"
            print(f"{row.who:20} {row.notebook:32} {row.exercise} {word:6}  {row.message}", flush=True)
        print(f"{sum(row['passed'] for row in rows)} of {len(rows)} exercises passed")
        if self.out:
            text = io.StringIO(newline="")
            table = csv.DictWriter(text, rows[0])
            table.writeheader()
            table.writerows(rows)
            write_atomic(self.out, (to_json(rows, indent=1) + "\n" if kind == ".json" else text.getvalue()).encode())


@dataclass
class Course:
    """Hand the course out, for students or for teachers, and grade what returns."""

    action: tyro.conf.OmitSubcommandPrefixes[Students | Solutions | Grade]

    def run(self) -> None:
        """Do what was asked for."""
        self.action.run()


def _course():
    """The module, if there is all that it needs."""
    try:
        from mtdiff import course
    except ImportError as error:
        raise ImportError(f"the course needs {error.name}: pip install 'mtdiff[notebooks]'") from None
    return course


def _save_grid(model: MTDiffusion, drawn: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a picture of what was drawn."""
    try:
        from mtdiff.plots import save_grid
    except ImportError as error:
        raise ImportError(f"drawing needs {error.name}: pip install 'mtdiff[notebooks]'") from None
    labels = {name: m.names for name, m in model.modalities.items() if isinstance(m, Label)}
    save_grid(drawn, labels, path)


def _grid(model: MTDiffusion, path: Path) -> None:
    """Sixteen examples of a model in training, from the same noise every time."""
    drawn = sample(model, 16, steps=25, generator=torch.Generator(model.device).manual_seed(0))
    _save_grid(model, {name: value.cpu() for name, value in drawn.items()}, path)


def _data(experiment: Experiment, name: str | None, size: int | None = None, tell: bool = False) -> str:
    """The chosen data of an experiment, its first unless a name is given; or the pack of a folder, which it may make now."""
    name = name or next(iter(experiment.data))
    if name in experiment.data:
        if size is not None:
            raise ValueError(f"size is for a folder of pictures, {name} has its own")
        return name
    if not experiment.packed or not Path(name).is_dir():
        path = ", and there is no such folder" if experiment.packed else ""
        raise ValueError(f"{experiment.name} has no data {name!r}{path}; it has {list(experiment.data)}")
    recipe(size or 32)
    folder = pack(name, size)
    if tell:
        _tell(folder)
    return str(folder)


def _tell(folder: Path) -> None:
    """Say what a pack holds, what is held out, and what was left out of it, and why."""
    for split in SPLITS:
        meta = read_meta(folder / split)
        counts = np.bincount(np.load(folder / split / LABELS), minlength=len(meta["names"]))
        each = ", ".join(f"{name} {count:,}" for name, count in zip(meta["names"][:6], counts, strict=False))
        each += f" and {len(counts) - 6} more" if len(counts) > 6 else ""
        text = f"{split}: {meta['count']:,} images of {len(counts)} class{'es' * (len(counts) > 1)} ({each})"
        numbers = {"with a box": meta["boxes"], "enlarged": meta["enlarged"]}
        text += "".join(f", {number:,} {what}" for what, number in numbers.items() if number)
        text += "".join(f", {name}" for name in ["captions"] * bool(meta.get("captions")) + (meta.get("beside") or []))
        print(f"{text}; {meta['layout']}; sha256 {meta['sha256'][:12]}")
        for what in ("skipped", "left_out"):
            for path, why in meta[what][:10]:
                print(f"  {what.replace('_', ' ')} {path}: {why}")
            if len(meta[what]) > 10:
                print(f"  and {len(meta[what]) - 10} more, see {folder / split / 'meta.json'}")
    print(f"the packed images are in {folder}")


def _model(name: str, device: str) -> MTDiffusion:
    """A trained model, whose card names what it was trained for as commands can use it, if at all."""
    model = load(name, device)
    check_types(model.card, {"experiment": str, "variant": str}, f"the card of {name}")
    return model


def _check(command) -> None:
    """Refuse numbers out of range, and places that cannot be written, before anything is computed."""
    for field, value in vars(command).items():
        key, option = f"{type(command).__name__}.{field}", f"--{field.replace('_', '-')}"
        low, high = LIMITS.get(key, (None, None))
        if low is not None and value is not None and not low <= value <= high:
            raise ValueError(f"{option} must be in {low}..{high}, got {value}")
        if field in ("out", "publish") and value is not None:
            _check_place(option, value, key not in FILES)


def _check_place(option: str, path: Path, folder: bool) -> None:
    """Refuse a path where no file, or no folder, can come to be."""
    if path.exists() and not (path.is_dir() if folder else path.is_file()):
        raise ValueError(f"{option} {path} is there, and is no {'folder' if folder else 'regular file'}")
    above = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not above.is_dir() and above != path.absolute():
        raise ValueError(f"{option} {path} cannot be made: {above} is no folder")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"{option} {path} cannot be written: no permission at {above}")


def _device(name: str) -> str:
    """The device's name, if it is there and has float64, in which samplers and bounds compute."""
    try:
        float(torch.zeros(1, dtype=torch.float64, device=name))
    except (AssertionError, ImportError, RuntimeError, TypeError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None
    return name


def _is_saved(folder: Path, steps: int) -> bool:
    """Whether the folder holds the model of so many steps, whole."""
    try:
        card = read_json(folder / CARD, "is not a model card")
        check_weights(folder, card)
        training = card["training"]
        return training.get("taken", training["steps"]) == steps and (folder / WEIGHTS).is_file()
    except (AttributeError, FileNotFoundError, KeyError, TypeError, ValueError):
        return False


def _refuse_repeats(cards: Sequence[tuple[str, Mapping]]) -> None:
    """Raise ValueError where models of one variant, whose figures are averaged, are not one training with several seeds."""
    free = ("seed", "taken", "accumulate", "processes", "wall_seconds", "log_every", "save_every", "probe_every")
    runs = []
    for name, card in cards:
        training, data = (part if isinstance(part := card.get(key), Mapping) else {} for key in ("training", "data"))
        said = {"data": data.get("name"), **{key: value for key, value in training.items() if key not in free}}
        runs.append((name, card.get("variant", name), training.get("seed"), said))
    for (first, variant, seed, one), (second, other, its_seed, two) in itertools.combinations(runs, 2):
        if variant != other:
            continue
        if seed == its_seed:
            text = f"{first} and {second} are not two seeds of one training: their cards say seed {seed}"
            raise ValueError(f"{text}. Repeats have no error between them: evaluate one")
        if different := [f"{key}: {one.get(key)}, {two.get(key)}" for key in {**one, **two} if one.get(key) != two.get(key)]:
            text = f"{first} and {second} are not seeds of one training ({'; '.join(different)})"
            raise ValueError(f"{text}: evaluate each alone")


def _average(metrics: list):
    """Mean and standard error over runs, leaf by leaf."""
    if isinstance(metrics[0], dict):
        return {key: _average([m[key] for m in metrics]) for key in metrics[0]}
    return mean_and_error(metrics)


def _rounded(value: dict) -> dict:
    """As JSON has it, but floats with six significant digits, so that files read well."""
    return json.loads(to_json(value), parse_float=lambda text: float(f"{float(text):.6g}"))


def _refuse(message: str) -> NoReturn:
    """End with one line on the standard error stream, and status 2."""
    end = SystemExit("mtdiff: error: " + " ".join(message.split()))
    print(end, file=sys.stderr)
    end.code = 2
    raise end


def main() -> None:
    """Entry point: errors that a user can mend are one line and status 2, without a traceback."""
    description = "Train, sample and judge multi-modal diffusion models."
    command = tyro.cli(Train | Sample | Evaluate | Data | Course, prog="mtdiff", description=description)
    threads = os.environ.get("MTDIFF_THREADS", "")
    try:
        if "" in sys.argv[1:]:
            raise ValueError("an argument is empty")
        if threads and not (threads.isdecimal() and 1 <= int(threads) <= 1024):
            raise ValueError(f"MTDIFF_THREADS must be a number of threads, got {threads!r}")
        if threads:
            torch.set_num_threads(int(threads))
        _check(getattr(command, "action", command))
        command.run()
    except KeyboardInterrupt as stopped:
        sys.exit(f"\nmtdiff: {stopped.args[0] if stopped.args else 'stopped'}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        text = (str(error) or "too much is asked for").splitlines()[0]
        _refuse(text if "accumulate" in text else f"out of memory; try a smaller --n ({text})")
    except (ValueError, KeyError, OSError, ImportError, FloatingPointError) as error:
        text = str(error.args[0] if isinstance(error, KeyError) else error)
        if isinstance(error, KeyError) and " " not in text:  # a name that the program did not find: its own mistake
            raise
        _refuse(text)
