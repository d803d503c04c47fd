"""The only file that talks to other processes.

`Comm` wraps one process group (or none: world size 1, the same code) and counts what is handed to it, so
that tests can assert the number of collectives and their bytes. It knows nothing of margins or classes.
"""

import contextlib
import datetime
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from mpsoftmax.roll_call import LostRank, describe_loss, is_lost, missing_ranks


def _collective(new: str, old: str) -> Callable[..., object]:
    """Torch 2.13 renamed the single-tensor collectives and warns about the old names."""
    return getattr(dist, new, None) or getattr(dist, old)


T = TypeVar("T")
JOIN_S = 300.0
"""Least time that ranks wait for each other to start."""


class AgreedError(ValueError):
    """A user's mistake that every rank raises with the same text, so that one of them need say it."""


class Pending:
    """A collective on its way: what it will give, what it reads meanwhile, and whom to ask."""

    def __init__(
        self,
        result: Tensor,
        given: Tensor | None = None,
        work: dist.Work | None = None,
        watched: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._result, self._given, self._work, self._watched = result, given, work, watched

    def wait(self) -> Tensor:
        """The result: on a CPU when it is there, on a GPU for what is queued from now on.

        Raises:
            LostRank: a rank did not take part.
        """
        if self._work is not None:
            with self._watched():
                self._work.wait()
            self._work = self._given = None
        return self._result


class Comm:
    """The collectives of one group of ranks, counted.

    Args:
        group: A process group; None takes the default group where one is initialised, else world size 1.
        timeout: How long its collectives wait, for groups made beside it; None: torch's default.

    Attributes:
        rank: This process within the group, from 0.
        world: Number of processes in the group.
        connected: Whether there is a process group at all.
        calls: How often each collective was called.
        payload_bytes: Bytes of this rank's input handed to each collective.
    """

    def __init__(
        self, group: ProcessGroup | None = None, timeout: datetime.timedelta | None = None
    ) -> None:
        self.timeout = timeout
        self.connected = group is not None or (dist.is_available() and dist.is_initialized())
        self._group = group
        self.rank = dist.get_rank(group) if self.connected else 0
        self.world = dist.get_world_size(group) if self.connected else 1
        self.calls: Counter[str] = Counter()
        self.payload_bytes: Counter[str] = Counter()
        self._mesh: DeviceMesh | None = None
        backend = dist.get_backend(group) if self.connected else "gloo"
        # Small host-side agreements travel on whatever device the group can send from.
        self.device = torch.device("cuda" if backend == "nccl" else "cpu")

    @property
    def group(self) -> ProcessGroup | None:
        """The process group; None for the default one."""
        return self._group

    def beside(self) -> "Comm":
        """A second group of the same ranks, for a thread of its own: gloo, CPU tensors only; collective."""
        if not self.connected:
            return Comm()
        ranks = dist.get_process_group_ranks(self._group or dist.group.WORLD)
        group = dist.new_group(ranks, backend="gloo", timeout=self.timeout)
        return Comm(cast(ProcessGroup, group), self.timeout)

    @contextlib.contextmanager
    def naming(self, operation: str) -> Iterator[None]:
        """Errors of the backend inside become ones that name the operation and who is missing.

        Raises:
            LostRank: a rank did not take part.
        """
        try:
            yield
        except LostRank:
            raise
        except RuntimeError as error:
            if not self.connected or not is_lost(error):
                raise
            store = dist.distributed_c10d._get_default_store()
            missing = missing_ranks(store, dist.get_rank(), dist.get_world_size())
            raise LostRank(describe_loss(operation, self.rank, error, missing)) from error

    def reset_counters(self) -> None:
        """Forget what was counted."""
        self.calls.clear()
        self.payload_bytes.clear()

    def _watched(self, name: str, tensor: Tensor) -> contextlib.AbstractContextManager[None]:
        return self.naming(f"{name} of {tensor.numel() * tensor.element_size()} bytes a rank")

    def _count(self, name: str, tensor: Tensor) -> None:
        self.calls[name] += 1
        self.payload_bytes[name] += tensor.numel() * tensor.element_size()

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Every rank's tensor, all of one shape: [...] -> [world, ...]."""
        return self.start_all_gather(tensor).wait()

    def start_all_gather(self, tensor: Tensor) -> "Pending":
        """`all_gather` beside whatever comes until the answer is waited for."""
        self._count("all_gather", tensor)
        if self.world == 1:
            return Pending(tensor.unsqueeze(0))
        out = tensor.new_empty(self.world, *tensor.shape)
        gather = _collective("all_gather_single", "all_gather_into_tensor")
        given = tensor.contiguous().view(-1)
        with self._watched("all_gather", tensor):
            work = gather(out.view(-1), given, group=self._group, async_op=True)
        return Pending(
            out, given, cast(dist.Work, work), lambda: self._watched("all_gather", given)
        )

    def all_gather_rows(self, tensor: Tensor) -> Tensor:
        """Concatenation along dim 0 of tensors that differ in their first size only: [n, ...]."""
        sizes = self.all_gather(torch.tensor([tensor.shape[0]], device=tensor.device))[
            :, 0
        ].tolist()
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: tensor.shape[0]] = tensor
        gathered = self.all_gather(padded)
        return torch.cat([gathered[rank, :size] for rank, size in enumerate(sizes)])

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        return self.start_all_reduce_sum(tensor).wait()

    def start_all_reduce_sum(self, tensor: Tensor) -> "Pending":
        """`all_reduce_sum` beside whatever comes until the answer is waited for."""
        return self._start_all_reduce(tensor, dist.ReduceOp.SUM)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Elementwise maximum over the ranks, in place."""
        return self.start_all_reduce_max(tensor).wait()

    def start_all_reduce_max(self, tensor: Tensor) -> "Pending":
        """`all_reduce_max` beside whatever comes until the answer is waited for."""
        return self._start_all_reduce(tensor, dist.ReduceOp.MAX)

    def _start_all_reduce(self, tensor: Tensor, op: Any) -> "Pending":
        self._count("all_reduce", tensor)
        if self.world == 1:
            return Pending(tensor)
        with self._watched("all_reduce", tensor):
            work = dist.all_reduce(tensor, op=op, group=self._group, async_op=True)
        return Pending(tensor, tensor, work, lambda: self._watched("all_reduce", tensor))

    def reduce_scatter_sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks of [world, ...]; this rank gets its own part [...]."""
        self._count("reduce_scatter", tensor)
        if self.world == 1:
            return tensor[0]
        out = torch.empty_like(tensor[0])
        scatter = _collective("reduce_scatter_single", "reduce_scatter_tensor")
        with self._watched("reduce_scatter", tensor):
            scatter(out.view(-1), tensor.contiguous().view(-1), group=self._group)
        return out

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's values into every rank's tensor, in place."""
        self._count("broadcast", tensor)
        if self.world > 1:
            with self._watched("broadcast", tensor):
                dist.broadcast(tensor, group=self._group, group_src=0)
        return tensor

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world > 1:
            with self.naming("barrier"):
                dist.barrier(group=self._group)

    def shard_rows(self, local: Tensor, num_rows: int) -> Tensor:
        """This rank's rows as a DTensor `Shard(0)` of [num_rows, ...]; itself without a process group.

        Shares memory with `local`. The rows are those of the torch.chunk rule.
        """
        if not self.connected:
            return local
        shape = torch.Size([num_rows, *local.shape[1:]])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            local,
            self._mesh_on(local.device.type),
            [Shard(0)],
            run_check=False,
            shape=shape,
            stride=stride,
        )

    def _mesh_on(self, device_type: str) -> DeviceMesh:
        """All ranks as one row."""
        if self._mesh is None:
            group = self._group if self._group is not None else dist.group.WORLD
            assert group is not None
            self._mesh = DeviceMesh.from_group(group, device_type)
        return self._mesh

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """The module under DistributedDataParallel; itself where there is one process only.

        DDP regroups its gradient buckets after the first backward, so a resumed run would sum its first step
        in another order than the run it continues; find_unused_parameters keeps the grouping fixed.
        """
        if self.world == 1:
            return module
        return DistributedDataParallel(
            module, process_group=self._group, find_unused_parameters=True
        )

    def fully_shard(
        self, module: nn.Module, blocks: Iterable[nn.Module], reshard_after_forward: bool
    ) -> nn.Module:
        """The module under FSDP2, in place: its parameters become DTensors `Shard(0)`.

        Args:
            module: On its device.
            blocks: Parts of it that are gathered as one; the rest is gathered with the module.
            reshard_after_forward: Whether a block gives its gathered parameters back after its forward.

        Raises:
            ValueError: there is no process group.
        """
        if not self.connected:
            raise ValueError("engine fsdp2: allowed with a process group, if only of one rank")
        device = next(module.parameters()).device
        mesh = self._mesh_on(device.type)
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)
        return module

    def share(self, value: object) -> list[Any]:
        """Small plain values of every rank, in rank order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with self.naming("all_gather of plain values"):
            dist.all_gather_object(values, value, group=self._group)
        return values

    def differing(self, own: bytes) -> list[int]:
        """Ranks whose bytes are others than rank 0's, by their digest; the same on all ranks."""
        digest = int.from_bytes(hashlib.sha256(own).digest()[:7], "little")
        digests = self.all_gather(torch.tensor([digest], device=self.device))[:, 0]
        return torch.nonzero(digests != digests[0])[:, 0].tolist()

    def together(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; if it fails for a user's reason anywhere, all ranks raise that.

        Raises:
            ValueError: on all ranks, with the text of the first rank that failed and its number where only
                some did.
        """
        result, problem = None, None
        try:
            result = action()
        except (ValueError, OSError) as error:
            problem = str(error)
        problems = self.share(problem)
        failed = [rank for rank, text in enumerate(problems) if text is not None]
        if failed:
            where = "" if len(failed) == self.world else f"rank {failed[0]}: "
            raise AgreedError(where + problems[failed[0]])
        return cast(T, result)


def local_rows(tensor: Tensor) -> Tensor:
    """The local part of a DTensor; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a DTensor, on every rank (collective); a plain tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor."""
    return isinstance(tensor, DTensor)


def launched_by_torchrun() -> bool:
    """Whether torchrun (or anything that sets its variables) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def connect(timeout_s: float, join_s: float | None = None) -> Comm:
    """Join the process group that torchrun's environment describes; a group of one without it.

    NCCL where this process has a GPU (and gloo beside it for CPU tensors), else gloo.

    Args:
        timeout_s: Seconds after which a collective that some rank never joined raises.
        join_s: Seconds in which all ranks must arrive; None: timeout_s, but at least JOIN_S, since they come
            as far apart as their machines take to import torch.

    Raises:
        ValueError: more local ranks than GPUs.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        device, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if device >= num_gpus:
            raise ValueError(
                f"local rank {device}, but this machine has {num_gpus} GPU(s); allowed: at most one rank a "
                "GPU, or CUDA_VISIBLE_DEVICES= to train on CPUs"
            )
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    timeout = datetime.timedelta(seconds=timeout_s)
    if launched_by_torchrun():
        patience = max(JOIN_S, timeout_s) if join_s is None else join_s
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=patience))
        # Public from torch 2.14 on, which says so at every start.
        getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)(timeout)
    else:
        dist.init_process_group(
            backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1
        )
    return Comm(timeout=timeout)


@contextlib.contextmanager
def connected(timeout_s: float) -> Iterator[Comm]:
    """`connect`, and `disconnect` at the end of the block, however it ends."""
    comm = connect(timeout_s)
    try:
        yield comm
    finally:
        disconnect()


def disconnect() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
