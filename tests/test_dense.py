"""The dense generalist: tasks as pictures that can be read back, its variants, and its figures."""

import math

import pytest
import torch
from helpers import generator, randomise

import mtdiff as mt
from mtdiff.checkpoint import transfer
from mtdiff.datasets import dense as data
from mtdiff.datasets import palette, shapes
from mtdiff.degradations import LOST
from mtdiff.experiments import EXPERIMENTS
from mtdiff.experiments import dense as experiment
from mtdiff.metrics import psnr

DATA = "shapes16"


@pytest.fixture
def few(monkeypatch):
    """Little data and short chains."""
    monkeypatch.setattr(experiment, "EXAMPLES", 160)
    monkeypatch.setattr(experiment, "STEPS", 2)
    experiment.questions.cache_clear()
    yield
    experiment.questions.cache_clear()


# ---- answers as pictures ----


@pytest.mark.parametrize(("k", "apart"), [(2, 8), (4, 8), (5, 4), (8, 4), (9, 3), (16, 1), (27, 1)])
def test_colours_are_as_far_apart_as_they_are_said_to_be(k, apart):
    colours = data.colour_code(k)
    assert colours.shape == (k, 3)
    assert set(colours.unique().tolist()) <= {-1, 0, 1}
    squares = (colours[:, None] - colours).square().sum(2) + 100 * torch.eye(k)
    assert float(squares.min()) == apart
    assert torch.equal(data.colour_code(27)[:k], colours)  # a map of few ids looks alike whatever k


def test_ids_are_read_back_from_their_colours_and_from_any_nearer_one():
    ids = torch.randint(16, (5, 6, 7), generator=generator())
    picture = data.coloured(ids, 16)
    assert picture.shape == (5, 3, 6, 7)
    assert torch.equal(data.ids_of(picture, 16), ids)
    off = torch.randn(picture.shape, generator=generator(1))
    off = 0.49 * off / off.norm(dim=1, keepdim=True)  # less than half the least distance
    assert torch.equal(data.ids_of(picture + off, 16), ids)
    noisy = picture + torch.randn(picture.shape, generator=generator(2))
    apart = (noisy[:, None] - data.colour_code(16)[None, :, :, None, None]).square().sum(2)
    assert torch.equal(data.ids_of(noisy, 16), apart.argmin(1))
    assert torch.equal(data.coloured(ids % 4, 4), palette(ids % 4))


def test_ids_and_numbers_of_colours_that_are_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"ids must be in 0..3, got 0..4"):
        data.coloured(torch.arange(5).reshape(1, 1, 5), 4)
    for k in (1, 28):
        with pytest.raises(ValueError, match=rf"k must be in 2..27, got {k}"):
            data.colour_code(k)


def test_a_distance_is_that_of_the_scene():
    """The world's depth d in (0, 0.85) or 1 is a picture 2 d - 1 and a distance 1 + 4 d."""
    depth = shapes("test", n=40, modalities=("depth",)).values["depth"]
    found = data.distance(data.answer("depth", {"depth": depth}))
    torch.testing.assert_close(found, 1 + 4 * (depth[:, 0] + 1) / 2)
    assert float(found.max()) == 5
    assert float(data.distance(torch.full((1, 3, 2, 2), -2.0)).min()) == 1  # darker than black is black
    tinted = torch.tensor([-0.3, 0.0, 0.6]).reshape(1, 3, 1, 1)
    assert float(data.distance(tinted)) == pytest.approx(3.2)


def test_an_instance_map_has_an_id_for_each_object_and_its_shape():
    v = shapes("test", n=60, modalities=("segmentation", "masks")).values
    ids = data.instance_ids(v["segmentation"], v["masks"])
    assert torch.equal(torch.tensor(data.CLASSES)[ids], v["segmentation"])
    for k in range(3):
        assert torch.equal((ids - 1).div(3, rounding_mode="floor") == k, v["masks"][:, k])
    assert len(data.CLASSES) == int(ids.max()) + 1 == 10


@pytest.mark.parametrize("k", [2, 4, 16])
def test_class_maps_have_the_segments_of_the_scenes_in_classes_of_the_seed(k):
    ids = data.class_maps("test", k, 80)
    assert ids.unique().tolist() == list(range(k))
    v = shapes("test", n=80, modalities=("segmentation", "masks")).values
    regions = torch.cat([(v["segmentation"] == 0)[:, None], v["masks"]], 1)
    found = [
        [row[region].unique().tolist() for region in part if region.any()] for row, part in zip(ids, regions, strict=True)
    ]
    assert all(len(classes) == 1 for row in found for classes in row)
    if k >= 4:
        assert all(len({classes[0] for classes in row}) == len(row) for row in found)
    assert torch.equal(ids, data.class_maps("test", k, 80))
    assert not torch.equal(ids, data.class_maps("test", k, 80, seed=1))


def test_a_degraded_picture_is_blurred_noisy_and_follows_the_seed():
    flat = torch.full((3, 3, 16, 16), 0.25)
    noise = data.degraded(flat, 3) - flat  # a flat picture stays flat under any blur
    assert float(noise.std()) == pytest.approx(data.NOISE, rel=0.1)
    assert abs(float(noise.mean())) < 4 * data.NOISE / noise.numel() ** 0.5
    assert torch.equal(data.degraded(flat, 3), data.degraded(flat, 3))
    assert not torch.equal(data.degraded(flat, 3), data.degraded(flat, 4))
    point = torch.zeros(1, 1, 16, 16)
    point[..., 8, 8] = 1
    weights = torch.tensor([[math.exp(-0.5 * (x * x + y * y)) for x in range(-8, 8)] for y in range(-8, 8)])
    rest = data.degraded(point, 0)[0, 0] - data.degraded(torch.zeros_like(point), 0)[0, 0]
    torch.testing.assert_close(rest, weights / weights.sum(), atol=0.01, rtol=0)  # less lost frequencies
    f, at = (torch.arange(16.0) - 8) / 16, torch.arange(16.0) - 8
    left = (-2 * (math.pi * data.BLUR) ** 2 * (f[:, None] ** 2 + f**2)).exp()
    wave = torch.exp(2j * math.pi * f[:, None] * at)
    exact = (wave.T @ torch.where(left < LOST, 0, left).to(wave) @ wave).real / 256
    torch.testing.assert_close(rest, exact, atol=1e-6, rtol=0)
    assert float(data.degraded(torch.ones(1, 3, 8, 8)).max()) == 1


def test_each_scene_has_all_tasks_in_turn_and_their_answers():
    v = experiment.questions(DATA, "test", 12).values
    scenes = shapes("test", n=3, modalities=("image", "depth", "segmentation", "masks")).values
    assert v["task"].tolist() == [0, 1, 2, 3] * 3
    for i in range(12):
        one = {name: value[i // 4 : i // 4 + 1] for name, value in scenes.items()}
        assert torch.equal(v["target"][i : i + 1], data.answer(data.TASKS[i % 4], one))
        assert torch.equal(v["image"][i], one["image"][0]) == (i % 4 != 3)
    assert float(psnr(v["image"][3::4], v["target"][3::4]).mean()) < 20
    with pytest.raises(ValueError, match="task must be one of"):
        data.answer("normals", scenes)


# ---- variants ----


def test_variants_share_their_network_and_what_they_are_shown_differs(few):
    train = experiment.EXPERIMENT.on(DATA)
    sizes = {v: sum(p.numel() for p in experiment.build(DATA, v).parameters()) for v in experiment.VARIANTS}
    assert len(set(sizes.values())) == 1
    whole = experiment.examples(train, "generalist", 0)
    for k, task in enumerate(data.TASKS):
        for variant in (task, f"{task}-long"):
            part = experiment.examples(train, variant, 0).values
            assert (part["task"] == k).all()
            assert torch.equal(part["target"], whole.values["target"][k::4])
    assert experiment.examples(train, "tuned", 0).hash() == whole.hash()
    plain = experiment.examples(train, "generator", 0).values
    assert not plain["image"].any()
    assert torch.equal(plain["target"][::4], shapes("train", n=40, modalities=("image",)).values["image"])


def test_budgets_are_equal_as_they_are_said_to_be():
    steps = {v: experiment.config(DATA, v, "full").steps for v in experiment.VARIANTS}
    batch = {experiment.config(DATA, v, "full").batch_size for v in experiment.VARIANTS}
    assert len(batch) == 1
    assert sum(steps[task] for task in data.TASKS) == steps["generalist"] == steps["tuned"] == steps["generator"]
    assert all(steps[f"{task}-long"] == steps["generalist"] for task in data.TASKS)


def test_tuning_begins_with_all_of_the_generators_weights():
    generator_, tuned = experiment.build(DATA, "generator", 0), experiment.build(DATA, "tuned", 1)
    randomise(generator_)
    assert transfer(tuned, generator_) == []
    assert all(torch.equal(a, b) for a, b in zip(generator_.parameters(), tuned.parameters(), strict=True))


def test_the_target_alone_is_in_the_chain_and_picture_and_task_are_always_given():
    model = experiment.build(DATA, "generalist")
    assert model.process.entering == ("target",)
    assert model.conditions == ("image", "task")
    with pytest.raises(ValueError, match=r"image.*task|conditions"):
        mt.sample(model, 2, steps=1)
    with pytest.raises(ValueError, match="task"):
        mt.sample(model, 2, given={"image": torch.zeros(2, 3, 16, 16)}, steps=1)


# ---- answers and figures ----


def test_an_answer_depends_on_picture_and_task():
    model = randomise(experiment.build(DATA, "generalist"), scale=0.1).eval()
    image = experiment.questions(DATA, "test", 8).values["image"][:4]
    one, same, other = (
        experiment.solve(model, image, task, steps=2, generator=generator())
        for task in ("depth", torch.zeros(4, dtype=torch.long), "instances")
    )
    assert one.shape == image.shape
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one, experiment.solve(model, image.flip(0), "depth", steps=2, generator=generator()))


def test_an_unknown_task_and_pictures_that_do_not_fit_are_named():
    model = experiment.build(DATA, "generalist").eval()
    with pytest.raises(ValueError, match="unknown task 'normals': expected one of"):
        experiment.solve(model, torch.zeros(2, 3, 16, 16), "normals")
    with pytest.raises(ValueError, match=r"'image' must be floating point \(B, 3, 16, 16\)"):
        experiment.solve(model, torch.zeros(2, 3, 32, 32), "depth")
    with pytest.raises(ValueError, match=r"'task' has values outside 0..3: \[4\]"):
        experiment.solve(model, torch.zeros(2, 3, 16, 16), torch.tensor([0, 4]))


def test_the_truth_has_the_best_scores_and_another_scenes_answer_worse_ones():
    v = experiment.questions(DATA, "test", 400).values
    best = {"depth": {"rmse": 0, "delta": 1}, "segmentation": {"miou": 1}, "restoration": {"psnr": 60}}
    best["instances"] = dict.fromkeys(("quality", "segmentation", "recognition"), 1)
    for k, task in enumerate(data.TASKS):
        target = v["target"][k::4]
        assert experiment.scores(task, target, target) == best[task]
        worse = experiment.scores(task, target.roll(1, 0), target)
        for name, value in best[task].items():
            assert worse[name] > 0.5 if name == "rmse" else worse[name] < 0.8 * value


def test_the_scores_are_those_of_the_maps():
    v = experiment.questions(DATA, "test", 40).values
    drawn = v["target"] + 0.4 * torch.randn(v["target"].shape, generator=generator())
    depth, restored = drawn[::4], drawn[3::4]
    distances = [1 + 2 * (x.mean(1).clamp(-1, 1) + 1) for x in (depth, v["target"][::4])]
    rmse = (distances[0] - distances[1]).square().mean().sqrt()
    assert experiment.scores("depth", depth, v["target"][::4])["rmse"] == pytest.approx(float(rmse), rel=1e-6)
    found = experiment.scores("restoration", restored, v["target"][3::4])["psnr"]
    assert found == pytest.approx(10 * math.log10(4 / 0.16), abs=0.2)


@pytest.mark.parametrize("variant", ["generalist", "generator", "instances", "depth-long"])
def test_a_few_steps_lower_the_loss_and_the_model_is_judged(variant, tmp_path, few):
    config = experiment.config(DATA, variant, "quick")
    config.steps, config.log_every, config.warmup, config.save_every = 24, 8, 1, 100
    trainer = EXPERIMENTS["dense"].trainer(DATA, variant, config, None)
    batch = trainer.data[:40]
    before = trainer.loss(trainer.model.eval(), batch, generator(5)).total.item()
    trainer.model.train()
    trained = trainer.run(progress=False)
    after = trainer.loss(trained.eval(), batch, generator(5)).total.item()
    assert after < before
    trained.card["variant"] = variant
    again = mt.load(trained.save(tmp_path / "model"))
    found = experiment.evaluate(again, DATA, n=4)
    asked = variant.removesuffix("-long")
    assert list(found) == {"generalist": list(data.TASKS), "generator": ["alone"]}.get(variant, [asked])
