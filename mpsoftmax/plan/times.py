"""From work to seconds, and what bounds a step."""

from dataclasses import dataclass

from mpsoftmax.plan.collectives import collectives
from mpsoftmax.plan.machines import Machine
from mpsoftmax.plan.shape import HeadShape
from mpsoftmax.plan.work import head_work, moved_outside


@dataclass(frozen=True)
class HeadTime:
    """Seconds of one head step on the slowest rank."""

    products_s: float
    """Matrix products, the floor at the machine's peak."""
    memory_s: float
    """Least traffic of rows and kept exponentials, at the peak bandwidth."""
    network_s: float
    """Collectives at the link's bandwidth, with their latency."""
    predicted_s: float
    """Products, then loops over logits and rows, then collectives: nothing overlaps in this code."""
    outside_s: float
    """Rows to and from host memory or disk, read ahead and written behind: beside the rest."""

    @property
    def floor_s(self) -> float:
        """The longest of the three, which perfect overlap would reach."""
        return max(self.products_s, self.memory_s, self.network_s)

    @property
    def bound(self) -> str:
        """FLOP, memory or network: which of the three is the longest."""
        times = {"FLOP": self.products_s, "memory": self.memory_s, "network": self.network_s}
        return max(times, key=lambda name: times[name])


def peak_flops(machine: Machine, shape: HeadShape) -> float:
    """Of products in the compute dtype."""
    return machine.flops[str(shape.compute_dtype).removeprefix("torch.")]


def network_seconds(shape: HeadShape, machine: Machine) -> float:
    """Collectives of a step, one after the other."""
    if shape.world == 1:
        return 0.0
    traffic = collectives(shape)
    rate = machine.link if shape.world <= machine.per_node else machine.network
    return traffic.wire_bytes / rate + sum(traffic.calls.values()) * machine.latency_s


def head_time(shape: HeadShape, machine: Machine) -> HeadTime:
    """Floors and prediction of a step."""
    peak, bandwidth = peak_flops(machine, shape), machine.bandwidth
    ideal = head_work(shape, float("inf"))
    real = head_work(shape, machine.cache)
    network = network_seconds(shape, machine)
    products = real.all_flops / (peak * machine.share)
    loops = (real.logit_bytes + real.row_bytes) / (bandwidth * machine.share)
    outside = moved_outside(shape) / machine.host_link
    beside = max(0.0, outside - products - loops)  # what the rest of the head does not hide
    return HeadTime(
        products_s=ideal.flops / peak,
        memory_s=(ideal.logit_bytes + ideal.row_bytes) / bandwidth,
        network_s=network,
        predicted_s=products + loops + network + beside,
        outside_s=outside,
    )
