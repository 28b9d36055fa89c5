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
# # 04 · How tight is the bound, and where does it leak?
#
# **After this notebook you can**
# - name the five places at which the multi-modal bound loses nats, and derive that they are all there are;
# - say which choice (curve, encoder, heads, variance, end points) touches which of them, and predict by how much;
# - tell when a moving curve is free, and why it samples correctly even where it is not;
# - measure the bound of a trained model, and find out where its nats sit.
#
# **You need** notebooks 02 (curves) and 03 (the bound); entropy and Kullback-Leibler divergence are recalled.
# **Time**: an hour to read, half a minute to run on a laptop CPU. No GPU, no download.
#
# We know the paper's bound (Chen et al. 2024, [arXiv:2407.17571](https://arxiv.org/abs/2407.17571)) second-hand only.
# The account of its gap below is our own derivation inside the paper's framework; section 3 of
# [theory.md](theory.md) has it in one line.

# %%
import itertools
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown
from torch.distributions import MultivariateNormal

import mtdiff as mt
from mtdiff import datasets, plots, widgets
from mtdiff.comparison import by_seed, paired, tally
from mtdiff.exact import linear_gaussian_gap
from mtdiff.experiments.report import bounds

torch.set_num_threads(1)
plots.style()


def rng(seed):
    """A generator, so that every cell draws the same numbers whenever it runs."""
    return torch.Generator().manual_seed(seed)


# %% [markdown] tags=["slide"]
# ## 1 · The idea in a picture
#
# A bound is worth as much as we know about its **gap**: how far is it below the truth? For real data nobody knows the
# truth. So take a problem where everything is Gaussian and everything can be computed: a picture of three pixels $x$,
# and a number $y$ that goes with its brightness. The encoders are matrices, $E_i(x_i) = A_i x_i$. *Superposed*, the
# number is added onto the pixels as a little pattern $(1, -1, 1)$; with *channels of its own* it gets a fourth
# coordinate.


# %%
def problem(correlation=0.8, own_channels=False):
    """Three pixels x and a number y that goes with their brightness: covariance (4, 4) and encoders."""
    pixels = torch.tensor([[1.0, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 1.0]], dtype=torch.float64)
    covariance, eye = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    covariance[:3, :3] = pixels
    covariance[:3, 3] = covariance[3, :3] = correlation * pixels.sum(1) / pixels.sum().sqrt()
    if own_channels:
        return covariance, {"x": eye[:, :3], "y": eye[:, 3:]}
    return covariance, {"x": eye[:3, :3], "y": torch.tensor([[1.0], [-1.0], [1.0]], dtype=torch.float64)}


def chain(curve, T=100, high=6.0, low=-6.0):
    """A process in which x has weight 1 and y follows a curve; log-SNR from high to low."""
    return mt.ForwardProcess(mt.NoiseSchedule.log_snr(T, high, low), {"x": 1.0, "y": curve})


# %% [markdown]
# The best that *any* model can do is the **log-evidence**, the mean of $\log q(X)$ under the data's own law $q$ (not to
# be confused with a model's own $\log p(X)$, which lies between bound and log-evidence on average). With
# exact heads and exact means, what does the bound of notebook 03 reach? We choose end points and variance badly on
# purpose, so that every leak shows: log-SNR from 4 to only $-2$, and the simple reverse variance $\tilde\beta_t I$.

# %%
settings = {
    "superposed, constant": (1.0, False),
    "superposed, fade-in from 0.2": (mt.fade_in(1.0, start=0.2), False),
    "superposed, fade-in from 0": (mt.fade_in(1.0), False),
    "own channels, constant": (1.0, True),
}
gaps = {
    name: linear_gaussian_gap(*problem(own_channels=own), chain(curve, high=4.0, low=-2.0), "isotropic")
    for name, (curve, own) in settings.items()
}
for name, g in gaps.items():
    five = g.prior + g.moving_target + g.history + g.factorisation + g.reverse
    assert abs(g.log_evidence - g.bound - five) < 1e-8, name
lost = [g.gap for g in gaps.values()]
figure = plots.gap_bars(gaps, f"Five terms make up the whole gap, from {min(lost):.2f} to {max(lost):.2f} nats by design")
plots.show(
    figure,
    "Four stacked horizontal bars that end at the log-evidence. Superposed, constant: mostly factorisation. Superposed, "
    "fade-in: history, moving target and, with a trace at the start, factorisation. Own channels: almost only reverse.",
)

# %% [markdown]
# Same data, same bound, four designs: the gap differs by a factor of nine, and it sits in different places. The five
# terms add up to it to 1e-8, with nothing left over. This notebook explains every colour.
#
# ## 2 · The gap, step by step
#
# Two words first. The **entropy** $H(A) = -\mathbb E \log q(A)$ is the number of nats that the best code needs for $A$
# (for continuous $A$ up to a constant for the precision, which cancels in differences; so it may be negative);
# $H(A \mid B) = H(A, B) - H(B)$ is what it still needs when $B$ is known. A Gaussian with covariance $\Sigma$ has $H =
# \frac12 \log\det(2\pi e\, \Sigma)$. The log-evidence is $-H(X)$.
#
# To check every line we want entropies that owe nothing to the library. So build the joint covariance of $(X, z_0,
# \dots, z_4)$ for a chain of four steps by hand: start from the covariance of $X$, and append one $z_t$ after the other
# with the paper's kernel, $z_t = \sqrt{\alpha_t}\,(z_{t-1} + \sum_i w_t^i A_i x_i) + \sqrt{1 - \alpha_t}\,\varepsilon$.


# %%
def append(joint, gain, noise):
    """Covariance of (v, z) from that of v, where z = gain v + sqrt(noise) eps."""
    cross = gain @ joint
    corner = cross @ gain.T + noise * torch.eye(len(gain), dtype=torch.float64)
    return torch.cat([torch.cat([joint, cross.T], 1), torch.cat([cross, corner], 1)])


def side_by_side(weights, t):
    """[w_t^x A_x, w_t^y A_y], the matrix that turns X into a weighted sum of codes."""
    return torch.cat([weights(name)[t] * matrix for name, matrix in encoders.items()], 1)


T, d = 4, 3
covariance, encoders = problem()
process = chain(mt.fade_in(1.0, start=0.2), T, high=2.0, low=-2.0)
abar = process.schedule.abar
alpha = abar[1:] / abar[:-1]  # alpha[t - 1] is alpha_t
joint = append(covariance, abar[0].sqrt() * side_by_side(process.cumulative, 0), 1 - abar[0])
for t in range(1, T + 1):
    gain = torch.zeros(d, len(joint), dtype=torch.float64)
    gain[:, :4] = side_by_side(process.injected, t)  # the injection, from X
    gain[:, -d:] = torch.eye(d)  # z_{t-1}
    joint = append(joint, alpha[t - 1].sqrt() * gain, 1 - alpha[t - 1])
print(f"X has 4 numbers, each of 5 states has {d}: the joint covariance is {tuple(joint.shape)}")

# %% [markdown]
# Two tools on it: conditional entropies, and the regression of some variables on others (its matrix, and the covariance
# that is left).

# %%
x, y, X = [0, 1, 2], [3], [0, 1, 2, 3]
z = [list(range(4 + d * t, 4 + d * t + d)) for t in range(T + 1)]
path = list(range(4, len(joint)))  # all of z_0 ... z_T


def H(rows, given=()):
    """Entropy of some variables given others, in nats."""
    rows, given = list(rows), list(given)
    both = rows + given
    total = torch.logdet(2 * math.pi * math.e * joint[both][:, both])
    known = torch.logdet(2 * math.pi * math.e * joint[given][:, given]) if given else 0.0
    return float(0.5 * (total - known))


def regression(rows, given):
    """The matrix of E[rows | given] and the covariance that is left."""
    matrix = torch.linalg.solve(joint[given][:, given], joint[given][:, rows]).T
    return matrix, joint[rows][:, rows] - matrix @ joint[given][:, rows]


posterior_variance = (1 - alpha) * (1 - abar[:-1]) / (1 - abar[1:])  # beta~_t
inside = H(z[1], [*z[2], *X])
assert abs(inside - d / 2 * math.log(2 * math.pi * math.e * posterior_variance[1])) < 1e-9
nought = torch.zeros(1, d, dtype=torch.float64)  # the variance of a step back is the same wherever it starts
assert abs(float(process.back(nought, nought, nought, 2, 1)[1]) ** 2 - float(posterior_variance[1])) < 1e-12
print(f"H(z_1 | z_2, X): joint law {inside:.6f}, from beta~_2 of notebook 02 the same")

# %% [markdown] tags=["slide"]
# ### Step 1: the expected bound is a code length
#
# Notebook 03: $\mathrm{ELBO} = \log p(z_T) + \sum_t \log p(z_{t-1} \mid z_t) + \sum_i \log p_i(x_i \mid z_0) - \log
# q(z_{0:T} \mid X)$. Take the mean under $q$. The **cross entropy** $C = -\mathbb E_q \log p$ is what a code built for
# $p$ needs on data from $q$; with exact heads it is an entropy.
#
# $$ -\,\mathbb E[\mathrm{ELBO}] \;=\; C(z_T) + \sum_t C(z_{t-1} \mid z_t) + \sum_i H(x_i \mid z_0)
#    \;-\; H(z_{0:T} \mid X). $$
#
# The reverse step has the exact mean and variance $\tilde\beta_t I$. A Gaussian code of variance $\beta$ for something
# with error covariance $V$ needs $\frac12 \big(d \log 2\pi\beta + \operatorname{tr} V / \beta\big)$ nats.

# %%
C_end = 0.5 * float(d * math.log(2 * math.pi) + joint[z[T]][:, z[T]].trace())
C_back = []
for t in range(1, T + 1):
    left, beta = regression(z[t - 1], z[t])[1], posterior_variance[t - 1]
    C_back.append(0.5 * float(d * torch.log(2 * math.pi * beta) + left.trace() / beta))
bound = -(C_end + sum(C_back) + H(x, z[0]) + H(y, z[0]) - H(path, X))
gap = linear_gaussian_gap(covariance, encoders, process, "isotropic")
assert abs(bound - gap.bound) < 1e-9
print(f"expected bound: by hand {bound:.6f}, library {gap.bound:.6f}")

# %% [markdown]
# Closed forms can share a mistake, so play the game as well: draw 20,000 examples with their chains, and average the
# ELBO's own definition, log-density by log-density.

# %%
n = 20_000
draws = torch.randn(n, len(joint), dtype=torch.float64, generator=rng(0)) @ torch.linalg.cholesky(joint).T


def log_density(rows, given, variance=None):
    """log N(rows; E[rows | given], variance) of every draw; None: the covariance that is left."""
    matrix, left = regression(rows, given)
    left = left if variance is None else variance * torch.eye(len(rows), dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(draws[:, given] @ matrix.T, left)
    return law.log_prob(draws[:, rows])


elbo = torch.distributions.Normal(0.0, 1.0).log_prob(draws[:, z[T]]).sum(1)
for t in range(1, T + 1):
    elbo += log_density(z[t - 1], z[t], posterior_variance[t - 1])
elbo += log_density(x, z[0]) + log_density(y, z[0]) - log_density(path, X)
error = float(elbo.std()) / n**0.5
assert abs(float(elbo.mean()) - gap.bound) < 4 * error
print(f"mean of {n} sampled ELBOs: {elbo.mean():.3f} ± {error:.3f}, exact {gap.bound:.3f}")

# %% [markdown] tags=["slide"]
# ### Step 2: the log-evidence in the same currency
#
# Entropies obey the **chain rule**: $H(A, B) = H(A) + H(B \mid A)$. Write $H(X, z_{0:T})$ in both orders, $X$ first and
# $z$ first:
#
# $$ H(X) + H(z_{0:T} \mid X) \;=\; H(z_{0:T}) + H(X \mid z_{0:T}). $$

# %%
x_first, z_first = H(X) + H(path, X), H(path) + H(X, path)
assert abs(x_first - z_first) < 1e-9
assert abs(-H(X) - gap.log_evidence) < 1e-9
print(f"X first {x_first:.6f}, z first {z_first:.6f}; log-evidence {gap.log_evidence:.6f}")

# %% [markdown] tags=["slide"]
# ### Step 3: subtract
#
# The gap is the log-evidence minus the bound. Take $H(X)$ from step 2; then $H(z_{0:T} \mid X)$ cancels, and two
# brackets are left:
#
# $$ -H(X) - \mathbb E[\mathrm{ELBO}] \;=\;
#    \underbrace{C(z_T) + \sum_t C(z_{t-1} \mid z_t) - H(z_{0:T})}_{\text{the chain is coded badly}} \;+\;
#    \underbrace{\sum_i H(x_i \mid z_0) - H(X \mid z_{0:T})}_{\text{the read-out is coded badly}}. $$
#
# Bad coding is all that can go wrong. What remains is to open the two brackets.

# %%
badly_coded_chain = C_end + sum(C_back) - H(path)
badly_coded_readout = H(x, z[0]) + H(y, z[0]) - H(X, path)
assert abs(badly_coded_chain + badly_coded_readout - gap.gap) < 1e-9
print(f"chain {badly_coded_chain:.6f} + read-out {badly_coded_readout:.6f} = gap {gap.gap:.6f}")

# %% [markdown] tags=["slide"]
# ### Step 4: open the chain
#
# The best code for the path goes backwards and remembers everything: $H(z_{0:T}) = H(z_T) + \sum_t H(z_{t-1} \mid
# z_{t}, \dots, z_T)$. The model starts from $\mathcal N(0, I)$, sees only $z_t$, and has a law of its own for the step.
# Add and subtract what a perfect code that sees only $z_t$ needs, $H(z_{t-1} \mid z_t)$. Three differences appear:
#
# - **prior**: $C(z_T) - H(z_T) = \mathrm{KL}(q(z_T)\,\|\,\mathcal N(0, I))$, the chain does not end exactly at noise
#   (the prior *term of the bound*, `Bound.prior` of notebook 03, is this plus $I(X; z_T)$, which is no loss);
# - **moving target**: $\sum_t H(z_{t-1} \mid z_t) - H(z_{t-1} \mid z_{t:T})$, what the forgotten later states would
#   have told. This is the *conditional mutual information* $I(z_{t-1}; z_{t+1:T} \mid z_t)$; it is never negative, and
#   all of them are 0 exactly if the chain of $z$ is Markov;
# - **reverse**: $\sum_t C(z_{t-1} \mid z_t) - H(z_{t-1} \mid z_t)$, the KL from the true step back to the model's: a
#   wrong variance, or, for a network, a wrong mean.
#
# (A **KL divergence** is what a wrong code wastes, $C - H \ge 0$.)

# %%
S_T = joint[z[T]][:, z[T]]
prior = 0.5 * float(S_T.trace() - d - torch.logdet(S_T))  # KL between two Gaussians, from a textbook
later = [path[d * t :] for t in range(T + 1)]  # later[t] is z_t ... z_T
moving = sum(H(z[t - 1], z[t]) - H(z[t - 1], later[t]) for t in range(1, T + 1))
reverse = sum(C_back[t - 1] - H(z[t - 1], z[t]) for t in range(1, T + 1))
assert abs(prior - (C_end - H(z[T]))) < 1e-9
assert abs(prior + moving + reverse - badly_coded_chain) < 1e-9
for name, value in {"prior": prior, "moving_target": moving, "reverse": reverse}.items():
    assert abs(value - getattr(gap, name)) < 1e-9
    print(f"{name:14s} by hand {value:.6f}, library {getattr(gap, name):.6f}")

# %% [markdown] tags=["slide"]
# ### Step 5: open the read-out
#
# The best read-out sees the whole path and reads all modalities together. The model sees $z_0$ and reads each one by
# itself. Add and subtract $H(X \mid z_0)$:
#
# - **history**: $H(X \mid z_0) - H(X \mid z_{0:T})$, what the rest of the path would have told about $X$;
# - **factorisation**: $\sum_i H(x_i \mid z_0) - H(X \mid z_0)$, the *total correlation* of the modalities given $z_0$:
#   what one says about another beyond what $z_0$ says, and separate heads cannot use. For two modalities it is their
#   mutual information given $z_0$.

# %%
history = H(X, z[0]) - H(X, path)
factorisation = H(x, z[0]) + H(y, z[0]) - H(X, z[0])
assert abs(factorisation - (H(y, z[0]) - H(y, [*x, *z[0]]))) < 1e-9  # mutual information: what x tells about y
assert abs(history + factorisation - badly_coded_readout) < 1e-9
for name, value in {"history": history, "factorisation": factorisation}.items():
    assert abs(value - getattr(gap, name)) < 1e-9
    print(f"{name:14s} by hand {value:.6f}, library {getattr(gap, name):.6f}")
five = prior + moving + history + factorisation + reverse
assert abs(five - gap.gap) < 1e-8
print(f"sum of the five {five:.6f}, gap {gap.gap:.6f}")

# %% [markdown] tags=["slide"]
# All together, with exact heads:
#
# $$ -H(X) - \mathbb E[\mathrm{ELBO}] = \underbrace{\mathrm{KL}(q(z_T)\|\mathcal N(0, I))}_{\text{prior}}
#    + \underbrace{\sum_t I(z_{t-1}; z_{t+1:T} \mid z_t)}_{\text{moving target}}
#    + \underbrace{H(X|z_0) - H(X|z_{0:T})}_{\text{history}}
#    + \underbrace{\mathrm{TC}(x_1; ...; x_N \mid z_0)}_{\text{factorisation}}
#    + \underbrace{\sum_t \mathbb E\,\mathrm{KL}(q(z_{t-1}|z_t)\,\|\,p(z_{t-1}|z_t))}_{\text{reverse}}. $$
#
# A trained model has a sixth term, the KL of its imperfect heads, and a larger fifth. Nothing in the derivation needed
# Gaussians, linearity or a small $T$; only the *numbers* did.
#
# The library does it in one line, `linear_gaussian_gap(...)`, which computes the bound from its definition and the
# terms from entropies. That they meet is a theorem. Try to break it with random problems:

# %%
worst = 0.0
for seed in range(50):
    options = {"dtype": torch.float64, "generator": rng(seed)}
    root, sizes = torch.randn(5, 5, **options), {"x": 3, "y": 2}
    drawn = {name: torch.randn(4, k, **options) for name, k in sizes.items()}
    table = torch.randn(31, **options)  # a curve that jumps at every step
    kind = ("optimal", "isotropic")[seed % 2]
    g = linear_gaussian_gap(root @ root.T + 0.1 * torch.eye(5), drawn, chain(table, 30), kind)
    five = g.prior + g.moving_target + g.history + g.factorisation + g.reverse
    worst = max(worst, abs(five - g.gap) / max(1.0, g.gap))
assert worst < 1e-8
print(f"50 random problems with random curves: the five terms miss the gap by at most {worst:.0e} of it")

# %% [markdown]
# **And `mt.elbo`?** That is what we use on trained models. Give it the exact Gaussian model (an `mt.Denoiser`: what it
# asks for are the process, what can check a value of each modality, and the two methods `encode` and `predict`), and it
# has to estimate the exact bound.


# %%
class Exact(mt.Denoiser):
    """The exact posterior laws of a linear-Gaussian problem, behind the interface that mt.elbo asks for."""

    def __init__(self, covariance, encoders, process):
        self.process, self.encoders = process, encoders
        self.modalities = {name: mt.Vector(A.shape[1]) for name, A in encoders.items()}
        a = process.schedule.abar[:, None, None]
        self.B = torch.cat([process.cumulative(k)[:, None, None] * A for k, A in encoders.items()], 2)  # m_t = B_t X
        S = a * self.B @ covariance @ self.B.mT + (1 - a) * torch.eye(self.B.shape[1])
        self.gain = a.sqrt() * covariance @ self.B.mT @ torch.linalg.inv(S)
        self.left = covariance - self.gain @ (a.sqrt() * self.B @ covariance)

    def encode(self, values):
        return {name: value @ self.encoders[name].T for name, value in values.items()}

    def predict(self, z, t, **_):
        X, left = (self.gain[t] @ z[..., None]).squeeze(-1), self.left[t]
        rows = {"x": slice(0, 3), "y": slice(3, 4)}
        law = {name: MultivariateNormal(X[:, r], left[..., r, r]) for name, r in rows.items()}
        estimate = self.encode({name: X[:, r] for name, r in rows.items()})
        return mt.Prediction((self.B[t] @ X[..., None]).squeeze(-1), law, estimate)


# %%
batch = {"x": draws[:, x], "y": draws[:, y]}
estimate = mt.elbo(Exact(covariance, encoders, process), batch, samples=4, generator=rng(1))
assert abs(estimate.total - gap.bound) < 4 * estimate.stderr
print(f"mt.elbo {estimate.total:.3f} ± {estimate.stderr:.3f}, exact {gap.bound:.3f}")

# %% [markdown] tags=["slide"]
# ## 3 · What moving costs
#
# Moving target and history look like two things. They are two halves of one. Turn each step around with
# $H(z_{t-1} \mid z_t) + H(z_t) = H(z_t \mid z_{t-1}) + H(z_{t-1})$, and write the history as what the rest of the path
# tells about $X$, measured from the other side:
#
# $$ \text{moving target} = \sum_t H(z_t \mid z_{t-1}) - H(z_{1:T} \mid z_0), \qquad
#    \text{history} = H(z_{1:T} \mid z_0) - H(z_{1:T} \mid z_0, X). $$
#
# (In the first the $H(z_t)$ telescope.) In the sum the middle cancels. Given $X$ the chain *is* Markov, so the last
# entropy is a sum over steps too:
#
# $$ \text{moving target} + \text{history} \;=\; \sum_{t=1}^T H(z_t \mid z_{t-1}) - H(z_t \mid z_{t-1}, X)
#    \;=\; \sum_{t=1}^T I(X; z_t \mid z_{t-1}). $$
#
# **You pay for what a forward step tells about $X$ that the state before did not already say.** An ordinary noising
# step tells nothing new. An injection does, unless what is injected can be read off $z_{t-1}$ anyway.

# %%
forwards = sum(H(z[t], z[t - 1]) for t in range(1, T + 1))
assert abs(forwards - H(path[d:], z[0]) - gap.moving_target) < 1e-9
assert abs(H(path[d:], z[0]) - H(path[d:], [*z[0], *X]) - gap.history) < 1e-9
news = [H(z[t], z[t - 1]) - H(z[t], [*z[t - 1], *X]) for t in range(1, T + 1)]
assert abs(sum(news) - (gap.moving_target + gap.history)) < 1e-9
print("news of each step:", [round(value, 4) for value in news])
print(f"their sum {sum(news):.6f}, moving target + history {gap.moving_target + gap.history:.6f}")

# %% [markdown]
# For long chains we want a formula. Write $\tau_t = (1 - \bar\alpha_t)/\bar\alpha_t$ (the noise variance
# in units of the aggregate; it grows) and $s_t = z_t/\sqrt{\bar\alpha_t}$. Then $s_t = s_{t-1} + (m_t - m_{t-1}) +
# \text{noise of variance } \tau_t - \tau_{t-1}$. With $m_t = B_t X$, $B_t = [W_t^x A_x, W_t^y A_y]$, the news is that
# of a noisy measurement of the increment $\Delta m = \Delta B\, X$ when $X$ is known up to the covariance $P =
# \operatorname{Cov}(X \mid z_{t-1})$:
#
# $$ I(X; z_t \mid z_{t-1}) = \tfrac12 \log\det\Big(I + \frac{\Delta B\, P\, \Delta B^\top}{\Delta\tau}\Big)
#    \;\le\; \frac{\mathbb E\,\|\Delta m - \mathbb E[\Delta m \mid z_{t-1}]\|^2}{2\, \Delta\tau}. $$
#
# The bound on the right holds for any data, and becomes exact for small steps.


# %%
def loadings(process, encoders):
    """B_t with m_t = B_t X, for every t: (T+1, d, n)."""
    return torch.cat([process.cumulative(name)[:, None, None] * A for name, A in encoders.items()], 2)


def news_of_steps(covariance, encoders, process):
    """I(X; z_t | z_{t-1}) for t = 1..T in nats, and its upper bound."""
    a = process.schedule.abar[:, None, None]
    tau, B = (1 - a) / a, loadings(process, encoders)
    P = torch.linalg.inv(torch.linalg.inv(covariance) + B.mT @ B / tau)  # Cov(X | z_t)
    moved = B.diff(dim=0)
    spread = moved @ P[:-1] @ moved.mT / tau.diff(dim=0)
    exact = 0.5 * torch.logdet(torch.eye(B.shape[1]) + spread)
    return exact, 0.5 * spread.diagonal(dim1=1, dim2=2).sum(1)


exact, above = news_of_steps(covariance, encoders, process)
assert torch.allclose(exact, torch.tensor(news, dtype=torch.float64), atol=1e-9)
assert bool((exact <= above).all())
print("formula:", [round(float(value), 4) for value in exact], "upper bound:", [round(float(v), 4) for v in above])

# %% [markdown] tags=["slide"]
# **Where along the way does a curve pay?** Four curves from 0 to 1 (the last to within 0.3%), and the news per unit of
# $u = t/T$.

# %%
curves = {
    "linear": mt.fade_in(1.0),
    "early, $\\sqrt{u}$": lambda u: u**0.5,
    "late, $u^4$": lambda u: u**4,
    "with the noise, $1 - \\bar\\alpha_t$": lambda u: torch.special.expit(torch.tensor(12 * u - 6, dtype=torch.float64)),
}
u = torch.linspace(0, 1, 1001, dtype=torch.float64)
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
totals = {}
for (name, curve), dash in zip(curves.items(), ("-", ":", "--", "-."), strict=True):
    rate = 1000 * news_of_steps(*problem(), chain(curve, 1000))[0]
    totals[name] = float(rate.mean())
    axes[0].plot(u, chain(curve, 1000).cumulative("y"), dash, color=plots.COLOURS["label"])
    axes[1].semilogy(u[1:], rate, dash, color=plots.COLOURS["label"], label=f"{name}: {totals[name]:.2f} nats")
axes[0].set(xlabel="u = t / T", ylabel="cumulative weight of y")
axes[1].set(xlabel="u = t / T", ylabel="nats per unit of u", ylim=(1e-4, 1e3))
axes[1].set_title("Moving early is dear, moving late is cheap")
axes[1].legend(frameon=False, fontsize=8, loc="upper right")
assert totals["early, $\\sqrt{u}$"] > 3 * totals["linear"] > 20 * totals["late, $u^4$"]
plots.show(
    figure,
    "Two panels: four curves of the weight from 0 to 1, and on a log scale the nats each pays along the way. The early and "
    "the linear curve pay most near the start; the late one pays least, the one that moves with the noise in the middle.",
)

# %% [markdown]
# At low noise $\Delta\tau$ is tiny: an injection that the noise does not cover is fresh news. Late, the noise covers
# all. Compare the last two: the curve that moves *with* the noise ($W_t = 1 - \bar\alpha_t$) shows the number at $u =
# 1/2$ as much as the linear one does, and pays a seventh.

# %%
linear, with_noise = totals["linear"], totals["with the noise, $1 - \\bar\\alpha_t$"]
middle = [float(chain(curve, 1000).cumulative("y")[500]) for curve in curves.values()]
assert abs(middle[0] - middle[3]) < 1e-9
assert 6 < linear / with_noise < 8
print(f"W at u = 1/2: {middle[0]:.2f} and {middle[3]:.2f}; nats: {linear:.3f} and {with_noise:.3f}")

# %% [markdown] tags=["slide"]
# ### More steps do not help
#
# For small steps the sum becomes an integral, with $W' = dW/d\tau$:
#
# $$ \text{moving target} + \text{history} \;\longrightarrow\; \tfrac12 \int
#    \mathbb E\,\Big\| \sum_i W_i'(\tau)\, \big(E_i - \mathbb E[E_i \mid z]\big) \Big\|^2 d\tau . $$
#
# It does not depend on $T$. The usual cure for a diffusion bound, more steps, does nothing about it. On the contrary:
# splitting a step never lowers the sum. With a state $z'$ in between, the two halves tell $I(X; z' \mid z_{t-1}) + I(X;
# z_t \mid z') \ge I(X; z', z_t \mid z_{t-1}) \ge I(X; z_t \mid z_{t-1})$, since $H(z_t \mid z') \ge H(z_t \mid z',
# z_{t-1})$.

# %%
moving_curves = {
    "constant": 1.0,
    "linear fade-in": mt.fade_in(1.0),
    "fade-in from a trace": mt.fade_in(1.0, start=0.1),
    "late fade-in": lambda u: u**4,
    "jump at u = 1/2": lambda u: float(u >= 0.5),
}
lengths = [10, 20, 40, 80, 160, 320, 640, 1280, 2560]
costs = {}
for name, curve in moving_curves.items():
    results = [linear_gaussian_gap(*problem(), chain(curve, length)) for length in lengths]
    costs[name] = [g.moving_target + g.history for g in results]
limits = {name: float(news_of_steps(*problem(), chain(curve, 20_000))[1].sum()) for name, curve in moving_curves.items()}
assert max(abs(value) for value in costs["constant"]) < 1e-6
for name in ("linear fade-in", "fade-in from a trace", "late fade-in"):
    errors = [abs(value - limits[name]) for value in costs[name][-3:-1]]
    assert errors[1] < 0.01 * limits[name]
    assert costs[name] == sorted(costs[name])
    assert 1.8 < errors[0] / errors[1] < 2.3, "the distance to the integral halves when T doubles"
    print(f"{name}: {costs[name][-1]:.4f} nats at T = {lengths[-1]}, integral {limits[name]:.4f}")

# %%
figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
for k, (name, values) in enumerate(costs.items()):
    axis.plot(lengths, values, marker="osD^v"[k], markersize=5, color=plots.COLOURS["label"], alpha=1 - 0.15 * k, label=name)
    if not name.startswith("jump"):
        axis.axhline(limits[name], color="0.5", linestyle=":", linewidth=1)
axis.set(xscale="log", xlabel="steps T", ylabel="moving target + history (nats)")
axis.set_xticks(lengths, lengths)
axis.minorticks_off()
axis.set_title("Smooth curves tend to an integral (dotted), a jump grows without limit")
axis.legend(frameon=False, fontsize=8)
per_doubling = [later - now for now, later in itertools.pairwise(costs["jump at u = 1/2"])]
assert abs(per_doubling[-1] - 0.5 * math.log(2)) < 0.005
print(f"the jump costs {per_doubling[-1]:.4f} nats more at each doubling of T; 1/2 log 2 = {0.5 * math.log(2):.4f}")
plots.show(
    figure,
    "Moving target plus history over the number of steps. Constant: zero. Late fade-in: almost zero. From a trace and "
    "linear: they level off at their dotted limits near 1.0 and 1.4. The jump rises in a straight line on the log axis.",
)

# %% [markdown]
# The jump puts all news into one step whose noise $\Delta\tau$ shrinks like $1/T$: $\frac12 \log(1 +
# \text{const} \cdot T)$ for each dimension of a continuous code, here one. A *discrete* code cannot cost more than $H(y
# \mid z)$ at a step, however short: there is no more to tell. (That is moving target + history. The jump of notebook
# 03's exercise grew like $T$ all the same, because a Gaussian step of variance $\tilde\beta_t$ cannot follow it: that
# part is *reverse*.)
#
# ### Which moving chains are Markov, and does it help?
#
# The moving target vanishes iff $z$ is Markov. Constant curves are; is that all? No. Let a single modality ride $W_t =
# c\, \tau_t$. Then $s = c\,\tau E + \text{Brownian motion}$, a drift that we do not know, and the latest state says
# about it all that the path says. The chain is Markov although it moves. But is it free?

# %%
schedule = mt.NoiseSchedule.log_snr(40, 3.0, -3.0)
tau = (1 - schedule.abar) / schedule.abar
one = torch.eye(1, dtype=torch.float64)
print("curve            moving target   history")
for name, table in {"constant 1": tau * 0 + 1, "0.1 tau": 0.1 * tau, "1 + 0.1 tau": 1 + 0.1 * tau}.items():
    g = linear_gaussian_gap(one, {"x": one}, mt.ForwardProcess(schedule, {"x": table}))
    print(f"{name:16s} {abs(g.moving_target):10.6f} {abs(g.history):12.6f}")
    assert (abs(g.moving_target) < 1e-9) == (name != "1 + 0.1 tau")
    assert (abs(g.history) < 1e-9) == (name == "constant 1")

# %% [markdown]
# It is not: nothing is lost along the chain, but the last state knows more about $X$ than $z_0$ does, and the heads
# read $z_0$. All of the loss is history. The sum of the two tells the truth where one term alone misleads: a curve is
# free if it does not move, or moves only what is known.
#
# ## 4 · It costs bits, and yet each state has the right law
#
# Does a leaky bound mean bad samples? Run the model's chain, exactly: all laws are Gaussian, so propagate the
# covariance. Start from the true $q(z_T)$, and take steps $z_{t-1} = \mathbb E[z_{t-1} \mid z_t] + \text{noise}$, with
# the optimal covariance or with $\tilde\beta_t I$.


# %%
def kl(true, model):
    """KL(N(0, true) || N(0, model)) in nats."""
    ratio = torch.linalg.solve(model, true)
    return 0.5 * float(ratio.trace() - len(true) - torch.logdet(ratio))


def run_backwards(T):
    """Error of Cov(z_0), optimal and isotropic variance; KL of the law of (z_0, z_{T/2}), optimal variance."""
    process, eye, h = chain(mt.fade_in(1.0), T, 4.0, -4.0), torch.eye(3, dtype=torch.float64), T // 2
    a, B = process.schedule.abar[:, None, None], loadings(process, encoders)
    S = a * B @ covariance @ B.mT + (1 - a) * eye
    cross = (a[:-1] * a[1:]).sqrt() * B[:-1] @ covariance @ B[1:].mT + (a[1:] / a[:-1]).sqrt() * (1 - a[:-1]) * eye
    K = cross @ torch.linalg.inv(S[1:])  # E[z_{t-1} | z_t] = K z_t
    V = S[:-1] - K @ cross.mT
    beta = (1 - a[1:] / a[:-1]) * (1 - a[:-1]) / (1 - a[1:]) * eye
    optimal, isotropic, both = S[T], S[T], S[h]
    for t in range(T, 0, -1):
        optimal = K[t - 1] @ optimal @ K[t - 1].T + V[t - 1]
        isotropic = K[t - 1] @ isotropic @ K[t - 1].T + beta[t - 1]
        both = K[t - 1] @ both if t <= h else both
    true = (a[0] * a[h]).sqrt() * B[0] @ covariance @ B[h].T + (a[h] / a[0]).sqrt() * (1 - a[0]) * eye
    laws = [torch.cat([torch.cat([S[0], c], 1), torch.cat([c.T, S[h]], 1)]) for c in (true, both)]
    return *(float((found - S[0]).norm() / S[0].norm()) for found in (optimal, isotropic)), kl(*laws)


# %%
doublings = [25, 50, 100, 200, 400, 800]
optimal, isotropic, paths = zip(*map(run_backwards, doublings), strict=True)
lost = [linear_gaussian_gap(covariance, encoders, chain(mt.fade_in(1.0), T, 4.0, -4.0)) for T in doublings]
slope = math.log(isotropic[-1] / isotropic[-2]) / math.log(2)
assert max(optimal) < 1e-9
assert abs(slope + 1) < 0.05
assert paths[-1] > paths[0] > 0.01, "no sign of vanishing"
assert all(path < g.moving_target for path, g in zip(paths, lost, strict=True))
figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
axis.loglog(doublings, [g.gap for g in lost], "^-", color="black", label="gap of the bound, optimal variance (nats)")
axis.loglog(doublings, paths, "s-", color="C2", label="KL of the law of ($z_0$, $z_{T/2}$) (nats)")
axis.loglog(doublings, isotropic, "o-", color="C8", label="error of Cov($z_0$), variance $\\tilde\\beta_t I$")
axis.set(xlabel="steps T", ylabel="nats, or relative error")
axis.set_xticks(doublings, doublings)
axis.minorticks_off()
axis.set_title(f"The law of $z_0$ becomes right (slope {slope:.2f}), the path and the bound do not")
axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plots.show(
    figure,
    "Three curves over the number of steps, both axes logarithmic: the gap and the error of the path stay level, the "
    "error of the samples' covariance falls in a straight line.",
)
print(f"optimal variance: Cov(z_0) is right to {max(optimal):.0e} at every T")
print(f"T = 800: KL of the pair of states {paths[-1]:.3f} nats, of the whole path {lost[-1].moving_target:.3f} nats")

# %% [markdown]
# With the optimal step the one-time laws are exact at every $T$: if $z_t$ has the right law, then so has
# $z_{t-1}$. With $\tilde\beta_t I$ they become right at order $1/T$ (for the continuous-time limit this is Gyöngy's
# theorem of 1986: a drift replaced by its mean given the present state leaves all one-time laws as they are). What
# stays wrong is how states at *different* times hang together, and the bound is a statement about whole paths. (With
# the optimal step and the true $q(z_T)$, the KL of the whole path is the moving target; a pair of states holds a part
# of it.) Two lessons. A worse bound need not mean worse samples. And read all modalities *at one time*: a label read at
# $t = T/2$ and an image read at $t = 0$ of the same chain are not a pair. One time is necessary, not sufficient: the
# pair read off $z_0$ is right if separate heads lose nothing there, which is the next section.
#
# ## 5 · What separate heads cost
#
# Factorisation depends on one thing: what $z_0$ leaves open *jointly*. Four designs, over the log-SNR at $t = 0$; the
# last has a third modality $c$, like $y$ a number that goes with the brightness, correlated with $y$ beyond that.

# %%
three = torch.eye(5, dtype=torch.float64)
three[:4, :4] = problem()[0]
three[:3, 4] = three[4, :3] = three[:3, 3]
three[3, 4] = three[4, 3] = 0.8
eye5 = torch.eye(5, dtype=torch.float64)
apart = {"x": eye5[:, :3], "y": eye5[:, 3:4], "c": eye5[:, 4:]}
levels = torch.linspace(0, 14, 15).tolist()
heads = {
    "superposed, constant": [linear_gaussian_gap(*problem(), chain(1.0, 20, h)) for h in levels],
    "own channels, constant": [linear_gaussian_gap(*problem(0.8, True), chain(1.0, 20, h)) for h in levels],
    "superposed, y fades in": [linear_gaussian_gap(*problem(), chain(mt.fade_in(1.0), 20, h)) for h in levels],
    "own channels, y and c fade in": [],
}
for h in levels:
    weights = {"x": 1.0, "y": mt.fade_in(1.0), "c": mt.fade_in(1.0)}
    fading = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20, h, -6.0), weights)
    heads["own channels, y and c fade in"].append(linear_gaussian_gap(three, apart, fading))
tc = {name: [g.factorisation for g in values] for name, values in heads.items()}
given_x = three[3:, 3:] - three[3:, :3] @ torch.linalg.solve(three[:3, :3], three[:3, 3:])
floor = -0.5 * math.log(1 - float(given_x[0, 1] ** 2 / (given_x[0, 0] * given_x[1, 1])))  # TC(y; c | x)

# %%
figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
for (name, values), dash in zip(tc.items(), ("-", "--", ":", "-."), strict=True):
    axis.semilogy(levels, values, dash, color="C4", label=name)
axis.axhline(floor, color="C7", linewidth=1, label="$TC(y; c\\,|\\,x)$")
axis.set(xlabel="log-SNR at t = 0 (nats)", ylabel="factorisation (nats)", ylim=(1e-7, 30))
axis.set_title("Less noise at t = 0 hurts superposed codes of constant weight only")
axis.legend(frameon=False, fontsize=8)
plots.show(
    figure,
    "Factorisation term over the log-SNR at t = 0. Superposed with constant weight rises; own channels and fade-in fall "
    "steeply; two modalities that fade in level off at a grey line.",
)
superposed, own = tc["superposed, constant"], tc["own channels, constant"]
growth = superposed[-1] - superposed[-2]
assert abs(growth - 0.5) < 0.01, "half a nat per nat of log-SNR"
assert own[-1] < 1e-4 * own[5]
assert tc["superposed, y fades in"][-1] < 1e-4
assert abs(tc["own channels, y and c fade in"][-1] - floor) < 1e-4
print(f"superposed, constant: {growth:.3f} nats more for each nat of log-SNR")
print(f"two faded-in modalities: {tc['own channels, y and c fade in'][-1]:.4f}, TC(y; c | x) = {floor:.4f}")

# %% [markdown]
# - **Superposed, constant.** With little noise $z_0$ fixes the sum $x + y\,(1, -1, 1)$, not its parts: whatever one
#   head gets wrong, the other must get wrong by the same amount, and they do not talk. Where the sum determines its
#   parts (a ten-valued label on a picture) this term vanishes instead.
# - **Own channels**: $z_0$ shows both. **Fade-in**: $z_0$ shows $x$, and given $x$ a single modality has nothing to be
#   correlated with.
# - **Two faded-in modalities** are read off the same picture without knowing of each other. What they share beyond the
#   picture is lost. Read them one after the other, or keep a trace of their codes in $z_0$.
#
# So in the picture of section 1, fade-in traded a lot of factorisation for some history and moving target, and channels
# of their own are best of all. They cost a larger space, and they say nothing about a *network*'s error, which is in
# the reverse term.
#
# ## 6 · What a simple variance costs
#
# The best reverse covariance is that of $q(z_{t-1} \mid z_t)$; models use $\tilde\beta_t I$, the variance for somebody
# who knows $X$. Where $z_t$ is nearly all that is known of $X$ (little noise: the data are wide against it), the true
# variance is larger, by $\tau_t / \tau_{t-1} = e^{\delta}$ for steps of $\delta$ nats in log-SNR. A Gaussian code with
# variance too small by a factor $e^{\delta}$ wastes $\frac12 (e^{\delta} - 1 - \delta)$ nats per dimension. Check: one
# more clean step.

# %%
delta, d_own = 0.4, 4
nearly = linear_gaussian_gap(*problem(0.8, True), chain(1.0, 50, 12.0, 12.0 - 50 * delta), "isotropic")
one_more = linear_gaussian_gap(*problem(0.8, True), chain(1.0, 51, 12.0 + delta, 12.0 - 50 * delta), "isotropic")
per_step = d_own / 2 * (math.exp(delta) - 1 - delta)
assert abs(one_more.reverse - nearly.reverse - per_step) < 1e-4
print(f"price of one more clean step: {one_more.reverse - nearly.reverse:.6f}, formula {per_step:.6f}")

# %% [markdown]
# With $T$ steps over a fixed range, $\delta \sim 1/T$, the price of a step $\sim \delta^2$, and there are $T$ of them:
# in all $1/T$. With $T$ fixed and $\bar\alpha_0 \to 1$ the steps get longer, and the price grows.

# %%
counts, highs = [25, 50, 100, 200, 400, 800], [2, 4, 6, 8, 10, 12, 14]


def price(T, high, low=-4.0):
    return linear_gaussian_gap(*problem(0.8, True), chain(1.0, T, float(high), low), "isotropic").reverse


prices = [price(count, 4.0) for count in counts]
slope = math.log(prices[-1] / prices[-2]) / math.log(2)
assert abs(slope + 1) < 0.02
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
axes[0].loglog(counts, prices, "o-", color="C8")
axes[0].set(xlabel="steps T", ylabel="reverse (nats)", title=f"Log-SNR 4 to -4: slope {slope:.2f}")
axes[0].set_xticks(counts, counts)
axes[0].minorticks_off()
axes[1].plot(highs, [price(40, high) for high in highs], "o-", color="C8")
axes[1].set(xlabel="log-SNR at t = 0", ylabel="reverse (nats)", ylim=(0, None))
axes[1].set_title(f"T = 40: {price(40, 2):.2f} nats at 2, {price(40, 14):.2f} at 14")
assert price(40, 14) > 10 * price(40, 2)
plots.show(
    figure,
    "Left: the price of the isotropic variance falls in a straight line over the number of steps, both axes logarithmic. "
    "Right: with 40 steps it grows faster and faster with the log-SNR at t = 0.",
)

# %% [markdown] tags=["slide"]
# ## 7 · Where nothing is lost
#
# Put the best of everything together: constant curves (no moving target, no history), channels of their own with little
# noise at $t = 0$ (no factorisation), the optimal reverse covariance, log-SNR down to $-9$ (no prior). Then the bound
# *is* the log-evidence, with **any** number of steps.

# %%
print("  T       gap     prior  factorisation")
for T_ in (3, 30, 300):
    g = linear_gaussian_gap(*problem(0.8, True), chain(1.0, T_, 9.0, -9.0))
    assert abs(g.gap - g.prior - g.factorisation) < 1e-9
    assert g.gap < 1e-7
    print(f"{T_:3d}  {g.gap:.1e}   {g.prior:.1e}        {g.factorisation:.1e}")

# %% [markdown]
# Three steps! In a Gaussian world the true step back is Gaussian however long it is. Real data are not Gaussian, and
# many short steps are what makes a Gaussian step good enough. That, a network's error, and $\tilde\beta_t I$ all live
# in the reverse term.
#
# | term | what touches it | how it goes |
# |---|---|---|
# | prior | log-SNR at $T$, final weights | $\sim \bar\alpha_T^2$; a mean adds $\frac12 \bar\alpha_T \|\mathbb E m_T\|^2$ |
# | moving target + history | curves, and how well $z_t$ knows what is injected | an integral, not helped by $T$ |
# | factorisation | weights and encoders at $t = 0$ | vanishes if $z_0$ shows everything, or all but one modality |
# | reverse | variance, network, non-Gaussian data | $1/T$ for the variance, unless a curve jumps |

# %%
low = [-3.0, -4.0, -5.0, -6.0]
priors = [linear_gaussian_gap(*problem(), chain(1.0, 20, 6.0, end)).prior for end in low]
ratios = [now / later for now, later in itertools.pairwise(priors)]
assert abs(ratios[-1] / math.exp(2) - 1) < 0.05
print("prior over log-SNR at T:", ", ".join(f"{end:g}: {value:.1e}" for end, value in zip(low, priors, strict=True)))
print(f"one nat lower divides it by {ratios[-1]:.2f}; e^2 = {math.exp(2):.2f}, as for abar_T^2")

# %% [markdown] tags=["slide"]
# ## 8 · A trained model: where are its nats?
#
# Now the digits model of notebook 00. Its log-evidence is unknown, so we cannot see the gap. But the bound itself can
# be measured on held-out digits, and each term says what it would take to improve. Three bounds from one set of
# weights:
#
# - **image**: on $\log p(\text{image})$, with only the image in $z$ ($S = \{\text{image}\}$);
# - **sum**: that plus $\log p(\text{label} \mid z_0)$, a bound on the pair, still with only the image in $z$;
# - **joint**: a bound on the pair with both in $z$.
#
# Digits have 17 grey levels, so the read-out is the probability of a level (a discretised Gaussian, Ho et al. 2020),
# and the bound is one on a probability, not a density. Nats over $64 \log 2$ are **bits per dimension**.

# %% tags=["nbval-ignore-output"]
model = mt.load("image-label/digits")
process, (train, test) = model.process, (datasets.digits("train"), datasets.digits("test"))
alone = mt.elbo(model, test.values, samples=16, present={"image"}, generator=rng(0))
joint = mt.elbo(model, test.values, samples=16, generator=rng(0))

images, label = test.values["image"].double(), test.values["label"]
only_image = {"image"}
z_0, _ = process.diffuse({"image": images}, 0, present=only_image, generator=rng(1))
with torch.no_grad():
    read = float(model.log_prob("label", label, z_0, 0, present=only_image).mean())
print(f"image  {alone.total:8.2f} ± {alone.stderr:.2f} nats, {alone.bits_per_dim('image'):.3f} bits/dim")
print(f"       prior {-alone.prior:.2f}, diffusion {-alone.diffusion:.2f}, image {alone.readout['image']:.2f}")
print(f"sum    {alone.total + read:8.2f} nats, as the label read off the image has {read:.3f}")
print(f"joint  {joint.total:8.2f} ± {joint.stderr:.2f} nats")
parts = ", ".join(f"{name} {value:.4f}" for name, value in joint.readout.items())
print(f"       prior {-joint.prior:.2f}, diffusion {-joint.diffusion:.2f}, {parts}")
assert abs(joint.total - alone.total - read) < max(joint.stderr, alone.stderr)

# %% [markdown]
# After ± is one standard error, over digits and over the random steps and noises. The two bounds on the pair agree
# within it: on these data it hardly matters whether the label is in $z$.
#
# Adding $\log \frac1{10}$ to the image's bound would make it one on pairs without reading anything; the head's
# answer costs much less.
#
# Is that good? Compare with codes that need no network. Equally likely grey levels cost $\log_2 17$ bits/dim. A
# **table** of how often each pixel has each level in the training set knows each pixel's habits, but not how pixels go
# together.

# %%
grey = torch.linspace(-1, 1, 17, dtype=torch.float64)


def level_of(images):
    """Index of the grey level of every pixel, (N, 64)."""
    return ((images.double().flatten(1) + 1) * 8).round().long()


counted = torch.nn.functional.one_hot(level_of(train.values["image"]), 17).sum(0) + 0.1  # (64, 17), nothing impossible
table = (counted / counted.sum(1, keepdim=True)).log()
nats = table.expand(len(test), 64, 17).gather(2, level_of(images)[:, :, None]).sum((1, 2))
bits = -float(nats.mean()) / (64 * math.log(2))
assert alone.bits_per_dim("image") < bits < math.log2(17)
print(f"bits/dim: uniform {math.log2(17):.3f}, table {bits:.3f}, model {alone.bits_per_dim('image'):.3f}")

# %% [markdown] tags=["slide"]
# ### Where along the chain?
#
# With the image alone in $z$ and a constant weight, a step costs $\frac12 (\mathrm{SNR}_{t-1} - \mathrm{SNR}_t)\,
# \mathbb E\,\| x - \hat x(z_t) \|^2$ (Kingma et al. 2021; notebook 03). So the curve over $t$ is the network's
# denoising error in the bound's own weighting. Next to it a denoiser without any network: Bayes' rule with the table,
# pixel by pixel.


# %%
def by_network(z, t):
    return model.predict(z, t, present=only_image).aggregate


def by_table(z, t):
    """E[x | z_t] if pixels were independent: posterior over the 17 levels, prior from the table."""
    a = process.schedule.abar[t]
    off = z.flatten(1)[:, :, None] / a.sqrt() - grey
    return ((table - off**2 * a / (2 * (1 - a))).softmax(2) @ grey).reshape(z.shape)


@torch.no_grad()
def step_cost(images, t, denoise):
    """KL at step t for every image, (N,) nats."""
    z, _ = process.diffuse({"image": images}, t, present=only_image, generator=rng(t))
    snr = process.snr("image")
    return 0.5 * (snr[t - 1] - snr[t]) * (images - denoise(z, t)).square().flatten(1).sum(1)


grid, width = list(range(10, 500, 20)), 20  # the middle of every 20 steps
network = torch.stack([step_cost(images, t, by_network) for t in grid])
from_table = torch.stack([step_cost(images, t, by_table) for t in grid])
whole = width * network.sum(0)
assert abs(float(whole.mean()) - alone.diffusion) < 4 * alone.stderr
print(f"diffusion term: {whole.mean():.1f} from this grid, {alone.diffusion:.1f} from mt.elbo (± {alone.stderr:.1f})")

# %% [markdown]
# The first steps look expensive. From which $t$ on is the network better than the table? Decide on *training* images,
# so that the held-out ones stay untouched.

# %%
some = train.values["image"][: len(test)].double()
better = [t for t in grid[:8] if step_cost(some, t, by_table).mean() < step_cost(some, t, by_network).mean()]
switch = max(better) + width // 2
early = torch.tensor(grid) < switch
saved = width * (network - from_table)[early].sum(0)
gain, error = float(saved.mean()), float(saved.std()) / len(test) ** 0.5
assert gain > 10 * error
figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
axis.plot(grid, network.mean(1), color=plots.COLOURS["image"], label="network")
axis.plot(grid, from_table.mean(1), "--", color="C7", label="table of grey levels, no network")
axis.axvline(switch, color="black", linewidth=0.8)
axis.set(xlabel="step t", ylabel="KL of a step (nats)", ylim=(0, None))
axis.set_title(f"Up to t = {switch} a table beats the network, by {gain:.0f} of {whole.mean():.0f} nats")
axis.legend(frameon=False)
plots.show(
    figure,
    "Cost of a step over t. The network's curve starts near 0.55 and falls to 0 beyond t = 350. The table's starts near 0, "
    "crosses it at a vertical line, is higher up to about t = 300, and then coincides.",
)

# %%
hybrid = -(alone.total + gain) / (64 * math.log(2))
assert hybrid < alone.bits_per_dim("image")
noise = ((1 - process.schedule.abar[switch]) / process.schedule.abar[switch]).sqrt()
print(f"saved {gain:.1f} ± {error:.1f} nats: {alone.bits_per_dim('image'):.3f} -> {hybrid:.3f} bits/dim")
print(f"noise at t = {switch}: standard deviation {noise:.3f}; grey levels are 0.125 apart")

# %% [markdown]
# Any reverse process gives a valid bound, so switching between two denoisers does too. Both bounds have the same prior
# and read-out, so the difference is a difference in the *reverse* term: at least that much of this model's gap is the
# network's. When the noise is well below half the distance of two grey levels, a pixel can be rounded; the network has
# not learned to round. The loss is hardly to blame: at low noise it weighs these steps as the bound does (notebook
# 03). A staircase of 17 treads may just be a hard function for a small network, but that we have not tested. In a
# *picture* such errors cannot be seen: they are below one grey level. In bits they are the first thing to fix.
#
# ### What does the moving label cost here?
#
# The label fades in from 0.1 to 1. In section 3 that cost a nat. The upper bound from there holds for any data and any
# guess of the code, so we can evaluate it with the model's own estimate: $\sum_t (\Delta W_t)^2\, \mathbb E\,\| c_y -
# \hat c(z_{t-1}) \|^2 / (2\, \Delta\tau_t)$.


# %%
@torch.no_grad()
def news_at_most(t):
    """Upper bound on I(X; z_t | z_{t-1}), for every example, (N,) nats."""
    codes = {name: code.double() for name, code in model.encode(test.values).items()}
    z, _ = process.diffuse(codes, t - 1, generator=rng(t))
    off = (codes["label"] - model.predict(z, t - 1).estimate["label"]).square().flatten(1).sum(1)
    a, W = process.schedule.abar, process.cumulative("label")
    return (W[t] - W[t - 1]) ** 2 * off / (2 * (1 / a[t] - 1 / a[t - 1]))


moved = width * torch.stack([news_at_most(t) for t in grid]).sum(0)
at_most, error = float(moved.mean()), float(moved.std()) / len(test) ** 0.5
assert at_most + 4 * error < 0.1
print(f"moving target + history of the digits model: at most {at_most:.3f} ± {error:.3f} nats")

# %% [markdown]
# Next to nothing, and now we know why. While the noise is low, the image itself says which digit it is: the label's
# code is *known*, injecting it is no news. When the image is lost, the noise covers the injection. A label that could
# **not** be read off the image would pay.
#
# ### What does the label cost or buy the image? Three seeds
#
# A model of pairs has to spend some of its capacity on the label. Does it pay for it? The controls: an **image-only**
# model of the same size and training, and the cheapest conceivable label code, $\log 10$ nats for ten equally likely
# classes. If a joint model's pair bound is above "image-only minus $\log 10$", knowing the label has bought something.
# The table is made from the files in `data/results`, mean ± standard error over seeds; bits/dim: lower is better, nats:
# higher is better.
#
# **How this course compares.** Two trainings of one seed see the same batches and are judged with the same noise, so we
# take their *difference*, seed by seed, and the mean and standard error of that (`mtdiff.comparison.paired`). Three seeds
# are few, and their spread itself is a guess: Student's $t$ with $n - 1$ degrees of freedom allows for it. A difference
# is called **clear**, and has a star, beyond its 95%: $|t| > 4.30$ for three seeds, 12.7 for two, and never for one. Of
# twenty differences that are nothing one will have a star. So wherever this course compares seeds, it says how many
# differences it looked at. Not in these errors is the test set: all seeds share it, and what it does to all of them
# alike no seed can show.

# %%
files = (
    "image-label-digits-constant.json",
    "image-label-digits-fade-in.json",
    "image-label-digits-image-only.json",
    "image-label-digits-own-channels.json",
)
results = [json.loads((Path("../data/results") / file).read_text()) for file in files]
Markdown(bounds(results))


# %%
def of(variant, key):
    """One number of the bound of a variant, {seed: nats}."""
    return by_seed(measured[variant], "metrics", "bound", key)


measured = {next(iter(result["variants"])): result for result in results}
control, found = of("image-only", "image"), []
alone = {seed: nats - math.log(10) for seed, nats in control.items()}
for variant in ("constant", "fade-in", "own-channels"):
    both = paired(of(variant, "joint"), of(variant, "sum"))
    image, pair = paired(of(variant, "image"), control), paired(of(variant, "joint"), alone)
    print(f"{variant}: both in z instead of the image alone: {both:.2f} nats")
    print(f"   its images against image-only: {image:.2f} nats")
    print(f"   its pairs against image-only and log 10: {pair:.2f} nats")
    found += [both, image, pair]
found.append(paired(of("fade-in", "image"), of("own-channels", "image")))
print(f"images of fade-in against those of own-channels: {found[-1]:.2f} nats")
print(tally(found))
error = max(of("fade-in", "image_stderr").values())
print(f"the digits' own: one bound of an image has an error of {error:.1f} nats by the choice of 360 digits and their noise")

# %% [markdown]
# How to read the lines. *Both in z instead of the image alone* compares two bounds on the same pairs: positive means
# that putting the label into $z$ has tightened the bound. *Its images against image-only* is what the label costs the
# image: negative means that the joint model is the worse image model. *Its pairs against image-only and log 10* is what
# the label buys in all: about $+\log 10 = 2.30$ nats where the label follows from the image and the images are as good.
#
# The answer is not flattering. The label follows from the image, so its log 10 nats could be saved. But every joint
# model is a worse model of the *image* than the image-only one, by more than that: some 9 nats with fade-in, 13 with
# channels of its own, 34 with a constant superposed weight (all three clear; between the first two the difference is
# not). So sharing the space is not the whole reason, as own channels lose as well. None of it is the price of
# *moving*, which is 0.02 nats at most: it is the network that denoises less precisely. Other things differ, too: the
# joint models see the image alone in only a fifth of their training examples, and their settings were chosen by the
# quality of samples, not by nats. What causes how much we have not separated. The last line of `constant` is a case of
# its own: with both in $z$, its heads have to take the label's pattern off the image to a precision of 0.02.
#
# ## 9 · Play
#
# The Gaussian problem again, log-SNR from 6 to $-6$. **Look for**: which bar answers to which slider? Can you make
# superposition with a moving curve as tight as channels of their own with a constant one? Set the correlation to 0:
# what is left? (On a static page the sliders do not move; below them are three settings.)

# %% tags=["nbval-ignore-output"]
widgets.gap_board(problem)

# %%
shown_settings = {
    (1.0, 1.0, True): "channels of its own, constant weight: next to nothing but the reverse term",
    (1.0, 1.0, False): "a superposed code, constant weight: almost all factorisation",
    (0.0, 1.0, False): "a superposed code that fades in: moving target and history instead of factorisation",
}
for (start, end, own), seen in shown_settings.items():
    figure = widgets.draw_gap(problem, start, end, T=100, correlation=0.0, own_channels=own)
    plots.show(figure, f"Two stacked bars of the gap's terms, optimal and isotropic variance, correlation 0; {seen}.")

# %% [markdown]
# Even *independent* modalities lose nats when they share channels: given the sum, they are no longer
# independent. Fading in removes that, but now nothing about $y$ can be read off $x$, so all of its injection is news:
# more nats than it saved. The tightest bound would leave $y$ out of $z$ altogether, and read it off the picture as well
# as that goes. One puts it in for what the bound does not reward: so that a label can steer the chain (notebook 05).
#
# ## 10 · Exercises
#
# **Exercise 1 (warm-up, easy, 10 minutes). Separate heads by hand.**
# Write a function that computes the factorisation term for two
# modalities $x$ (three numbers) and $y$ (one number) from the covariance `left` (4, 4) of $(x, y)$ given $z_0$. *Hint*:
# for Gaussians, $\frac12 \log$ of a ratio of determinants.


# %% tags=["exercise"]
def separate_heads(left):
    """H(x | z_0) + H(y | z_0) - H(x, y | z_0) in nats, from Cov(x, y | z_0) (4, 4)."""
    ...  # your code


# %% tags=["check"]
def check_1(function):
    for own, curve, high in ((False, 1.0, 2.0), (True, mt.fade_in(1.0), 0.0), (False, 0.3, 5.0)):
        covariance, encoders = problem(own_channels=own)
        process = chain(curve, 5, high)
        left = Exact(covariance, encoders, process).left[0]
        value, truth = function(left), linear_gaussian_gap(covariance, encoders, process).factorisation
        if value is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        if not abs(float(value) - truth) < 1e-5:
            return widgets.Verdict(False, f"expected {truth:.4f} nats, got {float(value):.4f}")
    return widgets.Verdict(True, "three designs, the library's numbers")


check_1(separate_heads)


# %% tags=["solution"]
def separate_heads_solution(left):
    return 0.5 * torch.log(torch.det(left[:3, :3]) * left[3, 3] / torch.det(left))


solved = check_1(separate_heads_solution)
assert solved, solved.message
apart = check_1(lambda left: 0.5 * torch.log(left.diagonal().prod() / torch.det(left)))  # the numbers of x apart, too
assert not apart, apart.message
solved

# %% [markdown]
# **Exercise 2 (break it, medium, 15 minutes). Two accidents.**
# A real image head is factorised over *pixels*: the best guess plus
# independent noise. So let each pixel be a modality of its own, with channels of its own and constant curves: a tight
# design. The number is unrelated here, `problem(correlation=0.0)`. Now break the design in two ways: (a) the pixels'
# encoder **collapses**, its codes shrink to `shrink` times themselves; (b) the chain ends too early, at log-SNR `low`.
# Predict: which bar grows, and where does it end for `shrink=0`? Then write a function that returns the `GaussianGap`.
# *Hint*: four encoders `"x1", "x2", "x3", "y"`, each a column of the unit matrix; T = 20, log-SNR from 9.


# %% tags=["exercise"]
def broken(shrink=1.0, low=-9.0):
    """The gap (a GaussianGap, optimal variance) with shrunken pixel codes, or a chain that ends at log-SNR low."""
    ...  # your code


# %% tags=["check"]
def expected(shrink, low):
    """The factorisation term and the prior term, from the covariances given z_0 and of z_T."""
    C, sizes = problem(0.0)[0], torch.tensor([shrink, shrink, shrink, 1.0], dtype=torch.float64)
    left = (C.inverse() + math.exp(9.0) * sizes.square().diag()).inverse()
    abar = 1 / (1 + math.exp(-low))
    end = abar * sizes[:, None] * C * sizes + (1 - abar) * torch.eye(4)
    factorisation = 0.5 * (left.diagonal().log().sum() - torch.logdet(left))
    return float(factorisation), 0.5 * float(end.trace() - 4 - torch.logdet(end))


def check_2(function):
    text, fresh = [], (0.2 + 0.6 * float(torch.rand(())), -2.0 * float(torch.rand(())))
    for shrink, low in ((1.0, -9.0), (0.0, -9.0), (1.0, 0.0), fresh):
        gap = function(shrink=shrink, low=low)
        if gap is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        heads, prior = expected(shrink, low)
        text.append(f"shrink {shrink:.2g}, low {low:.2g}: factorisation {gap.factorisation:.3f}, prior {gap.prior:.3f}")
        if not (abs(gap.factorisation - heads) < 1e-6 and abs(gap.prior - prior) < 1e-6):
            return widgets.Verdict(False, f"{text[-1]}; expected {heads:.3f} and {prior:.3f}")
    return widgets.Verdict(function().gap < 1e-3, f"sound {function().gap:.5f}; " + "; ".join(text[1:3]))


check_2(broken)


# %% tags=["solution"]
def broken_solution(shrink=1.0, low=-9.0):
    covariance, eye = problem(correlation=0.0)[0], torch.eye(4, dtype=torch.float64)
    names = ("x1", "x2", "x3", "y")
    codes = {name: (1.0 if name == "y" else shrink) * eye[:, k : k + 1] for k, name in enumerate(names)}
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(20, 9.0, low), dict.fromkeys(names, 1.0))
    return linear_gaussian_gap(covariance, codes, process)


solved = check_2(broken_solution)
assert solved, solved.message
assert not check_2(lambda shrink=1.0, low=-9.0: broken_solution(1.0, low)), "nothing shrinks"
assert not check_2(lambda shrink=1.0, low=-9.0: broken_solution(shrink)), "nothing ends early"
solved

# %% [markdown]
# The collapsed code costs what the pixels share, and the chain's terms do not complain: there is nothing left to
# denoise. With *one* full-covariance head for all pixels, this accident would cost the bound nothing at all, since such
# a head can do the whole job. The bound assumes heads as good as they can be; a collapsed encoder hands them the work.
#
# **Exercise 3 (a small research question, hard, 20 minutes). A better fade-in.**
# The number has to be out of $z_0$ ($W = 0$ at $u = 0$),
# fully there at the end ($W = 1$ at $u = 1$), and half there in the middle ($W \ge 1/2$ at $u = 1/2$, so that
# postponing it all is no way out). Find a curve whose gap is at least 20 % below the linear one's, superposed and in
# channels of its own, for few steps and for many. *Further*: what is the best curve? What would it be for $W \ge 0.9$
# in the middle?


# %% tags=["exercise"]
def better_curve(u):
    """W at u = t/T in [0, 1]."""
    ...  # your code


# %% tags=["check"]
def check_3(function):
    values = [function(u) for u in (0.0, 0.5, 1.0)]
    if None in values:
        return widgets.Verdict(False, "the function returns nothing yet")
    start, half, end = map(float, values)
    if not (abs(start) < 1e-6 and abs(end - 1) < 1e-6 and half > 0.5 - 1e-6):
        return widgets.Verdict(False, f"expected 0, at least 1/2, and 1; W is {start:.6f}, {half:.6f}, {end:.6f}")
    worst, text = 0.0, []
    for own in (False, True):
        for T in (40, 400):
            mine, linear = (
                linear_gaussian_gap(*problem(own_channels=own), chain(curve, T)).gap for curve in (function, mt.fade_in(1.0))
            )
            worst = max(worst, mine / linear)
            text.append(f"{mine:.3f} against {linear:.3f}")
    return widgets.Verdict(worst < 0.8, "; ".join(text) + f" (worst ratio {worst:.2f})")


check_3(better_curve)


# %% tags=["solution"]
def better_curve_solution(u):
    def with_the_noise(u):
        return 1 / (1 + math.exp(6 - 12 * u))  # 1 - abar_t on this schedule

    start, end = with_the_noise(0.0), with_the_noise(1.0)
    return (with_the_noise(u) - start) / (end - start)


solved = check_3(better_curve_solution)
assert solved, solved.message
assert not any(check_3(wrong) for wrong in (lambda u: u, lambda u: u**0.5)), "a wrong answer passes"
solved

# %% [markdown]
# Why it works: the cost is $\int (dW/d\tau)^2 \cdot (\text{what is not known})\, d\tau / 2$. If the
# unknown part stayed the same, the best curve between two fixed points would be a straight line *in $\tau$*: late, and
# in step with the noise. A curve that is straight in $u$ moves fastest, in units of $\tau$, where $\tau$ is small. Two
# straight pieces in $\tau$, through the given middle, do a little better still than the solution above (try it).

# %% [markdown] tags=["slide"]
# ## What we learned, what comes next
#
# - The gap is a sum of five code-length losses: **prior, moving target, history, factorisation, reverse**. Exactly.
# - Moving target + history = **news**: what an injection tells that $z_{t-1}$ did not already say. More steps do not
#   help; moving late, moving with the noise, or moving only what is known does.
# - The leak of moving curves is about *paths*. The law of a single state is right. So read everything at one time.
# - Separate heads are free if $z_0$ shows everything, or all but one modality.
# - On digits *moving* the label is all but free, but the second modality makes this small network a worse model of the
#   image, by 9 nats and more. Most of what leaks is the network at low noise.
#
# Next: **05 · Sampling and conditioning**. How is something that is given used correctly?
