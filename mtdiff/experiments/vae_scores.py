"""How models of a few modalities are judged, whatever they are: is what they draw coherent, and does it look real?"""

import itertools
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from mtdiff.datasets import Dataset
from mtdiff.datasets.shapes import as_picture
from mtdiff.digit_judges import digit_judge
from mtdiff.experiments.any_scores import agreement, read
from mtdiff.judges import scene_judge
from mtdiff.metrics import frechet_distance
from mtdiff.representations import linear_probe
from mtdiff.sampling import sample_many
from mtdiff.trainable import Model
from mtdiff.vae import SOURCES, MultimodalVAE

STEPS = 12
"""Intervals of every reverse chain that is judged."""
PROBED = 2000
"""Training examples that a linear probe is fitted to."""


class Digits:
    """Reads digits off images of `polydigits`: they are coherent where it reads the same digit."""

    def __init__(self, data: str):
        self.judge = digit_judge(data)

    def follows(self, name: str, value: Tensor, truth: Mapping[str, Tensor], given: Collection[str]) -> float:
        """Share of drawn images on which the true digit is read."""
        return float((self.judge.read(value) == truth["label"]).double().mean())

    def together(self, drawn: Mapping[str, Tensor]) -> float:
        """Share of examples whose images all show one digit, as it reads them."""
        digits = torch.stack([self.judge.read(value) for value in drawn.values()])
        return float((digits == digits[0]).all(0).double().mean())

    def features(self, name: str, value: Tensor) -> Tensor:
        """What the judge sees of images, (N, 64)."""
        return self.judge.features(value)


class Scenes:
    """Reads captions off images and segmentations of scenes: coherent is what says the same, word by word."""

    def __init__(self, data: str):
        self.size = int(data.removeprefix("shapes"))
        self.judges = {"image": scene_judge(data), "segmentation": scene_judge(f"{data}-segmentation")}

    def follows(self, name: str, value: Tensor, truth: Mapping[str, Tensor], given: Collection[str]) -> float:
        """Mean share of the words that both can say, over kinds of words (`any_scores.agreement`)."""
        shares = agreement(name, value, truth, given, self.size)
        return sum(shares.values()) / len(shares)

    def together(self, drawn: Mapping[str, Tensor]) -> float:
        """The same between every two modalities that were drawn, the caption of one taken for the truth."""
        found = []
        for one, other in itertools.combinations(drawn, 2):
            said = {"caption": read(one, drawn[one], self.size)}
            shares = agreement(other, drawn[other], said, [one], self.size)
            found.append(sum(shares.values()) / len(shares))
        return sum(found) / len(found)

    def features(self, name: str, value: Tensor) -> Tensor | None:
        """What a judge sees of images or segmentations, (N, 64); of captions there is no such thing."""
        return self.judges[name].features(as_picture(name, value)) if name in self.judges else None


def evaluate(model: Model, data: str, examples: Callable[[str, str], Dataset], seed: int = 0, n: int = 120) -> dict:
    """All conditionals and joint draws on held-out examples, n each.

    Returns:
        "given": {names of what is given: {drawn: {"coherence": share in [0, 1], "distance": Frechet distance of the judge's
        features to real ones}}}; "mean": the means of that over what is given, {drawn: the same}; "coherence": the mean over
        all; "joint": {source of the latent, of MT-Diffusion "chain": {"coherence", "chance": that of modalities from
        different draws, name: distance}}; "probe": {given: how often a linear map from the model's features to the label is
        right}; "bound": nats, of a VAE.
    """
    reader, test = (Scenes if data == "shapes16" else Digits)(data), examples(data, "test")
    truth, names = test[:n], list(model.modalities)
    real = {name: reader.features(name, test.values[name]) for name in names}
    generator = torch.Generator(model.device).manual_seed(seed)

    def distance(name: str, value: Tensor) -> dict[str, float]:
        seen = reader.features(name, value)
        return {} if seen is None else {"distance": frechet_distance(seen, real[name])}

    found: dict[str, dict] = {}
    for count in range(1, len(names)):
        for given in itertools.combinations(names, count):
            drawn = _drawn(model, n, generator, {name: truth[name] for name in given})
            rest = {name: drawn[name] for name in names if name not in given}
            found["+".join(given)] = {
                name: {"coherence": reader.follows(name, value, truth, given), **distance(name, value)}
                for name, value in rest.items()
            }
    mean = {name: _mean([row[name] for row in found.values() if name in row]) for name in names}
    joint = {}
    for source in SOURCES if isinstance(model, MultimodalVAE) else ("chain",):
        drawn = _drawn(model, n, generator, **({} if source == "chain" else {"latent": source}))
        strangers = {name: value.roll(k, 0) for k, (name, value) in enumerate(drawn.items())}
        joint[source] = {"coherence": reader.together(drawn), "chance": reader.together(strangers)}
        joint[source] |= {name: d["distance"] for name in names if (d := distance(name, drawn[name]))}
    out = {"given": found, "mean": mean, "coherence": _mean(list(mean.values()))["coherence"], "joint": joint}
    out["probe"] = probes(model, examples(data, "train")[:PROBED], test.values)
    if isinstance(model, MultimodalVAE):
        out["bound"] = model.bound({name: truth[name] for name in names}, generator)
    return out


def _mean(rows: list[Mapping[str, float]]) -> dict[str, float]:
    """Entry by entry, of those that all rows have."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0] if all(key in row for row in rows)}


def _drawn(model: Model, n: int, generator: torch.Generator, given: Mapping[str, Tensor] | None = None, **options) -> dict:
    """All modalities, on the CPU."""
    drawn = sample_many(model, n, given=given, steps=STEPS, generator=generator, **options)
    return {name: value.cpu() for name, value in drawn.items()}


def probes(model: Model, train: Mapping[str, Tensor], test: Mapping[str, Tensor]) -> dict[str, float]:
    """Accuracy of a linear map from features of each modality, and of all together, to the label of held-out examples."""
    names, found = list(model.modalities), {}
    options = {} if isinstance(model, MultimodalVAE) else {"generator": torch.Generator(model.device).manual_seed(0)}
    for given in [*([name] for name in names), names]:
        known, seen = (model.features({name: part[name] for name in given}, **options) for part in (train, test))
        right = linear_probe(known, train["label"], seen) == test["label"]
        found["all" if given is names else given[0]] = float(right.double().mean())
    return found
