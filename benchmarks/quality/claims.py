"""The five claims of docs/evidence: which runs show them.

Screen: every variant with one seed, the first of each family with two. Omniglot and LFW train without the
classes kept for choosing settings, and a row has the figures of both (`select_...` chooses, the others are
reported). Confirm: five seeds, all training classes, the finalists that the screen chose. Runs are ordered
by seed, then by claim, so that a queue cut short has an answer for every claim.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from claim_baskets import baskets
from claim_dsoftmax import dsoftmax
from claim_losses import ir, losses, npcface
from plan import STAGES, Run

Rows = Iterable[Mapping[str, Any]]

CLAIMS: dict[str, Callable[[str, list[Mapping[str, Any]]], list[Run]]] = {
    "dsoftmax": dsoftmax,
    "baskets": baskets,
    "ir": ir,
    "npcface": npcface,
    "losses": losses,
}

__all__ = ["CLAIMS", "STAGES", "Run", "planned"]


def planned(names: Iterable[str], stage: str, rows: Rows) -> list[Run]:
    """The runs of a stage, in the order in which they matter; rows are those of the CSV."""
    known = list(rows)
    runs = [run for name in names for run in CLAIMS[name](stage, known)]
    return sorted(runs, key=lambda run: run.seed)
