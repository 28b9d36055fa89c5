"""Boxes where they are exact: scenes in Tiny-ImageNet's layout, through the same loader, model and judge as photographs.

    python tests/benchmarks/boxes.py [--scenes 10000] [--steps 2000] --out FILE.json

Image, label and the box of the nearest object in one space (the variant "box" of the experiment "imagenet"), at 16x16. The
box's loss weighs 0.02, as for photographs, or as much as the label's. "overlap": mean intersection over union of the box
read off a held-out image with the true one; "constant", "everything": of two answers that do not look. "accuracy": of the
label, the shape and colour of that object.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import PIL.Image
import torch

import mtdiff as mt
from mtdiff.datasets import Dataset
from mtdiff.datasets.imagenet import prepare
from mtdiff.datasets.shapes import OBJECTS, layout, numbers, shapes
from mtdiff.experiments import imagenet
from mtdiff.experiments.imagenet_scores import box_overlap
from mtdiff.experiments.label_scores import head_scores
from mtdiff.files import to_json, write_atomic
from mtdiff.provenance import provenance

STORED, SIZE = 64, 16
"""Height and width of the pictures that are written, and of those that are learned."""
WEIGHTS = (0.02, 0.5)


def boxes(split, n):
    """(n, 4) the first and last pixel across and down, left, top, right, bottom, of the nearest object of each scene."""
    nearest = layout(numbers(split, n)).depth.argmin(1)
    seen = shapes(split, STORED, n, modalities=("masks",)).values["masks"][torch.arange(n), nearest]
    across, down = seen.any(1).int(), seen.any(2).int()
    first = [side.argmax(1) for side in (across, down)]
    last = [STORED - 1 - side.flip(1).argmax(1) for side in (across, down)]
    return torch.stack([*first, *last], 1)


def write(root, scenes):
    """Scenes as the archive of Tiny-ImageNet unpacks: {"train": how many, "val": how many}."""
    names = [f"n{number:08d}" for number in range(len(OBJECTS))]
    root.mkdir(parents=True)
    (root / "wnids.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "words.txt").write_text("".join(f"{name}\t{what}\n" for name, what in zip(names, OBJECTS, strict=True)))
    for split, n in scenes.items():
        training, lists = split == "train", {}
        ours = "train" if training else "test"
        values = shapes(ours, STORED, n, modalities=("image", "label")).values
        pixels = ((values["image"] + 1) * 127.5).round().byte().movedim(1, -1).numpy()
        for k, box in enumerate(boxes(ours, n).tolist()):
            name, file = names[values["label"][k]], f"{split}_{k}.png"
            home = root / split / name if training else root / split
            (home / "images").mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(pixels[k]).save(home / "images" / file)
            listed = home / (f"{name}_boxes.txt" if training else "val_annotations.txt")
            line = [file, *([] if training else [name]), *map(str, box)]
            lists.setdefault(listed, []).append("\t".join(line) + "\n")
        for listed, rows in lists.items():
            listed.write_text("".join(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=10_000, help="to train on")
    parser.add_argument("--steps", type=int, default=2000, help="of training, 32 scenes each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=500, help="held-out scenes")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        written, packed = Path(place) / "written", Path(place) / "packed"
        write(written, {"train": arguments.scenes, "val": arguments.n})
        prepare(written, packed, SIZE, progress=False)
        train, held_out = (imagenet.packed(str(packed), split, "box") for split in ("train", "test"))
        test = Dataset(held_out.name, held_out[torch.arange(len(held_out))], held_out.names)
        usual = imagenet.config(str(packed), "box", "full")
        for seed in arguments.seeds:
            for weight in WEIGHTS:
                weights = {**usual.weights, "box": weight}
                settings = replace(usual, steps=arguments.steps, seed=seed, probe_every=0, weights=weights)
                model = mt.Trainer(imagenet.build(str(packed), "box", seed), train, settings).run(progress=False)
                found = box_overlap(model, test, torch.Generator().manual_seed(seed))
                accuracy = head_scores(model, test, seed)["head"]["accuracy"]
                rows.append({"seed": seed, "weight": weight, **found, "accuracy": accuracy})
                print(rows[-1], flush=True)
    settings = {key: getattr(arguments, key) for key in ("scenes", "steps", "n")}
    result = {**settings, "rows": rows, "provenance": provenance()}
    write_atomic(arguments.out, (to_json(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
