"""A modality added to a trained model: sketches, from few examples and from many, with the trunk frozen and not.

    python tests/benchmarks/add_modality.py [--model any-to-any/shapes16] [--steps 1000] --out FILE.json

The model is extended by a sketch of weight 0 and trained with the settings it was trained with. Judged on held-out scenes:

- "sketch": SSIM of sketches drawn for images with the true ones, which images determine ("black": that of no sketch at all);
- "image": how much of size and shape, which a sketch shows, the judge reads off images that are drawn for sketches;
- "caption": how much of a caption it reads off images drawn for captions, which the model could do before ("before").
"""

import argparse
from pathlib import Path

import torch

import mtdiff as mt
from mtdiff.experiments import any_to_any
from mtdiff.experiments.any_scores import agreement
from mtdiff.files import to_json, write_atomic
from mtdiff.metrics import ssim
from mtdiff.provenance import provenance
from mtdiff.sampling import sample_many

SHOWN = (*any_to_any.MODALITIES, "sketch")
COUNTS = (50, 500, any_to_any.EXAMPLES)


def extended(model, size, frozen):
    """A copy with sketches; frozen: its new encoder and head alone are trained."""
    made = model.extended("sketch", mt.Image((1, size, size), channels=slice(3, 4), start="nothing", tell=True))
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(not frozen or "sketch" in name)
    return made


def config(model, steps, seed):
    """What the model was trained with, for so many steps."""
    before = model.card["training"]
    return mt.TrainConfig(
        steps,
        batch_size=32,
        lr=2e-3,
        levels=any_to_any.LEVELS,
        give={**before["give"], "sketch": 0.5},
        drop=before["drop"],
        weights={**before["weights"], "sketch": 1.0},
        seed=seed,
    )


def words(model, truth, given, seed, steps=25):
    """Mean share of the words both say, of images drawn for one modality."""
    generator = torch.Generator().manual_seed(seed)
    drawn = sample_many(model, len(truth["label"]), given={given: truth[given]}, steps=steps, generator=generator)
    said, size = "segmentation" if given == "sketch" else given, truth["image"].shape[-1]
    kinds = agreement("image", drawn["image"], truth, [said], size)
    return sum(kinds.values()) / len(kinds)


def judged(model, truth, seed, steps=25):
    """The three figures of the head of this file."""
    generator = torch.Generator().manual_seed(seed)
    given, n = {"image": truth["image"]}, len(truth["label"])
    sketch = sample_many(model, n, given=given, steps=steps, generator=generator)["sketch"]
    found = {given: words(model, truth, given, seed) for given in ("sketch", "caption")}
    return {"sketch": float(ssim(sketch, truth["sketch"]).mean()), "image": found["sketch"], "caption": found["caption"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="any-to-any/shapes16")
    parser.add_argument("--data", default="shapes16", choices=any_to_any.WORLDS)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="examples with a sketch")
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=200, help="draws for each figure")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = mt.load(arguments.model)
    size, _ = any_to_any.WORLDS[arguments.data]
    truth = dict(any_to_any.scenes(arguments.data, "test", arguments.n, SHOWN).values)
    sets, rows = {count: any_to_any.scenes(arguments.data, "train", count, SHOWN) for count in arguments.counts}, []
    for seed in arguments.seeds:
        for count, scenes in sets.items():
            for frozen in (True, False):
                settings = config(model, arguments.steps, seed)
                mine = mt.Trainer(extended(model, size, frozen), scenes, settings).run(progress=False)
                rows.append({"seed": seed, "examples": count, "frozen": frozen, **judged(mine, truth, seed)})
                print(rows[-1], flush=True)
    black = float(ssim(torch.full_like(truth["sketch"], -1.0), truth["sketch"]).mean())
    before = {str(seed): words(model, truth, "caption", seed) for seed in arguments.seeds}
    settings = {key: getattr(arguments, key) for key in ("model", "data", "steps", "n")}
    result = {**settings, "before": before, "black": black, "rows": rows, "provenance": provenance()}
    write_atomic(arguments.out, (to_json(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
