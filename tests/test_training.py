import contextlib
import itertools
import json
import math
import os
import re
import signal
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import generator, image_label_batch, image_label_model, point_model, randomise

import mtdiff as mt
from mtdiff.datasets import MIXTURE, Dataset, toy
from mtdiff.files import write_atomic
from mtdiff.losses import Loss
from mtdiff.stopping import TIME, Agreement
from mtdiff.training import Interrupted, TrainConfig, Trainer

CONFIG = TrainConfig(
    steps=12,
    batch_size=16,
    lr=3e-3,
    warmup=3,
    decay=0.5,
    drop={"label": 0.3},
    give={"label": 0.3},
    log_every=2,
    save_every=4,
    ema=0.9,
)
DATA = toy("mixture", n=100)


def trainer(folder=None, config=CONFIG, data=DATA, hook=None, **model):
    """A trainer whose loss first calls `hook(step about to be taken, 1 for the first)`."""
    out = Trainer(point_model(width=16, **model), data, config, folder)

    def loss(model, batch, generator):
        if hook:
            hook(out.step + 1)
        return mt.multitask_loss(model, batch, drop=config.drop, give=config.give, generator=generator)

    out.loss = loss
    return out


def history(run):
    """The rows without their times."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.history]


def rows(path):
    """The lines of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same(a, b):
    for module_a, module_b in ((a.model, b.model), (a.ema, b.ema)):
        for (name, x), y in zip(module_a.state_dict().items(), module_b.state_dict().values(), strict=True):
            assert torch.equal(x, y), name


# ---- learning ----


def test_the_averaged_weights_follow_their_recursion():
    """ema_1 = theta_1, then decay min(0.9, (1 + k) / (10 + k)) at step k."""
    seen = []
    run = trainer(hook=lambda step: seen.append([p.detach().clone() for p in run.model.parameters()]))
    averaged = run.run(progress=False)
    seen.append([p.detach().clone() for p in run.model.parameters()])  # seen[k]: the weights after step k
    expected = seen[1]
    for k in range(2, 13):
        decay = min(0.9, (1 + k) / (10 + k))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, seen[k], strict=True)]
    for value, wanted, last in zip(averaged.parameters(), expected, run.model.parameters(), strict=True):
        assert torch.allclose(value, wanted, atol=1e-6)
        assert not last.any() or not torch.equal(value, last)
    assert not averaged.training


def test_the_learning_rate_rises_and_falls():
    rates = []
    run = trainer(hook=lambda step: rates.append(run.optimizer.param_groups[0]["lr"]))
    run.run(progress=False)
    fall = [1 - math.sqrt(1 - k / 6) for k in range(6, 0, -1)]  # over the last half
    assert rates == pytest.approx([CONFIG.lr * part for part in (1 / 3, 2 / 3, 1, 1, 1, 1, *fall)])


def test_a_learning_rate_without_decay_is_held():
    run = trainer(config=replace(CONFIG, decay=0.0))
    assert [run._schedule(step) for step in (5, 11)] == [1.0, 1.0]


def ticking(monkeypatch, seconds=6.0):
    """A clock that the hook it returns moves by so much at each step."""
    now = [0.0]
    monkeypatch.setattr("mtdiff.training.time.perf_counter", lambda: now[0])

    def tick(step):
        now[0] += seconds

    return tick


def timed(monkeypatch, folder=None, minutes=1.0, hook=None, **config):
    """A trainer with minutes whose steps take six seconds each, and its learning rates over their peak."""
    rates, tick = [], ticking(monkeypatch)

    def each(step):
        rates.append(run.optimizer.param_groups[0]["lr"] / CONFIG.lr)
        tick(step)
        if hook:
            hook(step)

    run = trainer(folder, replace(CONFIG, minutes=minutes, **config), hook=each)
    return run, rates


def test_a_training_by_the_clock_ends_with_its_learning_rate(monkeypatch, tmp_path):
    """Ten steps of six seconds are a minute, of a thousand steps: held for half of it, then falling; all is written."""
    run, rates = timed(monkeypatch, tmp_path, steps=1000)
    run.run(progress=False)
    assert run.over
    assert (run.step, run.seconds) == (10, 60.0)
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, *(1 - math.sqrt(1 - k / 5) for k in (4, 3, 2, 1))])
    assert run.history[-1]["step"] == rows(tmp_path / "history.jsonl")[-1]["step"] == 10
    again, _ = timed(monkeypatch, tmp_path, steps=1000)
    assert again.resume()
    assert again.over
    again.run(progress=False)
    assert_same(run, again)


def test_steps_that_are_taken_before_the_time_is_over_are_the_end(monkeypatch):
    """Twelve steps take 72 seconds; with 300 to go the rates are those without a clock."""
    run, rates = timed(monkeypatch, minutes=5.0)
    run.run(progress=False)
    assert (run.step, run.seconds) == (12, 72.0)
    assert rates == pytest.approx([1 / 3, 2 / 3, *[1] * 4, *(1 - math.sqrt(1 - k / 6) for k in range(6, 0, -1))])


def test_a_training_by_the_clock_goes_on_from_the_seconds_it_had(monkeypatch, tmp_path):
    torn, first = timed(monkeypatch, tmp_path, steps=1000, hook=signal_at(7, signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped at step 7 of 1000"):
        torn.run(progress=False)
    again, rest = timed(monkeypatch, tmp_path, steps=1000)
    assert again.resume()
    assert again.seconds == 42.0
    again.run(progress=False)
    whole, rates = timed(monkeypatch, steps=1000)
    whole.run(progress=False)
    assert first + rest == pytest.approx(rates)
    assert_same(whole, again)
    with pytest.raises(ValueError, match=r"another config \(minutes: 1.0 there, 2.0 here\): use another folder"):
        timed(monkeypatch, tmp_path, minutes=2.0, steps=1000)[0].resume()


def test_a_clock_is_for_one_process(monkeypatch):
    monkeypatch.setattr("mtdiff.distributed.world", lambda: 2)
    with pytest.raises(ValueError, match=r"minutes = 1\.5 is for one process, not for 2: set steps"):
        trainer(config=replace(CONFIG, minutes=1.5))


@pytest.mark.parametrize(("minutes", "message"), [(0, "positive, got 0"), (math.inf, "a finite number"), ("2", "a finite")])
def test_minutes_are_a_positive_number(minutes, message):
    with pytest.raises(ValueError, match=f"minutes must be {message}"):
        replace(CONFIG, minutes=minutes)


def test_training_approaches_the_exact_model():
    """Mean squared distance to E[m_t | z_t] in units of the noise, and excess nats of the label, before and after.

    What is left of them, over six seeds: 0.165 ± 0.022 and 0.013 ± 0.002. Where nothing is learned, it is 1.
    """
    config = TrainConfig(steps=400, batch_size=128, lr=5e-3, log_every=40, ema=0.98)
    run = Trainer(point_model(), toy("mixture"), config)
    process, label = run.model.process, run.model.modalities["label"]
    exact = mt.exact.LabelledMixture(**{**MIXTURE, "label_codes": label.codes}, process=process)
    data = exact.draw(2000, generator(1))
    t = torch.randint(0, 101, (2000,), generator=generator(2))
    z, _ = process.diffuse(exact.encode(data), t, generator=generator(3))

    @torch.no_grad()
    def excess(model):
        p, q = model.predict(z, t), exact.predict(z, t)
        gap = ((p.aggregate - q.aggregate) / process.at(t, z).level[1]).square().mean()
        nats = [m.log_prob("label", data["label"], z, t).mean() for m in (exact, model)]
        return float(gap), float(nats[0] - nats[1])

    before, after = excess(run.model), excess(run.run(progress=False))
    assert after[0] < 0.35 * before[0]
    assert -0.02 < after[1] < 0.1 * before[1]
    assert run.history[-1]["total"] < run.history[0]["total"]


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("backbone", ["mlp", "unet"])
def test_images_of_any_number_of_channels_train(channels, backbone):
    model = image_label_model(channels=channels)
    if backbone == "unet":
        space = (channels, 4, 4)
        unet = mt.UNet(space, base=8, multipliers=(1, 2), attention=(2,))
        model = randomise(mt.MTDiffusion(model.process, {"image": mt.Image(space), "label": mt.Label(3)}, unet, space))
    before = [p.detach().clone() for p in model.parameters()]
    run = Trainer(model, Dataset("images", image_label_batch(8, channels)), TrainConfig(steps=1, batch_size=8, warmup=1))
    run.run(progress=False)
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(changed) > 0.8 * len(changed)
    assert run.history[0]["image"] > 0


def test_a_training_notes_what_it_tells(tmp_path):
    """In the model's card, which is saved with it: `sample` refuses rule "conditioned" for all else."""
    told = Trainer(point_model(width=16), DATA, CONFIG)
    untold = Trainer(point_model(width=16), DATA, replace(CONFIG, give={}))
    assert told.averaged().taught == {"label"}
    assert untold.averaged().taught == set()
    assert mt.load(untold.averaged().save(tmp_path)).taught == set()
    assert Trainer(point_model(width=16), DATA, CONFIG, loss=mt.multitask_loss).averaged().taught is None, "not known"
    further = Trainer(told.averaged(), DATA, CONFIG, loss=mt.multitask_loss)
    assert further.averaged().taught is None, "what another loss tells after it is not known, either"


def test_the_config_reaches_the_loss():
    model, batch = point_model(width=16), DATA[:16]
    config = replace(CONFIG, weights={"label": 0.25}, give={"label": 1.0})
    run = Trainer(model, DATA, config)
    loss = run.loss(model, batch, torch.Generator().manual_seed(0))
    assert loss.terms["label"].item() == 0
    run = Trainer(model, DATA, replace(CONFIG, weights={"label": 0.25}))
    loss = run.loss(model, batch, torch.Generator().manual_seed(0))
    expected = loss.terms["denoise"] + loss.terms["x"] + 0.25 * loss.terms["label"]
    assert loss.total.item() == pytest.approx(expected.item())


# ---- stopping and going on ----


def crash_at(k):
    def hook(step):
        if step == k:
            raise RuntimeError("the power went off")

    return hook


def signal_at(k, number):
    return lambda step: os.kill(os.getpid(), number) if step == k else None


def test_resuming_is_exact(tmp_path):
    """8 steps, a crash, a new process's trainer, 4 more: the same bits as 12 steps, dropout and history included."""
    whole, torn = trainer(dropout=0.2), trainer(tmp_path, hook=crash_at(10), dropout=0.2)
    torch.manual_seed(1)
    whole.run(progress=False)
    torch.manual_seed(1)
    with pytest.raises(RuntimeError, match="power"):
        torn.run(progress=False)
    again = trainer(tmp_path, dropout=0.2, seed=5)
    assert again.resume()
    assert again.step == 8
    again.run(progress=False)
    assert_same(whole, again)
    assert history(whole) == history(again)
    assert [row["step"] for row in again.history] == [2, 4, 6, 8, 10, 12]


def test_training_leaves_the_callers_generator_alone(tmp_path):
    """With dropout, which draws from torch's global generator; nor does the result depend on it."""
    first, torn, again = (
        trainer(dropout=0.2),
        trainer(tmp_path, hook=crash_at(10), dropout=0.2),
        trainer(tmp_path, dropout=0.2),
    )
    torch.manual_seed(3)
    expected = torch.rand(12)
    torch.manual_seed(3)
    drawn = [torch.rand(3)]
    first.run(progress=False)
    drawn.append(torch.rand(3))
    with pytest.raises(RuntimeError, match="power"):
        torn.run(progress=False)
    drawn.append(torch.rand(3))
    assert again.resume()
    again.run(progress=False)
    drawn.append(torch.rand(3))
    assert torch.equal(torch.cat(drawn), expected)
    assert_same(first, again)


def test_the_history_is_written_with_the_checkpoint(tmp_path):
    run = trainer(tmp_path)
    run.run(progress=False)
    assert rows(tmp_path / "history.jsonl") == run.history
    assert set(run.history[0]) == {"step", "seconds", "total", "denoise", "x", "label", "gradient"}


def test_every_row_goes_to_whoever_logs(tmp_path):
    seen = []
    config = replace(CONFIG, probe_every=6)
    Trainer(point_model(width=16), DATA, config, probe=lambda model: {"size": 1.0}, log=seen.append).run(progress=False)
    assert [row["step"] for row in seen] == [2, 4, 6, 6, 8, 10, 12, 12]
    assert {"total", "x", "label"} < set(seen[0])
    assert seen[3].keys() == {"step", "seconds", "size"}


def test_progress_is_a_bar_or_lines_or_nothing(capsys, monkeypatch):
    run = trainer()
    run.run(progress="lines")
    said, bar = capsys.readouterr()
    assert (len(said.splitlines()), bar) == (2, "")  # the first row and the last
    assert re.fullmatch(r"step 12 of 12, \d+ s: total [\d.]+ denoise .*/s", said.splitlines()[1])
    monkeypatch.setattr("mtdiff.training.PAUSE", 0.0)
    trainer().run(progress="lines")
    assert len(capsys.readouterr().out.splitlines()) == 6
    trainer().run(progress="bar")
    assert "12/12" in capsys.readouterr().err
    trainer().run(progress="none")
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match=r"progress must be one of \('bar', 'lines', 'none'\), got 'line'"):
        trainer().run(progress="line")


def test_a_finished_training_has_nothing_left_to_do(tmp_path):
    run = trainer(tmp_path)
    run.run(progress=False)
    again = trainer(tmp_path, hook=crash_at(13), seed=5)
    assert again.resume()
    again.run(progress=False)
    assert_same(run, again)


@pytest.mark.parametrize("folder", [True, False])
def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path, folder):
    assert not trainer(tmp_path / "new" if folder else None).resume()


SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"]


@pytest.mark.parametrize("number", [getattr(signal, name) for name in SIGNALS], ids=SIGNALS)
@pytest.mark.parametrize("at", [4, 7])
def test_a_stopped_training_is_saved_and_goes_on(tmp_path, number, at):
    handler = signal.getsignal(number)
    text = rf"{number.name}: stopped at step {at} of 12; saved in .*{tmp_path.name}: run the same command again"
    with pytest.raises(Interrupted, match=text) as stopped:
        trainer(tmp_path, hook=signal_at(at, number)).run(progress=False)
    assert stopped.value.number == number
    assert signal.getsignal(number) is handler
    again = trainer(tmp_path, seed=5)
    assert again.resume()
    assert again.step == at
    again.run(progress=False)
    whole = trainer()
    whole.run(progress=False)
    assert_same(whole, again)
    assert history(whole)[-1] == history(again)[-1]


def test_a_stop_leaves_no_trace_in_the_history(tmp_path):
    """Between two rows of the history too: the rows of the interrupted run are those of the uninterrupted one."""
    with pytest.raises(Interrupted):
        trainer(tmp_path, hook=signal_at(7, signal.SIGINT)).run(progress=False)
    again, whole = trainer(tmp_path), trainer()
    again.resume()
    again.run(progress=False)
    whole.run(progress=False)
    assert history(again) == history(whole)


def test_a_stop_without_a_folder_says_that_nothing_was_saved():
    with pytest.raises(Interrupted, match="stopped at step 3 of 12; nothing was saved"):
        trainer(hook=signal_at(3, signal.SIGINT)).run(progress=False)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def twice(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    run = trainer(tmp_path, replace(CONFIG, save_every=2), hook=twice)
    with pytest.raises(KeyboardInterrupt, match=rf"stopped at once; step 2 is safe in {tmp_path}") as stopped:
        run.run(progress=False)
    assert not isinstance(stopped.value, Interrupted)
    assert run.step == 2


def test_a_signal_that_a_scheduler_sends_twice_still_saves(tmp_path):
    """As torchrun does, when all of its process group were sent one."""

    def twice(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)

    with pytest.raises(Interrupted, match="SIGTERM: stopped at step 3 of 12; saved"):
        trainer(tmp_path, hook=twice).run(progress=False)


def test_a_signal_that_is_ignored_stays_ignored():
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = trainer(hook=signal_at(3, signal.SIGHUP))
        run.run(progress=False)
        assert run.step == 12
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_processes_ask_each_other_about_once_a_second_and_the_largest_reason_counts(monkeypatch):
    """A clock by hand: 0.1 s a step, later 2 s; asked at every tenth step, then at each. A signal goes before time."""
    now, asked = [100.0], []

    def gathered(value):
        asked.append(step)
        return [value, (others, 0.0)]

    monkeypatch.setattr("mtdiff.stopping.time.monotonic", lambda: now[0])
    monkeypatch.setattr("mtdiff.distributed.world", lambda: 2)
    monkeypatch.setattr("mtdiff.distributed.gathered", gathered)
    agreed, others = Agreement(5), 0.0
    for step in range(6, 41):
        now[0] += 0.1 if step <= 30 else 2.0
        assert agreed(step, 0.0) == 0
    assert [b - a for a, b in itertools.pairwise(asked)][:3] == pytest.approx([10] * 3, abs=1)
    assert asked[-4:] == [37, 38, 39, 40]
    step, others = 41, float(signal.SIGUSR1)
    now[0] += 2.0
    assert agreed(41, TIME) == signal.SIGUSR1


def test_a_stop_in_the_last_step_is_no_interruption(tmp_path):
    run, whole = trainer(tmp_path, hook=signal_at(12, signal.SIGINT)), trainer()
    run.run(progress=False)
    whole.run(progress=False)
    assert run.step == json.loads((tmp_path / "history.jsonl").read_text().splitlines()[-1])["step"] == 12
    assert_same(run, whole)


# ---- longer ----


@pytest.mark.parametrize("done", [7, 8, 12])
def test_a_training_is_made_longer(tmp_path, done):
    """Stopped at step 7 or 8, or finished at step 12 of 12; the rate falls over the last half, from step index 6 on.

    With 20 steps it goes on by the rates of 20, and says so where it had fallen.
    """
    first = trainer(tmp_path, hook=signal_at(done, signal.SIGTERM) if done < 12 else None)
    with pytest.raises(Interrupted) if done < 12 else contextlib.nullcontext():
        first.run(progress=False)
    longer, rates = replace(CONFIG, steps=20), []
    run = trainer(tmp_path, longer, hook=lambda step: rates.append(run.optimizer.param_groups[0]["lr"]))
    assert run.resume()
    told = [[done, 12]] if done > 7 else []
    assert run.lengthened == told
    run.run(progress=False)
    fall = [1 - math.sqrt(1 - k / 10) for k in range(10, 0, -1)]
    assert rates == pytest.approx([CONFIG.lr * part for part in ([1.0] * 10 + fall)[done:]])
    assert [row["step"] for row in run.history] == [*range(2, 21, 2)]
    again = trainer(tmp_path, longer)
    assert again.resume()
    assert again.lengthened == told
    assert_same(run, again)


def test_a_training_that_was_made_longer_is_exact_after_a_stop(tmp_path):
    """12 steps, then to 20 in one go or with a stop at step 15."""
    longer, runs = replace(CONFIG, steps=20), []
    for name, at in (("whole", 0), ("torn", 15)):
        trainer(tmp_path / name).run(progress=False)
        run = trainer(tmp_path / name, longer, hook=signal_at(at, signal.SIGTERM))
        run.resume()
        with pytest.raises(Interrupted) if at else contextlib.nullcontext():
            run.run(progress=False)
        run = trainer(tmp_path / name, longer)
        run.resume()
        run.run(progress=False)
        runs.append(run)
    assert_same(*runs)
    assert history(runs[0]) == history(runs[1])
    assert runs[1].lengthened == [[12, 12]]


@pytest.mark.parametrize("steps", [4, 11])
def test_a_training_is_not_made_shorter(tmp_path, steps):
    checkpoint(tmp_path)
    with pytest.raises(ValueError, match=f"is at step 12 of 12: too late to end at {steps}, .* use another folder"):
        trainer(tmp_path, replace(CONFIG, steps=steps)).resume()


def test_before_its_rate_falls_a_training_is_made_shorter(tmp_path):
    """Stopped at step 6 of 12 and ended at 10: as if it had been meant to have 10; not at 8, which falls from step 5 on."""
    with pytest.raises(Interrupted):
        trainer(tmp_path, hook=signal_at(6, signal.SIGTERM)).run(progress=False)
    with pytest.raises(ValueError, match="is at step 6 of 12: too late to end at 8, for which its learning rate should"):
        trainer(tmp_path, replace(CONFIG, steps=8)).resume()
    shorter, whole = trainer(tmp_path, replace(CONFIG, steps=10)), trainer(config=replace(CONFIG, steps=10))
    assert shorter.resume()
    assert shorter.lengthened == []
    shorter.run(progress=False), whole.run(progress=False)
    assert_same(shorter, whole)


def test_how_often_is_looked_and_saved_may_change(tmp_path):
    with pytest.raises(Interrupted):
        trainer(tmp_path, hook=signal_at(7, signal.SIGTERM)).run(progress=False)
    again, whole = trainer(tmp_path, replace(CONFIG, log_every=3, save_every=5, probe_every=6)), trainer()
    assert again.resume()
    again.run(progress=False), whole.run(progress=False)
    assert_same(again, whole)
    assert [row["step"] for row in again.history] == [2, 4, 6, 9, 12]
    assert again.history[-1]["total"] == pytest.approx(sum(row["total"] for row in whole.history[-2:]) / 2, rel=0.5)


# ---- a card of before ----


def test_a_model_that_is_trained_further_says_what_it_is_based_on(tmp_path):
    """Its parent's steps, command and figures are not its own."""
    parent = point_model(width=16)
    card = {"variant": "v", "training": {"steps": 900}, "metrics": {"accuracy": 0.9}, "probes": [{"step": 1}],
            "data": {"name": "d"}, "provenance": {"command": "mtdiff train"}}  # fmt: skip
    model = mt.load(parent.save(tmp_path / "parent", card))
    made = Trainer(model, DATA, CONFIG).run(progress=False)
    assert made.card == {"based on": {key: card[key] for key in ("variant", "training", "data", "provenance")}}
    assert mt.load(made.save(tmp_path / "child", {"training": {"steps": 12}})).card["training"] == {"steps": 12}
    again = Trainer(mt.load(tmp_path / "child"), DATA, CONFIG)
    assert again.averaged().card == {"based on": {"training": {"steps": 12}, **made.card}}
    assert Trainer(again.model, DATA, CONFIG).averaged().card == again.averaged().card
    assert Trainer(point_model(width=16), DATA, CONFIG).run(progress=False).card == {"taught": ["label"]}


# ---- what may go wrong ----


def nan_from(k, config, folder):
    run = trainer(folder, config)
    plain = run.loss

    def loss(model, batch, generator):
        out = plain(model, batch, generator)
        return (
            Loss(out.total * torch.nan, {name: term * torch.nan for name, term in out.terms.items()})
            if run.step + 1 >= k
            else out
        )

    run.loss = loss
    return run


@pytest.mark.parametrize(("log_every", "save_every"), [(2, 4), (4, 4), (4, 1), (12, 5)])
def test_a_nan_loss_stops_the_training_and_the_last_good_checkpoint_stays(tmp_path, log_every, save_every):
    """NaN from step 6 on, whatever the rhythm of logging and saving."""
    config = replace(CONFIG, log_every=log_every, save_every=save_every)
    with pytest.raises(FloatingPointError, match="the loss is not finite by step"):
        nan_from(6, config, tmp_path).run(progress=False)
    again = trainer(tmp_path, config)
    assert again.resume()
    assert 1 <= again.step <= 5
    assert all(p.isfinite().all() for p in [*again.model.parameters(), *again.ema.parameters()])


def test_a_nan_loss_says_what_to_do(tmp_path):
    with pytest.raises(
        FloatingPointError, match=rf"by step 6.*'label': nan.*checkpoint in .*{tmp_path.name} is from before.*lower lr"
    ):
        nan_from(6, CONFIG, tmp_path).run(progress=False)


def with_values(**values):
    return Dataset("bad", {**DATA.values, **values})


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            with_values(x=torch.where(torch.arange(200).reshape(100, 2) == 15, torch.nan, DATA.values["x"])),
            ValueError,
            r"data set 'bad': 'x' .*rows \[7\]",
        ),
        (with_values(label=DATA.values["label"] + 5), ValueError, r"data set 'bad': 'label' has values outside 0\.\.2"),
        (with_values(x=DATA.values["x"].long()), ValueError, "data set 'bad': 'x' must be floating point"),
        (with_values(sound=DATA.values["x"]), KeyError, "data set 'bad' names an unknown modality 'sound'"),
        (Dataset("bad", {"x": DATA.values["x"]}), KeyError, "lacks .*label"),
        (Dataset("bad", DATA[:10]), ValueError, r"batch size must be in 1\.\.10"),
    ],
    ids=["nan", "class", "dtype", "unknown", "missing", "too few"],
)
def test_data_that_do_not_fit_are_refused_before_training(data, error, message):
    with pytest.raises(error, match=message):
        trainer(data=data)


class Packed(Dataset):
    """As one whose images lie in a file, it shows a part of itself."""

    def sample(self):
        return self[::3]


def test_a_set_that_shows_a_part_of_itself_may_lack_labels():
    label = torch.where(torch.arange(100) % 2 > 0, DATA.values["label"], mt.MISSING)
    run = trainer(data=Packed("packed", {**DATA.values, "label": label}))
    assert run.missing == ("label",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"log_every": 0}, "log_every must be at least 1"),
        ({"save_every": 0}, "save_every must be at least 1"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_configs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


COUNTED = ("steps", "batch_size", "accumulate", "log_every", "save_every", "warmup", "probe_every", "seed")
MEASURED = ("lr", "clip", "weight_decay", "ema")


@pytest.mark.parametrize("value", [2.5, 100.0, math.nan, math.inf, "7", None, True])
@pytest.mark.parametrize("name", COUNTED)
def test_what_is_counted_is_a_whole_number(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number, got {value!r}"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.1", None])
@pytest.mark.parametrize("name", MEASURED)
def test_what_is_measured_is_a_finite_number(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite number, got {value!r}"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("what", ["weights", "drop", "give"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, None])
def test_options_of_the_loss_are_checked_with_the_config(what, value):
    with pytest.raises(ValueError, match=rf"{what}\['label'\] must be in .*: expected a finite number"):
        TrainConfig(**{what: {"label": value}})


@pytest.mark.parametrize("what", ["weights", "drop", "give"])
def test_names_are_checked_when_the_trainer_is_made(what):
    with pytest.raises(KeyError, match=f"{what} names an unknown modality 'lable'; known are .*'label'"):
        trainer(config=replace(CONFIG, **{what: {"lable": 0.5}}))


def test_a_field_that_was_set_later_is_checked_too():
    config = replace(CONFIG)
    config.steps = 2.5
    with pytest.raises(ValueError, match="steps must be a whole number"):
        trainer(config=config)


@pytest.mark.parametrize("minutes", [math.nan, -1.0])
def test_a_limit_of_time_is_a_number_of_minutes(minutes):
    with pytest.raises(ValueError, match=f"max_minutes must be a number of minutes, got {minutes}"):
        trainer().run(progress=False, max_minutes=minutes)


def test_numbers_of_numpy_are_numbers(tmp_path):
    config = replace(CONFIG, steps=np.int64(4), lr=np.float32(3e-3), weights={"label": np.float64(0.5)})
    trainer(tmp_path, config).run(progress=False)
    assert trainer(tmp_path, config).resume()


def checkpoint(folder):
    trainer(folder).run(progress=False)
    return folder / "training.pt"


@pytest.mark.parametrize("keep", [0, 100, -1000])
def test_a_truncated_checkpoint_is_refused(tmp_path, keep):
    path = checkpoint(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"training\.pt is truncated or damaged"):
        trainer(tmp_path).resume()


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "training.pt")
    with pytest.raises(ValueError, match=r"training\.pt"):
        trainer(tmp_path).resume()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": replace(CONFIG, lr=1.0)}, "another config .lr: 0.003 there, 1.0 here"),
        ({"config": replace(CONFIG, drop={})}, "another config .drop"),
        ({"data": toy("mixture", n=100, seed=1)}, "trained on other data than 'toy/mixture'"),
    ],
    ids=["lr", "drop", "data"],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, options, message):
    checkpoint(tmp_path)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **options).resume()


def other_model(change):
    """The usual model with one thing changed."""
    weights, schedule, width, prediction = {"x": 1.0, "label": mt.fade_in(1.0)}, mt.NoiseSchedule.log_snr(100), 16, "v"
    if change == "curve":
        weights["label"] = mt.constant(1.0)
    elif change == "schedule":
        schedule = mt.NoiseSchedule.cosine(100)
    elif change == "width":
        width = 20
    elif change == "prediction":
        prediction = "x"
    process = mt.ForwardProcess(schedule, weights)
    return mt.MTDiffusion(process, {"x": mt.Vector(2), "label": mt.Label(3)}, mt.MLP((2,), width, 2), (2,), prediction)


@pytest.mark.parametrize("change", ["width", "curve", "schedule", "prediction"])
def test_a_checkpoint_of_another_model_is_refused(tmp_path, change):
    checkpoint(tmp_path)
    with pytest.raises(ValueError, match="another model"):
        Trainer(other_model(change), DATA, CONFIG, tmp_path).resume()


@pytest.mark.parametrize(("labelled", "nats"), [(100, r"0\.2\d"), (1, None)])
def test_a_training_warns_before_its_first_step_of_what_the_chain_leaves(labelled, nats, recwarn):
    """Label codes of 3072 numbers at log-SNR -9: 0.19 nats where there are labels; the image's 0.06 are within the limit."""
    space = (3, 32, 32)
    image = torch.rand(100, *space, generator=generator()) * 2 - 1
    label = torch.where(torch.arange(100) < labelled, torch.arange(100) % 3, mt.MISSING)
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20, low=-9.0), {"image": 1.0, "label": 1.0})
    parts = {"image": mt.Image(space), "label": mt.Label(3)}
    model = mt.MTDiffusion(process, parts, mt.MLP(space, width=8, blocks=1), space)
    Trainer(model, Dataset("large", {"image": image, "label": label}), CONFIG)
    said = [str(w.message) for w in recwarn if "prior KL" in str(w.message)]
    assert len(said) == (nats is not None)
    assert nats is None or re.search(nats, said[0])


def test_a_checkpoint_of_the_same_model_is_not_refused(tmp_path):
    checkpoint(tmp_path)
    assert Trainer(other_model("nothing"), DATA, CONFIG, tmp_path).resume()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "denied")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(PermissionError, match=rf"cannot write to {tmp_path}"):
        trainer(tmp_path).run(progress=False)


def test_a_write_that_fails_halfway_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "state"
    write_atomic(path, b"old")

    def fail(*args):
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_makes_its_folder_and_replaces_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "state"
    for data in (b"one", b"two, and longer"):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_with_another_training_is_not_wiped(tmp_path):
    trainer(tmp_path).run(progress=False)
    before = (tmp_path / "history.jsonl").read_bytes()
    with pytest.raises(ValueError, match="holds a training already"):
        trainer(tmp_path).run(progress=False)
    assert (tmp_path / "history.jsonl").read_bytes() == before


def test_a_training_goes_on_only_on_its_kind_of_device(tmp_path):
    trainer(tmp_path).run(progress=False)
    state = torch.load(tmp_path / "training.pt", weights_only=True)
    torch.save({**state, "device": "cuda"}, tmp_path / "training.pt")
    with pytest.raises(ValueError, match="was trained on cuda"):
        trainer(tmp_path).resume()


@pytest.mark.parametrize("wrong", [{"clip": 0}, {"lr": -1}, {"warmup": -5}, {"weight_decay": -0.1}])
def test_a_config_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainConfig(**wrong)


# ---- probes ----

PROBING = replace(CONFIG, probe_every=5, save_every=5)


def probing(folder=None, hook=None, config=PROBING):
    run = trainer(folder, config, hook=hook)
    seen = []

    def probe(model):
        """Draws of a generator of its own, through the averaged model."""
        seen.append(model)
        with torch.no_grad():
            z = torch.randn(8, 2, generator=generator(7))
            return {"size": float(model.predict(z, 50).aggregate.square().mean())}

    run.probe = probe
    return run, seen


def test_a_probe_looks_at_the_averaged_model_at_its_steps_and_at_the_last():
    run, seen = probing()
    averaged = run.run(progress=False)
    assert [row["step"] for row in run.probes] == [5, 10, 12]
    assert all(row.keys() == {"step", "seconds", "size"} for row in run.probes)
    assert all(model is averaged and not model.training for model in seen)
    assert len({row["size"] for row in run.probes}) == 3
    assert run.model.training


def test_a_probe_leaves_the_training_as_it_is():
    run, _ = probing()
    plain = trainer(config=PROBING)
    run.run(progress=False), plain.run(progress=False)
    assert_same(run, plain)
    assert history(run) == history(plain)
    assert plain.probes == []


def test_without_an_interval_there_is_no_probe():
    run, seen = probing(config=CONFIG)
    run.run(progress=False)
    assert seen == run.probes == []


def test_the_time_of_a_probe_is_not_that_of_the_training(monkeypatch):
    """A clock that only the probe moves, by an hour each time: none of it is in `seconds`."""
    now = [1000.0]
    monkeypatch.setattr("mtdiff.training.time.perf_counter", lambda: now[0])

    def hook(step):
        now[0] += 1.0

    run, _ = probing(hook=hook)
    look = run.probe

    def slow(model):
        now[0] += 3600.0
        return look(model)

    run.probe = slow
    run.run(progress=False)
    assert run.seconds == 12
    assert [row["seconds"] for row in run.probes] == [5, 10, 12]
    assert run.history[-1]["seconds"] == 12


def test_resuming_keeps_the_rows_of_the_probe_and_is_exact(tmp_path):
    whole, _ = probing(tmp_path / "whole")
    whole.run(progress=False)

    def hook(step):
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    first, _ = probing(tmp_path / "parts", hook)
    with pytest.raises(Interrupted):
        first.run(progress=False)
    second, seen = probing(tmp_path / "parts")
    assert second.resume()
    assert [row["step"] for row in second.probes] == [5]
    second.run(progress=False)
    assert len(seen) == 2
    assert_same(whole, second)
    sizes = [[(row["step"], row["size"]) for row in run.probes] for run in (whole, second)]
    assert sizes[0] == sizes[1]
    written = rows(tmp_path / "parts" / "probes.jsonl")
    assert [(row["step"], row["size"]) for row in written] == sizes[0]


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("figures", "kept"), [([NAN, 3, 2], 12), ([3, NAN, 2], 12), ([3, NAN, 4], 4), ([NAN, INF, NAN], 8), ([NAN] * 3, None)]
)
def test_not_a_number_is_worse_than_any_figure(tmp_path, figures, kept):
    """Looked at after 4, 8 and 12 steps; the step of the best."""
    left = iter(figures)
    options = {"probe": lambda _: {"d": next(left)}, "best": "d"}
    Trainer(point_model(width=16), DATA, replace(CONFIG, probe_every=4), tmp_path, **options).run(progress=False)
    assert (mt.load(tmp_path / "best").card["step"] if (tmp_path / "best").is_dir() else None) == kept
    assert [row["d"] for row in rows(tmp_path / "probes.jsonl")] == [f if math.isfinite(f) else None for f in figures]


@pytest.mark.parametrize("found", [{"step": 1.0, "d": 1.0}, {"seconds": 1.0, "d": 1.0}, {"e": 1.0}])
def test_figures_of_a_probe_have_names_of_their_own_and_the_best_is_among_them(found):
    run = Trainer(point_model(width=16), DATA, replace(CONFIG, probe_every=4), probe=lambda _: found, best="d")
    with pytest.raises(ValueError, match=f"{list(found)}".replace("[", r"\[")):
        run.run(progress=False)


def test_the_best_of_no_probe_is_refused():
    with pytest.raises(ValueError, match="best names a figure of the probe, 'd', but there is no probe"):
        Trainer(point_model(width=16), DATA, CONFIG, best="d")


def test_a_training_without_a_probe_writes_no_rows(tmp_path):
    trainer(tmp_path).run(progress=False)
    assert not (tmp_path / "probes.jsonl").exists()


def test_a_negative_interval_is_refused():
    with pytest.raises(ValueError, match="probe_every must not be negative, got -1"):
        replace(CONFIG, probe_every=-1)
