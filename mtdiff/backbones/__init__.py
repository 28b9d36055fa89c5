"""Shared networks: z, noise level and condition in, a feature map and a pooled vector out."""

from mtdiff.backbones.base import Backbone, NoiseLevel, vector_head, zero
from mtdiff.backbones.diffusers import DiffusersUNet
from mtdiff.backbones.dit import DiT
from mtdiff.backbones.mlp import MLP
from mtdiff.backbones.unet import UNet

__all__ = ["MLP", "Backbone", "DiT", "DiffusersUNet", "NoiseLevel", "UNet", "vector_head", "zero"]
