import math

import pytest
import torch
import torch.nn.functional as F
from helpers import generator, law_of, randn, randomise, standard_error
from hypothesis import given
from hypothesis import strategies as st

import mtdiff as mt
from mtdiff.laws import gaussian_log_prob
from mtdiff.modalities import Continuous, Modality, View, simplex_codes
from mtdiff.modalities.label import class_names


def attached(modality, space=(6,)):
    modality.attach("it", space, mt.MLP(space, width=16, blocks=1))
    return modality


@given(classes=st.integers(2, 12), extra=st.integers(0, 20), seed=st.integers(0, 99))
def test_simplex_codes_are_a_regular_simplex(classes, extra, seed):
    size = classes - 1 + extra
    codes = simplex_codes(classes, (size,), seed).double()
    assert torch.allclose(codes.square().mean(1), torch.ones(classes).double(), atol=1e-5)
    assert codes.sum(0).abs().max() < 1e-5 * classes
    apart = torch.cdist(codes, codes)[~torch.eye(classes, dtype=torch.bool)]
    assert torch.allclose(apart, apart.mean().expand_as(apart), rtol=1e-5)
    assert float(apart.mean()) == pytest.approx(math.sqrt(2 * size * classes / (classes - 1)), rel=1e-5)


def test_simplex_codes_depend_on_their_seed_alone():
    torch.manual_seed(5)
    first = simplex_codes(10, (1, 8, 8), seed=3)
    torch.manual_seed(6)
    assert first.shape == (10, 1, 8, 8)
    assert torch.equal(first, simplex_codes(10, (1, 8, 8), seed=3))
    assert not torch.equal(first, simplex_codes(10, (1, 8, 8), seed=4))
    assert torch.equal(simplex_codes(10, (1, 8, 8)), simplex_codes(10, (1, 8, 8), seed=0))
    assert torch.equal(simplex_codes(10, (8,), seed=3), simplex_codes(10, (8,), seed=3)), "too few dimensions for a simplex"


def test_simplex_codes_are_the_same_whatever_lapack_chooses(monkeypatch):
    """Columns of an orthonormal frame have either sign, and equal singular values any basis: processors choose otherwise."""
    first, qr, svd = simplex_codes(5, (7,)), torch.linalg.qr, torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "qr", lambda a: torch.return_types.linalg_qr([-part for part in qr(a)]))
    monkeypatch.setattr(torch.linalg, "svd", lambda a: torch.return_types.linalg_svd([*svd(a)[:2], svd(a).Vh.roll(1, 0)]))
    assert torch.allclose(simplex_codes(5, (7,)), first)


@pytest.mark.parametrize(("classes", "size"), [(4, 2), (10, 8)])
def test_no_two_classes_share_a_code(classes, size):
    for seed in range(20):
        codes = simplex_codes(classes, (size,), seed)
        assert torch.allclose(codes.square().mean(1), torch.ones(classes))
        assert len(codes.unique(dim=0)) == classes


def test_codes_are_written_to_their_channels_alone():
    label = attached(mt.Label(3, channels=slice(1, 3)), (4, 2, 2))
    code = label.encode(torch.tensor([0, 2]))
    assert code.shape == (2, 4, 2, 2)
    assert bool((code[:, [0, 3]] == 0).all())
    assert torch.equal(code[:, 1:3], label.codes[[0, 2]])
    assert torch.equal(label.take(code), label.codes[[0, 2]])


@given(start=st.integers(0, 4), length=st.integers(1, 3))
def test_take_undoes_place(start, length):
    vector = attached(mt.Vector(length, channels=slice(start, start + length)), (7,))
    code = randn(2, length)
    whole = vector.place(code)
    assert torch.equal(vector.take(whole), code)
    assert int((whole != 0).sum()) == code.numel()


def test_an_open_slice_runs_to_the_end():
    assert attached(mt.Vector(2, channels=slice(4, None))).slice_shape == (2,)


def test_what_is_missing_is_filled_with_zeros_whatever_its_shape():
    value = torch.tensor([[1.0, 2.0], [math.nan, math.nan], [4.0, 5.0]])
    assert mt.Vector(2).missing(value).tolist() == [False, True, False]
    assert mt.Vector(2).filled(value).tolist() == [[1.0, 2.0], [0.0, 0.0], [4.0, 5.0]]
    assert mt.Label(3).filled(torch.tensor([2, -1])).tolist() == [2, 0]
    assert mt.Label(3).missing(torch.tensor([2, -1])).tolist() == [False, True]
    maps = torch.tensor([[[0, 1]], [[-1, -1]]])
    assert mt.LabelMap(2, (1, 2)).missing(maps).tolist() == [False, True]
    assert mt.LabelMap(2, (1, 2)).filled(maps).tolist() == [[[0, 1]], [[0, 0]]]
    bits = mt.Mask((1, 2)).missing(torch.zeros(3, 1, 1, 2, dtype=torch.bool))
    assert (bits.dtype, bits.tolist()) == (torch.bool, [False] * 3)


def test_what_is_missing_in_part_is_no_missing_value_but_a_wrong_one():
    value = torch.tensor([[math.nan, 3.0], [4.0, 5.0]])
    assert mt.Vector(2).missing(value).tolist() == [False, False]
    with pytest.raises(ValueError, match="not finite"):
        attached(mt.Vector(2, channels=slice(4, None))).check(value)


def test_the_smallest_of_each_kind_will_do():
    assert mt.Label(2).classes == mt.LabelMap(2, (1, 1)).classes == mt.Image((1, 1, 1), levels=2).levels == 2
    assert mt.Caption(["a", "b"], 1).length == 1
    assert attached(mt.Vector(1, channels=slice(0, 1))).encode(torch.ones(1, 1)).tolist() == [[1.0, 0, 0, 0, 0, 0]]
    assert attached(mt.Vector(1, channels=slice(5, 6))).encode(torch.ones(1, 1)).tolist() == [[0, 0, 0, 0, 0, 1.0]]
    assert attached(mt.Vector(1, channels=slice(0, 1, 1))).slice_shape == (1,)
    assert simplex_codes(2, (1,)).flatten().abs().tolist() == [1.0, 1.0]


BESIDE = {"channels": None, "start": "state", "tell": False}
OF_IMAGES = {"head": True, "levels": None, "revealed_by": [], **BESIDE}
PLAIN = [
    (mt.Vector(2), {"kind": "Vector", "size": 2, "head": True, **BESIDE}),
    (Continuous((2, 3)), {"kind": "Continuous", "shape": [2, 3], "head": True, **BESIDE}),
    (mt.Image((1, 2, 2)), {"kind": "Image", "shape": [1, 2, 2], **OF_IMAGES}),
    (
        mt.Encoded((5,)),
        {"kind": "Encoded", "shape": [5], "encoder": "generator", "width": 32, "spread": 0.1, "seed": 0, "sense": False,
         **BESIDE},
    ),
    (
        mt.Label(2),
        {"kind": "Label", "classes": 2, "names": None, "codes": "simplex", "seed": 0, "tell": "vector",
         "sense": False, "channels": None},
    ),
    (
        mt.LabelMap(2, (3, 4)),
        {"kind": "LabelMap", "classes": 2, "names": None, "size": [3, 4], "seed": 0, "tell": False, "channels": None},
    ),
    (mt.Mask((3, 4)), {"kind": "Mask", "size": [3, 4], "tell": False, "channels": None}),
    (
        mt.Caption(["a", "b"], 3),
        {"kind": "Caption", "vocabulary": ["a", "b"], "length": 3, "codes": "none", "channels": None, "tell": "tokens",
         "sense": False, "seed": 0},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("modality", "config"), PLAIN, ids=[config["kind"] for _, config in PLAIN])
def test_what_is_not_asked_for_is_what_it_always_was(modality, config):
    """Cards hold it all, and code that names less means this."""
    assert modality.config == config
    again = Modality.from_config(config)
    assert again.config == config
    assert vars(again).keys() == vars(modality).keys()


def test_an_image_may_leave_its_range_by_a_rounding():
    attached(mt.Image((1, 1, 1)), (1, 1, 1)).check(torch.full((1, 1, 1, 1), 1 + 1e-4, dtype=torch.float64))


def test_a_million_classes_are_not_too_many():
    assert mt.Label(1_000_000).classes == 1_000_000


def test_a_view_cannot_be_changed():
    view = View(*[torch.zeros(1)] * 8)
    with pytest.raises(AttributeError, match="cannot assign"):
        view.z = torch.ones(1)


def test_a_continuous_modality_is_its_own_code():
    image, x = attached(mt.Image((1, 2, 2)), (1, 2, 2)), torch.rand(3, 1, 2, 2)
    assert torch.equal(image.encode(x), x)
    assert torch.equal(law_of(image, x).mean, x)
    assert torch.equal(law_of(image, x).expected_code(), x)


@pytest.mark.parametrize("start", ["state", "rest", "nothing"])
def test_the_head_of_real_numbers_by_hand(start):
    """The linear guess from state or rest, and in units of the noise that is left what the network adds; or that alone."""
    vector, g = randomise(attached(mt.Vector(6, start=start))), generator(3)
    features, z, rest, gain, variance = (torch.rand(4, n, generator=g) + 0.1 for n in (16, 6, 6, 1, 1))
    learned = vector.out(features)
    linear = gain * (rest if start == "rest" else z)
    expected = learned if start == "nothing" else linear + variance.sqrt() * learned
    law = vector.head(View(features, features, z, rest, None, gain, gain, variance))
    assert torch.allclose(law.mean, expected)
    assert torch.equal(law.variance, variance)


def test_a_labels_estimate_is_the_mean_of_its_codes():
    label, logits = attached(mt.Label(4)), randn(5, 4)
    expected = sum(logits.softmax(1)[:, k, None] * label.encode(torch.tensor([k])).double() for k in range(4))
    assert torch.allclose(label.place(law_of(label, logits).expected_code()), expected)


def test_given_codes_are_used_as_they_are():
    codes = [[1.0, 0, 0, 0, 0, 2], [0, 1.0, 0, 0, 3, 0]]
    assert attached(mt.Label(2, codes=codes)).encode(torch.tensor([1])).tolist() == [codes[1]]
    assert attached(mt.Label(2, codes=torch.tensor(codes, dtype=torch.float64))).codes.dtype == torch.float32


def test_log_prob_of_a_label_is_the_categorical():
    logits, y = randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    law = law_of(attached(mt.Label(4)), logits)
    expected = torch.distributions.Categorical(logits=logits).log_prob(y)
    assert torch.allclose(law.log_prob(y), expected)
    assert torch.allclose(law.loss(y), F.cross_entropy(logits, y, reduction="none"))
    assert torch.allclose(law.probs, logits.softmax(1))


@pytest.mark.parametrize("channels", [1, 5])
def test_log_prob_of_an_image_is_the_gaussian(channels):
    shape = (channels, 2, 3)
    image = attached(mt.Image(shape, start="nothing"), shape)
    x, mean, variance = randn(4, *shape, seed=1), randn(4, *shape, seed=2), torch.rand(4, 1, 1, 1).double() + 0.1
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, variance.sqrt().expand_as(mean)), 3)
    law = law_of(image, mean, variance)
    log_p = law.log_prob(x)
    assert torch.allclose(log_p, normal.log_prob(x))
    d = channels * 6
    constant = math.log(2 * math.pi) + variance.flatten().log()
    assert torch.allclose(law.loss(x), -2 / d * log_p - constant)


def test_gaussian_log_prob_takes_a_variance_per_coordinate():
    x, mean, variance = randn(3, 2, seed=1), randn(3, 2, seed=2), torch.rand(3, 2).double() + 0.1
    expected = torch.distributions.Normal(mean, variance.sqrt()).log_prob(x).sum(1)
    assert torch.allclose(gaussian_log_prob(x, mean, variance), expected)
    where = torch.tensor([[True, False], [False, True], [True, True]])
    expected = (torch.distributions.Normal(mean, variance.sqrt()).log_prob(x) * where).sum(1)
    assert torch.allclose(gaussian_log_prob(x, mean, variance, where), expected)


def test_labels_are_drawn_from_the_softmax():
    """20,000 draws; every frequency within 4 standard errors; seed 0."""
    label, n = attached(mt.Label(4)), 20_000
    logits = torch.tensor([[0.5, -1.0, 2.0, 0.0]])
    drawn = law_of(label, logits.expand(n, 4)).draw(generator(0))
    assert drawn.dtype == torch.int64
    for k, p in enumerate(logits.softmax(1)[0].tolist()):
        assert abs(float((drawn == k).double().mean()) - p) < 4 * standard_error(p, n)


def test_an_image_is_drawn_within_its_range_and_a_vector_as_it_is():
    image = law_of(attached(mt.Image((1, 1, 2)), (1, 1, 2)), torch.tensor([[[[-3.0, 0.5]]]]))
    assert image.draw().tolist() == [[[[-1.0, 0.5]]]]
    assert law_of(attached(mt.Vector(6)), torch.full((1, 6), 3.0)).draw().tolist() == [[3.0] * 6]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_class_ids_of_any_integer_type_mean_the_same(dtype):
    label, ids, logits = attached(mt.Label(4)), torch.tensor([3, 0, 1, 3]), randn(4, 4)
    value = ids.to(dtype)
    label.check(value)
    assert torch.equal(label.encode(value), label.codes[ids])
    assert torch.equal(label.condition(value), label.condition(ids))
    law = law_of(label, logits)
    assert torch.equal(law.loss(value), law.loss(ids))
    assert torch.equal(law.log_prob(value), law.log_prob(ids))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([0, 4, 7, 4]), r"'it' has values outside 0\.\.3: \[4, 7\]"),
        (torch.tensor([0, -1]), r"outside 0\.\.3: \[-1\]"),
        (torch.tensor([0.0, 1.0]), r"'it' must be an integer tensor .* got torch.float32 \(2,\)"),
        (torch.tensor([True]), "got torch.bool"),
        (torch.tensor([[0]]), r"\(1, 1\)"),
        (torch.tensor(0), "integer tensor"),
        ([0, 1], r"got \[0, 1\]"),
    ],
)
def test_bad_labels_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        attached(mt.Label(4)).check(value)


IMAGE = torch.zeros(2, 1, 2, 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2, 3, 2, 2), r"'it' must be floating point \(B, 1, 2, 2\), got torch.float32 \(2, 3, 2, 2\)"),
        (torch.zeros(1, 2, 2), "floating point"),
        (IMAGE.long(), "got torch.int64"),
        (IMAGE.numpy(), "floating point"),
        (torch.cat([IMAGE, IMAGE[:1] * math.nan]), r"not finite \(NaN or inf\) in rows \[2\]"),
        (torch.cat([IMAGE.flatten()[:7], torch.tensor([math.nan])]).reshape(IMAGE.shape), r"in rows \[1\]"),
        (IMAGE - math.inf, r"rows \[0, 1\]"),
        (IMAGE + 255, r"\[-1, 1\], got values in \[255, 255\]"),
        (IMAGE - 1.01, r"\[-1, 1\]"),
        (torch.linspace(-0.5, 2.0, 8).reshape(IMAGE.shape), r"got values in \[-0.5, 2\]"),
        (IMAGE.double() + 1.000105, r"\[-1, 1\]"),
    ],
)
def test_bad_images_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        attached(mt.Image((1, 2, 2)), (1, 2, 2)).check(value)


@pytest.mark.parametrize(
    ("modality", "good", "bad"),
    [
        *((mt.Image((c, 2, 2)), torch.tensor([-1.0, 1.0]).repeat(3, c, 2, 1), 1.01) for c in (1, 5)),
        (mt.Vector(6), torch.full((3, 6), 40.0), math.inf),
        (mt.Label(4), torch.tensor([0, 3]), 2),
    ],
    ids=["grey", "five channels", "vector", "label"],
)
def test_values_up_to_the_limits_pass_and_none_beyond(modality, good, bad):
    space = tuple(good.shape[1:]) or (6,)
    assert attached(modality, space).check(good) is None
    with pytest.raises(ValueError, match="'it' "):
        modality.check(good * bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mt.Label(1), "classes must be at least 2, got 1"),
        (lambda: mt.Label(3, names=["a"]), "names has 1 entries for 3 classes"),
        (lambda: simplex_codes(3, (1,)), r"3 classes need more than one dimension, got a code of shape \(1,\)"),
        (lambda: mt.Label(3, codes="onehot"), "codes must be"),
        (lambda: mt.Label(3, channels=slice(0, 4, 2)), "without a step"),
        (lambda: mt.Image((2, 2)), r"shape is \(C, H, W\), got \(2, 2\)"),
        (lambda: mt.Image((0, 2, 2)), "shape must be whole numbers from 1 on"),
        (lambda: mt.Vector(0), "shape must be whole numbers from 1 on"),
        (lambda: attached(mt.Label(2, codes=[[1.0], [2.0]])), r"codes of 'it' must have shape \(2, 6\), got \(2, 1\)"),
        (lambda: attached(mt.Vector(5)), r"'it' has shape \(5,\), but its part of the space is \(6,\)"),
        (lambda: attached(mt.Vector(2, channels=slice(5, 7))), "leave the space"),
        (lambda: attached(mt.Vector(2, channels=slice(6, None))), "leave the space"),
        (lambda: attached(attached(mt.Vector(6))), "already part of a model"),
    ],
)
def test_bad_modalities_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_modality_without_an_embedding_cannot_condition():
    with pytest.raises(ValueError, match="'it' cannot condition the backbone: it was made without tell=True"):
        attached(mt.Vector(6)).condition(torch.zeros(1, 6))


def test_a_picture_is_rounded_to_what_a_file_can_hold():
    image = mt.Image((1, 1, 5), levels=3)
    assert image.rounded(torch.tensor([-1.7, -0.6, 0.2, 0.51, 1.2])).tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0]
    scenes = mt.datasets.shapes("test", size=16, n=5, modalities=("image",)).values["image"]
    assert torch.allclose(mt.Image((3, 16, 16), levels=256).rounded(scenes + 1e-3), scenes, atol=1e-6)
    assert mt.Image((3, 16, 16)).rounded(scenes) is scenes


def pixel(mean, variance, levels):
    """The law of an image of one pixel."""
    return law_of(attached(mt.Image((1, 1, 1), levels=levels, start="nothing"), (1, 1, 1)), mean, variance)


def test_a_discretised_image_has_the_probabilities_of_its_bins():
    """They add up to 1 over all levels, also far out and at tiny noise; where bins are fine they are density times width."""
    for levels, mean, variance in ((17, 0.2, 0.02), (256, -0.99, 1e-5), (256, 3.0, 0.5)):
        grid = torch.linspace(-1, 1, levels, dtype=torch.float64).reshape(-1, 1, 1, 1)
        mass = pixel(torch.full_like(grid, mean), torch.full_like(grid, variance), levels).log_prob(grid)
        assert float(mass.exp().sum()) == pytest.approx(1, abs=1e-9)
    x, mean = torch.full((1, 1, 1, 1), 0.25, dtype=torch.float64), torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)
    v = torch.full((1, 1, 1, 1), 0.04, dtype=torch.float64)
    fine, plain = (pixel(mean, v, levels).log_prob(x) for levels in (4097, None))
    assert float(fine) == pytest.approx(float(plain) + math.log(2 / 4096), abs=1e-4)


def test_one_pixel_out_of_range_among_many_is_enough():
    value = IMAGE.clone()
    value[1, 0, 1, 0] = -1.5
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\], got values in \[-1\.5, 0\]"):
        attached(mt.Image((1, 2, 2)), (1, 2, 2)).check(value)


def test_the_outer_bins_are_open():
    """Three levels: up to -1/2 and from 1/2 on all is -1 or 1, whatever lies beyond them; seen from far and near."""
    normal = torch.distributions.Normal(0.2, 0.7)
    mean, variance = torch.full((4, 1, 1, 1), 0.2).double(), torch.full((4, 1, 1, 1), 0.49).double()
    value = torch.tensor([-1.0, -0.5, 0.5, 1.0], dtype=torch.float64).reshape(4, 1, 1, 1)
    below = [float(normal.cdf(torch.tensor(edge))) for edge in (-0.5, 0.0)]
    above = [1 - float(normal.cdf(torch.tensor(edge))) for edge in (0.0, 0.5)]
    assert pixel(mean, variance, 3).log_prob(value).exp().tolist() == pytest.approx([*below, *above], rel=1e-5)


def test_the_discretised_likelihood_has_finite_gradients_everywhere():
    image = attached(mt.Image((1, 2, 2), levels=17, start="nothing"), (1, 2, 2))
    mean = torch.tensor([[[[-5.0, 5.0], [0.0, -1.0]]]], dtype=torch.float64, requires_grad=True)
    value = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]], dtype=torch.float64)
    law_of(image, mean, torch.full((1, 1, 1, 1), 1e-3, dtype=torch.float64)).log_prob(value).sum().backward()
    assert bool(mean.grad.isfinite().all())


def test_too_few_levels_are_refused():
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        mt.Image((1, 4, 4), levels=1)


def test_a_label_has_two_to_a_million_classes():
    assert len(class_names(2, None)) == 2
    assert len(class_names(1_000_000, None)) == 1_000_000
    for classes in (1, 1_000_001):
        with pytest.raises(ValueError, match=f"got {classes}$"):
            class_names(classes, None)


def test_outside_of_a_model_values_are_checked_too():
    mt.Vector(2).check(torch.zeros(3, 2))
    for modality in (mt.Vector(2), mt.Image((1, 4, 4)), mt.Label(3), mt.Mask((4, 4)), mt.LabelMap(3, (4, 4))):
        with pytest.raises(ValueError, match=f"'{type(modality).__name__.lower()}' must be"):
            modality.check(torch.zeros(3, 7))
