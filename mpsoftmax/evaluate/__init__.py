"""Evaluation: embeddings of image sets, verification of pairs, retrieval."""

from mpsoftmax.evaluate.embed import embed, raw_pixels
from mpsoftmax.evaluate.retrieval import recall_at_1
from mpsoftmax.evaluate.verification import VerificationResult, verify

__all__ = ["VerificationResult", "embed", "raw_pixels", "recall_at_1", "verify"]
