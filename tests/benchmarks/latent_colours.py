"""Maps of classes through the latent space of a small autoencoder: how many pixels are read back wrong, and where.

    python tests/benchmarks/latent_colours.py --out FILE.json

The autoencoder halves height and width and keeps three channels. One is trained on pictures of scenes, as an autoencoder of
latent diffusion is on photographs, and one on as many pictures of which half are maps of 16 classes. Exact maps of 2, 4, 8
and 16 classes go through both; "boundary" and "inside" are `mtdiff.dense_scores.label_errors`, "psnr" that of pictures.
"""

import argparse
from pathlib import Path

import torch

from mtdiff.baselines.autoencoder import fit_autoencoder
from mtdiff.comparison import mean_and_error
from mtdiff.datasets import shapes
from mtdiff.datasets.dense import class_maps, coloured, ids_of
from mtdiff.dense_scores import label_errors
from mtdiff.files import to_json, write_atomic
from mtdiff.metrics import psnr
from mtdiff.provenance import provenance

CLASSES = (2, 4, 8, 16)


def judged(autoencoder, pictures, n):
    """{"psnr": in dB, "classes": {k: label errors}} of held-out pictures and maps."""
    found = {"psnr": float(psnr(autoencoder(pictures), pictures).mean()), "classes": {}}
    for k in CLASSES:
        ids = class_maps("test", k, n)
        found["classes"][str(k)] = label_errors(ids_of(autoencoder(coloured(ids, k)), k), ids)
    return found


def averaged(found):
    """Mean and standard error over seeds, leaf by leaf."""
    if isinstance(found[0], dict):
        return {key: averaged([each[key] for each in found]) for key in found[0]}
    return mean_and_error(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=400, help="held-out pictures, and maps of each number of classes")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train = shapes("train", n=4000, modalities=("image",)).values["image"]
    test = shapes("test", n=arguments.n, modalities=("image",)).values["image"]
    mixed = torch.cat([train[:2000], coloured(class_maps("train", 16, 2000), 16)])
    result = {"steps": arguments.steps, "n": arguments.n, "provenance": provenance(), "trained on": {}}
    for what, pictures in (("pictures", train), ("pictures and maps", mixed)):
        fitted = [fit_autoencoder(pictures, arguments.steps, seed=seed) for seed in arguments.seeds]
        result["trained on"][what] = averaged([judged(each, test, arguments.n) for each in fitted])
        print(what, to_json(result["trained on"][what]))
    write_atomic(arguments.out, (to_json(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
