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
# - derive an ordinary diffusion model from five facts about Gaussians;
# - say what the best possible denoiser is, compute it exactly for a mixture of Gaussians, and say what its bound
#   still loses;
# - turn predictions of $v$, $\varepsilon$ and $x$ into each other, and say which steps each loss listens to;
# - judge a trained network against the exact answer.
#
# **Why start here?** The course puts several modalities into one diffusion. Each of its steps is a step of this
# notebook, and here you can check it against an exact answer.
#
# **You need** Gaussians, conditional probability, and some PyTorch. You need not know diffusion models. **Time**:
# about 90 minutes to read and 45 for the exercises; a minute to run on a laptop CPU. No GPU, no download.
#
# Everything here is classical: Sohl-Dickstein et al. (2015), Ho et al. (2020, "DDPM"), Song et al. (2021), Kingma et
# al. (2021). Symbols are those of [theory.md](theory.md).

# %%
import functools
import itertools
import math

import mtdiff as mt
from mtdiff import datasets, plots, widgets
from mtdiff.laws import gaussian_log_prob
from mtdiff.metrics import energy_distance

import matplotlib.pyplot as plt
import torch

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


# %% [markdown] tags=["slide"]
# ## 1 · Noise turns data into a Gaussian, and the model is the way back
#
# Take data $x$ on the line whose law (distribution) $q(x)$ we know: a mixture of two Gaussians. Shrink every point a
# little and add a little noise, and do so $T = 100$ times. After $t$ steps the point has become $z_t$.
#
# How much noise each step adds is fixed by a **schedule**. It is a list of numbers $\bar\alpha_t$ that say which
# share of the signal's *power* is left at step $t$; the signal's amplitude is then $\sqrt{\bar\alpha_t}$. They fall
# from almost 1 to almost 0. In ours the *log signal-to-noise ratio*, $\log \frac{\bar\alpha_t}{1 - \bar\alpha_t}$,
# falls in a straight line from 8 to -8.
#
# Because $q(x)$ is known, we can compute the law $q(z_t)$ as well, by summing over all $x$ on a fine grid. That is
# called *quadrature*, and it is how this notebook knows the right answers.

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
# The way forward needs no training, since it only adds noise. A diffusion model is the way **back**: it starts from
# a draw of $\mathcal N(0, 1)$ on the right and goes step by step to a draw of the data on the left. You will find
# that this takes one function only, the best guess of $x$ given $z_t$.
#
# ## 2 · Five facts about Gaussians are all we need
#
# **Fact 1: a sum of Gaussians is Gaussian.** For independent $X \sim \mathcal N(\mu, \sigma^2)$ and $Y \sim \mathcal
# N(\nu, \tau^2)$ the sum $aX + bY$ is Gaussian, with mean $a\mu + b\nu$ and variance $a^2\sigma^2 + b^2\tau^2$.
#
# We check this against 100,000 draws. A mean of $n$ draws has the standard error $\sigma/\sqrt n$, a variance
# $\sigma^2\sqrt{2/n}$. For the shape we count the draws within one standard deviation, which are 68.27% for a
# Gaussian. Every simulation of this course has to agree within four standard errors.


# %%
def agree(what, estimate, exact, error):
    """Whether an estimate is within four standard errors of the exact value; says so."""
    off = abs(float(estimate) - float(exact)) / float(error)
    print(f"{what}: {float(estimate):.4f}, exactly {float(exact):.4f} ({off:.1f} standard errors apart)")
    return off < 4


n, g = 100_000, rng(2)
total = 0.8 * (1.0 + 0.5 * gauss(g, n)) - 0.6 * (2.0 + 1.5 * gauss(g, n))
mean, variance = 0.8 * 1.0 - 0.6 * 2.0, 0.8**2 * 0.5**2 + 0.6**2 * 1.5**2
inside = ((total - mean).abs() < variance**0.5).double().mean()
assert agree("mean    ", total.mean(), mean, (variance / n) ** 0.5)
assert agree("variance", total.var(), variance, variance * (2 / n) ** 0.5)
assert agree("inside  ", inside, math.erf(0.5**0.5), (0.6827 * 0.3173 / n) ** 0.5)


# %% [markdown]
# **Fact 2: a noisy measurement of a Gaussian leaves a Gaussian.** Before you measure, you know that $x \sim \mathcal
# N(m, s^2)$. Then you see $z = a x + b\, \varepsilon$ with noise $\varepsilon \sim \mathcal N(0, 1)$. Bayes' rule
# multiplies the densities, $p(x \mid z) \propto p(x)\, p(z \mid x)$, so it adds their exponents. Both are quadratic
# in $x$, and so is their sum:
#
# $$ -\frac{(x - m)^2}{2 s^2} - \frac{(z - a x)^2}{2 b^2}
#    = -\frac12 \Big( \frac1{s^2} + \frac{a^2}{b^2} \Big) x^2 + \Big( \frac{m}{s^2} + \frac{a\, z}{b^2} \Big) x +
#    \text{const} . $$
#
# Compare this with the exponent $-\frac{1}{2v} x^2 + \frac{\mu}{v} x$ of $\mathcal N(\mu, v)$. So $x \mid z$ is
# Gaussian with
#
# $$ \frac{1}{v} = \frac{1}{s^2} + \frac{a^2}{b^2}, \qquad
#    \mathbb E[x \mid z] = v\,\Big( \frac{m}{s^2} + \frac{a\, z}{b^2} \Big). $$
#
# One over a variance is called a *precision*: precisions add, and the mean is weighted by them. To check without
# algebra, multiply the two densities on the grid, and read the mean and the variance of the product off.


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
# **Fact 3: how far apart two Gaussians are.** The *Kullback-Leibler divergence* $\mathrm{KL}(q\,\|\,p) = \mathbb E_q
# \log \frac{q(z)}{p(z)}$ measures how much $p$ differs from $q$. Its unit is the nat (natural logarithm). It is
# never negative, and 0 only if both laws are equal. For two Gaussians, put their densities in:
#
# $$ \mathrm{KL}\big(\mathcal N(\mu, \sigma^2)\,\|\,\mathcal N(\nu, \tau^2)\big) = \frac12\Big(
#    \frac{\sigma^2}{\tau^2} + \frac{(\mu - \nu)^2}{\tau^2} - 1 - \log\frac{\sigma^2}{\tau^2} \Big) . $$
#
# If the variances are *equal*, only the means count, and it is $(\mu - \nu)^2 / 2\tau^2$. This case will become the
# training loss.


# %%
def kl(mean_q, var_q, mean_p, var_p):
    """KL(q || p) of two Gaussians in nats."""
    ratio = torch.as_tensor(var_q / var_p, dtype=torch.float64)
    return 0.5 * (ratio + (mean_q - mean_p) ** 2 / var_p - 1 - ratio.log())


draws = 0.3 + 0.7**0.5 * gauss(rng(3), n)
log_ratio = normal(draws, 0.3, 0.7).log() - normal(draws, -0.4, 1.1).log()
assert agree("KL", log_ratio.mean(), kl(0.3, 0.7, -0.4, 1.1), log_ratio.std() / n**0.5)

# %% [markdown] tags=["slide"]
# **Fact 4: Jensen's inequality gives a bound on a likelihood.** A *latent variable* $z$ is one that we do not see.
# The likelihood of what we do see is called the **evidence**, and it sums over all $z$: $p(x) = \int p(z)\, p(x \mid
# z)\, dz$. Usually nobody can compute this sum. So take any law $q(z)$ instead. The logarithm is concave, so the
# logarithm of a mean is at least the mean of the logarithm:
#
# $$ \log p(x) = \log \int q(z)\, \frac{p(z)\, p(x \mid z)}{q(z)}\, dz
#    = \log \mathbb E_q \frac{p(z)\, p(x \mid z)}{q(z)}
#    \;\ge\; \mathbb E_q \log \frac{p(z)\, p(x \mid z)}{q(z)}
#    = \underbrace{\mathbb E_q \log p(x \mid z) - \mathrm{KL}\big(q(z)\,\|\,p(z)\big)}
#      _{\text{evidence lower bound, ELBO}} . $$
#
# What is lost? Write $p(z)\, p(x \mid z) = p(x)\, p(z \mid x)$ in the middle. The factor $p(x)$ does not depend on
# $z$ and comes out of the mean, so that
#
# $$ \mathbb E_q \log \frac{p(z)\, p(x \mid z)}{q(z)} = \log p(x) - \mathrm{KL}\big(q(z)\,\|\,p(z \mid x)\big) . $$
#
# Nothing is lost if $q$ is the posterior $p(z \mid x)$. We check this where the evidence is known: for $z \sim
# \mathcal N(0, 1)$ and $x \mid z \sim \mathcal N(z, 0.5)$, fact 1 says $p(x) = \mathcal N(0, 1.5)$.

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
# **Fact 5: Tweedie's formula.** Now let $x$ have *any* law, and let $z = a x + b\, \varepsilon$ again. Then the mean
# of $x$ given $z$ can be read off the density of $z$ alone (Robbins 1956, Efron 2011):
#
# $$ \mathbb E[x \mid z] = \frac{z + b^2\, \nabla \log p(z)}{a} . $$
#
# The gradient $\nabla \log p(z)$ is called the **score**. To prove the formula, differentiate $p(z) = \int p(x)\,
# \mathcal N(z; a x, b^2)\, dx$ under the integral. Since $p(x)\, \mathcal N(z; a x, b^2) = p(z)\, p(x \mid z)$, the
# result is a mean over $x$ given $z$:
#
# $$ \nabla p(z) = \int p(x)\, \mathcal N(z; a x, b^2)\, \frac{a x - z}{b^2}\, dx
#    = p(z)\, \frac{a\, \mathbb E[x \mid z] - z}{b^2} . $$
#
# Divide by $p(z)$ and solve for $\mathbb E[x \mid z]$. We check it on our mixture, with the score by automatic
# differentiation, against $\mathbb E[x \mid z]$ by quadrature.

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
# ## 3 · Forwards, everything is Gaussian once $x$ is known
#
# **The step.** Put $\alpha_t = \bar\alpha_t / \bar\alpha_{t-1}$, a number just below 1. A step shrinks by
# $\sqrt{\alpha_t}$ and adds noise:
#
# $$ q(z_t \mid z_{t-1}) = \mathcal N\big(\sqrt{\alpha_t}\, z_{t-1},\ (1 - \alpha_t) I\big). $$
#
# If $z_{t-1}$ has variance 1, so has $z_t$. The identity matrix $I$ says that each coordinate gets noise of its own;
# on the line it is 1.
#
# **The marginal.** Where are we after $t$ steps? If $q(z_t \mid x) = \mathcal N(\sqrt{\bar\alpha_t}\, x,\ (1 -
# \bar\alpha_t) I)$ holds at $t = 0$, it holds at every step. The proof is by induction, with fact 1: one more step
# makes the mean $\sqrt{\alpha_t}\sqrt{\bar\alpha_{t-1}} \, x = \sqrt{\bar\alpha_t}\, x$, and the variance $\alpha_t
# (1 - \bar\alpha_{t-1}) + (1 - \alpha_t) = 1 - \alpha_t \bar\alpha_{t-1} = 1 - \bar\alpha_t$.
#
# We check by simulation: 20,000 chains of the library's `transition` from one $x$ must arrive at the marginal.

# %%
alpha = abar[1:] / abar[:-1]  # alpha[t - 1] is alpha_t
n, t, x, g = 20_000, 50, -1.3, rng(4)
one = {"x": torch.full((n, 1), x, dtype=torch.float64)}
z = abar[0].sqrt() * x + (1 - abar[0]).sqrt() * gauss(g, n, 1)
for s in range(1, t + 1):
    mean, std = process.transition(z, one, s)
    assert torch.allclose(mean, alpha[s - 1].sqrt() * z)
    assert torch.allclose(std**2, (1 - alpha[s - 1]).expand_as(std))
    z = mean + std * gauss(g, n, 1)
mean, std = process.marginal(one, t)
assert torch.allclose(mean, abar[t].sqrt() * one["x"])
assert torch.allclose(std, (1 - abar[t]).sqrt().expand_as(std))
assert agree("mean    ", z.mean(), mean[0], std[0] / n**0.5)
assert agree("variance", z.var(), std[0] ** 2, std[0] ** 2 * (2 / n) ** 0.5)

# %% [markdown] tags=["slide"]
# **One step back, if $x$ is known.** Take fact 2. What we know before is the marginal of $z_{t-1}$, so $m =
# \sqrt{\bar\alpha_{t-1}}\, x$ and $s^2 = 1 - \bar\alpha_{t-1}$. The noisy measurement is the step to $z_t$, so $a =
# \sqrt{\alpha_t}$ and $b^2 = 1 - \alpha_t$. The precisions add up to
#
# $$ \frac{1}{\tilde\beta_t} = \frac{1}{1 - \bar\alpha_{t-1}} + \frac{\alpha_t}{1 - \alpha_t}
#    = \frac{1 - \alpha_t + \alpha_t - \alpha_t \bar\alpha_{t-1}}{(1 - \bar\alpha_{t-1})(1 - \alpha_t)}
#    = \frac{1 - \bar\alpha_t}{(1 - \bar\alpha_{t-1})(1 - \alpha_t)} , $$
#
# and the mean is $\mu = \tilde\beta_t \big( \frac{\sqrt{\bar\alpha_{t-1}}\, x}{1 - \bar\alpha_{t-1}} +
# \frac{\sqrt{\alpha_t}\, z_t}{1 - \alpha_t} \big)$. Together,
#
# $$ q(z_{t-1} \mid z_t, x) = \mathcal N(\mu, \tilde\beta_t I), \quad
#    \mu = \frac{\sqrt{\alpha_t}\,(1 - \bar\alpha_{t-1})\, z_t + \sqrt{\bar\alpha_{t-1}}\,(1 - \alpha_t)\, x}{1 -
#    \bar\alpha_t}, \quad
#    \tilde\beta_t = \frac{(1 - \alpha_t)(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t} . $$
#
# The step back goes to a weighted mean of $z_t$ and $x$. In the library this is `process.back`.

# %%
t, z_t = 50, 0.4
a, ab, ab_prev = alpha[t - 1], abar[t], abar[t - 1]
mu = (a.sqrt() * (1 - ab_prev) * z_t + ab_prev.sqrt() * (1 - a) * x) / (1 - ab)
beta = (1 - a) * (1 - ab_prev) / (1 - ab)
product = normal(grid, ab_prev.sqrt() * x, 1 - ab_prev) * normal(z_t, a.sqrt() * grid, 1 - a)
grid_mean = (grid * product).sum() / product.sum()
grid_var = ((grid - grid_mean) ** 2 * product).sum() / product.sum()
here, m = torch.full((1, 1), z_t, dtype=torch.float64), one["x"][:1]  # m stands for x: it does not change with t here
library_mean, library_std = process.back(here, m, m, t, t - 1)
for mean, variance in ((grid_mean, grid_var), (library_mean, library_std**2)):
    assert abs(float(mean - mu)) < 1e-10
    assert abs(float(variance - beta)) < 1e-10
print(f"mean {mu:.6f} and variance {beta:.6f}: formula, library and grid agree")


# %% [markdown] tags=["slide"]
# ## 4 · The best denoiser is the posterior mean
#
# To go back *without* knowing $x$, we need a guess of it, a **denoiser** $\hat x(z_t, t)$. Which guess $c$ has the
# smallest mean squared error? Given $z_t$, the error splits into two parts, $\mathbb E[(x - c)^2 \mid z_t] =
# \operatorname{Var}(x \mid z_t) + (\mathbb E[x \mid z_t] - c)^2$. The first does not depend on $c$, and the second
# is 0 for the posterior mean $c = \mathbb E[x \mid z_t]$.
#
# For a mixture of Gaussians the posterior mean has a closed form. Let component $k$ have the share $\pi_k$, the mean
# $\mu_k$ and the variance $s_k^2$. Bayes' rule says with which probability $r_k$ the point $z_t$ comes from it, and
# fact 2 says what $x$ is if it does:
#
# $$ r_k \propto \pi_k\, \mathcal N\big(z_t;\ \sqrt{\bar\alpha_t}\, \mu_k,\ \bar\alpha_t s_k^2 + 1 - \bar\alpha_t\big),
#    \qquad \mathbb E[x \mid z_t] = \sum_k r_k\, \mathbb E[x \mid z_t, k] . $$
#
# The variance $\operatorname{Var}(x \mid z_t)$ follows in the same way.


# %%
def denoiser(z, ab):
    """Mean and variance of x given z (B,), where ab of the signal's power is left, and the density q(z); by hand."""
    joint = weights * normal(z[:, None], ab.sqrt() * means, ab * stds**2 + 1 - ab)  # (B, K)
    guess, left = posterior(means, stds**2, z[:, None], ab.sqrt(), 1 - ab)
    r = joint / joint.sum(1, keepdim=True)
    mean = (r * guess).sum(1)
    return mean, (r * (left + (guess - mean[:, None]) ** 2)).sum(1), joint.sum(1)


for t in (10, 50, 90):
    by_hand, variance, q_z = denoiser(grid, abar[t])
    joint = q_x * normal(grid[:, None], abar[t].sqrt() * grid, 1 - abar[t]) * dx  # (z, x)
    seen = joint.sum(1) > 1e-12  # elsewhere q(z_t) is too small to divide by
    mean, square = (joint @ grid**k / joint.sum(1) for k in (1, 2))
    assert torch.allclose(q_z, joint.sum(1), atol=1e-10)
    assert torch.allclose(by_hand[seen], mean[seen], atol=1e-6)
    assert torch.allclose(variance[seen], (square - mean**2)[seen], atol=1e-6)
print("by hand and by quadrature: the same mean, variance and density, at t = 10, 50, 90")

# %% [markdown]
# The library has this model as `mt.exact.LabelledMixture`. It also has a label, which says which component a point
# comes from. Here the label has the weight 0, which keeps it out of $z_t$.
#
# Compare its guess at $t = 50$ with two others: $z_t / \sqrt{\bar\alpha_t}$, which takes the noise for signal, and
# the best straight line.

# %%
one_modality = {"x": 1.0, "label": 0.0}
process = mt.ForwardProcess(schedule, one_modality)
line = mt.exact.LabelledMixture(weights, means[:, None], stds, torch.zeros(2, 1), process)
for t in range(T + 1):
    assert torch.allclose(line.predict(grid[:, None], t).aggregate[:, 0], denoiser(grid, abar[t])[0], atol=1e-9)
t, g = 50, rng(5)
data = line.draw(20_000, g)["x"]
z, _ = process.diffuse({"x": data}, t, generator=g)
both = torch.cat([data, z], 1).T.cov()
guesses = {
    "$z_t / \\sqrt{\\bar\\alpha_t}$": lambda z: z / abar[t].sqrt(),
    "straight line": lambda z: data.mean() + both[0, 1] / both[1, 1] * (z - data.mean() * abar[t].sqrt()),
    "$E[x | z_t]$": lambda z: line.predict(z, t).aggregate,
}
errors = {name: float((data - guess(z)).square().mean()) for name, guess in guesses.items()}
crude, straight, best = errors.values()
assert best < straight < crude

# %%
figure, axis = plt.subplots(figsize=(6.5, 3.4), layout="constrained")
axis.scatter(z[:1500], data[:1500], s=3, color="0.75", label="examples")
near = grid[grid.abs() <= 2.5][:, None]
for (name, guess), dash in zip(guesses.items(), (":", "--", "-"), strict=True):
    axis.plot(near, guess(near), dash, color=plots.COLOURS["x"], label=f"{name}: error {errors[name]:.2f}")
axis.set(xlabel="$z_t$ at t = 50", ylabel="x", ylim=(-2.2, 2.2))
axis.set_title("The posterior mean turns from one hump to the other, and errs least")
axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plots.show(
    figure,
    "Points in two horizontal bands, x near -1 and near 1.2. A steep dotted line and a flatter dashed line cross them; "
    "the solid curve of the posterior mean follows the lower band, turns, and follows the upper one.",
)

# %% [markdown] tags=["slide"]
# ## 5 · The bound is a sum of squared errors, and loses mostly by its fixed variance
#
# **The model.** Start from $p(z_T) = \mathcal N(0, I)$. Take each step back as if the guess were the truth,
# $p(z_{t-1} \mid z_t) = q(z_{t-1} \mid z_t, x = \hat x(z_t, t))$. At $z_0$, where hardly any noise is left, read out
# the data by some $p(x \mid z_0)$. Then $z_{0:T} = (z_0, \dots, z_T)$ is *one* latent variable. So fact 4 applies,
# with the forward process as its $q$:
#
# $$ \log p(x) \;\ge\; \mathbb E_q \Big[ \log p(z_T) + \sum_{t=1}^T \log p(z_{t-1} \mid z_t) + \log p(x \mid z_0) -
#    \log q(z_{0:T} \mid x) \Big] . $$
#
# **Turn $q$ around.** Here $p$ runs backwards and $q$ forwards. To compare them step by step, write $q$ backwards,
# too. A forward step does not look at $x$, so $q(z_t \mid z_{t-1}) = q(z_t \mid z_{t-1}, x)$, and Bayes' rule given
# $x$ turns it around:
#
# $$ q(z_t \mid z_{t-1}) = q(z_{t-1} \mid z_t, x)\, \frac{q(z_t \mid x)}{q(z_{t-1} \mid x)} . $$
#
# In the product over all $t$ each marginal $q(z_t \mid x)$ stands once above and once below the line. What is left
# of them is $q(z_T \mid x) / q(z_0 \mid x)$, and $q(z_0 \mid x)$ cancels against the chain's first factor:
#
# $$ q(z_{0:T} \mid x) = q(z_0 \mid x) \prod_{t=1}^T q(z_t \mid z_{t-1}) = q(z_T \mid x) \prod_{t=1}^T q(z_{t-1} \mid
#    z_t, x) . $$
#
# So each trajectory must get the same density both ways. Here are chains of 20 steps.

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
# **Pair up.** Now $p$ and $q$ have factors for the same steps. Look at one of them, $\mathbb E_q \log
# \frac{q(z_{t-1} \mid z_t, x)}{p(z_{t-1} \mid z_t)}$. Draw $z_t$ first and then $z_{t-1}$ given $z_t$ and $x$. The
# mean over $z_{t-1}$ is, by definition, a KL divergence for that $z_t$, and the mean over $z_t$ stays outside. So
# the bound falls into three parts:
#
# $$ \mathrm{ELBO} = - \underbrace{\mathrm{KL}\big(q(z_T \mid x)\,\|\,p(z_T)\big)}_{\text{prior}}
#    - \sum_{t=1}^T \underbrace{\mathbb E\,\mathrm{KL}\big(q(z_{t-1} \mid z_t, x)\,\|\,p(z_{t-1} \mid
#    z_t)\big)}_{\text{diffusion, } \mathrm{KL}_t} + \underbrace{\mathbb E \log p(x \mid z_0)}_{\text{read-out}} . $$
#
# **The diffusion term.** Both laws in $\mathrm{KL}_t$ are Gaussians of the same variance $\tilde\beta_t$. So by fact
# 3 only the distance of their means counts, and these differ in one place: one has $x$, the other $\hat x$. Let
# $\mathrm{SNR}_t = \bar\alpha_t / (1 - \bar\alpha_t)$ be the signal-to-noise ratio. With $\mu$ and $\tilde\beta_t$
# put in (Kingma et al. 2021),
#
# $$ \mathrm{KL}_t = \mathbb E\, \frac{\|\mu(x) - \mu(\hat x)\|^2}{2 \tilde\beta_t}
#    = \frac{\bar\alpha_{t-1} (1 - \alpha_t)^2}{2 \tilde\beta_t\, (1 - \bar\alpha_t)^2}\, \mathbb E\, \|x - \hat x\|^2
#    = \tfrac12\, (\mathrm{SNR}_{t-1} - \mathrm{SNR}_t)\, \mathbb E\, \|x - \hat x\|^2 , $$
#
# because $\frac{\bar\alpha_{t-1} (1 - \alpha_t)^2}{\tilde\beta_t (1 - \bar\alpha_t)^2} = \frac{\bar\alpha_{t-1} -
# \bar\alpha_t}{(1 - \bar\alpha_{t-1})(1 - \bar\alpha_t)}$, and $\mathrm{SNR}_{t-1} - \mathrm{SNR}_t$ is the same
# fraction.

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
# **The best one can reach.** The mean of $\log p(x)$ over the data is at most $\mathbb E \log q(x)$, because the
# difference, $\mathbb E_q \log \frac{q(x)}{p(x)}$, is a KL divergence. We call $\mathbb E \log q(x)$ the
# **ceiling**. It depends on the data alone, and for the mixture quadrature gives it. The distance from the mean
# bound up to the ceiling is the **gap**.
#
# **All terms by quadrature.** Now take the exact denoiser. The mean of $(x - \hat x)^2$ given $z_t$ is then
# $\operatorname{Var}(x \mid z_t)$, so each diffusion term is an integral over $z_t$. Let the read-out be exact, too:
# $p(x \mid z_0) = q(x \mid z_0)$. By Bayes' rule its mean logarithm is $\mathbb E \log q(x) + \mathbb E \log q(z_0
# \mid x) - \mathbb E \log q(z_0)$.


# %%
def mean_of(density, function):
    """The integral of density times function over the grid."""
    return float((density * function).sum() * dx)


ceiling = mean_of(q_x, q_x.log())  # E log q(x)


def bound_terms(curve):
    """The bound of the exact denoiser on the mixture, for a schedule abar (T+1,): prior, diffusion, readout, bound."""
    snr, power = curve / (1 - curve), mean_of(q_x, grid**2)
    diffusion = 0.0
    for t in range(1, len(curve)):
        _, variance, q_z = denoiser(grid, curve[t])
        diffusion += 0.5 * float(snr[t - 1] - snr[t]) * mean_of(q_z, variance)
    prior = float(kl(0.0, 1 - curve[-1], 0.0, 1.0) + curve[-1] * power / 2)
    q_z = denoiser(grid, curve[0])[2]
    readout = ceiling - 0.5 * math.log(2 * math.pi * math.e * float(1 - curve[0])) - mean_of(q_z, q_z.log())
    return {"prior": prior, "diffusion": diffusion, "readout": readout, "bound": readout - prior - diffusion}


terms = bound_terms(coarse.schedule.abar)
print("T = 20:", ", ".join(f"{name} {value:.4f}" for name, value in terms.items()), "nats")
print(f"the ceiling, E log q(x): {ceiling:.4f} nats; the gap: {ceiling - terms['bound']:.4f}")
assert terms["bound"] < ceiling

# %% [markdown]
# The same bound comes out by simulation, as the mean of $\log p - \log q$ of fact 4 over our 4000 trajectories, and
# from the library's `mt.elbo`.

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
# **What is lost?** Denoiser and read-out are exact, and the prior costs almost nothing. Yet with 20 steps the
# mean bound is 1.46 nats below the ceiling. Their difference is
#
# $$ \text{gap} = \mathbb E \log \frac{q(x)\, q(z_{0:T} \mid x)}{p(z_{0:T})\, p(x \mid z_0)}
#    = \mathbb E \log \frac{q(z_{0:T})\, q(x \mid z_0)}{p(z_{0:T})\, p(x \mid z_0)} . $$
#
# The second form is Bayes' rule, since no step after $z_0$ looks at $x$. The exact read-outs cancel, and a KL
# divergence between two chains is left. Both run backwards step by step, so it splits into steps:
#
# $$ \text{gap} = \mathrm{KL}\big(q(z_T)\,\|\,p(z_T)\big) + \sum_{t=1}^T \mathbb E\, \mathrm{KL}\big(q(z_{t-1} \mid
#    z_t)\,\|\,p(z_{t-1} \mid z_t)\big) . $$
#
# Here $q(z_{t-1} \mid z_t)$ is the true step back *without* knowing $x$: that of section 3, averaged over all $x$
# that fit $z_t$. Its mean is $\mu(\hat x)$, which is the model's mean. But it is wider than the model's step.
# The variance of an average over $x$ is the mean variance, $\tilde\beta_t$, plus the variance of the means $\mu(x)$,
# whose factor is that of $\mathrm{KL}_t$:
#
# $$ \operatorname{Var}(z_{t-1} \mid z_t) = \tilde\beta_t\, (1 + \rho_t), \qquad
#    \rho_t = (\mathrm{SNR}_{t-1} - \mathrm{SNR}_t)\, \operatorname{Var}(x \mid z_t) . $$
#
# And where $z_t$ may come from either component, it has two humps. Which costs more, the wrong variance or the wrong
# shape? Give the model's Gaussian the right variance and keep its mean. By fact 3 this saves $\frac12\, (\rho_t -
# \log(1 + \rho_t))$ nats for each $z_t$.


# %%
def saved(curve):
    """Nats that the right variance of each Gaussian step would save."""
    snr, total = curve / (1 - curve), 0.0
    for t in range(1, len(curve)):
        _, variance, q_z = denoiser(grid, curve[t])
        rho = (snr[t - 1] - snr[t]) * variance
        total += mean_of(q_z, 0.5 * (rho - rho.log1p()))
    return total


curves = {steps: mt.NoiseSchedule.log_snr(steps, 8.0, -8.0).abar for steps in (5, 10, 20, 80, 320)}
gaps = {steps: ceiling - bound_terms(curve)["bound"] for steps, curve in curves.items()}
by_variance = {steps: saved(curve) for steps, curve in curves.items()}
for steps, gap in gaps.items():
    print(
        f"T = {steps:3d}: gap {gap:7.4f} nats, {by_variance[steps] / gap:.0%} of it the variance; T * gap {steps * gap:.1f}"
    )
assert all(0.95 < by_variance[steps] / gap < 1 for steps, gap in gaps.items())
assert 3.8 < gaps[80] / gaps[320] < 4.4  # four times the steps, about a quarter of the gap


# %%
def one_step(steps, z_t):
    """The true step back from z_t at log-SNR -1.6, its mean, the model's variance, and the right one."""
    curve, t = mt.NoiseSchedule.log_snr(steps, 8.0, -8.0).abar, round(0.6 * steps)
    a, snr = curve[t] / curve[t - 1], curve / (1 - curve)
    true = denoiser(grid, curve[t - 1])[2] * normal(z_t, a.sqrt() * grid, 1 - a)
    guess, variance, _ = denoiser(z_t, curve[t])
    mean, fixed = posterior(curve[t - 1].sqrt() * guess, 1 - curve[t - 1], z_t, a.sqrt(), 1 - a)
    return true / (true.sum() * dx), mean, fixed, fixed * (1 + (snr[t - 1] - snr[t]) * variance)


shown = {f"a step back, T = {steps}": one_step(steps, torch.tensor([0.2], dtype=torch.float64)) for steps in (5, 50)}
for true, mean, _, right in shown.values():
    assert abs(mean_of(true, grid) - float(mean)) < 1e-4
    assert abs(mean_of(true, (grid - mean) ** 2) - float(right)) < 1e-4

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.1), layout="constrained")
for axis, (title, (true, mean, fixed, right)) in zip(axes, shown.items(), strict=False):
    axis.plot(grid, true, color=plots.COLOURS["x"], label="true step")
    axis.plot(grid, normal(grid, mean, fixed), "--", color="black", label="model's")
    axis.plot(grid, normal(grid, mean, right), ":", color="black", label="right variance")
    axis.set(xlim=(-3, 3), xlabel="$z_{t-1}$", ylim=(0, 1.05), title=title)
axes[0].legend(frameon=False, fontsize=8, loc="upper right")
rest = [gap - by_variance[steps] for steps, gap in gaps.items()]
axes[2].loglog(gaps.keys(), gaps.values(), "o--", color="black", label="model's")
axes[2].loglog(gaps.keys(), rest, "o:", color="black", label="right variance")
axes[2].set(xlabel="steps T", ylabel="nats", title="gap to the ceiling")
axes[2].legend(frameon=False, fontsize=8)
figure.suptitle("The model's step is too narrow, and that is nearly all of its gap; two humps cost little", fontsize=11)
plots.show(
    figure,
    "Left, T = 5: a true step back with two humps, a narrow dashed Gaussian between them, and a wide dotted one that covers "
    "both. Middle, T = 50: all three nearly agree. Right: the gap falls in a straight line with T on logarithmic axes; "
    "with the right variance it is 30 to 200 times smaller.",
)


# %% [markdown]
# So 96% to 99% of the gap is the *fixed variance*. The model puts $\tilde\beta_t$, which would be right if $x$ were
# known, and leaves out what is unknown of $x$. The two humps cost 0.05 of 1.46 nats at $T = 20$.
#
# Why does the gap shrink like $1/T$? With $k$ times as many steps each $\rho_t$ is $k$ times smaller. For small
# $\rho$ a step costs about $\rho^2 / 4$, so $k^2$ times less, and there are $k$ times as many. Models that learn the
# variance need fewer steps (Nichol and Dhariwal 2021; Bao et al. 2022); the course keeps $\tilde\beta_t$ and takes
# more.

# %% [markdown] tags=["slide"]
# ## 6 · Each loss is a weight on the same squared error
#
# **Three things to predict.** Write $z_t = a\, x + b\, \varepsilon$ with $a = \sqrt{\bar\alpha_t}$ and $b =
# \sqrt{1 - \bar\alpha_t}$. A network may put out $\hat x$, or the noise $\hat\varepsilon$, or a guess $\hat v$ of
# the *velocity* $v = a\, \varepsilon - b\, x$ (Salimans and Ho 2022). Each of them gives the other two. Since $a^2 +
# b^2 = 1$, the pair $(z_t, v)$ is the pair $(x, \varepsilon)$ turned by an angle, and turning back gives $x = a
# z_t - b v$ and $\varepsilon = b z_t + a v$.
#
# By Tweedie's formula the best $\hat\varepsilon$ is $-b$ times the score. To denoise is to learn the score (Vincent
# 2011, Song et al. 2021).


# %%
def to_x(kind, output, z, t):
    """The guess of x that an output of this kind stands for."""
    a, b = abar[t].sqrt(), (1 - abar[t]).sqrt()
    return {"x": output, "eps": (z - b * output) / a, "v": a * z - b * output}[kind]


plane = mt.ForwardProcess(schedule, {"x": 1.0})
points = datasets.toy("mixture", n=500).values["x"].double()
for t in (1, 50, 99):
    z, eps = plane.diffuse({"x": points}, t, generator=rng(t))
    a, b = abar[t].sqrt(), (1 - abar[t]).sqrt()
    for kind, target in {"x": points, "eps": eps, "v": a * eps - b * points}.items():
        assert torch.allclose(to_x(kind, target, z, t), points, atol=1e-10)
print("x -> target -> x: the same, for all three kinds of output")

# %% [markdown] tags=["slide"]
# **The same error in three units.** Given $z_t$, a wrong output is a wrong $\hat x$. From the formulas above,
# $\varepsilon - \hat\varepsilon = -\frac ab (x - \hat x)$ and $v - \hat v = -\frac1b (x - \hat x)$. So each loss is
# a weight on $\|x - \hat x\|^2$, and so is the bound:
#
# | what is squared | weight on $\lVert x - \hat x \rVert^2$ |
# |---|---|
# | the bound, $\mathrm{KL}_t$ | $\frac12(\mathrm{SNR}_{t-1} - \mathrm{SNR}_t)$ |
# | $\lVert \varepsilon - \hat\varepsilon \rVert^2$, DDPM's "simple" loss | $\mathrm{SNR}_t$ |
# | $\lVert v - \hat v \rVert^2$, our training loss | $\mathrm{SNR}_t + 1 = 1 / (1 - \bar\alpha_t)$ |
# | $\lVert x - \hat x \rVert^2$ | 1 |
#
# On *our* schedule $\mathrm{SNR}_{t-1} = e^{\delta}\, \mathrm{SNR}_t$ with a constant $\delta = 16/T$. So the simple
# loss *is* the diffusion term of the bound, up to a constant factor. On other schedules it weighs the same errors in
# another way.

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
# Which steps does each loss listen to? The plot shows what even the best denoiser of our mixture pays at each step.

# %%
left = torch.tensor([mean_of(q_z, variance) for _, variance, q_z in (denoiser(grid, ab) for ab in abar[1:])])
shares = {"bound, and $\\varepsilon$": snr[1:] * left, "$v$": (snr[1:] + 1) * left, "$x$": left}
shares = {name: share / share.sum() for name, share in shares.items()}
clean = {name: float(share[:50].sum()) for name, share in shares.items()}
bound_share, v_share, x_share = clean.values()
assert bound_share > 0.8 > 0.6 > v_share > 0.3 > 0.1 > x_share
figure, axis = plt.subplots(figsize=(7.5, 3), layout="constrained")
for (name, share), dash in zip(shares.items(), ("-", "--", ":"), strict=True):
    label = f"{name}: {clean[name]:.0%} in the cleaner half"
    axis.plot(range(1, T + 1), T * share, dash, color=plots.COLOURS["denoise"], label=label)
axis.set(xlabel="step t", ylabel="loss of the best denoiser, mean 1", ylim=(0, 3.6))
axis.set_title("The bound listens to clean steps, $x$ to noisy ones, $v$ to all alike")
axis.legend(frameon=False, loc="upper right")
plots.show(
    figure,
    "Loss of the best denoiser over the step. Bound and eps: flat in the cleaner half, then falling to 0. v: about flat "
    "throughout. x: near 0 in the cleaner half, then rising to a plateau.",
)

# %% [markdown] tags=["slide"]
# ## 7 · A network learns it, and its excess error is below 1%
#
# Now take three Gaussians in the plane, whose exact model is known as well. The network is an `mt.MLP` that puts out
# $\hat v$. The library's loss has a term for the denoiser and one for each modality. With a single modality both are
# the same number, so we count it once.

# %%
exact = mt.exact.LabelledMixture(**datasets.MIXTURE, process=process)
fresh = exact.draw(4000, rng(9))["x"]
torch.manual_seed(0)
network = mt.MTDiffusion(plane, {"x": mt.Vector(2, head=False)}, mt.MLP((2,), width=64, blocks=2), (2,))
train = datasets.Dataset("points alone", {"x": datasets.toy("mixture", n=20_000).values["x"]})
before = mt.multitask_loss(network, train[:4000], generator=rng(11))
assert torch.allclose(before.terms["denoise"], before.terms["x"], rtol=1e-4)
print(f"{sum(p.numel() for p in network.parameters()):,} parameters; loss before training", end=" ")
print(f"{before.terms['denoise']:.4f} (denoise) and {before.terms['x']:.4f} (x): the same")

# %% [markdown]
# `mt.fit` is the training loop at its shortest (`mtdiff/fit.py`). What the network holds in the end is an average of
# its weights over about the last 100 steps.

# %%
loss, batches = functools.partial(mt.multitask_loss, weights={"x": 0.0}), train.batches(256, seed=0)
history = mt.fit(network, batches, loss, steps=2000, lr=3e-3, ema=0.99, generator=rng(12))
last = sum(row["denoise"] for row in history[-50:]) / 50

# %% [markdown] tags=["slide"]
# **How good is it?** The loss alone does not say, because most of it is noise that nobody can predict. So split it.
# The error of the best guess has mean 0 given $z_t$, so there is no cross term:
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
# The loss moved only a little during training, and its estimates from the last steps and from fresh data differ by
# more than the excess. The excess tells: the network is close to the exact denoiser.
#
# Where does it err? In the figure, arrows show which way the exact denoiser pulls a point, $\sqrt{\bar\alpha_t}\,
# \mathbb E[x \mid z_t] - z_t$. The shade is the network's distance from the exact guess. The lines enclose 50% and
# 99% of the examples.

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
# ## 8 · Sampling takes the same step back, with the guess in the place of $x$
#
# Run the model of section 5: draw $z_T$ from noise, take $T$ steps back, and read out. This is *ancestral* sampling,
# the sampler of DDPM. We write it by hand and compare with `mt.sample`.


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
# How good are the samples? The *energy distance* $2\,\mathbb E|a - b| - \mathbb E|a - a'| - \mathbb E|b - b'|$
# compares two sets of points $a$ and $b$. It is 0 for equal laws, up to a **noise floor** that twelve pairs of fresh
# data sets show. As a control we add a single Gaussian with the data's mean and covariance, which the distance must
# tell from the data.

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
# The colours say which centre is nearest; the models know nothing of labels.
#
# ## 9 · DDPM is this model with another schedule
#
# The library is built for several modalities. With one of them it must be the published model: Ho et al. (2020) with
# $\beta_t = 1 - \alpha_t$ rising linearly from $10^{-4}$ to 0.02 in $T = 1000$ steps. We compare schedule, posterior
# and the weight of the bound.

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
# DDPM has $\bar\alpha_0 = 1$ and reads out at $t = 1$; our schedules read at $t = 0$, with a little noise left.
#
# ## 10 · Play: where the guess turns into a decision
#
# The upper panel shows the density $q(z_t)$, the lower one the best guess $\mathbb E[x \mid z_t]$. **Look for** the
# step at which the two humps melt, and for what the guess does with a $z_t$ between them. Where the guess is steep,
# a small change of $z_t$ *decides* for one hump. (Dotted: the means of the humps. On a static page, see
# the three settings below.)

# %% tags=["nbval-ignore-output"]
widgets.noised_density_slider(line)

# %%
for t in (15, 42, 80):
    figure = widgets.draw_noised_density(line, t)
    plots.show(figure, f"Density of z at step {t}, and the best guess of x given z below it.")


# %% [markdown]
# ## 11 · Exercises
#
# **Exercise 1 (warm-up, easy, 15 minutes): the denoiser of a single Gaussian.**
# The data are $x \sim \mathcal N(m, s^2)$. Write the function that returns the mean *and* the variance of $x$ given
# $z_t = z$, where $\bar\alpha_t$ is `ab`. Do not call `posterior`. *Hint*: fact 2.


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
# **Exercise 2 (break it, medium, 15 minutes): not enough noise at the end.**
# Sampling starts from $\mathcal N(0, I)$. What if $\bar\alpha_T$ is not near 0? Take the exact model of the mixture
# in the plane, with 100 steps that start at log-SNR 8. Write a function of the log-SNR at $t = T$ that returns two
# numbers: the prior term of the bound in nats, averaged over `fresh`, and the energy distance of 2000 ancestral
# samples to `real`. *Hint*: `mt.NoiseSchedule.log_snr`, `process.marginal` at $T$, `kl` summed over coordinates,
# `mt.sample(..., sampler="ddpm")`. Does the prior term say how biased the samples are?


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
# The prior term warns, and errs on the safe side. Averaged over the data it is $\mathrm{KL}(q(z_T)\,\|\,p(z_T))$,
# the bias of the start, *plus* the information that $z_T$ still holds about $x$, which is no bias (Hoffman and
# Johnson 2016). At log-SNR -2 it is 0.16 nats, and yet 2000 samples cannot be told from data.
#
# **Exercise 3 (a small research question, medium, 15 minutes): which output forgives errors?**
# Suppose a network's output is off by the same `offset` in every coordinate, at every $z$ and $t$. Write the
# function that returns the guess of $x$ after the offset, given the exact guess `x_hat` (B, 2), the step, and the
# kind of output. *Hint*: which output stands for `x_hat`? (Section 6.) The check then samples with your function.
# Before you look: for which of $v$, $\varepsilon$, $x$ does the guess stay bounded at *low* SNR? And which of them
# hurts the samples most?


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
# An error of $v$ moves the guess by $\sqrt{1 - \bar\alpha_t}$ times itself, an error of $\varepsilon$ by
# $1/\sqrt{\mathrm{SNR}_t}$ times, without limit as the signal fades, and an error of $x$ always by itself. At the
# *clean* end the last is the worst: the denoiser believes $z_t$ there, so a shift stays, and the next step adds
# another. This is why the course predicts $v$. *Further*: train networks with `prediction="eps"` and `"x"`. Where is
# the excess of each large?

# %% [markdown] tags=["slide"]
# ## What we learned, what comes next
#
# - Forwards, $q(z_t \mid x)$ is $\mathcal N(\sqrt{\bar\alpha_t}\, x, (1 - \bar\alpha_t) I)$. A step back is a
#   Gaussian around a weighted mean of $z_t$ and the best guess of $x$.
# - The bound is a weighted sum of squared errors of that guess. The $v$-, $\varepsilon$- and $x$-losses differ in
#   the weight only.
# - Even with the best denoiser the bound stays below the ceiling. Nearly all of that gap is the fixed variance of
#   the steps.
# - Judge a network by its *excess* over the best denoiser, and by samples against a noise floor.
#
# Next: **02 · One space, many modalities**. There a weighted sum of several codes takes the place of $x$, and
# everything above stays.
