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
# **You need** Python, and to know what a Gaussian and a conditional probability are. No diffusion background.
# **Time**: ten minutes to read, about one minute to run on a laptop CPU. No GPU, no download.
#
# The paper is Chen et al., *Diffusion Models for Multi-Modal Generative Modeling*, ICLR 2024
# ([arXiv:2407.17571](https://arxiv.org/abs/2407.17571)). This course derives it, checks every step by number, and
# implements it in a small library, `mtdiff`. What you see here is derived in notebooks 01 to 05.

# %%
import matplotlib.pyplot as plt
import torch

import mtdiff as mt
from mtdiff import datasets, evaluation, experiments, plots, widgets

torch.set_num_threads(1)  # on a small shared CPU two threads are slower than one
plots.style()
train, test = datasets.digits("train"), datasets.digits("test")
print(f"{len(train)} handwritten digits to train on, {len(test)} held out")
print("each example:", {name: tuple(value.shape[1:]) for name, value in train.values.items()})

# %% [markdown] tags=["slide"]
# ## 1 · The idea in a picture
#
# A diffusion model destroys data with noise, little by little, and trains a network to undo each step. Run backwards
# from pure noise, the network draws new data. Usually that is done for *one* kind of data.
#
# MT-Diffusion does it for several at once. Every **modality** $x_i$ of an example (here an image and its label)
# is turned by an **encoder** $E_i$ into a code in one common **diffusion space**. The codes are *added up*, and the
# noise is
# added to the sum:
#
# $$ z_t \;=\; \sqrt{\bar\alpha_t}\; \underbrace{\sum_i W_t^i\, E_i(x_i)}_{m_t,\ \text{the aggregate}} \;+\;
#    \sqrt{1-\bar\alpha_t}\;\varepsilon ,\qquad \varepsilon\sim\mathcal N(0, I). $$
#
# The image is its own code. A label has no shape, so it gets one: each class owns a fixed pattern, the size of an
# image. The
# weight $W_t$ of the label grows with $t$: near $t = 0$ there is only the clean image and a trace of the label, later the
# label is mixed in.

# %%
model = mt.load("image-label/digits")
process = model.process
example = test[3:4]
codes = model.encode(example)
noise = torch.randn(codes["image"].shape, generator=torch.Generator().manual_seed(0))
figure = plots.forward_picture(process, codes, [0, 100, 200, 250, 300, 400, 500], noise)
figure.suptitle(f"Image and label of a {example['label'].item()} share one space, and drown together")
plots.show(
    figure,
    "Four rows of small grey pictures over seven steps: the image stays the same, the label's pattern "
    "grows from almost nothing, their sum shows both, and with noise the digit is lost beyond the middle.",
)

# %% [markdown]
# The formula and the picture say the same thing. Check it: compute the right-hand side by hand, and compare it with
# what the library
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
print(f"weights: image {W_image:.1f}, label {W_label:.1f}; by hand and by the library: the same z_t")

# %% [markdown]
# The paper writes the same process step by step: at every step it *injects* a little of each code, with a weight
# $w_t^i$.
# Our cumulative $W_t^i$ is what those injections add up to,
# $w_t^i = \sqrt{\bar\alpha_{t-1}}\,(W_t^i - W_{t-1}^i)$. Notebook 02 derives this; here is how the curves look.

# %%
plots.show(
    plots.curve_panels(process, "The label is injected step by step, and speaks ever louder against the image"),
    "Three panels over the step. Cumulative weight: 1 for the image, a straight line from 0.1 to 1 for the label. "
    "Injected weight: 0 for the image, positive and falling for the label. "
    "Log SNR: the image's falls in a line, the label's stays below it and meets it at the end.",
)

# %% [markdown] tags=["slide"]
# ## 2 · One set of weights, three uses
#
# Going back, **one shared network** looks at $z_t$. It estimates the aggregate $m_t$, and it has a small **head** for
# each modality:
# what is the image, what is the label? Training adds up one loss per modality: a *multi-task* loss (notebook 03 shows
# that
# it is a likelihood bound and not a heuristic).
#
# **Draw pairs.** Start from noise, go back to $t = 0$, read both heads there. Nobody tells the model a label; it
# makes up both, and they agree.

# %%
pairs = mt.sample(model, 20, generator=torch.Generator().manual_seed(1))
title = "Twenty pairs out of noise: image and label agree"
figure = plots.pair_grid(pairs["image"], pairs["label"], test.names, title=title)
plots.show(figure, "Twenty small images of digits, each with the label that the model drew with it.")

# %% [markdown]
# **Draw a digit you name.** Give the label; the function stays the same.

# %%
wanted = torch.arange(10).repeat(2)
named = mt.sample(model, 20, given={"label": wanted}, generator=torch.Generator().manual_seed(2))
title = "The same weights, asked for 0 to 9 twice"
figure = plots.pair_grid(named["image"], named["label"], test.names, title=title)
plots.show(figure, "Two rows of ten images, the digits 0 to 9 in order.")

# %% [markdown]
# **Name a digit you show.** Give the image. These are real digits that the model has not seen.

# %%
shown = test[:20]
read = mt.sample(model, 20, given={"image": shown["image"]}, generator=torch.Generator().manual_seed(3))
wrong = read["label"] != shown["label"]
title = f"The same weights, reading: {20 - int(wrong.sum())} of 20 right"
figure = plots.pair_grid(shown["image"], read["label"], test.names, title=title, wrong=wrong)
plots.show(figure, "Twenty real images with the label the model read off each; wrong ones would be red.")

# %% [markdown]
# Twenty examples prove little. So let somebody judge who has never seen the model: a support-vector machine, trained on
# real digits alone.

# %% tags=["nbval-ignore-output"]
judge, g = evaluation.svm_judge(train), torch.Generator().manual_seed(4)
many = mt.sample(model, 300, generator=g)
asked = torch.arange(300) % 10
drawn = mt.sample(model, 300, given={"label": asked}, generator=g)


def agreement(examples):
    return float((judge(examples["image"]) == examples["label"]).double().mean())


rows = {
    "the judge itself, on held-out real digits": (agreement(test.values), len(test)),
    "joint pairs: the judge agrees with the label": (agreement(many), 300),
    "digits on demand: the judge sees what we asked for": (agreement(drawn), 300),
    "reading held-out digits": (evaluation.head_accuracy(model, test, generator=g), len(test)),
}
for what, (share, n) in rows.items():
    print(f"{what:52s} {share:.3f} +- {(share * (1 - share) / n) ** 0.5:.3f}  (n = {n})")
assert agreement(drawn) > 0.9

# %% [markdown] tags=["slide"]
# ### When does the model make up its mind?
#
# On its way back, the label head says at every step what it believes. Follow one sample.

# %%
states, beliefs, steps = [], [], []
for t, z, prediction in mt.sample_path(model, 1, generator=torch.Generator().manual_seed(5)):
    states.append(z)
    beliefs.append(prediction.params["label"].softmax(1)[0])
    steps.append(t)
figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
belief = torch.stack(beliefs, 1)
heat = axis.pcolormesh(steps, range(10), belief, cmap="cividis", vmin=0, vmax=1, shading="nearest")
axis.set(xlabel="step t (the chain runs from right to left)", ylabel="label", yticks=range(10))
sure = next((t for t, b in zip(steps, beliefs, strict=True) if b.max() > 0.9), 0)
axis.set_title(f"From noise (right) to a digit (left): 90% sure from t = {sure} on")
figure.colorbar(heat, label="$p(label\\,|\\,z_t)$")
plots.show(figure, "Heat map of the label's probabilities over the chain: spread out at first, then all on one label.")
figure = plots.trajectory(states[::5], steps[::5], title="The same chain, seen: every fifth state $z_t$")
plots.show(figure, "Eleven states of the chain, from noise to a clean digit.")

# %% [markdown] tags=["slide"]
# ## 3 · Train one yourself
#
# Data, modalities, process, backbone: that is a model. The library's experiment puts them together; you could write the
# same in ten lines (see `mtdiff/experiments/image_label.py`). We train for less than a minute, about a sixth of what
# the shipped model had.

# %% tags=["nbval-ignore-output"]
experiment = experiments.EXPERIMENTS["image-label"]
config = experiment.config("digits", "fade-in", experiments.budget())
trainer = experiment.trainer("digits", "fade-in", config, folder=None)
small = trainer.run()
size = sum(p.numel() for p in small.parameters())
print(f"{config.steps} steps of {config.batch_size} examples; {size:,} parameters")

# %%
figure = plots.loss_curves(trainer.history, "All three tasks are learned at once, by one network")
plots.show(figure, "Three falling curves over the step: the losses of denoising, of the image and of the label.")
assert trainer.history[-1]["total"] < 0.7 * trainer.history[0]["total"]

# %% [markdown]
# The three terms are: *denoise*, how far the estimate of the aggregate is off; *image*, the same for the image head;
# *label*, the cross-entropy of the label head, averaged over all noise levels (it cannot go to 0: at $t = T$ nobody can
# know the label). And what it draws:

# %%
young = mt.sample(small, 20, generator=torch.Generator().manual_seed(1))
title = "After less than a minute of training: pairs out of noise"
figure = plots.pair_grid(young["image"], young["label"], test.names, title=title)
plots.show(figure, "Twenty drawn pairs of the freshly trained model: rougher digits, most fit their labels.")

# %% [markdown] tags=["slide"]
# ## 4 · Play
#
# Move a slider; the samples follow. **Look for** two things: with guidance 0 the label is ignored, and
# above 1 the digits get more alike; and how few steps are enough. (On a static page you see only one setting.)

# %% tags=["nbval-ignore-output"]
sliders = widgets.class_sampler(model)
sliders

# %% tags=["nbval-ignore-output"]
plots.show(widgets.draw_class(model, label=3, guidance=1.0), "Ten samples of the digit 3.")

# %% [markdown]
# ## 5 · Exercises
#
# Each has a stub, a check that turns green, and a solution below it.
#
# **Exercise 1 (warm-up). How well does it read in the dark?** Write a function that gives the accuracy of the label
# head on
# held-out images that were diffused to step $t$. *Hint*: `process.diffuse(codes, t, present=...)` with the label absent
# (`present={"label": zeros}`), then `model.predict(z, t, present=...)`.


# %% tags=["exercise"]
def accuracy_at(t):
    """Share of held-out digits whose label the head reads right at step t."""
    ...  # your code


# %% tags=["check"]
def check_1(function):
    values = [function(t) for t in (0, 250, 500)]
    if None in values:
        return widgets.Verdict(False, "the function returns nothing yet")
    clean, middle, dark = map(float, values)
    if not clean > 0.95:
        return widgets.Verdict(False, f"expected more than 0.95 at t = 0, got {clean:.2f}")
    text = f"t = 0: {clean:.2f}, t = 250: {middle:.2f}, t = 500: {dark:.2f} (guessing: 0.10)"
    return widgets.Verdict(dark < 0.2 < middle <= clean, text)


check_1(accuracy_at)


# %% tags=["solution"]
@torch.no_grad()
def accuracy_at_solution(t):
    absent = {"label": torch.zeros(len(test), dtype=torch.bool)}
    image_code = model.encode({"image": test.values["image"]})
    z, _ = process.diffuse(image_code, t, present=absent, generator=torch.Generator().manual_seed(0))
    logits = model.predict(z, t, present=absent).params["label"]
    return (logits.argmax(1) == test.values["label"]).double().mean()


solved = check_1(accuracy_at_solution)
assert solved, solved.message
solved

# %% [markdown]
# **Exercise 2 (break it). Too much guidance.** Guidance above 1 pushes samples away from what other labels would
# give. Write a
# function that returns the *diversity* of 100 samples of one digit: the standard deviation over samples, averaged
# over pixels.
# What happens from guidance 1 to 5?


# %% tags=["exercise"]
def diversity(guidance):
    """Pixel standard deviation over 100 samples of the digit 3, averaged over pixels."""
    ...  # your code


# %% tags=["check"]
def check_2(function):
    plain, strong = function(1.0), function(5.0)
    if plain is None:
        return widgets.Verdict(False, "the function returns nothing yet")
    loss = 1 - float(strong) / float(plain)
    return widgets.Verdict(loss > 0.1, f"guidance 5 costs {100 * loss:.0f}% of the diversity of guidance 1")


check_2(diversity)


# %% tags=["solution"]
def diversity_solution(guidance):
    g = torch.Generator().manual_seed(0)
    options = {"rule": "conditioned", "guidance": guidance, "steps": 20, "generator": g}
    threes = mt.sample(model, 100, given={"label": torch.tensor([3])}, **options)
    return threes["image"].std(0).mean()


solved = check_2(diversity_solution)
assert solved, solved.message
solved

# %% [markdown]
# **Exercise 3 (a small research question). Do we need to *tell* the network the label?** The framework suggests
# another way to
# condition: replace the model's guess of the label by the given one, at every step (`rule="substitute"`). Is it as
# good as telling the
# network (`rule="conditioned"`)? Write a function that returns the share of 100 samples that the judge calls what was
# asked for,
# under a rule. Notebook 05 explains what you find.


# %% tags=["exercise"]
def obedience(rule):
    """Share of 100 samples, ten of each digit, that the judge reads as the label that was given."""
    ...  # your code


# %% tags=["check"]
def check_3(function):
    shares = {rule: function(rule) for rule in ("conditioned", "substitute")}
    if None in shares.values():
        return widgets.Verdict(False, "the function returns nothing yet")
    gap = float(shares["conditioned"] - shares["substitute"])
    text = ", ".join(f"{rule}: {float(share):.2f}" for rule, share in shares.items())
    return widgets.Verdict(gap > 0.05, f"{text}. Substitution is cheap, and biased")


check_3(obedience)


# %% tags=["solution"]
def obedience_solution(rule):
    g, asked = torch.Generator().manual_seed(0), torch.arange(100) % 10
    return agreement(mt.sample(model, 100, given={"label": asked}, rule=rule, steps=25, generator=g))


solved = check_3(obedience_solution)
assert solved, solved.message
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
# | 01 one modality | what is a diffusion model, from Gaussians up? | planned |
# | 02 one space, many modalities | what does aggregation do to the forward process? | planned |
# | 03 the multi-modal bound | why is a loss per modality a likelihood bound? | planned |
# | 04 how tight | what does the bound lose, and where? | planned |
# | 05 sampling and conditioning | how is something given used correctly? | planned |
# | 06 image transition, 07 masked image | two image modalities; training with holes | planned |
# | 08 image and label, 09 image and representation | what does a second modality buy? | planned |
# | 11 scaling up, 12 ImageNet | does it hold on real images, on a GPU? | planned |
