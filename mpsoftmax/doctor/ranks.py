"""Whether the ranks reach each other, how fast, and whether their clocks agree."""

import hashlib
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mpsoftmax.comm import Comm
from mpsoftmax.config import Config
from mpsoftmax.doctor.finding import Finding
from mpsoftmax.head.exchange import line_bytes
from mpsoftmax.train.build import local_capacity

SECTION = "ranks"
REPEAT = 5
LEAST_GPU_BANDWIDTH = 1e9
MOST_CLOCK_S = 1.0


def ranks(config: Config, comm: Comm, device: torch.device) -> list[Finding]:
    """Findings about all ranks together; the same on every rank. Collective.

    Args:
        config: Whose batch and embedding set the sizes.
        comm: The ranks.
        device: Where the head's tensors live.
    """
    return [
        where(comm, device),
        *(reached(comm, kind) for kind in dict.fromkeys((device.type, "cpu"))),
        *bandwidths(config, comm, device),
        clocks(comm),
    ]


def where(comm: Comm, device: torch.device) -> Finding:
    """Ranks and machines, without their names. Collective."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    own = platform.node() + (boot.read_text() if boot.exists() else "")
    hosts = comm.share(hashlib.sha256(own.encode()).hexdigest())
    counts = sorted({hosts.count(host) for host in hosts})
    text = f"{comm.world} on {len(set(hosts))} machine(s), {device.type}"
    cure = ""
    if len(counts) > 1:
        cure = f"machines have between {counts[0]} and {counts[-1]} ranks: start as many on each"
    return Finding(SECTION, "ranks", text, cure)


def reached(comm: Comm, kind: str) -> Finding:
    """Every rank's number arrives at every rank, by NCCL for GPUs, by gloo for CPUs. Collective."""
    name = "NCCL" if kind == "cuda" else "gloo"
    arrived = comm.all_gather(torch.tensor([comm.rank], device=kind))[:, 0].tolist()
    times = timed(lambda: comm.all_reduce_sum(torch.ones(1, device=kind)), 20, kind)
    slowest = max(comm.share(statistics.median(times)))
    text = f"every rank reaches every rank, {1e6 * slowest:.0f} us for a number"
    wrong = arrived != list(range(comm.world))
    cure = f"numbers arrived in disorder: {arrived}; check NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME"
    return Finding(SECTION, name, text, cure if wrong else "")


def bandwidths(config: Config, comm: Comm, device: torch.device) -> list[Finding]:
    """The three collectives of a step at the configured sizes. Collective."""
    capacity, dim = local_capacity(config, comm.world), config.backbone.embedding_dim
    dtype = getattr(torch, config.head.compute_dtype)
    lines = torch.zeros(capacity + 1, line_bytes(dim, dtype), dtype=torch.uint8, device=device)
    numbers = torch.zeros(2 * comm.world * capacity, device=device)
    gradients = torch.zeros(comm.world, capacity, dim, device=device)
    return [
        bandwidth("all-gather (1)", comm, comm.all_gather, lines),
        bandwidth("all-reduce (2)", comm, comm.all_reduce_sum, numbers),
        bandwidth("reduce-scatter (3)", comm, comm.reduce_scatter_sum, gradients),
    ]


def bandwidth(
    name: str, comm: Comm, collective: Callable[[Tensor], Tensor], tensor: Tensor
) -> Finding:
    """Seconds of one collective, and bytes a second that each rank hands over. Collective."""
    seconds = statistics.median(timed(lambda: collective(tensor), REPEAT, tensor.device.type))
    num_bytes = tensor.numel() * tensor.element_size()
    if comm.world == 1:
        return Finding(SECTION, name, f"{num_bytes:,} bytes; one rank, nothing to send")
    slowest = max(comm.share(seconds))
    rate = num_bytes / slowest
    text = f"{num_bytes:,} bytes a rank in {1e3 * slowest:.2f} ms, {rate / 1e6:,.0f} MB/s"
    slow = tensor.is_cuda and num_bytes > 1 << 20 and rate < LEAST_GPU_BANDWIDTH
    cure = "GPUs talk slowly: run with NCCL_DEBUG=INFO and see which network NCCL takes"
    return Finding(SECTION, name, text, cure if slow else "")


def timed(action: Callable[[], object], repeat: int, kind: str) -> list[float]:
    """Wall seconds of each call after a first one, the device's work included."""
    seconds = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        action()
        if kind == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def clocks(comm: Comm, now: Callable[[], float] = time.time) -> Finding:
    """How far apart the ranks' clocks are, as seen right after a barrier. Collective."""
    spreads = []
    for _ in range(REPEAT):
        comm.barrier()
        times = comm.all_gather(torch.tensor([now()], dtype=torch.float64, device=comm.device))
        spreads.append(float(times.max() - times.min()))
    apart = min(spreads)  # what is longer was waiting
    text = "one rank" if comm.world == 1 else f"at most {1e3 * apart:.1f} ms apart"
    cure = "set the clocks (NTP, chrony): log times and file times of the machines do not compare"
    return Finding(SECTION, "clocks", text, cure if apart > MOST_CLOCK_S else "")
