"""Scores of dense prediction: maps of classes, of distances and of instances, against the truth."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from mtdiff.checks import check_ids


def mean_iou(predicted: Tensor, truth: Tensor, classes: int) -> float:
    """Mean over classes of |P_c and T_c| / |P_c or T_c|, in [0, 1], over all pixels of maps (N, H, W) of ids 0..classes-1.

    A class that neither has is left out. ValueError for different shapes, or an id out of range.

    Source: the index of Jaccard 1912, averaged as in the PASCAL VOC challenge (Everingham et al. 2010).
    """
    shared = _overlaps(predicted, truth, classes).sum(0)  # (K, K)
    union = shared.sum(0) + shared.sum(1) - shared.diagonal()
    there = union > 0
    return float((shared.diagonal()[there] / union[there]).mean())


def depth_errors(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """How wrong distances > 0 are, of any one shape and unit.

    Returns:
        "rmse", the root of the mean square difference, in their unit, and "delta", the share in [0, 1] of pixels whose ratio
        max(p / t, t / p) is below 1.25.

    Raises:
        ValueError: different shapes, or a distance that is not positive.

    Source: Eigen et al. 2014.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"expected distances of one shape, got {tuple(predicted.shape)} and {tuple(truth.shape)}")
    if not bool((predicted > 0).all() & (truth > 0).all()):
        raise ValueError(f"distances must be positive, the least are {float(predicted.min()):g} and {float(truth.min()):g}")
    p, t = predicted.double(), truth.double()
    near = torch.maximum(p / t, t / p) < 1.25
    return {"rmse": float((p - t).square().mean().sqrt()), "delta": float(near.double().mean())}


def panoptic_quality(
    predicted: Tensor, truth: Tensor, class_of: Sequence[int], counted: Collection[int] | None = None
) -> dict[str, float]:
    """Panoptic quality: mean over classes of sum_{(p, t) matched} IoU(p, t) / (TP + FP / 2 + FN / 2), and its two factors.

    A segment is all pixels of one id of one map. A predicted and a true one of the same class match where their IoU is above
    1/2, which can hold of one partner only; which of the ids of a class a segment has does not matter. TP counts matches, FP
    and FN predicted and true segments without one. A class that neither has is left out.

    Args:
        predicted, truth: (N, H, W) of ids 0..K-1.
        class_of: the class of each of the K ids.
        counted: the classes that the mean is over; None: all. A background that nearly every pixel is of is an easy one.

    Returns:
        Each in [0, 1]: "quality" = mean of SQ RQ, "segmentation" SQ, the mean IoU of matches (of classes that have one), and
        "recognition" RQ = TP / (TP + FP / 2 + FN / 2). SQ is not a number where nothing matches.

    Raises:
        ValueError: different shapes, or an id without a class.

    Source: Kirillov et al. 2019.
    """
    kinds = torch.as_tensor(class_of, device=truth.device)
    shared = _overlaps(predicted, truth, len(kinds))  # (N, K, K)
    areas = shared.sum(2), shared.sum(1)  # (N, K) of predicted, of true segments
    iou = shared / (areas[0][:, :, None] + areas[1][:, None] - shared).clamp(min=1)
    iou = torch.where(kinds[:, None] == kinds, iou, 0)
    match = iou > 0.5
    columns = [match.sum((0, 2)), (iou * match).sum((0, 2)), *((area > 0).sum(0) for area in areas)]
    rows = []
    for kind in kinds.unique():
        if counted is not None and int(kind) not in counted:
            continue
        hits, total, said, real = (float(column[kinds == kind].sum()) for column in columns)
        if said + real:  # TP + FP / 2 + FN / 2 is half of all segments
            rows.append((2 * total / (said + real), total / hits if hits else float("nan"), 2 * hits / (said + real)))
    quality, segmentation, recognition = torch.tensor(rows, dtype=torch.float64).nanmean(0).tolist()
    return {"quality": quality, "segmentation": segmentation, "recognition": recognition}


def boundary(truth: Tensor) -> Tensor:
    """Pixels (N, H, W) bool of a map of ids that have one of their four neighbours in another segment."""
    edge = torch.zeros_like(truth, dtype=torch.bool)
    across, down = truth[:, :, 1:] != truth[:, :, :-1], truth[:, 1:] != truth[:, :-1]
    edge[:, :, 1:] |= across
    edge[:, :, :-1] |= across
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    return edge


def label_errors(read: Tensor, truth: Tensor) -> dict[str, float]:
    """Shares of wrong pixels of maps (N, H, W): "boundary", of those next to another segment, and "inside", of the rest.

    Not a number where there is no such pixel.
    """
    wrong, edge = (read != truth).double(), boundary(truth)
    return {"boundary": float(wrong[edge].mean()), "inside": float(wrong[~edge].mean())}


def _overlaps(predicted: Tensor, truth: Tensor, k: int) -> Tensor:
    """How many pixels of each map have each pair of ids, (N, K, K) float64: predicted, true."""
    if predicted.ndim != 3 or predicted.shape != truth.shape:
        raise ValueError(f"expected two equal sets of maps (N, H, W), got {tuple(predicted.shape)} and {tuple(truth.shape)}")
    for what, value in (("predicted", predicted), ("truth", truth)):
        check_ids(what, value, k, f"ids {tuple(truth.shape)}", *truth.shape[1:])
    n = len(truth)
    cell = (torch.arange(n, device=truth.device)[:, None, None] * k + predicted) * k + truth
    return cell.flatten().bincount(minlength=n * k * k).reshape(n, k, k).double()
