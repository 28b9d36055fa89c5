"""Beginning with what a trained model has learned: what is kept, what is new, and what the card says of it."""

from dataclasses import replace

import pytest
import torch
from helpers import image_label_batch, randn, randomise
from test_cli import run

import mtdiff as mt
from mtdiff.datasets import Dataset
from mtdiff.experiments.image_label import build
from mtdiff.stopping import Interrupted

CONFIG = mt.TrainConfig(steps=6, batch_size=8, lr=3e-3, warmup=2, give={"label": 0.3}, log_every=2, save_every=2, ema=0.9)
DATA = Dataset("pairs", image_label_batch(40))
ANIMALS = ("ant", "bee", "cat")


def model(
    names=ANIMALS, seed=0, channels=1, curve=0.5, T=50, width=16, prediction="v", more=None, codes="simplex", sense=False
):
    space = (channels, 4, 4)
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(T), {"image": 1.0, "label": mt.fade_in(curve)} | (more or {}))
    torch.manual_seed(seed)
    parts = {"image": mt.Image(space), "label": mt.Label(len(names), names, codes=codes, sense=sense)}
    parts |= {name: mt.Mask((4, 4)) for name in more or {}}
    return mt.MTDiffusion(process, parts, mt.MLP(space, width=width, blocks=1), space, prediction)


def trained(folder, names=ANIMALS, **card):
    """Of random weights."""
    card = {"experiment": "pairs", "training": {"steps": 9, "give": {"label": 0.2}}, **card}
    return mt.load(randomise(model(names), 1).eval().save(folder, card))


def weights(module):
    return torch.cat([value.flatten() for value in module.state_dict().values()])


def said(model, z):
    """All that it says of some states, at the end of their law."""
    found = model.eval().predict(z, 20)
    return [found.aggregate, found.law["image"].mean, found.law["label"].logits]


# ---- weights ----


def test_of_the_same_classes_it_begins_where_the_other_ended():
    parent, child, z = mt.load("image-label/digits"), build("digits", "fade-in", seed=7), randn(4, 1, 8, 8)
    before = said(child, z)
    assert mt.transfer(child, parent) == []
    for old, new, other in zip(said(parent, z), said(child, z), before, strict=True):
        assert torch.equal(old, new)
        assert not torch.allclose(old, other)


def test_a_trainer_begins_there_too_its_average_included(tmp_path):
    parent = trained(tmp_path)
    made = mt.Trainer(model(seed=3), DATA, CONFIG, parent=parent)
    for module in (made.model, made.averaged()):
        assert torch.equal(weights(module), weights(parent))
    made.run(progress=False)
    assert not torch.equal(weights(made.model), weights(parent))
    assert torch.equal(weights(parent), weights(trained(tmp_path)))


@pytest.mark.parametrize(
    "options",
    [{"names": (*ANIMALS, "dog")}, {"names": ("ant", "bee", "dog")}, {"codes": "learned"}],
    ids=["one more", "another", "codes"],
)
def test_of_other_classes_all_but_the_labels_parts_are_kept(options, tmp_path):
    parent, child, fresh = trained(tmp_path), model(seed=3, **options), model(seed=3, **options)
    assert mt.transfer(child, parent) == ["label"]
    there, new = parent.state_dict(), fresh.state_dict()
    mine = [name for name in new if name.startswith("modalities.label.")]
    assert {name.split(".")[2] for name in mine} >= {"embed", "out"}
    for name, value in child.state_dict().items():
        assert torch.equal(value, new[name] if name in mine else there[name]), name
    child.eval().predict(randn(2, 1, 4, 4), 20)


DIFFERENT = {
    "channels": ({"channels": 3}, r"the space \(channels, height, width\) is \(1, 4, 4\) there, \(3, 4, 4\) here"),
    "modalities": ({"more": {"mask": 1.0}}, r"the list of modalities is \['image', 'label'\] there, \[.*'mask'\] here"),
    "steps": ({"T": 60}, "the noise schedule is 50 steps from log-SNR .* there, 60 steps from log-SNR .* here"),
    "curve": ({"curve": 0.7}, "the curve of 'label' is 0 to 0.5 there, 0 to 0.7 here"),
    "width": ({"width": 24}, "backbone.width is 16 there, 24 here"),
    "prediction": ({"prediction": "x"}, "prediction is v there, x here"),
    "modality": ({"sense": True}, "modalities.label.sense is False there, True here"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_does_not_fit_is_refused_and_nothing_changed(what, tmp_path):
    options, message = DIFFERENT[what]
    child = model(**options)
    before = weights(child)
    with pytest.raises(ValueError, match="the trained model does not fit: " + message):
        mt.transfer(child, trained(tmp_path))
    assert torch.equal(weights(child), before)
    assert child.card == {}


# ---- cards ----


def test_the_card_says_what_it_is_based_on_and_what_is_new(tmp_path):
    parent = trained(tmp_path / "parent", metrics={"accuracy": 0.9}, probes=[{"step": 9}])
    rest = {"experiment": "pairs", "training": {"steps": 9, "give": {"label": 0.2}}}
    child = model(("x", "y", "z"))
    mt.transfer(child, parent)
    assert child.card == {"based on": rest, "new modalities": ["label"], "taught": []}
    made = mt.Trainer(child, DATA, CONFIG).run(progress=False)
    assert made.card == {"based on": rest, "new modalities": ["label"], "taught": ["label"]}
    saved = mt.load(made.save(tmp_path / "child", {"training": {"steps": 6}}))
    grandchild = mt.Trainer(model(("x", "y", "z")), DATA, CONFIG, parent=saved).model
    assert grandchild.card["based on"] == {"training": {"steps": 6}, "based on": rest, "new modalities": ["label"]}
    assert "new modalities" not in grandchild.card


def test_what_was_never_told_or_is_new_is_not_taught(tmp_path):
    same, other, untold = model(), model(("x", "y", "z")), replace(CONFIG, give={})
    assert mt.Trainer(same, DATA, untold, parent=trained(tmp_path)).averaged().taught == {"label"}
    assert mt.Trainer(other, DATA, untold, parent=trained(tmp_path)).averaged().taught == set()


def test_a_model_without_a_card_is_said_to_be_the_beginning():
    child = model()
    mt.transfer(child, randomise(model()))
    assert child.card == {"based on": {}}


# ---- stopping and going on ----


def stopped(made):
    plain = made.loss

    def loss(model, batch, generator):
        if made.step == 3:
            raise Interrupted("stop")
        return plain(model, batch, generator)

    made.loss = loss
    with pytest.raises(Interrupted):
        made.run(progress=False)


@pytest.mark.parametrize("named", [True, False], ids=["named again", "not named"])
def test_a_training_that_goes_on_does_not_take_the_weights_again(named, tmp_path):
    parent = trained(tmp_path / "parent")
    whole = mt.Trainer(model(seed=3), DATA, CONFIG, parent=parent)
    whole.run(progress=False)
    stopped(mt.Trainer(model(seed=3), DATA, CONFIG, tmp_path / "run", parent=parent))
    again = mt.Trainer(model(seed=3), DATA, CONFIG, tmp_path / "run", parent=parent if named else None)
    assert again.resume()
    again.run(progress=False)
    assert torch.equal(weights(again.averaged()), weights(whole.averaged()))
    assert again.averaged().card == whole.averaged().card
    assert again.averaged().card["based on"]["experiment"] == "pairs"


@pytest.mark.parametrize("before", [True, False], ids=["another", "none"])
def test_a_training_that_began_otherwise_is_not_gone_on_with(before, tmp_path):
    first = trained(tmp_path / "first") if before else None
    stopped(mt.Trainer(model(), DATA, CONFIG, tmp_path / "run", parent=first))
    again = mt.Trainer(model(), DATA, CONFIG, tmp_path / "run", parent=trained(tmp_path / "second", experiment="others"))
    with pytest.raises(ValueError, match="did not begin with the weights of that model: go on without naming it, or use"):
        again.resume()


# ---- the command ----


def test_of_the_same_classes_the_command_keeps_everything(tmp_path, monkeypatch, capsys):
    words = ("train", "image-label", "--from", "image-label/digits", "--batch-size", 8, "--out", tmp_path, "--steps")
    run(monkeypatch, *words, 1)
    assert "begins with the weights of image-label/digits: all is kept\n" in capsys.readouterr().out
    run(monkeypatch, *words, 2)
    said = capsys.readouterr().out
    assert "going on at step 1 of 2" in said
    assert "begins with" not in said


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "image-label/digits",
            r"does not fit: the space \(channels, height, width\) is \(1, 8, 8\) there, \(3, 16, 16\) here",
        ),
        ("masked-image/shapes16", r"does not fit: the list of modalities is \['image', 'masked', 'mask'\] there"),
        ("nowhere", "no model at 'nowhere'"),
    ],
)
def test_a_model_that_does_not_fit_is_one_clear_line(name, message, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=f"mtdiff: error: .*{message}"):
        run(monkeypatch, "train", "image-label", "--data", "shapes16", "--from", name, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "training.pt").exists()
