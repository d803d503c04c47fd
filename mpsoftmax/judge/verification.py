"""Verification: a .bin file, a pair list, or glyphs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mpsoftmax.comm import Comm
from mpsoftmax.evaluate.verification import verification_outcomes
from mpsoftmax.judge.options import Judged, Options
from mpsoftmax.judge.source import Source, part_of, present
from mpsoftmax.train.evaluation import (
    EvaluationSet,
    baseline,
    check_pairs,
    glyph_recall,
    open_evaluation_set,
    pair_similarity,
    verify_set,
)


def open_task(data: str, sources: Sequence[Source], options: Options) -> EvaluationSet:
    """The pairs, without those that an embedding is missing of.

    Raises:
        ValueError: no such set, a malformed file, or too few pairs.
    """
    chosen = open_evaluation_set(data, sources[0].config, "data")
    rows = present(sources, chosen.images)
    if len(rows) < len(chosen.images):
        kept = np.isin(chosen.pairs, rows).all(1)
        chosen = replace(
            chosen,
            images=part_of(chosen.images, rows),
            pairs=np.searchsorted(rows, chosen.pairs[kept]),
            same=chosen.same[kept],
            fonts=None if chosen.fonts is None else chosen.fonts[rows],
            families=None if chosen.families is None else chosen.families[rows],
        )
        check_pairs(chosen.same, f"data: {data}: with embeddings")
    return chosen if options.mirror is None else replace(chosen, mirror=options.mirror)


def judge(task: EvaluationSet, source: Source, options: Options, comm: Comm) -> Judged:
    """Accuracy over ten folds, TAR at FAR, AUC, EER; collective."""
    embeddings = source.embed(task.images, mirror=task.mirror, normalise=True, comm=comm)
    result = verify_set(
        embeddings,
        task,
        num_bootstrap=options.replicates(len(task.same)),
        protocol=options.thresholds,
    )
    values: dict[str, Any] = {"verification": result.as_dict()}
    text = [result.render()]
    if task.fonts is not None:
        values["recall_at_1"] = glyph_recall(embeddings, task)
        text.append(f"recall@1, gallery one font: {values['recall_at_1']:.4f}")
    if options.with_baseline:
        raw = baseline(task, options.thresholds)
        values["raw_pixels"] = raw.as_dict()
        text.append(f"raw pixels: accuracy {raw.accuracy:.4f}, AUC {raw.auc:.4f}")
    similarity = pair_similarity(embeddings, task.pairs)
    outcomes = verification_outcomes(similarity, task.same, protocol=options.thresholds)
    return Judged({"verification": outcomes}, values, "\n".join(text))
