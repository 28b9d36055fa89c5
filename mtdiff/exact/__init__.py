"""Problems whose answers are known in closed form, in float64: what samplers and bounds are tested against."""

from mtdiff.exact.gaussian import GaussianGap, linear_gaussian_gap
from mtdiff.exact.guided import planted_mixture, sample_group
from mtdiff.exact.latent import LinearLatent
from mtdiff.exact.mixture import LabelledMixture

__all__ = ["GaussianGap", "LabelledMixture", "LinearLatent", "linear_gaussian_gap", "planted_mixture", "sample_group"]
