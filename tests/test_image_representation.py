"""The image-representation experiment: variants, guidance by the representation, and figures."""

import pytest
import torch
from helpers import generator, randomise

import mtdiff as mt
from mtdiff import cli, representations
from mtdiff.baselines import representation_guidance
from mtdiff.datasets import Dataset
from mtdiff.experiments import EXPERIMENTS
from mtdiff.experiments import image_representation as experiment
from mtdiff.experiments.image_representation import drawn_scores, read_scores
from mtdiff.representations import represented

DATA = "shapes16"


@pytest.fixture
def few(monkeypatch):
    """Little data and short chains."""
    monkeypatch.setattr(representations, "EXAMPLES", 300)
    experiment.summary.cache_clear()
    experiment.scenes.cache_clear()
    for name, value in (("STEPS", 3), ("LEVELS", 2), ("GUIDANCE", (1.0, 2.0)), ("PROBED", 60), ("DRAWS", 8)):
        monkeypatch.setattr(experiment, name, value)
    represented.cache_clear()
    yield
    for cached in (represented, experiment.summary, experiment.scenes):
        cached.cache_clear()


def random_model(variant, seed=0):
    return randomise(experiment.build(DATA, variant, seed), seed, scale=0.05).eval()


def test_representations_are_those_of_the_images():
    test = represented(DATA, "test")
    x = test.values["representation"][:50]
    torch.testing.assert_close(x, representations.representation(DATA)(test.values["image"][:50]))
    assert x.shape == (50, experiment.COMPONENTS)


def test_what_is_in_the_sum_and_what_is_trained():
    for variant in experiment.VARIANTS:
        model, config = experiment.build(DATA, variant), experiment.config(DATA, variant, "full")
        assert ("representation" in model.process.entering) == (variant in experiment.JOINT)
        assert ("representation" in model.modalities) == (variant != "image-only")
        read = variant in experiment.JOINT or variant.endswith("predicted")
        assert (config.weights.get("representation", 0) > 0) == read, variant
        assert (config.steps, config.batch_size) == (20_000, 32)
    parameters = {v: sum(p.numel() for p in experiment.build(DATA, v).parameters()) for v in experiment.VARIANTS}
    assert max(parameters.values()) < 1.03 * min(parameters.values())


def test_predicted_and_told_draw_the_same_images_as_the_image_alone_would():
    """Never in the sum: whether the chain is said to carry the representation changes nothing but a learned flag."""
    for variant in ("predicted", "told"):
        model = random_model(variant)
        with torch.no_grad():
            model.absent["representation"].zero_()
        both, only = (mt.sample(model, 3, steps=3, present=s, generator=generator()) for s in (None, {"image"}))
        assert torch.equal(both["image"], only["image"])


@pytest.mark.parametrize("less", [1.0, 0.5])
@pytest.mark.parametrize("variant", experiment.JOINT)
def test_guidance_pushes_from_without_to_with(variant, less):
    model = random_model(variant)
    z = torch.randn(4, *model.space, generator=generator())
    t, name = 200, "representation"
    with torch.no_grad():
        plain = model.predict(z, t)
        unguided = representation_guidance(model, 1.0)(plain, z, t)
        for key in ("aggregate", "estimate"):
            torch.testing.assert_close(getattr(unguided, key), getattr(plain, key))
        for i in plain.law:
            torch.testing.assert_close(unguided.law[i].expected_code(), plain.law[i].expected_code())
        at = model.process.at(t, z)
        bare = z - less * at.signal * at.W[name] * plain.estimate[name]
        without = model.predict(bare, t, present={name: torch.full((4,), less < 1)}).law["image"].mean
        guided = representation_guidance(model, 2.5, less=less)(plain, z, t)
    torch.testing.assert_close(guided.law["image"].mean, without + 2.5 * (plain.law["image"].mean - without))
    torch.testing.assert_close(guided.estimate[name], plain.estimate[name])
    push = guided.estimate["image"] - plain.estimate["image"]
    torch.testing.assert_close(guided.aggregate, plain.aggregate + push)
    drawn = mt.sample(model, 2, guide=representation_guidance(model, 2.5, less=less), steps=3, generator=generator())
    assert drawn["image"].shape == (2, 3, 16, 16)


@pytest.mark.parametrize("of", experiment.ORACLES)
def test_an_oracle_knows_what_it_is_named_after(of, few):
    """The nearest object, read by a linear map, from what is said of held-out scenes; segments fit those that are drawn."""
    train, test = (experiment.scenes(DATA, split, of).values for split in ("train", "test"))
    x = test["representation"]
    if of == "segments":
        scene = mt.datasets.shapes("test", size=16, n=50, modalities=("segmentation",)).values["segmentation"]
        assert torch.equal(x[:50], scene)
        return
    assert x.shape[1] == experiment.COMPONENTS
    guess = representations.linear_probe(train["representation"], train["label"], x)
    own = represented(DATA, "train").values["representation"]
    other = representations.linear_probe(own, train["label"], represented(DATA, "test").values["representation"])
    right, less = ((g == test["label"]).double().mean() for g in (guess, other))
    assert right > less


def test_guidance_needs_a_representation_in_the_chain():
    with pytest.raises(
        ValueError, match=r"guidance by 'representation' needs a model whose chain carries it: it has \['image'\]"
    ):
        representation_guidance(experiment.build(DATA, "predicted"), 2.0)
    model = experiment.build(DATA, "lifted")
    with pytest.raises(KeyError, match="by names an unknown modality 'label'"):
        representation_guidance(model, 2.0, by="label")
    with pytest.raises(ValueError, match=r"less must be in \(0, 1\], got 0"):
        representation_guidance(model, 2.0, less=0)


def test_a_representation_of_another_size_is_refused():
    model = experiment.build(DATA, "lifted")
    with pytest.raises(ValueError, match=r"'representation' must be floating point \(B, 16\), got torch.float32 \(2, 8\)"):
        mt.sample(model, 2, given={"representation": torch.rand(2, 8)}, steps=2)
    with pytest.raises(ValueError, match=r"given has 3 examples|has 3 examples, expected 2"):
        mt.sample(model, 2, given={"representation": torch.rand(3, 16)}, steps=2)


def test_drawn_scores_of_real_pairs_are_perfect_and_of_shuffled_ones_are_not(few):
    values = represented(DATA, "test")[:200]
    scores = drawn_scores(values, DATA)
    assert scores["cosine"] == pytest.approx(1, abs=1e-4)
    assert scores["label"] == scores["label_encoded"]
    assert scores["shuffled"] < 0.5


def test_by_default_a_representation_is_told_and_an_image_is_read():
    model, values = random_model("lifted"), represented(DATA, "test")[:3]
    for name in ("image", "representation"):
        drawn = mt.sample(model, 3, given={name: values[name]}, steps=2, generator=generator())
        assert torch.equal(drawn[name], values[name])


def test_read_scores_are_the_share_of_variance_explained(few):
    """A head that knows nothing yet says the mean, which explains nothing."""
    model, test = experiment.build(DATA, "predicted").eval(), represented(DATA, "test")[:100]
    scores = read_scores(model, Dataset("few", test), generator())
    assert set(scores) == {"0", "500"}
    assert abs(scores["500"]) < 0.1


@pytest.mark.parametrize("variant", list(experiment.VARIANTS))
def test_every_variant_is_trained_and_judged(variant, few):
    e = EXPERIMENTS["image-representation"]
    config = e.config(DATA, variant, "quick")
    config.steps, config.probe_every = 2, 0
    model = e.trainer(DATA, variant, config, None).run(progress=False)
    model.card = {"variant": variant}
    result = e.evaluate(model, DATA, 0, 12)
    assert set(result["alone"]) == {"features", "precision", "recall"}
    assert ("guidance" in result) == (variant in experiment.JOINT)
    assert ("given" in result) == (variant != "image-only")
    assert ("read" in result) == (variant in experiment.JOINT or variant.endswith("predicted"))
    assert list(result["trunk"]) == ["0", "500"]


def test_the_probe_notes_both_kinds_of_drawing(few):
    look = experiment.probe(DATA, "lifted")
    assert set(look(random_model("lifted"))) == {"features", "joint"}
    assert set(look(random_model("image-only"))) == {"features"}


@pytest.mark.parametrize("variant", ["lifted", "features"])
def test_it_is_trained_sampled_and_judged_from_the_command_line(variant, few, tmp_path, monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["mtdiff", *map(str, words)])
        cli.main()

    folder, picture = tmp_path / "m", tmp_path / "s.png"
    run("train", "image-representation", "--variant", variant, "--steps", 1, "--batch-size", 4, "--out", folder)
    assert mt.load(folder).card["variant"] == variant
    run("sample", folder, "--n", 2, "--steps", 2, "--given", "representation=test:3", "--out", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    run("evaluate", "image-representation", "--models", folder, "--n", 12, "--out", tmp_path / "r.json")
    assert f"| {variant} | " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="only classes, captions, pictures and masks can be given, or an example as"):
        run("sample", folder, "--given", "representation=0.3")
