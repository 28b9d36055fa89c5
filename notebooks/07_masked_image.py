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
# # 07 · Masked images: how holes are filled, and what masks do for plain generation
#
# **After this notebook you can**
# - put an image, its masked copy and the mask into one space, and say what one network learns there;
# - show on three pixels that neither RePaint nor SDEdit draws from the conditional law;
# - tell from two draws for each of many holes whether a sampler is as unsure as it is wrong;
# - judge the claim "training with masks improves generation" by the controls that it needs.
#
# **You need** notebooks 02 (present sets), 04 (clear differences), 05 (rules for given values) and 06 (known shifts).
# **Time**: about 90 minutes to read, one minute to run on a laptop CPU. No GPU, no download.
#
# Masked-image training is a setting of the paper (Chen et al. 2024, [arXiv:2407.17571](https://arxiv.org/abs/2407.17571);
# second-hand). Derivations and measurements are ours: see [theory.md](theory.md) and [measured.md](measured.md).

# %%
import itertools
import json
from pathlib import Path

import mtdiff as mt
from mtdiff import losses, plots, widgets
from mtdiff.baselines import repaint, sdedit
from mtdiff.comparison import by_seed, paired
from mtdiff.datasets.masks import MASKS, masks
from mtdiff.experiments import masked_image, report
from mtdiff.judges import scene_judge
from mtdiff.laws import Gaussian
from mtdiff.metrics import frechet_distance, hidden_psnr, psnr

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown

torch.set_num_threads(1)
plots.style()


def rng(seed):
    """A generator, so that every cell draws the same numbers whenever it runs."""
    return torch.Generator().manual_seed(seed)


# %% [markdown] tags=["slide"]
# ## 1 · One hole has many fillings
#
# A small network is given what is known of a scene and where the hole is, and draws the rest. It has seen none of these
# scenes. *Box* masks hide a rectangle, up to some pixels at its edge (**inpainting**), *border* masks all but a rectangle
# (**outpainting**), *blobs* and *strokes* are free-form, *pixels* hides single ones. Each hides half of the image here, and
# five draws differ in nothing but their noise:

# %%
large = mt.load("masked-image/shapes32")
wide = masked_image.masked_scenes("shapes32", "test", 400).values
visible = (wide["image"][:, :, 0, 0].abs().amax(1) > 0.3).nonzero().flatten()  # on grey one sees no hole
picture = wide["image"][visible[[15, 25, 2, 3, 18]]]
hole = torch.cat([masks(1, 32, kind, 0.5, seed=3) for kind in MASKS])
given = {"masked": (picture * hole).repeat(5, 1, 1, 1), "mask": hole.repeat(5, 1, 1, 1)}
drawn = mt.sample(large, 25, given=given, steps=24, generator=rng(0))["image"].unflatten(0, (5, 5))
hidden = ~hole.bool().expand_as(picture)
spread = {kind: float(drawn[:, k].std(0)[hidden[k]].mean()) for k, kind in enumerate(MASKS)}
rows = {kind: torch.cat([(picture * hole)[k : k + 1], drawn[:, k], picture[k : k + 1]]) for k, kind in enumerate(MASKS)}
title = f"Fillings of one hole differ by {spread['strokes']:.2f} under strokes, by {spread['pixels']:.2f} between pixels"
plots.show(
    plots.picture_rows(rows, ["known", *(f"filling {k}" for k in range(1, 6)), "image"], title),
    "Five scenes with half of each hidden by a box, border, blobs, strokes or single pixels, five fillings of each, and the "
    "scene itself.",
)
assert all(torch.equal(draw[~hidden], picture[~hidden]) for draw in drawn)
assert spread["pixels"] < spread["strokes"]

# %% [markdown]
# That was one call, `mt.sample(model, n, given={"masked": ..., "mask": ...})`. The title has the standard deviation of
# hidden pixels over the fillings: where a whole object may hide there are many answers, while single pixels are told by
# their neighbours.
#
# ### Three pictures share one space
#
# Call $x$ the image, $b$ the **mask** (1 where a pixel is known, 0 where it is hidden) and $x \cdot b$ the **masked
# image**, which is 0 (grey) where it is hidden. All three are pictures, and lie in *one* space of three colour channels:
#
# $$ m_t = x + W_t\,(x \cdot b) + W_t\, E(b), \qquad
#    z_t = \sqrt{\bar\alpha_t}\; m_t + \sqrt{1 - \bar\alpha_t}\;\varepsilon . $$
#
# $E(b)$ writes $+1$ into all channels of a known pixel and $-1$ into those of a hidden one, and $W_t$ grows from 0.1 to
# 0.3 over $T = 500$ steps: what is mixed in fades in with the noise. (Below, black is $-2$ and white is 2.)

# %%
process, steps = large.process, [0, 100, 200, 250, 300, 400, 500]
codes = large.encode({name: value[visible[2:3]] for name, value in wide.items()})
noise = torch.randn(1, 3, 32, 32, generator=rng(0))
rows = {f"$W_t\\,E$({name})": [process.at(t, code).W[name] * code for t in steps] for name, code in codes.items()}
sums = [process.aggregate(codes, t) for t in steps]
assert all(torch.allclose(sum(parts), m, atol=1e-6) for *parts, m in zip(*rows.values(), sums, strict=True))
rows |= {"$m_t$ (sum)": sums, "$z_t$ (noisy)": [process.diffuse(codes, t, noise)[0] for t in steps]}
pictures = {name: torch.cat(row) / 2 for name, row in rows.items()}
title = "First almost the image alone, in the end all three"
plots.show(
    plots.picture_rows(pictures, [f"t = {t}" for t in steps], title),
    "Five rows over seven steps. The image stays the same, masked image and mask fade in from faint to full strength, "
    "their sum turns into a superposition of all three, and the noisy state ends as pure noise.",
)

# %% [markdown]
# The same weights draw all three when nothing is given. Do they fit, although nobody forces them? We compare the drawn
# masked image with drawn image × drawn mask, and, as a yardstick, with another draw's.

# %%
joint = mt.sample(large, 8, steps=24, generator=rng(14))
product = joint["image"] * joint["mask"]
fit, others = (float((joint["masked"] - other).abs().mean()) for other in (product, product.roll(1, 0)))
rows = {"image": joint["image"], "masked": joint["masked"], "mask": joint["mask"].bool()}
title = f"Masked image and image * mask of joint draws differ by {fit:.2f}, those of different draws by {others:.2f}"
plots.show(
    plots.picture_rows({**rows, "image * mask": product}, title=title),
    "Eight joint draws: image, a noisy masked image, mask, and the product of image and mask.",
)
assert fit < others

# %% [markdown]
# They fit better than those of different draws, and not well: see the noise in the masked images and the pepper in the
# masks. In training the joint task was rare, and the losses of these two heads weighed 0.02.

# %% [markdown] tags=["slide"]
# ## 2 · What is known is taken out, and the network sees the rest
#
# ### Step 1: a mask is a modality, and the image is its noise
#
# The mask's head gives one number per pixel, the log-odds $\ell = \log \frac{p(b = 1 \mid z_t)}{p(b = 0 \mid z_t)}$ (a
# **Bernoulli** head). A step of the chain needs its *expected code* (notebook 05). With code $c = \pm 1$,
#
# $$ e = \mathbb E[c \mid z_t] = p - (1 - p) = 2\,\frac{1}{1 + e^{-\ell}} - 1 = \tanh(\ell/2) . $$
#
# What should $\ell$ be? Take one pixel of three channels, nothing but image and mask in the state, and $x \sim \mathcal
# N(\mu, \sigma^2)$ in each channel. Write $s = \sqrt{\bar\alpha_t}$ and $n = \sqrt{1 - \bar\alpha_t}$ in this section.
# Given $c$, $z = s\,(x + W c) + n\,\varepsilon$ is Gaussian with mean $s(\mu + W c)$ and variance $\tau^2 = s^2\sigma^2 +
# n^2$, and Bayes' rule over two Gaussians says
#
# $$ \ell = \log\frac{p(c = 1)}{p(c = -1)} + \frac{2\, s\, W}{\tau^2} \sum_{\text{channels}} (z - s \mu) . $$
#
# *The image is noise for the mask*: $\sigma$ stands in $\tau$. The error of a conditional mean is uncorrelated with every
# function of $z$ (notebook 05); we test 1, the mean of $z$ over the channels, and $e$ itself. A head that forgets the
# image's $\sigma$ must fail.

# %%
model, plain = mt.load("masked-image/shapes16"), mt.load("masked-image/shapes16-plain")
process = model.process
n, t, mu, sigma, known = 200_000, 250, 0.3, 0.6, 0.35
s, noise = (level.double().item() for level in process.at(t, torch.zeros(1, 1)).level)  # in float32, as the model has it
W = float(process.cumulative("mask")[t])
c = 2.0 * (torch.rand(n, 1, generator=rng(1), dtype=torch.float64) < known) - 1
x, eps = (torch.randn(n, 3, dtype=torch.float64, generator=rng(seed)) for seed in (2, 3))
z = s * (mu + sigma * x + W * c) + noise * eps
prior = torch.tensor(known / (1 - known)).double().log()
for name, tau2 in (("with the image's spread", s**2 * sigma**2 + noise**2), ("without it", noise**2)):
    log_odds = prior + 2 * s * W / tau2 * (z - s * mu).sum(1, keepdim=True)
    e = (log_odds / 2).tanh()
    tests = (c - e) * torch.cat([torch.ones_like(c), z.mean(1, keepdim=True), e], 1)
    off = (tests.mean(0) / tests.std(0) * n**0.5).abs().max()
    print(f"{name:24s}: error against three functions of z: at most {off:.1f} standard errors from 0")
    assert off < 4 if tau2 > noise**2 else off > 20
with torch.no_grad():
    head = model.predict(torch.randn(2, 3, 16, 16, generator=rng(4)), t).law["mask"]  # two logits at each pixel
by_hand = ((head.logits[:, 1:] - head.logits[:, :1]) / 2).tanh()
assert torch.allclose(head.expected_code(), by_hand.expand(-1, 3, -1, -1), atol=1e-6)

# %% [markdown] tags=["slide"]
# ### Step 2: two coins make three tasks
#
# Masked image and mask can be *in the sum* or not (the present set $S$ of notebook 02), and the network can be *given*
# them or not (rule 3 of notebook 05):
#
# | in the sum? | given? | what the network learns |
# |---|---|---|
# | yes | no | to draw image, masked image and mask **jointly** |
# | yes | yes | to fill holes, with the known codes in the chain (*told*) |
# | no | yes | to fill holes, with the image alone in the chain (*told alone*): the same task, says step 3 |
# | no | no | to draw an image, nothing else: **plain generation** |
#
# Each case has a bound of its own by notebook 03's argument: on $\log p(x, x \cdot b, b)$, on $\log p(\text{hidden pixels}
# \mid x \cdot b, b)$ (twice), on $\log p(x)$. Training throws two coins for each example, `drop` and `give`, so its
# expected loss is the mean of four losses, weighted by how often each case comes up. Masked image and mask share their
# coins, since either without the other would be another task: in `drop={"masked": 0.5, "mask": "masked"}` a name stands in
# place of a number. We count the cases, and compare the loss with both coins at 1/2 with the mean of the four by
# themselves.


# %%
def denoising(drop, give, batches, seed):
    """Mean and standard error of the loss of the aggregate, with these chances to drop and to give."""
    odds = [{"masked": chance, "mask": "masked"} for chance in (drop, give)]
    g, found = rng(seed), []
    with torch.no_grad():
        for k in range(batches):
            batch = {name: value[64 * (k % 6) : 64 * (k % 6) + 64] for name, value in scenes.items()}
            loss = mt.multitask_loss(model, batch, drop=odds[0], give=odds[1], generator=g)
            found.append(loss.terms["denoise"].double())
    found = torch.stack(found)
    return float(found.mean()), float(found.std() / batches**0.5)


scenes = masked_image.masked_scenes("shapes16", "test", 400).values  # nobody has trained on these
image = scenes["image"][visible[:40]]  # the same scenes, at 16x16
both, cpu, g = {"masked": 0.5, "mask": "masked"}, torch.device("cpu"), rng(0)
dropped, known = (losses.coins(both, 8000, cpu, g) for _ in range(2))
assert all(torch.equal(coin["masked"], coin["mask"]) for coin in (dropped, known))
cases = [(~dropped["mask"] if there else dropped["mask"]) & (known["mask"] == told) for there in (1, 0) for told in (0, 1)]
shares = [float(case.double().mean()) for case in cases]
print(f"shares of the four cases: {', '.join(f'{share:.3f}' for share in shares)}")
assert all(abs(share - 0.25) < 4 * (0.25 * 0.75 / 8000) ** 0.5 for share in shares)

# %% tags=["nbval-ignore-output"]
TASKS = {"jointly": (0.0, 0.0), "told": (0.0, 1.0), "told alone": (1.0, 1.0), "plain": (1.0, 0.0)}
each = {name: denoising(*odds, batches=8, seed=50 + k) for k, (name, odds) in enumerate(TASKS.items())}
print(", ".join(f"{name} {mean:.4f} ± {error:.4f}" for name, (mean, error) in each.items()))
mean, error = sum(m for m, _ in each.values()) / 4, sum(e**2 for _, e in each.values()) ** 0.5 / 4
by_coins, its_error = denoising(0.5, 0.5, batches=24, seed=6)
print(f"mean of the four {mean:.4f} ± {error:.4f}, by coins {by_coins:.4f} ± {its_error:.4f}")
assert abs(mean - by_coins) < 4 * (error**2 + its_error**2) ** 0.5
assert each["told"][0] < each["plain"][0] < each["jointly"][0]
assert abs(each["told"][0] / each["told alone"][0] - 1) < 0.15

# %% [markdown]
# (An example that knows its mask is scored by the mean over its *hidden* pixels.) The joint task has the largest loss,
# since three pictures have to be guessed, and would push the others aside if it came as often. So our models are given
# masked image and mask in 70% of the examples, and have them in the sum in 20%.
#
# ### Step 3: what is known is taken out
#
# Let $g = \sum_{j \ne i} W_t^j\, c_j$ be the given codes in $z_t = s\,(x + g) + n\,\varepsilon$. They are a known shift,
# and whoever subtracts it loses nothing ([notebook 06](06_image_transition.ipynb)). What does it cost to leave it in? A
# head starts from the *best linear guess* of a coordinate with variance 1, $k_t z_t$ with $k_t = s$, and learns what is
# missing (the preconditioning of EDM, Karras et al. 2022). That guess was made for a state with the image alone in it.
# With $x - k_t z_t = (1 - k_t s)\,x - k_t s\, g - k_t n\, \varepsilon$ and independent noise,
#
# $$ \mathbb E(x - k_t z_t)^2 = \underbrace{(1 - k_t s)^2\, \mathbb E x^2 + k_t^2 n^2}_{\text{without } g}
#    + \underbrace{k_t^2 s^2\, \mathbb E g^2 - 2 (1 - k_t s)\, k_t s\, \mathbb E[x g]}_{\text{added by } g} . $$
#
# A head that starts from the **rest** $z_t - s\,g$ is spared the second part. Lines are the formula with measured moments,
# dots the error itself with drawn noise:

# %%
codes = {name: code.double() for name, code in model.encode({k: v[:100] for k, v in scenes.items()}).items()}
x, grid, lines, dots = codes["image"], list(range(0, 501, 25)), {"state": [], "rest": []}, {"state": [], "rest": []}
for t in grid:
    z, _ = process.diffuse(codes, t, generator=rng(t))
    at, g = process.at(t, z[:1]), process.aggregate(codes, t) - x
    s, n, k = at.signal, at.noise, at.gain("image")
    with_g = k**2 * s**2 * g.square().mean() - 2 * (1 - k * s) * k * s * (x * g).mean()
    without = (1 - k * s) ** 2 * x.square().mean() + k**2 * n**2
    for name, formula, start in (("state", without + with_g, z), ("rest", without, z - s * g)):
        error = (x - k * start).square()
        # pixels of one image share its g, so their errors are not quite independent: 6 in place of 4
        assert abs(error.mean() - formula) < 6 * (error - formula).std() / error.numel() ** 0.5
        lines[name].append(formula.item())
        dots[name].append(float(error.mean()))

# %%
figure, axis = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
for name, look in (("state", "--"), ("rest", "-")):
    axis.plot(grid, lines[name], look, color=plots.COLOURS["image"], label=f"guess from the {name}")
    axis.plot(grid, dots[name], "o", color=plots.COLOURS["image"], markersize=3)
ratio = max(a / b for a, b in zip(lines["state"], lines["rest"], strict=True))
axis.set(xlabel="step t", ylabel="mean squared error", yscale="log")
axis.set_title(f"Left in the state, known codes make the linear guess up to {ratio:.0f} times worse", fontsize=10)
axis.legend(frameon=False)
plots.show(
    figure, "Error of the linear guess over t, log scale: from the state far above that from the rest at clean steps."
)

# %% [markdown]
# The worst is at clean steps, where the image is nearly there and a tenth of two pictures lies on it. A network could learn
# to undo that, at the price of learning to copy. The library subtracts instead, so known codes in the chain are as good as
# absent: *told* and *told alone* leave the network the same rest.
#
# More is free. A given pixel that the mask calls known *is* the image's pixel (`revealed_by=("masked", "mask")`), and the
# head returns it as it is. What $z_t$ has there, a known value plus noise, says nothing about any other pixel, for the
# noise is independent. So the network is shown the *best linear guess* of each pixel: known ones as they are, hidden ones
# $k_t$ times the rest. We check it against the library, with the learned part of the image's head switched off:

# %%
t, few = 120, {name: value[:4] for name, value in scenes.items()}
codes = {name: code.double() for name, code in model.encode(few).items()}
z, _ = process.diffuse(codes, t, generator=rng(8))
at, entered = process.at(t, z), []
handles = [model.modalities["image"].out.register_forward_hook(lambda module, seen, out: 0 * out)]
handles.append(model.backbone.register_forward_pre_hook(lambda module, seen: entered.append(seen[0])))
with torch.no_grad():
    guess = model.predict(z, t, given={"masked": few["masked"], "mask": few["mask"]}).law["image"].mean
for handle in handles:
    handle.remove()
by_hand = at.gain("image") * (z - at.signal * (process.aggregate(codes, t) - codes["image"]))
known = few["mask"].bool().expand_as(few["image"])
print(f"hidden pixels: largest difference to k (z - s g) {(guess - by_hand)[~known].abs().max():.0e}")
print(f"what the network sees: largest difference to this guess {(guess - entered[0]).abs().max():.0e}")
assert torch.allclose(guess[~known], by_hand[~known].to(guess.dtype), atol=1e-4)
assert torch.equal(guess[known], few["image"][known].to(guess.dtype))
assert torch.allclose(guess, entered[0].to(guess.dtype), atol=1e-4)

# %% [markdown] tags=["slide"]
# ### Step 4: RePaint and SDEdit draw from other laws
#
# A *plain* model of images, which has never seen a mask, can fill holes too:
#
# - **RePaint** (Lugmayr et al. 2022) runs the plain chain. After each step, from $t$ down to $u$, it overwrites the known
#   pixels with the true ones, noised as at $u$; it goes back up to $t$ by adding noise and takes the step again, `repeats`
#   times in all.
# - **SDEdit** (Meng et al. 2022) fills the hole with something, for us the mean known colour, noises it to some height of
#   the chain, the **strength**, and comes down again. At the end known pixels are put back.
#
# Are these draws from $p(\text{hidden} \mid \text{known})$? Take three pixels, Gaussian with mean 0 and variance 1. The
# first is known to be 1. The second, a *near* neighbour, has correlation $\rho = 0.9$ with it, the third, a *far* one,
# $\rho = 0.3$, and near and far are independent once the first is known. The truth for each hidden pixel is $\mathcal
# N(\rho,\ 1 - \rho^2)$. All best guesses are linear, $\mathbb E[x \mid z] = \mu + G\,(z - s \mu)$ with
# $G = s\, C\, (s^2 C + n^2 I)^{-1}$ for mean $\mu$ and covariance $C$. *Conditioning* is the exact model of $p(x \mid
# x_1 = 1)$, whose covariance is $C$ less what the first pixel explains.


# %%
class ThreePixels(mt.Denoiser):
    """The exact model of three pixels x ~ N(mean, C), an image of shape (1, 1, 3), in the form that samplers expect."""

    modalities, space, sampler = {"image": mt.Image((1, 1, 3))}, (1, 1, 3), "ddpm"
    process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(480, 8.0, -8.0), {"image": 1.0})

    def __init__(self, mean, covariance):
        self.mean, self.C = torch.tensor(mean).double(), torch.tensor(covariance).double()

    def encode(self, values):
        return dict(values)

    def predict(self, z, t, *, given=None, present=None):
        at = self.process.at(t, z)
        s, n = at.signal.flatten()[0], at.noise.flatten()[0]
        G = torch.linalg.solve(s**2 * self.C + n**2 * torch.eye(3).double(), s * self.C).T
        m = (self.mean + (z.flatten(1) - s * self.mean) @ G.T).view_as(z)
        return mt.Prediction(m, {"image": Gaussian(m, at.variance("image"))}, {"image": m})


rho = torch.tensor([0.9, 0.3]).double()
three = ThreePixels([0.0] * 3, [[1.0, 0.9, 0.3], [0.9, 1.0, 0.27], [0.3, 0.27, 1.0]])  # knows nothing
informed = ThreePixels([1.0, 0.9, 0.3], [[0.0] * 3, [0.0, 1 - 0.9**2, 0.0], [0.0, 0.0, 1 - 0.3**2]])  # given the first

# %% [markdown]
# One step first. RePaint's chain uses $\mathbb E[x_2 \mid z_t]$, in which the first pixel is seen *through the noise of
# $z_t$*; the right one is $\mathbb E[x_2 \mid z_t, x_1 = 1]$. We put the average overwritten pixel there, $z_{t,1} = s$, and
# 0 in the others:

# %%
assert torch.allclose(informed.C, three.C - three.C[:, :1] * three.C[:1])
for t in (120, 240, 300, 360):
    z = torch.zeros(1, 1, 1, 3).double()
    z[..., 0] = three.process.schedule.abar[t].sqrt()
    by_noise, by_value = (m.predict(z, t).aggregate.flatten()[1] for m in (three, informed))
    print(f"t = {t}: E[x_2 | z] {by_noise:.3f}, E[x_2 | z, x_1 = 1] {by_value:.3f}")
assert by_noise < 0.1 * by_value

# %% [markdown]
# Where the noise is large, overwriting tells the chain almost nothing of a pixel that is perfectly known (Ho et al. 2022
# for video, Trippe et al. 2023 for proteins). Now the whole chain. Every step is linear and adds Gaussian noise, so mean
# and covariance can be pushed through *exactly*: plain steps, overwriting, and going back up.


# %%
def affine(function):
    """Matrix and offset of an affine map, found by what it does to 0 and to each unit vector."""
    out = function(torch.cat([torch.zeros(1, 3), torch.eye(3)]).double().view(4, 1, 1, 3)).flatten(1)
    return (out[1:] - out[0]).T, out[0]


def back(model, z, t, u):
    """The mean of the library's ancestral step; W = 1, so the aggregate at u is that at t."""
    m = model.predict(z, t).aggregate
    return model.process.back(z, m, m, t, u)[0]


# %%
def law(model, steps=24, repeats=1, paint=False, start=None):
    """Means and variances of the hidden pixels at the end of an ancestral chain; with `paint`, of RePaint's.

    Mean and covariance P of z are pushed through every step z -> M z + b + noise.
    """
    process, abar, eye = model.process, model.process.schedule.abar, torch.eye(3).double()
    top, mean, P = start or (process.steps, torch.zeros(3).double(), eye)
    for t, u in itertools.pairwise(process.times(steps, top)):
        M, b = affine(lambda z, t=t, u=u: back(model, z, t, u))
        alpha = abar[t] / abar[u]
        fresh = (1 - alpha) * (1 - abar[u]) / (1 - abar[t])  # variance of the step's noise, notebook 05
        for repeat in range(repeats):
            mean, P = M @ mean + b, M @ P @ M.T + fresh * eye
            if paint:  # the first pixel is 1, noised as at step u, whatever the rest
                mean[0], P[0], P[:, 0] = abar[u].sqrt(), 0.0, 0.0
                P[0, 0] = 1 - abar[u]
            if repeat < repeats - 1:  # up again: `process.ahead`
                mean, P = alpha.sqrt() * mean, alpha * P + (1 - alpha) * eye
    M, b = affine(lambda z: model.predict(z, 0).aggregate)
    return (M @ mean + b)[1:], (M @ P @ M.T).diagonal()[1:]


def guide(strength):
    """Where SDEdit starts: the step, and mean and covariance of the guide (1, 1, 1) when it is noised."""
    t = round(strength * 480)
    abar = three.process.schedule.abar[t]
    return t, abar.sqrt() * torch.ones(3).double(), (1 - abar) * torch.eye(3).double()


# %% [markdown]
# The other side: 20,000 draws of the library's own `sample`, `repaint` and `sdedit`, all with 24 evaluations of the model.

# %%
n = 20_000
first, filling = (torch.tensor(v).view(1, 1, 1, 3).expand(n, 1, 1, 3) for v in ([1.0, 0.0, 0.0], [1.0, 1.0, 1.0]))
draws = {
    "told": mt.sample(informed, n, steps=24, generator=rng(9))["image"],
    "repaint": repaint(three, filling.double(), first, steps=12, repeats=2, generator=rng(10)),
    "sdedit": sdedit(three, filling.double(), 0.45, steps=24, generator=rng(11)),
}
exact = {"told": law(informed), "repaint": law(three, 12, 2, paint=True), "sdedit": law(three, start=guide(0.45))}
print(f"truth:   means {rho.numpy().round(3)}, variances {(1 - rho**2).numpy().round(3)}")
for way, one in draws.items():
    near_far, (mean, variance) = one[..., 1:].flatten(1), exact[way]
    print(f"{way:8s} means {mean.numpy().round(3)}, variances {variance.numpy().round(3)}", end="; drawn: ")
    print(f"{near_far.mean(0).numpy().round(3)}, {near_far.var(0).numpy().round(3)}")
    assert ((near_far.mean(0) - mean).abs() < 4 * (variance / n).sqrt()).all()
    assert ((near_far.var(0) / variance - 1).abs() < 4 * (2 / n) ** 0.5).all()

# %% [markdown] tags=["slide"]
# Conditioning has the right means after 24 steps. Its variances are too small, which is the sampler's doing: long
# ancestral steps are too narrow. Do more steps, or repeats, or another strength, cure the others?

# %%
COLOURS = {"told": "C7", "repeated": "C9", "repaint": "C4", "sdedit": "C3"}
tracks = {("told, 12 to 480 steps", "o-", "told"): [law(informed, k) for k in (12, 24, 48, 120, 480)]}
for k, look in ((24, "s--"), (240, "s-")):
    name = f"RePaint, {k} steps, 1 to 32 repeats"
    tracks[name, look, "repaint"] = [law(three, k, r, paint=True) for r in (1, 2, 4, 8, 16, 32)]
tracks["SDEdit, strength 0.1 to 1", "-", "sdedit"] = [law(three, start=guide(k / 40)) for k in range(4, 41)]
# distance to the truth in all four numbers, along each track
misses = [
    [float(((m - rho).square().sum() + (v - 1 + rho**2).square().sum()).sqrt()) for m, v in points]
    for points in tracks.values()
]
assert misses[0][-1] < 0.05
assert misses[2][-1] < 0.05 < 0.3 < misses[2][0]
assert min(misses[3]) > 0.2

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
for (name, look, way), points in tracks.items():
    for axis, part in zip(axes, (0, 1), strict=True):
        axis.plot(*torch.stack([point[part] for point in points]).T, look, color=COLOURS[way], markersize=4, label=name)
    axes[1].annotate("start", points[0][1].tolist(), textcoords="offset points", xytext=(4, 4), fontsize=7)
for axis, truth, what in zip(axes, (rho, 1 - rho**2), ("mean", "variance"), strict=True):
    axis.plot(*truth, "*", color="black", markersize=14, label="truth")
    axis.set(xlabel=f"{what} of the near pixel", ylabel=f"{what} of the far pixel")
axes[0].legend(frameon=False, fontsize=8)
axes[0].set_title("Conditioning has the right means from the first", fontsize=10)
work = {"told": (0, "480 evaluations"), "RePaint": (2, "7,680"), "SDEdit": (3, "24")}
best = [f"{way} {min(misses[k]):.2f} ({cost})" for way, (k, cost) in work.items()]
axes[1].set_title("Distance to the truth in all four numbers, at best:\n" + ", ".join(best), fontsize=9)
plots.show(
    figure,
    "Means and variances of near against far pixel. Conditioning stays at the true means, its variances rise to the truth; "
    "RePaint comes closer with each doubling of repeats; SDEdit's curve passes the truth at a distance.",
)

# %% [markdown]
# RePaint needs both short steps and many repeats: with long steps its means arrive and its variances do not. SDEdit trades
# one error for another. Low strengths copy the filling (means 1, variances 0), high ones forget the known pixel (means 0);
# some strength would suit *one* hidden pixel, but near and far need different ones. This was exact knowledge. Networks
# make other errors as well, so we measure.

# %% [markdown] tags=["slide"]
# ## 3 · What fills holes best?
#
# Five ways at 16×16, those with a network by 24 evaluations of it. *told* is given masked image and mask at every step;
# *repeated* is the same with fewer steps that are taken again and again, RePaint's trick (`mt.sample(..., repeats=4)`).
# *repaint* and *sdedit* use the plain model, and *heat* uses **no model**: each hidden pixel is the mean of its neighbours.

# %%
scene, hole = image[12:13], masks(1, 16, "blobs", 0.6, seed=1)
rows, known = {}, torch.where(hole.bool(), scene, 0.0)
for way in ("told", "repeated", "repaint", "sdedit", "heat"):
    network = plain if way in ("repaint", "sdedit") else model
    batch = (picture.expand(4, -1, -1, -1) for picture in (scene, hole))
    rows[way] = torch.cat([known, masked_image.inpaint(network, *batch, way, generator=rng(21)), scene])
titles = ["known", *(f"filling {k}" for k in range(1, 5)), "image"]
plots.show(
    plots.picture_rows(rows, titles, "Four fillings of one hole, by each of five ways"),
    "A scene of 16 by 16 pixels with a large hole, and four fillings by each of five ways; those by heat are all the same.",
)

# %% [markdown]
# **Play.** **Look for** a *border* of 70% (what does each invent outside?), *pixels* at 90% (who still finds the objects?),
# and the same hole with another seed (who changes their mind?). (On a static page the controls do not move.)

# %% tags=["nbval-ignore-output"]
widgets.inpainting_board(model, plain, image)

# %% [markdown]
# Now measured, on held-out scenes. **PSNR** of hidden pixels is $10 \log_{10}(2^2/\text{MSE})$ in dB. *substitute*, rule 1
# of notebook 05, joins the rivals. Repeats and SDEdit's strength are, for each share, those with the best PSNR on 64
# training scenes.
#
# From here on there is one plot for each claim: differences of two ways, paired by the seed of the training. A full dot is
# clear ([04 §8](04_how_tight.ipynb)), blue is better and red is worse. No error over seeds knows of the held-out scenes,
# which all seeds share.


# %%
HIDDEN, folder = masked_image.HIDDEN, Path("../data/results")
files = {name: folder / f"masked-image-shapes16-{name}.json" for name in masked_image.VARIANTS}
results = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
test, judge = masked_image.masked_scenes("shapes16", "test").values["image"], scene_judge("shapes16")
holed, heat = test[: results["masked"]["n"] // 4], {}
for share in HIDDEN:
    filled = masked_image.filled(model, holed, share, "heat", rng(0))
    heat[share] = masked_image.inpainting_scores(filled[0], holed, filled[1], judge)


def score(way, share, what):
    """A figure of a way to fill holes, {seed: number}; heat has no seeds, and the same for all."""
    result = results["plain" if way in ("repaint", "sdedit") else "masked"]
    if way == "heat":
        return dict.fromkeys(by_seed(result), heat[share][what])
    return by_seed(result, "metrics", way, str(share), what)


def less(way, other, what):
    """{share of hidden pixels: a figure of a way less that of another}."""
    return {f"{share:.0%} hidden": paired(*(score(w, share, what) for w in (way, other))) for share in HIDDEN}


rivals = ("told", "repaint", "sdedit", "substitute", "heat")
ways = {f"PSNR (dB), less {way}": less("repeated", way, "psnr") for way in rivals}
signs = [d.mean > 0 for column in ways.values() for d in column.values() if d.clear]
title = f"Repeated steps against five other ways: clearly ahead in {sum(signs)}, behind in {len(signs) - sum(signs)}"
plots.show(plots.difference_panels(ways, (), title), "PSNR of repeated steps less that of five other ways, by hidden share.")
Markdown(report.findings(ways))

# %% [markdown]
# Both *repeated* and RePaint repeat their steps; what differs is what their networks are told, and what they were trained
# on. SDEdit and heat are the rivals to watch at 90%, where little is left to be right about: heat fills with smooth
# colours, and so does SDEdit of a low strength. The larger model, of one seed, beside heat:

# %%
ours = json.loads((folder / "masked-image-shapes32-masked.json").read_text())
holed, found = masked_image.masked_scenes("shapes32", "test").values["image"][: ours["n"] // 4], []
for share in HIDDEN[::2]:
    filled = masked_image.filled(large, holed, share, "heat", rng(0))
    decibel = {way: float(by_seed(ours, "metrics", way, str(share), "psnr")[0]) for way in ("told", "repeated")}
    decibel["heat"] = float(hidden_psnr(filled[0], holed, filled[1]).mean())
    found.append(f"at {share:.0%} hidden {', '.join(f'{way} {value:.1f}' for way, value in decibel.items())}")
Markdown(f"PSNR (dB) at 32 by 32, {len(holed)} scenes: {'; '.join(found)}.")

# %% [markdown] tags=["slide"]
# ## 4 · Does a judge agree?
#
# A **judge**, a small network trained on real scenes, describes a filling. *Scenes read right* is the share of fillings
# with the very caption that it reads off the truth, all ten words of it.

# %%
seen = {f"scenes read right, less {way}": less("repeated", way, "scene") for way in rivals}
signs = [d.mean > 0 for column in seen.values() for d in column.values() if d.clear]
title = f"Read by a judge, repeated steps are clearly ahead in {sum(signs)}, behind in {len(signs) - sum(signs)}"
plots.show(plots.difference_panels(seen, (), title), "Scenes read right of repeated steps less those of five other ways.")
Markdown(report.findings(seen))

# %% [markdown]
# Mind what is measured. Let the captions $k$ have probabilities $p_k$, given what is known. A perfect draw hits the true one
# with probability $\sum_k p_k^2$; whoever always says the likeliest hits it with $\max_k p_k$, which is never less. Where
# a hole is more often empty than not, a filling without a model is right by inventing nothing. Whoever is compared with
# *one* truth is paid for caution. How much, PSNR tells exactly.

# %% [markdown] tags=["slide"]
# ## 5 · PSNR pays 3 dB for a blur
#
# Let $x$ be the truth and $\hat x$ a draw, both given the same known pixels. If $\hat x$ comes from the *right*
# conditional law, independently of $x$, both have the same mean and the same variance $V$, so
#
# $$ \mathbb E\,(x - \hat x)^2 = 2 V, \qquad \mathbb E\,(x - \text{mean of } K \text{ draws})^2 = (1 + 1/K)\, V . $$
#
# The conditional mean itself has $V$. So **a perfect sampler is 3 dB worse than a perfect blur**, and a sampler that draws
# too narrowly gains by it. In general, with draws of variance $V'$ around a mean that is off the truth by $B$ (mean
# square), one draw costs $B + V'$, and the mean of $K$ costs $B + V'/K$. For perfect draws $B = V'$: **as unsure as
# wrong** (in weather forecasting, spread should match error; Fortin et al. 2014). $B - V'$ needs nobody's posterior, only
# a few draws.
#
# On the three pixels we know what to expect. Let the first be $a \sim \mathcal N(0, 1)$, another for each example. A way
# with mean $\mu'$ in step 4 now has mean $a \mu'$, so $B = (1 - \rho^2) + (\mu' - \rho)^2$. We try conditioning, and SDEdit
# with a low strength.


# %%
def honesty(drawn, truth, weight):
    """B and V' from K draws (K, N, ...) for N truths; weight (N, ...) 1 where a value counts. Each with its (N,) parts."""
    K, total = len(drawn), weight.flatten(1).sum(1)
    V = (drawn.var(0) * weight).flatten(1).sum(1) / total
    B = ((drawn.mean(0) - truth).square() * weight).flatten(1).sum(1) / total - V / K  # the mean misses by B + V'/K
    return B, V


n, K, g = 4000, 4, rng(16)
first = torch.randn(n, 1, dtype=torch.float64, generator=g)
truth = rho * first + (1 - rho**2).sqrt() * torch.randn(n, 2, dtype=torch.float64, generator=g)
for way, (slope, variance) in {"told": law(informed, 480), "sdedit": law(three, start=guide(0.4))}.items():
    drawn = slope * first + variance.sqrt() * torch.randn(K, n, 2, dtype=torch.float64, generator=g)
    B, V = honesty(drawn, truth, torch.ones(n, 2))
    expected = ((1 - rho**2) + (slope - rho) ** 2).mean()
    print(f"{way:6s}: B {B.mean():.3f} (expected {expected:.3f}), V' {V.mean():.3f} (expected {variance.mean():.3f})")
    assert abs(B.mean() - expected) < 4 * B.std() / n**0.5
    assert abs(V.mean() - variance.mean()) < 4 * V.std() / n**0.5

# %% [markdown]
# Now the networks. *Left*: the PSNR of *mean*, no draw but the network's estimate of $\mathbb E[\text{image} \mid
# \text{given}]$ by one evaluation, less that of *told*. A perfect mean is at about 3 dB, the dashed line (about, for the
# files average the decibels of single images). *Right*: $B - V'$ of two draws for each of 20 scenes, half of each hidden,
# by one seed of the trainings.

# %% tags=["nbval-ignore-output"]
truth, hole = scenes["image"][:20].double(), masks(20, 16, hidden=0.5, seed=5)
gap = {}
for way, option in {"told": None, "repeated": "repeats", "repaint": "repeats", "sdedit": "strength"}.items():
    name = "plain" if way in ("repaint", "sdedit") else "masked"
    chosen = results[name]["runs"][0]["metrics"][way]["0.5"]
    options = {"generator": rng(17), **({option: chosen[option]} if option else {})}
    network = {"plain": plain, "masked": model}[name]
    drawn = [masked_image.inpaint(network, truth.float(), hole, way, **options) for _ in range(2)]
    parts = honesty(torch.stack(drawn).double(), truth, (1 - hole).expand_as(truth))
    gap[way] = paired(*(dict(enumerate(part.tolist())) for part in parts))
blur, narrow = less("mean", "told", "psnr"), [way for way, d in gap.items() if d.clear and d.mean > 0]
short = sum(d.mean < 3 for d in blur.values())

# %%
figure, (axes,) = plots.panels(1, 2, (9.5, 2.4))
plots.differences(axes[0], blur, "PSNR of mean less told (dB)")
axes[0].axvline(3, color="black", linewidth=0.8, linestyle="--")
axes[0].set_title(f"The network's mean is short of 3 dB at {short} of {len(blur)} shares", fontsize=10)
plots.differences(axes[1], gap, "B - V' (mean square), 0 is as unsure as wrong", less=True)
axes[1].set_title(f"Clearly too sure: {', '.join(narrow) or 'none'}", fontsize=10)
plots.show(figure, "Left, PSNR of the mean less that of a draw by share; right, B less V' of four ways to fill holes.")

# %% [markdown]
# Right of 0, draws agree with each other more than with the truth, and a part of their PSNR is narrowness: long ancestral
# steps are too narrow, as on the three pixels. (At 0 they are as unsure as wrong, which alone is not enough: draws that
# ignore the known pixels are, too.) Where a dot on the left is short of the line, the network's estimate from pure noise is
# not yet the conditional mean.

# %% [markdown] tags=["slide"]
# ## 6 · Does training with masks help plain generation?
#
# Images drawn *alone*, with nothing else in the chain (`present={"image"}`), by a model of image, masked image and mask, and
# by one that never saw a mask:

# %%
options = {"present": {"image"}, "sampler": "ddim", "steps": 25}
rows = {"held-out scene": image[:10]}
for name, network in (("masked", model), ("plain", plain)):
    rows[name] = mt.sample(network, 10, **options, generator=rng(22))["image"]
plots.show(
    plots.picture_rows(rows, title="Pictures alone do not tell which training draws better"),
    "Ten scenes of 16 by 16 pixels, and ten images each drawn by the model of masked images and by the plain one.",
)

# %% [markdown]
# On ImageNet at 64×64 the paper's masked-image variant is reported (second-hand) with FID 9.85, against 16.35 for the
# class-conditional ADM; the *un*conditional one is behind ADM's, 26.00 against 23.22. Such a table leaves open what
# reviewers asked: *is it transfer, or is it augmentation?* That takes controls at equal compute. Ours have one
# architecture, the same scenes and as many steps:

# %%
rows = [f"| `{name}` | {masked_image.VARIANTS[name]} |" for name in results]
runs = results["masked"]["runs"]
training = runs[0]["card"]["training"]
text = f"{training['steps']:,} steps of {training['batch_size']} scenes, {len(runs)} seeds each."
Markdown("\n".join(["| variant | |", "|---|---|", *rows, "", text]))

# %% [markdown]
# The **feature distance** of such images to held-out ones is a Fréchet distance in the features of the judge (not
# FID, which another network defines). Two samplers measure it: DDIM, which adds no noise of its own (500 images, at the end
# of the training), and ancestral steps.

# %%
PAIRS = {
    ("masked", "plain"): "training with masks, all in all",
    ("augment", "plain"): "being given masks, without a loss for them",
    ("masked", "augment"): "masks as modalities with losses, on top of that",
    ("masked", "own-channels"): "superposition, against channels side by side",
}
pairs = {pair: text for pair, text in PAIRS.items() if results.keys() >= {*pair}}
samplers = {"distance, 25 DDIM steps": ("card", "probes", -1), "distance, 24 ancestral steps": ("metrics", "alone")}


def distance(name, path):
    """The feature distance of images drawn alone, {seed: number}."""
    return by_seed(results[name], *path, "features")


effect = {what: {pair: paired(*(distance(of, path) for of in pair)) for pair in pairs} for what, path in samplers.items()}
shown = {what: {f"{a} less {b}": d for (a, b), d in column.items()} for what, column in effect.items()}
clear = [d.mean < 0 for column in shown.values() for d in column.values() if d.clear]
title = f"Images drawn alone: clearly better {sum(clear)}, clearly worse {len(clear) - sum(clear)}"
plots.show(plots.difference_panels(shown, shown, title), "Differences in feature distance between variants, two samplers.")
Markdown(report.findings(shown, shown))

# %%
lines = [f"| {a} less {b} | {text} |" for (a, b), text in pairs.items()]
real = frechet_distance(*(judge.features(half) for half in (test[:500], test[500:])))
level = {what: distance("plain", path) for what, path in samplers.items()}
text = ", ".join(f"{sum(values.values()) / len(values):.1f} ({what})" for what, values in level.items())
text = f"For scale: `plain` is at {text}, and 500 real scenes are at {real:.1f} from the others."
Markdown("\n".join(["| row | what it asks |", "|---|---|", *lines, "", text]))

# %% [markdown]
# The first row is the claim. It is the sum of the next two, the reviewers' question in numbers: *augmentation* shows in the
# second, *transfer* from further modalities in the third. Here the second is as large as the first: being shown images with
# holes is what helps, and codes and losses for the holes add nothing that shows. But the third changes more than that:

# %%
ungiven = (1 - training["drop"]["masked"]) * (1 - training["give"]["masked"])
for column in effect.values():
    total, given, losses_too = (column[pair].mean for pair in list(PAIRS)[:3])
    assert abs(total - given - losses_too) < 1e-6
changes = [f"a superposition that is not given, in {ungiven:.0%} of the examples"]
changes += [f"the losses of two more heads (weight {training['weights']['mask']}), on examples that do not know them"]
changes += [f"a loss of the image's own head (weight {training['weights']['image']})"]
Markdown("`masked` has beyond `augment`:\n\n" + "\n".join(f"- {change}" for change in changes))

# %% [markdown]
# Any row below the third compares designs and isolates no cause: the rival has constant weights of 1, too.
#
# **How far does this carry?** Not far. These are toy scenes and a small network, and the scale above says how far from real
# scenes its images still are. At equal steps the comparison is hard on `masked`, which sees plain generation only in a part
# of its examples (exercise 1 asks in which). So nothing here contradicts or confirms what is reported for ImageNet. What
# carries over is the form: a first row without the next two says nothing about its cause.

# %% [markdown]
# ## 7 · Exercises
#
# **Exercise 1 (warm-up, easy, 10 minutes). How much plain training is left?**
# Given `drop` and `give` as the loss takes them, return
# the share of examples in which the image is *alone in the sum and nothing is given*. Both dictionaries name both
# modalities, and chances are floats. *Hint*: only the numbers throw coins.


# %% tags=["exercise"]
def share_of_plain_examples(drop, give):
    """The share of examples with neither masked image nor mask in the sum, nor given."""
    ...  # your code


# %% tags=["check"]
def check_1(function):
    cases = [(both, both), ({"masked": 0.9, "mask": "masked"}, {"mask": 0.2, "masked": "mask"})]
    cases += [
        ({"masked": 0.8, "mask": 0.7}, {"masked": 0.3, "mask": "masked"}),
        ({"mask": 0.6, "masked": 0.9}, {"mask": 0.4, "masked": 0.1}),
    ]
    a, b, c = (0.6 + 0.3 * torch.rand(3)).tolist()
    cases += [({"masked": a, "mask": b}, {"masked": "mask", "mask": 1 - c})]
    for k, (drop, give) in enumerate(cases):
        g = rng(20 + k)
        away, known = (losses.coins(chances, 8000, cpu, g) for chances in (drop, give))
        counted = float((away["masked"] & away["mask"] & ~known["masked"] & ~known["mask"]).double().mean())
        share = function(drop, give)
        if share is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        if not abs(share - counted) < 4 * (counted * (1 - counted) / 8000) ** 0.5:
            return widgets.Verdict(False, f"drop={drop}, give={give}: counted {counted:.3f}, you say {share:.3f}")
    ours = function(training["drop"], training["give"])
    return widgets.Verdict(True, f"as counted, in five cases; for the models that were measured it is {ours:.2f}")


check_1(share_of_plain_examples)


# %% tags=["solution"]
def share_of_plain_examples_solution(drop, give):
    share = 1.0
    for chance in drop.values():
        share *= chance if isinstance(chance, float) else 1
    for chance in give.values():
        share *= 1 - chance if isinstance(chance, float) else 1
    return share


solved = check_1(share_of_plain_examples_solution)
assert solved, solved.message
deaf = check_1(lambda drop, give: share_of_plain_examples_solution(drop, {}))
assert not deaf, deaf.message
solved

# %% [markdown]
# **Exercise 2 (break it, easy, 10 minutes). A lie about the mask.**
# The model believes what it is given. Return a mask with which it
# leaves the hole *exactly* grey, although the masked image is the honest one. *Hint*: what does `revealed_by` do with
# a pixel that the mask calls known?


# %% tags=["exercise"]
def lie(masked, mask):
    """A mask (N, 1, 16, 16) to be given in place of the true one."""
    ...  # your code


# %% tags=["check"]
def check_2(function):
    picture, hole = image[:6], masks(6, 16, "box", 0.4, seed=6)
    answer = function(picture * hole, hole)
    if answer is None:
        return widgets.Verdict(False, "the function returns nothing yet")
    try:
        given = {"masked": picture * hole, "mask": answer}
        drawn = mt.sample(model, 6, given=given, steps=8, generator=rng(18))["image"]
    except ValueError as error:
        return widgets.Verdict(False, str(error))
    inside = float(drawn[~hole.bool().expand_as(drawn)].abs().mean())
    return widgets.Verdict(inside < 1e-6, f"the filling is {inside:.3f} away from grey, on average (wanted: 0)")


check_2(lie)


# %% tags=["solution"]
def lie_solution(masked, mask):
    return torch.ones_like(mask)  # "all of it is known": the grey is then part of the picture


honest, solved = check_2(lambda masked, mask: mask), check_2(lie_solution)
assert not honest, honest.message
assert solved, solved.message
solved

# %% [markdown]
# A mask that is wrong the other way, known pixels called hidden, only loses what it hides: the model draws them anew. So
# when in doubt, hide.
#
# **Exercise 3 (a small research question, medium, 20 minutes). Fewer evaluations, better PSNR?**
# With `steps=1` (and the final reading) the chain is the
# network's estimate of the conditional mean, the blur of section 5. So how do PSNR and the judge's reading depend on the
# number of evaluations? Return both for each count, for *told*: mean PSNR of hidden pixels, and the share of scenes that
# `judge.read` reads as in the truth (all ten words); PSNR of one image at most 60 dB. Use `masked_image.inpaint(model,
# image, hole, "told", steps=..., generator=rng(19))`. *Further*: other shares, RePaint, and what `honesty` says.


# %% tags=["exercise"]
def by_evaluations(model, judge, image, hole, counts):
    """{count: (mean PSNR of hidden pixels in dB, share of scenes read right)}."""
    ...  # your code


# %% tags=["check"]
def check_3(function):
    picture, hole = scenes["image"][:40], masks(40, 16, hidden=0.3, seed=7)
    found = function(model, judge, picture, hole, (1, 4, 12))
    if found is None:
        return widgets.Verdict(False, "the function returns nothing yet")
    if set(found) != {1, 4, 12} or any(len(pair) != 2 for pair in found.values()):
        return widgets.Verdict(False, "expected {1: (psnr, share), 4: ..., 12: ...}")
    for count, (decibel, share) in found.items():
        drawn = masked_image.inpaint(model, picture, hole, "told", steps=count, generator=rng(19))
        ours = masked_image.inpainting_scores(drawn, picture, hole, judge)
        if not (abs(decibel - ours["psnr"]) < 0.01 and abs(share - ours["scene"]) < 0.01):
            text = f"{count} evaluations: {decibel:.2f} dB and {share:.2f}; "
            return widgets.Verdict(False, text + f"we find {ours['psnr']:.2f} and {ours['scene']:.2f}")
    text = ", ".join(f"{count}: {decibel:.1f} dB, {share:.0%} read right" for count, (decibel, share) in found.items())
    return widgets.Verdict(True, f"evaluations: {text}")


check_3(by_evaluations)


# %% tags=["solution"]
def by_evaluations_solution(model, judge, image, hole, counts):
    found = {}
    for count in counts:
        drawn = masked_image.inpaint(model, image, hole, "told", steps=count, generator=rng(19))
        right = (judge.read(drawn) == judge.read(image)).all(1).double().mean()
        found[count] = (float(psnr(drawn, image, ~hole.bool()).clamp(max=60).mean()), float(right))
    return found


solved, flat = check_3(by_evaluations_solution), check_3(lambda *_: dict.fromkeys((1, 4, 12), (20.0, 0.5)))
assert solved, solved.message
assert not flat, flat.message
solved

# %% [markdown]
# Did the blur win? Section 5 is about mean *errors*, and decibels of single images favour the easy ones. So average the
# errors first, and ask whether 40 scenes can tell:

# %%
picture, hole = scenes["image"][:40], masks(40, 16, hidden=0.3, seed=7)
errors = {}
for count in (1, 4, 12):
    drawn = masked_image.inpaint(model, picture, hole, "told", steps=count, generator=rng(19))
    each = ((drawn - picture).square() * (1 - hole)).flatten(1).sum(1) / (3 * (1 - hole).flatten(1).sum(1))
    errors[count] = dict(enumerate(each.tolist()))
    print(f"{count:2d} evaluations: {10 * (4 / each.mean()).log10():.2f} dB of the mean error")
cost = paired(errors[12], errors[1])
word = "clear" if cost.clear else "not clear"
print(f"error of 12 evaluations less that of 1, paired by scene: {cost.mean:+.4f} ± {cost.stderr:.4f}, {word}")

# %% [markdown] tags=["slide"]
# ## What we learned, what comes next
#
# - A mask is a modality like any other, with code $\pm 1$ and a Bernoulli head. Two coins make three tasks of one network.
# - A known code left in $z_t$ spoils the linear guess at clean steps, and a known pixel's noise tells nothing.
# - RePaint and SDEdit draw from other laws than the conditional one, RePaint less so with many short, repeated steps.
# - Whoever is compared with one truth is paid for caution: a blur gains 3 dB on a perfect draw. Compare spread and error of
#   draws, and have a filling without a model as a control.
# - Whether masks help plain generation is a question of controls. For ours, in feature distance (lower is better):

# %%
words, texts = {True: "clear", False: "not clear"}, []
for what, column in effect.items():
    row = [(text, column[pair]) for pair, text in list(PAIRS.items())[:3]]
    row = [f"{text} {d.mean:+.1f} ± {d.stderr:.1f} ({words[d.clear]})" for text, d in row]
    texts.append(f"- {what}: {'; '.join(row)}.")
Markdown("\n".join(texts))

# %% [markdown]
# | notebook | question |
# |---|---|
# | 05 sampling and conditioning | what does it mean to be given something? |
# | 06 image transition | what if the given modality is an image? |
# | **07 masked image** | you are here |
# | 08 image and label | what does a label cost and buy, how does it get in, and what does guidance draw? |
