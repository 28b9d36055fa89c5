"""The ten tasks of notebooks/own.md, carried out as they are typed, but for fewer steps."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

import mtdiff as mt
from mtdiff import cli

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("tasks", ROOT / "tests" / "benchmarks" / "tasks.py")
ten = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ten)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder in which they are typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    ten.lay_out(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)
    mt.Backbone.kinds.pop("Net", None)


def test_all_ten_are_carried_out(place, monkeypatch, capsys):
    results = {}
    for number, (_, language, code) in enumerate(ten.tasks(), 1):
        few = re.sub(r"(--steps |steps=)50", r"\g<1>2", code)
        if language == "python":
            exec(few, results.setdefault(number, {}))
        else:
            monkeypatch.setattr(sys, "argv", few.split())
            cli.main()
    assert number == 10
    assert all((place / "runs" / name / "card.json").is_file() for name in ("mine", "filled", "dit", "net", "tuned"))
    assert (place / "two.png").is_file()
    assert results[5]["drawn"]["image"].shape == (4, 3, 16, 16)
    assert results[6]["pairs"]["clip"].shape == (4, 1, 64)
    assert mt.load("runs/tuned").card["new modalities"] == ["label"]
    assert (place / "mine.onnx").is_file()


def test_the_table_is_the_measured_one_and_at_most_half_as_long():
    measured = json.loads((ROOT / "data" / "results" / "own-tasks.json").read_text())
    assert ten.table(measured["seconds"]) in ten.PAGE.read_text()
    now = [ten.own_lines(language, code) for _, language, code in ten.tasks()]
    assert now[0] == 0
    assert now[7] > 5
    assert all(before == "no way" or 2 * now[number - 1] <= before for number, before in ten.BEFORE.items())
    assert "notebooks/own.md" in (ROOT / "README.md").read_text()
