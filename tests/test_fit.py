"""The small training loop: what it takes, what it leaves behind, and that it learns."""

import itertools
import math

import pytest
import torch
from helpers import generator, image_label_batch, image_label_model, mixture, point_model

import mtdiff as mt
from mtdiff import datasets
from mtdiff.fit import fit

X, Y = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0], [5.0]])


def line(seed=0):
    """One layer, the batches of a line through three points, and their squared error."""
    torch.manual_seed(seed)
    return (
        torch.nn.Linear(1, 1),
        itertools.repeat((X, Y)),
        lambda net, batch, generator: (net(batch[0]) - batch[1]).square().mean(),
    )


def test_a_line_is_found():
    net, batches, loss = line()
    history = fit(net, batches, loss, steps=400, lr=0.2)
    assert [net.weight.item(), net.bias.item()] == pytest.approx([2, 1], abs=0.05)
    assert len(history) == 400
    assert history[-1]["total"] < 1e-3 < history[0]["total"]
    assert not net.training


def test_the_average_is_the_one_of_the_formula():
    seen = []
    net, batches, loss = line()
    weights = fit(
        net,
        batches,
        lambda net, *arguments, **options: seen.append(net.weight.item()) or loss(net, *arguments, **options),
        30,
        0.1,
    )
    last, weights = net.weight.item(), [*seen[1:], net.weight.item()]
    mean = seen[0]
    for k, weight in enumerate(weights):
        mean += (1 - min(0.8, (1 + k) / (10 + k))) * (weight - mean)
    net, batches, loss = line()
    fit(net, batches, loss, 30, 0.1, ema=0.8)
    assert net.weight.item() == pytest.approx(mean, abs=1e-5)
    assert abs(mean - last) > 1e-3


def test_the_loss_of_the_library_fits_as_it_is_and_is_repeatable():
    found = []
    for seed in (0, 0, 1):
        model, data = image_label_model(), datasets.Dataset("few", image_label_batch(32))
        history = fit(model, data.batches(8, seed=0), mt.multitask_loss, 5, generator=generator(seed))
        assert history[0].keys() == {"total", "denoise", "image", "label"}
        assert history[0]["total"] == pytest.approx(sum(history[0][name] for name in ("denoise", "image", "label")))
        found.append(history)
    assert found[0] == found[1] != found[2]


def test_a_model_of_points_comes_close_to_the_exact_one():
    model, exact, data = point_model(64), mixture(mt.fade_in(1.0), T=100), datasets.toy("mixture", 5000)
    z = exact.process.diffuse(exact.encode(exact.draw(500, generator(1))), 40, generator=generator(2))[0]

    @torch.no_grad()
    def apart():
        return float((model.predict(z, 40).aggregate - exact.predict(z, 40).aggregate).square().mean())

    before = apart()
    fit(model, data.batches(256, seed=0), mt.multitask_loss, 300, lr=4e-3, ema=0.98, generator=generator())
    assert apart() < before / 3


def test_no_batch_is_drawn_in_vain_and_none_may_be_lacking():
    net, _, loss = line()
    stream = iter([(X, Y)] * 5)
    fit(net, stream, loss, 3)
    assert len(list(stream)) == 2
    with pytest.raises(ValueError, match="the batches ended after 2 of 3 steps"):
        fit(net, [(X, Y)] * 2, loss, 3)


def test_a_loss_that_is_not_finite_is_said_and_when():
    net, batches, loss = line()
    asked = []

    def broken(*arguments, **options):
        asked.append(len(asked))
        return math.nan * loss(*arguments, **options)

    with pytest.raises(ValueError, match=r"the loss was nan at step 0: before any update"):
        fit(net, batches, broken, 3000, lr=0.1)
    assert asked == [0], "said at once"
    with pytest.raises(ValueError, match=r"the loss was nan at step 2: try a smaller lr than 0\.1"):
        fit(
            net, batches, lambda *a, **o: loss(*a, **o) * (math.nan if len(asked) > 2 or asked.append(0) else 1.0), 5, lr=0.1
        )
