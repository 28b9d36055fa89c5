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
# # 10 · Any to any: five modalities, one model
#
# **After this notebook you can**
# - write a sentence into a space of images, and prove which words can be read back from any noisy state;
# - say what a model has to be shown so that whatever is given, all the rest can be drawn;
# - score a drawn modality against a given one, with a judge that is judged, too;
# - test in which order modalities should be drawn, and what guidance costs where nothing was trained for it;
# - add a modality to a model that is trained, in about ten lines.
#
# **You need** notebooks 02 (codes, present sets), 05 (rules, guidance) and 08 (labels). **Time**: about 80 minutes to read,
# about a minute to run on a laptop CPU. No GPU, no download.
#
# That one set of weights should serve every direction is the promise of the paper's title (Chen et al. 2024,
# [arXiv:2407.17571](https://arxiv.org/abs/2407.17571)). UniDiffuser (Bao et al. 2023) does it for images and text with a
# time for each, 4M (Mizrahi et al. 2023) for many kinds of maps with masked tokens (both second-hand). The model, the
# derivations and all measurements here are ours ([measured.md](measured.md)).

# %%
import itertools
import json
import math
from pathlib import Path

import mtdiff as mt
from mtdiff import plots, widgets
from mtdiff.comparison import by_seed, mean_and_error, paired
from mtdiff.datasets.shapes import OBJECTS, VOCABULARY, read_caption
from mtdiff.experiments import any_to_any, report
from mtdiff.losses import coins

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown

torch.set_num_threads(1)
plots.style()


def rng(seed):
    """A generator, so that every cell draws the same numbers whenever it runs."""
    return torch.Generator().manual_seed(seed)


# %% [markdown] tags=["slide"]
# ## 1 · One set of weights
#
# A scene of our world is known in five ways: its *image*, a *caption* such as "grey small red circle", a *label* ("red
# circle"), its *segmentation* (the kind of shape at each pixel) and its *depth* (dark is near). One model, one call,
# `sample(model, n, given=...)`: a sentence is given and the rest is drawn, or an image, or a depth map, or nothing.

# %%
model = mt.load("any-to-any/shapes32")
kinds, test = model.modalities, any_to_any.world("shapes32", "test")
asked = ["a large cyan circle on brown", "a small magenta triangle on white", "a large yellow square on black"]
questions = {
    "three sentences are given": {"caption": kinds["caption"].tokens([read_caption(text) for text in asked])},
    "three images are given": {"image": test.values["image"][:3]},
    "one depth map is given": {"depth": test.values["depth"][5:6].expand(3, -1, -1, -1)},
    "nothing is given": {},
}
drawn = [mt.sample(model, 3, given=given, steps=50, generator=rng(4)) for given in questions.values()]


def pictures(values):
    """Images, depths and segments, as they can be shown side by side."""
    shown = {"image": values["image"], "depth": values["depth"].expand(-1, 3, -1, -1)}
    return {**shown, "segments": plots.coloured(values["segmentation"])}


def captions(values, kind):
    """Captions of one object in three short lines."""
    return [
        "\n".join([*words[:1], " ".join(words[1:3]), *words[3:]]) for words in map(str.split, kind.text(values["caption"]))
    ]


# %%
every = {name: torch.cat([values[name] for values in drawn]) for name in kinds}
titles = captions(every, kinds["caption"])
for k, question in enumerate(questions):
    titles[3 * k + 1] = f"{question.upper()}\n\n{titles[3 * k + 1]}"
hero = plots.picture_rows(pictures(every), titles)
plots.show(
    hero,
    "Twelve scenes, three each for given sentences, given images, a given depth map and nothing: image, depth, segments and "
    "the caption of each.",
)
print("labels drawn with them:", ", ".join(OBJECTS[k] for k in every["label"]))

# %% [markdown]
# For one depth map we got scenes of one shape and size, and of different colours: depth says nothing about colour, so colour
# is drawn. The same settings, trained on scenes of one to three objects, give a model that has to put each colour on its
# shape:

# %%
crowded = mt.load("any-to-any/scenes32")
asked = ["a red circle left of a blue square on white", "a yellow triangle on black"]
asked += ["a green square left of a red square on grey", "a cyan circle left of a red triangle on white"]
asked += ["a blue square left of a yellow circle on brown", "a red square on white"]
words = {"caption": crowded.modalities["caption"].tokens([read_caption(text) for text in asked])}
at_once = mt.sample(crowded, len(asked), given=words, steps=50, generator=rng(1))
in_turn = mt.sample(crowded, len(asked), given=words, chain=[("label", {"steps": 10})], steps=40, generator=rng(1))
rows = {"all at once": at_once["image"], "label first": in_turn["image"], "segments of it": pictures(in_turn)["segments"]}
titles = [text.removeprefix("a ").replace(" left of a ", "\n").replace(" on ", "\non ") for text in asked]
plots.show(
    plots.picture_rows(rows, titles, "Sentences about one object and two"),
    "Six scenes drawn for sentences about one object and two: all modalities at once, and the label before the rest.",
)

# %% [markdown]
# Most shapes are right, colours often not. (Words reach the network as one vector, in which a colour has to find its shape:
# a likely cause, not a tested one.) Of
# pictures that are drawn at once some stay grainy; section 5 counts them, and says why the label is drawn first here.

# %% [markdown] tags=["slide"]
# ## 2 · A sentence enters a space of images
#
# A caption is a sequence of words $x_1, \dots, x_L$ out of $V$. As with labels (notebook 08), a word is written into the
# space as a fixed picture, its *code*, and a caption is the sum of its words' codes:
#
# $$ E(x) = \sum_{l=1}^{L} c_{l,\,x_l} . $$
#
# "Red" has a code for each place $l$, so that order counts. Which codes? At each place the $V$ codes are the corners of a
# regular simplex, so that no word is nearer to one than to another, and the simplices of two places lie in orthogonal
# subspaces: $\langle c_{l,j}, c_{m,k}\rangle = 0$ for $l \ne m$. They need $L(V-1)$ dimensions of the space. Scaled to
# $\|c_{l,k}\|^2 = D/L$ with $D = \dim Z$, **every caption has the same length**, $\|E(x)\|^2 = D$: unit mean square, as all
# codes here.
#
# Now let a state be $z = a\,E(x) + b\,\eta$, $\eta \sim \mathcal N(0, I)$. By Bayes' rule
#
# $$ \log p(x \mid z) = \log p(x) - \frac{\|z - a E(x)\|^2}{2 b^2} + \text{const}
#    = \log p(x) + \frac{a}{b^2} \sum_l \langle z, c_{l,x_l} \rangle + \text{const}, $$
#
# because $\|E(x)\|^2$ is the same for all $x$. With independent words the right side is a sum over places: **the posterior
# of a whole sentence is a softmax at each place**, exact, and costs $L \cdot V$ inner products instead of $V^L$. Check, by
# enumerating all sentences of three words out of four, with words that are not equally frequent:

# %%
L, V, a, b = 3, 4, 0.5, 1.0
small = mt.Caption(["a", "b", "c", "d"], L, "simplex", tell="vector")
small.attach("caption", (2, 4, 4), mt.MLP((2, 4, 4)))
every = torch.tensor(list(itertools.product(range(V), repeat=L)))  # (64, 3)
frequent = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
codes = small.encode(every).double().flatten(1)  # (64, 32)
assert torch.allclose(codes.square().sum(1), torch.full((64,), 32.0).double(), atol=1e-4)
z = a * codes[37] + b * torch.randn(32, dtype=torch.float64, generator=rng(3))
prior = frequent[every].prod(1)
sentences = (prior.log() - (z - a * codes).square().sum(1) / (2 * b**2)).softmax(0)  # Bayes, sentence by sentence
table = small.codes.double().flatten(2)  # (L, V, 32)
places = (frequent.log() + a / b**2 * (table @ z)).softmax(1)  # (L, V): place by place
product = torch.stack([row[word] for row, word in zip(places, every.T, strict=True)]).prod(0)
print(f"largest difference between {len(every)} probabilities: {float((sentences - product).abs().max()):.1e}")
assert torch.allclose(sentences, product, atol=1e-6)

# %% [markdown]
# Real words depend on each other (a scene of one object says nothing about a second one), and the rest of the state is no
# white noise but an image. So this posterior is not the model's answer but its *first guess*: the library shows it to the
# network (`sense=True`, notebook 08), takes the expected code out of the state, and lets a head say the rest.
#
# When can a word be read? Two codes at one place are $\sqrt{2\,\tfrac{D}{L}\,\tfrac{V}{V-1}}$ apart. Seen through
# noise, the two are told apart like two points at a distance of $d = \tfrac{a}{b}\sqrt{2\,\tfrac{D}{L}\,\tfrac{V}{V-1}}$
# standard deviations. That grows with $\sqrt D$: the same word is written into thousands of numbers.

# %%
levels = torch.linspace(-12, 2, 15)
figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
for k, (size, length) in enumerate(((16, 4), (32, 4), (32, 10))):
    D, vocabulary = 4 * size**2, len(VOCABULARY)
    codes = mt.modalities.simplex_codes(vocabulary, (4, size, size), places=length).flatten(2)
    share = []
    for level in levels:
        word = torch.randint(vocabulary, (500, length), generator=rng(4))
        ratio = float(level / 2)  # a / b = exp(log-SNR / 2)
        x = codes[torch.arange(length), word].sum(1) * math.exp(ratio) + torch.randn(500, D, generator=rng(5))
        share.append(float((torch.einsum("nd,lvd->nlv", x, codes).argmax(2) == word).double().mean()))
    axis.plot(levels, share, marker="o", markersize=3, color=f"C{k}", label=f"{size}x{size}, {length} words")
axis.axvspan(-3, 6, color="0.93", zorder=0)
axis.set(xlabel="log-SNR of the caption (clean on the right)", ylabel="words read right", ylim=(0, 1.02))
axis.set_title("Words are read where an image is still noise (grey: where an image takes shape)", fontsize=10)
axis.legend(frameon=False, fontsize=8)
plots.show(figure, "Share of words read right over log-SNR for three spaces; all are near one at a log-SNR of minus three.")

# %% [markdown] tags=["slide"]
# ## 3 · What it has to be shown
#
# Five modalities make $2^5$ sets of given ones; whatever is not given is to be drawn. Less the set in which all are given,
# these are 31 questions, and a model for each would be 31 trainings. One model needs to meet each kind of question in
# training, no more: for every example and every modality we throw a coin. With chance 0.4 the modality is **given**: the
# backbone is told its value, and its code is taken out of the state. Else a second coin may make it **absent**, not in the
# state at all: an image in a tenth of the examples, words in six of ten. What is left is in the state, noised. Whatever was
# not given, absent or not, its head has to read; and a head that finds its own code in the state need not look at the
# image, so words are absent often.

# %%
config = any_to_any.config("shapes32", "shared", "full")
given = torch.stack(list(coins(config.give, 100_000, torch.device("cpu"), rng(6)).values()), 1)  # (100000, 5)
sets, counts = given.unique(dim=0, return_counts=True)
chance = 0.4 ** sets.sum(1) * 0.6 ** (5 - sets.sum(1))
rare, usual = (float(end) for end in chance.aminmax())
print(
    f"{len(sets)} sets are met; in a batch of 32 the rarest {32 * rare:.2f} times, the most frequent {32 * usual:.1f} times"
)
assert len(sets) == 2**5
assert torch.allclose(counts / 100_000, chance, atol=4 * 0.5 / 100_000**0.5)

# %% [markdown]
# Nothing else is new. The loss is that of notebook 03: the aggregate's error, and a read-out term for each modality that is
# not given. All five share the four channels of the space, three of the image and one of the depth: codes of
# segmentation, label and caption lie on all four, and fade in with the noise.

# %%
plots.show(
    plots.curve_panels(model.process, "The image is there throughout, codes fade in with the noise"),
    "Cumulative and injected weights of five modalities over the steps, and their signal-to-noise ratios.",
)
model

# %% [markdown] tags=["slide"]
# ## 4 · The whole matrix
#
# The model that ships saw 1.5 million examples in eight minutes of one H200, which it shared with fifteen other trainings
# (batches of 256; `mtdiff train any-to-any --budget full` takes two hours on a CPU thread for 0.6 million).
#
# What is a good answer to "draw the caption of this depth map"? Depth shows sizes and shapes, and no colours. So we ask of
# each pair only **what both say**: a judge, a small network that never saw a generator, reads size, colour, shape and
# background off what was drawn, and we count how often it is what was given. Captions need no judge, and a drawn label is
# compared with the objects of the scene. Judges can make errors, too; the last row is what they say of true values.

# %%
folder, names = Path("../data/results"), list(any_to_any.MODALITIES)
result = json.loads((folder / "any-to-any-shapes32-shared.json").read_text())
scores = result["variants"]["shared"]


def share_of(kinds):
    """The mean over what two modalities both say."""
    return sum(kind["mean"] for kind in kinds.values()) / len(kinds)


matrix = torch.full((6, 5), math.nan)
for row, one in enumerate(names):
    for column, other in enumerate(names):
        if one != other:
            matrix[row, column] = share_of(scores["given"][one][other])
for column, name in enumerate(names):
    if name in scores["judges"]:
        matrix[5, column] = share_of(scores["judges"][name])
pairs = matrix[:5][~matrix[:5].isnan()]

# %%
title = f"Of what both say, {pairs.mean():.1%} is right; in the worst pair {pairs.min():.1%}"
figure, ((axis,),) = plots.panels(1, 1, (6, 3.4), title)
axis.imshow(matrix, vmin=0.9, vmax=1, cmap="viridis", aspect="auto")
for row, column in itertools.product(range(6), range(5)):
    value, ink = matrix[row, column], "white" if matrix[row, column] < 0.95 else "black"
    axis.text(column, row, "" if value.isnan() else f"{value:.3f}", ha="center", va="center", color=ink)
axis.set_xticks(range(5), names, fontsize=9)
axis.set_yticks(range(6), [f"{name} given" for name in names] + ["the truth, judged"])
axis.tick_params(length=0)
plots.show(
    figure, "Agreement of each drawn modality with each given one, and of true values with themselves as judges read them."
)

# %% [markdown]
# Two things given say more than one. The same score of drawn images, by how many other modalities are given:

# %%
by_count = {count: [] for count in range(1, 5)}
for given, drawn_scores in scores["given"].items():
    if "image" in drawn_scores:
        by_count[given.count("+") + 1].append(share_of(drawn_scores["image"]))
for count, values in by_count.items():
    print(f"{count} given: {min(values):.3f} to {max(values):.3f}, in {len(values)} sets")

# %% [markdown] tags=["slide"]
# ## 5 · In which order?
#
# A chain that draws five things at once decides them side by side. It could also draw the caption first, and the rest for
# it: `sample(model, n, chain=[("caption", {"steps": 20})], steps=40)`. Both are right for exact estimates, because
# $p(c, x) = p(c)\,p(x \mid c)$. 4M (second-hand) draws its modalities in an order, coarse ones first. Does it help here?
#
# In crowded scenes something else decides. There the *label* is that of the nearest object. Section 2 says that it can be
# read, and so is decided, before the scene is. If the scene then turns out otherwise, a wrong code stands in the state;
# only its mean is taken out, and what does not fit the picture stays in it as grain. A label that is drawn first, in ten
# steps, is known from then on: its code is taken out exactly. So count grainy pictures, and labels that name no object of
# the caption:

# %%
orders = {data: json.loads((folder / f"benchmark-any-to-any-{data}.json").read_text()) for data in ("shapes32", "scenes32")}
title = "| | scenes of | words of the caption in the image | grainy | grainy, label wrong |"
lines = [title, "|---|---|---|---|---|"]
for data, found in orders.items():
    for order, row in found["orders"].items():
        share, wrong = sum(row["words"].values()) / len(row["words"]), row["wrong"]
        counted = f"{row['grainy']:.1%} | {wrong['grainy']} of {wrong['labels']}"
        lines.append(f"| {order} | {'one object' if data == 'shapes32' else 'one to three'} | {share:.3f} | {counted} |")
Markdown("\n".join([*lines, "", "200 images for as many held-out captions each, 60 evaluations."]))

# %% [markdown]
# Drawn at once, a picture whose label is wrong is grainy five times as often as another. With the label first none is. The
# *words* of the caption that are in the image are as many either way: order removes grain, and teaches no colours.
#
# And one can push. Nothing is given, image and caption are drawn together, and the image's estimate moves by
# $(g-1)(\hat x - \hat x')$, where $\hat x'$ is the estimate from a state in which the caption's code is weaker, or gone:
#
# $$ \hat x' = \mathbb E\big[x \mid z_t - l\,\sqrt{\bar\alpha_t}\,W_t\, \mathbb E[E(c) \mid z_t]\big],
#    \qquad 0 < l \le 1 . $$
#
# With $l = 1$, and the caption no longer in the state's list, this is section 5 of notebook 09. A model that was never
# trained with a modality absent might take $l < 1$ instead: a change of one weight, as if the caption were noisier. But no
# training example has a weak code beside an image of that step. All ways below cost the same 60 evaluations of the network;
# guided ones have $g = 2$, and *0.5 less* is $l = 0.5$.
# *Agreement*: how much of what the judge reads off the image the other four say, too. *Told apart*: how well a fresh
# classifier tells drawn scenes, with all they have, from true ones; 50% is not at all.

# %%
ways = orders["shapes32"]
agree = {way: sum(row[kind] for kind in names if kind in row) / 4 for way, row in ways["ways"].items()}
apart = {way: row["told apart"]["accuracy"] for way, row in ways["ways"].items()}
first, best = "at once", max(agree, key=agree.get)
title = f"At once {agree[first]:.1%} agree; the best of {len(agree)} ways, {best}, has {agree[best]:.1%}"
figure, ((left, right),) = plots.panels(1, 2, (8, 0.8 + 0.3 * len(agree)), title)
for axis, values, text in ((left, agree, "agreement (higher is better)"), (right, apart, "told apart (lower is better)")):
    axis.plot(list(values.values()), list(values), "o", color=plots.COLOURS["image"])
    axis.axvline(values[first], color="0.8", zorder=0)
    axis.set(xlabel=text)
    axis.invert_yaxis()
    axis.label_outer()
plots.show(figure, "Agreement of jointly drawn modalities, and how well they are told from data, for each way to draw.")

# %% [markdown]
# The grey line is drawing at once; standard errors are about 0.01 on the left and 0.02 on the right. Caption and
# segmentation first is best, clearly so on the right alone: an order from coarse to fine helps here, as 4M says. No push
# helps, and codes that are half as strong break the picture, as feared.
#
# A *given* caption can be pushed, too: that is classifier-free guidance (notebook 05). The caption's code is in the sum, so
# an estimate that is not given the caption would still find it in the state, and there would be little left to push away
# from. But the code is known. It is taken out of the state for both estimates, and the second one has not heard the caption
# at all. Each scale takes 60 evaluations, two for each step above scale 1. And what a head reads off an image can be read at
# several noise levels, and the log-probabilities be added. Does the sum know more than the best single look?

# %%
looks = ways["looks"]
figure, ((left, right),) = plots.panels(1, 2, (8, 2.6), "Guidance finds words of crowded scenes")
for data, title in (("shapes32", "one object"), ("scenes32", "one to three")):
    scales = {float(scale): sum(kinds.values()) / len(kinds) for scale, kinds in orders[data]["given"].items()}
    left.plot(list(scales), list(scales.values()), "o-", label=title)
left.set(xlabel="guidance scale", ylabel="words found in the image")
left.legend(frameon=False, fontsize=8)
for kind in ("caption", "label", "segmentation"):
    right.plot(list(looks), [row[kind] for row in looks.values()], "o", label=kind, color=f"C{names.index(kind)}")
right.set(xlabel="log-SNR of the looks", ylabel="read right")
right.legend(frameon=False, fontsize=8)
plots.show(figure, "Words found in images over the guidance scale; what heads read right at one noise level and at several.")

# %% [markdown]
# With one object there is nothing left to push: all words are there without, and a large scale loses some. In crowded
# scenes guidance 2 finds three more words in a hundred (± 1) at the same price, most of them sizes (exact figures:
# [measured.md](measured.md)). Sums of looks are level with the best single one for words, and half a hundredth ahead of the
# clean image for segments: fusing comes for free, and brings little.

# %% [markdown] tags=["slide"]
# ## 6 · What does the shared space buy?
#
# The claim needs controls, trained with the same scenes, trunk and 4,000 steps of 32 (16×16, three seeds): `own-channels`,
# where the segmentation has channels of its own and codes have constant weights; `unshared`, where *each* modality has
# channels and a noise level of its own, as in UniDiffuser; and a **specialist** for three of the pairs, which is given one
# modality always and learns to draw one other, nothing else. All numbers are shares of what two modalities both say, less
# those of `shared`; a filled dot is a clear difference.

# %%
variants = ("shared", "own-channels", "unshared", *(f"{a}-to-{b}" for b, a in any_to_any.SPECIALISTS))
controls = {name: json.loads((folder / f"any-to-any-shapes16-{name}.json").read_text()) for name in variants}


def against_shared(result):
    """{pair: its score minus that of the shared space}, where a variant has that pair."""
    scored = result["runs"][0]["metrics"]["matrix"]
    cells = [(one, other) for one, row in scored.items() for other in row]
    paths = {f"{one} to {other}": ("metrics", "matrix", one, other) for one, other in cells}
    return {pair: paired(by_seed(result, *path), by_seed(controls["shared"], *path)) for pair, path in paths.items()}


found = {name: against_shared(result) for name, result in controls.items() if name != "shared"}
mine = {pair: row for name, row in found.items() if "-to-" in name for pair, row in row.items()}
columns = {"own channels": found["own-channels"], "no shared space": found["unshared"], "specialists": mine}
plots.show(
    plots.difference_panels(columns, (), "Shares of what both say, minus those of the shared space"),
    "For each pair of modalities, the differences of three controls to the shared space, over three seeds.",
)
Markdown(report.findings(columns))

# %% [markdown]
# At equal price the shared space is ahead, 0.74 over all pairs against 0.61 and 0.55 ([measured.md](measured.md)): most
# where an *image* is drawn, not at all where words are read off maps. And a specialist is ahead of one model for all on the
# only question that it was ever asked. Three cautions. No model here is trained to the end: the 16×16 one that ships, with
# seven times as many examples, has 0.93 where `shared` has 0.74, so this says which one learns *faster*. The controls
# differ in more than the space (the end of the schedule, weights of codes; `unshared` shows the network no posteriors). And
# settings were chosen for `shared`.
#
# And what if modalities are *missing* in the training data, as they are in the world? Each was taken out of 50 and of 80%
# of the examples, by a coin of its own; the loss leaves out what is not there (notebook 03), and nothing else is changed.

# %%
shares = {0: controls["shared"]}
for percent in any_to_any.SHARES:
    shares[percent] = json.loads((folder / f"any-to-any-shapes16-missing-{percent}.json").read_text())


def drawn_well(result, kind):
    """How well a modality is drawn, mean over the other one that is given: a number for each seed."""
    rows = [by_seed(result, "metrics", "matrix", one, kind).values() for one in names if one != kind]
    return [sum(seed) / len(rows) for seed in zip(*rows, strict=True)]


figure, ((axis,),) = plots.panels(1, 1, (6, 2.8), "What is missing is missed: images first")
for k, kind in enumerate(names):
    means = [mean_and_error(drawn_well(result, kind)) for result in shares.values()]
    mean, error = zip(*((one["mean"], one["stderr"]) for one in means), strict=True)
    axis.errorbar(list(shares), mean, error, marker="o", capsize=2, label=kind, color=f"C{k}")
axis.set(xlabel="missing, in percent", ylabel="agreement with what is given", xticks=list(shares))
axis.legend(frameon=False, fontsize=8, title="drawn", title_fontsize=8)
plots.show(figure, "Agreement of each drawn modality, mean over the given ones, over the share of missing values.")

# %% [markdown]
# On average 0.74 become 0.60 and 0.40. With 80% missing, a pair is complete in $0.2^2 = 4\%$ of the examples.

# %% [markdown] tags=["slide"]
# ## 7 · A modality of your own, in ten lines
#
# Now somebody has *sketches* of a few scenes. Does the model have to be trained again? `extended` makes a copy with one
# more modality. Its weight in the sum is 0: a sketch is never in the state, which stays what the network was trained on. It
# can be told to the network, or a head reads it (from nothing: `start="nothing"`). So one can train only the new encoder
# and head, the trunk *frozen*, or go on with all of it. Here all of it, from 500 scenes, at 16×16, for some seconds:

# %%
trained = mt.load("any-to-any/shapes16")
shown = (*any_to_any.MODALITIES, "sketch")
scenes = any_to_any.scenes("shapes16", "train", 500, shown)
mine = trained.extended("sketch", mt.Image((1, 16, 16), channels=slice(3, 4), start="nothing", tell=True))
settings = trained.card["training"]
give, weights = {**settings["give"], "sketch": 0.5}, {**settings["weights"], "sketch": 1.0}
options = {"give": give, "drop": settings["drop"], "weights": weights, "levels": any_to_any.LEVELS}
mine = mt.Trainer(mine, scenes, mt.TrainConfig(150, batch_size=32, lr=1e-3, **options)).run(progress=False)

# %%
held = any_to_any.scenes("shapes16", "test", 10, shown)[:]
out = mt.sample(mine, 10, given={"image": held["image"]}, steps=12, generator=rng(8))
gray = {"its sketch": held["sketch"], "drawn sketch": out["sketch"]}
rows = {"image": held["image"], **{name: sketch.expand(-1, 3, -1, -1) for name, sketch in gray.items()}}
plots.show(
    plots.picture_rows(rows, title="Sketches, learned from 500 scenes in 150 steps"),
    "Ten held-out scenes, their sketches, and the sketches that are drawn for the images.",
)

# %% [markdown]
# How many sketches does it take, and does the trunk have to learn? Measured with 500 steps and three seeds: *sketch*, the
# SSIM of sketches drawn for images (grey: that of an all-black one); *image*, how much of size and shape is found in images
# drawn for sketches (guessing two sizes and three shapes, $(1/2 + 1/3)/2 = 0.42$); and *forgotten*, what images drawn for
# captions lose, which the model could do before.

# %%
added = json.loads((folder / "benchmark-add-modality.json").read_text())
figure, (axes,) = plots.panels(1, 3, (9, 2.6), "Sketches learned from few examples and many")
for frozen, name in ((True, "trunk frozen"), (False, "all trained")):
    for axis, kind in zip(axes, ("sketch", "image", "caption"), strict=True):
        rows = {}
        for row in added["rows"]:
            if row["frozen"] == frozen:
                lost = added["before"][str(row["seed"])] - row["caption"]
                rows.setdefault(row["examples"], []).append(lost if kind == "caption" else row[kind])
        means = [mean_and_error(values) for values in rows.values()]
        mean, error = zip(*((one["mean"], one["stderr"]) for one in means), strict=True)
        axis.errorbar(list(rows), mean, error, marker="o", capsize=2, label=name)
        axis.set(xscale="log", xlabel="examples with a sketch", title="forgotten" if kind == "caption" else kind)
for axis, nothing in zip(axes, (added["black"], (1 / 2 + 1 / 3) / 2, 0), strict=True):
    axis.axhline(nothing, color="0.8", zorder=0)
axes[0].legend(frameon=False, fontsize=8)
plots.show(figure, "Quality of sketches, of images drawn for sketches, and what is forgotten, over the number of examples.")

# %% [markdown]
# With all weights trained, 50 different scenes are enough to read sketches fairly (0.83), 500 to read them well, and more
# bring nothing in these steps (0.90); images for captions lose about three hundredths. With the trunk frozen sketches stay
# at 0.48, from however many scenes. Images *for* a sketch are hardly learned by anybody within 500 steps.

# %% [markdown] tags=["slide"]
# ## 8 · Play
#
# Tick what is given of a scene (with the control key, several), or type a sentence, and see the rest appear. **Look for**
# what is certain from the first step and what is decided late; give a depth and a caption that contradict each other (below:
# a square's depth and a circle's caption, and the caption wins); and paint two shapes for a model that has only seen one.
# (On a static page the controls do not move; one setting is below.)

# %% tags=["nbval-ignore-output"]
widgets.any_board(model, test)

# %%
plots.show(
    widgets.draw_any(model, test, given=("depth",), words="a small red circle on white", scene=3),
    "Image, depth and segments at five steps and drawn, for the depth of a scene and a caption of another.",
)

# %% [markdown]
# ## 9 · Exercises
#
# **Exercise 1 (warm-up, easy, 10 minutes). How often is a question asked?**
# Each of `n` modalities is given with chance $g$, by a coin of its own. Return the share of training examples in which
# exactly $k$ are given, for $k = 0, \dots, n-1$, as a list: the rest, in which all are given, asks for nothing.


# %% tags=["exercise"]
def asked_shares(n, g):
    """[share of examples in which exactly k of n modalities are given, for k in 0..n-1]."""
    ...  # your code


# %% tags=["check"]
def check_1(function):
    for n, g in ((5, 0.4), (2, 0.5), (3 + int(torch.randint(4, ())), 0.1 + 0.8 * float(torch.rand(())))):
        shares = function(n, g)
        if shares is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        if len(shares) != n:
            return widgets.Verdict(False, f"n = {n}: expected {n} shares, got {len(shares)}")
        every = torch.tensor(list(itertools.product([0, 1], repeat=n)))
        weight = g ** every.sum(1) * (1 - g) ** (n - every.sum(1))
        for k, mine in enumerate(shares):
            right = float(weight[every.sum(1) == k].sum())
            if not abs(float(mine) - right) < 1e-5:
                return widgets.Verdict(False, f"n = {n}, g = {g:.2f}, k = {k}: expected {right:.4f}, got {float(mine):.4f}")
    return widgets.Verdict(True, f"with five at 0.4, {sum(function(5, 0.4)):.1%} of the examples ask for something")


check_1(asked_shares)


# %% tags=["solution"]
def asked_shares_solution(n, g):
    return [math.comb(n, k) * g**k * (1 - g) ** (n - k) for k in range(n)]


solved, one_set = check_1(asked_shares_solution), check_1(lambda n, g: [g**k * (1 - g) ** (n - k) for k in range(n)])
assert solved, solved.message
assert not one_set, one_set.message
solved

# %% [markdown]
# **Exercise 2 (understand, medium, 15 minutes). Words in too small a space.**
# The codes of section 2 need $L(V-1)$ dimensions. A space of 16 dimensions is to hold captions of three words out of
# eight, so that random codes have to do (`mt.modalities.simplex_codes` falls back to them). Return the share of words that
# the place-by-place softmax reads right **without any noise**, over all captions. Which assumption of the derivation is
# gone?


# %% tags=["exercise"]
def read_without_noise(codes):
    """Share of words read right from E(x) itself; codes (L, V, D), over all V^L captions."""
    ...  # your code


# %% tags=["check"]
def check_2(function):
    for places, vocabulary, size, seed in ((3, 8, 16, 0), (3, 8, 16, int(torch.randint(99, ()))), (2, 4, 6, 0)):
        codes = mt.modalities.simplex_codes(vocabulary, (size,), seed, places)
        mine = function(codes)
        if mine is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        every = torch.cartesian_prod(*[torch.arange(vocabulary)] * places)
        written = codes[torch.arange(places), every].sum(1)
        right = float((torch.einsum("nd,lvd->nlv", written, codes).argmax(2) == every).double().mean())
        if not abs(float(mine) - right) < 1e-6:
            text = f"{places} words of {vocabulary} in {size} dimensions"
            return widgets.Verdict(False, f"{text}: expected {right:.3f}, got {float(mine):.3f}")
    first = function(mt.modalities.simplex_codes(8, (16,), 0, 3))
    return widgets.Verdict(True, f"in 16 dimensions {first:.1%} are read right; in the 21 that three simplices need, all")


check_2(read_without_noise)


# %% tags=["solution"]
# Codes of different places are no longer orthogonal, so ||E(x)|| is no longer the same for all x, nor the places separate.
def read_without_noise_solution(codes):
    places, vocabulary, _ = codes.shape
    every = torch.cartesian_prod(*[torch.arange(vocabulary)] * places)  # (V^L, L)
    z = sum(codes[place, every[:, place]] for place in range(places))
    return float((every == (z @ codes.mT).argmax(2).T).double().mean())


solved, sure = check_2(read_without_noise_solution), check_2(lambda codes: 1.0)
assert solved, solved.message
assert not sure, sure.message
solved

# %% [markdown]
# **Exercise 3 (a small research question, hard, 30 minutes). Does it know that it does not know?**
# A depth map shows sizes and shapes, and no colour. Draw 60 captions for the same held-out depth, and return the entropy, in
# bits, of the drawn *colours* and of the drawn *shapes* (indices 2 and 3 of a caption, counted among the draws). What would
# an ideal model have? (An object's colour is uniform over six, whatever the background. From 60 draws an entropy comes out
# too small, by about $5 / (120 \ln 2) = 0.06$ bits.)


# %% tags=["exercise"]
def entropies(depth):
    """Bits of the drawn (colours, shapes) for one depth map (1, 1, 32, 32), from 60 draws."""
    ...  # your code


# %% tags=["check"]
def bits(values):
    """Entropy of what was counted."""
    share = values.unique(return_counts=True)[1] / len(values)
    return -float((share * share.log2()).sum())


def check_3(function):
    states = []
    hook = model.backbone.register_forward_hook(lambda net, inputs, output: states.append(len(inputs[0])))
    found = [function(test.values["depth"][k : k + 1]) for k in (0, 1)]
    hook.remove()
    if any(pair is None for pair in found):
        return widgets.Verdict(False, "the function returns nothing yet")
    if sum(states) < 120:
        return widgets.Verdict(False, f"60 draws for each of two maps ask the network for more than {sum(states)} states")
    colours, shapes = zip(*((float(colour), float(shape)) for colour, shape in found), strict=True)
    if colours[0] == colours[1]:
        return widgets.Verdict(
            False, "two depth maps have the very same entropy: it has to be counted, among draws for each"
        )
    text = f"colours {min(colours):.2f} bits or more (six alike: {math.log2(6):.2f}), shapes {max(shapes):.2f} or less"
    return widgets.Verdict(min(colours) > 2.1 and max(colours) < 2.7 and max(shapes) < 0.8, text)


check_3(entropies)


# %% tags=["solution"]
def entropies_solution(depth):
    drawn = mt.sample(model, 60, given={"depth": depth.expand(60, -1, -1, -1)}, steps=20, generator=rng(11))["caption"]
    return bits(drawn[:, 2]), bits(drawn[:, 3])


solved, turned = check_3(entropies_solution), check_3(lambda depth: entropies_solution(depth)[::-1])
in_nats = check_3(lambda depth: [math.log(2) * value for value in entropies_solution(depth)])
assert solved, solved.message
assert not turned, turned.message
assert not in_nats, in_nats.message
assert not check_3(lambda depth: (2.5 + float(depth.mean()) / 100, 0.3)), "invented numbers pass"
solved

# %% [markdown] tags=["slide"]
# ## What we learned, what comes next
#
# - A sentence is a sum of codes; its exact posterior, seen through noise, is a softmax at each place.
# - One model answers all 31 questions if each kind of question was met in training: a coin for each modality says whether it
#   is given, another whether it is absent.
# - A drawn modality is scored by what it shares with what was given, and judges are judged on true values.
# - The order of drawing is free for exact estimates. For a trained model it counts: what is open too long does harm.
# - A modality that never enters the sum can be added to a trained model in ten lines; it is read soon.
#
# | notebook | question |
# |---|---|
# | 08 image and label | what does a label cost and buy? |
# | 09 image and representation | does a summary make images better? |
# | **10 any to any** | you are here |
# | 11 scaling up | what changes on a GPU? |
