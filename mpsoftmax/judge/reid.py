"""Re-identification: sets in the layouts of Market-1501, DukeMTMC-reID, MSMT17 and PKU-Reid."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mpsoftmax.comm import Comm
from mpsoftmax.data.reid import ReidSet, open_reid
from mpsoftmax.evaluate.reid import Sightings, reidentify
from mpsoftmax.judge.options import Judged, Options, judged
from mpsoftmax.judge.source import Source, part_of, present


def open_task(data: str, sources: Sequence[Source], options: Options) -> ReidSet:
    """The set, without images that an embedding is missing of.

    Raises:
        ValueError: none of the layouts, or a malformed file.
    """
    if options.distractors not in (None, "images"):
        raise ValueError(f"distractors: {options.distractors!r}; allowed with reid: 'images'")
    found = open_reid(Path(data), distractors=options.distractors is not None)
    rows = present(sources, found.images)
    return ReidSet(
        found.layout,
        part_of(found.images, rows),
        found.people[rows],
        found.cameras[rows],
        found.is_query[rows],
        found.num_junk,
    )


def judge(task: ReidSet, source: Source, options: Options, comm: Comm) -> Judged:
    """CMC, mAP, mINP; collective."""
    mirror = options.mirror is not False
    embeddings = source.embed(task.images, mirror=mirror, normalise=True, comm=comm)
    query, gallery = (
        Sightings(embeddings[torch.from_numpy(side)], task.people[side], task.cameras[side])
        for side in (task.is_query, ~task.is_query)
    )
    return judged({"reid": reidentify(query, gallery, comm=comm)}, options)
