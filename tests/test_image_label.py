"""The image-label experiment: variants, few labels, planted correlations, and how they are judged."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import generator, image_label_batch, image_label_model, mixture, randomise

import mtdiff as mt
from mtdiff.baselines import classifier_loss
from mtdiff.datasets import MIXTURE, Dataset, digits, planted, toy
from mtdiff.datasets.planted import OWN
from mtdiff.datasets.shapes import COLOURS
from mtdiff.experiments import EXPERIMENTS, image_label, label_scores
from mtdiff.experiments.label_scores import (
    code_scores,
    colour_scores,
    head_scores,
    image_label_bounds,
    image_label_metrics,
    referee,
    shape_and_colour,
)
from mtdiff.modalities import MISSING
from mtdiff.modalities.label import simplex_codes
from mtdiff.probes import head_accuracy, head_logits
from mtdiff.training import TrainConfig, Trainer

E = EXPERIMENTS["image-label"]


# ---- missing labels ----


def test_a_missing_label_is_neither_in_the_sum_nor_told_nor_scored():
    """What stands in its place may be any class: here nobody is of class 0, and nothing about that class matters."""
    model, batch = image_label_model(), image_label_batch(8)
    gone = torch.arange(8) % 2 == 0
    batch["label"] = torch.where(gone, MISSING, batch["label"].clamp(min=1))

    def loss():
        options = {"give": {"label": 0.5}, "missing": ["label"], "generator": generator(3)}
        return float(mt.multitask_loss(model, batch, **options).total.detach())

    before, label = loss(), model.modalities["label"]
    with torch.no_grad():
        label.codes[0] += 1
        label.embed.weight[0] += 1
    assert loss() == before
    with torch.no_grad():
        label.codes[int(batch["label"].max())] += 1
    assert loss() != before


def test_all_missing_is_the_image_alone():
    """The same steps and noise as with every label dropped by a coin that is thrown first."""
    model, batch = image_label_model(), image_label_batch(8)
    none = {**batch, "label": torch.full_like(batch["label"], MISSING)}
    with torch.no_grad():
        loss = mt.multitask_loss(model, none, drop={"label": 0.5}, missing=["label"], generator=generator(1))
        dropped = mt.multitask_loss(model, batch, drop={"label": 1.0}, generator=generator(1))
    assert float(loss.terms["label"]) == 0
    for name in ("denoise", "image"):
        assert float(loss.terms[name]) == pytest.approx(float(dropped.terms[name]), rel=1e-6)


def test_missing_values_that_were_not_announced_are_refused():
    model, batch = image_label_model(), image_label_batch(4)
    few = {**batch, "label": torch.tensor([0, MISSING, 1, 2])}
    with pytest.raises(ValueError, match=r"'label' has values outside 0\.\.2: \[-1\]"):
        mt.multitask_loss(model, few)
    with pytest.raises(KeyError, match=r"missing names an unknown modality 'sound'"):
        mt.multitask_loss(model, batch, missing=["sound"])


def test_the_trainer_sees_what_is_missing_and_refuses_a_set_without_any_label():
    batch = image_label_batch(20)
    few = torch.where(torch.arange(20) < 15, MISSING, batch["label"])
    config = TrainConfig(steps=3, batch_size=10)
    run = Trainer(image_label_model(), Dataset("few", {**batch, "label": few}), config)
    assert run.missing == ("label",)
    run.run(progress=False)
    assert Trainer(image_label_model(), Dataset("all", batch), config).missing == ()
    with pytest.raises(ValueError, match="'none' has no example with a 'label': all of them are missing"):
        Trainer(image_label_model(), Dataset("none", {**batch, "label": torch.full((20,), MISSING)}), config)


@pytest.mark.parametrize(("variant", "count"), [("labels-10", 142), ("labels-1", 10)])
def test_few_labels_are_chosen_by_the_seed_and_of_every_class(variant, count):
    data = digits("train")
    first, again, other = (image_label.labelled(data, variant, seed) for seed in (0, 0, 1))
    kept = first.values["label"] != MISSING
    assert int(kept.sum()) == count
    assert first.values["label"][kept].unique().numel() == 10
    assert torch.equal(first.values["label"][kept], data.values["label"][kept])
    assert torch.equal(first.values["label"], again.values["label"])
    assert not torch.equal(first.values["label"], other.values["label"])
    mine = image_label.labelled(data, variant.replace("labels", "classifier"), 0)
    assert len(mine) >= 64
    seen = {tuple(row.tolist()) for row in mine.values["image"].flatten(1)}
    assert seen == {tuple(row.tolist()) for row in data.values["image"][kept].flatten(1)}
    assert image_label.labelled(data, "fade-in", 0) is data


# ---- variants ----


def test_what_is_in_the_sum_and_what_is_trained():
    for variant in E.variants:
        model = image_label.build("digits", variant)
        entering = {"image"} if variant in ("image-only", "conditional", "token") or "classifier" in variant else None
        assert set(model.process.entering) == (entering or {"image", "label"}), variant
    model, config = image_label.build("digits", "conditional"), image_label.config("digits", "conditional", "full")
    loss = mt.multitask_loss(model, digits("train")[:8], weights=config.weights, give=config.give, generator=generator())
    assert loss.total.item() == loss.terms["denoise"].item()
    light, heavy = (image_label.config("digits", variant, "full").weights["label"] for variant in ("light", "heavy"))
    assert 100 * light == heavy


def test_the_classifier_sees_clean_images_and_nothing_of_the_label():
    model, batch = randomise(image_label.build("digits", "classifier"), scale=0.05), digits("train")[:16]
    loss = classifier_loss(model, batch, generator())
    logits = head_logits(model.eval(), Dataset("batch", batch), generator=generator())
    expected = torch.nn.functional.cross_entropy(logits, batch["label"])
    assert float(loss.total) == pytest.approx(float(expected), rel=1e-5)


def test_a_label_can_be_given_as_a_token():
    model = randomise(image_label.build("digits", "token"), scale=0.1).eval()
    z, label = torch.randn(3, 1, 8, 8, generator=generator()), torch.tensor([1, 2, 3])
    with torch.no_grad():
        told, other, untold = (model.predict(z, 200, given=g) for g in ({"label": label}, {"label": label + 1}, None))
    assert not torch.allclose(told.aggregate, other.aggregate, atol=1e-4)
    assert not torch.allclose(told.aggregate, untold.aggregate, atol=1e-4)
    modalities = {"label": mt.Label(3, tell="tokens"), "x": mt.Vector(2)}
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), {"x": 1.0, "label": 0.0})
    with pytest.raises(ValueError, match="'label' is given as tokens, which this MLP cannot attend to"):
        mt.MTDiffusion(process, modalities, mt.MLP((2,)), (2,))
    with pytest.raises(ValueError, match=r"tell must be one of \('vector', 'tokens'\), got 'shout'"):
        mt.Label(3, tell="shout")


# ---- planted correlations ----


def test_codes_of_a_simplex_are_as_far_apart_as_can_be_and_two_groups_use_one_direction():
    simplex = simplex_codes(10, (1, 8, 8))
    found = code_scores(simplex)
    assert found == pytest.approx({"nearest": 1.0, "directions": 9.0}, rel=1e-4)
    assert code_scores(3 * simplex) == pytest.approx(found, rel=1e-4)
    sign = torch.tensor([1.0, -1.0] * 5)[:, None]
    assert code_scores(sign * torch.ones(10, 64)) == pytest.approx({"nearest": 0.0, "directions": 1.0}, abs=1e-6)


def test_planted_scenes_are_one_shape_in_its_own_colour_as_often_as_asked():
    data = planted(0.8, n=4000)
    own = data.values["colour"] == torch.tensor(OWN)[data.values["label"]]
    assert abs(float(own.double().mean()) - 0.8) < 4 * (0.16 / 4000) ** 0.5
    read = [judge(data.values["image"]) for judge in shape_and_colour()]
    assert torch.equal(read[0], data.values["label"])
    assert torch.equal(read[1], data.values["colour"])
    away = (data.values["colour"][~own] - torch.tensor(OWN)[data.values["label"][~own]]) % len(COLOURS)
    counts = away.bincount(minlength=6)[1:].double()
    assert ((counts - counts.mean()).abs() < 4 * counts.mean().sqrt()).all()


def test_two_shares_differ_in_colour_alone():
    less, more = planted(0.6, n=300), planted(0.95, n=300)
    assert torch.equal(less.values["label"], more.values["label"])
    same = less.values["colour"] == more.values["colour"]
    assert torch.equal(less.values["image"][same], more.values["image"][same])
    assert 0.5 < float(same.double().mean()) < 0.8
    tests = planted(0.6, "test", n=50).values["image"]
    assert torch.cdist(tests.flatten(1), less.values["image"].flatten(1)).min() > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.2,), r"share must be in \[0, 1\]"),
        ((0.5, "all"), "split must be one of"),
        ((0.5, "train", 16, 0), "n must be in"),
    ],
)
def test_bad_plantings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        planted(*arguments)


def test_colour_scores_of_the_data_are_what_was_planted():
    data = planted(0.8, n=3000)
    scores = colour_scores(data.values["label"], data.values["colour"], data.values["label"], 0.8)
    assert scores["agreement"] == 1
    assert abs(scores["amplified"]) < 4 * (0.16 / 3000) ** 0.5
    assert scores["others"] > 0.99
    shape, k = data.values["label"].clone(), len(data) // 2
    shape[:k] = (shape[:k] + 1) % 3
    wrong = colour_scores(shape, data.values["colour"], data.values["label"], 0.8)
    assert wrong["agreement"] == 0.5
    assert wrong["own"] == colour_scores(*(data.values[name][k:] for name in ("label", "colour", "label")), 0.8)["own"]


def test_the_probe_notes_colours_along_the_training_on_planted_scenes(monkeypatch):
    monkeypatch.setattr(image_label, "DRAWS", 12)
    assert E.probe("digits", "fade-in") is None
    notes = E.probe("planted80", "fade-in")(randomise(image_label.build("planted80", "fade-in"), 0, scale=0.05).eval())
    assert set(notes) == {"joint", "told"}


# ---- judging ----


def test_the_head_of_an_exact_model_is_calibrated():
    """Bayes' posterior needs no temperature, and over noise its accuracy falls and its entropy rises."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(100, 2.0, -8.0), {"x": 1.0, "label": mt.constant(1.0)})
    model = mt.exact.LabelledMixture(**MIXTURE, process=process)
    data = toy("mixture", n=4000)
    logits = head_logits(model, data, generator=generator())
    right = float((logits.argmax(1) == data.values["label"]).double().mean())
    assert head_accuracy(model, data, generator=generator()) == right
    scores = head_scores(model, data, 0)
    assert abs(scores["head"]["temperature"] - 1) < 0.15
    assert scores["head"]["calibration_error"] < 0.03
    accuracy = [level["accuracy"] for level in scores["levels"].values()]
    assert accuracy[0] > accuracy[len(accuracy) // 2] > accuracy[-1] - 0.02


def test_the_referees_know_their_business():
    assert referee("digits").accuracy > 0.98
    r = referee("shapes16")
    assert r.accuracy > 0.98
    assert r.features(r.real[:5]).shape == (5, 64)


def test_image_label_metrics():
    real = torch.rand(40, 1, 2, 2)
    drawn = {"image": real, "label": torch.tensor([0, 1] * 20)}
    metrics = image_label_metrics(drawn, lambda image: torch.zeros(len(image), dtype=torch.long), real)
    assert metrics["agreement"] == 0.5
    assert metrics["classes"] == 2
    assert metrics["spread"] == pytest.approx(1)
    assert metrics["frechet_pixels"] < 1e-6
    darker = image_label_metrics({**drawn, "image": real / 2}, lambda image: drawn["label"], real)
    assert darker["agreement"] == 1
    assert darker["spread"] == pytest.approx(0.5)


def test_head_accuracy_of_an_exact_model_is_that_of_bayes_rule():
    """On well separated classes nearly all are right, and wrong labels are counted as wrong."""
    model = mixture(mt.fade_in(1.0))
    drawn = model.draw(500, torch.Generator().manual_seed(0))
    wrong = {**drawn, "label": (drawn["label"] + 1) % 3}
    accuracies = [
        head_accuracy(model, Dataset("points", values), generator=torch.Generator().manual_seed(0))
        for values in (drawn, wrong)
    ]
    assert accuracies[0] > 0.98
    assert accuracies[1] < 0.02


def test_bounds_are_those_of_elbo_and_the_label_is_read_off_the_image_alone():
    """At log-SNR 14 z near t = 0 is the image: the label head is then asked at the image itself."""
    model = image_label_model(schedule=mt.NoiseSchedule.log_snr(50, high=14.0))
    batch = image_label_batch(40)
    bounds = image_label_bounds(model, Dataset("images", batch), samples=2, generator=generator(3))
    alone = mt.elbo(model, batch, 2, present={"image"}, generator=generator(3))
    assert bounds["image"] == alone.total
    assert bounds["image_bits_per_dim"] == pytest.approx(-alone.total / (16 * math.log(2)))
    both = mt.elbo(model, batch, 50, generator=generator(4))
    assert abs(bounds["joint"] - both.total) < 4 * (bounds["joint_stderr"] + both.stderr)
    with torch.no_grad():
        absent = {"label": torch.zeros(40, dtype=torch.bool)}
        logits = model.predict(model.encode(batch)["image"], 0, present=absent).law["label"].logits
    expected = logits.log_softmax(1)[torch.arange(40), batch["label"]].mean()
    assert bounds["label_given_image"] == pytest.approx(float(expected), abs=0.02)
    assert bounds["sum"] == pytest.approx(bounds["image"] + bounds["label_given_image"])


def test_from_enough_samples_on_joint_pairs_are_told_from_real_ones(monkeypatch):
    monkeypatch.setattr(label_scores, "told_apart", lambda real, drawn, noise: {"accuracy": noise, "n": len(drawn["label"])})
    model = randomise(image_label.build("digits", "fade-in"), scale=0.05).eval()
    r = label_scores.referee("digits")
    few, enough = (label_scores.sample_scores(model, replace(r, steps=2), n, ()) for n in (20, 100))
    assert "told_apart" not in few
    assert enough["told_apart"] == {str(noise): {"accuracy": noise, "n": len(r.test)} for noise in label_scores.NOISE}
