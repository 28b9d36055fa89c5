"""What needs a GPU, tried on a CPU: the parts of `tests/benchmarks/gpu.py`, and one question from end to end."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import point_model

import mtdiff as mt
from mtdiff.run_folder import HISTORY

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu.py"
spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
gpu = sys.modules["gpu"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)


def test_turns_share_the_time_that_is_left():
    """Two turns and what follows fit: (25 s + training) twice and 60 s are 350 s."""
    minutes = gpu.minutes_each(350.0, 2, kept=60.0)
    assert 2 * (gpu.START + 60 * minutes) + 60.0 == pytest.approx(350.0)
    assert gpu.minutes_each(-5.0, 3) == 0.05


def result(variant, n=8):
    return {"experiment": "e", "data": "d", "n": n, "variants": {variant: {"a": 1.0}}, "runs": [{"variant": variant}] * 2}


def test_results_of_variants_are_joined_as_if_judged_together():
    found = gpu.joined([result("x"), result("y")])
    assert found == {
        **result("x"),
        "variants": {"x": {"a": 1.0}, "y": {"a": 1.0}},
        "runs": result("x")["runs"] + result("y")["runs"],
    }
    with pytest.raises(ValueError, match=r"results differ in \['n'\]"):
        gpu.joined([result("x"), result("y", n=9)])


def test_a_job_that_fails_is_reported_and_stops_no_other(tmp_path):
    """The judgement takes the model that is there; that of nothing is left out."""
    say = "import sys; print(sys.argv[1:])"
    jobs = [
        gpu.Job("runs/a", ["-c", "print('a went well')"]),
        gpu.Job("runs/b", ["-c", "raise SystemExit('b broke')"]),
        gpu.Job("judge", ["-c", say, "x"], ("runs/a", "runs/b")),
        gpu.Job("none", ["-c", say], ("runs/b",)),
    ]
    report = []
    assert gpu.work_through(jobs, tmp_path, {}, gpu.Clock(60), 2, report) == {"runs/a", "judge"}
    text = "\n".join(report)
    assert "runs/b: FAILED with status 1" in text
    assert "b broke" in text
    assert "none: LEFT OUT, nothing it needs is there" in text
    assert "['x', '--models', 'runs/a']" in gpu.log(tmp_path, "judge").read_text()


def test_what_time_is_over_for_is_ended_and_reported(tmp_path):
    jobs = [gpu.Job("slow", ["-c", "import time; time.sleep(60)"]), gpu.Job("next", ["-c", ""])]
    report, clock = [], gpu.Clock(1.0)
    assert gpu.work_through(jobs, tmp_path, {}, clock, 1, report) == set()
    assert clock.left > -10
    assert report[0].startswith("slow: STOPPED, time was over")
    assert report[-1] == "next: LEFT OUT, time was over"


def test_models_come_back_in_half_precision_with_their_history(tmp_path):
    models = [point_model(width=64, seed=seed).save(tmp_path / f"m-{seed}") for seed in (0, 1)]
    (models[0] / HISTORY).write_text("{}\n")
    gpu.bundle(tmp_path / "all.zip", models)
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert {f"m-0/{HISTORY}", "m-0/card.json", "m-1/model.safetensors"} <= set(archive.namelist())
        archive.extractall(tmp_path / "back")
    size = [(folder / "model.safetensors").stat().st_size for folder in (models[1], tmp_path / "back" / "m-1")]
    assert size[1] < 0.7 * size[0]
    assert isinstance(mt.load(tmp_path / "back" / "m-1"), mt.MTDiffusion)


def test_part_2_says_how_to_make_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv(gpu.FOLDER, str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--part", "2", "--device", "cpu", "--out", str(tmp_path / "out")])
    with pytest.raises(
        SystemExit, match=r"part 2 needs packed photographs: .* mtdiff data get imagenette && mtdiff data prepare"
    ):
        gpu.main()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("status", [0, 1])
def test_processes_share_the_card_where_the_service_starts(tmp_path, monkeypatch, status):
    """A stand-in for the service's control notes what it is told: -d, and "quit" at the end if it had started."""
    control, said = tmp_path / "nvidia-cuda-mps-control", tmp_path / "said"
    control.write_text(f'#!/bin/sh\n[ "$1" ] && echo "$1" >> {said} && exit {status}\ncat >> {said}\n')
    control.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    report = []
    with gpu.shared_card("cuda", tmp_path, report) as names:
        assert set(names) == (set() if status else {"CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"})
    assert said.read_text().split() == (["-d"] if status else ["-d", "quit"])
    assert ("take turns" in report[0]) == bool(status)


def test_a_cpu_needs_no_service(tmp_path):
    with gpu.shared_card("cpu", tmp_path, []) as names:
        assert names == {}


def test_one_question_from_end_to_end(tmp_path):
    """Two seeds of the quickest variant, two steps each, judged together."""
    words = ["--tiny", "--device", "cpu", "--part", "1", "--only", "image-transition/regression", "--out", tmp_path]
    done = subprocess.run([sys.executable, SCRIPT, *words, "--minutes", "30"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "image-transition-models.zip",
        "image-transition.json",
        "report.txt",
    ]
    found = json.loads((tmp_path / "image-transition.json").read_text())
    assert list(found["variants"]) == ["regression"]
    assert [run["card"]["training"]["taken"] for run in found["runs"]] == [2, 2]
    assert "FAILED" not in (tmp_path / "report.txt").read_text()
