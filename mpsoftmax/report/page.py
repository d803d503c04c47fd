"""The page as a whole: one file, no network, complete without its script."""

import base64
import datetime
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from mpsoftmax.data.new_files import replaced
from mpsoftmax.markup import Markup, tag
from mpsoftmax.report.class_section import classes
from mpsoftmax.report.datasets import datasets
from mpsoftmax.report.judged import judged
from mpsoftmax.report.progress import progress
from mpsoftmax.report.run import Run, read_run, told_apart
from mpsoftmax.report.summary import badge, summary
from mpsoftmax.report.surroundings import surroundings
from mpsoftmax.report.timing import timing
from mpsoftmax.track.environment import versions

LINKS = {
    "summary": "Summary",
    "evaluation": "Evaluation",
    "training": "Training",
    "classes": "Classes",
    "datasets": "Datasets",
    "time": "Time",
    "setup": "Setup",
}


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of one or several run folders; an old one is replaced.

    Args:
        folders: At least one; differences are to the first.
        out: The file.

    Raises:
        ValueError: a folder is no run folder, or the file cannot be written.
    """
    page = render([read_run(folder) for folder in folders])
    try:
        with replaced(out) as part:
            part.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written: {error}") from error
    return out


def render(runs: Sequence[Run]) -> str:
    """The page."""
    runs = told_apart(list(runs))
    sections = {
        "summary": summary(runs),
        "evaluation": judged(runs),
        "training": progress(runs),
        "classes": classes(runs),
        "datasets": datasets(runs),
        "time": timing(runs),
        "setup": surroundings(runs),
    }
    title = " · ".join(run.name for run in runs)
    style = resource("page.css") + hiding(len(runs))
    script = resource("page.js")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy(script)),
        tag("title", f"{title} · mpsoftmax report"),
        tag("link", rel="icon", href="data:,"),
        Markup(f"<style>{style}</style>"),
    )
    body = tag(
        "body",
        header(runs),
        navigation(runs, [key for key, made in sections.items() if made is not None]),
        tag("main", list(sections.values()), footer()),
        Markup(f"<script>{script}</script>"),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def resource(name: str) -> str:
    """A file beside this one."""
    return files(__package__ or "mpsoftmax.report").joinpath(name).read_text(encoding="utf-8")


def policy(script: str) -> str:
    """Nothing is loaded, and no script runs but the page's own: whatever names in a run folder say."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def hiding(num_runs: int) -> str:
    """What is not shown of a run that is switched off."""
    return "".join(f".hide-{k} .run-{k}{{display:none}}" for k in range(num_runs))


def header(runs: Sequence[Run]) -> Markup:
    """Names, and how the run ended."""
    if len(runs) == 1:
        kind, title = "Training run", tag("h1", runs[0].name, " ", badge(runs[0]))
    else:
        kind = f"{len(runs)} training runs, differences to the first"
        title = tag("h1", " · ".join(run.name for run in runs))
    return tag(
        "header",
        tag("div", tag("p", kind, class_="kind"), title, class_="head-inner"),
        class_="top",
    )


def navigation(runs: Sequence[Run], keys: Sequence[str]) -> Markup:
    """Links to the sections; of several runs a button each."""
    links = [tag("a", LINKS[key], href=f"#{key}") for key in keys]
    buttons = [
        tag(
            "button",
            tag("i", class_=f"swatch c{k % 6}"),
            run.name,
            type="button",
            class_="run-toggle",
            data_run=str(k),
            aria_pressed="true",
        )
        for k, run in enumerate(runs)
    ]
    toggles = tag("div", buttons, class_="toggles") if len(runs) > 1 else None
    return tag("nav", tag("div", links, toggles, class_="head-inner"))


def footer() -> Markup:
    """Who made it, and when."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    version = versions().get("mpsoftmax", "")
    return tag("footer", f"Written by mpsoftmax {version}".rstrip(), f" on {now}.")
