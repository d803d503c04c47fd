"""One run in one process on one thread: JSON on standard input, a JSON row on standard output."""

import json
import math
import sys
import time
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from data import Benchmark, open_benchmark
from linking import merge_figures
from measures import all_open_sets, angles, closed_set, held_out_recall
from net import embedded
from rejections import rejection_figures
from torch import Tensor
from torch.nn import functional
from training import Trained, train

NUM_ABRIDGED = 400
NUM_JUDGED = 2000  # training images whose refusals are compared with the truth


def measure(description: dict[str, Any]) -> dict[str, Any]:
    """Train and judge one run; what the row needs beyond its key."""
    start = time.monotonic()
    torch.set_num_threads(1)
    benchmark = open_benchmark(description["dataset"])
    settings = description["settings"]
    if "max_steps" in settings:
        benchmark = abridged(benchmark)
    run = train(benchmark, settings, description["seed"])
    trained_s = time.monotonic() - start
    with torch.no_grad():
        metrics = figures(run, benchmark, settings)
    return {
        "metrics": {name: rounded(value) for name, value in metrics.items()},
        "head_ms_per_step": round(1000 * run.head_cpu_s / run.num_steps, 3),
        "head_s": round(run.head_cpu_s, 2),
        "train_s": round(trained_s, 1),
        "total_s": round(time.monotonic() - start, 1),
    }


def abridged(benchmark: Benchmark) -> Benchmark:
    """With fewer images to judge by: for a check that everything runs."""
    few = torch.arange(NUM_ABRIDGED)
    sets = {name: getattr(benchmark, name) for name in ("test", "select", "closed")}
    return replace(benchmark, **{name: one and one.at(few) for name, one in sets.items()})


def figures(run: Trained, benchmark: Benchmark, settings: dict[str, Any]) -> dict[str, Any]:
    """All figures that apply to this run."""
    metrics: dict[str, Any] = {
        "num_steps": run.num_steps,
        "num_classes": run.head.num_classes,
        "candidate_rows": fmean(run.candidate_rows),
        "negatives_per_sample": fmean(run.negatives),
        "last_loss": run.last_loss,
        **all_open_sets(run.net, {"": benchmark.test, "select_": benchmark.select}),
    }
    if benchmark.closed is not None:
        metrics |= of_trained_classes(run, benchmark)
    if benchmark.identities is not None and settings["labels"] == "own":
        metrics |= of_baskets(run, benchmark, settings["head"])
    for name, value in getattr(run.head, "last_stats", {}).items():
        if not isinstance(value, Tensor) or value.numel() == 1:
            metrics[f"stat_{name}"] = float(value)
    return metrics


def of_trained_classes(run: Trained, benchmark: Benchmark) -> dict[str, Any]:
    """Closed-set figures, and the angle between weights and centres where the head can say."""
    held_out = benchmark.closed
    assert held_out is not None
    sizes = torch.bincount(run.labels, minlength=run.head.num_classes)
    features = embedded(run.net, held_out.pixels)
    metrics: dict[str, Any] = closed_set(run.head, features, held_out.labels, sizes)
    if len(torch.unique(held_out.groups)) > 1:
        metrics |= held_out_recall(features, held_out, sizes)
    metrics |= angles(run.head, run.class_means(benchmark.train.pixels), sizes)
    return metrics


def of_baskets(run: Trained, benchmark: Benchmark, head: dict[str, Any]) -> dict[str, Any]:
    """How right refusals and merges are."""
    identities, metrics = benchmark.identities, {}
    assert identities is not None
    rule = head.get("negatives") or head.get("baskets")
    if rule is not None and run.linking is None:
        chosen = torch.linspace(0, len(run.labels) - 1, NUM_JUDGED).long()
        features = embedded(run.net, benchmark.train.pixels[chosen])
        ids = torch.arange(run.head.num_classes)
        rows = functional.normalize(run.head.class_rows(ids).float(), dim=1)
        cosine = functional.normalize(features, dim=1) @ rows.T
        sizes = torch.tensor(benchmark.basket_sizes)
        baskets = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        metrics |= rejection_figures(rule, cosine, run.labels[chosen], baskets, identities)
    if run.linking is not None:
        metrics |= {"link_events": run.linking.num_events}
        metrics |= merge_figures(run.head.merged, identities)
    return metrics


def rounded(value: Any) -> Any:
    """Floats to five significant digits; not-a-number becomes null."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None


if __name__ == "__main__":
    # The last line is the row: anything a library prints comes before it.
    print(json.dumps(measure(json.load(sys.stdin))), flush=True)
