import math
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import generator, randomise
from hypothesis import given, settings
from hypothesis import strategies as st

import mtdiff as mt
from mtdiff.backbones import Backbone, DiffusersUNet
from mtdiff.training import TrainConfig, Trainer

KINDS = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def inputs(backbone, n=2, seed=0):
    g = generator(seed)
    z = torch.randn(n, *backbone.space, generator=g)
    return z, torch.rand(n, generator=g), torch.randn(n, backbone.embedding, generator=g)


BACKBONES = {
    "mlp": lambda: mt.MLP((6,), width=16, blocks=2),
    "mlp on an image": lambda: mt.MLP((1, 4, 4), width=16, blocks=1),
    "unet": lambda: mt.UNet((2, 8, 8), base=8, multipliers=(1, 2), attention=(8,), head_channels=4),
    "dit": lambda: mt.DiT((2, 8, 4), width=16, blocks=2, heads=2),
    "diffusers": lambda: DiffusersUNet((2, 8, 4), (8, 16), *KINDS, norm_num_groups=4),
    "deep unet": lambda: mt.UNet((3, 8, 16), base=8, multipliers=(1, 2, 3), blocks=2),
}


@given(
    channels=st.integers(1, 5),
    base=st.sampled_from([4, 8, 12]),
    multipliers=st.sampled_from([(1,), (1, 2), (2, 1, 3)]),
    blocks=st.integers(1, 2),
    n=st.integers(1, 3),
)
@settings(max_examples=15)
def test_shapes_of_the_unet(channels, base, multipliers, blocks, n):
    unet = mt.UNet((channels, 8, 4), base, multipliers, blocks, attention=(8,))
    features, pooled = unet(*inputs(unet, n))
    assert features.shape == (n, base * multipliers[0], 8, 4)
    assert pooled.shape == (n, unet.pooled) == (n, base * multipliers[-1])
    assert unet.readout((2, 8, 4))(features).shape == (n, 2, 8, 4)


@given(space=st.sampled_from([(1,), (5,), (1, 4, 4)]), width=st.sampled_from([8, 20]), n=st.integers(1, 3))
@settings(max_examples=15)
def test_shapes_of_the_mlp(space, width, n):
    mlp = mt.MLP(space, width)
    features, pooled = mlp(*inputs(mlp, n))
    assert features.shape == pooled.shape == (n, width)
    assert mlp.readout((3, 2))(features).shape == (n, 3, 2)


def test_the_sinusoids_of_the_clock_are_not_rounded_with_the_network():
    """What the MLP sees. The fastest runs over 1000 radians, which bfloat16 would round to multiples of 4."""
    u, seen = torch.arange(1001) / 1000, {}
    for dtype in (torch.float64, torch.bfloat16):
        level = mt.MLP((2,), width=32).level.to(dtype)
        level.mlp.register_forward_pre_hook(lambda _, arguments, dtype=dtype: seen.update({dtype: arguments[0]}))
        level(u)
    assert seen[torch.bfloat16].dtype == torch.bfloat16
    assert float((seen[torch.bfloat16].double() - seen[torch.float64]).abs().max()) < 2**-8  # the rounding of the sinusoids
    exact = torch.exp(torch.linspace(0, math.log(1000), 8, dtype=torch.float64)) * u[:, None].double()
    torch.testing.assert_close(seen[torch.float64], torch.cat([exact.sin(), exact.cos()], 1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", BACKBONES)
def test_the_readout_begins_at_zero(name):
    backbone = BACKBONES[name]()
    features, _ = backbone(*inputs(backbone))
    assert features.abs().max() > 0
    assert bool((backbone.readout(backbone.space)(features) == 0).all())


@pytest.mark.parametrize("name", BACKBONES)
def test_level_and_condition_change_the_features(name):
    backbone = randomise(BACKBONES[name]())
    z, u, condition = inputs(backbone)
    for i in (0, 1):
        before = backbone(z, u, condition)[i]
        assert not torch.allclose(before, backbone(z, u + 0.3, condition)[i], atol=1e-3)
        assert not torch.allclose(before, backbone(z, u, condition + 1)[i], atol=1e-3)
        assert torch.equal(backbone(z, u)[i], backbone(z, u, torch.zeros_like(condition))[i])


@pytest.mark.parametrize("name", BACKBONES)
def test_examples_do_not_see_each_other(name):
    backbone = randomise(BACKBONES[name]()).double()
    z, u, condition = (value.double() for value in inputs(backbone, 3))
    whole = backbone(z, u, condition)
    for b in range(3):
        one = backbone(z[b : b + 1], u[b : b + 1], condition[b : b + 1])
        for i in (0, 1):
            assert torch.allclose(whole[i][b : b + 1], one[i], atol=1e-10)


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_reach_every_parameter(name):
    backbone = BACKBONES[name]()
    readout = backbone.readout(backbone.space)
    randomise(backbone), randomise(readout)
    features, pooled = backbone(*inputs(backbone))
    weights = torch.randn(pooled.shape, generator=generator(1))
    (readout(features).square().sum() + (pooled * weights).sum()).backward()
    for part in (backbone, readout):
        silent = [n for n, p in part.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
        assert not silent


def test_attention_mixes_all_positions():
    unet = mt.UNet((1, 8, 8), base=8, multipliers=(1,), attention=(8,))
    randomise(unet)
    z, u, _ = inputs(unet, 1)
    far = z.clone()
    far[..., 7, 7] += 5
    assert not torch.allclose(unet(z, u)[0][..., 0, 0], unet(far, u)[0][..., 0, 0], atol=1e-5)


def test_small_unet_has_the_size_that_fits_a_laptop():
    assert parameters(mt.UNet((1, 8, 8), base=20, multipliers=(1, 2), attention=(4,))) == pytest.approx(0.3e6, rel=0.02)


def test_attention_at_a_height_that_no_level_has_is_refused():
    with pytest.raises(ValueError, match=r"attention must be among the heights \[8, 4\].* got \(16,\)"):
        mt.UNet((1, 8, 8), base=8, multipliers=(1, 2), attention=(16,))


def test_adm_like_at_64_has_the_size_that_the_docstring_says():
    with torch.device("meta"):
        adm = mt.UNet((3, 64, 64), base=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8))
        readout = adm.readout((3, 64, 64))
    assert parameters(adm) + parameters(readout) == pytest.approx(277e6, rel=0.005)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_is_rebuilt_from_its_config(name):
    backbone = BACKBONES[name]()
    again = Backbone.from_config(backbone.config)
    assert again.config == backbone.config
    again.load_state_dict(backbone.state_dict())
    arguments = inputs(backbone)
    assert torch.equal(backbone(*arguments)[0], again(*arguments)[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mt.UNet((3, 10, 8), multipliers=(1, 2, 2)), r"divisible by 4, got \(3, 10, 8\)"),
        (lambda: mt.UNet((3, 8, 6), multipliers=(1, 2, 2)), "divisible by 4"),
        (lambda: mt.UNet((8,)), r"space must be \(C, H, W\)"),
        (lambda: mt.UNet((1, 8, 8), base=20, multipliers=(1,), head_channels=6), "20 channels cannot be split over 3"),
        (lambda: mt.UNet((1, 8, 8)).readout((1, 4, 4)), "height and width differ"),
        (lambda: mt.DiT((1, 8, 8)).readout((1, 4, 4)), r"a DiT on \(1, 8, 8\) cannot write .* height and width differ"),
        (lambda: DiffusersUNet((1, 8, 8)).entrance((1, 4, 4)), "cannot take .* height and width differ"),
        (lambda: mt.DiT((3, 8, 10), patch=4), r"H and W divisible by 4, got \(3, 8, 10\)"),
        (lambda: mt.DiT((8,)), r"space must be \(C, H, W\)"),
        (lambda: mt.DiT((1, 8, 8), width=20, heads=3), "a width of 20 cannot be split over 3 attention heads"),
        (lambda: mt.DiT((1, 8, 8), blocks=0), "blocks must be a whole number from 1 on"),
        (lambda: DiffusersUNet((1, 6, 8)), r"H and W divisible by 4, got \(1, 6, 8\)"),
        (lambda: DiffusersUNet((1, 8, 8), (8, 8), ("SkipDownBlock2D",) * 2, ("SkipUpBlock2D",) * 2), "no place for"),
        (lambda: Backbone.from_config({"kind": "Transformer"}), "unknown backbone kind 'Transformer'"),
    ],
)
def test_bad_backbones_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- what a backbone can be told beside a vector ----


@pytest.mark.parametrize("name", BACKBONES)
def test_an_entrance_is_a_concatenation(name):
    """enter(z) + entrance(x) is one layer on both together, its weights stacked; seen through the whole network."""
    backbone = randomise(BACKBONES[name]()).double()
    z, u, _ = (value.double() for value in inputs(backbone))
    x = torch.randn(z.shape, dtype=torch.float64, generator=generator(1))
    entrance = randomise(backbone.entrance(backbone.space), 1).double()
    told = backbone(z, u, context=entrance(x))

    layer = next(m for m in entrance.modules() if hasattr(m, "weight"))
    enter = backbone.net.conv_in if isinstance(backbone, DiffusersUNet) else backbone.enter
    both = torch.cat([enter.weight, layer.weight], 1), enter.bias + layer.bias
    if isinstance(backbone, mt.MLP):
        first = F.linear(torch.cat([z.flatten(1), x.flatten(1)], 1), *both)
    else:
        first = F.conv2d(torch.cat([z, x], 1), *both, stride=enter.stride, padding=enter.padding)
    enter.forward = lambda _: first
    for a, b in zip(told, backbone(z, u), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_an_entrance_takes_other_channels_but_not_another_size():
    unet = mt.UNet((2, 8, 8), base=8, multipliers=(1,))
    assert unet.entrance((5, 8, 8))(torch.zeros(3, 5, 8, 8)).shape == (3, 8, 8, 8)
    with pytest.raises(ValueError, match=r"cannot take .* height and width differ"):
        unet.entrance((2, 4, 4))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (lambda: mt.MLP((6,), width=16), r"an MLP cannot attend to tokens: use a DiT, or a UNet with cross="),
        (lambda: DiffusersUNet((1, 8, 8)), r"a DiffusersUNet cannot attend to tokens: use a DiT"),
        (lambda: mt.UNet((1, 8, 8), base=8), r"this UNet cannot attend to tokens: build it with cross="),
    ],
)
def test_tokens_need_cross_attention(backbone, message):
    backbone = backbone()
    z, u, _ = inputs(backbone)
    assert not backbone.attends
    with pytest.raises(ValueError, match=message):
        backbone(z, u, tokens=torch.zeros(2, 3, backbone.embedding))


def test_cross_attention_at_a_height_that_no_level_has_is_refused():
    with pytest.raises(ValueError, match=r"cross must be among the heights \[8, 4\].* got \(16,\)"):
        mt.UNet((1, 8, 8), base=8, multipliers=(1, 2), cross=(16,))


@pytest.mark.parametrize("make", [lambda: mt.UNet((2, 8, 4), base=8, multipliers=(1, 2), cross=(4,)), BACKBONES["dit"]])
def test_attention_hears_the_kept_tokens_and_no_others(make):
    """Tokens that are not kept are as none; their order does not matter (positions are the caption's business)."""
    net = randomise(make()).double()
    z, u, _ = (value.double() for value in inputs(net))
    tokens = torch.randn(2, 3, net.embedding, dtype=torch.float64, generator=generator(1))
    none, every = net(z, u)[0], net(z, u, tokens=tokens)[0]
    keep = torch.tensor([[True, True, False], [False, False, False]])
    some = net(z, u, tokens=tokens, keep=keep)[0]
    assert not torch.allclose(none, every, atol=1e-3)
    assert torch.allclose(some[1], none[1], atol=1e-10)
    assert torch.allclose(some[0], net(z, u, tokens=tokens[:, :2])[0][0], atol=1e-10)
    assert torch.allclose(every, net(z, u, tokens=tokens[:, [2, 0, 1]])[0], atol=1e-10)
    assert torch.allclose(every, net(z, u, tokens=tokens, keep=torch.ones_like(keep))[0], atol=1e-10)


def test_a_pooled_vector_of_cells_keeps_what_was_where():
    """Its mean over cells is the vector of one cell, and cells differ."""
    torch.manual_seed(0)
    one, four = (mt.UNet((1, 8, 8), base=8, multipliers=(1, 2), cells=cells).eval() for cells in (1, 2))
    four.load_state_dict(one.state_dict())
    z, u = torch.randn(3, 1, 8, 8), torch.full((3,), 0.5)
    with torch.no_grad():
        (_, mean), (_, pooled) = one(z, u), four(z, u)
    assert pooled.shape == (3, four.pooled) == (3, 4 * one.pooled)
    cells = pooled.unflatten(1, (one.pooled, 4))
    torch.testing.assert_close(cells.mean(2), mean)
    assert bool((cells.std(2) > 1e-4).any())


@pytest.mark.parametrize(
    ("backbone", "hidden"),
    [(lambda: mt.MLP((4,), width=300, blocks=1), 300), (lambda: mt.UNet((1, 8, 8), 8, (1, 2), cells=2), 32)],
)
def test_a_head_is_as_wide_as_the_pooled_vector_of_one_cell_or_cells_times_that(backbone, hidden):
    backbone, label = backbone(), mt.Label(3)
    label.attach("it", backbone.space, backbone)
    assert label.out[0].weight.shape == (hidden, backbone.pooled)


# ---- the transformer, and diffusers' network ----


@given(
    channels=st.integers(1, 4),
    size=st.sampled_from([(4, 8), (8, 4)]),
    patch=st.sampled_from([1, 2, 4]),
    heads=st.integers(1, 2),
    n=st.integers(1, 3),
)
@settings(max_examples=15)
def test_shapes_of_the_dit(channels, size, patch, heads, n):
    dit = mt.DiT((channels, *size), 8 * heads, 1, heads, patch)
    features, pooled = dit(*inputs(dit, n))
    assert features.shape == (n, 32 // patch**2, 8 * heads)
    assert pooled.shape == (n, dit.pooled)
    torch.testing.assert_close(pooled, features.mean(1))
    assert dit.readout((3, *size))(features).shape == (n, 3, *size)
    assert dit.entrance((5, *size))(torch.zeros(n, 5, *size)).shape == dit.enter(torch.zeros(n, channels, *size)).shape


def test_a_patch_is_read_from_and_written_to_its_own_place():
    """Without blocks, positions and norm a patch acts on its own place: 2x2 pixels of the first row, the fourth column."""
    dit = randomise(mt.DiT((1, 4, 8), width=8, blocks=1, heads=1))
    readout = randomise(dit.readout(dit.space), 1)
    dit.blocks, dit.norm = torch.nn.ModuleList(), torch.nn.Identity()
    z, u, _ = inputs(dit, 1)
    other = z.clone()
    other[..., 1, 6] += 1
    with torch.no_grad():
        moved = (readout(dit(other, u)[0]) - readout(dit(z, u)[0])).abs() > 1e-6
    assert moved[0, 0].nonzero().tolist() == [[0, 6], [0, 7], [1, 6], [1, 7]]


def test_a_dit_begins_without_blocks_and_mixes_all_patches_later():
    dit = mt.DiT((1, 8, 8), width=16, blocks=2, heads=2)
    z, u, condition = inputs(dit, 1)
    far = z.clone()
    far[..., 7, 7] += 5
    assert torch.equal(dit(z, u)[0], dit(z, u + 0.3, condition)[0])
    assert torch.equal(dit(z, u)[0][:, 0], dit(far, u)[0][:, 0])
    randomise(dit)
    assert not torch.allclose(dit(z, u)[0][:, 0], dit(far, u)[0][:, 0], atol=1e-5)


def test_dit_s_2_has_the_size_that_the_paper_says():
    with torch.device("meta"):
        dit = mt.DiT((4, 32, 32), width=384, blocks=12, heads=6)
    assert parameters(dit) == pytest.approx(33e6, rel=0.03)  # Peebles and Xie 2023, table 4


def test_the_adapter_computes_what_diffusers_computes():
    net = randomise(DiffusersUNet((2, 8, 4), (8, 16), *KINDS, norm_num_groups=4))
    readout = randomise(net.readout((1, 8, 4)))
    z, u, _ = inputs(net)
    with torch.no_grad():
        ours = readout(net(z, u)[0])
        net.net.conv_out = readout
        theirs = net.net(z, 1000 * u).sample
    torch.testing.assert_close(ours, theirs)


def test_without_diffusers_the_adapter_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"DiffusersUNet needs diffusers: pip install 'mtdiff\[diffusers\]'"):
        DiffusersUNet((1, 8, 8))


def narrow(kind):
    """A class of a reader's own, with fewer arguments than its parent."""

    def __init__(self, space):
        kind.__init__(self, space, 8)

    return type(f"Narrow{kind.__name__}", (kind,), {"__init__": __init__})


NARROW = [lambda kind=kind: narrow(kind)((2, 8, 8)) for kind in (mt.MLP, mt.UNet, mt.DiT)]


@pytest.mark.parametrize("make", [BACKBONES["dit"], BACKBONES["diffusers"], *NARROW])
def test_a_model_trains_saves_and_loads(make, tmp_path):
    torch.manual_seed(0)
    backbone = make()
    space = backbone.space
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20), {"image": 1.0, "hint": 0.0, "label": mt.fade_in(1.0)})
    modalities = {"image": mt.Image(space), "hint": mt.Image(space, tell=True), "label": mt.Label(3)}
    model = mt.MTDiffusion(process, modalities, backbone, space)
    batch = {name: torch.rand(8, *space, generator=generator()) * 2 - 1 for name in ("image", "hint")}
    data = mt.Dataset("noise", {**batch, "label": torch.arange(8) % 3})
    config = TrainConfig(steps=3, batch_size=4, give={"hint": 0.5, "label": 0.5})
    trained = Trainer(model, data, config).run(progress=False).eval()
    again = mt.load(trained.save(tmp_path / "model"))
    assert type(again.backbone) is type(backbone)
    z, given = torch.randn(2, *space), {"hint": batch["hint"][:2]}
    assert torch.equal(again.predict(z, 9, given=given).aggregate, trained.predict(z, 9, given=given).aggregate)
    assert not torch.equal(again.predict(z, 9).aggregate, again.predict(z, 9, given=given).aggregate)
    assert mt.sample(again, 2, steps=2)["image"].shape == (2, *space)
