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
# # 01 · One modality: a diffusion model from nothing
#
# **After this notebook you can**
# - derive an ordinary diffusion model from five facts about Gaussians: forward process, posterior, bound, loss,
#   sampler;
# - say what the best possible denoiser is, and compute it exactly for a mixture of Gaussians;
# - turn predictions of $v$, $\varepsilon$ and $x$ into each other, and say which weight each loss puts on which step;
# - judge a trained network against the exact answer, by picture and by number.
#
# **You need** Gaussians, conditional probability, and some PyTorch. No diffusion background.
# **Time**: 45 minutes to read, under a minute to run on a laptop CPU. No GPU, no download.
#
# Everything here is classical: Sohl-Dickstein et al. (2015), Ho et al. (2020, "DDPM"), Song et al. (2021), Kingma et
# al. (2021). It is the case of *one* modality (N = 1) of the course's subject; symbols are those of
# [theory.md](theory.md).

# %%
import functools
import itertools
import math

import matplotlib.pyplot as plt
import torch

import mtdiff as mt
from mtdiff import datasets, plots, widgets
from mtdiff.laws import gaussian_log_prob
from mtdiff.metrics import energy_distance

torch.set_num_threads(1)
plots.style()


def rng(seed):
    """A generator, so that every cell draws the same numbers whenever it runs."""
    return torch.Generator().manual_seed(seed)


def gauss(g, *shape):
    """Standard normal draws."""
    return torch.randn(shape, dtype=torch.float64, generator=g)


def normal(x, mean, variance):
    """Density of N(mean, variance) at x."""
    return torch.exp(-0.5 * (x - mean) ** 2 / variance) / (2 * math.pi * variance) ** 0.5


def agree(what, estimate, exact, error):
    """Whether an estimate is within four standard errors of the exact value; says so."""
    off = abs(float(estimate) - float(exact)) / float(error)
    print(f"{what}: {float(estimate):.4f}, exactly {float(exact):.4f} ({off:.1f} standard errors apart)")
    return off < 4


# %% [markdown] tags=["slide"]
# ## 1 · The idea in a picture
#
# Take data $x$ whose law $q(x)$ we know: a mixture of two Gaussians on the line. Add a little noise and shrink, again
# and again, $T = 100$ times. After $t$ steps the data have become $z_t$. Their law $q(z_t)$ can be computed on a grid,
# by summing over all $x$ (*quadrature*).
#
# The **schedule** $\bar\alpha_t$ says how much of the signal's power is left at step $t$. It falls from almost 1 to
# almost 0; here $\log \frac{\bar\alpha_t}{1 - \bar\alpha_t}$, the *log signal-to-noise ratio*, falls in a straight line
# from 8 to -8.

# %%
T = 100
schedule = mt.NoiseSchedule.log_snr(T, high=8.0, low=-8.0)
abar = schedule.abar
weights, means, stds = torch.tensor([[0.6, 0.4], [-1.0, 1.2], [0.3, 0.2]], dtype=torch.float64)
grid = torch.linspace(-6, 6, 1201, dtype=torch.float64)
dx = 0.01
q_x = (weights * normal(grid[:, None], means, stds**2)).sum(1)  # q(x) on the grid


def density(t):
    """q(z_t) on the grid: the sum over x of q(x) N(z; sqrt(abar) x, 1 - abar) dx."""
    return normal(grid[:, None], abar[t].sqrt() * grid, 1 - abar[t]) @ q_x * dx


by_step = torch.stack([density(t) for t in range(T + 1)], 1)  # (z, t)
assert torch.allclose(by_step.sum(0) * dx, torch.ones(T + 1, dtype=torch.float64))
rest = float((by_step[:, T] - normal(grid, 0.0, 1.0)).abs().max())
assert rest < 0.005
print(f"at t = T the density differs from N(0, 1) by at most {rest:.4f}")

# %%
process = mt.ForwardProcess(schedule, {"x": 1.0})  # one modality, of weight 1
paths = [torch.tensor([[-1.3], [-1.0], [-0.8], [1.0], [1.2], [1.3]], dtype=torch.float64)]
paths += [process.diffuse({"x": paths[0]}, 0, generator=rng(0))[0]]
g = rng(1)
for t in range(1, T + 1):
    mean, std = process.transition(paths[-1], {"x": paths[0]}, t)
    paths.append(mean + std * gauss(g, 6, 1))
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
near = grid.abs() <= 3
shade = by_step[near] / by_step[near].amax(0)
axis.pcolormesh(range(T + 1), grid[near][::4], shade[::4], cmap="Blues", shading="nearest", rasterized=True)
axis.plot(range(T + 1), torch.cat(paths[1:], 1).T, color="black", linewidth=0.7)
axis.set(xlabel="step t", ylabel="$z_t$", title="Noise turns the law of the data into N(0, 1); six examples on their way")
plots.show(
    figure,
    "Shades of the density of z over the step: two narrow bands that widen and melt into one wide band from about the "
    "middle on. Six black lines start in the bands and become random walks.",
)

# %% [markdown]
# Forwards is easy: no training, just noise. A diffusion model is the way **back**: from a draw of $\mathcal N(0, 1)$ on
# the right, step by step to a draw of the data on the left. We will find that one function is all it needs: the best
# guess of $x$ given $z_t$.
#
# ## 2 · Warm-up: five facts
#
# **Fact 1, sums.** For independent $X \sim \mathcal N(\mu, \sigma^2)$, $Y \sim \mathcal N(\nu, \tau^2)$ the sum $aX +
# bY$ is Gaussian, with mean $a\mu + b\nu$ and variance $a^2\sigma^2 + b^2\tau^2$. Check against 100,000 draws: the mean
# (standard error $\sigma/\sqrt n$), the variance ($\sigma^2\sqrt{2/n}$), and the shape: a Gaussian has 68.27% of its
# mass within one standard deviation. Four standard errors are the tolerance of every simulation in this course.

# %%
n, g = 100_000, rng(2)
total = 0.8 * (1.0 + 0.5 * gauss(g, n)) - 0.6 * (2.0 + 1.5 * gauss(g, n))
mean, variance = 0.8 * 1.0 - 0.6 * 2.0, 0.8**2 * 0.5**2 + 0.6**2 * 1.5**2
inside = ((total - mean).abs() < variance**0.5).double().mean()
assert agree("mean    ", total.mean(), mean, (variance / n) ** 0.5)
assert agree("variance", total.var(), variance, variance * (2 / n) ** 0.5)
assert agree("inside  ", inside, math.erf(0.5**0.5), (0.6827 * 0.3173 / n) ** 0.5)

# %% [markdown]
# **Fact 2, what a noisy measurement tells.** Before, we know $x \sim \mathcal N(m, s^2)$. We see $z = a x + b\,
# \varepsilon$ with noise $\varepsilon \sim \mathcal N(0, 1)$. By Bayes' rule $p(x \mid z) \propto p(x)\, p(z \mid x)$,
# and two exponents that are quadratic in $x$ add up to another one: $x \mid z$ is Gaussian, its *precision* (one over
# the variance) is the sum of both precisions, and its mean is weighted by them:
#
# $$ \frac{1}{v} = \frac{1}{s^2} + \frac{a^2}{b^2}, \qquad
#    \mathbb E[x \mid z] = v\,\Big( \frac{m}{s^2} + \frac{a\, z}{b^2} \Big). $$
#
# Check without algebra: multiply the two densities on the grid, normalise, and read mean and variance off.


# %%
def posterior(m, s2, z, a, b2):
    """Mean and variance of x given z = a x + b eps, for x ~ N(m, s2)."""
    v = 1 / (1 / s2 + a**2 / b2)
    return v * (m / s2 + a * z / b2), v


mean, variance = posterior(m=0.5, s2=0.8, z=-0.7, a=0.9, b2=0.4)
product = normal(grid, 0.5, 0.8) * normal(-0.7, 0.9 * grid, 0.4)
product = product / product.sum()
grid_mean = (grid * product).sum()
grid_variance = ((grid - grid_mean) ** 2 * product).sum()
assert abs(float(grid_mean) - mean) < 1e-10
assert abs(float(grid_variance) - variance) < 1e-10
print(f"mean {mean:.6f}, on the grid {grid_mean:.6f}; variance {variance:.6f}, on the grid {grid_variance:.6f}")

# %% [markdown]
# **Fact 3, how far apart two Gaussians are.** The *Kullback-Leibler divergence* $\mathrm{KL}(q\,\|\,p) = \mathbb E_q
# \log \frac{q(z)}{p(z)}$, in nats, is never negative, and 0 for equal laws only. Put both densities in:
#
# $$ \mathrm{KL}\big(\mathcal N(\mu, \sigma^2)\,\|\,\mathcal N(\nu, \tau^2)\big) = \frac12\Big(
#    \frac{\sigma^2}{\tau^2} + \frac{(\mu - \nu)^2}{\tau^2} - 1 - \log\frac{\sigma^2}{\tau^2} \Big) . $$
#
# With *equal* variances only the means count: $(\mu - \nu)^2 / 2\tau^2$. That case will become the training loss.


# %%
def kl(mean_q, var_q, mean_p, var_p):
    """KL(q || p) of two Gaussians in nats."""
    ratio = torch.as_tensor(var_q / var_p, dtype=torch.float64)
    return 0.5 * (ratio + (mean_q - mean_p) ** 2 / var_p - 1 - ratio.log())


draws = 0.3 + 0.7**0.5 * gauss(rng(3), n)
log_ratio = normal(draws, 0.3, 0.7).log() - normal(draws, -0.4, 1.1).log()
assert agree("KL", log_ratio.mean(), kl(0.3, 0.7, -0.4, 1.1), log_ratio.std() / n**0.5)

# %% [markdown] tags=["slide"]
# **Fact 4, Jensen's inequality gives a bound.** A *latent variable* $z$ is one that we do not see; to get the
# likelihood of what we see, the **evidence** $p(x) = \int p(z)\, p(x \mid z)\, dz$, it is summed out. Usually nobody
# can do that. Take any law $q(z)$ instead. The logarithm is concave, so the logarithm of a mean is at least the mean of
# the logarithm:
#
# $$ \log p(x) = \log \mathbb E_q \frac{p(z)\, p(x \mid z)}{q(z)}
#    \;\ge\; \mathbb E_q \log \frac{p(z)\, p(x \mid z)}{q(z)}
#    = \underbrace{\mathbb E_q \log p(x \mid z) - \mathrm{KL}\big(q(z)\,\|\,p(z)\big)}
#      _{\text{evidence lower bound, ELBO}} . $$
#
# What is lost is $\mathrm{KL}(q(z)\,\|\,p(z \mid x))$: nothing, if $q$ is the posterior. Check it where the evidence is
# known: $z \sim \mathcal N(0, 1)$, $x \mid z \sim \mathcal N(z, 0.5)$, so by fact 1 $p(x) = \mathcal N(0, 1.5)$.

# %%
x = torch.tensor(1.4, dtype=torch.float64)
evidence = normal(x, 0.0, 1.5).log()
post_mean, post_var = posterior(0.0, 1.0, x, 1.0, 0.5)
for name, (mean, var) in {"the prior": (0.0, 1.0), "a guess": (0.5, 0.5), "the posterior": (post_mean, post_var)}.items():
    reading = normal(x, mean, 0.5).log() - var / (2 * 0.5)  # E_q log N(x; z, 0.5)
    elbo = reading - kl(mean, var, 0.0, 1.0)
    lost = kl(mean, var, post_mean, post_var)
    assert abs(float(evidence - elbo - lost)) < 1e-12
    print(f"q is {name:13s}: ELBO {elbo:.4f} + lost {lost:.4f} = {elbo + lost:.4f} = log p(x) {evidence:.4f}")

# %% [markdown]
# **Fact 5, Tweedie's formula.** Now $x$ has *any* law, and $z = a x + b\, \varepsilon$ again. Then the mean of $x$
# given $z$ needs nothing but the density of $z$ (Robbins 1956, Efron 2011):
#
# $$ \mathbb E[x \mid z] = \frac{z + b^2\, \nabla \log p(z)}{a} . $$
#
# Proof: differentiate $p(z) = \int p(x)\, \mathcal N(z; a x, b^2)\, dx$ under the integral, and read it as a mean:
#
# $$ \nabla p(z) = \int p(x)\, \mathcal N(z; a x, b^2)\, \frac{a x - z}{b^2}\, dx
#    = p(z)\, \frac{a\, \mathbb E[x \mid z] - z}{b^2} . $$
#
# The gradient $\nabla \log p(z)$ is called the **score**. Check on our mixture: $p(z)$ in closed form (fact 1 for each
# component) and its score by automatic differentiation, against $\mathbb E[x \mid z]$ by quadrature.

# %%
a, b2 = 0.8, 0.36
z = torch.tensor([-2.0, -0.5, 0.1, 0.4, 1.5], dtype=torch.float64, requires_grad=True)
log_p = (weights * normal(z[:, None], a * means, a**2 * stds**2 + b2)).sum(1).log()
(score,) = torch.autograd.grad(log_p.sum(), z)
tweedie = (z.detach() + b2 * score) / a
joint = q_x * normal(z.detach()[:, None], a * grid, b2)  # p(x) p(z | x) on the grid of x
quadrature = (joint * grid).sum(1) / joint.sum(1)
assert torch.allclose(tweedie, quadrature, atol=1e-10)
print("z             ", [f"{value:.2f}" for value in z.tolist()])
print("by Tweedie    ", [f"{value:.6f}" for value in tweedie.tolist()])
print("by quadrature ", [f"{value:.6f}" for value in quadrature.tolist()])

# %% [markdown] tags=["slide"]
# ## 3 · Forwards
#
# **The step.** Shrink a little, add a little noise: with $\alpha_t = \bar\alpha_t / \bar\alpha_{t-1}$, just below 1,
#
# $$ q(z_t \mid z_{t-1}) = \mathcal N\big(\sqrt{\alpha_t}\, z_{t-1},\ (1 - \alpha_t) I\big). $$
#
# Shrinking and noise are balanced: if $z_{t-1}$ has variance 1, so has $z_t$. ($I$ is the identity matrix: each
# coordinate gets its own noise, and on the line it is 1.)
#
# **The marginal.** Where are we after $t$ steps? Claim: $q(z_t \mid x) = \mathcal N(\sqrt{\bar\alpha_t}\, x,\ (1 -
# \bar\alpha_t) I)$, if it is so at $t = 0$. By induction, with fact 1: the mean is
# $\sqrt{\alpha_t}\sqrt{\bar\alpha_{t-1}} \, x = \sqrt{\bar\alpha_t}\, x$, the variance
# $\alpha_t (1 - \bar\alpha_{t-1}) + (1 - \alpha_t) = 1 - \alpha_t \bar\alpha_{t-1} = 1 - \bar\alpha_t$. Iterate the
# chain of Gaussians, and compare at every step:

# %%
alpha = abar[1:] / abar[:-1]  # alpha[t - 1] is alpha_t
x = -1.3
mean, variance = abar[0].sqrt() * x, 1 - abar[0]
for t in range(1, T + 1):
    mean, variance = alpha[t - 1].sqrt() * mean, alpha[t - 1] * variance + 1 - alpha[t - 1]
    assert abs(float(mean - abar[t].sqrt() * x)) < 1e-12
    assert abs(float(variance - (1 - abar[t]))) < 1e-12
print(f"iterated to T: mean {mean:.6f}, variance {variance:.6f}")
print(f"closed form:   mean {abar[T].sqrt() * x:.6f}, variance {1 - abar[T]:.6f}")

# %% [markdown]
# And simulate: 20,000 chains from one $x$, step by step, against the marginal; and the library's `transition` and
# `marginal` against ours. (`transition` is one step of `process.ahead`, which goes from any $s$ to any $t > s$.)

# %%
n, t, g = 20_000, 50, rng(4)
one = {"x": torch.full((n, 1), x, dtype=torch.float64)}
z = abar[0].sqrt() * x + (1 - abar[0]).sqrt() * gauss(g, n, 1)
mean, std = process.ahead(z, one["x"], one["x"], 0, t)  # all t steps at once; W = 1, so m_0 = m_t = x
assert torch.allclose(mean, (abar[t] / abar[0]).sqrt() * z)
assert torch.allclose(std**2, (1 - abar[t] / abar[0]).expand_as(std))
for s in range(1, t + 1):
    mean, std = process.transition(z, one, s)
    assert torch.allclose(mean, alpha[s - 1].sqrt() * z)
    z = mean + std * gauss(g, n, 1)
mean, std = process.marginal(one, t)
assert torch.allclose(mean, abar[t].sqrt() * one["x"])
assert torch.allclose(std, (1 - abar[t]).sqrt().expand_as(std))
assert agree("mean    ", z.mean(), mean[0], std[0] / n**0.5)
assert agree("variance", z.var(), std[0] ** 2, std[0] ** 2 * (2 / n) ** 0.5)

# %% [markdown] tags=["slide"]
# **One step back, knowing $x$.** Fact 2 with the marginal of $z_{t-1}$ as what we knew before, and the step as the
# noisy measurement ($a = \sqrt{\alpha_t}$, $b^2 = 1 - \alpha_t$):
#
# $$ q(z_{t-1} \mid z_t, x) = \mathcal N(\mu, \tilde\beta_t I), \quad
#    \mu = \frac{\sqrt{\alpha_t}\,(1 - \bar\alpha_{t-1})\, z_t + \sqrt{\bar\alpha_{t-1}}\,(1 - \alpha_t)\, x}{1 -
#    \bar\alpha_t}, \quad
#    \tilde\beta_t = \frac{(1 - \alpha_t)(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t} . $$
#
# It is a weighted mean: some $z_t$, some $x$. Four ways: fact 2, this formula, the library, and Bayes' rule on a grid.
# In the library these two lines are `process.back`, from any $t$ to any $s < t$; `process.posterior` is one step of it.
# With a guess in the place of $x$ the same lines are the sampler's step (section 8) and the bound's (section 5).

# %%
t, x, z_t = 50, -1.3, 0.4
a, ab, ab_prev = alpha[t - 1], abar[t], abar[t - 1]
by_fact = posterior(ab_prev.sqrt() * x, 1 - ab_prev, z_t, a.sqrt(), 1 - a)
mu = (a.sqrt() * (1 - ab_prev) * z_t + ab_prev.sqrt() * (1 - a) * x) / (1 - ab)
beta = (1 - a) * (1 - ab_prev) / (1 - ab)
product = normal(grid, ab_prev.sqrt() * x, 1 - ab_prev) * normal(z_t, a.sqrt() * grid, 1 - a)
grid_mean = (grid * product).sum() / product.sum()
grid_var = ((grid - grid_mean) ** 2 * product).sum() / product.sum()
here, m = torch.full((1, 1), z_t, dtype=torch.float64), one["x"][:1]  # W = 1, so m_t = m_{t-1} = x
library_mean, library_std = process.posterior(here, {"x": m}, t)
assert torch.equal(library_mean, process.back(here, m, m, t, t - 1)[0])
for mean, variance in (by_fact, (grid_mean, grid_var), (library_mean, library_std**2)):
    assert abs(float(mean - mu)) < 1e-10
    assert abs(float(variance - beta)) < 1e-10
print(f"mean {mu:.6f} and variance {beta:.6f}: fact 2, formula, library and grid agree")

# %% [markdown] tags=["slide"]
# ## 4 · The best denoiser
#
# To go back *without* knowing $x$, we need a guess of it: a **denoiser** $\hat x(z_t, t)$. The guess with the smallest
# mean squared error is the posterior mean $\mathbb E[x \mid z_t]$. For a mixture of Gaussians it has a closed form.
# Bayes' rule says which component $z_t$ comes from, with probabilities $r_k$; fact 2 says what $x$ is, given $z_t$ and
# the component:
#
# $$ r_k \propto \pi_k\, \mathcal N\big(z_t;\ \sqrt{\bar\alpha_t}\, \mu_k,\ \bar\alpha_t s_k^2 + 1 - \bar\alpha_t\big),
#    \qquad \mathbb E[x \mid z_t] = \sum_k r_k\, \mathbb E[x \mid z_t, k] . $$


# %%
def denoiser(z, ab):
    """E[x | z] and the density q(z) at z (B,), where ab of the signal is left; by hand."""
    joint = weights * normal(z[:, None], ab.sqrt() * means, ab * stds**2 + 1 - ab)  # (B, K)
    guess, _ = posterior(means, stds**2, z[:, None], ab.sqrt(), 1 - ab)
    return (joint * guess).sum(1) / joint.sum(1), joint.sum(1)


for t in (10, 50, 90):
    by_hand, q_z = denoiser(grid, abar[t])
    joint = q_x * normal(grid[:, None], abar[t].sqrt() * grid, 1 - abar[t]) * dx  # (z, x)
    seen = joint.sum(1) > 1e-12  # elsewhere q(z_t) is too small to divide by
    assert torch.allclose(q_z, joint.sum(1), atol=1e-10)
    assert torch.allclose(by_hand[seen], (joint @ grid)[seen] / joint.sum(1)[seen], atol=1e-6)
print("by hand and by quadrature: the same density and the same posterior mean, at t = 10, 50, 90")

# %% [markdown]
# The library's exact model, `mt.exact.LabelledMixture`, has two modalities: the point "x" and the "label" that says
# which component it comes from. We give the label the weight 0. Then it is *not in* $z$ at all: `process.entering`
# names what is. What remains is an exact diffusion model of one modality, with the same methods as a trained one.

# %%
one_modality = {"x": 1.0, "label": 0.0}
process = mt.ForwardProcess(schedule, one_modality)
line = mt.exact.LabelledMixture(weights, means[:, None], stds, torch.zeros(2, 1), process)
assert process.entering == ("x",)
for t in range(T + 1):
    by_hand, q_z = denoiser(grid, abar[t])
    assert torch.allclose(line.predict(grid[:, None], t).aggregate[:, 0], by_hand, atol=1e-9)
print("the library's exact model is the hand-written posterior mean, at every step")

# %% [markdown]
# Is it the best guess? Three guesses of $x$ from $z_t$ at $t = 50$, 20,000 examples: dividing by $\sqrt{\bar\alpha_t}$,
# the best straight line, and the posterior mean.

# %%
t, g = 50, rng(5)
data = line.draw(n, g)["x"]
z, _ = process.diffuse({"x": data}, t, generator=g)
both = torch.cat([data, z], 1).T.cov()
straight = data.mean() + both[0, 1] / both[1, 1] * (z - z.mean())
guesses = {"z / sqrt(abar)": z / abar[t].sqrt(), "straight line": straight, "E[x | z]": line.predict(z, t).aggregate}
errors = {name: float((data - guess).square().mean()) for name, guess in guesses.items()}
print("mean squared errors:", ", ".join(f"{name} {error:.3f}" for name, error in errors.items()))
assert errors["E[x | z]"] < errors["straight line"] < errors["z / sqrt(abar)"]

# %% [markdown] tags=["slide"]
# ## 5 · Backwards: the model and its bound
#
# **The model.** Start from $p(z_T) = \mathcal N(0, I)$. Take the step back as if the guess were the truth, $p(z_{t-1}
# \mid z_t) = q(z_{t-1} \mid z_t, x = \hat x(z_t, t))$. At $z_0$, where hardly any noise is left, read out the data by
# some $p(x \mid z_0)$. All $z_{0:T} = (z_0, \dots, z_T)$ together are *one* latent variable, so fact 4 applies, with
# the forward process as $q$:
#
# $$ \log p(x) \;\ge\; \mathbb E_q \Big[ \log p(z_T) + \sum_{t=1}^T \log p(z_{t-1} \mid z_t) + \log p(x \mid z_0) -
#    \log q(z_{0:T} \mid x) \Big] . $$
#
# **Turn $q$ around.** Given $x$, the chain may as well be written backwards: $q(z_{0:T} \mid x) = q(z_T \mid x) \prod_t
# q(z_{t-1} \mid z_t, x)$. Each trajectory must get the same density both ways. (A chain of 20 steps is enough here.)

# %%
coarse = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20, 8.0, -8.0), one_modality)
data = {"x": line.draw(4000, rng(6))["x"]}
g = rng(7)
mean, std = coarse.marginal(data, 0)
zs = [mean + std * gauss(g, 4000, 1)]
forwards = gaussian_log_prob(zs[0], mean, std**2)
for t in range(1, 21):
    mean, std = coarse.transition(zs[-1], data, t)
    zs.append(mean + std * gauss(g, 4000, 1))
    forwards += gaussian_log_prob(zs[-1], mean, std**2)
mean, std = coarse.marginal(data, 20)
backwards = gaussian_log_prob(zs[20], mean, std**2)
for t in range(1, 21):
    mean, std = coarse.posterior(zs[t], data, t)
    backwards += gaussian_log_prob(zs[t - 1], mean, std**2)
assert torch.allclose(forwards, backwards, atol=1e-8)
print(f"log q of the first trajectory: forwards {forwards[0]:.6f}, backwards {backwards[0]:.6f}")

# %% [markdown] tags=["slide"]
# **Pair up.** Now $p$ and $q$ have factors for the same steps, and the bound falls into three parts:
#
# $$ \mathrm{ELBO} = - \underbrace{\mathrm{KL}\big(q(z_T \mid x)\,\|\,p(z_T)\big)}_{\text{prior}}
#    - \sum_{t=1}^T \underbrace{\mathbb E\,\mathrm{KL}\big(q(z_{t-1} \mid z_t, x)\,\|\,p(z_{t-1} \mid
#    z_t)\big)}_{\text{diffusion, } \mathrm{KL}_t} + \underbrace{\mathbb E \log p(x \mid z_0)}_{\text{read-out}} . $$
#
# **The diffusion term.** Both laws are Gaussians of the same variance $\tilde\beta_t$, so only the distance of their
# means counts (fact 3). They differ in one place, $x$ against $\hat x$. With the signal-to-noise ratio
# $\mathrm{SNR}_t = \bar\alpha_t / (1 - \bar\alpha_t)$ it collapses (Kingma et al. 2021):
#
# $$ \mathrm{KL}_t = \frac{\|\mu(x) - \mu(\hat x)\|^2}{2 \tilde\beta_t} = \frac{\bar\alpha_{t-1} (1 - \alpha_t)^2}{2
#    \tilde\beta_t\, (1 - \bar\alpha_t)^2}\, \|x - \hat x\|^2 = \tfrac12\, (\mathrm{SNR}_{t-1} - \mathrm{SNR}_t)\, \|x -
#    \hat x\|^2 . $$

# %%
snr = abar / (1 - abar)
worst = 0.0
for t in range(1, T + 1):
    z, _ = process.diffuse(data, t, generator=rng(t))
    guess = line.predict(z, t).aggregate
    true_mean, std = process.posterior(z, data, t)
    model_mean, _ = process.posterior(z, {"x": guess}, t)
    left = kl(true_mean, std**2, model_mean, std**2)
    right = 0.5 * (snr[t - 1] - snr[t]) * (data["x"] - guess) ** 2
    worst = max(worst, float((left - right).abs().max() / right.mean()))
    if t == 50:
        print(f"t = {t}: by fact 3 {left.mean():.6f}, by the SNR formula {right.mean():.6f} nats")
assert worst < 1e-8
print(f"over 100 steps and 4000 examples they differ by at most {worst:.0e} of the step's mean")

# %% [markdown]
# **All terms by quadrature.** With the exact denoiser, $\mathbb E (x - \hat x)^2 = \mathbb E x^2 - \mathbb E \hat x^2$
# (the posterior mean is uncorrelated with its own error), an integral over $z_t$ alone. The read-out is exact, too:
# $p(x \mid z_0) = q(x \mid z_0)$, whose mean logarithm is, by Bayes' rule, $\mathbb E \log q(x) + \mathbb E \log q(z_0
# \mid x) - \mathbb E \log q(z_0)$. And the best that *any* model can reach on average is the data's own $\mathbb E \log
# q(x)$, since $\mathbb E_q \log \frac{q(x)}{p(x)}$ is a KL. On average, then, $\mathrm{ELBO} \le \log p(x) \le \log
# q(x)$, and for the mixture the right end is known.


# %%
def mean_of(density, function):
    """The integral of density times function over the grid."""
    return float((density * function).sum() * dx)


best = mean_of(q_x, q_x.log())  # E log q(x)


def bound_terms(curve):
    """Prior, diffusion and read-out of the exact denoiser on the mixture, for a schedule abar (T+1,)."""
    snr, power = curve / (1 - curve), mean_of(q_x, grid**2)
    diffusion = 0.0
    for t in range(1, len(curve)):
        guess, q_z = denoiser(grid, curve[t])
        diffusion += 0.5 * float(snr[t - 1] - snr[t]) * (power - mean_of(q_z, guess**2))
    prior = float(kl(0.0, 1 - curve[-1], 0.0, 1.0) + curve[-1] * power / 2)
    _, q_z = denoiser(grid, curve[0])
    readout = best - 0.5 * math.log(2 * math.pi * math.e * float(1 - curve[0])) - mean_of(q_z, q_z.log())
    return {"prior": prior, "diffusion": diffusion, "readout": readout, "bound": readout - prior - diffusion}


terms = bound_terms(coarse.schedule.abar)
print("T = 20:", ", ".join(f"{name} {value:.4f}" for name, value in terms.items()), "nats")
print(f"the best possible, E log q(x): {best:.4f} nats")
assert terms["bound"] < best

# %% [markdown]
# The same by simulation: over our 4000 trajectories, $\log p - \log q$ as in fact 4; and by the library, `mt.elbo`.

# %%
exact = mt.exact.LabelledMixture(weights, means[:, None], stds, torch.zeros(2, 1), coarse)
log_p = gaussian_log_prob(zs[20], torch.zeros(1), torch.ones(1)) + exact.log_prob("x", data["x"], zs[0], 0)
for t in range(1, 21):
    mean, std = coarse.posterior(zs[t], {"x": exact.predict(zs[t], t).aggregate}, t)
    log_p += gaussian_log_prob(zs[t - 1], mean, std**2)
simulated = log_p - forwards
library = mt.elbo(exact, data, samples=20, present={"x"}, generator=rng(8))
assert agree("trajectories", simulated.mean(), terms["bound"], simulated.std() / 4000**0.5)
assert agree("mt.elbo     ", library.total, terms["bound"], library.stderr)
assert agree("its diffusion term", library.diffusion, terms["diffusion"], library.stderr)

# %% [markdown] tags=["slide"]
# **What is lost, and why it shrinks with $T$.** The denoiser is exact, the prior costs almost nothing, and the read-out
# is exact. What is left? The true step back, $q(z_{t-1} \mid z_t)$, is *not* a Gaussian: where $z_t$ may come from
# either component, a big step back has two humps. A small step is nearly Gaussian, whatever the data (Sohl-Dickstein et
# al. 2015). So more steps help. (The Gaussian also has a fixed variance $\tilde\beta_t$; that costs, too, and less for
# small steps.) Left and middle: the step back from $z_t = 0.2$ at log-SNR -1.6.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.9), layout="constrained")
distance, z_t = {}, torch.tensor([0.2], dtype=torch.float64)
for axis, steps in zip(axes, (5, 50), strict=False):
    curve, t = mt.NoiseSchedule.log_snr(steps, 8.0, -8.0).abar, round(0.6 * steps)
    a = curve[t] / curve[t - 1]
    true = denoiser(grid, curve[t - 1])[1] * normal(z_t, a.sqrt() * grid, 1 - a)
    true = true / (true.sum() * dx)
    guess, _ = denoiser(z_t, curve[t])
    model = normal(grid, *posterior(curve[t - 1].sqrt() * guess, 1 - curve[t - 1], z_t, a.sqrt(), 1 - a))
    distance[steps] = float((true - model).abs().sum() * dx / 2)
    axis.plot(grid, true, color=plots.COLOURS["x"], label="true")
    axis.plot(grid, model, "--", color="black", label="model")
    axis.set(xlim=(-2, 2), xlabel="$z_{t-1}$", title=f"T = {steps}: {distance[steps]:.0%} of the mass differs")
axes[0].legend(frameon=False)
assert distance[50] < 0.2 * distance[5]
curves = {steps: mt.NoiseSchedule.log_snr(steps, 8.0, -8.0).abar for steps in (10, 30, 100, 300, 1000)}
many = {steps: best - bound_terms(curve)["bound"] for steps, curve in curves.items()}
axes[2].loglog(many.keys(), many.values(), "o-", color=plots.COLOURS["x"])
axes[2].set(xlabel="steps T", ylabel="gap (nats)", title=f"T = 1000: the gap is {many[1000]:.3f} nats")
plots.show(
    figure,
    "Left: a true step back with two humps against one Gaussian. Middle: with 50 steps they nearly agree. "
    "Right: the gap falls in a straight line with T, on logarithmic axes.",
)

# %%
print("gap by T:", {steps: round(gap, 4) for steps, gap in many.items()})
print("T times gap:", {steps: round(steps * gap, 1) for steps, gap in many.items()})
assert all(b < a for a, b in itertools.pairwise(many.values()))
assert 9 < many[100] / many[1000] < 12  # ten times the steps, about a tenth of the gap

# %% [markdown] tags=["slide"]
# ## 6 · From the bound to the loss
#
# **Three things to predict.** $z_t = a\, x + b\, \varepsilon$ with $a = \sqrt{\bar\alpha_t}$, $b = \sqrt{1 -
# \bar\alpha_t}$. A network that sees $z_t$ may put out $\hat x$; or the noise $\hat\varepsilon$; or $\hat v$, a guess
# of the *velocity* $v = a\, \varepsilon - b\, x$ (Salimans and Ho 2022). Since $a^2 + b^2 = 1$, $(z_t, v)$ is $(x,
# \varepsilon)$ turned by an angle, and turning back gives $x = a z_t - b v$, $\varepsilon = b z_t + a v$. (By Tweedie's
# formula the best $\hat\varepsilon$ is $-b$ times the score: to denoise is to learn the score, Vincent 2011, Song et
# al. 2021.) Round trip:


# %%
def to_x(kind, output, z, t):
    """The guess of x that an output of this kind stands for."""
    a, b = abar[t].sqrt(), (1 - abar[t]).sqrt()
    return {"x": output, "eps": (z - b * output) / a, "v": a * z - b * output}[kind]


plane = mt.ForwardProcess(schedule, {"x": 1.0})
points, outputs = datasets.toy("mixture", n=500).values["x"].double(), []
torch.manual_seed(0)
for kind in ("x", "eps", "v"):
    network = mt.MTDiffusion(plane, {"x": mt.Vector(2, head=False)}, mt.MLP((2,), 32, 1), (2,), prediction=kind)
    torch.nn.init.normal_(network.denoise[0].weight)  # networks begin with the output 0: too easy a check
    network.denoise.register_forward_hook(lambda module, seen, output: outputs.append(output))
    for t in (1, 50, 99):
        z, eps = plane.diffuse({"x": points}, t, generator=rng(t))
        a, b = plane.at(t, z).level
        target = {"x": points, "eps": eps, "v": a * eps - b * points}[kind]
        assert torch.allclose(to_x(kind, target, z, t), points, atol=1e-10)
        prediction = network.predict(z, t)
        assert torch.allclose(to_x(kind, outputs[-1].double(), z, t), prediction.aggregate, atol=1e-9)
print("x -> target -> x: the same; and a library network's output means what we say it means")

# %% [markdown] tags=["slide"]
# **The same error in three units.** Given $z_t$, a wrong output is a wrong $\hat x$: $\|\varepsilon -
# \hat\varepsilon\|^2 = \mathrm{SNR}_t\, \|x - \hat x\|^2$ and $\|v - \hat v\|^2 = (\mathrm{SNR}_t + 1)\, \|x - \hat
# x\|^2$. So each loss is a weight on $\|x - \hat x\|^2$; and so is the bound:
#
# | what is squared | weight on $\lVert x - \hat x \rVert^2$ |
# |---|---|
# | the bound, $\mathrm{KL}_t$ | $\frac12(\mathrm{SNR}_{t-1} - \mathrm{SNR}_t)$ |
# | $\lVert \varepsilon - \hat\varepsilon \rVert^2$, DDPM's "simple" loss | $\mathrm{SNR}_t$ |
# | $\lVert v - \hat v \rVert^2$, our training loss | $\mathrm{SNR}_t + 1 = 1 / (1 - \bar\alpha_t)$ |
# | $\lVert x - \hat x \rVert^2$ | 1 |
#
# On *our* schedule $\mathrm{SNR}_{t-1} = e^{\delta}\, \mathrm{SNR}_t$ with a constant $\delta = 16/T$: the simple loss
# *is* the diffusion term of the bound, up to one constant factor. On other schedules it is a reweighting. The library has
# the last three rows in `mtdiff.model.AGGREGATES`: of each output, what it makes of it, and its weight.

# %%
for t in (1, 30, 60, 100):
    z, eps = plane.diffuse({"x": points}, t, generator=rng(t))
    guess = points + 0.1 * gauss(rng(200 + t), 500, 2)  # some wrong guess
    at = plane.at(t, z)
    a, b = at.level
    eps_hat, v, v_hat = (z - a * guess) / b, a * eps - b * points, a * (z - a * guess) / b - b * guess
    error = (points - guess).square().sum(1)
    assert torch.allclose((eps - eps_hat).square().sum(1), snr[t] * error, rtol=1e-6)
    assert torch.allclose((v - v_hat).square().sum(1), (snr[t] + 1) * error, rtol=1e-6)
    for kind, weight in (("eps", snr[t]), ("v", snr[t] + 1), ("x", torch.ones(()))):
        assert torch.allclose(mt.model.AGGREGATES[kind].weight(at), weight.double(), rtol=1e-9)
delta = 16 / T
assert torch.allclose(0.5 * (snr[:-1] - snr[1:]), 0.5 * math.expm1(delta) * snr[1:])
print("eps: SNR, v: SNR + 1; and here the bound's weight is", f"{0.5 * math.expm1(delta):.4f} SNR, at every step")

# %% [markdown]
# Which steps does each loss listen to? Below is what even the best denoiser of our mixture pays at each step: the floor
# under each loss.

# %%
power = mean_of(q_x, grid**2)
left = torch.tensor([power - mean_of(q_z, guess**2) for guess, q_z in (denoiser(grid, ab) for ab in abar[1:])])
shares = {"bound, and $\\varepsilon$": snr[1:] * left, "$v$": (snr[1:] + 1) * left, "$x$": left}
shares = {name: share / share.sum() for name, share in shares.items()}
figure, axis = plt.subplots(figsize=(7, 2.7), layout="constrained")
for (name, share), dash in zip(shares.items(), ("-", "--", ":"), strict=True):
    axis.plot(range(1, T + 1), T * share, dash, color=plots.COLOURS["denoise"], label=name)
clean = {name: float(share[:50].sum()) for name, share in shares.items()}
percents = ", ".join(f"{name} {value:.0%}" for name, value in clean.items())
axis.set(xlabel="step t", ylabel="loss, mean 1", title=f"Share of the cleaner half of the steps: {percents}")
axis.legend(frameon=False)
plots.show(
    figure,
    "Loss of the best denoiser over the step. Bound and eps: flat in the cleaner half, then falling to 0. v: about flat "
    "throughout. x: near 0 in the cleaner half, then rising to a plateau.",
)
bound_share, v_share, x_share = clean.values()
assert bound_share > 0.8 > 0.6 > v_share > 0.3 > 0.1 > x_share

# %% [markdown] tags=["slide"]
# ## 7 · A network learns it
#
# Two coordinates now: three Gaussians in the plane, `datasets.toy("mixture")`. Its exact model is known
# (`datasets.MIXTURE`), again with the label's weight at 0. First check that model by a posterior written by hand, in
# two dimensions.

# %%
exact = mt.exact.LabelledMixture(**datasets.MIXTURE, process=process)
fresh = exact.draw(4000, rng(9))["x"]
for t in (0, 40, 100):
    z, _ = process.diffuse({"x": fresh}, t, generator=rng(10 + t))
    signal, spread = abar[t].sqrt(), abar[t] * exact.stds**2 + 1 - abar[t]
    off = z[:, None] - signal * exact.means  # (B, K, 2)
    r = (exact.weights.log() - off.square().sum(-1) / (2 * spread) - spread.log()).softmax(1)
    guess = exact.means + (signal * exact.stds**2 / spread)[:, None] * off
    by_hand = (r[..., None] * guess).sum(1)
    assert torch.allclose(by_hand, exact.predict(z, t).aggregate, atol=1e-9)
print("in the plane, too: library = posterior mean by hand")

# %% [markdown]
# The network is an `mt.MLP`. `mt.Vector(2)` is the modality; `head=False` says that it has no head of its own, since
# with one modality the denoiser's output says it all. The library's loss adds up one term for the denoiser and one per
# modality. Here both are the *same* number, the $v$-loss of the table above, so we give the second one the weight 0.

# %%
torch.manual_seed(0)
network = mt.MTDiffusion(plane, {"x": mt.Vector(2, head=False)}, mt.MLP((2,), width=64, blocks=2), (2,))
train = datasets.Dataset("points alone", {"x": datasets.toy("mixture", n=20_000).values["x"]})
before = mt.multitask_loss(network, train[:4000], generator=rng(11))
assert torch.allclose(before.terms["denoise"], before.terms["x"], rtol=1e-4)
print(f"{sum(p.numel() for p in network.parameters()):,} parameters; loss before training", end=" ")
print(f"{before.terms['denoise']:.4f} (denoise) and {before.terms['x']:.4f} (x): the same")

# %% [markdown]
# `mt.fit` is the training loop at its shortest, and worth reading (`mtdiff/fit.py`): batch, loss, gradient, step, and an
# average of the weights over the last 100 steps or so, which is what the network holds in the end.

# %% tags=["nbval-ignore-output"]
loss, batches = functools.partial(mt.multitask_loss, weights={"x": 0.0}), train.batches(256, seed=0)
history = mt.fit(network, batches, loss, steps=2000, lr=3e-3, ema=0.99, generator=rng(12), progress=True)
last = sum(row["denoise"] for row in history[-50:]) / 50

# %% [markdown] tags=["slide"]
# **How good is it?** The loss alone does not say: most of it is noise that nobody can predict. Split it. The error of
# any guess is the error of the best guess plus the distance from it, because the best guess's own error is uncorrelated
# with any function of $z_t$:
#
# $$ \mathbb E\,\|x - \hat x_\theta\|^2 \;=\;
#    \underbrace{\mathbb E\,\|x - \mathbb E[x \mid z_t]\|^2}_{\text{nobody can do better}} \;+\;
#    \underbrace{\mathbb E\,\|\mathbb E[x \mid z_t] - \hat x_\theta\|^2}_{\text{excess}} . $$

# %%
floor, excess, cross, spread = (torch.zeros(T + 1, dtype=torch.float64) for _ in range(4))
with torch.no_grad():
    for t in range(T + 1):
        z, _ = process.diffuse({"x": fresh}, t, generator=rng(300 + t))
        best_guess, guess = exact.predict(z, t).aggregate, network.predict(z, t).aggregate
        product = 2 * ((fresh - best_guess) * (best_guess - guess)).sum(1)
        floor[t], excess[t] = (fresh - best_guess).square().sum(1).mean(), (best_guess - guess).square().sum(1).mean()
        cross[t], spread[t] = product.mean(), product.std() / 4000**0.5
in_v = (1 / (2 * (1 - abar))).double()  # from |x|^2 to the v-loss per coordinate
assert float((cross.abs() / spread).max()) < 4.5, "the cross term is 0, up to noise"
print(f"v-loss before training {before.terms['denoise']:.4f}, of the last 50 steps {last:.4f}")
print(f"split on fresh data: nobody can do better than {(in_v * floor).mean():.4f}, excess {(in_v * excess).mean():.4f}")
for t in (0, 25, 50, 75, 100):
    print(f"t = {t:3d}: error of the best guess {floor[t]:.5f}, excess {excess[t] / floor[t]:.2%} of it")
assert float((excess / floor).max()) < 0.03

# %% [markdown]
# So the loss moved only a little, and two estimates of it (the last steps, fresh data) differ by more than the excess:
# it is a noisy average. Yet the network is close to the exact denoiser, and the excess says so. Where does it err?
# Arrows show which way the exact denoiser pulls a point ($\sqrt{\bar\alpha_t}\, \mathbb E[x \mid z_t] - z_t$, by
# Tweedie's formula the score times $1 - \bar\alpha_t$); the shade is the network's distance from it; the lines enclose
# about 50% and 99% of the examples.

# %%
side = torch.linspace(-3, 3, 61, dtype=torch.float64)
where = torch.cartesian_prod(side, side)
fields = {}
for t in (25, 50, 75):
    best_guess = exact.predict(where, t).aggregate
    with torch.no_grad():
        wrong = (network.predict(where, t).aggregate - best_guess).norm(dim=1)
    spread = abar[t] * exact.stds**2 + 1 - abar[t]
    far = (where[:, None] - abar[t].sqrt() * exact.means).square().sum(-1)
    q_z = (exact.weights * torch.exp(-far / (2 * spread)) / spread).sum(1)
    falling = q_z.sort(descending=True).values
    mass = falling.cumsum(0) / falling.sum()
    lines = [float(falling[(mass < share).sum()]) for share in (0.99, 0.5)]
    fields[t] = (wrong, q_z, lines, abar[t].sqrt() * best_guess - where)
inside = {t: float(wrong[q_z > lines[0]].mean()) for t, (wrong, q_z, lines, _) in fields.items()}
outside = {t: float(wrong[q_z <= lines[0]].mean()) for t, (wrong, q_z, lines, _) in fields.items()}
assert all(inside[t] < outside[t] for t in fields)
print("mean distance inside the 99% line: ", {t: round(value, 3) for t, value in inside.items()})
print("mean distance outside the 99% line:", {t: round(value, 3) for t, value in outside.items()})

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.4), layout="constrained", sharey=True)
for axis, (t, (wrong, q_z, lines, pull)) in zip(axes, fields.items(), strict=True):
    shade = axis.pcolormesh(side, side, wrong.reshape(61, 61).T, cmap="Greys", vmin=0, vmax=0.5, rasterized=True)
    axis.contour(side, side, q_z.reshape(61, 61).T, lines, colors=[plots.COLOURS["x"]], linewidths=1)
    start, arrow = (field.reshape(61, 61, 2)[::6, ::6].permute(2, 0, 1) for field in (where, pull))
    axis.quiver(*start, *arrow, color=plots.COLOURS["denoise"], width=0.006)
    axis.set(xlabel="first coordinate", aspect="equal", title=f"t = {t}")
axes[0].set_ylabel("second coordinate")
figure.colorbar(shade, ax=axes, label="$|\\hat x_\\theta - E[x|z_t]|$")
ratio = min(outside[t] / inside[t] for t in fields)
figure.suptitle(f"The network errs where no data are: outside the 99% line at least {ratio:.1f} times as much", fontsize=11)
plots.show(
    figure,
    "Three panels of the plane at rising noise. Arrows point to the three clouds, at high noise to their common centre. "
    "The grey of the network's error is pale inside the contour lines and darker outside.",
)

# %% [markdown] tags=["slide"]
# ## 8 · Sampling
#
# Run the model as it was defined: $z_T$ from noise, then $T$ Gaussian steps with the guess in the place of $x$, then
# read out. This is *ancestral* sampling, DDPM's. By hand:


# %%
@torch.no_grad()
def ancestral(model, n, g):
    """z_0 after T steps back from noise, (n, 2)."""
    z = gauss(g, n, 2)
    for t in range(T, 0, -1):
        x_hat = model.predict(z, t).aggregate
        a, ab, ab_prev = abar[t] / abar[t - 1], abar[t], abar[t - 1]
        mean = (a.sqrt() * (1 - ab_prev) * z + ab_prev.sqrt() * (1 - a) * x_hat) / (1 - ab)
        beta = (1 - a) * (1 - ab_prev) / (1 - ab)
        assert torch.allclose(mean, model.process.back(z, x_hat, x_hat, t, t - 1)[0], atol=1e-9)  # the library's line
        z = mean + beta.sqrt() * gauss(g, n, 2)
    return z


z_0 = ancestral(network, 2000, rng(12))
by_hand = network.predict(z_0, 0).aggregate.detach()
drawn = mt.sample(network, 2000, sampler="ddpm", steps=T, generator=rng(12))["x"]
assert torch.allclose(by_hand.to(drawn.dtype), drawn, atol=1e-4)
*_, (t, z, _) = mt.sample_path(exact, 2000, sampler="ddpm", steps=T, generator=rng(12))
assert torch.allclose(ancestral(exact, 2000, rng(12)), z, atol=1e-6)
first = [[round(value, 4) for value in points_[0].tolist()] for points_ in (by_hand, drawn)]
print(f"the network's first sample: by hand {first[0]}, mt.sample {first[1]}; the others agree as well")

# %% [markdown]
# How good are the samples? The *energy distance* $2\,\mathbb E|a - b| - \mathbb E|a - a'| - \mathbb E|b - b'|$ compares
# two sets of points. It is 0 for equal laws, up to the noise of finite sets. What that noise is, fresh data tell:
# twelve pairs of data sets. That the distance can tell laws apart, a single Gaussian shows, with the data's mean and
# covariance.

# %% tags=["nbval-ignore-output"]
real = exact.draw(2000, rng(13))["x"]
noise = torch.tensor(
    [energy_distance(exact.draw(2000, rng(s))["x"], exact.draw(2000, rng(50 + s))["x"]) for s in range(20, 32)]
)
blob = real.mean(0) + gauss(rng(14), 2000, 2) @ torch.linalg.cholesky(real.T.cov()).T
samples = {
    "data": exact.draw(2000, rng(15))["x"],
    "exact model": mt.sample(exact, 2000, sampler="ddpm", steps=T, generator=rng(16))["x"],
    "network": mt.sample(network, 2000, sampler="ddpm", steps=T, generator=rng(17))["x"].double(),
    "one Gaussian": blob,
}
figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.7), layout="constrained")
for axis, (name, points_) in zip(axes, samples.items(), strict=True):
    samples[name] = energy_distance(points_, real)
    nearest = (points_[:, None] - exact.means).square().sum(-1).argmin(1)
    plots.cloud(axis, points_, nearest, f"{name}: {samples[name]:.4f}", reach=2.6)
figure.suptitle("Energy distance to data: both models are at the noise floor, a single Gaussian is not", fontsize=11)
plots.show(
    figure, "Four scatter plots: three clouds for data, exact model and network, one round cloud for the single Gaussian."
)
print(f"noise floor: {noise.mean():.4f}, at most {noise.abs().max():.4f} in twelve pairs")
ceiling = float(noise.mean() + 4 * noise.std())
assert max(samples["exact model"], samples["network"]) < ceiling < samples["one Gaussian"] / 5

# %% [markdown] tags=["slide"]
# (Colours say which centre is nearest; the models know nothing of labels.)
#
# ## 9 · DDPM is N = 1
#
# The library is built for several modalities. With one of them, the identity as its encoder ($E(x) = x$) and the weight
# $W = 1$, it must be the published model: Ho et al. (2020) with $\beta_t = 1 - \alpha_t$ rising linearly from $10^{-4}$
# to 0.02 in $T = 1000$ steps. The schedule, the posterior's two coefficients and its variance, the mean written with
# the noise, and the weight of their bound:

# %%
ddpm = mt.ForwardProcess(mt.NoiseSchedule.linear(1000), {"x": 1.0})
betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
alphas, abars = 1 - betas, (1 - betas).cumprod(0)  # published indices: t - 1
assert torch.allclose(ddpm.schedule.abar[1:], abars)
for t in (2, 10, 500, 1000):
    z, eps = ddpm.diffuse({"x": points}, t, generator=rng(t))
    ab, ab_prev, beta, a = abars[t - 1], abars[t - 2], betas[t - 1], alphas[t - 1]
    published = ab_prev.sqrt() * beta / (1 - ab) * points + a.sqrt() * (1 - ab_prev) / (1 - ab) * z
    by_noise = (z - beta / (1 - ab).sqrt() * eps) / a.sqrt()
    variance = (1 - ab_prev) / (1 - ab) * beta
    mean, std = ddpm.posterior(z, {"x": points}, t)
    assert torch.allclose(mean, published, atol=1e-10)
    assert torch.allclose(mean, by_noise, atol=1e-9)
    assert torch.allclose(std**2, variance.expand_as(std), rtol=1e-9)
    weight = beta**2 / (2 * variance * a * (1 - ab))  # of |eps - eps_hat|^2 in their bound
    halves = 0.5 * (ab_prev / (1 - ab_prev) - ab / (1 - ab)) * (1 - ab) / ab  # ours, from |x - x_hat|^2
    assert torch.allclose(weight, halves, rtol=1e-6)
print("schedule, posterior mean (two forms), variance and bound: those of DDPM, at t = 2, 10, 500, 1000")

# %% [markdown]
# One difference is a matter of counting. DDPM has $\bar\alpha_0 = 1$: $z_0$ *is* the data, and the last step from $t =
# 1$ is the read-out. Our schedules keep a little noise at $t = 0$ and read there; `first` says at which step a process
# reads. (The library's tests also run diffusers' `DDPMScheduler` and `DDIMScheduler` against `mt.sample`: the same
# noise leads to the same points.)

# %%
assert (ddpm.first, process.first) == (1, 0)
print(f"DDPM's schedule is read at t = {ddpm.first} (abar_0 = {ddpm.schedule.abar[0]:.0f}), ours at t = {process.first}")

# %% [markdown]
# ## 10 · Play
#
# Move through time. Above: the density $q(z_t)$. Below: the best guess $\mathbb E[x \mid z_t]$. **Look for**: when do
# the two humps melt? What does the guess do for a $z_t$ between them, at small, middle and large $t$? (It turns from a
# line into a step into a flat line; the step is where a *decision* is made.) On a static page the slider does not move;
# below it are three settings.

# %% tags=["nbval-ignore-output"]
widgets.noised_density_slider(line)

# %%
for t in (15, 42, 80):
    figure = widgets.draw_noised_density(line, t)
    plots.show(figure, f"Density of z at step {t}, and the best guess of x given z below it.")

# %% [markdown]
# ## 11 · Exercises
#
# **Exercise 1 (warm-up, easy, 15 minutes). The denoiser of a single Gaussian.**
# The data are $x \sim \mathcal N(m, s^2)$. Write the
# function that returns mean *and* variance of $x$ given $z_t = z$, where $\bar\alpha_t$ is `ab`. Do it without calling
# `posterior`. *Hint*: fact 2.


# %% tags=["exercise"]
def single_gaussian(z, ab, m, s):
    """E[x | z_t = z] and Var[x | z_t = z]."""
    ...  # your code


# %% tags=["check"]
def check_1(function):
    fresh = (0.3 + 0.5 * torch.rand(4)).tolist()
    for z, ab, m, s in ((0.4, 0.9, -1.0, 0.5), (-1.2, 0.5, 0.3, 1.0), (0.8, 0.05, 1.0, 0.7), fresh):
        found = function(torch.tensor(z).double(), torch.tensor(ab).double(), m, s)
        if found is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        if not isinstance(found, tuple) or len(found) != 2:
            return widgets.Verdict(False, "expected two values, the mean and the variance")
        joint = normal(grid, m, s**2) * normal(z, ab**0.5 * grid, 1 - ab)
        mean = (grid * joint).sum() / joint.sum()
        truth = (float(mean), float(((grid - mean) ** 2 * joint).sum() / joint.sum()))
        for what, mine, right in zip(("mean", "variance"), found, truth, strict=True):
            if not abs(float(mine) - right) < 1e-6:
                text = f"z = {z}, ab = {ab}, m = {m}, s = {s}: {what} {float(mine):.4f}, on a grid {right:.4f}"
                return widgets.Verdict(False, text)
    return widgets.Verdict(True, "mean and variance are those of Bayes' rule on a grid, in four cases")


check_1(single_gaussian)


# %% tags=["solution"]
def single_gaussian_solution(z, ab, m, s):
    total = ab * s**2 + 1 - ab  # variance of z_t
    return m + ab.sqrt() * s**2 / total * (z - ab.sqrt() * m), s**2 * (1 - ab) / total


solved = check_1(single_gaussian_solution)
assert solved, solved.message
assert not check_1(lambda z, ab, m, s: (z / ab.sqrt(), 1 - ab)), "the data are forgotten"
assert not check_1(lambda *a: (single_gaussian_solution(*a)[0], single_gaussian_solution(*a)[1].sqrt())), "not a variance"
solved

# %% [markdown]
# **Exercise 2 (break it, medium, 15 minutes). Not enough noise at the end.**
# Sampling starts from $\mathcal N(0, I)$. What if
# $\bar\alpha_T$ is not near 0? Write a function that takes the log-SNR at $t = T$ and returns two numbers for the exact
# model of the mixture in the plane, with 100 steps from log-SNR 8: the prior term of the bound in nats, averaged over
# `fresh`, and the energy distance of 2000 ancestral samples to `real`. *Hint*: `mt.NoiseSchedule.log_snr`,
# `process.marginal` at $T$, `kl` summed over coordinates, `mt.sample(..., sampler="ddpm")`. Does the prior term say how
# biased the samples are?


# %% tags=["exercise"]
def shortfall(low):
    """Prior term (nats) and energy distance of samples, for a schedule that ends at log-SNR `low`."""
    ...  # your code


# %% tags=["check"]
def check_2(function):
    text = []
    # distances: mean and spread of six seeds, 2000 samples each
    for low, ours, error in ((-8.0, 0.0, 0.0013), (-2.0, 0.0, 0.0014), (1.0, 0.033, 0.0055), (2.0, 0.062, 0.0055)):
        found = function(low)
        if found is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        prior, distance = map(float, found)
        text.append(f"log-SNR {low:g}: prior {prior:.4f} nats, distance {distance:.4f}")
        other = mt.ForwardProcess(mt.NoiseSchedule.log_snr(T, 8.0, low), one_modality)
        other = mt.exact.LabelledMixture(**datasets.MIXTURE, process=other)
        right = mt.elbo(other, {"x": fresh}, present={"x"}, generator=rng(18)).prior
        if not abs(prior - right) < 1e-6:
            return widgets.Verdict(False, f"{text[-1]}, but the library's prior term is {right:.4f}")
        if not abs(distance - ours) < 4 * error:
            return widgets.Verdict(False, f"{text[-1]}: we find the distance {ours} ± {error}")
    return widgets.Verdict(True, "; ".join(text))


check_2(shortfall)


# %% tags=["solution"]
def shortfall_solution(low):
    short = mt.ForwardProcess(mt.NoiseSchedule.log_snr(T, 8.0, low), one_modality)
    model = mt.exact.LabelledMixture(**datasets.MIXTURE, process=short)
    mean, std = short.marginal({"x": fresh}, T)
    drawn = mt.sample(model, 2000, sampler="ddpm", steps=T, generator=rng(19))["x"]
    return kl(mean, std**2, 0.0, 1.0).sum(1).mean(), energy_distance(drawn, real)


solved = check_2(shortfall_solution)
assert solved, solved.message
assert not check_2(lambda low: (shortfall_solution(low)[0], 0.0)), "a wrong answer passes"
assert not check_2(lambda low: (0.0, shortfall_solution(low)[1])), "a wrong answer passes"
solved

# %% [markdown]
# The prior term warns, and errs on the safe side. Averaged over the data it is $\mathrm{KL}(q(z_T)\,\|\,p(z_T))$, the
# bias of the start, *plus* the information that $z_T$ still holds about $x$, which is no bias (Hoffman and Johnson
# 2016). At log-SNR -2 it is 0.16 nats, and yet 2000 samples cannot be told from data.
#
# **Exercise 3 (a small research question, medium, 15 minutes). Which output forgives errors?**
# A network is never exact. Suppose its output
# is off by the same `offset` in every coordinate, at every $z$ and $t$. Write the function that returns the guess of
# $x$ after the offset: given the exact guess `x_hat` (B, 2), the step, and the kind of output. *Hint*: what is the
# output that stands for `x_hat`? Section 6. The check then samples with your function. Before you look: which of $v$,
# $\varepsilon$, $x$ has a bounded effect on the guess at *low* SNR? And which on the sample at the end?


# %% tags=["exercise"]
def off_by(kind, x_hat, z, t, offset):
    """The guess of x, after `offset` was added to the output ("v", "eps" or "x") that stands for x_hat."""
    ...  # your code


# %% tags=["check"]
class Off(mt.exact.LabelledMixture):
    """The exact model of the mixture in the plane, with its output off by 0.1."""

    def predict(self, z_t, t, **options):
        right = super().predict(z_t, t, **options)
        return mt.Prediction(self.wrong(right.aggregate, z_t, t, 0.1), right.law, right.estimate)


def check_3(function):
    z, x_hat, found = gauss(rng(30), 4, 2), gauss(rng(31), 4, 2), []
    for kind, t, offset in itertools.product(("v", "eps", "x"), (10, 60), (0.3, -0.2)):
        a, b = abar[t].sqrt(), (1 - abar[t]).sqrt()
        shift = float({"v": -b, "eps": -b / a, "x": torch.ones(())}[kind]) * offset
        guess = function(kind, x_hat, z, t, offset)
        if guess is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        if not torch.allclose(guess - x_hat, torch.full_like(x_hat, shift), atol=1e-8):
            text = f"{kind} at t = {t}: an offset of {offset} should move the guess by {shift:.3f}"
            return widgets.Verdict(False, f"{text}, yours moves it by {float((guess - x_hat).mean()):.3f}")
    for kind in ("v", "eps", "x"):
        model = Off(**datasets.MIXTURE, process=process)
        model.wrong = lambda *rest, kind=kind: function(kind, *rest)
        *_, last = mt.sample_path(model, 2000, sampler="ddpm", steps=T, generator=rng(32))
        drawn = last[2].aggregate
        found.append(f"{kind} {energy_distance(drawn, real):.3f} (mean off by {(drawn - real).mean():+.2f})")
    return widgets.Verdict(True, "energy distance of samples, output off by 0.1: " + ", ".join(found))


check_3(off_by)


# %% tags=["solution"]
def off_by_solution(kind, x_hat, z, t, offset):
    a, b = abar[t].sqrt(), (1 - abar[t]).sqrt()
    output = {"x": x_hat, "eps": (z - a * x_hat) / b, "v": (a * z - x_hat) / b}[kind]
    return to_x(kind, output + offset, z, t)


solved = check_3(off_by_solution)
assert solved, solved.message
none, turned = (lambda kind, x_hat, *_: x_hat), (lambda *a: off_by_solution(*a[:4], -a[4]))
assert not any(check_3(wrong) for wrong in (none, turned)), "a wrong answer passes"
solved

# %% [markdown]
# An error of $v$ moves the guess by $\sqrt{1 - \bar\alpha_t}$ times itself, never by more than itself; an error of
# $\varepsilon$ by $1/\sqrt{\mathrm{SNR}_t}$ times, without limit as the signal fades; an error of $x$ always by itself.
# At the *clean* end the last is the worst: the denoiser believes $z_t$ there, a shift stays, and the next step adds
# another. So $v$ is what the course predicts. *Further*: train networks with `prediction="eps"` and `"x"`, and plot
# excess over floor as in section 7. Where is each of them weak?

# %% [markdown] tags=["slide"]
# ## What we learned, what comes next
#
# - Five facts about Gaussians are enough: sums, posteriors, KL, Jensen, Tweedie.
# - Forwards: $q(z_t \mid x) = \mathcal N(\sqrt{\bar\alpha_t}\, x, (1 - \bar\alpha_t) I)$. Backwards: a Gaussian step
#   around a weighted mean of $z_t$ and the guess of $x$.
# - The bound is a weighted sum of squared errors of that guess; $v$-, $\varepsilon$- and $x$-losses differ in the
#   weight.
# - Even the best denoiser has a gap to the log-evidence, since its steps are Gaussian; at fixed ends of the schedule it
#   shrinks like $1/T$.
# - Judge a network by its *excess* over the best denoiser, and by samples against a noise floor; the loss itself hides
#   it.
#
# Next: **02 · One space, many modalities**. What happens when not one $x$, but several codes enter $z_t$, each with a
# weight of its own? Everything above stays, with the aggregate $m_t = \sum_i W_t^i E_i(x_i)$ in the place of $x$. And
# with one modality, it has to fall back to what we have just built: **DDPM is N = 1.**
