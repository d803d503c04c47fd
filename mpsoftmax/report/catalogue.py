"""What figures are called, what they mean, which way is better; unknown ones show under their own names."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mpsoftmax.report.run import Run

Points = list[tuple[int, float | None]]


@dataclass(frozen=True)
class Figure:
    """How one number of metrics.jsonl is shown."""

    title: str
    note: str = ""
    group: str = "Margins and negatives"
    better: int = 0
    """1: more is better, -1: less, 0: neither."""


LEARNING, MARGINS = "Learning", "Margins and negatives"
SPEED, BASKETS, CENTRES = "Speed and memory", "Several datasets", "Class centres"
GROUPS = (LEARNING, MARGINS, CENTRES, BASKETS, SPEED)

KNOWN: dict[str, Figure] = {
    "loss": Figure("Loss", "mean over the logged step's batch", LEARNING, better=-1),
    "lr": Figure("Learning rate", "of the backbone", LEARNING),
    "target_cosine": Figure("Target cosine", "to the own class, before the margin", MARGINS),
    "q": Figure("Mean q", "weight of the negatives: 1 untrained, 0 solved", MARGINS),
    "negatives_logsumexp": Figure("Negatives' log-sum-exp", "of all other classes", MARGINS),
    "feature_norm": Figure("Feature norm", "mean, before normalising", MARGINS),
    "hard_share": Figure("Hard share", "samples with a hard negative", MARGINS),
    "hard_negatives": Figure("Hard negatives", "mean number a sample", MARGINS),
    "filtered_share": Figure("Filtered share", "samples with a negative left out", MARGINS),
    "filtered_negatives": Figure("Filtered negatives", "mean number a sample", MARGINS),
    "centre_angle_rad": Figure("Row to batch mean", "mean angle, radians", CENTRES),
    "drift_mean_rad": Figure("Centre drift, mean", "radians, at each exact pass", CENTRES),
    "drift_max_rad": Figure("Centre drift, largest", "radians, at each exact pass", CENTRES),
    "candidates": Figure("Candidate classes", "rows that took part, this rank", MARGINS),
    "rejected_share": Figure("Mined share", "of other datasets' classes left out", BASKETS),
    "rejected_negatives": Figure("Mined classes", "left out, mean a sample", BASKETS),
    "merged": Figure("Classes merged", "into others so far", BASKETS),
    "link": Figure("Links made", "at each check", BASKETS),
    "split": Figure("Links split", "at each check", BASKETS),
    "conflict": Figure("Conflicts", "at each check", BASKETS),
    "gradient_norm": Figure("Gradient norm", "backbone, before clipping", LEARNING),
    "class_gradient_norm": Figure("Class gradient norm", "before clipping", LEARNING),
    "skipped_steps": Figure("Skipped steps", "so far", LEARNING, better=-1),
    "loss_scale": Figure("Loss scale", "fp16", LEARNING),
    "timing.images_per_s": Figure("Throughput", "images/s, all ranks", SPEED, better=1),
    "timing.step_s": Figure("Step time", "seconds", SPEED, better=-1),
    "timing.data_wait_s": Figure("Data wait", "seconds a step, rank 0", SPEED, better=-1),
    "timing.slowest_data_wait_s": Figure("Data wait, slowest rank", "seconds a step", SPEED),
    "timing.resident_bytes": Figure("Memory", "resident, fullest rank", SPEED, -1),
    "timing.device_peak_bytes": Figure("Device memory", "peak, fullest rank", SPEED, -1),
    "accuracy": Figure("Accuracy", "ten-fold", "Evaluation", better=1),
    "auc": Figure("AUC", "area under the ROC curve", "Evaluation", better=1),
    "eer": Figure("EER", "equal error rate", "Evaluation", better=-1),
    "recall_at_1": Figure("Recall@1", "nearest gallery item is right", "Evaluation", better=1),
    "top1": Figure("Top-1", "nearest class row is right", "Evaluation", better=1),
}
NOT_DRAWN = {"kind", "step", "samples", "timing", "set", "lr_factor", "classes", "accuracy_std"}
KINDS = ("train", "centres", "linking")


def figure_of(key: str) -> Figure:
    """How a number is shown."""
    if key in KNOWN:
        return KNOWN[key]
    if key.startswith("tar_at_far_"):
        far = key.removeprefix("tar_at_far_")
        return Figure(f"TAR at FAR {far}", "true accept rate", "Evaluation", better=1)
    if key.startswith("rejected_share_"):
        number = key.removeprefix("rejected_share_")
        return Figure(f"Mined share, dataset {number}", "its samples only", BASKETS)
    group = SPEED if key.startswith("timing.") else MARGINS
    return Figure(key.removeprefix("timing.").replace("_", " "), "", group)


def points_of(run: Run) -> dict[str, Points]:
    """Every number that training logged, as (step, value) over the steps; None where it was not finite."""
    found: dict[str, Points] = {}
    for kind in KINDS:
        for line in run.of_kind(kind):
            for key, value in numbers_of(line):
                found.setdefault(key, []).append((line["step"], value))
    rate = run.setting("train.optimizer.lr")
    if isinstance(rate, int | float):
        found["lr"] = [
            (line["step"], rate * line["lr_factor"])
            for line in run.of_kind("train")
            if isinstance(line.get("lr_factor"), int | float)
        ]
    return {key: points for key, points in found.items() if points}


def numbers_of(line: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Names and values of a line; those of timing as timing.NAME, without phases and time left."""
    timing = line.get("timing")
    inner = timing if isinstance(timing, dict) else {}
    for key, value in [*line.items(), *((f"timing.{k}", v) for k, v in inner.items())]:
        if key in NOT_DRAWN or key in ("timing.eta_s", "timing.slowest_data_rank"):
            continue
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield key, value


def evaluation_points(run: Run) -> dict[str, dict[str, Points]]:
    """Figures of evaluations: by set, by name, over the steps."""
    found: dict[str, dict[str, Points]] = {}
    for line in run.of_kind("eval"):
        of_set = found.setdefault(str(line.get("set", "")), {})
        for key, value in numbers_of(line):
            of_set.setdefault(key, []).append((line["step"], value))
    return found
