"""What this process may use: cores, threads, memory, GPUs, open files, shared memory."""

import os
import resource
import shutil
from pathlib import Path

import torch

from mpsoftmax.comm import Comm
from mpsoftmax.config import Config
from mpsoftmax.data.loader import BATCHES_AHEAD
from mpsoftmax.data.order import share
from mpsoftmax.doctor.finding import Finding

SECTION = "machine"
GIGA = 1e9
LEAST_FILES = 4096
SHARED, CGROUP = Path("/dev/shm"), Path("/sys/fs/cgroup/memory.max")
SHOWN = ("OMP_", "MKL_", "NCCL_", "GLOO_", "CUDA_", "TORCH_", "PYTORCH_")


def machine(config: Config, comm: Comm) -> list[Finding]:
    """Of this rank."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return [
        cores(local),
        memory(),
        *devices(local),
        open_files(),
        shared_memory(config, comm.world, local),
        environment(),
    ]


def cores(local: int) -> Finding:
    """Cores against threads of all ranks here."""
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    threads = torch.get_num_threads()
    text = f"{usable} usable, {local} rank(s) here with {threads} thread(s) each"
    busy = local * threads > usable
    cure = f"export OMP_NUM_THREADS={max(1, usable // local)}: threads of ranks get in each other's way"
    return Finding(SECTION, "cores", text, cure if busy and threads > 1 else "")


def memory() -> Finding:
    """Memory of the machine that is free, and the container's limit."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return Finding(SECTION, "memory", "not known on this system")
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    text = f"{free / GIGA:.1f} GB available"
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    if limit.isdigit():
        text += f", container limit {int(limit) / GIGA:.1f} GB"
    return Finding(SECTION, "memory", text, "free memory: under 2 GB is left" if free < 2e9 else "")


def devices(local: int) -> list[Finding]:
    """GPUs by name and free memory."""
    if not torch.cuda.is_available():
        return [Finding(SECTION, "device", "cpu")]
    num = torch.cuda.device_count()
    cure = f"start at most {num} rank(s) here: one a GPU" if local > num else ""
    found = [Finding(SECTION, "GPUs", f"{num}, {local} rank(s) here", cure)]
    for index in range(num):
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        text = (
            f"{about.name}, capability {about.major}.{about.minor}, {free / GIGA:.1f} of "
            f"{total / GIGA:.1f} GB free"
        )
        cure = "another process holds its memory (nvidia-smi)" if free < 0.8 * total else ""
        found.append(Finding(SECTION, f"GPU {index}", text, cure))
    return found


def open_files() -> Finding:
    """File descriptors: batches of workers, shards and sockets take them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    cure = "" if unlimited or soft >= LEAST_FILES else f"ulimit -n {max(65536, LEAST_FILES)}"
    text = "unlimited" if unlimited else f"{soft} (hard limit {hard})"
    return Finding(SECTION, "open files", text, cure)


def shared_memory(config: Config, world: int, local: int) -> Finding:
    """/dev/shm, through which workers hand over their batches."""
    if not SHARED.exists():
        return Finding(SECTION, "shared memory", "no /dev/shm on this system")
    free, needed = shutil.disk_usage(SHARED).free, batches_bytes(config, world) * local
    text = f"{free / GIGA:.2f} GB free in /dev/shm, about {needed / GIGA:.2f} GB needed by data.workers"
    cure = "docker run --shm-size=8g (or --ipc=host), or lower data.workers"
    return Finding(SECTION, "shared memory", text, cure if free < needed else "")


def batches_bytes(config: Config, world: int) -> int:
    """Bytes of the batches that one rank's workers hold ready."""
    low, high = share(config.train.batch_size, 0, world * config.train.accumulation)
    height, width = config.data.image_size
    return config.data.workers * (BATCHES_AHEAD + 1) * (high - low) * 3 * height * width


def environment() -> Finding:
    """Variables that change how ranks compute and talk."""
    names = sorted(name for name in os.environ if name.startswith(SHOWN))
    text = " ".join(f"{name}={os.environ[name]}" for name in names)
    return Finding(SECTION, "environment", text or "nothing set")
