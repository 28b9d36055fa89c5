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
# # 09 · Image and representation: a picture, drawn with a summary of itself
#
# **After this notebook you can**
# - say what a self-supervised encoder is trained on, and what its output keeps of an image;
# - put a vector into a space of images by an isometry, and derive what any noisy state says about it;
# - compute, in an exact model, what a representation in the sum changes about the forward process, and what it cannot;
# - say why a code can be in a state and still be out of a convolution's reach, and what helps;
# - judge the claim "a representation makes images better" by the controls that it needs.
#
# **You need** notebooks 02 (codes, present sets), 05 (rules for given values, guidance) and 08 (labels). **Time**: about
# 80 minutes to read, about one minute to run on a laptop CPU. No GPU, no download.
#
# Joint image-representation training is one of the settings of the paper (Chen et al. 2024,
# [arXiv:2407.17571](https://arxiv.org/abs/2407.17571)); whether it makes the image better it leaves open, as far as we
# know (second-hand). ReDi (Kouzelis et al. 2025) answers yes for large latent models, with channels of their own. The
# model, the derivations and all measurements here are ours; what is proved stands in [theory.md](theory.md), and every
# number in [measured.md](measured.md).

# %%
import json
import math
from pathlib import Path

import mtdiff as mt
from mtdiff import plots, widgets
from mtdiff.baselines import representation_guidance
from mtdiff.comparison import by_seed, paired
from mtdiff.experiments import image_representation, report
from mtdiff.representations import Pretrained, contrastive_loss, probes, representation, represented, views

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from IPython.display import Markdown

torch.set_num_threads(1)
plots.style()


def rng(seed):
    """A generator, so that every cell draws the same numbers whenever it runs."""
    return torch.Generator().manual_seed(seed)


# %% [markdown] tags=["slide"]
# ## 1 · A scene drawn with sixteen numbers has the layout that they say
#
# A small network, the *encoder*, looks at an image $x$ and says 16 numbers, its **representation** $r = f(x)$: a
# summary that no person has defined. A diffusion model has both in one space. It draws scenes of 32×32 pixels together
# with their representations, or for a representation that is given, here that of a held-out scene:

# %%
large, describe = mt.load("image-representation/shapes32"), representation("shapes32")
scenes = represented("shapes32", "test")
wanted = scenes.values["representation"][:8]
asked = {"given": {"representation": wanted}, "present": {"image"}, "steps": 25}
twice = [mt.sample(large, 8, **asked, generator=rng(seed))["image"] for seed in (7, 8)]
rows = {
    "drawn jointly": mt.sample(large, 8, steps=25, generator=rng(6))["image"],
    "held-out scene": scenes.values["image"][:8],
    "for its repr.": twice[0],
    "once more": twice[1],
}
close, far = (F.cosine_similarity(describe(twice[0]), r).mean() for r in (wanted, wanted.roll(1, 0)))
title = f"Drawn for a representation: cosine {close:.2f} with the given one, {far:.2f} with another"
plots.show(
    plots.picture_rows(rows, title=title),
    "Eight drawn scenes; eight held-out scenes and two draws for each one's representation.",
)

# %% [markdown]
# From here on scenes have 16×16 pixels: at that size all variants were trained, with three seeds each. Each of the 16
# numbers has a block of 4×4 pixels, over which it is written as a chess board of that strength, a *tile*. Its weight
# $W_t$ grows with the noise:
#
# $$ m_t = x + W_t\, E(r), \qquad z_t = \sqrt{\bar\alpha_t}\; m_t + \sqrt{1 - \bar\alpha_t}\;\varepsilon, \qquad
#    W_t \text{ from } 0.1 \text{ to } 1 . $$

# %%
model = mt.load("image-representation/shapes16")
encoder, train, test = representation("shapes16"), represented("shapes16", "train"), represented("shapes16", "test")
few = {name: test.values[name][:8] for name in ("image", "representation")}
codes = model.encode(few)
last = model.process.steps // 2
z, _ = model.process.diffuse(codes, last, generator=rng(0))
rows = {
    "image $x$": codes["image"],
    "code $E(r)$": codes["representation"] / 3,
    f"$m_t$, t = {last}": model.process.aggregate(codes, last) / 3,
    f"$z_t$, t = {last}": z / 3,
}
plots.show(
    plots.picture_rows(rows, title="Sixteen numbers are written over an image as tiles, and fade in with the noise"),
    "Rows of eight scenes, the chess-board codes of their representations, the sums, and noisy sums. Shown from -3 to 3.",
)

# %% [markdown]
# What does a representation keep? Ask for the scenes whose representation is nearest. And ask a linear map, fitted to
# 10,000 scenes, to read background, number of objects and the label of the nearest object off it:

# %%
image, value = test.values["image"], test.values["representation"]
near = torch.cdist(value[:6], value).argsort(1)[:, :6]
titles = ["scene", *(f"nearest {k}" for k in range(1, 6))]
read = probes(encoder, 16)
text = ", ".join(f"{name} {share:.0%}" for name, share in read.items())
plots.show(
    plots.picture_rows({f"{k}": image[row] for k, row in enumerate(near)}, titles, f"Read by a linear map: {text}"),
    "Six scenes and the five with the nearest representations: same background, similar colours, other shapes.",
)

# %% [markdown]
# The title says what survives: a summary of the *layout*, of which the background is nearly all there and the shape of a
# single object hardly. That is our encoder, not a law: what is kept depends on how it was trained.
#
# ## 2 · A vector is written into the image, and the chain decides it first
#
# ### Step 1: what the encoder was trained on
#
# No label was used. Each image is looked at twice, shifted, zoomed, mirrored and paler each time, and a view must find
# its partner among all others of the batch (**SimCLR**, Chen, Kornblith et al. 2020). Let $u_i$ be the encoder's
# features of the $i$-th of $2N$ views, divided by their length, $i'$ the partner of $i$, and $\vartheta$ a temperature
# (0.2 here):
#
# $$ \text{loss} = -\frac{1}{2N}\sum_i \log \frac{e^{u_i^\top u_{i'}/\vartheta}}
#    {\sum_{k \ne i} e^{u_i^\top u_k/\vartheta}} . $$
#
# By hand, and by the library. (`python -m mtdiff.representations --size 16 --out FOLDER` trains one, in some minutes.)

# %%
pair = [encoder.encoder(views(image[:64], rng(seed))) for seed in (1, 2)]
u = F.normalize(torch.cat(pair), dim=1).double()
by_hand = 0.0
for i in range(128):
    others = [k for k in range(128) if k != i]
    by_hand -= float(u[i] @ u[(i + 64) % 128] / 0.2 - (u[i] @ u[others].T / 0.2).logsumexp(0)) / 128
by_library = float(contrastive_loss(*pair, temperature=0.2))
print(f"by hand {by_hand:.4f} nats, by the library {by_library:.4f}; guessing costs log 127 = {math.log(127):.4f}")
assert abs(by_hand - by_library) < 1e-4

# %% [markdown]
# Of the 64 features $h(x)$ that it learns, with mean $\bar h$, the first 16 **principal components** are kept, each
# divided by its standard deviation: $r_k = p_k^\top(h(x) - \bar h)\,/\,\mathrm{std}(p_k^\top h)$ with $p_k$ the $k$-th
# principal direction. Unit variance in every coordinate is what the noise schedule counts on (notebook 01), and
# uncorrelated coordinates are what makes the next step simple. On scenes that it was not fitted to:

# %%
covariance = torch.cov(value.T)
off = (covariance - torch.diag(covariance.diagonal())).abs().max()
print(f"variances {covariance.diagonal().min():.2f} to {covariance.diagonal().max():.2f}, covariances up to {off:.2f}")
assert (covariance - torch.eye(16)).abs().max() < 0.25

# %% [markdown] tags=["slide"]
# ### Step 2: a vector becomes a picture
#
# $E(r) = s\,A\,r$, where the columns of $A$ are orthonormal ($A^\top A = I$) and $s^2 = \dim Z/\dim r = 768/16 = 48$.
# Then $\|E(r)\|^2 = s^2\|r\|^2$: codes have unit mean square, like all others (notebook 02). Suppose all else in the
# state is noise, $z = a\,E(r) + b\,\eta$ with $\eta \sim \mathcal N(0, I)$ and known $a, b$. Then
# $A^\top z = a s\, r + b\, A^\top \eta$ is 16 scalar Gaussian problems, and what $z$ has in other directions says nothing
# about $r$:
#
# $$ \mathbb E[r \mid z] = \frac{a s}{a^2 s^2 + b^2}\, A^\top z, \qquad
#    \operatorname{Var} = \frac{1}{1 + s^2 a^2/b^2} . $$
#
# The signal-to-noise ratio of each number is 48 times that of a pixel: it is written 48 times. Check, for a normal
# $r$:

# %%
part = image_representation.build("shapes16", "lifted").modalities["representation"]
A, s = part.frame.double(), part.scale
assert torch.allclose(A.T @ A, torch.eye(16, dtype=torch.float64), atol=1e-6)
r = torch.randn(4000, 16, generator=rng(3), dtype=torch.float64)
for a, b in ((0.05, 1.0), (0.2, 1.0), (0.6, 0.8)):
    z = a * part.encode(r) + b * torch.randn(4000, 3, 16, 16, generator=rng(4), dtype=torch.float64)
    mean = a * s / (a**2 * s**2 + b**2) * (z.flatten(1) @ A)
    error, formula = (mean - r).square().mean(1), 1 / (1 + s**2 * a**2 / b**2)
    print(f"a = {a:4.2f}, b = {b:3.1f}: error {error.mean():.4f}, formula {formula:.4f}")
    assert abs(float(error.mean()) - formula) < 4 * float(error.std()) / 4000**0.5
    gain, variance = (torch.full((4000, 1), part_of / (a**2 + b**2)).double() for part_of in (a, b**2))
    law = part.sensed(z, gain, variance)  # what the state shows of r by itself
    assert torch.allclose(law.mean, mean, atol=1e-5)
    assert torch.allclose(law.expected_code(), part.encode(mean), atol=1e-5)  # this is taken out of the state

# %% [markdown] tags=["slide"]
# ### Step 3: the image is the noise
#
# In our model the rest is not white noise, but the image. With $z_t = \sqrt{\bar\alpha}\,(x + W E(r)) +
# \sqrt{1-\bar\alpha}\,\varepsilon$ the vector $A^\top z_t / (\sqrt{\bar\alpha}\,W s)$ is $r$, plus a known mean
# ($A^\top \mathbb E x / (W s)$), plus noise, which in its $k$-th number has variance
#
# $$ v_k = \frac{\operatorname{Var}(A_k^\top x) + (1 - \bar\alpha)/\bar\alpha}{W^2 s^2} , $$
#
# so it matters which directions $A$ has: those in which images *vary little*. A chess board is such a picture; a
# random direction is not. We measure both variances, and the error of the best linear guess, $v_k/(1 + v_k)$, if $x$
# and $r$ were independent; beside it (dots) the error itself on held-out scenes.

# %%
x, r = image.flatten(1).double(), value.double()
unsensed = image_representation.build("shapes16", "random").modalities["representation"]
frames = {"tiles": A, "random directions": unsensed.frame}
abar, W = model.process.schedule.abar, model.process.cumulative("representation")
steps = list(range(0, 501, 50))
log_snr = [float((abar[t] / (1 - abar[t])).log()) for t in steps]
figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
for k, (name, frame) in enumerate(frames.items()):
    frame = frame.double()
    spread, mean = (x @ frame).var(0), (x @ frame).mean(0)
    formula, measured = [], []
    for t in steps:
        v = (spread + (1 - abar[t]) / abar[t]) / (W[t] * s) ** 2
        noise = ((1 - abar[t]) / abar[t]).sqrt() * torch.randn(len(x), 16, generator=rng(t), dtype=torch.float64)
        guess = ((x @ frame - mean + noise) / (W[t] * s) + r) / (1 + v)
        formula.append(float((v / (1 + v)).mean()))
        measured.append(float((guess - r).square().mean()))
    axis.plot(log_snr, formula, color=f"C{k}", label=f"{name}: the image varies by {spread.mean():.3f}")
    axis.plot(log_snr, measured, "o", color=f"C{k}", markersize=4)
axis.set(xlabel="log-SNR (clean on the right)", ylabel="error of the guess (variance 1)", ylim=(0, 1.05))
axis.set_title("At clean steps the image hides what is written in random directions", fontsize=10)
axis.legend(frameon=False, fontsize=8)
plots.show(figure, "Error of the linear guess over log-SNR for tiles and random directions; they part at clean steps.")

# %% [markdown]
# At clean steps the image drowns a large part of a code in random directions. In the noise, where the chain decides
# what to draw, both would do; yet random directions failed there, too (section 4). A *network* has to form those 16
# sums over 768 numbers itself. A **convolution** sees 3×3 pixels, the same weights everywhere, and in the end a mean
# over all places: it cannot tell one random pattern from another. Two changes help. A tile sits in a place of its own,
# in a pattern that a small filter finds. And the library does step 2 for the network (`sense=True`): it shows the
# backbone the posterior mean of $r$, as if all else were noise, and takes its code out of the state. That adds no
# knowledge, since both are functions of $z_t$; it moves what is known to where it can be used.
#
# ### Step 4: what can a representation change, at best?
#
# $r$ is a function of $x$. So $\log p(x, r) = \log p(x) + \log p(r \mid x)$, and the second term is 0 at best: **with
# exact estimates a representation cannot make images better**, they are right anyhow. It changes the *chain*: what is
# decided when. To see it we need a model that can be computed. Let $x \sim \mathcal N(\mu, \Sigma)$ with the mean and
# covariance of our scenes and $\hat r = B^\top(x - \mu)$, the best linear guess of $r$. Then $z_t$ is a noisy view of
# $(I + W s A B^\top)\,x$: not a second thing beside the image, but the image with some directions *amplified*. All
# information is a determinant:
#
# $$ I(x; z_t) = \tfrac12 \log\det\!\Big(I + \tfrac{\bar\alpha}{1-\bar\alpha}\, M \Sigma M^\top\Big), \quad
#    M = I + W s A B^\top, $$
#
# and splits into what $z_t$ says about the representation, and what about the rest: $I(x; z_t) = I(\hat r; z_t) +
# I(x; z_t \mid \hat r)$. We compute all three in their own way, and add.


# %%
def gaussian_view(x, r):
    """Covariance of x, the linear map from x to r, and the covariance of its outcome."""
    centred = x - x.mean(0)
    covariance = centred.T @ centred / len(x) + 1e-3 * torch.eye(x.shape[1], dtype=x.dtype)
    B = torch.linalg.solve(covariance, centred.T @ (r - r.mean(0)) / len(x))
    return covariance, B, B.T @ covariance @ B


def half_log_det(matrix):
    return 0.5 * float(torch.linalg.slogdet(matrix)[1])


def information(weight, log_snr, frame=A):
    """I(x; z), I(r; z) and I(x; z | r) in nats, each from its own determinant."""
    M = torch.eye(768, dtype=torch.float64) + weight * s * frame @ B.T
    noise = torch.eye(768, dtype=torch.float64) * torch.tensor(-log_snr).double().exp()  # of z / sqrt(abar)
    of_z, with_r = M @ sigma @ M.T + noise, B.T @ sigma @ M.T  # (768, 768), (16, 768)
    total = half_log_det(of_z) - half_log_det(noise)
    about_r = half_log_det(sigma_r) - half_log_det(sigma_r - with_r @ torch.linalg.solve(of_z, with_r.T))
    left = sigma - sigma @ B @ torch.linalg.solve(sigma_r, B.T @ sigma)  # of x, once r is known
    rest = half_log_det(M @ left @ M.T + noise) - half_log_det(noise)
    return total, about_r, rest


some = train.values["image"][:10000].flatten(1).double(), train.values["representation"][:10000].double()
sigma, B, sigma_r = gaussian_view(*some)
grid = torch.linspace(-8, 4, 13).tolist()
found = {weight: [information(weight, level) for level in grid] for weight in (0.0, 1.0)}
worst = max(abs(total - about_r - rest) for row in found.values() for total, about_r, rest in row)
assert worst < 1e-6
print("I(x; z) is the sum of its two parts, to a millionth of a nat")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharex=True)
for k, (weight, row) in enumerate(found.items()):
    name = "image alone" if weight == 0 else "representation in the sum, W = 1"
    axes[0].plot(grid, [about_r for _, about_r, _ in row], color=f"C{k}", label=name)
    axes[1].plot(grid, [rest for *_, rest in row], color=f"C{k}", label=name)
for axis, what in zip(axes, ("the representation", "the rest of the image"), strict=True):
    axis.set(xlabel="log-SNR of a pixel (clean on the right)", ylabel="nats", yscale="log")
    axis.set_title(f"What $z_t$ says about {what}", fontsize=10)
axes[0].legend(frameon=False, fontsize=8)
plots.show(figure, "Information of the state about the representation and about the rest over log-SNR, with and without it.")
at = grid.index(-4.0)
alone, joint = found[0.0][at], found[1.0][at]
print(f"at log-SNR -4, about the representation: {alone[1]:.2f} -> {joint[1]:.2f} nats")
print(f"               about the rest:           {alone[2]:.2f} -> {joint[2]:.2f} nats")
assert joint[1] > 2 * alone[1]

# %% [markdown]
# With the representation in the sum the chain decides *it* first, at noise levels where the image alone is still open,
# and of the rest nothing is lost. That is what the word "plan" could mean here: an order of decisions. Whether a
# network draws better images in this order is a question about networks, not about bounds.
#
# ### Step 5: guidance by the representation
#
# ReDi pushes the image's estimate $e$ away from what it is *without* the representation, $e'$, as guidance by a label
# does ([05 §5](05_sampling_and_conditioning.ipynb)). In a shared space "without" means: take the estimated code out of
# the state, and let the network know that it is absent.
#
# $$ e + (g - 1)(e - e'), \qquad
#    e' = \mathbb E\big[x \mid z_t - \sqrt{\bar\alpha_t}\, W_t\, \mathbb E[E(r) \mid z_t],\; S = \{\text{image}\}\big] . $$
#
# By hand, and by the library:

# %%
t, g = 300, 2.0
z, _ = model.process.diffuse(model.encode(few), t, generator=rng(5))
with torch.no_grad():
    joint, at = model.predict(z, t), model.process.at(t, z)
    rest = z - at.signal * at.W["representation"] * joint.estimate["representation"]
    without = model.predict(rest, t, present={"image"})
    guided = representation_guidance(model, g)(joint, z, t)
by_hand = joint.estimate["image"] + (g - 1) * (joint.estimate["image"] - without.estimate["image"])
print(f"largest difference {(guided.estimate['image'] - by_hand).abs().max():.0e}")
assert torch.allclose(guided.estimate["image"], by_hand, atol=1e-5)

# %% [markdown] tags=["slide"]
# ## 3 · A gain needs two controls; and an encoder can be any function
#
# The experiment is one file, `mtdiff/experiments/image_representation.py`. Its variants share backbone, images, steps and
# batches (`random`, our first attempt, was trained longer, so its distances cannot be compared):

# %%
LADDER = ("lifted", "caption", "features", "segments", "segments-told")  # by what they know
folder = Path("../data/results")
files = {name: folder / f"image-representation-shapes16-{name}.json" for name in image_representation.VARIANTS}
results = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
rows = [f"| `{name}` | {image_representation.VARIANTS[name]} |" for name in results]
Markdown("\n".join(["| variant | |", "|---|---|", *rows]))

# %% [markdown]
# `image-only`, `predicted` and `told` are the controls that the question needs. A gain over `image-only` could come
# from the head's loss alone (then `predicted` has it, too), or from being given representations now and then (then
# `told` has it), and neither needs a shared space.
#
# A representation is any function of an image. DINOv2 and CLIP come through the same interface (`pip install
# 'mtdiff[representations]'`, then `pretrained("dinov2-small")`; their weights are downloaded the first time). It
# resizes and normalises; here with a stand-in for the large network, a mean over 4×4 blocks:

# %%
small = Pretrained(lambda x: F.avg_pool2d(x, 4).flatten(1), size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
features = small(image[:5])
assert torch.allclose(features, F.avg_pool2d(image[:5], 4).flatten(1), atol=1e-5)
print(f"features {tuple(features.shape)}: 3 channels of 4 x 4 block means")

# %% [markdown] tags=["slide"]
# ## 4 · Drawn pairs belong together where the code can be found
#
# Two figures of drawn pairs. *Cosine*: that of the drawn representation with the one that the encoder reads off the
# drawn image, less the cosine with another image's. *Named*: a *judge*, a network that was trained to read true scenes
# (notebook 06), names the nearest object of the drawn image. How often does a linear map (a *probe*) of the drawn
# representation name the same? We take off how often it does with the representation of the drawn image itself, the
# ceiling. Differences are taken seed by seed; what *clear* means says [04 §8](04_how_tight.ipynb). In the plots, clear
# differences are filled, blue is better and red is worse.


# %%
def drawn(name, key):
    """A figure of jointly drawn pairs, {seed: number}."""
    return by_seed(results[name], "metrics", "drawn", key)


pairs = {
    text: {name: paired(drawn(name, a), drawn(name, b)) for name in ("lifted", "own-channels", "random")}
    for text, a, b in (
        ("cosine with its own, minus another's", "cosine", "shuffled"),
        ("named, minus the ceiling", "label", "label_encoded"),
    )
}
plots.show(
    plots.difference_panels(pairs, (), "Do drawn pairs belong together?"),
    "Cosine of drawn pairs over that of shuffled ones, and how far a probe of the drawn representation is from its ceiling.",
)
Markdown(report.findings(pairs))

# %% [markdown]
# A dot near 0 on the left means that the two ignore each other, although the code is in the state: so it is with
# `random`. With tiles that are sensed, drawn pairs belong together, but far from perfectly. (`random` has half
# the weight, too, and an earlier recipe: what each of these changes does has not been asked.)
#
# Does the *image* listen? The same image and noise three times: with its own representation in the sum, with none, and
# with another scene's. The plot has the error of the image's estimate, divided by the error with none.

# %%
some = {name: test.values[name][:400] for name in ("image", "representation")}
other = {**some, "representation": some["representation"].roll(1, 0)}
levels, gains = range(100, 501, 50), {"own": [], "another": []}
for t in levels:
    errors = {}
    for name, values, there in (("own", some, True), ("another", other, True), ("none", some, False)):
        present = {"image", "representation"} if there else {"image"}
        z, _ = model.process.diffuse(model.encode(values), t, present=present, generator=rng(t))
        with torch.no_grad():
            guess = model.predict(z, t, present=present).estimate["image"]
        errors[name] = (guess - some["image"]).square().flatten(1).mean(1)
    for name, row in gains.items():
        gain = (errors[name] - errors["none"]) / errors["none"].mean()
        row.append((1 + float(gain.mean()), float(gain.std()) / 400**0.5))

# %%
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
snr = [float((abar[t] / (1 - abar[t])).log()) for t in levels]
for k, (name, row) in enumerate(gains.items()):
    mean, error = zip(*row, strict=True)
    axis.errorbar(snr, mean, error, capsize=2, marker="o", color=f"C{k}", label=name)
axis.axhline(1, color="black", linewidth=0.8)
axis.set(xlabel="log-SNR (clean on the right)", ylabel="image error, over that without")
at = min(range(len(snr)), key=lambda k: gains["own"][k][0])
best = f"{gains['own'][at][0]:.2f} with its own, {gains['another'][at][0]:.2f} with another's"
axis.set_title(f"At log-SNR {snr[at]:.1f} the error is {best}", fontsize=10)
axis.legend(frameon=False, fontsize=8, title="representation in the sum", title_fontsize=8)
plots.show(figure, "Error of the image's estimate with its own and another's representation, over that without any.")

# %% [markdown]
# Below 1 means that the representation helps. It can do so in the noise, where the chain decides the layout; on nearly
# clean images all is seen anyway. With another's the error rises: the network believes what it is given. **A wrong plan
# costs more than a right one gains**, and in a joint chain the plan is guessed.
#
# **Play.** From one scene's representation to another's, in a straight line. **Look for** the background (does it
# change at once?), the arrangement, what stays of single objects; and what guidance does to the five rows' likeness.
# (On a static page the controls do not move; one setting is below.)

# %% tags=["nbval-ignore-output"]
widgets.representation_board(model, test)

# %%
plots.show(
    widgets.draw_between(model, test, first=0, second=3, n=5),
    "Five rows of scenes drawn for representations on the line from one scene's to another's.",
)

# %% [markdown] tags=["slide"]
# ## 5 · A map of what is where makes images better, our sixteen numbers do not
#
# Equal images, steps, batches and backbone, three seeds. The figure is a Fréchet distance in the features of a network
# that reads scenes (not an FID). Everything is compared with `image-only`, at equal evaluations of the network but for
# guidance, which spends two a step. Images are drawn *alone* (nothing else is in the chain), *jointly* (together with a
# representation), or for a representation that is *given*, from held-out scenes; by 25 DDIM steps where it says *DDIM*,
# else by 25 ancestral ones.


# %%
def against_image_only(ours, control):
    """{way to draw: its feature distance minus that of the image alone}, from their result files."""
    plain, last = ("metrics", "alone", "features"), ("card", "probes", -1)
    measured = ours["runs"][0]["metrics"]
    ways = {"alone": (plain, plain), "alone, DDIM": ((*last, "features"), (*last, "features"))}
    for scale in measured.get("guidance", ()):
        way = "jointly" if float(scale) == 1 else f"jointly, guidance {scale}"
        ways[way] = ("metrics", "guidance", scale, "features"), plain
    if "guidance" in measured:
        ways["jointly, DDIM"] = (*last, "joint"), (*last, "features")
    if "given" in measured:
        ways["given"] = ("metrics", "given", "features"), plain
    return {way: paired(by_seed(ours, *a), by_seed(control, *b)) for way, (a, b) in ways.items()}


better = {
    name: against_image_only(results[name], results["image-only"])
    for name in ("predicted", "told", "lifted", "own-channels")
}
clear = [d for row in better.values() for d in row.values() if d.clear]
wins = sum(d.mean < 0 for d in clear)
title = f"Feature distance minus image-only's: clearly better {wins}, clearly worse {len(clear) - wins}"
plots.show(
    plots.difference_panels(better, better, title), "Feature distances of four variants less those of the image alone."
)
Markdown(report.findings(better, better))

# %% [markdown]
# A claim that a representation makes images better needs blue, filled dots, and then a comparison between the panels.
# `predicted` and `told` have nothing in the sum; if they lose to `image-only`, it is the share of the training that
# another task takes. What `lifted` loses beyond that, drawn *jointly*, is the price of a plan that is guessed, and
# often wrong; compare it with a plan that is right, *given*.
#
# Guidance costs a second evaluation in every step. What does it trade? Scale 2 less scale 1:

# %%
moves = {}
for what, text in (("features", "feature distance"), ("precision", "precision"), ("recall", "recall")):
    ends = {
        n: [by_seed(results[n], "metrics", "guidance", g, what) for g in ("2.0", "1.0")] for n in ("lifted", "own-channels")
    }
    moves[text] = {name: paired(*pair) for name, pair in ends.items()}
plots.show(
    plots.difference_panels(moves, {"feature distance"}, "Guidance by the representation: scale 2 minus scale 1"),
    "Differences in distance, precision and recall between guidance 2 and 1 for two variants.",
)
Markdown(report.findings(moves, {"feature distance"}))

# %% [markdown] tags=["slide"]
# ### If the representation knew more
#
# Our encoder was trained on the same scenes and knows little that pixels do not say. So ask **oracles**, summaries that
# nobody has for real images. `caption`: all words that describe the scene; `features`: what the judge of scenes sees; each
# as 16 numbers. `segments`: the kind of shape at each pixel, a plan that says *where*, in channels of its own. Each is in
# the sum, as `lifted` is; `segments-told` is given the segments in a fifth of the examples and never has them in the sum. If
# a plan helps a network of this size, a right one, that says where, should.

# %%
knows = {name: against_image_only(results[name], results["image-only"]) for name in LADDER if name in results}
ways = ("alone, DDIM", "jointly, DDIM", "given")
ladder = {way: {name: row[way] for name, row in knows.items() if way in row} for way in ways}
where = ladder["jointly, DDIM"]["segments"]
title = f"Drawn with a plan that says where, scenes are {-where.mean:.1f} ± {where.stderr:.1f} nearer to the data"
plots.show(
    plots.difference_panels(ladder, ladder, title),
    "For each kind of summary, the feature distance drawn alone, jointly and given, less that of the image alone.",
)
Markdown(report.findings(ladder, ladder))

# %% [markdown]
# *And at 32×32?* The joint model there was trained longer, and with more channels, than any model of the image alone, so
# those two cannot be compared. Within the one model they can: images drawn alone, with $S = \{x\}$, and drawn together
# with their representations, which guidance then follows more closely. It is one seed, without an error bar.

# %%
ours = json.loads((folder / "image-representation-shapes32-lifted.json").read_text())["variants"]["lifted"]
ways = {"alone": ours["alone"], "jointly": ours["guidance"]["1.0"], "jointly, guidance 2": ours["guidance"]["2.0"]}
far = {way: scores["features"]["mean"] for way, scores in ways.items()}
title = f"Drawn jointly, scenes are {1 - far['jointly'] / far['alone']:.0%} nearer to the data than drawn alone"
figure, ((axis,),) = plots.panels(1, 1, (6, 1.8), title)
axis.barh(list(far), list(far.values()), color=plots.COLOURS["image"])
axis.set(xlabel="feature distance to held-out scenes (lower is better)")
axis.invert_yaxis()
plots.show(figure, "Feature distance of scenes at 32 by 32: drawn alone, jointly, and jointly with guidance 2.")

# %% [markdown]
# **How far does this carry?** A map that is right helps most (*given*), and one that the model has to draw along still
# helps. No summary of sixteen numbers does, drawn along without guidance. Our reading, which is not tested: such a plan
# is drawn wrong too often, and a convolution cannot follow it to a place, while it finds a map next to where it draws.
# But `segments` also says *more* than sixteen numbers, and has channels of its own. ReDi's gains (second-hand) are of
# large latent transformers with DINOv2, whose features say what is *where*, at each patch, and come from a network that
# has seen other images. Ours had the truth, which nobody has: the ladder shows what a representation would have to
# know, not that one can be had for free. And at any scale the claim needs the controls above, and seeds.

# %% [markdown] tags=["slide"]
# ## 6 · The network learns more, though it draws no better
#
# The shared trunk ends in a vector for every image (the mean over places). A linear map of it, fitted to 2,000 noisy
# images, names the nearest object (18 classes). Less the same of `image-only`, by noise level:


# %%
def log_snr(t):
    """The noise level of a step, as text."""
    return f"log-SNR {float((abar[int(t)] / (1 - abar[int(t)])).log()):+.1f}"


def at_levels(name, other, what):
    """{noise level: a figure of a variant minus another's}."""
    levels = results[name]["runs"][0]["metrics"][what]
    return {log_snr(t): paired(*(by_seed(results[of], "metrics", what, t) for of in (name, other))) for t in levels}


trunk = {name: at_levels(name, "image-only", "trunk") for name in ("lifted", "own-channels", "predicted", "told")}
plots.show(
    plots.difference_panels(trunk, (), "Objects that the trunk names, minus image-only's"),
    "Accuracy of a linear probe of the trunk of four variants less that of the image alone, by noise level.",
)
Markdown(report.findings(trunk))

# %% [markdown]
# And how much of the representation's variance does the head read off an image, where the representation is in the sum in
# training, less where it never is (`predicted`)?

# %%
reads = {name: at_levels(name, "predicted", "read") for name in ("lifted", "own-channels")}
linear = (test.values["image"].flatten(1).double() - train.values["image"][:10000].flatten(1).double().mean(0)) @ B
left = (linear - test.values["representation"]).var(0).mean() / test.values["representation"].var(0).mean()
target = results["predicted"]["variants"]["predicted"]["read"]["0"]["mean"]
title = f"Variance read, minus predicted's; off a clean image that reads {target:.0%}, a linear map of pixels {1 - left:.0%}"
plots.show(
    plots.difference_panels(reads, (), title), "Variance of the representation that two variants read, less predicted's."
)
Markdown(report.findings(reads))

# %% [markdown]
# As a **target** a representation is learned: the head has to read it off the image in every example. As a
# **companion** in the sum it is in the state already, and only in three of ten examples, where it is absent, does the
# loss ask the network to look at the image instead. That fits: the joint models read less. It need not stay so: at 32×32
# the joint model, trained longer, reads 96% (one seed, [measured](measured.md)).
#
# ## 7 · Exercises
#
# **Exercise 1 (warm-up, easy, 10 minutes). Found again.**
# Images were drawn for given representations. Return the share of which the
# given one is among the $k$ nearest to the drawn image's own, of all those that were given.


# %% tags=["exercise"]
def found_again(own, given, k):
    """Share of rows i of own (N, d) with given[i] among the k rows of given (N, d) nearest to own[i]."""
    ...  # your code


# %% tags=["check"]
given = test.values["representation"][:100]
own = encoder(mt.sample(model, 100, given={"representation": given}, present={"image"}, steps=25, generator=rng(9))["image"])


def check_1(function):
    shares = {}
    for k, n in ((int(torch.randint(2, 10, ())), 60), (1, 100), (5, 100), (20, 100)):
        share = function(own[:n], given[:n], k)
        if share is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        apart = torch.cdist(own[:n], given[:n])
        rank = (apart < apart.diagonal()[:, None]).sum(1)  # how many are nearer
        shares[k] = float((rank < k).double().mean())
        if not abs(float(share) - shares[k]) < 1e-6:
            return widgets.Verdict(False, f"k = {k} of {n}: expected {shares[k]:.2f}, got {float(share):.2f}")
    shares = {k: shares[k] for k in (1, 5, 20)}
    return widgets.Verdict(True, ", ".join(f"{share:.0%} among the {k} nearest of 100" for k, share in shares.items()))


check_1(found_again)


# %% tags=["solution"]
def found_again_solution(own, given, k):
    near = torch.cdist(own, given).topk(k, largest=False).indices
    return float((near == torch.arange(len(own))[:, None]).any(1).double().mean())


solved, turned = check_1(found_again_solution), check_1(lambda own, given, k: found_again_solution(given, own, k))
assert solved, solved.message
assert not turned, turned.message
solved

# %% [markdown]
# **Exercise 2 (break it, medium, 10 minutes). Worse than collapse.**
# If all features are equal, the loss of step 1 is $\log(2N - 1)$:
# every view is as good a partner as any other. Find features of 8 images, seen twice, that cost at least 5 nats more.
# What has such an encoder learned?


# %% tags=["exercise"]
def features():
    """Two tensors (8, d), the features of the first and of the second view."""
    ...  # your code


# %% tags=["check"]
def check_2(function):
    pair = function()
    if pair is None:
        return widgets.Verdict(False, "the function returns nothing yet")
    if any(tuple(x.shape) != (8, pair[0].shape[1]) for x in pair):
        return widgets.Verdict(False, f"expected two tensors (8, d), got {[tuple(x.shape) for x in pair]}")
    cost, collapse = float(contrastive_loss(*pair, temperature=0.2)), math.log(15)
    return widgets.Verdict(cost >= collapse + 5, f"{cost:.2f} nats; collapse costs {collapse:.2f}, wanted: 5 more")


check_2(features)


# %% tags=["solution"]
def features_solution():
    first = torch.tensor([1.0, 0.0]).expand(8, 2)
    return first, -first  # views are told apart, images are not: partners are as far from each other as can be


solved = check_2(features_solution)
assert solved, solved.message
collapsed, perfect = torch.ones(8, 2), torch.eye(8)
assert not any(check_2(lambda x=wrong: (x, x)) for wrong in (collapsed, perfect)), "a wrong answer passes"
solved

# %% [markdown]
# **Exercise 3 (a small research question, hard, 30 minutes). Write it where it says most.**
# Step 4 printed what tiles let the state say
# about the representation at log-SNR −4. Find 16 orthonormal directions of the 768 that say at least 0.2 nats more, at
# the same weight. (`B` is the best linear read-out of $r$; `sigma` the covariance of images.) Why does it help to write
# $r$ there, and what stands against it?


# %% tags=["exercise"]
def directions():
    """(768, 16), orthonormal columns, float64."""
    ...  # your code


# %% tags=["check"]
def check_3(function):
    frame = function()
    if frame is None:
        return widgets.Verdict(False, "the function returns nothing yet")
    if frame.shape != (768, 16) or (frame.T @ frame - torch.eye(16, dtype=torch.float64)).abs().max() > 1e-6:
        return widgets.Verdict(False, "the columns are not orthonormal")
    (_, tiles, _), (_, mine, rest) = information(1.0, -4.0), information(1.0, -4.0, frame)
    return widgets.Verdict(
        mine >= tiles + 0.2,
        f"about r {mine:.2f} nats, wanted: {tiles + 0.2:.2f} (tiles {tiles:.2f}); about the rest {rest:.2f}",
    )


check_3(directions)


# %% tags=["solution"]
def directions_solution():
    # where the image itself says r, the code adds to what is there: the orthonormal frame nearest to B
    left, _, right = torch.linalg.svd(B, full_matrices=False)
    return left @ right


quiet = check_3(lambda: torch.linalg.eigh(sigma)[1][:, :16])  # where images vary least: no better than tiles
solved = check_3(directions_solution)
assert not quiet, quiet.message
assert solved, solved.message
solved

# %% [markdown] tags=["slide"]
# ## What we learned, what comes next
#
# - A vector becomes a picture by an isometry; what a noisy state says about it is one scalar problem for each number.
# - It matters where it is written: where images vary little, in a pattern that a convolution finds. Showing the network
#   what the state says adds no knowledge. With both a code was used, with neither it was not.
# - With exact estimates a representation cannot make images better. It changes what is decided first.
# - Whether it makes a *network's* images better depends on what it knows. Measured against the image alone, seed by
#   seed: our encoder's summary does not, without guidance; a map of what is where does, even if the model has to draw it
#   along.
# - As a target a representation is learned sooner than in the sum. To the estimate of an image a wrong plan costs more
#   than a right one gains.
#
# | notebook | question |
# |---|---|
# | 02 one space, many modalities | how codes share a space |
# | 08 image and label | what does a label cost and buy? |
# | **09 image and representation** | you are here |
# | 11 scaling up | what changes on a GPU? |
