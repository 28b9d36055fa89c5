"""The loader of CamVid, on folders made here in its layout: none of its pictures is needed."""

import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mtdiff.datasets.camvid import CLASSES, SPLITS, camvid


def write(folder, split, name, ids, ending="png", mode="L"):
    """A picture whose red is 20 times the id, and its map."""
    for part in (split, f"{split}annot"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    ids = np.asarray(ids, dtype=np.uint8)
    picture = np.stack([20 * ids, 0 * ids, 255 - ids], -1)
    PIL.Image.fromarray(picture).save(folder / split / f"{name}.{ending}")
    label = PIL.Image.fromarray(ids)
    if mode == "P":
        label.putpalette([value for k in range(256) for value in (255 - k, k, 7)])
    label.convert(mode).save(folder / f"{split}annot" / f"{name}.png") if mode == "RGB" else label.save(
        folder / f"{split}annot" / f"{name}.png"
    )


@pytest.fixture
def street(tmp_path):
    """Two pictures to train on, one of them with a palette, and one of each other split, 8 x 12 pixels."""
    quarters = np.kron(np.arange(6).reshape(2, 3), np.ones((4, 4)))
    write(tmp_path, "train", "b", quarters, mode="P")
    write(tmp_path, "train", "a", 11 - quarters)
    for split in SPLITS[1:]:
        write(tmp_path, split, "a", quarters)
    return tmp_path


def test_pictures_and_maps_are_read_in_the_order_of_their_names(street):
    data = camvid(street, "train", (8, 12))
    assert data.names == CLASSES
    assert len(data) == 2
    v = data.values
    assert v["image"].shape == (2, 3, 8, 12)
    assert v["segmentation"].shape == (2, 8, 12)
    assert v["segmentation"][:, ::4, ::4].tolist() == [[[11, 10, 9], [8, 7, 6]], [[0, 1, 2], [3, 4, 5]]]
    red = ((v["image"][:, 0] + 1) * 127.5).round()
    assert (red == 20 * v["segmentation"]).all()  # of each pixel, the picture and the map agree


def test_a_smaller_map_has_no_class_between_two_others(tmp_path):
    write(tmp_path, "train", "a", np.tile([0, 0, 0, 10, 10, 10], (6, 2)))
    data = camvid(tmp_path, "train", (2, 5))
    assert set(data.values["segmentation"].unique().tolist()) <= {0, 10}
    assert data.values["image"].shape == (1, 3, 2, 5)
    whole, half = camvid(tmp_path, "train", (6, 12)), camvid(tmp_path, "train", (3, 6))
    pooled = whole.values["image"].unflatten(2, (3, 2)).unflatten(4, (6, 2)).mean((3, 5))
    assert float((pooled - half.values["image"]).abs().max()) < 1.01 / 127.5  # averaged, then rounded to a byte


def test_each_split_is_its_own_and_one_number_is_a_square(street):
    assert [len(camvid(street, split, 4)) for split in SPLITS] == [2, 1, 1]
    assert camvid(street, "val", 4).shape("image") == (3, 4, 4)


def test_another_layout_is_named(street, tmp_path):
    (street / "trainannot").rename(street / "labels")
    with pytest.raises(FileNotFoundError, match="trainannot is no folder; CamVid is expected as train/ trainannot/ val/"):
        camvid(street)
    with pytest.raises(FileNotFoundError, match="nothing/test is no folder"):
        camvid(tmp_path / "nothing", "test")
    (tmp_path / "empty" / "val").mkdir(parents=True)
    (tmp_path / "empty" / "valannot").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        camvid(tmp_path / "empty", "val")
    with pytest.raises(ValueError, match="split must be one of"):
        camvid(street, "night")
    with pytest.raises(ValueError, match="size must be"):
        camvid(street, "val", 0)


def test_a_picture_without_its_map_and_a_map_that_is_none_are_named(tmp_path):
    write(tmp_path, "train", "a", np.full((4, 4), 3))
    label = tmp_path / "trainannot" / "a.png"
    write(tmp_path, "train", "a", np.full((4, 4), 12))
    with pytest.raises(ValueError, match=r"a.png has the id 12, expected 0..11"):
        camvid(tmp_path)
    write(tmp_path, "train", "a", np.full((4, 4), 3), mode="RGB")
    with pytest.raises(ValueError, match="a picture of mode RGB, expected one id"):
        camvid(tmp_path)
    PIL.Image.fromarray(np.zeros((4, 5), np.uint8)).save(label)
    with pytest.raises(ValueError, match=r"a\.png is 5x4, its picture 4x4"):
        camvid(tmp_path)
    label.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be read as a map"):
        camvid(tmp_path)
    label.unlink()
    with pytest.raises(ValueError, match="has no map"):
        camvid(tmp_path)
    write(tmp_path, "train", "a", np.full((4, 4), 3))
    (tmp_path / "train" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        camvid(tmp_path)


@pytest.mark.skipif("MTDIFF_CAMVID" not in os.environ, reason="MTDIFF_CAMVID names no folder of CamVid")
def test_the_real_one_has_its_pictures_and_classes():
    folder = Path(os.environ["MTDIFF_CAMVID"])
    counts = [len(camvid(folder, split, (45, 60))) for split in SPLITS]
    assert counts == [367, 101, 233]
    assert camvid(folder, "val", (45, 60)).values["segmentation"].unique().tolist() == list(range(12))
