"""Networks in whose features images are compared, behind one interface and each under its own name."""

import importlib
import inspect
import math
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtdiff.checkpoint import load
from mtdiff.datasets.base import Dataset
from mtdiff.metrics import Moments, frechet_distance, kernel_distance, precision_recall
from mtdiff.optional import needed
from mtdiff.probes import head_logits
from mtdiff.representations import PRETRAINED, pretrained

INCEPTION = "inception"
"""The network of FID and KID, through torch-fidelity."""


@dataclass(frozen=True)
class FeatureNetwork:
    """What sees images as numbers. Only the name "inception" makes a Frechet distance an FID."""

    name: str  # under which its figures are reported
    network: Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [-1, 1] -> features (B, d)
    classify: Callable[[Tensor], Tensor] | None = None  # images -> class ids (B,), where it can
    names: tuple[str, ...] | None = None  # of the classes that it tells apart; None: it numbers them as the data do

    def numbered(self, names: Sequence[str], data: Sequence[str]) -> "FeatureNetwork":
        """The same network, with class ids in the order of these names; other classes follow them.

        `data` is how the data at hand number their classes, for a network without names of its own. ValueError for a class
        that it does not know.
        """
        own, classify = tuple(data if self.names is None else self.names), self.classify
        if classify is None or not names or own == tuple(names):
            return self
        unknown = [name for name in names if name not in own]
        if unknown:
            raise ValueError(f"features {self.name!r} do not know the classes {unknown}; they know {list(own[:12])}")
        order = [*names, *(name for name in own if name not in names)]
        table = torch.tensor([order.index(name) for name in own])
        return replace(self, classify=lambda image: table[classify(image).cpu()], names=tuple(order))


def feature_network(name: str) -> FeatureNetwork:
    """A feature network by its name.

    Args:
        name: "inception"; one of `mtdiff.representations.PRETRAINED`; a folder or shipped model of images and labels (the
            pooled vector of its backbone, and its label head); or "MODULE:FUNCTION", a function of your own that returns a
            network, images (B, 3, H, W) in [-1, 1] -> (B, d), with a method `classify` if it can, and `names` of its classes
            unless it numbers them as the data do.

    Raises:
        ImportError: the library or module is not installed.
        ValueError: an unknown name, or a function of another kind.
    """
    if name == INCEPTION:
        return FeatureNetwork(name, _inception())
    if name in PRETRAINED:
        return FeatureNetwork(name, pretrained(name))
    module, _, function = name.partition(":")
    if not function:
        return _of_model(name)
    try:
        make = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise ImportError(f"features {name!r}: there is no module {error.name!r} on the path") from None
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"features {name!r}: {module} has no function {function!r}") from None
    try:
        inspect.signature(make).bind()
    except (TypeError, ValueError) as error:
        raise ValueError(f"features {name!r} is no function without arguments: {error}") from None
    made = make()
    if not callable(made):
        raise ValueError(f"features {name!r} must return a network, images -> features, got {reprlib.repr(made)}")
    return FeatureNetwork(name, made, getattr(made, "classify", None), getattr(made, "names", None))


def _of_model(name: str) -> FeatureNetwork:
    """A trained model that names images: what its label head looks at."""
    try:
        model = load(name)
    except FileNotFoundError as error:
        others = f"{INCEPTION!r}, one of {list(PRETRAINED)}, a model or MODULE:FUNCTION"
        raise ValueError(f"features must be {others}, got {name!r} ({error})") from None
    if not {"image", "label"} <= set(model.modalities):
        raise ValueError(f"features {name!r}: a model of images and labels is needed, this one has {list(model.modalities)}")

    def still() -> torch.Generator:
        return torch.Generator(model.device).manual_seed(0)

    def features(image: Tensor) -> Tensor:
        return model.to(image.device).features({"image": image}, generator=still())

    def classify(image: Tensor) -> Tensor:
        return head_logits(model.to(image.device), Dataset(name, {"image": image}), generator=still()).argmax(1)

    return FeatureNetwork(name, features, classify, tuple(model.modalities["label"].names))


def _inception() -> Callable[[Tensor], Tensor]:
    """The Inception network of the original FID, of images in [-1, 1]; downloads its weights the first time."""
    with needed("Inception, for FID and KID,", "metrics"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).eval()

    def features(image: Tensor) -> Tensor:
        return network.to(image.device)(((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))[0]

    return features


@dataclass
class Seen:
    """A set of images, as a feature network sees it: moments of all, and the features (K, d) of some, any as likely."""

    moments: Moments
    some: Tensor


@torch.no_grad()
def seen(images: Iterable[Tensor], network: FeatureNetwork, keep: int = 10_000) -> Seen:
    """Look at batches of images (B, 3, H, W) in [-1, 1]; `keep` features, for distances that need them one by one.

    ValueError where there are no images, or their features are no (B, d).
    """
    moments, some, generator = None, [], torch.Generator().manual_seed(0)
    for batch in images:
        features = network.network(batch)
        if not isinstance(features, Tensor) or features.ndim < 2 or len(features) != len(batch):
            got = tuple(features.shape) if isinstance(features, Tensor) else reprlib.repr(features)
            raise ValueError(f"features {network.name!r} must be numbers ({len(batch)}, d) of as many images, got {got}")
        features = features.flatten(1).cpu()
        moments = moments or Moments(features.shape[1])
        for n, row in enumerate(features.float(), moments.n):  # a reservoir: the n-th stays with probability keep / n
            place = n if n < keep else int(torch.randint(n + 1, (1,), generator=generator))
            if place < keep:
                some[place : place + 1] = [row.clone()]
        moments.update(features)
    if moments is None:
        raise ValueError("there are no images to look at")
    return Seen(moments, torch.stack(some))


def compared(real: Seen, drawn: Seen, seed: int = 0) -> dict[str, float]:
    """How far drawn images are from real ones; `seed` is that of random subsets.

    Returns:
        "frechet" (not a number with fewer images than features: a covariance of lower rank says little), "kernel" with
        "kernel_stderr", "precision" and "recall", of as many of either.
    """
    k = min(len(real.some), len(drawn.some))
    generator = torch.Generator().manual_seed(seed)
    a, b = (s.some[torch.randperm(len(s.some), generator=generator)[:k]] for s in (real, drawn))
    enough = min(real.moments.n, drawn.moments.n) > real.moments.width
    kernel = kernel_distance(real.some, drawn.some, seed=seed)
    return {
        "frechet": frechet_distance(real.moments, drawn.moments) if enough else math.nan,
        "kernel": kernel["mean"],
        "kernel_stderr": kernel["stderr"],
        **precision_recall(a, b),
    }
