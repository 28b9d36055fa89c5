"""CONTRIBUTING.md, followed word for word: a modality, a setting, a notebook."""

import importlib.util
import re
import sys
from pathlib import Path

import jupytext
import pytest
import torch
from helpers import generator

import mtdiff as mt
from mtdiff.course import tags
from mtdiff.experiments import EXPERIMENTS

RECIPES = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(), re.S)


def module(name, text, folder):
    """A recipe as the file that it says, imported."""
    file = folder / f"{name}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(name, file)
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


def test_a_modality_of_the_page_is_trained_sampled_saved_and_loaded(tmp_path):
    grade = module("grade", RECIPES[0], tmp_path).Grade
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(50), {"x": 1.0, "grade": mt.fade_in(1.0)})
    model = mt.MTDiffusion(process, {"x": mt.Vector(2), "grade": grade(5)}, mt.MLP((2,), width=16), (2,), rule="conditioned")
    codes = model.encode({"grade": torch.arange(5)})["grade"]
    assert codes.mean() == pytest.approx(0, abs=1e-6)
    assert codes.square().mean() == pytest.approx(1)
    batch = {"x": torch.randn(8, 2, generator=generator()), "grade": torch.arange(8) % 5}
    model.eval().save(tmp_path / "m")
    mt.Trainer(model, mt.Dataset("few", batch), mt.TrainConfig(steps=2, batch_size=4)).run(progress=False)
    drawn = mt.sample(mt.load(tmp_path / "m"), 3, steps=4, generator=generator())
    assert drawn["grade"].dtype == torch.int64
    with pytest.raises(ValueError, match=r"'grade' has values outside 0\.\.4: \[7\]"):
        model.check({"grade": torch.tensor([7])})


def test_a_setting_of_the_page_is_trained_and_judged(tmp_path, monkeypatch):
    experiment = module("image_brightness", RECIPES[1], tmp_path).EXPERIMENT
    monkeypatch.setitem(EXPERIMENTS, experiment.name, experiment)
    for variant in experiment.variants:
        config = experiment.config("digits", variant, "quick")
        config.steps = 2
        model = experiment.trainer("digits", variant, config, None).run(progress=False)
        scores = experiment.evaluate(model, "digits", 0, 8)
        assert set(scores) == ({"error"} if variant == "joint" else set())
        assert isinstance(experiment.build("digits", variant, backbone=mt.DiT).backbone, mt.DiT)


def test_a_notebook_of_the_page_has_a_check_that_can_fail():
    cells = jupytext.reads(RECIPES[2], "py:percent").cells
    kinds = [tag for cell in cells for tag in tags(cell)]
    assert kinds == ["exercise", "check", "solution"]
    names: dict = {}
    for cell in cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    assert not names["check_1"](names["scaled"])
    assert names["solved"]
