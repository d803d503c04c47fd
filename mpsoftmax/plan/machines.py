"""What a rank's machine can do: makers' peaks for GPUs, measured figures for this kind of CPU."""

from dataclasses import dataclass, replace

from mpsoftmax.strict import suggestion

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One rank's device and links. Bytes, bytes a second, floating-point operations a second."""

    name: str
    kind: str
    """cpu or cuda."""
    memory: float
    flops: dict[str, float]
    """Dense peak of matrix products by compute dtype, without TF32 for float32 (torch's default)."""
    bandwidth: float
    """Of device memory."""
    link: float
    """To another rank of the same node, one way."""
    network: float
    """To another node, one way and per rank."""
    host_link: float
    """To host memory, one way."""
    per_node: int
    """Ranks in a node."""
    cache: float
    """Last-level cache a rank has."""
    share: float
    """Share of the peaks that large products and long copies reach."""
    latency_s: float
    """Of one collective."""
    reserved: float
    """Memory that is not for tensors: CUDA context, NCCL's buffers, the allocator's gaps; an allowance."""
    source: str

    def holds(self, peak_bytes: float) -> bool:
        """Whether a peak and the reserve stay within its memory."""
        return peak_bytes + self.reserved <= self.memory


def gpu(
    name: str,
    memory: float,
    bf16: float,
    fp32: float,
    fp64: float,
    bandwidth: float,
    link: float,
    cache_mb: float,
) -> Machine:
    """A GPU from its data sheet: gigabytes, teraflops, terabytes a second, gigabytes a second one way."""
    return Machine(
        name=name,
        kind="cuda",
        memory=memory * GIGA,
        flops={"bfloat16": bf16 * TERA, "float32": fp32 * TERA, "float64": fp64 * TERA},
        bandwidth=bandwidth * TERA,
        link=link * GIGA,
        network=50 * GIGA,  # 400 Gb/s InfiniBand, a link a GPU
        host_link=32 * GIGA if link >= 64 else link * GIGA,
        per_node=8,
        cache=cache_mb * 1e6,
        share=0.65,
        latency_s=20e-6,
        reserved=1.5e9,
        source="maker's data sheet, dense peaks; 0.65 of them assumed; not measured",
    )


MACHINES: dict[str, Machine] = {
    machine.name: machine
    for machine in (
        gpu("B200-180GB", 180, 2250, 75, 37, 8.0, 900, 126),
        gpu("H200-141GB", 141, 989, 67, 67, 4.8, 450, 50),
        gpu("H100-80GB", 80, 989, 67, 67, 3.35, 450, 50),
        gpu("A100-80GB", 80, 312, 19.5, 19.5, 2.04, 300, 40),
        gpu("A100-40GB", 40, 312, 19.5, 19.5, 1.56, 300, 40),
        gpu("L40S-48GB", 48, 362, 91.6, 1.4, 0.864, 32, 96),
        gpu("RTX4090-24GB", 24, 165, 82.6, 1.3, 1.01, 32, 72),
        # No bfloat16 units: such products run as float32.
        gpu("V100-32GB", 32, 15.7, 15.7, 7.8, 0.9, 150, 6),
        Machine(
            name="cpu",
            kind="cpu",
            memory=12e9,
            flops={"bfloat16": 84e9, "float32": 145e9, "float64": 70e9},
            bandwidth=10e9,
            link=1e9,
            network=1e9,
            host_link=5e9,
            per_node=64,
            cache=4e6,
            share=1.0,
            latency_s=200e-6,
            reserved=0.35e9,
            source="one core of an AVX-512 server CPU: products measured (docs/results.md), the rest assumed",
        ),
    )
}


def machine_of(
    name: str,
    *,
    memory: float | None = None,
    flops: float | None = None,
    bandwidth: float | None = None,
    network: float | None = None,
    link: float | None = None,
    per_node: int | None = None,
) -> Machine:
    """A machine by name, with what is known better in place of its figures.

    Raises:
        ValueError: an unknown name, or a figure that is not positive.
    """
    if name not in MACHINES:
        raise ValueError(f"--gpu: {name!r}{suggestion(name, list(MACHINES))}")
    given = {
        "memory": memory, "bandwidth": bandwidth, "network": network, "link": link, "per_node": per_node,
    }  # fmt: skip
    for field, value in {**given, "flops": flops}.items():
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{field.replace('_', '-')}: {value}; allowed: a positive number")
    machine = MACHINES[name]
    changed = {field: value for field, value in given.items() if value is not None}
    if flops is not None:
        changed["flops"] = dict.fromkeys(machine.flops, flops)
    if not changed and flops is None:
        return machine
    source = f"{machine.source}; given: {', '.join(sorted(changed))}"
    return replace(machine, **changed, source=source)  # type: ignore[arg-type]


def machine_found(name: str, memory: float) -> Machine:
    """The GPU of this machine, whose name and bytes of memory torch says.

    The other figures are those of the nearest GPU of that name; of one we do not know, an H100's.
    """
    plain = name.replace(" ", "").upper()
    known = [one for one in MACHINES.values() if one.name.partition("-")[0].upper() in plain]
    known = [one for one in known if one.kind == "cuda"]
    nearest = min(known, key=lambda one: abs(one.memory - memory), default=MACHINES["H100-80GB"])
    title = name if known else f"{name} (times as of {nearest.name})"
    return replace(machine_of(nearest.name, memory=memory), name=title)
