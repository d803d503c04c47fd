"""What may be chosen about a protocol, and what each protocol makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mpsoftmax.evaluate.outcomes import Outcomes, summarise

NUM_BOOTSTRAP = 1000
MOST_ITEMS = 1_000_000
USED_BY: dict[str, tuple[str, ...]] = {
    "thresholds": ("verification",),
    "with_baseline": ("verification",),
    "gallery": ("identification", "retrieval"),
    "distractors": ("identification", "retrieval", "reid"),
    "gallery_images": ("identification",),
    "unknown": ("identification",),
    "fusion": ("identification",),
    "by_norm": ("template",),
    "by_score": ("template",),
    "backend": ("retrieval",),
    "reader": ("identification", "retrieval"),
}
"""Protocols that look at an option; all do at one that is not named."""


@dataclass(frozen=True)
class Options:
    """Of all protocols; each looks at its own.

    Attributes:
        thresholds: verification: "exact" or "insightface".
        with_baseline: verification: also judge raw pixels.
        gallery: identification, retrieval: a second labelled set to search; None: the set itself.
        distractors: identification, retrieval: a set of images of nobody, added to the gallery.
            reid: "images" for Market-1501's 500,000 more.
        gallery_images: identification: images of each person that go into the gallery.
        unknown: identification: share of the people who are kept out of the gallery; None: 0.2, or 0 with
            ``gallery``.
        fusion: identification: "max" or "mean" of a person's gallery images.
        mirror: add the mirror image's embedding; None: for everything but characters.
        by_norm: template: weight faces by the length of their embeddings.
        by_score: template: weight faces by the detector's score.
        backend: retrieval: of the search.
        reader: identification, retrieval: what the reader of data and gallery is told, as data.reader.
        num_bootstrap: replicates behind intervals; 0 = none; None: 1000, and none for more than a million
            items, which would take hours.
    """

    thresholds: str = "exact"
    with_baseline: bool = False
    gallery: str | None = None
    distractors: str | None = None
    gallery_images: int = 1
    unknown: float | None = None
    fusion: str = "max"
    mirror: bool | None = None
    by_norm: bool = True
    by_score: bool = True
    backend: str = "torch"
    reader: Mapping[str, Any] = field(default_factory=dict)
    num_bootstrap: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of range."""
        if self.gallery_images < 1:
            raise ValueError(f"gallery_images: {self.gallery_images}; allowed: 1 or more")
        if self.unknown is not None and not 0 <= self.unknown < 1:
            raise ValueError(f"unknown: {self.unknown}; allowed: 0 or more, below 1")
        if self.num_bootstrap is not None and self.num_bootstrap < 0:
            raise ValueError(f"num_bootstrap: {self.num_bootstrap}; allowed: 0 or more")

    def check_used(self, protocol: str) -> None:
        """Raise ValueError for something that was chosen and that this protocol does not look at."""
        for one in fields(self):
            used = USED_BY.get(one.name)
            value = getattr(self, one.name)
            if used is None or protocol in used or value == getattr(Options(), one.name):
                continue
            raise ValueError(
                f"{one.name}: {value!r}; not used by {protocol}; allowed with {', '.join(used)}"
            )

    def replicates(self, num_items: int) -> int:
        """Of the bootstrap over so many items."""
        if self.num_bootstrap is None:
            return NUM_BOOTSTRAP if num_items <= MOST_ITEMS else 0
        return self.num_bootstrap


@dataclass(frozen=True, eq=False)
class Judged:
    """What a protocol says of one model.

    Attributes:
        outcomes: by the name they have in the report.
        values: fields of the report.
        text: a table.
    """

    outcomes: Mapping[str, Outcomes]
    values: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


def judged(outcomes: Mapping[str, Outcomes], options: Options) -> Judged:
    """Figures, intervals and tables of some outcomes."""
    results = {
        name: summarise(one, num_bootstrap=options.replicates(len(one)))
        for name, one in outcomes.items()
    }
    return Judged(
        outcomes,
        {name: one.as_dict() for name, one in results.items()},
        "\n".join(one.render() for one in results.values()),
    )
