"""What a run ran on: versions, machine, devices, and the commit of the code."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import mpsoftmax

PACKAGES = ("mpsoftmax", "torch", "numpy", "pillow", "pyarrow", "wandb", "deepspeed", "triton")
GIT_S = 5.0


def environment(device: torch.device) -> dict[str, Any]:
    """Plain values; what cannot be found out is left out. No name of the machine, no environment variables.

    Args:
        device: What the run computes on.
    """
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": versions(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "commit": commit(Path(mpsoftmax.__file__).resolve().parent),
    }
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        found |= {"gpus": names, "cuda": torch.version.cuda}
    return {key: value for key, value in found.items() if value not in (None, "")}


def versions() -> dict[str, str]:
    """Of the packages that matter and are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name, where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit(folder: Path) -> str | None:
    """The commit of the code in `folder`, with "+" where files differ from it; None outside a checkout."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=GIT_S
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie in somebody else's repository: only files that are tracked there are its own.
    if not git("ls-files", "__init__.py"):
        return None
    head = git("rev-parse", "--short=12", "HEAD")
    return f"{head}+" if head and git("status", "--porcelain", "--", ".") else head
