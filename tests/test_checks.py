"""What is refused, and how it is said."""

import re

import pytest
import torch

from mtdiff.checks import check_ids, check_names, check_values, check_whole

GOOD = torch.zeros(2, 3, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (GOOD.float(), "'map' must be an integer tensor of ids (B, 3, 4), got torch.float32 (2, 3, 4)"),
        (GOOD.bool(), "got torch.bool (2, 3, 4)"),
        (GOOD.tolist(), "'map' must be an integer tensor of ids (B, 3, 4), got [[[0"),
        (GOOD[0], "got torch.int64 (3, 4)"),
        (GOOD[..., 0], "got torch.int64 (2, 3)"),
        (GOOD.transpose(1, 2), "got torch.int64 (2, 4, 3)"),
        (GOOD[..., None], "got torch.int64 (2, 3, 4, 1)"),
        (torch.tensor(1), "got torch.int64 ()"),
        (GOOD + 5, "'map' has values outside 0..4: [5]"),
        (GOOD - 1, "'map' has values outside 0..4: [-1]"),
    ],
)
def test_ids_are_whole_numbers_of_a_shape_and_in_their_range(value, message):
    check_ids("'map'", GOOD, 5, "ids (B, 3, 4)", 3, 4)
    check_ids("'map'", GOOD + 4, 5, "ids (B, 3, 4)", 3, 4)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_ids("'map'", value, 5, "ids (B, 3, 4)", 3, 4)


def test_ids_of_each_example_alone_have_one_axis():
    check_ids("'label'", torch.tensor([0, 2]), 3, "ids (B,)")
    for wrong in (torch.tensor(1), torch.zeros(2, 1, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"'label' must be an integer tensor of ids \(B,\)"):
            check_ids("'label'", wrong, 3, "ids (B,)")


@pytest.mark.parametrize("number", [0, -1, 2.0, True, "3", None])
def test_a_count_is_a_whole_number_from_one_on(number):
    check_whole(n=1)
    with pytest.raises(ValueError, match=f"n must be a whole number from 1 on, got {number!r}"):
        check_whole(n=number)


def test_names_are_known_ones():
    assert check_names("present", iter(["b", "a"]), ("a", "b")) == ("b", "a")
    with pytest.raises(ValueError, match="must be a collection of names, got the string 'a'"):
        check_names("present", "a", ("a",))
    with pytest.raises(KeyError, match=r"present names an unknown modality 'c'; known are \['a'\]"):
        check_names("present", ["a", "c"], ("a",))


def test_values_are_equally_many():
    class Anything:
        def check(self, value):
            pass

    known = {"a": Anything(), "b": Anything()}
    assert check_values(known, {"a": torch.zeros(3), "b": torch.zeros(3, 2)}, "batch") == 3
    for values, message in (
        ({}, "batch is empty"),
        ({"a": torch.zeros(3), "b": torch.zeros(2)}, "batch has different numbers of examples: {'a': 3, 'b': 2}"),
        ({"a": torch.zeros(0)}, "batch must have at least one example"),
    ):
        with pytest.raises(ValueError, match=message):
            check_values(known, values, "batch")
