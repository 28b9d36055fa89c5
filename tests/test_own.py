"""Parts of a reader's own from the command line, and that nothing is imported because a card says so."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mtdiff as mt
from mtdiff import cli
from mtdiff.cli.own import chosen_backbone
from mtdiff.experiments import EXPERIMENTS
from mtdiff.experiments.imagenet import assemble

ROOT = Path(__file__).parent.parent
HANDMADE = """
import mtdiff as mt

class Handmade(mt.MLP):
    def __init__(self, space, width=16):
        super().__init__(space, width=width, blocks=1)

class Planar(mt.MLP):
    def __init__(self, space):
        raise ValueError("points only")

class Elsewhere(mt.MLP):
    def __init__(self, space):
        super().__init__((3,), width=16)

class Heedless(mt.MLP):
    def __init__(self):
        super().__init__((3,))

number = 3
"""


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["mtdiff", *map(str, words)])
    cli.main()


def forget():
    """As in a process that did not import it."""
    sys.modules.pop("handmade", None)
    for name in ("Handmade", "Planar", "Elsewhere", "Heedless"):
        mt.Backbone.kinds.pop(name, None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a module; it is on the path only if the command puts it there."""
    (tmp_path / "handmade.py").write_text(HANDMADE)
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    yield tmp_path
    forget()


def test_a_backbone_of_ones_own_trains_is_drawn_and_judged(folder, monkeypatch, capsys):
    train = ["train", "image-label", "--steps", 1, "--batch-size", 4, "--backbone", "handmade:Handmade"]
    run(monkeypatch, *train)
    made = "runs/image-label/digits/fade-in-Handmade-0"
    assert f"mtdiff sample {made} --import handmade " in capsys.readouterr().out
    card = json.loads((folder / made / "card.json").read_text())
    assert card["config"]["backbone"] == {"kind": "Handmade", "space": [1, 8, 8], "width": 16}
    assert card["imports"] == ["handmade"]
    assert card["training"]["backbone"] == "handmade:Handmade"
    run(monkeypatch, *train)
    assert "already trained" in capsys.readouterr().out

    forget()
    hint = r"unknown backbone kind 'Handmade'.*needs handmade: if you trust that, import handmade, or add --import handmade"
    with pytest.raises(ValueError, match=hint):
        mt.load(made)
    sample, judge = ["sample", made, "--n", 2, "--steps", 2], ["evaluate", "image-label", "--models", made, "--n", 20]
    for words in (sample, judge, ["info", made]):
        with pytest.raises(SystemExit, match=hint):
            run(monkeypatch, *words)
    assert "handmade" not in sys.modules
    quick = dataclasses.replace(EXPERIMENTS["image-label"], evaluate=lambda *_: {"head_accuracy": 0.5})
    monkeypatch.setitem(EXPERIMENTS, "image-label", quick)
    for words in (sample, [*judge, "--publish", "published"], ["info", made]):
        forget()
        run(monkeypatch, *words, "--import", "handmade")
    assert "Handmade, predicts v" in capsys.readouterr().out
    assert json.loads(Path("published/card.json").read_text())["imports"] == ["handmade"]


def test_a_model_of_the_library_needs_no_import(folder, monkeypatch, capsys):
    run(monkeypatch, "train", "image-label", "--steps", 1, "--batch-size", 4, "--backbone", "dit")
    made = "runs/image-label/digits/fade-in-dit-0"
    assert f"mtdiff sample {made}  " in capsys.readouterr().out
    assert "imports" not in json.loads((folder / made / "card.json").read_text())
    assert isinstance(mt.load(made).backbone, mt.DiT)
    with pytest.raises(SystemExit, match="belongs to another model"):
        run(monkeypatch, "train", "image-label", "--steps", 2, "--batch-size", 4, "--out", made)


@pytest.mark.parametrize(
    ("name", "run_folder", "expected"),
    [
        ("unet(base=8, multipliers=(1, 2))", "fade-in-unet-base-8-multipliers-1-2", {"base": 8, "multipliers": [1, 2]}),
        ("dit(width=32, blocks=2)", "fade-in-dit-width-32-blocks-2", {"width": 32, "blocks": 2}),
        ("handmade:Handmade(width=4)", "fade-in-Handmade-width-4", {"width": 4}),
    ],
)
def test_a_backbone_is_made_with_the_arguments_in_parentheses(name, run_folder, expected, folder, monkeypatch):
    run(monkeypatch, "train", "image-label", "--steps", 1, "--batch-size", 4, "--backbone", name)
    card = json.loads((folder / f"runs/image-label/digits/{run_folder}-0/card.json").read_text())
    made = card["config"]["backbone"]
    assert {key: made[key] for key in expected} == expected
    assert card["training"]["backbone"] == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet(width=8)", r"the U-Net takes no \['width'\]; it takes \['base', 'multipliers'"),
        ("unet(8)", r"--backbone 'unet\(8\)': write NAME, or NAME\(argument=value, ...\)"),
        ("unet(base=8", r"write NAME, or NAME\(argument=value, ...\)"),
        ("unet(base=size)", r"write NAME, or NAME\(argument=value, ...\)"),
        ("unet(base=8)(base=4)", r"write NAME, or NAME\(argument=value, ...\)"),
        ("dit(base=8)", r"dit\(base=8\) does not take the space \(1, 8, 8\): .*unexpected keyword argument 'base'"),
        ("resnet", "--backbone must be unet, dit or MODULE:CLASS, got 'resnet'"),
        (":Net", "--backbone must be unet, dit or MODULE:CLASS, got ':Net'"),
        ("missing:Net", "--backbone missing cannot be imported: ModuleNotFoundError: No module named 'missing'"),
        ("broken:Net", "--backbone broken cannot be imported: ZeroDivisionError: division by zero"),
        ("handmade:Net", r"--backbone handmade:Net: Net is not in .*handmade.py"),
        ("handmade:number", "--backbone handmade:number: number is no mt.Backbone"),
        ("mtdiff:Label", "Label is no mt.Backbone"),
        ("handmade:Planar", r"handmade:Planar does not take the space \(1, 8, 8\): points only"),
        ("handmade:Heedless", r"handmade:Heedless does not take the space \(1, 8, 8\): .*takes 1 positional argument"),
        ("handmade:Elsewhere", r"the backbone works on \(3,\), but the space is \(1, 8, 8\)"),
    ],
)
def test_what_is_no_backbone_is_one_clear_line(name, message, folder, monkeypatch):
    with pytest.raises(SystemExit, match=f"^mtdiff: error: .*{message}") as stop:
        run(monkeypatch, "train", "image-label", "--steps", 1, "--backbone", name)
    assert stop.value.code == 2
    assert not Path("runs").exists()


@pytest.mark.parametrize("said", [["evil"], ["evil; touch it"], ["evil", 3], "evil", {"evil": 1}, [["evil"]], None])
def test_a_card_imports_nothing(said, folder):
    (folder / "evil.py").write_text("open('it', 'w')")
    sys.path.insert(0, str(folder))
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20), {"x": 1.0})
    mt.MTDiffusion(process, {"x": mt.Vector(3)}, mt.MLP((3,), width=16, blocks=1), (3,)).save("model")
    card = json.loads(Path("model/card.json").read_text())
    card["config"]["backbone"]["kind"] = "Evil"
    Path("model/card.json").write_text(json.dumps({**card, "imports": said}))
    with pytest.raises(ValueError, match="unknown backbone kind 'Evil'") as stop:
        mt.load("model")
    assert "evil" not in sys.modules
    assert not Path("it").exists()
    assert ("--import evil" in str(stop.value)) == (said == ["evil"])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_takes_another_backbone(experiment):
    def build(seed, name="dit"):
        backbone = chosen_backbone(name)
        if experiment == "imagenet":
            return assemble(16, "masked", ("a", "b"), seed, backbone)
        known = EXPERIMENTS[experiment]
        return known.build(next(name for name in known.data if name != "digits"), known.variant(), seed, backbone=backbone)

    one, same, other = build(0), build(0), build(1)
    assert isinstance(one.backbone, mt.DiT)
    assert isinstance(build(0, "unet").backbone, mt.UNet)
    first, again, changed = (model.backbone.enter.weight for model in (one, same, other))
    assert bool((first == again).all())
    assert not bool((first == changed).any())


def test_a_dit_can_attend_to_a_label():
    assert EXPERIMENTS["image-label"].build("digits", "token", backbone=mt.DiT).modalities["label"].given_as == "tokens"


# ---- what the README says, in processes of their own ----

STARS = """
import torch, mine, mtdiff as mt

process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(50, low=-12.0), {"image": 1.0, "stars": mt.fade_in(1.0)})
model = mt.MTDiffusion(process, {"image": mt.Image((1, 4, 4)), "stars": mine.Stars()}, mine.Net((1, 4, 4)), (1, 4, 4))
stars = torch.arange(200) % 5
data = mt.Dataset("stars", {"image": (stars / 2 - 1)[:, None, None, None].expand(-1, 1, 4, 4).contiguous(), "stars": stars})
model = mt.Trainer(model, data, mt.TrainConfig(steps=300, batch_size=50, lr=3e-3, ema=0.9)).run(progress=False)
model.save("stars")
"""


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """The folder of a reader who typed what stands in the README, and a function that runs a script there."""
    folder, places = tmp_path_factory.mktemp("reader"), tmp_path_factory.mktemp("bin")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (folder / "mine.py").write_text(next(block for block in blocks if "class Net" in block))
    (places / "mtdiff").write_text("from mtdiff.cli import main\nmain()\n")  # as an installed package has it
    (folder / "stars.py").write_text(STARS)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}

    def script(*words):
        command = [sys.executable, *([places / "mtdiff"] if words[0] != "stars.py" else []), *words]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    return folder, script


def test_the_readmes_backbone_trains_and_draws_by_its_commands(readers):
    folder, script = readers
    readme, starts = (
        (ROOT / "README.md").read_text(),
        ("train image-label --data digits --backbone", "sample runs/image-label"),
    )
    train, sample = (re.search(rf"^mtdiff ({start}.*?) +#", readme, re.M)[1].split() for start in starts)
    done = script(*train, "--steps", "2")
    assert done.returncode == 0, done.stderr
    refused = script(*sample[:2])
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "add --import mine" in refused.stderr
    done = script(*sample, "--n", "2", "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert (folder / "samples.png").is_file()


def test_the_readmes_modality_trains_and_is_drawn(readers):
    """The brighter the image, the more stars are drawn along with it."""
    folder, script = readers
    done = script("stars.py")
    assert done.returncode == 0, done.stderr
    done = script("sample", "stars", "--import", "mine", "--n", "100", "--steps", "25", "--out", "stars.npz")
    assert done.returncode == 0, done.stderr
    drawn = np.load(folder / "stars.npz")
    assert set(drawn["stars"]) == set(range(5))
    assert np.corrcoef(drawn["image"].mean((1, 2, 3)), drawn["stars"])[0, 1] > 0.8
