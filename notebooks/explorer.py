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

# %% [markdown]
# # Explorer
#
# Everything of the course that moves, on one page. Run all cells, then move, tick, type and paint. While a picture is
# computed, the old one is faint.

# %%
import mtdiff as mt
from mtdiff import plots, widgets
from mtdiff.experiments import any_to_any, image_transition, masked_image

import torch

torch.set_num_threads(1)  # on a small shared CPU two threads are slower than one
plots.style()

# %% [markdown]
# ## Bend a curve
#
# How a modality fades in along the chain, and the signal-to-noise ratio that this gives it
# ([02 §10](02_one_space_many_modalities.ipynb)).

# %% tags=["nbval-ignore-output"]
widgets.curve_bender()

# %% [markdown]
# ## Watch the forward process
#
# Two points, their codes, and noise; and the density on the line with the best guess ([01 §10](01_one_modality.ipynb)).

# %% tags=["nbval-ignore-output"]
weights, means, stds = torch.tensor([0.4, 0.6]), torch.tensor([[-1.5], [1.0]]), torch.tensor([0.3, 0.6])
line = mt.ForwardProcess(mt.NoiseSchedule.log_snr(100), {"x": 1.0, "label": 0.0})
widgets.noised_density_slider(mt.exact.LabelledMixture(weights, means, stds, torch.zeros(2, 1), line))

# %% [markdown]
# ## Digits: how hard should a label pull?

# %% tags=["nbval-ignore-output"]
widgets.class_sampler(mt.load("image-label/digits"))

# %% [markdown]
# ## Any to any: tick, type or paint
#
# With *given* (control and click for several) modalities of a held-out scene are given. Words make a caption of your own,
# and what you paint is a segmentation. All else is drawn ([10 §8](10_any_to_any.ipynb)).

# %% tags=["nbval-ignore-output"]
widgets.any_board(mt.load("any-to-any/shapes32"), any_to_any.world("shapes32", "test"))

# %% [markdown]
# ## From one picture to another, and holes

# %% tags=["nbval-ignore-output"]
widgets.transition_board(mt.load("image-transition/shapes16"), image_transition.pairs("shapes16", "test"))

# %% tags=["nbval-ignore-output"]
filler, plain = mt.load("masked-image/shapes16"), mt.load("masked-image/shapes16-plain")
widgets.inpainting_board(filler, plain, masked_image.EXPERIMENT.on("shapes16")("test").values["image"])
