"""Items of memory and when in a step each is alive: a step's peak is that of its fullest phase.

Phases, in their order: the backbone's forward; gather (features, own rows, draws); sweep; the head's
backward; the backbone's backward; the backbone's update; the head's step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PHASES = (
    "backbone forward",
    "gather",
    "sweep",
    "head backward",
    "backbone backward",
    "backbone update",
    "head step",
)
ALWAYS = PHASES
PLACES = ("device", "host", "disk")


def phases(first: str, last: str | None = None) -> tuple[str, ...]:
    """The phases from `first` to `last`, both included; one where no last is given."""
    start = PHASES.index(first)
    return PHASES[start : PHASES.index(last or first) + 1]


@dataclass(frozen=True)
class Item:
    """Something that takes memory."""

    name: str
    num_bytes: float
    alive: tuple[str, ...]
    place: str = "device"
    """device, host or disk."""
    estimated: bool = False
    """Whether the figure is an estimate rather than a count of tensors."""


@dataclass(frozen=True)
class Memory:
    """Everything of one rank."""

    items: Sequence[Item]

    def in_phase(self, phase: str, place: str = "device") -> float:
        """Bytes alive in a phase."""
        alive = (item for item in self.items if phase in item.alive and item.place == place)
        return sum(item.num_bytes for item in alive)

    def fullest(self, place: str = "device") -> str:
        """The phase of the peak."""
        return max(PHASES, key=lambda phase: self.in_phase(phase, place))

    def peak(self, place: str = "device") -> float:
        """Bytes at the peak of a step."""
        return self.in_phase(self.fullest(place), place)

    def of(self, name: str) -> float:
        """Bytes of an item, over its places and phases."""
        return sum(item.num_bytes for item in self.items if item.name == name)
