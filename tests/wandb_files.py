"""Reads back what an offline Weights & Biases run left: the records of its .wandb files."""

import json
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as pb

BLOCK, FIRST_RECORD = 32768, 7  # a LevelDB log behind a header of 7 bytes
END_OF_RECORD = (1, 4)  # whole, last


@dataclass
class Segment:
    """What one process of a run wrote."""

    folder: Path
    run: pb.RunRecord | None = None
    config: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    alerts: list[pb.AlertRecord] = field(default_factory=list)
    artifacts: list[pb.ArtifactRecord] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    exit_code: int | None = None


def segments(run_folder: Path, wait_s: float = 30.0) -> list[Segment]:
    """Those of a run folder, oldest first.

    W&B's own process writes them and is a little behind: waits until each has its end, as one that was killed
    never does.
    """
    paths = list((run_folder / "wandb").glob("offline-run-*/*.wandb"))
    deadline = time.monotonic() + wait_s
    while True:
        found = [segment(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]
        if all(part.exit_code is not None for part in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def segment(path: Path) -> Segment:
    out = Segment(path.parent)
    for record in records(path):
        kind = record.WhichOneof("record_type")
        out.kinds.add(kind)
        if kind == "run":
            out.run = record.run
            out.config |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
        elif kind == "history":
            items = record.history.item
            out.history.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in items
                }
            )
        elif kind == "alert":
            out.alerts.append(record.alert)
        elif kind == "artifact":
            out.artifacts.append(record.artifact)
        elif kind == "exit":
            out.exit_code = record.exit.exit_code
    return out


def records(path: Path):
    data, position, buffer = path.read_bytes(), FIRST_RECORD, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if kind == 0:
            return
        buffer += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in END_OF_RECORD:
            yield pb.Record.FromString(buffer)
            buffer = b""
