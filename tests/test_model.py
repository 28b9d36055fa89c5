import json
import tempfile

import pytest
import torch
from helpers import Output, generator, image_label_batch, image_label_model, randn, randomise, tensors

import mtdiff as mt


def state(model, n=4, seed=3, t=(1, 17, 30, 50)):
    return randn(n, *model.space, seed=seed), torch.tensor(t[:n])


# ---- predictions ----


@pytest.mark.parametrize("prediction", ["v", "eps", "x"])
def test_the_true_output_gives_the_true_aggregate(prediction):
    model = image_label_model(prediction)
    batch = image_label_batch(4)
    codes = {name: code.double() for name, code in model.encode(batch).items()}
    t = torch.tensor([1, 17, 30, 50])
    z, eps = model.process.diffuse(codes, t, generator=generator())
    m = model.process.aggregate(codes, t)
    at = model.process.at(t, z)
    truth = {"v": at.signal * eps - at.noise * m, "eps": eps, "x": m}[prediction]
    assert torch.allclose(model.aggregate.estimate(truth, z, at), m, atol=1e-12)
    model.denoise = Output(truth)
    assert torch.allclose(model.predict(z, t).aggregate, m, atol=1e-10)
    model.denoise = Output(truth + 0.1 * randn(*z.shape, seed=5))  # what is not right is wrong by the output's own measure
    error = (model.predict(z, t).aggregate - m) ** 2
    assert torch.allclose(model.aggregate.weight(at) * error, (model.denoise.value - truth) ** 2, atol=1e-9)


@pytest.mark.parametrize("prediction", ["v", "eps", "x"])
def test_a_prediction_has_the_dtype_and_shape_of_z(prediction):
    model = image_label_model(prediction)
    z, t = state(model)
    for dtype in (torch.float32, torch.float64):
        p = model.predict(z.to(dtype), t)
        assert p.aggregate.dtype == dtype
        assert p.aggregate.shape == z.shape
        assert p.unknown is None
        assert {part.dtype for law in p.law.values() for part in tensors(law)} == {dtype}
        assert all(e.dtype == dtype and e.shape == z.shape for e in p.estimate.values())
        assert p.law["image"].mean.shape == z.shape
        assert p.law["label"].logits.shape == (4, 3)


def test_estimates_are_those_of_the_heads():
    model = image_label_model()
    z, t = state(model)
    p = model.predict(z, t)
    codes = model.modalities["label"].codes.double()
    expected = torch.einsum("bk,kchw->bchw", p.law["label"].logits.double().softmax(1), codes)
    assert torch.allclose(p.estimate["label"], expected, atol=1e-6)
    assert torch.equal(p.estimate["image"], p.law["image"].mean)


def test_an_untrained_model_knows_the_best_linear_guess_and_nothing_else():
    space = (1, 4, 4)
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(50), {"image": 0.8, "label": mt.fade_in(0.5)})
    model = mt.MTDiffusion(process, {"image": mt.Image(space), "label": mt.Label(3)}, mt.MLP(space), space)
    z, t = state(model)
    abar = process.schedule.abar[t].reshape(-1, 1, 1, 1)
    p = model.predict(z, t)
    assert torch.allclose(p.law["image"].mean, 0.8 * abar.sqrt() / (0.64 * abar + 1 - abar) * z, atol=1e-12)
    assert bool((p.law["label"].logits == 0).all())
    assert torch.allclose(p.aggregate, abar.sqrt() * z, atol=1e-12)


def test_a_prediction_and_its_parametrisation_cannot_be_changed():
    model = image_label_model()
    prediction = model.predict(torch.zeros(1, 1, 4, 4), 3)
    with pytest.raises(AttributeError, match="cannot assign"):
        prediction.aggregate = torch.ones(1, 1, 4, 4)
    with pytest.raises(AttributeError, match="cannot assign"):
        model.aggregate.estimate = None


def test_a_step_may_be_a_number_or_a_tensor():
    model = image_label_model()
    z, _ = state(model)
    number, tensor = model.predict(z, 7), model.predict(z, torch.full((4,), 7))
    assert torch.equal(number.aggregate, tensor.aggregate)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler"}, "sampler must be one of .* got 'euler'"),
        ({"sampler": lambda look, z, t, s, noise: z}, "give a step of your own to `sample`"),
        ({"rule": "guess"}, "rule must be one of .* got 'guess'"),
        ({"rule": {"label": "guess"}}, "rule must be one of .* got 'guess'"),
    ],
)
def test_a_models_own_rule_and_sampler_have_a_name(options, message):
    """They are written to its card."""
    with pytest.raises(ValueError, match=message):
        image_label_model(**options)


# ---- likelihood ----


def test_log_prob_is_that_of_the_heads():
    model = image_label_model()
    z, t = state(model)
    batch, p = image_label_batch(4), model.predict(z, t)
    label = torch.distributions.Categorical(logits=p.law["label"].logits).log_prob(batch["label"])
    assert torch.allclose(model.log_prob("label", batch["label"], z, t), label)
    std = model.process.at(t, z).variance("image").sqrt()
    image = (
        torch.distributions.Normal(p.law["image"].mean, std.expand_as(z)).log_prob(batch["image"].double()).sum((1, 2, 3))
    )
    assert torch.allclose(model.log_prob("image", batch["image"], z, t), image)
    for name, value in batch.items():
        assert torch.equal(p.law[name].log_prob(value), model.log_prob(name, value, z, t))


@pytest.mark.parametrize("name", ["image", "label"])
def test_log_prob_is_differentiable_in_z(name):
    """The gradient against central differences, in float64."""
    model = image_label_model().double()
    z, t = state(model)
    value = image_label_batch(4)[name]
    leaf, direction, h = z.clone().requires_grad_(), randn(*z.shape, seed=8), 1e-6
    (gradient,) = torch.autograd.grad(model.log_prob(name, value, leaf, t).sum(), leaf)
    up, down = (model.log_prob(name, value, z + sign * h * direction, t) for sign in (1, -1))
    slope = (gradient * direction).flatten(1).sum(1)
    assert bool((slope.abs() > 1e-4).all())
    assert torch.allclose((up - down) / (2 * h), slope, rtol=1e-4, atol=1e-6)


# ---- modalities without a head ----


def headless(weights, **channels):
    modalities = {
        "image": mt.Image((1, 4, 4), channels=channels.get("image", slice(0, 1)), head=False),
        "label": mt.Label(3, channels=channels.get("label", slice(1, 2))),
    }
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(50), weights)
    return randomise(mt.MTDiffusion(process, modalities, mt.MLP((2, 4, 4), width=16), (2, 4, 4)))


def test_an_image_alone_in_its_channels_needs_no_head():
    model = headless({"image": 0.5, "label": mt.fade_in(1.0)})
    z, t = state(model)
    p, batch = model.predict(z, t), image_label_batch(4)
    assert torch.equal(p.law["image"].mean, p.aggregate[:, :1] / 0.5)
    assert torch.equal(p.estimate["image"][:, :1], p.law["image"].mean)
    assert bool((p.estimate["image"][:, 1:] == 0).all())
    std = model.process.at(t, z).variance("image").sqrt()
    normal = torch.distributions.Normal(p.law["image"].mean, std.expand(4, 1, 4, 4))
    assert torch.allclose(
        model.log_prob("image", batch["image"], z, t), normal.log_prob(batch["image"].double()).sum((1, 2, 3))
    )


def test_no_head_asks_for_weight_and_channels_of_its_own():
    with pytest.raises(ValueError, match="'image' has no head, so its weight must not be 0"):
        headless({"image": mt.fade_in(1.0), "label": 1.0})
    with pytest.raises(ValueError, match=r"'image' has no head but shares channels \[0\] with 'label'"):
        headless({"image": 1.0, "label": 1.0}, label=slice(0, 1))
    headless({"image": 1.0, "label": 0.0}, label=slice(0, 1))


# ---- conditioning ----


def test_given_values_reach_only_the_examples_that_are_told():
    model = image_label_model()
    z, t = state(model)
    label, told = torch.tensor([0, 1, 2, 0]), torch.tensor([True, False, True, False])
    plain, some, everyone = model(z, t), model(z, t, {"label": label}, known={"label": told}), model(z, t, {"label": label})
    for part in (lambda p: p.aggregate, lambda p: p.law["label"].logits, lambda p: p.law["image"].mean):
        assert torch.equal(part(some)[~told], part(plain)[~told])
        assert torch.equal(part(some)[told], part(everyone)[told])
        assert bool(((part(some) - part(plain))[told].flatten(1).abs().amax(1) > 1e-4).all())


def test_absence_is_told_only_where_a_modality_is_absent():
    model = image_label_model()
    z, t = state(model)
    present = torch.tensor([True, False, True, False])
    plain, some = model.predict(z, t), model.predict(z, t, present={"label": present})
    assert torch.equal(some.aggregate[present], plain.aggregate[present])
    assert bool(((some.aggregate - plain.aggregate)[~present].flatten(1).abs().amax(1) > 1e-4).all())


def test_a_set_of_names_says_who_is_present_in_all_examples():
    model = image_label_model()
    z, t = state(model)
    names, masks = (model.predict(z, t, present=p) for p in ({"image"}, {"label": torch.zeros(4, dtype=torch.bool)}))
    assert torch.equal(names.aggregate, masks.aggregate)
    for name, law in names.law.items():
        assert all(torch.equal(*pair) for pair in zip(tensors(law), tensors(masks.law[name]), strict=True)), name
    everybody = model.predict(z, t, present={"image", "label"})
    assert torch.equal(everybody.aggregate, model.predict(z, t).aggregate)
    for odd, error, message in (
        ({"sound"}, KeyError, "present names an unknown modality 'sound'"),
        ("image", ValueError, "present must be a collection of names, got the string 'image'"),
        (
            {"label": torch.ones(3, dtype=torch.bool)},
            ValueError,
            r"present\['label'\] must be bool \(4,\), got torch.bool \(3,\)",
        ),
    ):
        with pytest.raises(error, match=message):
            model.predict(z, t, present=odd)


def test_what_was_never_absent_makes_no_difference_when_it_is():
    """The vectors that tell absence begin at zero: only training on smaller sets gives them a meaning."""
    model = mt.MTDiffusion(
        mt.ForwardProcess(mt.NoiseSchedule.log_snr(50), {"x": 1.0, "label": 1.0}),
        {"x": mt.Vector(2), "label": mt.Label(3)}, mt.MLP((2,), width=16), (2,),
    )  # fmt: skip
    randomise(model.backbone)
    randomise(model.denoise)
    z, gone = randn(3, 2), {"label": torch.zeros(3, dtype=torch.bool)}
    assert torch.equal(model.predict(z, 9).aggregate, model.predict(z, 9, present=gone).aggregate)


def test_reading_looks_at_what_is_given_and_present():
    """As if the prediction were there already, which it may be."""
    model, label = image_label_model(), torch.tensor([0, 1, 2, 0])
    z, _ = state(model)
    gone = {"label": torch.zeros(4, dtype=torch.bool)}
    plain = model.read(z, 0, generator=generator())
    for options in ({"given": {"label": label}}, {"present": gone}, {"given": {"label": label}, "present": gone}):
        read = model.read(z, 0, **options, generator=generator())
        again = model.read(z, 0, prediction=model.predict(z, 0, **options), generator=generator())
        assert torch.equal(read["image"], again["image"])
        assert torch.equal(read["label"], again["label"])
        assert not torch.allclose(read["image"], plain["image"], atol=1e-4), options


def test_a_different_given_value_changes_the_output():
    model = image_label_model()
    z, t = state(model)
    a, b = (model.predict(z, t, given={"label": torch.full((4,), k)}).aggregate for k in (0, 1))
    assert not torch.allclose(a, b, atol=1e-4)


# ---- saving and loading ----


def saved(folder, **options):
    curve = options.pop("curve", lambda u: 0.3 * u**2 + 0.1)
    return image_label_model(curve=curve, **options).eval(), folder / "model"


def same(a, b, atol=0.0):
    z, t = state(a)
    p, q = a.predict(z.float(), t), b.predict(z.float(), t)
    pairs = [(p.aggregate, q.aggregate)]
    for name in p.law:
        pairs += zip(tensors(p.law[name]), tensors(q.law[name]), strict=True)
    return all(torch.allclose(x, y, rtol=0, atol=atol) for x, y in pairs)


@pytest.mark.parametrize("prediction", ["v", "eps", "x"])
def test_a_saved_model_comes_back_to_the_bit(tmp_path, prediction):
    model, folder = saved(tmp_path, prediction=prediction, rule={"label": "conditioned"})
    model.save(folder, {"data": "nothing"})
    again = mt.load(folder)
    assert same(model, again)
    assert not again.training
    assert (again.prediction, again.rule, again.space) == (prediction, {"label": "conditioned"}, (1, 4, 4))
    assert again.modalities["label"].names == ["a", "b", "c"]
    assert again.card == {"data": "nothing"}
    assert torch.equal(again.process.schedule.abar, model.process.schedule.abar)
    for name in ("image", "label"):
        assert again.process.cumulative(name).dtype == torch.float64
        assert torch.equal(again.process.cumulative(name), model.process.cumulative(name))


def test_a_saved_transition_still_ends_at_its_source(tmp_path):
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(5, 8, 0), {"a": mt.fade_out(1.0), "b": mt.fade_in(1.0)}, prior="b")
    model = mt.MTDiffusion(process, {"a": mt.Vector(2), "b": mt.Vector(2)}, mt.MLP((2,), width=8), (2,))
    assert mt.load(model.save(tmp_path / "m")).process.prior == "b"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_model_keeps_its_dtype(tmp_path, dtype):
    model = image_label_model().to(dtype)
    assert mt.load(model.save(tmp_path / "m")).dtype == dtype


def test_half_precision_is_smaller_close_and_keeps_the_curves(tmp_path):
    model, folder = saved(tmp_path)
    sizes = [(model.save(folder, half=half) / "model.safetensors").stat().st_size for half in (False, True)]
    again = mt.load(folder)
    assert sizes[1] < 0.75 * sizes[0]
    assert same(model, again, atol=0.05)
    assert not same(model, again)
    assert again.dtype == torch.float32
    assert torch.equal(again.process.cumulative("label"), model.process.cumulative("label"))


def test_saving_again_adds_to_the_card(tmp_path):
    model, folder = saved(tmp_path)
    model.save(folder, {"a": 1, "b": 2})
    again = mt.load(folder)
    again.save(folder, {"b": 3})
    assert mt.load(folder).card == {"a": 1, "b": 3}


def test_a_rule_and_a_sampler_that_are_set_later_are_saved(tmp_path):
    model, folder = saved(tmp_path)
    model.rule, model.sampler = {"label": "bayes"}, "heun"
    again = mt.load(model.save(folder))
    assert (again.rule, again.sampler) == ({"label": "bayes"}, "heun")


def test_a_card_entry_cannot_make_a_model_unreadable(tmp_path):
    model, folder = saved(tmp_path)
    model.save(folder, {"format": "8x8 images", "config": "quick"})
    assert same(model, mt.load(folder))


def edited(folder, change):
    path = folder / "card.json"
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["config"]["backbone"].update(width=20), "does not fit its card"),
        (lambda c: c["config"]["modalities"]["label"].update(classes=4, names=None), "does not fit its card"),
        (lambda c: c["config"]["modalities"].pop("label"), "does not fit its card"),
        (lambda c: c["config"].pop("space"), "does not fit its card"),
        (lambda c: c["config"]["backbone"].update(colour="blue"), "does not fit its card"),
        (lambda c: c["config"]["modalities"]["label"].update(kind="Smell"), "unknown modality kind 'Smell'"),
        (lambda c: c["config"]["backbone"].update(kind="Transformer"), "unknown backbone kind 'Transformer'"),
        (lambda c: c["config"].update(kind="Unheard"), "Unheard"),
        (lambda c: c["config"].update(dtype="float99"), "float99"),
        (lambda c: c.update(format=99), "has format 99, this version reads 1"),
        (lambda c: c.pop("format"), "has format None"),
        (lambda c: c.pop("config"), "not a model card"),
        (lambda c: c.update(config=None), "not a model card"),
    ],
)
def test_an_edited_card_is_refused(tmp_path, change, message):
    model, folder = saved(tmp_path)
    model.save(folder)
    edited(folder, change)
    with pytest.raises(ValueError, match=message):
        mt.load(folder)


@pytest.mark.parametrize("text", ["{", "", "[]", "3", "\udcff"])
def test_a_file_that_is_no_card_is_refused(tmp_path, text):
    model, folder = saved(tmp_path)
    model.save(folder)
    (folder / "card.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"card\.json is not a model card"):
        mt.load(folder)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere.*and no shipped model of that name"):
        mt.load(tmp_path / "nowhere")
    model, folder = saved(tmp_path)
    (model.save(folder) / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has a card but no model\.safetensors"):
        mt.load(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_weights_are_refused(tmp_path, keep):
    model, folder = saved(tmp_path)
    path = model.save(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
        mt.load(folder)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "denied")

    model, folder = saved(tmp_path)
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(PermissionError, match=rf"cannot write to {folder}"):
        model.save(folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_clock_tells_every_step_in_whatever_dtype_the_network_computes(dtype):
    """bfloat16 has 8 bits: of 501 steps it would tell 376 apart."""
    model, seen = image_label_model(schedule=mt.NoiseSchedule.log_snr(500)).to(dtype), []
    model.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    z = torch.zeros(501, 1, 4, 4)
    model.predict(z, torch.arange(501))
    model.predict(z[:1], 500)
    assert seen[0].unique().numel() == 501
    assert seen[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(seen[0], torch.arange(501).to(seen[0].dtype) / 500)
    assert seen[1].tolist() == [1.0]


# ---- what training told ----


@pytest.mark.parametrize(
    ("give", "told"),
    [({}, set()), ({"label": 0.0}, set()), ({"label": 0.2}, {"label"}), ({"image": 0.0, "label": "image"}, set()),
     ({"image": 0.5, "label": "image"}, {"image", "label"})],
)  # fmt: skip
def test_the_card_says_what_training_told(give, told):
    """A training notes it; of the models that were trained by a command before, the config in the card says it."""
    trained, command = image_label_model(), image_label_model()
    trained.teach(give)
    command.card = {"training": {"steps": 5, "give": give}}
    assert trained.taught == command.taught == told
    command.teach({"label": 0.1})
    assert command.taught == told | {"label"}, "what a training before this one told, too"
    assert command.card["training"]["steps"] == 5


def test_what_is_always_given_was_told():
    for card in ({"taught": []}, {"training": {"give": {}}}):
        model = image_label_model(conditions=("label",))
        model.card = card
        assert model.taught == {"label"}


@pytest.mark.parametrize("card", [{}, {"author": "somebody"}, {"training": "long"}, {"training": {"steps": 5}}])
def test_of_a_stranger_nobody_knows_what_it_was_told(card):
    model = image_label_model()
    model.card = card
    assert model.taught is None
    model.teach({})
    assert model.taught == (None if card else set()), "a model without a card has had no training before"


# ---- errors ----


ONE, THREE = torch.ones(1, dtype=torch.bool), torch.zeros(3, 1, 4, 4)


@pytest.mark.parametrize(
    ("z", "t", "options", "error", "message"),
    [
        (torch.zeros(3, 2, 4, 4), 1, {}, ValueError, r"z_t must be floating point \(B, 1, 4, 4\), got .* \(3, 2, 4, 4\)"),
        (torch.zeros(3, 4, 4), 1, {}, ValueError, r"z_t must be floating point \(B, 1, 4, 4\)"),
        (THREE.long(), 1, {}, ValueError, r"z_t must be floating point \(B, 1, 4, 4\), got torch.int64"),
        (THREE[:0], 1, {}, ValueError, r"must be .* at least one example, got torch.float32 \(0, 1, 4, 4\)"),
        (THREE * torch.nan, 1, {}, ValueError, "z_t has values that are not finite"),
        (THREE, 51, {}, ValueError, r"t must be in 0\.\.50, got 51"),
        (THREE, torch.tensor([1, 2]), {}, ValueError, r"t must be an int or an int tensor \(3,\), got torch.int64 \(2,\)"),
        (THREE, 0.5, {}, ValueError, "t must be an int"),
        (THREE, 1, {"given": {"sound": THREE}}, KeyError, "given names an unknown modality 'sound'"),
        (THREE, 1, {"present": {"sound": ONE.expand(3)}}, KeyError, "present names an unknown modality 'sound'"),
        (THREE, 1, {"present": {"label": ONE}}, ValueError, r"present\['label'\]"),
        (THREE, 1, {"given": {"label": torch.tensor([0])}}, ValueError, "given has 1 examples, z_t has 3"),
        (
            THREE,
            1,
            {"given": {"label": torch.tensor([0, 1, 3])}},
            ValueError,
            r"given: 'label' has values outside 0\.\.2: \[3\]",
        ),
        (THREE, 1, {"given": {"label": torch.zeros(3)}}, ValueError, "given: 'label' must be an integer tensor"),
        (THREE, 1, {"given": {"image": THREE * torch.nan}}, ValueError, r"given: 'image' has values that are not finite"),
        (THREE, 1, {"given": {"image": THREE + 2}}, ValueError, r"given: 'image' must lie in \[-1, 1\]"),
        (THREE, 1, {"given": {"image": THREE}}, ValueError, "'image' cannot condition the backbone"),
    ],
)
def test_predict_names_what_is_wrong(z, t, options, error, message):
    with pytest.raises(error, match=message):
        image_label_model().predict(z, t, **options)


@pytest.mark.parametrize("name", ["image", "label"])
def test_log_prob_needs_as_many_values_as_states(name):
    model = image_label_model()
    with pytest.raises(ValueError, match=r"1 example|expected 3"):
        model.log_prob(name, image_label_batch(1)[name], torch.zeros(3, 1, 4, 4), 5)


def test_log_prob_names_an_unknown_modality():
    with pytest.raises(KeyError, match="value names an unknown modality 'sound'"):
        image_label_model().log_prob("sound", torch.zeros(3), torch.zeros(3, 1, 4, 4), 5)


def test_check_counts_and_compares():
    model = image_label_model()
    assert model.check(image_label_batch(3)) == 3
    with pytest.raises(ValueError, match=r"different numbers of examples: {'image': 2, 'label': 3}"):
        model.check({"image": image_label_batch(2)["image"], "label": image_label_batch(3)["label"]})
    with pytest.raises(ValueError, match="batch is empty"):
        model.check({})
    with pytest.raises(ValueError, match=r"batch must have at least one example, got {'image': 0, 'label': 0}"):
        model.check(image_label_batch(0))
    with pytest.raises(ValueError, match="at least one example"):
        mt.multitask_loss(model, image_label_batch(0))
    with pytest.raises(ValueError, match="at least one example"):
        mt.elbo(model, image_label_batch(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"modalities": {"x": mt.Vector(2), "y": mt.Vector(2)}},
            r"modalities are \['x', 'y'\], but the process has \['x'\]",
        ),
        ({"backbone": mt.MLP((3,))}, r"the backbone works on \(3,\), but the space is \(2,\)"),
        ({"prediction": "score"}, "prediction must be one of .* got 'score'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(4), {"x": 1.0})
    parts = {"modalities": {"x": mt.Vector(2)}, "backbone": mt.MLP((2,)), "space": (2,), **change}
    with pytest.raises(ValueError, match=message):
        mt.MTDiffusion(process, **parts)


@pytest.mark.parametrize(
    "name", ["denoise", "total", "gradient", "step", "seconds", "prior", "diffusion", "keys", "training", "a.b", ""]
)
def test_names_that_mean_something_else_are_refused(name):
    """A loss, a row of the history or a bound would hold one of two values under them, without a word."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(4), {"x": 1.0, name: 0.5})
    with pytest.raises(ValueError, match=rf"modalities cannot be called \['{name}'\]"):
        mt.MTDiffusion(process, {"x": mt.Vector(2), name: mt.Vector(2)}, mt.MLP((2,)), (2,))


def test_features_are_what_the_heads_see():
    model, batch, seen = image_label_model().eval(), image_label_batch(7), []
    hook = model.modalities["label"].out.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    found = model.features({"image": batch["image"]}, t=5, generator=generator(1))
    hook.remove()
    assert torch.equal(found, torch.cat(seen))
    assert found.shape == (7, model.backbone.pooled)
    alone = model.features({"image": batch["image"][:3]}, generator=generator(1))
    joint = model.features({name: value[:3] for name, value in batch.items()}, generator=generator(1), batch=2)
    assert alone.shape == joint.shape
    assert not torch.allclose(alone, joint)
    assert not model.backbone._forward_hooks
    with pytest.raises(KeyError, match="unknown modality 'sound'"):
        model.features({"sound": batch["image"]})
