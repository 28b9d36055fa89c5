"""Time of a training step and a sampling step against diffusers' UNet2DModel at equal parameters.

    python tests/benchmarks/unet.py [--rounds 15] [--out data/results/benchmark-unet-cpu.json]

Both networks have 1.2M parameters, the same depth, widths and attention heads, see 32x32x3 at batch 64 and sit in the
same step: AdamW, v-prediction, clipping. They are interleaved in one process on one thread; the time is CPU time; the
figure is the median over rounds of the ratio ours / theirs within a round, with its quartiles. Two more lines compare
the whole MT-Diffusion model (encoders, conditioning, image and label heads) with its bare backbone and output.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import mtdiff as mt
from mtdiff.backbones import Backbone, DiffusersUNet
from mtdiff.files import to_json
from mtdiff.provenance import provenance

SHAPE, BATCH = (3, 32, 32), 64


class Output(nn.Module):
    """A backbone and its denoising output, nothing else."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone, self.out = backbone, backbone.readout(SHAPE)

    def forward(self, z, u):
        return self.out(self.backbone(z, u)[0])


def unet():
    """Our U-Net of the depth, widths and attention that `DiffusersUNet` has by default."""
    return mt.UNet(SHAPE, base=32, multipliers=(1, 2, 2), blocks=1, attention=(16,), head_channels=8)


def full_model():
    """The whole model: an image and a label superposed in one space, a head each."""
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(1000), {"image": 1.0, "label": mt.fade_in(1.0)})
    modalities = {"image": mt.Image(SHAPE), "label": mt.Label(10)}
    return mt.MTDiffusion(process, modalities, unet(), SHAPE)


def training_step(parameters, loss):
    """A function that does one optimiser step on `loss()`."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def plain_loss(net, x, process):
    """v-prediction of the image alone."""

    def loss():
        t = torch.randint(0, process.steps + 1, (BATCH,))
        eps = torch.randn_like(x)
        signal, noise = process.at(t, x).level
        v = net(signal * x + noise * eps, t / process.steps)
        return (signal * eps - noise * x - v).square().mean()

    return loss


def sampling_step(net, z, process, t=500, s=480):
    """A function that does one DDIM step."""

    @torch.no_grad()
    def step():
        v = net(z, torch.full((BATCH,), t / process.steps))
        (a, b), (a_s, b_s) = process.at(t, z).level, process.at(s, z).level
        return a_s * (a * z - b * v) + b_s * (b * z + a * v)

    return step


def compare(ours, theirs, rounds, repeats):
    """Median and quartiles of the CPU-time ratio ours / theirs, and the medians in milliseconds."""
    ratios, times = [], ([], [])
    for k in range(rounds + 1):
        pair = [(0, ours), (1, theirs)]
        row = [0.0, 0.0]
        for which, function in pair if k % 2 else reversed(pair):  # whoever goes first may find a colder cache
            began = time.process_time()
            for _ in range(repeats):
                function()
            row[which] = (time.process_time() - began) / repeats
        if k:  # the first round is warm-up
            ratios.append(row[0] / row[1])
            times[0].append(row[0])
            times[1].append(row[1])
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": round(middle, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "milliseconds": [round(1000 * statistics.median(t), 2) for t in times],
        "rounds": rounds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=2, help="steps timed together in a round")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ours, theirs, full = Output(unet()), Output(DiffusersUNet(SHAPE)), full_model()
    process = full.process
    x, z = torch.randn(BATCH, *SHAPE).clamp(-1, 1), torch.randn(BATCH, *SHAPE)
    batch = {"image": x, "label": torch.randint(0, 10, (BATCH,))}
    count = {
        name: sum(p.numel() for p in net.parameters())
        for name, net in (("ours", ours), ("diffusers", theirs), ("full", full))
    }

    def train(net):
        return training_step(net.parameters(), plain_loss(net, x, process))

    def multitask():
        return mt.multitask_loss(full, batch).total

    @torch.no_grad()
    def predict():
        return full.predict(z, 500).aggregate

    def bare(net, z, u):
        return net.denoise(net.backbone(z, u)[0])

    plain_full = plain_loss(lambda z, u: bare(full, z, u), x, process)
    timing = {"rounds": arguments.rounds, "repeats": arguments.repeats}
    result = {
        "parameters": count,
        "shape": [BATCH, *SHAPE],
        "provenance": provenance(),
        "training_step_against_diffusers": compare(train(ours), train(theirs), **timing),
        "sampling_step_against_diffusers": compare(
            sampling_step(ours.eval(), z, process), sampling_step(theirs.eval(), z, process), **timing
        ),
        "training_with_encoders_and_heads_against_bare": compare(
            training_step(full.parameters(), multitask), training_step(full.parameters(), plain_full), **timing
        ),
        "sampling_with_encoders_and_heads_against_bare": compare(
            predict, sampling_step(lambda z, u: bare(full, z, u), z, process), **timing
        ),
    }
    print(to_json(result, indent=1))
    if arguments.out:
        arguments.out.write_text(to_json(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
