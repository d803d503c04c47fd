"""The run folder's disk: speed, room, and whether all ranks see the same folder."""

import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path

from mpsoftmax.comm import Comm
from mpsoftmax.doctor.finding import Finding

SECTION = "run folder"
PROBE_BYTES = 64 << 20
BLOCK = 4 << 20
LEAST_FREE, LEAST_WRITE = 10e9, 50e6


def disk(folder: str, comm: Comm) -> list[Finding]:
    """Of run.dir or, before it exists, of the folder it will lie in; speed as rank 0 sees it. Collective."""
    place = existing(Path(folder))
    found = [shared_by_all(folder, place, comm)]
    measured = []
    if comm.rank == 0 and os.access(place, os.W_OK):
        measured = [room(place), *speed(place)]
    return [*found, *comm.share(measured)[0]]


def existing(folder: Path) -> Path:
    """The folder or its nearest parent that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def shared_by_all(folder: str, place: Path, comm: Comm) -> Finding:
    """A file of rank 0 must be seen by every rank. Collective."""
    problem = "" if os.access(place, os.W_OK) else f"this user cannot write into {place}"
    problem = next((text for text in comm.share(problem) if text), "")
    if problem:
        return Finding(SECTION, "run.dir", folder, f"{problem}; choose another run.dir")
    token = comm.share(f".doctor-{uuid.uuid4().hex}")[0]
    if comm.rank == 0:
        (place / token).touch()
    comm.barrier()
    seen = comm.share((place / token).exists())
    comm.barrier()
    if comm.rank == 0:
        (place / token).unlink()
    blind = [rank for rank, sees in enumerate(seen) if not sees]
    if blind:
        cure = (
            f"rank(s) {blind} do not see it: choose a run.dir on a file system that all nodes share"
        )
        return Finding(SECTION, "run.dir", folder, cure)
    return Finding(SECTION, "run.dir", f"{folder}, writable, the same for all ranks")


def room(place: Path) -> Finding:
    """Free bytes."""
    free = shutil.disk_usage(place).free
    cure = "make room: checkpoints hold the class table and its optimiser rows, three are kept"
    return Finding(SECTION, "free", f"{free / 1e9:.1f} GB", cure if free < LEAST_FREE else "")


def speed(place: Path) -> list[Finding]:
    """Bytes a second written to the disk itself, and read back."""
    block = os.urandom(BLOCK)
    with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as file:
        began = time.perf_counter()
        for _ in range(PROBE_BYTES // BLOCK):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = PROBE_BYTES / (time.perf_counter() - began)
        if hasattr(os, "posix_fadvise"):  # else it would come from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        file.seek(0)
        while file.read(BLOCK):
            pass
        read = PROBE_BYTES / (time.perf_counter() - began)
    cure = "checkpoints will hold training up: choose a faster disk for run.dir"
    return [
        Finding(
            SECTION, "write", f"{written / 1e6:.0f} MB/s", cure if written < LEAST_WRITE else ""
        ),
        Finding(SECTION, "read", f"{read / 1e6:.0f} MB/s"),
    ]
