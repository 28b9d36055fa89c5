"""Every setting's chain ends in noise, at every size."""

from dataclasses import replace

import pytest
import torch
from helpers import generator

import mtdiff as mt
from mtdiff.datasets import Dataset
from mtdiff.experiments import EXPERIMENTS, image_label, imagenet
from mtdiff.experiments.base import noise_schedule
from mtdiff.model import PRIOR_NATS
from mtdiff.training import TrainConfig

SETTINGS = [
    (name, data, variant)
    for name in ("image-label", "image-representation", "image-transition", "masked-image")
    for data in ("digits", "shapes16", "planted80", "shapes32")
    if data in EXPERIMENTS[name].data
    for variant in ("fade-in", "lifted", "masked", "own-channels", "unshared", "conditional", "transition")
    if variant in EXPERIMENTS[name].variants
]
SETTINGS += [("imagenet", str(size), variant) for size in (32, 64) for variant in imagenet.VARIANTS]


def values(model, n=16):
    """A value for each modality; images of mean square 0.56, that of our brightest scenes (photographs: about 0.3)."""
    g, out = generator(), {}
    for name, modality in model.modalities.items():
        if isinstance(modality, mt.Image):
            out[name] = 0.75 * torch.sign(torch.randn(n, *modality.shape, generator=g))
        elif isinstance(modality, mt.Mask):
            out[name] = (torch.rand(n, 1, *modality.size, generator=g) < 0.5).float()
        elif isinstance(modality, mt.Label):
            out[name] = torch.arange(n) % modality.classes
        else:
            out[name] = torch.randn(n, *modality.config["shape"], generator=g)
    if "masked" in out:
        out["masked"] = out["image"] * out["mask"]
    return out


@pytest.mark.parametrize(("name", "data", "variant"), SETTINGS)
def test_every_setting_ends_in_noise(name, data, variant):
    if name == "imagenet":
        model = imagenet.assemble(int(data), variant, ("a", "b", "c"))
    else:
        model = EXPERIMENTS[name].build(data, variant)
    left = float(model.process.prior_kl(model.encode(values(model))).mean())
    assert left <= PRIOR_NATS
    if name != "image-transition":  # which ends at a source, or where nothing is left of the target
        assert left > PRIOR_NATS / 20  # not lower than it takes


def test_a_schedule_that_ends_at_the_same_log_snr_at_all_sizes_would_be_noticed():
    model = image_label.build("shapes32", "fade-in")
    curves = {name: model.process.cumulative(name) for name in model.process.names}
    fixed = mt.ForwardProcess(mt.NoiseSchedule.log_snr(500, 8.0, -8.0), curves)
    assert float(fixed.prior_kl(model.encode(values(model))).mean()) > 5 * PRIOR_NATS


def test_the_end_is_lower_by_the_logarithm_of_the_size():
    ends = [round(float(noise_schedule(size, 1.5).abar[-1].logit()), 6) for size in (8, 16, 32, 64)]
    assert ends == [-8.0, -9.0, -10.5, -11.5]


def test_a_new_run_and_a_run_of_another_model_keep_the_schedule_of_now(tmp_path):
    config = TrainConfig(steps=1, batch_size=2)
    few = {"image": torch.rand(4, 3, 16, 16, generator=generator()), "label": torch.arange(4)}
    data = Dataset("few", few, image_label.EXPERIMENT.data["shapes16"]("test").names)
    experiment = replace(image_label.EXPERIMENT, data={"shapes16": lambda split: data})
    now = image_label.build("shapes16", "fade-in").process.schedule.abar
    run = experiment.trainer("shapes16", "constant", config, tmp_path)
    run.run(progress=False)
    assert torch.equal(run.model.process.schedule.abar, now)
    other = experiment.trainer("shapes16", "fade-in", config, tmp_path)
    assert torch.equal(other.model.process.schedule.abar, now)
    with pytest.raises(ValueError, match="another model"):
        other.resume()
