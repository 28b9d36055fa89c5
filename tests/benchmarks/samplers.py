"""Quality of samples against evaluations of the network, for every solver: are twenty evaluations enough?

    python tests/benchmarks/samplers.py [--model image-label/digits] [--n 4000] [--out data/results/benchmark-samplers.json]

Pairs are drawn from the same seeds by each solver at each number of evaluations (Heun takes two in a step; the final reading
is not counted). Agreement: share of digits that an independent judge calls by their label. FD: Frechet distance of pixels to
all real digits, whose error is found by drawing in five parts. The bar: the best solver at 20 evaluations within 5% of 250
ancestral steps, in FD.
"""

import argparse
from pathlib import Path

import torch

import mtdiff as mt
from mtdiff.comparison import mean_and_error
from mtdiff.datasets import digits
from mtdiff.files import to_json
from mtdiff.judges import svm_judge
from mtdiff.metrics import frechet_distance
from mtdiff.provenance import provenance
from mtdiff.sampling import SAMPLERS, sample_many

EVALUATIONS = (5, 10, 20, 50, 100, 250)
PARTS = 5
"""Draws of each kind with seeds of their own."""


def scores(model, sampler, evaluations, n, judge, real):
    """{"agreement", "frechet_pixels"}: mean and standard error over parts."""
    steps = evaluations // 2 if sampler == "heun" else evaluations
    rows, names = [], ("agreement", "frechet_pixels")
    for part in range(PARTS):
        generator = torch.Generator().manual_seed(part)
        drawn = sample_many(model, n // PARTS, sampler=sampler, steps=steps, generator=generator)
        right = float((judge(drawn["image"]) == drawn["label"]).double().mean())
        rows.append((right, frechet_distance(drawn["image"], real)))
    return {name: mean_and_error(values) for name, values in zip(names, torch.tensor(rows).T.tolist(), strict=True)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="image-label/digits", help="a model of digits and labels")
    parser.add_argument("--n", type=int, default=4000, help="pairs of each kind")
    parser.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, judge, real = mt.load(arguments.model), svm_judge(digits("train")), digits("all").values["image"]
    table: dict = {}
    for sampler in SAMPLERS:
        for count in arguments.evaluations:
            if count % 2 and sampler == "heun":
                continue
            cell = scores(model, sampler, count, arguments.n, judge, real)
            table.setdefault(sampler, {})[str(count)] = cell
            print(sampler, count, {name: f"{c['mean']:.3f} ± {c['stderr']:.3f}" for name, c in cell.items()}, flush=True)
    result = {
        "model": arguments.model,
        "n": arguments.n,
        "parts": PARTS,
        "provenance": provenance(),
        "samplers": table,
    }
    if arguments.out:
        arguments.out.write_text(to_json(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
