"""Images per second of a training step, memory and share of the matrix peak: three networks against diffusers' UNet2DModel.

    python tests/benchmarks/throughput.py [--networks small large] [--device cuda] [--batch 256] [--out FILE.json]

All see 64x64x3 images and sit in the same step: v-prediction, clipping, fused AdamW, EMA for none. "small" is the U-Net of
`mtdiff train imagenet` at 64x64 (3.4M parameters), "large" one of 38M, "transformer" a DiT of 32M; each is timed against
diffusers' U-Net of the same depth, widths and attention (the transformer against that of "large"). Modes: fp32, bf16
(autocast) and bf16 with torch.compile, whose first steps are timed by themselves. A share is the counted floating point
operations of the step (matrix products, convolutions, attention) times steps per second, over what a large matrix product of
that type reaches on the same device. The networks take turns; figures are medians over rounds. With `--profile` the compiled
bf16 step of ours is profiled: where the time goes, by kernel.
"""

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import mtdiff as mt
from mtdiff.backbones import Backbone, DiffusersUNet
from mtdiff.files import to_json
from mtdiff.losses import Loss
from mtdiff.provenance import provenance
from mtdiff.speed import matmul_peak, training_flops

MODES = {"fp32": (torch.float32, False), "bf16": (torch.bfloat16, False), "bf16 compiled": (torch.bfloat16, True)}


SHAPE = (3, 64, 64)
UNETS = {  # widths over the base, blocks on each level, height with attention, base
    "small": ((1, 2, 2, 3), 2, 8, 32),
    "large": ((1, 2, 2, 2), 2, 16, 128),
}
NETWORKS = (*UNETS, "transformer")


class Output(nn.Module):
    """A backbone and its denoising output."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone, self.out = backbone, backbone.readout(SHAPE)

    def forward(self, z, u):
        return self.out(self.backbone(z, u)[0])


def ours(name, scale):
    """One of our backbones; `scale` divides widths, for a trial on a CPU."""
    if name == "transformer":
        return mt.DiT(SHAPE, 384 // scale, 12 // scale, heads=6 // min(scale, 3), patch=4)
    multipliers, blocks, height, base = UNETS[name]
    base //= scale
    return mt.UNet(SHAPE, base, multipliers, blocks=blocks, attention=(height,), head_channels=min(64, base // 2))


def theirs(name, scale):
    """diffusers' U-Net of the same depth, widths and attention."""
    multipliers, blocks, height, base = UNETS["large" if name == "transformer" else name]
    base //= scale
    levels = [64 >> level for level in range(len(multipliers))]
    return DiffusersUNet(
        SHAPE,
        block_out_channels=[base * multiplier for multiplier in multipliers],
        down_block_types=["AttnDownBlock2D" if level == height else "DownBlock2D" for level in levels],
        up_block_types=["AttnUpBlock2D" if level == height else "UpBlock2D" for level in reversed(levels)],
        layers_per_block=blocks,
        norm_num_groups=min(32, base // 4),
        attention_head_dim=min(64, base // 2),
    )


def loss_of(process):
    """v-prediction of images."""

    def loss(net, batch, generator):
        x = batch["image"]
        t = torch.randint(0, process.steps + 1, (len(x),), device=x.device)
        eps = torch.randn_like(x)
        signal, noise = process.at(t, x).level
        v = net(signal * x + noise * eps, t / process.steps)
        return Loss((signal * eps - noise * x - v).square().mean(), {})

    return loss


def step_of(net, loss, batch, dtype, device):
    """A function that takes one optimiser step."""
    parameters = list(net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            total = loss(net, batch, None).total
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def timed(step, repeats, device):
    """Seconds per step."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    wait()
    return (time.perf_counter() - began) / repeats


def measure(name, nets, loss, batch, arguments, peaks):
    """Images per second, memory and share of both networks in one mode."""
    dtype, compiled = MODES[name]
    device, size = batch["image"].device, len(batch["image"])
    steps, found = {}, {}
    for which, net in nets.items():
        mine = copy.deepcopy(net)
        flops = training_flops(mine, loss, {"image": batch["image"][:2]})
        if compiled:
            mine.compile()
        step = step_of(mine, loss, batch, dtype, device)
        first = timed(step, 3, device) * 3
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            step()
        memory = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
        figures = {"parameters": sum(p.numel() for p in net.parameters()), "flops_per_image": flops}
        figures |= {"peak_memory_GiB": memory, "first_three_steps_s": first, "seconds": []}
        steps[which], found[which] = step, figures
    for round_ in range(arguments.rounds):
        order = list(steps) if round_ % 2 else list(reversed(steps))
        for which in order:
            found[which]["seconds"].append(timed(steps[which], arguments.repeats, device))
    for entry in found.values():
        seconds = entry.pop("seconds")
        entry["images_per_second"] = size / statistics.median(seconds)
        entry["quartiles"] = [size / q for q in reversed(statistics.quantiles(seconds, n=4)[::2])]
        entry["share_of_peak"] = entry["images_per_second"] * entry["flops_per_image"] / peaks[dtype]
    ratio = found["ours"]["images_per_second"] / found["diffusers"]["images_per_second"]
    return {**found, "ours_over_diffusers": ratio}


def profiled(net, loss, batch, arguments):
    """The kernels in which a compiled bf16 step of ours spends its time: [[name, milliseconds per step], ...]."""
    mine = copy.deepcopy(net)
    mine.compile()
    device = batch["image"].device
    step = step_of(mine, loss, batch, torch.bfloat16, device)
    for _ in range(3):
        step()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds) as profile:
        timed(step, arguments.repeats, device)
    on_device = device.type == "cuda"
    rows = [
        (e.key, (e.self_device_time_total if on_device else e.self_cpu_time_total) / 1000 / arguments.repeats)
        for e in profile.key_averages()
    ]
    return [[name[:90], round(ms, 3)] for name, ms in sorted(rows, key=lambda row: -row[1])[:25]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--scale", type=int, default=1, help="divide all widths: 4 tries the script on a CPU")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=5, help="steps timed together in a round")
    parser.add_argument("--matrix", type=int, default=8192, help="size of the matrices whose product is the peak")
    parser.add_argument("--profile", action="store_true", help="say where the compiled step's time goes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(1000), {"image": 1.0})
    batch = {"image": torch.randn(arguments.batch, *SHAPE, device=device).clamp(-1, 1)}
    loss = loss_of(process)
    peaks = {dtype: matmul_peak(device, dtype, arguments.matrix) for dtype in {MODES[mode][0] for mode in arguments.modes}}
    result: dict = {
        "batch": arguments.batch,
        "matrix_peak_TFLOPS": {str(dtype).removeprefix("torch."): peak / 1e12 for dtype, peak in peaks.items()},
        "provenance": provenance(arguments.device),
        "networks": {},
    }
    for name in arguments.networks:
        made = {"ours": ours(name, arguments.scale), "diffusers": theirs(name, arguments.scale)}
        nets = {which: Output(net).to(device, memory_format=torch.channels_last) for which, net in made.items()}
        modes = {mode: measure(mode, nets, loss, batch, arguments, peaks) for mode in arguments.modes}
        result["networks"][name] = modes
        if arguments.profile:
            result["networks"][name]["profile"] = profiled(nets["ours"], loss, batch, arguments)
        if arguments.out:  # what there is, should the time be over
            arguments.out.write_text(to_json(result, indent=1) + "\n")
    print(to_json(result, indent=1))


if __name__ == "__main__":
    main()
