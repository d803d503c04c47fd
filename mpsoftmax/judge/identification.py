"""Identification 1:N on a labelled set: some images of each person are the gallery, the others the probes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mpsoftmax.comm import Comm
from mpsoftmax.evaluate.identification import identify
from mpsoftmax.judge.labelled import LabelledTask, open_labelled
from mpsoftmax.judge.options import Judged, Options, judged
from mpsoftmax.judge.source import Source

UNKNOWN = 0.2
"""Share of the people who are kept out of the gallery, where nothing else is said."""


def open_task(data: str | None, sources: Sequence[Source], options: Options) -> LabelledTask:
    """Gallery and probes.

    Within one set the first ``gallery_images`` images of each person are the gallery and the rest are probes;
    people without a rest are distractors. Of the people with probes, a share drawn by a fixed seed is
    kept out of the gallery; all their images are probes.

    Raises:
        ValueError: no such set, a malformed one, or an option out of range.
    """
    if options.gallery_images < 1:
        raise ValueError(f"gallery_images must be at least 1, got {options.gallery_images}")
    default = 0.0 if options.gallery is not None else UNKNOWN
    share = default if options.unknown is None else options.unknown
    if not 0 <= share < 1:
        raise ValueError(f"unknown must be in [0, 1), got {share}")
    task = open_labelled(data, sources, options)
    labels = task.labels
    gallery, probes = task.gallery, task.queries
    if task.within:
        order = probes[np.argsort(labels[probes], kind="stable")]
        place = np.arange(len(order)) - np.searchsorted(labels[order], labels[order])
        rest = np.sort(order[place >= options.gallery_images])
        gallery = np.setdiff1d(gallery, rest)
    else:
        rest = probes
    people = np.intersect1d(labels[rest], labels[gallery])
    num = round(share * len(people))
    strangers = np.random.default_rng(0).permutation(people)[:num]
    is_stranger = np.isin(labels[gallery], strangers)
    if task.within:
        rest = np.union1d(rest, gallery[is_stranger])
    return replace(task, gallery=gallery[~is_stranger], queries=rest)


def judge(task: LabelledTask, source: Source, options: Options, comm: Comm) -> Judged:
    """Rank-k and TPIR at FPIR; collective."""
    embeddings = task.embed(source, comm)
    outcomes = identify(
        embeddings[torch.from_numpy(task.gallery)],
        task.labels[task.gallery],
        embeddings[torch.from_numpy(task.queries)],
        task.labels[task.queries],
        fusion=options.fusion,
        comm=comm,
    )
    return judged({"identification": outcomes}, options)
