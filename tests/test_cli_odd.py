"""Odd command lines: one clear line on the standard error stream and status 2; a bug keeps its traceback."""

import sys

import pytest
import torch
from helpers import image_label_model

from mtdiff import cli
from mtdiff.experiments.image_label import build
from mtdiff.features import FeatureNetwork, feature_network, seen
from mtdiff.sampling import sample


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["mtdiff", *map(str, words)])
    cli.main()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with models, one of odd cards each, a file and an empty folder."""
    folder = tmp_path_factory.mktemp("odd")
    model = image_label_model(rule="conditioned").eval()
    card = {"experiment": "image-label", "data": {"name": "digits/train"}, "variant": "fade-in"}
    model.save(folder / "model", card)
    for name, odd in (("experiment", []), ("variant", {}), ("experiment", "none")):
        model.save(folder / f"{name}-{type(odd).__name__}", {**card, name: odd})
    with torch.no_grad():
        next(model.backbone.parameters()).fill_(torch.nan)
    model.save(folder / "nan", card)
    digits = build("digits", "fade-in", base=4)
    digits.save(folder / "digits", card)
    digits.rule = None
    digits.save(folder / "without-rule", card)
    (folder / "file").write_text("some text")
    (folder / "folder").mkdir()
    (folder / "folder.png").mkdir()
    (folder / "file.json").write_text("{}")
    return folder


SAMPLE = ["sample", "model", "--steps", "2", "--n", "2"]
TRAIN = ["train", "image-label", "--steps", "1", "--batch-size", "4"]
EVALUATE = ["evaluate", "image-label", "--n", "8", "--models"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*SAMPLE, "--n", "0"], "--n must be in 1..1024, got 0"),
        ([*SAMPLE, "--n", "-3"], "--n must be in"),
        ([*SAMPLE, "--n", "1000000000"], "--n must be in"),
        ([*SAMPLE, "--n", "9" * 40], "--n must be in"),
        ([*SAMPLE, "--steps", "0"], "steps must be in 1..50"),
        ([*SAMPLE, "--steps", "51"], "steps must be in 1..50"),
        ([*SAMPLE, "--repeats", "0"], "--repeats must be in"),
        ([*SAMPLE, "--repeats", "99999999999"], "--repeats must be in"),
        ([*SAMPLE, "--guidance", "nan", "--given", "label=a"], "--guidance must be in -1000..1000, got nan"),
        ([*SAMPLE, "--guidance", "-inf", "--given", "label=a"], "--guidance must be in"),
        ([*SAMPLE, "--guidance", "1e308", "--given", "label=a"], "--guidance must be in"),
        ([*SAMPLE, "--seed", "-1"], "--seed must be in"),
        ([*SAMPLE, "--seed", "9" * 30], "--seed must be in"),
        ([*SAMPLE, "--given", "label=a", "label=b"], "--given label=a label=b: one value for each modality"),
        ([*SAMPLE, "--given", "="], "--given =: expected NAME=VALUE"),
        ([*SAMPLE, "--given", "label"], "expected NAME=VALUE"),
        ([*SAMPLE, "--given", "label="], "expected NAME=VALUE"),
        ([*SAMPLE, "--given", "=a"], "unknown modality ''"),
        ([*SAMPLE, "--given", "label=a\nb"], "is not one of"),
        (["sample", "digits", "--given", "label=test:x"], "expected an example in test:0..test:359"),
        ([*SAMPLE, "--given", "image=folder"], "folder cannot be read as a picture"),
        ([*SAMPLE, "--given", "image=/dev/null"], "/dev/null cannot be read as a picture"),
        ([*SAMPLE, "--given", ""], "an argument is empty"),
        ([*SAMPLE, "--out", ""], "an argument is empty"),
        ([*SAMPLE, "--out", "folder.png"], "--out folder.png is there, and is no regular file"),
        ([*SAMPLE, "--out", "file/a.png"], "file is no folder"),
        ([*SAMPLE, "--out", "/dev/null"], "--out /dev/null is there, and is no folder"),
        ([*SAMPLE, "--device", "meta"], "--device meta cannot be used"),
        ([*SAMPLE, "--device", "cuda:99"], "--device cuda:99 cannot be used"),
        ([*SAMPLE, "--device", "toaster"], "--device toaster cannot be used"),
        (["sample", ""], "an argument is empty"),
        (["sample", "file"], "no model at 'file'"),
        (["sample", "folder"], "no model at 'folder'"),
        (["sample", "model/card.json"], "no model at 'model/card.json'"),
        (["sample", "\0"], "no model at"),
        (["sample", "a" * 5000], "File name too long"),
        (["sample", "judge/shapes16"], "is not a model card: unknown model kind 'SceneJudge'"),
        (["sample", "nan", "--n", "2", "--steps", "2"], "finite"),
        (["sample", "experiment-list"], "experiment of the card of experiment-list must be a text, got []"),
        (["sample", "experiment-str", "--given", "label=test:0"], "names no experiment"),
        ([*TRAIN, "--steps", "0"], "steps must be at least 1"),
        ([*TRAIN, "--batch-size", "-1"], "batch_size must be at least 1"),
        ([*TRAIN, "--lr", "nan"], "lr must be"),
        ([*TRAIN, "--lr", "-0.1"], "lr must be"),
        ([*TRAIN, "--accumulate", "3"], "cannot be divided equally"),
        ([*TRAIN, "--max-minutes", "nan"], "--max-minutes must be in"),
        ([*TRAIN, "--max-minutes", "-1"], "--max-minutes must be in"),
        ([*TRAIN, "--look-every", "-1"], "--look-every must be in"),
        ([*TRAIN, "--save-every", "0"], "save_every must be at least 1"),
        ([*TRAIN, "--keep", "0"], "keep must be at least 1"),
        ([*TRAIN, "--seed", "-1"], "--seed must be in"),
        ([*TRAIN, "--out", "file"], "--out file is there, and is no folder"),
        ([*TRAIN, "--out", "file/run"], "file is no folder"),
        ([*TRAIN, "--device", "meta"], "--device meta cannot be used"),
        ([*TRAIN, "--data", ""], "an argument is empty"),
        ([*EVALUATE, "model", "--n", "0"], "--n must be in 4.."),
        ([*EVALUATE, "model", "--n", "-1"], "--n must be in"),
        ([*EVALUATE, "model", "--seed", "-5"], "--seed must be in"),
        ([*EVALUATE, "file"], "no model at 'file'"),
        ([*EVALUATE, ""], "an argument is empty"),
        ([*EVALUATE, "variant-dict"], "variant of the card of variant-dict must be a text"),
        ([*EVALUATE, "experiment-str"], "was trained for none"),
        ([*EVALUATE, "without-rule"], "no default rules"),
        ([*EVALUATE, "model", "--out", "folder"], "--out folder is there, and is no regular file"),
        ([*EVALUATE, "model", "--out", "file/r.json"], "file is no folder"),
        ([*EVALUATE, "model", "--publish", "file.json"], "--publish file.json is there, and is no folder"),
        ([*EVALUATE, "model", "--device", "meta"], "--device meta cannot be used"),
        (["evaluate", "imagenet", "--models", "model"], "was trained for image-label"),
        (["data", "prepare", "nowhere", "--out", "new"], "there is no folder nowhere"),
        (["data", "prepare", "file", "--out", "new"], "there is no folder file"),
        (["data", "prepare", "folder", "--out", "file"], "--out file is there, and is no folder"),
        (["data", "prepare", "folder", "--out", "new", "--size", "0"], "--size must be in 8..4096"),
        (["data", "prepare", "folder", "--out", "new", "--size", "1000000"], "--size must be in"),
        (["data", "prepare", "folder", "--out", "new", "--limit", "0"], "limit must be at least 1"),
        (["data", "get", "tiny-imagenet", "--out", "file"], "--out file is there, and is no folder"),
    ],
)
def test_an_odd_command_is_one_clear_line_and_status_2(words, message, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *words)
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert len(said) == 1
    assert said[0].startswith("mtdiff: error: ")
    assert message in said[0]


@pytest.mark.parametrize("words", [[], ["mix"], ["train"], ["sample", "--n", "many"], ["sample", "--rule", "guess"]])
def test_what_is_no_command_is_explained_with_status_2(words, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *words)
    assert stop.value.code == 2
    assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize("threads", ["0", "-1", "two", "²", "99999999999999999999"])
def test_an_odd_number_of_threads_is_refused(threads, monkeypatch, capsys):
    monkeypatch.setenv("MTDIFF_THREADS", threads)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "sample")
    assert stop.value.code == 2
    assert "MTDIFF_THREADS must be a number of threads" in capsys.readouterr().err


@pytest.mark.parametrize("bug", [TypeError("a bug"), KeyError("name"), RuntimeError("a bug"), ZeroDivisionError()])
def test_a_bug_keeps_its_traceback(bug, place, monkeypatch):
    def fail(*args, **kwargs):
        raise bug

    monkeypatch.chdir(place)
    monkeypatch.setattr("mtdiff.cli.sample.sample", fail)
    with pytest.raises(type(bug)):
        run(monkeypatch, *SAMPLE)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")])
def test_too_little_memory_is_said_on_a_cpu_too(error, place, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.chdir(place)
    monkeypatch.setattr("mtdiff.cli.sample.sample", fail)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *SAMPLE)
    assert stop.value.code == 2
    assert "out of memory; try a smaller --n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:getcwd", r"must return a network, images -> features, got '/"),
        ("os:path", "is no function without arguments"),
        ("os:kill", "is no function without arguments"),
        ("json:loads", "is no function without arguments"),
        ("os:", "must be 'inception'"),
        (":make", "has no function 'make'"),
        ("collections:Counter", "must return a network"),
    ],
)
def test_features_that_are_no_network_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        feature_network(name)


@pytest.mark.parametrize("output", ["text", None, torch.zeros(3, 4), torch.zeros(2), torch.zeros(())])
def test_features_of_another_shape_are_refused(output):
    with pytest.raises(ValueError, match=r"features 'mine' must be numbers \(2, d\) of as many images, got"):
        seen([torch.zeros(2, 3, 4, 4)], FeatureNetwork("mine", lambda image: output))


def test_a_chain_that_does_not_stay_finite_is_no_sample():
    model = image_label_model(curve=0.5)
    with torch.no_grad():
        next(model.backbone.parameters()).fill_(torch.inf)
    with pytest.raises((FloatingPointError, ValueError), match="finite"):
        sample(model, 2, steps=2)
