import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtdiff.datasets import MIXTURE, Dataset, digits, toy


def numbers(n: int) -> Dataset:
    return Dataset("numbers", {"x": torch.arange(n), "y": torch.arange(n) * 10})


def test_digits_split():
    train, test, whole = (digits(split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(whole)) == (1437, 360, 1797)
    for data in (train, test, whole):
        image = data.values["image"]
        assert image.shape[1:] == (1, 8, 8)
        assert image.dtype == torch.float32
        assert (float(image.min()), float(image.max())) == (-1.0, 1.0)
        assert data.values["label"].dtype == torch.int64
        assert data.names == tuple("0123456789")


def test_digits_split_takes_every_image_once():
    """Each row of the whole is in one part only (scikit-learn's digits has no two equal images)."""
    parts = [{row.numpy().tobytes() for row in digits(split).values["image"]} for split in ("train", "test", "all")]
    assert [len(part) for part in parts] == [1437, 360, 1797]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == parts[2]


def test_digits_split_is_stratified():
    counts = digits("all").values["label"].bincount().double()
    assert (digits("test").values["label"].bincount() - counts * 360 / 1797).abs().max() <= 1


def test_digits_are_always_the_same():
    assert digits("train").hash() == "76c0d600ae9681b5502da6dfcb975272ff553a610b9a1bb1f54b87db9e79fd36"
    assert digits("test").hash() == "171561b4d2343b42357ce92b0d0d278b34abdf23141a2ad85db41db50406dc5b"


def test_unknown_data_are_refused():
    with pytest.raises(ValueError, match=r"split must be .* got 'valid'"):
        digits("valid")
    with pytest.raises(ValueError, match=r"kind must be .* got 'torus'"):
        toy("torus")
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        toy("moons", n=0)


@pytest.mark.parametrize(("kind", "classes"), [("moons", 2), ("spiral", 3), ("mixture", 3)])
def test_toys_are_deterministic_points_of_unit_scale(kind, classes):
    data = toy(kind, n=2000, seed=1)
    assert data.hash() == toy(kind, n=2000, seed=1).hash()
    assert data.hash() != toy(kind, n=2000, seed=2).hash()
    assert data.values["x"].shape == (2000, 2)
    assert data.values["label"].unique().tolist() == list(range(classes))
    assert 0.5 < float(data.values["x"].std()) < 2


@pytest.mark.parametrize("kind", ["moons", "spiral", "mixture"])
def test_class_names_do_not_depend_on_the_draw(kind):
    assert all(toy(kind, n=1, seed=seed).names == toy(kind, n=500).names for seed in range(5))


def test_mixture_points_have_their_classes_law():
    """Class weights, means and standard deviations within 4 standard errors; 20,000 points, seed 0."""
    data, n = toy("mixture", n=20_000), 20_000
    for k, (weight, mean, std) in enumerate(zip(MIXTURE["weights"], MIXTURE["means"], MIXTURE["stds"], strict=True)):
        x = data.values["x"][data.values["label"] == k].double()
        assert abs(len(x) / n - weight) < 4 * math.sqrt(weight * (1 - weight) / n)
        assert (x.mean(0) - torch.tensor(mean)).abs().max() < 4 * std / math.sqrt(len(x))
        assert (x.std(0) - std).abs().max() < 4 * std / math.sqrt(2 * len(x))


@given(n=st.integers(1, 20), size=st.integers(1, 20), start=st.integers(0, 30), seed=st.integers(0, 1000))
def test_a_stream_that_starts_later_continues_the_one_from_the_beginning(n, size, start, seed):
    size = min(n, size)
    whole, later = numbers(n).batches(size, seed), numbers(n).batches(size, seed, start)
    for _ in range(start):
        next(whole)
    for _ in range(4):
        assert torch.equal(next(whole)["x"], next(later)["x"])


def test_an_epoch_takes_every_example_once_in_a_new_order():
    stream = numbers(12).batches(4, seed=0)
    epochs = [torch.cat([next(stream)["x"] for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(12))
    assert not torch.equal(*epochs)


def test_batches_keep_modalities_together():
    batch = next(numbers(12).batches(5, seed=3))
    assert torch.equal(batch["y"], batch["x"] * 10)


@pytest.mark.parametrize("size", [0, 13])
def test_batches_that_do_not_fit_are_refused(size):
    with pytest.raises(ValueError, match=rf"batch size must be in 1\.\.12 .*'numbers'.* got {size}"):
        next(numbers(12).batches(size, 0))


def test_indexing():
    assert numbers(5)[1:3]["y"].tolist() == [10, 20]
    assert numbers(5)[torch.tensor([4, 0])]["x"].tolist() == [4, 0]


def test_examples_say_what_shape_they_have():
    data = digits("test")
    assert (data.shape("image"), data.shape("label")) == ((1, 8, 8), ())
    with pytest.raises(KeyError, match=r"'digits/test' has no 'mask', it has \['image', 'label'\]"):
        data.shape("mask")


def test_a_modality_is_not_an_index():
    with pytest.raises(KeyError, match=r"\.values\['image'\]"):
        digits("test")["image"]


@pytest.mark.parametrize(
    "values", [{}, {"x": torch.zeros(0, 2)}, {"x": torch.zeros(3), "y": torch.zeros(2)}], ids=["none", "empty", "unequal"]
)
def test_bad_data_sets_are_refused(values):
    with pytest.raises(ValueError, match="'broken' needs equally many, and some"):
        Dataset("broken", values)


def test_hash_sees_values_shapes_names_and_types():
    base = {"x": torch.zeros(2, 3)}
    others = [{"x": torch.ones(2, 3)}, {"x": torch.zeros(3, 2)}, {"z": torch.zeros(2, 3)}, {"x": torch.zeros(2, 3).int()}]
    hashes = {Dataset("d", values).hash() for values in (base, *others)}
    assert len(hashes) == 5
    assert Dataset("other name", base).hash() == Dataset("d", base).hash()
