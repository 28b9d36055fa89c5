import math

import pytest
import torch
import torch.nn.functional as F
from helpers import generator, image_label_batch, image_label_model

import mtdiff as mt
from mtdiff.losses import coins


class Spy:
    """Records what the loss asked the model, what it answered, and what its denoising readout put out."""

    def __init__(self, model, monkeypatch):
        ask = model.forward

        def forward(z_t, t, given=None, present=None, known=None):
            self.z, self.t, self.given, self.present, self.known = z_t, t, given or {}, present or {}, known or {}
            self.prediction = ask(z_t, t, given, present, known)
            return self.prediction

        def put_out(module, inputs, output):
            self.output = output

        monkeypatch.setattr(model, "forward", forward)
        if model.denoise is not None:
            model.denoise.register_forward_hook(put_out)


@pytest.mark.parametrize("prediction", ["v", "eps", "x"])
@pytest.mark.parametrize("schedule", [mt.NoiseSchedule.log_snr(50), mt.NoiseSchedule.cosine(50)], ids=["log_snr", "cosine"])
def test_every_term_by_hand(prediction, schedule, monkeypatch):
    """From the states that the model was shown: the noise, the target and each modality's negative log-likelihood."""
    model, batch = image_label_model(prediction, schedule=schedule), image_label_batch(30)
    batch["image"] = batch["image"].double()
    spy = Spy(model, monkeypatch)
    weights = {"label": 0.3, "image": 2.0}
    loss = mt.multitask_loss(model, batch, weights=weights, drop={"label": 0.4}, give={"label": 0.5}, generator=generator(1))
    keep, told = spy.present["label"], spy.known["label"]
    assert 0 < int(keep.sum()) < 30
    assert 0 < int(told.sum()) < 30

    abar = schedule.abar[spy.t].reshape(-1, 1, 1, 1)
    W = 0.5 * (spy.t / 50).reshape(-1, 1, 1, 1) * keep.reshape(-1, 1, 1, 1)
    m = batch["image"] + W * model.modalities["label"].codes[batch["label"]].double()
    eps = (spy.z - abar.sqrt() * m) / (1 - abar).sqrt()
    assert abs(float(eps.var()) - 1) < 0.3
    target = {"v": abar.sqrt() * eps - (1 - abar).sqrt() * m, "eps": eps, "x": m}[prediction]
    p = spy.prediction
    image = ((batch["image"] - p.law["image"].mean) ** 2 / (1 - abar)).mean()
    expected = {
        "denoise": F.mse_loss(spy.output, target),
        "image": image,
        "label": F.cross_entropy(p.law["label"].logits[~told], batch["label"][~told]),
    }
    assert loss.terms.keys() == expected.keys()
    for name, value in expected.items():
        assert loss.terms[name].item() == pytest.approx(value.item(), rel=1e-6), name
    total = loss.terms["denoise"] + 2.0 * loss.terms["image"] + 0.3 * loss.terms["label"]
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-6)


def test_steps_are_drawn_at_the_levels_asked_for(monkeypatch):
    """The same steps as the process draws from the same source, and every term their plain mean."""
    model, batch, levels = image_label_model(), image_label_batch(40), (1.0, 1.5)
    spy = Spy(model, monkeypatch)
    loss = mt.multitask_loss(model, batch, levels=levels, generator=generator(3))
    assert torch.equal(spy.t, model.process.draw_steps(40, levels, generator(3)))
    assert not torch.equal(spy.t, model.process.draw_steps(40, None, generator(3)))
    nats = F.cross_entropy(spy.prediction.law["label"].logits, batch["label"])
    assert loss.terms["label"].item() == pytest.approx(nats.item(), rel=1e-6)


def test_weights_are_one_where_not_named():
    model, batch = image_label_model(), image_label_batch(8)
    loss = mt.multitask_loss(model, batch, generator=generator())
    assert loss.total.item() == pytest.approx(sum(loss.terms.values()).item())
    only = mt.multitask_loss(model, batch, weights={"image": 0, "label": 0}, generator=generator())
    assert only.total.item() == only.terms["denoise"].item()


def test_a_dropped_modality_does_not_enter_z(monkeypatch):
    model = image_label_model(curve=mt.constant(1.0))
    spy = Spy(model, monkeypatch)
    seen = {}
    for drop in (0.0, 1.0):
        for label in (0, 1):
            batch = {**image_label_batch(6), "label": torch.full((6,), label)}
            mt.multitask_loss(model, batch, drop={"label": drop}, generator=generator())
            seen[drop, label] = spy.z
    assert torch.equal(seen[1.0, 0], seen[1.0, 1])
    assert not torch.allclose(seen[0.0, 0], seen[0.0, 1])
    assert not spy.present["label"].any()


def test_a_dropped_modality_is_still_predicted():
    loss = mt.multitask_loss(image_label_model(), image_label_batch(6), drop={"label": 1.0}, generator=generator())
    assert loss.terms["label"].item() > 0.1


def test_sets_are_drawn_per_example_at_the_asked_rate(monkeypatch):
    """4,000 examples: the rates within 4 standard errors; seed 0."""
    model = image_label_model()
    spy = Spy(model, monkeypatch)
    mt.multitask_loss(model, image_label_batch(4000), drop={"label": 0.3}, give={"label": 0.2}, generator=generator(0))
    assert abs(float(spy.present["label"].double().mean()) - 0.7) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    assert abs(float(spy.known["label"].double().mean()) - 0.2) < 4 * (0.2 * 0.8 / 4000) ** 0.5


def test_what_is_missing_or_dropped_is_absent(monkeypatch):
    """Six examples, four with a label: none is in the sum when all are dropped, four are when none is."""
    model = image_label_model()
    spy = Spy(model, monkeypatch)
    label = torch.tensor([0, -1, 1, 0, 2, -1])
    batch = {**image_label_batch(6), "label": label}
    for drop, kept in ((1.0, label < -1), (0.0, label >= 0)):
        mt.multitask_loss(model, batch, drop={"label": drop}, missing=["label"], generator=generator())
        assert torch.equal(spy.present["label"], kept)


@pytest.mark.parametrize(("there", "give"), [(1, {}), (12, {}), (12, {"label": 0.5})])
def test_what_is_missing_is_neither_told_nor_scored(there, give, monkeypatch):
    """The label's term is the mean over those that have one and are not told it, however few."""
    model = image_label_model()
    spy = Spy(model, monkeypatch)
    label = torch.where(torch.arange(24) < there, torch.arange(24) % 3, -1).roll(5)
    batch = {**image_label_batch(24), "label": label}
    loss = mt.multitask_loss(model, batch, give=give, missing=["label"], generator=generator(2))
    told = spy.known.get("label", torch.zeros(24, dtype=torch.bool))
    assert not bool(told[label < 0].any())
    scored = (label >= 0) & ~told
    assert 0 < int(scored.sum()) <= there
    expected = F.cross_entropy(spy.prediction.law["label"].logits[scored], label[scored])
    assert loss.terms["label"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("prediction", ["v", "eps", "x"])
def test_what_is_told_and_taken_out_of_the_state_is_taken_out_of_the_target(prediction, monkeypatch):
    """The output then speaks of the image alone."""
    model, batch = image_label_model(prediction, remove_known=True, curve=mt.constant(1.0)), image_label_batch(16)
    spy = Spy(model, monkeypatch)
    loss = mt.multitask_loss(model, batch, give={"label": 1.0}, generator=generator())
    signal, noise = model.process.at(spy.t, spy.z).level
    image, code = batch["image"], model.encode(batch)["label"]
    eps = (spy.z - signal * (image + code)) / noise
    target = {"v": signal * eps - noise * image, "eps": eps, "x": image}[prediction]
    assert loss.terms["denoise"].item() == pytest.approx(F.mse_loss(spy.output, target).item(), rel=1e-4)


def test_an_aggregate_of_one_number_is_scored_like_any_other(monkeypatch):
    """Heads alone, one coordinate, and told who is present: each example's square over the one that is open."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20), {"x": 1.0, "label": 0.0})
    model = mt.MTDiffusion(process, {"x": mt.Vector(1), "label": mt.Label(2)}, mt.MLP((1,), width=8), (1,), "heads")
    spy = Spy(model, monkeypatch)
    batch = {"x": torch.randn(8, 1, generator=generator(1)), "label": torch.arange(8) % 2}
    loss = mt.multitask_loss(model, batch, drop={"label": 0.5}, generator=generator())
    error = (batch["x"] - spy.prediction.aggregate) / process.at(spy.t, spy.z).level[1]
    assert loss.terms["denoise"].item() == pytest.approx(error.square().mean().item(), rel=1e-5)


def test_the_noise_of_float64_is_no_float32(monkeypatch):
    model = image_label_model()
    spy, batch = Spy(model, monkeypatch), image_label_batch(8)
    image = batch["image"].double()
    mt.multitask_loss(model, {**batch, "image": image}, drop={"label": 1.0}, generator=generator())
    signal, noise = model.process.at(spy.t, spy.z).level
    eps = (spy.z - signal * image) / noise
    assert float((eps - eps.float().double()).abs().max()) > 1e-9


def test_a_coin_falls_below_its_chance_and_not_on_it(monkeypatch):
    """A chance of 0.5 is that of the numbers in [0, 0.5)."""
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.tensor([0.0, 0.5 - 2**-24, 0.5, 1 - 2**-24]))
    assert coins({"a": 0.5}, 4, torch.device("cpu"))["a"].tolist() == [True, True, False, False]


def test_a_chance_of_nothing_takes_no_number():
    alone, beside = (coins(chances, 50, torch.device("cpu"), generator()) for chances in ({"b": 0.5}, {"a": 0.0, "b": 0.5}))
    assert list(alone) == list(beside) == ["b"]
    assert torch.equal(alone["b"], beside["b"])


def test_a_loss_cannot_be_changed():
    loss = mt.multitask_loss(image_label_model(), image_label_batch(2), generator=generator())
    with pytest.raises(AttributeError, match="cannot assign"):
        loss.total = 0.0


def test_the_last_step_is_the_last_whatever_is_drawn(monkeypatch):
    """A number just below 1 in the last part of the batch rounds to 1 in float32."""
    model = image_label_model()
    spy, rand = Spy(model, monkeypatch), torch.rand
    monkeypatch.setattr(torch, "rand", lambda *a, **k: torch.full_like(rand(*a, **k), 1 - 2**-24))
    mt.multitask_loss(model, image_label_batch(64), generator=generator())
    assert int(spy.t.max()) == model.process.steps


def test_the_head_of_a_told_modality_is_not_scored():
    model = image_label_model()
    loss = mt.multitask_loss(model, image_label_batch(6), give={"label": 1.0}, generator=generator())
    loss.total.backward()
    assert loss.terms["label"].item() == 0
    assert all(not bool(p.grad.any()) for p in model.modalities["label"].out.parameters())
    assert bool(model.modalities["label"].embed.weight.grad.any())


def test_the_loss_reaches_every_parameter():
    model = image_label_model()
    options = {"drop": {"label": 0.5, "image": 0.5}, "give": {"label": 0.5}}
    mt.multitask_loss(model, image_label_batch(32), **options, generator=generator()).total.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]


def test_its_generator_determines_the_loss():
    model, batch = image_label_model(), image_label_batch(6)
    options = {"drop": {"label": 0.5}, "give": {"label": 0.5}}
    torch.manual_seed(0)
    a = mt.multitask_loss(model, batch, **options, generator=generator(4))
    torch.manual_seed(1)
    b = mt.multitask_loss(model, batch, **options, generator=generator(4))
    c = mt.multitask_loss(model, batch, **options, generator=generator(5))
    assert a.terms == b.terms
    assert a.total.item() != c.total.item()


@pytest.mark.parametrize(("schedule", "first"), [(mt.NoiseSchedule.log_snr(50), 0), (mt.NoiseSchedule.cosine(50), 1)])
def test_steps_are_stratified_from_the_first_to_the_last(schedule, first, monkeypatch):
    model = image_label_model(schedule=schedule)
    spy = Spy(model, monkeypatch)
    mt.multitask_loss(model, image_label_batch(51 - first), generator=generator())
    assert spy.t.tolist() == list(range(first, 51))
    mt.multitask_loss(model, image_label_batch(3), generator=generator())
    edges = [first + k * (51 - first) / 3 for k in range(4)]
    assert all(low - 1 <= t <= high for t, low, high in zip(spy.t.tolist(), edges, edges[1:], strict=False))


GOOD = image_label_batch(4)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        ({"sound": torch.zeros(4)}, {}, KeyError, "batch names an unknown modality 'sound'"),
        ({"image": GOOD["image"] * torch.nan}, {}, ValueError, r"batch: 'image' has values that are not finite"),
        ({"image": GOOD["image"].to(torch.uint8)}, {}, ValueError, "batch: 'image' must be floating point"),
        ({"label": GOOD["label"].float()}, {}, ValueError, "batch: 'label' must be an integer tensor"),
        ({"label": GOOD["label"] + 7}, {}, ValueError, r"batch: 'label' has values outside 0\.\.2"),
        ({"label": GOOD["label"][:3]}, {}, ValueError, "batch has different numbers of examples"),
        ({name: value[:0] for name, value in GOOD.items()}, {}, ValueError, "batch must have at least one example"),
        ({}, {"weights": {"label": math.inf}}, ValueError, r"weights\['label'\] .* got inf: expected a finite number"),
        ({}, {"weights": {"sound": 1.0}}, KeyError, "weights names an unknown modality 'sound'"),
        ({}, {"drop": {"sound": 1.0}}, KeyError, "drop names an unknown modality 'sound'"),
        ({}, {"give": {"sound": 1.0}}, KeyError, "give names an unknown modality 'sound'"),
        ({}, {"weights": {"label": -1.0}}, ValueError, r"weights\['label'\] must be in \[0, inf\], got -1"),
        ({}, {"weights": {"label": torch.nan}}, ValueError, r"weights\['label'\]"),
        ({}, {"weights": {"denoise": 0, "image": 0, "label": 0.0}}, ValueError, "weights must not all be 0"),
        ({}, {"drop": {"label": 1.5}}, ValueError, r"drop\['label'\] must be in \[0, 1.0\], got 1.5"),
        ({}, {"give": {"label": -0.1}}, ValueError, r"give\['label'\]"),
        ({}, {"give": {"label": 1.05}}, ValueError, r"give\['label'\] must be in \[0, 1.0\], got 1.05"),
        ({}, {"give": {"image": 0.5}}, ValueError, "'image' cannot condition the backbone"),
    ],
)
def test_bad_arguments_are_named(change, options, error, message):
    with pytest.raises(error, match=message):
        mt.multitask_loss(image_label_model(), {**GOOD, **change}, **options)


def test_a_missing_modality_is_named():
    with pytest.raises(KeyError, match=r"batch lacks \['label'\]; it has \['image'\]"):
        mt.multitask_loss(image_label_model(), {"image": GOOD["image"]})
    with pytest.raises(KeyError, match=r"batch lacks \['label'\]"):
        mt.multitask_loss(image_label_model(), {"image": GOOD["image"]}, missing=["label"])


@pytest.mark.parametrize("name", ["total", "gradient", "step", "seconds"])
def test_a_term_cannot_be_called_as_what_else_a_row_of_the_history_says(name):
    with pytest.raises(ValueError, match=f"cannot be called .'{name}'."):
        mt.losses.Loss(torch.zeros(()), {name: torch.zeros(())})


# ---- what is scored ----


def scarce(n=24):
    """A batch with a label in some parts only: none in the first quarter, one in the second."""
    batch = image_label_batch(n)
    batch["label"][: n // 2 - 1] = -1
    return batch


PARTS = {"drop": {"label": 0.3}, "give": {"label": 0.5}, "missing": ("label",)}


@pytest.mark.parametrize("options", [PARTS, {"give": {"label": 0.5}}, {"missing": ("label",)}, {"drop": {"label": 0.5}}])
def test_how_many_are_scored_is_known_beforehand_and_nothing_is_drawn(options, monkeypatch):
    model, batch, g = image_label_model(), scarce() if "missing" in options else image_label_batch(24), generator(3)
    found = mt.losses.scored(model, batch, **options, generator=g)
    assert torch.equal(g.get_state(), generator(3).get_state())
    spy = Spy(model, monkeypatch)
    mt.multitask_loss(model, batch, **options, generator=g)
    if options.keys() == {"drop"}:
        assert found == {}
        return
    there = batch["label"] >= 0
    told = spy.known.get("label", torch.zeros(24, dtype=torch.bool))
    assert {name: int(number) for name, number in found.items()} == {"label": int((there & ~told).sum())}
    assert 0 < int(found["label"]) < 24


def test_parts_of_a_batch_add_up_to_its_mean():
    """Four parts, each with noise of its own: the label's term and its gradient are sums over parts by one count."""
    model, batch = image_label_model(), scarce()
    shards = [{name: value[6 * k : 6 * k + 6] for name, value in batch.items()} for k in range(4)]
    found = [int(mt.losses.scored(model, b, **PARTS, generator=generator(k))["label"]) for k, b in enumerate(shards)]
    assert 0 in found
    assert len(set(found)) > 2
    count, head = {"label": torch.tensor(sum(found) / 4)}, model.modalities["label"].out[-1].weight
    parts, sums = [], []
    for counts, out in ((count, parts), (None, sums)):
        for k, b in enumerate(shards):
            loss = mt.multitask_loss(model, b, **PARTS, counts=counts, generator=generator(k))
            out.append((loss.terms["label"], torch.autograd.grad(loss.terms["label"], head)[0], loss.terms["image"]))
    for part in (0, 1):
        mean = sum(one[part] for one in parts) / 4
        assert torch.allclose(mean, sum(n * one[part] for n, one in zip(found, sums, strict=True)) / sum(found), rtol=1e-5)
    assert all(torch.equal(a[2], b[2]) for a, b in zip(parts, sums, strict=True))


# ---- shared coins ----


def three(**options):
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20), {"image": 1.0, "masked": 0.5, "mask": 0.5})
    space = (1, 4, 4)
    modalities = {"image": mt.Image(space), "masked": mt.Image(space, tell=True), "mask": mt.Mask((4, 4), tell=True)}
    torch.manual_seed(0)
    return mt.MTDiffusion(process, modalities, mt.MLP(space, width=8, blocks=1), space, **options)


def three_batch(n):
    image = image_label_batch(n)["image"]
    mask = (image > 0).float()
    return {"image": image, "masked": image * mask, "mask": mask}


@pytest.mark.parametrize("order", [("masked", "mask"), ("mask", "masked")])
def test_a_shared_coin_falls_the_same_for_both_and_for_each_use_anew(order, monkeypatch):
    """1,000 examples; the rates within 4 standard errors; seed 0. The one with the number may be named first or last."""
    model = three()
    spy = Spy(model, monkeypatch)
    drop, give = {"masked": 0.3, "mask": "masked"}, {"mask": 0.6, "masked": "mask"}
    drop, give = ({name: odds[name] for name in order} for odds in (drop, give))
    mt.multitask_loss(model, three_batch(1000), drop=drop, give=give, generator=generator(0))
    assert torch.equal(spy.present["masked"], spy.present["mask"])
    assert torch.equal(spy.known["masked"], spy.known["mask"])
    assert set(spy.given) == {"masked", "mask"}
    assert "image" not in spy.present
    assert abs(float(spy.present["mask"].double().mean()) - 0.7) < 4 * (0.3 * 0.7 / 1000) ** 0.5
    assert abs(float(spy.known["mask"].double().mean()) - 0.6) < 4 * (0.4 * 0.6 / 1000) ** 0.5
    both = (spy.known["mask"] & spy.present["mask"]).double().mean()  # dropped and told are coins of their own
    assert abs(float(both) - 0.42) < 4 * (0.42 * 0.58 / 1000) ** 0.5


def test_coins_of_the_same_number_are_not_shared(monkeypatch):
    model = three()
    spy = Spy(model, monkeypatch)
    mt.multitask_loss(model, three_batch(100), drop={"masked": 0.5, "mask": 0.5}, generator=generator(0))
    assert not torch.equal(spy.present["masked"], spy.present["mask"])


@pytest.mark.parametrize("p", [0, 1])
def test_a_shared_coin_may_be_certain(p, monkeypatch):
    model = three()
    spy = Spy(model, monkeypatch)
    odds = {"masked": p, "mask": "masked"}
    loss = mt.multitask_loss(model, three_batch(8), drop=odds, give=odds, generator=generator(0))
    if p:
        assert not any(spy.present[name].any() for name in odds)
        assert all(bool(spy.known[name].all()) for name in odds)
        assert loss.terms["mask"].item() == loss.terms["masked"].item() == 0
    else:
        assert spy.present == spy.known == {}


@pytest.mark.parametrize("what", ["drop", "give"])
@pytest.mark.parametrize(
    "odds", [{"mask": "masked"}, {"mask": "masked", "masked": "mask"}, {"mask": "sound"}, {"mask": "mask"}]
)
def test_a_coin_that_nobody_throws_is_named(what, odds):
    with pytest.raises(ValueError, match=rf"{what}\['mask'\] is '.*', which has no probability in {what}"):
        mt.multitask_loss(three(), three_batch(4), **{what: odds})


def test_weights_are_numbers():
    with pytest.raises((TypeError, ValueError)):
        mt.multitask_loss(three(), three_batch(4), weights={"mask": "masked", "masked": 1.0})


def test_the_loss_of_the_aggregate_has_a_weight_too():
    model, batch = image_label_model(), image_label_batch(8)
    free = mt.multitask_loss(model, batch, generator=generator())
    none = mt.multitask_loss(model, batch, weights={"denoise": 0.0, "label": 3.0}, generator=generator())
    assert {k: v.item() for k, v in none.terms.items()} == {k: v.item() for k, v in free.terms.items()}
    torch.testing.assert_close(none.total, free.terms["image"] + 3 * free.terms["label"])


def test_what_weighs_nothing_costs_no_gradient():
    """A label alone does not go back through what draws the image, and its own gradient is what it was."""
    batch, gradients = image_label_batch(8), []
    for weights in ({"denoise": 0.0, "image": 0.0}, {"denoise": 1e-30, "image": 1e-30}):
        model = image_label_model()
        mt.multitask_loss(model, batch, weights=weights, generator=generator()).total.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    alone, every = gradients
    assert 0 < len(alone) < len(every)
    for name, gradient in alone.items():
        torch.testing.assert_close(gradient, every[name])


# ---- the end of the chain ----


def loud(space=(3, 32, 32), prior=None, low=-8.0):
    """An image and a label, both of weight 1 at the end; with `prior`, a chain that ends at it alone."""
    curves = {"image": 1.0 if prior is None else mt.fade_out(1.0), "label": mt.fade_in(1.0)}
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20, 8.0, low), curves, prior)
    parts = {"image": mt.Image(space), "label": mt.Label(3)}
    batch = {"image": torch.rand(4, *space, generator=generator()) * 2 - 1, "label": torch.tensor([0, 1, 2, 0])}
    return mt.MTDiffusion(process, parts, mt.MLP(space, width=8, blocks=1), space), batch


def test_a_model_says_once_that_its_chain_does_not_end_in_noise():
    model, batch = loud()
    expected = r"0\.6\d nats of prior KL \(image 0\.1\d, label 0\.52\).*log-SNR end at -10\.0"
    with pytest.warns(UserWarning, match=expected) as said:
        losses = [mt.multitask_loss(model, batch, generator=generator()) for _ in range(2)]
    assert losses[0].total == losses[1].total
    assert len(said) == 1
    assert said[0].filename == __file__


@pytest.mark.parametrize("options", [{"space": (1, 8, 8)}, {"low": -10.0}, {"prior": "label", "low": -2.0}], ids=str)
def test_a_chain_that_ends_in_noise_or_at_its_source_is_not_warned_of(options, recwarn):
    model, batch = loud(**options)
    mt.multitask_loss(model, batch, generator=generator())
    assert not [w for w in recwarn if "nats" in str(w.message)]


def test_a_code_that_is_missing_leaves_nothing(recwarn):
    model, batch = loud(low=-9.0)
    assert float(model.process.prior_kl(model.encode(batch)).mean()) > 0.2
    few = {"image": batch["image"], "label": torch.full((4,), mt.MISSING)}
    mt.multitask_loss(model, few, missing=["label"], generator=generator())
    assert not [w for w in recwarn if "nats" in str(w.message)]
