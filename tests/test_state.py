"""What a batch is told: taken out of the state, revealed in a picture, always given, and the aggregate made of the heads."""

import pytest
import torch
from helpers import generator, randomise

import mtdiff as mt
from mtdiff.laws import Pixels
from mtdiff.losses import multitask_loss
from mtdiff.state import State

SHAPE = (2, 4, 4)


def masked_model(**options):
    process = mt.ForwardProcess(
        mt.NoiseSchedule.log_snr(100, 6.0, -6.0), {"image": 1.0, "masked": mt.fade_in(0.8, start=0.1), "mask": 0.5}
    )
    modalities = {
        "image": mt.Image(SHAPE, start="rest", revealed_by=("masked", "mask")),
        "masked": mt.Image(SHAPE, start="rest", tell=True),
        "mask": mt.Mask((4, 4), tell=True),
    }
    torch.manual_seed(0)
    return randomise(mt.MTDiffusion(process, modalities, mt.UNet(SHAPE, base=8), SHAPE, **options)).eval()


def batch(n=6):
    g = generator(1)
    image = torch.rand(n, *SHAPE, generator=g) * 2 - 1
    mask = (torch.rand(n, 1, 4, 4, generator=g) < 0.5).float()
    return {"image": image, "masked": image * mask, "mask": mask}


@pytest.mark.parametrize("prediction", ["v", "heads"])
def test_a_told_picture_reveals_its_pixels_to_those_who_are_told(prediction):
    model, values = masked_model(prediction=prediction), batch()
    z = torch.randn(6, *SHAPE, generator=generator(2))
    given = {"masked": values["masked"], "mask": values["mask"]}
    told = {name: torch.tensor([True, True, False, True, False, False]) for name in given}
    with torch.no_grad():
        found = model(z, 30, given, None, told).law["image"].mean
        untold = model(z, 30, given, None, {name: ~torch.ones(6, dtype=torch.bool) for name in given}).law["image"].mean
    known = values["mask"].bool().expand_as(found) & told["mask"][:, None, None, None]
    assert torch.equal(found[known], values["image"][known])
    assert not torch.isclose(found[~known], values["image"][~known]).any()
    torch.testing.assert_close(found[2], untold[2])


@pytest.mark.parametrize("options", [{}, {"prediction": "heads", "remove_known": True}], ids=["paper's form", "heads"])
def test_a_pixel_is_revealed_to_those_who_are_told_both_the_picture_and_the_mask(options):
    """One of the two alone says nothing of where the picture holds: heads, and what the network sees, are as without."""
    model, values, seen = masked_model(**options), batch(), []
    model.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    told = {"masked": torch.tensor([True, True, False, False, True, True]), "mask": torch.tensor([True, False, True] * 2)}
    z = torch.randn(6, *SHAPE, generator=generator(2))
    with torch.no_grad():
        found = model(z, 30, {name: values[name] for name in told}, None, told).law["image"].mean
    known = values["mask"].bool().expand_as(found)
    right = torch.isclose(found, values["image"], rtol=0, atol=1e-6)
    shown = torch.isclose(seen[0], values["image"], rtol=0, atol=1e-6)
    for k, both in enumerate((told["masked"] & told["mask"]).tolist()):
        assert bool(right[k][known[k]].all()) == both, k
        if options:  # no noise on a revealed pixel
            assert bool(shown[k][known[k]].all()) == both, k


def test_a_revealed_pixel_costs_no_loss():
    """With everything told, the image's loss is that of the hidden pixels over all of them."""
    model, values = masked_model(remove_known=True), batch(64)
    seen = {}
    forward = model.forward
    model.forward = lambda *a: seen.setdefault("p", forward(*a)) if not seen.update(t=a[1]) else None
    loss = multitask_loss(model, values, give={"masked": 1.0, "mask": "masked"}, generator=generator(3))
    mean = seen["p"].law["image"].mean
    variance = model.process.at(seen["t"], mean).variance("image")
    error = ((values["image"] - mean) ** 2 / variance) * (1 - values["mask"])
    torch.testing.assert_close(loss.terms["image"], error.mean(), rtol=1e-4, atol=1e-4)
    assert loss.terms["masked"] == 0
    assert loss.terms["mask"] == 0


def test_samples_keep_revealed_pixels():
    model, values = masked_model(), batch()
    given = {"masked": values["masked"], "mask": values["mask"]}
    drawn = mt.sample(model, 6, given=given, rule="conditioned", steps=3, generator=generator())["image"]
    assert torch.equal(drawn * values["mask"], values["masked"])
    other = mt.sample(model, 6, given=given, rule="substitute", steps=3, generator=generator())["image"]
    assert not torch.equal(other * values["mask"], values["masked"])


@pytest.mark.parametrize("options", [{}, {"prediction": "heads", "remove_known": True}], ids=["paper's form", "heads"])
def test_what_lies_under_the_mask_does_not_matter(options):
    """The photograph left in place, or anything else: wherever a picture and its mask come together."""
    model, clean, z = masked_model(**options), batch(), torch.randn(6, *SHAPE, generator=generator(2))
    junk = torch.where(clean["mask"].bool(), clean["image"], clean["image"].flip(0))
    dirty = {**clean, "masked": junk}
    assert not torch.equal(dirty["masked"], clean["masked"])
    assert torch.equal(model.tidy(dirty)["masked"], clean["masked"])

    def both(function):
        return function(clean), function(dirty)

    def told(values):
        return {name: values[name] for name in ("masked", "mask")}

    for a, b in [
        both(lambda v: model.predict(z, 30, given=told(v)).aggregate),
        both(lambda v: model.encode(v)["masked"]),
        both(lambda v: model.log_prob("masked", v["masked"], z, 30, given={"mask": v["mask"]})),
        both(lambda v: mt.multitask_loss(model, v, give={"masked": 0.5}, generator=generator()).total),
        both(lambda v: torch.tensor(mt.elbo(model, v, generator=generator()).total)),
        *(
            both(lambda v, rule=rule: mt.sample(model, 6, given=told(v), rule=rule, steps=2, generator=generator())["image"])
            for rule in ("conditioned", "substitute", "readout", {"masked": "bayes", "mask": "conditioned"})
        ),
    ]:
        assert torch.equal(a, b)
    drawn = mt.sample(model, 6, given=told(dirty), rule="conditioned", steps=2, generator=generator())
    assert torch.equal(drawn["masked"], junk), "comes back as it was given"
    alone = [model.predict(z, 30, given={"masked": values["masked"]}).aggregate for values in (clean, dirty)]
    assert not torch.equal(*alone), "without its mask a picture is what it is"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("masked",), r"revealed_by must be \(picture, mask\)"),
        (("mask", "masked"), "is revealed by"),
        (("masked", "nobody"), "is revealed by"),
    ],
)
def test_what_cannot_reveal_is_named(names, message):
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), {"image": 1.0, "masked": 1.0, "mask": 1.0})

    def build():
        modalities = {"image": mt.Image(SHAPE, revealed_by=names), "masked": mt.Image(SHAPE), "mask": mt.Mask((4, 4))}
        return mt.MTDiffusion(process, modalities, mt.UNet(SHAPE, base=8), SHAPE)

    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("present", [True, False])
def test_the_network_sees_what_is_left_of_the_state_at_unit_rms(present):
    """z_t less what is told, over sqrt(abar sum W^2 + 1 - abar) of the rest; of a revealed picture the best linear guess.

    By hand, example by example: known pixels as they are, hidden ones sqrt(abar) times the rest (W = 1).
    """
    model, values, t = masked_model(remove_known=True, prediction="heads"), batch(), 40
    seen = {}
    model.backbone.register_forward_pre_hook(lambda _, a: seen.update(z=a[0]))
    given = {"masked": values["masked"], "mask": values["mask"]}
    told = {"masked": torch.tensor([True, False, True, False, True, False]), "mask": torch.tensor([True] * 3 + [False] * 3)}
    masks = None if present else {"masked": torch.tensor([True, True, True, False, False, False])}
    z = torch.randn(6, *SHAPE, generator=generator(2))
    with torch.no_grad():
        model(z, t, given, masks, told)
    p = model.process
    abar = p.schedule.abar[t]
    codes = model.encode(given)
    for k in range(6):
        known, power = torch.zeros(SHAPE), 1 - abar + abar * p.cumulative("image")[t] ** 2
        for name in given:
            w = p.cumulative(name)[t] * (1.0 if masks is None or name not in masks or masks[name][k] else 0.0)
            if told[name][k]:
                known = known + w.float() * codes[name][k]
            else:
                power = power + abar * w**2
        expected = (z[k] - abar.sqrt().float() * known) / power.sqrt().float()
        if told["mask"][k] and told["masked"][k]:
            linear = abar.sqrt().float() * (z[k] - abar.sqrt().float() * known)
            expected = torch.where(values["mask"][k].bool(), values["image"][k], linear)
        torch.testing.assert_close(seen["z"][k], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("removed", [False, True])
def test_the_aggregate_is_what_the_output_says_and_what_was_taken_out(removed):
    """v of the state, or of what the told codes leave of it, and then those codes."""
    model, values = masked_model(remove_known=removed), batch()
    given = {"masked": values["masked"], "mask": values["mask"]}
    z = torch.randn(6, *SHAPE, generator=generator(2))
    outputs = []
    model.denoise.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    found = model.predict(z, 30, given=given)
    signal, noise = model.process.at(30, z).level
    known = shift(model, given, 30, z)
    taken = known if removed else torch.zeros_like(z)
    torch.testing.assert_close(found.aggregate, signal * (z - signal * taken) - noise * outputs[0] + taken)
    assert found.unknown is None, "an output of its own speaks of the whole aggregate"
    state = State.of(model.process, model.modalities, z, 30, given, None, {})
    torch.testing.assert_close(state.shift, known)
    torch.testing.assert_close(state.rest, z - signal * known)
    state = State.of(model.process, model.modalities, z, 30, {}, None, {})
    assert not state.shift.any()
    assert torch.equal(state.rest, z)


def test_the_sum_of_what_is_known_is_that_of_the_examples_that_know_it_and_have_it_in_the_state():
    model, values, z = masked_model(), batch(4), torch.randn(4, *SHAPE, generator=generator(2))
    known, present = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    given = {"mask": values["mask"]}
    state = State.of(model.process, model.modalities, z, 30, given, {"mask": present}, {"mask": known})
    expected = shift(model, given, 30, z)
    torch.testing.assert_close(state.shift[0], expected[0])
    assert not state.shift[1:].any()
    assert state.open("mask").flatten().bool().tolist() == [False, False, True, False]
    assert state.open("image").flatten().tolist() == [1.0] * 4


def shift(model, given, t, z):
    """sum_j W_t^j E_j(x_j) over what is given."""
    codes = model.encode(given)
    return sum(model.process.cumulative(name)[t].float() * codes[name] for name in given)


def test_a_head_that_starts_from_the_rest_starts_without_what_is_told():
    """Untrained: the best linear guess from the state less the told code, though the network sees the whole state."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(100), {"a": 1.0, "b": 0.7})
    modalities = {"a": mt.Image(SHAPE, start="rest"), "b": mt.Image(SHAPE, start="rest", tell=True)}
    model = mt.MTDiffusion(process, modalities, mt.UNet(SHAPE, base=8), SHAPE).eval()
    z, b = torch.randn(3, *SHAPE, generator=generator(2)), batch(3)["image"]
    rest = z - process.at(20, z).level[0] * 0.7 * b
    gain = process.at(20, z).gain("a")
    torch.testing.assert_close(model.predict(z, 20, given={"b": b}).law["a"].mean, gain * rest)


def test_a_revealed_pixel_is_left_in_the_state_where_another_modality_writes():
    """What z_t has there is then not noise alone."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(100), dict.fromkeys(("image", "masked", "mask", "label"), 1.0))
    shown = {}
    for channels in (slice(0, 2), slice(2, 3)):
        modalities = {
            "image": mt.Image(SHAPE, channels=slice(0, 2), revealed_by=("masked", "mask")),
            "masked": mt.Image(SHAPE, channels=slice(0, 2), tell=True),
            "mask": mt.Mask((4, 4), channels=slice(0, 2), tell=True),
            "label": mt.Label(2, channels=channels),
        }
        space = (3, 4, 4)
        options = {"prediction": "heads", "remove_known": True}
        model = mt.MTDiffusion(process, modalities, mt.UNet(space, base=8), space, **options).eval()
        model.backbone.register_forward_pre_hook(lambda _, a, key=channels.start: shown.update({key: a[0]}))
        values = batch()
        z = torch.randn(6, *space, generator=generator(2))
        model.predict(z, 40, given={"masked": values["masked"], "mask": values["mask"]})
    known = values["mask"].bool().expand_as(values["image"])
    torch.testing.assert_close(shown[2][:, :2][known], values["image"][known])
    assert not torch.isclose(shown[0][:, :2][known], values["image"][known]).any()


def test_the_aggregate_is_scored_where_it_is_open():
    """The v-loss of each example by hand: over all coordinates if nothing is told, else over the hidden pixels."""
    model, values = masked_model(remove_known=True, prediction="heads"), batch(64)
    seen = {}
    forward = model.forward
    model.forward = lambda *a: seen.update(a=a, p=forward(*a)) or seen["p"]
    loss = multitask_loss(model, values, drop={"masked": 1.0, "mask": 1.0}, give={"masked": 0.5, "mask": "masked"},
                          generator=generator(3))  # fmt: skip
    (_, t, _, _, told), abar = seen["a"], model.process.schedule.abar
    by_hand = []
    for k in range(64):
        hidden = (1 - values["mask"][k]).bool() if told["mask"][k] else torch.ones(1, 4, 4, dtype=torch.bool)
        error = (values["image"][k] - seen["p"].law["image"].mean[k]) / (1 - abar[t[k]]).sqrt()
        by_hand.append(error[hidden.expand_as(error)].square().mean())
    assert 0 < int(told["mask"].sum()) < 64
    torch.testing.assert_close(loss.terms["denoise"], torch.stack(by_hand).mean().float(), rtol=1e-4, atol=1e-4)


def test_an_aggregate_that_is_known_costs_nothing():
    """A mask of ones and its picture, told: no coordinate is open, and a mean over none is 0, to rounding."""
    model, values = masked_model(remove_known=True, prediction="heads"), batch()
    values = {**values, "mask": torch.ones(6, 1, 4, 4), "masked": values["image"]}
    loss = multitask_loss(model, values, give={"masked": 1.0, "mask": 1.0}, generator=generator())
    assert loss.terms["denoise"].item() < 1e-9
    assert loss.terms["image"].item() == 0


def test_own_channels_are_open_where_nothing_is_told_of_them():
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(100), dict.fromkeys(("image", "masked", "mask"), 1.0))
    modalities = {
        "image": mt.Image(SHAPE, channels=slice(0, 2), revealed_by=("masked", "mask"), start="rest"),
        "masked": mt.Image(SHAPE, channels=slice(2, 4), tell=True),
        "mask": mt.Mask((4, 4), channels=slice(4, 5), tell=True),
    }
    space = (5, 4, 4)
    model = mt.MTDiffusion(process, modalities, mt.UNet(space, base=8), space, prediction="heads", remove_known=True).eval()
    values, told = batch(4), {name: torch.tensor([True, True, False, False]) for name in ("masked", "mask")}
    present = {"masked": torch.tensor([True, False, True, False]), "mask": torch.tensor([True, False, True, False])}
    z = torch.randn(4, *space, generator=generator(2))
    found = model(z, 40, {"masked": values["masked"], "mask": values["mask"]}, present, told).unknown
    hidden = (1 - values["mask"]).bool()
    assert torch.equal(found[:2, :2], hidden[:2].expand(-1, 2, -1, -1))
    assert not found[:2, 2:].any()
    assert found[2].all()
    assert found[3, :2].all()
    assert not found[3, 2:].any()


def test_what_is_told_and_removed_is_as_good_as_absent():
    """Told, it makes no difference whether the codes were in the sum: same prediction of the rest. Untold, it does."""
    model, values, t = masked_model(remove_known=True, prediction="heads"), batch(), 40
    only = {"image"}
    given = {"masked": values["masked"], "mask": values["mask"]}
    eps = torch.randn(6, *SHAPE, generator=generator(2))
    inside, _ = model.process.diffuse(model.encode(values), t, eps)
    alone, _ = model.process.diffuse(model.encode(values), t, eps, only)
    with torch.no_grad():
        told = model.predict(inside, t, given=given), model.predict(alone, t, given=given, present=only)
        torch.testing.assert_close(told[0].law["image"].mean, told[1].law["image"].mean, rtol=1e-4, atol=1e-5)
        known = shift(model, given, t, inside)
        torch.testing.assert_close(told[0].aggregate - known, told[1].aggregate, rtol=1e-4, atol=1e-5)
        untold = model.predict(alone, t).law["image"].mean, model.predict(alone, t, present=only).law["image"].mean
    assert not torch.isclose(*untold).all()


def test_what_is_absent_leaves_no_trace_in_gain_and_variance():
    """A head that starts from the state, where its modality is absent: the learned part alone, scored with variance 1."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(100), {"a": 1.0, "b": 0.7})
    modalities = {"a": mt.Image(SHAPE), "b": mt.Image(SHAPE)}
    model = mt.MTDiffusion(process, modalities, mt.UNet(SHAPE, base=8), SHAPE)  # untrained: the learned part is 0
    present = {"b": torch.tensor([True, False])}
    z, t = torch.randn(2, *SHAPE, generator=generator(2)), 20
    gain, variance = process.at(t, z).gain("b"), process.at(t, z).variance("b")
    found = model.predict(z, t, present=present).law["b"].mean
    torch.testing.assert_close(found[0], (gain * z)[0])
    assert not found[1].any()
    value = torch.rand(2, *SHAPE, generator=generator(3)) * 2 - 1
    log_p = model.log_prob("b", value, z, t, present=present)
    by_hand = [
        torch.distributions.Normal(mean, float(v) ** 0.5).log_prob(x).sum()
        for x, mean, v in zip(value, found, (variance[0], 1.0), strict=True)
    ]
    torch.testing.assert_close(log_p, torch.stack(by_hand))


@pytest.mark.parametrize("levels", [None, 9])
def test_a_revealed_pixel_has_no_likelihood_to_pay(levels):
    """With everything but two pixels told, the likelihood is that of the two."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(100), dict.fromkeys(("image", "masked", "mask"), 1.0))
    modalities = {
        "image": mt.Image(SHAPE, start="rest", revealed_by=("masked", "mask"), levels=levels),
        "masked": mt.Image(SHAPE, tell=True),
        "mask": mt.Mask((4, 4), tell=True),
    }
    options = {"prediction": "heads", "remove_known": True}
    model = mt.MTDiffusion(process, modalities, mt.UNet(SHAPE, base=8), SHAPE, **options).eval()
    mask = torch.ones(3, 1, 4, 4)
    mask[:, :, 1, 2] = 0
    image = (torch.rand(3, *SHAPE, generator=generator(4)) * 8).round() / 4 - 1
    given, z = {"masked": image * mask, "mask": mask}, torch.randn(3, *SHAPE, generator=generator(2))
    prediction = model.predict(z, 30, given=given)
    variance = process.at(30, z).variance("image")
    pixel = (slice(None), slice(None), slice(1, 2), slice(2, 3))
    expected = Pixels(prediction.law["image"].mean[pixel], variance, levels=levels).log_prob(image[pixel])
    torch.testing.assert_close(prediction.law["image"].log_prob(image), expected)
    assert torch.equal(prediction.law["image"].known, mask.bool())
    torch.testing.assert_close(model.log_prob("image", image, z, 30, given=given), expected)


def test_guidance_leaves_what_is_known_as_it_is():
    """At every scale, known pixels of the aggregate are those of the told codes and the image; hidden ones are not."""
    model, values = masked_model(remove_known=True, prediction="heads"), batch()
    given, known = {"masked": values["masked"], "mask": values["mask"]}, values["mask"].bool().expand(-1, 2, -1, -1)
    guided = {}
    for scale in (1.0, 3.0):
        path = mt.sample_path(model, 6, given=given, rule="conditioned", guidance=scale, steps=2, generator=generator())
        t, _, prediction = next(path)
        truth = model.process.aggregate({name: code.double() for name, code in model.encode(values).items()}, t)
        torch.testing.assert_close(prediction.aggregate[known], truth[known], rtol=1e-4, atol=1e-5)
        guided[scale] = prediction.aggregate[~known]
    assert not torch.isclose(guided[1.0], guided[3.0]).any()


@pytest.mark.parametrize("t", [10, 60])
def test_the_heads_gradient_in_the_state_is_right(t):
    """Rule 2 needs it: central differences in float64, through the codes that other heads estimate."""
    model = masked_model(remove_known=True, prediction="heads").double()
    values = {name: value.double() for name, value in batch(2).items()}
    z = torch.randn(2, *SHAPE, dtype=torch.float64, generator=generator(2)).requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob("image", values["image"], z, t).sum(), z)
    for k in ((0, 0, 1, 1), (1, 1, 2, 0)):
        step = torch.zeros_like(z)
        step[k] = 1e-5
        up, down = (float(model.log_prob("image", values["image"], z.detach() + s * step, t).sum()) for s in (1, -1))
        assert float(gradient[k]) == pytest.approx((up - down) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("removed", [False, True])
def test_the_network_is_told_who_is_absent_by_a_vector_each(removed):
    """Their sum, over those that are not in the state; with known codes taken out, not of those that are known."""
    model, values, seen = masked_model(remove_known=removed), batch(4), []
    model.backbone.register_forward_pre_hook(lambda _, args, options: seen.append(options["condition"]), with_kwargs=True)
    present = {"mask": torch.tensor([True, False, True, False]), "masked": torch.tensor([True, False, False, True])}
    known = {"mask": torch.tensor([False, True, True, False])}
    with torch.no_grad():
        model(torch.zeros(4, *SHAPE), 30, {"mask": values["mask"]}, present, known)
    mask, masked = model.absent["mask"], model.absent["masked"]
    assert bool((mask != 0).all())
    expected = [torch.zeros_like(mask), masked if removed else mask + masked, masked, mask]
    torch.testing.assert_close(seen[0], torch.stack(expected))


def test_a_state_cannot_be_changed():
    model, z = masked_model(), torch.zeros(1, *SHAPE)
    with pytest.raises(AttributeError, match="cannot assign"):
        State.of(model.process, model.modalities, z, 30, {}, None, {}).z = z


def test_a_map_of_labels_is_no_mask():
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), dict.fromkeys(("image", "masked", "mask"), 1.0))
    modalities = {
        "image": mt.Image(SHAPE, revealed_by=("masked", "mask")),
        "masked": mt.Image(SHAPE),
        "mask": mt.LabelMap(2, (4, 4)),
    }
    with pytest.raises(ValueError, match="is revealed by"):
        mt.MTDiffusion(process, modalities, mt.UNet(SHAPE, base=8), SHAPE)


def test_an_aggregate_of_the_heads_is_their_weighted_sum_and_has_the_v_loss():
    model, values = masked_model(prediction="heads"), batch(32)
    assert model.denoise is None
    t = torch.arange(0, 96, 3)
    z = torch.randn(32, *SHAPE, generator=generator(2))
    with torch.no_grad():
        found = model.predict(z, t)
    p = model.process
    by_hand = sum(p.at(t, z).W[name] * found.estimate[name] for name in p.names)
    torch.testing.assert_close(found.aggregate, by_hand)
    assert found.unknown is None, "nothing is given: all is open"

    seen = {}
    forward = model.forward
    model.forward = lambda *a: seen.update(p=forward(*a), t=a[1], z=a[0]) or seen["p"]
    loss = multitask_loss(model, values, generator=generator(3))
    m_t = p.aggregate(model.encode(values), seen["t"])
    d = m_t - seen["p"].aggregate
    v_loss = (d / p.at(seen["t"], m_t).level[1]).square().mean()  # theory 3: |d|^2 / (1 - abar)
    torch.testing.assert_close(loss.terms["denoise"], v_loss)


def test_heads_need_a_head_each():
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), {"image": 1.0})
    with pytest.raises(ValueError, match="'image' has no head, which prediction \"heads\" needs"):
        mt.MTDiffusion(process, {"image": mt.Image(SHAPE, head=False)}, mt.UNet(SHAPE, base=8), SHAPE, "heads")


def conditional(conditions=("label",)):
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(50, 6.0, -6.0), {"image": 1.0, "label": 0.0})
    modalities = {"image": mt.Image(SHAPE), "label": mt.Label(3)}
    torch.manual_seed(0)
    backbone = mt.UNet(SHAPE, base=8)
    return randomise(mt.MTDiffusion(process, modalities, backbone, SHAPE, conditions=conditions)).eval()


def test_conditions_are_told_in_every_example_and_never_scored():
    model = conditional()
    values = {"image": torch.zeros(8, *SHAPE), "label": torch.arange(8) % 3}
    seen = {}
    forward = model.forward
    model.forward = lambda *a: seen.update(told=a[4]) or forward(*a)
    loss = multitask_loss(model, values, generator=generator())
    assert seen["told"]["label"].all()
    assert loss.terms["label"] == 0


def test_a_sample_needs_the_conditions_and_a_bound_takes_them_as_given(tmp_path):
    model = mt.load(conditional().save(tmp_path / "model"))
    assert model.conditions == ("label",)
    with pytest.raises(ValueError, match=r"\['label'\] always given"):
        mt.sample(model, 2)
    assert mt.sample(model, 2, given={"label": torch.tensor([1])}, steps=2)["label"].tolist() == [1, 1]
    values = {"image": torch.zeros(4, *SHAPE), "label": torch.arange(4) % 3}
    bound = mt.elbo(model, values, generator=generator())
    assert set(bound.readout) == {"image"}
    same = mt.elbo(conditional(()), values, given=("label",), generator=generator())
    assert same.total == pytest.approx(bound.total, rel=1e-5)
    with pytest.raises(ValueError, match=r"conditions names \['colour'\]"):
        conditional(("colour",))
