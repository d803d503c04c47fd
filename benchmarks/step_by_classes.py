"""CPU time of a step against the number of classes, with the limit: all classes, Partial FC, D-Softmax-K.

    OMP_NUM_THREADS=1 python benchmarks/step_by_classes.py
    OMP_NUM_THREADS=1 python benchmarks/step_by_classes.py --classes 10000 100000 --repeat 5

The limit of each is the three matrix products over the rows it sweeps (mpsoftmax.bench.yardsticks), measured
in turn with it. Appends to benchmarks/results/step_by_classes.csv and draws docs/step_by_classes.png.
"""

import argparse
import gc
from pathlib import Path
from typing import Any

import torch

from mpsoftmax.bench import record
from mpsoftmax.bench.case import Case, HeadStep
from mpsoftmax.bench.plots import save
from mpsoftmax.bench.timing import interleaved
from mpsoftmax.bench.yardsticks import BareProducts
from mpsoftmax.kernels.select import chosen

ROOT = Path(__file__).resolve().parents[1]
CLASSES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
METHODS = {
    "all classes": {"candidates": "all"},
    "Partial FC 0.1": {"candidates": "uniform", "rate": 0.1},
    "D-Softmax-K 1/64": {"candidates": "dsoftmax_k", "rate": 1 / 64},
}


def main() -> None:
    """Measure, print, append, draw."""
    options = arguments()
    torch.set_num_threads(1)
    machine, rows = record.machine(), []
    for classes in options.classes:
        for name, fields in METHODS.items():
            sizes = {"classes": classes, "dim": options.dim, "batch": options.batch}
            case = Case(**sizes, **fields, kernel=chosen("auto", torch.device("cpu")))
            row = {"method": name, **vars(case), **measure(case, options.repeat)}
            rows.append(row)
            print(
                f"{classes:>9,} {name:17s} {row['step_s']:9.4f} CPU s ({row['step_s_min']:.4f}, "
                f"{row['step_s_max']:.4f}), products {row['limit_s']:.4f}",
                flush=True,
            )
            gc.collect()
    folder = ROOT / "benchmarks" / "results"
    record.append(folder / "step_by_classes.csv", [{**row, **machine} for row in rows])
    draw(ROOT / "docs" / "step_by_classes.png", rows, options)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=list(CLASSES))
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    return parser.parse_args()


def measure(case: Case, repeat: int) -> dict[str, Any]:
    """Medians of a step and of its bare products, least and largest step, candidate rows."""
    step = HeadStep(case)
    step.run()  # says how many candidates there are
    rows = int(step.head.last_stats["candidates"])
    bare = BareProducts(rows, case.dim, case.batch, torch.float32)
    timed = interleaved({"step": step.run, "blocked": bare.blocked, "whole": bare.whole}, repeat)
    return {
        "rows": rows,
        "step_s": timed["step"].cpu,
        "step_s_min": min(timed["step"].cpu_s),
        "step_s_max": max(timed["step"].cpu_s),
        "limit_s": min(timed["blocked"].cpu, timed["whole"].cpu),
        "repeat": repeat,
    }


def draw(path: Path, rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Both axes logarithmic; a line a method, its limit dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6))
    axes = figure.subplots()
    for number, name in enumerate(METHODS):
        mine = [row for row in rows if row["method"] == name]
        classes, colour = [row["classes"] for row in mine], f"C{number}"
        axes.plot(classes, [row["step_s"] for row in mine], "o-", color=colour, label=name)
        limit = [row["limit_s"] for row in mine]
        axes.plot(classes, limit, "--", color=colour, label="its three matrix products")
    axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="CPU seconds a step, one core")
    axes.set_title(
        f"D = {options.dim}, B = {options.batch}, float32, SGD with momentum", fontsize=10
    )
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    main()
