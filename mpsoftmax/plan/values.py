"""A plan as plain values, for --json."""

import json
from dataclasses import asdict
from typing import Any

from mpsoftmax.plan.memory import PHASES
from mpsoftmax.plan.planning import Plan


def as_json(plan: Plan) -> str:
    """The plan as JSON text."""
    return json.dumps(as_values(plan), indent=1) + "\n"


def as_values(plan: Plan) -> dict[str, Any]:
    """The plan as plain values: bytes, seconds, floating-point operations."""
    shape, memory = plan.shape, plan.memory
    return {
        "classes": shape.classes,
        "classes_of_largest_shard": shape.local_classes,
        "candidates_of_largest_shard": shape.swept_classes,
        "dim": shape.dim,
        "ranks": shape.world,
        "samples": shape.samples,
        "accumulation": shape.accumulation,
        "machine": asdict(plan.machine),
        "fits": plan.fits,
        "peak_bytes": memory.peak(),
        "peak_phase": memory.fullest(),
        "host_peak_bytes": memory.peak("host"),
        "disk_bytes": memory.peak("disk"),
        "phases": {phase: memory.in_phase(phase) for phase in PHASES},
        "items": [asdict(item) for item in memory.items],
        "collectives": dict(plan.traffic.calls),
        "payload_bytes": dict(plan.traffic.payload_bytes),
        "wire_bytes": plan.traffic.wire_bytes,
        "work": asdict(plan.work),
        "head_time": {**asdict(plan.time), "floor_s": plan.time.floor_s, "bound": plan.time.bound},
        "backbone": asdict(plan.backbone),
        "backbone_s": plan.backbone_s,
        "largest_classes": plan.largest_classes,
        "alternatives": [asdict(one) for one in plan.alternatives],
        "remarks": plan.remarks,
    }
