"""Evaluations as W&B shows them: a table of all of them, ROC curves, similarity distributions."""

from typing import Any

import numpy as np

from mpsoftmax.track.protocol import Evaluation


class EvaluationTable:
    """One row an evaluation and set; sets may have different figures."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, evaluation: Evaluation) -> None:
        """One more row."""
        self._rows.append({"step": evaluation.step, "set": evaluation.name, **evaluation.figures})

    def build(self) -> Any:
        """A wandb.Table of all rows so far; a logged table is not changed any more."""
        import wandb

        columns: list[Any] = list(dict.fromkeys(name for row in self._rows for name in row))
        data = [[row.get(name) for name in columns] for row in self._rows]
        return wandb.Table(columns=columns, data=data)


def plots(evaluation: Evaluation) -> dict[str, Any]:
    """ROC curve, genuine against impostor similarities in one plot, and a histogram of each."""
    import wandb

    curves, name = evaluation.curves, evaluation.name
    kinds = {"genuine": curves.genuine, "impostor": curves.impostor}
    centres = (curves.edges[:-1] + curves.edges[1:]) / 2
    shown = np.flatnonzero(curves.genuine + curves.impostor)
    shown = slice(shown[0], shown[-1] + 1)
    shares = [(counts / counts.sum())[shown].tolist() for counts in kinds.values()]
    out: dict[str, Any] = {
        f"eval/{name}/roc": wandb.plot.line_series(
            xs=curves.far.tolist(),
            ys=[curves.tar.tolist()],
            keys=["TAR"],
            title=f"{name}: ROC at step {evaluation.step}",
            xname="FAR",
        ),
        f"eval/{name}/similarities": wandb.plot.line_series(
            xs=centres[shown].tolist(),
            ys=shares,
            keys=list(kinds),
            title=f"{name}: similarities at step {evaluation.step}",
            xname="cosine",
        ),
    }
    for kind, counts in kinds.items():
        histogram = (counts[shown], curves.edges[shown.start : shown.stop + 1])
        out[f"eval/{name}/{kind}"] = wandb.Histogram(np_histogram=histogram)
    return out
