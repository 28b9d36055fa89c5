"""A folder of own pictures: what is found in it, packed, trained on and judged, and what is said where it does not fit."""

import functools
import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from helpers import randomise
from test_imagenet import class_folders, picture, save, write

import mtdiff as mt
from mtdiff import cli
from mtdiff.cli.common import chosen_data, data_of
from mtdiff.datasets import Dataset, folder
from mtdiff.datasets.imagenet import find, pack, prepare
from mtdiff.datasets.prepared import prepared
from mtdiff.experiments import EXPERIMENTS, imagenet_scores, label_scores, masked_image
from mtdiff.experiments.base import UNETS, noise_schedule, recipe, seeded
from mtdiff.judges import told_apart
from mtdiff.probes import head_accuracy

ROOT = Path(__file__).parent.parent


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["mtdiff", *map(str, words)])
    cli.main()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Where runs and packs are written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MTDIFF_DATA", raising=False)
    return tmp_path


def animals(root, each=12, at="{0}/{0}{1}.png"):
    """Cats and dogs, a picture of noise each."""
    for k, name in enumerate(("cat", "dog")):
        for i in range(each):
            save(root / at.format(name, i), picture(100 * k + i, (10, 8)))
    return root


def of(root, split="train", **options):
    """{path below the folder: name of its class} in a split."""
    listing = find(root, split, **options)
    return {str(path.relative_to(root)): listing.names[k] for path, k in zip(listing.files, listing.label, strict=True)}


# ---- what is found ----


def test_sub_folders_are_classes_and_a_hash_of_the_name_holds_some_out(place):
    root = animals(place / "pets", each=60)
    train, val = of(root), of(root, "val")
    assert not train.keys() & val.keys()
    assert {**train, **val} == {f"{name}/{name}{i}.png": name for name in ("cat", "dog") for i in range(60)}
    assert 4 <= len(val) <= 24, "12 of 120 plus or minus 3.7 standard errors"
    assert set(val.values()) == {"cat", "dog"}
    for i in range(60, 80):
        save(root / "cat" / f"cat{i}.png", picture(i))
    assert val.items() <= of(root, "val").items(), "no picture goes from one part to the other when others are added"
    assert train.items() <= of(root).items()
    (root / "cat").rename(root / "wild cat")
    assert {Path(path).name for path in val} <= {Path(path).name for path in of(root, "val")}
    assert set(of(animals(place / "few", each=2), "val").values()) == {"cat", "dog"}, "one of each class at least"


@pytest.mark.parametrize("name", ["val", "test"])
def test_a_folder_beside_train_holds_what_is_held_out(place, name):
    root = animals(place / "pets", at="train/{0}/{1}.png")
    animals(root, each=3, at=f"{name}/{{0}}/{{1}}.jpg")
    save(root / name / "emu" / "1.png", picture(0))
    save(root / "old" / "1.png", picture(0))
    save(root / "stray.png", picture(0))
    assert len(of(root)) == 24
    assert of(root, "val") == {f"{name}/{kind}/{i}.jpg": kind for kind in ("cat", "dog") for i in range(3)}
    assert dict(find(root, "val").left_out) == {root / name / "emu" / "1.png": "of class emu, which train/ does not have"}
    assert dict(find(root).left_out) == dict.fromkeys((root / "old", root / "stray.png"), "beside train/")


def test_without_such_a_folder_some_of_train_are_held_out(place):
    root = animals(place / "pets", at="train/{0}/{0}{1}.png")
    assert {**of(root), **of(root, "val")}.keys() == {
        f"train/{name}/{name}{i}.png" for name in ("cat", "dog") for i in range(12)
    }
    assert {path[6:] for path in of(root, "val")} == set(of(animals(place / "flat"), "val"))


def test_classes_are_chosen_and_limited(place):
    root = animals(place / "pets")
    assert set(of(root, classes=("dog",)).values()) == {"dog"}
    assert len(of(root, limit=2)) == 4


def test_what_is_left_out_is_said_once(place):
    root = animals(place / "pets")
    write(root / "notes.md", "x")
    save(root / "stray.png", picture(0))
    save(root / "cat" / "more" / "a.png", picture(0))
    save(root / ".hidden" / "a.png", picture(0))
    write(root / "empty" / "a.doc", "x")
    left_out = {path.relative_to(root).as_posix(): why for path, why in find(root).left_out}
    assert {path: why for path, why in left_out.items() if "not one of" not in why} == {
        "stray.png": "in no folder of a class",
        "cat/more": "a folder in a folder of a class",
        "empty": "a folder without pictures",
    }
    assert {path for path, why in left_out.items() if "not one of" in why} == {"notes.md", "empty/a.doc"}
    assert find(root, "val").left_out == []


def beside(root, write_them):
    """Ten pictures in the folder itself, with what is said of them."""
    texts = {f"p{i}.png": f"A {'red' if i % 2 else 'blue'} thing, number {i}" for i in range(10)}
    for i, name in enumerate(texts):
        save(root / name, picture(i, (8, 8)))
    write_them(root, texts)
    return root, texts


def as_texts(root, texts):
    for name, text in texts.items():
        write((root / name).with_suffix(".txt"), f"\ufeff{text}\n")


def as_jsonl(root, texts):
    write(
        root / "metadata.jsonl", "\n".join(json.dumps({"file_name": n, "caption": t, "more": 1}) for n, t in texts.items())
    )


def as_csv(root, texts):
    write(root / "metadata.csv", "\ufefffile_name,text\n" + "".join(f'{name},"{text}"\n' for name, text in texts.items()))


def test_a_head_reads_the_pictures_of_a_folder_as_a_model_sees_them(place):
    data, space = folder(class_folders(place / "pictures"), 8), (3, 8, 8)
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20), {"image": 1.0, "label": 1.0})
    parts = {"image": mt.Image(space), "label": mt.Label(3)}
    model = randomise(mt.MTDiffusion(process, parts, mt.MLP(space, width=16, blocks=1), space))
    as_floats = Dataset("the same", data[:])
    a, b = (head_accuracy(model, one, torch.Generator().manual_seed(0)) for one in (data, as_floats))
    assert data.values["image"].dtype == torch.uint8
    assert a == b


@pytest.mark.parametrize("write_them", [as_texts, as_jsonl, as_csv])
def test_captions_are_tokens_of_the_vocabulary_of_train(place, write_them):
    root, texts = beside(place / "things", write_them)
    assert [path for path, why in find(root).left_out] == []
    train, val = folder(root, 8), folder(root, 8, "test")
    assert set(train.values) == {"image", "caption"}, "one class is no label"
    assert train.vocabulary[:5] == ("", "?", "a", "red", "thing,")
    assert train.vocabulary == val.vocabulary
    caption = mt.Caption(train.vocabulary, train.shape("caption")[0])
    said = {find(root, split).captions[0]: data[:1]["caption"] for split, data in (("train", train), ("val", val))}
    (first, tokens), (held_out, others) = said.items()
    assert caption.text(tokens) == [first.lower()]
    assert first in texts.values()
    assert caption.text(others) == [" ".join(w if w in train.vocabulary else "?" for w in held_out.lower().split())]
    assert "?" in caption.text(others)[0], "its number is nowhere in train"
    caption.name = "caption"
    caption.check(next(train.batches(4, 0))["caption"])


def test_captions_of_a_table_at_the_top_are_those_of_both_splits(place):
    root = animals(place / "pets", each=3, at="train/{0}/{1}.png")
    animals(root, each=1, at="val/{0}/{1}.png")
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
    as_csv(root, {**{name: f"seen {name}" for name in names}, "train/gone.png": "x"})
    for split in ("train", "val"):
        listing = find(root, split)
        assert list(listing.captions) == [f"seen {path.relative_to(root).as_posix()}" for path in listing.files]
        assert [why for _, why in listing.left_out] == ["in a table of captions, but no picture is there"]


def scenes(root, each=6):
    """Pictures of classes with masks (a white left half) and depth (the picture upside down), as the names say."""
    animals(root, each, at="images/{0}/{1}.jpg")
    for path in sorted(root.rglob("*.jpg")):
        other = path.relative_to(root / "images").with_suffix(".png")
        with PIL.Image.open(path) as image:
            save(root / "depth" / other, image.transpose(PIL.Image.Transpose.FLIP_TOP_BOTTOM))
            half = np.zeros(image.size[::-1], np.uint8)
            half[:, : image.width // 2] = 255
            save(root / "masks" / other, PIL.Image.fromarray(half))
    return root


def test_pictures_of_equal_names_are_modalities(place):
    root = scenes(place / "rooms")
    save(root / "depth" / "cat" / "more.png", picture(0))
    save(root / "other" / "1.png", picture(0))
    save(root / "label" / "cat" / "1.png", picture(0))
    write(root / "masks" / "notes.txt", "x")
    assert {path.relative_to(root).as_posix(): why[:34] for path, why in find(root).left_out} == {
        "depth/cat/more.png": "no picture of that name in images/",
        "other": "no picture of a name in images/",
        "label": "its name is taken",
        "masks/notes.txt": "not one of .bmp, .gif, .jpeg, .jpg",
    }
    data = folder(root, 8)
    assert {name: data.shape(name) for name in data.values} == {
        "image": (3, 8, 8), "label": (), "depth": (3, 8, 8), "mask": (1, 8, 8),
    }  # fmt: skip
    batch = next(data.batches(8, 0))
    assert batch["mask"].unique().tolist() == [0, 1]
    assert (batch["mask"][..., :4] == 1).all()
    assert (batch["mask"][..., 4:] == 0).all()
    assert (batch["depth"].flip(2) - batch["image"]).abs().max() <= 2 / 127.5, "a JPEG and a PNG of it"
    mask = mt.Mask((8, 8))
    mask.name = "mask"
    mask.check(batch["mask"])
    mirrored = next(folder(root, 8, flip=True).batches(8, 0))
    turned = (mirrored["mask"][:, 0, 0, 0] == 0).view(-1, 1, 1, 1)
    assert 0 < turned.sum() < 8, "own pictures are not mirrored unless that is asked for, and then together"
    for name in ("image", "depth", "mask"):
        assert torch.equal(mirrored[name], torch.where(turned, batch[name].flip(3), batch[name]))


def test_holes_are_still_random_where_there_are_masks(place):
    data = folder(scenes(place / "rooms"), 8, modalities=("image", "masked", "mask"))
    batch = next(data.batches(8, 0))
    assert torch.equal(batch["masked"], batch["image"] * batch["mask"])
    assert not (batch["mask"][..., :4] == 1).all()


# ---- packs ----


def test_a_folder_is_packed_once_and_anew_when_it_has_changed(place):
    root = animals(place / "pets", each=4)
    first = pack(root, 8, progress=False)
    assert first.parent == Path("data/prepared")
    assert re.fullmatch("pets-8-[0-9a-f]{8}", first.name)
    stamp = (first / "train" / "images.bin").stat().st_mtime_ns
    assert pack(root, 8, progress=False) == first
    assert (first / "train" / "images.bin").stat().st_mtime_ns == stamp
    names = {first.name, pack(root, 10, progress=False).name}
    changes = (
        lambda: save(root / "cat" / "new.png", picture(7)),
        lambda: os.utime(root / "cat" / "new.png", ns=(1, 1)),
        lambda: [write(path.with_suffix(".txt"), "a word") for path in root.rglob("*.png")],
        lambda: write(root / "cat" / "new.txt", "another"),
        lambda: (root / "dog").rename(root / "wolf"),
    )
    for change in changes:
        change()
        names.add(pack(root, 8, progress=False).name)
    assert len(names) == 7
    assert len(folder(root, 8, "train")) + len(folder(root, 8, "test")) == 9


def test_a_changed_mask_is_a_change_and_a_broken_one_takes_its_picture_along(place):
    root = scenes(place / "rooms")
    first = pack(root, 8, progress=False)
    broken = next(path for path in find(root).beside["mask"])
    broken.write_bytes(b"broken")
    second = pack(root, 8, progress=False)
    assert first != second
    data = prepared(second)
    assert len(data) == len(prepared(first)) - 1
    assert torch.equal(data[:]["depth"], prepared(first)[1:]["depth"]), "the others still belong together"
    (skipped,) = json.loads((second / "train" / "meta.json").read_text())["skipped"]
    assert skipped[0] == find(root).files[0].relative_to(root).as_posix()
    assert pack(root, 8, progress=False) == second
    assert data.hash() != prepared(first).hash()


def test_a_pack_is_taken_as_it_is(place):
    root = animals(place / "pets")
    prepare(root, place / "mine", 8, progress=False)
    assert pack("mine") == Path("mine")
    assert len(folder("mine", 8)) == len(folder("mine")) == len(of(root))
    with pytest.raises(ValueError, match="mine is packed at size 8, not 16"):
        folder("mine", 16)
    prepare(class_folders(place / "archive"), place / "photographs", 8, progress=False)
    assert folder("photographs").flip, "photographs of archives are mirrored"
    assert not folder("mine").flip


# ---- what does not fit ----


def half_of_the_captions(root):
    for path in sorted(root.rglob("*.png"))[::2]:
        write(path.with_suffix(".txt"), "words")


def in_latin_1(root):
    half_of_the_captions(root)
    (root / "cat" / "cat0.txt").write_bytes("ein K\u00e4tzchen".encode("latin-1"))


def one_class(root):
    shutil.rmtree(root / "dog")


def into_images(root, step=1, size=(10, 8), brightness=1.0):
    """All into images/, with masks of as many, or of fewer, of other sizes, or darker ones."""
    for name in ("cat", "dog"):
        (root / "images").mkdir(exist_ok=True)
        (root / name).rename(root / "images" / name)
    for path in sorted((root / "images").rglob("*.png"))[::step]:
        mask = PIL.Image.new("L", size, int(255 * brightness))
        save(root / "masks" / path.relative_to(root / "images"), mask)


BAD = {
    "nothing": (lambda root: shutil.rmtree(root), "image-label has no data 'pets', and there is no such folder; it has ["),
    "empty": (
        lambda root: (shutil.rmtree(root), root.mkdir()),
        "pets has no pictures, it holds nothing: expected are pictures, or a sub-folder for each class",
    ),
    "too deep": (
        lambda root: (root.rename("x"), root.mkdir(), Path("x").rename(root / "photos")),
        "pets has no pictures, it holds photos/",
    ),
    "one class": (one_class, "train has one class, 'cat': labels need two at least, a sub-folder for each"),
    "one picture": (
        lambda root: [path.unlink() for path in list((root / "cat").iterdir())[1:]],
        "expected are two at least, of which one is held out",
    ),
    "half of the captions": (half_of_the_captions, "12 of 24 pictures have a caption, and pets/cat/cat1.png has none: "),
    "two captions": (
        lambda root: (write(root / "cat" / "cat0.txt", "x"), as_csv(root, {"cat/cat0.png": "y"})),
        "pets/cat/cat0.png has two captions, in pets/metadata.csv and pets/cat/cat0.txt: expected is one",
    ),
    "Latin-1": (in_latin_1, "pets/cat/cat0.txt is not a text in UTF-8"),
    "a column": (
        lambda root: write(root / "metadata.csv", "file_name,title\na.png,x\n"),
        "pets/metadata.csv cannot be read: row 2 does not fit: expected the columns file_name and caption, got {'file_name'",
    ),
    "a semicolon": (lambda root: write(root / "metadata.csv", "file_name;caption\na.png;x\n"), "got {'file_name;caption'"),
    "no JSON": (lambda root: write(root / "metadata.jsonl", '{"file_name": "a.png"'), "row 1 does not fit: Expecting ','"),
    "a list": (lambda root: write(root / "metadata.jsonl", '["a.png"]'), "row 1 does not fit"),
    "elsewhere": (
        lambda root: write(root / "metadata.csv", "file_name,caption\n../a.png,x\n"),
        "expected a file in the folder of the table, got '../a.png'",
    ),
    "one name": (
        lambda root: save(root / "cat" / "cat0.jpg", picture(0)),
        "pets/cat/cat0.jpg and cat0.png have one name: expected is one picture of each",
    ),
    "few masks": (
        lambda root: into_images(root, step=2),
        "pets/masks has 12 of the 24 pictures in pets/images, and none for cat/cat1: expected is one for each",
    ),
    "masks of numbers": (
        lambda root: into_images(root, brightness=1 / 255),
        "the brightest pixel of all masks is 1 of 255: expected is white where something is",
    ),
    "other sizes": (lambda root: into_images(root, size=(20, 16)), "10x8, pets/masks/"),
    "names of splits": (
        lambda root: ((root / "images").mkdir(), (root / "cat").rename(root / "images" / "train")),
        "pets/images holds train/: expected are train/images/ and val/images/",
    ),
    "no train": (lambda root: (root / "dog").rename(root / "test"), "pets has no folder train/ beside test/: it holds cat/"),
    "all broken": (
        lambda root: [path.write_bytes(b"x") for path in (root / "cat").iterdir()],
        "no image of class cat can be read in train; the first problem: ['cat/cat",
    ),
    "a link": (lambda root: (root / "dog").rename("d") and (root / "dog").symlink_to("../d"), "pets/dog is a link that"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_one_clear_line(kind, place, monkeypatch, capsys):
    spoil, message = BAD[kind]
    spoil(animals(place / "pets"))
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "train", "image-label", "--data", "pets", "--size", 8)
    said = [line for line in capsys.readouterr().err.splitlines() if "mtdiff: error: " in line]
    assert stop.value.code == 2
    assert message in said[-1]
    assert str(place) not in said[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "image-label", "--data", "pets", "--size", 9], "size must be even and at least 8, so that the U-Net can"),
        (["train", "image-label", "--data", "pets", "--size", 4], "--size must be in 8..4096, got 4"),
        (["train", "image-label", "--data", "digits", "--size", 16], "size is for a folder of pictures, digits has its own"),
        (["train", "image-label", "--data", "mine", "--size", 16], "mine is packed at size 8, not 16"),
        (["train", "image-transition", "--data", "pets"], "image-transition has no data 'pets'; it has ['shapes16'"),
        (["train", "imagenet", "--data", "pets", "--variant", "odd"], "imagenet has no variant 'odd'; it has ['masked'"),
        (["train", "imagenet", "--data", "mine", "--variant", "box"], "images in mine/train have no box"),
        (["evaluate", "image-label", "--data", "pets"], "no model at"),
    ],
)
def test_what_cannot_be_done_with_a_folder_is_one_clear_line(words, message, place, monkeypatch):
    prepare(animals(place / "pets"), place / "mine", 8, progress=False)
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *words)
    assert message in str(stop.value)


# ---- training and judging ----


@pytest.mark.parametrize("size", [8, 10, 12, 16, 20, 24, 28, 32, 36, 40, 48, 64, 96])
def test_a_network_fits_every_even_size(size):
    known = recipe(size)
    assert known <= size
    assert known == size or size not in UNETS
    shape = (3, size, size)
    model = seeded(0, noise_schedule(size, 1.0), shape, {"image": (1.0, mt.Image(shape))}, unet={"cross": (8,)})
    assert tuple(model.backbone.config["multipliers"]) == UNETS[known]["multipliers"]
    heights = [size >> level for level in range(len(UNETS[known]["multipliers"]))]
    assert {*model.backbone.config.get("attention", ()), *model.backbone.config["cross"]} <= set(heights)
    with pytest.raises(ValueError, match=f"size must be even and at least 8, .* got {size + 1}"):
        recipe(size + 1)


def test_the_help_says_that_a_folder_will_do(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "train", "--help")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "For image-label and imagenet also the path of a folder of pictures" in said
    assert "--size" in said


@pytest.fixture
def quickly(monkeypatch):
    """Two steps of training, and few of sampling."""
    for name in ("image-label", "imagenet"):
        experiment = EXPERIMENTS[name]

        def config(data, variant, budget, config=experiment.config):
            return replace(config(data, variant, budget), steps=2)

        monkeypatch.setitem(EXPERIMENTS, name, replace(experiment, config=config))
    referee, bounds = label_scores.referee, label_scores.image_label_bounds
    monkeypatch.setattr(label_scores, "referee", lambda data: replace(referee(data), steps=2))
    monkeypatch.setattr(label_scores, "image_label_bounds", lambda model, test, samples, g: bounds(model, test, 1, g))
    monkeypatch.setattr(label_scores, "told_apart", functools.partial(told_apart, steps=4))
    monkeypatch.setattr(label_scores, "GUIDANCE", (1.0,))
    monkeypatch.setattr(imagenet_scores, "GUIDANCE", (1.0,))
    monkeypatch.setattr(imagenet_scores, "DRAWS", 2)
    for module in (imagenet_scores, masked_image):
        monkeypatch.setattr(module, "STEPS", 8)


@pytest.mark.parametrize(
    ("experiment", "variant"),
    [("image-label", "fade-in"), ("image-label", "token"), ("image-label", "labels-10"), ("imagenet", "masked"),
     ("imagenet", "label"), ("imagenet", "classifier")],
)  # fmt: skip
def test_a_model_of_a_folder_is_trained_drawn_from_and_judged(experiment, variant, place, monkeypatch, capsys, quickly):
    root = animals(place / "pets", each=20)
    write(root / "cat" / "notes.doc", "x")
    write(root / "dog" / "broken.png", "x")
    words = ("train", experiment, "--variant", variant, "--data", "pets", "--size", 8)
    run(monkeypatch, *words)
    said = capsys.readouterr().out
    counts = [len(of(root, split).keys() - {"dog/broken.png"}) for split in ("train", "val")]
    assert f"train: {counts[0]} images of 2 classes (cat " in said
    assert f"val: {counts[1]} images of 2 classes (cat " in said
    assert "held out by a hash of their names" in said
    assert "left out cat/notes.doc: not one of" in said
    assert "skipped dog/broken.png: UnidentifiedImageError" in said
    name = pack(root, 8).name
    out = f"runs/{experiment}/{name}/{variant}-0"
    assert f"mtdiff sample {out} " in said
    assert f"mtdiff evaluate {experiment} --models {out}" in said
    card = mt.load(out).card
    assert card["data"]["name"].startswith(f"{name}/train")
    assert str(place) not in json.dumps(card)
    run(monkeypatch, *words)
    assert "is already trained" in capsys.readouterr().out
    run(monkeypatch, "sample", out, "--n", 2, "--steps", 2, "--given", "image=test:1")
    run(monkeypatch, "evaluate", experiment, "--models", out, "--n", 4, "--out", "r.json")
    result = json.loads(Path("r.json").read_text())
    assert result["data"] == name
    assert variant in capsys.readouterr().out
    if variant != "masked":
        assert 0 <= result["variants"][variant]["head"]["accuracy"]["mean"] <= 1
    run(monkeypatch, "evaluate", experiment, "--models", out, "--n", 4, "--data", "pets")
    save(root / "cat" / "new.png", picture(3))
    with pytest.raises(SystemExit, match=f"the model was trained on {name}, the data are pets-8-.*--elsewhere"):
        run(monkeypatch, "evaluate", experiment, "--models", out, "--n", 4, "--data", "pets")


def test_the_commands_of_the_readme_work_as_they_are_printed(place, monkeypatch, capsys, quickly):
    """By a small network, and few steps."""
    monkeypatch.setitem(UNETS, 32, {"base": 4, "multipliers": (1, 1, 1, 1)})
    animals(place / "pictures", each=20)
    section = (ROOT / "README.md").read_text().split("## Your own pictures\n")[1].split("\n## ")[0]
    commands = re.findall("^mtdiff (.*)$", section, re.M)
    assert [command.split()[0] for command in commands] == ["train", "sample", "evaluate", "train"]
    assert section.count("\n") <= 20
    for command in commands:
        run(monkeypatch, *shlex.split(command))
    said = capsys.readouterr().out
    assert f"labels: {', '.join(20 * ['cat'])}" in said
    assert "| fade-in |" in said
    assert {path.name for path in (place / "runs").iterdir()} == {"mine", "filled"}


def test_the_readmes_command_begins_with_the_shipped_model(place, monkeypatch, capsys, quickly):
    animals(place / "pictures", each=6)
    section = (ROOT / "README.md").read_text().split("## Fine-tune\n")[1].split("\n## ")[0]
    (command,) = re.findall("^mtdiff (.*)$", section, re.M)
    run(monkeypatch, *shlex.split(command))
    said = capsys.readouterr().out
    new = "new are codes, embedding and head of label, all else is kept"
    assert f"begins with the weights of image-label/shapes32: {new}\n" in said
    made, parent = mt.load("runs/tuned"), mt.load("image-label/shapes32")
    assert made.modalities["label"].names == ["cat", "dog"]
    assert made.card["based on"]["training"]["steps"] == parent.card["training"]["steps"]
    assert "metrics" not in made.card["based on"]
    assert made.card["new modalities"] == ["label"]
    old, new = (each.backbone.state_dict() for each in (parent, made))
    assert all(torch.allclose(value, new[name], atol=0.02) for name, value in old.items()), "two steps away"
    run(monkeypatch, "info", "runs/tuned")
    assert "new modalities: ['label']" in capsys.readouterr().out
    run(monkeypatch, *shlex.split(command))
    assert capsys.readouterr().out.splitlines()[-1] == "runs/tuned is already trained: step 2 of 2"


def test_a_pack_is_data_wherever_a_name_is(place, monkeypatch, capsys, quickly):
    prepare(animals(place / "pets"), place / "packs" / "mine", 8, progress=False)
    run(monkeypatch, "train", "image-label", "--data", "packs/mine")
    out = "runs/image-label/mine/fade-in-0"
    assert f"mtdiff evaluate image-label --models {out} --data packs/mine\n" in capsys.readouterr().out
    run(monkeypatch, "sample", out, "--n", 1, "--steps", 2, "--data", "packs/mine", "--given", "image=test:0")
    for words in (
        ("sample", out, "--n", 1, "--steps", 2, "--given", "image=test:0"),
        ("evaluate", "image-label", "--models", out),
    ):
        with pytest.raises(SystemExit, match=r"names no data of image-label \(mine/train\): add --data"):
            run(monkeypatch, *words)
    with pytest.raises(SystemExit, match="packs/mine holds out 3 pictures: to judge takes 4 at least"):
        run(monkeypatch, "evaluate", "image-label", "--models", out, "--data", "packs/mine")


def test_pictures_of_one_class_are_drawn_and_filled(place, monkeypatch, capsys, quickly):
    root, _ = beside(place / "things", as_texts)
    run(monkeypatch, "train", "imagenet", "--variant", "plain", "--data", "things", "--size", 8)
    assert "of 1 class (things 8), captions; own pictures" in capsys.readouterr().out
    assert mt.load(f"runs/imagenet/{pack(root, 8).name}/plain-0").card["training"]["batch_size"] == 8


def test_the_judge_of_a_folder_knows_its_classes(place):
    """Reds and blues, which are told apart at once; noise is not."""
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        for i in range(30):
            noise = np.random.default_rng(i).integers(-20, 21, (12, 12, 3))
            save(place / "colours" / name / f"{i}.png", PIL.Image.fromarray(np.uint8(np.array(colour) + noise)))
    referee = label_scores.referee(str(pack(place / "colours", 8)))
    assert referee.accuracy == 1
    assert referee.features(referee.real).shape == (len(referee.test), 192)


def test_a_model_of_captions_trains_on_a_folder(place):
    data = mt.datasets.folder(beside(place / "things", as_texts)[0], 8)
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), {"image": 1.0, "caption": 0.0})
    caption = mt.Caption(data.vocabulary, *data.shape("caption"), tell="vector")
    model = mt.MTDiffusion(process, {"image": mt.Image((3, 8, 8)), "caption": caption}, mt.MLP((3, 8, 8), 8, 1), (3, 8, 8))
    assert isinstance(data, mt.Dataset)
    mt.Trainer(model, data, mt.TrainConfig(steps=1, batch_size=4)).run(progress=False)


def test_a_name_wins_over_a_folder_of_that_name(place, monkeypatch):
    animals(place / "digits")
    assert chosen_data(EXPERIMENTS["image-label"], "digits") == "digits"
    assert chosen_data(EXPERIMENTS["image-label"], "./digits", 8).startswith("data/prepared/digits-8-")
    model = EXPERIMENTS["image-label"].build("digits", "fade-in", 0)
    for name, data in (("digits/train", "digits"), ("shapes16-masked/train", "shapes16")):
        model.card = {"data": {"name": name}}
        assert data_of(model, EXPERIMENTS["image-label"], None) == data
    model.card = {"data": {"name": "digits-8-0a1b2c3d/train"}}
    with pytest.raises(ValueError, match=r"names no data of image-label .digits-8-0a1b2c3d/train.: add --data"):
        data_of(model, EXPERIMENTS["image-label"], None)  # a pack that is gone is not the set of nearly its name
