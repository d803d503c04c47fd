"""Traces of a few steps by torch.profiler, one file a rank (train.profile)."""

import gzip
import shutil
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from mpsoftmax.head.phases import Phases


class Profiler:
    """Records the steps `span` of this rank into FOLDER/rank-R.json.gz and rank-R.txt.

    The trace opens in Perfetto or chrome://tracing; the text lists all operations, those that took longest
    first. The phases of the step appear as ranges named mpsoftmax.PHASE.

    Args:
        span: First and last step to record; None: nothing.
        folder: RUN/profile.
        rank: This rank.
        device: What the steps run on.
        phases: Marked in the trace while it is recorded.
    """

    def __init__(
        self,
        span: tuple[int, int] | None,
        folder: Path,
        rank: int,
        device: torch.device,
        phases: Phases,
    ) -> None:
        self._span, self._folder, self._rank = span, folder, rank
        self._device, self._phases = device, phases
        self._running: profile | None = None

    def before(self, step: int) -> None:
        """`step` is about to be taken."""
        if self._span is None or self._running is not None:
            return
        first, last = self._span
        if first <= step <= last:
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._running = profile(activities=activities)
            self._running.start()
            self._phases.traced = True

    def after(self, step: int) -> None:
        """`step` was taken."""
        if self._running is not None and self._span is not None and step >= self._span[1]:
            self.close()

    def close(self) -> None:
        """Stop and write what was recorded, also where a run ends within the span."""
        running, self._running = self._running, None
        if running is None:
            return
        self._phases.traced = False
        running.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"rank-{self._rank}.json"
        running.export_chrome_trace(str(trace))
        with trace.open("rb") as plain, gzip.open(f"{trace}.gz", "wb") as packed:
            shutil.copyfileobj(plain, packed)
        trace.unlink()
        order = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        table = running.key_averages().table(sort_by=order, row_limit=-1)
        trace.with_suffix(".txt").write_text(table + "\n")
