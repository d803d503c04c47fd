"""Claim 1: D-Softmax-K and -B lose little at 1/64 of the negatives, and less than sampled softmax.

On about 16,000 characters, so that 1/64 of the classes (about 250 rows) is more than a batch's labels. To
compare at equal rows: Partial FC counts the batch's labels among its rate * C rows, "included" adds them, so
"k_included rows=R" draws R less the labels of a batch. Equal time is read off the column head_ms_per_step.
"""

from collections.abc import Mapping
from typing import Any

from plan import CONFIRM_SEEDS, Run, Variant, runs_of, screen_of, variant

DATASET = "glyphs"
NUM_CLASSES = 16052
LABELS_OF_A_BATCH = 127
RATES = {"1/4": 1 / 4, "1/16": 1 / 16, "1/64": 1 / 64}
COSFACE = ["CosFace", {"scale": 32, "margin": 0.2}]
ARCFACE = ["ArcFace", {"scale": 32, "margin": 0.3}]
DSOFTMAX = ["DSoftmax", {"scale": 32, "end_point": 0.9}]
FINALISTS = (
    "cosface",
    "dsoftmax",
    "partial_fc 1/64",
    "k_drawn 1/64",
    "k_included 1/64",
    "b 1/64",
)


def variants() -> list[Variant]:
    """All methods, the most telling rate first."""
    found = [
        variant("cosface", COSFACE),
        variant("dsoftmax", DSOFTMAX),
        variant("arcface", ARCFACE),
    ]
    for name, rate in reversed(RATES.items()):
        found += at_rate(name, rate)
    found.append(
        variant("k_arcface 1/64", ARCFACE, candidates=["DSoftmaxK", {"rate": RATES["1/64"]}])
    )
    return found


def at_rate(name: str, rate: float) -> list[Variant]:
    """The sampled methods at one rate."""
    rows = int(rate * NUM_CLASSES)
    drawn = round((rows - LABELS_OF_A_BATCH + 0.5) / NUM_CLASSES, 6)
    uniform = ["Uniform", {"rate": rate}]
    found = [
        variant(f"partial_fc {name}", COSFACE, candidates=uniform),
        variant(f"k_drawn {name}", DSOFTMAX, candidates=["DSoftmaxK", {"rate": rate}]),
        variant(
            f"k_included {name}",
            DSOFTMAX,
            candidates=["DSoftmaxK", {"rate": drawn, "batch_labels": "included"}],
        ),
        variant(f"b {name}", DSOFTMAX, candidates=["DSoftmaxB", {"rate": rate}]),
    ]
    if name == "1/64":
        found.append(variant(f"partial_fc_dsoftmax {name}", DSOFTMAX, candidates=uniform))
    return found


def dsoftmax(stage: str, rows: list[Mapping[str, Any]]) -> list[Run]:
    """Claim 1: D-Softmax-K and -B at 1/64 of the negatives lose little, less than sampled softmax.

    There is nothing to choose: confirming adds seeds to the same runs.
    """
    if stage == "screen":
        return screen_of("dsoftmax", DATASET, variants())
    chosen = [one for one in variants() if one.method in FINALISTS]
    return runs_of("dsoftmax", stage, DATASET, chosen, CONFIRM_SEEDS)
