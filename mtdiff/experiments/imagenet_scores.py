"""How models of photographs are judged: drawn images in the features of a network, the label head, filled holes, boxes."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from mtdiff.datasets import Dataset
from mtdiff.elbo import elbo
from mtdiff.experiments.base import matched
from mtdiff.experiments.label_scores import coarse, head_scores, mixed
from mtdiff.experiments.masked_image import HIDDEN, STEPS, filled
from mtdiff.features import FeatureNetwork, Seen, compared, feature_network, seen
from mtdiff.metrics import hidden_psnr, kernel_distance, ssim
from mtdiff.model import MTDiffusion
from mtdiff.probes import each_class, head_accuracy, learned, levels, noised
from mtdiff.sampling import sample_many

GUIDANCE = (1.0, 2.0, 4.0)
"""Scales of classifier-free guidance at which images of given classes are judged."""
LEVELS = 7
PROBED = 500
"""Held-out images that are looked at along a training, and drawn ones."""
BATCH = 250
DRAWS = 8
"""Draws of each image for the bound on its likelihood."""
PIXELS = FeatureNetwork("pixels at 8x8", coarse)
"""What looks at images where no network is named."""


def evaluate(
    model: MTDiffusion, test: Dataset, seed: int = 0, n: int = 2000, features: str | FeatureNetwork | None = None
) -> dict:
    """All that a variant can do, on held-out photographs.

    Classes are matched by their names (ValueError where model, data and network do not share them). n images are drawn for a
    distance, and compared with at most so many real ones, chosen at random; a tenth as many are filled at each share. Who
    looks at them is a `feature_network`, or `PIXELS`.

    Returns:
        "alone", "joint" and "guidance S": {name of the network: `compared`, "classes": share whose label it confirms};
        "real": the same share of real images, where there are labels; of what draws "bound" (`image_bound`); of a label
        "head" and "levels" (`head_scores`); with masks `fillings`; with boxes "box": `box_overlap`.
    """
    network = PIXELS if features is None else feature_network(features) if isinstance(features, str) else features
    real = matched(model, Dataset(test.name, test[mixed(len(test), n)], test.names), elsewhere=True)
    network = network.numbered(real.names, test.names) if "label" in real.values else network
    shown = seen((part.to(model.device) for part in real.values["image"].split(BATCH)), network)
    generator = torch.Generator(model.device).manual_seed(seed)

    def judged(label: Tensor | None = None, **options) -> dict:
        def draw(rows: Tensor) -> dict[str, Tensor]:
            given = None if label is None else {"label": label[rows]}
            return sample_many(model, len(rows), given=given, steps=STEPS, generator=generator, **options)

        return drawn_scores(draw, n, shown, network)

    out: dict = {}
    if network.classify is not None and "label" in real.values:
        named = torch.cat([network.classify(part.to(model.device)).cpu() for part in real.values["image"].split(BATCH)])
        out["real"] = {"classes": float((named == real.values["label"]).double().mean())}
    draws = "label" not in model.modalities or "label" in learned(model)
    if draws:
        out["alone"] = judged(present={"image"})
        out["bound"] = image_bound(model, real.values["image"], generator)
    if draws and len(model.process.entering) > 1:
        out["joint"] = judged()
    if "label" in model.modalities and "image" in learned(model):
        out |= head_scores(model, _images(real), seed)
    if "label" in learned(model):
        label = each_class(model, n)
        for scale in GUIDANCE:
            out[f"guidance {scale}"] = judged(label, rule="conditioned", guidance=scale)
    if "mask" in model.modalities:
        out |= fillings(model, real.values["image"][: max(4, n // 10)], network, generator)
    if "box" in model.modalities:
        out["box"] = box_overlap(model, real, generator)
    return out


def drawn_scores(draw: Callable[[Tensor], dict], n: int, real: Seen, network: FeatureNetwork) -> dict:
    """What n images of `draw` are worth beside real ones: numbers (k,) of examples -> {"image": (k, 3, s, s), ...}.

    Returns:
        {name of the network: `compared`}, and where there are labels and the network names classes, "classes": the share of
        images that it calls by their label.
    """
    right = []

    def images():
        for rows in torch.arange(n).split(BATCH):
            drawn = draw(rows)
            if network.classify is not None and "label" in drawn:
                right.append((network.classify(drawn["image"]).cpu() == drawn["label"].cpu()).double())
            yield drawn["image"]

    out: dict = {network.name: compared(real, seen(images(), network))}
    return {**out, "classes": float(torch.cat(right).mean())} if right else out


@torch.no_grad()
def image_bound(model: MTDiffusion, image: Tensor, generator: torch.Generator) -> dict[str, float]:
    """What the image alone is worth to a model, by `mtdiff.elbo`: on these bytes, at this size and made smaller this way.

    Returns:
        "bits_per_dim": an upper bound on the mean of -log2 p(image) / (3 s^2), `DRAWS` draws for each of (N, 3, s, s), N at
        least 2, and "stderr".
    """
    parts = ({"image": part.to(model.device)} for part in image.split(BATCH))
    found = [elbo(model, part, DRAWS, present={"image"}, generator=generator).totals for part in parts]
    bits = -torch.cat(found) / (image[0].numel() * math.log(2))
    return {"bits_per_dim": float(bits.mean()), "stderr": float(bits.std() / len(bits) ** 0.5)}


def fillings(model: MTDiffusion, image: Tensor, network: FeatureNetwork, generator: torch.Generator) -> dict:
    """Holes in held-out images filled by told masks, with and without repeated steps, by the mean, and by heat, at `HIDDEN`.

    Returns:
        {"told", "repeated", "mean", "heat": {share: "psnr" (`hidden_psnr`) and "psnr_stderr" over images, "ssim", and where
        the network names classes "class": share of images that it calls as it calls the truth}}.
    """
    out: dict = {"told": {}, "repeated": {}, "mean": {}, "heat": {}}
    for way, share in itertools.product(out, HIDDEN):
        drawn, mask = filled(model, image, share, way, generator)
        hidden = hidden_psnr(drawn, image, mask)
        line = {"psnr": float(hidden.mean()), "psnr_stderr": float(hidden.std() / len(hidden) ** 0.5)}
        line["ssim"] = float(ssim(drawn, image).mean())
        if network.classify is not None:
            same = network.classify(drawn.to(model.device)) == network.classify(image.to(model.device))
            line["class"] = float(same.double().mean())
        out[way][str(share)] = line
    return out


def box_overlap(model: MTDiffusion, real: Dataset, generator: torch.Generator) -> dict[str, float]:
    """How well a box is read off an image, one evaluation at the first step: mean intersection over union with the true one.

    "overlap" is of the more probable value of each pixel, "drawn" of a draw of each, "everything" of the whole image, and
    "constant" of `best_constant`, which has seen these very boxes.
    """
    found: dict[str, list] = {"overlap": [], "drawn": [], "everything": []}
    t = model.process.first
    for rows in torch.arange(len(real)).split(BATCH):
        truth = real.values["box"][rows].bool()
        z, present = noised(model, {"image": real.values["image"][rows]}, t, generator)
        with torch.no_grad():
            prediction = model.predict(z, t, present=present)
        likely = prediction.law["box"].logits.argmax(1, keepdim=True).bool().cpu()
        drawn = model.read(z, t, generator=generator, prediction=prediction)["box"].bool().cpu()
        for boxes, said in zip(found.values(), (likely, drawn, torch.ones_like(truth)), strict=True):
            boxes.append(_overlap(truth, said))
    return {name: float(torch.cat(boxes).mean()) for name, boxes in found.items()} | {
        "constant": best_constant(real.values["box"].bool())
    }


def best_constant(boxes: Tensor) -> float:
    """Mean intersection over union of boxes (N, 1, s, s) with one set of pixels for all: those that most of them have."""
    usual = (boxes.double().mean(0) >= share for share in torch.linspace(0.05, 0.95, 19))
    return max(float(_overlap(boxes, pixels.expand_as(boxes)).mean()) for pixels in usual)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of sets of pixels (N, 1, s, s) bool, (N,) float64."""
    return (a & b).flatten(1).sum(1).double() / (a | b).flatten(1).sum(1).clamp(min=1)


@torch.no_grad()
def progress(model: MTDiffusion, test: Dataset) -> dict[str, float]:
    """What is noted along a training, with the same noise every time.

    Returns:
        Of a model that draws, "error": mean square error of the image's estimate from the image alone in z, in units of the
        image, mean over `LEVELS` noise levels; and "kernel": kernel distance (`PIXELS`) of `PROBED` images, drawn alone by
        `STEPS` DDIM steps, to real ones. Of one with labels, "head": accuracy of the label head.
    """
    real = test[mixed(len(test), PROBED)]
    image, out = real["image"].to(model.device), {}
    generator = torch.Generator(model.device).manual_seed(0)
    if "label" not in model.modalities or "label" in learned(model):
        errors = []
        for t in levels(model, LEVELS):
            z, present = noised(model, {"image": image}, t, generator)
            errors.append((model.predict(z, t, present=present).estimate["image"] - image).square().mean())
        drawn = sample_many(model, PROBED, present={"image"}, steps=STEPS, sampler="ddim", generator=generator)["image"]
        distance = kernel_distance(PIXELS.network(image), PIXELS.network(drawn.to(model.device)))["mean"]
        out = {"error": float(torch.stack(errors).mean()), "kernel": distance}
    if "label" in model.modalities:
        out["head"] = head_accuracy(model, _images(Dataset(test.name, real)), generator=generator)
    return out


def _images(data: Dataset) -> Dataset:
    """Images and labels of a set, and nothing else that would help to name them."""
    return Dataset(data.name, {name: data.values[name] for name in ("image", "label")}, data.names)
