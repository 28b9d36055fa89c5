"""What makes a small multi-modal model good per CPU second? One row for each choice, at equal seconds on one thread.

    MTDIFF_DATA=FOLDER python tests/benchmarks/recipe.py [--rows before bell ...] [--seeds 0 1] [--minutes 8] --out FILE.json

Models of photographs and their labels (`mtdiff train imagenet --variant label`) at 32x32. Each row changes its parent in one
thing; rows and seeds share images, batches and evaluation noise. The steps of a row are those that fit its seconds, counted
by `time.process_time` before it is trained. A row that is in FILE already is not trained again.

Judged on held-out photographs: squared error of v with the image alone in the chain, at five levels of log-SNR; kernel
distance of 400 draws (image alone, 24 steps of DDIM) in the features of a network, MODULE:FUNCTION or the name of a model;
accuracy of the label head on clean photographs.
"""

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from mtdiff.datasets.base import Dataset
from mtdiff.experiments import EXPERIMENTS
from mtdiff.experiments.base import LEVELS, UNETS, alone
from mtdiff.features import feature_network
from mtdiff.files import to_json, write_atomic
from mtdiff.metrics import kernel_distance
from mtdiff.probes import head_accuracy, noised
from mtdiff.provenance import provenance
from mtdiff.reading import read_json
from mtdiff.training import Trainer

LOOKS = (-2, 0, 2, 4, 6)
"""Log-SNR at which the error is measured."""
HELD_OUT, DRAWN = 1000, 400


class Cosine(Trainer):
    """The learning rate along half a cosine, from the first step on."""

    def _schedule(self, step):
        rise = min(1.0, (step + 1) / max(1, self.config.warmup))
        return rise * 0.5 * (1 + math.cos(math.pi * step / self.config.steps))


class WithMuon(Trainer):
    """Muon for the matrices of the backbone and its convolutions, which are matrices over (out, in * height * width)."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.pairs = []
        for p in self.model.backbone.parameters():
            if p.ndim > 1:
                rows = p.data.permute(0, 2, 3, 1) if p.ndim == 4 else p.data
                self.pairs.append((p, nn.Parameter(rows.reshape(len(p), -1))))
        assert all(view.data_ptr() == p.data_ptr() for p, view in self.pairs)
        self.muon = torch.optim.Muon([view for _, view in self.pairs], lr=MUON, weight_decay=0.01)
        mine = {id(p) for p, _ in self.pairs}
        for group in self.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in mine]
        self.optimizer.register_step_pre_hook(self._step_muon)

    def _step_muon(self, *_):
        for group in self.muon.param_groups:
            group["lr"] = MUON * self._schedule(self.step)
        for p, view in self.pairs:
            rows = p.grad.permute(0, 2, 3, 1) if p.ndim == 4 else p.grad
            view.grad = rows.reshape(len(p), -1)
        self.muon.step()


MUON = 0.01
ROWS = {  # name: (parent, what it changes)
    "before": (
        None,
        {"trainer": Cosine, "levels": None, "lr": 1e-3, "multipliers": (1, 2, 2, 2), "drop": {"label": 0.5}},
    ),
    "bell": ("before", {"levels": LEVELS}),
    "held": ("bell", {"trainer": Trainer}),
    "fast": ("held", {"lr": 2e-3}),
    "wide": ("fast", {"multipliers": (1, 2, 4, 4)}),
    "wider": ("fast", {"multipliers": (1, 2, 3, 6)}),
    "faster": ("wide", {"lr": 4e-3}),
    "lower bell": ("wide", {"levels": (0.5, 2.4)}),
    "narrow bell": ("wide", {"levels": (1.5, 1.8)}),
    "small batch": ("wide", {"batch_size": 16}),
    "large batch": ("wide", {"batch_size": 64}),
    "muon": ("wide", {"trainer": WithMuon}),
    "short average": ("wide", {"ema": 0.995}),
    "long average": ("wide", {"ema": 0.9995}),
    "rarely in the sum": ("wide", {"drop": {"label": 0.8}}),
    "often given": ("wide", {"give": {"label": 0.5}}),
    "heavy label": ("wide", {"weights": {"label": 1.5}}),
    "light label": ("wide", {"weights": {"label": 0.15}}),
    "no image head": ("wide", {"weights": {"image": 0.0}}),
}


def recipe(row):
    """All that a row changes, its parents' choices first."""
    parent, changes = ROWS[row]
    return {**(recipe(parent) if parent else {}), **changes}


def trainer_of(row, data, seed, steps):
    """A training of a row, at step 0."""
    choices, experiment = recipe(row), EXPERIMENTS["imagenet"]
    kind, multipliers, weights = choices.pop("trainer"), choices.pop("multipliers"), choices.pop("weights", {})
    config = experiment.config(data, "label", "full")
    choices["weights"] = config.weights | weights
    config = replace(config, **choices, steps=steps, seed=seed, probe_every=0, log_every=500)
    with mock.patch.dict(UNETS, {32: {**UNETS[32], "multipliers": multipliers}}):
        model = experiment.build(data, "label", seed)
    return kind(model, experiment.data[data]("train", "label"), config)


def seconds_of_a_step(row, data):
    """CPU seconds, the median of batches of ten."""
    trainer, found = trainer_of(row, data, 0, 10**6), []
    batches = trainer.data.batches(trainer.config.batch_size, 0)
    for _ in range(4):
        began = time.process_time()
        for _ in range(10):
            trainer._one(trainer._objective(), next(batches))
        found.append((time.process_time() - began) / 10)
    return sorted(found[1:])[1]


def judged(model, test, features, network):
    """The figures of a trained model."""
    image, out, process = test.values["image"], {}, model.process
    log_snr = process.schedule.abar.logit()
    with torch.no_grad():
        for level in LOOKS:
            t, errors = int((log_snr - level).abs().argmin()), []
            for k, part in enumerate(image.split(250)):
                z, present = noised(model, {"image": part}, t, torch.Generator().manual_seed(k))
                guess = model.predict(z, t, present=present).estimate["image"]
                errors.append(((guess - part) / process.at(t, z).noise).square().mean())
            out[f"v at {level}"] = float(torch.stack(errors).mean())
    drawn = alone(model, DRAWN, steps=24, sampler="ddim", generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        kernel = kernel_distance(features, network(drawn))
    return out | {"kernel": kernel["mean"], "kernel_stderr": kernel["stderr"], "head": head_accuracy(model, test)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="imagenette32", help="a packed set of 32x32 with labels")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--minutes", type=float, default=8.0, help="of the processor, for each training")
    parser.add_argument("--features", required=True, help="what looks at draws: MODULE:FUNCTION or a model")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write, or to go on from")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = feature_network(arguments.features).network
    full = EXPERIMENTS["imagenet"].data[arguments.data]("test", "label")
    rows = torch.randperm(len(full), generator=torch.Generator().manual_seed(0))[:HELD_OUT]
    test = Dataset(full.name, full[rows], full.names)
    with torch.no_grad():
        features = torch.cat([network(part) for part in test.values["image"].split(100)])
    result = {"minutes": arguments.minutes, "rows": {}}
    if arguments.out.exists():
        result = read_json(arguments.out, "is no result")
    for seed in arguments.seeds:
        for row in arguments.rows:
            found = result["rows"].setdefault(row, {"parent": ROWS[row][0], "seeds": {}})
            if str(seed) in found["seeds"]:
                continue
            steps = int(60 * arguments.minutes / seconds_of_a_step(row, arguments.data))
            trainer = trainer_of(row, arguments.data, seed, steps)
            began = time.process_time()
            model = trainer.run(progress=False)
            spent = time.process_time() - began
            figures = {"steps": steps, "seconds": spent, **judged(model, test, features, network)}
            found["parameters"] = sum(p.numel() for p in model.parameters())
            found["seeds"][str(seed)] = figures
            result["provenance"] = provenance()
            print(row, seed, {name: round(value, 4) for name, value in figures.items()}, flush=True)
            write_atomic(arguments.out, (to_json(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
