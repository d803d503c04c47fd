"""Which evaluation is the best so far; known again after a restart from the lines of metrics.jsonl."""

from collections.abc import Iterable

from mpsoftmax.track.protocol import Line

SMALLER_IS_BETTER = ("eer",)


class Best:
    """The best value of one figure of one evaluation set.

    Args:
        wanted: SET/FIGURE; None: accuracy of the first set that is evaluated.
        lines: Lines that are already in metrics.jsonl.
    """

    def __init__(self, wanted: str | None, lines: Iterable[Line] = ()) -> None:
        self._wanted = wanted
        self._step: int | None = None
        self._value: float | None = None
        self.figures: dict[str, float] = {}
        """Of the newest evaluation, as SET/FIGURE."""
        self.newest: int | None = None
        """Step of the newest evaluation."""
        for line in lines:
            self.see(line)

    def see(self, line: Line) -> None:
        """Take one line of metrics.jsonl into account."""
        if line["kind"] != "eval":
            return
        if line["step"] != self.newest:
            self.newest, self.figures = line["step"], {}
        for figure, value in line.items():
            if isinstance(value, int | float) and figure != "step":
                self.figures[f"{line['set']}/{figure}"] = value
        if self._wanted is None:
            self._wanted = f"{line['set']}/accuracy"
        name, _, figure = self._wanted.rpartition("/")
        if name == line["set"] and isinstance(line.get(figure), int | float):
            self._compare(line["step"], line[figure], figure)

    def _compare(self, step: int, value: float, figure: str) -> None:
        sign = -1 if figure in SMALLER_IS_BETTER else 1
        if self._value is None or sign * value > sign * self._value:
            self._step, self._value = step, value

    def at(self, step: int) -> tuple[bool, dict[str, float]]:
        """Whether the evaluation at `step` is the best so far, and its figures; (False, {}) without one."""
        if self.newest != step:
            return False, {}
        return self._step == step, dict(self.figures)
