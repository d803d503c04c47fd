"""What a run is, the common settings, and how finalists are chosen from the rows of the screen."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

STAGES = ("screen", "confirm")
SCREEN_SEEDS, CONFIRM_SEEDS = range(2), range(5)

Part = list[Any]  # ["CosFace", {"scale": 20, "margin": 0.2}], see heads.py

_COMMON = {
    "batch": 128,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "dim": 128,
    "warmup": 0.05,
    "labels": "own",
}
_DRAWN = {"rotate": 5, "scale": 0.05, "stretch": 0.05, "shift": 1, "flip": 0}
_POOLED = {"widths": [16, 24, 48, 96], "halving": "sppp"}
_STRIDED = {"widths": [16, 32, 64, 128], "halving": "ssss"}
TRAINING: dict[str, dict[str, Any]] = {
    "omniglot": {**_COMMON, **_POOLED, "epochs": 5, "augment": _DRAWN},
    "glyphs": {**_COMMON, **_STRIDED, "lr": 0.03, "head_lr": 0.1, "epochs": 3, "augment": _DRAWN},
    "lfw": {
        **_COMMON,
        **_POOLED,
        "lr": 0.03,  # the net's; at 0.1 and scale 32 it learns little, more so with more classes
        "head_lr": 0.1,
        "epochs": 15,
        "augment": {**_DRAWN, "flip": 1},
    },
}
"""Settings of net and training by data set; what a run changes is in its own settings."""

EXPECTED_S = {"omniglot": 55.0, "glyphs": 75.0, "lfw": 50.0}


@dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    claim: str
    stage: str
    dataset: str
    method: str
    """A family and perhaps one setting: "top_one tau=0.3"; variants of a family compete in the screen."""
    settings: Mapping[str, Any]
    seed: int

    def description(self) -> dict[str, Any]:
        """As the row's first columns."""
        return dict(vars(self))

    def title(self) -> str:
        """For one line of output."""
        return f"{self.claim} {self.dataset} | {self.method} | seed {self.seed}"

    def expected_s(self) -> float:
        """About how long it takes on one core."""
        return EXPECTED_S[self.dataset.split("/")[0]]

    def shortened(self, num_steps: int) -> "Run":
        """The same with few steps: to see that it runs."""
        settings = {**self.settings, "max_steps": num_steps}
        if "linking" in settings:
            settings["linking"] = {**settings["linking"], "start": 2, "every": 2}
        return replace(self, settings=settings)


@dataclass(frozen=True)
class Variant:
    """A method with its settings, before seeds and data set."""

    method: str
    head: Mapping[str, Any]
    changes: Mapping[str, Any]
    """Of the training settings."""

    @property
    def family(self) -> str:
        """What variants compete within: the method without its last setting."""
        return self.method.rsplit(" ", 1)[0]


def variant(method: str, objective: Part, /, *, changes: Any = None, **head: Any) -> Variant:
    """A variant: its objective and the other axes of its head."""
    return Variant(method, {"objective": objective, **head}, changes or {})


def lengthened(one: Variant, epochs: int, name: str | None = None) -> Variant:
    """The same over more epochs; a method of its own in the tables, by default named after the family."""
    changes = {**one.changes, "epochs": epochs}
    return Variant(f"{name or one.family} epochs={epochs}", one.head, changes)


def runs_of(
    claim: str, stage: str, dataset: str, variants: Iterable[Variant], seeds: Iterable[int]
) -> list[Run]:
    """Every variant with every seed."""
    common, chosen = TRAINING[dataset.split("/")[0]], list(variants)
    return [
        Run(claim, stage, dataset, one.method, {**common, **one.changes, "head": one.head}, seed)
        for seed in seeds
        for one in chosen
    ]


def screen_of(claim: str, dataset: str, variants: Iterable[Variant]) -> list[Run]:
    """The screen: every variant with the first seed, the first of each family with all seeds."""
    chosen = list(variants)
    mains = {one.family: one for one in reversed(chosen)}
    main = [one for one in chosen if mains[one.family] is one]
    first, *others = SCREEN_SEEDS
    return [
        *runs_of(claim, "screen", dataset, chosen, [first]),
        *runs_of(claim, "screen", dataset, main, others),
    ]


def best_of_families(
    rows: Iterable[Mapping[str, Any]],
    claim: str,
    dataset: str,
    variants: Iterable[Variant],
    metric: str = "select_recall_at_1",
) -> dict[str, Variant]:
    """For each family the variant with the best figure on the classes kept for choosing (first seed).

    A family without any row of this data set is left out: nothing is confirmed that was not screened.
    """
    figures: dict[str, float] = {}
    for row in rows:
        screened = (row["claim"], row["stage"], row["dataset"]) == (claim, "screen", dataset)
        if screened and row["seed"] == SCREEN_SEEDS[0]:
            figures[row["method"]] = row["metrics"][metric]
    best: dict[str, Variant] = {}
    for one in variants:
        if one.method not in figures:
            continue
        rival = best.get(one.family)
        if rival is None or figures[one.method] > figures[rival.method]:
            best[one.family] = one
    return best
