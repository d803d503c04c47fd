"""Run folders as files, without a training: what a page is read from."""

import json
from html.parser import HTMLParser
from pathlib import Path

PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgAB"
    "SK+kcQAAAABJRU5ErkJggg=="
)
VOID = {"img", "meta", "link", "br", "hr", "input"}


def train_lines(num: int = 20, every: int = 5, loss=lambda step: 10.0 / step) -> list[dict]:
    return [
        {
            "kind": "train",
            "step": step,
            "samples": 32 * step,
            "loss": loss(step),
            "lr_factor": 1.0 - step / (num * every),
            "target_cosine": step / 1000,
            "candidates": 100,
            "skipped_steps": 0,
            "timing": {
                "images_per_s": 320.0,
                "step_s": 0.1,
                "data_wait_s": 0.01,
                "eta_s": 3.0,
                "resident_bytes": 3 * 2**30,
                "phases_s": {"data": 0.01, "backbone": 0.06, "sweep": 0.03},
            },
        }
        for step in range(every, num * every + 1, every)
    ]


def eval_line(step: int, accuracy: float, name: str = "pairs") -> dict:
    return {"kind": "eval", "step": step, "set": name, "accuracy": accuracy, "eer": 1 - accuracy}


def evaluation(name: str = "pairs", step: int = 100, accuracy: float = 0.9) -> dict:
    bins = 100
    genuine, impostor = [0] * bins, [0] * bins
    genuine[80], genuine[90], impostor[50] = 10, 30, 40
    return {
        "set": name,
        "step": step,
        "figures": {"accuracy": accuracy},
        "verification": {
            "accuracy": accuracy,
            "accuracy_interval": [accuracy - 0.05, accuracy + 0.05],
            "auc": 0.95,
            "auc_interval": None,
            "threshold": 0.3,
            "num_genuine": 40,
            "num_impostors": 40,
            "tar_at_far": [{"far": 0.1, "tar": 0.8, "interval": [0.7, 0.9]}],
        },
        "curves": {
            "far": [0.0, 0.01, 0.1, 1.0],
            "tar": [0.2, 0.5, 0.8, 1.0],
            "edges": [-1 + k / 50 for k in range(bins + 1)],
            "genuine": genuine,
            "impostor": impostor,
        },
        "hardest": {
            "genuine": [
                {"cosine": -0.1, "names": ["a/a_1.jpg", "a/a_2.jpg"], "pictures": [PICTURE] * 2}
            ],
            "impostor": [
                {"cosine": 0.7, "names": ["a/a_1.jpg", "b/b_1.jpg"], "pictures": [PICTURE] * 2}
            ],
        },
    }


def classes(names=("anna", "bert", "cleo")) -> dict:
    num = len(names)
    return {
        "step": 100,
        "num_classes": 50,
        "sampled_images": 3 * num,
        "among": "table",
        "classes": {
            "id": list(range(num)),
            "name": list(names),
            "images": [1 + 3 * k for k in range(num)],
            "used": [1 + k for k in range(num)],
            "within": [None, *(0.5 + k / 10 for k in range(1, num))],
            "other": [(k + 1) % num for k in range(num)],
            "other_name": [names[(k + 1) % num] for k in range(num)],
            "other_cosine": [0.1 * k for k in range(num)],
            "angle_rad": [0.5 + 0.1 * k for k in range(num)],
        },
    }


def sessions(*parts: tuple[int, int | None, str]) -> list[dict]:
    """(first step, last step, outcome) of each process; no last step: it was killed."""
    out = []
    for number, (first, last, outcome) in enumerate(parts):
        start = {"kind": "start", "step": first, "num_steps": 100, "world": 2}
        facts = {
            "data": {"num_images": 1234, "num_classes": 50},
            "parameters": 9320,
            "environment": {"python": "3.11.7", "packages": {"torch": "2.13"}, "commit": "abc+"},
        }
        out.append({**start, "facts": facts, "time": f"2026-01-0{number + 1}T10:00:00+00:00"})
        if last is not None:
            end = {"kind": "end", "outcome": outcome, "step": last, "error": ""}
            out.append({**end, "time": f"2026-01-0{number + 1}T10:10:00+00:00"})
    return out


def write_run(
    folder: Path,
    lines: list[dict] | None = None,
    *,
    config: str = "data: {train: faces.tar}\ntrain: {steps: 100, batch_size: 32}\n",
    parts: list[dict] | None = None,
    evaluations: tuple[dict, ...] = (),
    of_classes: dict | None = None,
) -> Path:
    (folder / "report").mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines or []))
    if parts:
        text = "".join(json.dumps(one) + "\n" for one in parts)
        (folder / "report" / "sessions.jsonl").write_text(text)
    for number, tree in enumerate(evaluations):
        (folder / "report" / f"evaluation-{number}.json").write_text(json.dumps(tree))
    if of_classes:
        (folder / "report" / "classes.json").write_text(json.dumps(of_classes))
    return folder


def full_run(folder: Path, accuracy: float = 0.9, **changes) -> Path:
    lines = [*train_lines(), eval_line(50, accuracy - 0.1), eval_line(100, accuracy)]
    given = {
        "parts": sessions((0, 100, "finished")),
        "evaluations": (evaluation(accuracy=accuracy),),
        "of_classes": classes(),
        **changes,
    }
    return write_run(
        folder, changes.pop("lines", lines), **{k: given[k] for k in given if k != "lines"}
    )


class Page(HTMLParser):
    """A page as a parser sees it; raises where elements are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def text(self) -> str:
        return " ".join(
            word
            for tag, words in self.texts.items()
            if tag not in ("script", "style")
            for word in words
        )
