"""Data of other makers: what a trainer takes, in which order, and what it says of what it cannot take."""

import itertools
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import generator, image_label_batch, image_label_model, point_model
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as Map

import mtdiff as mt
from mtdiff.datasets import Dataset, toy
from mtdiff.datasets.adapted import SEEN, Rows, Stream, adapted
from mtdiff.training import Interrupted

DATA = toy("mixture", n=100)
CONFIG = mt.TrainConfig(
    steps=12, batch_size=16, lr=3e-3, warmup=3, drop={"label": 0.3}, give={"label": 0.3}, log_every=2, save_every=4, ema=0.9
)
NAMES = ("x", "label")


class Points(Map):
    """A map-style set of torch's, each point moved at random by torch's generator, with a text that no model takes."""

    def __init__(self, noise=0.0):
        self.noise = noise

    def __len__(self):
        return len(DATA)

    def __getitem__(self, k):
        x = DATA.values["x"][k]
        return {"x": x + self.noise * torch.randn(2), "label": DATA.values["label"][k], "text": "a point"}


class HuggingFace:
    """Like a `datasets.Dataset` with format "torch": columns by their names, examples by their numbers, in one method."""

    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __iter__(self):
        return (self[k] for k in range(len(self)))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        if not isinstance(key, int):
            raise TypeError(f"expected a number, got {key!r}")
        return {name: column[key] for name, column in self.columns.items()}


class Endless(IterableDataset):
    """Single examples, without an end and without a length."""

    def __iter__(self):
        return (Points()[k % len(DATA)] for k in itertools.count())


class Batches:
    """Batches by hand, which can be read again and again."""

    def __init__(self, *sizes, **more):
        self.sizes, self.more = sizes, more

    def __iter__(self):
        starts = itertools.accumulate(self.sizes, initial=0)
        return iter([{**DATA[a : a + n], **self.more} for a, n in zip(starts, self.sizes, strict=False)])


def trainer(data, folder=None, config=CONFIG):
    return mt.Trainer(point_model(width=16), data, config, folder)


def weights(run):
    return torch.cat([p.detach().flatten() for p in [*run.model.parameters(), *run.ema.parameters()]])


def stopped_at(run, step):
    """Trains, and is told to stop after so many steps."""
    plain = run.loss

    def loss(model, batch, generator):
        if run.step == step:
            raise Interrupted("stop")
        return plain(model, batch, generator)

    run.loss = loss
    with pytest.raises(Interrupted):
        run.run(progress=False)


# ---- in memory, and by their numbers ----


@pytest.mark.parametrize(
    "data",
    [
        dict(DATA.values),
        {name: value.numpy() for name, value in DATA.values.items()} | {"text": 100 * ["a point"]},
        Points(),
        HuggingFace({**DATA.values, "text": 100 * ["a point"]}),
        [{"x": x, "label": int(y)} for x, y in zip(DATA.values["x"].numpy(), DATA.values["label"], strict=True)],
    ],
    ids=["tensors", "arrays", "torch", "Hugging Face", "list"],
)
def test_the_steps_are_those_of_a_data_set_of_ours(data):
    expected, run = trainer(DATA), trainer(data)
    expected.run(progress=False), run.run(progress=False)
    assert torch.allclose(weights(run), weights(expected), atol=1e-6)
    assert [row["label"] for row in run.history] == pytest.approx([row["label"] for row in expected.history], rel=1e-4)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_resuming_is_exact_with_random_augmentation_too(tmp_path, noise):
    whole, torn = trainer(Points(noise)), trainer(Points(noise), tmp_path)
    whole.run(progress=False)
    stopped_at(torn, 6)
    torch.rand(5)
    again = trainer(Points(noise), tmp_path)
    assert again.resume()
    assert again.step == 4
    again.run(progress=False)
    assert torch.equal(weights(again), weights(whole))


def test_augmentation_differs_from_epoch_to_epoch_and_does_not_depend_on_the_part():
    data = adapted(Points(0.1), NAMES)
    whole, part = data.batches(50, seed=3), data.batches(50, seed=3, part=slice(20, 30))
    firsts = []
    for _ in range(4):
        batch = next(whole)
        assert torch.equal(next(part)["x"], batch["x"][20:30])
        firsts.append({tuple(x.tolist()) for x in batch["x"]})
    assert not set.intersection(firsts[0] | firsts[1], firsts[2] | firsts[3])


def test_reading_leaves_the_callers_generator_alone():
    before = torch.get_rng_state()
    next(adapted(Points(0.1), NAMES).batches(8, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_examples_are_read_when_they_are_due():
    read = []

    class Long(Points):
        def __len__(self):
            return 10_000

        def __getitem__(self, k):
            read.append(k)
            return super().__getitem__(k % 100)

    data = adapted(Long(), NAMES)
    assert len(read) == SEEN
    assert (read[0], read[-1]) == (0, 9999), "from all over the set"
    next(data.batches(8, 0))
    assert len(read) == SEEN + 8
    assert len(data) == 10_000
    assert data.shape("x") == (2,)
    assert "10,000 examples: x (2,), label ()" in repr(data)
    assert data[torch.tensor([3, 103])]["x"].tolist() == DATA[torch.tensor([3, 3])]["x"].tolist()


def test_a_data_set_of_ours_stays_as_it_is():
    assert adapted(DATA, NAMES) is DATA


def test_its_name_is_its_own_or_its_class():
    named = Points()
    named.name = "points/train"
    assert adapted(named, NAMES).name == "points/train"
    assert adapted(Points(), NAMES).name == "Points"


def test_other_shapes_or_numbers_are_other_data(tmp_path):
    trainer(Points(), tmp_path).run(progress=False)
    fewer = HuggingFace({name: value[:90] for name, value in DATA.values.items()})
    with pytest.raises(ValueError, match="was trained on other data than 'HuggingFace'"):
        trainer(fewer, tmp_path).resume()
    assert trainer(HuggingFace(DATA.values), tmp_path).resume()


@pytest.mark.parametrize("make", [dict, HuggingFace, lambda values: DataLoader(HuggingFace(values), 16, drop_last=True)])
def test_a_label_of_minus_one_is_missing(make):
    """Of one epoch the head is scored in one step; the label is not among the examples that are looked at first."""
    n = 3 * SEEN
    label = torch.full((n,), -1)
    label[7] = 1
    data = make({"x": torch.randn(n, 2, generator=generator(0)), "label": label})
    run = trainer(data, config=replace(CONFIG, steps=48, give={}, log_every=1))
    run.run(progress=False)
    assert sum(row["label"] > 0 for row in run.history) == 1


# ---- batches as they come ----


def test_batches_come_as_they_come_epoch_after_epoch():
    stream = adapted(Batches(16, 16, 16, 5), NAMES)
    assert repr(stream) == "Stream('Batches', batches of x (16, 2), label (16,))"
    found = list(itertools.islice(stream.batches(16, seed=1), 6))
    expected = [DATA[16 * k : 16 * k + 16]["x"] for k in (0, 1, 2, 0, 1, 2)]
    assert all(torch.equal(batch["x"], x) for batch, x in zip(found, expected, strict=True))
    assert found[0].keys() == set(NAMES)
    assert torch.equal(next(stream.batches(16, 0, part=slice(4, 8)))["label"], DATA[4:8]["label"])


@pytest.mark.parametrize(
    "data",
    [DataLoader(Points(), 16, shuffle=True), DataLoader(Endless(), batch_size=16), Batches(16, 16)],
    ids=["loader", "endless", "by hand"],
)
def test_a_resumed_training_takes_the_right_step_and_warns_of_other_batches(data, tmp_path):
    run = trainer(data, tmp_path)
    assert isinstance(run.data, Stream)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stopped_at(run, 6)
    again = trainer(data, tmp_path)
    assert again.resume()
    text = "comes as it comes: the training goes on at step 4, with other batches than it would have had"
    with pytest.warns(UserWarning, match=text):
        again.run(progress=False)
    assert again.step == 12
    assert [row["step"] for row in again.history] == [2, 4, 6, 8, 10, 12]


def test_a_stream_of_other_shapes_is_other_data(tmp_path):
    trainer(Batches(16), tmp_path).run(progress=False)
    with pytest.raises(ValueError, match="was trained on other data"):
        trainer(Points(), tmp_path).resume()
    assert trainer(Batches(16, 16), tmp_path).resume()


# ---- what cannot be taken ----


def examples(*more):
    return [*({"x": torch.zeros(2), "label": 0} for _ in range(20)), *more]


BAD = {
    "nothing": (
        3,
        ValueError,
        "data must be a Dataset, a dict of tensors, a map-style data set or an iterable of .*, got 3",
    ),
    "no examples": ([], ValueError, "data set 'list' has no examples"),
    "no values": ({"x": torch.zeros(0, 2), "label": torch.zeros(0)}, ValueError, "equally many, and some"),
    "no batches": (Batches(), ValueError, "data set 'Batches' has no batches"),
    "unequal": ({"x": torch.zeros(20, 2), "label": torch.zeros(19).long()}, ValueError, "equally many, and some"),
    "tuples": (
        [(torch.zeros(2), 0)],
        ValueError,
        r"example 0 of 'list' is \(tensor.*, 0\): expected a dict \{'x': \.\.\., 'label': \.\.\.\}",
    ),
    "batches of tuples": (
        DataLoader([(torch.zeros(2), 0)] * 32, 16),
        ValueError,
        "batch 0 of 'DataLoader' is .*: expected a dict",
    ),
    "lacking": ({"x": torch.zeros(20, 2), "y": 0}, KeyError, r"data set 'dict' lacks \['label'\]; it has \['x', 'y'\]"),
    "lacking rows": ([{"x": torch.zeros(2)}], KeyError, r"example 0 of 'list' lacks \['label'\]; it has \['x'\]"),
    "splits": ({"train": Points(), "test": Points()}, KeyError, r"lacks \['x', 'label'\]; it has \['train', 'test'\]"),
    "shapes": (
        examples({"x": torch.zeros(3), "label": 0}),
        ValueError,
        r"examples 0 and 20 of 'list' have 'x' of different shapes: \(2,\) and \(3,\)",
    ),
    "text": (
        examples({"x": torch.zeros(2), "label": "cat"}),
        ValueError,
        "'label' of example 20 of 'list' is 'cat': expected a tensor, an array or numbers",
    ),
    "none": (examples({"x": None, "label": 0}), ValueError, "'x' of example 20 of 'list' is None: expected a tensor"),
    "few": (examples()[:10], ValueError, r"batch size must be in 1\.\.10 \(the examples of 'list'\), got 16"),
    "small batches": (
        Batches(8, 8),
        ValueError,
        r"batch 0 of 'Batches' is x \(8, 2\), label \(8,\), expected 16 examples of each \(the batch size\); only the last",
    ),
    "one small batch": (Batches(8), ValueError, r"batch 0 of 'Batches' is x \(8, 2\), label \(8,\), expected 16 examples"),
    "large batches": (Batches(20, 20), ValueError, r"batch 0 of 'Batches' is x \(20, 2\), .* expected 16 examples"),
    "unequal batches": (Batches(16, 16, label=DATA[:4]["label"]), ValueError, r"is x \(16, 2\), label \(4,\), expected 16"),
    "single examples": (
        Endless(),
        ValueError,
        r"label \(\), expected 16 .*; torch.utils.data.DataLoader\(data, batch_size=16\)",
    ),
    "read once": (iter(Batches(16)), ValueError, "'list_iterator' can be read only once: give what can be iterated again"),
    "range": (examples({"x": torch.zeros(2), "label": 3}), ValueError, r"'label' has values outside 0\.\.2: \[3\]"),
    "type": ([{"x": torch.zeros(2), "label": 0.5}] * 20, ValueError, "'label' must be an integer tensor"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_taken_is_said_before_training(kind):
    data, error, message = BAD[kind]
    with pytest.raises(error, match=message):
        trainer(data)


def test_what_is_wrong_later_is_said_when_it_is_due():
    run = trainer(Batches(16, 8, 16))
    with pytest.raises(ValueError, match=r"batch 1 of 'Batches' is x \(8, 2\).*; only the last batch may be smaller"):
        run.run(progress=False)


@pytest.mark.parametrize("make", [dict, HuggingFace])
def test_bytes_are_no_image_and_it_is_said_how_they_become_one(make):
    batch = image_label_batch(20)
    values = {**batch, "image": ((batch["image"] + 1) * 127.5).byte()}
    message = re.escape("'image' must be floating point in [-1, 1], of bytes x / 127.5 - 1, got torch.uint8 (20, 1, 4, 4)")
    with pytest.raises(ValueError, match=message):
        mt.Trainer(image_label_model(), make(values), replace(CONFIG, steps=1))
    values["image"] = values["image"] / 127.5 - 1
    mt.Trainer(image_label_model(), make(values), replace(CONFIG, steps=1)).run(progress=False)


def test_numbers_of_arrays_train_as_they_are():
    """NumPy's own are of double precision."""
    values = {"x": np.random.default_rng(0).normal(size=(40, 2)), "label": np.arange(40) % 3}
    mt.Trainer(point_model(width=16), values, replace(CONFIG, steps=1)).run(progress=False)


def test_rows_are_a_data_set():
    assert isinstance(adapted(Points(), NAMES), Rows)
    assert isinstance(adapted(Points(), NAMES), Dataset)
