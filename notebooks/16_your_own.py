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
# # 16 · Your own data, your own parts
#
# **After this notebook you can**
# - go from a folder of your own pictures to a model that is trained, saved, drawn from and judged, in twenty lines;
# - write a modality and a network of your own, in ten lines each;
# - write a solver of your own, and check it against one that you trust.
#
# **You need** notebook 02 (codes and curves) and 05 (the solvers). **Time**: about
# 30 minutes to read, half a minute to run on a laptop CPU. No GPU, no download.

# %%
import os
import tempfile
from pathlib import Path

import mtdiff as mt
from mtdiff import plots, widgets
from mtdiff.backbones import NoiseLevel, vector_head, zero
from mtdiff.checks import check_ids
from mtdiff.datasets import digits
from mtdiff.laws import Categorical

import matplotlib.pyplot as plt
import PIL.Image
import torch
from torch import nn

# %%
torch.set_num_threads(1)
plots.style()
place = Path(tempfile.mkdtemp())
os.environ["MTDIFF_DATA"] = str(place / "packed")


def rng(seed):
    """A generator, so that every cell draws the same numbers whenever it runs."""
    return torch.Generator().manual_seed(seed)


# %% [markdown] tags=["slide"]
# ## 1 · From a folder to a result
#
# Your pictures lie in a folder, with a sub-folder for each class. Ours are made here, of scikit-learn's digits; at your
# desk this cell is not needed.

# %%
real = digits("all")
for k, (image, label) in enumerate(zip(real.values["image"], real.values["label"], strict=True)):
    if label < 3:
        file = place / "pictures" / ("zero", "one", "two")[label] / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(((image[0] + 1) * 127.5).byte().numpy()).save(file)
sorted(path.name for path in (place / "pictures").iterdir())

# %% [markdown] tags=["slide"]
# Now the way from there to a result. The folder is packed once; a tenth of it is held out, by a hash of the names. A
# model is a process (a curve $W_t$ for each modality), the modalities, and a network on their common space. With
# `"heads"` and `remove_known` what is given is taken out of $z_t$ before the network looks, and the aggregate is what
# is known and what the heads say: such a model obeys a label after few steps of training.

# %% tags=["slide"]
train, test = (mt.datasets.folder(place / "pictures", size=8, split=split) for split in ("train", "test"))
names, space = list(train.names), (3, 8, 8)
process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(200), {"image": 1.0, "label": mt.fade_in(1.0, 0.1)})
modalities = {"image": mt.Image(space, start="rest"), "label": mt.Label(3, names=names)}
torch.manual_seed(0)
model = mt.MTDiffusion(process, modalities, mt.UNet(space, base=16), space, "heads", remove_known=True)
config = mt.TrainConfig(steps=300, batch_size=32, lr=2e-3, ema=0.98, drop={"label": 0.2}, give={"label": 0.5})
model = mt.Trainer(model, train, config).run(progress=False)
model.save(place / "model")
model = mt.load(place / "model")
wanted = torch.arange(24) % 3
drawn = mt.sample(model, 24, given={"label": wanted}, rule="conditioned", generator=rng(0))
named = mt.sample(model, 24, given={"image": drawn["image"]}, rule="readout", generator=rng(1))["label"]
held_out = test[torch.arange(len(test))]
said = mt.sample(model, len(test), given={"image": held_out["image"]}, rule="readout", generator=rng(2))["label"]
right = (said == held_out["label"]).float().mean()
print(f"{right:.0%} of {len(test)} held-out pictures named, {(named == wanted).float().mean():.0%} of the drawn ones")
assert right > 0.8
assert (named == wanted).float().mean() > 0.8

# %%
figure, axes = plt.subplots(3, 8, figsize=(6, 2.5), layout="constrained")
for image, label, axis in zip(drawn["image"], wanted, axes.T.flat, strict=True):
    axis.imshow((image.movedim(0, -1) + 1).clamp(0, 2) / 2)
    axis.set_axis_off()
    axis.set_title(names[label], fontsize=7)
figure.suptitle("Drawn for a class by the model of your own folder", fontsize=10)
plots.show(figure, "Three rows of eight small pictures, each under the name of the class it was drawn for.")

# %% [markdown]
# On the command line the same are three commands, see [ten tasks](own.md):
#
# ```
# mtdiff train image-label --data pictures --size 32 --out runs/mine
# mtdiff sample runs/mine --given label=two --out two.png
# mtdiff evaluate image-label --models runs/mine --n 100
# ```

# %% [markdown] tags=["slide"]
# ## 2 · A modality of your own
#
# How much ink is in a digit? Five levels, $y = 0, \ldots, 4$, each with a fifth of the digits. Neighbours are alike, so
# their codes lie on a line, $E(y) = c_y \mathbf{1}$ with numbers $c_y$ of mean 0 and mean square 1. A modality says
# four things: what it learns (`build`), what a valid value is (`check`), its code $E(y)$ (`code`), and the law $p(y
# \mid z_t)$ that it reads off what the network sees (`head`). A law's expected code, $\sum_y p(y \mid z_t)\, c_y$, is
# what samplers work with.


# %% tags=["slide"]
class Ink(mt.Modality):
    def build(self, backbone):
        self.out = vector_head(backbone, 5)

    def check(self, value):
        check_ids(repr(self.name), value, 5, "levels (B,)")

    def code(self, value):
        return ((value - 2) / 2**0.5)[:, None, None, None].expand(-1, *self.slice_shape)

    def head(self, view):
        return Categorical(self.out(view.pooled), lambda chances: self.code(chances @ torch.arange(5.0)))


# %% [markdown] tags=["slide"]
# ## 3 · A network of your own
#
# A network gets the state $z_t$ and the noise level $u = t/T$, and returns a map and a vector: heads of pictures look
# at the one, heads of numbers at the other. `readout` is how a map is read; it begins at 0, so that heads begin at
# their linear guess.


# %% tags=["slide"]
class Net(mt.Backbone):
    def __init__(self, space, width=48):
        super().__init__()
        self.space, self.embedding, self.pooled, self.level = space, width, width, NoiseLevel(width)
        self.enter, self.mix = (nn.Conv2d(c, width, 5, padding=2) for c in (space[0], width))

    def forward(self, z, u, condition, context=None, tokens=None, keep=None):
        h = nn.functional.gelu(self.enter(z) + (self.level(u) + condition)[..., None, None])
        h = h + nn.functional.gelu(self.mix(h))
        return h, h.mean((2, 3))

    def readout(self, shape):
        return zero(nn.Conv2d(self.pooled, shape[0], 3, padding=1))


# %% [markdown] tags=["slide"]
# Nothing has to be registered: both train, draw, save and load with all that there is.

# %%
image = digits("train").values["image"]
amount = image.mean((1, 2, 3))
ink = torch.bucketize(amount, amount.quantile(torch.tensor([0.2, 0.4, 0.6, 0.8])))
process = mt.ForwardProcess(mt.NoiseSchedule.log_snr(200, low=-11.0), {"image": 1.0, "ink": mt.fade_in(1.0)})
torch.manual_seed(0)
mine = mt.MTDiffusion(process, {"image": mt.Image((1, 8, 8)), "ink": Ink()}, Net((1, 8, 8)), (1, 8, 8))
config = mt.TrainConfig(steps=700, batch_size=64, lr=3e-3, ema=0.99)
mine = mt.Trainer(mine, {"image": image, "ink": ink}, config).run(progress=False)
mine.save(place / "mine")
mine = mt.load(place / "mine")
pairs = mt.sample(mine, 300, generator=rng(0))
together = torch.corrcoef(torch.stack([pairs["image"].mean((1, 2, 3)), pairs["ink"].float()]))[0, 1]
print(mine)
print(f"drawn together: ink of the picture and the level that is drawn along correlate at {together:.2f}")
assert together > 0.7

# %% [markdown]
# ## 4 · Exercises
#
# **Exercise 1 (warm-up, easy, 16 minutes). Codes on a line.**
# Return the numbers $c_0, \ldots, c_{K-1}$ of $K$ levels: evenly apart and rising, of mean 0 and mean square 1. For $K
# = 5$ they are those of section 2.


# %% tags=["exercise"]
def line(levels):
    """The codes (levels,) of levels that are alike."""
    ...  # your code


# %% tags=["check"]
def check_1(function):
    for levels in (2, 5, 9):
        codes = function(levels)
        if codes is None:
            return widgets.Verdict(False, "the function returns nothing yet")
        apart, codes = codes.double().diff(), codes.double()
        if len(codes) != levels or apart.min() <= 0 or (apart.max() - apart.min()) > 1e-5:
            return widgets.Verdict(False, f"{levels} levels: expected {levels} rising numbers, evenly apart")
        if abs(codes.mean()) > 1e-5 or abs(codes.square().mean() - 1) > 1e-5:
            return widgets.Verdict(
                False, f"mean {codes.mean():.3f} and mean square {codes.square().mean():.3f}, not 0 and 1"
            )
    return widgets.Verdict(True, "evenly apart, of mean 0 and mean square 1")


check_1(line)


# %% tags=["solution"]
def line_solution(levels):
    codes = torch.arange(levels) - (levels - 1) / 2
    return codes / codes.square().mean().sqrt()


solved, unscaled = check_1(line_solution), check_1(lambda levels: torch.linspace(-1, 1, levels))
assert solved, solved.message
assert not unscaled, unscaled.message
solved

# %% [markdown]
# **Exercise 2 (do it yourself, medium, 15 minutes). A solver of your own.**
# A step goes from $t$ to $s$: `look(z, t)` is what the model guesses, with `.moved(process, t, s)`, the aggregate $\hat
# m_s$, and `.noise(process, z, t)`, the noise $\hat\varepsilon$; `process.at(s, z)` has `signal` and `noise`, the
# numbers $\sqrt{\bar\alpha_s}$ and $\sqrt{1 - \bar\alpha_s}$. Write the step without fresh noise, $z_s =
# \sqrt{\bar\alpha_s}\, \hat m_s + \sqrt{1 - \bar\alpha_s}\, \hat\varepsilon$.


# %% tags=["exercise"]
def step(look, z, t, s, noise):
    """The state z_s."""
    ...  # your code


# %% tags=["check"]
def check_2(function):
    start = (200, torch.randn(8, 1, 8, 8, generator=rng(3), dtype=torch.float64))
    try:
        drawn = [mt.sample(mine, 8, start=start, sampler=each, steps=10, generator=rng(4)) for each in (function, "ddim")]
    except (AttributeError, ValueError) as error:
        return widgets.Verdict(False, f"the function returns no state yet ({error})")
    apart = float((drawn[0]["image"] - drawn[1]["image"]).abs().max())
    return widgets.Verdict(apart < 1e-5, f"pictures are {apart:.2g} from those of DDIM")


check_2(step)


# %% tags=["solution"]
def step_solution(look, z, t, s, noise):
    at, guess = look.process.at(s, z), look(z, t)
    return at.signal * guess.moved(look.process, t, s) + at.noise * guess.noise(look.process, z, t)


def unmoved(look, z, t, s, noise):
    at, guess = look.process.at(s, z), look(z, t)
    return at.signal * guess.aggregate + at.noise * guess.noise(look.process, z, t)


solved, still = check_2(step_solution), check_2(unmoved)
assert solved, solved.message
assert not still, still.message
solved

# %% [markdown] tags=["slide"]
# ## What we learned, what comes next
#
# - A folder, a process, modalities and a network are a model; trained, saved, drawn from and judged in a page.
# - A modality says what it learns, what is valid, its code and its law; a network gives a map and a vector. Ten lines each.
# - A solver is a function, and a known one is its test.
#
# | notebook | question |
# |---|---|
# | 02 one space, many modalities | what does a code do to the forward process? |
# | 11 scaling up | what changes on a GPU? |
# | **16 your own** | you are here |
