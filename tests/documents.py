"""README and docs/, read: their commands and their blocks of code."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(
    r"^(?:[A-Z_]+=\S+ )*(mpsoftmax|python3?|launch/\S+|torchrun|deepspeed|docker|sbatch|accelerate|"
    r"docker/\S+|\.venv/bin/\S+|source|wandb|kubectl|pip) "
)


@dataclass(frozen=True)
class Command:
    """A line of an indented block, or one marked as console, that is to be typed into a shell."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def commands() -> list[Command]:
    return [c for page in PAGES for c in [*commands_of(page), *commands_in_tables(page)]]


def commands_of(page: Path) -> list[Command]:
    found, fence = [], None
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("```"):
            fence = line if fence is None else None
            continue
        if not (line.startswith("    ") if fence is None else fence == "```console"):
            continue
        text, last = line.strip(), number
        while text.endswith("\\"):
            last += 1
            text = f"{text[:-1].rstrip()} {lines[last].strip()}"
        text = re.sub(r"\s{2,}#.*$|\s# .*$", "", text)
        if COMMAND.match(f"{text} "):
            found.append(Command(page.relative_to(ROOT).as_posix(), number + 1, text))
    return found


def commands_in_tables(page: Path) -> list[Command]:
    """Commands that stand as code in a cell."""
    return [
        Command(page.relative_to(ROOT).as_posix(), number, text)
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if line.startswith("|")
        for text in re.findall(r"`(mpsoftmax \w+ [^`]+)`", line)
    ]


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """(line, code) of every fenced block of Python."""
    text = page.read_text()
    return [
        (text[: match.start()].count("\n") + 1, match[1])
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    ]
