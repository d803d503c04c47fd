"""Claim 2: mined negatives beat "all distinct" and "own basket only" where identities recur in baskets.

Against the oracle (merged labels), the true duplicates masked, the noise filter, and identity linking.
"""

from collections.abc import Mapping
from typing import Any

from plan import (
    CONFIRM_SEEDS,
    Part,
    Run,
    Variant,
    best_of_families,
    runs_of,
    screen_of,
    variant,
)

COSFACE = ["CosFace", {"scale": 20, "margin": 0.2}]
WARMUP = 150  # steps of own-basket negatives only
LINKING = {"every": 50, "start": 200, "threshold": 0.5, "stable": 2}
HARD_ALL = "omniglot/baskets=8,overlap=75"
HARD, SCREENS = (
    "omniglot/hold=164,baskets=8,overlap=75",
    (
        "omniglot/hold=164,baskets=3,overlap=50",
        "omniglot/hold=164,baskets=3,overlap=0",
    ),
)
CONFIRMED = {
    (3, 50): CONFIRM_SEEDS,
    (8, 75): CONFIRM_SEEDS,
    (2, 25): CONFIRM_SEEDS[:2],
    (5, 75): CONFIRM_SEEDS[:2],
    (2, 75): CONFIRM_SEEDS[:2],
    (5, 25): CONFIRM_SEEDS[:2],
}
"""Baskets and overlap in percent: the seeds that the finalists get."""
NUM_FINAL_RULES = 2


def mined(method: str, rule: Part, warmup: int = WARMUP) -> Variant:
    """A rule with its warm-up."""
    return variant(method, COSFACE, baskets=rule, warmup=warmup)


ALL_DISTINCT = variant("all_distinct", COSFACE)
OWN = variant("own", COSFACE, baskets=["OwnBasket", {}])
KNOWN = variant("known_masked", COSFACE, baskets=["Overlap", {"pairs": "known"}])
ORACLE = variant("oracle", COSFACE, changes={"labels": "merged"})
LINKED = [
    variant(
        f"linking doubt={doubt}",
        COSFACE,
        baskets=["TopOne", {"tau": 0.3}],
        warmup=WARMUP,
        changes={"linking": {**LINKING, "doubt": doubt}},
    )
    for doubt in (0.1, 0.05)
]
LONG = {"epochs": 10}
LONG_LINKING = {"every": 75, "start": 150, "threshold": 0.5, "stable": 2, "doubt": 0.1}
TWICE = {"every": 50, "start": 100, "threshold": 0.5, "stable": 2, "doubt": 0.1}
LONGER = [
    variant("oracle_long", COSFACE, changes={"labels": "merged", **LONG}),
    variant("top_one_long", COSFACE, changes=LONG, baskets=["TopOne", {"tau": 0.3}], warmup=WARMUP),
    variant(
        "linking_long",
        COSFACE,
        changes={"linking": LONG_LINKING, **LONG},
        baskets=["TopOne", {"tau": 0.3}],
        warmup=WARMUP,
    ),
    variant(
        "linking_twice",
        COSFACE,
        changes={"linking": TWICE, "restarts": 1},
        baskets=["TopOne", {"tau": 0.3}],
        warmup=100,
    ),
]
"""Twice the training: in one go, or a second time from the beginning with what the first one merged."""
FILTERS = [
    variant(
        f"noise_filter threshold={threshold}",
        COSFACE,
        negatives=["NoiseFilter", {"threshold": threshold}],
    )
    for threshold in (0.4, 0.6)
]
RULES = [
    mined("top_one tau=0.3", ["TopOne", {"tau": 0.3}]),
    mined("target_relative delta=0.2", ["TargetRelative", {"delta": 0.2}]),
    mined("threshold tau=0.4", ["Threshold", {"tau": 0.4}]),
    mined("top_k k=1", ["TopK", {"k": 1}]),
    mined("hardest num=100", ["Hardest", {"num": 100, "after": ["TopOne", {"tau": 0.3}]}]),
    mined("top_one tau=0.4", ["TopOne", {"tau": 0.4}]),
    mined("top_one tau=0.2", ["TopOne", {"tau": 0.2}]),
    mined("target_relative delta=0.1", ["TargetRelative", {"delta": 0.1}]),
    mined("target_relative delta=0.3", ["TargetRelative", {"delta": 0.3}]),
    mined("threshold tau=0.6", ["Threshold", {"tau": 0.6}]),
    mined("top_one tau=0.3,warmup=0", ["TopOne", {"tau": 0.3}], warmup=0),
]
DEFAULT = RULES[0]
YARDSTICKS = [ALL_DISTINCT, OWN, ORACLE]
MAIN = [*YARDSTICKS, *RULES[:2], LINKED[0], KNOWN, RULES[2], FILTERS[0]]
ALL = [*MAIN, LINKED[1], *RULES[3:7], RULES[10]]
HARMLESS = [ALL_DISTINCT, OWN, *RULES[:2], FILTERS[0]]
"""Without overlap a rule can only do harm: how much?"""


def baskets(stage: str, rows: list[Mapping[str, Any]]) -> list[Run]:
    """Claim 2: mined negatives beat "all distinct" and "own basket only" where identities recur."""
    if stage == "screen":
        runs = screen_of("baskets", HARD, [*ALL, *LONGER])
        runs += screen_of("baskets", SCREENS[0], MAIN)
        return runs + screen_of("baskets", SCREENS[1], HARMLESS)
    chosen = finalists(rows)
    runs = [
        run
        for (num, overlap), seeds in CONFIRMED.items()
        for run in runs_of(
            "baskets", stage, f"omniglot/baskets={num},overlap={overlap}", chosen, seeds
        )
    ]
    return runs + runs_of("baskets", stage, HARD_ALL, LONGER, CONFIRM_SEEDS[:3])


def finalists(rows: list[Mapping[str, Any]]) -> list[Variant]:
    """The yardsticks, the default, the best rules of the screen (mean over both overlaps), and linking."""
    best = best_of_families(rows, "baskets", HARD, [*RULES, *LINKED])
    order = ["top_one", "target_relative", "threshold", "top_k", "hardest"]
    families = [name for name in order if name in best]
    scores = {name: mean_figure(rows, best[name].method) for name in families}
    rules = sorted(families, key=lambda name: -scores[name])[:NUM_FINAL_RULES]
    linked = [best["linking"]] if "linking" in best else []
    default = [] if DEFAULT in (best[name] for name in rules) else [DEFAULT]
    return [ALL_DISTINCT, OWN, ORACLE, *default, *(best[name] for name in rules), *linked]


def mean_figure(rows: list[Mapping[str, Any]], method: str) -> float:
    """Mean figure for choosing of a method over the screens with overlap."""
    found = [
        row["metrics"]["select_recall_at_1"]
        for row in rows
        if row["claim"] == "baskets"
        and row["method"] == method
        and row["dataset"] in (HARD, SCREENS[0])
    ]
    return sum(found) / len(found)
