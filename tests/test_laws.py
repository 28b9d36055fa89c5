"""What heads say: each law against `torch.distributions` or by hand; and the linear guess that heads start from."""

import itertools
import math

import pytest
import torch
from helpers import generator, law_of, randn, randomise, standard_error
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Independent, Normal
from torch.distributions import Categorical as Discrete

import mtdiff as mt
from mtdiff.laws import Binary, Categorical, CodedGaussian, Gaussian, Pixels, detached

SHAPES = [(3,), (2, 4, 4)]


def gaussian(kind=Gaussian, shape=(2, 4, 4), n=3, **options):
    variance = torch.rand(n, *[1] * len(shape), dtype=torch.float64, generator=generator(9)) + 0.1
    return kind(randn(n, *shape, seed=1), variance, **options)


# ---- real numbers ----


@pytest.mark.parametrize("kind", [Gaussian, Pixels])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gaussian_is_that_of_torch(kind, shape):
    law, x = gaussian(kind, shape), randn(3, *shape, seed=2)
    normal = Independent(Normal(law.mean, law.variance.sqrt().expand_as(law.mean)), len(shape))
    torch.testing.assert_close(law.log_prob(x), normal.log_prob(x))
    constant = math.log(2 * math.pi) + law.variance.flatten().log()
    torch.testing.assert_close(law.loss(x), -2 / x[0].numel() * normal.log_prob(x) - constant)


def test_a_gaussian_is_drawn_as_its_mean_and_pixels_stay_within_their_range():
    mean, one = torch.tensor([[-3.0, 0.5, 1.5]]), torch.ones(1, 1)
    assert Gaussian(mean, one).draw(generator()).tolist() == [[-3.0, 0.5, 1.5]]
    assert Pixels(mean, one).draw(generator()).tolist() == [[-1.0, 0.5, 1.0]]
    assert Pixels(mean, one).expected_code().tolist() == mean.tolist(), "a code is not limited"


@pytest.mark.parametrize("kind", [Gaussian, Pixels])
def test_the_expected_code_of_a_gaussian_is_the_code_of_its_mean(kind):
    plain, doubled = gaussian(kind), gaussian(kind, encode=lambda x: 2 * x[:, :1])
    assert plain.expected_code() is plain.mean
    assert torch.equal(doubled.expected_code(), 2 * plain.mean[:, :1])


@pytest.mark.parametrize("levels", [None, 2, 3, 17, 256])
def test_the_mass_of_a_pixel_is_that_of_its_bin(levels):
    """Differences of the normal's distribution function; the outer bins are open. Without levels, the density."""
    n = levels or 5
    grid = torch.linspace(-1, 1, n, dtype=torch.float64)
    law = Pixels(torch.full((n, 1, 1, 1), 0.2).double(), torch.full((n, 1, 1, 1), 0.3).double(), levels=levels)
    normal, found = Normal(law.mean.flatten(), law.variance.flatten().sqrt()), law.log_prob(grid.reshape(n, 1, 1, 1))
    if levels is None:
        torch.testing.assert_close(found, normal.log_prob(grid))
        return
    edges = grid[:-1] + 1 / (levels - 1)
    below = torch.cat([torch.zeros(1), normal.cdf(torch.cat([edges, edges[-1:]]))[:-1], torch.ones(1)]).diff()
    torch.testing.assert_close(found.exp(), below)
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("kind", "levels"), [(Gaussian, None), (Pixels, None), (Pixels, 9)])
def test_what_is_known_costs_nothing(kind, levels):
    """Neither likelihood nor loss, as the mean is the value there; nor is there a gradient. One mask for all channels."""
    known = torch.rand(3, 1, 4, 4, generator=generator(4)) < 0.5
    x = ((torch.rand(3, 2, 4, 4, generator=generator(5)) * 8).round() / 4 - 1).double()
    guess, options = randn(3, 2, 4, 4, seed=1), {} if levels is None else {"levels": levels}
    mean = torch.where(known, x, guess).requires_grad_()
    law = gaussian(kind)
    law = kind(mean, law.variance, known, **options)
    by_hand, losses = [], []
    for k in range(3):
        unknown = ~known[k].expand(2, 4, 4)
        lone = kind(mean[k][unknown][:, None], law.variance[k].reshape(1, 1), **options)
        by_hand.append(lone.log_prob(x[k][unknown][:, None]).sum())
        losses.append(lone.loss(x[k][unknown][:, None]).sum() / x[k].numel())
    torch.testing.assert_close(law.log_prob(x), torch.stack(by_hand))
    torch.testing.assert_close(law.loss(x), torch.stack(losses))
    (gradient,) = torch.autograd.grad(law.log_prob(x).sum(), mean)
    assert torch.equal(gradient != 0, ~known.expand_as(gradient))


def test_where_all_is_known_there_is_nothing_to_pay():
    x, one = torch.rand(2, 1, 3, 3, generator=generator()), torch.ones(2, 1, 1, 1)
    for levels in (None, 9):
        law = Pixels(x, one, torch.ones(2, 1, 3, 3, dtype=torch.bool), levels=levels)
        assert law.log_prob(x).tolist() == law.loss(x).tolist() == [0.0, 0.0]


def test_a_gaussian_with_a_code_of_its_own_is_scored_on_both_and_rewards_no_encoder():
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    mean, code, x = randn(3, 5, seed=1).requires_grad_(), randn(3, 2, 4, 4, seed=2).requires_grad_(), randn(3, 5)
    variance, open_ = torch.tensor([0.1, 0.5, 1.0]).double()[:, None], torch.tensor([0.2, 0.4, 0.9]).double()

    def encode(value):
        return scale * value.sum(1).reshape(-1, 1, 1, 1).expand(-1, 2, 4, 4)

    law = CodedGaussian(mean, variance, encode=encode, code=code, code_variance=open_.reshape(3, 1, 1, 1))
    target = 1.5 * x.sum(1).reshape(3, 1, 1, 1)
    expected = ((x - mean) ** 2 / variance).mean(1) + ((target - code) ** 2).flatten(1).mean(1) / open_
    torch.testing.assert_close(law.loss(x), expected)
    assert law.expected_code() is code
    assert law.draw() is mean
    torch.testing.assert_close(law.log_prob(x), Normal(mean, variance.sqrt()).log_prob(x).sum(1))
    assert torch.autograd.grad(law.loss(x).sum(), [scale, mean, code], allow_unused=True)[0] is None


# ---- classes ----


@pytest.mark.parametrize("positions", [(), (5,), (4, 4)], ids=str)
def test_classes_are_those_of_torch(positions):
    logits, g = randn(6, 3, *positions, seed=1), generator(2)
    value = torch.randint(0, 3, (6, *positions), generator=g)
    law, truth = Categorical(logits), Discrete(logits=logits.movedim(1, -1))
    torch.testing.assert_close(law.log_prob(value), truth.log_prob(value).reshape(6, -1).sum(1))
    torch.testing.assert_close(law.loss(value), -truth.log_prob(value).reshape(6, -1).mean(1))
    torch.testing.assert_close(law.probs, truth.probs.movedim(-1, 1))
    assert torch.equal(law.log_prob(value.to(torch.uint8)), law.log_prob(value))


@pytest.mark.parametrize("positions", [(), (5,), (2, 2)], ids=str)
def test_classes_are_drawn_at_each_position_by_its_own_chances(positions):
    """20,000 draws; every frequency within 4 standard errors; seed 0."""
    n, logits = 20_000, randn(1, 3, *positions, seed=1)
    law = Categorical(logits.expand(n, 3, *positions))
    drawn = law.draw(generator(0))
    assert drawn.dtype == torch.int64
    assert drawn.shape == (n, *positions)
    for k, place in itertools.product(range(3), itertools.product(*map(range, positions))):
        p = float(law.probs[(0, k, *place)])
        assert abs(float((drawn[(slice(None), *place)] == k).double().mean()) - p) < 4 * standard_error(p, n)
    assert torch.equal(drawn, law.draw(generator(0)))
    assert not torch.equal(drawn, law.draw(generator(1)))


def test_the_expected_code_of_classes_is_the_mean_of_their_codes():
    codes, logits = randn(3, 6, seed=2), randn(4, 3)
    law = Categorical(logits, lambda chances: chances @ codes)
    expected = sum(logits.softmax(1)[:, k, None] * codes[k] for k in range(3))
    torch.testing.assert_close(law.expected_code(), expected)


def test_a_class_far_out_is_as_unlikely_as_its_logit_says():
    """Nothing is lost to a probability that rounds to 0 or 1."""
    law = Categorical(torch.tensor([[0.0, 200.0], [0.0, -200.0]]))
    assert law.log_prob(torch.tensor([0, 0])).tolist() == [-200.0, 0.0]


def test_zeros_and_ones_are_bernoulli_at_each_pixel():
    """Values are (B, 1, H, W), float or bool; drawn 20,000 times, every frequency is within 4 standard errors; seed 0."""
    logits, value = randn(6, 2, 2, 3, seed=1), torch.randint(0, 2, (6, 1, 2, 3), generator=generator(2)).float()
    law, truth = Binary(logits), Bernoulli(logits=logits[:, 1] - logits[:, 0])
    expected = truth.log_prob(value[:, 0].double())
    for same in (value, value.bool(), value.double()):
        torch.testing.assert_close(law.log_prob(same), expected.sum((1, 2)))
        torch.testing.assert_close(law.loss(same), -expected.mean((1, 2)))
    torch.testing.assert_close(law.probs[:, 1], truth.probs)
    n = 20_000
    drawn = Binary(logits[:1].expand(n, 2, 2, 3)).draw(generator(0))
    assert drawn.shape == (n, 1, 2, 3)
    assert drawn.dtype == torch.float32
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    for place in itertools.product(range(2), range(3)):
        p = float(law.probs[(0, 1, *place)])
        assert abs(float(drawn[(slice(None), 0, *place)].double().mean()) - p) < 4 * standard_error(p, n)


# ---- all laws ----


def laws():
    """One law of each kind, its tensors with a gradient, and a value."""
    g, one = generator(3), torch.ones(2, 1).double()
    mean, code, logits = (randn(2, *shape, seed=4).requires_grad_() for shape in ((5,), (6,), (3, 4)))
    bits, pixels = (randn(2, *shape, seed=5).requires_grad_() for shape in ((2, 4, 4), (1, 4, 4)))
    return {
        "Gaussian": (Gaussian(mean, one, encode=lambda x: 2 * x), randn(2, 5)),
        "Pixels": (Pixels(pixels, one[..., None, None], levels=5), torch.zeros(2, 1, 4, 4).double()),
        "CodedGaussian": (
            CodedGaussian(mean, one, encode=lambda x: x.sum(1, keepdim=True).expand(-1, 6), code=code, code_variance=one),
            randn(2, 5),
        ),
        "Categorical": (Categorical(logits, lambda p: p.flatten(1)), torch.randint(0, 3, (2, 4), generator=g)),
        "Binary": (Binary(bits, lambda p: p[:, 1:]), torch.ones(2, 1, 4, 4)),
    }


@pytest.mark.parametrize("name", list(laws()))
def test_a_law_without_its_gradients_is_otherwise_the_same(name):
    law, value = laws()[name]
    free = detached(law)
    assert type(free) is type(law)
    assert vars(free).keys() == vars(law).keys()
    asked = [lambda a: a.log_prob(value), lambda a: a.loss(value), lambda a: a.expected_code()]
    for ask in (*asked, lambda a: a.draw(generator())):
        assert torch.equal(ask(free), ask(law))
        assert not ask(free).requires_grad
    assert all(ask(law).requires_grad for ask in asked)
    assert law.log_prob(value).shape == law.loss(value).shape == (2,)


@pytest.mark.parametrize("name", list(laws()))
def test_a_law_cannot_be_changed(name):
    law, _ = laws()[name]
    with pytest.raises(AttributeError, match="cannot assign"):
        setattr(law, next(iter(vars(law))), None)


@pytest.mark.parametrize("name", list(laws()))
def test_laws_are_told_apart_by_identity_and_shown_without_their_functions(name):
    """Tensors have no one answer to ==, and the address of a function is nothing to look at."""
    law, again = laws()[name][0], laws()[name][0]
    assert law == law
    assert law != again
    assert len({law, again}) == 2
    assert "function" not in repr(law)
    assert repr(law).startswith(f"{name}(")


def test_log_prob_and_loss_have_the_right_gradients():
    for law, value in laws().values():
        for name, part in vars(law).items():
            if isinstance(part, torch.Tensor) and part.requires_grad:

                def ask(tensor, law=law, name=name, value=value):
                    other = type(law)(**{**vars(law), name: tensor})
                    return other.log_prob(value), other.loss(value)

                assert torch.autograd.gradcheck(ask, part.detach().requires_grad_())


KINDS = [
    (lambda: mt.Image((2, 4, 4), levels=9), (2, 4, 4), Pixels),
    (lambda: mt.Label(3), (3,), Categorical),
    (lambda: mt.LabelMap(3, (4, 4)), (3, 4, 4), Categorical),
    (lambda: mt.Mask((4, 4)), (2, 4, 4), Binary),
    (lambda: mt.Encoded((5,), "lift"), (5,), Gaussian),
    (lambda: mt.Encoded((5,)), (5,), CodedGaussian),
    (lambda: mt.Caption(["a", "b", "c"], 2), (6,), Categorical),
]


@pytest.mark.parametrize(("make", "output", "kind"), KINDS, ids=lambda part: getattr(part, "__name__", ""))
def test_a_head_says_the_law_of_its_modality(make, output, kind):
    """What is drawn is a value of the modality, which the law scores; its code is one of the modality's slice."""
    modality, space = make(), (2, 4, 4)
    modality.attach("it", space, mt.UNet(space, base=8, multipliers=(1, 2), cross=(2,)))
    if isinstance(modality, mt.Encoded) and not modality.linear:
        modality.code_out = torch.nn.Identity()
        modality.code_out.forward = lambda features: randn(4, *space, seed=1)
    law = law_of(modality, randn(4, *output))
    value = law.draw(generator())
    modality.check(value)
    assert type(law) is kind
    assert law.log_prob(value).shape == law.loss(value).shape == (4,)
    assert law.expected_code().shape == (4, *modality.slice_shape)
    assert torch.equal(modality.place(law.expected_code()), modality.encode(value).double()) or kind is not Gaussian


def test_pixels_know_how_many_levels_their_image_has():
    image = mt.Image((1, 2, 2), levels=9)
    image.attach("it", (1, 2, 2), mt.MLP((1, 2, 2), width=8))
    law = law_of(image, randn(2, 1, 2, 2))
    assert law.levels == 9
    assert law.known is None


class Laplace:
    """A law of one's own, no dataclass: exp(-|x - mean| / b) / (2 b) in each coordinate."""

    def __init__(self, mean, b):
        self.mean, self.b = mean, b

    def log_prob(self, value):
        return torch.distributions.Laplace(self.mean, self.b).log_prob(value).sum(1)

    def loss(self, value):
        return -self.log_prob(value) / value.shape[1]

    def draw(self, generator=None):
        return self.mean

    def expected_code(self):
        return self.mean


class Sharp(mt.Vector):
    """A vector with that law."""

    def head(self, view):
        return Laplace(super().head(view).mean, (view.variance / 2).sqrt())


@pytest.mark.parametrize("prediction", ["v", "heads"])
def test_a_law_of_ones_own_is_trained_bounded_and_drawn(prediction):
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20), {"x": 1.0, "label": mt.fade_in(0.5)})
    modalities, backbone = {"x": Sharp(4), "label": mt.Label(3)}, mt.MLP((4,), width=16, blocks=1)
    model = randomise(mt.MTDiffusion(process, modalities, backbone, (4,), prediction)).eval()
    batch = {"x": torch.randn(6, 4, generator=generator(1)), "label": torch.arange(6) % 3}
    z = torch.randn(6, 4, generator=generator(2))
    law = model.predict(z, 7).law["x"]
    assert isinstance(law, Laplace)
    assert torch.equal(model.log_prob("x", batch["x"], z, 7), law.log_prob(batch["x"]))
    assert math.isfinite(mt.multitask_loss(model, batch, generator=generator()).total.item())
    assert math.isfinite(mt.elbo(model, batch, generator=generator()).total)
    for rule in ("bayes", "conditioned"):
        drawn = mt.sample(model, 6, given={"label": batch["label"]}, rule=rule, steps=2, generator=generator())
        assert drawn["x"].shape == (6, 4)
    drawn = mt.sample(model, 6, given={"x": batch["x"]}, rule="bayes", steps=2, generator=generator())
    assert drawn["label"].shape == (6,)


# ---- the linear guess ----


@given(weight=st.floats(0.05, 3.0), low=st.floats(-12.0, -4.0), high=st.floats(4.0, 12.0))
def test_gain_and_variance_are_edms_for_data_of_variance_one(weight, low, high):
    """With sigma = noise / (W signal): c_skip = 1 / (1 + sigma^2) and c_out = sigma / sqrt(1 + sigma^2), Karras et al. 2022.

    z / (W signal) is then EDM's noisy x + sigma n, so that k z = c_skip z / (W signal), to 1e-12 at every step.
    """
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(30, high, low), {"x": weight, "label": mt.fade_in(0.5)})
    t = torch.arange(31)
    at, abar = process.at(t, randn(31, 2)), process.schedule.abar[:, None]
    sigma = (1 - abar).sqrt() / (weight * abar.sqrt())
    c_skip, c_out = 1 / (1 + sigma**2), sigma / (1 + sigma**2).sqrt()
    torch.testing.assert_close(at.gain("x"), c_skip / (weight * abar.sqrt()), rtol=1e-12, atol=0)
    torch.testing.assert_close(at.variance("x"), c_out**2, rtol=1e-12, atol=0)
    assert torch.equal(at.signal, abar.sqrt())
    assert torch.equal(at.noise, (1 - abar).sqrt())


def test_what_a_process_says_of_the_absent_is_nothing():
    """Named by who is there, the same for all, or by a mask for each example."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(10), {"x": 0.7, "label": 0.5})
    like, there = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([True, False])
    whole, some, none = (process.at(4, like, present) for present in (None, {"label": there}, {"x"}))
    for at in (whole, some, none):
        assert at.W["x"].tolist() == [[0.7], [0.7]]
        assert torch.equal(at.gain("x"), whole.gain("x"))
    assert some.W["label"].tolist() == [[0.5], [0.0]]
    assert none.W["label"].tolist() == none.gain("label").tolist() == [[0.0], [0.0]]
    assert none.variance("label").tolist() == [[1.0], [1.0]]
    assert some.gain("label")[0] == whole.gain("label")[0]
    assert some.gain("label")[1] == 0
    codes = {"x": randn(2, 3), "label": randn(2, 3, seed=1)}
    torch.testing.assert_close(some.mix(codes), 0.7 * codes["x"] + torch.tensor([[0.5], [0.0]]) * codes["label"])
