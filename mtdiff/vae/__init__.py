"""Multimodal VAEs, the neighbours of MT-Diffusion that share a latent and not a diffusion space."""

from mtdiff.vae.experts import KINDS, Normal, chances, product, stratified, subsets
from mtdiff.vae.model import SOURCES, MultimodalVAE, diffusion_decoder, diffusion_nats

__all__ = [
    "KINDS", "SOURCES", "MultimodalVAE", "Normal", "chances", "diffusion_decoder", "diffusion_nats", "product", "stratified",
    "subsets",
]  # fmt: skip
