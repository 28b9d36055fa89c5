"""Restoration without training: how near each way comes to the true posterior of a mixture, and to pictures.

    python tests/benchmarks/zero_shot.py mixture [--out data/results/benchmark-zero-shot-mixture.json]
    python tests/benchmarks/zero_shot.py shapes16 digits photographs [--out data/results/benchmark-zero-shot-pictures.json]

On mixtures of Gaussians, in two and in eight dimensions, a linear measurement has a known posterior. Each way draws for the
measurement of a seed; draws are compared with as many of the posterior by energy distance. The floor is that of two sets
of draws of the posterior. On pictures: PSNR, SSIM and distance of features, for held-out pictures that were degraded and for
models that ship. An option is the best of a few on other measurements, or on other pictures.
"""

import argparse
import functools
import time
from pathlib import Path

import torch

import mtdiff as mt
from mtdiff.baselines import inpaint
from mtdiff.comparison import mean_and_error
from mtdiff.datasets import digits, shapes
from mtdiff.degradations import TASKS, Degradation, Matrix
from mtdiff.exact import LabelledMixture
from mtdiff.exact.posterior import draw_posterior
from mtdiff.experiments.restoration import SHIFTED, STEPS, degraded, scores
from mtdiff.files import to_json
from mtdiff.judges import scene_judge
from mtdiff.metrics import energy_distance, psnr
from mtdiff.provenance import provenance
from mtdiff.zero_shot import WAYS, restore

EVALUATIONS = (10, 30, 100)
TRIED = {"dps": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), "likelihood": (0.01, 0.03, 0.1, 0.3, 1.0), "plug-in": (0.3, 1.0, 3.0)}
"""Options that are tried."""
SEEDS = 6
KINDS = {
    "shapes16": "masked-image/shapes16-plain",
    "digits": "image-label/digits",
    "photographs": "imagenet/imagenette32-plain",
}
"""{pictures: the plain model of them}; the photographs are crops of the two that come with scikit-learn."""
MILDER = {"digits": {"super-resolve": {"factor": 2}, "deblur": {"width": 1.0}}}
"""Strengths that suit pictures of 8x8."""


def mixtures():
    """{name: (model, degradation)}: three clusters seen along a line, and five in eight dimensions, half of them seen."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(400, 8.0, -8.0), {"x": 1.0, "label": 0.0})
    g = torch.Generator().manual_seed(0)
    three = [[-1.0, 0.8], [1.0, 0.6], [0.2, -1.2]]
    plane = LabelledMixture([0.5, 0.3, 0.2], three, [0.25, 0.35, 0.2], [[0.0] * 2] * 3, process)
    means, a = torch.randn(5, 8, generator=g), torch.randn(4, 8, generator=g) / 8**0.5
    eight = LabelledMixture([0.2] * 5, means, [0.3] * 5, [[0.0] * 8] * 5, process)
    return {
        "plane": (plane, Degradation(Matrix([[1.0, 0.5]]), noise=0.3)),
        "eight": (eight, Degradation(Matrix(a), noise=0.3)),
    }


def distance(model, problem, way, steps, seed, n, option):
    """Energy distance of n draws to the posterior of one measurement; way "floor": of the posterior itself, "prior": of the
    model without any measurement."""
    g = torch.Generator().manual_seed(seed)
    y = problem(model.draw(1, g)["x"], g)[0]
    true = draw_posterior(model, y, problem, n, g)
    if way == "floor":
        return energy_distance(draw_posterior(model, y, problem, n, g), true)
    if way == "prior":
        return energy_distance(model.draw(n, g)["x"], true)
    rows = y.expand(n, len(y))
    return energy_distance(
        restore(model, rows, problem, way, steps=steps, name="x", limits=None, generator=g, **option), true
    )


def ranked(n):
    """{mixture: {way: {steps: {"mean", "stderr", "n", option}}}}, and "floor" and "prior" without steps."""
    out = {}
    for name, (model, problem) in mixtures().items():
        out[name] = {
            way: mean_and_error([distance(model, problem, way, 0, seed, n, {}) for seed in range(SEEDS)])
            for way in ("floor", "prior")
        }
        for way, kind in WAYS.items():
            out[name][way] = {}
            for steps in EVALUATIONS:
                options = [{kind.option: value} for value in TRIED[way]] if way in TRIED else [{}]
                if len(options) > 1:
                    tried = [sum(distance(model, problem, way, steps, s, n, o) for s in (100, 101, 102)) for o in options]
                    options = [options[tried.index(min(tried))]]
                found = [distance(model, problem, way, steps, seed, n, options[0]) for seed in range(SEEDS)]
                out[name][way][str(steps)] = {**mean_and_error(found), **options[0]}
                print(name, way, steps, out[name][way][str(steps)], flush=True)
    return out


def pictures(kind, n, split):
    """n pictures (n, C, s, s) in [-1, 1], to be judged ("test") or to try options on ("train")."""
    if kind == "shapes16":
        return shapes(split, size=16, n=n, modalities=("image",)).values["image"]
    if kind == "digits":
        return digits(split).values["image"][:n]
    from sklearn.datasets import load_sample_images

    both = torch.stack([torch.from_numpy(image).float() / 127.5 - 1 for image in load_sample_images().images]).movedim(-1, 1)
    small = torch.nn.functional.avg_pool2d(both[:, :, :384, :640], 4)  # (2, 3, 96, 160)
    crops = small.unfold(2, 32, 32).unfold(3, 32, 32).permute(2, 3, 0, 1, 4, 5).reshape(-1, 3, 32, 32)  # 15 of each
    return (crops[0::2] if split == "test" else crops[1::2])[:n]


def tasks(kind):
    """{name: (task, strength)} of a kind of pictures."""
    milder = MILDER.get(kind, {})
    names = [task for task in TASKS if task != "colourise" or kind != "digits"]
    shifted = {f"{task}, shifted": (task, strength) for task, strength in SHIFTED.items()} if kind == "shapes16" else {}
    return {**{task: (task, milder.get(task, {})) for task in names}, **shifted}


def zero_shot(kind, n, seeds, plain, masked):
    """{way: {task: {"psnr", "ssim", "features": {"mean", "stderr", "n"}, option}}} over seeds, the same pictures.

    "trained": how the model was; "input": of the degraded picture as it is.
    """
    model = mt.load(plain or KINDS[kind])
    out = {"trained": {key: model.card["training"][key] for key in ("steps", "batch_size")}}
    image, train = pictures(kind, n, "test"), pictures(kind, min(n, 16), "train")
    judge = scene_judge(kind) if kind == "shapes16" else None
    real = judge.features(shapes("test", size=16, modalities=("image",)).values["image"]) if judge else None
    for name, (task, strength) in tasks(kind).items():
        y, mask, problem = degraded(image, task, 5, **strength)
        tuned, _, same = degraded(train, task, 6, **strength)
        ways = {way: functools.partial(restore, model, y, problem, way, steps=STEPS) for way in WAYS}
        if not problem.noise:
            del ways["likelihood"]
        for way in ways:
            if way in TRIED and (problem.noise or way != "plug-in"):
                options = [{WAYS[way].option: value} for value in TRIED[way]]
                g = torch.Generator().manual_seed(7)
                tried = [
                    psnr(restore(model, tuned, same, way, steps=STEPS, generator=g, **o), train).mean() for o in options
                ]
                best = options[max(range(len(tried)), key=lambda k: float(tried[k].nan_to_num(-1e9)))]
                ways[way] = functools.partial(ways[way], **best)
        if task == "inpaint" and kind == "shapes16":
            ways["repaint"] = functools.partial(inpaint, model, y, mask, "repaint", steps=24, repeats=4)
            for way in ("told", "repeated"):
                ways[f"07, {way}"] = functools.partial(inpaint, mt.load(masked), y, mask, way, steps=24, repeats=4)
        for way, draw in ways.items():
            found = [scores(draw(generator=torch.Generator().manual_seed(s)), image, real, judge) for s in range(seeds)]
            cell = {key: mean_and_error([each[key] for each in found]) for key in found[0]}
            out.setdefault(way, {})[name] = {**cell, **{k: v for k, v in draw.keywords.items() if k in ("scale", "weight")}}
            print(kind, name, way, {key: round(value["mean"], 3) for key, value in cell.items()}, flush=True)
        out.setdefault("input", {})[name] = scores(problem.picture(y).clamp(-1, 1), image, real, judge)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("mixture", *KINDS))
    parser.add_argument("--n", type=int, help="draws of each posterior, pictures of each task", default=400)
    parser.add_argument("--seeds", type=int, help="of the noise, on pictures", default=3)
    parser.add_argument("--plain", help="the plain model, in place of the one that ships")
    parser.add_argument("--masked", help="07's model of shapes16", default="masked-image/shapes16")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began, out = time.time(), {}
    options = arguments.n, arguments.seeds, arguments.plain, arguments.masked
    for part in arguments.parts:
        out[part] = ranked(arguments.n) if part == "mixture" else zero_shot(part, *options)
    result = {
        **out,
        "n": arguments.n,
        "seconds": round(time.time() - began),
        "provenance": provenance(),
    }
    if arguments.out:
        arguments.out.write_text(to_json(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
