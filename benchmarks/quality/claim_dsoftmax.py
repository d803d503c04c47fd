"""Claim 1: D-Softmax-K and -B lose little at 1/64 of the negatives, and less than sampled softmax.

On about 16,000 characters, so that 1/64 of the classes (250 rows) is more than a batch's labels. To compare
at equal rows: Partial FC counts the batch's labels among its rate * C rows, "included" adds them, so
"k_included" draws that many less the labels of a batch. Equal time is read off the column head_ms_per_step.

The net's step size is chosen for each method among two: what is best differs between softmax and D-Softmax,
and one step size for all would decide the comparison (at 0.1 softmax learns next to nothing here).
"""

from collections.abc import Mapping
from typing import Any

from plan import (
    CONFIRM_SEEDS,
    SCREEN_SEEDS,
    Part,
    Run,
    Variant,
    best_of_families,
    lengthened,
    runs_of,
    variant,
)

DATASET = "glyphs"
NUM_CLASSES = 16052
LABELS_OF_A_BATCH = 127
RATES = {"1/4": 1 / 4, "1/16": 1 / 16, "1/64": 1 / 64}
STEP_SIZES = (0.03, 0.01)
LONG_EPOCHS = 12  # three epochs leave class rows far from trained (cosine 0.25)
COSFACE = ["CosFace", {"scale": 32, "margin": 0.2}]
ARCFACE = ["ArcFace", {"scale": 32, "margin": 0.3}]
DSOFTMAX = ["DSoftmax", {"scale": 32, "end_point": 0.9}]
FINALISTS = (
    "cosface all",
    "dsoftmax all",
    "partial_fc 1/64",
    "k_included 1/64",
    "k_drawn 1/64",
    "b 1/64",
)
SAMPLED = ("partial_fc 1/64", "k_included 1/64", "k_drawn 1/64")


def variants() -> list[Variant]:
    """All methods at both step sizes, the most telling ones first."""
    return [
        *with_step_sizes("cosface all", COSFACE),
        *with_step_sizes("dsoftmax all", DSOFTMAX),
        *at_rate("1/64"),
        *with_step_sizes("partial_fc_dsoftmax 1/64", DSOFTMAX, uniform("1/64")),
        *at_rate("1/16"),
        *with_step_sizes("arcface all", ARCFACE),
        *at_rate("1/4"),
    ]


def with_step_sizes(method: str, objective: Part, candidates: Part | None = None) -> list[Variant]:
    """A method at every step size of the net."""
    head = {} if candidates is None else {"candidates": candidates}
    return [
        variant(f"{method} lr={lr}", objective, changes={"lr": lr}, **head) for lr in STEP_SIZES
    ]


def at_rate(name: str) -> list[Variant]:
    """The sampled methods at one rate."""
    rate = RATES[name]
    fewer = round((int(rate * NUM_CLASSES) - LABELS_OF_A_BATCH + 0.5) / NUM_CLASSES, 6)
    included = ["DSoftmaxK", {"rate": fewer, "batch_labels": "included"}]
    return [
        *with_step_sizes(f"partial_fc {name}", COSFACE, uniform(name)),
        *with_step_sizes(f"k_included {name}", DSOFTMAX, included),
        *with_step_sizes(f"k_drawn {name}", DSOFTMAX, ["DSoftmaxK", {"rate": rate}]),
        *with_step_sizes(f"b {name}", DSOFTMAX, ["DSoftmaxB", {"rate": rate}]),
    ]


def uniform(name: str) -> Part:
    """Partial FC's sampling at a rate."""
    return ["Uniform", {"rate": RATES[name]}]


def dsoftmax(stage: str, rows: list[Mapping[str, Any]]) -> list[Run]:
    """Claim 1: D-Softmax-K and -B at 1/64 of the negatives lose little, less than sampled softmax.

    The characters kept for choosing are never trained on: confirming adds seeds to the same runs.
    """
    if stage == "screen":
        return runs_of("dsoftmax", stage, DATASET, variants(), SCREEN_SEEDS[:1])
    best = best_of_families(rows, "dsoftmax", DATASET, variants())
    chosen = [best[family] for family in FINALISTS if family in best]
    longer = [lengthened(one, LONG_EPOCHS) for one in chosen]
    # Which step size is best cannot be told from one seed: the sampled ones get both.
    steadier = [one for one in variants() if one.family in SAMPLED and one not in chosen]
    longer += [lengthened(one, LONG_EPOCHS, one.method) for one in steadier]
    return runs_of("dsoftmax", stage, DATASET, [*chosen, *steadier, *longer], CONFIRM_SEEDS)
