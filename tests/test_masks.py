"""Random masks: exact shares, and the shapes that their names promise."""

import pytest
import torch
from scipy import ndimage

from mtdiff.datasets.masks import MASKS, masks


@pytest.mark.parametrize("kind", [*MASKS, "mixed"])
@pytest.mark.parametrize("size", [8, 16, 17])
@pytest.mark.parametrize("hidden", [0.05, 0.5, 0.9])
def test_the_hidden_share_is_exact_to_a_pixel(kind, size, hidden):
    known = masks(11, size, kind, hidden, seed=1)
    assert known.shape == (11, 1, size, size)
    assert set(known.unique().tolist()) <= {0.0, 1.0}
    count = (1 - known).flatten(1).sum(1)
    assert float((count - hidden * size**2).abs().max()) <= 0.5 + 1e-3


def test_a_range_of_shares_is_used_evenly():
    """2,000 masks: mean share of U(0.2, 0.6) within 4 standard errors; seed 0."""
    share = (1 - masks(2000, 16, "pixels", (0.2, 0.6))).flatten(1).mean(1)
    assert 0.2 - 0.003 <= float(share.min()) < 0.21
    assert 0.59 < float(share.max()) <= 0.6 + 0.003
    assert abs(float(share.mean()) - 0.4) < 4 * 0.4 / 12**0.5 / 2000**0.5


@pytest.mark.parametrize("kind", [*MASKS, "mixed"])
def test_masks_depend_on_their_seed_alone(kind):
    torch.manual_seed(1)
    a = masks(10, 16, kind, seed=3)
    torch.manual_seed(2)
    assert torch.equal(a, masks(10, 16, kind, seed=3))
    assert not torch.equal(a, masks(10, 16, kind, seed=4))
    assert len(a.unique(dim=0)) == 10


def test_mixed_takes_the_kinds_in_turn():
    """Their outlines have different lengths: single pixels have by far the longest, boxes the shortest."""
    mixed = masks(500, 16, hidden=0.4, seed=0)
    edges = (mixed.diff(dim=2).abs().sum((1, 2, 3)) + mixed.diff(dim=3).abs().sum((1, 2, 3))).reshape(-1, len(MASKS)).mean(0)
    length = dict(zip(MASKS, edges.tolist(), strict=True))
    assert max(length, key=length.get) == "pixels"
    assert max(length["box"], length["border"]) < min(length["blobs"], length["strokes"])


def ragged(inside: torch.Tensor) -> int:
    """How many pixels of its own bounding box a region lacks."""
    rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
    box = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return int((~box).sum())


@pytest.mark.parametrize(("kind", "value"), [("box", 0), ("border", 1)])
@pytest.mark.parametrize("hidden", [0.2, 0.5, 0.8])
def test_a_box_hides_one_rectangle_and_a_border_leaves_one(kind, value, hidden):
    """A full rectangle, but for the last line of it, which an exact share may leave unfinished."""
    for mask in masks(50, 16, kind, hidden, seed=2)[:, 0]:
        assert ragged(mask == value) <= 15
        assert ndimage.label(mask == value)[1] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "holes"}, "kind must be one of"),
        ({"n": 0}, "n must be at least 1 and size at least 2, got 0 and 16"),
        ({"size": 1}, "got 4 and 1"),
        ({"hidden": 0.0}, "hidden must be a share"),
        ({"hidden": 1.0}, "hidden must be a share"),
        ({"hidden": (0.6, 0.2)}, "hidden must be a share"),
        ({"hidden": (0.6, 1.2)}, "hidden must be a share"),
    ],
)
def test_bad_masks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        masks(**{"n": 4, "size": 16, **options})
