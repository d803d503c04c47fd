"""What a verification says: numbers, as JSON-ready values, as text."""

from dataclasses import asdict, dataclass

Interval = tuple[float, float]


@dataclass(frozen=True)
class TarAtFar:
    """True accept rate at a false accept rate.

    Attributes:
        far: the false accept rate allowed.
        tar: share of genuine pairs accepted there.
        interval: 95 % bootstrap interval of ``tar``; None without bootstrap.
        num_impostors: impostor pairs the rate is counted on.
        supported: whether ``far`` allows at least 10 false accepts of so many impostors; below
            that the figure says little.
    """

    far: float
    tar: float
    interval: Interval | None
    num_impostors: int
    supported: bool


@dataclass(frozen=True)
class VerificationResult:
    """What ``verify`` returns; rates as fractions, intervals of 95 %, None without bootstrap.

    Attributes:
        accuracy: mean over the folds.
        accuracy_std: standard deviation over the folds (divided by their number).
        accuracy_interval: of the mean.
        fold_accuracies: one a fold, in order.
        auc: area under the ROC curve, ties counted half.
        auc_interval: of ``auc``.
        eer: equal error rate.
        threshold: similarity from which a pair is best accepted, chosen on all pairs.
        tar_at_far: one for each rate asked for.
        num_genuine: pairs of the same class.
        num_impostors: pairs of different classes.
        protocol: "exact" or "insightface".
        num_bootstrap: replicates behind the intervals.
        seed: of the bootstrap.
    """

    accuracy: float
    accuracy_std: float
    accuracy_interval: Interval | None
    fold_accuracies: tuple[float, ...]
    auc: float
    auc_interval: Interval | None
    eer: float
    threshold: float
    tar_at_far: tuple[TarAtFar, ...]
    num_genuine: int
    num_impostors: int
    protocol: str
    num_bootstrap: int
    seed: int

    def as_dict(self) -> dict[str, object]:
        """The same as plain numbers, strings, lists and dicts, ready for JSON."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    def render(self) -> str:
        """The same as a plain-text table."""
        rows = [
            (
                f"accuracy ({len(self.fold_accuracies)} folds)",
                f"{self.accuracy:.4f} +- {self.accuracy_std:.4f}",
                _interval_text(self.accuracy_interval),
            ),
            ("AUC", f"{self.auc:.4f}", _interval_text(self.auc_interval)),
            ("EER", f"{self.eer:.4f}", ""),
            ("threshold", f"{self.threshold:.4f}", ""),
        ]
        for at in self.tar_at_far:
            note = "" if at.supported else f"too few impostors ({at.num_impostors})"
            span = _interval_text(at.interval)
            rows.append((f"TAR at FAR {at.far:g}", f"{at.tar:.4f}", f"{span}  {note}".strip()))
        title = f"{self.num_genuine} genuine and {self.num_impostors} impostor pairs"
        if self.protocol != "exact":
            title += f", protocol {self.protocol}"
        lines = [f"{name:<22}{value:<19}{rest}".rstrip() for name, value, rest in rows]
        return "\n".join([title, *lines])


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _interval_text(interval: Interval | None) -> str:
    return "" if interval is None else f"95 %: {interval[0]:.4f} .. {interval[1]:.4f}"
