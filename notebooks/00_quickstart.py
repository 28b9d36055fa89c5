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
# # 00 · Quickstart: one model for pictures *and* their labels
#
# **After this notebook you can**
# - say in two sentences, and draw, what MT-Diffusion proposes;
# - use one trained model in three ways: draw (image, label) pairs, draw a digit you name, name a digit you show;
# - train a small one yourself, and read its loss curves.
#
# **You need** Python, and to know what a Gaussian and a conditional probability are. You need not know diffusion
# models. **Time**: twenty minutes to read and 35 for the exercises; a minute or two to run on a laptop CPU. No GPU, no
# download.
#
# **What is it for?** Data often come in several kinds at once: images with labels, with captions, with masks, and some
# of them missing. One can train one model for each question, such as "draw an image for this label" or "name this
# image". MT-Diffusion trains *one* for all of them.
#
# The paper is Chen et al., *Diffusion Models for Multi-Modal Generative Modeling*, ICLR 2024
# ([arXiv:2407.17571](https://arxiv.org/abs/2407.17571)). We know its abstract and its central formula, and the rest
# from accounts of others; [walkthrough.md](walkthrough.md) says of each claim which it is. This course derives the
# method, checks every step by number, and implements it in a small library, `mtdiff`. The equations stand on one page,
# [theory.md](theory.md).

# %%
import mtdiff as mt
from mtdiff import datasets, experiments, judges, plots, probes, widgets

import matplotlib.pyplot as plt
import torch

torch.set_num_threads(1)  # on a small shared CPU two threads are slower than one
plots.style()
train, test = datasets.digits("train"), datasets.digits("test")
print(f"{len(train)} handwritten digits to train on, {len(test)} held out")
print("each example:", {name: tuple(value.shape[1:]) for name, value in train.values.items()})

# %% [markdown] tags=["slide"]
# ## 1 · Codes of all modalities are added up, and one noise is added to the sum
#
# A diffusion model destroys data with noise, little by little, and trains a network to undo each step. Run backwards
# from pure noise, the network draws new data. Usually that is done for *one* kind of data. MT-Diffusion does it for
# several at once:

# %%
figure, axis = plt.subplots(figsize=(8.5, 2.3), layout="constrained")
boxes = {
    "image": (0, 2, "image"), "label": (0, 0, "label"), "E image": (1.6, 2, "encoder"), "E label": (1.6, 0, "encoder"),
    "sum": (3.5, 1, "weighted sum\n+ noise = $z_t$"), "net": (5.7, 1, "one shared\nnetwork"),
    "D image": (7.6, 2, "image head"), "D label": (7.6, 0, "label head"), "m": (7.6, 1, "aggregate $m_t$"),
}  # fmt: skip
for name, (x, y, text) in boxes.items():
    colour = plots.COLOURS.get(name.split()[-1], "0.3")
    frame = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": colour}
    axis.text(x, y, text, ha="center", va="center", fontsize=10, bbox=frame, zorder=2)
arrows = ["image>E image", "label>E label", "E image>sum", "E label>sum", "sum>net", "net>D image", "net>D label", "net>m"]
for start, end in (arrow.split(">") for arrow in arrows):
    look = {"arrowstyle": "-|>", "color": "0.5", "shrinkB": 42}
    axis.annotate("", boxes[end][:2], boxes[start][:2], arrowprops=look, zorder=1)
axis.set(xlim=(-0.6, 8.5), ylim=(-0.6, 2.6))
axis.set_axis_off()
axis.set_title("All kinds of data enter one noisy state; one network looks at it, and says what each of them is")
plots.show(
    figure,
    "A diagram from left to right: image and label, each with an encoder, meet in a weighted sum with noise; one shared "
    "network looks at it and leads to an image head, a label head and the aggregate.",
)

# %% [markdown]
# Every **modality** $x_i$ of an example (here an image and its label) is turned by an **encoder** $E_i$ into a code in
# one common **diffusion space**. The codes are *added up*, and the noise is added to the sum:
#
# $$ z_t \;=\; \sqrt{\bar\alpha_t}\; \underbrace{\sum_i W_t^i\, E_i(x_i)}_{m_t,\ \text{the aggregate}} \;+\;
#    \sqrt{1-\bar\alpha_t}\;\varepsilon ,\qquad \varepsilon\sim\mathcal N(0, I). $$
#
# Here $t$ runs from 0 (clean) to $T = 500$ (noise), and $\varepsilon$ is Gaussian noise. The number $\bar\alpha_t$
# falls from almost 1 to almost 0. It is the share of the signal's *power* that is left, so that its amplitude is
# $\sqrt{\bar\alpha_t}$.
#
# The image is its own code. A label has no shape, so it gets one: each class owns a fixed pattern, the size of an
# image. The weight $W_t$ says how much of a code is in the sum. The image's is 1 throughout, and the label's grows
# from 0.1 to 1. So near $t = 0$ there is the clean image and a trace of the label, and later the label is mixed in.

# %%
model = mt.load("image-label/digits")
process = model.process
example = test[3:4]
codes = model.encode(example)
noise = torch.randn(codes["image"].shape, generator=torch.Generator().manual_seed(0))
figure = plots.forward_picture(process, codes, [0, 100, 200, 250, 300, 400, 500], noise)
figure.suptitle(f"Image and label of a {example['label'].item()} share one space, and one noise")
plots.show(
    figure,
    "Four rows of small grey pictures over seven steps: the image stays the same, the label's pattern "
    "grows from almost nothing, their sum shows both, and with noise the digit is lost beyond the middle.",
)

# %% [markdown]
# Rows 1 to 3 are before the scaling by $\sqrt{\bar\alpha_t}$; the last row is all of the formula. To check that
# formula and picture say the same thing, compute the right-hand side by hand, and compare it with what the library
# does in one call.

# %%
t = 250
abar = process.schedule.abar[t]
W_image, W_label = process.cumulative("image")[t], process.cumulative("label")[t]
m_t = W_image * codes["image"] + W_label * codes["label"]
z_by_hand = abar.sqrt() * m_t + (1 - abar).sqrt() * noise
z_library, _ = process.diffuse(codes, t, noise)
assert torch.allclose(z_by_hand.float(), z_library, atol=1e-6)
print(f"t = {t}: signal {abar.sqrt():.3f}, noise {(1 - abar).sqrt():.3f}")
print(f"weights: image {W_image:.2f}, label {W_label:.2f}; by hand and by the library: the same z_t")

# %% [markdown]
# The paper writes the same process step by step: at every step it *injects* a little of each code whose weight grows,
# with a weight $w_t^i$. Our cumulative $W_t^i$ is what those injections add up to, as notebook 02 derives. Here is how
# the curves look. The right panel is the *signal-to-noise ratio* (SNR) of each modality,
# $(W_t^i)^2\, \bar\alpha_t / (1 - \bar\alpha_t)$, on a log scale: how well its code can be seen in $z_t$.

# %%
plots.show(
    plots.curve_panels(process, "The label is injected step by step, until it is seen as well as the image"),
    "Three panels over the step. Cumulative weight: 1 for the image, a straight line from 0.1 to 1 for the label. "
    "Injected weight: 0 for the image, positive and falling for the label. "
    "Log SNR: the image's falls in a line; the label's starts lower, falls more slowly and meets it at the end.",
)

# %% [markdown] tags=["slide"]
# ## 2 · One set of weights has three uses
#
# Going back, **one shared network** looks at $z_t$. It estimates the aggregate $m_t$, and it has a small **head** for
# each modality, which says what the image is, and what the label is. One step back takes these guesses for the truth,
# builds a slightly less noisy state from them, and looks again. Training adds up one loss per modality, a *multi-task*
# loss. (Notebook 03 shows that it is more than a heuristic: it is part of a bound on the likelihood of all modalities
# together.)
#
# Do the results deserve trust? Let somebody judge who has never seen the model: a support-vector machine, a classical
# classifier, trained on the real digits alone.

# %%
judge = judges.svm_judge(train)


def agreement(examples):
    """Share of examples whose image the judge reads as their label."""
    return float((judge(examples["image"]) == examples["label"]).double().mean())


print(f"the judge is right on {agreement(test.values):.1%} of the held-out real digits")

# %% [markdown]
# **Draw pairs.** Start from noise, go back to $t = 0$, and read both heads there. Nobody gives the model a label; it
# makes up both. (The digits have 8×8 pixels, so you may have to squint.)

# %%
pairs = mt.sample(model, 20, generator=torch.Generator().manual_seed(1))
title = f"Pairs out of noise: the judge agrees with {20 * agreement(pairs):.0f} of 20 labels"
figure = plots.pair_grid(pairs["image"], pairs["label"], test.names, title=title)
plots.show(figure, "Twenty small images of digits, each with the label that the model drew with it.")

# %% [markdown]
# **Draw a digit you name.** Give the label; the function stays the same. (This model has learned to take a given label
# as an extra input of the network. Exercise 3 tries another way.)

# %%
wanted = torch.arange(10).repeat(2)
named = mt.sample(model, 20, given={"label": wanted}, generator=torch.Generator().manual_seed(2))
title = f"The same weights, asked for 0 to 9 twice: the judge sees {20 * agreement(named):.0f} of 20"
figure = plots.pair_grid(named["image"], named["label"], test.names, title=title)
plots.show(figure, "Two rows of ten images, the digits 0 to 9 in order.")

# %% [markdown]
# **Name a digit you show.** Give the image. These are real digits that the model has not seen. No chain is needed
# here, because the label head reads the almost clean image once.

# %%
shown = test[:20]
read = mt.sample(model, 20, given={"image": shown["image"]}, generator=torch.Generator().manual_seed(3))
wrong = read["label"] != shown["label"]
answers = [f"{a}, not {b}" if a != b else f"{a}" for a, b in zip(*(d["label"].tolist() for d in (read, shown)), strict=True)]
title = f"The same weights, reading: {20 - int(wrong.sum())} of 20 right"
figure = plots.pair_grid(shown["image"], torch.arange(20), answers, title=title, wrong=wrong)
plots.show(
    figure, "Twenty real images with the label the model read off each; wrong ones are red and name the right one, too."
)

# %% [markdown]
# What does `mt.sample` do there? It builds $z_0$ from the image alone and asks the model once. That can be done by
# hand. `present` says what is in the sum, and the network has to be told as well: it would take the missing code for
# evidence. `predict` returns for each modality a *law* (a probability distribution), here of ten labels.

# %%
image_code = model.encode({"image": shown["image"][:1]})
z_0, _ = process.diffuse(image_code, 0, present={"image"}, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    law = model.predict(z_0, 0, present={"image"}).law["label"]
print(f"the first image: a {law.probs.argmax().item()} with probability {law.probs.max():.3f}")
assert law.probs.argmax() == read["label"][0]

# %% [markdown]
# Twenty examples prove little, three hundred prove more. Behind ± stands one standard error.

# %% tags=["nbval-ignore-output"]
g = torch.Generator().manual_seed(4)
many = mt.sample(model, 300, generator=g)
drawn = mt.sample(model, 300, given={"label": torch.arange(300) % 10}, generator=g)
rows = {
    "the judge itself, on held-out real digits": (agreement(test.values), len(test)),
    "joint pairs: the judge agrees with the label": (agreement(many), 300),
    "digits on demand: the judge sees what we asked for": (agreement(drawn), 300),
    "reading held-out digits": (probes.head_accuracy(model, test, generator=g), len(test)),
}
for what, (share, n) in rows.items():
    print(f"{what:52s} {share:.3f} ± {(share * (1 - share) / n) ** 0.5:.3f}  (n = {n})")
assert agreement(drawn) > 0.9

# %% [markdown] tags=["slide"]
# ### When does the model make up its mind?
#
# On its way back, the label head says at every step what it believes. Follow one sample: first its belief, then what
# $z_t$ looks like.

# %%
states, beliefs, steps = [], [], []
for t, z, prediction in mt.sample_path(model, 1, generator=torch.Generator().manual_seed(5)):
    states.append(z)
    beliefs.append(prediction.law["label"].probs[0])
    steps.append(t)
figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
belief = torch.stack(beliefs, 1)
heat = axis.pcolormesh(steps, range(10), belief, cmap="cividis", vmin=0, vmax=1, shading="nearest")
axis.set(xlabel="step t (the chain runs from right to left)", ylabel="label", yticks=range(10))
unsure = [t for t, b in zip(steps, beliefs, strict=True) if b.max() < 0.9]
axis.set_title(f"From noise (right) to a digit (left): more than 90% sure after t = {min(unsure)}")
figure.colorbar(heat, label="$p(label\\,|\\,z_t)$")
plots.show(figure, "Heat map of the label's probabilities over the chain: spread out at first, then all on one label.")
figure = plots.trajectory(states[::5], steps[::5], title="The same chain, seen: every fifth state $z_t$")
plots.show(figure, "Eleven states of the chain, from noise to a clean digit.")

# %% [markdown] tags=["slide"]
# ## 3 · Train one yourself: a few hundred steps already draw digits
#
# Data, modalities, a forward process, and a *backbone* (the shared network): that is a model. The library's experiment
# `image-label` puts them together (`mtdiff/experiments/image_label.py`). Its variant `fade-in` is the one in which the
# label's weight grows. Training takes a minute or less, if the computer has nothing else to do.

# %% tags=["nbval-ignore-output"]
experiment = experiments.EXPERIMENTS["image-label"]
config = experiment.config("digits", "fade-in", experiments.budget())
trainer = experiment.trainer("digits", "fade-in", config, folder=None)
small = trainer.run()
size = sum(p.numel() for p in small.parameters())
print(f"{config.steps} steps of {config.batch_size} examples; {size:,} parameters")
print(f"(the shipped model had {model.card['training']['steps']} steps)")

# %%
figure = plots.loss_curves(trainer.history, "All three tasks are learned at once, by one network")
plots.show(figure, "Three falling curves over the step: the losses of denoising, of the image and of the label.")
assert trainer.history[-1]["total"] < 0.7 * trainer.history[0]["total"]

# %% [markdown]
# - *Denoise* says how far the network's main output is off, from which the aggregate is computed.
# - *Image* is the error of the image head in units of the noise that is left, so that a small error counts much where
#   there is little noise.
# - *Label* is the cross-entropy of the label head, averaged over all noise levels. It cannot reach 0, since at $t = T$
#   nobody can know the label.
#
# The total is denoise + image + 0.5 label. What does such a young model draw?

# %%
young = mt.sample(small, 20, generator=torch.Generator().manual_seed(1))
title = f"After a minute of training: the judge agrees with {20 * agreement(young):.0f} of 20"
figure = plots.pair_grid(young["image"], young["label"], test.names, title=title)
plots.show(figure, "Twenty drawn pairs of the freshly trained model, rougher than those of the shipped one.")

# %% [markdown] tags=["slide"]
# ## 4 · Play: how hard should a label pull?
#
# Move a slider; the samples follow. *Guidance* says how hard a given label pulls: 0 ignores it, so that a "3" stands
# above any digit, 1 is what was trained, above 1 exaggerates. **Look for** what guidance does to obedience and to
# variety, and how few steps are enough. (On a static page the sliders do not move; below them are three settings.)

# %% tags=["nbval-ignore-output"]
sliders = widgets.class_sampler(model)
sliders

# %% tags=["nbval-ignore-output"]
for guidance in (0.0, 1.0, 4.0):
    figure = widgets.draw_class(model, label=3, guidance=guidance)
    plots.show(figure, f"Ten samples with the label 3 given and guidance {guidance:g}.")


# %% [markdown]
# ## 5 · Exercises
#
# Each has a stub, a check that turns green, and a solution below it. Try before you look.
#
# **Exercise 1 (warm-up, easy, 10 minutes): how much noise can it read through?**
# Write a function that gives the accuracy of the label
# head on all `len(test)` held-out images, diffused to step $t$ *without* their labels. *Hint*: section 2 does it by
# hand, for one image and $t = 0$. There `present` stands twice; without the second, accuracy suffers.


# %% tags=["exercise"]
def accuracy_at(t):
    """Share of held-out digits whose label the head reads right at step t."""
    ...  # your code


# %% tags=["check"]
def check_1(function):
    text = []
    for t in (0, int(torch.randint(230, 300, ())), 500):
        share = function(t)
        if share is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        noise = [torch.Generator().manual_seed(seed) for seed in range(4)]
        logits = torch.stack([probes.head_logits(model, test, t=t, generator=g) for g in noise])
        p = (logits.argmax(2) == test.values["label"]).double().mean(0)  # of each image, over four draws of the noise
        ours, error = float(p.mean()), float((5 / 3 * p * (1 - p)).sum()) ** 0.5 / len(test)
        text.append(f"t = {t}: {float(share):.2f}")
        if not abs(float(share) - ours) < 4 * error + 0.006:  # four standard errors of your noise and ours, two images
            hint = ". Does z still hold the label?" if float(share) > ours else ""
            return widgets.Verdict(False, f"{text[-1]}, we find {ours:.2f} ± {error:.2f}{hint}")
    return widgets.Verdict(True, ", ".join(text) + " (guessing: 0.10)")


check_1(accuracy_at)


# %% tags=["solution"]
@torch.no_grad()
def accuracy_at_solution(t):
    image_code = model.encode({"image": test.values["image"]})
    z, _ = process.diffuse(image_code, t, present={"image"}, generator=torch.Generator().manual_seed(0))
    law = model.predict(z, t, present={"image"}).law["label"]
    return (law.probs.argmax(1) == test.values["label"]).double().mean()


solved = check_1(accuracy_at_solution)
assert solved, solved.message
assert not any(check_1(wrong) for wrong in (lambda t: 0.9, lambda t: 0.986 if t == 0 else 0.11)), "a wrong answer passes"
solved


# %% [markdown]
# **Exercise 2 (break it, easy, 10 minutes): too much guidance.**
# Write a function that returns the *diversity* of 100 samples of the
# digit 3: the standard deviation over the samples, averaged over pixels. *Hint*:
# `mt.sample(..., given=..., guidance=..., sampler="ddim")`, then `.std(0).mean()`. (A *sampler* is a way to take the
# steps back; "ddim" adds no noise on the way.) What happens from guidance 1 to 5?


# %% tags=["exercise"]
def diversity(guidance):
    """Pixel standard deviation over 100 samples of the digit 3, averaged over pixels."""
    ...  # your code


# %% tags=["check"]
def check_2(function):
    found = []
    for guidance, ours, error in ((1.0, 0.289, 0.008), (5.0, 0.235, 0.005)):  # mean and spread of six seeds
        value = function(guidance)
        if value is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        found.append(float(value))
        if not abs(found[-1] - ours) < 4 * error:
            return widgets.Verdict(False, f"at guidance {guidance:g} you have {found[-1]:.3f}, we find {ours} ± {error}")
    return widgets.Verdict(True, f"guidance 5 costs {1 - found[1] / found[0]:.0%} of the diversity of guidance 1")


check_2(diversity)


# %% tags=["solution"]
def diversity_solution(guidance):
    g = torch.Generator().manual_seed(0)
    options = {"rule": "conditioned", "guidance": guidance, "sampler": "ddim", "generator": g}
    threes = mt.sample(model, 100, given={"label": torch.tensor([3])}, **options)
    return threes["image"].std(0).mean()


solved = check_2(diversity_solution)
assert solved, solved.message
noise = 2 * torch.rand(100, 64, generator=torch.Generator().manual_seed(0)) - 1
assert not any(check_2(wrong) for wrong in (lambda g: 0.29, lambda g: noise.std(0).mean())), "a wrong answer passes"
solved


# %% [markdown]
# **Exercise 3 (a small research question, medium, 15 minutes): must the network be *given* the label?**
# The framework suggests another way
# to condition: replace the model's guess of the label by the given one, at every step (`rule="substitute"`). Is it as
# good as giving it to the network (`rule="conditioned"`)? Write a function that returns the share of 100 samples, ten
# of each digit, that the judge reads as what was asked for. Use `sampler="ddim"` and 25 steps; `agreement` from above
# is the judge's word. *Further*: does the default sampler `"ddpm"`, which does add noise, change the answer? Notebook
# 05 will explain what you find.


# %% tags=["exercise"]
def obedience(rule):
    """Share of 100 samples, ten of each digit, that the judge reads as the label that was given."""
    ...  # your code


# %% tags=["check"]
def check_3(function):
    text = []
    for rule, ours, error in (("conditioned", 0.977, 0.02), ("substitute", 0.712, 0.045)):  # six seeds, 100 samples each
        share = function(rule)
        if share is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        text.append(f"{rule}: {float(share):.2f}")
        if not abs(float(share) - ours) < 4 * error:
            return widgets.Verdict(False, f"{text[-1]}, we find {ours} ± {error}")
    return widgets.Verdict(True, ", ".join(text) + ". A substituted label is obeyed less")


check_3(obedience)


# %% tags=["solution"]
def obedience_solution(rule):
    g, asked = torch.Generator().manual_seed(0), torch.arange(100) % 10
    options = {"rule": rule, "sampler": "ddim", "steps": 25, "generator": g}
    return agreement(mt.sample(model, 100, given={"label": asked}, **options))


solved = check_3(obedience_solution)
assert solved, solved.message
assert not any(check_3(wrong) for wrong in (lambda rule: 0.1, lambda rule: 0.977)), "a wrong answer passes"
solved

# %% [markdown] tags=["slide"]
# ## What we learned, what comes next
#
# - Several modalities become codes in **one space**; the noise is added to their weighted **sum**.
# - **One network** with a head per modality learns to go back; its loss adds up the tasks.
# - The same weights draw pairs, draw on demand and read; `sample(..., given=...)` is the only switch.
#
# | notebook | question | state |
# |---|---|---|
# | **00 quickstart** | what is it, does it work? | you are here |
# | 01 one modality | what is a diffusion model, from Gaussians up? | ready |
# | 02 one space, many modalities | what does aggregation do to the forward process? | ready |
# | 03 the multi-modal bound | why is a loss per modality a likelihood bound? | ready |
# | 04 how tight | what does the bound lose, and where? | ready |
# | 05 sampling and conditioning | how is something given used correctly? | ready |
# | 06 image transition | can a chain lead from one image to another? | ready |
# | 07 masked image | how are holes filled, and does training with masks help plain generation? | ready |
# | 08 image and label | what does a label cost and buy, how does it get in, and what does guidance draw? | ready |
# | 09 image and representation | does a summary of the image, drawn along with it, make the image better? | ready |
# | 10 any to any | do five modalities of a scene draw each other in one model, and what does the shared space buy? | ready |
# | 11 scaling up | what changes on a GPU, or on many, and what must not? | ready |
# | 12 ImageNet | do drawing, naming and filling work on photographs, and at what price? | ready; 32x32, trained on a CPU |
# | 14 multimodal VAE | what is a latent that all modalities share, and what does a diffusion decoder buy? | ready |
# | 16 your own | how do my data, my modality and my network get in? | ready |
