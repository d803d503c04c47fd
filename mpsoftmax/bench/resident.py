"""Peak memory of a process, as the operating system counts it (Linux)."""

from collections.abc import Callable
from pathlib import Path


def resident_bytes(field: str) -> int:
    """Of this process: VmRSS, resident now, or VmHWM, at its highest.

    Raises:
        ValueError: there is no /proc, as on other systems than Linux.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        raise ValueError("memory: /proc/self/status is not there; allowed: Linux")
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_bytes(action: Callable[[], object]) -> int:
    """The highest resident set while `action` runs."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
    action()
    return resident_bytes("VmHWM")
