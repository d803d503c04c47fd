"""What steps cost: throughput, time left, data wait, phases, memory, as means over the log interval.

Reading is one small collective an interval: the ranks' data waits and memory, so that a straggler is seen.
"""

import time
from typing import Any

import torch

from mpsoftmax.comm import Comm
from mpsoftmax.head.phases import Phases, timer_for
from mpsoftmax.track.memory import memory_now
from mpsoftmax.track.profiler import Profiler

DATA, BACKBONE, UPDATE = "data", "backbone", "update"


class StepClock:
    """Told by the training loop where a step begins, changes its phase and ends.

    Args:
        phases: The head's, which are timed within steps from now on.
        profiler: Records the steps it was asked for.
        comm: The ranks; `read` is collective.
        device: What the steps run on.
        batch_size: Samples a step over all ranks.
        num_steps: Steps of the run.
    """

    def __init__(
        self,
        phases: Phases,
        profiler: Profiler,
        comm: Comm,
        device: torch.device,
        *,
        batch_size: int,
        num_steps: int,
    ) -> None:
        self._timer = phases.timer = timer_for(device)
        self._phases, self._profiler, self._comm, self._device = phases, profiler, comm, device
        self._batch_size, self._num_steps = batch_size, num_steps
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        self._began = self._data_until = 0.0
        self._pace_from: tuple[int, float] | None = None

    def begin(self, step: int) -> None:
        """`step` is about to be taken; it waits for data first."""
        self._profiler.before(step)
        self._began, self._data_until = time.perf_counter(), 0.0
        self._timer.switch(DATA)

    def enter(self, phase: str) -> None:
        """The step goes on with another phase; those of the head lie inside."""
        if not self._data_until:
            self._data_until = time.perf_counter()
        self._timer.switch(phase)

    def end(self, step: int) -> None:
        """`step` was taken."""
        self._timer.switch(None)
        now = time.perf_counter()
        self._steps += 1
        self._seconds += now - self._began
        self._waited += (self._data_until or now) - self._began
        if self._pace_from is None:  # the first step warms up: it says little of the pace
            self._pace_from = (step, now)
        self._profiler.after(step)

    def read(self, step: int) -> dict[str, Any]:
        """The line's "timing": means a step since the last call. Collective.

        Returns:
            images_per_s and step_s (without evaluations and checkpoints), eta_s (with them), data_wait_s of
            rank 0, phases_s by phase; resident_bytes and device_peak_bytes, the most of any rank; with
            several ranks slowest_data_wait_s and slowest_data_rank.
        """
        steps = max(1, self._steps)
        step_s, wait_s = self._seconds / steps, self._waited / steps
        timing: dict[str, Any] = {
            "images_per_s": self._batch_size / max(step_s, 1e-9),
            "step_s": step_s,
            "data_wait_s": wait_s,
            "phases_s": {name: value / steps for name, value in self._timer.take().items()},
        }
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        left = self._left_s(step)
        if left is not None:
            timing["eta_s"] = left
        return {**timing, **self._over_ranks(wait_s)}

    def _left_s(self, step: int) -> float | None:
        """Seconds to the last step at this process's pace so far; None after its first step."""
        if self._pace_from is None or step <= self._pace_from[0]:
            return None
        first, since = self._pace_from
        return (self._num_steps - step) * (time.perf_counter() - since) / (step - first)

    def _over_ranks(self, wait_s: float) -> dict[str, Any]:
        own = memory_now(self._device)
        numbers = [wait_s, *map(float, own.values())]
        everyone = self._comm.all_gather(
            torch.tensor(numbers, dtype=torch.float64, device=self._comm.device)
        )
        found: dict[str, Any] = {
            name: int(most) for name, most in zip(own, everyone[:, 1:].amax(0), strict=True)
        }
        if self._comm.world > 1:
            found["slowest_data_wait_s"] = float(everyone[:, 0].max())
            found["slowest_data_rank"] = int(everyone[:, 0].argmax())
        return found

    def close(self) -> None:
        """The run ends; the head is timed no longer."""
        self._timer.switch(None)
        self._phases.timer = None
        self._profiler.close()
