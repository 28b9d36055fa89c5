"""Image transition: a chain that starts at a noisy source image and ends at its target, both ways with one network."""

import functools
import math

import torch
from torch import Tensor

from mtdiff.baselines import mean_image, regression_loss, sdedit
from mtdiff.datasets import Dataset, palette, shapes, unpalette
from mtdiff.datasets.shapes import SETS
from mtdiff.elbo import elbo
from mtdiff.experiments.base import Experiment, Make, best_of, by_size, joint, on_scenes, seeded
from mtdiff.judges import scene_judge
from mtdiff.metrics import frechet_distance, psnr, ssim
from mtdiff.modalities import Image, Label
from mtdiff.model import MTDiffusion
from mtdiff.process import ForwardProcess
from mtdiff.schedules import NoiseSchedule
from mtdiff.training import TrainConfig

VARIANTS = {
    "transition": "the source's weight rises from 0 to 1 while the target's falls to 0; the chain starts at the source",
    "conditional": "conditional diffusion with the same SNR at every step: from noise, the source only told (concatenated)",
    "regression": "no chain: the same network gives the mean of a source's targets at once, trained by square error",
    "sdedit": "a diffusion of targets that never sees a source; a transition is made by SDEdit",
}
DIRECTIONS = ("day to night", "night to day", "day to sketch", "sketch to day", "day to segments", "segments to day")
DETERMINED = DIRECTIONS[:3] + DIRECTIONS[4:5]
"""Directions in which the source says all of the target."""
STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Strengths of SDEdit that are tried; each direction keeps its best."""
STEPS = 25
"""Network evaluations of every sample that is judged, the final reading not counted."""
DRAWS = 2000
"""Draws of a step and its noise for each direction's bound, over all pairs."""
EXAMPLES = 30000
"""Training pairs, one sixth of them in each direction."""
LEVELS = {"transition": (2.5, 2.0), "conditional": (-0.8, 3.2), "sdedit": (-0.8, 3.2), "regression": None}
"""Log-SNR of abar at which models are trained; of the target's own that is about the same for all."""
END = -2.0
"""Log-SNR at the end of the transition's chain: how noisy the source is from which it starts."""


@functools.lru_cache(4)
def pairs(data: str, split: str, n: int | None = None) -> Dataset:
    """Pairs of images of one scene: values "source" and "target" (N, 3, s, s) and "direction" (N,).

    Scene i takes direction i modulo 6, so in about half of every batch the source and the target of another are swapped. A
    sketch is repeated over the colours, segments are drawn by `palette`.

    There are n pairs; None: `EXAMPLES`, or 1200 to test on. The data set's names are the directions.
    """
    n = n or (EXAMPLES if split == "train" else 1200)
    drawn = shapes(split, size=SETS[data], n=n, modalities=("image", "night", "sketch", "segmentation"))
    image, direction = drawn.values["image"], torch.arange(n) % len(DIRECTIONS)
    sketch, segments = drawn.values["sketch"].expand_as(image), palette(drawn.values["segmentation"])
    kinds = {"day": image, "night": drawn.values["night"], "sketch": sketch, "segments": segments}
    source, target = torch.empty_like(image), torch.empty_like(image)
    for k, words in enumerate(DIRECTIONS):
        mine = slice(k, None, len(DIRECTIONS))
        source[mine], target[mine] = (kinds[kind][mine] for kind in words.split(" to "))
    values = {"source": source, "target": target, "direction": direction}
    return Dataset(f"{data}-pairs/{split}", values, DIRECTIONS, f"{drawn.source}, pairs")


def falling(u: float) -> float:
    """The target's weight, from 1 to 0: until near T its log-SNR falls as straight as 8 - 16 u, the others' at 16x16."""
    rate = (8 + END) / 2  # W^2 = exp(-2 rate u) turns the slope END - 8 into -16
    return (math.exp(-rate * u) - math.exp(-rate)) / (1 - math.exp(-rate))


def rising(u: float) -> float:
    """The source's weight: what the target's leaves of 1."""
    return 1 - falling(u)


def matched(process: ForwardProcess) -> NoiseSchedule:
    """The schedule of an ordinary diffusion in which the target has the SNR that it has in a transition, at every step."""
    snr = process.snr("target")
    return NoiseSchedule((snr / (1 + snr)).clamp(min=1e-9))  # at T the transition's target is gone


def build(data: str, variant: str, seed: int = 0, backbone: Make | None = None) -> MTDiffusion:
    """0.3M parameters at 16x16, 1.1M at 32x32."""
    size, moves = SETS[data], variant == "transition"
    space = (3, size, size)
    parts = {
        "target": (falling if moves else 1.0, Image(space, start="rest")),
        "source": (rising if moves else 0.0, Image(space, tell=True)),
        "direction": (0.0, Label(len(DIRECTIONS), names=DIRECTIONS)),
    }
    if variant == "sdedit":
        del parts["source"]
    schedule = NoiseSchedule.log_snr(500, high=8.0, low=END)
    schedule = schedule if moves else matched(ForwardProcess(schedule, {"target": falling}))
    options = {"prediction": "heads", "rule": "conditioned", "remove_known": True, "conditions": list(parts)[1:]}
    return seeded(seed, schedule, space, parts, "source" if moves else None, backbone=backbone, **options)


def config(data: str, variant: str, budget: str) -> TrainConfig:
    """The aggregate is the head's: its loss would say the same again."""
    return on_scenes(budget, LEVELS[variant], weights={"denoise": 0.0, "target": 2.0})


def loss(variant: str, c: TrainConfig):
    """The loss of the regression; the others use the multi-task loss."""
    return regression_loss if variant == "regression" else None


def translate(
    model: MTDiffusion, source: Tensor, direction: Tensor, steps: int = STEPS, strength: float = 0.5, **options
) -> Tensor:
    """Targets for sources (N, 3, s, s) and ids (N,) of `DIRECTIONS`, by whatever way the model has: (N, 3, s, s).

    A model that never sees a source takes SDEdit of this strength, the regression one evaluation; `options` are other ones
    of `sample`.
    """
    if model.card.get("variant") == "regression":
        given = {"source": source.to(model.device), "direction": direction.to(model.device)}
        return mean_image(model, "target", given, options.get("generator")).to(source)
    options["steps"] = steps
    if "source" in model.modalities:
        return joint(model, len(source), "target", given={"source": source, "direction": direction}, **options).to(source)
    parts = zip(source.split(250), direction.split(250), strict=True)
    drawn = [sdedit(model, x, strength, name="target", given={"direction": d}, **options) for x, d in parts]
    return torch.cat(drawn).to(source)


def scores(words: str, drawn: Tensor, target: Tensor, real: Tensor, judge) -> dict[str, float]:
    """How good translations are: against the target where the source determines it, as scenes where it does not.

    Drawn and true targets are (N, 3, s, s); `real` are images of the undetermined targets' kind, which may be others.

    Returns:
        Determined: "psnr" in dB (at most 60) and "ssim", means; for segments also "pixels", the share of the right
        class. Otherwise: "scene", the share of images in which the judge reads size and shape of every object as in the
        target's, "features", Frechet distance to `real` in the judge's features, and "colours", the number of
        different colours (exponential of the entropy) that the judge reads.
    """
    if words in DETERMINED:
        out = {"psnr": float(psnr(drawn, target).clamp(max=60).mean()), "ssim": float(ssim(drawn, target).mean())}
        if words.endswith("segments"):
            out["pixels"] = float((unpalette(drawn) == unpalette(target)).double().mean())
        return out
    read, true = (judge.read(image)[:, 1:].unflatten(1, (-1, 3)) for image in (drawn, target))  # size, colour, shape
    colours = read[..., 1].flatten()
    shares = colours[colours > 0].bincount().double() / (colours > 0).sum()
    return {
        "scene": float((read == true)[..., ::2].flatten(1).all(1).double().mean()),
        "features": frechet_distance(judge.features(drawn), judge.features(real)),
        "colours": float(torch.special.entr(shares).sum().exp()),
    }


def evaluate(model: MTDiffusion, data: str, seed: int = 0, n: int = 200) -> dict:
    """All directions of a model, at `STEPS` network evaluations, on n held-out pairs each.

    Returns:
        {direction: `scores`, and for SDEdit the "strength" that was best on training pairs}; of chains from a source also
        "ddim": the same by DDIM, whose path does not depend on how the source enters, and "bound": {direction: bound on
        log p(target | source, direction) in nats per number}.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    judge, out, ddim, bounds = scene_judge(data), {}, {}, {}
    test, train = pairs(data, "test", len(DIRECTIONS) * n), pairs(data, "train").values
    real = shapes("test", size=SETS[data], modalities=("image",)).values["image"]  # what undetermined targets are like
    for k, words in enumerate(DIRECTIONS):
        part, options = test[test.values["direction"] == k], {}
        if "source" not in model.modalities:
            tried = (train["direction"] == k).nonzero().flatten()[:100]
            options = _best_strength(model, words, tried, train, judge, generator)
        elif model.card.get("variant") != "regression":
            values = {name: value.to(model.device) for name, value in part.items()}
            bound = elbo(model, values, max(1, DRAWS // n), generator=generator)
            bounds[words] = bound.total / part["target"][0].numel()
            drawn = translate(model, part["source"], part["direction"], sampler="ddim", generator=generator)
            ddim[words] = scores(words, drawn, part["target"], real, judge)
        drawn = translate(model, part["source"], part["direction"], generator=generator, **options)
        out[words] = {**scores(words, drawn, part["target"], real, judge), **options}
    return {**out, "ddim": ddim, "bound": bounds} if bounds else out


def _best_strength(model: MTDiffusion, words: str, rows: Tensor, train, judge, generator) -> dict[str, float]:
    """The strength of SDEdit whose translations score best: by SSIM, or by scenes read right."""
    source, direction, target = (train[name][rows] for name in ("source", "direction", "target"))

    def score(strength: float) -> float:
        drawn = translate(model, source, direction, strength=strength, generator=generator)
        got = scores(words, drawn, target, target, judge)
        return got.get("ssim", got.get("scene"))

    return best_of("strength", STRENGTHS, score)


EXPERIMENT = Experiment("image-transition", by_size(pairs), VARIANTS, build, config, evaluate, loss)
