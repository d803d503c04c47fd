"""What the doctor finds, and the page it makes of it."""

import getpass
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mpsoftmax.track.redaction import redacted_text

HOST, HOME = "HOST", "~"
LEAST_NAME = 4  # letters of a host or user name that is replaced wherever it occurs


@dataclass(frozen=True)
class Finding:
    """One line of the page."""

    section: str
    name: str
    value: str
    cure: str = ""
    """What to do about it; empty where all is well."""
    ranks: tuple[int, ...] = ()
    """Where it was found; empty: everywhere."""

    @property
    def ok(self) -> bool:
        """Whether all is well."""
        return not self.cure

    def line(self) -> str:
        """As text."""
        where = "" if not self.ranks else f" [rank {', '.join(map(str, self.ranks))}]"
        start = f"{'ok' if self.ok else 'LOOK':<5}{self.name:<26}{self.value}{where}"
        return start if self.ok else f"{start}\n{'':<5}{'':<26}-> {self.cure}"


def merged(by_rank: Mapping[int, Sequence[Finding]]) -> list[Finding]:
    """Findings of several ranks in the order of the first; equal ones become one."""
    found: dict[Finding, list[int]] = {}
    for rank, findings in by_rank.items():
        for finding in findings:
            found.setdefault(finding, []).append(rank)
    places = {(f.section, f.name): i for i, f in reversed(list(enumerate(found)))}
    ordered = sorted(found, key=lambda finding: places[finding.section, finding.name])
    everywhere = len(by_rank)
    return [
        one if len(found[one]) == everywhere else replace(one, ranks=tuple(found[one]))
        for one in ordered
    ]


def anonymous(finding: Finding) -> Finding:
    """Without secrets, host name, user name and home folder."""
    return replace(finding, value=without_names(finding.value), cure=without_names(finding.cure))


def without_names(text: str) -> str:
    """Text without secrets, host name, user name and home folder."""
    text = redacted_text(text).replace(str(Path.home()), HOME)
    names = {platform.node(): HOST, platform.node().partition(".")[0]: HOST, user(): "USER"}
    for name, other in names.items():
        if len(name) >= LEAST_NAME and name != "root":
            text = re.sub(rf"\b{re.escape(name)}\b", other, text)
    return text


def user() -> str:
    """The user's name; empty where the system knows none, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return os.environ.get("USER", "")


def render(findings: Iterable[Finding], title: str) -> str:
    """The page."""
    findings = list(findings)
    lines, section = [title], ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        lines.append(finding.line())
    looks = sum(not finding.ok for finding in findings)
    verdict = "all ok" if not looks else f"{looks} line(s) to LOOK at"
    return "\n".join([*lines, "", f"{len(findings)} findings, {verdict}"])


def as_values(findings: Iterable[Finding], title: str) -> dict[str, Any]:
    """The page, ready for JSON."""
    findings = list(findings)
    return {
        "title": title,
        "ok": all(finding.ok for finding in findings),
        "findings": [{**asdict(finding), "ok": finding.ok} for finding in findings],
    }
