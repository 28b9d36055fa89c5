"""JSON, files that are written whole or not at all, and weights that belong to their card."""

import errno
import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from helpers import image_label_model

import mtdiff as mt
from mtdiff.files import CARD, WEIGHTS, clear_unfinished, to_json, write_atomic
from mtdiff.judges import LabelJudge, label_judge
from mtdiff.provenance import provenance

ROOT = Path(__file__).parent.parent


def strict(text):
    """What the JSON says; NaN and Infinity, which Python would read, are refused."""

    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("script", "command"),
    [
        (ROOT / "tests" / "benchmarks" / "unet.py", "python tests/benchmarks/unet.py --rounds 2 --out x.json"),
        (ROOT / ".venv" / "bin" / "mtdiff", "mtdiff --rounds 2 --out x.json"),
        (Path("/elsewhere/kernel.py"), "python"),
    ],
)
def test_a_result_says_its_command_without_places_of_the_machine(script, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(script), "--rounds", "2", "--out", "/somewhere/x.json"])
    assert provenance()["command"] == command


def test_what_is_no_finite_number_is_null():
    value = {"a": [1.5, math.nan, (math.inf, -math.inf)], "b": {"c": float("nan"), "d": None, "e": "NaN", "f": True, "g": 3}}
    expected = {"a": [1.5, None, [None, None]], "b": {"c": None, "d": None, "e": "NaN", "f": True, "g": 3}}
    assert strict(to_json(value)) == strict(to_json(value, indent=1)) == expected


def test_every_json_file_that_ships_is_json():
    files = list((ROOT / "data").rglob("*.json"))
    assert len(files) > 40
    for file in files:
        strict(file.read_text())


def test_json_has_one_writer():
    found = [p.relative_to(ROOT) for p in [*ROOT.glob("mtdiff/**/*.py"), *ROOT.glob("tests/benchmarks/*.py")]
             if "json.dump" in p.read_text()]  # fmt: skip
    assert found == [Path("mtdiff/files.py")]


# ---- whole or not at all ----


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_names_the_folder_and_leaves_what_was_there(tmp_path, monkeypatch, number):
    path = tmp_path / "state"
    write_atomic(path, b"old")

    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=rf"cannot write to {tmp_path} \({os.strerror(number)}\): nothing was changed at state"
    ):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_place_of_a_file_or_a_file_in_that_of_a_folder_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder", tmp_path / "file" / "state"):
        with pytest.raises(OSError, match=f"cannot write to {path.parent}"):
            write_atomic(path, b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    kept = [tmp_path / name for name in ("state", ".state", ".state.bak", ".other.abcd1234", "state.abcd1234")]
    for path in kept:
        path.write_text("")

    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patch:  # nobody cleans up
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        patch.setattr(os, "replace", killed)
        with pytest.raises(SystemExit):
            write_atomic(tmp_path / "state", b"half")
    assert len(list(tmp_path.iterdir())) == 6
    clear_unfinished(tmp_path, "state", "unheard")
    assert sorted(tmp_path.iterdir()) == sorted(kept)


# ---- weights and card ----


def saved(kind, folder):
    """A model or a judge in a folder; how it is saved again with other weights, and how it is loaded."""
    network = image_label_model() if kind == "model" else LabelJudge(16, 8)
    network.save(folder)

    def again():
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1)
        network.save(folder)

    return again, (mt.load if kind == "model" else label_judge)


@pytest.mark.parametrize("kind", ["model", "judge"])
@pytest.mark.parametrize("older", [CARD, WEIGHTS])
def test_weights_of_one_save_and_a_card_of_another_are_refused(tmp_path, kind, older):
    """As after a crash between the two files, or a copy of one of them."""
    again, load = saved(kind, tmp_path)
    before = (tmp_path / older).read_bytes()
    again()
    load(tmp_path)
    (tmp_path / older).write_bytes(before)
    with pytest.raises(ValueError, match=rf"{tmp_path / WEIGHTS} is truncated or damaged, or of another save than its card"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["model", "judge"])
@pytest.mark.parametrize("at", [0.3, 0.6, 0.99])
def test_a_flipped_bit_is_noticed(tmp_path, kind, at):
    _, load = saved(kind, tmp_path)
    data = bytearray((tmp_path / WEIGHTS).read_bytes())
    data[int(at * len(data))] ^= 1
    (tmp_path / WEIGHTS).write_bytes(data)
    with pytest.raises(ValueError, match="is truncated or damaged"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["model", "judge"])
def test_a_card_of_before_without_a_hash_is_taken_at_its_word(tmp_path, kind):
    _, load = saved(kind, tmp_path)
    card = strict((tmp_path / CARD).read_text())
    assert len(card.pop("sha256")) == 64
    (tmp_path / CARD).write_text(to_json(card))
    assert "sha256" not in load(tmp_path).card


@pytest.mark.parametrize("kind", ["model", "judge"])
def test_loading_leaves_the_callers_generator_alone(tmp_path, kind):
    _, load = saved(kind, tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load(tmp_path)
    assert torch.equal(torch.rand(4), expected)
