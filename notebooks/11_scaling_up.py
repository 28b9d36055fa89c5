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
# # 11 · Scaling up: the ladder of speed and quality
#
# **After this notebook you can**
# - read a ladder of choices, one change a row, and say what each is worth in speed and in error;
# - count the operations and the bytes of a training step, and show that a batch in parts takes the same step;
# - say where 16 bits are enough, and start a run on one GPU or on many;
# - stop a run, go on, and make it longer, and prove that nothing was lost;
# - say how many evaluations a sample needs, and what two samples of one law look like to a Fréchet distance.
#
# **You need** notebook 01 (the loss, the average of the weights) and 03 (the loss of many modalities). **Time**: about
# 80 minutes to read, half a minute to run on a laptop CPU. No GPU, no download.

# %%
import json
import math
import tempfile
from collections import defaultdict
from pathlib import Path

import mtdiff as mt
from mtdiff import plots, widgets
from mtdiff.comparison import paired, tally
from mtdiff.datasets import digits
from mtdiff.experiments import image_label
from mtdiff.experiments.image_label import EXPERIMENT
from mtdiff.losses import Loss
from mtdiff.metrics import frechet_distance, kernel_distance
from mtdiff.speed import training_flops, training_memory
from mtdiff.stopping import OutOfTime
from mtdiff.training import TrainConfig, Trainer

import matplotlib.pyplot as plt
import torch
from torch import nn

# %%
torch.set_num_threads(1)
plots.style()


def rng(seed):
    """A generator, so that every cell draws the same numbers whenever it runs."""
    return torch.Generator().manual_seed(seed)


def result(name):
    """What was measured: a file of data/results."""
    return json.loads((Path("../data/results") / name).read_text())


# %% [markdown] tags=["slide"]
# ## 1 · The idea in a picture
#
# What makes a small multi-modal model good for the seconds it is given? Models of photographs and their labels at 32×32,
# each trained for the same time on one thread. Every row changes **one** thing of its parent and is compared with it,
# seed by seed. A change that makes a step slower has to earn that back, since it gets fewer steps.
#
# | row | what it changes |
# |---|---|
# | before → bell | noise levels by a bell over log-SNR, in place of all alike |
# | bell → held | a learning rate that is held and falls at the end, in place of half a cosine |
# | held → fast | a learning rate of 0.002, in place of 0.001 |
# | fast → wide, wider | channels (1, 2, 4, 4) or (1, 2, 3, 6) times 16, in place of (1, 2, 2, 2) |
# | wide → faster | a learning rate of 0.004 |
# | wide → lower bell, narrow bell | the bell's mean lower by one, its width smaller by a quarter |
# | wide → small batch, large batch | 16 or 64 examples a step, in place of 32 |
# | wide → muon | the optimiser Muon for matrices, in place of AdamW |
# | wide → short average, long average | weights averaged over 200 or 2,000 steps, in place of 1,000 |
# | wide → rarely in the sum, often given | the label less often in the aggregate, more often told |
# | wide → heavy label, light label | three times, or three tenths, of the label's loss weight |
# | wide → no image head | no loss of the image's head |

# %%
recipe = result("benchmark-recipe.json")
LOOKS = (-2, 0, 2, 4, 6)  # log-SNR
FIGURES = {  # {title: (unit, what a row is worth, in that unit)}
    "error of v": ("%, left is better", lambda row: 100 * math.log(sum(row[f"v at {k}"] for k in LOOKS))),
    "kernel distance": ("%, left is better", lambda row: 100 * math.log(row["kernel"])),
    "label head": ("points, right is better", lambda row: 100 * row["head"]),
    "steps in this time": ("%, right is faster", lambda row: 100 * math.log(row["steps"])),
}


def worth(row, figure):
    """A row less its parent, over the seeds that both have; None without a parent."""
    mine, parent = (recipe["rows"].get(name, {"seeds": {}})["seeds"] for name in (row, recipe["rows"][row]["parent"]))
    common = mine.keys() & parent.keys()
    return paired(*({s: FIGURES[figure][1](row[s]) for s in common} for row in (mine, parent))) if common else None


def depth(row):
    """How many changes lead to a row."""
    return 0 if row not in recipe["rows"] else 1 + depth(recipe["rows"][row]["parent"])


# %%
ladder = {figure: {row: worth(row, figure) for row in sorted(recipe["rows"], key=depth)} for figure in FIGURES}
ladder = {figure: {row: found for row, found in each.items() if found} for figure, each in ladder.items()}
named = {row: f"{recipe['rows'][row]['parent']} → {row}" for row in ladder["error of v"]}
figure, (axes,) = plots.panels(1, 4, (10, 1.3 + 0.3 * len(named)))
for axis, (title, (unit, _)) in zip(axes, FIGURES.items(), strict=True):
    plots.differences(axis, {named[row]: found for row, found in ladder[title].items()}, unit)
    axis.set_title(title, fontsize=10)
    axis.label_outer()
better = [found for found in ladder["error of v"].values() if found.mean < 0]
text = f"{len(better)} of {len(named)} changes lower the error of v, {sum(found.clear for found in better)} of them clearly"
figure.suptitle(text, fontsize=10)
plots.show(figure, "Dots around 0, a row for each change: error, kernel distance, accuracy of the label head, speed.")
print(tally(found for each in ladder.values() for found in each.values()), "·", f"{recipe['minutes']:g} minutes a training")

# %% [markdown]
# Differences of logarithms, which small percentages are. *Error of v* is what the loss measures, with the image alone in
# the chain, on held-out photographs, summed over five noise levels; the *kernel distance* is of drawn images, in the
# features of a network; the *label head* reads clean photographs. A full dot is clear by the rule of notebook 04, an open
# one is not. One seed has no bar, and then nothing is clear. Rows that start from *wide* are no ladder: each was tried by
# itself. What is not in the picture is not measured yet.
#
# Two cautions. What is best for minutes need not be best for hours: rates and widths move with the budget. And the three
# columns of quality do not agree by themselves; a change that helps the head may cost the image. The command that makes
# the file goes on where it stopped (`tests/benchmarks/recipe.py --help`).

# %% [markdown] tags=["slide"]
# ## 2 · What a step costs
#
# **Operations and numbers.** This is the backbone of the 64×64 models of photographs. Every layer works at some height,
# 64 at the top, 8 at the bottom. At each height we count the **parameters**, the **operations** an image takes (a
# multiplication and an addition are two), and the **numbers written**, which a training keeps until the backward pass.


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
# What a network *knows* sits at the bottom, what it *costs* sits at the top. That is why *wide* in the ladder widens the
# low levels: many parameters for few operations. Doubling height and width of the images multiplies time and memory by
# four and adds almost no parameters.
#
# The backward pass is two more products of the size of each forward one, for the gradients of the weights and of the input.
# So a training step costs **three** forward passes, but for the input gradient of the first layers, which nobody needs. By
# hand, and by the library, which follows the shapes through a copy without data. And what does *multi-modality* cost? The
# digits' model of notebook 00 against the same backbone with an image alone:

# %%
x = {"image": torch.zeros(2, 3, 64, 64)}


def square(net, batch, generator):
    """A loss of the bare backbone."""
    features, _ = net(batch["image"], torch.full((len(batch["image"]),), 0.5, device=batch["image"].device))
    return Loss(net.out(features).square().mean(), {})


def multitask(model, batch, generator):
    return mt.multitask_loss(model, batch, generator=generator)


needless = 2 * net.enter.weight.numel() * 64**2 + 2 * net.level.mlp[0].weight.numel()  # input gradients of first layers
by_library = training_flops(net, square, x)
print(f"a forward pass takes {forward / 1e9:.3f} GFLOP an image, a training step {by_library / 1e9:.3f}")
assert by_library == 3 * forward - needless
data = digits("train")
joint, alone = (image_label.build("digits", variant) for variant in ("fade-in", "image-only"))
costs = [training_flops(joint, multitask, data[:2]), training_flops(alone, multitask, {"image": data[:2]["image"]})]
print(f"image and label {costs[0] / 1e6:.2f} MFLOP, image alone {costs[1] / 1e6:.2f}: {costs[0] / costs[1] - 1:.1%} more")
assert costs[0] < 1.01 * costs[1]

# %% [markdown]
# The same in time, where normalisations and activations count, too: our U-Net against `UNet2DModel` of diffusers, 1 : 1 in
# depth, widths, attention and, up to 0.4%, parameters. They take turns, and neighbouring rounds are compared
# (`python tests/benchmarks/unet.py`).

# %%
speed = result("benchmark-unet-cpu.json")
names = {
    "training_step_against_diffusers": "training step / diffusers'",
    "sampling_step_against_diffusers": "sampling step / diffusers'",
    "training_with_encoders_and_heads_against_bare": "training: with label / bare",
    "sampling_with_encoders_and_heads_against_bare": "sampling: with label / bare",
}
figure, axis = plt.subplots(figsize=(7.5, 2.2), layout="constrained")
for k, key in enumerate(names):
    ratio, quartiles = speed[key]["ratio"], speed[key]["quartiles"]
    axis.errorbar(ratio, k, xerr=[[abs(ratio - q)] for q in quartiles], fmt="o", color="C0" if k < 2 else "C1", capsize=3)
axis.axvline(1, color="black", linewidth=0.8)
axis.set(yticks=range(4), yticklabels=names.values(), ylim=(3.6, -0.6), xlabel="ratio of times (left of 1: ours is faster)")
ratios = [speed[key]["ratio"] for key in names]
axis.set_title(f"Ours takes {ratios[0]:.2f} of the time; a label adds {ratios[2] - 1:.0%} to a training step", fontsize=10)
plots.show(figure, "Ratios of times with quartiles: two against diffusers, two of what a label costs.")

# %% [markdown]
# **Bytes.** A training holds, whatever the batch, **five numbers for each parameter**: the weight, its gradient, AdamW's
# two moments, and the averaged weight. And it keeps, for every example, what the backward pass will ask for.

# %%
state, each = training_memory(net, square, x)
assert state == 5 * 4 * sum(p.numel() for p in net.parameters())
print(f"our U-Net: {state / 2**20:.0f} MiB whatever the batch, and {each / 2**20:.0f} MiB for each example")
print(f"at a batch of 256 the state is {state / (state + 256 * each):.1%} of the memory")

# %% [markdown] tags=["slide"]
# **A batch in parts.** The loss is a mean over examples, so its gradient is the mean of the gradients of equal parts. A
# batch that does not fit is computed in `accumulate` parts one after the other, or in parts on several devices. Only the
# *noise* needs care: each part has a source of randomness of its own, so that it has the same noise wherever it is
# computed. (A head that is scored on some examples only needs one thing more, since a mean of means over different numbers
# is not the mean: the library divides by the number in all parts.) One step of the trainer against four gradients by hand:


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

# %% [markdown]
# With many devices every one computes its part, and all need the mean. Passed around a **ring** in pieces, this costs each
# of $n$ devices $2(n - 1)/n$ times the gradient, less than two gradients *however many devices there are* (Patarasuk and
# Yuan 2009). That is torch's `DistributedDataParallel`, which the trainer uses as it is. Ours are the parts' own noise, by
# which $n$ processes take *the steps of one* that accumulates over $n$ parts, and a checkpoint that either can continue.
#
# ## 3 · Sixteen bits
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
# ## 4 · A run on a GPU
#
# | choice | what it does | what it leaves alone |
# |---|---|---|
# | `--device cuda` | the packed set lies on the device as a whole, where it fits | the order of the batches |
# | `--precision bf16` | products in 16 bits | weights, moments and average in 32 (section 3) |
# | `--compile` | activations and normalisations are fused, after a minute or so | the operations |
# | `--accumulate 4` | a quarter of the activations in memory | the means over the batch (section 2) |
# | `torchrun --nproc-per-node 8` | eight devices, an eighth of the batch each | the steps: those of `--accumulate 8` |
#
# One thing needs no choice. A GPU works through a queue that the program fills, and `loss.item()` waits until the queue is
# empty. If a step takes $h$ ms to launch and $g \ge h$ to compute, $n$ steps take $h + ng$ where nobody asks, and $n(h + g)$
# where each step is asked. So in a step of the trainer nothing asks. An own loss that calls `float(...)` undoes that.
#
# ```
# mtdiff train imagenet --data imagenette64 --budget full --precision bf16 --compile
# torchrun --standalone --nproc-per-node 8 -m mtdiff train imagenet --data imagenette64 --budget full --precision bf16
# make gpu                 # speed beside diffusers', and the variants at 16x16: nine minutes of one H100 or H200
# make gpu GPU_PART=2      # photographs at 64x64, nine minutes more
# ```
#
# `make gpu` writes what it measured to `build/gpu`; what this course knows of GPUs stands in
# [measured](measured.md). **Share of peak** is the figure to watch: operations of a step times steps per second, over
# what a matrix product reaches on the same device. It says how much of what was paid for is used.
#
# **Before the purchase.** The board counts parameters, operations and kept bytes from shapes alone. Its speed assumes 400
# TFLOP/s of peak, of which a step reaches 30%: *assumptions*, to be replaced by what your device measures.

# %% tags=["nbval-ignore-output"]
widgets.plan_board()

# %%
plots.show(
    widgets.draw_plan(128, 64, 256, devices=8, bf16=True),
    "Memory of each of eight devices by part, for a network of base 128 at 64x64 and a batch of 256.",
)

# %% [markdown] tags=["slide"]
# ## 5 · Stopped, resumed, made longer
#
# A training can be stopped anywhere: by Ctrl-C, a time limit (`--max-minutes 10`) or a signal of the queue. The same
# command goes on. What has to be in a checkpoint so that going on leaves *no trace*? Weights, average, moments, the step,
# the state of every source of randomness, and the sums of the row that is being logged.
#
# And a run can be made **longer** by other `--steps`. The learning rate is held, and falls only over the last fifth, by
# $1 - \sqrt{\cdot}$ (Hägele et al. 2024). So as long as it has not begun to fall, a run of 8 steps and one of 12 are the
# same run. One training below is out of time after its first step of 8 and goes on to 12; the other was meant for 12:


# %%
def training(steps, folder=None):
    config = TrainConfig(steps=steps, batch_size=32, accumulate=2, warmup=2, log_every=4, save_every=100)
    return EXPERIMENT.trainer("digits", "fade-in", config, folder)


straight = training(12)
straight.run(progress=False)
with tempfile.TemporaryDirectory() as folder:
    try:
        training(8, folder).run(progress=False, max_minutes=0.0)
    except OutOfTime as stop:
        print(str(stop).replace(folder, "FOLDER"))
    resumed = training(12, folder)
    assert resumed.resume()
    print(f"goes on from step {resumed.step} to {resumed.config.steps}, made longer too late: {resumed.lengthened or 'no'}")
    resumed.run(progress=False)
    late = training(20, folder)
    late.resume()
    print("after its end it can be made longer, too, and that is noted: [step, steps] =", late.lengthened)
pairs = zip(straight.averaged().state_dict().values(), resumed.averaged().state_dict().values(), strict=True)
assert all(torch.equal(a, b) for a, b in pairs)
assert [row["total"] for row in straight.history] == [row["total"] for row in resumed.history]
assert resumed.lengthened == []
assert late.lengthened == [[12, 12]]
print("every weight of both averages is the same, to the last bit")


# %%
def rate(step, steps, warmup=100, decay=0.2):
    """The learning rate at a step, as a share of its peak."""
    return min(1, (step + 1) / warmup) * (1 - max(0, 1 - (1 - step / steps) / decay) ** 0.5)


assert math.isclose(straight.optimizer.param_groups[0]["lr"], straight.config.lr * rate(11, 12, warmup=2))
figure, axis = plt.subplots(figsize=(7, 2.4), layout="constrained")
for k, steps in enumerate((2000, 5000)):
    axis.plot([rate(step, steps) for step in range(steps)], color=f"C{k}", label=f"{steps:,} steps", linewidth=3 - 2 * k)
    axis.axvline(0.8 * steps, color=f"C{k}", linestyle=":", linewidth=1)
axis.set(xlabel="step", ylabel="learning rate / peak")
axis.set_title("Until the shorter run's rate falls (dotted), the two runs are one", fontsize=10)
axis.legend(frameon=False, fontsize=8)
plots.show(figure, "Learning rates of runs of 2,000 and 5,000 steps: both rise and are held, each falls in its last fifth.")

# %% [markdown]
# Later than that the rate jumps up again. What was learned is kept, but the run is no longer one that had so many steps from
# the start, so its card says where it was lengthened.

# %% [markdown] tags=["slide"]
# ## 6 · Fewer evaluations, and what a distance can tell
#
# The cheapest way to *sample* faster is a better solver. Digits by every solver at several numbers of evaluations of the
# network; the Fréchet distance of pixels to all real digits, each point several sets of pairs
# (`python tests/benchmarks/samplers.py`). What would a perfect model have? Not 0, for a reason that can be derived.
#
# Of two normal laws with means $\mu, \nu$ and covariances $A, B$ the distance is $\|\mu - \nu\|^2 + \operatorname{tr}(A +
# B - 2(AB)^{1/2})$. Moments come from samples, and two samples of *the same* law differ. Let both have $n$ rows and
# covariance $\Sigma$ with eigenvalues $\lambda_i$. The means differ by noise of variance $2\Sigma/n$. For the second term,
# expand around $\Sigma$, with $\Delta = A - B$ in the basis of eigenvectors:
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
# pairs of different points and has no such bias. On normal draws with the covariance of the digits' pixels:


# %%
def bias(eigenvalues, n, m):
    """The expected distance of two samples of n and m rows of one law; for n = m it is the formula above."""
    trace = eigenvalues.sum()
    pairs = (eigenvalues[:, None] * eigenvalues / (eigenvalues[:, None] + eigenvalues)).nan_to_num().sum()
    return float((1 / n + 1 / m) * trace + (1 / (n - 1) + 1 / (m - 1)) / 2 * (pairs + trace / 2))


covariance = data.values["image"].flatten(1).double().T.cov()
eigenvalues, axes_of = torch.linalg.eigh(covariance)
eigenvalues = eigenvalues.clamp(min=0)
root = axes_of * eigenvalues.sqrt()
sizes, found = (125, 250, 500, 1000), defaultdict(list)
for n in sizes:
    for seed in range(6):
        a, b = (torch.randn(n, 64, generator=rng(2 * seed + k), dtype=torch.float64) @ root.T for k in (0, 1))
        found["frechet"].append((n, frechet_distance(a, b)))
        found["kernel"].append((n, kernel_distance(a, b, subsets=1, size=n)["mean"]))
for n in sizes:
    mean = sum(value for size, value in found["frechet"] if size == n) / 6
    assert abs(mean / bias(eigenvalues, n, n) - 1) < 0.12

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
axes[0].loglog(sizes, [bias(eigenvalues, n, n) for n in sizes], color="black", label="formula")
axes[0].loglog(*zip(*found["frechet"], strict=True), "o", color="C0", markersize=4, label="normal draws")
axes[0].set(xlabel="rows of each sample", ylabel="Fréchet distance")
axes[0].set_title("Equal laws are not at distance 0", fontsize=10)
axes[0].legend(frameon=False, fontsize=8)
axes[1].semilogx(*zip(*found["kernel"], strict=True), "o", color="C2", markersize=4)
axes[1].axhline(0, color="black", linewidth=0.8)
axes[1].set(xlabel="rows of each sample", ylabel="kernel distance")
axes[1].set_title("The kernel distance scatters about 0", fontsize=10)
for axis in axes:
    axis.set_xticks(sizes, [str(n) for n in sizes])
    axis.minorticks_off()
plots.show(figure, "Fréchet distance of two samples of one law falls as 1/n, on the formula; the kernel one is around 0.")

# %% [markdown]
# So a distance is reported with the number of images, only equal numbers are compared, and a kernel distance stands
# beside it. FID's 2,048 features need tens of thousands of images for the same reason. Now the solvers, with the distance
# that equal laws would have (dotted; pixels are not normal, so it is a rough figure):

# %%
found = result("benchmark-samplers.json")
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for k, (name, row) in enumerate(found["samplers"].items()):
    for axis, what in zip(axes, ("frechet_pixels", "agreement"), strict=True):
        plots.error_bars(axis, map(int, row), [cell[what] for cell in row.values()], color=f"C{k}", label=name)
        axis.set(xscale="log", xlabel="evaluations of the network")
floor = bias(eigenvalues, found["n"] // found["parts"], len(digits("all")))
axes[0].axhline(floor, color="black", linestyle=":", linewidth=1, label="equal laws")
axes[0].set_ylabel("Fréchet distance")
axes[1].set_ylabel("agreement with a judge")
axes[0].legend(frameon=False, fontsize=8)
end = {name: row["250"]["frechet_pixels"] for name, row in found["samplers"].items()}
enough = {}  # the fewest evaluations that are level with 250 of the same solver
for name, row in found["samplers"].items():
    level = [k for k, c in row.items() if c["frechet_pixels"]["mean"] < end[name]["mean"] + 2 * end[name]["stderr"]]
    enough[name] = int(level[0])
text = ", ".join(f"{name} at {k}" for name, k in enough.items())
figure.suptitle(f"As good as it gets, within two errors: {text} evaluations", fontsize=10)
plots.show(figure, "Distance and agreement over evaluations for every solver, with standard errors.")

# %% [markdown]
# The title says from how many evaluations on each solver is as good as with 250. `heun` and `dpm++` are of second order and
# take larger steps for the same error; `ddpm` draws fresh noise at each step, which needs many to average out. What a
# Fréchet distance calls better a judge need not, so both are shown.
#
# ## 7 · Exercises
#
# **Exercise 1 (warm-up, easy, 10 minutes). What fits?**
# A device has `room` GiB. Return the largest batch of our U-Net that fits if it is
# computed in `accumulate` equal parts, one after the other, with activations in two bytes instead of four. (`state` and
# `each` are the bytes of section 2. A batch is divisible by `accumulate`.)

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
# The average of section 3 never moves, because rounding to the nearest
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
# **Exercise 3 (a small research question, hard, 30 minutes). How large a batch is worth its price?**
# The gradient of $B$ examples is the true gradient $G$ plus noise of variance $\operatorname{tr}\Sigma/B$:
#
# $$ \mathbb E\,\|g_B\|^2 = \|G\|^2 + \frac{\operatorname{tr}\Sigma}{B}, \qquad
#    B_\text{noise} = \frac{\operatorname{tr}\Sigma}{\|G\|^2} . $$
#
# Below $B_\text{noise}$ twice the batch is nearly worth twice the steps; above it, more examples buy little (McCandlish et
# al. 2018). Devices and parts give it away for free: each has a gradient of its own. Given the gradients of $n$ parts of
# $b$ examples, return unbiased estimates of $\|G\|^2$ and $\operatorname{tr}\Sigma$. Then: is $B_\text{noise}$ larger
# early in a training, or at its end?


# %% tags=["exercise"]
def from_shards(gradients, b):
    """Gradients (n, d) of shards of b examples -> estimates of |G|^2 and of tr(Sigma), two floats."""
    ...  # your code


# %% tags=["check"]
def check_3(function):
    truth, spread = torch.linspace(0, 1, 20, dtype=torch.float64), torch.linspace(0.5, 3, 20, dtype=torch.float64)
    for n, b in ((6, 4), (3, 10)):
        found = []
        for seed in range(400):
            noise = torch.randn(n, 20, generator=rng(seed), dtype=torch.float64) * spread / b**0.5
            pair = function(truth + noise, b)
            if pair is None:
                return widgets.Verdict(False, "the function returns nothing yet")
            found.append([float(number) for number in pair])
        mean, error = torch.tensor(found).mean(0), torch.tensor(found).std(0) / 400**0.5
        expected = torch.tensor([float(truth.square().sum()), float(spread.square().sum())])
        text = f"{n} shards of {b}: |G|² {mean[0]:.2f} (true {expected[0]:.2f})"
        text += f", trace {mean[1]:.1f} (true {expected[1]:.1f})"
        if not bool(((mean - expected).abs() < 4 * error).all()):
            return widgets.Verdict(False, text)
    return widgets.Verdict(True, text)


check_3(from_shards)


# %% tags=["solution"]
def from_shards_solution(gradients, b):
    one, all_ = gradients.square().sum(1).mean(), gradients.mean(0).square().sum()  # |g_b|^2 and |g_nb|^2
    n = len(gradients)
    return float(n * all_ - one) / (n - 1), float(one - all_) * n * b / (n - 1)


solved = check_3(from_shards_solution)
assert solved, solved.message
plain = check_3(lambda gradients, b: (gradients.mean(0).square().sum(), b * gradients.var(0).sum()))  # |G|^2 is biased
assert not plain, plain.message
begun = image_label.build("digits", "fade-in")
Trainer(begun, data, TrainConfig(steps=20, batch_size=64, warmup=5)).run(progress=False)
for name, model in (("after 20 steps", begun), ("shipped", mt.load("image-label/digits").train())):
    batches = data.batches(16, seed=2)
    G2, trace = from_shards_solution(torch.stack([gradient(model, next(batches), rng(k)) for k in range(32)]), 16)
    print(f"{name}: |G|² {G2:.4f}, tr Σ {trace:.1f}, B_noise {f'{trace / G2:,.0f}' if G2 > 0 else 'larger than all 512'}")
solved

# %% [markdown]
# Early the true gradient is plain and small batches are enough; late it drowns in noise. There larger batches, averaged
# weights and a falling learning rate pay, and all three are rows of the ladder.

# %% [markdown] tags=["slide"]
# ## What we learned, what comes next
#
# - One change a row, equal seconds, paired seeds: that is how a choice is priced.
# - A network knows at the bottom and costs at the top. A training step is three forward passes; a second modality of this
#   kind adds less than one per cent.
# - Parts of a batch, on one device or on many, take the same step if each part brings its own noise.
# - Products may be rounded to 16 bits; sums over time may not.
# - A checkpoint is complete when going on leaves no trace, and a learning rate that is held makes a run longer for free.
# - A Fréchet distance of equal laws is not 0, by an amount that can be derived. Report $n$, compare equal $n$.
#
# | notebook | question |
# |---|---|
# | 01 one modality | what is a diffusion model? |
# | 04 how tight | when is a difference clear? |
# | **11 scaling up** | you are here |
# | 12 imagenet | does it work on photographs? |
