"""Memory that this process holds, as the operating system and the device count it."""

from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def resident_bytes(field: str) -> int:
    """Of this process: VmRSS, resident now, or VmHWM, at its highest.

    Raises:
        ValueError: there is no /proc, as on other systems than Linux.
    """
    if not STATUS.exists():
        raise ValueError("memory: /proc/self/status is not there; allowed: Linux")
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def memory_now(device: torch.device) -> dict[str, int]:
    """resident_bytes, where the system says it; device_peak_bytes on GPUs, since the last call."""
    found = {"resident_bytes": resident_bytes("VmRSS")} if STATUS.exists() else {}
    if device.type == "cuda":
        found["device_peak_bytes"] = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    return found
