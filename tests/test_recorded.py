"""What a class notes of its arguments is enough to build it again, without a word from the class."""

import copy
from dataclasses import dataclass

import pytest
import torch
from helpers import randomise
from torch import nn

import mtdiff as mt
from mtdiff.backbones import Backbone
from mtdiff.modalities import Modality
from mtdiff.recorded import Recorded
from mtdiff.training import TrainConfig, Trainer


class Family(Recorded):
    """A family of its own, beside those of the library."""

    def __init__(self, first, second=(1, 2), *, third=None, **more):
        self.first = first


class Member(Family):
    """One of the family, with fewer arguments."""

    def __init__(self, channels: slice, count: int = 3):
        super().__init__("of a member", third=count)


def test_arguments_are_noted_by_name_with_their_defaults_and_as_json_has_them():
    assert Family(torch.eye(2)).config == {"kind": "Family", "first": [[1, 0], [0, 1]], "second": [1, 2], "third": None}
    made = Family({"a": (torch.Size((3,)), slice(2))}, range(2), third=Member(slice(1, None)), fourth="4")
    assert made.config["first"] == {"a": [[3], [None, 2]]}
    assert made.config["second"] == [0, 1]
    assert made.config["third"] == {"kind": "Member", "channels": [1, None], "count": 3}
    assert made.config["fourth"] == "4"


def test_a_class_is_built_again_from_its_config_where_it_belongs():
    made = Family.from_config(Member(slice(1, 2), 5).config)
    assert type(made) is Member
    assert made.config == {"kind": "Member", "channels": [1, 2], "count": 5}
    assert Family.from_config({"kind": "Member", "channels": [1, 2]}).config["count"] == 3  # an older card
    for family, config, message in (
        (Member, Family(1).config, r"unknown family kind 'Family'; known: \['Member'\]"),
        (Modality, made.config, "unknown modality kind 'Member'"),
        (Family, {"kind": "Member", "channels": [1, 2], "count": "5"}, "count of the family Member must be a whole number"),
        (Family, ["Member"], "a family is described by"),
    ):
        with pytest.raises(ValueError, match=message):
            family.from_config(config)


def test_the_name_of_a_class_of_the_library_is_its_own_and_others_may_be_defined_again():
    with pytest.raises(TypeError, match=r"mtdiff.modalities.continuous has a modality Image already: give"):
        type("Image", (Modality,), {"__module__": "mine"})
    assert Modality.kinds["Image"] is mt.Image
    first, again = (type("Redone", (Family,), {"__module__": home}) for home in ("notebook", "mine"))
    assert Family.kinds["Redone"] is again is not first


def test_wrong_arguments_are_refused_by_the_class_itself():
    with pytest.raises(TypeError, match=r"Member.__init__\(\) got an unexpected keyword argument 'size'"):
        Member(slice(1), size=3)

    class Nameless(Family):
        def __init__(self, *values):
            super().__init__(values)

    with pytest.raises(TypeError, match=r"Nameless takes \*values"):
        Nameless(1, 2)


def test_a_copy_has_the_config_of_what_it_was_copied_from():
    label = mt.Label(3, names=["a", "b", "c"])
    again = copy.deepcopy(label)
    assert again.config == label.config
    assert again.config is not label.config


@pytest.mark.parametrize("names", [range(3), ["a", "b", "c"], (1, "b", 3)])
def test_names_may_be_numbers_and_are_texts_when_they_come_back(names):
    label = mt.Label(3, names=names)
    assert Modality.from_config(label.config).names == label.names == [str(name) for name in names]


# ---- classes of a reader's own, which pass on what they like and register nothing ----


class Sound(mt.modalities.Continuous):
    """A row of numbers in channels of its own."""

    def __init__(self, seconds, rate=2, where: slice | None = None):
        super().__init__((seconds * rate,), channels=where)


@dataclass
class Signs:
    """What a spin's head says."""

    logit: torch.Tensor
    shape: tuple

    def log_prob(self, value):
        return nn.functional.logsigmoid(2 * value * self.logit).squeeze(1)

    def loss(self, value):
        return -self.log_prob(value)

    def expected_code(self):
        return self.logit.tanh().expand(-1, *self.shape)

    def draw(self, generator=None):
        return self.logit.sign()


class Spin(Modality):
    """-1 or 1, from nothing that the library has."""

    given_as = "vector"

    def __init__(self, channels=None):
        super().__init__(channels=channels)

    def build(self, backbone):
        self.out = nn.Linear(backbone.pooled, 1)

    def check(self, value):
        if value.shape[1:] != (1,):
            self.refuse(value, "(B, 1)")

    def code(self, value):
        return value.expand(-1, *self.slice_shape)

    def head(self, view):
        return Signs(self.out(view.pooled), self.slice_shape)


class Linear(Backbone):
    """One layer."""

    def __init__(self, space, width=8):
        super().__init__()
        self.space, self.embedding, self.pooled = tuple(space), width, width
        self.enter = nn.Linear(space[0] + 1, width)

    def forward(self, z, u, condition=None, context=None, tokens=None, keep=None):
        h = self.enter(torch.cat([z, u[:, None].to(z.dtype)], 1))
        h = h if condition is None else h + condition
        return h, h

    def readout(self, shape):
        return nn.Linear(self.pooled, *shape)

    def entrance(self, shape):
        return nn.Linear(*shape, self.pooled)


class Louder(mt.MTDiffusion):
    """A model with an argument of its own, and without some of its parent's."""

    def __init__(self, process, modalities, backbone, space, gain=1.0):
        super().__init__(process, modalities, backbone, space)
        self.gain = gain


def test_classes_of_ones_own_train_save_and_load(tmp_path):
    modalities = {"sound": Sound(2, where=slice(0, 4)), "spin": Spin(channels=slice(4, None))}
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20), {"sound": 1.0, "spin": 1.0})
    model = Louder(process, modalities, randomise(Linear((6,))), (6,), gain=2.5)
    batch = {"sound": torch.randn(16, 4), "spin": torch.randn(16, 1).sign()}
    data = mt.datasets.base.Dataset("own", batch)
    trained = Trainer(model, data, TrainConfig(steps=3, batch_size=8)).run(progress=False)
    again, z = mt.load(trained.save(tmp_path / "own")), torch.randn(5, 6)
    assert (type(again), again.gain, type(again.modalities["spin"])) == (Louder, 2.5, Spin)
    assert again.modalities["sound"].config == {"kind": "Sound", "seconds": 2, "rate": 2, "where": [0, 4]}
    trained.eval()
    assert torch.equal(again.predict(z, 3).aggregate, trained.predict(z, 3).aggregate)
    assert again.architecture() == trained.architecture()
