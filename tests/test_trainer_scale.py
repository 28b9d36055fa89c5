"""The trainer's options for large runs: shards, precision, compiling, time limits, several checkpoints, processes."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import generator, image_label_batch, image_label_model, point_model, randomise
from torch.utils._python_dispatch import TorchDispatchMode

import mtdiff as mt
from mtdiff import cli
from mtdiff.datasets import Dataset, toy
from mtdiff.experiments import EXPERIMENTS
from mtdiff.losses import Loss
from mtdiff.speed import matmul_peak, training_flops, training_memory
from mtdiff.stopping import Interrupted, OutOfTime
from mtdiff.training import Objective, TrainConfig, Trainer

CONFIG = TrainConfig(
    steps=12, batch_size=16, lr=3e-3, warmup=3, drop={"label": 0.3}, give={"label": 0.3}, log_every=2, save_every=4, ema=0.9
)
DATA = toy("mixture", n=100)


def trainer(folder=None, config=CONFIG, **options):
    return Trainer(point_model(width=16), DATA, config, folder, **options)


def weights(run):
    return torch.cat([p.detach().flatten() for p in [*run.model.parameters(), *run.ema.parameters()]])


def history(run):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.history]


def still(model, batch, generator):
    """A loss without randomness, a mean over examples: cutting the batch must not matter."""
    n = len(batch["label"])
    present = {"label": torch.zeros(n, dtype=torch.bool)}
    z, _ = model.process.diffuse(model.encode({"x": batch["x"]}), 30, noise=torch.zeros(n, 2), present=present)
    prediction = model(z, 30, present=present)
    square = (prediction.aggregate - batch["x"]).square().mean()
    nats = -prediction.law["label"].log_prob(batch["label"]).mean()
    return Loss(square + nats, {"square": square, "nats": nats})


# ---- shards ----


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_takes_the_same_steps(parts):
    whole, cut = trainer(loss=still), trainer(config=replace(CONFIG, accumulate=parts), loss=still)
    whole.run(progress=False), cut.run(progress=False)
    assert torch.allclose(weights(whole), weights(cut), atol=1e-6)
    for a, b in zip(history(whole), history(cut), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("share", [0.2, 0.02])
def test_the_loss_of_few_labels_does_not_depend_on_the_number_of_shards(share):
    """The head stays at its zero start, where every label costs log K: with one label in five, and in fifty, where most
    batches have none."""
    label = torch.where(torch.rand(len(DATA), generator=generator(0)) < share, DATA.values["label"], -1)
    assert 0 < int((label >= 0).sum()) < 0.4 * len(label)
    data = Dataset("few", {**DATA.values, "label": label})
    frozen = replace(CONFIG, lr=1e-12, warmup=0, log_every=4)
    for parts in (1, 4, 16):
        run = Trainer(point_model(width=16), data, replace(frozen, accumulate=parts))
        run.run(progress=False)
        found = [row["label"] for row in run.history]
        assert all(value == pytest.approx(math.log(3), rel=1e-5) or value == 0 for value in found)
        assert sum(value > 0 for value in found) >= 2


def test_a_step_in_shards_is_that_of_what_is_scored_in_all_of_them():
    """One step with the label's loss alone, against gradients of shards by hand, each with its number of labels."""
    label = DATA.values["label"].clone()
    label[torch.rand(len(DATA), generator=generator(1)) < 0.5] = -1
    data = Dataset("few", {**DATA.values, "label": label})
    config = replace(CONFIG, steps=1, accumulate=8, weights={"denoise": 0.0, "x": 0.0}, drop={}, clip=1e9)
    model, batch, found = point_model(width=16), next(data.batches(16, config.seed)), []
    randomise(model)
    options = {"weights": config.weights, "give": config.give, "missing": ("label",)}
    for k in range(8):
        shard = {name: value[2 * k : 2 * k + 2] for name, value in batch.items()}
        g = generator(config.seed + 1_000_003 * k)
        count = int(mt.losses.scored(model, shard, give=config.give, missing=("label",), generator=g)["label"])
        loss = mt.multitask_loss(model, shard, **options, generator=g).total
        found.append((count, torch.autograd.grad(loss, model.modalities["label"].out[-1].weight)[0]))
    assert len({count for count, _ in found}) > 1
    run = Trainer(model, data, config)
    run.run(progress=False)
    expected = sum(count * g for count, g in found) / sum(count for count, _ in found)
    assert torch.allclose(model.modalities["label"].out[-1].weight.grad, expected, rtol=1e-4, atol=1e-7)


def test_every_shard_has_randomness_of_its_own_and_the_first_is_that_of_an_uncut_batch():
    seen = []

    def loss(model, batch, generator):
        seen.append(float(torch.rand(1, generator=generator)))
        return still(model, batch, generator)

    trainer(config=replace(CONFIG, steps=3, accumulate=2), loss=loss).run(progress=False)
    assert len(set(seen)) == 6
    expected = torch.rand(3, generator=generator(CONFIG.seed)).tolist()
    assert seen[::2] == expected


def test_a_training_is_exact_after_a_stop_between_shards(tmp_path):
    config = replace(CONFIG, accumulate=2)
    whole, torn = trainer(config=config), trainer(tmp_path, config)
    whole.run(progress=False)
    plain, calls = torn.loss, []

    def loss(model, batch, generator):
        calls.append(1)
        if len(calls) == 9:  # the first shard of step 5
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(model, batch, generator)

    torn.loss = loss
    with pytest.raises(Interrupted, match="at step 5 of 12"):
        torn.run(progress=False)
    again = trainer(tmp_path, config)
    assert again.resume()
    again.run(progress=False)
    assert torch.equal(weights(whole), weights(again))
    assert history(whole) == history(again)
    with pytest.raises(ValueError, match=r"another config \(accumulate: 2 there, 4 here\): use --accumulate 2"):
        trainer(tmp_path, replace(CONFIG, accumulate=4)).resume()


def test_a_batch_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="a batch of 16 cannot be divided equally among 1 processes with accumulate = 3"):
        trainer(config=replace(CONFIG, accumulate=3))


# ---- precision, compiling, speed ----


def test_bf16_computes_products_in_bf16_and_keeps_weights_in_fp32():
    run = trainer(config=replace(CONFIG, precision="bf16"))
    kinds = set()
    for layer in run.model.backbone.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda module, inputs, out: kinds.add(out.dtype))
    run.run(progress=False)
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    plain = trainer()
    plain.run(progress=False)
    assert run.history[-1]["total"] == pytest.approx(plain.history[-1]["total"], rel=0.05)
    assert run.history[-1]["total"] != plain.history[-1]["total"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"precision": "fp8"}, "precision must be one of .*, got 'fp8'"), ({"accumulate": 0}, "accumulate must be at least 1")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **options)


def test_the_backbone_is_one_graph_and_compiled_training_is_the_same(monkeypatch):
    """By dynamo and autograd's tracer, without a C++ compiler; fullgraph fails at every break."""
    compile_ = torch.nn.Module.compile
    used = []

    def compile_here(module, **options):
        used.append(type(module).__name__)
        return compile_(module, backend="aot_eager", fullgraph=True, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_here)
    data = Dataset("images", image_label_batch(8, 1))
    config = TrainConfig(steps=3, batch_size=8, lr=2e-4, warmup=1, drop={"label": 0.3}, give={"label": 0.3})

    def run(**options):
        model, space = image_label_model(channels=1), (1, 4, 4)
        unet = mt.UNet(space, base=8, multipliers=(1, 2), attention=(2,))
        parts = {"image": mt.Image(space), "label": mt.Label(3)}
        out = Trainer(randomise(mt.MTDiffusion(model.process, parts, unet, space)), data, config, **options)
        averaged = out.run(progress=False)
        assert averaged.backbone._compiled_call_impl is None  # what is saved and sampled from is as it was
        return out

    plain, compiled = run(), run(compile=True)
    assert used == ["UNet"]
    assert torch.allclose(weights(plain), weights(compiled), atol=1e-5)


class Copies(TorchDispatchMode):
    """Notes tensors of the host that reach the device: on a GPU each of them would be waited for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
        results = [a for a in torch.utils._pytree.tree_leaves(out) if isinstance(a, torch.Tensor)]
        if any(a.device.type == "cpu" for a in tensors) and any(a.device.type == "meta" for a in results):
            self.found.append(str(function))
        return out


STEPS = [
    (name, data, variant)
    for name, data in [("image-label", "digits"), ("image-representation", "shapes16"), ("masked-image", "shapes16"),
                       ("image-transition", "shapes16")]
    for variant in EXPERIMENTS[name].variants
    if variant != "sdedit"
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "variant"), STEPS)
def test_nothing_in_a_step_waits_for_the_device(name, data, variant):
    """On the meta device, which has no values: whatever reads one back fails, whatever is copied there is noticed."""
    experiment = EXPERIMENTS[name]
    config = experiment.config(data, variant, "quick")
    model = experiment.build(data, variant, 0)
    source = experiment.examples(lambda _="train": experiment.data[data]("test"), variant, 0)
    batch = {key: value.to("meta") for key, value in source[:4].items() if key in model.modalities}
    loss = experiment.loss(variant, config)
    options = {"weights": config.weights, "drop": config.drop, "give": config.give, "levels": config.levels}
    loss = loss or (lambda model, batch, generator: mt.multitask_loss(model, batch, **options, generator=generator))
    objective = Objective(model.to("meta").train(), loss, "cpu", torch.float32)
    objective(batch, None)  # the first step moves tables
    with Copies() as copies:
        total, terms = objective(batch, None)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert total.device.type == "meta"
    assert terms
    assert copies.found == []


def test_averaging_does_not_wait_for_the_device():
    run = trainer()
    run.model.to("meta"), run.ema.module.to("meta")
    with Copies() as copies:
        run._follow()
        run._follow()
    assert copies.found == []
    assert int(run.ema.n_averaged) == 2


def test_a_value_that_is_read_back_or_copied_would_be_noticed():
    model = point_model(width=16).to("meta")
    batch = {name: value.to("meta") for name, value in DATA[:4].items()}
    objective = Objective(
        model, lambda model, batch, generator: Loss(batch["x"].sum() * float(batch["x"].sum()), {}), "cpu", torch.float32
    )
    with pytest.raises(RuntimeError):
        objective(batch, None)
    with Copies() as copies:
        torch.zeros(3).to("meta")
    assert copies.found


def test_flops_are_those_of_the_layers():
    """A linear layer costs 2 * in * out for an example, and backward as much again for inputs and for weights each."""
    layer = torch.nn.Linear(30, 50, bias=False)

    def loss(model, batch, generator):
        return Loss(model(batch["x"].requires_grad_()).square().mean(), {})

    assert training_flops(layer, loss, {"x": torch.zeros(7, 30)}) == 3 * 2 * 30 * 50
    conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    assert training_flops(conv, loss, {"x": torch.zeros(2, 3, 5, 5)}) == 3 * 2 * 8 * 3 * 9 * 25
    assert layer.weight.grad is None


def test_flops_of_a_model_do_not_depend_on_the_batch_and_change_nothing():
    model = point_model(width=16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def loss(model, batch, generator):
        return mt.multitask_loss(model, batch, generator=generator)

    few, many = (training_flops(model, loss, DATA[:n]) for n in (2, 20))
    assert few == many > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.device.type == "cpu"


def test_memory_is_that_of_the_state_and_of_what_is_kept():
    """Two linear layers keep their inputs for the weights' gradients, and the square keeps its own."""
    net = torch.nn.Sequential(torch.nn.Linear(30, 50, bias=False), torch.nn.Linear(50, 20, bias=False))

    def loss(model, batch, generator):
        return Loss(model(batch["x"]).square().sum(), {})

    state, each = training_memory(net, loss, {"x": torch.zeros(7, 30)})
    assert state == 5 * 4 * (30 * 50 + 50 * 20)
    assert each == 4 * (30 + 50 + 20)
    assert net[0].weight.grad is None


def test_memory_grows_with_the_batch_alone():
    model = point_model(width=16)

    def loss(model, batch, generator):
        return mt.multitask_loss(model, batch, generator=generator)

    (state, few), (again, many) = (training_memory(model, loss, DATA[:n]) for n in (50, 100))
    assert state == again == 5 * 4 * sum(p.numel() for p in model.parameters())
    assert few == pytest.approx(many, rel=0.05)


def test_the_peak_is_a_speed():
    speed = matmul_peak("cpu", torch.float32, size=256, repeats=4)
    assert 1e8 < speed < 1e14


# ---- time, memory ----


def test_a_training_that_is_out_of_time_is_saved_and_goes_on(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mtdiff.training.time.perf_counter", lambda: now[0])

    def loss(model, batch, generator):
        now[0] += 20.0
        return still(model, batch, generator)

    with pytest.raises(OutOfTime, match="stopped at step 4 of 12; saved"):
        trainer(tmp_path, loss=loss).run(progress=False, max_minutes=1.0)
    again, whole = trainer(tmp_path, loss=loss), trainer(loss=still)
    assert again.resume()
    assert again.step == 4
    with pytest.raises(OutOfTime, match="stopped at step 8"):  # a minute of its own
        again.run(progress=False, max_minutes=1.0)
    again = trainer(tmp_path, loss=loss)
    again.resume()
    again.run(progress=False, max_minutes=10.0)
    whole.run(progress=False)
    assert torch.equal(weights(whole), weights(again))


def test_time_that_is_over_at_the_last_step_is_no_stop(monkeypatch):
    monkeypatch.setattr("mtdiff.training.time.perf_counter", iter(range(0, 10**9, 1000)).__next__)
    run = trainer(config=replace(CONFIG, steps=1))
    run.run(progress=False, max_minutes=0.01)
    assert run.step == 1


def test_too_little_memory_says_what_to_do_and_keeps_the_checkpoint(tmp_path):
    run = trainer(tmp_path)
    plain = run.loss

    def loss(model, batch, generator):
        if run.step == 5:
            raise torch.OutOfMemoryError("tried to allocate 80 GiB")
        return plain(model, batch, generator)

    run.loss = loss
    with pytest.raises(
        torch.OutOfMemoryError, match=rf"at 16 examples at a time: try accumulate = 2.*checkpoint is in .*{tmp_path.name}"
    ):
        run.run(progress=False)
    again = trainer(tmp_path)
    assert again.resume()
    assert again.step == 4


# ---- what is kept ----


def test_the_last_checkpoints_are_kept(tmp_path):
    config = replace(CONFIG, save_every=2)
    trainer(tmp_path, config, keep=3).run(progress=False)
    names = ["training-0000008.pt", "training-0000010.pt", "training-0000012.pt", "training.pt"]
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == names
    assert [torch.load(tmp_path / name, weights_only=True)["step"] for name in names] == [8, 10, 12, 12]
    (tmp_path / "training.pt").write_bytes(b"a torn file")
    (tmp_path / names[2]).unlink()
    with pytest.raises(ValueError, match=r"rename training-0000010.pt, the one before, to training.pt"):
        trainer(tmp_path, config).resume()
    (tmp_path / names[1]).rename(tmp_path / "training.pt")
    again, whole = trainer(tmp_path, config), trainer(config=config)
    assert again.resume()
    again.run(progress=False), whole.run(progress=False)
    assert torch.equal(weights(whole), weights(again))
    assert history(whole) == history(again)


def test_one_checkpoint_is_kept_unless_told(tmp_path):
    trainer(tmp_path).run(progress=False)
    assert [path.name for path in tmp_path.glob("*.pt")] == ["training.pt"]
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        trainer(tmp_path, keep=0)


def test_a_file_system_without_links_keeps_copies(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    trainer(tmp_path, keep=2).run(progress=False)
    kept = [torch.load(path, weights_only=True)["step"] for path in sorted(tmp_path.glob("training-*.pt"))]
    assert kept == [8, 12]


def test_the_best_model_is_kept(tmp_path):
    figures = iter([3.0, 1.0, 2.0])
    seen = []

    def probe(model):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"distance": next(figures)}

    run = trainer(tmp_path, replace(CONFIG, probe_every=4), probe=probe, best="distance")
    run.run(progress=False)
    best = mt.load(tmp_path / "best")
    assert best.card["step"] == 8
    assert best.card["distance"] == 1.0
    assert all(torch.equal(seen[1][name], tensor) for name, tensor in best.state_dict().items())
    assert not torch.equal(weights(run)[:50], torch.cat([p.flatten() for p in best.parameters()])[:50])


def test_pictures_are_drawn_when_the_probe_looks(tmp_path):
    drawn = []
    trainer(tmp_path, replace(CONFIG, probe_every=5), draw=lambda model, path: drawn.append((model.training, path))).run(
        progress=False
    )
    assert drawn == [(False, tmp_path / "samples" / f"{step:07d}.png") for step in (5, 10, 12)]
    assert (tmp_path / "samples").is_dir()


def test_rows_are_there_before_the_checkpoint_is_and_those_of_lost_steps_go(tmp_path):
    def crash(step):
        run = trainer(tmp_path)
        plain = run.loss

        def loss(model, batch, generator):
            if run.step == step:
                raise RuntimeError("the power went off")
            return plain(model, batch, generator)

        run.loss = loss
        resumed = run.resume()
        with pytest.raises(RuntimeError, match="power"):
            run.run(progress=False)
        return resumed, [json.loads(line)["step"] for line in (tmp_path / "history.jsonl").read_text().splitlines()]

    assert crash(7) == (False, [2, 4, 6])
    assert crash(5) == (True, [2, 4])


def test_the_progress_line_says_how_fast_it_is(capsys):
    run = trainer()
    run._flops, run._peak = 1e6, 1e9
    run.run()
    line = capsys.readouterr().err
    assert re.search(r"total \d+\.\d+ .*label \d+\.\d+ [\d,]+/s \(\d+% of peak\)", line)


# ---- several processes ----

WORDS = ["train", "image-label", "--device", "cpu", "--batch-size", "8", "--save-every", "2"]


THREADS = """
import atexit
from pathlib import Path
from mtdiff import cli
left = lambda: (f.read_text().strip() for f in Path("/proc/self/task").glob("*/comm"))
atexit.register(lambda: print("threads:", *left()))
cli.main()
"""
"""The command line, which says at its end what threads are left."""


def torchrun(out, *words, program=("-m", "mtdiff"), **options):
    """The command line in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MTDIFF_THREADS": "1"}
    return subprocess.Popen(
        [*command, *WORDS, *words, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment, **options,
    )  # fmt: skip


def finish(process, seconds=120):
    text = process.communicate(timeout=seconds)[0]
    return process.returncode, text


def rows(folder):
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in lines]


def wait_for(path, process, seconds=90):
    end = time.monotonic() + seconds
    while not path.is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def workers(process):
    """The processes that torchrun has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def alone(monkeypatch, out, *words):
    monkeypatch.setattr("sys.argv", ["mtdiff", *WORDS, *words, "--accumulate", "2", "--out", str(out)])
    cli.main()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs torch with gloo")
def test_two_processes_take_the_steps_of_one(tmp_path, monkeypatch):
    """The same losses to 1e-6 and the same model; a stopped run of two goes on as one, and its end is the same."""
    code, text = finish(torchrun(tmp_path / "two", "--steps", "60"))
    assert code == 0, text
    assert text.count("trained 60 steps") == 1
    alone(monkeypatch, tmp_path / "one", "--steps", "60")
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert [row["step"] for row in two] == [50, 60]
    for a, b in zip(two, one, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    a, b = (mt.load(tmp_path / name) for name in ("two", "one"))
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(x, y, atol=1e-5)
    assert a.card["training"]["processes"] == 2


@pytest.mark.skipif(
    not torch.distributed.is_gloo_available() or not Path("/proc/self/task").is_dir(), reason="needs gloo and /proc"
)
def test_processes_that_are_stopped_save_and_one_goes_on(tmp_path, monkeypatch):
    """One of two gets a scheduler's signal, twice: both stop after the same step, saved, and say so with status 0.

    No thread of their group outlives it: one that lets go of a tensor after the interpreter aborts the process.
    """
    out, script = tmp_path / "run", tmp_path / "script.py"
    script.write_text(THREADS)
    process = torchrun(out, "--steps", "100000", program=[str(script)])
    wait_for(out / "training.pt", process)
    last = workers(process)[-1]
    os.kill(last, signal.SIGTERM), os.kill(last, signal.SIGTERM)
    code, text = finish(process)
    assert code == 0, text
    assert text.count("threads:") == 2
    assert "gloo" not in text
    step = torch.load(out / "training.pt", weights_only=True)["step"]
    assert f"SIGTERM: stopped at step {step} of 100000; saved in" in text
    with monkeypatch.context() as patch:
        patch.setattr("mtdiff.training.time.perf_counter", iter(range(0, 10**9, 1000)).__next__)
        alone(patch, out, "--steps", "100000", "--max-minutes", "1")
    assert torch.load(out / "training.pt", weights_only=True)["step"] == step + 1


@pytest.mark.skipif(
    not torch.distributed.is_gloo_available() or not Path("/proc/self/task").is_dir(), reason="needs gloo and /proc"
)
def test_a_killed_process_ends_all_loudly_and_the_checkpoint_stays(tmp_path):
    out = tmp_path / "run"
    process = torchrun(out, "--steps", "100000")
    wait_for(out / "training.pt", process)
    os.kill(workers(process)[-1], signal.SIGKILL)
    code, text = finish(process)
    assert code != 0
    assert re.search(r"SIGKILL|exitcode: -9|Signal 9", text), text
    state = torch.load(out / "training.pt", weights_only=True)
    assert state["step"] % 2 == 0
