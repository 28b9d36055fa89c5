# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] tags=["slide"]
# # 11 · Scaling up: what changes on a GPU, and what must not
#
# **After this notebook you can**
# - count the operations and the bytes of a training step by hand, and say which part of a network costs which;
# - show that a batch computed in parts, or on many devices, takes the same step, count what travels between them, and
#   measure how large a batch is worth its price;
# - say where 16 bits are enough and where they stop a training without a word;
# - stop a training anywhere, go on, and prove that nothing was lost;
# - pack photographs, broken ones among them, without losing track of any;
# - derive how much of a Fréchet distance is nothing but a small sample.
#
# **You need** notebook 01 (the loss, the average of the weights) and 03 (the loss of many modalities). **Time**: about
# 75 minutes to read, less than a minute to run on a laptop CPU. No GPU, no download.
#
# Nothing here is about multi-modal diffusion as such, and no equation of notebooks 01 to 09 changes. What changes is
# arithmetic, order and place: how numbers are rounded, how sums are cut, where bytes lie. Each of these could change
# what is learned, so each gets a derivation and a check.

# %%
import json
import math
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import torch
from torch import nn

import mtdiff as mt
from mtdiff import plots, widgets
from mtdiff.datasets import digits
from mtdiff.datasets.imagenet import prepare
from mtdiff.datasets.prepared import prepared
from mtdiff.experiments import image_label
from mtdiff.experiments.image_label import EXPERIMENT
from mtdiff.losses import Loss
from mtdiff.metrics import frechet_distance, kernel_distance
from mtdiff.representations import representation, represented
from mtdiff.speed import matmul_peak, training_flops, training_memory
from mtdiff.stopping import OutOfTime
from mtdiff.training import TrainConfig, Trainer
from mtdiff.widgets.scaling import plan

# %%
torch.set_num_threads(1)
plots.style()


def rng(seed):
    """A generator, so that every cell draws the same numbers whenever it runs."""
    return torch.Generator().manual_seed(seed)


# %% [markdown] tags=["slide"]
# ## 1 · The idea in a picture
#
# This is the backbone of notebook 12's models for 64×64 photographs: a U-Net of 3.4M parameters. Every layer works at
# some height, 64 at the top, 8 at the bottom. We note, at each height, how many **parameters** there are, how many
# **operations** an image takes (a multiplication and an addition are two), and how many **numbers** are written, which
# a training has to keep until the backward pass.


# %%
def count(net, image):
    """{height: [parameters, operations, numbers written]} of one forward pass, and the sum of operations."""
    rows, handles = defaultdict(lambda: [0, 0, 0]), []

    def note(layer, inputs, output):
        shape = output.shape
        places = {4: shape[-2] * shape[-1], 3: shape[1], 2: 1}[output.ndim]  # pixels, tokens, or one vector
        row = rows[round(places**0.5)]
        row[0] += sum(p.numel() for p in layer.parameters())
        row[1] += 2 * layer.weight[0].numel() * shape.numel() // shape[0] if layer.weight.ndim > 1 else 0
        row[2] += shape.numel() // shape[0]

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.GroupNorm):
            handles.append(layer.register_forward_hook(note))
    net.out(net(image, torch.full((len(image),), 0.5))[0])
    for handle in handles:
        handle.remove()
    for layer in net.modules():
        if hasattr(layer, "qkv"):  # attention: scores and sums over 64 tokens, 2 n^2 C each
            rows[8][1] += 2 * 2 * 64**2 * layer.qkv.in_features
    return rows, sum(row[1] for row in rows.values())


# %%
net = mt.UNet((3, 64, 64), base=32, multipliers=(1, 2, 2, 3), blocks=2, attention=(8,))
net.out = net.readout((3, 64, 64))
rows, forward = count(net, torch.zeros(2, 3, 64, 64))
heights = [64, 32, 16, 8, 1]
table = torch.tensor([rows[height] for height in heights], dtype=torch.float64)
share = table / table.sum(0)
figure, axis = plt.subplots(figsize=(7.5, 2.6), layout="constrained")
left = torch.zeros(3, dtype=torch.float64)
for k, height in enumerate(heights):
    name = f"{height}x{height}" if height > 1 else "level of noise"
    axis.barh(["parameters", "operations", "numbers written"], share[k], left=left, color=f"C{k}", label=name)
    left += share[k]
axis.invert_yaxis()
axis.set(xlim=(0, 1), xlabel="share of the network")
axis.legend(ncols=5, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.45, -0.3))
axis.set_title(
    f"At 64x64: {share[0, 0]:.0%} of the parameters, {share[0, 1]:.0%} of the operations, {share[0, 2]:.0%} of the memory",
    fontsize=10,
)
plots.show(figure, "Shares of parameters, operations and memory by height: parameters low, the other two on top.")

# %% [markdown]
# What a network *knows* sits at the bottom, what it *costs* sits at the top. Doubling height and width of the images
# multiplies time and memory by four and adds almost no parameters. "A model of 3.4M parameters" says little about the
# price of training it.
#
# ## 2 · Derivation, step by step
#
# ### Step 1: operations
#
# A convolution with $k \times k$ weights from $C$ to $C'$ channels takes $2 k^2 C\, C'$ operations at each of its
# $H' W'$ places. Its backward pass is two more of the same size: one for the gradient of the weights, one for that of
# the input. So a training step costs **three** forward passes, but for the input gradient of the very first layers,
# which nobody needs. By hand (the counts above), and by the library, which follows the shapes through a copy without
# data:

# %%
x = {"image": torch.zeros(2, 3, 64, 64)}


def square(net, batch, generator):
    """A loss of the bare backbone."""
    features, _ = net(batch["image"], torch.full((len(batch["image"]),), 0.5, device=batch["image"].device))
    return Loss(net.out(features).square().mean(), {})


needless = 2 * net.enter.weight.numel() * 64**2 + 2 * net.level.mlp[0].weight.numel()  # input gradients of first layers
by_library = training_flops(net, square, x)
print(f"a forward pass takes {forward / 1e9:.3f} GFLOP an image, a training step {by_library / 1e9:.3f}")
assert by_library == 3 * forward - needless

# %% [markdown]
# Equal to the last operation. Normalisations, activations and sums are not counted: they take few operations and much
# memory traffic (step 7). And what does *multi-modality* cost? Encoders and heads of the digits' model of notebook 00,
# against the same backbone with an image alone:


# %%
def multitask(model, batch, generator):
    return mt.multitask_loss(model, batch, generator=generator)


data = digits("train")
joint, alone = (image_label.build("digits", variant) for variant in ("fade-in", "image-only"))
costs = [training_flops(joint, multitask, data[:2]), training_flops(alone, multitask, {"image": data[:2]["image"]})]
print(f"image and label {costs[0] / 1e6:.2f} MFLOP, image alone {costs[1] / 1e6:.2f}: {costs[0] / costs[1] - 1:.1%} more")

# %% [markdown] tags=["slide"]
# ### Step 2: bytes
#
# A training holds, whatever the batch, **five numbers for each parameter**: the weight, its gradient, AdamW's two
# moments, and the averaged weight. And it keeps, for every example, what the backward pass will ask for. For
# $y = w_2 * \mathrm{relu}(w_1 * x)$ and the loss $\overline{y^2}$ these are three tensors: $x$ (for the gradient of
# $w_1$), the rectified map (for that of $w_2$, and it says where relu was positive), and $y$ (for the square).

# %%
small = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
state, each = training_memory(small, lambda net, batch, _: Loss(net(batch["image"]).square().mean(), {}), x)
assert state == 5 * 4 * sum(p.numel() for p in small.parameters())
assert each == 4 * (3 + 16 + 3) * 64**2
state, each = training_memory(net, square, x)
print(f"our U-Net: {state / 2**20:.0f} MiB whatever the batch, and {each / 2**20:.0f} MiB for each example")
for batch in (1, 32, 256):
    print(f"batch {batch:3d}: {(state + batch * each) / 2**30:6.2f} GiB")

# %% [markdown]
# At a batch of 256 the state of the training is half a percent of the memory. To make a *convolutional* model of this
# kind fit, one cuts the batch or keeps its activations in 16 bits; tricks that shard the state over devices are made
# for networks whose parameters outweigh their activations.
#
# ### Step 3: a batch in parts
#
# The loss is a mean over examples, so its gradient is the mean of the gradients of equal parts. A batch that does not
# fit is computed in `accumulate` parts one after the other, or in parts on several devices. One thing needs care: the
# *noise*. The library gives each part (a *shard*) a source of randomness of its own, so that a part has the same noise
# wherever it is computed. (A head that is scored on some examples only, because the others lack a label or are given it,
# needs one thing more: a mean of means over different numbers is not the mean. The library divides by the number in all
# parts, which it finds out before the first.) One step of the trainer with four parts, against four gradients by hand:


# %%
def gradient(model, batch, generator):
    """All gradients of the loss of a batch as one vector."""
    model.zero_grad()
    mt.multitask_loss(model, batch, generator=generator).total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


model = image_label.build("digits", "fade-in")
config = TrainConfig(steps=1, batch_size=64, accumulate=4, warmup=0, clip=1e9)
batch = next(data.batches(64, config.seed))
parts = []
for k in range(4):
    shard = {name: value[16 * k : 16 * (k + 1)] for name, value in batch.items()}
    parts.append(gradient(model, shard, rng(config.seed + 1_000_003 * k)))
trainer = Trainer(model, data, config)
trainer.run(progress=False)
taken = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
print(f"largest difference {float((taken - torch.stack(parts).mean(0)).abs().max()):.1e}")
assert torch.allclose(taken, torch.stack(parts).mean(0), atol=1e-6)

# %% [markdown] tags=["slide"]
# **How large a batch is worth its price?** The gradient of $B$ examples is the true gradient $G$ plus noise of variance
# $\operatorname{tr}\Sigma/B$:
#
# $$ \mathbb E\,\|g_B\|^2 = \|G\|^2 + \frac{\operatorname{tr}\Sigma}{B}, \qquad
#    B_\text{noise} = \frac{\operatorname{tr}\Sigma}{\|G\|^2} . $$
#
# Below $B_\text{noise}$ the noise outweighs the gradient, and twice the batch is nearly worth twice the steps; above
# it, more examples buy little (McCandlish et al. 2018). Two batch sizes suffice to solve for both unknowns. We draw 96
# gradients of 16 examples, and average groups of them for larger batches; for a network that has just begun, one a
# little later, and the shipped one at the end of its training.


# %%
def mean_squares(model, count=96, size=16):
    """{batch size: mean of |g|^2} over groups of gradients."""
    batches = data.batches(size, seed=1)
    each = torch.stack([gradient(model, next(batches), rng(k)) for k in range(count)])
    return {size * k: float(each.unflatten(0, (-1, k)).mean(1).square().sum(1).mean()) for k in (1, 2, 4, 8, 16, 32)}


def noise_scale(squares):
    """|G|^2 and tr(Sigma), from the smallest and the largest batch."""
    (b, small), *_, (B, large) = squares.items()
    return (B * large - b * small) / (B - b), (small - large) / (1 / b - 1 / B)


squares = {}
for steps in (20, 200):
    begun = image_label.build("digits", "fade-in")
    Trainer(begun, data, TrainConfig(steps=steps, batch_size=64, warmup=5)).run(progress=False)
    squares[f"after {steps} steps"] = mean_squares(begun)
squares["in the end"] = mean_squares(mt.load("image-label/digits").train())

# %%
figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
for k, (name, found) in enumerate(squares.items()):
    G2, trace = noise_scale(found)
    sizes = torch.logspace(1, 3.3, 50)
    clear = trace / 1536 < G2  # the noise that is left in the mean of all examples
    text = f"= {trace / G2:,.0f}" if clear else "> 1,536, the examples that were drawn"
    axis.loglog(sizes, max(G2, 0) + trace / sizes, color=f"C{k}", label=f"{name}: $B_{{noise}}$ {text}")
    axis.loglog(list(found), list(found.values()), "o", color=f"C{k}", markersize=5)
    if clear:
        axis.axhline(G2, color=f"C{k}", linestyle=":", linewidth=1)
axis.set(xlabel="batch size B", ylabel="mean of $|g_B|^2$")
axis.set_title("Early the true gradient (dotted) is plain; at the end it drowns in noise", fontsize=10)
axis.legend(frameon=False, fontsize=8)
plots.show(figure, "Mean squared norm of the gradient over batch size, early and late, with the fitted line and its limit.")

# %% [markdown] tags=["slide"]
# ### Step 4: many devices
#
# Each of $n$ devices computes the gradient of its part; all need the mean. In a **ring** every device talks to the next
# one only. The vector is cut into $n$ pieces. For $n - 1$ rounds everyone passes on the piece that it has just added
# to; then each device owns one complete sum, and $n - 1$ more rounds hand the sums around. Every round moves $1/n$ of
# the vector, so each device sends
#
# $$ \frac{2(n - 1)}{n} \times \text{size of the gradient}, $$
#
# less than twice the gradient, *however many devices there are* (Patarasuk and Yuan 2009). Played through:


# %%
def ring_mean(vectors):
    """The mean of n vectors by passing pieces around a ring; and how many numbers each device sent."""
    n, sent = len(vectors), 0
    pieces = [list(vector.clone().chunk(n)) for vector in vectors]
    for complete in (False, True):  # first sums are made, then handed around
        for turn in range(n - 1):
            moving = {w: (w - turn + complete) % n for w in range(n)}
            packets = {w: pieces[w][k].clone() for w, k in moving.items()}  # all send at the same moment
            for w, k in moving.items():
                after = (w + 1) % n
                pieces[after][k] = packets[w] if complete else pieces[after][k] + packets[w]
            sent += len(packets[0])
    return [torch.cat(mine) / n for mine in pieces], sent


for n in (2, 4, 8):
    gradients = torch.randn(n, 8000, generator=rng(n), dtype=torch.float64)
    means, sent = ring_mean(list(gradients))
    assert all(torch.allclose(mine, gradients.mean(0)) for mine in means)
    assert sent == 2 * (n - 1) / n * 8000
    p = plan(32, devices=n)  # the library's plan for our U-Net
    print(f"{n} devices: each sends {sent / 8000:.2f} gradients; {1e3 * p.exchange:.2f} ms at 50 GB/s")
    assert math.isclose(p.exchange * 50e9, 2 * (n - 1) / n * 4 * p.parameters)

# %% [markdown]
# That is torch's `DistributedDataParallel`, which the trainer uses as it is; it sends early gradients while later ones
# are computed. Two things are ours: shards with their own noise, which make $n$ processes take *the steps of one* that
# accumulates over $n$ parts (tested with two processes, to 1e-6), and a checkpoint that either can continue.
#
# ### Step 5: sixteen bits
#
# A **bf16** number has the range of a 32-bit one and 8 significant bits: next to 1 the numbers are $2^{-7}$ apart above
# and $2^{-8}$ below. A product is off by up to 0.4%. Is that much? The error to compare with is the one that the
# training has anyhow: another batch, another gradient. By the cosine between gradients of the same batch and noise,
# once in bf16 by autocast, once in fp32, and between those of two batches:

# %%
first, second = (value for value, _ in zip(data.batches(64, seed=5), range(2), strict=False))
trained = mt.load("image-label/digits").train()
exact, other = gradient(trained, first, rng(1)), gradient(trained, second, rng(2))
with torch.autocast("cpu", torch.bfloat16):
    rounded = gradient(trained, first, rng(1))
cosine = nn.functional.cosine_similarity
print(f"rounded and exact {float(cosine(rounded, exact, 0)):.4f}, two batches of 64 {float(cosine(exact, other, 0)):.4f}")
assert cosine(rounded, exact, 0) > 0.95 > cosine(exact, other, 0)

# %% [markdown] tags=["slide"]
# Rounding a *product* is nothing beside the noise of the batch. Rounding a *sum over time* is another matter. The
# average of the weights, $\bar w \leftarrow \bar w + (1 - d)(w - \bar w)$, adds small numbers to a large one. In bf16
# an addition to a number in $[\tfrac12, 1)$ is lost where it is below half of the spacing $2^{-8}$. At $d = 0.999$:
#
# $$ (1 - d)\,|w - \bar w| < 2^{-9} \iff |w - \bar w| < 1.95 . $$
#
# From $\bar w = 0.5$ and $w = 0.9$ such an average never moves. There is no error message. This is why weights, moments
# and averages stay in 32 bits, and only products are computed in 16. The half-life of an average, $\ln 2/(-\ln d)$,
# is 693 steps at $d = 0.999$: it must be short beside the training, or the average remembers its beginning.

# %%
decay, steps, w = 0.999, 4000, 0.9
paths = {}
for dtype in (torch.float32, torch.bfloat16):
    average, path = torch.tensor(0.5, dtype=dtype), []
    for _ in range(steps):
        average = average + (1 - decay) * (torch.tensor(w, dtype=dtype) - average)
        path.append(float(average))
    paths[dtype] = path
half_life = math.log(2) / -math.log(decay)
assert set(paths[torch.bfloat16]) == {0.5}
assert abs(paths[torch.float32][round(half_life) - 1] - 0.7) < 1e-3
figure, axis = plt.subplots(figsize=(6.5, 2.6), layout="constrained")
for path, name in zip(paths.values(), ("fp32", "bf16"), strict=True):
    axis.plot(path, label=f"average in {name}")
axis.axhline(w, color="black", linewidth=0.8, linestyle="--", label="the weight")
axis.axvline(half_life, color="0.6", linewidth=0.8, linestyle=":", label="half-life")
axis.set(xlabel="step", ylabel="value", title="In bf16 the average of a weight never moves")
axis.title.set_fontsize(10)
axis.legend(frameon=False, fontsize=8)
plots.show(figure, "Averages of a constant weight over 4,000 steps: that in fp32 arrives, that in bf16 stays at its start.")

# %% [markdown] tags=["slide"]
# ### Step 6: who waits for whom
#
# A GPU works through a queue that the Python program fills. To *launch* a step takes the program some milliseconds, to
# *compute* it takes the device some more, and the two overlap, until the program asks for a number: `loss.item()` waits
# until the queue is empty. With $h$ ms to launch and $g$ ms to compute, $n$ steps take
#
# $$ \text{asking never: } h + n g \ \ (g \ge h), \qquad \text{asking at each step: } n\,(h + g) . $$


# %%
def timeline(steps, launch, compute, ask_every):
    """[(start, length)] of the program's and of the device's work, in ms; the program waits after some steps."""
    program, device, now, free = [], [], 0.0, 0.0
    for k in range(1, steps + 1):
        program.append((now, launch))
        now += launch
        free = max(free, now) + compute
        device.append((free - compute, compute))
        now = free if k % ask_every == 0 else now
    return program, device, free


figure, axes = plt.subplots(2, 1, figsize=(8, 2.8), layout="constrained", sharex=True)
for axis, (name, ask_every) in zip(axes, {"at each step": 1, "after eight": 8}.items(), strict=True):
    program, device, total = timeline(8, 6.0, 9.0, ask_every)
    assert total == (8 * 15.0 if ask_every == 1 else 6.0 + 8 * 9.0)
    axis.broken_barh(program, (1, 0.8), color="C0", edgecolor="white")
    axis.broken_barh(device, (0, 0.8), color="C1", edgecolor="white")
    axis.set(yticks=[0.4, 1.4], yticklabels=["device", "program"])
    axis.set_title(f"asking {name}: {total:.0f} ms", fontsize=10)
axes[1].set_xlabel("ms")
plots.show(figure, "Timelines of program and device: with a question at every step they take turns, else they overlap.")

# %% [markdown]
# So in a step of the trainer nothing asks: losses are added up on the device, clipping and averaging need no answer,
# and a row of the history is read every `log_every` steps. An own loss that calls `float(...)` undoes all that.
#
# ### Step 7: what is the device good for?
#
# A device computes at most $P$ operations a second and moves at most $M$ bytes a second. An operation that does $I$
# operations for each byte cannot be faster than $\min(P, I M)$: the **roofline** (Williams et al. 2009). On this
# machine, one thread, with both limits measured now:


# %%
def seconds(function, repeats=6):
    """The best time of some."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        found.append(time.perf_counter() - began)
    return min(found)


peak = matmul_peak("cpu", torch.float32, size=768, repeats=4)
h = torch.randn(16, 32, 64, 64).contiguous(memory_format=torch.channels_last)
wide, n = nn.Conv2d(32, 32, 3, padding=1).to(memory_format=torch.channels_last), h.numel()
bandwidth = 8 * n / seconds(lambda: h + 1.0)  # each number read and written once
tokens, linear = torch.randn(16 * 64, 96), nn.Linear(96, 288)
kinds = {
    "activation (SiLU)": (lambda: nn.functional.silu(h), 4 * n, 8 * n),
    "normalisation": (lambda: nn.functional.group_norm(h, 8), 8 * n, 12 * n),
    "linear layer at 8x8": (lambda: linear(tokens), 2 * 1024 * 96 * 288, 4 * (1024 * 384 + 96 * 288)),
    "convolution at 64x64": (lambda: wide(h), 2 * 9 * 32 * n, 4 * (2 * n + 9 * 32 * 32)),
}
with torch.no_grad():
    speed = {name: work / seconds(run) for name, (run, work, _) in kinds.items()}

# %%
figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
intensity = torch.logspace(-1.5, 3, 200)
axis.loglog(intensity, (intensity * bandwidth).clamp(max=peak) / 1e9, color="black", label="roof")
for k, (name, (_, work, moved)) in enumerate(kinds.items()):
    axis.loglog(work / moved, speed[name] / 1e9, "o", color=f"C{k}", label=name)
axis.set(xlabel="operations per byte", ylabel="GFLOP a second")
axis.legend(frameon=False, fontsize=8)
axis.set_title(f"One thread: peak {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s", fontsize=10)
plots.show(figure, "Roofline of one CPU thread with four layers: products near the flat part, the rest on the slope.")

# %% [markdown]
# Activations and normalisations stand under the slope: faster arithmetic does not help them, moving fewer bytes does.
# That is what `torch.compile` is for (it fuses them into one pass), and why `channels_last` matters. On a GPU the flat
# part lies so much higher that layers which are bound by arithmetic here are bound by memory there.
#
# **Share of peak** is the figure to watch: operations of a step times steps per second, over what a matrix product
# reaches on the same device. It says how much of what was paid for is used. The trainer shows it in its progress line
# on a GPU.
#
# ## 3 · In the library
#
# A training can be stopped anywhere. What has to be in a checkpoint so that going on leaves *no trace*? Weights,
# average, moments, the step, the state of every source of randomness, and the sums of the row that is being logged.
# Here one training is out of time after its first step, and goes on; another is left alone:

# %%
config = TrainConfig(steps=8, batch_size=32, accumulate=2, log_every=4, save_every=100)
straight = EXPERIMENT.trainer("digits", "fade-in", config, folder=None)
straight.run(progress=False)
with tempfile.TemporaryDirectory() as folder:
    try:
        EXPERIMENT.trainer("digits", "fade-in", config, folder).run(progress=False, max_minutes=0.0)
    except OutOfTime as stop:
        print(str(stop).replace(folder, "FOLDER"))
    resumed = EXPERIMENT.trainer("digits", "fade-in", config, folder)
    assert resumed.resume()
    print("goes on from step", resumed.step)
    resumed.run(progress=False)
pairs = zip(straight.averaged().state_dict().values(), resumed.averaged().state_dict().values(), strict=True)
assert all(torch.equal(a, b) for a, b in pairs)
losses = [[row["total"] for row in trainer.history] for trainer in (straight, resumed)]
assert losses[0] == losses[1]
print("every weight of both averages is the same, to the last bit")

# %% [markdown]
# The same on the command line, where Ctrl-C, a time limit and a signal of the queue (SIGTERM, SIGHUP, SIGUSR1) are one
# and the same; a lock keeps a second training out of the folder:
#
# ```
# mtdiff train imagenet --data imagenette64 --budget full --precision bf16 --compile --max-minutes 10
# torchrun --standalone --nproc-per-node 8 -m mtdiff train imagenet --data imagenette64 --budget full --precision bf16
# ```
#
# ### Photographs
#
# A JPEG file takes longer to decode than a small network takes to look at it. So a set is decoded **once**, into a file
# of bytes: cut to its largest centred square, made smaller, and written with labels, boxes, and a hash that results
# quote. How it is made smaller is part of the data set:

# %%
grid = np.linspace(-1, 1, 512)
rings = np.uint8(127.5 + 127.5 * np.cos(200 * (grid[:, None] ** 2 + grid**2)))  # finer and finer towards the corners
with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    for split in ("train", "val"):
        (root / "raw" / split / "n00000001").mkdir(parents=True)
        PIL.Image.fromarray(rings).save(root / "raw" / split / "n00000001" / "rings.png")
    prepare(root / "raw", root / "packed", size=64, progress=False)
    packed = prepared(root / "packed", "val")[:1]["image"]
nearest = torch.from_numpy(rings[4::8, 4::8].copy())[None, None] / 127.5 - 1
full = torch.from_numpy(rings)[None, None] / 127.5 - 1
figure, axes = plt.subplots(1, 3, figsize=(8, 2.9), layout="constrained")
shown = {"512x512": full, "every 8th pixel": nearest, "mean of areas": packed}
for axis, (name, picture) in zip(axes, shown.items(), strict=True):
    plots.show_image(axis, picture[0], name)
figure.suptitle("64x64 of 512x512: pixels that are left out return as rings that are not there", fontsize=10)
plots.show(figure, "A pattern of fine rings, made smaller by leaving out pixels, with false rings, and by areas, without.")

# %% [markdown]
# The picture on the right is not perfect (a mean over areas lets some fine detail through), but it does not invent
# coarse structure, which a model would learn. Real folders also hold greyscale, CMYK and transparent files, and broken
# ones:

# %%
colours = np.random.default_rng(0).integers(0, 256, (40, 48, 4), dtype=np.uint8)
with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    for split in ("train", "val"):
        home = root / "raw" / split / "n00000001"
        home.mkdir(parents=True)
        for mode, suffix in (("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png")):
            PIL.Image.fromarray(colours).convert(mode).save(home / f"{mode}.{suffix}")
        whole = (home / "RGB.jpg").read_bytes()
        (home / "broken.jpg").write_bytes(whole[: len(whole) // 2])
        (home / "empty.jpg").write_bytes(b"")
    found = prepare(root / "raw", root / "packed", size=16, progress=False)["train"]
print(f"{found['count']} of {found['files']} images, sha256 {found['sha256'][:12]}; skipped:")
for file, why in found["skipped"]:
    print(f"  {file}: {why.replace(folder, '...')[:90]}")
assert found["count"] == 4
assert [Path(file).stem for file, _ in found["skipped"]] == ["broken", "empty"]

# %% [markdown]
# Nothing is lost silently: a file that cannot be read is listed with the reason, and a class of which *nothing* can be
# read is an error.
#
# ## 4 · The derivation that evaluation needs
#
# Image quality is reported as a **Fréchet distance** of features (FID where the features are Inception's): of two
# normal laws with means $\mu, \nu$ and covariances $A, B$ it is $\|\mu - \nu\|^2 + \operatorname{tr}(A + B -
# 2(AB)^{1/2})$. Moments come from samples, and two samples of *the same* law differ. How far apart are they? Let both
# have $n$ rows and covariance $\Sigma$ with eigenvalues $\lambda_i$. The means differ by noise of variance
# $2\Sigma/n$. For the second term, expand around $\Sigma$, with $\Delta = A - B$ in the basis of eigenvectors:
#
# $$ \operatorname{tr}\big(A + B - 2(AB)^{1/2}\big) \approx \frac12 \sum_{ij} \frac{\Delta_{ij}^2}{\lambda_i +
#    \lambda_j}, \qquad \mathbb E\,\Delta_{ij}^2 = \frac{2 \lambda_i \lambda_j (1 + \delta_{ij})}{n - 1}
#    \quad\text{(normal data)} . $$
#
# Summed:
#
# $$ \mathbb E\,[\text{distance of equal laws}] \approx \frac{2 \operatorname{tr}\Sigma}{n} + \frac{1}{n-1} \Big(
#    \sum_{ij} \frac{\lambda_i \lambda_j}{\lambda_i + \lambda_j} + \frac12 \operatorname{tr}\Sigma \Big) . $$
#
# It falls like $1/n$ and grows with the *square* of the number of features. The **kernel distance** (KID) is built from
# pairs of different points and has no such bias. We check on features of scenes (the encoder of notebook 09, 64
# numbers): normal draws with their covariance, where the formula should hold, and real scenes, cut into halves.

# %%
encoder, scenes = representation("shapes16"), represented("shapes16", "train").values["image"][:4000]
with torch.no_grad():
    features = torch.cat([encoder.encoder(part) for part in scenes.split(500)]).double()
eigenvalues = torch.linalg.eigvalsh(features.T.cov())
root = torch.linalg.cholesky(features.T.cov())


def bias(eigenvalues, n, m):
    """The expected distance of two samples of n and m rows of one law; for n = m it is the formula above."""
    trace = eigenvalues.sum()
    pairs = (eigenvalues[:, None] * eigenvalues / (eigenvalues[:, None] + eigenvalues)).nan_to_num().sum()
    return float((1 / n + 1 / m) * trace + (1 / (n - 1) + 1 / (m - 1)) / 2 * (pairs + trace / 2))


sizes, found = (125, 250, 500, 1000, 2000), defaultdict(list)
for n in sizes:
    for seed in range(6):
        a, b = (torch.randn(n, 64, generator=rng(2 * seed + k), dtype=torch.float64) @ root.T for k in (0, 1))
        found["normal"].append((n, frechet_distance(a, b)))
        rows = torch.randperm(4000, generator=rng(seed))[: 2 * n]
        a, b = features[rows[:n]], features[rows[n:]]
        found["scenes"].append((n, frechet_distance(a, b)))
        found["kernel"].append((n, kernel_distance(a, b, subsets=1, size=n)["mean"]))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].loglog(sizes, [bias(eigenvalues, n, n) for n in sizes], color="black", label="formula")
for name, colour in (("normal", "C0"), ("scenes", "C1")):
    axes[0].loglog(*zip(*found[name], strict=True), "o", color=colour, markersize=4, label=name)
axes[0].set(xlabel="rows of each sample", ylabel="Fréchet distance")
axes[0].set_title("Equal laws are not at distance 0", fontsize=10)
axes[0].legend(frameon=False, fontsize=8)
axes[1].semilogx(*zip(*found["kernel"], strict=True), "o", color="C2", markersize=4)
axes[1].axhline(0, color="black", linewidth=0.8)
axes[1].set(xlabel="rows of each sample", ylabel="kernel distance")
for axis in axes:
    axis.set_xticks(sizes, [str(n) for n in sizes])
    axis.minorticks_off()
axes[1].set_title("The kernel distance scatters about 0", fontsize=10)
plots.show(figure, "Fréchet distance of two samples of one law falls as 1/n, on the formula; the kernel one is around 0.")
for n in sizes:
    mean = sum(value for size, value in found["normal"] if size == n) / 6
    formula = bias(eigenvalues, n, n)
    print(f"n = {n:4d}: formula {formula:6.3f}, normal draws {mean:6.3f}")
    assert abs(mean / formula - 1) < 0.12

# %% [markdown]
# So a distance is reported with the number of images, only equal numbers are compared, and a kernel distance stands
# beside it. FID's 2,048 features need tens of thousands of images for the same reason.
#
# ## 5 · Does it work? Measured
#
# **Speed, on a CPU.** A step of our U-Net against `UNet2DModel` of diffusers 1 : 1 in depth, widths, attention and, up
# to 0.4%, parameters; they take turns, and ratios of neighbouring rounds are compared.
# (`python tests/benchmarks/unet.py`)

# %%
results = Path("../data/results")
speed = json.loads((results / "benchmark-unet-cpu.json").read_text())
names = {
    "training_step_against_diffusers": "training step / diffusers'",
    "sampling_step_against_diffusers": "sampling step / diffusers'",
    "training_with_encoders_and_heads_against_bare": "training: with label / bare",
    "sampling_with_encoders_and_heads_against_bare": "sampling: with label / bare",
}
figure, axis = plt.subplots(figsize=(7.5, 2.4), layout="constrained")
for k, key in enumerate(names):
    entry = speed[key]
    low, high = (abs(entry["ratio"] - q) for q in entry["quartiles"])
    axis.errorbar(entry["ratio"], k, xerr=[[low], [high]], fmt="o", color="C0" if k < 2 else "C1", capsize=3)
axis.axvline(1, color="black", linewidth=0.8, linestyle="--")
axis.set(yticks=range(4), yticklabels=names.values(), ylim=(3.6, -0.6), xlabel="ratio of times (below 1: ours is faster)")
ratios = [speed[key]["ratio"] for key in names]
axis.set_title(f"Ours takes {ratios[0]:.2f} of the time; a label adds {ratios[2] - 1:.0%} to a training step", fontsize=10)
plots.show(figure, "Ratios of times with quartiles: two against diffusers, below one, and two of a label's cost, about one.")
print(speed["provenance"]["hardware"], "·", f"{speed['parameters']['ours']:,} parameters ·", speed["provenance"]["torch"])

# %% [markdown]
# **Speed, on a GPU: not measured.** The command is there (`make gpu`: bf16 with `torch.compile`,
# ours and diffusers', images per second, memory and share of the measured peak), it runs at a small size on
# a CPU, and nobody has run it on a GPU yet. Whatever this course says about GPUs is arithmetic, or other
# people's figures with their source.
#
# **Evaluations.** The cheapest way to sample faster is a better solver. Digits by every solver at several numbers of
# evaluations of the network; a Fréchet distance of pixels to all real digits, each point five sets of 200 pairs
# (`python tests/benchmarks/samplers.py --n 1000`):

# %%
found = json.loads((results / "benchmark-samplers.json").read_text())
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for k, (name, row) in enumerate(found["samplers"].items()):
    for axis, what in zip(axes, ("frechet_pixels", "agreement"), strict=True):
        mean, error = ([cell[what][key] for cell in row.values()] for key in ("mean", "stderr"))
        counts = [int(count) for count in row]
        axis.errorbar(counts, mean, error, marker="o", markersize=4, capsize=2, color=f"C{k}", label=name)
        axis.set(xscale="log", xlabel="evaluations of the network")
real = data.values["image"].flatten(1).double()
floor = bias(torch.linalg.eigvalsh(real.T.cov()).clamp(min=0), found["n"] // found["parts"], len(digits("all")))
axes[0].axhline(floor, color="black", linestyle=":", linewidth=1, label="equal laws would have this")
axes[0].set_ylabel("Fréchet distance (pixels)")
axes[1].set_ylabel("agreement with a judge")
axes[0].legend(frameon=False, fontsize=8)
target = found["samplers"]["ddpm"]["250"]["frechet_pixels"]["mean"]
best = min(found["samplers"], key=lambda name: found["samplers"][name]["20"]["frechet_pixels"]["mean"])
at_20 = found["samplers"][best]["20"]["frechet_pixels"]["mean"]
figure.suptitle(f"Best at 20 evaluations: {best}, {at_20:.2f}; 250 ancestral steps {target:.2f}", fontsize=10)
plots.show(figure, "Distance and agreement over evaluations for every solver, with standard errors.")

# %% [markdown]
# The second-order solver `dpm++` is at its limit after ten evaluations, `ddim` after fifty; `ddpm`, which draws fresh
# noise at each step, needs fifty and then ends lower. At 20 evaluations `dpm++` is 7 ± 7% above 250 ancestral steps:
# level as far as five sets can tell. By the formula above 0.7 of both is small sample (dotted; pixels are not normal,
# so it is a rough figure), and a percentage of such a distance says little. And what Fréchet distance calls better,
# the judge need not: `ddpm` leads there at 20 evaluations, too.
#
# ## 6 · Experiment: a plan before the purchase
#
# What does a U-Net cost before a device is bought? The board counts parameters, operations and kept bytes from shapes
# alone. Its speed assumes 400 TFLOP/s of measured peak, of which a step reaches 30%: *assumptions*, to be replaced by
# what your device measures.

# %% tags=["nbval-ignore-output"]
widgets.plan_board()

# %%
plots.show(
    widgets.draw_plan(128, 64, 256, devices=8, bf16=True),
    "Memory of each of eight devices by part, for a network of base 128 at 64x64 and a batch of 256.",
)

# %% [markdown]
# ## 7 · Exercises
#
# **Exercise 1 (warm-up, easy, 10 minutes). What fits?**
# A device has `room` GiB. Return the largest batch of our U-Net that fits if it is
# computed in `accumulate` equal parts, one after the other, with activations in two bytes instead of four. (`state` and
# `each` are the bytes of step 2. A batch is divisible by `accumulate`.)

# %%
state, each = training_memory(net, square, x)


# %% tags=["exercise"]
def largest_batch(room, accumulate):
    """The largest batch, an int, divisible by accumulate."""
    ...  # your code


# %% tags=["check"]
def check_1(function):
    for room, accumulate in ((8, 1), (8, 4), (24, 2), (80, 1), (int(torch.randint(10, 70, ())), 3)):
        batch = function(room, accumulate)
        if batch is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        if batch % accumulate:
            return widgets.Verdict(False, f"a batch of {batch} has no {accumulate} equal parts")
        fits = [state + each / 2 * b / accumulate <= room * 2**30 for b in (batch, batch + accumulate)]
        if fits != [True, False]:
            word = "does not fit" if not fits[0] else "is not the largest"
            return widgets.Verdict(False, f"{room} GiB, {accumulate} parts: {batch} {word}")
    return widgets.Verdict(True, f"{function(8, 1)} in 8 GiB at once, {function(8, 4)} in four parts")


check_1(largest_batch)


# %% tags=["solution"]
def largest_batch_solution(room, accumulate):
    return int((room * 2**30 - state) // (each / 2)) * accumulate


solved = check_1(largest_batch_solution)
assert solved, solved.message
four_bytes = check_1(lambda room, accumulate: int((room * 2**30 - state) // each) * accumulate)
assert not four_bytes, four_bytes.message
solved

# %% [markdown]
# **Exercise 2 (repair it, medium, 20 minutes). An average in 16 bits.**
# The average of step 5 never moves, because rounding to the nearest
# number loses the same little bit every time. Write a rounding that is right *on average*: a number between two bf16
# neighbours becomes the upper one with the probability that makes the mean exact. (A bf16 number is an fp32 number
# whose last 16 bits are 0; `x.view(torch.int32)` shows the bits.)


# %% tags=["exercise"]
def stochastic_round(x, generator):
    """Positive float32 x (N,) -> (N,) bfloat16 with mean x."""
    ...  # your code


# %% tags=["check"]
def check_2(function):
    for value in (0.5004, 0.9, 1.0, 3.14159):
        drawn = function(torch.full((40000,), value), rng(0))
        if drawn is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        if drawn.dtype != torch.bfloat16:
            return widgets.Verdict(False, f"expected bfloat16, got {drawn.dtype}")
        space = 2.0 ** (math.floor(math.log2(value)) - 7)
        error = abs(float(drawn.double().mean()) - value)
        if (drawn.double() - value).abs().max() >= space or error > 0.02 * space:
            return widgets.Verdict(False, f"{value}: the mean is off by {error / space:.3f} of the spacing")
    average = torch.full((1000,), 0.5, dtype=torch.bfloat16)
    generator = rng(1)
    for _ in range(693):
        average = function(average.float() + 0.001 * (0.9 - average.float()), generator)
    end = float(average.float().mean())
    return widgets.Verdict(abs(end - 0.7) < 0.02, f"after a half-life 1,000 averages have the mean {end:.3f} (exact: 0.700)")


check_2(stochastic_round)


# %% tags=["solution"]
def stochastic_round_solution(x, generator):
    noise = torch.randint(0, 2**16, x.shape, generator=generator, dtype=torch.int32)
    return ((x.view(torch.int32) + noise) & -(2**16)).view(torch.float32).bfloat16()


def one_coin(x, generator):  # the same luck for all numbers
    noise = torch.randint(0, 2**16, (1,), generator=generator, dtype=torch.int32)
    return ((x.view(torch.int32) + noise) & -(2**16)).view(torch.float32).bfloat16()


solved = check_2(stochastic_round_solution)
assert solved, solved.message
assert not any(check_2(wrong) for wrong in (lambda x, generator: x.bfloat16(), one_coin)), "a wrong answer passes"
solved

# %% [markdown]
# **Exercise 3 (a small research question, hard, 30 minutes). What makes the gradient noisy?**
# Devices and shards give the noise scale
# away for free: each has a gradient of its own. Given the gradients of $n$ shards of $b$ examples, return unbiased
# estimates of $\|G\|^2$ and $\operatorname{tr}\Sigma$. Then: the library *stratifies* noise levels, one in each $b$-th
# part of the steps for the $b$ examples of a shard. How much of the noise does that take away? Compare shards of 16
# with shards of one.


# %% tags=["exercise"]
def from_shards(gradients, b):
    """Gradients (n, d) of shards of b examples -> estimates of |G|^2 and of tr(Sigma), two floats."""
    ...  # your code


# %% tags=["check"]
def check_3(function):
    truth, spread = torch.linspace(0, 1, 20, dtype=torch.float64), torch.linspace(0.5, 3, 20, dtype=torch.float64)
    for n, b in ((6, 4), (3, 10)):
        found = []
        for seed in range(1000):
            noise = torch.randn(n, 20, generator=rng(seed), dtype=torch.float64) * spread / b**0.5
            pair = function(truth + noise, b)
            if pair is None:
                return widgets.Verdict(False, "the function returns nothing yet")
            found.append([float(number) for number in pair])
        mean, error = torch.tensor(found).mean(0), torch.tensor(found).std(0) / 1000**0.5
        expected = torch.tensor([float(truth.square().sum()), float(spread.square().sum())])
        text = f"{n} shards of {b}: |G|² {mean[0]:.2f} (true {expected[0]:.2f})"
        text += f", trace {mean[1]:.1f} (true {expected[1]:.1f})"
        if not bool(((mean - expected).abs() < 4 * error).all()):
            return widgets.Verdict(False, text)
    return widgets.Verdict(True, text)


check_3(from_shards)


# %% tags=["solution"]
def from_shards_solution(gradients, b):
    n = len(gradients)
    return noise_scale({b: float(gradients.square().sum(1).mean()), n * b: float(gradients.mean(0).square().sum())})


solved = check_3(from_shards_solution)
assert solved, solved.message
plain = check_3(lambda gradients, b: (gradients.mean(0).square().sum(), b * gradients.var(0).sum()))  # |G|^2 is biased
assert not plain, plain.message
model = mt.load("image-label/digits").train()
for size, count in ((1, 768), (16, 48)):
    batches = data.batches(size, seed=2)
    shards = torch.stack([gradient(model, next(batches), rng(k)) for k in range(count)])
    print(f"shards of {size:2d}: trace {from_shards_solution(shards, size)[1]:.2f}")
solved

# %% [markdown]
# Little: on this model the noise is in the examples and in $\varepsilon$, not in which steps were drawn. (It costs
# nothing, and is unbiased, so it stays.)

# %% [markdown] tags=["slide"]
# ## What we learned, what comes next
#
# - A network knows at the bottom and costs at the top: parameters say little about the price. A training step is three
#   forward passes; a second modality of this kind adds less than one per cent.
# - Parts of a batch, on one device or on many, take the same step if each part brings its own noise. Around a ring each
#   device sends less than two gradients, however many there are.
# - Late in a training the gradient is nearly all noise: there larger batches, averages and a falling learning rate pay.
# - Products may be rounded to 16 bits; sums over time may not.
# - A checkpoint is complete when going on leaves no trace. That can be tested to the last bit, so it is.
# - A Fréchet distance of equal laws is not 0, by an amount that can be derived. Report $n$, compare equal $n$.
#
# | notebook | question |
# |---|---|
# | 01 one modality | what is a diffusion model? |
# | 03 the multi-modal bound | why is a loss per modality a likelihood bound? |
# | **11 scaling up** | you are here |
# | 12 imagenet | does it work on photographs? |
