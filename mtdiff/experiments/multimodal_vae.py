"""Multimodal VAEs beside MT-Diffusion: a shared latent against a shared diffusion space, on the same examples."""

import functools

from mtdiff.datasets import Dataset, polydigits, polymnist
from mtdiff.datasets.polydigits import WORLDS
from mtdiff.datasets.shapes import VOCABULARY
from mtdiff.experiments import any_to_any, vae_scores
from mtdiff.experiments.base import Experiment, Make, noise_schedule, seeded, sized, with_seed
from mtdiff.modalities import Caption, Image, LabelMap, Modality
from mtdiff.model import MTDiffusion
from mtdiff.schedules import constant
from mtdiff.trainable import Model
from mtdiff.training import TrainConfig
from mtdiff.vae import MultimodalVAE

VARIANTS = {
    "mopoe-diffusion": "mixture of products, the first modality drawn by a diffusion decoder, the others feed-forward",
    "mopoe": "mixture of products (MoPoE-VAE): any subset's product of experts, all of X scored, feed-forward decoders",
    "product": "product of experts (MVAE): any subset's product, this subset alone is scored",
    "mixture": "mixture of experts (MMVAE): one modality's expert, all modalities scored",
    "mt": "MT-Diffusion of the same modalities, each in channels of its own, one U-Net",
}
SIZES = {"polydigits": 16, "shapes16": 16, "polymnist": 32}
LATENT, WIDTH = 16, 32
"""Dimension of the latent, and channels of encoders and decoders."""
LEVELS = (-1.0, 2.4)
"""Log-SNR at which chains are trained: lower than for pictures alone, for there what is given has little left to say."""
UNET = {"base": 12}
"""The U-Net of a diffusion decoder, and of MT-Diffusion: small, for trainings of minutes."""


@functools.lru_cache(4)
def examples(data: str, split: str) -> Dataset:
    """Triples of a data set; values that no model is shown ("label") are there for judges."""
    if data == "shapes16":
        n = any_to_any.EXAMPLES if split == "train" else 2000
        return any_to_any.scenes("shapes16", split, n, ("image", "segmentation", "caption", "label"))
    return {"polydigits": polydigits, "polymnist": polymnist}[data](split)


def kinds(data: str, shared: bool = False) -> dict[str, Modality]:
    """The three modalities of a data set; where they share a diffusion space, pictures have channels of their own."""
    size = SIZES[data]

    def image(k: int) -> Image:
        return Image(
            (3, size, size), **({"channels": slice(3 * k, 3 * k + 3), "tell": True, "start": "rest"} if shared else {})
        )

    if data != "shapes16":
        return {world: image(k) for k, world in enumerate(WORLDS)}
    place = {"channels": slice(3, 6), "tell": True} if shared else {}
    return {
        "image": image(0),
        "segmentation": LabelMap(4, (size, size), any_to_any.SEGMENTS, **place),
        "caption": Caption(VOCABULARY, any_to_any.length(1), "simplex", tell="vector", sense=True),
    }


def build(data: str, variant: str, seed: int = 0, backbone: Make | None = None) -> Model:
    """0.3M parameters with feed-forward decoders, 0.5M with a diffusion decoder; 0.2M of MT-Diffusion."""
    if variant == "mt":
        return _shared_space(data, seed, backbone)
    size, first = SIZES[data], next(iter(kinds(data)))
    if variant != "mopoe-diffusion" and backbone:
        raise ValueError(f"{variant} has no diffusion decoder: it takes no backbone")
    make = backbone if callable(backbone) else functools.partial(sized, unet={**UNET, **(backbone or {})})

    diffused = {first: with_seed(seed, lambda: make((3, size, size)))} if variant == "mopoe-diffusion" else {}
    experts = variant.partition("-")[0]
    return with_seed(seed, lambda: MultimodalVAE(kinds(data), experts, LATENT, WIDTH, diffused))


def _shared_space(data: str, seed: int, backbone: Make | None) -> MTDiffusion:
    """MT-Diffusion: images and maps in channels of their own, words in those of all."""
    size, parts = SIZES[data], kinds(data, shared=True)
    return seeded(
        seed,
        noise_schedule(size, power=6.0 if data == "shapes16" else 3.0),
        (6 if data == "shapes16" else 9, size, size),
        {name: (constant(1.0), kind) for name, kind in parts.items()},
        unet=UNET,
        backbone=backbone,
        prediction="heads",
        rule="conditioned",
        remove_known=True,
    )


def config(data: str, variant: str, budget: str) -> TrainConfig:
    """Full: 3,000 steps of 32, the same batches for all variants: minutes of one thread."""
    options: dict = {"levels": LEVELS, "lr": 3e-3, "warmup": 30, "ema": 0.99}
    if variant == "mt":
        shares = {"image": 0.1, "segmentation": 0.3, "caption": 0.5}
        names = kinds(data)
        options |= {"weights": {name: shares.get(name, 0.1) for name in names}}
        options |= {"give": dict.fromkeys(names, 0.4), "drop": dict.fromkeys(names, 0.1)}
    return TrainConfig(steps=100 if budget == "quick" else 3000, batch_size=32, save_every=100, **options)


def loss(variant: str, c: TrainConfig):
    """The sub-sampled bound of a VAE; MT-Diffusion uses the multi-task loss."""
    return None if variant == "mt" else functools.partial(MultimodalVAE.loss, levels=c.levels)


def evaluate(model: Model, data: str, seed: int = 0, n: int = 120) -> dict:
    """Coherence and distance of what is drawn, for whatever is given; see `mtdiff.experiments.vae_scores.evaluate`."""
    return vae_scores.evaluate(model, data, examples, seed, n)


EXPERIMENT = Experiment(
    "multimodal-vae",
    {name: functools.partial(examples, name) for name in SIZES},
    VARIANTS,
    *(build, config, evaluate, loss),
)
