"""RUN/report/: what a page about the run needs and metrics.jsonl does not hold.

sessions.jsonl        a line where a process began (what it ran on) and one where it ended, and how
evaluation-SET.json   of a set's newest evaluation: curves, the hardest pairs with pictures; once training
                      is over the figures with their intervals
classes.json          a sample of classes after training (train/class_quality.py)
"""

import datetime
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpsoftmax.data.new_files import replaced
from mpsoftmax.evaluate.curves import Curves
from mpsoftmax.evaluate.hardest import JudgedPairs, hardest_pairs
from mpsoftmax.evaluate.verification import verify
from mpsoftmax.track.protocol import Callback, Ending, Evaluation, RunStart

FOLDER = "report"
SESSIONS, CLASSES = "sessions.jsonl", "classes.json"
PAIRS_SHOWN = 12
MOST_PAIRS, REPLICATES = 100_000, 400  # of the bootstrap: about a second


class RunRecord(Callback):
    """Writes RUN/report/."""

    def on_start(self, run: RunStart) -> None:
        """A process of this run begins."""
        self._folder = run.folder / FOLDER
        self._folder.mkdir(exist_ok=True)
        self._newest: dict[str, Evaluation] = {}
        self._session(
            {
                "kind": "start",
                "step": run.start,
                "num_steps": run.num_steps,
                "world": run.world,
                "facts": dict(run.facts),
            }
        )

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """One set was judged."""
        if evaluation.pairs is not None:
            self._newest[evaluation.name] = evaluation
            write_evaluation(self._folder, evaluation, num_bootstrap=0)

    def on_end(self, ending: Ending) -> None:
        """The process ends; of a finished run the newest figures get their intervals."""
        self._session({"kind": "end", **asdict(ending)})
        if ending.outcome == "finished":
            for evaluation in self._newest.values():
                write_evaluation(self._folder, evaluation, num_bootstrap=REPLICATES)

    def _session(self, line: dict[str, Any]) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with (self._folder / SESSIONS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "time": now}) + "\n")


def write_evaluation(folder: Path, evaluation: Evaluation, *, num_bootstrap: int) -> None:
    """evaluation-SET.json of one evaluation with its pairs.

    Args:
        folder: RUN/report.
        evaluation: With ``pairs``.
        num_bootstrap: Replicates behind the intervals; 0 for none, as for sets of more than MOST_PAIRS pairs.
    """
    judged = evaluation.pairs
    assert judged is not None
    if len(judged.same) > MOST_PAIRS:
        num_bootstrap = 0
    result = verify(judged.similarity, judged.same, num_bootstrap=num_bootstrap)
    tree = {
        "set": evaluation.name,
        "step": evaluation.step,
        "figures": dict(evaluation.figures),
        "verification": result.as_dict(),
        "curves": plain_curves(evaluation.curves),
        "hardest": described(judged),
    }
    write_json(folder / evaluation_file(evaluation.name), tree)


def evaluation_file(name: str) -> str:
    """A file name for a set whose name may hold anything."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:80]
    if plain != name:
        plain += "-" + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"evaluation-{plain}.json"


def plain_curves(curves: Curves) -> dict[str, list[float]]:
    """Arrays as lists, with six decimals."""
    return {key: value.round(6).tolist() for key, value in asdict(curves).items()}


def described(judged: JudgedPairs) -> dict[str, list[dict[str, Any]]]:
    """The hardest genuine and impostor pairs: names, cosine, pictures."""
    found = hardest_pairs(judged.similarity, judged.same, judged.pairs, PAIRS_SHOWN)
    out = {}
    for kind, positions in zip(("genuine", "impostor"), found, strict=True):
        out[kind] = [
            {
                "cosine": round(float(judged.similarity[position]), 4),
                "names": [judged.name(int(image)) for image in judged.pairs[position]],
                "pictures": [judged.picture(int(image)) for image in judged.pairs[position]],
            }
            for position in positions
        ]
    return out


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """A JSON file that appears complete or not at all; an old one is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as part:
        part.write_text(json.dumps(tree, allow_nan=False) + "\n", encoding="utf-8")
