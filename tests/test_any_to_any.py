"""Any to any: scenes with five modalities, and how much of what is given each drawn one says."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import randomise

import mtdiff as mt
from mtdiff.cli.evaluate import _average
from mtdiff.datasets.shapes import OBJECTS, VOCABULARY, parse
from mtdiff.experiments import EXPERIMENTS, any_scores, any_to_any
from mtdiff.experiments.any_scores import agreement, evaluate, holds
from mtdiff.experiments.report import markdown
from mtdiff.losses import coins

TOKEN = {word: k for k, word in enumerate(VOCABULARY)}


def tokens(*captions):
    rows = [[TOKEN[word] for word in caption.split()] for caption in captions]
    return torch.tensor([row + [0] * (10 - len(row)) for row in rows])


@pytest.mark.parametrize("data", ["shapes16", "scenes16"])
def test_a_world_has_five_modalities_that_speak_of_one_scene(data):
    test = any_to_any.world(data, "test")
    assert list(test.values) == list(any_to_any.MODALITIES)
    scenes, label = parse(test.values["caption"]), test.values["label"].tolist()
    assert {len(scene.objects) for scene in scenes} == ({1} if data == "shapes16" else {1, 2, 3})
    for scene, k in zip(scenes, label, strict=True):
        assert OBJECTS[k] in {f"{colour} {shape}" for _, colour, shape in scene.objects}
    label = test.values["label"]
    assert bool(holds(test.values["caption"], label, ("colour", "shape")).all())
    far = test.values["depth"] == 1
    assert torch.equal(far[:, 0], test.values["segmentation"] == 0)


@pytest.mark.parametrize("data", ["shapes16", "scenes16"])
@pytest.mark.parametrize("variant", ["shared", "own-channels", "unshared"])
def test_any_modalities_are_given_and_the_others_drawn(data, variant):
    model = randomise(any_to_any.build(data, variant), scale=0.05).eval()
    model.card = {"training": {"give": any_to_any.config(data, variant, "quick").give}}
    truth = {name: value[:3] for name, value in any_to_any.world(data, "test").values.items()}
    for given in ([], ["caption"], ["image", "depth"], ["label", "segmentation", "depth", "caption"]):
        out = mt.sample(model, 3, given={name: truth[name] for name in given}, steps=2)
        assert {name: value.shape for name, value in out.items()} == {name: value.shape for name, value in truth.items()}
        assert all(torch.equal(out[name], truth[name]) for name in given)


@pytest.mark.parametrize("data", ["shapes32", "scenes32", "shapes16", "scenes16"])
def test_nothing_is_left_of_a_scene_at_the_end_of_the_chain(data):
    model = any_to_any.build(data, "shared")
    batch = {name: value[:64] for name, value in any_to_any.world(data, "test").values.items()}
    assert float(model.process.prior_kl(model.encode(batch)).mean()) < 0.1


def test_agreement_by_hand():
    truth = {
        "caption": tokens("grey small red circle large blue square", "white small cyan triangle"),
        "label": torch.tensor([OBJECTS.index("blue square"), OBJECTS.index("cyan triangle")]),
    }
    said = tokens("grey large red circle large blue square", "black small red triangle")
    found = agreement("caption", said, truth, ["image"], 16)
    assert found == pytest.approx({"background": 1 / 2, "size": 2 / 3, "colour": 2 / 3, "shape": 1})
    assert agreement("caption", said, truth, ["depth"], 16) == pytest.approx({"size": 2 / 3, "shape": 1})
    assert agreement("caption", said, truth, ["label"], 16) == {"label": 0.5}  # a blue square, but no cyan triangle
    label = torch.tensor([OBJECTS.index("red circle"), OBJECTS.index("blue triangle")])
    assert agreement("label", label, truth, ["caption"], 16) == {"label": 0.5}  # there is a red circle
    assert agreement("label", label, truth, ["segmentation"], 16) == {"label": 1.0}
    assert agreement("label", label, truth, ["image", "caption"], 16) == {"label": 0.0}  # which is nearest can be seen
    short = {**truth, "caption": truth["caption"][1:, :4], "label": truth["label"][1:]}
    assert agreement("caption", said[1:, :4], short, ["image"], 16) == {"background": 0, "size": 1, "colour": 0, "shape": 1}


class Knowing:
    """Stands in for a model that draws the truth of as many held-out scenes."""

    conditions = ()

    def __init__(self, monkeypatch, test, spoil=()):
        self.modalities, self.device = dict.fromkeys(test.values), "cpu"

        def draw(model, n, given, seed):
            drawn = {name: value[:n] for name, value in test.values.items()}
            wrong = {name: drawn[name].roll(1, 0) for name in spoil if name not in given}
            return {**drawn, **wrong, **given}

        monkeypatch.setattr(any_scores, "_drawn", draw)


def test_the_scores_of_the_truth_are_those_of_the_judges(monkeypatch):
    test = any_to_any.world("scenes16", "test")
    found = evaluate(Knowing(monkeypatch, test), test, n=100)
    assert len(found["given"]) == sum(math.comb(5, k) for k in range(1, 5))
    assert found["given"]["image+label"]["caption"] == dict.fromkeys(("background", "size", "colour", "shape"), 1.0)
    assert found["given"]["depth"]["image"].keys() == {"size", "shape"}
    assert found["pairs"]["mean"] > 0.97
    assert found["matrix"]["depth"]["image"] == sum(found["given"]["depth"]["image"].values()) / 2
    table = markdown(
        [{"experiment": "any-to-any", "data": "scenes16", "variants": {"shared": _average([found])}}]
    ).splitlines()
    assert table[0].startswith("| data | variant | all pairs | worst | words to image |")
    assert table[2].startswith(f"| scenes16 | shared | {found['pairs']['mean']:.3f} | ")
    assert found["joint"]["image"]["caption"]["colour"] > 0.97
    wrong = evaluate(Knowing(monkeypatch, test, ["caption"]), test, n=100)
    assert wrong["given"]["image"]["caption"]["background"] < 0.5
    assert wrong["given"]["image"]["depth"] == found["given"]["image"]["depth"]
    assert wrong["pairs"]["least"] < 0.5 < wrong["pairs"]["mean"] < found["pairs"]["mean"]


def test_it_is_trained_on_every_conditional():
    """Of 4,000 examples each of the 32 sets of given modalities is met, the rarest about 40 times."""
    c = EXPERIMENTS["any-to-any"].config("shapes32", "shared", "full")
    assert set(c.give) == set(c.drop) == set(any_to_any.MODALITIES)
    known = torch.stack(list(coins(c.give, 4000, torch.device("cpu"), torch.Generator().manual_seed(0)).values()), 1)
    assert len(known.unique(dim=0)) == 2**5


@pytest.mark.parametrize("variant", any_to_any.VARIANTS)
def test_every_variant_is_trained_and_judged(variant, monkeypatch):
    monkeypatch.setattr(any_scores, "STEPS", 2)
    e, test = EXPERIMENTS["any-to-any"], any_to_any.world("shapes16", "test")
    monkeypatch.setattr(any_to_any, "world", lambda data, split: test)
    e = replace(e, data={"shapes16": lambda split: test})
    config = e.config("shapes16", variant, "quick")
    config.steps, config.batch_size = 2, 4
    model = e.trainer("shapes16", variant, config, None).run(progress=False)
    found = e.evaluate(model, "shapes16", 0, 4)
    drawn, given = any_to_any.pair(variant)
    assert len(found["given"]) == (1 if drawn else 30)
    assert given is None or list(found["given"]) == [given]
    assert 0 <= found["pairs"]["least"] <= found["pairs"]["mean"] <= 1


def test_so_many_are_missing_each_by_a_coin_of_its_own():
    train = any_to_any.examples(lambda split: any_to_any.world("shapes16", "test"), "missing-50", 0)
    kinds = any_to_any.build("shapes16", "missing-50").modalities
    gone = torch.stack([kinds[name].missing(value) for name, value in train.values.items()]).double()
    assert torch.allclose(gone.mean(1), torch.full((5,), 0.5, dtype=torch.float64), atol=0.05)
    assert float(torch.corrcoef(gone).fill_diagonal_(0).abs().max()) < 0.1
    again = any_to_any.examples(lambda split: any_to_any.world("shapes16", "test"), "missing-50", 1)
    assert again.hash() != train.hash()


def test_a_modality_is_added_to_a_trained_model_and_learned_with_the_trunk_frozen():
    old = randomise(any_to_any.build("shapes16", "shared"), scale=0.05).eval()
    sketch = mt.Image((1, 16, 16), channels=slice(3, 4), start="nothing", tell=True)
    new = old.extended("sketch", sketch).eval()
    z, t = torch.randn(2, *old.space, generator=torch.Generator().manual_seed(0)), 100
    with torch.no_grad():
        before, after = old.predict(z, t), new.predict(z, t)
    assert torch.equal(before.aggregate, after.aggregate)
    assert all(torch.equal(before.estimate[name], after.estimate[name]) for name in before.estimate)
    with pytest.raises(ValueError, match="has a modality 'sketch' already"):
        new.extended("sketch", sketch)
    scenes = mt.datasets.shapes("test", size=16, n=8, modalities=(*any_to_any.MODALITIES, "sketch"))
    values = {**scenes.values, "caption": any_to_any.world("shapes16", "test").values["caption"][:8]}
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(name.startswith("modalities.sketch.") or name == "absent.sketch")
    kept = {name: value.clone() for name, value in new.state_dict().items()}
    config = mt.TrainConfig(steps=2, batch_size=4, give={"sketch": 0.5}, weights={"denoise": 0.0})
    mt.Trainer(new, mt.Dataset("few", values), config).run(progress=False)
    moved = {name for name, value in new.state_dict().items() if not torch.equal(value, kept[name])}
    assert moved
    assert all("sketch" in name for name in moved)
