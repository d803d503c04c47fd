"""Retrieval: a labelled set within itself, or against a gallery, with distractors; glyphs."""

from collections.abc import Sequence

import numpy as np
import torch

from mpsoftmax.comm import Comm
from mpsoftmax.evaluate.retrieval import retrieve
from mpsoftmax.judge.labelled import LabelledTask, open_labelled
from mpsoftmax.judge.options import Judged, Options, judged
from mpsoftmax.judge.source import Source


def open_task(data: str | None, sources: Sequence[Source], options: Options) -> LabelledTask:
    """See `labelled.py`."""
    return open_labelled(data, sources, options)


def judge(task: LabelledTask, source: Source, options: Options, comm: Comm) -> Judged:
    """Recall@k, R-precision, mAP@R; collective."""
    embeddings = task.embed(source, comm)
    own = np.searchsorted(task.gallery, task.queries) if task.within else None
    outcomes = retrieve(
        embeddings[torch.from_numpy(task.gallery)],
        task.labels[task.gallery],
        embeddings[torch.from_numpy(task.queries)],
        task.labels[task.queries],
        own=own,
        backend=options.backend,
        comm=comm,
    )
    return judged({"retrieval": outcomes}, options)
