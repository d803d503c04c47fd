"""Trained backbones and class rows in formats of others, each checked before it is handed over."""

from mpsoftmax.export.one_file import Exported, export

__all__ = ["Exported", "export"]
