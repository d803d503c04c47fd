"""TensorBoard: RUN/tensorboard, written by tensorboardX (the extra `tensorboard`)."""

import json
import time

import numpy as np

from mpsoftmax.config import to_tree
from mpsoftmax.evaluate.curves import Curves
from mpsoftmax.track.protocol import Callback, Ending, Evaluation, Line, RunStart, numbers_of
from mpsoftmax.track.redaction import redacted


class TensorBoard(Callback):
    """Scalars, the configuration as text, ROC curves as images, similarities as histograms."""

    def on_start(self, run: RunStart) -> None:
        """Open; what an earlier process wrote after the step it goes on from is hidden by TensorBoard.

        Raises:
            ValueError: tensorboardX is not installed.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "track.tensorboard: true, but the package tensorboardX is not installed; allowed: pip "
                "install tensorboardX (the extra mpsoftmax[tensorboard]), or false"
            ) from error
        purge = run.start + 1 if run.start else None
        # Its file names count seconds: two starts within one would write over each other.
        self._writer = SummaryWriter(
            str(run.folder / "tensorboard"), purge_step=purge, filename_suffix=f".{time.time_ns()}"
        )
        text = json.dumps(redacted(to_tree(run.config)), indent=2)
        self._writer.add_text("config", f"```\n{text}\n```", run.start)

    def on_line(self, line: Line) -> None:
        """The numbers of a line."""
        for name, value in numbers_of(line).items():
            self._writer.add_scalar(name, value, line["step"])

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """ROC as an image, similarities as histograms."""
        curves, name = evaluation.curves, evaluation.name
        self._writer.add_image(f"eval/{name}/roc", draw_roc(curves), evaluation.step)
        for kind, counts in (("genuine", curves.genuine), ("impostor", curves.impostor)):
            add_histogram(self._writer, f"eval/{name}/{kind}", counts, curves, evaluation.step)

    def on_alert(self, title: str, text: str) -> None:
        """As text."""
        self._writer.add_text("alerts", f"{title}: {text}")

    def on_end(self, ending: Ending) -> None:
        """Write what is left."""
        self._writer.close()


def add_histogram(writer, name: str, counts: np.ndarray, curves: Curves, step: int) -> None:  # noqa: ANN001
    """Counts that are binned already."""
    centres = (curves.edges[:-1] + curves.edges[1:]) / 2
    writer.add_histogram_raw(
        name,
        min=float(curves.edges[0]),
        max=float(curves.edges[-1]),
        num=int(counts.sum()),
        sum=float((centres * counts).sum()),
        sum_squares=float((centres**2 * counts).sum()),
        bucket_limits=curves.edges[1:].tolist(),
        bucket_counts=counts.tolist(),
        global_step=step,
    )


def draw_roc(curves: Curves) -> np.ndarray:
    """uint8 [3, H, W]: TAR over log FAR."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = FigureCanvasAgg(Figure(figsize=(4, 3), layout="tight"))
    axes = canvas.figure.add_subplot(xlabel="FAR", ylabel="TAR", xscale="log", ylim=(0, 1))
    seen = curves.far > 0
    axes.plot(curves.far[seen], curves.tar[seen])
    axes.grid(visible=True)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].transpose(2, 0, 1).copy()
