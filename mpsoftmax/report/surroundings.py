"""What a run was given: environment, processes, the configuration and where it differs."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mpsoftmax.config import Config, TrainConfig, to_tree
from mpsoftmax.markup import Child, Markup, tag
from mpsoftmax.report import history
from mpsoftmax.report.blocks import details, missing, run_label, section, table
from mpsoftmax.report.run import Run
from mpsoftmax.report.words import MISSING
from mpsoftmax.track.display import duration

WORDS = {
    "commit": "Commit of mpsoftmax",
    "python": "Python",
    "packages": "Packages",
    "system": "System",
    "processor": "Processor",
    "cores": "Cores",
    "threads": "Threads of torch",
    "device": "Device",
    "kernel": "Kernel of the head",
    "gpus": "GPUs",
    "cuda": "CUDA",
}


def surroundings(runs: Sequence[Run]) -> Markup:
    """Environment and configuration."""
    return section(
        "setup",
        "Setup",
        tag("h3", "Configuration"),
        compared(runs) if len(runs) > 1 else from_defaults(runs[0]),
        [details(f"Whole configuration, {run.name}", whole(run)) for run in runs],
        tag("h3", "Environment"),
        environments(runs),
        tag("h3", "Processes"),
        [process_table(k, run, len(runs) > 1) for k, run in enumerate(runs)],
    )


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by their path."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{path}{key}.")
        else:
            found[f"{path}{key}"] = value
    return found


def shown(value: Any) -> str:
    """A setting as YAML has it, in one line."""
    if value is MISSING:
        return MISSING
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def from_defaults(run: Run) -> Markup:
    """Settings that are not the default."""
    if not run.config:
        return missing("No configuration.", "config.yaml of the run folder is missing or damaged.")
    usual, own = defaults(), flat(run.config)
    rows: list[list[Child]] = [
        [tag("code", key), shown(own[key]), shown(usual.get(key, MISSING))]
        for key in own
        if key not in usual or own[key] != usual[key]
    ]
    return table(["Setting", "This run", "Default"], rows)


def defaults() -> dict[str, Any]:
    """Every setting's default by its path; steps and epochs have none."""
    found = flat(to_tree(Config(train=TrainConfig(steps=1))))
    return {**found, "train.steps": None}


def compared(runs: Sequence[Run]) -> Markup:
    """Settings in which the runs differ."""
    found = [flat(run.config) for run in runs]
    keys = list(dict.fromkeys(key for one in found for key in one))
    rows: list[list[Child]] = []
    for key in keys:
        values = [one.get(key, MISSING) for one in found]
        if any(value != values[0] for value in values[1:]):
            rows.append([tag("code", key), *map(shown, values)])
    if not rows:
        return tag("p", "No setting differs.")
    head = ["Setting", *(run_label(run.name, k) for k, run in enumerate(runs))]
    return table(head, rows, name="Settings that differ")


def whole(run: Run) -> Markup:
    """config.yaml without what looks like a secret."""
    text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    return tag("pre", text)


def environments(runs: Sequence[Run]) -> Markup:
    """A row a fact, a column a run."""
    found = [history.facts(run).get("environment") or {} for run in runs]
    keys = [key for key in WORDS if any(key in one for one in found)]
    if not keys:
        how = "RUN/report/sessions.jsonl is missing: it is written with track.report: true."
        return missing("Not recorded.", how)
    rows = [[WORDS[key], *(environment_text(one.get(key)) for one in found)] for key in keys]
    head = ["", *(run_label(run.name, k) for k, run in enumerate(runs))]
    return table(head if len(runs) > 1 else ["", ""], rows, class_="facts")


def environment_text(value: Any) -> str:
    """A fact in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return MISSING if value is None else str(value)


def process_table(number: int, run: Run, several: bool) -> Markup:
    """Starts and ends."""
    known = history.processes(run)
    if not known:
        return missing(f"{run.name}:", "starts and ends were not recorded (track.report: false).")
    rows: list[list[Child]] = [
        [
            one.began.replace("T", " ").removesuffix("+00:00") + " UTC",
            f"{one.first_step:,}",
            MISSING if one.last_step is None else f"{one.last_step:,}",
            str(one.world or MISSING),
            MISSING if one.seconds is None else duration(one.seconds),
            f"{one.outcome}: {one.error}" if one.error else one.outcome,
        ]
        for one in known
    ]
    head = ["Began", "From step", "To step", "Ranks", "Time", "End"]
    return tag(
        "div",
        run_label(run.name, number) if several else None,
        table(head, rows),
        class_=f"run-{number}",
    )
