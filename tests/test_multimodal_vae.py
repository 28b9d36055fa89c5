"""Multimodal VAEs: experts, sub-sampled bounds against closed forms, the model, its data, and its experiment."""

import functools
import gzip
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import mtdiff as mt
from mtdiff.cli import main
from mtdiff.datasets.polydigits import COUNTS, WORLDS, polydigits, polymnist, read_mnist
from mtdiff.digit_judges import digit_judge
from mtdiff.exact import LinearLatent
from mtdiff.experiments import EXPERIMENTS, multimodal_vae, vae_scores
from mtdiff.experiments.report import markdown
from mtdiff.process import per_example
from mtdiff.vae import (
    KINDS,
    MultimodalVAE,
    Normal,
    chances,
    diffusion_decoder,
    diffusion_nats,
    product,
    stratified,
    subsets,
)

E = EXPERIMENTS["multimodal-vae"]
TINY = {"base": 4, "multipliers": (1, 2)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def images(seed=0, n=6):
    return {name: torch.rand(n, 3, 8, 8, generator=generator(seed + k)) * 2 - 1 for k, name in enumerate(("a", "b", "c"))}


def small(experts="mopoe", diffused=(), seed=0, **options):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        backbones = {name: mt.UNet((3, 8, 8), **TINY) for name in diffused}
        kinds = {name: mt.Image((3, 8, 8)) for name in ("a", "b", "c")}
        return MultimodalVAE(kinds, experts, 4, 4, backbones, **options)


# ---- experts ----


def test_the_product_of_experts_is_the_product_of_their_densities():
    experts = {name: Normal(draw(5, 3, seed=k), draw(5, 3, seed=k + 9).exp()) for k, name in enumerate("abc")}
    prior = Normal(torch.zeros(5, 3, dtype=torch.float64), torch.ones(5, 3, dtype=torch.float64))
    joint, at, other = product(experts), draw(5, 3, seed=20), draw(5, 3, seed=21)

    def unnormalised(z):
        return prior.log_prob(z) + sum(expert.log_prob(z) for expert in experts.values())

    constant = unnormalised(at) - joint.log_prob(at)
    assert torch.allclose(constant, unnormalised(other) - joint.log_prob(other), atol=1e-10)
    assert not torch.allclose(constant, unnormalised(other) - experts["a"].log_prob(other), atol=1e-2)


def test_absent_experts_change_nothing_and_with_nobody_it_is_the_prior():
    experts = {name: Normal(draw(2, 3, seed=k), draw(2, 3, seed=k + 9).exp()) for k, name in enumerate("ab")}
    some = product(experts, {"a": torch.tensor([True, False]), "b": torch.tensor([False, False])})
    alone = product({"a": experts["a"]})
    assert torch.allclose(some.mean[0], alone.mean[0])
    assert torch.allclose(some.precision[0], alone.precision[0])
    assert torch.equal(some.mean[1], torch.zeros(3, dtype=torch.float64))
    assert torch.equal(some.precision[1], torch.ones(3, dtype=torch.float64))
    assert float(some.kl()[1]) == 0
    with pytest.raises(ValueError, match="experts is empty: a product needs at least one"):
        product({})


def test_the_divergence_from_the_prior_is_that_of_torch():
    q = Normal(draw(4, 3), draw(4, 3, seed=1).exp())
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mean, q.precision**-0.5), torch.distributions.Normal(0.0, 1.0)
    )
    assert torch.allclose(q.kl(), theirs.sum(1))
    z = Normal(q.mean[:1].expand(200_000, -1), q.precision[:1].expand(200_000, -1)).draw(generator())
    assert torch.allclose(z.var(0), 1 / q.precision[0], rtol=0.02)


def test_sets_are_all_and_their_chances_are_those_of_the_posterior():
    assert subsets(3).int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert chances("mixture", 3).tolist() == pytest.approx([1 / 3] * 3 + [0] * 4)
    assert chances("mopoe", 3).tolist() == chances("product", 3).tolist() == pytest.approx([1 / 7] * 7)
    with pytest.raises(ValueError, match=r"experts must be one of \('product', 'mixture', 'mopoe'\), got 'expert'"):
        chances("expert", 3)


def test_stratified_sets_come_as_often_as_they_should_in_every_batch_and_at_every_place():
    wanted, source = chances("mopoe", 3), generator()
    rows = torch.stack([stratified(wanted, 32, source) for _ in range(700)])
    counts = torch.stack([row.bincount(minlength=7) for row in rows])
    assert set(counts.flatten().tolist()) == {4, 5}  # 32 / 7
    share = rows[:, 0].bincount(minlength=7) / 700
    assert (share - 1 / 7).abs().max() < 4 * (1 / 7 * 6 / 7 / 700) ** 0.5


# ---- the linear-Gaussian case ----


@functools.cache
def linear():
    loadings = {"a": draw(4, 3), "b": draw(2, 3, seed=1), "c": draw(5, 3, seed=2)}
    return LinearLatent(loadings, {"a": 0.8, "b": 0.7, "c": 1.3})


def test_the_bound_is_the_evidence_for_the_exact_posterior_and_below_it_for_any_other():
    model, values = linear(), linear().draw(50, generator(3))
    mean, covariance = model.posterior(values)
    assert torch.allclose(model.bound(values, mean, covariance), model.log_prob(values), atol=1e-9)
    for other in (model.bound(values, mean + 0.3, covariance), model.bound(values, mean, 1.3 * covariance)):
        assert bool((other < model.log_prob(values) - 1e-3).all())
    for given in itertools.chain.from_iterable(itertools.combinations("abc", k) for k in (1, 2)):
        q = model.posterior({name: values[name] for name in given})
        assert bool((model.bound(values, *q) < model.log_prob(values)).all())  # each is a bound by itself


def test_the_gap_is_the_divergence_from_the_posterior_of_all():
    model, values = linear(), linear().draw(20, generator(4))
    mean, covariance = model.posterior(values)
    exact = [torch.distributions.MultivariateNormal(m, covariance) for m in mean]
    part, narrow = model.posterior({"b": values["b"]})
    gap = model.log_prob(values) - model.bound(values, part, narrow)
    other = [torch.distributions.MultivariateNormal(m, narrow) for m in part]
    theirs = torch.stack([torch.distributions.kl_divergence(q, p) for q, p in zip(other, exact, strict=True)])
    assert torch.allclose(gap, theirs, rtol=1e-6)


@pytest.mark.parametrize("given", ["a", "b", "ab", "bc", "abc"])
def test_sub_sampled_gaps_have_their_closed_forms(given):
    model, n = linear(), 40_000
    values = model.draw(n, generator(5))
    mean, covariance = model.posterior({name: values[name] for name in given})
    whole = torch.linalg.inv(model.precision([*"abc"]))
    for found, expected in ((covariance, model.gap([*given])), (whole, model.least_gap([*given]))):
        gap = model.log_prob(values) - model.bound(values, mean, found)
        assert abs(float(gap.mean()) - expected) < 4 * float(gap.std()) / n**0.5 + 1e-9
    assert model.gap([*given]) >= model.least_gap([*given]) - 1e-12 >= model.information([*given]) - 2e-12 >= -1e-9
    assert (model.gap([*given]) < 1e-9) == (given == "abc")


def test_no_gaussian_of_a_part_has_a_smaller_gap_than_the_one_that_overclaims():
    model, n = linear(), 20_000
    values = model.draw(n, generator(6))
    mean, _ = model.posterior({"b": values["b"]})
    factor = torch.eye(3, dtype=torch.float64).requires_grad_()
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([factor, scale], max_iter=100, line_search_fn="strong_wolfe")

    def gap():
        optimizer.zero_grad()
        found = (model.log_prob(values) - model.bound(values, scale * mean, factor @ factor.T)).mean()
        found.backward()
        return found

    optimizer.step(gap)
    assert torch.allclose(factor @ factor.T, torch.linalg.inv(model.precision([*"abc"])), atol=1e-3)
    assert float(scale.detach()) == pytest.approx(1.0, abs=0.02)


def test_the_information_is_that_of_entropies():
    model = linear()
    a = torch.cat([model.loadings[name] for name in "abc"])
    own = torch.cat([torch.full((len(model.loadings[n]),), model.noise[n] ** 2, dtype=torch.float64) for n in "abc"])
    covariance = a @ a.T + own.diag()
    rest, part = slice(4, None), slice(None, 4)
    schur = covariance[rest, rest] - covariance[rest, part] @ torch.linalg.solve(
        covariance[part, part], covariance[part, rest]
    )
    assert model.information(["a"]) == pytest.approx(float(0.5 * (schur.logdet() - own[rest].log().sum())), rel=1e-9)


def test_with_orthogonal_loadings_our_product_is_the_exact_posterior():
    frames = {name: torch.linalg.qr(draw(6, 3, seed=k)).Q * draw(3, seed=k + 7).exp() for k, name in enumerate("ab")}
    model = LinearLatent(frames, {"a": 0.5, "b": 0.9})
    values = model.draw(10, generator(8))
    experts = {}
    for name, a in frames.items():
        precision = a.square().sum(0) / model.noise[name] ** 2
        experts[name] = Normal(values[name] @ a / model.noise[name] ** 2 / precision, precision.expand(10, -1))
    mean, covariance = model.posterior(values)
    ours = product(experts)
    assert torch.allclose(ours.mean, mean)
    assert torch.allclose(covariance, torch.diag(1 / ours.precision[0]), atol=1e-12)


def test_a_noise_level_of_mt_diffusion_is_a_total_precision_of_experts():
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(50), {"a": mt.fade_in(1.0), "b": 0.7})
    codes, t = {"a": draw(4, 6), "b": draw(4, 6, seed=1)}, torch.tensor([0, 11, 30, 50])
    mean, std = process.marginal(codes, t)
    snr = per_example(process.schedule.abar[t].logit().exp(), mean)
    weight = {name: per_example(process.cumulative(name)[t], mean) for name in codes}
    total = snr / per_example(process.schedule.abar[t].sqrt(), mean)
    experts = {name: Normal(total * weight[name] * codes[name] / (snr / 2), snr.expand_as(mean) / 2) for name in codes}
    ours = product(experts)
    assert torch.allclose(ours.mean, mean)
    assert torch.allclose(ours.precision, (1 / std**2).expand_as(mean))


def test_a_linear_model_says_what_does_not_fit():
    with pytest.raises(ValueError, match=r"loadings must be \(n_i, d\) with one d, got"):
        LinearLatent({"a": draw(2, 3), "b": draw(2, 4)}, {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match=r"noise must be a positive number for each of \['a'\]"):
        LinearLatent({"a": draw(2, 3)}, {"a": 0.0})
    with pytest.raises(KeyError, match="values names an unknown modality 'z'"):
        linear().log_prob({"z": draw(2, 3)})
    with pytest.raises(ValueError, match=r"values\['a'\] must be floating point \(B, 4\)"):
        linear().posterior({"a": draw(2, 3)})
    with pytest.raises(ValueError, match="values is empty"):
        linear().posterior({})


# ---- the model ----


@pytest.mark.parametrize("experts", KINDS)
def test_the_loss_is_the_sub_sampled_bound(experts):
    model, batch, n = small(experts), images(n=14), 14
    with torch.no_grad():
        found = model.loss(batch, generator(1))
    source, k = generator(1), stratified(model.chances, n, None) * 0
    k = stratified(model.chances, n, source)
    coded = model.encode(batch)
    kl, nats = torch.zeros(n), dict.fromkeys(batch, torch.zeros(n))
    eps = torch.randn(n, 4, generator=source)
    for row in range(n):
        inside = [name for name, here in zip(batch, model.sets[k[row]].tolist(), strict=True) if here]
        q = product({name: Normal(coded[name].mean[row : row + 1], coded[name].precision[row : row + 1]) for name in inside})
        z = q.mean + eps[row] / q.precision.sqrt()
        kl[row] = q.kl()
        for name in inside if experts == "product" else batch:
            decoder = model.decoders[name]
            law = torch.distributions.Normal(decoder.network(z), decoder.log_std.exp())
            nats[name] = nats[name].clone()
            nats[name][row] = -law.log_prob(batch[name][row : row + 1]).sum()
    assert torch.allclose(found.terms["kl"], kl.mean(), rtol=1e-4)
    for name in batch:
        assert torch.allclose(found.terms[name], nats[name].mean(), rtol=1e-4)
    expected = (kl.mean() + sum(each.mean() for each in nats.values())) / (3 * 3 * 8 * 8) + found.terms["latent"]
    assert torch.allclose(found.total, expected, rtol=1e-4)


def test_the_latent_model_changes_nothing_else():
    model, batch = small(), images()
    model.loss(batch, generator()).terms["latent"].backward()
    assert all(p.grad is None for part in (model.encoders, model.decoders) for p in part.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.prior.parameters())


def test_missing_values_are_in_no_set_and_are_not_scored():
    model, batch = small("mopoe"), images(n=4)
    gone = {**batch, "b": torch.full_like(batch["b"], float("nan"))}
    found = model.loss(gone, generator())
    assert float(found.terms["b"].detach()) == 0
    assert bool(found.total.isfinite())
    found.total.backward()
    assert all(p.grad is None or float(p.grad.abs().sum()) == 0 for p in model.encoders["b"].parameters())
    changed = model.loss({**gone, "a": 0.5 * gone["a"]}, generator())
    assert float(changed.terms["a"].detach()) != float(found.terms["a"].detach())
    data = mt.Dataset("gone", gone)
    with pytest.raises(ValueError, match="data set 'gone' has no example with a 'b': all of them are missing"):
        mt.Trainer(model, data, mt.TrainConfig(steps=1, batch_size=2), loss=MultimodalVAE.loss)


def test_the_bound_is_below_the_evidence_of_a_linear_vae_and_tight_for_its_posterior():
    class Linear(torch.nn.Module):
        def __init__(self, mean, precision):
            super().__init__()
            self.mean, self.precision = mean, precision

        def forward(self, x):
            return Normal(x @ self.mean, self.precision.expand(len(x), -1))

    frames = {name: torch.linalg.qr(draw(6, 3, seed=k)).Q for k, name in enumerate("ab")}
    exact = LinearLatent(frames, {"a": 0.5, "b": 0.9})
    model = MultimodalVAE({name: mt.Vector(6) for name in "ab"}, "product", 3).double()
    for name, a in frames.items():
        variance = exact.noise[name] ** 2
        model.encoders[name] = Linear(a, torch.full((3,), 1 / variance, dtype=torch.float64))
        model.decoders[name].network = torch.nn.Linear(3, 6, bias=False).double()
        model.decoders[name].network.weight.data = a
        model.decoders[name].log_std.data.fill_(float(np.log(exact.noise[name])))
    values = exact.draw(4000, generator(9))
    found, evidence = model.bound(values, generator(2)), exact.log_prob(values)
    assert found["total"] == pytest.approx(float(evidence.mean()), abs=4 * (6 / 4000) ** 0.5)
    model.encoders["a"].mean = 0.5 * model.encoders["a"].mean
    assert model.bound(values, generator(2))["total"] < float(evidence.mean()) - 0.3


def test_a_diffusion_decoder_costs_what_its_bound_says():
    torch.manual_seed(0)
    decoder = diffusion_decoder("a", (3, 8, 8), mt.UNet((3, 8, 8), **TINY), 4, 3).double()
    for parameter in decoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    value, z = images(n=4)["a"].double().repeat(400, 1, 1, 1), draw(4, 4).repeat(400, 1)
    with torch.no_grad():
        ours = diffusion_nats(decoder, "a", value, z, generator(1))
    theirs = mt.elbo(decoder, {"a": value, "latent": z}, generator=generator(2), importance=False)
    error = (float(ours.var()) / len(ours)) ** 0.5
    assert abs(float(ours.mean()) - theirs.diffusion) < 0.02 * theirs.diffusion + 4 * error


def test_the_image_term_reaches_the_encoders_through_the_diffusion_decoder():
    model, batch = small(diffused=["a"]), images()
    assert model.diffused == ("a",)
    for parameter in model.decoders["a"].parameters():  # the last layer of a U-Net begins as zero
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator())
    model.loss(batch, generator(), levels=(1.5, 2.4)).terms["a"].backward()
    assert all(any(float(p.grad.abs().sum()) > 0 for p in model.encoders[name].parameters()) for name in "abc")


@pytest.mark.parametrize("experts", KINDS)
def test_whatever_is_given_is_kept_and_the_rest_is_drawn_from_its_posterior(experts):
    model, batch = small(experts).eval(), images(n=6)
    given = {"b": batch["b"], "c": batch["c"]}
    drawn = mt.sample(model, 6, given=given, steps=4, generator=generator())
    assert list(drawn) == ["a", "b", "c"]
    assert torch.equal(drawn["b"], batch["b"])
    source = generator()
    chosen = None
    if experts == "mixture":
        which = torch.randint(2, (6,), generator=source)
        chosen = {"b": which == 0, "c": which == 1}
    with torch.no_grad():
        z = product(model.encode(given), chosen).draw(source)
        assert torch.allclose(drawn["a"], model.decoders["a"].network(z).clamp(-1, 1))
    one = mt.sample(model, 3, given={"b": batch["b"][:1]}, generator=generator())
    assert one["b"].shape == (3, 3, 8, 8)


def test_latents_come_from_the_diffusion_model_or_the_prior():
    model = small().eval()
    normal = mt.sample(model, 5, latent="normal", generator=generator())
    z = torch.randn(5, 4, generator=generator())
    with torch.no_grad():
        assert torch.allclose(normal["a"], model.decoders["a"].network(z).clamp(-1, 1))
    other = mt.sample(model, 5, steps=4, generator=generator())
    assert not torch.allclose(other["a"], normal["a"])


def test_a_diffusion_decoder_draws_what_the_data_are():
    """One latent number says how bright a flat image is: a chain of the trained decoder draws that brightness."""
    level = torch.rand(256, generator=generator()) * 1.6 - 0.8
    noise = 0.05 * torch.randn(2, 256, 1, 8, 8, generator=generator(1))
    flat = level[:, None, None, None].expand(-1, 1, 8, 8)
    data = mt.Dataset("flat", {"a": flat + noise[0], "b": flat + noise[1]})
    torch.manual_seed(0)
    kinds = {name: mt.Image((1, 8, 8)) for name in "ab"}
    model = MultimodalVAE(kinds, "mopoe", 2, 8, {"a": mt.UNet((1, 8, 8), base=8, multipliers=(1,))})
    config = mt.TrainConfig(steps=250, batch_size=32, lr=3e-3, ema=0.95, warmup=20)
    loss = functools.partial(MultimodalVAE.loss, levels=(0.5, 2.4))
    model = mt.Trainer(model, data, config, loss=loss).run(progress=False)
    drawn = mt.sample(model, 64, given={"b": data.values["b"][:64]}, steps=25, generator=generator(2))
    bright = drawn["a"].mean((1, 2, 3))
    follows, by_chance = (float(torch.corrcoef(torch.stack([bright, level[k : k + 64]]))[0, 1]) for k in (0, 64))
    assert follows > 0.7 > 0.4 > abs(by_chance)


def test_a_vae_is_saved_and_loaded_whole(tmp_path):
    model, batch = small(diffused=["a"]).eval(), images()
    model.save(tmp_path / "vae", {"experiment": "multimodal-vae"})
    again = mt.load(tmp_path / "vae")
    assert type(again) is MultimodalVAE
    assert again.config == model.config
    given, options = {"c": batch["c"]}, {"steps": 3, "generator": None}
    one, two = (mt.sample(m, 6, given=given, **{**options, "generator": generator()}) for m in (model, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert again.card["experiment"] == "multimodal-vae"
    with pytest.raises(ValueError, match=r"unknown model kind 'MultimodalVAE'|MultimodalVAE"):
        mt.load(tmp_path / "vae", kind=mt.MTDiffusion)
    with pytest.raises(ValueError, match="only MT-Diffusion begins with another's weights, not a MultimodalVAE"):
        mt.transfer(small(), again)


def test_what_a_vae_is_not_is_said_in_a_line():
    with pytest.raises(ValueError, match=r"experts must be one of \('product', 'mixture', 'mopoe'\), got 'barycentre'"):
        small("barycentre")
    with pytest.raises(ValueError, match="modalities is empty: a multimodal VAE needs at least one"):
        MultimodalVAE({})
    with pytest.raises(ValueError, match=r"'x': a multimodal VAE has networks for .*, not for a Mask"):
        MultimodalVAE({"x": mt.Mask((8, 8))})
    with pytest.raises(ValueError, match=r"diffused names 'label', which is no image of this model: \['label'\]"):
        MultimodalVAE({"label": mt.Label(4)}, diffused={"label": mt.UNet((3, 8, 8), **TINY)})
    with pytest.raises(ValueError, match=r"height and width must be multiples of 4, got \(3, 6, 6\)"):
        MultimodalVAE({"x": mt.Image((3, 6, 6))})
    with pytest.raises(ValueError, match=r"the backbone works on \(3, 16, 16\), but the space is \(3, 8, 8\)"):
        MultimodalVAE({"x": mt.Image((3, 8, 8))}, diffused={"x": mt.UNet((3, 16, 16), **TINY)})
    model, batch = small(), images()
    with pytest.raises(KeyError, match="given names an unknown modality 'd'"):
        mt.sample(model, 6, given={"d": batch["a"]})
    with pytest.raises(ValueError, match=r"given: 'a' must be floating point \(B, 3, 8, 8\)"):
        mt.sample(model, 6, given={"a": batch["a"][:, :1]})
    with pytest.raises(ValueError, match="given has 6 examples, expected 1 or 4"):
        mt.sample(model, 4, given={"a": batch["a"]})
    with pytest.raises(ValueError, match=r"a multimodal VAE has no options \['guidance', 'rule'\]: it draws a latent"):
        mt.sample(model, 4, rule="conditioned", guidance=2.0)
    with pytest.raises(ValueError, match=r"latent must be one of \('diffusion', 'normal'\), got 'score'"):
        mt.sample(model, 4, latent="score")
    with pytest.raises(KeyError, match=r"batch lacks \['c'\]; it has \['a', 'b'\]"):
        model.loss({name: batch[name] for name in "ab"}, generator())
    with pytest.raises(ValueError, match="values is empty"):
        model.posterior({})


def test_words_and_maps_have_networks_too():
    kinds = {"image": mt.Image((3, 8, 8)), "map": mt.LabelMap(4, (8, 8)), "label": mt.Label(5), "point": mt.Vector(3)}
    model = MultimodalVAE(kinds, "mopoe", 4, 4)
    batch = {
        "image": torch.rand(6, 3, 8, 8) * 2 - 1,
        "map": torch.randint(4, (6, 8, 8)),
        "label": torch.arange(6) % 5,
        "point": torch.randn(6, 3),
    }
    assert bool(model.loss(batch, generator()).total.isfinite())
    drawn = mt.sample(model.eval(), 6, given={"label": batch["label"]}, steps=3)
    model.check(drawn)
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {n: tuple(v.shape) for n, v in batch.items()}


# ---- data ----


def test_the_three_worlds_show_one_digit_and_share_nothing_else():
    data = polydigits("test", 200)
    assert {name: tuple(data.values[name].shape) for name in WORLDS} == dict.fromkeys(WORLDS, (200, 3, 16, 16))
    assert all(float(data.values[name].abs().max()) <= 1 for name in WORLDS)
    assert data.hash() == polydigits("test", 200).hash()
    judge = digit_judge()
    read = torch.stack([judge.read(data.values[name]) for name in WORLDS])
    assert float((read == data.values["label"]).double().mean()) > 0.9
    one, other = (data.values[name].mean(1).flatten(1) for name in ("temple", "flower"))
    ink = [x - x.mean(0) for x in (one, other)]
    same = torch.nn.functional.cosine_similarity(*ink).abs()
    assert float((same > 0.95).double().mean()) < 0.05  # not one writing twice
    assert data.values["label"].bincount(minlength=10).min() > 5


def test_train_and_test_share_no_writing():
    train, test = (mt.datasets.digits(split).values["image"].flatten(1) for split in ("train", "test"))
    assert float(torch.cdist(test, train).min()) > 0
    with pytest.raises(ValueError, match="split must be one of"):
        polydigits("all")
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        polydigits("test", 0)


def idx(values):
    return b"\0\0\x08" + bytes([values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """The same small MNIST in both layouts."""
    source = np.random.default_rng(0)
    arrays = {}
    for split, short, n in (("train", "train", 40), ("test", "t10k", 30)):
        x, y = source.integers(0, 256, (n, 28, 28), dtype=np.uint8), (np.arange(n) % 10).astype(np.uint8)
        arrays |= {f"x_{split}": x, f"y_{split}": y}
        (tmp_path / f"{short}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x)))
        (tmp_path / f"{short}-labels-idx1-ubyte").write_bytes(idx(y))
    np.savez(tmp_path / "mnist.npz", **arrays)
    return tmp_path


def test_mnist_of_ones_own_is_read_in_both_layouts(mnist, monkeypatch):
    for split in ("train", "test"):
        one, two = read_mnist(str(mnist), split), read_mnist(str(mnist / "mnist.npz"), split)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    monkeypatch.setenv("MTDIFF_MNIST", str(mnist))
    data = polymnist("test", 12)
    assert data.values["temple"].shape == (12, 3, 32, 32)


def test_mnist_that_is_not_there_or_not_whole_is_named(mnist, monkeypatch):
    monkeypatch.delenv("MTDIFF_MNIST", raising=False)
    with pytest.raises(FileNotFoundError, match="set MTDIFF_MNIST to your MNIST"):
        polymnist()
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte or train-images-idx3-ubyte\.gz in"):
        read_mnist(str(mnist / "nowhere"), "train")
    labels = mnist / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"is truncated: it says \[30\], and has 29 bytes"):
        read_mnist(str(mnist), "test")
    labels.write_bytes(b"what is this")
    with pytest.raises(ValueError, match="is no IDX file of bytes"):
        read_mnist(str(mnist), "test")
    np.savez(mnist / "odd.npz", images=np.zeros(3))
    with pytest.raises(ValueError, match=r"has \['images'\], expected \['x_test', 'y_test'\]"):
        read_mnist(str(mnist / "odd.npz"), "test")


# ---- the experiment ----


@pytest.fixture
def few(monkeypatch):
    """A data set of few examples, so that every variant trains and is judged in seconds."""
    monkeypatch.setitem(COUNTS, "train", 120)
    monkeypatch.setitem(COUNTS, "test", 80)
    monkeypatch.setattr(multimodal_vae.any_to_any, "EXAMPLES", 60)
    monkeypatch.setattr(vae_scores, "PROBED", 100)
    monkeypatch.setattr(vae_scores, "STEPS", 2)
    multimodal_vae.examples.cache_clear()
    yield
    multimodal_vae.examples.cache_clear()


@pytest.mark.parametrize("data", ["polydigits", "shapes16"])
@pytest.mark.parametrize("variant", E.variants)
def test_every_variant_trains_draws_and_is_judged(data, variant, few):
    config = replace(E.config(data, variant, "quick"), steps=2, batch_size=8)
    model = E.trainer(data, variant, config, None).run(progress=False)
    found = E.evaluate(model, data, 0, 70)
    names = list(model.modalities)
    assert len(found["given"]) == 6
    assert set(found["mean"]) == set(names)
    assert 0 <= found["coherence"] <= 1
    assert set(found["joint"]) == ({"chain"} if variant == "mt" else {"diffusion", "normal"})
    assert set(found["probe"]) == {*names, "all"}
    assert ("bound" in found) == (variant != "mt")


def test_the_seed_decides_and_twins_begin_alike():
    ff, other, again = (E.build("polydigits", "mopoe", seed).state_dict() for seed in (0, 1, 0))
    name = "encoders.temple.body.0.weight"
    assert torch.equal(ff[name], again[name])
    assert not torch.equal(ff[name], other[name])
    for variant in ("product", "mixture", "mopoe-diffusion"):
        assert torch.equal(E.build("polydigits", variant, 0).state_dict()[name], ff[name])
    assert E.build("polydigits", "mopoe-diffusion").diffused == ("temple",)
    with pytest.raises(ValueError, match="mopoe has no diffusion decoder: it takes no backbone"):
        E.build("polydigits", "mopoe", backbone=mt.DiT)


def test_perfect_draws_have_perfect_figures(monkeypatch, few):
    test = multimodal_vae.examples("polydigits", "test")

    def perfect(model, n, given=None, **options):
        return {name: test.values[name][:n] for name in WORLDS}

    monkeypatch.setattr(vae_scores, "sample_many", perfect)
    model = E.build("polydigits", "mopoe").eval()
    found = vae_scores.evaluate(model, "polydigits", multimodal_vae.examples, n=80)
    assert found["coherence"] > 0.85
    assert found["mean"]["temple"]["distance"] < 1e-3
    shuffled = {name: value.roll(k, 0) for k, (name, value) in enumerate(test.values.items()) if name in WORLDS}
    monkeypatch.setattr(vae_scores, "sample_many", lambda model, n, **options: {k: v[:n] for k, v in shuffled.items()})
    worse = vae_scores.evaluate(model, "polydigits", multimodal_vae.examples, n=80)
    assert worse["joint"]["normal"]["coherence"] < 0.3 < found["joint"]["normal"]["coherence"]
    assert found["joint"]["normal"]["chance"] < 0.3
    eight = {name: test.values[name][test.values["label"] == 8][:1].expand(80, -1, -1, -1) for name in WORLDS}
    monkeypatch.setattr(vae_scores, "sample_many", lambda *args, **options: eight)
    always = vae_scores.evaluate(model, "polydigits", multimodal_vae.examples, n=80)
    assert always["joint"]["normal"]["chance"] == 1  # whoever draws one digit always agrees, by chance


def test_commands_train_draw_and_judge_a_vae(tmp_path, monkeypatch, capsys, few):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["mtdiff", *words])
        main()

    monkeypatch.chdir(tmp_path)
    run("train", "multimodal-vae", "--data", "polydigits", "--steps", "2", "--batch-size", "8", "--out", "vae")
    run("info", "vae")
    assert "temple: Image, diffusion decoder" in capsys.readouterr().out
    run("sample", "vae", "--n", "4", "--steps", "2", "--given", "trees=test:3", "--out", "drawn.npz")
    with np.load("drawn.npz") as drawn:
        assert set(drawn) == set(WORLDS)
    run("evaluate", "multimodal-vae", "--models", "vae", "--n", "70", "--out", "found.json")
    assert "mopoe-diffusion" in markdown(["found.json"])
    for words, said in (
        (["sample", "vae", "--guidance", "2"], "a multimodal VAE has no options ['guidance']"),
        (["export", "vae", "vae.onnx"], "only the predictions of MT-Diffusion can be exported, not a MultimodalVAE"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            run(*words)
        assert said in capsys.readouterr().err
