"""Trackers that a test names in track.callbacks: one that writes down what it is told, and two that fail."""

import json

from mpsoftmax.track import Callback


class Recorder(Callback):
    """Appends every call to RUN/recorded.jsonl."""

    def on_start(self, run):
        self.path = run.folder / "recorded.jsonl"
        self.record("start", start=run.start, num_steps=run.num_steps, world=run.world)

    def on_line(self, line):
        self.record("line", step=line["step"], kind=line["kind"])

    def on_evaluation(self, evaluation):
        pairs = int(evaluation.curves.genuine.sum() + evaluation.curves.impostor.sum())
        self.record("evaluation", step=evaluation.step, set=evaluation.name, pairs=pairs)

    def on_checkpoint(self, saved):
        tensors = saved.read_backbone()
        self.record("checkpoint", step=saved.step, best=saved.best, tensors=len(tensors))

    def on_alert(self, title, text):
        self.record("alert", title=title, text=text)

    def on_end(self, ending):
        self.record("end", outcome=ending.outcome, step=ending.step, error=ending.error)

    def record(self, what, **values):
        with self.path.open("a") as file:
            file.write(json.dumps({"what": what, **values}) + "\n")


class FailsAtLine(Callback):
    def on_line(self, line):
        raise RuntimeError(f"no room for step {line['step']}")


class FailsAtStart(Callback):
    def on_start(self, run):
        raise RuntimeError("no licence")
