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
# - name the five places at which the multi-modal bound loses nats, and derive that there are no others;
# - say which choice touches which of them: curve, encoder, heads, variance or end points;
# - tell when a moving curve is free, and why it samples correctly even where it is not;
# - find out where a trained model loses its nats.
#
# **Why?** On digits every joint model of image and label has a *worse* bound on the image than a model of the image
# alone (section 8). A joint model can draw any part given any other, which no bound counts. But you want to know
# what it costs, and which choice is to blame.
#
# **You need** notebooks 01 (ceiling and gap), 02 (curves) and 03 (the bound). Entropy is recalled below. **Time**:
# about two hours to read (less without sections 3 and 4, which can wait) and 45 minutes for the exercises; half a
# minute to run on a laptop CPU.
#
# The account is our own; section 3 of [theory.md](theory.md) has it in one line.

# %%
import itertools
import json
import math
from pathlib import Path

import mtdiff as mt
from mtdiff import datasets, plots, widgets
from mtdiff.comparison import by_seed, paired, tally
from mtdiff.exact import linear_gaussian_gap

import matplotlib.pyplot as plt
import torch
from torch.distributions import MultivariateNormal

torch.set_num_threads(1)
plots.style()


def rng(seed):
    """A generator, so that every cell draws the same numbers whenever it runs."""
    return torch.Generator().manual_seed(seed)


# %% [markdown] tags=["slide"]
# ## 1 · The same bound loses 0.2 or 1.5 nats, and in different places
#
# In notebook 01 the **gap** was the distance from the bound up to the **ceiling** $\mathbb E \log q(X)$, the best
# that *any* model can reach on average. (In code: `log_evidence`.) For real data nobody knows the ceiling. So take a
# problem in which everything is Gaussian and can be computed: a picture $x$ of three pixels, and a number $y$ that
# goes with its brightness. The encoders are matrices, $E_i(x_i) = A_i x_i$. In the *superposed* design the number is
# added onto the pixels as a little pattern $(1, -1, 1)$. In the other it has a *channel of its own*, a fourth
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
# Let heads and means be exact. To make every leak visible we choose the end points and the variance badly: the
# log-SNR goes from 4 only to $-2$, and each step back has the simple variance $\tilde\beta_t I$.

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
    "Four stacked horizontal bars that end at the ceiling. Superposed, constant: mostly factorisation. Superposed, "
    "fade-in: history, moving target and, with a trace at the start, factorisation. Own channels: almost only reverse.",
)


# %% [markdown]
# The data are the same in all four rows, yet the gap differs by a factor of nine, and consists of different parts.
# This notebook explains every colour.
#
# ## 2 · The gap is five code-length losses, and nothing else
#
# **Two words first.** The **entropy** $H(A) = -\mathbb E \log q(A)$ is the number of nats that the best code needs
# for $A$. (For a continuous $A$ it may be negative; only differences count.) The *conditional* entropy $H(A \mid
# B) = H(A, B) - H(B)$ is what the code still needs when $B$ is known. A Gaussian with covariance $\Sigma$ has $H =
# \frac12 \log\det(2\pi e\, \Sigma)$. The ceiling is $-H(X)$.
#
# To check every line we build the joint covariance of $(X, z_0, \dots, z_4)$ by hand, for a chain of four steps. It
# appends one $z_t$ after the other to $X$, with the kernel of notebook 02, $z_t = \sqrt{\alpha_t}\,(z_{t-1} + \sum_i
# w_t^i A_i x_i) + \sqrt{1 - \alpha_t}\,\varepsilon$.


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
# From it we read two things: conditional entropies, and the regression of some variables on others.

# %%
x, y, X = [0, 1, 2], [3], [0, 1, 2, 3]
z = [list(range(4 + d * t, 4 + d * t + d)) for t in range(T + 1)]
path = list(range(4, len(joint)))  # all of z_0 ... z_T
posterior_variance = (1 - alpha) * (1 - abar[:-1]) / (1 - abar[1:])  # beta~_t


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


inside = H(z[1], [*z[2], *X])
assert abs(inside - d / 2 * math.log(2 * math.pi * math.e * posterior_variance[1])) < 1e-9
print(f"H(z_1 | z_2, X): joint law {inside:.6f}, from beta~_2 of notebook 02 the same")

# %% [markdown] tags=["slide"]
# ### Step 1: the expected bound is a code length
#
# Notebook 03 has $\mathrm{ELBO} = \log p(z_T) + \sum_t \log p(z_{t-1} \mid z_t) + \sum_i \log p_i(x_i \mid z_0) -
# \log q(z_{0:T} \mid X)$. Take the mean under $q$. The **cross entropy** $C = -\mathbb E_q \log p$ is what a code
# that was built for $p$ needs on data from $q$. Exact heads are built for $q$, so that theirs is an entropy:
#
# $$ -\,\mathbb E[\mathrm{ELBO}] \;=\; C(z_T) + \sum_t C(z_{t-1} \mid z_t) + \sum_i H(x_i \mid z_0)
#    \;-\; H(z_{0:T} \mid X). $$
#
# The step back has the exact mean and the variance $\tilde\beta_t I$. In $d$ dimensions a Gaussian code of variance
# $\beta$ for errors of covariance $V$ needs $\frac12 \big(d \log 2\pi\beta + \operatorname{tr} V / \beta\big)$ nats.

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
# Closed forms can share a mistake. So we also draw 20,000 examples with their chains, and average the ELBO's own
# definition.

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
# ### Step 2: the ceiling in the same currency
#
# Entropies obey the **chain rule** $H(A, B) = H(A) + H(B \mid A)$. Write $H(X, z_{0:T})$ in both orders, $X$ first
# and $z$ first:
#
# $$ H(X) + H(z_{0:T} \mid X) \;=\; H(z_{0:T}) + H(X \mid z_{0:T}). $$
#
# ### Step 3: subtract
#
# The gap is the ceiling minus the bound. Put in $H(X)$ from step 2. Then $H(z_{0:T} \mid X)$ cancels, and two
# brackets are left:
#
# $$ -H(X) - \mathbb E[\mathrm{ELBO}] \;=\;
#    \underbrace{C(z_T) + \sum_t C(z_{t-1} \mid z_t) - H(z_{0:T})}_{\text{the chain is coded badly}} \;+\;
#    \underbrace{\sum_i H(x_i \mid z_0) - H(X \mid z_{0:T})}_{\text{the read-out is coded badly}}. $$
#
# Bad coding is all that can go wrong.

# %%
assert abs(H(X) + H(path, X) - H(path) - H(X, path)) < 1e-9  # step 2
assert abs(-H(X) - gap.log_evidence) < 1e-9
badly_coded_chain = C_end + sum(C_back) - H(path)
badly_coded_readout = H(x, z[0]) + H(y, z[0]) - H(X, path)
assert abs(badly_coded_chain + badly_coded_readout - gap.gap) < 1e-9
print(f"chain {badly_coded_chain:.6f} + read-out {badly_coded_readout:.6f} = gap {gap.gap:.6f}")

# %% [markdown] tags=["slide"]
# ### Step 4: open the chain
#
# The best code for the path goes backwards and remembers everything: $H(z_{0:T}) = H(z_T) + \sum_t H(z_{t-1} \mid
# z_{t}, \dots, z_T)$. The model starts from $\mathcal N(0, I)$, sees only $z_t$, and has a law of its own for the
# step. Add and subtract $H(z_{t-1} \mid z_t)$, which a perfect code that sees only $z_t$ would need. Three
# differences appear:
#
# - **prior**: $C(z_T) - H(z_T) = \mathrm{KL}(q(z_T)\,\|\,\mathcal N(0, I))$, because the chain does not end exactly
#   at noise.
# - **moving target**: $\sum_t H(z_{t-1} \mid z_t) - H(z_{t-1} \mid z_{t:T})$, what the forgotten later states would
#   have told. It is never negative, and 0 exactly if the chain of $z$ is Markov, so that later states tell nothing
#   new.
# - **reverse**: $\sum_t C(z_{t-1} \mid z_t) - H(z_{t-1} \mid z_t)$, the KL from the true step back to the model's.
#   It comes from a wrong variance, a wrong shape, or, for a network, a wrong mean.

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
# The best read-out sees the whole path and reads all modalities together. The model sees $z_0$, and reads each
# modality by itself. Add and subtract $H(X \mid z_0)$, and two differences appear:
#
# - **history**: $H(X \mid z_0) - H(X \mid z_{0:T})$, what the rest of the path would have told about $X$;
# - **factorisation**: $\sum_i H(x_i \mid z_0) - H(X \mid z_0)$, what the modalities say about each other beyond what
#   $z_0$ says. Separate heads cannot use it.

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
#    + \underbrace{\sum_t H(z_{t-1} | z_t) - H(z_{t-1} | z_{t:T})}_{\text{moving target}}
#    + \underbrace{H(X|z_0) - H(X|z_{0:T})}_{\text{history}} $$
# $$ \qquad + \underbrace{\sum_i H(x_i | z_0) - H(X | z_0)}_{\text{factorisation}}
#    + \underbrace{\sum_t \mathbb E\,\mathrm{KL}(q(z_{t-1}|z_t)\,\|\,p(z_{t-1}|z_t))}_{\text{reverse}}. $$
#
# Nothing in the derivation needed Gaussians, linearity or a small $T$; only the numbers did. A trained model has a
# larger fifth term, and a sixth: the KL of its imperfect heads.
#
# Of trained models we can only estimate the bound, with `mt.elbo`. So we test that on the exact Gaussian model,
# behind the interface of a trained one (an `mt.Denoiser`). We also test the sixth term: heads whose variance is
# twice too large must cost $\frac12(\log 2 - \frac12)$ nats for each of the four numbers.


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
class TooUnsure(Exact):
    """The same with heads of twice the variance."""

    def predict(self, z, t, **_):
        right = super().predict(z, t)
        law = {name: MultivariateNormal(p.mean, 2 * p.covariance_matrix) for name, p in right.law.items()}
        return mt.Prediction(right.aggregate, law, right.estimate)


batch = {"x": draws[:, x], "y": draws[:, y]}
estimate = mt.elbo(Exact(covariance, encoders, process), batch, samples=4, generator=rng(1))
worse = mt.elbo(TooUnsure(covariance, encoders, process), batch, samples=4, generator=rng(1))
sixth = 4 * 0.5 * (math.log(2) - 0.5)
assert abs(estimate.total - gap.bound) < 4 * estimate.stderr
assert abs(estimate.total - worse.total - sixth) < 0.03
print(f"mt.elbo {estimate.total:.3f} ± {estimate.stderr:.3f}, exact {gap.bound:.3f}")
print(f"unsure heads cost {estimate.total - worse.total:.3f} nats, expected {sixth:.3f}")

# %% [markdown] tags=["slide"]
# ## 3 · A moving curve costs what its injections tell that is new
#
# Moving target and history look like two things, but they are two halves of one. Turn each step around with
# $H(z_{t-1} \mid z_t) + H(z_t) = H(z_t \mid z_{t-1}) + H(z_{t-1})$. Summed over $t$ the single entropies telescope.
# In the history, write what the path tells about $X$ from the other side, as what $X$ tells about the path:
#
# $$ \text{moving target} = \sum_t H(z_t \mid z_{t-1}) - H(z_{1:T} \mid z_0), \qquad
#    \text{history} = H(z_{1:T} \mid z_0) - H(z_{1:T} \mid z_0, X). $$
#
# In the sum the middle cancels. Given $X$ the chain *is* Markov, so that the last entropy is a sum over steps, too.
# Hence
#
# $$ \text{moving target} + \text{history} \;=\; \sum_{t=1}^T I(X; z_t \mid z_{t-1}), \qquad
#    I(X; z_t \mid z_{t-1}) = H(z_t \mid z_{t-1}) - H(z_t \mid z_{t-1}, X). $$
#
# The letter $I$ stands for *conditional mutual information*: what $z_t$ tells about $X$ that $z_{t-1}$ did not
# already say. We call it the **news** of a step. An ordinary noising step has none. An injection has, unless what it
# injects can be read off $z_{t-1}$ anyway.

# %%
forwards = sum(H(z[t], z[t - 1]) for t in range(1, T + 1))
assert abs(forwards - H(path[d:], z[0]) - gap.moving_target) < 1e-9
assert abs(H(path[d:], z[0]) - H(path[d:], [*z[0], *X]) - gap.history) < 1e-9
news = [H(z[t], z[t - 1]) - H(z[t], [*z[t - 1], *X]) for t in range(1, T + 1)]
assert abs(sum(news) - (gap.moving_target + gap.history)) < 1e-9
print("news of each step:", [round(value, 4) for value in news])
print(f"their sum {sum(news):.6f}, moving target + history {gap.moving_target + gap.history:.6f}")


# %% [markdown]
# For long chains let $s_t = z_t/\sqrt{\bar\alpha_t}$ be the state in units of the aggregate, and $\tau_t = (1 -
# \bar\alpha_t)/\bar\alpha_t$ its noise variance, which grows with $t$. Then $s_t = s_{t-1} + \Delta m +
# \text{noise}$, with the increment $\Delta m = m_t - m_{t-1}$ and a noise of variance $\Delta\tau = \tau_t -
# \tau_{t-1}$. So the news is what a noisy measurement of $\Delta m$ tells, when $\Delta m$ is known up to its
# covariance $S$ given $z_{t-1}$:
#
# $$ I(X; z_t \mid z_{t-1}) \;\le\; \tfrac12 \log\det\Big(I + \frac{S}{\Delta\tau}\Big)
#    \;\le\; \frac{\operatorname{tr} S}{2\, \Delta\tau}
#    = \frac{\mathbb E\,\|\Delta m - \mathbb E[\Delta m \mid z_{t-1}]\|^2}{2\, \Delta\tau}. $$
#
# The first step holds because, of all laws with a given covariance, the Gaussian has the largest entropy; in our
# Gaussian problem it is an equality. The second is $\log(1 + a) \le a$ for each eigenvalue.


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
# **Where along the way does a curve pay?** We take four curves that rise from about 0 to about 1, and plot the news
# per unit of $u = t/T$.

# %%
curves = {
    "linear": mt.fade_in(1.0),
    "early, $\\sqrt{u}$": lambda u: u**0.5,
    "late, $u^4$": lambda u: u**4,
    "with the noise, $1 - \\bar\\alpha_t$": lambda u: torch.special.expit(torch.tensor(12 * u - 6, dtype=torch.float64)),
}
u = torch.linspace(0, 1, 1001, dtype=torch.float64)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
totals, middle = {}, {}
for (name, curve), dash in zip(curves.items(), ("-", ":", "--", "-."), strict=True):
    rate, weight = 1000 * news_of_steps(*problem(), chain(curve, 1000))[0], chain(curve, 1000).cumulative("y")
    totals[name], middle[name] = float(rate.mean()), float(weight[500])
    axes[0].plot(u, weight, dash, color=plots.COLOURS["label"])
    axes[1].semilogy(u[1:], rate, dash, color=plots.COLOURS["label"], label=f"{name}: {totals[name]:.2f} nats")
axes[0].set(xlabel="u = t / T", ylabel="cumulative weight of y")
axes[1].set(xlabel="u = t / T", ylabel="news (nats per unit of u)", ylim=(1e-4, 1e5))
figure.suptitle("Of a number that the picture does not tell, moving early is dear and moving late is cheap", fontsize=11)
axes[1].legend(frameon=False, fontsize=8, loc="upper right")
plots.show(
    figure,
    "Two panels: four curves of the weight from 0 to 1, and on a log scale the nats each pays along the way. The early and "
    "the linear curve pay most near the start; the late one pays least, the one that moves with the noise in the middle.",
)

# %%
linear, early, late, with_noise = totals.values()
half, _, _, also_half = middle.values()
assert abs(half - also_half) < 1e-9
assert early > 3 * linear > 20 * late
assert 6 < linear / with_noise < 8
print(f"W at u = 1/2: {half:.2f} and {also_half:.2f}; nats: {linear:.3f} (linear) and {with_noise:.3f} (with the noise)")

# %% [markdown]
# Where the noise is low, $\Delta\tau$ is tiny, so that the noise does not cover an injection. Late, it covers all.
# This is not the same as injecting less: the curve that moves *with* the noise shows the number at $u = 1/2$ as much
# as the linear one does, and pays a seventh.
#
# ### More steps do not help
#
# For small steps the sum becomes an integral, with $W' = dW/d\tau$:
#
# $$ \text{moving target} + \text{history} \;\longrightarrow\; \tfrac12 \int
#    \mathbb E\,\Big\| \sum_i W_i'(\tau)\, \big(E_i - \mathbb E[E_i \mid z]\big) \Big\|^2 d\tau . $$
#
# It does not depend on $T$.

# %%
moving_curves = {
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
    assert costs[name] == sorted(costs[name])
limits = {name: float(news_of_steps(*problem(), chain(curve, 20_000))[1].sum()) for name, curve in moving_curves.items()}
for name in list(costs)[:3]:
    errors = [abs(value - limits[name]) for value in costs[name][-3:-1]]
    assert errors[1] < 0.01 * limits[name]
    assert 1.8 < errors[0] / errors[1] < 2.3, "the distance to the integral halves when T doubles"
    print(f"{name}: {costs[name][-1]:.4f} nats at T = {lengths[-1]}, integral {limits[name]:.4f}")
per_doubling = [later - now for now, later in itertools.pairwise(costs["jump at u = 1/2"])]
assert abs(per_doubling[-1] - 0.5 * math.log(2)) < 0.005
print(f"the jump costs {per_doubling[-1]:.4f} nats more at each doubling of T; 1/2 log 2 = {0.5 * math.log(2):.4f}")

# %%
figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
for (name, values), look in zip(costs.items(), ("o-", "s--", "D:", "^-."), strict=True):
    axis.loglog(lengths, values, look, markersize=5, color=plots.COLOURS["label"], label=name)
axis.set(xlabel="steps T", ylabel="moving target + history (nats)")
axis.set_xticks(lengths, lengths)
axis.minorticks_off()
axis.set_title("With more steps smooth curves level off, a jump costs more and more")
axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
plots.show(
    figure,
    "Moving target plus history over the number of steps, logarithmic axes. Linear and from a trace level off near 1.4 and "
    "1.0, late fade-in stays near 0.01, the jump rises from 0.6 to 3.",
)


# %% [markdown]
# A jump puts all its news into one step whose noise $\Delta\tau$ shrinks like $1/T$: for one continuous number,
# $\frac12 \log(1 + \text{const} \cdot T)$.
#
# ## 4 · Moving costs bits, and yet each state has the right law
#
# Does a leaky bound mean bad samples? Not by itself, and the reason is an induction. Suppose that $z_t$ has the
# right law $q(z_t)$ and that the step is the true $q(z_{t-1} \mid z_t)$. Then $z_{t-1}$ has the right law, too,
# because that is what the true step averages to. The argument never looks at later states, so it does not need a
# Markov chain.
#
# Here the true step is Gaussian however long it is, with a covariance that we call *optimal*. In general only a
# short true step is close to a Gaussian of variance $\tilde\beta_t$, so that single states become right as $T$ grows
# (Gyöngy 1986, in continuous time). We check both by propagating covariances from the true $q(z_T)$, and look at a
# *pair* of states, which no such argument protects.


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
optimal, isotropic, pairs = zip(*map(run_backwards, doublings), strict=True)
lost = [linear_gaussian_gap(covariance, encoders, chain(mt.fade_in(1.0), T, 4.0, -4.0)) for T in doublings]
slope = math.log(isotropic[-1] / isotropic[-2]) / math.log(2)
assert max(optimal) < 1e-9
assert abs(slope + 1) < 0.05
assert pairs[-1] > pairs[0] > 0.01, "no sign of vanishing"
assert all(pair < g.moving_target for pair, g in zip(pairs, lost, strict=True))
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
axes[0].loglog(doublings, isotropic, "o-", color="C8")
axes[0].set(ylabel="relative error of Cov($z_0$)", title="one state, variance $\\tilde\\beta_t I$")
axes[1].loglog(doublings, [g.gap for g in lost], "^-", color="black", label="gap of the bound")
axes[1].loglog(doublings, pairs, "s--", color="black", label="KL of the law of ($z_0$, $z_{T/2}$)")
axes[1].set(ylabel="nats", ylim=(0.005, 2), title="paths, optimal variance")
for axis in axes:
    axis.set(xlabel="steps T", xticks=doublings, xticklabels=doublings)
    axis.minorticks_off()
axes[1].legend(frameon=False, fontsize=9, loc="center")
figure.suptitle("With more steps single states become right; pairs of states, and the bound, do not", fontsize=11)
plots.show(figure, "Left: the error of the covariance of z_0 falls in a straight line. Right: two curves that stay level.")
print(f"optimal variance: Cov(z_0) is right to {max(optimal):.0e} at every T; with beta~ the slope is {slope:.2f}")

# %% [markdown]
# What stays wrong is how states at *different* times hang together, and the bound is about whole paths. So a worse
# bound need not mean worse samples. But all modalities must be read *at one time*: a label read at $t = T/2$ and an
# image read at $t = 0$ of the same chain are not a pair.
#
# ## 5 · Separate heads cost what $z_0$ leaves open jointly
#
# How does the factorisation term depend on the noise at $t = 0$? We compute it for four designs. The last has a
# third modality $c$: like $y$ a number that goes with the brightness, and correlated with $y$ beyond that.

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
figure, axis = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
for (name, values), dash in zip(tc.items(), ("-", "--", ":", "-."), strict=True):
    axis.semilogy(levels, values, dash, color="C4", label=name)
axis.axhline(floor, color="C7", linewidth=1, label="what y and c share given x")
axis.set(xlabel="log-SNR at t = 0 (nats)", ylabel="factorisation (nats)", ylim=(1e-7, 30))
axis.set_title("Less noise at t = 0 hurts superposed codes of constant weight only")
axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
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

# %% [markdown]
# - **Superposed, constant**: with little noise $z_0$ fixes the sum $x + y\,(1, -1, 1)$ and not its parts. Both heads
#   are wrong by the same amount and do not know it of each other.
# - **Own channels**: $z_0$ shows both. **Fade-in**: $z_0$ shows $x$, and only one modality is left open. Both terms
#   vanish.
# - **Two faded-in modalities** are read off the same picture without knowing of each other. What they share beyond
#   the picture is lost, unless one is read after the other, or a trace of their codes stays in $z_0$.
#
# ## 6 · A fixed variance costs $1/T$, and more at a clean end
#
# The models of this course step back with $\tilde\beta_t I$. By notebook 01 (section 5) the true variance is $1 +
# \rho_t$ times as large, and leaving this out costs $\frac12 (\rho_t - \log(1 + \rho_t))$ nats for each dimension,
# hence about $1/T$ in all. At a clean end $z_t$ is nearly all that is known of $X$, so that $\operatorname{Var}(X
# \mid z_t) \approx 1/\mathrm{SNR}_t$ and $1 + \rho_t = \mathrm{SNR}_{t-1}/\mathrm{SNR}_t = e^\delta$ for steps of
# $\delta$ nats in log-SNR. Such a step costs $\frac12 (e^\delta - 1 - \delta)$. To check, we add one more clean
# step.

# %%
delta, d_own = 0.4, 4
nearly = linear_gaussian_gap(*problem(0.8, True), chain(1.0, 50, 12.0, 12.0 - 50 * delta), "isotropic")
one_more = linear_gaussian_gap(*problem(0.8, True), chain(1.0, 51, 12.0 + delta, 12.0 - 50 * delta), "isotropic")
per_step = d_own / 2 * (math.exp(delta) - 1 - delta)
assert abs(one_more.reverse - nearly.reverse - per_step) < 1e-4
print(f"price of one more clean step: {one_more.reverse - nearly.reverse:.6f}, formula {per_step:.6f}")

# %% [markdown]
# So with $T$ fixed a cleaner end is not free: its steps are longer.

# %%
counts, highs = [25, 50, 100, 200, 400, 800], [2, 4, 6, 8, 10, 12, 14]


def price(T, high, low=-4.0):
    """The reverse term of the isotropic variance, in nats."""
    return linear_gaussian_gap(*problem(0.8, True), chain(1.0, T, float(high), low), "isotropic").reverse


prices = [price(count, 4.0) for count in counts]
slope = math.log(prices[-1] / prices[-2]) / math.log(2)
assert abs(slope + 1) < 0.02
assert price(40, 14) > 10 * price(40, 2)
print(f"log-SNR 4 to -4: the price falls with T, at slope {slope:.2f} on logarithmic axes")
figure, axis = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
axis.plot(highs, [price(40, high) for high in highs], "o-", color="C8")
axis.set(xlabel="log-SNR at t = 0", ylabel="reverse (nats)", ylim=(0, None))
axis.set_title(f"With 40 steps, a cleaner end costs up to {price(40, 14):.1f} nats of variance")
plots.show(figure, "With 40 steps the reverse term grows faster and faster with the log-SNR at t = 0, from 0.2 to 6.6 nats.")

# %% [markdown] tags=["slide"]
# ## 7 · Constant curves, own channels and the optimal variance lose nothing
#
# Put the best together: constant curves (no moving target, no history), own channels with little noise at $t = 0$
# (no factorisation), the optimal variance (no reverse), and a log-SNR down to $-9$ (no prior). Then the bound *is*
# the ceiling, with **any** number of steps.

# %%
print("  T       gap     prior  factorisation")
for T_ in (3, 30, 300):
    g = linear_gaussian_gap(*problem(0.8, True), chain(1.0, T_, 9.0, -9.0))
    assert abs(g.gap - g.prior - g.factorisation) < 1e-9
    assert g.gap < 1e-7
    print(f"{T_:3d}  {g.gap:.1e}   {g.prior:.1e}        {g.factorisation:.1e}")

# %% [markdown]
# Three steps are enough, since a long true step is Gaussian here, too. The table collects what we found; the next
# cell checks its first row.
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
# ## 8 · A trained model loses most in its network, not in its curves
#
# The ceiling of digits is unknown. But for the digits model of notebook 00 you can measure the bound on held-out
# digits, term by term. One set of weights has three bounds:
#
# - **image**: on $\log p(\text{image})$, with only the image in $z$;
# - **sum**: that plus $\log p(\text{label} \mid z_0)$, a bound on the pair, still with only the image in $z$;
# - **joint**: a bound on the pair with both in $z$.
#
# Digits have 17 grey levels, and the read-out gives each a probability (a discretised Gaussian, Ho et al. 2020).
# Nats over $64 \log 2$ are **bits per dimension**.

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
# Behind ± stands one standard error, over digits and noises. The two bounds on the pair agree within it: here it
# hardly matters whether the label is in $z$. Is 2.3 bits/dim good? Compare with codes that need no network. Equally
# likely grey levels cost $\log_2 17$. A **table** of how often each pixel has each level in the training set knows
# the habits of each pixel, but not how pixels go together.

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
# With the image alone in $z$, a step costs $\frac12 (\mathrm{SNR}_{t-1} - \mathrm{SNR}_t)\, \mathbb E\,\| x - \hat
# x(z_t) \|^2$ (notebook 01). Next to the network we put a denoiser without any: Bayes' rule with the table, pixel by
# pixel.


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
# From which $t$ on is the network better than the table? We decide on *training* images, so that the held-out ones
# stay untouched.

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
# Any reverse process gives a valid bound, and so does a switch from one denoiser to another. Hence at least 17 nats
# of this model's gap are the network's. At low noise a pixel can be rounded to its grey level, and the network has
# not learned to round. In a *picture* such errors are below one grey level and cannot be seen.
#
# ### What does the moving label cost here?
#
# The label fades in from 0.1 to 1, which cost a nat in section 3. The upper bound on the news from there holds for
# any data, and for any guess in the place of the mean. With the model's estimate $\hat c$ of the label's code
# $c_y$ it is $\sum_t (\Delta W_t)^2\, \mathbb E\,\| c_y - \hat c(z_{t-1}) \|^2 / (2\, \Delta\tau_t)$.


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
# It costs next to nothing. While the noise is low, the image itself says which digit it is, so that injecting the
# label's code is no news; later, the noise covers it.
#
# ### What does the label cost or buy the image?
#
# The controls are an **image-only** model of the same size and training, and the simplest code for the label: ten
# equally likely classes cost $\log 10 = 2.30$ nats. Each model was trained with three seeds. *Images* says what the
# label costs the image. *Pairs* compares with image-only and $\log 10$; it would be near $+2.30$ if the label came
# for free. *Label in z* compares two bounds of one model on the same pairs, with the label in $z$ and without.
#
# **How this course compares.** Two trainings of one seed see the same batches and are judged with the same noise. So
# we take their *difference*, seed by seed, and give its mean and standard error (`mtdiff.comparison.paired`). A
# difference is called **clear**, and has a star, beyond the 95% of Student's $t$, which allows for few seeds: $|t| >
# 4.30$ for three seeds, 12.7 for two, and never for one. Of twenty differences that are nothing, one will have a
# star, so this course says how many it looked at. The choice of the test set is not in these errors: all seeds share
# it.

# %%
files = (
    "image-label-digits-constant.json",
    "image-label-digits-fade-in.json",
    "image-label-digits-image-only.json",
    "image-label-digits-own-channels.json",
)
results = [json.loads((Path("../data/results") / file).read_text()) for file in files]
measured = {next(iter(result["variants"])): result for result in results}


def of(variant, key):
    """One number of the bound of a variant, {seed: nats}."""
    return by_seed(measured[variant], "metrics", "bound", key)


control = of("image-only", "image")
alone = {seed: nats - math.log(10) for seed, nats in control.items()}
found = {
    variant: {
        "label in z, same pairs": paired(of(variant, "joint"), of(variant, "sum")),
        "images": paired(of(variant, "image"), control),
        "pairs": paired(of(variant, "joint"), alone),
    }
    for variant in ("constant", "own-channels", "fade-in")
}

# %%
figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
for row, (variant, differences) in enumerate(found.items()):
    for (what, difference), marker in zip(differences.items(), "osD", strict=True):
        colour = {"o": "C7", "s": plots.COLOURS["image"], "D": plots.COLOURS["label"]}[marker]
        axis.errorbar(
            difference.mean, row, xerr=difference.stderr, fmt=marker, color=colour, label=what if row == 0 else None
        )
    print(f"{variant}: " + "; ".join(f"{what} {difference:.2f}" for what, difference in differences.items()))
axis.axvline(0, color="black", linewidth=0.8)
axis.set(
    yticks=range(3), yticklabels=list(found), ylim=(-0.5, 2.5), xlabel="difference to the control (nats; right is better)"
)
axis.set_title("Every joint model is a worse model of the image than image-only")
axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
plots.show(
    figure,
    "Three rows. Images and pairs lie left of zero in all: constant at -34 and -60, own channels near -13, fade-in near -8.",
)
sharing = paired(of("fade-in", "image"), of("own-channels", "image"))
print(f"images of fade-in against those of own-channels: {sharing:.2f} nats")
print(tally([*itertools.chain(*(differences.values() for differences in found.values())), sharing]))
error = max(of("fade-in", "image_stderr").values())
print(f"one bound of an image has an error of {error:.1f} nats by the choice of 360 digits and their noise")
assert all(differences["images"].clear and differences["images"].mean < 0 for differences in found.values())

# %% [markdown]
# Every joint model is a worse model of the *image*, and by more than the label could save: 9 nats with fade-in, 13
# with own channels, 34 with a constant superposed weight. Sharing the space is not the whole reason, as own channels
# lose as well. Nor is *moving*, which costs 0.02 nats at most. What is left is the network, which denoises less
# precisely. (The joint models also saw the image alone in only a fifth of their examples.)
#
# ## 9 · Play: which bar answers to which slider?
#
# **Look for** a setting that makes superposition with a moving curve as tight as own channels with a constant one.
# Then set the correlation to 0: what is left? (For a static page three settings follow.)

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
# Even *independent* modalities lose nats when they share channels, because given their sum they are no longer
# independent. Fading in removes that, but then all of the injection is news and costs more than was saved. The
# tightest bound would leave $y$ out of $z$ altogether. One puts it in for what the bound does not reward: a label in
# the chain can steer it (notebook 05).
#
# ## 10 · Exercises
#
# **Exercise 1 (warm-up, easy, 10 minutes): separate heads by hand.**
# Write a function that computes the factorisation term for two modalities $x$ (three numbers) and $y$ (one number)
# from the covariance `left` (4, 4) of $(x, y)$ given $z_0$. *Hint*: for Gaussians, $\frac12 \log$ of a ratio of
# determinants.


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
# **Exercise 2 (break it, medium, 15 minutes): two accidents.**
# A real image head is factorised over *pixels*: the best guess plus independent noise. So let each pixel be a
# modality of its own, with own channels and constant curves, and the number unrelated, `problem(correlation=0.0)`.
# Break this tight design in two ways: (a) the pixels' encoder **collapses**, its codes shrink to `shrink` times
# themselves; (b) the chain ends too early, at log-SNR `low`. Predict which bar grows, and where it ends for
# `shrink=0`. Then write a function that returns the `GaussianGap`. *Hint*: four encoders `"x1", "x2", "x3", "y"`,
# each a column of the unit matrix; T = 20, log-SNR from 9.


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
    return widgets.Verdict(
        function().gap < 1e-3, f"sound {function().gap:.5f} (wanted: below 0.001); " + "; ".join(text[1:3])
    )


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
# denoise. With *one* full-covariance head for all pixels the accident would cost the bound nothing at all.
#
# **Exercise 3 (a small research question, hard, 20 minutes): a better fade-in.**
# The number has to be out of $z_0$ ($W = 0$ at $u = 0$), fully there at the end ($W = 1$ at $u = 1$), and half there
# in the middle ($W \ge 1/2$ at $u = 1/2$). Find a curve whose gap is at least 20 % below the linear one's,
# superposed and in own channels, for few steps and for many. *Further*: what is the best curve?


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
    return widgets.Verdict(worst < 0.8, "; ".join(text) + f" (worst ratio {worst:.2f}, wanted: below 0.80)")


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
# The cost is $\int (dW/d\tau)^2 \cdot (\text{what is not known})\, d\tau / 2$. If the unknown part stayed the same,
# the best curve between two fixed points would be a straight line *in $\tau$*: late, and in step with the noise.

# %% [markdown] tags=["slide"]
# ## What we learned, what comes next
#
# - The gap is a sum of five code-length losses; the table of section 7 says which choice touches which.
# - A moving curve costs the **news** of its steps. More steps do not help; moving late, or with the noise, does.
# - That leak is about *paths*. Each single state has the right law, so read everything at one time.
# - On digits the moving label is all but free. What loses nats is the network.
#
# Next: **05 · Sampling and conditioning**. How is something that is given used correctly?
