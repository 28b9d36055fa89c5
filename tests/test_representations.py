"""Representations of images: the encoder, PCA, the pretrained ones behind a stand-in, and the probe."""

import sys
import types

import pytest
import torch
from helpers import generator, randn
from sklearn.decomposition import PCA as Reference
from sklearn.linear_model import Ridge

from mtdiff.datasets.shapes import render, shapes
from mtdiff.files import CARD, WEIGHTS
from mtdiff.judges import STREAM as JUDGES
from mtdiff.judges import scene_judge
from mtdiff.representations import (
    PCA,
    PRETRAINED,
    STREAM,
    Encoder,
    Pretrained,
    Representation,
    contrastive_loss,
    linear_probe,
    nearest,
    pretrained,
    probes,
    representation,
    train_representation,
    views,
)

NAMES = ("shapes16", "shapes32")


# ---- the loss and its views ----


def test_the_contrastive_loss_by_hand():
    """-log softmax of the partner's cosine / T among all but oneself, from both sides."""
    a, b = randn(3, 4, seed=1), randn(3, 4, seed=2)
    both, total = [*a, *b], 0.0
    for i in range(6):
        s = [torch.cosine_similarity(both[i], both[k], 0) / 0.2 for k in range(6)]
        others = torch.stack([s[k] for k in range(6) if k != i])
        total -= s[(i + 3) % 6] - others.logsumexp(0)
    torch.testing.assert_close(contrastive_loss(a, b), total / 6)
    assert contrastive_loss(10 * torch.eye(3), torch.eye(3)) < contrastive_loss(torch.eye(3), torch.eye(3).roll(1, 0))


def test_views_are_other_looks_at_the_same_image():
    image = shapes("test", n=20, modalities=("image",)).values["image"]
    one, again, other = views(image, generator(0)), views(image, generator(0)), views(image, generator(1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == image.shape
    assert float(one.abs().max()) <= 1
    near = torch.cdist(one.flatten(1), other.flatten(1))
    assert (near.argmin(1) == torch.arange(20)).double().mean() > 0.4  # most are nearest to their partner


# ---- PCA ----


def test_pca_is_scikit_learns_whitened_up_to_signs():
    features = randn(200, 6, seed=3) @ randn(6, 6, seed=4) + 3
    mine, theirs = PCA(6, 4).double().fit(features), Reference(4, whiten=True).fit(features.numpy())
    expected = torch.from_numpy(theirs.transform(features.numpy()))
    found = mine(features)
    signs = (found * expected).sum(0).sign()
    torch.testing.assert_close(found, expected * signs)
    assert float(mine.explained) == pytest.approx(theirs.explained_variance_ratio_.sum())
    torch.testing.assert_close(found.mean(0), torch.zeros(4).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(found.T.cov(), torch.eye(4).double(), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(50, 6), "degenerate PCA: 4 components wanted, but the features vary in 0 directions"),
        (randn(50, 3) @ randn(3, 6), "degenerate PCA: .* vary in 3 directions"),
        (randn(4, 6), r"must be \(N, 6\) with N > 4, got \(4, 6\)"),
        (randn(50, 5), r"must be \(N, 6\) with N > 4, got \(50, 5\)"),
        (randn(50, 6).index_fill(0, torch.tensor([3]), torch.nan), "not finite"),
    ],
)
def test_a_degenerate_pca_is_refused(features, message):
    with pytest.raises(ValueError, match=message):
        PCA(6, 4).fit(features)


def test_more_components_than_features_are_refused():
    with pytest.raises(ValueError, match=r"must be in 1\.\.6.*, got 7"):
        PCA(6, 7)


# ---- the encoder ----


def test_training_is_repeatable_and_leaves_the_global_generator_alone(monkeypatch):
    monkeypatch.setattr("mtdiff.representations.FITTED", 300)
    before = torch.get_rng_state()
    first, again = (train_representation(16, steps=3, batch_size=24, d=4) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    image = render(range(30), 16, modalities=("image",))["image"]
    assert torch.equal(first(image), again(image))
    assert first(image).shape == (30, 4)
    assert not torch.equal(first(image), train_representation(16, steps=3, batch_size=24, d=4, seed=1)(image))
    assert not first.training


def test_a_saved_representation_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("mtdiff.representations.FITTED", 300)
    made = train_representation(16, steps=2, batch_size=16, d=4)
    made.save(tmp_path / "r", {"note": 1})
    again = representation(tmp_path / "r")
    image = render(range(9), 16, modalities=("image",))["image"]
    assert (made(image) - again(image)).abs().max() < 0.05
    assert again.card == {"note": 1}
    (tmp_path / "r" / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="truncated or damaged"):
        representation(tmp_path / "r")
    (tmp_path / "r" / CARD).write_text("{")
    with pytest.raises(ValueError, match="is not a representation card"):
        representation(tmp_path / "r")


def test_what_is_not_a_representation_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no representation at 'mars'.*\['shapes16', 'shapes32'\]"):
        representation("mars")
    scene_judge("shapes16").save(tmp_path)
    with pytest.raises(ValueError, match="unknown representation kind 'SceneJudge'"):
        representation(tmp_path)


@pytest.mark.parametrize("shape", [(3, 16), (3, 16, 24), (3, 20, 20)])
def test_encoders_of_odd_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"shape must be \(C, s, s\), s a multiple of 8"):
        Encoder(shape)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"image must be \(B, 3, 16, 16\), got \(2, 3, 32, 32\)"):
        Representation()(torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_ones_are_as_good_as_their_cards(name):
    made = representation(name)
    measured = probes(made, made.encoder.shape[1])
    assert measured == pytest.approx(made.card["metrics"]["probes"]["pca"], abs=0.01)  # weights are rounded to float16
    image = render(range(10**9, 10**9 + 2000), made.encoder.shape[1], modalities=("image",))["image"]
    x = made(image)
    assert x.mean(0).abs().max() < 0.15
    assert (x.var(0) - 1).abs().max() < 0.2
    training = made.card["training"]
    assert JUDGES + 10**7 < STREAM - 10_000
    assert STREAM + training["steps"] * training["batch_size"] < 10**9


# ---- pretrained ones, behind stand-ins ----


def stand_in(width=5):
    """A tiny network in place of a large one, that notes what it was shown."""
    network = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.AdaptiveAvgPool1d(width))
    network.seen = []
    network.register_forward_hook(lambda module, inputs, output: network.seen.append(inputs[0]))
    return network


def test_pretrained_encoders_get_what_they_were_trained_on():
    """[-1, 1] becomes [0, 1], resized, then normalised."""
    network = stand_in()
    encoder = Pretrained(network, 8, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert encoder(torch.ones(2, 3, 16, 16)).shape == (2, 5)
    expected = (1 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.2, 0.1])
    torch.testing.assert_close(network.seen[0], expected[:, None, None].expand(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"image must be \(B, 3, H, W\)"):
        encoder(torch.ones(2, 1, 16, 16))


def test_both_libraries_are_asked_for_what_the_table_says(monkeypatch):
    asked = []

    def timm_model(name, pretrained, num_classes):
        asked.append((name, pretrained, num_classes))
        return stand_in()

    def clip_model(name, pretrained):
        asked.append((name, pretrained))
        clip = torch.nn.Module()
        clip.visual, clip.tower = types.SimpleNamespace(image_size=(12, 12)), stand_in()
        clip.encode_image = clip.tower.forward
        return clip

    config = {"input_size": (3, 14, 14), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    timm = types.SimpleNamespace(
        create_model=timm_model, data=types.SimpleNamespace(resolve_model_data_config=lambda m: config)
    )
    clip = types.SimpleNamespace(create_model=clip_model, OPENAI_DATASET_MEAN=(0.5,) * 3, OPENAI_DATASET_STD=(0.2,) * 3)
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "open_clip", clip)
    for name, size in (("dinov2-small", 14), ("clip-b32", 12)):
        encoder = pretrained(name)
        assert encoder.size == size
        assert encoder(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    assert asked == [("vit_small_patch14_dinov2.lvd142m", True, 0), ("ViT-B-32", "laion2b_s34b_b79k")]


@pytest.mark.parametrize("name", ["dinov2-base", "clip-b16"])
def test_a_missing_library_is_named(monkeypatch, name):
    library = PRETRAINED[name][0]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{name} needs {library}: pip install 'mtdiff\[representations\]'"):
        pretrained(name)


def test_an_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match=r"encoder must be one of .*'dinov2-small'"):
        pretrained("resnet")


# ---- the probe ----


def test_the_probe_is_ridge_regression():
    x, y, test = randn(60, 5, seed=1), torch.arange(60) % 3, randn(20, 5, seed=2)
    x[:, :3] += 2 * torch.nn.functional.one_hot(y)
    centred = x - x.mean(0)
    alpha = 1e-3 * float(centred.square().mean()) * 60
    theirs = Ridge(alpha).fit(x.numpy(), torch.nn.functional.one_hot(y).numpy()).predict(test.numpy()).argmax(1)
    assert linear_probe(x, y, test).tolist() == theirs.tolist()
    assert (linear_probe(x, y, x) == y).double().mean() > 0.7
    with pytest.raises(ValueError, match="expected features"):
        linear_probe(x, y[:5], test)


def test_what_is_nearest_by_cosine_is_found_best_first():
    features = torch.tensor([[1.0, 0.0], [0.0, 3.0], [5.0, 5.0], [-1.0, 0.1]])
    assert nearest(features, torch.tensor([[2.0, 0.1], [0.0, 0.5]]), k=2).tolist() == [[0, 2], [1, 2]]
    with pytest.raises(ValueError, match=r"k must be in 1\.\.4, the number of features, got 5"):
        nearest(features, features, k=5)
    with pytest.raises(ValueError, match=r"expected features \(N, d\) and wanted \(M, d\), got \(4, 2\), \(2, 3\)"):
        nearest(features, torch.zeros(2, 3))
