"""Label maps and masks: a discrete value at every pixel. And images that are told, or start from the rest."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers import generator, law_of, randn, randomise, standard_error, tensors

import mtdiff as mt


def attached(modality, space=(2, 4, 4)):
    modality.attach("it", space, mt.UNet(space, base=8, multipliers=(1,)))
    return modality


def model(curves=None, loud=True, seed=0, tell=True, start="state", **options):
    """Image, mask and label map in one space, told and read."""
    space = (2, 4, 4)
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20), curves or {"image": 1.0, "mask": 0.5, "map": 0.7})
    torch.manual_seed(seed)
    modalities = {
        "image": mt.Image(space, tell=tell, start=start),
        "mask": mt.Mask((4, 4), tell=tell),
        "map": mt.LabelMap(3, (4, 4), tell=tell),
    }
    out = mt.MTDiffusion(process, modalities, mt.UNet(space, base=8, multipliers=(1, 2)), space, **options)
    return (randomise(out, seed) if loud else out).eval()


def batch(n=8, seed=0):
    g = generator(seed)
    return {
        "image": torch.rand(n, 2, 4, 4, generator=g) * 2 - 1,
        "mask": torch.randint(0, 2, (n, 1, 4, 4), generator=g).float(),
        "map": torch.randint(0, 3, (n, 4, 4), generator=g),
    }


# ---- codes and likelihoods ----


def test_each_pixel_has_the_code_of_its_class():
    label_map, value = attached(mt.LabelMap(3, (4, 4))), batch()["map"]
    code = label_map.encode(value)
    assert label_map.codes.shape == (3, 2)
    assert torch.allclose(label_map.codes.square().mean(1), torch.ones(3))
    assert label_map.codes.sum(0).abs().max() < 1e-6
    for b, i, j in itertools.product(range(2), range(4), range(4)):
        assert torch.equal(code[b, :, i, j], label_map.codes[value[b, i, j]])


def test_a_mask_is_written_as_plus_and_minus_one():
    mask, value = attached(mt.Mask((4, 4), channels=slice(1, 2))), batch()["mask"]
    code = mask.encode(value)
    assert not code[:, 0].any()
    assert torch.equal(code[:, 1:], 2 * value - 1)
    assert torch.equal(mask.encode(value.bool()), code)


@pytest.mark.parametrize(
    ("make", "size", "value_of"),
    [
        (lambda: mt.LabelMap(3, (1, 2)), 3, lambda classes: classes),
        (lambda: mt.Mask((1, 2)), 2, lambda classes: classes[:, None].float()),
    ],
    ids=["labels", "mask"],
)
def test_the_expected_code_is_the_mean_over_all_maps(make, size, value_of):
    """Brute force over every map of two pixels: probabilities by `log_prob`, codes by `encode`."""
    modality = attached(make(), (2, 1, 2))
    logits = randn(4, size, 1, 2)
    classes = torch.tensor(list(itertools.product(range(size), repeat=2))).reshape(-1, 1, 2)
    every, law = value_of(classes), law_of(modality, logits)
    chances = torch.stack([law.log_prob(v.expand(4, *v.shape)) for v in every], 1).exp()
    assert torch.allclose(chances.sum(1), torch.ones(4).double())
    codes = modality.encode(every).double()
    assert torch.allclose(modality.place(law.expected_code()), torch.einsum("bk,kchw->bchw", chances, codes), atol=1e-6)


def test_log_prob_and_loss_by_hand():
    value = batch(3)
    logits = randn(3, 3, 4, 4)
    log_p = logits.log_softmax(1).gather(1, value["map"][:, None])[:, 0]
    label_map, mask = law_of(attached(mt.LabelMap(3, (4, 4))), logits), law_of(attached(mt.Mask((4, 4))), logits[:, :2])
    assert torch.allclose(label_map.log_prob(value["map"]), log_p.sum((1, 2)))
    assert torch.allclose(label_map.loss(value["map"]), -log_p.mean((1, 2)))
    bernoulli = torch.distributions.Bernoulli(logits=logits[:, 1] - logits[:, 0])
    expected = bernoulli.log_prob(value["mask"][:, 0].double()).sum((1, 2))
    assert torch.allclose(mask.log_prob(value["mask"]), expected)
    assert torch.allclose(mask.log_prob(value["mask"].bool()), expected)
    assert torch.allclose(mask.loss(value["mask"]), -expected / 16)


def test_pixels_that_are_drawn_repeat_by_generator():
    law = law_of(attached(mt.LabelMap(3, (4, 4))), torch.zeros(2, 3, 4, 4))
    drawn = [law.draw(generator(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_pixels_are_drawn_from_their_own_softmax():
    """20,000 maps of one and of two pixels; every frequency within 4 standard errors; seed 0."""
    n = 20_000
    label_map, logits = attached(mt.LabelMap(3, (1, 2)), (2, 1, 2)), randn(1, 3, 1, 2)
    drawn = law_of(label_map, logits.expand(n, 3, 1, 2)).draw(generator(0))
    assert drawn.shape == (n, 1, 2)
    for k, j in itertools.product(range(3), range(2)):
        p = float(logits.softmax(1)[0, k, 0, j])
        assert abs(float((drawn[:, 0, j] == k).double().mean()) - p) < 4 * standard_error(p, n)
    mask, logits = attached(mt.Mask((1, 1)), (2, 1, 1)), torch.tensor([0.3, -0.5]).reshape(1, 2, 1, 1)
    drawn = law_of(mask, logits.expand(n, 2, 1, 1)).draw(generator(0))
    mask.check(drawn)
    p = float(logits.softmax(1)[0, 1])
    assert abs(float(drawn.double().mean()) - p) < 4 * standard_error(p, n)


@pytest.mark.parametrize("make", [lambda: mt.LabelMap(3, (4, 4), tell=True), lambda: mt.Mask((4, 4), tell=True)])
def test_maps_are_told_one_hot(make):
    modality = attached(make())
    value = batch()["map" if isinstance(modality, mt.LabelMap) else "mask"]
    one_hot = F.one_hot(value.long().reshape(8, 4, 4), len(modality.codes)).movedim(-1, 1).float()
    assert torch.equal(modality.condition(value), modality.embed(one_hot))
    with pytest.raises(ValueError, match="made without tell=True"):
        attached(type(modality)(**({"classes": 3} if len(modality.codes) == 3 else {}), size=(4, 4))).condition(value)


MASK = torch.ones(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("make", "value", "message"),
    [
        (mt.Mask, MASK * 0.5, r"'it' has values other than 0 and 1: \[0.5\]"),
        (mt.Mask, MASK[:, 0], r"float or bool tensor of zeros and ones \(B, 1, 4, 4\), got torch.float32 \(2, 4, 4\)"),
        (mt.Mask, MASK[..., :3], r"\(2, 1, 4, 3\)"),
        (mt.Mask, MASK.long(), "got torch.int64"),
        (mt.LabelMap, MASK[:, 0].long() + 2, r"'it' has values outside 0\.\.2: \[3\]"),
        (mt.LabelMap, MASK[:, 0].long() - 2, r"outside 0\.\.2: \[-1\]"),
        (mt.LabelMap, MASK.long(), r"integer tensor of class ids \(B, 4, 4\), got torch.int64 \(2, 1, 4, 4\)"),
        (mt.LabelMap, MASK[:, 0], "got torch.float32"),
        (mt.LabelMap, MASK[:, 0].bool(), "got torch.bool"),
        (mt.LabelMap, [[0]], r"got \[\[0\]\]"),
    ],
)
def test_bad_maps_are_refused(make, value, message):
    modality = attached(mt.Mask((4, 4)) if make is mt.Mask else mt.LabelMap(3, (4, 4)))
    with pytest.raises(ValueError, match=message):
        modality.check(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mt.LabelMap(1, (4, 4)), "classes must be at least 2, got 1"),
        (lambda: mt.LabelMap(3, (4, 4), names=["a"]), "names has 1 entries for 3 classes"),
        (lambda: mt.Mask((4,)), r"size must be \(H, W\), got \(4,\)"),
        (lambda: mt.Mask((0, 4)), "size must be"),
        (lambda: attached(mt.Mask((8, 8))), r"is a map of \(8, 8\), but its part of the space is \(2, 4, 4\)"),
    ],
)
def test_bad_kinds_of_map_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- in a model ----


def test_maps_train_are_saved_and_drawn_any_to_any(tmp_path):
    net, data = model(loud=False).train(), batch()
    optimizer, totals = torch.optim.Adam(net.parameters(), lr=3e-3), []
    for _ in range(8):
        options = {"drop": {"mask": 0.3}, "give": {"image": 0.3, "map": 0.3, "mask": "map"}}
        loss = mt.multitask_loss(net, data, weights={"image": 0.1}, **options, generator=generator(0))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        totals.append(float(loss.total.detach()))
    assert totals[-1] < totals[0]
    net.eval()
    for given, rule in (
        ((), None), (["mask"], "conditioned"), (["map"], "substitute"), (["image"], "readout"), (["map"], "bayes"),
        (["image", "mask"], {"image": "conditioned", "mask": "substitute"}),
    ):  # fmt: skip
        drawn = mt.sample(net, 8, given={n: data[n] for n in given}, rule=rule, steps=3, generator=generator())
        assert net.check(drawn) == 8
        assert all(torch.equal(drawn[name], data[name]) for name in given)
    net.save(tmp_path)
    again, z = mt.load(tmp_path), torch.randn(8, 2, 4, 4, generator=generator(1))
    for given in (None, data):
        a, b = net.predict(z, 7, given=given), again.predict(z, 7, given=given)
        for name in data:
            assert all(torch.equal(*pair) for pair in zip(tensors(a.law[name]), tensors(b.law[name]), strict=True)), name


def test_a_told_image_changes_the_prediction_of_those_that_are_told():
    net, z, data = model(), randn(8, 2, 4, 4), batch()
    told = torch.arange(8) % 2 == 0
    heard, silent = net.predict(z, 5, given={"image": data["image"]}), net.predict(z, 5)
    mixed = net(z, 5, {"image": data["image"]}, None, {"image": told})
    other = net.predict(z, 5, given={"image": -data["image"]})
    assert not torch.allclose(heard.aggregate, other.aggregate, atol=1e-3)
    for pick in (lambda p: p.aggregate, lambda p: p.law["map"].logits, lambda p: p.law["image"].mean):
        assert torch.allclose(pick(mixed)[told], pick(heard)[told], atol=1e-6)
        assert torch.allclose(pick(mixed)[~told], pick(silent)[~told], atol=1e-6)
        assert not torch.allclose(pick(heard), pick(silent), atol=1e-3)


def test_an_image_is_told_only_where_it_was_made_for_it():
    with pytest.raises(ValueError, match=r"'image' cannot condition the backbone: it was made without tell=True"):
        model(tell=False).predict(randn(8, 2, 4, 4), 5, given={"image": batch()["image"]})


# ---- start="rest" ----


def by_hand(net, z, t, codes):
    """k_t (z_t - sqrt(abar_t) sum_j W_j c_j) of an image of weight 1, in float64."""
    abar = net.process.schedule.abar[t]
    rest = z - abar.sqrt() * sum(net.process.cumulative(name)[t] * code.double() for name, code in codes.items())
    return abar.sqrt() * rest


@pytest.mark.parametrize("t", [0, 5, 20])
def test_an_untrained_head_starts_from_what_told_codes_leave(t):
    net, data, z = model(loud=False, start="rest"), batch(), randn(8, 2, 4, 4)
    given = {name: data[name] for name in ("mask", "map")}
    codes = net.encode(given)
    assert torch.allclose(net.predict(z, t, given=given).law["image"].mean, by_hand(net, z, t, codes), atol=1e-6)

    absent = {"mask": torch.arange(8) < 4}  # an absent mask contributes nothing, told or not
    part = {"mask": codes["mask"] * absent["mask"].reshape(8, 1, 1, 1), "map": codes["map"]}
    mean = net.predict(z, t, given=given, present=absent).law["image"].mean
    assert torch.allclose(mean, by_hand(net, z, t, part), atol=1e-6)


@pytest.mark.parametrize("t", [0, 5, 20])
def test_what_is_not_told_is_estimated(t):
    """The mask's head is given a bias, so that its softmax-averaged code is not zero; some examples are told the mask."""
    net, data, z = model(loud=False, start="rest"), batch(), randn(8, 2, 4, 4)
    with torch.no_grad():
        net.modalities["mask"].out.bias.copy_(torch.tensor([0.0, 1.5]))
    guess = {name: net.predict(z, t).estimate[name] for name in ("mask", "map")}
    assert guess["mask"].abs().min() > 0.1
    assert torch.allclose(net.predict(z, t).law["image"].mean, by_hand(net, z, t, guess), atol=1e-6)

    told = {"mask": torch.arange(8) % 2 == 0}
    code = torch.where(told["mask"].reshape(8, 1, 1, 1), net.encode({"mask": data["mask"]})["mask"].double(), guess["mask"])
    mean = net(z, t, {"mask": data["mask"]}, None, told).law["image"].mean
    assert torch.allclose(mean, by_hand(net, z, t, {"mask": code, "map": guess["map"]}), atol=1e-6)


def test_a_start_lets_no_gradient_of_the_image_into_other_heads():
    net = model(start="rest").train()
    net.predict(randn(4, 2, 4, 4), 5).law["image"].mean.sum().backward()
    assert all(p.grad is None for p in net.modalities["mask"].parameters() if p.requires_grad)


def test_a_head_that_starts_from_nothing_is_the_network_s_output():
    z = randn(8, 2, 4, 4)
    assert not model(loud=False, start="nothing").predict(z, 5).law["image"].mean.any()
    assert model(start="nothing").predict(z, 5).law["image"].mean.any()


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match=r"start must be one of .'state', 'rest', 'nothing'., got 'zero'"):
        mt.Image((1, 4, 4), start="zero")


def test_the_shipped_card_has_none_of_the_new_keys_and_loads():
    net = mt.load("image-label/digits")
    assert net.modalities["image"].start == "state"
    assert net.modalities["image"].embed is None
    assert not net.backbone.attends
