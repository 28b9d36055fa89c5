"""Figures over seeds, and differences of two variants that were trained with the same ones."""

import functools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.05
"""A difference is called clear below this probability of one as far from 0 by chance alone: the course's one threshold."""


def mean_and_error(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean over seeds, its standard error (None for one seed) and how many: {"mean", "stderr", "n"}."""
    n = len(values)
    mean = sum(values) / n
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None
    return {"mean": mean, "stderr": error, "n": n}


@dataclass(frozen=True)
class Difference:
    """A mean difference over n pairs, its error None for one; formatted as `+0.010 ± 0.002`, with a star if it is clear."""

    mean: float
    stderr: float | None
    n: int

    @property
    def p(self) -> float:
        """Two-sided p-value of Student's t = mean / stderr, n - 1 degrees of freedom; 1 for one pair.

        Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
        """
        if self.stderr is None:
            return 1.0
        nu = self.n - 1
        angle = math.atan2(abs(self.mean), self.stderr * math.sqrt(nu))
        term = math.cos(angle) if nu % 2 else 1.0  # of a series in cos^2, ended by the degrees of freedom
        total = 0.0
        for k in range(2 + nu % 2, nu + 1, 2):
            total, term = total + term, term * math.cos(angle) ** 2 * (k - 1) / k
        inside = math.sin(angle) * total
        return 1 - (2 / math.pi * (angle + inside) if nu % 2 else inside)

    @property
    def clear(self) -> bool:
        """Whether p < `LEVEL`: |t| > 4.30 for three pairs, 12.7 for two, never for one."""
        return self.p < LEVEL

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        error = "" if self.stderr is None else f" ± {self.stderr:{spec}}"
        return f"{self.mean:+{spec}}{error}{' *' if self.clear else ''}"


def by_seed(result: Mapping, *path) -> dict[int, float]:
    """{seed of the training: number} of every run in what `mtdiff evaluate` wrote; keys like "metrics", "alone" lead there.

    ValueError where two runs have one seed.
    """
    found = {run["card"]["training"]["seed"]: functools.reduce(operator.getitem, path, run) for run in result["runs"]}
    if len(found) < len(result["runs"]):
        raise ValueError(f"result has {len(result['runs'])} runs of the seeds {sorted(found)}: a seed may occur once")
    return found


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """How much larger a is than b, {seed: number} as from `by_seed`: mean and standard error of a_k - b_k over the seeds k.

    What a seed does to both, the same batches and noise, falls out of the difference. The error of the test set, which all
    seeds share, is in no error over seeds. ValueError for other seeds in b than in a, or none.
    """
    if not a or a.keys() != b.keys():
        raise ValueError(f"only runs of the same seeds can be paired, got a of {sorted(a)} and b of {sorted(b)}")
    return Difference(**mean_and_error([a[seed] - b[seed] for seed in a]))


def tally(differences: Iterable[Difference]) -> str:
    """How many differences are clear, and how many would be by chance alone: to stand beside any that are picked out."""
    clear = [difference.clear for difference in differences]
    return f"{sum(clear)} of {len(clear)} differences are clear (*); by chance alone about {LEVEL * len(clear):.1g} would be"
