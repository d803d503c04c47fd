"""Backbones: networks from images to raw (not normalised) embeddings."""

from mpsoftmax.backbones.build import build_backbone

__all__ = ["build_backbone"]
