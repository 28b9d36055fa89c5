"""What is exported says the same elsewhere: the graph under onnxruntime as the model under torch, and a chain by both."""

import hashlib
import itertools
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import generator, image_label_model, randomise

import mtdiff as mt
from mtdiff import cli

CLOSE = 1e-4
SHIPPED = ["image-label/digits", "masked-image/shapes16"]


def captioned():
    """Points with a caption that the network attends to, and one of its words that has codes."""
    process = mt.ForwardProcess(mt.NoiseSchedule.cosine(20), {"image": 1.0, "caption": 0.0, "word": mt.fade_in(1.0)})
    words = ["", "a", "b", "c"]
    modalities = {
        "image": mt.Image((1, 4, 4)),
        "caption": mt.Caption(words, 3),
        "word": mt.Caption(words, 1, codes="learned", tell="vector"),
    }
    net = mt.UNet((1, 4, 4), base=8, multipliers=(1,), cross=(4,))
    return randomise(mt.MTDiffusion(process, modalities, net, (1, 4, 4), rule="conditioned"))


def transition():
    """A chain that ends at a vector, which is always given, beside one that a learned generator encodes."""
    curves = {"target": mt.fade_out(1.0), "source": mt.fade_in(1.0), "more": mt.fade_out(1.0)}
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20), curves, prior="source")
    modalities = {"target": mt.Vector(3), "source": mt.Vector(3, tell=True), "more": mt.Encoded((2,), tell=True)}
    return randomise(mt.MTDiffusion(process, modalities, mt.MLP((3,), width=16, blocks=1), (3,), "heads"))


SMALL = {
    "captioned": (captioned, ["caption", "word"]),
    "transition": (transition, ["source", "more"]),
    "without its own": (lambda: image_label_model("eps").double(), []),
}


@pytest.fixture(scope="module", params=[*SHIPPED, *SMALL])
def exported(request, tmp_path_factory):
    """The model, the graph and the tables."""
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    make, given = SMALL.get(request.param, (lambda: mt.load(request.param), None))
    model = make()
    assert mt.export_onnx(model, path, given) == path
    tables = json.loads(path.with_suffix(".json").read_text())
    return model.float().eval(), onnxruntime.InferenceSession(path), tables, path


def states(model, tables, n, seed=0):
    """Noisy states at any steps, of which each example knows and has something else."""
    noise, names = generator(seed), [name[6:] for name in tables["inputs"] if name.startswith("given.")]
    z, t = torch.randn(n, *model.space, generator=noise), torch.randint(0, tables["T"] + 1, (n,), generator=noise)
    with torch.no_grad():
        values = model.read(z, 1, generator=noise)
    flags = torch.rand(2, n, len(model.modalities), generator=noise) < 0.5
    known = {name: flags[0, :, k] for k, name in enumerate(model.modalities) if name in names}
    present = {name: flags[1, :, k] for k, name in enumerate(model.modalities)}
    return z, t, {name: values[name] for name in names}, known, present


def run(session, z, t, given, known, present):
    """What the graph says, {name: array}."""
    feeds = {"z": z, "t": t}
    for kind, values in (("given", given), ("known", known), ("present", present)):
        feeds |= {f"{kind}.{name}": value for name, value in values.items()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {k: np.asarray(v) for k, v in feeds.items()}), strict=True))


def said(prediction):
    """What a model says, by the names of the graph."""
    out = {"aggregate": prediction.aggregate, "unknown": prediction.unknown}
    out |= {f"estimate.{name}": code for name, code in prediction.estimate.items()}
    for name, law in prediction.law.items():
        out |= {f"law.{name}.{part}": value for part, value in vars(law).items() if torch.is_tensor(value)}
    return {name: value for name, value in out.items() if value is not None}


def agree(found, expected):
    for name, value in expected.items():
        error = np.abs(found[name].astype(float) - value.double().numpy()).max()
        assert error < CLOSE, (name, error)


@pytest.mark.parametrize("n", [1, 64])
def test_the_graph_says_what_the_model_says(exported, n):
    model, session, tables, _ = exported
    z, t, given, known, present = states(model, tables, n)
    with torch.no_grad():
        expected = said(model(z, t, given, present, known))
        codes = {f"code.{name}": c for name, c in model.encode(given).items() if name in model.process.entering}
    found = run(session, z, t, given, known, present)
    assert found.keys() == expected.keys() | codes.keys()
    agree(found, {**expected, **codes})
    if n > 1:
        other = run(session, z, t.flip(0), given, known, present)
        assert np.abs(other["aggregate"] - found["aggregate"]).max() > 100 * CLOSE, "the noise level matters"


def test_what_nobody_knows_is_as_not_given(exported):
    model, session, tables, _ = exported
    z, t, given, known, present = states(model, tables, 8)
    nobody, all_here = ({name: torch.full((8,), flag) for name in each} for each, flag in ((known, False), (present, True)))
    with torch.no_grad():
        expected = said(model.predict(z, t))
    agree(run(session, z, t, given, nobody, all_here), expected)


def test_given_values_and_the_present_set_matter(exported):
    model, session, tables, _ = exported
    z, _, given, known, present = states(model, tables, 8)
    t = torch.full((8,), tables["T"] // 2)
    found = [
        run(session, z, t, given, dict.fromkeys(known, torch.full((8,), a)), dict.fromkeys(present, torch.full((8,), b)))
        for a, b in ((False, True), (True, True), (False, False))
    ]
    assert np.abs(found[2]["aggregate"] - found[0]["aggregate"]).max() > 100 * CLOSE
    assert not given or np.abs(found[1]["aggregate"] - found[0]["aggregate"]).max() > 100 * CLOSE


def test_the_tables_are_the_models(exported):
    model, session, tables, path = exported
    process = model.process
    assert tables["abar"] == process.schedule.abar.tolist()
    assert tables["weights"] == {name: process.cumulative(name).tolist() for name in process.names}
    assert (tables["T"], tables["first"], tables["prior"]) == (process.steps, process.first, process.prior)
    assert (tables["prediction"], tables["rule"], tables["sampler"]) == (model.prediction, model.rule, model.sampler)
    assert tables["order"] == model.order
    assert tables["modalities"] == json.loads(json.dumps(model.architecture()["modalities"]))
    assert tables["card"] == model.card
    kinds = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(bool)": "bool"}
    for which, parts in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        assert tables[which] == {part.name: {"shape": part.shape, "type": kinds[part.type]} for part in parts}
    data = path.read_bytes()
    assert tables["sha256"] == hashlib.sha256(data).hexdigest()
    graph = onnx.load_from_string(data)
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", 18)]
    assert b"mtdiff" not in data, "no trace of the files that it was made of"


def drawn(session, tables, z, given, steps=12):
    """DDIM from z_T by graph and tables alone; a fresh reader's: numpy, no torch, no mtdiff (theory 4)."""
    n, abar = len(z), np.array(tables["abar"])
    signal, noise = np.sqrt(abar), np.sqrt(1 - abar)
    times = np.linspace(tables["T"], tables["first"], steps + 1).round().astype(int)
    shapes = {name[6:]: part for name, part in tables["inputs"].items() if name.startswith("given.")}
    values = {name: given.get(name, np.zeros((n, *part["shape"][1:]), part["type"])) for name, part in shapes.items()}
    known = {name: np.full(n, name in given) for name in shapes}
    present = {name: np.full(n, True) for name in tables["weights"]}

    def look(t):
        return run(session, z.astype(np.float32), np.full(n, t), values, known, present)

    for t, s in itertools.pairwise(times):
        out = look(t)
        m = out["aggregate"].astype(float)
        eps = (z - signal[t] * m) / noise[t]
        for name in tables["moving"]:
            w, code = tables["weights"][name], out[f"code.{name}"] if name in given else out[f"estimate.{name}"]
            m = m + (w[s] - w[t]) * code
        z = signal[s] * m + noise[s] * eps
    return look(times[-1])


@pytest.mark.parametrize("given", [False, True])
def test_a_chain_by_graph_and_tables_is_the_librarys(exported, given):
    model, session, tables, _ = exported
    values = states(model, tables, 6)[2] if given or tables["prior"] else {}
    z = torch.randn(6, *model.space, generator=generator(2), dtype=torch.float64)
    start = {"start": (tables["T"], z), "sampler": "ddim", "steps": 12}
    *_, (_, _, expected) = mt.sample_path(model, 6, given=values, rule="conditioned", **start)
    found = drawn(session, tables, z.numpy(), {name: value.numpy() for name, value in values.items()})
    assert np.abs(found["aggregate"]).max() > 0.1
    for name, law in expected.law.items():
        part = "logits" if f"law.{name}.logits" in found else "mean"
        assert np.abs(found[f"law.{name}.{part}"] - getattr(law, part).numpy()).max() < 1e-3


# ---- what is refused, and the command ----


def test_what_cannot_be_exported_is_said(tmp_path, monkeypatch):
    model = image_label_model()
    with pytest.raises(ValueError, match=r"the path must end in \.onnx, got .*m\.pt"):
        mt.export_onnx(model, tmp_path / "m.pt")
    with pytest.raises(KeyError, match="given names an unknown modality 'lable'; known are"):
        mt.export_onnx(model, tmp_path / "m.onnx", ["lable"])
    with pytest.raises(ValueError, match="'image' cannot condition the backbone: it was made without tell=True"):
        mt.export_onnx(model, tmp_path / "m.onnx", ["image"])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"export_onnx needs onnxscript: pip install 'mtdiff\[onnx\]'"):
        mt.export_onnx(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_goes_in_and_out(tmp_path, monkeypatch, capsys, recwarn):
    image_label_model().train().save(tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["mtdiff", "export", str(tmp_path / "model"), str(tmp_path / "to" / "m.onnx")])
    cli.main()
    done = capsys.readouterr()
    first, inputs, outputs = done.out.splitlines()
    assert first.startswith(f"{tmp_path}/to/m.onnx: opset 18, ")
    assert first.endswith(f"tables for sampling in {tmp_path}/to/m.json")
    assert inputs.startswith("inputs: z (batch, 1, 4, 4), t (batch), ")
    assert "law.label.logits (batch, 3)" in outputs
    assert done.err == ""
    assert not recwarn.list
