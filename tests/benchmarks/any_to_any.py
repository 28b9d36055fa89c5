"""Any to any, drawn in other ways: does the order help, does guidance, do several looks read better than one?

    python tests/benchmarks/any_to_any.py [--data shapes32] [--n 500] [--only orders] --out FILE.json

Every way to draw takes as many evaluations of the network; two in a step where it is guided.

- "ways": all five modalities from nothing, at once, one after the other (`sample(chain=...)`), or guided by one
  (`representation_guidance`): how much of what a judge reads off the image the others say, too, and how well a fresh
  classifier tells draws from data (`told_apart`).
- "given": images for a given caption, with classifier-free guidance: how much of the caption the judge reads.
- "orders": images for a given caption, at once and with one modality drawn before the rest: the same "words", and the share
  of "grainy" images. Scenes are flat: the median of |x_ij - x_kj - x_il + x_kl| is 0; grainy is above `GRAIN`. "wrong": how
  many labels name no object of the caption, and how many of their images are grainy.
- "looks": captions, labels and segmentations read off images at one noise level, and by the sum of the log-probabilities at
  several.
"""

import argparse
import functools
from pathlib import Path

import torch

import mtdiff as mt
from mtdiff.baselines import representation_guidance
from mtdiff.experiments import any_to_any
from mtdiff.experiments.any_scores import WORDS, agreement, holds, read
from mtdiff.files import to_json, write_atomic
from mtdiff.judges import label_judge, told_apart
from mtdiff.probes import noised
from mtdiff.provenance import provenance
from mtdiff.sampling import sample_many

PARTS = ("ways", "given", "orders", "looks")
EVALUATIONS = 60
ORDERS = {"at once": (None, 0), "label first": ("label", 10), "segmentation first": ("segmentation", 30)}
"""What is drawn before the rest, and in how many steps."""
GUIDANCE = (1.0, 1.5, 2.0, 4.0)
GRAIN = 0.05
LOOKS = {"clean": (8.0,), "6": (6.0,), "4": (4.0,), "2": (2.0,), "8 to 4": (8.0, 6.0, 4.0), "8 to 2": (8.0, 6.0, 4.0, 2.0)}
"""Log-SNR of abar at which images are looked at."""


def ways(model):
    """{way: options of `sample`}."""
    third = EVALUATIONS // 3
    orders = {"caption": ("caption",), "segmentation": ("segmentation",), "both": ("caption", "segmentation")}
    found = {"at once": {"steps": EVALUATIONS}}
    for name, order in orders.items():
        chain = [(stage, {"steps": third}) for stage in order]
        found[f"{name} first"] = {"chain": chain, "steps": EVALUATIONS - third * len(order)}
    for by in ("caption", "segmentation"):
        for less in (1.0, 0.5):
            guide = representation_guidance(model, 2.0, by=by, less=less)
            found[f"guided by {by}, {less:g} less"] = {"guide": guide, "steps": EVALUATIONS // 2}
    return found


def grainy(image):
    """Which of the images (N, C, H, W), in [-1, 1], are grainy, (N,) bool."""
    across = image[..., 1:] - image[..., :-1]
    mixed = (across[..., 1:, :] - across[..., :-1, :]).abs()
    return mixed.flatten(1).median(1).values > GRAIN


def consistency(drawn, size):
    """How much of what the image says the others say, by modality, means over kinds."""
    said = {
        **drawn,
        "caption": read("image", drawn["image"], size),
        "label": label_judge(f"shapes{size}").read(drawn["image"]),
    }
    found = {name: agreement(name, drawn[name], said, ["image"], size) for name in drawn if name != "image"}
    return {name: sum(kinds.values()) / len(kinds) for name, kinds in found.items()}


@torch.no_grad()
def looked(model, truth, levels, seed):
    """Accuracy of what heads read off images alone in the state, by the sum of log-probabilities at these levels."""
    logits, log_snr = {}, model.process.schedule.abar.logit()
    for k, level in enumerate(levels):
        t = max(model.process.first, int((log_snr - level).abs().argmin()))
        z, present = noised(model, {"image": truth["image"]}, t, torch.Generator().manual_seed(seed + k))
        law = model.predict(z, t, present=present).law
        for name in ("caption", "label", "segmentation"):
            logits[name] = logits.get(name, 0) + law[name].logits.log_softmax(1)
    return {name: float((sums.argmax(1) == truth[name]).double().mean()) for name, sums in logits.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes32", choices=any_to_any.WORLDS)
    parser.add_argument("--model", help="default: any-to-any/DATA")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some parts of it")
    parser.add_argument("--n", type=int, default=500, help="draws of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name, n, seed = arguments.model or f"any-to-any/{arguments.data}", arguments.n, arguments.seed
    model, test = mt.load(name), any_to_any.world(arguments.data, "test")
    truth, size = {kind: value[:n] for kind, value in test.values.items()}, test.values["image"].shape[-1]
    words = {"caption": truth["caption"]}

    def draw(**options):
        return sample_many(model, n, generator=torch.Generator().manual_seed(seed), **options)

    def way(**options):
        drawn = draw(**options)
        return {**consistency(drawn, size), "told apart": told_apart(truth, drawn, seed=seed)}

    def guided(scale):
        drawn = draw(given=words, guidance=scale, steps=EVALUATIONS if scale == 1 else EVALUATIONS // 2)
        return agreement("image", drawn["image"], truth, ["caption"], size)

    def ordered(first, steps):
        chain = {"chain": [(first, {"steps": steps})]} if first else {}
        drawn = draw(given=words, steps=EVALUATIONS - steps, **chain)
        right = holds(read("caption", truth["caption"], size), drawn["label"], WORDS["caption"])
        grain = grainy(drawn["image"])
        wrong = {"labels": int((~right).sum()), "grainy": int((grain & ~right).sum())}
        found = agreement("image", drawn["image"], truth, ["caption"], size)
        return {"words": found, "grainy": float(grain.double().mean()), "wrong": wrong}

    parts = {
        "ways": {one: functools.partial(way, **options) for one, options in ways(model).items()},
        "given": {str(scale): functools.partial(guided, scale) for scale in GUIDANCE},
        "orders": {one: functools.partial(ordered, *order) for one, order in ORDERS.items()},
        "looks": {one: functools.partial(looked, model, truth, levels, seed) for one, levels in LOOKS.items()},
    }
    result: dict = {"model": name, "n": n, "seed": seed}
    for part, each in parts.items():
        result[part] = {}
        for one, measure in each.items() if part in arguments.only else ():
            result[part][one] = measure()
            print(part, one, result[part][one], flush=True)
    result["provenance"] = provenance()
    write_atomic(arguments.out, (to_json(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
