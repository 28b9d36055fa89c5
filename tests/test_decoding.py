"""Picture files as cameras, editors and strangers write them: one reading for `prepare` and for `--given`."""

import os
import threading
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from test_imagenet import WNIDS, save, write

import mtdiff as mt
from mtdiff.cli.sample import read_picture
from mtdiff.datasets import decoding
from mtdiff.datasets.decoding import decoded
from mtdiff.datasets.imagenet import prepare
from mtdiff.datasets.prepared import prepared

S = 16
TURN = PIL.Image.Transpose
BACK = {  # EXIF orientation -> how a camera stores the picture
    2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE,
    6: TURN.ROTATE_90, 7: TURN.TRANSVERSE, 8: TURN.ROTATE_270,
}  # fmt: skip


def exif(orientation):
    tags = PIL.Image.Exif()
    tags[0x0112] = orientation
    return {"exif": tags}


def marked():
    """No turn and no mirror image of it is like it."""
    pixels = np.zeros((S, S, 3), np.uint8)
    pixels[:, :8], pixels[:, 8:], pixels[:4] = (200, 30, 30), (30, 30, 200), (30, 200, 30)
    return PIL.Image.fromarray(pixels)


def clear_square(mode="RGBA"):
    """A red square on what is transparent, whose colour nobody should see."""
    pixels = np.zeros((S, S, 4), np.uint8)
    pixels[..., 0], pixels[4:12, 4:12, 3] = 220, 255
    picture = PIL.Image.fromarray(pixels)
    return picture.quantize(4) if mode == "P" else picture.convert(mode)


def on_white():
    pixels = np.full((S, S, 3), 255, np.uint8)
    pixels[4:12, 4:12] = (220, 0, 0)
    return pixels


def kinds():
    """{file name: (picture, how it is saved, pixels (S, S, 3) that are right, or pixels per channel)}."""
    plain, deep = np.asarray(marked()), np.linspace(2000, 60000, S * S).reshape(S, S).astype(np.uint16)
    grey = np.round(deep / 257).astype(np.uint8)[..., None].repeat(3, 2)
    hidden = np.where(deep[..., None] == deep[3, 3], 255, grey)
    yes = {f"turned{k}.png": (marked().transpose(way), exif(k), plain) for k, way in BACK.items()}
    yes |= {"turned6.jpg": (marked().transpose(BACK[6]), {**exif(6), "quality": 100, "subsampling": 0}, plain)}
    yes |= {"turned9.png": (marked(), exif(9), plain)}
    yes |= {"deep.png": (PIL.Image.fromarray(deep), {}, grey)}
    yes |= {"deep, one clear.png": (PIL.Image.fromarray(deep), {"transparency": int(deep[3, 3])}, hidden)}
    yes |= {"clear.png": (clear_square(), {}, on_white()), "clear palette.png": (clear_square("P"), {}, on_white())}
    yes |= {"one bit.png": (PIL.Image.fromarray(deep > 30000), {}, np.where(deep[..., None] > 30000, 255, [0, 0, 0]))}
    return yes | {"printer's.jpg": (marked().convert("CMYK"), {"quality": 100, "subsampling": 0}, plain)}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", kinds())
def test_a_file_is_the_same_picture_packed_and_given(name, tmp_path):
    picture, options, right = kinds()[name]
    save(tmp_path / "in" / "train" / WNIDS[0] / name, picture, **options)
    prepare(tmp_path / "in", tmp_path / "out", S, splits=("train",), progress=False)
    packed = prepared(tmp_path / "out").values["image"][0].movedim(0, 2).numpy().astype(int)
    image = SimpleNamespace(shape=(3, S, S), name="image")
    given = read_picture(image, str(tmp_path / "in" / "train" / WNIDS[0] / name))[0].movedim(0, 2)
    assert np.abs(packed - right).mean() < (3 if name.endswith("jpg") else 0.01)
    assert np.abs((given.numpy() + 1) * 127.5 - packed).max() < 0.01


def test_deep_grey_is_a_grey_image_or_a_mask(tmp_path):
    deep = np.where(np.arange(S) < 4, 20000, 60000).astype(np.uint16)[None].repeat(S, 0)
    save(tmp_path / "deep.png", PIL.Image.fromarray(deep))
    grey = read_picture(SimpleNamespace(shape=(1, S, S), name="image"), str(tmp_path / "deep.png"))
    assert torch.equal(((grey[0, 0, 0] + 1) * 127.5).round(), torch.tensor([78.0] * 4 + [233.0] * 12))
    mask = read_picture(mt.Mask((S, S)), str(tmp_path / "deep.png"))
    assert mask[0, 0, 0].tolist() == [0.0] * 4 + [1.0] * 12


@pytest.mark.parametrize("orientation", [1, *BACK])
def test_boxes_of_stored_pixels_turn_with_the_picture(orientation, tmp_path):
    """A white rectangle in a wide picture: its box, in stored pixels, has to hold it in the packed one."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[2:8, 6:10] = 255
    stored = PIL.Image.fromarray(pixels)
    stored = stored.transpose(BACK[orientation]) if orientation > 1 else stored
    rows, columns = np.nonzero(np.asarray(stored)[..., 0])
    box = (columns.min(), rows.min(), columns.max(), rows.max())
    folder = tmp_path / "in" / "train" / WNIDS[0]
    save(folder / "images" / "a.png", stored, **exif(orientation))
    write(folder / f"{WNIDS[0]}_boxes.txt", "a.png\t" + "\t".join(map(str, box)) + "\n")
    prepare(tmp_path / "in", tmp_path / "out", 16, splits=("train",), progress=False)
    data = prepared(tmp_path / "out", modalities=("image", "box"), flip=False)[:1]
    assert torch.equal(data["box"][0, 0], (data["image"][0, 0] > 0).float())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_what_is_no_picture_is_named_and_ends_nothing(tmp_path, monkeypatch):
    """A program for Ghostscript, more pixels than are decoded, fractions; and damaged EXIF, which is no reason."""
    folder = tmp_path / "in" / "train" / WNIDS[0]
    save(folder / "a.png", marked())
    save(folder / "large.png", PIL.Image.new("L", (40, 40)))
    save(folder / "exif.jpg", marked(), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    (folder / "eps.jpeg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n(0) run\n")
    (folder / "fractions.png").write_bytes(b"Pf\n1 1\n-1.0\n\0\0\0\0")
    monkeypatch.setattr(decoding, "PIXELS", 1000)
    meta = prepare(tmp_path / "in", tmp_path / "out", 16, splits=("train",), progress=False)["train"]
    reasons = {path.rsplit("/", 1)[1]: why for path, why in meta["skipped"]}
    assert meta["count"] == 2, "the first, and the one whose EXIF cannot be read"
    assert reasons.keys() == {"large.png", "eps.jpeg", "fractions.png"}
    assert "40x40 is more than 1,000 pixels" in reasons["large.png"]
    assert "cannot identify" in reasons["eps.jpeg"]
    assert "fractions" in reasons["fractions.png"]
    monkeypatch.setattr(PIL.Image.Image, "resize", lambda *a, **k: 1 / 0)
    with pytest.raises(ValueError, match=r"no image of class .* can be read in train; .*ZeroDivisionError"):
        prepare(tmp_path / "in", tmp_path / "other", 16, splits=("train",), progress=False)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png cannot be read as a picture .*not a regular file"):
        read_picture(SimpleNamespace(shape=(3, S, S), name="image"), str(tmp_path / "pipe.png"))


def test_large_pictures_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "LARGE", 100)
    save(tmp_path / "a.png", marked())
    save(tmp_path / "small.png", PIL.Image.new("L", (8, 8)))
    entered = threading.Event()

    def second():
        with decoded(tmp_path / "a.png"):
            entered.set()

    with decoded(tmp_path / "a.png"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.05)
        with decoded(tmp_path / "small.png") as (picture, _):
            assert picture.size == (8, 8)
    assert entered.wait(5)
    thread.join()
