"""Where the time of a step goes, by named phases that do not overlap.

A phase begins where another ends, or inside it; the inner one's time is not the outer one's, so the phases
of a step add up to the step. Without a timer, which is the default, nothing is read and nothing kept.

    gather    features, labels, rows read ahead: collective (1)
    sweep     the head's own arithmetic, forward and backward
    reduce    collectives (2) and (3)
    update    class rows and backbone weights move

The training loop adds `data` and `backbone`.
"""

import contextlib
import time
from collections import defaultdict
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch.profiler import record_function

NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


class Timer(Protocol):
    """Adds up seconds by phase."""

    current: str | None

    def switch(self, name: str | None) -> str | None:
        """End the current phase and begin another (None: none); returns the one that ended."""
        ...

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call; waits for the device where it has to."""
        ...


class HostTimer:
    """Wall time of this process, for devices that work while the host waits."""

    def __init__(self) -> None:
        self.current: str | None = None
        self._since = 0.0
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def switch(self, name: str | None) -> str | None:
        """See Timer.switch."""
        now, ended = time.perf_counter(), self.current
        if ended is not None:
            self._seconds[ended] += now - self._since
        self.current, self._since = name, now
        return ended

    def take(self) -> dict[str, float]:
        """See Timer.take."""
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken


class DeviceTimer:
    """Time on the GPU's own clock: an event at each switch, read when asked, so that no step waits.

    A phase lasts from the end of the work enqueued before it to the end of its own: while the GPU waits for
    data, that is `data`.
    """

    def __init__(self) -> None:
        self.current: str | None = None
        self._marks: list[tuple[str | None, torch.cuda.Event]] = []
        self._spare: list[torch.cuda.Event] = []

    def switch(self, name: str | None) -> str | None:
        """See Timer.switch."""
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((name, event))
        ended, self.current = self.current, name
        return ended

    def take(self) -> dict[str, float]:
        """See Timer.take."""
        seconds: defaultdict[str, float] = defaultdict(float)
        if self._marks:
            self._marks[-1][1].synchronize()
        for (name, event), (_, after) in zip(self._marks, self._marks[1:], strict=False):
            if name is not None:
                seconds[name] += 1e-3 * event.elapsed_time(after)
        kept = self._marks[-1:] if self.current is not None else []
        self._spare += [event for _, event in self._marks[: len(self._marks) - len(kept)]]
        self._marks = kept
        return dict(seconds)


def timer_for(device: torch.device) -> Timer:
    """The timer that fits a device."""
    return DeviceTimer() if device.type == "cuda" else HostTimer()


class Phases:
    """What code marks its phases with: `with phases("sweep"): ...`.

    Attributes:
        timer: Who adds them up; None (the default): nobody.
        traced: Whether they also appear as ranges in a trace of torch.profiler.
    """

    def __init__(self) -> None:
        self.timer: Timer | None = None
        self.traced = False

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """A phase inside the current one; nothing outside of a step."""
        if self.timer is None or self.timer.current is None:
            return NOTHING
        return Inner(self.timer, name, self.traced)


class Inner(AbstractContextManager[None]):
    """One phase inside another."""

    __slots__ = ("_name", "_outer", "_range", "_timer")

    def __init__(self, timer: Timer, name: str, traced: bool) -> None:
        self._timer, self._name = timer, name
        self._outer: str | None = None
        self._range = record_function(f"mpsoftmax.{name}") if traced else None

    def __enter__(self) -> None:
        if self._range is not None:
            self._range.__enter__()
        self._outer = self._timer.switch(self._name)

    def __exit__(self, *error: object) -> None:
        self._timer.switch(self._outer)
        if self._range is not None:
            self._range.__exit__(None, None, None)
