"""The small autoencoder: how many numbers its latents have, what it learns, and on what."""

import pytest
import torch

from mtdiff.baselines.autoencoder import Autoencoder, fit_autoencoder
from mtdiff.datasets import shapes


def test_latents_are_a_quarter_of_the_numbers_and_the_way_back_has_the_shape():
    model, picture = Autoencoder(8), torch.rand(2, 3, 16, 12) * 2 - 1
    assert model.encode(picture).numel() * 4 == picture.numel()
    assert model(picture).shape == picture.shape
    assert torch.equal(model(picture), model.up(model.encode(picture)))


def test_what_has_no_half_is_named():
    for shape in ((2, 3, 15, 16), (2, 3, 16, 15), (2, 1, 16, 16), (3, 16, 16)):
        with pytest.raises(ValueError, match=r"pictures \(B, 3, H, W\) of even height and width"):
            Autoencoder(8)(torch.zeros(shape))


def test_fitting_lowers_the_error_of_other_pictures_and_follows_the_seed():
    train, test = (shapes(split, n=200, modalities=("image",)).values["image"] for split in ("train", "test"))
    short, long = (fit_autoencoder(train, steps, 16, 8) for steps in (4, 60))
    errors = [float((model(test) - test).square().mean()) for model in (short, long)]
    assert errors[1] < 0.5 * errors[0]
    again, other = (fit_autoencoder(train, 4, 16, 8, seed=seed) for seed in (0, 1))
    assert torch.equal(short(test), again(test))
    assert not torch.equal(short(test), other(test))
    assert not any(p.requires_grad for p in long.parameters())
