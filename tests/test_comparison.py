"""Differences of variants: by seed, with one threshold, and as the pages quote them."""

import json
import math
import random
import re
from pathlib import Path

import pytest

from mtdiff.comparison import Difference, by_seed, mean_and_error, paired, tally
from mtdiff.degradations import TASKS
from mtdiff.experiments.image_transition import DETERMINED, DIRECTIONS

ROOT = Path(__file__).parent.parent
PAGES = {"README": ROOT / "README.md"}
PAGES |= {name: ROOT / "notebooks" / f"{name}.md" for name in ("measured", "walkthrough")}


def result(*seeds, values=None):
    """A result file with a run for each seed; its number is under metrics, a, b."""
    values = values or [float(seed) for seed in seeds]
    pairs = zip(seeds, values, strict=True)
    return {"runs": [{"card": {"training": {"seed": seed}}, "metrics": {"a": {"b": value}}} for seed, value in pairs]}


def test_a_difference_is_taken_seed_by_seed():
    found = paired({0: 5.0, 1: 9.0, 2: 1.0}, {2: 0.0, 0: 3.0, 1: 6.0})  # 2, 3, 1
    assert (found.mean, found.n) == (2.0, 3)
    assert found.stderr == pytest.approx(1 / math.sqrt(3))


def test_what_a_seed_does_to_both_variants_falls_out_of_the_difference():
    luck = {0: -30.0, 1: 5.0, 2: 40.0}
    found = paired({seed: value + 1 + 0.01 * seed for seed, value in luck.items()}, luck)
    assert found.clear
    assert found.mean == pytest.approx(1.01)
    assert found.stderr < 0.01


def test_the_p_value_is_that_of_the_paired_t_test():
    stats = pytest.importorskip("scipy.stats")
    noise = random.Random(0)
    for n in (2, 3, 4, 5, 6, 9, 24, 61):
        a, b = ({seed: noise.gauss(mean, 1) for seed in range(n)} for mean in (0.4, 0.0))
        expected = stats.ttest_rel([a[seed] for seed in range(n)], [b[seed] for seed in range(n)])
        assert paired(a, b).p == pytest.approx(expected.pvalue, abs=1e-12)


@pytest.mark.parametrize(("n", "threshold"), [(2, 12.706), (3, 4.303), (4, 3.182), (10, 2.262)])
def test_few_seeds_need_more_standard_errors_to_be_clear(n, threshold):
    assert Difference(-threshold - 0.01, 1.0, n).clear
    assert not Difference(threshold - 0.01, 1.0, n).clear


def test_one_seed_says_nothing_and_equal_differences_say_all():
    assert not paired({0: 1e9}, {0: 0.0}).clear
    assert f"{paired({0: 2.0}, {0: 1.0}):.1f}" == "+1.0"
    assert paired({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}).clear
    assert not paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).clear


def test_a_clear_difference_has_a_star():
    assert f"{Difference(-0.0262, 0.0028, 3)}" == "-0.026 ± 0.003 *"
    assert f"{Difference(2.5, 3.06, 3):.1f}" == "+2.5 ± 3.1"
    assert tally([Difference(1.0, 0.1, 3), Difference(1.0, 1.0, 3)]).startswith(
        "1 of 2 differences are clear (*); by chance alone"
    )


def test_numbers_of_a_result_file_are_found_by_their_seeds_in_any_order():
    assert by_seed(result(2, 0, 1), "metrics", "a", "b") == {0: 0.0, 1: 1.0, 2: 2.0}


def test_only_runs_of_the_same_seeds_are_paired():
    with pytest.raises(ValueError, match=r"same seeds can be paired, got a of \[0, 1, 2\] and b of \[0, 1, 3\]"):
        paired(*(by_seed(found, "metrics", "a", "b") for found in (result(0, 1, 2), result(0, 1, 3))))
    with pytest.raises(ValueError, match=r"same seeds"):
        paired({}, {})
    with pytest.raises(ValueError, match=r"3 runs of the seeds \[0, 1\]: a seed may occur once"):
        by_seed(result(0, 1, 1), "metrics", "a", "b")


def measured(file, *path):
    """One number of a result file for each seed."""
    return by_seed(json.loads((ROOT / "data" / "results" / f"{file}.json").read_text()), *path)


def average(file, words, key):
    """A transition's figure on average over some directions, for each seed."""
    each = [measured(file, "metrics", *(("bound", w) if key == "bound" else (w, key))) for w in words]
    return {seed: sum(one[seed] for one in each) / len(each) for seed in each[0]}


def less(setting, a, b, *path, control=None):
    """The difference of two variants of a setting in one figure, or in two."""
    return paired(measured(f"{setting}-{a}", *path), measured(f"{setting}-{b}", *(control or path)))


DIGITS, MASKED, SUMMARY = "image-label-digits", "masked-image-shapes16", "image-representation-shapes16"
CHAIN, OPEN = "image-transition-shapes16", [words for words in DIRECTIONS if words not in DETERMINED]
ALONE, LAST = ("metrics", "alone", "features"), ("card", "probes", -1, "features")
GIVEN, JOINT = ("metrics", "given", "features"), ("card", "probes", -1, "joint")


def guided(scale):
    """Where the distance of images drawn with guidance of this scale stands."""
    return "metrics", "guidance", f"{scale:.1f}", "features"


def chain(words, key):
    """Transition less conditional on average."""
    return paired(*(average(f"{CHAIN}-{name}", words, key) for name in ("transition", "conditional")))


def own(share, a, b):
    """Points of the own colour in one kind of planted draws less another, or less the data."""
    file = f"image-label-planted{share}-fade-in"
    one = measured(file, "metrics", a, "own")
    other = dict.fromkeys(one, share / 100) if b == "data" else measured(file, "metrics", b, "own")
    return paired(*({seed: 100 * value for seed, value in each.items()} for each in (one, other)))


def holes(a, b, share, what):
    """One way to fill holes less RePaint or SDEdit."""
    return less(MASKED, a, "plain", "metrics", b, share, what, control=("metrics", "repaint", share, what))


def boxes(key):
    """A figure of models of scenes whose boxes weigh 0.5 less that where they weigh 0.02."""
    rows = json.loads((ROOT / "data" / "results" / "benchmark-boxes.json").read_text())["rows"]
    return paired(*({row["seed"]: row[key] for row in rows if row["weight"] == weight} for weight in (0.5, 0.02)))


def photographs(variant, *path):
    """A variant less plain diffusion in per cent, over pairs of trainings of three sizes."""
    pairs = [[measured(f"imagenet-imagenette32-{v}{size}", "metrics", *path) for v in (variant, "plain")] for size in SIZES]
    found = [(100 * mine[seed] / plain[seed], 100.0) for mine, plain in pairs for seed in mine]
    return paired(*(dict(enumerate(values)) for values in zip(*found, strict=True)))


def restoration(b, key, tasks=tuple(TASKS), way="draw"):
    """Draws by the model that is told, less another way of its own, those of a transition or the plug-in way, over tasks."""

    def mean(variant, way):
        each = [measured(f"restoration-shapes16-{variant}", "metrics", way, task, key) for task in tasks]
        return {seed: sum(one[seed] for one in each) / len(each) for seed in each[0]}

    mine = mean("told", "draw")
    if b != "plug-in":
        return paired(mine, mean(b, way))
    zero = json.loads((ROOT / "data" / "results" / "benchmark-zero-shot-shapes16.json").read_text())["shapes16"][b]
    return paired(mine, dict.fromkeys(mine, sum(zero[task][key]["mean"] for task in tasks) / len(tasks)))


def dense(task, key, other):
    """The generalist less another variant on a task: in hundredths, or dB."""
    scale = 1 if key == "psnr" else 100
    each = (measured(f"dense-shapes16-{name}", "metrics", task, key) for name in ("generalist", other))
    return paired(*({seed: scale * value for seed, value in values.items()} for values in each))


SHIFTED = [f"{task}, shifted" for task in ("super-resolve", "deblur", "denoise")]
SIZES, JUDGE = ("", "-long", "-gpu"), "mobilenetv2:imagenette"
HEAD = ("metrics", "head", "accuracy")
VAE, CHAINED, TEMPLE = "multimodal-vae-polydigits", "mopoe-diffusion", ("metrics", "mean", "temple")
TRIPLES = ("metrics", "joint")
ANY, PAIRS, FROM = "any-to-any-shapes16", ("metrics", "pairs", "mean"), ("metrics", "matrix")
QUOTED = {  # name: (difference, digits, is it clear, where)
    "constant FD": (less(DIGITS, "constant", "fade-in", "metrics", "joint", "frechet_pixels"), 2, True, "measured"),
    "label's price": (less(DIGITS, "fade-in", "image-only", "metrics", "bound", "image"), 1, True, "measured"),
    "own channels' price": (less(DIGITS, "fade-in", "own-channels", "metrics", "bound", "image"), 1, False, "measured"),
    "head, classifier": (less(DIGITS, "fade-in", "classifier", *HEAD), 3, False, "walkthrough"),
    "distance, conditional": (
        less(DIGITS, "conditional", "fade-in", "metrics", "guidance", "1.0", "features"), 2, True, "measured"),
    "few labels": (less(DIGITS, "labels-1", "classifier-1", *HEAD), 2, False, "measured"),
    "few labels, image": (less(DIGITS, "labels-10", "fade-in", "metrics", "bound", "image"), 1, True, "measured"),
    "planted 60": (own(60, "joint", "data"), 1, False, "measured"),
    "planted 60, given": (own(60, "guidance 1.0", "data"), 1, False, "measured"),
    "planted 60, ddim": (own(60, "joint, ddim", "data"), 1, True, "measured"),
    "planted 60, sampler": (own(60, "joint, ddim", "joint"), 1, False, "measured"),
    "planted 80": (own(80, "joint", "data"), 1, True, "README measured"),
    "planted 80, given": (own(80, "guidance 1.0", "data"), 1, False, "measured"),
    "planted 80, sampler": (own(80, "joint, ddim", "joint"), 1, True, "measured"),
    "planted 80, guided": (own(80, "guidance 4.0", "guidance 1.0"), 1, True, "measured"),
    "planted 60, guided": (own(60, "guidance 4.0", "guidance 1.0"), 1, True, "README measured walkthrough"),
    "transition, SSIM": (chain(DETERMINED, "ssim"), 3, False, "README measured walkthrough"),
    "transition, scenes": (chain(OPEN, "scene"), 3, False, "measured"),
    "transition, bound": (chain(DIRECTIONS, "bound"), 3, False, "measured"),
    "repeated at half": (holes("masked", "repeated", "0.5", "psnr"), 1, True, "README measured"),
    "repeated at half, SSIM": (holes("masked", "repeated", "0.5", "ssim"), 3, True, "measured"),
    "repeated at 90%": (holes("masked", "repeated", "0.9", "psnr"), 1, True, "README measured"),
    "repeated, scenes": (holes("masked", "repeated", "0.5", "scene"), 3, False, "measured"),
    "told at 90%": (holes("masked", "told", "0.9", "psnr"), 2, True, "measured"),
    "told, SSIM": (holes("masked", "told", "0.5", "ssim"), 3, False, "measured"),
    "masked, ancestral": (less(MASKED, "masked", "plain", *ALONE), 1, True, "measured"),
    "masked, DDIM": (less(MASKED, "masked", "plain", *LAST), 1, True, "README measured walkthrough"),
    "augment, ancestral": (less(MASKED, "augment", "plain", *ALONE), 1, True, "measured"),
    "augment, DDIM": (less(MASKED, "augment", "plain", *LAST), 1, True, "README measured walkthrough"),
    "on top, ancestral": (less(MASKED, "masked", "augment", *ALONE), 1, False, "measured"),
    "on top, DDIM": (less(MASKED, "masked", "augment", *LAST), 1, False, "measured"),
    "predicted": (less(SUMMARY, "predicted", "image-only", *LAST), 1, False, "README measured walkthrough"),
    "told": (less(SUMMARY, "told", "image-only", *LAST), 1, False, "measured"),
    "lifted, jointly": (less(SUMMARY, "lifted", "image-only", *JOINT, control=LAST), 1, True, "README measured walkthrough"),
    "own channels, jointly": (less(SUMMARY, "own-channels", "image-only", *JOINT, control=LAST), 1, False, "measured"),
    "caption, jointly": (less(SUMMARY, "caption", "image-only", *JOINT, control=LAST), 1, True, "measured"),
    "features, jointly": (less(SUMMARY, "features", "image-only", *JOINT, control=LAST), 1, False, "measured"),
    "segments, jointly": (
        less(SUMMARY, "segments", "image-only", *JOINT, control=LAST), 1, True, "README measured walkthrough"),
    "segments, alone": (less(SUMMARY, "segments", "image-only", *LAST), 1, False, "measured"),
    "segments, given": (less(SUMMARY, "segments", "image-only", *GIVEN, control=ALONE), 1, True, "README measured"),
    "segments, told": (less(SUMMARY, "segments-told", "image-only", *GIVEN, control=ALONE), 1, True, "measured"),
    "lifted, guided": (less(SUMMARY, "lifted", "image-only", *guided(2), control=ALONE), 1, False, "measured"),
    "features, guided": (less(SUMMARY, "features", "image-only", *guided(2), control=ALONE), 1, True, "measured"),
    "guidance of lifted": (
        less(SUMMARY, "lifted", "lifted", *guided(2), control=guided(1)), 1, True, "measured walkthrough"),
    "transformer": (less("benchmark-backbone", "dit", "unet", "metrics", "joint", "agreement"), 3, True, "measured"),
    "any to any, own channels": (less(ANY, "own-channels", "shared", *PAIRS), 3, True, "README measured walkthrough"),
    "any to any, unshared": (less(ANY, "unshared", "shared", *PAIRS), 3, True, "README measured walkthrough"),
    "words to image": (
        less(ANY, "caption-to-image", "shared", *FROM, "caption", "image"), 3, True, "README measured walkthrough"),
    "image to words": (less(ANY, "image-to-caption", "shared", *FROM, "image", "caption"), 3, True, "measured"),
    "segments to image": (
        less(ANY, "segmentation-to-image", "shared", *FROM, "segmentation", "image"), 3, True, "measured"),
    "dense, depth": (dense("depth", "delta", "depth"), 1, False, "measured"),
    "dense, depth, long": (dense("depth", "delta", "depth-long"), 1, True, "README measured walkthrough"),
    "dense, depth, tuned": (dense("depth", "delta", "tuned"), 1, True, "measured"),
    "dense, segmentation": (dense("segmentation", "miou", "segmentation"), 1, True, "README measured walkthrough"),
    "dense, segmentation, long": (
        dense("segmentation", "miou", "segmentation-long"), 1, True, "README measured walkthrough"),
    "dense, segmentation, tuned": (dense("segmentation", "miou", "tuned"), 1, False, "measured"),
    "dense, instances": (dense("instances", "quality", "instances"), 1, True, "README measured walkthrough"),
    "dense, instances, long": (dense("instances", "quality", "instances-long"), 1, True, "README measured walkthrough"),
    "dense, instances, tuned": (dense("instances", "quality", "tuned"), 1, False, "measured"),
    "dense, restoration": (dense("restoration", "psnr", "restoration"), 1, False, "measured"),
    "dense, restoration, long": (dense("restoration", "psnr", "restoration-long"), 1, True, "README measured walkthrough"),
    "dense, restoration, tuned": (dense("restoration", "psnr", "tuned"), 1, False, "measured"),
    "decoder, distance": (less(VAE, CHAINED, "mopoe", *TEMPLE, "distance"), 1, True, "README measured"),
    "decoder, coherence": (less(VAE, CHAINED, "mopoe", *TEMPLE, "coherence"), 3, True, "README measured"),
    "decoder, nats": (less(VAE, CHAINED, "mopoe", "metrics", "bound", "temple"), 0, True, "measured"),
    "decoder, flower": (less(VAE, CHAINED, "mopoe", "metrics", "bound", "flower"), 0, False, "measured walkthrough"),
    "decoder, trees": (less(VAE, CHAINED, "mopoe", "metrics", "bound", "trees"), 0, True, "measured walkthrough"),
    "decoder, flower's distance": (
        less(VAE, CHAINED, "mopoe", "metrics", "mean", "flower", "distance"), 3, True, "measured walkthrough"),
    "decoder, latent": (less(VAE, CHAINED, "mopoe", "metrics", "bound", "kl"), 1, True, "measured"),
    "decoder, joint": (less(VAE, CHAINED, "mopoe", "metrics", "joint", "diffusion", "coherence"), 3, False, "measured"),
    "decoder, joint distance": (less(VAE, CHAINED, "mopoe", "metrics", "joint", "diffusion", "temple"), 1, True, "measured"),
    "chain, latent": (less(VAE, "mt", CHAINED, *TEMPLE, "coherence"), 3, False, "measured"),
    "chain, trees": (less(VAE, "mt", CHAINED, "metrics", "mean", "trees", "coherence"), 3, True, "measured"),
    "chain, flower": (less(VAE, "mt", CHAINED, "metrics", "mean", "flower", "coherence"), 3, True, "measured"),
    "chain, trees' distance": (less(VAE, "mt", CHAINED, "metrics", "mean", "trees", "distance"), 1, True, "measured"),
    "chain, flower's distance": (less(VAE, "mt", CHAINED, "metrics", "mean", "flower", "distance"), 1, True, "measured"),
    "chain, from nothing": (
        less(VAE, "mt", CHAINED, *TRIPLES, "chain", "coherence", control=(*TRIPLES, "diffusion", "coherence")),
        3, True, "README measured"),
    "noise levels": (less(VAE, "mt", "mt-usual-levels", "metrics", "coherence"), 3, True, "README measured"),
    "restoration, zero-shot": (restoration("plug-in", "psnr"), 2, True, "measured"),
    "restoration, zero-shot, README": (restoration("plug-in", "psnr"), 1, True, "README"),
    "restoration, zero-shot, features": (restoration("plug-in", "features"), 2, True, "measured"),
    "restoration, shifted": (restoration("plug-in", "psnr", SHIFTED), 2, True, "measured"),
    "restoration, shifted, README": (restoration("plug-in", "psnr", SHIFTED), 1, True, "README"),
    "restoration, transition": (restoration("transition", "psnr"), 2, False, "measured"),
    "restoration, transition, features": (restoration("transition", "features"), 2, True, "measured"),
    "restoration, mean": (restoration("told", "psnr", way="mean"), 2, True, "measured"),
    "boxes of scenes": (boxes("overlap"), 2, True, "README measured"),
    "boxes of scenes, label": (boxes("accuracy"), 2, False, "measured"),
    "photographs, label": (photographs("label", "bound", "bits_per_dim"), 1, True, "README measured"),
    "photographs, masked": (photographs("masked", "bound", "bits_per_dim"), 1, True, "README measured"),
    "photographs, label, kernel": (photographs("label", "alone", JUDGE, "kernel"), 0, True, "measured"),
    "photographs, masked, kernel": (photographs("masked", "alone", JUDGE, "kernel"), 0, False, "measured"),
}  # fmt: skip


@pytest.mark.parametrize("name", QUOTED)
def test_the_pages_quote_differences_as_measured(name):
    difference, digits, clear, pages = QUOTED[name]
    text = f"{abs(difference.mean):.{digits}f} ± {difference.stderr:.{digits}f}"
    assert difference.clear == clear
    assert [page for page in pages.split() if text not in PAGES[page].read_text()] == [], text


def test_pairing_finds_what_independent_errors_hide():
    """As differences of independent means these have errors of 1.60 and 1.61."""
    for name, mean, error in (("lifted, jointly", 5.4, 0.64), ("augment, DDIM", -6.9, 0.57)):
        difference = QUOTED[name][0]
        assert difference.mean == pytest.approx(mean, rel=0.02)
        assert difference.stderr == pytest.approx(error, rel=0.06)


def test_the_page_says_how_many_differences_the_notebooks_look_at():
    """As `tally` and `plots.difference_panels` print them."""
    looked = clear = 0
    for page in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        for cell in json.loads(page.read_text())["cells"]:
            for output in cell.get("outputs", []):
                text = json.dumps(output.get("text") or output.get("data", {}).get("text/markdown", ""))
                for some, all_of_them in re.findall(r"(\d+) of (\d+) differences are clear", text):
                    looked, clear = looked + int(all_of_them), clear + int(some)
    said = f"{looked} in all, of which {clear} are clear and {looked / 20:.0f} would be by chance alone"
    assert said in " ".join(PAGES["measured"].read_text().split())


def test_no_page_takes_the_error_of_a_difference_by_hand():
    by_hand = re.compile(r"hypot\(.*stderr|stderr\"\] \*\* 2")
    assert by_hand.search('(a["stderr"] ** 2 + b["stderr"] ** 2) ** 0.5')
    sources = sorted((ROOT / "notebooks").glob("*.py"))
    assert sources
    assert [file.name for file in sources if by_hand.search(file.read_text())] == []


def test_mean_and_error():
    assert mean_and_error([1.0, 2.0, 6.0]) == {"mean": 3.0, "stderr": pytest.approx(math.sqrt(7 / 3)), "n": 3}
    assert mean_and_error([4.0]) == {"mean": 4.0, "stderr": None, "n": 1}


def test_the_record_that_is_held_is_that_of_a_shipped_model():
    page = (ROOT / "notebooks" / "measured.md").read_text().split("## Records\n")[1].split("\n## ")[0]
    card = json.loads((ROOT / "data" / "checkpoints" / "imagenet" / "imagenette32-label" / "card.json").read_text())
    last = card["probes"][-1]
    assert last["error"] <= 0.121
    assert last["kernel"] <= 0.0045
    assert last["head"] >= 0.64
    for text in ("at most 0.121;", "at most 0.0045;", "at least 0.64."):
        assert text in page
    made, took = card["provenance"], f"{card['training']['wall_seconds'] / 60:.1f}"
    figures = last["step"], f"{last['error']:.4f}", f"{last['kernel']:.4f}", f"{last['head']:.3f}"
    assert f"| {' | '.join(map(str, (made['commit'], took, *figures, made['hardware'])))} |" in page
