"""The judge of scenes: as good as its card, and honest about what it cannot read."""

import itertools
import json

import pytest
import torch

from mtdiff.checkpoint import shipped
from mtdiff.datasets import digits
from mtdiff.datasets.shapes import BACKGROUNDS, COLOURS, SHAPES, SIZES, VOCABULARY, parse, render, shapes
from mtdiff.files import CARD, WEIGHTS
from mtdiff.judges import (
    STREAM,
    LabelJudge,
    SceneJudge,
    caption_accuracy,
    label_accuracy,
    label_judge,
    scene_judge,
    spoil,
    svm_judge,
    told_apart,
    train_judge,
)

NAMES = ("shapes16", "shapes32")


@pytest.fixture(scope="module", params=NAMES)
def judge(request):
    return scene_judge(request.param)


def test_it_is_as_good_as_its_card_within_four_standard_errors(judge):
    """On held-out scenes that the card's figures were not measured on; 1,000 of them, clean and spoilt."""
    n, start = 1000, 10**9 + 10**6
    scenes = render(range(start, start + n), judge.size, modalities=("image", "caption"))
    spoilt = spoil(scenes["image"], torch.Generator().manual_seed(5))
    for name, image in (("clean", scenes["image"]), ("spoilt", spoilt)):
        measured = caption_accuracy(judge.read(image), scenes["caption"])
        for key, p in judge.card["metrics"][name].items():
            error = (max(p * (1 - p), 1 / n) * (1 / n + 1 / judge.card["metrics"]["n"])) ** 0.5
            assert abs(measured[key] - p) < 4 * error, (name, key, measured[key], p)


def test_the_card_is_the_measured_one(judge):
    """The card's own scenes again, the figures to the last digit but for a scene that another processor reads otherwise."""
    test = shapes("test", judge.size, modalities=("image", "caption"))
    metrics = judge.card["metrics"]
    assert metrics["n"] == len(test)
    measured = caption_accuracy(judge.read(test.values["image"]), test.values["caption"])
    assert measured == pytest.approx(metrics["clean"], abs=2 / len(test))
    assert metrics["clean"]["scene"] > 0.9
    assert {"seed", "steps", "wall_seconds"} <= set(judge.card["training"])
    assert {"command", "commit", "hardware"} <= set(judge.card["provenance"])


@pytest.mark.parametrize("name", NAMES)
def test_a_judge_of_labels_is_as_good_as_its_card(name):
    judge, n, start = label_judge(name), 1000, 10**9 + 10**6
    scenes = render(range(start, start + n), judge.size, modalities=("image", "label"))
    for kind, image in (("clean", scenes["image"]), ("spoilt", spoil(scenes["image"], torch.Generator().manual_seed(5)))):
        measured = label_accuracy(judge.read(image), scenes["label"])
        for key, p in judge.card["metrics"][kind].items():
            error = (max(p * (1 - p), 1 / n) * (1 / n + 1 / judge.card["metrics"]["n"])) ** 0.5
            assert abs(measured[key] - p) < 4 * error, (kind, key, measured[key], p)
    assert judge.card["metrics"]["clean"]["label"] > 0.99


def test_label_accuracy_by_hand():
    """6 colours: 0 and 6 share a colour, 0 and 1 a shape."""
    read, label = torch.tensor([0, 0, 0, 7]), torch.tensor([0, 6, 1, 0])
    assert label_accuracy(read, label) == {"label": 0.25, "shape": 0.5, "colour": 0.5}
    with pytest.raises(ValueError, match=r"must both be \(N,\)"):
        label_accuracy(read, label[:2])


def test_judges_of_another_kind_are_refused(tmp_path):
    LabelJudge(16).save(tmp_path)
    assert isinstance(label_judge(tmp_path), LabelJudge)
    with pytest.raises(ValueError, match=r"unknown judge kind 'LabelJudge'; known: \['SceneJudge'\]"):
        scene_judge(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no judge at 'digits-label'.*\['shapes16-label', 'shapes32-label'\]"):
        label_judge("digits")


def test_what_ships_is_small():
    for name in (*NAMES, *(f"{name}-label" for name in NAMES)):
        folder = shipped() / "judge" / name
        assert sum(file.stat().st_size for file in folder.iterdir()) < 300_000
        assert json.loads((folder / CARD).read_text())["parameters"] < 130_000


def test_it_reads_what_is_there_and_not_what_is_common(judge):
    """A changed colour changes that word alone."""
    scenes = render(range(STREAM - 400, STREAM), judge.size, modalities=("image", "masks", "caption"))
    said = parse(scenes["caption"])
    rows = [i for i, scene in enumerate(said) if len(scene.objects) == 1 and scene.objects[0][1] == "red"]
    image, mask = scenes["image"][rows], scenes["masks"][rows][:, :1]
    swapped = torch.where(mask, image[:, [2, 1, 0]], image)  # red and blue change places
    for before, after in zip(parse(judge.read(image)), parse(judge.read(swapped)), strict=True):
        assert before.objects[0][1] == "red"
        assert after.objects[0][1] == "blue"
        assert (before.background, before.objects[0][0]) == (after.background, after.objects[0][0])


@pytest.mark.parametrize("size", [16, 32])
def test_logits_of_words_that_cannot_stand_there_are_masked(size):
    judge = SceneJudge(size).eval()
    logits = judge(torch.rand(5, 3, size, size))
    assert logits.shape == (5, 10, len(VOCABULARY))
    kinds = [BACKGROUNDS, SIZES, COLOURS, SHAPES] + 2 * [(*SIZES, ""), (*COLOURS, ""), (*SHAPES, "")]
    for place, names in enumerate(kinds):
        finite = {VOCABULARY[k] for k in range(len(VOCABULARY)) if logits[0, place, k].isfinite()}
        assert finite == set(names)
        assert torch.equal(logits[:, place].isfinite(), logits[:1, place].isfinite().expand(5, -1))


def test_read_is_the_likeliest_caption_by_enumeration():
    """Of all captions of 1, 2 and 3 objects; the best words of a place do not depend on the other places."""
    judge = SceneJudge(16).eval()
    logits = 3 * torch.randn(60, 10, len(VOCABULARY), generator=torch.Generator().manual_seed(0))
    logits[..., 0] += 3  # padding is about as likely as a word
    judge.forward = lambda image: logits.masked_fill(~judge.possible, -torch.inf)
    image = torch.zeros(60, 3, 16, 16)
    log_p = judge(image).log_softmax(-1)
    lengths = set()
    for row, tokens in zip(log_p, judge.read(image), strict=True):
        options = []
        for n in (1, 2, 3):
            free = row[: 1 + 3 * n, 1:].max(1)
            score = free.values.sum() + row[1 + 3 * n :, 0].sum()
            options.append((float(score), [*(free.indices + 1).tolist(), *[0] * (9 - 3 * n)]))
        assert tokens.tolist() == max(options)[1]
        assert parse(tokens)[0] is not None
        lengths.add(int((tokens > 0).sum()))
    assert lengths == {4, 7, 10}


def test_features_are_what_the_head_sees(judge):
    image = torch.rand(3, 3, judge.size, judge.size)
    with torch.no_grad():
        features = judge.features(image)
        assert features.shape == (3, judge.width)
        assert torch.equal(
            judge.head(features).view(3, 10, -1)[judge(image).isfinite()], judge(image)[judge(image).isfinite()]
        )


def test_caption_accuracy_by_hand():
    scenes = ["grey small red circle large blue square", "black small red circle", "white large cyan triangle"]
    token = {word: k for k, word in enumerate(VOCABULARY)}

    def tokens(texts):
        rows = [[token[word] for word in text.split()] for text in texts]
        return torch.tensor([row + [0] * (10 - len(row)) for row in rows])

    read = ["grey small red circle large red square", "black small red circle small red circle", "grey small cyan triangle"]
    expected = {"background": 2 / 3, "count": 2 / 3, "size": 3 / 4, "colour": 3 / 4, "shape": 1.0, "scene": 0.0}
    assert caption_accuracy(tokens(read), tokens(scenes)) == pytest.approx(expected)
    assert set(caption_accuracy(tokens(scenes), tokens(scenes)).values()) == {1.0}
    with pytest.raises(ValueError, match=r"\(N, 10\), got \(3, 9\) and \(3, 10\)"):
        caption_accuracy(tokens(scenes)[:, 1:], tokens(scenes))


def test_spoilt_images_differ_a_little():
    image = render(range(200), 16, modalities=["image"])["image"]
    spoilt = spoil(image, torch.Generator().manual_seed(0))
    assert torch.equal(spoilt, spoil(image, torch.Generator().manual_seed(0)))
    distance = (spoilt - image).square().mean((1, 2, 3)).sqrt()
    assert 0.02 < distance.min() < distance.max() < 0.35


def test_training_is_repeatable_and_learns():
    a, b = (train_judge(16, steps=4, batch_size=32) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    other = train_judge(16, steps=50, batch_size=64, seed=1)
    assert not torch.equal(a.head.weight, other.head.weight)
    test = shapes("test", 16, 200, modalities=("image", "caption"))
    read = caption_accuracy(other.read(test.values["image"]), test.values["caption"])["background"]
    assert read > 0.8  # five seeds: 0.982 ± 0.010; after 4 steps 0.27


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train_judge(16, steps=2, batch_size=8)
    assert torch.equal(torch.rand(3), expected)


def test_a_saved_judge_comes_back(tmp_path):
    judge, image = train_judge(32, steps=3, batch_size=16), torch.rand(4, 3, 32, 32)
    judge.save(tmp_path / "judge", {"note": "three steps"})
    again = scene_judge(tmp_path / "judge")
    assert again.card == {"note": "three steps"}
    assert again.size == 32
    assert not again.training
    with torch.no_grad():
        old, new = judge.features(image), again.features(image)
    assert (old - new).abs().max() < 0.02 * old.abs().max()  # float16 weights
    again.save(tmp_path / "twice")
    assert (tmp_path / "twice" / WEIGHTS).read_bytes() == (tmp_path / "judge" / WEIGHTS).read_bytes()
    assert (tmp_path / "twice" / CARD).read_bytes() == (tmp_path / "judge" / CARD).read_bytes()


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 16, 16), (3, 16, 16)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"image must be \(B, 3, 16, 16\), got"):
        SceneJudge(16).eval().read(torch.rand(shape))


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="size must be 16 or 32, got 64"):
        SceneJudge(64)


def test_an_unknown_name_is_refused():
    with pytest.raises(FileNotFoundError, match=r"no judge at 'digits', .*'shapes16', 'shapes16-depth', .*'shapes32'"):
        scene_judge("digits")


def damage(folder, name, change):
    file = folder / name
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (WEIGHTS, lambda data: data[: len(data) // 2], "truncated or damaged"),
        (CARD, lambda data: data[:-20], "is not a judge card"),
        (CARD, lambda data: b"[]", "is not a judge card"),
        (CARD, lambda data: data.replace(b'"format": 1', b'"format": 99'), "format 99"),
        (CARD, lambda data: data.replace(b"SceneJudge", b"MTDiffusion"), "unknown judge kind 'MTDiffusion'"),
        (CARD, lambda data: data.replace(b'"width": 64', b'"width": 65'), "does not fit its card"),
        (CARD, lambda data: data.replace(b'"width"', b'"height"'), "does not fit its card"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, change, message):
    SceneJudge(16).save(tmp_path)
    scene_judge(tmp_path)
    damage(tmp_path, name, change)
    with pytest.raises(ValueError, match=message):
        scene_judge(tmp_path)


def test_missing_weights_are_named(tmp_path):
    SceneJudge(16).save(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"a card but no {WEIGHTS}"):
        scene_judge(tmp_path)


def test_judges_were_trained_on_other_scenes_than_generators_and_tests():
    """Index ranges: generators from 0, judges from STREAM, tests from 10**9, and the longest training stays between."""
    steps = [judge(name).card["training"] for judge in (scene_judge, label_judge) for name in NAMES]
    longest = max(entry["steps"] * entry["batch_size"] for entry in steps)
    ranges = [(0, 10**6), (STREAM, STREAM + longest), (10**9, 10**9 + 10**6)]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))


def test_a_fresh_network_cannot_tell_scenes_from_scenes_but_finds_a_wrong_label():
    """600 scenes each: of the same law within 4 standard errors of a half; labels of other scenes are found out (seed 0)."""
    values = shapes("train", 16, 1200, modalities=("image", "label")).values
    one, other = ({name: value[rows] for name, value in values.items()} for rows in (slice(0, 600), slice(600, 1200)))
    same = told_apart(one, other, steps=250)
    assert abs(same["accuracy"] - 0.5) < 4 * same["stderr"]
    assert same == told_apart(one, other, steps=250)
    paler = {**other, "image": 0.7 * other["image"]}
    assert told_apart(one, paler, steps=250)["accuracy"] > 0.8
    texture = torch.randn(other["image"].shape, generator=torch.Generator().manual_seed(0))
    uneven = {**other, "image": other["image"] + 0.06 * texture}
    clean, noisy = (told_apart(one, uneven, noise, steps=250)["accuracy"] for noise in (0.0, 0.3))
    assert noisy < 0.6 < 0.9 < clean


@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("caption", (300, 3), 5), ("segmentation", (300, 8, 8), 4), ("mask", (300, 1, 8, 8), 2)]
)
def test_what_differs_in_any_kind_of_modality_is_found_out(name, shape, classes):
    """The least id is twice as common among the drawn ones."""
    g = torch.Generator().manual_seed(0)
    real, drawn = (torch.randint(classes, shape, generator=g) for _ in range(2))
    drawn = torch.where(torch.rand(shape, generator=g) < 1 / (classes - 1), 0, drawn)
    real, drawn = ({name: value.float() if name == "mask" else value} for value in (real, drawn))
    assert told_apart(real, drawn, steps=150)["accuracy"] > 0.56


def test_the_support_vector_judge_reads_held_out_digits():
    test = digits("test")
    judge = svm_judge(digits("train"))
    right = judge(test.values["image"]) == test.values["label"]
    assert float(right.double().mean()) > 0.97
