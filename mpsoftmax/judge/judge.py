"""Judging the backbone of a run or of one of its checkpoints on one verification set."""

from dataclasses import dataclass
from typing import Any

from mpsoftmax.comm import Comm
from mpsoftmax.models import open_model
from mpsoftmax.train.evaluation import Evaluator, baseline, glyph_recall, verify_set


@dataclass(frozen=True)
class Judgement:
    """What `mpsoftmax evaluate` reports."""

    text: str
    values: dict[str, Any]


def judge(
    model: str,
    data: str,
    comm: Comm,
    *,
    with_baseline: bool,
    trust_code: bool,
    thresholds: str = "exact",
) -> Judgement:
    """Verification of a trained backbone; collective.

    Args:
        model: Run folder, or a checkpoint directory in it.
        data: A verification set, as in data.eval.
        comm: The ranks that share the embedding.
        with_baseline: Also judge raw pixels by the same protocol.
        thresholds: "exact", or "insightface" for its grid of distances.
        trust_code: Import the backbone a checkpoint names by package.module:callable.

    Raises:
        ValueError: no such model or data, or a damaged checkpoint.
    """
    opened = open_model(model, comm=comm, trust_code=trust_code)
    evaluator = Evaluator(opened.config, (), comm, opened.device)
    chosen = comm.together(lambda: evaluator.open(data))
    embeddings = evaluator.embeddings(chosen, opened.net)
    result = verify_set(embeddings, chosen, protocol=thresholds)
    values: dict[str, Any] = {
        "model": str(opened.source),
        "step": opened.step,
        "data": data,
        "verification": result.as_dict(),
    }
    text = [f"{opened.source} on {chosen.name}", result.render()]
    if chosen.fonts is not None:
        values["recall_at_1"] = glyph_recall(embeddings, chosen)
        text.append(f"recall@1, gallery one font: {values['recall_at_1']:.4f}")
    if with_baseline:
        raw = baseline(chosen, thresholds)
        values["raw_pixels"] = raw.as_dict()
        text.append(f"raw pixels: accuracy {raw.accuracy:.4f}, AUC {raw.auc:.4f}")
    return Judgement("\n".join(text), values)
