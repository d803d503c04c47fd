"""What goes with an exported model for people: a model card in Markdown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from mpsoftmax.config import Config, plain


@dataclass(frozen=True)
class Figure:
    """One measured number: of which set, its value, its interval or spread, and where it is from."""

    data: str
    name: str
    value: str
    spread: str
    source: str


def training_facts(
    config: Config, data: Mapping[str, Any] | None, num_params: int
) -> dict[str, Any]:
    """What is told of a training: names of data sets without their folders, counts, head and schedule."""
    train, head = config.train, config.head
    return {
        "datasets": [PurePath(str(one.path)).name for one in config.data.datasets],
        "num_images": (data or {}).get("num_images"),
        "num_classes": (data or {}).get("num_classes"),
        "objective": plain(head.objective),
        "class_weights": plain(head.weights),
        "candidates": plain(head.candidates),
        "augment": plain(config.data.augment),
        "epochs": train.epochs,
        "steps": train.steps,
        "batch_size": train.batch_size,
        "seed": train.seed,
        "num_parameters": num_params,
    }


def logged_figures(metrics: Path, step: int) -> list[Figure]:
    """The last evaluation at or before a step in metrics.jsonl; none where it holds none."""
    newest: dict[str, dict[str, Any]] = {}
    if not metrics.is_file():
        return []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry.get("kind") == "eval" and entry.get("step", 0) <= step:
            newest[str(entry.get("set"))] = entry
    found = []
    for name, entry in newest.items():
        source = f"metrics.jsonl, step {entry['step']}"
        for key, value in entry.items():
            if not isinstance(value, float) or key.endswith("_std"):
                continue
            std = entry.get(f"{key}_std")
            spread = f"+- {std:.4f} (standard deviation over 10 folds)" if std is not None else ""
            found.append(Figure(name, key, f"{value:.4f}", spread, source))
    return found


def judged_figures(path: Path) -> list[Figure]:
    """Figures with their 95 % intervals from what `mpsoftmax evaluate --json` wrote.

    Raises:
        ValueError: it is not such a file.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        result, data = tree["verification"], PurePath(str(tree["data"])).name
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"--figures {path}: a file written by mpsoftmax evaluate --json expected: {error}"
        ) from error
    rows = [(key, result.get(key), result.get(f"{key}_interval")) for key in ("accuracy", "auc")]
    rows += [
        (f"TAR at FAR {at['far']:g}", at["tar"], at.get("interval"))
        for at in result.get("tar_at_far", [])
        if at.get("supported")
    ]
    return [
        Figure(data, name, f"{value:.4f}", interval_text(interval), path.name)
        for name, value, interval in rows
        if isinstance(value, float)
    ]


def interval_text(interval: Sequence[float] | None) -> str:
    """A 95 % interval in words."""
    return "" if interval is None else f"{interval[0]:.4f} .. {interval[1]:.4f} (95 %)"


def model_card(tree: Mapping[str, Any], figures: Sequence[Figure], file: str) -> str:
    """The card of a model, Markdown.

    Args:
        tree: Its header (`mpsoftmax.models.header`).
        figures: What was measured.
        file: Name of the weights beside the card.
    """
    backbone, facts = tree["config"]["backbone"], tree["training"]
    lines = [
        "---",
        "license: other  # TO BE FILLED IN: also what the training data allow",
        "library_name: mpsoftmax",
        "tags: [embedding, metric-learning]",
        "---",
        "",
        f"# {tree['source']}, step {tree['step']}",
        "",
        f"An embedding model: {backbone['name']}, {backbone['embedding_dim']} dimensions, trained with",
        "[mpsoftmax](https://pypi.org/project/mpsoftmax/). Two images show the same thing where the cosine "
        "of their embeddings is high.",
        "",
        "## How to load",
        "",
        "```python",
        "from mpsoftmax.models import open_model",
        "",
        f'model = open_model("{file}")',
        'embeddings = model.embed(["a.jpg", "b.jpg"], mirror=False)  # unit rows float32 [2, D]',
        "print(float(embeddings[0] @ embeddings[1]))",
        "```",
        "",
        "## Preprocessing",
        "",
        *table(("step", "value"), tree["preprocessing"].items()),
        "",
        "## Architecture",
        "",
        *table(("setting", "value"), backbone.items()),
        "",
        "## Training",
        "",
        *table(("what", "value"), [(k, v) for k, v in facts.items() if v is not None]),
        "",
        "## Figures",
        "",
        *figure_lines(figures),
        "",
        "## Limits",
        "",
        "TO BE FILLED IN: what the training data show and miss, and what the model must not be used for.",
        "",
        "## Licence",
        "",
        "TO BE FILLED IN. Weights inherit what the licences of their training data ask.",
        "",
        f"Written by mpsoftmax {tree['versions']['mpsoftmax']}, torch {tree['versions']['torch']}.",
        "",
    ]
    return "\n".join(lines)


def figure_lines(figures: Sequence[Figure]) -> list[str]:
    """The table of what was measured."""
    if not figures:
        return [
            "None: the run was not evaluated (`mpsoftmax evaluate --json`, `export --figures`)."
        ]
    rows = [(one.data, one.name, one.value, one.spread, one.source) for one in figures]
    return table(("set", "figure", "value", "spread", "from"), rows)


def table(head: Sequence[str], rows: Any) -> list[str]:
    """A Markdown table; what a cell holds stays in its cell."""
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return out + ["| " + " | ".join(cell(one) for one in row) + " |" for row in rows]


def cell(value: object) -> str:
    """Text of a cell: strings as they are, all else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
