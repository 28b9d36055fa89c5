"""Scores of dense prediction: cases worked out by hand, and computations that do not share their code."""

import math

import numpy as np
import pytest
import torch
from helpers import generator

from mtdiff.datasets.dense import CLASSES
from mtdiff.dense_scores import boundary, depth_errors, label_errors, mean_iou, panoptic_quality


def maps(*rows):
    """Maps of one row of pixels each, (N, 1, W)."""
    return torch.tensor(rows)[:, None]


def random_maps(n, k, seed):
    """Blocky maps (n, 6, 6) of ids below k."""
    return torch.randint(k, (n, 3, 3), generator=generator(seed)).repeat_interleave(2, 1).repeat_interleave(2, 2)


def test_mean_iou_by_hand():
    """Class 0: 2 of 4 pixels, class 1: 2 of 5, class 2: 1 of 2; class 3 is nowhere and does not count."""
    truth, predicted = maps([0, 0, 0, 1], [1, 1, 2, 2]), maps([0, 0, 1, 1], [1, 0, 2, 1])
    assert math.isclose(mean_iou(predicted, truth, 4), (2 / 4 + 2 / 5 + 1 / 2) / 3)
    assert mean_iou(truth, truth, 4) == 1
    assert mean_iou(truth, 3 - truth, 4) < 0.2


def test_mean_iou_is_that_of_sets():
    truth, predicted = random_maps(7, 4, 0), random_maps(7, 4, 1)
    found = []
    for k in range(4):
        a, b = ({tuple(place) for place in np.argwhere(m.numpy() == k)} for m in (truth, predicted))
        found.append(len(a & b) / len(a | b))
    assert math.isclose(mean_iou(predicted, truth, 4), sum(found) / 4)


def test_a_class_that_is_only_predicted_costs_as_one_that_is_only_there():
    one, two = maps([0, 0, 0, 1]), maps([0, 0, 0, 0])
    assert mean_iou(one, two, 2) == mean_iou(two, one, 2) == pytest.approx((3 / 4 + 0) / 2)


def test_depth_errors_by_hand():
    """Ratios 1, 1.2, 1.25 (not below) and 2 the other way round; errors 0, 0.2, 1, -1."""
    found = depth_errors(torch.tensor([1.0, 1.2, 5.0, 1.0]), torch.tensor([1.0, 1.0, 4.0, 2.0]))
    assert found["delta"] == 0.5
    assert math.isclose(found["rmse"], math.sqrt((0 + 0.04 + 1 + 1) / 4), rel_tol=1e-6)
    a, b = 1 + torch.rand(2, 500, generator=generator(3)).double()
    assert depth_errors(a, b) == pytest.approx(depth_errors(b, a))
    assert depth_errors(3 * a, 3 * b)["delta"] == depth_errors(a, b)["delta"]


def test_panoptic_quality_by_hand():
    """Three segments overlap by exactly a half, which is no match; then all match, by 4/5, by 2/3 and 1, and by 1."""
    truth = maps([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
    halves = panoptic_quality(maps([0, 0, 0, 1, 1, 1, 0, 2, 0, 3]), truth, (0, 1, 1, 2))
    assert halves["quality"] == pytest.approx((0 + 0 + 1) / 3)  # background 3 of 6, id 1 two of 4, id 2 one of 2
    predicted = maps([0, 0, 0, 0, 1, 1, 0, 2, 2, 3])
    found = panoptic_quality(predicted, truth, (0, 1, 1, 2))
    sq = torch.tensor([4 / 5, (2 / 3 + 1) / 2, 1.0])
    assert found["segmentation"] == pytest.approx(float(sq.mean()))
    assert found["recognition"] == 1
    assert found["quality"] == pytest.approx(float(sq.mean()))
    objects = panoptic_quality(predicted, truth, (0, 1, 1, 2), counted={1, 2})
    assert objects["quality"] == pytest.approx(float(sq[1:].mean()))


def test_unmatched_segments_of_both_sides_count_half():
    """One true segment is missed and one is made up: TP 1, FP 1, FN 1 of class 1."""
    truth, predicted = maps([0, 0, 0, 1, 1, 0, 2, 2, 0]), maps([2, 2, 0, 1, 1, 0, 0, 0, 0])
    found = panoptic_quality(predicted, truth, (0, 1, 1))
    iou = 3 / 7  # of the background: below a half, so neither matches
    assert iou < 0.5
    assert found["quality"] == pytest.approx((0 + 1 / (1 + 0.5 + 0.5)) / 2)
    assert found["recognition"] == pytest.approx((0 + 1 / 2) / 2)
    assert found["segmentation"] == 1  # of the only class that has a match


def test_which_id_of_a_class_does_not_matter_and_the_class_does():
    truth = maps([0, 0, 1, 1, 2, 2, 3, 3])
    swapped = torch.tensor([0, 2, 1, 3])[truth]
    assert panoptic_quality(swapped, truth, (0, 1, 1, 2))["quality"] == 1
    other = torch.tensor([0, 3, 2, 1])[truth]
    assert panoptic_quality(other, truth, (0, 1, 1, 2))["quality"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_panoptic_quality_is_that_of_a_search_over_all_pairs():
    truth, predicted = random_maps(20, 10, 4), random_maps(20, 10, 5)
    predicted[:, :4] = truth[:, :4]
    totals = {kind: [0.0, 0, 0, 0] for kind in set(CLASSES)}
    for p, t in zip(predicted.numpy(), truth.numpy(), strict=True):
        mine, real = ({i: m == i for i in np.unique(m)} for m in (p, t))
        for kind in totals:
            ours, theirs = ([m[i] for i in m if CLASSES[i] == kind] for m in (mine, real))
            ious = [(a & b).sum() / (a | b).sum() for a in ours for b in theirs]
            hits = [iou for iou in ious if iou > 0.5]
            totals[kind][0] += sum(hits)
            totals[kind][1] += len(hits)
            totals[kind][2] += len(ours) - len(hits)
            totals[kind][3] += len(theirs) - len(hits)
    want = np.mean([total / (tp + fp / 2 + fn / 2) for total, tp, fp, fn in totals.values()])
    found = panoptic_quality(predicted, truth, CLASSES)["quality"]
    assert 0.1 < found < 0.9
    assert math.isclose(found, want, rel_tol=1e-12)


def test_the_boundary_is_where_a_neighbour_is_another():
    truth = torch.tensor([[[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
    want = [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert boundary(truth).long().tolist() == [want]
    assert not boundary(torch.ones(2, 4, 4, dtype=torch.long)).any()


def test_label_errors_by_hand():
    """Of 6 pixels 2 are at the boundary, one of which is wrong, and of the other four one."""
    found = label_errors(maps([0, 0, 1, 1, 1, 2]), maps([0, 0, 0, 1, 1, 1]))
    assert found == {"boundary": 0.5, "inside": 0.25}
    assert math.isnan(label_errors(maps([0, 0]), maps([0, 0]))["boundary"])


@pytest.mark.parametrize("score", [lambda p, t: mean_iou(p, t, 3), lambda p, t: panoptic_quality(p, t, (0, 1, 1))])
def test_maps_that_do_not_fit_are_named(score):
    good = torch.zeros(2, 4, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"two equal sets of maps \(N, H, W\), got \(2, 4, 4\) and \(2, 4, 5\)"):
        score(good, torch.zeros(2, 4, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"predicted has values outside 0..2: \[3\]"):
        score(good + 3, good)
    with pytest.raises(ValueError, match="truth must be an integer tensor"):
        score(good, good.float())


def test_distances_that_are_none_are_named():
    with pytest.raises(ValueError, match="distances must be positive, the least are -1 and 1"):
        depth_errors(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"distances of one shape, got \(3,\) and \(2,\)"):
        depth_errors(torch.ones(3), torch.ones(2))
