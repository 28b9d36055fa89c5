"""A board for planning a training: what a network costs in memory and time before it is bought."""

import functools
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure

from mtdiff.backbones import UNet
from mtdiff.losses import Loss
from mtdiff.plots import panels
from mtdiff.speed import training_flops, training_memory
from mtdiff.widgets.base import Board


@dataclass(frozen=True)
class Plan:
    """What a training costs.

    Attributes:
        flops: of a training step, per image.
        memory: {"weights", "gradients", "AdamW", "average", "activations": bytes} on each device.
        seconds: of one pass through a million images.
        exchange: seconds that the gradients of a step travel, if nothing else happens meanwhile; 0 for one device.
        step: seconds that a step computes.
    """

    parameters: int
    flops: float
    memory: dict[str, float]
    seconds: float
    exchange: float
    step: float


@functools.lru_cache(64)
def _costs(base: int, size: int) -> tuple[int, float, float]:
    """Parameters, operations and kept bytes per image of a U-Net, from shapes alone."""
    with torch.device("meta"):
        net = UNet((3, size, size), base, (1, 2, 2, 3), blocks=2, attention=(size // 8,))
        net.out = net.readout((3, size, size))

    def loss(net: UNet, batch: dict, generator: None) -> Loss:
        features, _ = net(batch["image"], torch.zeros(len(batch["image"]), device="meta"))
        return Loss(net.out(features).square().mean(), {})

    batch = {"image": torch.zeros(2, 3, size, size)}
    count = sum(p.numel() for p in net.parameters())
    return count, training_flops(net, loss, batch), training_memory(net, loss, batch)[1]


def plan(
    base: int, size: int = 64, batch: int = 256, devices: int = 1, accumulate: int = 1, bf16: bool = False,
    peak: float = 400e12, share: float = 0.3, link: float = 50e9,
) -> Plan:  # fmt: skip
    """Memory and time of training a U-Net with widths (1, 2, 2, 3) times a base, from counted operations and bytes.

    The `size` of images and `base`, the channels at the top, are multiples of 8; attention is at an eighth of the size.
    A step has `batch` images, of which each device computes its share in `accumulate` parts. `peak` is operations per second
    of a matrix product on one device, of which a step reaches a `share`; `link` is bytes per second between devices.

    Source: all-reduce around a ring moves 2 (n - 1) / n times the gradients' bytes through every link (Patarasuk and Yuan
    2009).
    """
    parameters, flops, kept = _costs(base, size)
    state, each = 4 * parameters, kept * (0.5 if bf16 else 1.0) * batch / devices / accumulate
    memory = {"weights": state, "gradients": state, "AdamW": 2 * state, "average": state, "activations": each}
    speed = devices * peak * share
    exchange = 2 * (devices - 1) / devices * state / link
    return Plan(parameters, flops, memory, 1e6 * flops / speed, exchange, batch * flops / speed)


def draw_plan(
    base: int, size: int = 64, batch: int = 256, devices: int = 1, accumulate: int = 1, bf16: bool = False
) -> Figure:
    """`plan` as a figure: memory by part beside the memory of four devices; time in the title."""
    p = plan(base, size, batch, devices, accumulate, bf16)
    figure, ((axis,),) = panels(1, 1, (8, 2.4))
    left = 0.0
    for k, (name, amount) in enumerate(p.memory.items()):
        axis.barh(0, amount / 2**30, left=left, color=f"C{k}", label=name)
        left += amount / 2**30
    for room in (8, 24, 80, 141):
        if room < 3 * max(left, 8):
            axis.axvline(room, color="black", linewidth=0.8, linestyle="--")
            axis.text(room, 0.62, f"{room} GiB", ha="center", fontsize=8)
    axis.set(yticks=[], xlabel="memory on each device (GiB)", ylim=(-0.6, 0.6))
    axis.legend(ncols=5, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    travel = f", gradients travel {1000 * p.exchange:.1f} ms" if devices > 1 else ""
    costs = f"{p.parameters / 1e6:.1f}M parameters, {p.flops / 1e9:.1f} GFLOP an image"
    title = f"{costs}; a step computes {1000 * p.step:.0f} ms{travel};\na million images take {p.seconds / 60:.1f} minutes"
    axis.set_title(title, fontsize=9, pad=16)
    return figure


plan_board = Board(
    draw_plan, "Bars of memory by part beside the memory of four devices",
    base=(32, [16, 32, 64, 96, 128, 192, 256]), size=(64, [64, 128, 256]),
    batch=(256, [64, 128, 256, 512, 1024, 2048]), devices=(1, [1, 2, 4, 8, 16, 64]), accumulate=(1, [1, 2, 4, 8]),
    bf16=False,
)  # fmt: skip
