import math
import sys
import types

import pytest
import torch
from helpers import generator

from mtdiff.features import FeatureNetwork, compared, feature_network, seen
from mtdiff.metrics import Moments, frechet_distance, kernel_distance, precision_recall


def features(n, seed, shift=0.0, d=5):
    return (
        torch.randn(n, d, generator=generator(seed), dtype=torch.float64) @ torch.diag(torch.arange(1.0, d + 1).double())
        + shift
    )


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_batches_are_those_of_the_whole(offset):
    x = features(100, 0) + offset
    moments = Moments(5)
    for batch in x.split(17):
        moments.update(batch)
    assert moments.n == 100
    assert torch.allclose(moments.mean, x.mean(0), rtol=1e-12)
    assert torch.allclose(moments.covariance, x.T.cov(), rtol=1e-6)
    with pytest.raises(ValueError, match=r"expected features \(B, 5\), got \(3, 4\)"):
        moments.update(torch.zeros(3, 4))


def test_the_frechet_distance_of_moments_is_that_of_the_features():
    a, b = features(80, 1), features(60, 2, shift=1.0)
    moments = [Moments(5), Moments(5)]
    for m, x in zip(moments, (a, b), strict=True):
        m.update(x)
    assert frechet_distance(*moments) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    with pytest.raises(ValueError, match="of equal d"):
        frechet_distance(moments[0], Moments(4))


def test_the_kernel_distance_is_the_double_sum():
    """Of all examples (one subset as large as the sets), pair by pair."""
    a, b = features(7, 3), features(7, 4, shift=0.5)

    def k(x, y):
        return (float(x @ y) / 5 + 1) ** 3

    within = sum(k(s[i], s[j]) for s in (a, b) for i in range(7) for j in range(7) if i != j) / 42
    across = sum(k(x, y) for x in a for y in b) / 49
    assert kernel_distance(a, b, subsets=3)["mean"] == pytest.approx(within - 2 * across, rel=1e-9)
    assert math.isnan(kernel_distance(a[:3], b)["stderr"]), "three examples tell of no spread"


def test_the_kernel_distance_is_unbiased_and_sees_a_shift():
    same = kernel_distance(features(4000, 5), features(4000, 6), subsets=40, size=500)
    far = kernel_distance(features(4000, 5), features(4000, 6, shift=1.0), subsets=40, size=500)
    assert abs(same["mean"]) < 4 * same["stderr"]
    assert far["mean"] > 10 * abs(same["mean"])
    assert kernel_distance(features(50, 5), features(50, 6), seed=1) == kernel_distance(
        features(50, 5), features(50, 6), seed=1
    )
    with pytest.raises(ValueError, match="of equal d"):
        kernel_distance(features(5, 0), features(5, 0, d=4))
    with pytest.raises(ValueError, match="subsets and size must be at least 1, got 0 and 1000"):
        kernel_distance(features(5, 0), features(5, 0), subsets=0)


@pytest.mark.parametrize(
    ("n", "m", "shift", "size"), [(100, 100, 0.0, 1000), (100, 40, 0.0, 1000), (100, 100, 0.3, 1000), (100, 100, 0.0, 25)]
)
def test_the_error_of_the_kernel_distance_is_its_spread_over_fresh_sets(n, m, shift, size):
    """Of equal laws, of different ones, of sets of unequal size and of several subsets.

    Over 80 pairs of sets the root mean square of the errors is 0.95 to 1.24 times the spread (four cases, five seeds each);
    a spread of 80 is itself known to 8%.
    """
    found = []
    for k in range(80):
        g = generator(1000 * n + m + k)
        a, b = torch.randn(n, 8, generator=g), torch.randn(m, 8, generator=g) + shift
        found.append(kernel_distance(a, b, size=size))
    spread = torch.tensor([one["mean"] for one in found]).std()
    said = torch.tensor([one["stderr"] for one in found]).square().mean().sqrt()
    assert 1 / 1.5 < float(said / spread) < 1.5


def pixels(image):
    return image.flatten(1)


def test_what_is_seen_in_batches_is_seen_at_once():
    network = FeatureNetwork("pixels", pixels)
    real, drawn = (torch.randn(40, 3, 1, 2, generator=generator(k)).clamp(-1, 1) for k in (7, 8))
    parts = [seen(x.split(9), network) for x in (real, drawn)]
    found = compared(*parts)
    assert found["frechet"] == pytest.approx(frechet_distance(real, drawn), rel=1e-6)
    assert found["kernel"] == pytest.approx(kernel_distance(pixels(real), pixels(drawn), seed=0)["mean"], rel=1e-4, abs=1e-7)
    expected = precision_recall(pixels(real), pixels(drawn))  # of all, in whatever order
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert len(seen(real.split(9), network, keep=20).some) == 20
    few = seen([real[:6]], network)
    assert few.some.shape == (6, 6)
    assert compared(few, few)["frechet"] != compared(few, few)["frechet"]  # not a number: 6 images, 6 features
    with pytest.raises(ValueError, match="no images"):
        seen([], network)


def test_features_that_are_kept_are_any_of_all():
    """Images that come class by class: those that are kept are a sample, and the first are none."""
    network = FeatureNetwork("pixels", pixels)
    label = torch.arange(10).repeat_interleave(200).float()
    kept = seen(label.reshape(-1, 1, 1, 1).split(130), network, keep=500).some.flatten()
    counts = kept.long().bincount(minlength=10)
    assert counts.sum() == 500
    assert (counts - 50).abs().max() < 4 * (500 * 0.1 * 0.9 * 0.75) ** 0.5, "four standard errors without replacement"


def test_a_network_numbers_classes_by_their_names():
    network = FeatureNetwork("one", pixels, lambda image: image[:, 0, 0, 0].long(), ("cat", "dog", "cow"))
    image = torch.arange(3.0).reshape(3, 1, 1, 1)
    assert network.numbered(("dog", "cat"), ()).classify(image).tolist() == [1, 0, 2]
    assert network.numbered(("cat", "dog", "cow"), ()) is network
    assert network.numbered((), ()) is network
    nameless = FeatureNetwork("two", pixels, network.classify)
    assert nameless.numbered(("c", "a", "b"), data=("a", "b", "c")).classify(image).tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match=r"'one' do not know the classes \['bee'\]; they know \['cat'"):
        network.numbered(("cat", "bee"), ())


def test_a_network_of_ones_own(monkeypatch):
    class Mine:
        def __call__(self, image):
            return image.flatten(1)

        def classify(self, image):
            return torch.zeros(len(image)).long()

    module = types.ModuleType("my_networks")
    module.make = Mine
    monkeypatch.setitem(sys.modules, "my_networks", module)
    network = feature_network("my_networks:make")
    assert network.name == "my_networks:make"
    assert network.network(torch.zeros(2, 3, 4, 4)).shape == (2, 48)
    assert network.classify(torch.zeros(2, 3, 4, 4)).tolist() == [0, 0]
    with pytest.raises(ValueError, match="my_networks has no function 'other'"):
        feature_network("my_networks:other")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet", ValueError, "features must be 'inception', one of .*dinov2-small.* or MODULE:FUNCTION, got 'resnet'"),
        ("no_such_module:make", ImportError, "there is no module 'no_such_module' on the path"),
    ],
)
def test_bad_names_are_refused(name, error, message):
    with pytest.raises(error, match=message):
        feature_network(name)


def test_inception_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(
        ImportError, match=r"Inception, for FID and KID, needs torch_fidelity.*pip install 'mtdiff\[metrics\]'"
    ):
        feature_network("inception")


def test_inception_is_fed_bytes(monkeypatch):
    """A stand-in for the library: what it is given, and that its features come back."""
    given = []

    class Extractor(torch.nn.Module):
        def __init__(self, name, features):
            super().__init__()
            assert (name, features) == ("inception-v3-compat", ["2048"])

        def forward(self, image):
            given.append(image)
            return (image.flatten(1).float(),)

    package, module = types.ModuleType("torch_fidelity"), types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    network = feature_network("inception")
    image = torch.tensor([-1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert network.network(image).shape == (1, 12)
    assert given[0].dtype == torch.uint8
    assert given[0][0, 0].flatten().tolist() == [0, 128, 255, 255]
