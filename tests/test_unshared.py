"""The control without a shared space: a state and a time for each modality."""

import math

import pytest
import torch
from helpers import generator, randomise

import mtdiff as mt
from mtdiff.baselines import Unshared
from mtdiff.datasets import masks
from mtdiff.experiments.base import noise_schedule, seeded
from mtdiff.schedules import constant

DROP, GIVE = {"masked": 0.8, "mask": "masked"}, {"masked": 0.7, "mask": "masked"}


def unshared():
    """Image, masked image and mask of 16 by 16, without heads of pixels."""
    shape, one = (3, 16, 16), constant(1.0)
    parts = {"image": (one, mt.Image(shape, channels=slice(0, 3), head=False))}
    parts["masked"] = (one, mt.Image(shape, channels=slice(3, 6), head=False))
    parts["mask"] = (one, mt.Mask((16, 16), channels=slice(6, 7)))
    return seeded(0, noise_schedule(16, 1.0), (7, 16, 16), parts, rule="conditioned", kind=Unshared)


def examples(n):
    """Pictures of noise, with a hole."""
    image, mask = torch.randn(n, 3, 16, 16, generator=generator(1)).clamp(-1, 1), masks(n, 16, seed=2)
    return {"image": image, "masked": image * mask, "mask": mask}


def test_the_unshared_control_trains_each_task_as_often():
    """Told is clean, dropped is noise, as often as those say; masked image and mask share their time."""
    model, times = unshared(), {}
    first, last = model.process.first, model.process.steps
    model.predict_at = lambda z, t: times.update(t) or (_ for _ in ()).throw(InterruptedError)
    with pytest.raises(InterruptedError):
        model.loss(examples(2000), generator(), {}, DROP, GIVE)
    assert torch.equal(times["masked"], times["mask"])
    told, absent = (float((times["mask"] == end).double().mean()) for end in (first, last))
    assert abs(told - 0.7) < 4 * (0.7 * 0.3 / 2000) ** 0.5 + 1 / last
    assert abs(absent - 0.3 * 0.8) < 4 * (0.24 * 0.76 / 2000) ** 0.5 + 1 / last
    assert times["image"].unique().numel() > 400


def test_the_unshared_control_is_sampled_like_every_model():
    """Given values stand clean in their channels, absent ones are noise of unit RMS at the last step; the rest is at t."""
    model = randomise(unshared(), scale=0.05).eval()
    process, t, seen = model.process, 300, {}
    predict_at = model.predict_at
    model.predict_at = lambda z, times: seen.update(z=z, times=times) or predict_at(z, times)
    v = examples(6)
    z, eps = process.diffuse(model.encode({"masked": v["masked"]}), t, present={"masked"}, generator=generator())
    with torch.no_grad():
        found = model.predict(z, t, given={"mask": v["mask"]}, present={"masked", "mask"})
    assert {name: int(time[0]) for name, time in seen["times"].items()} == {
        "image": process.steps, "masked": t, "mask": process.first,
    }  # fmt: skip
    code = model.modalities["mask"].encode(v["mask"])[:, 6:]
    torch.testing.assert_close(seen["z"][:, :3], eps[:, :3])
    assert torch.equal(seen["z"][:, 3:6], z[:, 3:6])
    assert torch.equal(seen["z"][:, 6:], code)
    assert not found.aggregate[:, :3].any()
    assert torch.equal(found.aggregate[:, 6:], code)
    drawn = mt.sample(model, 6, given={"masked": v["masked"], "mask": v["mask"]}, steps=3, generator=generator())
    assert torch.equal(drawn["mask"], v["mask"])
    assert drawn["image"].shape == v["image"].shape
    bound = mt.elbo(model, v, present={"image"}, generator=generator())
    assert math.isfinite(bound.total)
