"""The restoration experiment and the command: their pairs, variants, figures, and what they refuse."""

import sys

import PIL.Image
import pytest
import torch
from helpers import generator, randomise

import mtdiff as mt
from mtdiff import cli
from mtdiff.datasets import shapes
from mtdiff.degradations import TASKS, degradation
from mtdiff.experiments import EXPERIMENTS
from mtdiff.experiments import restoration as experiment

DATA = "shapes16"


@pytest.fixture
def few(monkeypatch):
    """Little data, short chains and a task of each kind."""
    monkeypatch.setattr(experiment, "EXAMPLES", 210)
    monkeypatch.setattr(experiment, "STEPS", 4)
    experiment.pairs.cache_clear()
    yield
    experiment.pairs.cache_clear()


def test_pairs_are_a_seventh_of_each_task_and_what_the_task_leaves():
    v = experiment.pairs(DATA, "test", 70).values
    assert v["task"].bincount().tolist() == [10] * 7
    of = {name: v["task"] == k for k, name in enumerate(experiment.NAMES)}
    assert not bool(v["mask"][~of["inpaint"]].ne(1).any())
    hole = (1 - v["mask"][of["inpaint"]]).bool().expand(-1, 3, -1, -1)
    assert not v["degraded"][of["inpaint"]][hole].any()
    torch.testing.assert_close(v["degraded"][of["inpaint"]][~hole], v["image"][of["inpaint"]][~hole])
    coarse = v["degraded"][of["super-resolve"]]
    assert torch.equal(coarse[:, :, ::4, ::4], coarse[:, :, 3::4, 3::4])
    torch.testing.assert_close(coarse[:, :, ::4, ::4], torch.nn.functional.avg_pool2d(v["image"][of["super-resolve"]], 4))
    grey = v["degraded"][of["colourise"]]
    assert torch.equal(grey[:, 0], grey[:, 2])
    for name, strength in (("denoise", 0.4), ("brighten", 0.05)):
        problem = degradation(name)
        left = problem.residual(v["degraded"][of[name]], v["image"][of[name]])
        assert abs(float(left.std()) - strength) < 4 * strength / (2 * left.numel()) ** 0.5
    again = experiment.pairs(DATA, "train", 70).values
    assert not torch.equal(again["image"], v["image"])


def test_variants_share_backbone_and_budget_and_differ_in_where_the_chain_ends():
    told, moved = (experiment.build(DATA, v) for v in experiment.VARIANTS)
    assert sum(p.numel() for p in told.parameters()) == sum(p.numel() for p in moved.parameters())
    assert (told.process.prior, moved.process.prior) == (None, "degraded")
    torch.testing.assert_close(told.process.snr("image")[:-1], moved.process.snr("image")[:-1], rtol=1e-6, atol=1e-8)
    configs = [experiment.config(DATA, v, "full") for v in experiment.VARIANTS]
    assert len({(c.steps, c.batch_size, c.lr, c.ema) for c in configs}) == 1
    assert told.conditions == moved.conditions == ("degraded", "mask", "task")


@pytest.mark.parametrize("variant", experiment.VARIANTS)
def test_a_few_steps_lower_the_loss_and_the_model_is_judged(variant, tmp_path, few):
    config = experiment.config(DATA, variant, "quick")
    config.steps, config.log_every, config.warmup, config.batch_size = 32, 8, 1, 14
    trainer = EXPERIMENTS["restoration"].trainer(DATA, variant, config, None)
    batch = trainer.data[:140]
    before = trainer.loss(trainer.model.eval(), batch, generator(5)).total.item()
    trainer.model.train()
    trained = trainer.run(progress=False)
    after = trainer.loss(trainer.model.eval(), batch, generator(5)).total.item()
    assert after < before
    found = experiment.evaluate(mt.load(trained.save(tmp_path / "model")), DATA, n=4)
    assert set(found) == {"draw", "input", *(("mean",) if variant == "told" else ())}
    shifted = {f"{task}, shifted" for task in experiment.SHIFTED}
    for way in found.values():
        assert set(way) == {*TASKS, *shifted}
        assert all(cell["ssim"] < 1 and cell["psnr"] < 60 for cell in way.values())


def test_a_restored_picture_depends_on_the_degraded_one_and_keeps_known_pixels():
    model = randomise(experiment.build(DATA, "told")).eval()
    image = shapes("test", size=16, n=4, modalities=("image",)).values["image"]
    y, mask, problem = experiment.degraded(image, "inpaint", seed=3)
    for way in ("draw", "mean"):
        x = experiment.restored(model, y, mask, problem, way, steps=3, generator=generator())
        assert torch.equal(x * mask, y)
    y, mask, problem = experiment.degraded(image, "deblur", seed=3)
    one, other = (experiment.restored(model, part, mask, problem, steps=3, generator=generator()) for part in (y, y.flip(0)))
    assert not torch.equal(one, other)


def test_the_scores_of_the_picture_itself_are_the_best_there_are():
    image = shapes("test", size=16, n=4, modalities=("image",)).values["image"]
    assert experiment.scores(image, image) == {"psnr": 60.0, "ssim": 1.0}
    assert experiment.scores(image.flip(0), image)["psnr"] < 30


def test_what_does_not_fit_is_named():
    model = experiment.build(DATA, "told").eval()
    image, mask = torch.zeros(2, 3, 16, 16), torch.ones(2, 1, 16, 16)
    with pytest.raises(ValueError, match="way must be 'draw' or 'mean', got 'guess'"):
        experiment.restored(model, image, mask, degradation("denoise"), "guess")
    with pytest.raises(ValueError, match=r"the degraded picture must be floating point \(B, 3, 4, 4\)"):
        experiment.restored(model, image, mask, degradation("super-resolve"))
    with pytest.raises(ValueError, match=r"the degraded picture must lie in \[-3.4, 3.4\] for 'denoise'"):
        experiment.restored(model, image + 255, mask, degradation("denoise"))
    with pytest.raises(ValueError, match="has no data 'shapes8'"):
        EXPERIMENTS["restoration"].on("shapes8")


def test_the_shipped_model_restores_held_out_scenes():
    """In all tasks but colourisation, where one truth out of many colours is a matter of luck."""
    model = mt.load("restoration/shapes16")
    assert (model.card["experiment"], model.card["variant"]) == ("restoration", "told")
    image = shapes("test", size=16, n=8, modalities=("image",)).values["image"]
    for task in TASKS:
        y, mask, problem = experiment.degraded(image, task, seed=9)
        drawn = experiment.restored(model, y, mask, problem, steps=12, generator=generator())
        before, after = (experiment.scores(x, image)["psnr"] for x in (problem.picture(y).clamp(-1, 1), drawn))
        assert after > before + (1 if task != "colourise" else -4), task


# ---- the command ----


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["mtdiff", *map(str, words)])
    cli.main()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An untrained model, and pictures of some sizes."""
    folder = tmp_path_factory.mktemp("restore")
    randomise(experiment.build(DATA, "told")).save(folder / "told", {"experiment": "restoration", "variant": "told"})
    image = shapes("test", size=16, n=1, modalities=("image",)).values["image"][0]
    picture = PIL.Image.fromarray(((image + 1) * 127.5).round().byte().movedim(0, -1).numpy())
    picture.save(folder / "scene.png")
    picture.resize((4, 4)).save(folder / "small.png")
    picture.point(lambda v: v // 6).save(folder / "dark.png")
    picture.point(lambda v: 140 + v // 3).save(folder / "haze.png")
    picture.convert("L").point(lambda v: 255 * (v > 100)).save(folder / "mask.png")
    (folder / "text.png").write_text("no picture")
    return folder


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("model", ["told", "masked-image/shapes16-plain"])
def test_every_task_restores_a_picture_file_by_either_family(task, model, place, tmp_path, monkeypatch, capsys):
    source = {"super-resolve": "small.png", "brighten": "dark.png", "dehaze": "haze.png"}.get(task, "scene.png")
    mask = ["--mask", place / "mask.png"] if task == "inpaint" else []
    name = place / model if model == "told" else model
    out = tmp_path / "restored.png"
    run(monkeypatch, "restore", place / source, "--task", task, "--model", name, "--steps", 3, "--n", 2, "--out", out, *mask)
    assert out.stat().st_size > 1000
    assert capsys.readouterr().out == f"picture: {out}\n"


def test_a_good_picture_is_degraded_first_if_asked_for(place, tmp_path, monkeypatch, capsys):
    for task in ("denoise", "inpaint", "super-resolve"):
        words = ["--task", task, "--model", "masked-image/shapes16-plain", "--degrade", "--steps", 10]
        run(monkeypatch, "restore", place / "scene.png", *words, "--out", tmp_path / "a.png")
        before, after = (float(word) for word in capsys.readouterr().out.replace(",", "").split() if word[0].isdigit())
        assert before < 30
        assert after > before - 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scene.png", "--task", "super-resolve"], "the picture is 16x16, expected 4x4"),
        (["small.png", "--task", "deblur"], "the picture is 4x4, expected 16x16"),
        (["scene.png", "--task", "brighten"], "the degraded picture must lie in [-1.3, -0.299] for 'brighten'"),
        (["text.png", "--task", "deblur"], "cannot be read as a picture"),
        (["none.png", "--task", "deblur"], "cannot be read as a picture"),
        (["scene.png", "--task", "inpaint"], "inpaint needs --mask"),
        (["scene.png", "--task", "deblur", "--mask", "mask.png"], "--mask is for inpaint, not for deblur"),
        (["scene.png", "--task", "deblur", "--strength", "noise"], "--strength noise: expected NAME=VALUE, a number"),
        (["scene.png", "--task", "deblur", "--strength", "noise=nan"], "--strength noise=nan: expected a finite number"),
        (["scene.png", "--task", "deblur", "--strength", "gain=1"], "'deblur' has no ['gain']"),
        (["scene.png", "--task", "deblur", "--way", "dps"], "--way dps does not suit"),
        (
            ["scene.png", "--task", "deblur", "--model", "masked-image/shapes16-plain", "--way", "mean"],
            "it can dps, likelihood",
        ),
        (["scene.png", "--task", "deblur", "--n", "0"], "--n must be in 1..64"),
        (["scene.png", "--task", "deblur", "--model", "nothing/here"], "nothing/here"),
    ],
)
def test_bad_input_is_one_clear_line(words, message, place, tmp_path, monkeypatch, capsys):
    words = [place / word if word.endswith(".png") else word for word in words]
    model = [] if "--model" in words else ["--model", place / "told"]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "restore", *words, *model, "--out", tmp_path / "a.png")
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in said
    assert "Traceback" not in said


def test_an_unknown_task_names_those_there_are(place, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "restore", place / "scene.png", "--task", "sharpen")
    assert stop.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "sharpen" in said
    assert "super-resolve" in said
