"""The image-transition experiment: its pairs, its chain, what it shares with its controls, and its figures."""

import math

import pytest
import torch
from helpers import generator

import mtdiff as mt
from mtdiff.datasets import shapes
from mtdiff.experiments import EXPERIMENTS
from mtdiff.experiments import image_transition as transition

DATA = "shapes16"


@pytest.fixture(scope="module")
def model():
    return transition.build(DATA, "transition", seed=0).eval()


@pytest.fixture
def few(monkeypatch):
    """Little data and short chains."""
    monkeypatch.setattr(transition, "EXAMPLES", 240)
    monkeypatch.setattr(transition, "STEPS", 2)
    monkeypatch.setattr(transition, "DRAWS", 24)
    monkeypatch.setattr(transition, "STRENGTHS", (0.2, 0.5))
    transition.pairs.cache_clear()
    yield
    transition.pairs.cache_clear()


def test_pairs_are_two_views_of_one_scene_and_half_are_swapped():
    pairs = transition.pairs(DATA, "test", 12)
    scenes = shapes("test", size=16, n=12).values
    assert pairs.names == transition.DIRECTIONS
    assert torch.equal(pairs.values["source"][6], scenes["image"][6])
    assert torch.equal(pairs.values["target"][6], scenes["night"][6])
    assert torch.equal(pairs.values["source"][7], scenes["night"][7])
    assert torch.equal(pairs.values["target"][7], scenes["image"][7])
    assert torch.equal(pairs.values["source"][3], scenes["sketch"][3].expand(3, 16, 16))


@pytest.mark.parametrize("variant", transition.VARIANTS)
def test_every_variant_has_the_same_backbone(variant):
    built = transition.build(DATA, variant)
    size = sum(p.numel() for p in built.backbone.parameters())
    assert built.backbone.config == transition.build(DATA, "transition").backbone.config
    assert 250_000 < size < 350_000


def test_the_chain_ends_at_the_noisy_source(model):
    """q(z_T | source, target) does not depend on the target, and has the noise that END says."""
    p = model.process
    pair = transition.pairs(DATA, "test", 6)[:]
    codes = model.encode(pair)
    mean, std = p.marginal(codes, p.steps)
    abar = torch.sigmoid(torch.tensor(transition.END, dtype=torch.float64))
    torch.testing.assert_close(mean, abar.sqrt().float() * pair["source"])
    torch.testing.assert_close(std.double(), (1 - abar).sqrt().expand_as(std), rtol=1e-6, atol=0)
    mean, _ = p.marginal(codes, 0)
    torch.testing.assert_close(mean, p.schedule.abar[0].sqrt().float() * pair["target"])


def test_the_rest_is_a_conditional_diffusion_of_the_target_with_its_own_schedule(model):
    """z_t less the source it holds is N(sqrt(abar_t) W_t y, (1 - abar_t) I): the SNR of y is all that differs."""
    p = model.process
    pair = transition.pairs(DATA, "test", 6)[:]
    t = 200
    z, eps = p.diffuse(model.encode(pair), t, generator=generator())
    rest = z - p.at(t, z).level[0] * p.at(t, z).W["source"] * pair["source"]
    signal, noise = p.at(t, z).level
    torch.testing.assert_close(rest, signal * p.at(t, z).W["target"] * pair["target"] + noise * eps, rtol=1e-5, atol=1e-5)
    snr = float(((signal * p.at(t, z).W["target"] / noise) ** 2)[0])
    assert snr == pytest.approx(float(p.snr("target")[t]), rel=1e-5)


def test_the_network_sees_the_state_without_the_source_and_of_unit_rms(model):
    """A told shift is taken out: moving z_t by what the source adds changes nothing but the known part."""
    pair = transition.pairs(DATA, "test", 6)[:]
    z = torch.randn(6, 3, 16, 16, generator=generator())
    given = {"source": pair["source"], "direction": pair["direction"]}
    t = 300
    at = model.process.at(t, z)
    known, shift = at.W["source"] * pair["source"], at.signal * at.W["source"] * pair["source"]
    with torch.no_grad():
        a = model.predict(z + shift, t, given=given)
    torch.testing.assert_close(a.aggregate - at.W["target"] * a.estimate["target"], known)
    state = {}
    handle = model.backbone.register_forward_pre_hook(lambda _, args: state.update(z=args[0]))
    with torch.no_grad():
        model.predict(z + shift, t, given=given)
    handle.remove()
    abar, w = model.process.schedule.abar[t], model.process.cumulative("target")[t]
    torch.testing.assert_close(state["z"] * float((abar * w**2 + 1 - abar).sqrt()), z, rtol=1e-5, atol=1e-5)


def test_a_source_and_a_direction_are_needed(model):
    pair = transition.pairs(DATA, "test", 6)[:]
    with pytest.raises(ValueError, match="ends at 'source'"):
        mt.sample(model, 6, given={"direction": pair["direction"]})
    with pytest.raises(ValueError, match=r"\['direction'\] always given"):
        mt.sample(model, 6, given={"source": pair["source"]})
    with pytest.raises(ValueError, match="has 4 examples, expected 6"):
        mt.sample(model, 6, given={"source": pair["source"][:4], "direction": pair["direction"]})
    with pytest.raises(ValueError, match=r"'source' must be floating point \(B, 3, 16, 16\), got .* \(6, 3, 8, 8\)"):
        mt.sample(model, 6, given={"source": torch.zeros(6, 3, 8, 8), "direction": pair["direction"]})


def test_scores_of_the_truth_are_perfect_and_of_another_scene_are_not():
    from mtdiff.judges import scene_judge

    judge = scene_judge(DATA)
    test = transition.pairs(DATA, "test", 120)
    for k, words in enumerate(transition.DIRECTIONS):
        target = test.values["target"][test.values["direction"] == k]
        perfect = transition.scores(words, target, target, target, judge)
        wrong = transition.scores(words, target.roll(1, 0), target, target, judge)
        if words in transition.DETERMINED:
            assert perfect["ssim"] == pytest.approx(1)
            assert wrong["ssim"] < 0.8
        else:
            assert perfect["scene"] == 1
            assert perfect["features"] == pytest.approx(0, abs=1e-3)
            assert wrong["scene"] < 0.3


def test_other_colours_do_not_count_as_another_scene():
    """A sketch does not say colours, so a judge of scenes must not ask for them."""
    from mtdiff.datasets.shapes import COLOURS, VOCABULARY

    class Reader:
        def __init__(self, tokens):
            self.tokens = tokens

        def read(self, image):
            return self.tokens[image[:, 0, 0, 0].long()]

        def features(self, image):
            return image.flatten(1)[:, :2] + torch.randn(len(image), 2, generator=generator())

    red, green = (VOCABULARY.index(name) for name in list(COLOURS)[:2])
    tokens = shapes("test", size=16, n=2).values["caption"].clone()
    tokens[1] = tokens[0]
    tokens[0, 2], tokens[1, 2] = red, green
    drawn, target = torch.ones(3, 3, 4, 4), torch.zeros(3, 3, 4, 4)
    assert transition.scores("sketch to day", drawn, target, target, Reader(tokens))["scene"] == 1
    tokens[0, 1], tokens[1, 1] = (VOCABULARY.index(name) for name in ("small", "large"))
    assert transition.scores("sketch to day", drawn, target, target, Reader(tokens))["scene"] == 0


@pytest.mark.parametrize("variant", transition.VARIANTS)
def test_a_few_steps_lower_the_loss_and_the_model_is_judged(variant, tmp_path, few):
    config = transition.config(DATA, variant, "quick")
    config.steps, config.log_every, config.warmup, config.batch_size = 16, 8, 1, 24
    trainer = EXPERIMENTS["image-transition"].trainer(DATA, variant, config, None)
    batch = trainer.data[:200]
    before = trainer.loss(trainer.model.eval(), batch, generator(5)).total.item()
    trainer.model.train()
    trained = trainer.run(progress=False)
    after = trainer.loss(trainer.model.eval(), batch, generator(5)).total.item()
    assert after < before  # of five seeds: 1.57 to 1.387 ± 0.012 for transition, 1.59 to 1.381 ± 0.031 for sdedit
    again = mt.load(trained.save(tmp_path / "model", {"variant": variant}))
    found, chain = transition.evaluate(again, DATA, n=12), variant in ("transition", "conditional")
    assert set(found) == {*transition.DIRECTIONS, *(("ddim", "bound") if chain else ())}
    assert found["day to night"]["ssim"] < 1
    assert ("strength" in found["sketch to day"]) == (variant == "sdedit")


def test_the_targets_snr_falls_like_the_conditional_models(model):
    """So that the schedule is not what makes a difference, at any step before the last, where nothing is left of it."""
    mine, theirs = (p.snr("target") for p in (model.process, transition.build(DATA, "conditional").process))
    torch.testing.assert_close(mine[:-1], theirs[:-1], rtol=1e-9, atol=0)
    assert mine[-1] == 0
    assert theirs[-1] < 1e-8
    assert model.process.cumulative("target")[-1] == 0
    total = model.process.cumulative("target") + model.process.cumulative("source")
    torch.testing.assert_close(total, torch.ones_like(total))


def test_by_ddim_a_transition_takes_the_path_of_the_conditional_model(model):
    """With heads that know the target: the rest of the state, in units of its noise, is the same number at every step."""
    ours, theirs = model.process, transition.build(DATA, "conditional").process
    pair = transition.pairs(DATA, "test", 6)[:]
    codes, eps = model.encode(pair), torch.randn(6, 3, 16, 16, generator=generator(0))
    for t in (100, 300, 480):
        at, at_theirs = ours.at(t, eps), theirs.at(t, eps)
        rest = ours.diffuse(codes, t, eps)[0] - at.signal * at.W["source"] * codes["source"]
        mine, other = rest / at.noise, theirs.diffuse({"target": codes["target"]}, t, eps, {"target"})[0] / at_theirs.noise
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_a_regression_learns_the_mean_and_needs_no_state():
    """Where every source has the same two targets, its least square error is their mean; the noise does not matter."""
    model = transition.build(DATA, "regression").eval()
    model.card["variant"] = "regression"
    pair = transition.pairs(DATA, "test", 6)[:]
    loss = transition.loss("regression", None)(model, pair, generator(1))
    mean = transition.translate(model, pair["source"], pair["direction"], generator=generator(1))
    assert loss.total.item() == pytest.approx((mean - pair["target"]).square().mean().item(), rel=1e-5)


def test_a_strength_without_a_figure_is_never_the_best(monkeypatch):
    left = iter([math.nan, *[1.0, 2.0, math.nan, 0.5] * 3])
    monkeypatch.setattr(transition, "translate", lambda *_, **__: None)
    monkeypatch.setattr(transition, "scores", lambda *_: {"scene": next(left)})
    train = dict.fromkeys(("source", "direction", "target"), torch.zeros(4))
    found = transition._best_strength(None, "night to day", torch.arange(2), train, None, None)
    assert found == {"strength": transition.STRENGTHS[2]}
