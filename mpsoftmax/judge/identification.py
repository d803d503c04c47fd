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
        ValueError: no such set, a malformed one, or nobody is left to be found.
    """
    default = 0.0 if options.gallery is not None else UNKNOWN
    share = default if options.unknown is None else options.unknown
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
    if num == len(people):
        raise ValueError(_nobody(data, task, options, len(people)))
    strangers = np.random.default_rng(0).permutation(people)[:num]
    is_stranger = np.isin(labels[gallery], strangers)
    if task.within:
        rest = np.union1d(rest, gallery[is_stranger])
    return replace(task, gallery=gallery[~is_stranger], queries=rest)


def _nobody(data: str | None, task: LabelledTask, options: Options, num_people: int) -> str:
    """What to say where no probe's person is in the gallery."""
    if num_people:
        return f"unknown: {options.unknown} of {num_people} people leaves none in the gallery; allowed: less"
    if not task.within:
        return f"gallery: {options.gallery}: holds nobody of {data}; allowed: at least one of its people"
    most = np.bincount(task.labels[task.queries]).max(initial=0)
    if most < 2:
        return (
            f"data: {data or 'labels'}: nobody has two images; allowed: one for the gallery and one to "
            "search for, or a gallery of its own"
        )
    return (
        f"gallery_images: {options.gallery_images} leaves no image to search for; allowed: 1..{most - 1}, as "
        f"nobody has more than {most} images"
    )


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
