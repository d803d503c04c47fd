"""A plan as text."""

from collections.abc import Sequence

from mpsoftmax.plan.advice import MOST_CLASSES
from mpsoftmax.plan.memory import PHASES
from mpsoftmax.plan.planning import Plan

SMALL_SHARE = 0.002  # items below this share of the peak are summed


def size(num_bytes: float) -> str:
    """Bytes, decimal units."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def seconds(value: float) -> str:
    """A time, with its unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def count(number: float) -> str:
    """A class count."""
    return "any" if number >= MOST_CLASSES else f"{number:,.0f}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def render(plan: Plan) -> str:
    """The page."""
    parts = [heading(plan), memory_part(plan), time_part(plan), network_part(plan), advice(plan)]
    return "\n\n".join("\n".join(part) for part in parts)


def heading(plan: Plan) -> list[str]:
    """What is planned."""
    shape, machine = plan.shape, plan.machine
    dtype = str(shape.compute_dtype).removeprefix("torch.")
    rows = str(shape.row_dtype).removeprefix("torch.")
    return [
        f"{shape.classes:,} classes, D = {shape.dim}, {shape.samples} samples a forward"
        + (f", {shape.accumulation} forwards a step" if shape.accumulation > 1 else "")
        + f"; {shape.world} rank(s) on {machine.name}",
        f"largest shard {shape.local_classes:,} classes, of which a step sweeps {shape.swept_classes:,}; "
        f"products {dtype}, rows {rows}, storage {shape.storage}",
        f"machine: {size(machine.memory)}, {machine.flops[dtype] / 1e12:.4g} TFLOP/s, "
        f"{size(machine.bandwidth)}/s ({machine.source})",
    ]


def memory_part(plan: Plan) -> list[str]:
    """Items of memory, and the peak."""
    memory, fullest = plan.memory, plan.memory.fullest()
    rows, small = [("item", "bytes", "at the peak", "place")], 0.0
    for item in sorted(memory.items, key=lambda one: -one.num_bytes):
        if item.num_bytes < SMALL_SHARE * memory.peak():
            small += item.num_bytes
            continue
        alive = "yes" if fullest in item.alive and item.place == "device" else "no"
        about = "~" if item.estimated else ""
        rows.append((item.name, about + size(item.num_bytes), alive, item.place))
    rows.append(("smaller ones, together", size(small), "", ""))
    phases = ", ".join(f"{phase} {size(memory.in_phase(phase))}" for phase in PHASES)
    total, reserved = memory.peak(), plan.machine.reserved
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    return [
        "Memory of the fullest rank",
        *table(rows),
        f"  peak {size(total)} in phase '{fullest}', with {size(reserved)} reserved "
        f"{size(total + reserved)} of {size(plan.machine.memory)}: {verdict}",
        f"  by phase: {phases}",
        *(f"  {place}: {size(memory.peak(place))}" for place in ("host", "disk") if memory.peak(place)),
        "  ~: estimated (the backbone's by running it on shapes; libraries' workspaces not counted)",
    ]  # fmt: skip


def time_part(plan: Plan) -> list[str]:
    """Work and time of one step."""
    time, work = plan.time, plan.work
    floors = (("products", time.products_s), ("memory", time.memory_s), ("network", time.network_s))
    again = f", {work.again_flops:.3g} of products taken again" if work.again_flops else ""
    lines = [
        "Time of one step",
        f"  head: {work.flops:.3g} FLOP{again}; {size(work.logit_bytes)} of logits and "
        f"{size(work.row_bytes)} of rows moved",
        "  floors at the machine's peaks: "
        + ", ".join(f"{name} {seconds(value)}" for name, value in floors)
        + f"; bound by {time.bound}",
        f"  predicted head step {seconds(time.predicted_s)} (nothing overlaps; {plan.machine.share:g} of the "
        "peaks)",
        f"  backbone: {plan.backbone.forward_flops:.3g} FLOP a forward, predicted "
        f"{seconds(plan.backbone_s)} a step",
    ]
    if time.outside_s:
        lines.append(
            f"  rows to and from {plan.shape.storage} storage: {seconds(time.outside_s)} a step"
        )
    return lines


def network_part(plan: Plan) -> list[str]:
    """Collectives of one step."""
    traffic = plan.traffic
    rows = [("collective", "calls", "bytes handed over by a rank")]
    for name, calls in sorted(traffic.calls.items()):
        rows.append((name, str(calls), f"{traffic.payload_bytes[name]:,}"))
    return [
        "Collectives of the head in one step",
        *table(rows),
        f"  through a rank's link, one way: {size(traffic.wire_bytes)}; independent of the number of classes",
    ]


def advice(plan: Plan) -> list[str]:
    """Class counts that fit, and other settings."""
    rows = [("settings", "peak", "host, disk", "head step", "fits", "most classes")]
    own = plan.memory.peak() + plan.machine.reserved
    outside = plan.memory.peak("host") + plan.memory.peak("disk")
    rows.append(
        ("as given", size(own), size(outside), seconds(plan.time.predicted_s),
         "yes" if plan.fits else "no", count(plan.largest_classes))
    )  # fmt: skip
    rows.extend(
        (one.settings, size(one.peak_bytes), size(one.host_bytes), seconds(one.step_s),
         "yes" if one.fits else "no", count(one.largest_classes))
        for one in plan.alternatives
    )  # fmt: skip
    return ["Settings", *table(rows), *(f"  - {remark}" for remark in plan.remarks)]
