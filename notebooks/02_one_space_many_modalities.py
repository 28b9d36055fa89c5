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
# # 02 · One space, many modalities: the forward process
#
# **After this notebook you can**
# - say what an encoder, an aggregate, an injected and a cumulative weight are, and turn one weight into the other;
# - derive the marginal and the posterior of the multi-modal process, and check each line by number;
# - choose an aggregation curve by the signal-to-noise ratio it gives;
# - say what is lost when codes share a space, and what channels of their own buy.
#
# **You need** notebook 01: the forward step, the marginal and the posterior of an ordinary diffusion. **Time**: about
# 75 minutes to read and 25 for the exercises; half a minute to run on a laptop CPU.
#
# **Why one space?** A diffusion model has one state $z_t$ and one network that looks at it. If image, label and
# caption are all *in* that state, one network and one chain serve them all: it can draw any of them given any others.
# This notebook is about how they get in. The transition kernel is that of Chen et al. (2024,
# [arXiv:2407.17571](https://arxiv.org/abs/2407.17571)). The cumulative weights and what follows from them are our
# derivation inside their framework; section 2 of [theory.md](theory.md) has the result.

# %%
import math
import warnings

import mtdiff as mt
from mtdiff import datasets, plots, widgets
from mtdiff.laws import gaussian_log_prob
from mtdiff.modalities import simplex_codes

import matplotlib.pyplot as plt
import torch

torch.set_num_threads(1)
plots.style()


def rng(seed):
    """A generator, so that every cell draws the same numbers whenever it runs."""
    return torch.Generator().manual_seed(seed)


def short(vector):
    """A vector as a list of numbers that read well."""
    return [round(value, 3) for value in vector.tolist()]


# %% [markdown] tags=["slide"]
# ## 1 · Codes are added up, and noise is added to the sum
#
# One example has two modalities: a point $x$ in the plane, and a label $y \in \{0, 1, 2\}$ that says which of three
# Gaussians the point comes from. Both have to enter *one* space, here the plane itself.
#
# - The point is its own code: $E_x(x) = x$ (the *identity* encoder).
# - The label gets a code: each class owns a fixed vector, $E_y(y) = c_y$.
#
# The codes are added with weights. Their sum $m_t = W^x\, x + W_t^y\, c_y$ is called the **aggregate**, and noise is
# added to it. The weight of the point stays 1. The label *fades in*: $W_t^y$ grows from 0 to 1.

# %%
T = 100
schedule = mt.NoiseSchedule.log_snr(T, high=8.0, low=-8.0)
process = mt.ForwardProcess(schedule, {"x": 1.0, "label": mt.fade_in(1.0)})
mixture = mt.exact.LabelledMixture(**datasets.MIXTURE, process=process)
points = mixture.draw(600, rng(0))
codes = mixture.encode(points)

figure, axes = plt.subplots(2, 5, figsize=(9.5, 4), sharex=True, sharey=True, layout="constrained")
for column, t in zip(axes.T, (0, 25, 50, 75, 100), strict=True):
    m_t, (z_t, _) = process.aggregate(codes, t), process.diffuse(codes, t, generator=rng(1))
    plots.cloud(column[0], m_t, points["label"], f"t = {t}")
    plots.cloud(column[1], z_t, points["label"])
for axis, row in zip(axes[:, 0], ("$m_t$", "$z_t$"), strict=True):
    axis.set_ylabel(row, rotation=0, ha="right")
figure.suptitle("As the noise grows, the label's code pulls the clouds apart; at t = T both modalities are noise")
plots.show(
    figure,
    "Two rows of five scatter plots over the step, three classes in three colours. Upper row: the three clouds of the "
    "aggregate move outwards. Lower row: the same with growing noise, at the end one round cloud.",
)

# %% [markdown] tags=["slide"]
# ## 2 · An encoder turns each modality into a code of the same size
#
# An **encoder** $E_i$ turns a datum $x_i$ of modality $i$ into a **code**, a point of the common diffusion space
# $Z$. The paper, as others report, names three kinds: the identity; a *generator*, pretrained or learned, that maps
# into $Z$; and cross-attention into the *backbone*, the network that looks at $z_t$. With the third there is no code
# in $Z$ at all.
#
# A weight should mean the same for each modality, so codes should be comparable. The library's label codes have a
# *root mean square* (RMS) of 1, are centred over the classes, and lie equally far from each other (the corners of a
# *simplex*).

# %%
label_codes = simplex_codes(10, (1, 8, 8))  # the ten patterns of notebook 00
flat = label_codes.flatten(1)
rms, centre = flat.square().mean(1).sqrt(), flat.mean(0)
between = torch.pdist(flat)
assert torch.allclose(rms, torch.ones(10), atol=1e-5)
assert float(centre.abs().max()) < 1e-5
assert float(between.max() - between.min()) < 1e-4
print(f"RMS of each code: {rms.min():.4f} to {rms.max():.4f}")
print(f"mean over the classes: at most {centre.abs().max():.0e}")
print(f"distances between codes: {between.min():.4f} to {between.max():.4f}")

# %% [markdown]
# In the plane three codes fit as well. Ours (`datasets.MIXTURE`) are three vectors of length 1, 120 degrees apart.
# (Their RMS is $1/\sqrt 2$, so that their signal-to-noise ratio below is half of what the formula for RMS 1 says.)

# %% [markdown] tags=["slide"]
# ## 3 · One step injects a little of each code, shrinks, and adds noise
#
# With $\alpha_t = \bar\alpha_t / \bar\alpha_{t-1}$ as in notebook 01, the paper's transition kernel is
#
# $$ q(z_t \mid z_{t-1}, X) \;=\; \mathcal N\Big(\sqrt{\alpha_t}\,\big(z_{t-1} + \textstyle\sum_i w_t^i\, E_i(x_i)\big),
#    \ (1 - \alpha_t)\, I\Big). $$
#
# In words: take $z_{t-1}$, *inject* a little of each code, shrink, add noise. The number $w_t^i$ is the **injected
# weight**, and $X$ stands for all modalities of one example. Without injection ($w = 0$) this is the step of notebook
# 01.
#
# Let us run it by hand with made-up weights: every step injects 0.01 of the label's code.

# %%
abar = schedule.abar
alpha = abar[1:] / abar[:-1]  # alpha[t - 1] is alpha_t
w = torch.zeros(T + 1, dtype=torch.float64)
w[1:] = 0.01


def step(z, t, noise):
    """z_t from z_{t-1}: inject, shrink, add noise."""
    a = alpha[t - 1]
    return a.sqrt() * (z + w[t] * codes["label"]) + (1 - a).sqrt() * noise


# %% [markdown] tags=["slide"]
# ## 4 · Where are we after t steps? The marginal, by induction
#
# **Claim.** If $q(z_0 \mid X) = \mathcal N(\sqrt{\bar\alpha_0}\, m_0,\ (1 - \bar\alpha_0) I)$, then at every $t$
#
# $$ q(z_t \mid X) = \mathcal N\big(\sqrt{\bar\alpha_t}\; m_t,\ (1 - \bar\alpha_t)\, I\big), \qquad
#    m_t = m_{t-1} + \sum_i \frac{w_t^i}{\sqrt{\bar\alpha_{t-1}}}\, E_i(x_i). $$
#
# **Line 1, the mean.** Suppose that it holds at $t-1$. The step is linear, so the mean goes through it:
#
# $$ \mathbb E\, z_t = \sqrt{\alpha_t}\Big(\sqrt{\bar\alpha_{t-1}}\, m_{t-1} + \sum_i w_t^i E_i\Big)
#    = \sqrt{\alpha_t \bar\alpha_{t-1}}\,\Big(m_{t-1} + \sum_i \frac{w_t^i}{\sqrt{\bar\alpha_{t-1}}} E_i\Big)
#    = \sqrt{\bar\alpha_t}\; m_t. $$
#
# Compute both sides: push the mean through 100 steps, and compare with $\sqrt{\bar\alpha_t}\, m_t$ at every one.

# %%
mean = abar[0].sqrt() * codes["x"]  # m_0 = x: the label is not there yet
m = codes["x"]
worst = 0.0
for t in range(1, T + 1):
    mean = step(mean, t, noise=0.0)  # left-hand side: the recursion
    m = m + w[t] / abar[t - 1].sqrt() * codes["label"]
    worst = max(worst, float((mean - abar[t].sqrt() * m).abs().max()))  # right-hand side: the claim
assert worst < 1e-12
print(f"largest difference over all steps, points and coordinates: {worst:.0e}")

# %% [markdown]
# **Line 2, the variance.** Given $X$ the codes are constants, and constants do not touch a variance. So it is that
# of notebook 01, $\alpha_t (1 - \bar\alpha_{t-1}) + (1 - \alpha_t) = 1 - \bar\alpha_t$.
#
# **Line 3, the name of the sum.** What has been injected up to $t$, in units of the aggregate, is the **cumulative
# weight** $W_t^i$, and the aggregate is the sum of the codes with these weights:
#
# $$ W_t^i = W_{t-1}^i + \frac{w_t^i}{\sqrt{\bar\alpha_{t-1}}} \quad\Longleftrightarrow\quad
#    w_t^i = \sqrt{\bar\alpha_{t-1}}\,\big(W_t^i - W_{t-1}^i\big), \qquad m_t = \sum_i W_t^i\, E_i(x_i). $$
#
# Hand the accumulated table to the library, and ask it for the injected weights. We must get back what we put in,
# and its transition must be our hand-written step.

# %%
W = torch.cat([torch.zeros(1, dtype=torch.float64), (w[1:] / abar[:-1].sqrt()).cumsum(0)])
by_hand = mt.ForwardProcess(schedule, {"x": 1.0, "label": W})
assert torch.allclose(by_hand.injected("label"), w, atol=1e-12)

noise = torch.randn(codes["x"].shape, dtype=torch.float64, generator=rng(2))
for t in (1, 30, 100):
    z = torch.randn(codes["x"].shape, dtype=torch.float64, generator=rng(t))
    mean, std = by_hand.transition(z, codes, t)
    assert torch.allclose(mean + std * noise, step(z, t, noise), atol=1e-12)
print("injected -> cumulative -> injected: the same table; library transition = our step")

# %% [markdown]
# **Line 4, the whole law.** A sum of Gaussians is Gaussian, so mean and variance say everything. Do not believe it,
# simulate it: we run one example 20,000 times through the chain, step by step, and compare with the marginal. Four
# standard errors are the tolerance, as in notebook 01.

# %%
n, t = 20_000, 60
one = {name: code[:1].expand(n, 2) for name, code in codes.items()}
g = rng(3)
z = by_hand.diffuse(one, 0, generator=g)[0]
for s in range(1, t + 1):
    mean, std = by_hand.transition(z, one, s)
    z = mean + std * torch.randn(n, 2, dtype=torch.float64, generator=g)
mean, std = by_hand.marginal(one, t)
variance = float(std[0]) ** 2
off_mean = (z.mean(0) - mean[0]) / (variance / n) ** 0.5
off_variance = (z.var(0) - variance) / (variance * (2 / n) ** 0.5)
assert float(off_mean.abs().max()) < 4
assert float(off_variance.abs().max()) < 4
print(f"t = {t}: simulated mean {short(z.mean(0))}, formula {short(mean[0])}")
print(f"off by {short(off_mean)} standard errors; variances by {short(off_variance)}")

# %% [markdown] tags=["slide"]
# ### Why the library thinks in cumulative weights
#
# The paper's $w_t$ and our $W_t$ say the same. But $W_t$ is what you *see*: how much of the code is in $m_t$. As far
# as we know the paper does not say how its weights are set. What would a natural guess do, constant injected
# weights, as in our example?

# %%
figure = plots.curve_panels(by_hand, "A constant injected weight makes the cumulative one explode at the noisy end")
plots.show(
    figure,
    "Three panels. Cumulative weight: the label's stays near 0 and shoots up at the end. Injected weight: constant. "
    "Log SNR: the point's falls in a line, the label's rises, falls slowly and levels off above the point's.",
)
print(f"W_T = {W[-1]:.1f}, from 100 injections of 0.01")
assert W[-1] > 5 * W[60]

# %% [markdown]
# The panel on the right shows the *signal-to-noise ratio* (SNR) of each modality, which section 7 defines. Late
# injections are not shrunk by many steps any more, and in units of the aggregate they count
# $1/\sqrt{\bar\alpha_{t-1}}$ times. So the label outlives the point. Its SNR levels off, however long the chain, and
# $z_T$ is not quite the standard normal noise that sampling starts from. It is better to choose the curve $W_t$ that
# you want, and let $w_t$ follow. A linear `fade_in(1.0)` injects less and less:

# %%
plots.show(
    plots.curve_panels(process, "Choose the cumulative weight; the injected one follows"),
    "Three panels. Cumulative weight of the label: a straight line from 0 to 1. Injected weight: constant at first, then "
    "falling to 0 as the signal is lost. Log SNR: the label's rises, peaks early and falls with the point's.",
)
for name, which in {"constant w": by_hand, "linear W": process}.items():
    print(f"{name}: SNR of the label at t = T is {which.snr('label')[T]:.5f}, of the point {which.snr('x')[T]:.5f}")
assert by_hand.snr("label")[T] > 20 * process.snr("label")[T]

# %% [markdown] tags=["slide"]
# ## 5 · One step back, knowing everything: undo DDPM, then take out what was put in
#
# Training compares the model's step back with the true one, $q(z_{t-1} \mid z_t, X)$. Two Gaussians meet in it:
#
# - what we knew before: $z_{t-1} \sim \mathcal N(\sqrt{\bar\alpha_{t-1}}\, m_{t-1},\ 1 - \bar\alpha_{t-1})$, the
#   marginal;
# - what $z_t$ tells: $z_t = \sqrt{\alpha_t}\, z_{t-1} + \sqrt{\bar\alpha_t}\,(m_t - m_{t-1}) + \text{noise}$ of
#   variance $1 - \alpha_t$, the transition.
#
# **Line 1.** This transition is the paper's, written with cumulative weights: $\sqrt{\alpha_t} \sum_i w_t^i E_i =
# \sqrt{\alpha_t \bar\alpha_{t-1}} \sum_i (W_t^i - W_{t-1}^i) E_i = \sqrt{\bar\alpha_t}\,(m_t - m_{t-1})$.
#
# **Line 2.** Take the injection out: $\tilde z = z_t - \sqrt{\bar\alpha_t}\,(m_t - m_{t-1})$ is an ordinary DDPM step
# of $z_{t-1}$.
#
# **Line 3.** Then everything is as in notebook 01, with $\tilde z$ in the place of $z_t$ and $m_{t-1}$ in the place of
# $x$. Precisions add up, and the mean is weighted by them:
#
# $$ \tilde\beta_t = \frac{(1 - \alpha_t)(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}, \qquad
#    \mu = \frac{\sqrt{\alpha_t}(1 - \bar\alpha_{t-1})\,\tilde z + \sqrt{\bar\alpha_{t-1}}(1 - \alpha_t)\, m_{t-1}}
#    {1 - \bar\alpha_t} . $$

# %%
t = 40
z_t, eps = process.diffuse(codes, t, generator=rng(4))
m_t, m_prev = process.aggregate(codes, t), process.aggregate(codes, t - 1)
a, ab, ab_prev = alpha[t - 1], abar[t], abar[t - 1]
assert torch.allclose(a.sqrt() * process.injected("label")[t] * codes["label"], ab.sqrt() * (m_t - m_prev), atol=1e-12)
z_tilde = z_t - ab.sqrt() * (m_t - m_prev)
beta = (1 - a) * (1 - ab_prev) / (1 - ab)
mu = (a.sqrt() * (1 - ab_prev) * z_tilde + ab_prev.sqrt() * (1 - a) * m_prev) / (1 - ab)
library_mean, library_std = process.posterior(z_t, codes, t)
assert torch.allclose(library_mean, mu, atol=1e-12)
assert torch.allclose(library_std**2, beta.expand_as(library_std), rtol=1e-9)
print(f"beta~ = {beta:.6f}; formula and library give the same mean and variance")

# %% [markdown]
# Algebra can be wrong twice in the same way, so here is a check that uses none: multiply the two densities on a fine
# grid, normalise by summing up, and read mean and variance off the grid (first coordinate of the first point).

# %%
grid = torch.linspace(-4, 4, 40_001, dtype=torch.float64)


def normal(x, mean, variance):
    return torch.exp(-0.5 * (x - mean) ** 2 / variance) / (2 * math.pi * variance) ** 0.5


prior = normal(grid, ab_prev.sqrt() * m_prev[0, 0], 1 - ab_prev)
likelihood = normal(z_t[0, 0], a.sqrt() * grid + ab.sqrt() * (m_t - m_prev)[0, 0], 1 - a)
density = prior * likelihood
density = density / density.sum()
grid_mean = (grid * density).sum()
grid_variance = ((grid - grid_mean) ** 2 * density).sum()
assert abs(float(grid_mean - library_mean[0, 0])) < 1e-8
assert abs(float(grid_variance / library_std[0, 0] ** 2 - 1)) < 1e-6
print(f"mean: grid {grid_mean:.6f}, library {library_mean[0, 0]:.6f}")
print(f"standard deviation: grid {grid_variance.sqrt():.6f}, library {library_std[0, 0]:.6f}")

# %% [markdown] tags=["slide"]
# **Line 4, the paper's view.** Write $m_{t-1} = m_t - (m_t - m_{t-1})$ in $\mu$. Since $\sqrt{\alpha_t \bar\alpha_t}
# = \alpha_t \sqrt{\bar\alpha_{t-1}}$, what multiplies $-\sqrt{\bar\alpha_{t-1}}\,(m_t - m_{t-1})$, in $\tilde z$ and
# in $m_{t-1}$ together, is $\big[\alpha_t (1 - \bar\alpha_{t-1}) + (1 - \alpha_t)\big] / (1 - \bar\alpha_t) = 1$. By
# line 3 of section 4 that is the injection.
#
# What remains has only $z_t$ and $m_t$. Put $m_t = (z_t - \sqrt{1 - \bar\alpha_t}\,\varepsilon)/\sqrt{\bar\alpha_t}$
# in. Then $z_t$ is multiplied by the same fraction divided by $\sqrt{\alpha_t}$, so by $1/\sqrt{\alpha_t}$, and
# $\varepsilon$ by $-\frac{1}{\sqrt{\alpha_t}} \frac{1 - \alpha_t}{\sqrt{1 - \bar\alpha_t}}$:
#
# $$ \mu = \underbrace{\frac{1}{\sqrt{\alpha_t}}\Big(z_t - \frac{1 - \alpha_t}{\sqrt{1 - \bar\alpha_t}}\,
#    \varepsilon\Big)}_{\text{DDPM's mean}} \;-\; \underbrace{\sum_i w_t^i\, E_i(x_i)}_{\text{what was injected}}. $$
#
# It could not be simpler: to go back, do what DDPM does, then take out what was put in.

# %%
ddpm_mean = (z_t - (1 - a) / (1 - ab).sqrt() * eps) / a.sqrt()
injected = sum(process.injected(name)[t] * codes[name] for name in codes)
assert torch.allclose(ddpm_mean - injected, library_mean, atol=1e-12)
print(f"DDPM's mean {short(ddpm_mean[0])}, minus the injection {short(injected[0])}, is mu {short(library_mean[0])}")

# %% [markdown]
# **Any two steps.** Nothing here needed the two steps to be neighbours. With $a = \bar\alpha_t / \bar\alpha_s$ in the
# place of $\alpha_t$, the same lines lead from any $s$ up to $t$, and from $t$ back to $s$:
#
# $$ q(z_t \mid z_s, X) = \mathcal N\big(\sqrt a\, z_s + \sqrt{\bar\alpha_t}\,(m_t - m_s),\ (1 - a) I\big), $$
#
# $$ q(z_s \mid z_t, X): \quad \mu = \frac{\sqrt a\,(1 - \bar\alpha_s)\,\tilde z + \sqrt{\bar\alpha_s}\,(1 - a)\, m_s}
#    {1 - \bar\alpha_t}, \quad \tilde\beta = \frac{(1 - a)(1 - \bar\alpha_s)}{1 - \bar\alpha_t}, \quad
#    \tilde z = z_t - \sqrt{\bar\alpha_t}\,(m_t - m_s) . $$
#
# The library has each of them once, as `process.ahead` and `process.back`. Both take the *aggregates*. With a model's
# in the place of the true ones, `back` is the step of the sampler (notebook 05) and of the bound (notebook 03). By
# Bayes' rule, up and back must give any two states the same density:

# %%
s = 15
m_s, z_s = process.aggregate(codes, s), process.diffuse(codes, s, generator=rng(7))[0]
up, back = process.ahead(z_s, m_s, m_t, s, t), process.back(z_t, m_t, m_s, t, s)
(mean_s, std_s), (mean_t, std_t) = process.marginal(codes, s), process.marginal(codes, t)
forward = gaussian_log_prob(z_s, mean_s, std_s**2) + gaussian_log_prob(z_t, up[0], up[1] ** 2)
backward = gaussian_log_prob(z_t, mean_t, std_t**2) + gaussian_log_prob(z_s, back[0], back[1] ** 2)
assert torch.allclose(forward, backward, atol=1e-9)
assert torch.equal(process.back(z_t, m_t, m_prev, t, t - 1)[0], library_mean)
assert torch.equal(process.ahead(z_s, m_prev, m_t, t - 1, t)[0], process.transition(z_s, codes, t)[0])
print(f"log density of both states, by the step up {forward[0]:.6f}, by the step back {backward[0]:.6f}")

# %% [markdown]
# **One modality.** With the point alone and $W = 1$ nothing is injected. Then the posterior has to be that of notebook
# 01, which is DDPM's (Ho et al. 2020):

# %%
alone = mt.ForwardProcess(schedule, {"x": 1.0})
z_alone, _ = alone.diffuse({"x": codes["x"]}, t, generator=rng(5))
textbook = (ab_prev.sqrt() * (1 - a) * codes["x"] + a.sqrt() * (1 - ab_prev) * z_alone) / (1 - ab)
assert torch.allclose(alone.posterior(z_alone, {"x": codes["x"]}, t)[0], textbook, atol=1e-12)
assert not alone.moving
print("N = 1, W = 1: DDPM's posterior, to 1e-12")

# %% [markdown]
# **There and back.** If all of this is right, a step forward and a posterior step back change nothing: draw $z_t$ from
# its marginal and $z_{t-1}$ from the posterior, and $z_{t-1}$ has the marginal of $t-1$.

# %%
g = rng(6)
z, _ = process.diffuse(one, t, generator=g)
mean, std = process.posterior(z, one, t)
back = mean + std * torch.randn(n, 2, dtype=torch.float64, generator=g)
mean, std = process.marginal(one, t - 1)
variance = float(std[0]) ** 2
off_mean = (back.mean(0) - mean[0]) / (variance / n) ** 0.5
off_variance = (back.var(0) - variance) / (variance * (2 / n) ** 0.5)
assert float(off_mean.abs().max()) < 4
assert float(off_variance.abs().max()) < 4
print(f"after a step back: off by {short(off_mean)} (means) and {short(off_variance)} (variances) standard errors")

# %% [markdown] tags=["slide"]
# ## 6 · The curves decide the regime: fade-in, constant, transition
#
# - **Fade-in**: $W$ grows. This is the form that the paper's kernel suggests, with injected weights that are not zero.
#   $z_0$ is the clean point, and the label is mixed in as the noise grows.
# - **Constant**: $W$ stays, so $w = 0$. It is an ordinary diffusion that starts from the sum $m$, and the natural
#   control. (It is not a pure one: nothing is injected, but the label is also more visible at small $t$.)
# - **Transition**: one modality falls, another rises. The chain starts at the *target* and ends at a noisy *source*,
#   image to image. The target's weight is 0 at $T$, so that the law of $z_T$ given the source is known exactly
#   (`prior="source"` tells the process), and the noise need not take over. Here the log-SNR ends at 2.
#
# Below, the source of a transition is the point rotated by a quarter turn.

# %%
rotated = {"x": codes["x"], "source": torch.stack([-codes["x"][:, 1], codes["x"][:, 0]], 1)}
noisy_end = mt.NoiseSchedule.log_snr(T, high=8.0, low=2.0)
regimes = {
    "fade-in": (process, codes),
    "constant": (mt.ForwardProcess(schedule, {"x": 1.0, "label": 1.0}), codes),
    "transition": (mt.ForwardProcess(noisy_end, {"x": mt.fade_out(1.0), "source": mt.fade_in(1.0)}, "source"), rotated),
}
figure, axes = plt.subplots(3, 5, figsize=(9.5, 5.6), sharex=True, sharey=True, layout="constrained")
for row, (name, (regime, inputs)) in zip(axes, regimes.items(), strict=True):
    for axis, t in zip(row, (0, 25, 50, 75, 100), strict=True):
        z_t, _ = regime.diffuse(inputs, t, generator=rng(7))
        plots.cloud(axis, z_t, points["label"], f"t = {t}" if name == "fade-in" else "")
    row[0].set_ylabel(name)
figure.suptitle("One formula, three processes: $z_t$ under three pairs of curves")
plots.show(
    figure,
    "Three rows of scatter plots over the step. Fade-in: clean clouds that move outwards and dissolve. Constant: clouds "
    "apart from the start, dissolving. Transition: the clouds turn by a quarter, smaller on the way, "
    "and end with a little noise.",
)

# %% [markdown]
# We check the end of the transition: $z_T$ given the source is $\mathcal N(\sqrt{\bar\alpha_T}\,
# E(\text{source}),\ 1 - \bar\alpha_T)$, whatever the target is.

# %%
transition = regimes["transition"][0]
shuffled = {"x": codes["x"][torch.randperm(600, generator=rng(8))], "source": rotated["source"]}
mean, std = transition.marginal(shuffled, T)
assert torch.allclose(mean, noisy_end.abar[T].sqrt() * rotated["source"], atol=1e-12)
assert torch.allclose(std, (1 - noisy_end.abar[T]).sqrt().expand_as(std))
print(f"z_T = {noisy_end.abar[T].sqrt():.3f} source + {std[0, 0]:.3f} noise, for any target")

# %% [markdown] tags=["slide"]
# ## 7 · Choose curves by the signal-to-noise ratio they give
#
# How well can a code of unit RMS be seen in $z_t$? Signal power over noise power is the modality's **signal-to-noise
# ratio**
#
# $$ \mathrm{SNR}_t^i = \frac{(W_t^i)^2\, \bar\alpha_t}{1 - \bar\alpha_t}. $$
#
# (It looks at each code by itself. How codes disturb each other is the subject of section 8.) A linear fade-in sounds
# gentle. Is it? We take a schedule that is straight in log-SNR from 9 to -9. Where is the label's SNR largest?

# %%
u = torch.linspace(0, 1, 1001, dtype=torch.float64)
linear = mt.ForwardProcess(mt.NoiseSchedule.log_snr(1000), {"x": 1.0, "label": mt.fade_in(1.0)})
peak = float(u[linear.snr("label").argmax()])
assert 0.10 < peak < 0.12
calculus = 2 / 18  # log SNR = 2 log u + 9 - 18 u has its maximum where 2 / u = 18
assert abs(peak - calculus) < 0.002
print(f"the label's SNR peaks at u = t/T = {peak:.3f} (calculus: 1/9 = {calculus:.3f}); at u = 1/2 the point's log SNR is 0")

# %% [markdown]
# So a label that fades in linearly is *most visible* when there is hardly any noise, and gone, like the point, at
# the end. If you want something else, invert the formula: $W_t = \sqrt{\mathrm{SNR}_t\,(1 -
# \bar\alpha_t)/\bar\alpha_t}$.
#
# This has a consequence. A "noise schedule of its own" for each modality is nothing but an aggregation curve. Look
# at the label's part of $z_t$ alone, and let its curve have the SNR of another schedule $\bar\alpha^y$. Its marginal
# is then that of a separate diffusion, up to a change of units.

# %%
own = mt.NoiseSchedule.log_snr(T, high=3.0, low=-5.0)  # the label's own schedule
own_snr = own.abar / (1 - own.abar)
clocks = mt.ForwardProcess(schedule, {"x": 1.0, "label": (own_snr * (1 - abar) / abar).sqrt()})
for t in range(T + 1):
    mean, std = clocks.marginal({"label": codes["label"]}, t, present={"label"})  # without the point
    units = ((1 - own.abar[t]) / (1 - abar[t])).sqrt()  # z of the shared process in units of the separate one
    assert torch.allclose(units * mean, own.abar[t].sqrt() * codes["label"], atol=1e-9)
    assert torch.allclose(units * std, (1 - own.abar[t]).sqrt().expand_as(std), atol=1e-9)
print("mean and std of the label's part = those of a diffusion with its own schedule, at every t")

# %% [markdown]
# The marginals agree, the *paths* do not: in the separate diffusion nothing is injected, here something is. Notebook
# 04 shows that this makes a difference for the bound.
#
# ### What counts at the end is SNR times dimension
#
# Sampling starts from $\mathcal N(0, I)$, so $z_T$ should have this law, for any $X$. How far is it from it? Given
# $X$ it is a Gaussian of mean $\sqrt{\bar\alpha_T}\, m_T$ and of almost unit variance, so the KL divergence is half
# of the squared mean. A single code $E$ of unit RMS has $\|E\|^2 = \dim Z$, and therefore
#
# $$ \mathrm{KL}\big(q(z_T \mid X)\,\|\,\mathcal N(0, I)\big) \;\approx\; \tfrac12\, \bar\alpha_T\, \|m_T\|^2
#    \;\approx\; \tfrac12\, \mathrm{SNR}_T \, \dim Z . $$
#
# So the same weight, at the same log-SNR, leaves more behind the larger the space is. On average over $X$ this is
# the prior term of the bound (notebook 03). What $z_T$ still tells of the label is the *mutual information* $I(y; z_T)
# = H(y) - H(y \mid z_T)$, where $H(y) = -\mathbb E \log q(y)$ is the *entropy*, the uncertainty about $y$ in nats. By
# Bayes' rule it is also $\mathbb E \log \frac{q(z_T \mid y)}{q(z_T)}$. With the label alone in the sum, the prior term
# is therefore $I(y; z_T) + \mathrm{KL}(q(z_T)\,\|\,\mathcal N(0, I))$, and so at least $I(y; z_T)$. We compute both for
# ten classes, a weight of 1, and the schedule of section 1, whose log-SNR ends at -8.

# %%
loud, found = mt.ForwardProcess(schedule, {"label": 1.0}), {}
y = torch.randint(10, (2000,), generator=rng(14))
for space in ((1, 8, 8), (3, 16, 16), (3, 32, 32), (3, 64, 64)):
    table = simplex_codes(10, space).flatten(1)
    z, _ = loud.diffuse({"label": table[y]}, T, generator=rng(15))
    at = loud.at(T, z)
    log_p = (z @ table.T * at.signal / at.noise**2).log_softmax(1)[torch.arange(2000), y]  # Bayes' rule, codes of one length
    tells, noise = float(log_p.mean()) + math.log(10), float(log_p.std()) / 2000**0.5
    half = float(loud.snr("label")[T]) * table.shape[1] / 2
    found["x".join(map(str, space[::-1]))] = (half, tells)
    assert abs(float(loud.prior_kl({"label": table[:1]})) / half - 1) < 1e-3
    assert tells < half + 4 * noise
(_, _, (half_32, tells_32), (half_64, tells_64)) = found.values()
assert [round(half, 2) for half, _ in found.values()] == [0.01, 0.13, 0.52, 2.06]
assert abs(tells_32 - 0.48) < 0.1 < 1.3 < tells_64 < 1.7

# %%
figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
halves, told = zip(*found.values(), strict=True)
axis.plot(list(found), halves, "o--", color=plots.COLOURS["label"], label="SNR x dimension / 2 (KL to noise)")
axis.plot(list(found), told, "o-", color=plots.COLOURS["label"], label="what $z_T$ tells of the label")
axis.axhline(math.log(10), color="0.6", linewidth=1, label="all there is: log 10")
axis.set(xlabel="diffusion space", ylabel="nats", title="In a large space the last state still knows the label")
axis.legend(frameon=False, fontsize=9)
plots.show(
    figure,
    "Nats over four spaces from 8x8 to 64x64x3: the KL to noise rises from 0.01 to 2.06, what the state tells of the label "
    "from 0.01 to 1.5, below a line at 2.3.",
)

# %% [markdown]
# At 8×8 nothing is left. At 64×64 $z_T$ knows more than half of the label, and a chain that starts from $\mathcal
# N(0, I)$ starts somewhere else. There are two ways out. You can divide the weight by $\sqrt{\dim Z}$, relative to a
# size where it was right, or let the log-SNR end lower by $\log \dim Z$. Our settings take the second, because an
# *image* leaves more behind in the same way. A model of the library warns when its first batch leaves more than 0.1
# nats.

# %%
for weight, low in ((1.0, -8.0), (64**0.5 / 12288**0.5, -8.0), (1.0, -8.0 - math.log(12288 / 64))):
    p = mt.ForwardProcess(mt.NoiseSchedule.log_snr(T, 8.0, low), {"label": weight})
    left = float(p.prior_kl({"label": simplex_codes(10, (3, 64, 64))[:1]}))
    print(f"64x64, weight {weight:.3f}, log-SNR down to {low:.1f}: {left:.3f} nats")
    assert (left < 0.012) == ((weight, low) != (1.0, -8.0))
p = mt.ForwardProcess(schedule, {"image": 1.0, "label": mt.fade_in(1.0)})
parts = {"image": mt.Image((3, 32, 32)), "label": mt.Label(10)}
model = mt.MTDiffusion(p, parts, mt.UNet((3, 32, 32), base=8, multipliers=(1, 2)), (3, 32, 32))
batch = {"image": torch.rand(4, 3, 32, 32, generator=rng(16)) * 2 - 1, "label": torch.tensor([0, 1, 2, 3])}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    mt.multitask_loss(model, batch, generator=rng(17))
    mt.multitask_loss(model, batch, generator=rng(17))  # it says so once
assert len(said) == 1
print("the library:", said[0].message)

# %% [markdown]
# ## 8 · Sharing coordinates helps where codes point with the data, and hurts against
#
# The paper adds all codes up in the same coordinates: **superposition**. The alternative that most joint models take
# gives each modality **channels of its own** (concatenation). In our formula that is not another model but another
# encoder, one that writes 0 into the others' channels. We check it: with the point in coordinates 0 and 1 and the
# label in 2 and 3, the process in four dimensions is two processes side by side.

# %%
nothing = torch.zeros(600, 2, dtype=torch.float64)
wide = {"x": torch.cat([codes["x"], nothing], 1), "label": torch.cat([nothing, codes["label"]], 1)}
noise = torch.randn(600, 4, dtype=torch.float64, generator=rng(9))
z_wide, _ = process.diffuse(wide, 35, noise)
for name, part in {"x": slice(0, 2), "label": slice(2, 4)}.items():
    z_one, _ = process.diffuse({name: codes[name]}, 35, noise[:, part], present={name})
    assert torch.allclose(z_wide[:, part], z_one, atol=1e-12)
print("orthogonal encoders = separate diffusions in separate channels")


# %% [markdown] tags=["slide"]
# What does sharing cost? Think first, and compute afterwards. How well can two classes $k, l$ be told apart in
# $z_t$? Let $\Delta\mu = \mu_k - \mu_l$ be the distance of their clouds, $\Delta c = c_k - c_l$ that of their codes,
# and $\sigma$ the width of the clouds. Compare squared distances in units of the variance around them, $\tau^2 =
# \bar\alpha \sigma^2 + 1 - \bar\alpha$:
#
# $$ \text{side by side: } \bar\alpha \Big( \frac{|\Delta\mu|^2}{\tau^2} + \frac{W^2 |\Delta c|^2}{1 - \bar\alpha} \Big),
#    \qquad \text{superposed: } \bar\alpha\, \frac{|\Delta\mu + W \Delta c|^2}{\tau^2} . $$
#
# Two things happen when codes share coordinates. The data's own width $\sigma$ now blurs the label's code, too. That
# is a loss, largest at clean steps and for wide clouds. And the vectors add up before they are squared. That is a
# gain of $2 W \Delta\mu \cdot \Delta c$ where codes point the way the data do, and a loss where they point against
# it.
#
# Now compute it. On the mixture $p(y \mid z_t)$ is Bayes' rule over three Gaussians. Superposed, the library has it
# (`LabelledMixture`). Side by side we write it down: given $y = k$, the two halves of $z$ are independent Gaussians.


# %%
def side_by_side(model, z, t):
    """log p(y = k | z_t) (B, K) and E[x | z_t] (B, 2), the point in the first half of z, the label in the second."""
    at = process.at(t, z)
    signal, noise = at.level
    codes_seen = (signal * at.W["label"])[..., None] * model.codes
    spread = signal**2 * model.stds**2 + noise**2  # (B, K) variance of the first half given k
    off_x = z[:, None, :2] - signal[..., None] * model.means  # (B, K, 2)
    off_y = z[:, None, 2:] - codes_seen
    log_p = model.weights.log() - off_x.square().sum(-1) / (2 * spread) - spread.log()
    log_p = (log_p - off_y.square().sum(-1) / (2 * noise**2)).log_softmax(1)
    mean_k = model.means + (signal * model.stds**2 / spread)[..., None] * off_x
    return log_p, (log_p.exp()[..., None] * mean_k).sum(1)


many = mixture.draw(4000, rng(10))
against = mt.exact.LabelledMixture(**{**datasets.MIXTURE, "label_codes": -mixture.codes}, process=process)
ways = {"codes with the data": mixture, "side by side": None, "codes against the data": against}

# %% [markdown]
# There are two figures of merit at each step: the uncertainty about the label,
# $H(y \mid z_t) = -\mathbb E \log p(y \mid z_t)$, and the mean squared error of the best guess of the point,
# $\mathbb E\, |x - \mathbb E[x \mid z_t]|^2$.

# %%
steps = list(range(0, T + 1, 4))
unsure, error = ({way: [] for way in ways} for _ in range(2))
for way, model in ways.items():
    parts = (model or mixture).encode(many)
    if model is None:
        empty = torch.zeros_like(parts["x"])
        parts = {"x": torch.cat([parts["x"], empty], 1), "label": torch.cat([empty, parts["label"]], 1)}
    for t in steps:
        z, _ = process.diffuse(parts, t, generator=rng(11))
        if model is None:
            log_p, guess = side_by_side(mixture, z, t)
        else:
            prediction = model.predict(z, t)
            log_p, guess = prediction.law["label"].logits, prediction.estimate["x"]
        unsure[way].append(float(-log_p.gather(1, many["label"][:, None]).mean()))
        error[way].append(float((many["x"] - guess).square().sum(1).mean()))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.1), layout="constrained")
for way, dash in zip(ways, ("-", "--", ":"), strict=True):
    axes[0].plot(steps, unsure[way], dash, color=plots.COLOURS["label"], label=way)
    axes[1].plot(steps, error[way], dash, color=plots.COLOURS["x"])
axes[0].set(xlabel="step t", ylabel="uncertainty $H(y\\,|\\,z_t)$ (nats)", title="label")
axes[1].set(xlabel="step t", ylabel="error of the best guess", title="point")
axes[0].legend(frameon=False, fontsize=9)
figure.suptitle("Sharing helps both modalities if codes point with the data, and hurts both if against", fontsize=11)
plots.show(
    figure,
    "Two panels over the step, uncertainty about the label and error of the point, three rising curves in each. Codes "
    "with the data are lowest beyond t = 40, codes against the data highest; all three meet at both ends.",
)
middle = steps.index(56)
for table in (unsure, error):
    assert table["codes with the data"][middle] < table["side by side"][middle] < table["codes against the data"][middle]

# %% [markdown]
# Here the clouds are narrow, and the class decides most of where the point is, so that the point's error follows the
# label's uncertainty. With wider clouds the blur takes over at clean steps:

# %%
for width in (0.3, 1.2):
    model = mt.exact.LabelledMixture(**{**datasets.MIXTURE, "stds": (width,) * 3}, process=process)
    drawn = model.draw(4000, rng(12))
    parts, empty = model.encode(drawn), torch.zeros(4000, 2, dtype=torch.float64)
    beside = {"x": torch.cat([parts["x"], empty], 1), "label": torch.cat([empty, parts["label"]], 1)}
    for t in (10, 56):
        z, _ = process.diffuse(parts, t, generator=rng(13))
        superposed = -model.log_prob("label", drawn["label"], z, t).mean()
        z, _ = process.diffuse(beside, t, generator=rng(13))
        apart = -side_by_side(model, z, t)[0].gather(1, drawn["label"][:, None]).mean()
        print(f"width {width}, t = {t}, H(y | z_t): superposed {superposed:.3f}, side by side {apart:.3f}")

# %% [markdown]
# So there is no general answer. What sharing has for it is space: a second modality costs no channels. The course
# measures both ways wherever it matters (for the digits of notebook 00 in [this table](measured.md)).
#
# ## 9 · A missing modality is left out of the sum
#
# Real data have holes, such as an image without a label. The **present set** $S$ holds the modalities that an
# example has, and the aggregate runs over $S$ only, $m_t = \sum_{i \in S} W_t^i E_i(x_i)$. Write `present={"x"}` for
# all examples, or `present={name: mask}` per example. For $z_t$, an absent code and a zero code are the same thing:

# %%
half = {"label": torch.arange(600) % 2 == 0}
with_holes = process.aggregate(codes, 50, half)
zeroed = {**codes, "label": codes["label"] * half["label"][:, None]}
assert torch.allclose(with_holes, process.aggregate(zeroed, 50))
assert torch.equal(with_holes[1::2], process.aggregate(codes, 50, present={"x"})[1::2])
assert not torch.allclose(with_holes, process.aggregate(codes, 50))
print("aggregate over the present set = aggregate with the absent codes set to zero")

# %% [markdown]
# For the *model* they are not the same. It has to know that the label is absent, or it would take the zero for
# evidence. Training with random present sets lets one network classify, too (notebook 05).
#
# ## 10 · Play: bend a curve, and watch its SNR
#
# Move through time, and bend the label's curve: $W(u) = \text{start} + (\text{end} - \text{start})\,
# u^{\text{bend}}$ with $u = t/T$. **Look for** the answer of the label's SNR: a bend below 1 injects early, above 1
# late. The right panel draws pairs with the exact model by DDIM, a sampler with few and long steps (notebook 05).
# Its title has the energy distance to the truth (0 is perfect; 500 points cannot tell less than about 0.005 from 0).
# Can you find a curve that makes it clearly worse? Then lower the number of steps. (On a static page the sliders do
# not move; below them are three settings.)

# %% tags=["nbval-ignore-output"]
widgets.cloud_slider(process, codes, points["label"])

# %% tags=["nbval-ignore-output"]
widgets.curve_bender()

# %%
for start, end, bend, ddim_steps in ((0.0, 1.0, 1.0, 20), (0.0, 3.0, 6.0, 20), (3.0, 0.0, 1.0, 5)):
    figure = widgets.draw_curve(start, end, bend, ddim_steps)
    text = f"Curves and samples for a label weight from {start:g} to {end:g}, bend {bend:g}, {ddim_steps} sampler steps."
    plots.show(figure, text)


# %% [markdown]
# With *exact* estimates and 20 steps the curve hardly matters for the samples. With 5 it changes the error that large
# steps make. What the curve does change is what a network has to learn, and how tight the bound is (notebook 04).
#
# ## 11 · Exercises
#
# **Exercise 1 (warm-up, easy, 5 minutes): from injected to cumulative.**
# Write the function that turns a table of injected weights
# $w_0 \dots w_T$ (with $w_0 = 0$) and a start $W_0$ into the cumulative table $W_0 \dots W_T$. *Hint*: section 4, line
# 3; `cumsum`.


# %% tags=["exercise"]
def accumulate(w, abar, start):
    """Cumulative weights (T+1,) from injected ones (T+1,), abar (T+1,) and W_0."""
    ...  # your code


# %% tags=["check"]
def check_1(function):
    for other, start in ((schedule, 0.3), (mt.NoiseSchedule.log_snr(30, high=6.0, low=-4.0), 1.0)):
        size = other.steps + 1
        w = torch.rand(size, dtype=torch.float64, generator=rng(20)) * (torch.arange(size) > 0)
        W = function(w, other.abar, start)
        if W is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        if tuple(W.shape) != (size,) or not abs(float(W[0]) - start) < 1e-4:
            text = f"expected {size} values that start at {start}, got {tuple(W.shape)} from {float(W[0]):.2f}"
            return widgets.Verdict(False, text)
        off = float((mt.ForwardProcess(other, {"label": W}).injected("label") - w).abs().max())
        if not off < 1e-4:
            return widgets.Verdict(False, f"T = {size - 1}, W_0 = {start}: the library finds a w that is off by {off:.0e}")
    return widgets.Verdict(True, f"the library finds your w again to within {off:.0e}")


check_1(accumulate)


# %% tags=["solution"]
def accumulate_solution(w, abar, start):
    return start + torch.cat([torch.zeros(1, dtype=torch.float64), (w[1:] / abar[:-1].sqrt()).cumsum(0)])


solved = check_1(accumulate_solution)
assert solved, solved.message
plain, late = (lambda w, abar, start: start + w.cumsum(0)), (lambda w, abar, start: start + (w / abar.sqrt()).cumsum(0))
assert not any(check_1(wrong) for wrong in (plain, late)), "a wrong answer passes"
solved


# %% [markdown]
# **Exercise 2 (design, medium, 10 minutes): a label that is seen only in the middle.**
# You want a label that is invisible at both ends (so
# that $z_0$ is the clean point and $z_T$ is noise) and has its SNR peak at $u = 1/2$ with $\log \mathrm{SNR} = 0$:
# $\log \mathrm{SNR}(u) = -40\,(u - 1/2)^2$. Return the table $W_0 \dots W_T$ for a given `abar`.


# %% tags=["exercise"]
def seen_in_the_middle(abar):
    """Cumulative weights (T+1,) with log SNR = -40 (t/T - 1/2)^2."""
    ...  # your code


# %% tags=["check"]
def check_2(function):
    for T_, high in ((100, 8.0), (60, 5.0)):
        other = mt.NoiseSchedule.log_snr(T_, high=high, low=-high)
        W = function(other.abar)
        if W is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        log_snr = mt.ForwardProcess(other, {"label": W}).snr("label").log()
        wanted = -40 * (torch.linspace(0, 1, T_ + 1, dtype=torch.float64) - 0.5) ** 2
        off = float((log_snr - wanted).abs().max())
        if not off < 1e-4:
            return widgets.Verdict(False, f"with T = {T_} the log SNR is off by up to {off:.2g}")
    return widgets.Verdict(True, "the SNR is what was asked for, for two schedules")


check_2(seen_in_the_middle)


# %% tags=["solution"]
def seen_in_the_middle_solution(abar):
    u = torch.linspace(0, 1, len(abar), dtype=torch.float64)
    return (torch.exp(-40 * (u - 0.5) ** 2) * (1 - abar) / abar).sqrt()


solved, squared = check_2(seen_in_the_middle_solution), check_2(lambda abar: seen_in_the_middle_solution(abar) ** 2)
assert solved, solved.message
assert not squared, squared.message
solved


# %% [markdown]
# **Exercise 3 (break it, easy, 10 minutes): codes that cancel.**
# Superposed codes can hide each other. With a *constant* weight of 1,
# find three label codes (a (3, 2) tensor) such that the three clouds of $m$ lie on top of each other, so that even at
# $t = 0$ the label can hardly be read off $z_0$. *Hint*: `mixture.means` are the centres of the clouds.


# %% tags=["exercise"]
def cancelling_codes(means):
    """Label codes (3, 2) that bring the three clouds of m = x + code together."""
    ...  # your code


# %% tags=["check"]
def check_3(function):
    codes = function(mixture.means)
    if codes is None:
        return widgets.Verdict(False, "the function returns nothing yet")
    codes = torch.as_tensor(codes, dtype=torch.float64)
    if tuple(codes.shape) != (3, 2) or not bool((codes.abs() < 10).all()):
        return widgets.Verdict(False, "expected a (3, 2) tensor of numbers of ordinary size")
    constant = mt.ForwardProcess(schedule, {"x": 1.0, "label": 1.0})
    broken = mt.exact.LabelledMixture(**{**datasets.MIXTURE, "label_codes": codes}, process=constant)
    drawn = broken.draw(2000, rng(21))
    z, _ = constant.diffuse(broken.encode(drawn), 0, generator=rng(22))
    share = float((broken.predict(z, 0).law["label"].probs.argmax(1) == drawn["label"]).double().mean())
    most, spread = float(mixture.weights.max()), float((mixture.means + codes).std(0).max())
    text = f"{share:.2f} of the labels are read right (guessing class 0: {most:.2f}); the clouds are {spread:.2f} apart"
    wanted = f" (wanted: at most {most + 0.05:.2f}, and less than 0.05 apart)"
    return widgets.Verdict(share < most + 0.05 and spread < 0.05, text + wanted)


check_3(cancelling_codes)


# %% tags=["solution"]
def cancelling_codes_solution(means):
    return -means


solved = check_3(cancelling_codes_solution)
assert solved, solved.message
assert not any(check_3(wrong) for wrong in (torch.zeros_like, lambda means: means)), "a wrong answer passes"
solved

# %% [markdown]
# With these codes the point is hidden as well: $m = x - \mu_y$ is almost the same Gaussian blob for each class. Fading
# in avoids it (at $t = 0$ only the point is there), and so do channels of their own.

# %% [markdown] tags=["slide"]
# ## What we learned, what comes next
#
# - Encoders put all modalities into one space, and the paper *injects* them step by step with $w_t^i$.
# - What is there at step $t$ is the **aggregate** $m_t = \sum_i W_t^i E_i(x_i)$ with cumulative weights; the marginal
#   is $\mathcal N(\sqrt{\bar\alpha_t}\, m_t, (1 - \bar\alpha_t) I)$.
# - To go back, take DDPM's posterior mean minus what was injected. With one modality it is DDPM.
# - Curves decide the regime (fade-in, constant, transition), and are best chosen by the SNR they give. At $t = T$ it
#   is SNR times dimension that must be small.
# - Superposition and channels of their own differ only in the encoder. Sharing can cost; notebook 04 says how many
#   nats.
#
# Next: **03 · The multi-modal bound**. Why a loss for each modality, at every $t$, is part of a bound on the
# likelihood.
