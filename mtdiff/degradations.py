"""What spoils a picture: seven degradations y = A x + b + noise, each operator A with adjoint, gain and pseudo-inverse.

Pictures x are (B, C, H, W) in [-1, 1]; what is measured of them, y, may be smaller, grey or noisy. The tasks are among those
by which the survey of He et al. (2024) sorts low-level vision. The operators here are the simplest of each kind, and affine:
there is no clipping, no rounding, no camera's response.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mtdiff.checks import check_choice, check_real

TASKS = {
    "denoise": "nothing but noise",
    "super-resolve": "the means of squares of pixels",
    "inpaint": "some pixels, the others are gone",
    "colourise": "grey values alone",
    "deblur": "a Gaussian blur, and a little noise",
    "brighten": "low light: so much of the light, and the noise of a camera that has little of it",
    "dehaze": "haze: less of the light, and some of the sky's in its place",
}
"""{task: what is left of a picture}."""
STRENGTHS = {
    "denoise": {"noise": 0.4},
    "super-resolve": {"factor": 4},
    "inpaint": {},
    "colourise": {},
    "deblur": {"width": 1.5, "noise": 0.05},
    "brighten": {"gain": 0.2, "noise": 0.05},
    "dehaze": {"transmission": 0.4, "airlight": 0.9, "noise": 0.05},
}
"""How strong each is unless somebody says; `noise` is a standard deviation, in units of pictures in [-1, 1]."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value. Source: ITU-R BT.601."""
LOST = 0.05
"""A blur that leaves less than this of a frequency leaves nothing of it: its inverse enlarges noise at most 20 times."""


class Operator:
    """A linear map A. A subclass has the map, its adjoint A^T and `solve`; all else follows."""

    def __call__(self, x: Tensor) -> Tensor:
        """A x."""
        raise NotImplementedError

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, so that <A x, y> = <x, A^T y>."""
        raise NotImplementedError

    def solve(self, y: Tensor, w: float | Tensor = 0.0) -> Tensor:
        """(A A^T + w I)^{-1} y, w >= 0; for w = 0 the pseudo-inverse (A A^T)^+ y."""
        raise NotImplementedError

    def gain(self, y: Tensor, w: float | Tensor = 0.0) -> Tensor:
        """K_w y = A^T (A A^T + w I)^{-1} y: ridge regression; w is the noise's variance over that of a Gaussian prior.

        For w = 0 it is the pseudo-inverse A^+ y.
        """
        return self.adjoint(self.solve(y, w))

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one A x for one x of a shape; ValueError where A cannot be applied to it."""
        return tuple(shape)

    def picture(self, y: Tensor) -> Tensor:
        """The measurement as a picture of the size of x, to be looked at."""
        return y


@dataclass(frozen=True, eq=False)
class Diagonal(Operator):
    """A = diag(d): every pixel times a number, or times 0, which loses it; d is a number or broadcasts over x."""

    d: float | Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """D x."""
        return self.d * x

    def adjoint(self, y: Tensor) -> Tensor:
        """D y."""
        return self.d * y

    def solve(self, y: Tensor, w: float | Tensor = 0.0) -> Tensor:
        """Over d^2 + w, and 0 where that is 0."""
        return _over(y, torch.as_tensor(self.d, dtype=y.dtype, device=y.device) ** 2 + w)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of x, if the numbers fit it."""
        sizes = tuple(self.d.shape[1:]) if isinstance(self.d, Tensor) else ()
        if sizes and sizes != (1, *shape[1:]) and sizes != tuple(shape):
            raise ValueError(f"the mask must fit pictures {tuple(shape)}, got {tuple(self.d.shape)}")
        return tuple(shape)


@dataclass(frozen=True)
class Pool(Operator):
    """Means of k x k squares, (B, C, H, W) -> (B, C, H/k, W/k): A A^T = I / k^2."""

    k: int

    def __call__(self, x: Tensor) -> Tensor:
        """The means."""
        return F.avg_pool2d(x, self.k)

    def adjoint(self, y: Tensor) -> Tensor:
        """Each number spread over its square."""
        return self.picture(y) / self.k**2

    def solve(self, y: Tensor, w: float | Tensor = 0.0) -> Tensor:
        """Over 1 / k^2 + w."""
        return y / (1 / self.k**2 + w)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C, H/k, W/k)."""
        if len(shape) != 3 or shape[1] % self.k or shape[2] % self.k:
            raise ValueError(f"factor must divide height and width of pictures {tuple(shape)}, got {self.k}")
        return shape[0], shape[1] // self.k, shape[2] // self.k

    def picture(self, y: Tensor) -> Tensor:
        """Squares of one colour."""
        return y.repeat_interleave(self.k, 2).repeat_interleave(self.k, 3)


@dataclass(frozen=True)
class Grey(Operator):
    """The luma of three colours, (B, 3, H, W) -> (B, 1, H, W): A A^T = |c|^2 I with the weights c (`LUMA`)."""

    def __call__(self, x: Tensor) -> Tensor:
        """sum_c c_c x_c."""
        return (x * _luma(x)).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        """The weights times y."""
        return y * _luma(y)

    def solve(self, y: Tensor, w: float | Tensor = 0.0) -> Tensor:
        """Over |c|^2 + w."""
        return y / (_luma(y).square().sum() + w)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(1, H, W)."""
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(f"colourise needs pictures (3, H, W), got {tuple(shape)}")
        return 1, *shape[1:]

    def picture(self, y: Tensor) -> Tensor:
        """Grey in all three."""
        return y.expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Blur(Operator):
    """A Gaussian blur of a width in pixels, with periodic borders: each frequency f times h = exp(-2 pi^2 width^2 |f|^2).

    A frequency of which less than `LOST` is left is lost. A is symmetric, and diagonal in Fourier's basis.
    """

    width: float

    def __call__(self, x: Tensor) -> Tensor:
        """The blurred picture."""
        return self._filtered(x, self._h(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T = A."""
        return self(y)

    def solve(self, y: Tensor, w: float | Tensor = 0.0) -> Tensor:
        """Each frequency over h^2 + w, and 0 where that is 0."""
        total = self._h(y) ** 2 + w
        return self._filtered(y, torch.where(total > 0, 1 / total.clamp(min=1e-30), 0.0))

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of x, which is a picture."""
        if len(shape) != 3:
            raise ValueError(f"a blur needs pictures (C, H, W), got {tuple(shape)}")
        return tuple(shape)

    def _h(self, x: Tensor) -> Tensor:
        """What is left of each frequency, (H, W) float64."""
        fy, fx = (torch.fft.fftfreq(n, dtype=torch.float64, device=x.device) for n in x.shape[-2:])
        h = torch.exp(-2 * (torch.pi * self.width) ** 2 * (fy[:, None] ** 2 + fx**2))
        return torch.where(h < LOST, 0.0, h)

    def _filtered(self, x: Tensor, by: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(x.double()) * by).real.to(x.dtype)


class Matrix(Operator):
    """Any matrix (m, d) on vectors (B, d)."""

    def __init__(self, a: Tensor):
        self.a = torch.as_tensor(a, dtype=torch.float64)
        self.values, self.vectors = torch.linalg.eigh(self.a @ self.a.T)

    def __call__(self, x: Tensor) -> Tensor:
        """A row A x for each example."""
        return x @ self.a.T.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A row A^T y for each example."""
        return y @ self.a.to(y)

    def solve(self, y: Tensor, w: float | Tensor = 0.0) -> Tensor:
        """By the eigenvectors of A A^T; eigenvalues below 1e-12 are 0."""
        values = torch.where(self.values < 1e-12, 0.0, self.values).to(y) + w
        return _over(y @ self.vectors.to(y), values) @ self.vectors.T.to(y)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(m,)."""
        if tuple(shape) != (self.a.shape[1],):
            raise ValueError(f"the matrix needs vectors ({self.a.shape[1]},), got {tuple(shape)}")
        return (self.a.shape[0],)


@dataclass(frozen=True)
class Degradation:
    """y = A x + b + noise: what is measured of x.

    Attributes:
        operator: A.
        offset: b, a number.
        noise: standard deviation of the measurement's Gaussian noise.
        task: one of `TASKS`, or another word.
    """

    operator: Operator
    offset: float = 0.0
    noise: float = 0.0
    task: str = "linear"

    def clean(self, x: Tensor) -> Tensor:
        """A x + b."""
        return self.operator(x) + self.offset

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Measure pictures x (B, C, H, W), in their dtype; ValueError where A does not fit them."""
        check_real("the picture", x)
        self.operator.shape(tuple(x.shape[1:]))
        y = self.clean(x)
        return y + self.noise * torch.randn(y.shape, dtype=y.dtype, device=y.device, generator=generator)

    def residual(self, y: Tensor, x: Tensor) -> Tensor:
        """What an estimate x leaves unexplained, noise included: y - b - A x."""
        return y - self.clean(x)

    def picture(self, y: Tensor) -> Tensor:
        """The measurement as a picture of the size of x, as a network is shown it."""
        return self.operator.picture(y)

    def check(self, y: Tensor, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0) -> None:
        """Refuse what cannot be a measurement of pictures of a shape that lie in [low, high].

        Raises:
            ValueError: another shape, or values that are more than six standard deviations of noise outside of what A makes
                of such pictures: bytes, or pictures in [0, 255].
        """
        check_real("the degraded picture", y, self.operator.shape(tuple(shape)))
        if y.device.type != "cpu":
            return
        ends = [float(self.clean(torch.full((1, *shape), end))[0].flatten()[0]) for end in (low, high)]
        if isinstance(self.operator, Diagonal) and isinstance(self.operator.d, Tensor):
            ends = [low, high]  # a mask: known pixels are as they are
        least, most = min(ends) - 6 * self.noise - 1e-3, max(ends) + 6 * self.noise + 1e-3
        found = float(y.min()), float(y.max())
        if found[0] < min(least, 0.0) or found[1] > max(most, 0.0):
            text = f"the degraded picture must lie in [{least:.3g}, {most:.3g}] for {self.task!r}"
            raise ValueError(f"{text}, got values in [{found[0]:.3g}, {found[1]:.3g}]")


def degradation(task: str, mask: Tensor | None = None, **strength: float) -> Degradation:
    """The degradation of a task, at the strength of `STRENGTHS` unless another is given.

    With l = (x + 1) / 2 the light in [0, 1], low light is g l, and haze t l + (1 - t) a: of transmission t and a sky of
    brightness a; both are affine in x, too.

    Args:
        task: one of `TASKS`.
        mask: (B, 1, H, W), 1 where a pixel is known; for "inpaint" alone.
        strength: of noise, a standard deviation >= 0; `factor`, a whole number >= 2; `width` of a blur in pixels, > 0;
            `gain`, `transmission` in (0, 1], `airlight` in [0, 1].

    Raises:
        ValueError: another task, a strength that it does not have or that is out of range, or a mask where none belongs.

    Source: haze: Koschmieder's law, as in the survey of He et al. (2024); the rest is textbook.
    """
    check_choice("task", task, TASKS)
    takes = {"noise": 0.0, **STRENGTHS[task]}
    if unknown := sorted(strength.keys() - takes.keys()):
        raise ValueError(f"{task!r} has no {unknown}; it has {list(takes)}")
    if (mask is None) != (task != "inpaint"):
        raise ValueError('the task "inpaint" needs a mask, and no other takes one')
    takes |= strength
    _check_strengths(takes)
    operator, offset = Diagonal(1.0), 0.0
    if task == "super-resolve":
        operator = Pool(int(takes["factor"]))
    elif task == "inpaint":
        operator = Diagonal(mask)
    elif task == "colourise":
        operator = Grey()
    elif task == "deblur":
        operator = Blur(takes["width"])
    elif task == "brighten":
        operator, offset = Diagonal(takes["gain"]), takes["gain"] - 1
    elif task == "dehaze":
        t = takes["transmission"]
        operator, offset = Diagonal(t), (1 - t) * (2 * takes["airlight"] - 1)
    return Degradation(operator, offset, takes["noise"], task)


def _check_strengths(values: dict[str, float]) -> None:
    """Refuse strengths out of range."""
    ranges = {
        "noise": (lambda v: v >= 0, "at least 0"),
        "factor": (lambda v: v >= 2 and v == int(v), "a whole number, at least 2"),
        "width": (lambda v: v > 0, "positive"),
        "gain": (lambda v: 0 < v <= 1, "in (0, 1]"),
        "transmission": (lambda v: 0 < v <= 1, "in (0, 1]"),
        "airlight": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    }
    for name, value in values.items():
        holds, text = ranges[name]
        if not holds(value):
            raise ValueError(f"{name} must be {text}, got {value}")


def _luma(like: Tensor) -> Tensor:
    """The weights, (3, 1, 1)."""
    return like.new_tensor(LUMA)[:, None, None]


def _over(y: Tensor, by: Tensor) -> Tensor:
    """A quotient, and 0 where the divisor is 0."""
    return torch.where(by == 0, 0.0, y / torch.where(by == 0, 1.0, by))
