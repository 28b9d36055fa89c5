"""How image-label models are judged: samples by every rule, the label head and its calibration, guidance, amplification."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mtdiff.baselines import Unshared
from mtdiff.datasets import Dataset, digits, planted
from mtdiff.datasets.planted import OWN, SHARES
from mtdiff.datasets.prepared import prepared
from mtdiff.datasets.shapes import COLOURS, OBJECTS, SETS, SHAPES
from mtdiff.elbo import elbo
from mtdiff.judges import label_judge, scene_judge, svm_judge, told_apart
from mtdiff.metrics import calibration_error, fidelity, frechet_distance, temperature
from mtdiff.model import MTDiffusion
from mtdiff.probes import each_class, head_accuracy, head_logits, learned, levels, noised
from mtdiff.sampling import sample_many

LABEL_RULES = ("substitute", "bayes", "conditioned")
"""The rules for a given label that are compared everywhere."""
GUIDANCE = (1.0, 1.5, 2.0, 4.0)
"""Scales of classifier-free guidance that are compared."""
FOLDS = 5
"""Parts of the held-out images, each scaled by a temperature that was fitted to the others."""
NOISE = (0.0, 0.05)
"""Standard deviations of the noise under which drawn pairs are told from real ones: none, and 6 of 255 grey levels."""
TOLD = 100
"""The least number of samples for each figure with which drawn pairs are also told from real ones, which takes minutes."""
LEVELS = 11
"""Number of noise levels at which the label head is judged."""
EXAMPLES = 30_000
"""Training images of the shapes world."""
JUDGED = 2000
"""Images of a pack that its judge is trained on, at most, and held-out ones that models are judged on."""


@functools.lru_cache(4)
def named_shapes(data: str, split: str) -> Dataset:
    """Images (N, 3, s, s) of one large shape on grey and labels (N,), 18 classes "red circle" ...: colour and shape.

    Colour and shape are independent of each other, as is all else that a scene has. `data` is "shapes16" or "shapes32", the
    split "train" (`EXAMPLES`) or "test" (2,000).
    """
    scenes = planted(1 / len(COLOURS), split, SETS[data], EXAMPLES if split == "train" else None)
    label = len(COLOURS) * scenes.values["label"] + scenes.values["colour"]
    return Dataset(f"{data}/{split}", {"image": scenes.values["image"], "label": label}, OBJECTS, f"{scenes.source}, named")


def coarse(image: Tensor) -> Tensor:
    """Images (N, C, H, W) at 8x8, (N, 64 C): colours and their rough places, no more."""
    return F.adaptive_avg_pool2d(image, 8).flatten(1)


def mixed(size: int, n: int) -> Tensor:
    """At most n rows of a set that is in the order of its classes, mixed: the first few of them are a sample, too."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(0))[:n]


@dataclass(frozen=True)
class Referee:
    """Who judges the samples of a data set, and what they are compared with."""

    judge: Callable[[Tensor], Tensor]  # images -> class ids
    test: Dataset  # held-out images and labels
    real: Tensor  # real images that drawn ones are compared with
    features: Callable[[Tensor], Tensor]  # images -> (N, d), for distances, precision and recall
    steps: int  # sampler steps of every sample that is judged

    @property
    def accuracy(self) -> float:
        """Of the judge, on held-out images."""
        return float((self.judge(self.test.values["image"]) == self.test.values["label"]).double().mean())

    @property
    def mixed(self) -> Tensor:
        """The real images in another order."""
        return self.real[mixed(len(self.real), len(self.real))]

    def fidelity(self, image: Tensor) -> dict[str, float]:
        """`mtdiff.metrics.fidelity` of drawn images in the referee's features, to real ones in a mixed order."""
        return fidelity(self.features(self.mixed), self.features(image.cpu()))

    def scores(self, drawn: Mapping[str, Tensor]) -> dict[str, float | int]:
        """`image_label_metrics` by this judge."""
        return image_label_metrics(drawn, self.judge, self.real)


@functools.cache
def referee(data: str) -> Referee:
    """The referee of "digits", "shapes16" or "shapes32", or of a pack: there it looks at `coarse` pixels."""
    if data == "digits":
        return Referee(svm_judge(digits("train")), digits("test"), digits("all").values["image"], lambda x: x.flatten(1), 50)
    if data not in SETS:
        train, test = (prepared(data, split, ("image", "label")) for split in ("train", "test"))
        train, test = (Dataset(each.name, each[mixed(len(each), JUDGED)], each.names) for each in (train, test))
        small = Dataset(train.name, {**train.values, "image": coarse(train.values["image"])})
        judge = svm_judge(small)
        return Referee(lambda x: judge(coarse(x)), test, test.values["image"], coarse, 25)
    test = named_shapes(data, "test")
    return Referee(label_judge(data).read, test, test.values["image"], scene_judge(data).features, 25)


def evaluate(model: MTDiffusion, data: str, seed: int = 0, n: int = 2000) -> dict:
    """All that a variant can do, as far as it has it, and the judge's own accuracy.

    Its default rules say what it learned: "label" to be told labels, "image" to read them. A label that has no code in the
    chain can only be told, by the rule "conditioned".

    Returns:
        Of what draws `sample_scores`, all that "unshared" has; `head_scores`; "guidance": `guidance_scores`; "codes":
        `code_scores`. For planted scenes `amplification`.
    """
    if data in SHARES:
        return amplification(model, SHARES[data], seed, n)
    r, out, knows = referee(data), {}, learned(model).keys() & {*model.modalities}
    coded, unshared = "label" in model.process.entering, isinstance(model, Unshared)
    if knows == {*model.modalities}:
        rules = LABEL_RULES if coded and not unshared else ("conditioned",) if "label" in knows else ()
        out = sample_scores(model, r, n, rules, seed)
    if "label" in model.modalities and not unshared:
        out |= head_scores(model, r.test, seed) if "image" in knows else {}
        out |= {"guidance": guidance_scores(model, r, n, seed)} if "label" in knows else {}
        out |= {"codes": code_scores(model.modalities["label"].table())} if coded else {}
    halves = frechet_distance(*r.mixed.chunk(2))
    return {**out, "judge_accuracy": r.accuracy, "frechet_pixels_of_two_real_halves": halves}


def sample_scores(model: MTDiffusion, r: Referee, n: int, rules: Sequence[str], seed: int = 0) -> dict:
    """Joint samples, conditional ones by each rule, the label head, and the bound; n samples a line, as many of every class.

    Returns:
        {"joint": `Referee.scores`, "joint_ddim": the same by DDIM, rule: ..., "head_accuracy": number, "bound":
        `image_label_bounds`, `Referee.fidelity` of joint samples, and from `TOLD` samples on "told_apart": `told`}.
    """
    generator, kinds = torch.Generator(model.device).manual_seed(seed), {"joint": {}, "joint_ddim": {"sampler": "ddim"}}
    kinds |= {rule: {"rule": rule, "given": {"label": each_class(model, n)}} for rule in rules}
    drawn = {kind: sample_many(model, n, steps=r.steps, generator=generator, **kinds[kind]) for kind in kinds}
    out = {kind: r.scores(values) for kind, values in drawn.items()}
    if "label" in model.modalities:
        out["head_accuracy"] = head_accuracy(model, r.test, generator=generator)
    draws = max(1, round(10 * n / len(r.test)))  # about 10 n in all: as costly as the samples that it stands beside
    out["bound"] = image_label_bounds(model, r.test, draws, generator)
    if n >= TOLD:
        out["told_apart"] = told(model, r.test, r.steps, generator)
    return {**out, **r.fidelity(drawn["joint"]["image"])}


def told(model: MTDiffusion, test: Dataset, steps: int, generator: torch.Generator) -> dict[str, dict[str, float]]:
    """How well a fresh network tells as many joint pairs as there are held-out ones from these: {noise: `told_apart`}.

    Images are rounded as a file has them: all real ones are of few levels.
    """
    pairs = sample_many(model, len(test), steps=steps, generator=generator)
    pairs["image"] = model.modalities["image"].rounded(pairs["image"])
    real = {name: test.values[name] for name in pairs}
    return {str(noise): told_apart(real, pairs, noise) for noise in NOISE}


def image_label_metrics(
    drawn: Mapping[str, Tensor], judge: Callable[[Tensor], Tensor], real: Tensor
) -> dict[str, float | int]:
    """How good images (N, C, H, W) are, beside real ones (M, C, H, W), and their labels (N,), if they have any.

    Returns:
        "agreement": share of images that the judge calls by their label; "classes": number of classes drawn; "spread":
        pixel standard deviation over the real one; "frechet_pixels": `frechet_distance` of pixels.
    """
    image, out = drawn["image"].cpu(), {}
    if "label" in drawn:
        label = drawn["label"].cpu()
        out = {"agreement": float((judge(image) == label).double().mean()), "classes": label.unique().numel()}
    return {**out, "spread": float(image.std() / real.std()), "frechet_pixels": frechet_distance(image, real)}


@torch.no_grad()
def image_label_bounds(model: MTDiffusion, test: Dataset, samples: int, generator: torch.Generator) -> dict[str, float]:
    """Likelihood of held-out examples, `samples` draws each, as bounded by `mtdiff.elbo`, and what the label head adds.

    Returns:
        "image": bound on log p(image) alone (S = {image}), in nats per example, "image_stderr" its standard error and
        "image_bits_per_dim" the same in bits; with a label also "label_given_image": mean log p(label | z near t = 0) with
        S = {image}; "sum" of the two, a bound on log p(image, label) with only the image in z; and "joint": the bound
        with both in z, with its "joint_stderr".
    """
    values = {name: value.to(model.device) for name, value in test.values.items() if name in model.modalities}
    alone = elbo(model, values, samples, present={"image"}, generator=generator)
    out = {"image": alone.total, "image_stderr": alone.stderr, "image_bits_per_dim": alone.bits_per_dim("image")}
    if "label" not in values:
        return out
    both = elbo(model, values, samples, generator=generator)
    z, present = noised(model, {"image": values["image"]}, model.process.first, generator)
    read = float(model.log_prob("label", values["label"], z, model.process.first, present=present).double().mean())
    out |= {"label_given_image": read, "sum": alone.total + read}
    return {**out, "joint": both.total, "joint_stderr": both.stderr}


def head_scores(model: MTDiffusion, test: Dataset, seed: int = 0) -> dict:
    """What the label head is worth on held-out images, alone in the state.

    Returns:
        "head": "accuracy", "nats" (cross-entropy), "calibration_error", and after temperature scaling, of the images
        "temperature" (of all), "nats_scaled" and "calibration_error_scaled" (each fifth scaled by what fits the others);
        "levels": {t: "accuracy" and "nats" at that step}.
    """
    label, fold = test.values["label"], torch.arange(len(test)) % FOLDS
    generator = torch.Generator(model.device).manual_seed(seed)
    logits = head_logits(model, test, generator=generator).cpu()
    scaled = logits.clone()
    for k in range(FOLDS):
        scaled[fold == k] /= temperature(logits[fold != k], label[fold != k])
    before, after = ({**_naming(x, label), "calibration_error": calibration_error(x, label)} for x in (logits, scaled))
    head = {**before, "temperature": temperature(logits, label)}
    head |= {f"{name}_scaled": after[name] for name in ("nats", "calibration_error")}
    steps = levels(model, LEVELS)
    along = {str(t): _naming(head_logits(model, test, t=t, generator=generator).cpu(), label) for t in steps}
    return {"head": head, "levels": along}


def code_scores(codes: Tensor) -> dict[str, float]:
    """How far apart the codes (K, *slice) of classes are.

    Returns:
        "nearest": the least distance of two codes over the largest that it can be at their RMS, which is that of a simplex;
        "directions": how many the codes use, (sum l)^2 / sum l^2 of the eigenvalues l of their covariance, at most K - 1.
    """
    codes = codes.detach().flatten(1).double().cpu()
    k, n = codes.shape
    bound = (2 * n * float(codes.square().mean()) * k / (k - 1)) ** 0.5
    power = torch.linalg.svdvals(codes - codes.mean(0)).square()
    return {"nearest": float(torch.pdist(codes).min()) / bound, "directions": float(power.sum() ** 2 / power.square().sum())}


def _naming(logits: Tensor, label: Tensor) -> dict[str, float]:
    """Accuracy and cross-entropy."""
    right = (logits.argmax(1) == label).double().mean()
    return {"accuracy": float(right), "nats": float(F.cross_entropy(logits.double(), label))}


def guidance_scores(model: MTDiffusion, r: Referee, n: int, seed: int = 0) -> dict:
    """Fidelity against diversity: {scale of `GUIDANCE`: scores} of n samples of given labels by rule "conditioned".

    As many of every class, and the same noise at every scale; scores are `Referee.scores` and `Referee.fidelity`.
    """
    out, options = {}, {"rule": "conditioned", "given": {"label": each_class(model, n)}, "steps": r.steps}
    for scale in GUIDANCE:
        generator = torch.Generator(model.device).manual_seed(seed)
        drawn = sample_many(model, n, guidance=scale, generator=generator, **options)
        out[str(scale)] = {**r.scores(drawn), **r.fidelity(drawn["image"])}
    return out


def amplification(model: MTDiffusion, share: float, seed: int, n: int, scales: Sequence[float] = GUIDANCE) -> dict:
    """Is a planted correlation of shape and colour reproduced, amplified or reduced by a model of image and shape ("label")?

    `share` is how often a shape has its own colour in the training data. Gives `colour_scores` of "joint", "joint, ddim"
    and, for each scale S, "guidance S" (given labels by the model's own sampler).
    """
    out, kinds = {}, {"joint": {}, "joint, ddim": {"sampler": "ddim"}} if "image" in learned(model) else {}
    for scale in scales:
        kinds[f"guidance {scale}"] = {"guidance": scale, "rule": "conditioned", "given": {"label": each_class(model, n)}}
    for kind, options in kinds.items():
        generator = torch.Generator(model.device).manual_seed(seed)
        drawn = sample_many(model, n, steps=25, generator=generator, **options)
        read = (judge(drawn["image"].cpu()) for judge in shape_and_colour())
        out[kind] = colour_scores(*read, drawn["label"].cpu(), share)
    return out


@functools.cache
def shape_and_colour() -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Judges of shape and of colour: support-vector machines, trained on scenes in which neither tells of the other."""
    data = planted(1 / len(COLOURS), n=4000, seed=1)
    colours = {"image": data.values["image"], "label": data.values["colour"]}
    return svm_judge(data), svm_judge(Dataset(data.name, colours))


def colour_scores(shape: Tensor, colour: Tensor, label: Tensor, share: float) -> dict[str, float]:
    """Colours of drawn scenes, of those whose shape is the one that the label says.

    `shape` and `colour` are as judges read the images, `label` is the shape that was drawn, all (N,); `share` is how often
    a shape has its own colour in the training data.

    Returns:
        "agreement": share of all scenes that are such; "own": how many of them have the shape's own colour, mean over
        shapes; "amplified": own less `share`; "others": how evenly the five other colours come, their entropy over log 5.
    """
    right = shape == label
    away, kind = ((colour - torch.tensor(OWN)[label]) % len(COLOURS))[right], label[right]
    own = sum(float((away[kind == k] == 0).double().mean()) for k in range(len(SHAPES))) / len(SHAPES)
    others = away.bincount(minlength=len(COLOURS))[1:].double()
    evenness = float(torch.special.entr(others / others.sum()).sum()) / math.log(len(others))
    return {"agreement": float(right.double().mean()), "own": own, "amplified": own - share, "others": evenness}
