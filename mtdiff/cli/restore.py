"""mtdiff restore: a picture that was spoiled, by a model that learned to or by one that never saw such."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
import tyro

from mtdiff.cli.common import DEVICE, trained_model, usable_device
from mtdiff.cli.own import Imports
from mtdiff.cli.sample import read_picture
from mtdiff.datasets.masks import masks
from mtdiff.degradations import TASKS, Degradation, degradation
from mtdiff.experiments.restoration import restored
from mtdiff.metrics import psnr
from mtdiff.modalities import Image, Mask
from mtdiff.zero_shot import WAYS, restore


@dataclass
class Restore:
    """Restore a degraded picture: denoise, deblur, enlarge, colour, brighten or dehaze it, or fill its holes."""

    LIMITS: ClassVar = {"n": (1, 64), "steps": (1, 10_000), "seed": (0, 2**32)}
    FILES: ClassVar = ("out",)

    image: Annotated[str, tyro.conf.Positional]  # The degraded picture, a file of the model's size (see --task).
    # What was done to it. super-resolve takes a picture that is smaller by the factor, colourise one of grey values.
    task: Literal[tuple(TASKS)]
    # A folder that train wrote, or a shipped model: one trained to restore, or any plain model of images.
    model: str = "restoration/shapes16"
    # draw and mean (one evaluation) of a model trained to restore, the others of a plain one; default: draw, or plug-in.
    way: Literal[("draw", "mean", *WAYS)] | None = None
    mask: Path | None = None  # For inpaint: a picture that is white where the other is known, black in the hole.
    strength: tuple[str, ...] = ()  # How strongly it was degraded, as NAME=VALUE: noise=0.1, factor=2, width=1, gain=0.3 ...
    degrade: bool = False  # The picture is a good one: degrade it first, and say how near to it the restored one comes.
    n: int = 3  # How many restored pictures.
    steps: int = 50  # Intervals of the reverse chain.
    seed: int = 0  # Seed of all noise.
    out: Path = Path("restored.png")  # The picture to write: before, after, and with --degrade the original.
    device: str = DEVICE  # Where to compute: cpu or cuda.
    imports: Imports = ()

    def run(self) -> None:
        """Restore, write both, and say what was done."""
        from mtdiff.plots import save_grid

        model = trained_model(self.model, usable_device(self.device), self.imports)
        image = dict(model.modalities.items()).get("image")
        if not isinstance(image, Image):
            raise ValueError(f"{self.model} draws no pictures: it has {list(model.modalities)}")
        generator = torch.Generator().manual_seed(self.seed)
        mask = self._mask(image.shape)
        problem = degradation(self.task, mask if self.task == "inpaint" else None, **self._strengths())
        size = problem.operator.shape(image.shape)
        if self.degrade:
            original = read_picture(image, self.image)
            y = problem(original, generator)
        else:
            y = read_picture(Image(size), self.image)
            y = y * mask if self.task == "inpaint" else y
        y = y.expand(self.n, *size).contiguous()
        x = self._restored(model, y, mask, problem, generator).cpu()
        rows = {"before": problem.picture(y), "after": x, **({"original": original.expand_as(x)} if self.degrade else {})}
        save_grid({name: value.float() for name, value in rows.items()}, {}, self.out)
        if self.degrade:
            near = (float(psnr(part, original.expand_as(x)).mean()) for part in (problem.picture(y).clamp(-1, 1), x))
            print("PSNR before {:.1f} dB, after {:.1f} dB".format(*near))
        print(f"picture: {self.out}")

    def _restored(self, model, y: torch.Tensor, mask: torch.Tensor, problem: Degradation, generator) -> torch.Tensor:
        """By the way that was asked for, or that suits the model."""
        trained = {"degraded", "mask", "task"} <= set(model.modalities)
        way = self.way or ("draw" if trained else "plug-in")
        if trained != (way in ("draw", "mean")):
            able = ("draw", "mean") if trained else tuple(WAYS)
            raise ValueError(f"--way {way} does not suit {self.model}: it can {', '.join(able)}")
        if trained:
            mask = mask.expand(len(y), -1, -1, -1).contiguous()
            return restored(model, y, mask, problem, way, self.steps, generator.manual_seed(self.seed + 1))
        return restore(model, y, problem, way, steps=self.steps, generator=generator)

    def _mask(self, shape: tuple[int, ...]) -> torch.Tensor:
        """What is known, (1, 1, H, W); with --degrade and no file a hole of a third of the pixels, whose place is drawn."""
        if self.task != "inpaint":
            if self.mask:
                raise ValueError(f"--mask is for inpaint, not for {self.task}")
            return torch.ones(1, 1, *shape[1:])
        if self.mask:
            return read_picture(Mask(shape[1:], None, False), str(self.mask))
        if not self.degrade:
            raise ValueError("inpaint needs --mask: a picture that is white where the other is known")
        return masks(1, shape[-1], "blobs", 1 / 3, self.seed)

    def _strengths(self) -> dict[str, float]:
        """Of --strength."""
        found = {}
        for text in self.strength:
            name, _, value = text.partition("=")
            try:
                found[name] = float(value)
            except ValueError:
                raise ValueError(f"--strength {text}: expected NAME=VALUE, a number") from None
            if not math.isfinite(found[name]):
                raise ValueError(f"--strength {text}: expected a finite number")
        return found
