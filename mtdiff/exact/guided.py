"""Guidance by exact estimates: what it draws when no network is to blame (theory 4, rule 2)."""

import collections
from collections.abc import Sequence

from torch import Tensor

from mtdiff.exact.mixture import LabelledMixture
from mtdiff.prediction import Prediction
from mtdiff.process import ForwardProcess
from mtdiff.sampling import sample_path
from mtdiff.schedules import NoiseSchedule


def planted_mixture(share: float, across: float = 1.0, spread: float = 0.45) -> LabelledMixture:
    """Two shapes, each in a colour of its own with probability `share`: four clusters in the plane, shape across, colour up.

    Components 0 and 1 are the left shape in its own colour (above) and in the other (below), 2 and 3 the right shape in
    its own colour (below) and in the other (above). The shape is a group of two components; nothing of it is in z_t.

    Args:
        share: in (0, 1), else a ValueError; 1/2 is no correlation.
        across: half the distance of the shapes; that of the colours is 1.
        spread: standard deviation of each cluster.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    process = ForwardProcess(NoiseSchedule.log_snr(400, 8.0, -8.0), {"x": 1.0, "label": 0.0})
    weights = [share / 2, (1 - share) / 2] * 2
    means = [[-across, 1.0], [-across, -1.0], [across, -1.0], [across, 1.0]]
    return LabelledMixture(weights, means, [spread] * 4, [[0.0, 0.0]] * 4, process)


def sample_group(
    model: LabelledMixture, group: Sequence[int], n: int, guidance: float = 1.0, steps: int = 100, generator=None
) -> Tensor:
    """Points x, given that the label is one of a group, by guidance of any scale and exact estimates (DDIM).

    E_g[m | z_t] = E[m | z_t] + g (1 - abar_t) / sqrt(abar_t) grad_z log p(label in group | z_t). At g = 1 this is
    E[m | z_t, label in group]; at any other scale it belongs to no law of z_t that is the noising of data.

    Args:
        model: the mixture; its label must have weight 0 (a group is no label whose code could be in z_t).
        group: labels, some of 0..K-1.

    Returns:
        (n, d) float64, what the noise leaves at the first step.

    Raises:
        ValueError: the label is in z_t, the group is empty or names an unknown label, or guidance is not finite.

    Source: ours; theory 4, rule 2.
    """
    group = list(group)
    if "label" in model.process.entering:
        raise ValueError("a group of labels has no code: the label's weight must be 0")
    if not group or not set(group) <= set(range(len(model.weights))):
        raise ValueError(f"group must be some of 0..{len(model.weights) - 1}, got {group}")

    def in_group(prediction: Prediction) -> Tensor:
        return prediction.law["label"].logits[:, group].logsumexp(1)

    path = sample_path(model, n, sampler="ddim", steps=steps, guidance=guidance, towards=in_group, generator=generator)
    t, z, _ = collections.deque(path, maxlen=1).pop()
    return z / model.process.at(t, z).signal
