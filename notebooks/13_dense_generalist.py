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
# # 13 · A dense generalist: four kinds of map, all drawn as pictures
#
# **After this notebook you can**
# - turn depth, segments and instances into pictures, and say how much noise they can be read through;
# - compute mean IoU, depth accuracy and panoptic quality by hand;
# - show what a latent space does to colour-coded labels, and where;
# - judge "one network for all tasks" against specialists at two kinds of equal compute;
# - say what the shared space of this course adds to such a network, and what it costs.
#
# **You need** notebooks 05 (rules for given values), 06 (conditions that are always given) and 10 (any to any).
# **Time**: about 80 minutes to read, one minute to run on a laptop CPU. No GPU, no download.
#
# The neighbour of this chapter is a dense vision generalist built on a diffusion model (Fan et al. 2024,
# [arXiv:2407.00503](https://arxiv.org/abs/2407.00503); second-hand: we know of it by reports). The model, the derivations
# and all measurements here are ours, on scenes of 16 by 16 pixels whose truth is known exactly.

# %%
import json
import math
import tempfile
from pathlib import Path

import mtdiff as mt
from mtdiff import plots, widgets
from mtdiff.baselines import mean_image
from mtdiff.baselines.autoencoder import fit_autoencoder
from mtdiff.comparison import by_seed, paired
from mtdiff.datasets import camvid, dense, shapes, unpalette
from mtdiff.dense_scores import depth_errors, mean_iou, panoptic_quality
from mtdiff.experiments import any_to_any, report
from mtdiff.experiments import dense as experiment

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import torch
from IPython.display import Markdown

torch.set_num_threads(1)
plots.style()


def rng(seed):
    """A generator, so that every cell draws the same numbers whenever it runs."""
    return torch.Generator().manual_seed(seed)


# %% [markdown] tags=["slide"]
# ## 1 · Every answer is a picture
#
# Whoever looks at a street wants to know how far things are (**depth**), of which kind each pixel is (**semantic
# segmentation**), where one car ends and the next begins (**instances**), and perhaps just a sharper view
# (**restoration**). These are *dense* tasks: the answer has a value at every pixel. They are usually solved by networks
# with a head for each. The idea of this chapter needs no heads: **write every answer as a picture with three channels, and
# let one image diffusion model draw it**, given the picture and the name of the task.

# %%
model = mt.load("dense/shapes16")
test = experiment.questions("shapes16", "test", 120).values
asked = {task: torch.arange(k, 120, 4) for k, task in enumerate(dense.TASKS)}  # scene i has task i modulo 4
answers = {task: experiment.solve(model, test["image"][of], task, generator=rng(0)) for task, of in asked.items()}


def read(task, picture):
    """A drawn picture as it is read: one grey, or the nearest colour of the task's code; a restored one as it is."""
    if task in ("segmentation", "instances"):
        k = 4 if task == "segmentation" else len(dense.CLASSES)
        return dense.coloured(dense.ids_of(picture, k), k)
    return picture.mean(1, keepdim=True).expand(-1, 3, -1, -1) if task == "depth" else picture


# %%
shown = {"given": [], "drawn": [], "as it is read": [], "truth": []}
for task, rows in asked.items():
    four = test["image"][rows], answers[task], read(task, answers[task]), test["target"][rows]
    for row, pictures in zip(shown.values(), four, strict=True):
        row.append(pictures[2:5])
titles = [task if k == 1 else "" for task in dense.TASKS for k in range(3)]
plots.show(
    plots.picture_rows({name: torch.cat(row) for name, row in shown.items()}, titles),
    "Three held-out scenes for each of four tasks: the given picture, the answer that the model drew, how it is read, and "
    "the truth. Depth is grey, segments have a colour for each kind of shape, instances one for each object.",
)

# %% [markdown]
# Twelve questions, one set of weights, one kind of call: `solve(model, pictures, "depth")`. The first row is all that the
# network is shown. Depth and segments are nearly right; instances are, where objects stand apart, and are mixed up where
# two touch. The model has 0.3M parameters and was trained for 1,800 steps of 32, five minutes of a CPU thread. A picture
# that is to be restored was blurred (by a Gaussian of one pixel) and made noisy (by a standard deviation of 0.2 on the
# scale from -1 to 1, cut off at black and white).
#
# ### What is in the chain
#
# Call $y$ the answer, $x$ the picture and $k$ the task. Only $y$ is noised; $x$ and $k$ are *conditions*, given at every
# step. In the language of notebook 02 their curves are zero, so the aggregate is $y$ alone,
#
# $$ m_t = 1 \cdot y + 0 \cdot E(x) + 0 \cdot E(k), \qquad
#    z_t = \sqrt{\bar\alpha_t}\, y + \sqrt{1 - \bar\alpha_t}\, \varepsilon, $$
#
# and the bound of notebook 03 is one on $\log p(y \mid x, k)$. It is an ordinary conditional diffusion, the one of notebook
# 06. (It is trained by a loss that weighs noise levels otherwise, and is no bound then.)

# %%
process, y = model.process, test["target"][:2]
assert process.entering == ("target",)
assert model.conditions == ("image", "task")
noise = torch.randn(y.shape, generator=rng(1))
for t in (50, 250, 450):
    abar = float(process.schedule.abar[t])
    z, _ = process.diffuse(model.encode({"target": y}), t, noise)
    assert torch.allclose(z.float(), abar**0.5 * y + (1 - abar) ** 0.5 * noise, atol=1e-5)
model

# %% [markdown] tags=["slide"]
# ## 2 · How a map is read off a picture
#
# ### Step 1: distances are grey
#
# A grey level $g \in [-1, 1]$ stands for the distance $3 + 2g$: 1 is the nearest, 5 the background. The model draws three
# channels, and their mean is read. If each channel is off by independent noise of standard deviation $\sigma$, the mean is
# off by $\sigma/\sqrt 3$, and the distance by $2\sigma/\sqrt 3$.
#
# ### Step 2: classes are colours
#
# A class is a colour $c_k \in [-1, 1]^3$, and a pixel $p$ is read as the class whose colour is nearest. Two colours at a
# distance $d$ are separated by a plane half way between them; noise crosses it if its part along the line between the two
# is larger than $d/2$:
#
# $$ P(\text{wrong}) = P\big(\sigma \xi > \tfrac{d}{2}\big) = Q\Big(\frac{d}{2\sigma}\Big), \qquad
#    Q(a) = \tfrac12 \operatorname{erfc}\big(a / \sqrt 2\big). $$
#
# We compare both formulas with drawn noise, within four standard errors:

# %%
n = 200_000
unit = torch.randn(n, 3, 1, 1, generator=rng(2), dtype=torch.float64)
sigma = 0.18
spread = (dense.distance(sigma * unit) - 3).std()  # about a grey of 0, a distance of 3
expected = 2 * sigma / 3**0.5
print(f"distance: spread {spread:.4f}, formula {expected:.4f}")
assert abs(spread - expected) < 4 * expected / (2 * n) ** 0.5
sigma, pair = 0.9, dense.colour_code(2).double()
d = float((pair[0] - pair[1]).norm())
wrong = (dense.ids_of(pair[1].reshape(1, 3, 1, 1) + sigma * unit, 2) == 0).double().mean()
q = 0.5 * math.erfc(d / (2 * sigma) / 2**0.5)
print(f"two classes: {wrong:.4f} of the pixels are read wrong, formula {q:.4f}")
assert abs(wrong - q) < 4 * (q * (1 - q) / n) ** 0.5

# %% [markdown]
# How far apart are the first $K$ colours of our code? Four are on every second corner of the cube, a regular tetrahedron
# with sides of $\sqrt 8$; all eight corners are 2 apart; with the centre, the faces and the edges of the cube there are 27
# colours, 1 apart. So in this code the noise that a map bears falls by a factor of almost three from 4 to 16 classes
# (exercise 2 does better with 14):

# %%
closest = {}
for k in (2, 4, 8, 16, 27):
    colours = dense.colour_code(k)
    closest[k] = float((torch.cdist(colours, colours) + 9 * torch.eye(k)).min())
print(", ".join(f"{k} classes: {d:.2f} apart" for k, d in closest.items()))
assert [round(d**2) for d in closest.values()] == [8, 8, 4, 1, 1]
levels = torch.linspace(0.1, 1.5, 15)
figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
for column, k in enumerate((2, 4, 8, 16)):
    ids = dense.class_maps("test", k, 60)
    picture, shares = dense.coloured(ids, k), []
    for level in levels:
        noisy = picture + level * torch.randn(picture.shape, generator=rng(3))
        shares.append(float((dense.ids_of(noisy, k) != ids).double().mean()))
    axis.plot(levels, shares, "o", markersize=3, color=f"C{column}", label=f"{k} classes")
    others = {2: 1, 4: 3}.get(k)  # so many colours are at the least distance from each
    if others:
        nearest = 0.5 * torch.erfc(closest[k] / (2 * levels) / 2**0.5)
        axis.plot(levels, others * nearest, color=f"C{column}", linewidth=0.8)
axis.set_ylim(0, 0.8)
axis.set(xlabel="noise of each channel (standard deviation)", ylabel="pixels read wrong")
axis.set_title("The more classes, the less noise their colours bear", fontsize=10)
axis.legend(frameon=False, fontsize=8)
plots.show(figure, "Share of pixels read wrong over the noise, for 2, 4, 8 and 16 classes, with lines by the formula.")

# %% [markdown]
# The lines are $Q(d/2\sigma)$, times the number of other colours at that distance: exact for two, an upper bound for four
# (two confusions can hold at once), and near for little noise.

# %% [markdown] tags=["slide"]
# ### Step 3: instances are colours, too
#
# A **panoptic** map says which object each pixel belongs to *and* of what kind it is. A scene has up to three objects of
# three kinds. With the background that makes ten colours: $1 + 3j + c$ is the $j$-th object from the left, of kind $c$
# (both counted from 0).
# "From the left" is a convention; without one, several ways of numbering would be right, and the picture would no longer
# say which.
#
# ## 3 · What an answer is worth
#
# For *restoration* we take the PSNR of notebook 07. For *segmentation* the usual score is the **mean IoU**: for each class,
# the pixels that prediction $P$ and truth $T$ share, over the pixels that either has, counted over the whole test set. For
# *depth* there is the root mean square error, and **delta accuracy**, the share of pixels at which each distance is less
# than 1.25 times the other. For *instances* there is **panoptic quality**. A predicted and a true segment of one kind match
# if their IoU is above one half. With TP matches, and FP predicted and FN true segments left over,
#
# $$ \mathrm{PQ} = \frac{\sum_{\text{matches}} \mathrm{IoU}}{\mathrm{TP} + \frac12 \mathrm{FP} + \frac12 \mathrm{FN}}
#    = \underbrace{\frac{\sum \mathrm{IoU}}{\mathrm{TP}}}_{\mathrm{SQ}:\ \text{how well cut}} \cdot
#      \underbrace{\frac{\mathrm{TP}}{\mathrm{TP} + \frac12 \mathrm{FP} + \frac12 \mathrm{FN}}}_{\mathrm{RQ}:\ \text{how
#      well found}} , $$
#
# for each kind of object, then the mean. (The background would be an easy fourth kind, and is left out.) Why one half? Two
# predicted segments $p, p'$ of a map share no pixel. If both had an IoU above one half with $t$, then $|p \cap t| > \frac12
# |t|$ and $|p' \cap t| > \frac12 |t|$, and $t$ would have more pixels than it has; the same holds the other way round. So a
# match is unique, and nobody has to choose. One row of ten pixels, by hand and by the library:

# %%
truth = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 2, 2, 3]]])
answer = torch.tensor([[[0, 0, 0, 0, 1, 1, 0, 2, 2, 2]]])  # one pixel of 1 is missing, 3 is taken for more of 2
kinds = (0, 1, 1, 2)  # ids 1 and 2 are two objects of one kind, 3 is of another
ious = {0: 4 / 5, 1: 2 / 3, 2: 2 / 3, 3: 0 / 1}
assert math.isclose(mean_iou(answer, truth, 4), sum(ious.values()) / 4)
quality = {0: ious[0] / 1, 1: (ious[1] + ious[2]) / 2, 2: 0 / (0 + 0.5)}  # kind 2: nothing found, one missed
found = panoptic_quality(answer, truth, kinds)
print({name: round(value, 4) for name, value in found.items()})
assert math.isclose(found["quality"], sum(quality.values()) / 3)
errors = depth_errors(torch.tensor([1.0, 1.2, 1.25, 4.0]), torch.tensor([1.0, 1.0, 1.0, 5.0]))
assert errors["delta"] == 0.5  # 1.25 and 5/4 are not below 1.25
assert math.isclose(errors["rmse"], ((0.2**2 + 0.25**2 + 1) / 4) ** 0.5, rel_tol=1e-6)

# %% [markdown] tags=["slide"]
# ## 4 · Why in pixels? What a latent space does to labels
#
# Most large image models draw in the *latent space* of an autoencoder, which has fewer numbers than the picture. The source
# reports an issue there: colour-coded label maps do not come back exactly, classes are confused (it speaks of
# quantisation), and so it works in pixel space. We can test that without any diffusion. A small convolutional autoencoder
# halves height and width and keeps three channels: a quarter of the numbers. It is trained on pictures of scenes; then
# *exact* maps go through it.

# %%
pictures = shapes("train", n=1500, modalities=("image",)).values["image"]
autoencoder = fit_autoencoder(pictures, steps=250, batch=24)
latent = autoencoder.encode(pictures[:1])
assert latent.numel() * 4 == pictures[:1].numel()
rows, columns = {"map": [], "round trip": [], "read wrong": []}, []
crowd = [k for k, ids in enumerate(dense.class_maps("test", 16, 20)) if len(ids.unique()) == 4][:3]
for k in (2, 4, 8, 16):
    ids = dense.class_maps("test", k, 20)[crowd]
    back = autoencoder(dense.coloured(ids, k))
    wrong = (dense.ids_of(back, k) != ids)[:, None]
    rows["map"].append(dense.coloured(ids, k))
    rows["round trip"].append(back.clamp(-1, 1))
    rows["read wrong"].append(wrong.expand(-1, 3, -1, -1).float() * 2 - 1)
    columns += ["", f"{k} classes", ""]
plots.show(
    plots.picture_rows({name: torch.cat(row) for name, row in rows.items()}, columns, "Labels die at boundaries first"),
    "Three maps each of 2, 4, 8 and 16 classes, their round trip through the autoencoder, and the pixels that are read "
    "wrong, white: outlines of objects for few classes, whole areas for many.",
)

# %% [markdown]
# Boundaries are lost first (pixels of which one of four neighbours is in another segment): a latent pixel that sees two
# classes blurs their edge, and among many colours what lies between two is a third. Is it bad luck of one short training?
# Here are three that are longer (600 steps), and a control that saw maps of 16 classes in training, too:

# %%
folder = Path("../data/results")
latent_space = json.loads((folder / "benchmark-latent-colours.json").read_text())
figure, axes = plt.subplots(1, 2, figsize=(7.5, 2.8), layout="constrained", sharey=True)
counts = [2, 4, 8, 16]
for axis, (trained, cells) in zip(axes, latent_space["trained on"].items(), strict=True):
    for column, where in enumerate(("boundary", "inside")):
        line = [cells["classes"][str(k)][where] for k in counts]
        plots.error_bars(axis, range(4), line, color=f"C{column}", label=where)
    axis.axhline(0, color="black", linewidth=1, label="pixel space")
    axis.set(xticks=range(4), xticklabels=counts, xlabel="classes")
    axis.set_title(f"autoencoder of {trained}", fontsize=10)
axes[0].set_ylabel("pixels read wrong")
axes[0].legend(frameon=False, fontsize=8)
plots.show(figure, "Share of wrong pixels at boundaries and inside over the number of classes, for two autoencoders.")
cells = latent_space["trained on"]["pictures"]["classes"]
assert cells["16"]["boundary"]["mean"] > cells["16"]["inside"]["mean"]
assert cells["16"]["boundary"]["mean"] > cells["2"]["boundary"]["mean"]
control = latent_space["trained on"]["pictures and maps"]["classes"]["16"]
assert control["inside"]["mean"] < 0.01 < 0.2 < control["boundary"]["mean"]

# %%
lines = ["| autoencoder of | PSNR of pictures | " + " | ".join(f"{k} classes" for k in counts) + " |", "|---" * 6 + "|"]
for trained, cells in latent_space["trained on"].items():
    cell = [cells["classes"][str(k)] for k in counts]
    text = " | ".join(f"{100 * c['boundary']['mean']:.1f}% / {100 * c['inside']['mean']:.1f}%" for c in cell)
    lines.append(f"| {trained} | {cells['psnr']['mean']:.1f} ± {cells['psnr']['stderr']:.1f} dB | {text} |")
Markdown("\n".join([*lines, "", "Wrong pixels at boundaries / inside, mean of three trainings. In pixel space: none."]))

# %% [markdown]
# With few classes only boundaries suffer; with sixteen, a latent space that has never seen a map confuses whole areas, too.
# The control says how much of that is the space and how much its training: trained on maps as well, the same autoencoder
# has next to no errors inside, at no loss for pictures, and still loses many pixels at boundaries, where one latent pixel
# has to say what four pixels are. Pixel space loses none; it has more numbers to draw,
# which at 16 by 16 pixels is nothing and at 512 is a lot. (Our autoencoder is tiny, and its latents are real numbers: it
# rounds nothing. Rounding itself would be harmless, as a picture file with its 256 levels shows:)

# %%
exact = dense.coloured(dense.class_maps("test", 16, 50), 16)
rounded = (127.5 * (exact + 1)).round() / 127.5 - 1
assert torch.equal(dense.ids_of(rounded, 16), dense.class_maps("test", 16, 50))
print("50 maps of 16 classes, rounded to 256 levels: every pixel is read right")

# %% [markdown] tags=["slide"]
# ## 5 · One generalist, four specialists
#
# Is one network that does everything as good as four that do one thing each? That depends on what is held equal, so here
# are both ways. All networks have the same 0.3M parameters, batches of 32 and the same 6,000 scenes. Is the generalist
# within 2 points of its specialists on every task? (A point is a hundredth of delta accuracy, mean IoU or panoptic quality.
# PSNR has no points; there we allow half a decibel.)
#
# - **Equal in all**: the four specialists *together* have as many steps as the generalist, a quarter each. Each has then
#   seen as many examples of its task as the generalist has.
# - **Equal for each**: every specialist has as many steps *by itself* as the generalist has for all four. The four together
#   cost four times as much.

# %%
NAMES = ["generalist", "tuned", *dense.TASKS, *(f"{task}-long" for task in dense.TASKS), "generator"]
results = {name: json.loads((folder / f"dense-shapes16-{name}.json").read_text()) for name in NAMES}
HEAD = {"depth": "delta", "segmentation": "miou", "instances": "quality", "restoration": "psnr"}
train, held = (experiment.questions("shapes16", split, n).values for split, n in (("train", 4000), ("test", 1600)))
unseen = {}  # the score of who answers without looking at the picture
for k, task in enumerate(dense.TASKS):
    target, known = held["target"][k::4], train["target"][k::4]
    guess = known.mean(0) if task == "depth" else read(task, known).mode(0).values
    answer = held["image"][k::4] if task == "restoration" else guess.expand_as(target)  # restored: the picture as it is
    unseen[task] = experiment.scores(task, answer, target)[HEAD[task]]
columns = {"nobody looked": None, "specialist, a quarter": "{}", "generalist": "generalist", "specialist, all": "{}-long"}
lines = [f"| task | score | {' | '.join(columns)} |", "|---" * 6 + "|"]
for task, key in HEAD.items():
    digits, cells = (1 if task == "restoration" else 3), []
    for name in columns.values():
        found = name and results[name.format(task)]["variants"][name.format(task)][task][key]
        cells.append(f"{found['mean']:.{digits}f} ± {found['stderr']:.{digits}f}" if found else f"{unseen[task]:.{digits}f}")
    lines.append(f"| {task} | {key} | {' | '.join(cells)} |")
Markdown("\n".join(lines))

# %% [markdown]
# *Nobody looked* is one fixed answer from the training set: the mean depth map, or background everywhere. For restoration
# it is the spoiled picture itself. What is not above that has learned nothing useful.

# %%
steps = {name: results[name]["runs"][0]["card"]["training"]["steps"] for name in NAMES}
assert sum(steps[task] for task in dense.TASKS) == steps["generalist"] == steps["depth-long"] == steps["tuned"]


def ahead(one, other, task):
    """How far one variant is ahead on a task, paired by seed: points (hundredths), for restoration dB."""
    key, scale = HEAD[task], 1 if task == "restoration" else 100
    each = (by_seed(results[name], "metrics", task, key) for name in (one, other))
    return paired(*({seed: scale * value for seed, value in values.items()} for values in each))


gaps = {
    f"{task} ({'dB' if task == 'restoration' else 'points'})": {
        "against a quarter of the steps": ahead("generalist", task, task),
        "against all the steps": ahead("generalist", f"{task}-long", task),
    }
    for task in dense.TASKS
}
plots.show(
    plots.difference_panels(gaps, title="The generalist, measured from a specialist"),
    "Paired differences of the generalist and each specialist on four tasks: ahead of those with a quarter of the steps, "
    "behind those with as many.",
)
Markdown(report.findings(gaps))

# %%
lines = [
    "| task | against a quarter of the steps | at most 2 points behind | against all the steps | at most 2 points behind |",
    "|---" * 5 + "|",
]
for task in dense.TASKS:
    allowed, unit = (0.5, "dB") if task == "restoration" else (2, "points")
    cells = []
    for other in (task, f"{task}-long"):
        gap = ahead("generalist", other, task)
        inside = "yes" if gap.mean > -allowed else f"no, by {-gap.mean - allowed:.1f} {unit}"
        cells += [f"{gap:.1f} {unit}", inside]
    lines.append(f"| {task} | {' | '.join(cells)} |")
Markdown(
    "\n".join(
        [
            *lines,
            "",
            "Positive: the generalist is ahead. A star marks a clear difference.",
        ]
    )
)

# %% [markdown]
# **Equal in all**, the generalist is ahead on every task, clearly so for segments (22 points) and instances (51 points,
# over a specialist that has barely begun). Tasks may help each other. Or it is the updates: the generalist saw as many
# examples of each task, in four times as many updates of a quarter of a batch each, and small batches learn faster at the
# beginning. A specialist with 1,800 updates of eight examples would tell the two apart; we have not trained one.
#
# **Equal for each**, it is within 2 points on *no* task: behind by four points in depth and in segments, by eighteen in
# instances, by three decibels in restoration. Nobody here is trained to the end, and what separates networks is how many
# steps a task had. Whether a larger generalist, trained for longer, closes the gap we do not know: one with as many steps
# as the four long specialists *together* has not been trained.

# %% [markdown] tags=["slide"]
# ## 6 · From a generator, or from nothing?
#
# The source fine-tunes a network that had learned to draw pictures. Here is the same at our size. A *generator* is trained
# first: the same network, which is given plain grey in place of a picture and a task that means nothing, and draws scenes.
# Then its weights begin the generalist's training (`mtdiff train dense --variant tuned --from ...`). All weights fit, since
# it is the same network; the entrance for the picture has never seen one. *Tuned* and *generalist* have as many steps on
# the four tasks, and tuned has the generator's on top.

# %%
gains = {
    f"{task} ({'dB' if task == 'restoration' else 'points'})": {
        "tuned, less the generalist": ahead("tuned", "generalist", task)
    }
    for task in dense.TASKS
}
plots.show(
    plots.difference_panels(gains, title="Begun with a generator, measured from begun with nothing"),
    "Paired differences of the tuned model and the generalist on four tasks.",
)
Markdown(report.findings(gains))

# %% [markdown]
# It did not help here. Tuned is behind by 2 points on depth (clear), 10 on segments and 21 on instances (in all three
# seeds, but not clear), and level in restoration, although it took twice the steps in all. We tried one recipe, with the
# generalist's own learning rate. Our guess is that what the generator learned is not what the tasks need: it never looked
# at a picture, and as its entrance only met grey, which is 0, what multiplies the picture got no gradient. Nothing here
# contradicts a gain of generators that were trained on far more than the tasks' own data.

# %% [markdown] tags=["slide"]
# ## 7 · How many evaluations does an answer need?
#
# A photograph has one depth map. If the picture says all of the answer, there is nothing to draw, and one evaluation at
# $t = T$ would do: there the state is noise, and the head returns the conditional mean $\mathbb E[y \mid x, k]$, an
# ordinary regression (notebook 06). Where the picture leaves something open, the mean is between the possibilities, and
# *between two colours* may lie a third class, as in section 4. A draw decides. So let us count, by the model that ships:


# %%
def headline(task, drawn):
    """The one score of a task."""
    return experiment.scores(task, drawn, test["target"][asked[task]])[HEAD[task]]


table = {}
for task, rows in asked.items():
    picture = test["image"][rows]
    label = torch.full((len(rows),), dense.TASKS.index(task))
    mean = mean_image(model, "target", {"image": picture, "task": label}, rng(4))
    table[task] = {"mean": headline(task, mean)}
    for count in (1, 4, 16):
        table[task][str(count)] = headline(task, experiment.solve(model, picture, task, count, generator=rng(4)))
lines = [
    "| task | score | " + " | ".join(f"{k} evaluation{'s' * (k > 1)}" for k in (1, 2, 5, 17)) + " |",
    "|---" * 6 + "|",
]
for task, row in table.items():
    digits = 1 if task == "restoration" else 3
    lines.append(f"| {task} | {HEAD[task]} | " + " | ".join(f"{value:.{digits}f}" for value in row.values()) + " |")
Markdown("\n".join([*lines, "", "Thirty held-out scenes for each task, one draw each. One evaluation is the mean alone."]))

# %% [markdown]
# The mean is level with short draws and ahead of 17 evaluations on every task: whoever is compared with one truth is paid
# for caution (notebook 07). In restoration 2 and 5 evaluations beat it. An exact mean would have the least square error, so
# the network's is not exact: training seldom met $t = T$. (Thirty scenes, one model: small gaps say nothing.) And the
# third colour? For few classes the geometry of section 2 forbids it. The four colours $c_k$ of the tetrahedron have
# $|c_k|^2 = 3$ and $c_j \cdot c_k = -1$. If the classes of a pixel have probabilities $p_k$, the mean of its colour has
# $c_j \cdot \sum_k p_k c_k = 4 p_j - 1$: *the colour nearest to the mean is that of the likeliest class*. With more colours
# that is lost, because others lie between two, or as near to their middle; for instances (ten colours) the mean still
# scored as well as draws did:

# %%
p = torch.rand(1000, 4, generator=rng(12), dtype=torch.float64)
p = p / p.sum(1, keepdim=True)
four = dense.colour_code(4).double()
assert torch.allclose((p @ four) @ four.T, 4 * p - 1)
for k in (4, 8, 10, 16):
    code = dense.colour_code(k)
    pairs = torch.combinations(torch.arange(k))
    away = torch.cdist((code[pairs[:, 0]] + code[pairs[:, 1]]) / 2, code)  # (pairs, k) from the middles
    own = away.gather(1, pairs[:, :1])
    third = away.scatter(1, pairs, float("inf")).min(1, keepdim=True).values
    nearer, level = int((third < own - 1e-6).sum()), int(((third - own).abs() < 1e-6).sum())
    print(f"{k:2d} colours, {len(pairs)} pairs: a third one is nearer to the middle of {nearer}, as near to that of {level}")
    assert bool(nearer + level) == (k > 4)
assert table["instances"]["mean"] > table["instances"]["16"]

# %% [markdown]
# With four colours a regression tells the doubt of each pixel ($p_j$ above), but not which pixels change together. Draws
# do. Eight answers to one question differ where the model is unsure:

# %%
rows = asked["instances"][:6]
many = torch.stack([experiment.solve(model, test["image"][rows], "instances", generator=rng(30 + k)) for k in range(8)])
said = torch.stack([dense.ids_of(each, 10) for each in many])  # (8, 6, 16, 16)
doubt = 1 - (said == said.mode(0).values).double().mean(0)
truth = dense.ids_of(test["target"][rows], 10)
right = said.mode(0).values == truth
for name, here in {"background": truth == 0, "objects": truth > 0}.items():
    sure, unsure = here & (doubt < 0.5), here & (doubt >= 0.5)
    print(f"{name}: right where most agree {right[sure].double().mean():.3f} ({int(sure.sum())} pixels), "
          f"elsewhere {right[unsure].double().mean():.3f} ({int(unsure.sum())})")  # fmt: skip
shown = {"given": test["image"][rows], "one answer": read("instances", many[0]), "another": read("instances", many[1])}
shown["truth"] = test["target"][rows]
shown["doubt"] = (2 * doubt.float() - 1)[:, None].expand(-1, 3, -1, -1)
plots.show(
    plots.picture_rows(shown, title="Where answers differ, they are more often wrong"),
    "Six scenes, two of eight drawn instance maps of each, the truth, and how many of the eight disagree.",
)

# %% [markdown] tags=["slide"]
# ## 8 · The same tasks in the shared space
#
# Notebook 10's model has image, segmentation and depth as *modalities* of one space. It answers the same questions, and
# others as well. Its scenes have one object. We ask both about the same 60 held-out ones:

# %%
shared = mt.load("any-to-any/shapes16")
world = any_to_any.scenes("shapes16", "test", 60).values
by_shared = mt.sample(shared, 60, given={"image": world["image"]}, steps=25, generator=rng(5))
by_dense = {task: experiment.solve(model, world["image"], task, generator=rng(5)) for task in dense.TASKS[:2]}
far, near = dense.distance(by_dense["depth"]), dense.distance(by_shared["depth"].expand(-1, 3, -1, -1))
true_distance = dense.distance(world["depth"].expand(-1, 3, -1, -1))
lines = ["| model | trained | evaluations | mean IoU | depth RMSE | delta |", "|---" * 6 + "|"]
for name, net, count, segments, distances in (
    ("this chapter's", model, f"{experiment.STEPS + 1} for each task", unpalette(by_dense["segmentation"]), far),
    ("any to any", shared, "26 for both", by_shared["segmentation"], near),
):
    iou, errors = mean_iou(segments, world["segmentation"], 4), depth_errors(distances, true_distance)
    run, scored = net.card["training"], f"{iou:.3f} | {errors['rmse']:.2f} | {errors['delta']:.3f}"
    lines.append(f"| {name} | {run.get('taken', run['steps']):,} steps of {run['batch_size']} | {count} | {scored} |")
Markdown("\n".join(lines))

# %% [markdown]
# The two were not trained alike: this chapter's model (0.3M parameters, the other 0.4M) has seen 16 times fewer examples,
# all of them of these questions, and is ahead; the other learned 31 kinds of questions, and stopped by the clock. It is no
# contest of recipes. It shows that the same tasks fit into
# either, and what each can do besides. The shared space draws all modalities *together*, so segments and depth of one draw
# belong to each other, and it goes **backwards**: a picture for a map, which no conditional model of this chapter can
# draw, because its picture is never in the chain. As a check by somebody else, the generalist reads the pictures that the
# other model drew:

# %%
joint = mt.sample(shared, 16, steps=25, generator=rng(6))
maps = world["segmentation"][:16]
painted = mt.sample(shared, 16, given={"segmentation": maps}, steps=25, generator=rng(7))["image"]
agree = {}
for name, pictures_of, segments in (("drawn together", joint["image"], joint["segmentation"]), ("for a map", painted, maps)):
    reading = unpalette(experiment.solve(model, pictures_of.clamp(-1, 1), "segmentation", generator=rng(8)))
    agree[name] = mean_iou(reading, segments, 4), mean_iou(reading, segments.roll(1, 0), 4)
for name, (own, others) in agree.items():
    print(f"pictures {name}: mean IoU {own:.2f} with their own segments, {others:.2f} with those of another draw")
    assert own > others
shown = {"image": joint["image"], "segments": plots.coloured(joint["segmentation"]), "depth": joint["depth"]}
shown = {name: value.expand(-1, 3, -1, -1)[:6] for name, value in shown.items()}
shown |= {"a map": plots.coloured(maps)[:6], "a picture for it": painted[:6]}
plots.show(
    plots.picture_rows(shown, title="Drawn together, and backwards: what the shared space adds"),
    "Six joint draws of image, segments and depth, and six pictures drawn for given segment maps, of the same shapes.",
)

# %% [markdown]
# Own maps fit far better than others', but less well than those of real pictures (above); errors of either model count.
# The cost: the shared model has to answer whatever of its five modalities is given ($2^5 - 1$ cases in place
# of four questions); each of its chains draws all of them; and each needs a code and a head. A fifth task costs the
# generalist a name, a palette and training; it costs the shared space a modality (`model.extended`, notebook 10).

# %% [markdown] tags=["slide"]
# ## 9 · From toy scenes to streets
#
# CamVid is a small data set of street scenes with a class at every pixel. `camvid(folder, split, size)` reads its usual
# layout: `train/` with pictures, `trainannot/` with maps of the same names, and so on. Pictures are shrunk by averaging
# and maps by taking the nearest pixel, so that no class arises between two others. We make a folder of that layout here.
# If you have the real one, name it in the environment variable `MTDIFF_CAMVID`, and the test suite reads it, too.

# %%
with tempfile.TemporaryDirectory() as place:
    for part in ("train", "trainannot"):
        (Path(place) / part).mkdir()
    label = np.repeat(np.arange(12, dtype=np.uint8), 8).reshape(1, 96).repeat(48, 0)
    PIL.Image.fromarray(np.stack([20 * label] * 3, -1)).save(Path(place, "train", "0001.png"))
    PIL.Image.fromarray(label).save(Path(place, "trainannot", "0001.png"))
    street = camvid.camvid(place, "train", size=(24, 48))
    print(street)
    try:
        camvid.camvid(place, "val")
    except FileNotFoundError as error:
        print(str(error).replace(place, "FOLDER"))
assert street.values["segmentation"].unique().tolist() == list(range(12))
streets = dense.coloured(street.values["segmentation"], 12)  # targets of a dense model, ready to be drawn
assert torch.equal(dense.ids_of(streets, 12), street.values["segmentation"])

# %% [markdown]
# Twelve ids are twelve colours; id 11 is *unlabelled*, and must be left out of every score. CamVid has segments only,
# neither depth nor instances. *We have not trained on it*: on this budget it would say little, and nothing of its pictures
# may ship with a course.
#
# | what the source says (second-hand) | what we measured, at 16 by 16 pixels |
# |---|---|
# | dense tasks of four kinds are conditional image generation, by one told network | true: section 1; how well, section 5 |
# | label maps as colours suffer in latent space (quantisation): use pixels | true: section 4, at boundaries and for many |
# | it is fine-tuned from a pre-trained generator | no gain at our size, a clear loss for depth: section 6 |

# %% [markdown]
# ## 10 · Exercises
#
# **Exercise 1 (warm-up, easy, 10 minutes). Panoptic quality from its parts.**
# Of one kind you know the IoUs of all matches, how many segments were predicted and how many there are in truth. Return
# PQ, SQ and RQ. *Hint*: what is $\mathrm{TP} + \frac12 \mathrm{FP} + \frac12 \mathrm{FN}$ in terms of the two counts?


# %% tags=["exercise"]
def parts_of_quality(ious, predicted, true):
    """(PQ, SQ, RQ) from IoUs of the matches, numbers of predicted and of true segments; at least one match."""
    ...  # your code


# %% tags=["check"]
def check_1(function):
    for seed in range(4):
        ids = torch.randint(4, (1, 3, 5), generator=rng(seed)).repeat_interleave(2, 1).repeat_interleave(2, 2)
        other = ids.clone()
        other[ids == 3] = 2 if seed % 2 else 3  # sometimes fewer are predicted than there are
        other[:, :, : 1 + seed] = torch.randint(4, (1, 6, 1 + seed), generator=rng(9 + seed))
        sets = [[other == k for k in range(4) if (other == k).any()], [ids == k for k in range(4) if (ids == k).any()]]
        ious = [float((a & b).sum() / (a | b).sum()) for a in sets[0] for b in sets[1]]
        answer = function([iou for iou in ious if iou > 0.5], len(sets[0]), len(sets[1]))
        if answer is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        want = list(panoptic_quality(other, ids, (0, 0, 0, 0)).values())
        if len(answer) != 3 or any(abs(a - b) > 1e-6 for a, b in zip(answer, want, strict=True)):
            return widgets.Verdict(False, f"expected {[round(x, 3) for x in want]}, got {[round(x, 3) for x in answer]}")
    return widgets.Verdict(True, "as the library, on four maps whose segments are one kind")


check_1(parts_of_quality)


# %% tags=["solution"]
def parts_of_quality_solution(ious, predicted, true):
    segmentation, recognition = sum(ious) / len(ious), 2 * len(ious) / (predicted + true)
    return segmentation * recognition, segmentation, recognition


solved = check_1(parts_of_quality_solution)
one_sided = check_1(lambda ious, predicted, true: (sum(ious) / true, sum(ious) / len(ious), len(ious) / true))
assert solved, solved.message
assert not one_sided, one_sided.message
solved

# %% [markdown]
# **Exercise 2 (improve it, medium, 15 minutes). Fourteen colours, farther apart.**
# Our code grows by one colour at a time, so that a map looks alike however many classes there are. That has a price: of its
# first 14 colours some are only 1 apart. Find 14 colours in the cube $[-1, 1]^3$ that are at least $\sqrt 2$ apart. *Hint*:
# which one of the 27 points of section 2 is in the way?


# %% tags=["exercise"]
def fourteen():
    """Colours (14, 3) in [-1, 1], at least sqrt(2) apart."""
    ...  # your code


# %% tags=["check"]
def check_2(function):
    colours = function()
    if colours is None:
        return widgets.Verdict(False, "the function returns nothing yet")
    colours = torch.as_tensor(colours).double()
    if colours.shape != (14, 3) or float(colours.abs().max()) > 1:
        return widgets.Verdict(False, f"expected 14 colours in [-1, 1]^3, got {tuple(colours.shape)}")
    apart = float((torch.cdist(colours, colours) + 9 * torch.eye(14)).min())
    shares = []
    for code in (colours, dense.colour_code(14).double()):
        ids = torch.randint(14, (20_000,), generator=rng(10))
        noisy = code[ids] + 0.35 * torch.randn(20_000, 3, generator=rng(11), dtype=torch.float64)
        shares.append(float((torch.cdist(noisy, code).argmin(1) != ids).double().mean()))
    text = f"the least distance is {apart:.2f}; at a noise of 0.35, {shares[0]:.1%} are read wrong, by ours {shares[1]:.1%}"
    return widgets.Verdict(apart > 2**0.5 - 1e-6, text)


check_2(fourteen)


# %% tags=["solution"]
def fourteen_solution():
    code = dense.colour_code(15)
    return code[code.abs().sum(1) > 0]  # without the centre: corners and faces


solved, ours = check_2(fourteen_solution), check_2(lambda: dense.colour_code(14))
assert solved, solved.message
assert not ours, ours.message
solved

# %% [markdown]
# **Exercise 3 (a small research question, medium, 20 minutes). Do three heads see more than one?**
# Draw several answers to the segmentation task and let them vote: at each pixel the class that most of them say. Draw
# number $k$ takes `generator=rng(20 + k)`; where two classes are level, take the smaller id (`torch.mode` does). Return the
# voted maps. Is the vote better than one draw? And than the mean of section 7, which costs one evaluation? *Further*: the
# same for instances, where the mean of two colours may be a third class.


# %% tags=["exercise"]
def voted(model, image, draws):
    """Segments (N, 16, 16) by the vote of so many drawn answers."""
    ...  # your code


# %% tags=["check"]
def check_3(function):
    rows = asked["segmentation"][:20]
    picture, truth = test["image"][rows], unpalette(test["target"][rows])
    maps = {draws: function(model, picture, draws) for draws in (1, 3)}
    if any(each is None for each in maps.values()):
        return widgets.Verdict(False, "the function returns nothing yet")
    if any(each.shape != truth.shape for each in maps.values()):
        return widgets.Verdict(False, f"expected maps {tuple(truth.shape)}, got {[tuple(m.shape) for m in maps.values()]}")
    for draws, each in maps.items():
        said = [unpalette(experiment.solve(model, picture, "segmentation", generator=rng(20 + k))) for k in range(draws)]
        share = float((each == torch.stack(said).mode(0).values).double().mean())
        if share < 0.999:
            return widgets.Verdict(False, f"of {draws} draws, {1 - share:.1%} of the pixels are not what most say")
    one, vote = (mean_iou(each, truth, 4) for each in maps.values())
    return widgets.Verdict(True, f"mean IoU {one:.3f} for one draw, {vote:.3f} for the vote of three")


check_3(voted)


# %% tags=["solution"]
def voted_solution(model, image, draws):
    said = [unpalette(experiment.solve(model, image, "segmentation", generator=rng(20 + k))) for k in range(draws)]
    return torch.stack(said).mode(0).values


solved = check_3(voted_solution)
first = check_3(lambda model, image, draws: voted_solution(model, image, 1))
assert solved, solved.message
assert not first, first.message
solved

# %% [markdown] tags=["slide"]
# ## What we learned, what comes next
#
# - A dense answer is a picture, if it can be read back: many classes lie close together, and bear little noise.
# - Mean IoU asks for pixels, panoptic quality for objects; a match above one half is unique.
# - A latent space loses labels at boundaries, more with more classes; an autoencoder that has seen maps loses fewer.
# - "As good as specialists" needs two comparisons. Equal in all, one network for four tasks is ahead; equal for each, it is
#   behind. The generalist, less a specialist:

# %%
texts = []
for task in dense.TASKS:
    quarter, whole = (ahead("generalist", other, task) for other in (task, f"{task}-long"))
    unit = "dB" if task == "restoration" else "points"
    texts.append(f"- {task}: {quarter:.1f} {unit} against a quarter of the steps, {whole:.1f} against all of them.")
Markdown("\n".join(texts))

# %% [markdown]
# | notebook | question |
# |---|---|
# | 06 image transition | what if the given modality is an image? |
# | 10 any to any | do five modalities draw each other in one model? |
# | 12 ImageNet | do drawing, naming and filling work on photographs? |
# | **13 dense generalist** | you are here |
# | 16 your own | how do my data, my modality and my network get in? |
