"""The command line, as a user types it."""

import dataclasses
import errno
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

import mtdiff as mt
from mtdiff import cli
from mtdiff.cli.evaluate import refuse_repeats
from mtdiff.cli.sample import write_folder
from mtdiff.datasets import digits
from mtdiff.datasets.shapes import VOCABULARY, shapes
from mtdiff.datasets.shapes import words as spoken
from mtdiff.experiments import label_scores
from mtdiff.probes import head_accuracy
from mtdiff.run_folder import RunFolder
from mtdiff.stopping import Interrupted


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["mtdiff", *map(str, words)])
    cli.main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps, in a folder."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, "train", "image-label", "--steps", 2, "--batch-size", 8, "--out", folder)
    return folder


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_helps(monkeypatch, capsys, words):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *words)
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_every_command_says_what_the_list_says_of_it():
    for name, text in cli.COMMANDS.items():
        assert cli.command(name).__doc__.split("\n\n")[0] == text


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["mix"]])
def test_what_needs_no_torch_does_not_wait_for_it(words):
    lines = [f"import sys; sys.argv[1:] = {words}", "import mtdiff.cli", "try: mtdiff.cli.main()"]
    code = "\n".join([*lines, "finally: assert 'torch' not in sys.modules"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if words == ["mix"] else 0), done.stderr
    assert "AssertionError" not in done.stderr
    assert mt.__version__ in done.stdout or words != ["--version"]


def test_a_shell_can_complete_commands(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--tyro-print-completion", "bash")
    assert stop.value.code in (None, 0)
    said = capsys.readouterr().out
    assert "evaluate" in said
    assert "--guidance" in said


def test_list_and_info_say_what_there_is(monkeypatch, capsys):
    run(monkeypatch, "list")
    said = capsys.readouterr().out
    assert "image-transition\n  data: shapes16, shapes32\n" in said
    assert "image-label/digits" in said
    assert "5,834 steps of 256 on shapes32-any/train" in said, "taken until time was over, not the 60,000 that were allowed"
    assert "judge/" not in said
    run(monkeypatch, "info", "image-label/digits")
    said = capsys.readouterr().out
    assert "MTDiffusion on 1x8x8: 312,044 parameters" in said
    assert "  label: Label, code 1x8x8, W 0.1 to 1, given at times" in said
    assert "joint / agreement: " in said


def test_train_writes_model_card_and_history(trained):
    card = json.loads((trained / "card.json").read_text())
    assert card["variant"] == "fade-in"
    assert card["data"]["examples"] == 1437
    assert len(card["data"]["sha256"]) == 64
    assert card["training"]["steps"] == 2
    assert card["provenance"]["command"].startswith("mtdiff train image-label")
    assert json.loads((trained / "history.jsonl").read_text().splitlines()[-1])["step"] == 2
    assert isinstance(mt.load(trained), mt.MTDiffusion)


def test_train_again_goes_on_instead_of_starting_over(trained, monkeypatch, capsys):
    run(monkeypatch, "train", "image-label", "--steps", 2, "--batch-size", 8, "--out", trained)
    assert "already trained: step 2 of 2" in capsys.readouterr().out


def test_train_does_not_overwrite_a_model_that_came_from_elsewhere(trained, tmp_path, monkeypatch):
    mt.load(trained).save(tmp_path / "precious")
    with pytest.raises(SystemExit, match="holds a model that was not trained there"):
        run(monkeypatch, "train", "image-label", "--steps", 1, "--out", tmp_path / "precious")


def test_evaluate_keeps_its_figures_for_a_model_without_a_card(trained, tmp_path, monkeypatch):
    model = mt.load(trained)
    model.card = {}
    model.save(tmp_path / "plain")
    run(monkeypatch, "evaluate", "image-label", "--models", tmp_path / "plain", "--n", 20, "--out", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["variants"]


def test_paths_of_the_machine_stay_out_of_the_card(trained):
    assert str(trained.parent) not in (trained / "card.json").read_text()


def test_train_refuses_a_folder_of_another_config(trained, monkeypatch):
    with pytest.raises(SystemExit, match="batch_size: 8 there, 16 here"):
        run(monkeypatch, "train", "image-label", "--steps", 2, "--batch-size", 16, "--out", trained)


def test_a_longer_training_goes_on_from_a_finished_one_and_its_card_says_so(trained, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(trained, tmp_path / "run")
    words = ["train", "image-label", "--batch-size", 8, "--out", folder]
    with pytest.raises(SystemExit, match="is at step 2 of 2: too late to end at 1"):
        run(monkeypatch, *words, "--steps", 1)
    run(monkeypatch, *words, "--steps", 6)
    assert "going on at step 2 of 6" in (said := capsys.readouterr().out)
    assert "longer than" not in said  # its learning rate had not begun to fall
    run(monkeypatch, *words, "--steps", 7)
    assert "going on at step 6 of 7" in (said := capsys.readouterr().out)
    assert "longer than the 6 it had at step 6" in said
    card = mt.load(folder).card
    assert card["training"]["steps"] == 7
    assert card["training"]["lengthened"] == [[6, 6]]
    assert "lengthened" not in mt.load(trained).card["training"]
    (folder / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())  # as a crash may leave it
    run(monkeypatch, *words, "--steps", 7)
    assert mt.load(folder).card == {**card, "provenance": mt.load(folder).card["provenance"]}
    run(monkeypatch, *words, "--steps", 7)
    assert "already trained: step 7 of 7" in capsys.readouterr().out


def test_a_training_by_the_clock_says_how_many_steps_it_took(tmp_path, monkeypatch, capsys):
    """At a clock that goes on by a second whenever it is read; seeds that took other numbers of steps are averaged."""
    cards = []
    for seed, pace in enumerate((1, 2)):
        with monkeypatch.context() as patch:
            patch.setattr("mtdiff.training.time.perf_counter", iter(range(0, 10**6, pace)).__next__)
            out, limit = tmp_path / str(seed), ["--minutes", 0.5, "--steps", 500]
            words = ["train", "image-label", *limit, "--batch-size", 8, "--seed", seed, "--out", out]
            run(patch, *words)
            said = capsys.readouterr().out
            run(patch, *words)
        cards.append(mt.load(out).card)
        taken = cards[-1]["training"]["taken"]
        assert 0 < taken < 50
        assert f"trained {taken} steps" in said
        assert f"already trained: step {taken} of 500" in capsys.readouterr().out
        assert cards[-1]["training"]["minutes"] == 0.5
    assert cards[0]["training"]["taken"] > cards[1]["training"]["taken"]
    refuse_repeats([("a", cards[0]), ("b", cards[1])])


def test_two_limits_of_time_are_told_apart(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "train", "--help")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "The training is over after so long" in said
    assert "Interrupt the training after so long" in said


def test_a_folder_in_which_somebody_trains_is_left_alone(trained, monkeypatch):
    with RunFolder(trained).alone(), pytest.raises(SystemExit, match="is in use by process"):
        run(monkeypatch, "train", "image-label", "--steps", 2, "--batch-size", 8, "--out", trained)


@pytest.mark.parametrize(("stop", "code"), [("SIGTERM", 0), ("SIGHUP", 0), ("SIGUSR1", 0), ("SIGINT", 1)])
def test_what_a_scheduler_stops_ends_well_and_ctrl_c_does_not(trained, tmp_path, monkeypatch, capsys, stop, code):
    """A list of commands should not go on after Ctrl-C; a queue should not call a saved training failed."""

    def stopped(*_, **__):
        raise Interrupted("stopped and saved", getattr(signal, stop))

    monkeypatch.setattr("mtdiff.training.Trainer.run", stopped)
    words = ["train", "image-label", "--steps", 2, "--batch-size", 8, "--out", tmp_path / "m"]
    if code:
        with pytest.raises(SystemExit, match="mtdiff: stopped and saved"):
            run(monkeypatch, *words)
    else:
        run(monkeypatch, *words)
        assert "stopped and saved" in capsys.readouterr().out
    assert not (tmp_path / "m" / "card.json").exists()


def training(seed=0, data="digits/train", **changes):
    """What a card says of a training."""
    said = {"steps": 10, "lr": 0.1, "seed": seed, "wall_seconds": 3.0 + seed, "processes": 1 + seed, "log_every": 5}
    return {"variant": "v", "data": {"name": data, "sha256": str(seed)}, "training": {**said, **changes}}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([training(1), training(0)], "a and c are not two seeds of one training: their cards say seed 0"),
        ([{"variant": "v"}], r"a and b are not seeds of one training \(data: digits/train, None; steps: 10, None"),
        ([{**training(1), "training": {}}, {**training(1), "training": {}}], "a and b are not seeds"),
        ([training(1, minutes=2.0)], r"\(minutes: None, 2.0\): evaluate each alone"),
        ([training(1, backbone="dit")], r"\(backbone: None, dit\): evaluate each alone"),
        ([training(1, steps=20)], r"a and b are not seeds of one training \(steps: 10, 20\): evaluate each alone"),
        ([training(1, lengthened=[[5, 5]])], r"lengthened: None, \[\[5, 5\]\]"),
        ([training(1), training(2, lr=0.2)], r"a and c are not seeds of one training \(lr: 0.1, 0.2\)"),
        ([training(1, data="shapes16/train")], "data: digits/train, shapes16/train"),
    ],
)
def test_only_seeds_of_one_training_are_averaged(others, message):
    with pytest.raises(ValueError, match=message):
        refuse_repeats(list(zip("abc", [training(), *others], strict=False)))


def test_seeds_and_variants_are_averaged():
    refuse_repeats([("a", training(0)), ("b", training(1)), ("c", {**training(0), "variant": "w"}), ("d", {}), ("e", {})])


def test_repeats_are_refused_before_anything_is_judged(monkeypatch):
    with pytest.raises(SystemExit, match="image-label/digits and image-label/digits are not two seeds of one training"):
        run(monkeypatch, "evaluate", "image-label", "--models", "image-label/digits", "image-label/digits")


@pytest.mark.parametrize("variant", ["from-zero", "constant", "own-channels", "unshared"])
def test_every_variant_trains_and_is_judged(variant, tmp_path, monkeypatch):
    quick = dataclasses.replace(label_scores.referee("digits"), steps=3)
    monkeypatch.setattr(label_scores, "referee", lambda data: quick)
    run(monkeypatch, "train", "image-label", "--variant", variant, "--steps", 1, "--batch-size", 4, "--out", tmp_path / "m")
    out, other = tmp_path / "result.json", mt.load(tmp_path / "m")
    other.card["training"]["seed"] = 1
    other.save(tmp_path / "n")
    run(monkeypatch, "evaluate", "image-label", "--models", tmp_path / "m", tmp_path / "n", "--n", 20, "--out", out)
    result = json.loads(out.read_text())
    joint = result["variants"][variant]["joint"]["agreement"]
    assert joint["n"] == 2
    assert 0 <= joint["mean"] <= 1
    assert joint["stderr"] is not None
    assert len(result["runs"]) == 2


def test_the_image_alone_trains_is_judged_and_drawn(tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "m", tmp_path / "result.json"
    run(monkeypatch, "train", "image-label", "--variant", "image-only", "--steps", 1, "--batch-size", 4, "--out", folder)
    assert list(mt.load(folder).modalities) == ["image"]
    run(monkeypatch, "evaluate", "image-label", "--models", folder, "--n", 20, "--out", out)
    metrics = json.loads(out.read_text())["variants"]["image-only"]
    assert set(metrics["joint"]) == {"spread", "frechet_pixels"}
    assert metrics["bound"]["image"]["mean"] < 0
    picture = tmp_path / "samples.png"
    run(monkeypatch, "sample", folder, "--n", 3, "--steps", 2, "--out", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "labels" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="unknown modality 'label'"):
        run(monkeypatch, "sample", folder, "--given", "label=7", "--out", picture)


def test_sample_draws_what_is_given(trained, tmp_path, monkeypatch, capsys):
    picture = tmp_path / "new" / "samples.png"
    run(monkeypatch, "sample", trained, "--n", 3, "--given", "label=7", "--steps", 2, "--out", picture)
    assert "labels: 7, 7, 7\n" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_publish_writes_a_half_precision_model_with_its_figures(trained, tmp_path, monkeypatch):
    run(monkeypatch, "evaluate", "image-label", "--models", trained, "--n", 20, "--publish", tmp_path / "p")
    published = mt.load(tmp_path / "p")
    found = head_accuracy(published, digits("test"), generator=torch.Generator().manual_seed(0))
    assert published.card["metrics"]["head_accuracy"] == pytest.approx(found, abs=0.02)  # other noise: 7 of 360
    size = {folder: (folder / "model.safetensors").stat().st_size for folder in (trained, tmp_path / "p")}
    assert size[tmp_path / "p"] < 0.6 * size[trained]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "no/such/model"], "no model at 'no/such/model'.*image-label/digits"),
        (["sample", "--given", "label=12"], "'12' is not one of"),
        (["sample", "--given", "colour=red"], "unknown modality 'colour'"),
        (["sample", "--steps", "501"], r"steps must be in 1\.\.500"),
        (["sample", "--guidance", "2", "--given", "label=1", "--rule", "substitute"], "guidance 2.0 needs rule"),
        (["train", "image-label", "--data", "mars"], "no data 'mars'"),
        (["evaluate", "image-label", "--data", "mars"], "no data 'mars'"),
        (["train", "image-transition", "--data", "digits"], r"no data 'digits'; it has \['shapes16', 'shapes32'\]"),
        (["train", "image-label", "--device", "toaster"], "--device toaster cannot be used"),
        (["train", "image-label", "--lr", "-1"], "lr must be positive"),
        (["train", "image-label", "--variant", "odd"], "no variant 'odd'"),
        (["train", "image-label", "--steps", "0"], "steps must be at least 1"),
        (["train", "image-label", "--minutes", "0"], "minutes must be positive, got 0.0"),
        (["train", "image-label", "--batch-size", "5000"], r"batch size must be in 1\.\.1437"),
    ],
)
def test_bad_input_is_one_clear_line(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, *words)


def test_the_control_without_a_shared_space_is_sampled_like_the_others(tmp_path, monkeypatch):
    words = ("--variant", "unshared", "--steps", 1, "--batch-size", 4)
    run(monkeypatch, "train", "image-label", *words, "--out", tmp_path / "m")
    run(monkeypatch, "sample", tmp_path / "m", "--steps", 2, "--given", "label=3", "--out", tmp_path / "s.png")
    assert (tmp_path / "s.png").is_file()


def test_wrong_thread_count_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MTDIFF_THREADS", "many")
    with pytest.raises(SystemExit, match="MTDIFF_THREADS must be a number"):
        run(monkeypatch, "sample", "--out", tmp_path / "s.png")


def test_wrong_budget_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MTDIFF_BUDGET", "huge")
    with pytest.raises(SystemExit, match="MTDIFF_BUDGET"):
        run(monkeypatch, "train", "image-label")


def test_ctrl_c_saves_says_how_to_go_on_and_loses_nothing(tmp_path):
    command = [sys.executable, "-m", "mtdiff", "train", "image-label", "--steps", "400", "--batch-size", "8", "--out", "run"]
    command += ["--progress", "bar"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(1)
    while "step/s" not in (seen := process.stdout.readline(200)) and process.poll() is None:
        assert seen is not None
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "stopped at step" in rest
    assert "run the same command again to go on" in rest
    state = torch.load(tmp_path / "run" / "training.pt", weights_only=True)
    assert 0 < state["step"] < 400


@pytest.fixture(scope="module")
def transition(tmp_path_factory):
    """An untrained model of pictures, with a card like that of a trained one."""
    from mtdiff.experiments.image_transition import build

    card = {"experiment": "image-transition", "data": {"name": "shapes16-pairs/train"}}
    return build("shapes16", "transition").save(tmp_path_factory.mktemp("transition") / "model", card)


def test_a_picture_file_and_a_held_out_example_can_be_given(transition, tmp_path, monkeypatch, capsys):
    source = PIL.Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
    source.save(tmp_path / "source.png")
    drawn = {}
    monkeypatch.setattr("mtdiff.plots.save_grid", lambda values, labels, path: drawn.update(values, labels=labels))
    for text in (f"source={tmp_path / 'source.png'}", "source=test:7"):
        words = ["--n", 2, "--given", text, "direction=night to day", "--steps", 2]
        run(monkeypatch, "sample", transition, *words, "--out", tmp_path / "s.png")
        if "png" in text:
            levels = ((drawn["source"][0].movedim(0, -1) + 1) * 127.5).round().long()
            assert np.array_equal(levels.numpy(), np.array(source))
        else:
            from mtdiff.experiments.image_transition import pairs

            assert drawn["source"][1].equal(pairs("shapes16", "test").values["source"][7])
    assert drawn["direction"].tolist() == [1, 1]
    assert "directions: night to day, night to day\n" in capsys.readouterr().out


@pytest.fixture(scope="module", params=["scenes", "classes"])
def captioned(request, tmp_path_factory):
    """An untrained model of images and captions, of scenes or names of classes."""
    words = VOCABULARY if request.param == "scenes" else mt.vocabulary(["red circle", "white wolf"])
    caption = mt.Caption(words, 10 if request.param == "scenes" else 2, tell="vector")
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), {"image": 1.0, "caption": 0.0})
    space = (3, 16, 16)
    model = mt.MTDiffusion(process, {"image": mt.Image(space), "caption": caption}, mt.MLP(space, 8, 1), space)
    card = {"experiment": "image-label", "data": {"name": "shapes16/train"}}
    return request.param, model.save(tmp_path_factory.mktemp("captioned") / "model", card)


def test_a_caption_is_given_in_words_and_printed_in_words(captioned, tmp_path, monkeypatch, capsys):
    kind, folder = captioned
    sentence = "a small red circle left of a large blue square, on grey" if kind == "scenes" else "White wolf"
    words = "grey small red circle large blue square" if kind == "scenes" else "white wolf"
    run(monkeypatch, "sample", folder, "--n", 2, "--given", f"caption={sentence}", "--steps", 2, "--out", tmp_path / "s.png")
    assert f"captions:\n  {words}\n  {words}\n" in capsys.readouterr().out


def test_the_caption_of_a_held_out_example_can_be_given(captioned, tmp_path, monkeypatch, capsys):
    from mtdiff.experiments import EXPERIMENTS

    held_out = {"shapes16": lambda split: shapes(split, 16, 8, modalities=("image", "caption"))}
    monkeypatch.setitem(EXPERIMENTS, "image-label", replace(EXPERIMENTS["image-label"], data=held_out))
    kind, folder = captioned
    command = ["sample", folder, "--n", 1, "--given", "caption=test:7", "--steps", 2, "--out", tmp_path / "s.png"]
    if kind == "classes":
        with pytest.raises(SystemExit, match=r"'caption' must be an integer tensor of token ids \(B, 2\)"):
            run(monkeypatch, *command)
        return
    run(monkeypatch, *command)
    (said,) = spoken(held_out["shapes16"]("test").values["caption"][7])
    assert f"captions:\n  {said}\n" in capsys.readouterr().out


def test_words_that_a_caption_leaves_out_are_drawn_for_each_example(captioned, tmp_path, monkeypatch, capsys):
    kind, folder = captioned
    if kind == "classes":
        return
    command = ["sample", folder, "--n", 6, "--given", "caption=a red circle left of a blue square", "--steps", 2]
    run(monkeypatch, *command, "--out", tmp_path / "s.png")
    said = capsys.readouterr().out.split("captions:\n")[1].split("\n")[:6]
    assert len(set(said)) > 1
    assert all(re.fullmatch(r"  \w+ (small|large) red circle (small|large) blue square", line) for line in said)


def test_maps_of_classes_are_drawn_in_colours(tmp_path):
    from mtdiff.plots import coloured, save_grid

    classes = torch.tensor([[[0, 1], [2, 2]]])
    picture = coloured(classes)
    assert picture.shape == (1, 3, 2, 2)
    assert torch.equal(picture[..., 1, 0], picture[..., 1, 1])
    assert len(picture.flatten(2)[0].T.unique(dim=0)) == 3
    save_grid({"image": torch.zeros(1, 3, 2, 2), "segmentation": classes}, {}, tmp_path / "s.png")


def test_words_that_are_no_caption_are_one_clear_line_with_an_example(captioned, tmp_path, monkeypatch):
    kind, folder = captioned
    text, message = "a red ball left of a blue square", "'a small red circle left of a large blue square on a grey"
    if kind == "classes":
        text, message = "wite wolf", r"'wite' is not in the vocabulary: .*'white'.* looks like 'red circle'"
    with pytest.raises(SystemExit, match=f"--given caption={text}: .*{message}"):
        run(monkeypatch, "sample", folder, "--given", f"caption={text}", "--out", tmp_path / "s.png")


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    from mtdiff.plots import save_grid

    drawn, path = {"image": torch.zeros(2, 1, 4, 4)}, tmp_path / "s.png"
    save_grid(drawn, {}, path)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mtdiff.files.os.fsync", full)
        with pytest.raises(OSError, match=rf"cannot write to {tmp_path} \(No space left on device\)"):
            save_grid({"image": torch.ones(2, 1, 4, 4)}, {}, path)
    with pytest.raises(ValueError, match="heic"):
        save_grid(drawn, {}, tmp_path / "s.heic")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before
    save_grid(drawn, {}, tmp_path / "s.pdf")
    assert (tmp_path / "s.pdf").read_bytes().startswith(b"%PDF")


def test_several_kinds_of_picture_make_rows(transition, tmp_path, monkeypatch):
    words = ["--n", 2, "--given", "source=test:0", "direction=day to night", "--steps", 2]
    run(monkeypatch, "sample", transition, *words, "--out", tmp_path / "s.png")
    with PIL.Image.open(tmp_path / "s.png") as picture:
        assert min(picture.size) > 50


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["direction=day to night"], "ends at 'source'"),
        (["source=test:0"], "'direction'. always given"),
        (["source=test:100000"], r"expected an example in test:0\.\.test:1199"),
        (["source=nowhere.png"], "nowhere.png cannot be read as a picture"),
        (["source=text.png"], "text.png cannot be read as a picture"),
        (["source=large.png"], "the picture is 32x20, expected 16x16"),
        (["direction=up"], "'up' is not one of"),
    ],
)
def test_a_bad_picture_is_one_clear_line(given, message, transition, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    PIL.Image.new("RGB", (32, 20)).save(tmp_path / "large.png")
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "sample", transition, "--n", 1, "--steps", 2, "--given", *given)


def test_a_mask_is_given_as_a_picture_of_black_and_white(tmp_path, monkeypatch):
    from mtdiff.experiments.masked_image import build

    folder = build("shapes16", "masked").save(tmp_path / "model", {"experiment": "masked-image"})
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[:, 8:] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    PIL.Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / "image.png")
    drawn = {}
    monkeypatch.setattr("mtdiff.plots.save_grid", lambda values, labels, path: drawn.update(values))
    given = [f"masked={tmp_path / 'image.png'}", f"mask={tmp_path / 'mask.png'}"]
    run(monkeypatch, "sample", folder, "--n", 1, "--steps", 2, "--given", *given)
    assert drawn["mask"][0, 0].numpy().tolist() == (mask / 255).tolist()


def test_the_shipped_names_are_models_and_not_judges(monkeypatch):
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, "sample", "no/such/model")
    assert "judge" not in str(refused.value)


def test_a_model_is_judged_on_its_own_data_unless_asked_for(tmp_path, monkeypatch):
    from mtdiff.experiments import EXPERIMENTS

    experiment = EXPERIMENTS["image-label"]
    card = {"experiment": "image-label", "variant": "fade-in", "data": {"name": "planted95/train"}}
    folder = experiment.build("planted95", "fade-in").save(tmp_path / "model", card)
    judged = []
    monkeypatch.setitem(EXPERIMENTS, "image-label", replace(experiment, evaluate=lambda *a, **k: judged.append(a[1]) or {}))
    words = ("evaluate", "image-label", "--models", folder)
    with pytest.raises(SystemExit, match="trained on planted95, the data are planted60: judge it there, or add --elsewhere"):
        run(monkeypatch, *words, "--data", "planted60")
    with pytest.raises(SystemExit, match="do not have the same classes"):
        run(monkeypatch, *words, "--data", "digits", "--elsewhere")
    run(monkeypatch, *words, "--data", "planted60", "--elsewhere")
    run(monkeypatch, *words, "--data", "planted95")
    assert judged == ["planted60", "planted95"]


@pytest.mark.parametrize("data", [{}, {"data": {"name": "cats/train"}}, {"data": "digits"}])
def test_a_card_without_known_data_has_no_held_out_examples(data, trained, tmp_path, monkeypatch):
    folder = mt.load(trained).save(tmp_path / "model")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({k: v for k, v in card.items() if k != "data"} | data))
    with pytest.raises(SystemExit, match="the model's card names no data of image-label"):
        run(monkeypatch, "sample", folder, "--given", "label=test:0")


def test_what_is_drawn_is_written_as_a_picture_as_arrays_or_as_a_folder(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "sample", "--n", 3, "--steps", 2, "--out", tmp_path / "values.npz")
    values = np.load(tmp_path / "values.npz")
    assert {name: values[name].shape for name in values} == {"image": (3, 1, 8, 8), "label": (3,)}
    run(monkeypatch, "sample", "--n", 3, "--steps", 2, "--out", tmp_path / "drawn")
    rows = [json.loads(line) for line in (tmp_path / "drawn" / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["0000.png", "0001.png", "0002.png"]
    assert [row["label"] for row in rows] == [str(k) for k in values["label"].tolist()]  # the same seed
    for k, row in enumerate(rows):
        picture = np.asarray(PIL.Image.open(tmp_path / "drawn" / row["file_name"]))
        assert picture == pytest.approx((values["image"][k, 0].clip(-1, 1) + 1) * 127.5, abs=0.51)
    assert f"pictures: {tmp_path / 'drawn'}" in capsys.readouterr().out


def test_several_kinds_of_pictures_are_written_side_by_side(tmp_path):
    drawn = {
        "image": torch.zeros(2, 3, 4, 4),
        "mask": torch.ones(2, 1, 4, 4),
        "segments": torch.tensor([[[0, 1]], [[1, 0]]]),
    }
    write_folder(drawn, {"caption": ["a", "b"]}, tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == {
        "images/metadata.jsonl", *(f"{name}/000{k}.png" for name in ("images", "mask", "segments") for k in (0, 1)),
    }  # fmt: skip
    assert np.asarray(PIL.Image.open(tmp_path / "mask" / "0000.png")).tolist() == [[255] * 4] * 4
    assert np.unique(np.asarray(PIL.Image.open(tmp_path / "images" / "0001.png"))).tolist() == [128]
    with pytest.raises(ValueError, match=r"no picture was drawn; write \.npz"):
        write_folder({"label": torch.zeros(2)}, {}, tmp_path)
