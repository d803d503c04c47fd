"""Peak memory of a process, as the operating system counts it (Linux)."""

from collections.abc import Callable
from pathlib import Path

from mpsoftmax.track.memory import resident_bytes


def peak_bytes(action: Callable[[], object]) -> int:
    """The highest resident set while `action` runs."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    action()
    return resident_bytes("VmHWM")
