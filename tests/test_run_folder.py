"""A folder of a training: who may write there, and what is safe when something dies, fills up or rots."""

import contextlib
import errno
import multiprocessing
import os
import random
import re
import shlex
import signal
import sys
import threading
import time
import zipfile
from dataclasses import replace

import pytest
import torch
from helpers import point_model
from test_training import CONFIG, DATA, assert_same, history, signal_at, trainer

from mtdiff import run_folder
from mtdiff.model import MTDiffusion
from mtdiff.run_folder import RunFolder
from mtdiff.training import Interrupted, Trainer


@pytest.fixture(autouse=True)
def one_thread():
    """Threads do not survive a fork: in a child of two, what is shared among them waits for ever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def elsewhere(work):
    """A process of its own that does some work; forked, so that it starts at once."""
    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    return process


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


# ---- one at a time ----


def test_a_second_training_in_a_folder_is_refused_and_told_who_is_there(tmp_path):
    first, second, words = trainer(tmp_path), trainer(tmp_path), re.escape(shlex.join(sys.argv))
    with first.alone():
        for act in (second.resume, lambda: second.run(progress=False)):
            with pytest.raises(
                BlockingIOError, match=rf"{tmp_path} is in use by process {os.getpid()} on .*: {words}\. Wait"
            ):
                act()
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        first.run(progress=False)
        with pytest.raises(BlockingIOError, match="in use"):  # from before resume to the end, whatever was in between
            second.resume()
    assert second.resume()


def test_a_training_keeps_its_folder_while_it_runs(tmp_path):
    refused = []

    def hook(step):
        if step == 5:
            with pytest.raises(BlockingIOError):
                trainer(tmp_path).run(progress=False)
            refused.append(step)

    trainer(tmp_path, hook=hook).run(progress=False)
    assert refused == [5]
    trainer(tmp_path).resume()


def test_a_killed_process_leaves_no_lock(tmp_path):
    def hold():
        with RunFolder(tmp_path).alone():
            (tmp_path / "held").touch()
            time.sleep(60)

    process = elsewhere(hold)
    wait_until((tmp_path / "held").exists)
    with pytest.raises(BlockingIOError, match=f"in use by process {process.pid} on"):
        trainer(tmp_path).run(progress=False)
    process.kill()
    process.join()
    trainer(tmp_path).run(progress=False)


def test_a_training_that_fails_lets_go_of_its_folder(tmp_path):
    def fail(step):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        trainer(tmp_path, hook=fail).run(progress=False)
    trainer(tmp_path).run(progress=False)


def test_steps_that_somebody_else_has_taken_since_are_not_lost(tmp_path):
    """Two that resume the same step, one after the other: the second would write over what the first has done."""
    with pytest.raises(Interrupted):
        trainer(tmp_path, hook=signal_at(5, signal.SIGTERM)).run(progress=False)
    first, second = trainer(tmp_path), trainer(tmp_path)
    assert first.resume()
    assert second.resume()
    first.run(progress=False)
    with pytest.raises(ValueError, match=r"holds a training already, which this one does not go on from: call resume\(\)"):
        second.run(progress=False)
    assert second.resume()
    assert second.step == 12


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=rf"{tmp_path} cannot be locked \(No locks available\)"):
        trainer(tmp_path).run(progress=False)


# ---- kill -9 ----


def test_kill_9_at_any_time_changes_nothing(tmp_path):
    """Three kills at random moments of a training that saves at every step, and the end to the last bit."""
    config, luck, state = replace(CONFIG, steps=40, save_every=1), random.Random(0), tmp_path / "training.pt"
    whole = trainer(config=config)
    whole.run(progress=False)  # before the forks: torch loads some of itself with the first step

    def go_on():
        run = trainer(tmp_path, config)
        run.resume()
        run.run(progress=False)

    ends = []
    for _ in range(3):
        before, process = state.stat().st_mtime_ns if state.exists() else 0, elsewhere(go_on)
        wait_until(lambda: not process.is_alive() or (state.exists() and state.stat().st_mtime_ns != before))  # noqa: B023
        time.sleep(luck.uniform(0, 0.03))
        process.kill()
        process.join()
        ends.append(process.exitcode)
    assert -signal.SIGKILL in ends
    assert set(ends) <= {0, -signal.SIGKILL}
    (tmp_path / ".training.pt.abcd1234").write_text("what a killed save leaves")
    again = trainer(tmp_path, config)
    assert again.resume()
    assert not list(tmp_path.glob(".*.????????"))
    assert 0 < again.step <= 40
    again.run(progress=False)
    assert_same(again, whole)
    assert history(again) == history(whole)


def test_what_killed_saves_left_goes_at_the_next_start(tmp_path):
    names = [".training.pt.abcd1234", ".card.json.abcd1234", "best/.model.safetensors.abcd1234",
             "samples/.0000005.png.abcd1234", ".history.jsonl.abcd1234", ".training-0000004.pt.abcd1234"]  # fmt: skip
    for name in [*names, "mine.txt", ".hidden"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    trainer(tmp_path).resume()
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".hidden", ".lock", "mine.txt"]


# ---- a full disk, rot ----


@contextlib.contextmanager
def full_from(monkeypatch, write):
    """A disk that is full from a write on, the first for 1."""
    real, count = os.fsync, [0]

    def fsync(handle):
        count[0] += 1
        if count[0] >= write:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


def test_a_full_disk_says_what_is_safe_and_how_to_go_on(tmp_path, monkeypatch):
    """Rows, checkpoint and rows at step 4, then nothing fits; and at the start."""
    text = (
        rf"cannot write to {tmp_path} \(No space left on device\).*step 4 is safe in {tmp_path}; make room and run the same"
    )
    with full_from(monkeypatch, 4), pytest.raises(OSError, match=text):
        trainer(tmp_path).run(progress=False)
    again, whole = trainer(tmp_path), trainer()
    assert again.resume()
    assert again.step == 4
    again.run(progress=False), whole.run(progress=False)
    assert_same(again, whole)
    with full_from(monkeypatch, 1), pytest.raises(OSError, match=f"cannot write to {tmp_path / 'new'}"):
        trainer(tmp_path / "new").run(progress=False)


@pytest.mark.parametrize("what", ["history", "best", "picture"])
def test_a_full_disk_says_so_whatever_is_written(tmp_path, monkeypatch, what):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    options = {"probe": lambda _: {"d": 1.0}, "best": "d", "draw": lambda *_: None}
    run = Trainer(point_model(width=16), DATA, replace(CONFIG, probe_every=6), tmp_path, **options)
    where = {"history": (run_folder, "to_json"), "best": (MTDiffusion, "save"), "picture": (run, "draw")}[what]
    monkeypatch.setattr(*where, full)
    with pytest.raises(OSError, match=r"No space left on device\).*; make room and run the same command again to go on"):
        run.run(progress=False)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_flipped_bit_of_a_checkpoint_is_noticed(tmp_path, at):
    """Torch reads a record without its checksum."""
    trainer(tmp_path).run(progress=False)
    path = tmp_path / "training.pt"
    with zipfile.ZipFile(path) as file:
        records = [info for info in file.infolist() if info.file_size > 100]
    record = records[int(at * len(records))]
    data = bytearray(path.read_bytes())
    data[record.header_offset + 128 + record.file_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"training\.pt is truncated or damaged"):
        trainer(tmp_path).resume()


# ---- another division ----


@pytest.mark.parametrize(("there", "here"), [(2, 1), (1, 4), (4, 2)])
def test_another_division_says_which_is_right(tmp_path, there, here):
    run = trainer(tmp_path, replace(CONFIG, accumulate=there), hook=signal_at(3, signal.SIGTERM))
    with pytest.raises(Interrupted):
        run.run(progress=False)
    text = rf"another config \(accumulate: {there} there, {here} here\): use --accumulate {there}"
    with pytest.raises(ValueError, match=text):
        trainer(tmp_path, replace(CONFIG, accumulate=here)).resume()
    with pytest.raises(ValueError, match=r"accumulate: .*lr: .*use another folder"):
        trainer(tmp_path, replace(CONFIG, accumulate=here, lr=1.0)).resume()


def test_a_thread_may_train(tmp_path):
    """Where signals belong to somebody else."""
    run = trainer(tmp_path)
    thread = threading.Thread(target=run.run, kwargs={"progress": False})
    thread.start()
    thread.join()
    assert run.step == 12
    assert torch.load(tmp_path / "training.pt", weights_only=True)["step"] == 12
