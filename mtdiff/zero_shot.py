"""Restoration without training for it: a plain diffusion model as a prior, and a degradation that is known (theory 7).

Each way is a step of the chain: it looks at z_t once, moves the estimate x^ = E[x | z_t] towards what was measured,
y = A x + b + noise, and goes on. With K_w = A^T (A A^T + w I)^{-1} the ways are

    dps           z_s minus the gradient of |y - b - A x^(z_t)|, times a scale,
    likelihood    x^ + scale times the gradient of log N(y; A x^ + b, noise^2 I), by Tweedie's formula,
    null-space    x^ + trust K_0 (y - b - A x^): what A sees is exchanged, what it does not see (its null space) stays,
    plug-in       x^ + K_w (y - b - A x^), w = weight noise^2 / level^2: what measurement and model agree on (`reconciled`),
    gaussian      x^ + the gradient of log N(y; A x^ + b, r^2 A A^T + noise^2 I), r^2 = level^2 / (1 + level^2),

with level = sqrt((1 - abar_t) / abar_t), the standard deviation of the noise on x. None of them is exact for a prior that is
not Gaussian: the posterior of a mixture, which is known (`mtdiff.exact.posterior`), says how far off each is.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mtdiff.checks import check_choice, check_whole
from mtdiff.degradations import Degradation
from mtdiff.frameworks import carries
from mtdiff.prediction import Denoiser
from mtdiff.process import At


@dataclass(frozen=True)
class Look:
    """What a way sees at step t: the state z (B, *Z), which asks for gradients, the estimate x of the data and the level."""

    z: Tensor
    x: Tensor
    at: At
    problem: Degradation
    y: Tensor
    back: Callable[[Tensor], tuple[Tensor, Tensor]]  # estimate -> mean and std of q(z_s | z_t, x = estimate)
    after: At | None  # at s; None in the final reading, where no step is taken
    noise: Callable[[], Tensor]

    @property
    def level(self) -> Tensor:
        """Standard deviation of the noise on x, (B, 1, ...)."""
        return self.at.noise / self.at.signal

    def gradient(self, of: Tensor) -> Tensor:
        """Of a sum over examples (B,) with respect to z."""
        return torch.autograd.grad(of.sum(), self.z)[0]

    def ancestral(self, x: Tensor) -> Tensor:
        """A draw of z_s as if x were the data."""
        mean, std = self.back(x.detach())
        return mean + std * self.noise()


def dps(look: Look, scale: float) -> Tensor:
    """An ancestral step, then down the gradient of |r|^2 / (2 max(|r|, sqrt(m) noise)), r = y - b - A x^ of m numbers.

    Source: Chung et al. 2023, diffusion posterior sampling, with the step size normalised by the misfit; that it is not
        normalised below the noise's own misfit is ours.
    """
    misfit = look.problem.residual(look.y, look.x).flatten(1)
    square, floor = misfit.square().sum(1), look.problem.noise**2 * misfit.shape[1]
    return look.ancestral(look.x) - scale * look.gradient(square / (2 * square.detach().clamp(min=floor + 1e-12).sqrt()))


def tilted(look: Look, likely: Tensor, scale: float = 1.0) -> Tensor:
    """An ancestral step of E[x | z_t, y] = x^ + scale (1 - abar) / sqrt(abar) grad log p(y | z_t), (B,) nats: Tweedie."""
    return look.ancestral(look.x + scale * look.at.noise**2 / look.at.signal * look.gradient(likely))


def likelihood(look: Look, scale: float) -> Tensor:
    """The estimate taken for the data, p(y | z_t) = N(y; A x^ + b, noise^2 I), by Bayes' rule (theory 4, rule 2).

    Source: Chung et al. 2023 for the approximation; ours to take the step size from Tweedie's formula.
    """
    if not look.problem.noise > 0:
        raise ValueError("way 'likelihood' needs a measurement with noise: without any, its likelihood is no density")
    misfit = look.problem.residual(look.y, look.x).flatten(1)
    return tilted(look, -0.5 * misfit.square().sum(1) / look.problem.noise**2, scale)


def corrected(look: Look, w: float | Tensor, share: float | Tensor = 1.0) -> Tensor:
    """x^ + share K_w (y - b - A x^)."""
    return look.x + share * look.problem.operator.gain(look.problem.residual(look.y, look.x), w)


def null_space(look: Look) -> Tensor:
    """The measured part exchanged, as far as the measurement is the surer: trust = level^2 / (level^2 + noise^2).

    Without noise the trust is 1 and the step is an ancestral one of A^+ (y - b) + (I - A^+ A) x^.

    Source: Wang et al. 2023, denoising diffusion null-space models; this trust is ours.
    """
    return look.ancestral(exchanged(look))


def exchanged(look: Look) -> Tensor:
    """The estimate with its measured part exchanged."""
    return corrected(look, 0.0, look.level**2 / (look.level**2 + look.problem.noise**2))


def plug_in(look: Look, weight: float) -> Tensor:
    """The estimate and the measurement reconciled, then noised again: half of the noise is the old one, half is new.

    Source: Zhu et al. 2023, denoising diffusion models for plug-and-play restoration.
    """
    x = reconciled(look, weight)
    old = (look.z.detach() - look.at.signal * x) / look.at.noise
    return look.after.signal * x + look.after.noise * (old + look.noise()) / 2**0.5


def reconciled(look: Look, weight: float) -> Tensor:
    """argmin_x |y - b - A x|^2 / (2 noise^2) + weight |x - x^|^2 / (2 level^2)."""
    return corrected(look, weight * float((look.problem.noise / look.level.flatten()[0]) ** 2)).detach()


def gaussian(look: Look) -> Tensor:
    """N(x^, r^2 I) for p(x | z_t), by Bayes' rule: exact for x ~ N(0, I).

    Source: Song et al. 2023, pseudoinverse-guided diffusion; for noise by them, too.
    """
    r2 = look.level**2 / (1 + look.level**2)
    misfit = look.problem.residual(look.y, look.x)
    solved = look.problem.operator.solve(misfit, float((look.problem.noise**2 / r2).flatten()[0]))
    likely = -0.5 * (misfit * solved).flatten(1).sum(1) / r2.flatten()[0]
    return tilted(look, likely)


@dataclass(frozen=True)
class Way:
    """One way to restore: its step, the option that it has and its default, and whether it needs a gradient."""

    step: Callable[..., Tensor]
    option: str | None = None
    default: float | None = None
    gradient: bool = False
    last: Callable[..., Tensor] | None = None  # what is done to the final reading; None: nothing


WAYS = {
    "dps": Way(dps, "scale", 1.0, gradient=True),
    "likelihood": Way(likelihood, "scale", 1.0, gradient=True),
    "null-space": Way(null_space, last=exchanged),
    "plug-in": Way(plug_in, "weight", 1.0, last=reconciled),
    "gaussian": Way(gaussian, gradient=True),
}
"""{name: way}."""


def restore(
    model: Denoiser,
    y: Tensor,
    problem: Degradation,
    way: str = "plug-in",
    *,
    steps: int = 100,
    name: str = "image",
    limits: tuple[float, float] | None = (-1.0, 1.0),
    generator: torch.Generator | None = None,
    **option: float,
) -> Tensor:
    """Draw x for a measurement y by a model that never saw one: about p(x | y), by one of `WAYS`.

    Args:
        model: any model whose chain ends at noise and carries `name` as it is, with weight 1 at every step.
        y: (B, ...) what was measured, see `Degradation`.
        steps: network evaluations, the final reading not counted.
        limits: between which data lie: what is drawn is cut off there, and y is checked against them; None: nowhere.
        option: the way's own, `scale` of "dps" and "likelihood" (the more, the nearer to y) or `weight` of "plug-in" (the
            more, the nearer to the model).

    Returns:
        (B, *Z) in the dtype of y, on the device of the model.

    Raises:
        ValueError: an unknown way or option, a model that does not fit, or a y that is no such measurement.

    Source: theory 4 for the chain; the ways name their own.
    """
    chosen = WAYS[check_choice("way", way, WAYS)]
    options = _option(way, chosen, option)
    process, y = model.process, _checked(model, y, problem, name, limits)
    problem_y = y.double()

    def noise() -> Tensor:
        return torch.randn(len(y), *model.space, dtype=torch.float64, device=y.device, generator=generator)

    def look(z: Tensor, t: int, s: int | None) -> Look:
        with torch.set_grad_enabled(chosen.gradient and s is not None):
            z = z.detach().requires_grad_(chosen.gradient and s is not None)
            x = model.predict(z, t, present={name}).estimate[name].double()
        back = None if s is None else lambda m: process.back(z.detach(), m, m, t, s)
        at, after = process.at(t, z), None if s is None else process.at(s, z)
        return Look(z, x, at, problem, problem_y, back, after, noise)

    times, z = process.times(steps), noise()
    for t, s in itertools.pairwise(times):
        z = chosen.step(look(z, t, s), **options).detach()
    end = look(z, times[-1], None)
    x = end.x if chosen.last is None else chosen.last(end, **options)
    return (x if limits is None else x.clamp(*limits)).detach().to(y.dtype)


def _option(way: str, chosen: Way, option: dict[str, float]) -> dict[str, float]:
    """The way's own option, or its default."""
    takes = [chosen.option] * (chosen.option is not None)
    if unknown := sorted(option.keys() - {*takes}):
        raise ValueError(f"way {way!r} has no option {unknown}; it has {takes}")
    options = {chosen.option: chosen.default, **option} if takes else {}
    for key, value in options.items():
        if not value > 0 or value == float("inf"):
            raise ValueError(f"{key} must be positive, got {value}")
    return options


def _checked(model: Denoiser, y: Tensor, problem: Degradation, name: str, limits) -> Tensor:
    """A measurement on the model's device, of data that the model's chain carries as they are."""
    process = model.process
    if not carries(process, name):
        raise ValueError(f"restoring needs a chain that ends at noise and carries {name!r} with weight 1, got {process!r}")
    if missing := [each for each in model.conditions if each != name]:
        raise ValueError(f"restoring needs a plain model, this one was trained with {missing} always given")
    problem.check(y, model.space, *(limits or (-float("inf"), float("inf"))))
    check_whole(n=len(y))
    return y.to(model.device)
