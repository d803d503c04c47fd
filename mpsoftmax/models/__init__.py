"""Trained embedding models, opened for use: judging, embedding, exporting, cleaning of data."""

from mpsoftmax.models.trained import TrainedModel, open_model

__all__ = ["TrainedModel", "open_model"]
