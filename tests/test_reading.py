"""Files that somebody else may have written: every error names the file, in one line, soon and in little memory."""

import copy
import io
import itertools
import json
import math
import os
import time

import numpy as np
import pytest
import torch
from helpers import image_label_batch, image_label_model
from safetensors.torch import load_file, save_file

import mtdiff as mt
from mtdiff.datasets.base import Dataset
from mtdiff.datasets.imagenet.packing import TYPES
from mtdiff.datasets.prepared import prepared
from mtdiff.experiments.report import markdown
from mtdiff.judges import SceneJudge, scene_judge
from mtdiff.reading import Allowance, check_types, fits, naming, read_json
from mtdiff.representations import Representation, representation
from mtdiff.training import TrainConfig, Trainer

SOON = 10.0
"""Seconds of computing that a refusal may take; most take hundredths, and without a bound it is hours or for ever."""
DEEP: list = []
for _ in range(400):
    DEEP = [DEEP]
ODD = [None, "", -1, 0, 1e30, 10**30, 10**9, [], {}, True, 1.5, math.nan, "x", [[]], DEEP]
"""What values of a card are replaced by."""


def paths(node, above=()):
    """Where the values of nested objects are; of a list, and of many names, the first two and four."""
    if above:
        yield above
    items = list(node.items())[:8] if isinstance(node, dict) else list(enumerate(node))[:2] if isinstance(node, list) else []
    for key, value in items:
        yield from paths(value, (*above, key))


def replaced(whole, path, value):
    """A copy of nested objects with another value at one place."""
    whole = copy.deepcopy(whole)
    node = whole
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return whole


def refused(read, *names, error=ValueError) -> bool:
    """Whether reading is refused; if so, soon and in one line that holds the names."""
    begin, said = time.process_time(), None
    try:
        read()
    except error as problem:
        said = str(problem)
    assert time.process_time() - begin < SOON
    if said is not None:
        assert all(str(name) in said for name in names), said
        assert "\n" not in said
        assert len(said) < 1500
    return said is not None


def pictures():
    """A small U-Net with a modality of most kinds."""
    space = (3, 8, 8)
    modalities = {
        "image": mt.Image(space, levels=256, revealed_by=("masked", "mask")),
        "masked": mt.Image(space, start="nothing", tell=True),
        "mask": mt.Mask((8, 8), tell=True),
        "label": mt.Label(4, names=list("abcd"), sense=True),
        "map": mt.LabelMap(3, (8, 8)),
        "caption": mt.Caption(["a", "b"], 3, codes="learned"),
        "depth": mt.Encoded((1, 8, 8), width=4),
        "tiles": mt.Encoded((4,), "tiles", sense=True),
    }
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), dict.fromkeys(modalities, 1.0))
    backbone = mt.UNet(space, base=4, multipliers=(1, 2), cross=(4,), attention=(8,))
    options = {"rule": {"label": "conditioned"}, "sampler": "ddpm", "remove_known": True}
    return mt.MTDiffusion(process, modalities, backbone, space, "heads", **options)


KINDS = {
    "pictures": (lambda folder: pictures().save(folder), mt.load),
    "points": (lambda folder: image_label_model().save(folder), mt.load),
    "judge": (lambda folder: SceneJudge(16, width=8).save(folder), scene_judge),
    "representation": (lambda folder: Representation((3, 8, 8), width=8, d=4).save(folder), representation),
}


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """A folder with a network, what reads it, and its card."""
    save, read = KINDS[request.param]
    folder = save(tmp_path_factory.mktemp("saved") / request.param)
    return folder, read, json.loads((folder / "card.json").read_text())


def test_an_odd_value_in_a_card_is_refused_or_harmless(saved):
    folder, read, card = saved
    places, found = list(paths(card)), []
    for number, (path, value) in enumerate(itertools.product(places, ODD)):
        if number % max(1, len(places) * len(ODD) // 100):
            continue  # a hundred of them, everywhere
        (folder / "card.json").write_text(json.dumps(replaced(card, path, value)))
        found.append(refused(lambda: read(folder), folder))
    (folder / "card.json").write_text(json.dumps(card))
    read(folder)
    assert np.mean(found) > 0.75


def changed(saved, change, *names):
    """Whether a card is refused after a change to its config, by these names beside the folder's."""
    folder, read, card = saved
    card = copy.deepcopy(card)
    change(card["config"])
    (folder / "card.json").write_text(json.dumps(card))
    return refused(lambda: read(folder), folder, *names)


@pytest.mark.parametrize("saved", ["pictures"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["backbone"].update(blocks=1e30), "blocks of the backbone UNet must be a whole number, got 1e+30"),
        (lambda c: c["backbone"].update(blocks=10**9), "asks for far more than"),
        (lambda c: c["backbone"].update(blocks=10**30, base=1), "asks for far more than"),
        (lambda c: c["backbone"].update(base=10**6), "asks for far more than"),
        (lambda c: c["backbone"].update(base=-4), "base must be a whole number from 1 on"),
        (lambda c: c["backbone"].update(multipliers=[]), "multipliers must be whole numbers from 1 on, got []"),
        (lambda c: c["backbone"].update(multipliers=[1, 10**5]), "asks for far more than"),
        (lambda c: c["backbone"].update(multipliers=[1] * 60), "divisible by"),
        (lambda c: c["backbone"].update(head_channels=0), "head_channels must be a whole number from 1 on"),
        (lambda c: c["backbone"].update(attention=[True]), "attention of the backbone UNet must be a list"),
        (lambda c: c["backbone"].update(kind=["UNet"]), "a backbone is described by"),
        (lambda c: c.update(backbone=[]), "a backbone is described by"),
        (lambda c: c["modalities"].update(label=None), "a modality is described by"),
        (lambda c: c["modalities"]["label"].update(classes=10**9, names=None), "at most a million"),
        (lambda c: c["modalities"]["label"].update(classes=10**6, names=None), "asks for far more than"),
        (lambda c: c["modalities"]["label"].update(classes=1500, names=None), "does not fit its card"),
        (lambda c: c["modalities"]["label"].update(names=["a", "b", 4.5]), "names of the modality Label must be a list"),
        (lambda c: c["modalities"]["label"].update(codes=[[[]]]), "codes of 'label' must have shape"),
        (lambda c: c["modalities"]["label"].update(channels=[0, 1, 1]), "channels of the modality Label"),
        (lambda c: c["modalities"]["caption"].update(length=10**9), "asks for far more than"),
        (lambda c: c["modalities"]["depth"].update(width=10**8), "asks for far more than"),
        (lambda c: c["modalities"]["depth"].update(spread=math.inf), "spread of the modality Encoded must be a finite"),
        (lambda c: c["modalities"]["tiles"].update(shape=[10**12]), "cannot be lifted into a smaller space"),
        (lambda c: c.update(space=[3, 8]), "the backbone works on"),
        (lambda c: c.update(space=[3, 10**400, 8]), "the backbone works on"),
        (lambda c: c.update(sampler="euler"), "sampler must be one of"),
        (lambda c: c.update(rule={"label": "guess"}), "rule must be one of"),
        (lambda c: c.update(rule=["bayes"]), "rule of the model MTDiffusion must be"),
        (lambda c: c.update(dtype="load"), "dtype must be one of"),
        (lambda c: c.update(kind="SceneJudge"), "unknown model kind 'SceneJudge'"),
        (lambda c: c.update(remove_known="yes"), "remove_known of the model MTDiffusion must be true or false"),
        (lambda c: c.update(prior=["label"]), "prior of the model must be a text or null"),
    ],
)
def test_a_card_that_asks_for_too_much_or_for_nonsense_is_refused_by_name(saved, change, message):
    assert changed(saved, change, message)


@pytest.mark.parametrize("saved", ["pictures"], indirect=True)
@pytest.mark.parametrize("side", [2**9, 2**15, 2**20, 2**40])
def test_images_of_any_size_are_not_built_to_find_out_that_they_do_not_fit(saved, side):
    def enlarge(config):
        config["space"] = config["backbone"]["space"] = [3, side, side]
        for entry in config["modalities"].values():
            entry |= {"shape": [entry["shape"][0], side, side]} if len(entry.get("shape", [])) == 3 else {}
            entry |= {"size": [side, side]} if "size" in entry else {}
        config["backbone"] |= {"attention": [], "cross": []}

    assert changed(saved, enlarge, "does not fit its card")


@pytest.mark.parametrize("saved", ["judge"], indirect=True)
@pytest.mark.parametrize(
    "config", [{"width": 10**7}, {"width": 1e30}, {"width": -1}, {"size": True}, {"kind": []}, {"a": 1}]
)
def test_an_odd_judge_is_refused(saved, config):
    assert changed(saved, lambda c: c.update(config))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"format": ' + "9" * 5000 + "}", "null", "\ufeff{}", " " * (2**24 + 1)]
)
def test_json_that_is_odd_is_no_card(saved, text):
    folder, read, _ = saved
    (folder / "card.json").write_text(text)
    assert refused(lambda: read(folder), folder / "card.json", "card")


def test_what_is_no_regular_file_is_not_waited_for(saved, tmp_path):
    folder, read, card = saved
    (folder / "card.json").write_text(json.dumps(card))
    for name in ("model.safetensors", "card.json"):
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert refused(lambda: read(folder), folder, error=FileNotFoundError)
        (folder / name).unlink()
        (folder / name).write_bytes(whole)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_json(tmp_path, "is not a card")


def test_weights_with_a_changed_header_are_refused_or_the_same(saved):
    folder, read, card = saved
    (folder / "card.json").write_text(json.dumps({key: value for key, value in card.items() if key != "sha256"}))
    path, generator = folder / "model.safetensors", np.random.default_rng(0)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    found = []
    for place in [*range(8), *generator.integers(8, header, 20)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(generator.integers(8))]) + whole[place + 1 :])
        found.append(refused(lambda: read(folder), path))
    path.write_bytes(whole)
    assert np.mean(found) > 0.9


def test_weights_of_other_names_and_shapes_are_refused(saved):
    folder, read, card = saved
    (folder / "card.json").write_text(json.dumps({key: value for key, value in card.items() if key != "sha256"}))
    path = folder / "model.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    name = max(tensors, key=lambda name: tensors[name].numel())
    for other in ({**tensors, name: tensors[name][:1].clone()}, {**tensors, "more": torch.zeros(1)}, {name: tensors[name]}):
        save_file(other, path)
        assert refused(lambda: read(folder), path, "does not fit its card")
    path.write_bytes(whole)


def test_a_class_of_ones_own_is_rebuilt_with_what_it_computes_for_itself(tmp_path):
    class Scaled(mt.MLP):
        """Has a tensor that is not saved, and arguments without types."""

        def __init__(self, space, width=16, blocks=1, dropout=0.0, top=3):
            super().__init__(space, width, blocks, dropout)
            self.scales = torch.linspace(1, top, self.space[0])

        def forward(self, z, u, **told):
            return super().forward(z * self.scales, u, **told)

    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), {"x": 1.0})
    model = mt.MTDiffusion(process, {"x": mt.Vector(2)}, Scaled((2,)), (2,)).eval()
    again, z = mt.load(model.save(tmp_path / "own")), torch.ones(1, 2)
    with torch.no_grad():
        assert torch.equal(again.predict(z, 3).aggregate, model.predict(z, 3).aggregate)
    assert again.backbone.scales.tolist() == [1, 3]


def test_weights_are_those_of_the_file_and_none_is_left_as_it_was_made(saved):
    folder, read, card = saved
    (folder / "card.json").write_text(json.dumps(card))
    tensors = load_file(folder / "model.safetensors")
    for name, value in read(folder).state_dict().items():
        assert torch.equal(value, tensors[name].to(value.dtype)), name


def test_an_allowance_is_used_up_by_size_number_and_work():
    for make in (
        lambda: torch.empty(10**12),
        lambda: torch.zeros((10**6, 10**6)),
        lambda: torch.randn(size=(10**12,)),
        lambda: torch.arange(10**12),
        lambda: torch.linspace(0, 1, 10**12),
        lambda: torch.eye(10**6),
        lambda: [torch.nn.Linear(1, 1) for _ in range(10**9)],
        lambda: [torch.linalg.qr(torch.ones(600, 600)) for _ in range(10**9)],
        lambda: torch.nn.Embedding(10**7, 10**7),
    ):
        with Allowance({"a": torch.zeros(10)}), pytest.raises(ValueError, match="far more than the 10 numbers"):
            make()
    with Allowance({"a": torch.zeros(10**6)}):
        layer = torch.nn.Linear(1000, 1000)
    assert layer.weight.shape == (1000, 1000)


@pytest.mark.parametrize(
    ("value", "hint", "right"),
    [
        (3, int, True), (True, int, False), (3.0, int, False), (3, float, True), (math.nan, float, False),
        (10**400, float, True), ("a", str, True), (None, str | None, True), (None, str, False),
        ([1, 2], tuple[int, ...], True), ([1, "a"], list[int], False), ("ab", list[str], False), ([0, None], slice, True),
        ([0], slice, False),
        ({"a": "b"}, dict[str, str], True), ({"a": 1}, dict[str, str], False), ([[1.0]], torch.Tensor, True),
        (object(), 3, True),
    ],
)  # fmt: skip
def test_values_from_json_fit_annotated_types(value, hint, right):
    assert fits(value, hint) == right


def test_a_type_that_does_not_fit_is_said_in_words():
    with pytest.raises(ValueError, match=r"^a of it must be a list, each entry a whole number or null, got \['x'\]$"):
        check_types({"a": ["x"]}, {"a": list[int] | None}, "it")


def test_errors_name_the_file_once_and_in_one_line(tmp_path):
    for error, text in (
        (ValueError("two\nlines"), "two lines"),
        (KeyError("colour"), "it lacks 'colour'"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (ValueError(f"{tmp_path} is odd"), f"{tmp_path} is odd"),
    ):
        with pytest.raises(ValueError, match="is") as found, naming(tmp_path, "is damaged"):
            raise error
        assert str(found.value) in (f"{tmp_path} is damaged: {text}", text)
    with pytest.raises(PermissionError), naming(tmp_path):
        raise PermissionError("no")


# ---- the state of a training ----


def trainer(folder):
    """A training of four steps that is at its end in the folder, or has not begun."""
    data = Dataset("tiny", image_label_batch(16))
    return Trainer(image_label_model(), data, TrainConfig(steps=4, batch_size=4, save_every=4, log_every=2), folder)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The file of a training's state."""
    folder = tmp_path_factory.mktemp("run")
    trainer(folder).run(progress=False)
    return folder / "training.pt"


def test_an_odd_value_in_a_state_is_refused_by_the_name_of_its_file(state):
    whole, fresh = state.read_bytes(), trainer(state.parent)
    content, found = torch.load(state, weights_only=True), []
    values = [None, "", -1, 10**30, math.nan, [], {}, DEEP, torch.zeros(3), [torch.zeros(3)]]
    for number, (path, value) in enumerate(itertools.product(paths(content), values)):
        if number % 11 == 0:
            torch.save(replaced(content, path, value), state)
            found.append(refused(fresh.resume, state))
    for odd in (DEEP, [1], "x", torch.zeros(2), {**content, "step": 5}, {**content, "step": -1}):
        torch.save(odd, state)
        assert refused(fresh.resume, state, "is truncated or damaged")
    state.write_bytes(whole)
    assert fresh.resume()
    assert np.mean(found) > 0.75


def test_a_state_with_a_flipped_bit_is_refused_or_the_same(state):
    whole, fresh, generator = state.read_bytes(), trainer(state.parent), np.random.default_rng(0)
    assert fresh.resume()
    right = [value.clone() for value in fresh.ema.state_dict().values()]
    data = whole.index(next(value for value in right if value.ndim == 2).numpy().tobytes())  # in the middle of weights
    found = []
    for place in [data + 5, *generator.integers(len(whole), size=60)]:
        state.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(generator.integers(8))]) + whole[place + 1 :])
        found.append(refused(fresh.resume, state, "is truncated or damaged"))
        assert all(map(torch.equal, fresh.ema.state_dict().values(), right))
    state.write_bytes(whole)
    assert found[0]
    assert np.mean(found) > 0.6  # the rest is what no part's sum and no name depends on


# ---- packed sets and results ----


@pytest.fixture
def packed(tmp_path):
    """A packed set of six images: its description and files."""
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    (folder / "images.bin").write_bytes(bytes(6 * 3 * 8 * 8))
    np.save(folder / "labels.npy", np.arange(6) % 3)
    np.save(folder / "boxes.npy", np.full((6, 4), np.nan, np.float32))
    meta = {"format": 1, "size": 8, "count": 6, "classes": ["a", "b", "c"], "names": ["x", "y", "z"], "skipped": [],
            "left_out": [], "sha256": "0"}  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta))
    assert len(prepared(folder.parent)) == 6
    return folder, meta


def test_an_odd_description_of_a_packed_set_is_refused(packed):
    folder, meta = packed
    for name, value in itertools.product(("format", "size", "count", "names", "sha256", "skipped"), ODD):
        (folder / "meta.json").write_text(json.dumps({**meta, name: value}))
        read = refused(lambda: prepared(folder.parent), folder)
        assert read or (name, value) in [("sha256", ""), ("sha256", "x"), ("skipped", []), ("skipped", [[]])]
    for name, value in itertools.product(("layout", "captions", "beside"), ODD):
        (folder / "meta.json").write_text(json.dumps({**meta, name: value}))
        assert refused(lambda: prepared(folder.parent), folder) or fits(value, TYPES[name])


@pytest.mark.parametrize("name", ["labels.npy", "boxes.npy"])
def test_odd_arrays_of_a_packed_set_are_refused_before_they_are_read(packed, name):
    folder, path = packed[0], packed[0] / name
    whole = path.read_bytes()
    for array in (np.arange(5), np.full(6, 7), np.full((6, 4), 2, np.float32), np.array([{}] * 6)):
        file = io.BytesIO()
        np.save(file, array, allow_pickle=True)
        path.write_bytes(file.getvalue())
        assert refused(lambda: prepared(folder.parent), path)
    for content in (b"", b"PK\x03\x04", whole[:-1], whole.replace(b"(6,", b"(6000000000000,")):
        path.write_bytes(content)
        assert refused(lambda: prepared(folder.parent), path)


def test_a_table_takes_files_and_names_one_that_is_no_result(tmp_path):
    line = {"agreement": {"mean": 0.5, "stderr": None}, "frechet_pixels": {"mean": 2.0, "stderr": 0.1}}
    result = {"experiment": "image-label", "data": "digits", "variants": {"a": {"joint": line, "bayes": line}}}
    path = tmp_path / "r.json"
    path.write_text(json.dumps(result))
    assert markdown([path]) == markdown([str(path)]) == markdown([result])
    found = []
    for place, value in itertools.product(paths(result), ODD):
        path.write_text(json.dumps(replaced(result, place, value)))
        found.append(refused(lambda: markdown([path, result]), path))
    assert np.mean(found) > 0.5
    with pytest.raises(FileNotFoundError, match="there is no file"):
        markdown([tmp_path / "none.json"])
