"""Real images: layouts, packing, the packed data set, and fetching archives."""

import contextlib
import dataclasses
import errno
import functools
import gc
import hashlib
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import scipy.io
import torch

import mtdiff as mt
from mtdiff import cli
from mtdiff.datasets.base import ahead
from mtdiff.datasets.imagenet import download, find, get, packing, prepare
from mtdiff.datasets.imagenet.download import Archive
from mtdiff.datasets.prepared import Prepared, box_masks, prepared
from mtdiff.training import TrainConfig, Trainer

WNIDS = ("n01443537", "n02085620", "n03444034")


def picture(seed, size=(20, 16)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def class_folders(root, each=3):
    """Imagenette's layout."""
    for k, wnid in enumerate(WNIDS):
        for split in ("train", "val"):
            for i in range(each):
                save(root / split / wnid / f"{i:05d}.JPEG", picture(10 * k + i + 100 * (split == "val")))
    return root


def tiny(root, each=3):
    """Tiny-ImageNet's layout."""
    write(root / "words.txt", "".join(f"{wnid}\tname {k}, another\n" for k, wnid in enumerate(WNIDS)))
    rows = []
    for k, wnid in enumerate(WNIDS):
        boxes = []
        for i in range(each):
            save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", picture(10 * k + i, (16, 16)))
            boxes.append(f"{wnid}_{i}.JPEG\t{i}\t2\t7\t11")
            save(root / "val" / "images" / f"val_{each * k + i}.JPEG", picture(100 + 10 * k + i, (16, 16)))
            rows.append(f"val_{each * k + i}.JPEG\t{wnid}\t0\t0\t15\t{i}")
        write(root / "train" / wnid / f"{wnid}_boxes.txt", "\n".join(boxes) + "\n")
    write(root / "val" / "val_annotations.txt", "\n".join(rows) + "\n")
    return root


def ilsvrc(root, kit):
    """ILSVRC: flat validation images beside Kaggle's table or the development kit."""
    data = root / "Data" / "CLS-LOC" if kit == "kaggle" else root
    for k, wnid in enumerate(WNIDS):
        save(data / "train" / wnid / f"{wnid}_1.JPEG", picture(k))
    truth = (2, 0, 1)
    for i in range(3):
        save(data / "val" / f"ILSVRC2012_val_{i + 1:08d}.JPEG", picture(50 + i))
    if kit == "kaggle":
        rows = [f"ILSVRC2012_val_{i + 1:08d},{WNIDS[k]} 1 2 9 8 {WNIDS[k]} 3 3 4 4 " for i, k in enumerate(truth)]
        write(root / "LOC_val_solution.csv", "ImageId,PredictionString\n" + "\n".join(rows) + "\n")
        write(root / "LOC_synset_mapping.txt", "".join(f"{wnid} name {k}, another\n" for k, wnid in enumerate(WNIDS)))
    else:
        folder = root / "ILSVRC2012_devkit_t12" / "data"
        write(folder / "ILSVRC2012_validation_ground_truth.txt", "".join(f"{(k + 1) * 7}\n" for k in truth))
        synsets = np.array([((k + 1) * 7, wnid) for k, wnid in enumerate(WNIDS)], [("ILSVRC2012_ID", "O"), ("WNID", "O")])
        scipy.io.savemat(folder / "meta.mat", {"synsets": synsets})
    return root


# ---- layouts ----


def test_class_folders_are_labelled_in_the_order_of_their_ids(tmp_path):
    for split in ("train", "val"):
        listing = find(class_folders(tmp_path), split)
        assert listing.layout == "class folders"
        assert [path.parent.name for path in listing.files] == [WNIDS[k] for k in listing.label]
        assert listing.label.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert np.isnan(listing.boxes).all()
        assert all(split in path.parts for path in listing.files)


def test_tiny_imagenet_brings_names_and_boxes(tmp_path):
    train, val = (find(tiny(tmp_path), split) for split in ("train", "val"))
    assert train.names == val.names == ("name 0", "name 1", "name 2")
    assert train.layout == val.layout == "tiny-imagenet"
    for path, box, k in zip(train.files, train.boxes.tolist(), train.label, strict=True):
        assert path.name.startswith(WNIDS[k])
        assert box == [int(path.stem[-1]), 2, 8, 12], "right and bottom are the last pixels of the box"
    assert val.label.tolist() == [int(path.stem[4:]) // 3 for path in val.files]
    assert val.boxes[1].tolist() == [0, 0, 16, 2]


@pytest.mark.parametrize("kit", ["kaggle", "devkit"])
def test_flat_validation_images_get_their_labels_from_the_table(tmp_path, kit):
    listing = find(ilsvrc(tmp_path, kit), "val")
    assert listing.layout == kit
    assert {path.stem[-1]: int(k) for path, k in zip(listing.files, listing.label, strict=True)} == {"1": 2, "2": 0, "3": 1}
    if kit == "kaggle":
        assert listing.names[0] == "name 0"
        assert listing.boxes.tolist() == [[1, 2, 9, 8]] * 3, "the first box of each"


def test_classes_are_chosen_by_id_or_name_in_the_order_asked_for(tmp_path):
    listing = find(tiny(tmp_path), "train", classes=("name 2", WNIDS[0]))
    assert listing.wnids == (WNIDS[2], WNIDS[0])
    assert [path.name[:9] for path in listing.files] == [listing.wnids[k] for k in listing.label]


def test_imagenettes_ids_have_names(tmp_path):
    save(tmp_path / "train" / "n03888257" / "a.JPEG", picture(0))
    assert find(tmp_path).names == ("parachute",)


@pytest.mark.parametrize(
    ("spoil", "split", "message"),
    [
        (lambda root: (root / "train").rename(root / "training"), "train", "has no folder train/.*it holds training/, val/"),
        (lambda root: (root / "val").rename(root / "valid"), "val", "has no folder val/.*it holds train/, valid/"),
        (lambda root: [file.unlink() for file in (root / "train" / WNIDS[1]).iterdir()], "train", "no train image of 1"),
    ],
)  # fmt: skip
def test_another_layout_is_described(tmp_path, spoil, split, message):
    spoil(class_folders(tmp_path))
    with pytest.raises(ValueError, match=message):
        find(tmp_path, split)


def test_what_cannot_be_found_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        find(tmp_path / "nowhere")
    class_folders(tmp_path)
    with pytest.raises(ValueError, match=r"unknown classes \['zebra'\]; there are 3, such as n01443537"):
        find(tmp_path, classes=("zebra",))
    with pytest.raises(ValueError, match="classes must be different"):
        find(tmp_path, classes=(WNIDS[0], WNIDS[0]))


def test_tables_that_do_not_fit_are_refused(tmp_path):
    root = ilsvrc(tmp_path / "a", "devkit")
    write(root / "ILSVRC2012_devkit_t12" / "data" / "ILSVRC2012_validation_ground_truth.txt", "7\n")
    with pytest.raises(ValueError, match="has 1 lines, but there are 3 validation images"):
        find(root, "val")
    root = ilsvrc(tmp_path / "b", "kaggle")
    write(root / "LOC_val_solution.csv", "ImageId,PredictionString\nILSVRC2012_val_00000001,n01443537 1 2 3 4\n")
    with pytest.raises(ValueError, match="says nothing of 2 images"):
        find(root, "val")
    write(root / "LOC_val_solution.csv", "a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns ImageId and PredictionString"):
        find(root, "val")
    root = tiny(tmp_path / "c")
    write(root / "val" / "val_annotations.txt", "val_0.JPEG\tn01443537\t1\t2\n")
    with pytest.raises(ValueError, match="line 1: expected 6 fields"):
        find(root, "val")


def test_what_is_hidden_is_no_image_and_no_class(tmp_path):
    """As macOS, Jupyter and editors leave them."""
    root = class_folders(tmp_path / "in")
    for split in ("train", "val"):
        save(root / split / ".ipynb_checkpoints" / "00000-checkpoint.JPEG", picture(0))
        for folder in (root / split, root / split / WNIDS[0]):
            write(folder / ".DS_Store", "\0")
            write(folder / "._00000.JPEG", "\0\5\26\7")
    meta = prepare(root, tmp_path / "out", 8, limit=2, progress=False)
    for found in meta.values():
        assert (found["count"], found["classes"], found["skipped"], found["left_out"]) == (6, list(WNIDS), [], [])


def test_what_is_left_out_is_said(tmp_path, monkeypatch, capsys):
    root = class_folders(tmp_path / "in")
    write(root / "train" / WNIDS[0] / "notes.txt", "x")
    save(root / "train" / WNIDS[1] / "a.tiff", picture(0))
    save(root / "train" / WNIDS[1] / "more" / "a.JPEG", picture(0))
    save(root / "train" / "stray.JPEG", picture(0))
    save(root / "val" / "n09" / "a.JPEG", picture(0))
    os.mkfifo(root / "val" / WNIDS[2] / "pipe.JPEG")
    save(tmp_path / "secret.JPEG", picture(0))
    (root / "val" / WNIDS[2] / "link.JPEG").symlink_to(tmp_path / "secret.JPEG")
    (root / "val" / WNIDS[2] / "inner.JPEG").symlink_to("00000.JPEG")
    monkeypatch.setattr("sys.argv", ["mtdiff", "data", "prepare", str(root), "--size", "8", "--out", str(tmp_path / "out")])
    cli.main()
    metas = {split: json.loads((tmp_path / "out" / split / "meta.json").read_text()) for split in ("train", "val")}
    assert [meta["count"] for meta in metas.values()] == [9, 10]
    assert metas["train"]["left_out"] == [
        [f"train/{WNIDS[0]}/notes.txt", "not one of .bmp, .gif, .jpeg, .jpg, .png, .ppm, .webp"],
        [f"train/{WNIDS[1]}/a.tiff", "not one of .bmp, .gif, .jpeg, .jpg, .png, .ppm, .webp"],
        [f"train/{WNIDS[1]}/more", "a folder in a folder of a class"],
        ["train/stray.JPEG", "in no folder of a class"],
    ]
    assert metas["val"]["left_out"] == [
        [f"val/{WNIDS[2]}/link.JPEG", "a link that leads out of the folder"],
        [f"val/{WNIDS[2]}/pipe.JPEG", "not a regular file"],
        ["val/n09/a.JPEG", "of class n09, which train/ does not have"],
    ]
    assert f"left out train/{WNIDS[1]}/a.tiff: not one of" in capsys.readouterr().out


def test_a_class_that_is_a_link_to_elsewhere_is_refused(tmp_path):
    root = class_folders(tmp_path / "in")
    save(tmp_path / "other" / "a.JPEG", picture(0))
    (root / "train" / "n09").symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match=r"train/n09 is a link that leads out of"):
        find(root)


def test_lists_are_read_with_a_byte_order_mark_and_blank_lines(tmp_path):
    root = tiny(tmp_path)
    for path in (root / "words.txt", root / "val" / "val_annotations.txt", *root.glob("train/*/*_boxes.txt")):
        path.write_text("\ufeff" + path.read_text().replace("\n", "\r\n\r\n") + "  \n", encoding="utf-8")
    train, val = find(root), find(root, "val")
    assert train.names == val.names == ("name 0", "name 1", "name 2")
    assert np.isfinite(train.boxes).all()
    assert (val.label.tolist(), val.left_out) == ([0, 0, 0, 1, 1, 1, 2, 2, 2], [])
    (root / "words.txt").write_bytes(b"n01\t\xff\n")
    with pytest.raises(ValueError, match=r"words\.txt is not a text in UTF-8"):
        find(root)
    kaggle = ilsvrc(tmp_path / "k", "kaggle")
    for path in kaggle.glob("*.csv"):
        path.write_text("\ufeff" + path.read_text() + "\n  \n", encoding="utf-8")
    assert sorted(find(kaggle, "val").label) == [0, 1, 2]


def test_lists_of_strangers_are_not_read(tmp_path):
    """Of the folders above only Kaggle's own are known, and there only Kaggle's tables."""
    root = class_folders(tmp_path / "a" / "in")
    write(tmp_path / "a" / "words.txt", f"{WNIDS[0]}\tanother\n")
    write(tmp_path / "a" / "LOC_synset_mapping.txt", f"{WNIDS[0]} another\n")
    assert find(root).names[0] == WNIDS[0]
    top = tmp_path / "b"
    write(top / "words.txt", f"{WNIDS[0]}\tanother\n")
    ilsvrc(top / "ILSVRC", "kaggle")
    for name in ("LOC_synset_mapping.txt", "LOC_val_solution.csv"):
        (top / "ILSVRC" / name).rename(top / name)
    assert find(top / "ILSVRC" / "Data" / "CLS-LOC", "val").names[0] == "name 0"


@pytest.mark.parametrize("name", ["../../secret.JPEG", "/secret.JPEG", "..", "a\\b.JPEG", "images/val_0.JPEG"])
def test_a_list_names_files_of_its_own_folder(tmp_path, name):
    root = tiny(tmp_path / "in")
    save(tmp_path / "secret.JPEG", picture(0))
    write(root / "val" / "val_annotations.txt", f"{name}\t{WNIDS[0]}\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match="line 1: expected the plain name of a file"):
        find(root, "val")


def test_a_list_and_its_images_agree(tmp_path):
    root = tiny(tmp_path)
    annotations = root / "val" / "val_annotations.txt"
    lines = annotations.read_text().splitlines()
    write(annotations, "\n".join([*lines[1:], f"gone.JPEG\t{WNIDS[0]}\t0\t0\t1\t1"]))
    left_out = {path.name: why for path, why in find(root, "val").left_out}
    assert left_out == {"val_0.JPEG": "not in val_annotations.txt",
                        "gone.JPEG": "in val_annotations.txt, but no image is there"}  # fmt: skip
    write(annotations, "\n".join([*lines, f"val_0.JPEG\t{WNIDS[1]}\t0\t0\t1\t1"]))
    with pytest.raises(ValueError, match=f"val_0.JPEG is of two classes, {WNIDS[0]} and {WNIDS[1]}"):
        find(root, "val")


def test_two_classes_of_one_name_are_told_apart_by_their_ids(tmp_path):
    root = tiny(tmp_path)
    write(root / "words.txt", f"{WNIDS[0]}\tcrane\n{WNIDS[1]}\tcrane, a machine\n{WNIDS[2]}\tgo-kart\n")
    with pytest.raises(ValueError, match=f"2 classes are called 'crane': give the id, {WNIDS[0]} or {WNIDS[1]}"):
        find(root, classes=("crane",))
    assert find(root).names == (f"crane ({WNIDS[0]})", f"crane ({WNIDS[1]})", "go-kart")
    chosen = find(root, classes=("go-kart", WNIDS[1]))
    assert chosen.names == ("go-kart", f"crane ({WNIDS[1]})")
    assert find(root, classes=chosen.names).wnids == chosen.wnids


# ---- packing ----


def test_pixels_are_area_averages_of_the_centred_square(tmp_path):
    """A 40x32 picture at 8: the square starts at column 4, and each pixel is the mean of 4x4."""
    big = picture(1, (40, 32))
    save(tmp_path / "in" / "train" / WNIDS[0] / "a.png", big)
    prepare(tmp_path / "in", tmp_path / "out", 8, splits=("train",), progress=False)
    packed = prepared(tmp_path / "out", flip=False).values["image"][0].double()
    pixels = torch.from_numpy(np.array(big)).double().movedim(2, 0)[:, :, 4:36]
    mean = pixels.reshape(3, 8, 4, 8, 4).mean((2, 4))
    assert (packed - mean).abs().max() < 1, "rounded after rows and after columns"


def test_boxes_follow_the_square(tmp_path):
    wnid = WNIDS[0]
    for name in "ab":
        save(tmp_path / "in" / "train" / wnid / "images" / f"{name}.JPEG", picture(0, (32, 16)))
    boxes = "a.JPEG\t4\t4\t15\t11\nb.JPEG\t0\t0\t5\t5\n"  # the square is columns 8 to 23; b's box is left of it
    write(tmp_path / "in" / "train" / wnid / f"{wnid}_boxes.txt", boxes)
    meta = prepare(tmp_path / "in", tmp_path / "out", 8, splits=("train",), progress=False)["train"]
    assert meta["boxes"] == 1
    stored = np.load(tmp_path / "out" / "train" / "boxes.npy")
    assert stored[0].tolist() == [0, 0.25, 0.5, 0.75]
    assert np.isnan(stored[1]).all()
    with pytest.raises(ValueError, match=r"1 of 2 images .* have no box"):
        prepared(tmp_path / "out", modalities=("image", "box"))


def test_every_kind_of_picture_becomes_eight_bit_rgb(tmp_path):
    folder, red = tmp_path / "in" / "train" / WNIDS[0], PIL.Image.new("RGB", (8, 8), (200, 10, 30))
    clear = PIL.Image.new("RGBA", (8, 8), (0, 0, 255, 0))
    save(folder / "a.png", red)
    save(folder / "b.jpg", red.convert("CMYK"), quality=100)
    save(folder / "c.png", red.convert("L"))
    save(folder / "d.png", clear)
    save(folder / "e.png", PIL.Image.fromarray(np.full((8, 8), 25700, np.uint16)))
    save(folder / "f.png", red.convert("P"), transparency=0)
    prepare(tmp_path / "in", tmp_path / "out", 8, splits=("train",), progress=False)
    image = prepared(tmp_path / "out", flip=False).values["image"].float()
    means = image.mean((2, 3))
    assert torch.equal(means[0], torch.tensor([200.0, 10.0, 30.0]))
    assert (means[1] - means[0]).abs().max() < 25, "CMYK loses a little"
    grey = 0.299 * 200 + 0.587 * 10 + 0.114 * 30
    assert (means[2] - grey).abs().max() < 1
    assert torch.equal(means[3], torch.full((3,), 255.0)), "what is transparent is white"
    assert torch.equal(means[4], torch.full((3,), 100.0)), "16 bits are scaled"


def test_broken_images_are_skipped_and_listed(tmp_path):
    root = class_folders(tmp_path / "in")
    whole = (root / "train" / WNIDS[0] / "00001.JPEG").read_bytes()
    (root / "train" / WNIDS[0] / "00001.JPEG").write_bytes(whole[: len(whole) // 2])
    (root / "train" / WNIDS[1] / "00002.JPEG").write_text("not an image")
    meta = prepare(root, tmp_path / "out", 8, progress=False)["train"]
    assert [path for path, why in meta["skipped"]] == [f"train/{WNIDS[0]}/00001.JPEG", f"train/{WNIDS[1]}/00002.JPEG"]
    assert all(why for _, why in meta["skipped"])
    assert meta["count"] == 7
    data = prepared(tmp_path / "out")
    assert data.values["label"].tolist() == [0, 0, 1, 1, 2, 2, 2]
    for k in range(3):
        (root / "train" / WNIDS[2] / f"{k:05d}.JPEG").write_bytes(b"")
    with pytest.raises(ValueError, match=f"no image of class {WNIDS[2]} can be read"):
        prepare(root, tmp_path / "again", 8, progress=False)
    assert not list((tmp_path / "again").iterdir())


def test_packing_is_repeatable_and_done_once(tmp_path):
    root = class_folders(tmp_path / "in")
    first, second = (prepare(root, tmp_path / name, 8, progress=False) for name in ("a", "b"))
    assert first == second
    pixels = (tmp_path / "a" / "train" / "images.bin").read_bytes()
    label, boxes = (np.load(tmp_path / "a" / "train" / f"{name}.npy") for name in ("labels", "boxes"))
    assert hashlib.sha256(pixels + label.tobytes() + boxes.tobytes()).hexdigest() == first["train"]["sha256"]
    stamp = (tmp_path / "a" / "train" / "images.bin").stat().st_mtime_ns
    assert prepare(root, tmp_path / "a", 8, progress=False) == first
    assert (tmp_path / "a" / "train" / "images.bin").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match=r"holds another set .size: 8 there, 16 asked for"):
        prepare(root, tmp_path / "a", 16, progress=False)
    few = prepare(root, tmp_path / "c", 8, limit=2, progress=False)["val"]
    assert few["count"] == 6
    with pytest.raises(ValueError, match="size must be at least 8"):
        prepare(root, tmp_path / "d", 4)
    with pytest.raises(ValueError, match="limit must be at least 1"):
        prepare(root, tmp_path / "d", 8, limit=0)


def as_before(path, change):
    """Change a file and give it its times back."""
    stat = path.stat()
    change(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def whole(path):
    """Write an image file, as long as what is there."""
    stream, size = io.BytesIO(), path.stat().st_size
    picture(3, (8, 8)).save(stream, "JPEG")
    path.write_bytes(stream.getvalue().ljust(size, b"\0"))


def inside(wnid, name):
    return f"train/{wnid}/images/{wnid}_{name}.JPEG"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: save(root / inside(WNIDS[0], 9), picture(7)), "files: 9 there, 10"),
        (lambda root: as_before(root / inside(WNIDS[1], 0), lambda path: picture(9).save(path)), "have changed"),
        (lambda root: os.utime(root / inside(WNIDS[1], 0), ns=(1, 1)), "have changed"),
        (lambda root: (root / inside(WNIDS[2], 0)).rename(root / inside(WNIDS[2], 8)), "have changed"),
        (lambda root: write(root / "words.txt", f"{WNIDS[0]}\tanother\n"), "have changed"),
        (lambda root: write(root / "train" / WNIDS[0] / f"{WNIDS[0]}_boxes.txt", ""), "have changed"),
        (lambda root: as_before(root / inside(WNIDS[2], 1), whole), "1 files that could not be read now can"),
    ],
)
def test_a_pack_is_used_again_only_if_nothing_has_changed(tmp_path, change, message):
    root = tiny(tmp_path / "in")
    (root / inside(WNIDS[2], 1)).write_bytes(b"broken".ljust(2000))
    first = prepare(root, tmp_path / "out", 8, progress=False)
    assert len(first["train"]["skipped"]) == 1
    assert prepare(root, tmp_path / "out", 8, progress=False) == first
    change(root)
    with pytest.raises(ValueError, match=rf"train holds another set \(.*{message}.*: use another folder, or delete it"):
        prepare(root, tmp_path / "out", 8, progress=False)


def test_another_folder_of_the_same_files_is_another_set(tmp_path):
    root = class_folders(tmp_path / "in")
    prepare(root, tmp_path / "out", 8, progress=False)
    shutil.copytree(root, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"root: .*in there, .*copy asked for"):
        prepare(tmp_path / "copy", tmp_path / "out", 8, progress=False)


def test_splits_that_number_their_classes_otherwise_are_refused(tmp_path):
    root = class_folders(tmp_path / "in")
    prepare(root, tmp_path / "out", 8, splits=("train",), progress=False)
    prepare(root, tmp_path / "out", 8, classes=WNIDS[::-1], splits=("val",), progress=False)
    with pytest.raises(ValueError, match="train and val do not have the same classes"):
        prepared(tmp_path / "out")


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    root = class_folders(tmp_path / "in")
    monkeypatch.setattr(packing, "_write", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match=r"the disk is full: .*nothing was kept"):
        prepare(root, tmp_path / "out", 8, progress=False)
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.undo()
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"needs .* MiB, and 0 MiB are free"):
        prepare(root, tmp_path / "out", 8, progress=False)


# ---- the packed data set ----


@pytest.fixture
def packed(tmp_path):
    prepare(tiny(tmp_path / "in"), tmp_path / "tiny", 16, progress=False)
    return tmp_path / "tiny"


def test_batches_hold_what_models_take(packed):
    data = prepared(packed, "train", ("image", "label", "box"), flip=False)
    batch = next(data.batches(9, seed=0))
    rows = next(data.orders(9, seed=0))
    assert torch.equal(batch["image"], data.values["image"][rows].float() / 127.5 - 1)
    assert batch["image"].min() < -0.9
    assert torch.equal(batch["label"], data.values["label"][rows])
    assert torch.equal(batch["box"], box_masks(data.values["box"][rows], 16))
    assert data.names == ("name 0", "name 1", "name 2")
    assert data.hash() == json.loads((packed / "train" / "meta.json").read_text())["sha256"]
    assert torch.equal(data.sample()["label"], data.values["label"])
    assert len(prepared(packed, "test")) == 9


def test_half_of_a_batch_is_mirrored_with_its_boxes(packed):
    data = prepared(packed, "train", ("image", "box"))
    plain = dataclasses.replace(data, flip=False)
    seen = []
    for (_, mirrored, _), a, b, _ in zip(
        data._plan(9, 3, 0), data.batches(9, 3), plain.batches(9, 3), range(4), strict=False
    ):
        for name in ("image", "box"):
            expected = torch.where(mirrored.view(-1, 1, 1, 1), b[name].flip(3), b[name])
            assert torch.equal(a[name], expected)
        seen += mirrored.tolist()
    assert 0.2 < np.mean(seen) < 0.8
    assert not prepared(packed, "val").flip


def test_a_stream_goes_on_where_it_was_interrupted(packed):
    data = prepared(packed)
    whole = [batch["image"] for batch, _ in zip(data.batches(4, 1), range(7), strict=False)]
    rest = [batch["image"] for batch, _ in zip(data.batches(4, 1, start=3), range(4), strict=False)]
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


@pytest.fixture
def crowded(monkeypatch):
    """No device has room for a whole set: a thread gathers its batches."""
    return lambda: monkeypatch.setattr(Prepared, "_fits", lambda data, device: False)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("mtdiff-ahead")]


@pytest.mark.parametrize("start", [0, 2])
def test_a_thread_that_works_ahead_gives_the_same_batches(packed, crowded, start):
    data = prepared(packed, modalities=("image", "label", "box", "masked", "mask"))
    expected = [batch for batch, _ in zip(data.batches(4, 1, start), range(12), strict=False)]
    assert not threads()
    crowded()
    stream = data.batches(4, 1, start)
    for a, b in zip(expected, stream, strict=False):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert len(threads()) == 1
    stream.close()
    assert not threads()


def test_a_training_that_is_interrupted_leaves_no_thread(packed, crowded):
    crowded()
    run = Trainer(small_model(), prepared(packed, modalities=("image", "label", "box")), TrainConfig(steps=9, batch_size=4))
    run.loss = lambda *args: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.run(progress=False)
    gc.collect()
    assert not threads()


def test_masks_are_drawn_anew_for_every_batch_and_fixed_for_every_index(packed, crowded):
    data = prepared(packed, modalities=("image", "masked", "mask"))
    batches = [batch for batch, _ in zip(data.batches(9, 1), range(3), strict=False)]
    for batch in [*batches, data[:5]]:
        assert set(batch["mask"].unique().tolist()) == {0.0, 1.0}
        assert torch.equal(batch["masked"], batch["image"] * batch["mask"])
    assert not torch.equal(batches[0]["mask"], batches[1]["mask"])
    assert torch.equal(data[:5]["mask"], data.pool[:5].float())
    again = next(data.batches(9, 1))
    assert torch.equal(again["mask"], batches[0]["mask"])
    crowded()
    assert torch.equal(next(data.batches(9, 1, start=1))["masked"], batches[1]["masked"])
    assert not torch.equal(prepared(packed, "val", ("image", "masked", "mask"))[:5]["mask"], data[:5]["mask"])
    assert data.sample().keys() == {"image", "masked", "mask"}


def test_processes_share_a_batch(packed):
    data = prepared(packed, modalities=("image", "label", "masked", "mask"))
    whole = next(data.batches(8, 1, start=2))
    halves = [next(data.batches(8, 1, start=2, part=slice(a, a + 4))) for a in (0, 4)]
    for name, value in whole.items():
        assert torch.equal(value, torch.cat([half[name] for half in halves]))


def test_a_masked_image_needs_an_image(packed):
    with pytest.raises(ValueError, match="'masked' is made of 'image'"):
        prepared(packed, modalities=("masked", "mask"))


def test_an_error_of_the_thread_reaches_the_training(packed, crowded, monkeypatch):
    """When its batch is due, and not before."""
    plan = [(torch.tensor(rows), None, {}) for rows in ([0, 1], [0, 99], [2, 3])]
    monkeypatch.setattr(Prepared, "_plan", lambda *args: iter(plan))
    crowded()
    stream = prepared(packed).batches(2, 0)
    assert next(stream)["label"].tolist() == [0, 0]
    with pytest.raises(IndexError):
        next(stream)
    assert not threads()


def test_what_works_ahead_is_a_map_that_keeps_its_order_and_its_distance():
    asked = []

    def items():
        for k in range(10):
            asked.append(k)
            yield k

    stream = ahead(lambda k: time.sleep(0.001 * (10 - k)) or k * k, items(), 3, workers=2)
    for k, found in enumerate(stream):
        assert found == k * k
        assert len(asked) <= k + 4
    assert asked == list(range(10))
    assert list(ahead(abs, [], 3)) == []


def test_examples_say_what_shape_they_have(packed):
    data = prepared(packed, modalities=("image", "label", "box", "masked", "mask"))
    shapes = {"image": (3, 16, 16), "label": (), "box": (1, 16, 16), "masked": (3, 16, 16), "mask": (1, 16, 16)}
    assert {name: data.shape(name) for name in data.values} == shapes


def small_model():
    """Image, label and box of three classes at 16x16."""
    process = mt.ForwardProcess(
        mt.NoiseSchedule.log_snr(50), {"image": 1.0, "label": mt.fade_in(0.5), "box": mt.fade_in(0.3)}
    )
    modalities = {"image": mt.Image((3, 16, 16)), "label": mt.Label(3), "box": mt.Mask((16, 16))}
    return mt.MTDiffusion(process, modalities, mt.UNet((3, 16, 16), base=8, multipliers=(1, 2)), (3, 16, 16))


def test_a_model_of_image_label_and_box_trains_on_packed_images_and_resumes_exactly(packed, tmp_path):
    data = prepared(packed, modalities=("image", "label", "box"))
    config = TrainConfig(steps=6, batch_size=4, save_every=3, log_every=3)
    torch.manual_seed(0)
    start = small_model().state_dict()

    def trainer(folder):
        model = small_model()
        model.load_state_dict(start)
        return Trainer(model, data, config, folder)

    whole = trainer(tmp_path / "whole")
    whole.run(progress=False)
    torn = trainer(tmp_path / "torn")
    loss = torn.loss
    torn.loss = lambda *args: loss(*args) if torn.step < 4 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        torn.run(progress=False)
    again = trainer(tmp_path / "torn")
    assert again.resume()
    assert again.step == 3
    again.run(progress=False)
    for a, b in zip(whole.ema.state_dict().values(), again.ema.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert set(again.history[0]) >= {"denoise", "image", "label", "box"}
    with pytest.raises(KeyError, match=r"lacks .*box"):
        Trainer(small_model(), prepared(packed), config)
    few = mt.MTDiffusion(
        whole.model.process, {"image": mt.Image((3, 16, 16)), "label": mt.Label(2), "box": mt.Mask((16, 16))},
        mt.UNet((3, 16, 16), base=8, multipliers=(1, 2)), (3, 16, 16),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"'label' has values outside 0\.\.1"):
        Trainer(few, data, config)


def test_damaged_sets_are_named(packed):
    with pytest.raises(FileNotFoundError, match="holds no prepared images: see mtdiff data prepare"):
        prepared(packed / "nowhere")
    with pytest.raises(ValueError, match=r"split must be one of \('train', 'val'\), got 'all'"):
        prepared(packed, "all")
    with pytest.raises(ValueError, match=r"modalities must be some of .*, got \('caption',\)"):
        prepared(packed, modalities=("caption",))
    os.truncate(packed / "train" / "images.bin", 100)
    with pytest.raises(ValueError, match="has 100 bytes, expected 6,912: it is truncated"):
        prepared(packed)
    (packed / "val" / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks labels.npy"):
        prepared(packed, "val")
    (packed / "train" / "meta.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        prepared(packed)


def test_masks_of_boxes_hold_the_pixels_whose_centres_are_inside():
    boxes = torch.tensor([[0.0, 0.25, 0.5, 0.75], [0.49, 0.49, 0.50, 0.50], [0.0, 0.0, 1.0, 1.0]])
    mask = box_masks(boxes, 4)
    assert mask.shape == (3, 1, 4, 4)
    assert mask[0, 0].tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert mask[1].sum() == 1, "a small object keeps a pixel"
    assert mask[2].all()


# ---- fetching ----


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file, with ranges, and may break off."""

    content, break_at, ranges, asked = b"", None, True, []

    def do_GET(self):
        start = self.headers.get("Range")
        self.asked.append(start)
        first = int(start[6:-1]) if start and self.ranges else 0
        if self.path != "/toy.tar" or first >= len(self.content):
            self.send_error(404 if self.path != "/toy.tar" else 416)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(self.content) - first))
        self.end_headers()
        end = len(self.content) if self.break_at is None else self.break_at
        self.wfile.write(self.content[first:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def served():
    """A server in this process: {content, break_at, ranges, asked} and its address."""
    handler = type("Served", (Server,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}/toy.tar"
    yield handler
    server.shutdown()
    server.server_close()


filtered = pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="a Python without filters for archives")
every_kind = pytest.mark.parametrize("kind", [pytest.param("tar", marks=filtered), "zip"])


def packed_up(root, kind="tar", names=None):
    """An archive of a folder in memory."""
    stream = io.BytesIO()
    files = sorted(path for path in root.rglob("*") if path.is_file())
    names = names or [path.relative_to(root.parent).as_posix() for path in files]
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            for path, name in zip(files, names, strict=True):
                archive.writestr(name, path.read_bytes())
    else:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for path, name in zip(files, names, strict=True):
                entry = tarfile.TarInfo(name)
                entry.size = path.stat().st_size
                archive.addfile(entry, io.BytesIO(path.read_bytes()))
    return stream.getvalue()


def toy(served, content):
    served.content = content
    return Archive(served.url, hashlib.md5(content).hexdigest(), "toy", 1)


@every_kind
def test_an_archive_is_fetched_checked_unpacked_and_usable(tmp_path, served, kind):
    archive = toy(served, packed_up(class_folders(tmp_path / "toy"), kind))
    folder = get("toy", tmp_path / "data", archive, progress=False)
    assert prepare(folder, tmp_path / "out", 8, progress=False)["train"]["count"] == 9
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["toy"]
    assert get("toy", tmp_path / "data", archive, progress=False) == folder
    assert len(served.asked) == 1, "what is there is not fetched again"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_transfer_goes_on(tmp_path, served, ranges):
    archive = toy(served, packed_up(class_folders(tmp_path / "toy"), "zip"))
    served.break_at, served.ranges = len(served.content) // 2, ranges
    with pytest.raises(ConnectionError, match="goes on from there"):
        get("toy", tmp_path / "data", archive, progress=False)
    served.break_at = None
    assert get("toy", tmp_path / "data", archive, progress=False).is_dir()
    assert served.asked == [None, f"bytes={len(served.content) // 2}-"]


def test_a_transfer_that_was_complete_is_not_asked_for_again(tmp_path, served):
    archive = toy(served, packed_up(class_folders(tmp_path / "toy"), "zip"))
    write(tmp_path / "data" / "toy.tar.part", "")
    (tmp_path / "data" / "toy.tar.part").write_bytes(served.content)
    assert get("toy", tmp_path / "data", archive, progress=False).is_dir()


def test_a_wrong_checksum_is_refused_and_the_file_deleted(tmp_path, served):
    archive = dataclasses.replace(toy(served, packed_up(class_folders(tmp_path / "toy"))), md5="0" * 32)
    with pytest.raises(ValueError, match=r"has checksum .*, expected 0000"):
        get("toy", tmp_path / "data", archive, progress=False)
    assert not list((tmp_path / "data").iterdir())


@every_kind
@pytest.mark.parametrize("name", ["../evil", "/evil", "toy/../../evil", "C:\\evil"])
def test_nothing_is_written_outside_the_folder(tmp_path, served, kind, name):
    """It is refused, or, as zipfile does, written inside."""
    write(tmp_path / "toy" / "a", "x")
    archive = toy(served, packed_up(tmp_path / "toy", kind, [name]))
    accepted = (kind, name) == ("zip", "toy/../../evil")
    with contextlib.nullcontext() if accepted else pytest.raises(ValueError, match=r"toy\.tar"):
        get("toy", tmp_path / "data", archive, progress=False)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in written} <= {"a", "evil", "toy.tar"}
    assert all(path.parent == tmp_path / "data" / "toy" for path in written if path.name == "evil")
    assert not Path("/evil").exists()


@every_kind
def test_an_archive_that_unpacks_to_far_more_than_itself_is_refused(tmp_path, served, kind, monkeypatch):
    """A megabyte of zeros in a kilobyte or so, where 64 KiB and ten times its size are allowed."""
    stream, zeros = io.BytesIO(), bytes(2**20)
    if kind == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("toy/a.png", zeros)
    else:
        with tarfile.open(fileobj=stream, mode="w:gz") as file:
            entry = tarfile.TarInfo("toy/a.png")
            entry.size = len(zeros)
            file.addfile(entry, io.BytesIO(zeros))
    archive = toy(served, stream.getvalue())
    monkeypatch.setattr(download, "BLOCK", 2**10)
    with pytest.raises(ValueError, match=r"would unpack to more than [67].,... bytes, pictures do not"):
        get("toy", tmp_path / "data", archive, progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match=r"unpacks to more than the 0 MiB that are free"):
        get("toy", tmp_path / "data", archive, progress=False)
    assert not (tmp_path / "data" / "toy").exists()


@filtered
def test_archives_are_unpacked_by_pythons_own_filter_for_data(tmp_path, served, monkeypatch):
    asked, extract = [], tarfile.TarFile.extractall

    def extractall(self, *args, **options):
        asked.append(options["filter"])
        return extract(self, *args, **options)

    monkeypatch.setattr(tarfile.TarFile, "extractall", extractall)
    get("toy", tmp_path / "data", toy(served, packed_up(class_folders(tmp_path / "toy"))), progress=False)
    assert asked == ["data"]
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(RuntimeError, match=r"from 3\.10\.12 and 3\.11\.4 on: .* unpack .*toy\.tar by hand"):
        get("toy", tmp_path / "more", toy(served, packed_up(tmp_path / "toy")), progress=False)
    assert (tmp_path / "more" / "toy.tar").is_file(), "what was fetched is kept"
    assert asked == ["data"]


@filtered
def test_links_and_other_folders_are_refused(tmp_path, served):
    for kind, where, why in (
        (tarfile.SYMTYPE, "/etc", "link"),
        (tarfile.SYMTYPE, "../../..", "link"),
        (tarfile.LNKTYPE, "/etc/passwd", "link"),
        (tarfile.CHRTYPE, "", "special file"),
    ):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as file:
            entry = tarfile.TarInfo("toy/odd")
            entry.type, entry.linkname = kind, where
            file.addfile(entry)
        with pytest.raises(ValueError, match=rf"cannot be unpacked: .*{why}"):
            get("toy", tmp_path / "data", toy(served, stream.getvalue()), progress=False)
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["toy.tar"]
        (tmp_path / "data" / "toy.tar").unlink()
    write(tmp_path / "other" / "a", "x")
    with pytest.raises(ValueError, match=r"expected to hold the folder toy, it holds \['other'\]"):
        get("toy", tmp_path / "more", toy(served, packed_up(tmp_path / "other")), progress=False)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        get("toy", tmp_path / "yet", toy(served, b"no archive at all"), progress=False)


def test_addresses_that_do_not_answer_are_named(tmp_path, served):
    with pytest.raises(ConnectionError, match="404"):
        get("toy", tmp_path, Archive(served.url + ".gz", "0", "toy", 1), progress=False)
    with pytest.raises(ValueError, match=r"data must be one of \('tiny-imagenet', 'imagenette', .*, got 'cifar'"):
        get("cifar", tmp_path)


def test_the_known_archives_are_named_as_they_unpack():
    for archive in download.ARCHIVES.values():
        assert len(archive.md5) == 32
        assert archive.url.rsplit("/", 1)[1].startswith(archive.folder)


real = functools.partial(pytest.param, marks=pytest.mark.skipif("MTDIFF_REAL" not in os.environ, reason="MTDIFF_REAL unset"))


@pytest.mark.parametrize(("name", "classes"), [real("tiny-imagenet-200", 200), real("imagenette2-128", 10)])
def test_real_archives(name, classes, tmp_path):
    """Folders as they unpack, in the folder that MTDIFF_REAL names."""
    meta = prepare(f"{os.environ['MTDIFF_REAL']}/{name}", tmp_path, 64, limit=4, progress=False)
    for split in meta.values():
        assert (split["count"], len(split["names"]), split["skipped"]) == (4 * classes, classes, [])
