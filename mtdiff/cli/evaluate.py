"""mtdiff evaluate: judge trained models, several seeds of one variant together."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mtdiff.checkpoint import load
from mtdiff.cli.common import DEVICE, Name, chosen_data, data_of, trained_model, usable_device
from mtdiff.cli.own import Imports
from mtdiff.comparison import mean_and_error
from mtdiff.experiments import EXPERIMENTS, matched, trained_on
from mtdiff.experiments.report import markdown
from mtdiff.files import to_json, write_atomic
from mtdiff.model import MTDiffusion
from mtdiff.provenance import provenance


@dataclass
class Evaluate:
    """Judge trained models (several seeds of one variant are averaged) and write the figures as JSON."""

    LIMITS: ClassVar = {"n": (4, 10**7), "seed": (0, 2**32)}
    FILES: ClassVar = ("out",)

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
    device: str = DEVICE  # Where to evaluate: cpu or cuda.
    imports: Imports = ()
    seed: int = 0  # Seed of the first model's noise; the others follow.
    out: Path | None = None  # The JSON file to write; default: print only.
    publish: Path | None = None  # Also save the first model here, in half precision, with its own figures in its card.

    def run(self) -> None:
        """Evaluate every model, average by variant, print and write."""
        experiment, device = EXPERIMENTS[self.experiment], usable_device(self.device)
        if self.features and "features" not in experiment.options:
            able = " and ".join(name for name, each in EXPERIMENTS.items() if each.options)
            raise ValueError(f"--features is for {able}, {self.experiment} has judges of its own")
        names = self.models or (f"{self.experiment}/{chosen_data(experiment, self.data)}",)
        models = [(name, self._trained(name)) for name in names]
        known = self.data or (None if trained_on(models[0][1]) else next(iter(experiment.data)))
        data = data_of(models[0][1], experiment, known)
        test = experiment.on(data)("test")
        least, _ = self.LIMITS["n"]
        if len(test) < least:
            raise ValueError(f"{data} holds out {len(test)} pictures: to judge takes {least} at least")
        for name, model in models:
            try:
                matched(model, test, self.elsewhere)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        refuse_repeats([(name, model.card) for name, model in models])
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
        model = trained_model(name, self.device, self.imports)
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


def refuse_repeats(cards: Sequence[tuple[str, Mapping]]) -> None:
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
