"""Embeddings of whole data sets as Parquet: fast, resumable, at any number of ranks."""

from mpsoftmax.embedding.run import Embedded, embed_to_parquet
from mpsoftmax.embedding.sources import open_to_embed

__all__ = ["Embedded", "embed_to_parquet", "open_to_embed"]
