"""Labelled sets for identification and retrieval: what is searched, and what it is searched for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.config import Config
from mpsoftmax.data.glyphs import open_glyphs
from mpsoftmax.data.image_set import IGNORE, ImageSet
from mpsoftmax.data.open import open_images
from mpsoftmax.judge.options import Options
from mpsoftmax.judge.source import GivenEmbeddings, Source, part_of, present
from mpsoftmax.train.datasets import glyph_options
from mpsoftmax.train.evaluation import GLYPH_SETS

NOBODY = -1


@dataclass(frozen=True, eq=False)
class LabelledTask:
    """Images in parts that are embedded one after the other; labels int64 over all of them, -1: nobody.

    Attributes:
        parts: image sets; None stands for all rows of given embeddings.
        labels: int64 [n].
        queries: int64 [q], rows that are searched for.
        gallery: int64 [g], rows that are searched; a row may be both, and does not find itself.
        mirror: whether an image and its mirror image show the same thing.
        within: whether queries and gallery are the same set.
    """

    parts: tuple[ImageSet | None, ...]
    labels: np.ndarray
    queries: np.ndarray
    gallery: np.ndarray
    mirror: bool
    within: bool

    def embed(self, source: Source, comm: Comm) -> Tensor:
        """Unit embeddings float32 [n, D]; collective."""
        found = []
        for images in self.parts:
            if images is None:
                assert isinstance(source, GivenEmbeddings)
                found.append(torch.nn.functional.normalize(source.embeddings))
            else:
                found.append(source.embed(images, mirror=self.mirror, normalise=True, comm=comm))
        return torch.cat(found)


def open_labelled(data: str | None, sources: Sequence[Source], options: Options) -> LabelledTask:
    """The sets that the options name.

    Args:
        data: `glyphs-open`, `glyphs-closed`, a set that `open_images` reads, or None for given embeddings
            with labels.
        sources: embed it.
        options: ``gallery``, ``distractors``, ``reader``, ``mirror``.

    Raises:
        ValueError: no such set, or a malformed one.
    """
    if data is None:
        return _given(sources, options)
    if data in GLYPH_SETS:
        return _glyphs(data, sources, options)
    config = sources[0].config
    first = _known(open_set(data, config, options.reader), sources)
    parts, labels = [first], [np.asarray(first.labels)]
    within = options.gallery is None
    if options.gallery is not None:
        second = _known(open_set(options.gallery, config, options.reader), sources)
        number = {str(name): k for k, name in enumerate(first.class_names)}
        names = [number.setdefault(str(name), len(number)) for name in second.class_names]
        own = np.asarray(second.labels)
        parts.append(second)
        labels.append(np.where(own == IGNORE, IGNORE, np.array([*names, 0])[own]))
    num_real = sum(len(one) for one in labels)
    if options.distractors is not None:
        more = _known(open_set(options.distractors, config, {}), sources)
        parts.append(more)
        labels.append(np.full(len(more), NOBODY))
    joined = np.concatenate(labels)
    rows = np.arange(len(joined))
    usable = (joined != IGNORE) | (rows >= num_real)
    is_query = usable & (rows < len(labels[0]))
    in_gallery = usable & (rows >= (0 if within else len(labels[0])))
    return LabelledTask(
        tuple(parts),
        joined,
        np.flatnonzero(is_query),
        np.flatnonzero(in_gallery),
        options.mirror is not False,
        within,
    )


def open_set(data: str, config: Config, reader: Mapping[str, Any]) -> ImageSet:
    """A labelled set by its name."""
    size = {"size": config.data.image_size} if data == "synthetic" else {}
    return open_images(data, **{**size, **reader})


def _known(images: ImageSet, sources: Sequence[Source]) -> ImageSet:
    return part_of(images, present(sources, images))


def _given(sources: Sequence[Source], options: Options) -> LabelledTask:
    """All rows of a file of embeddings by its own labels."""
    first = sources[0]
    if not isinstance(first, GivenEmbeddings) or first.labels is None:
        raise ValueError("data: allowed to be left out with embeddings that have a column label")
    for other in sources[1:]:
        if not isinstance(other, GivenEmbeddings) or list(other.names) != list(first.names):
            raise ValueError(
                "against: a file of the same names in the same order expected, or --data"
            )
    if options.gallery is not None or options.distractors is not None:
        raise ValueError("gallery, distractors: allowed with --data")
    rows = np.flatnonzero(first.labels != IGNORE)
    return LabelledTask((None,), first.labels, rows, rows, mirror=False, within=True)


def _glyphs(data: str, sources: Sequence[Source], options: Options) -> LabelledTask:
    """Gallery: the font that draws most characters; queries: its characters in the other families."""
    if options.gallery is not None or options.distractors is not None:
        raise ValueError(f"gallery, distractors: allowed with files, not with {data!r}")
    images = open_glyphs(**glyph_options(sources[0].config, GLYPH_SETS[data]))
    rows = present(sources, images)
    fonts, families = images.fonts[rows], images.families[rows]
    labels = np.asarray(images.labels)[rows]
    in_gallery = fonts == np.bincount(fonts).argmax()
    is_query = (families != families[in_gallery][0]) & np.isin(labels, labels[in_gallery])
    return LabelledTask(
        (part_of(images, rows),),
        labels,
        np.flatnonzero(is_query),
        np.flatnonzero(in_gallery),
        mirror=options.mirror is True,
        within=False,
    )
