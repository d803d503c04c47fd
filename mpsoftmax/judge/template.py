"""Template protocols: IJB-B and IJB-C folders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.data.ijb import IjbSet, TemplateList, open_ijb
from mpsoftmax.evaluate.templates import (
    judge_galleries,
    judge_pairs,
    pair_similarities,
    template_features,
)
from mpsoftmax.judge.options import Judged, Options, judged
from mpsoftmax.judge.source import Source


def open_task(data: str, sources: Sequence[Source], options: Options) -> IjbSet:
    """The set; every face needs an embedding.

    Raises:
        ValueError: no such folder, a malformed file, or an embedding that is missing.
    """
    found = open_ijb(Path(data), decoder=sources[0].config.data.decoder)
    for source in sources:
        if not source.has(found.images).all():
            raise ValueError("embeddings: template protocols need one of every face")
    return found


def judge(task: IjbSet, source: Source, options: Options, comm: Comm) -> Judged:
    """1:1 and, where the set has galleries, 1:N; collective."""
    mirror = options.mirror is not False
    embeddings = source.embed(task.images, mirror=mirror, normalise=False, comm=comm)
    ids, features = template_features(
        embeddings,
        task.templates,
        task.media,
        scores=task.scores if options.by_score else None,
        by_norm=options.by_norm,
    )
    outcomes = {
        "template_1_1": judge_pairs(pair_similarities(ids, features, task.pairs), task.same)
    }
    if task.probes is not None:

        def rows(one: TemplateList) -> tuple[Tensor, np.ndarray]:
            return features[torch.from_numpy(np.searchsorted(ids, one.templates))], one.subjects

        galleries = [rows(one) for one in task.galleries]
        outcomes["template_1_n"] = judge_galleries(galleries, *rows(task.probes), comm=comm)
    return judged(outcomes, options)
