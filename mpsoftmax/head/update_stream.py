"""A CUDA stream on which `step()` moves the class rows beside the backbone, until somebody uses them.

What the update reads is complete at the end of the head's backward, long before the backbone's ends; what it
writes is read by the next forward of the head. In between the GPU has both to do at once.

Never run on hardware. That nothing reads rows too early is tested with a stand-in which hides what was
written until it is waited for (tests/head/test_update_stream.py).
"""

from collections.abc import Callable
from typing import Protocol

import torch


class UpdateStream(Protocol):
    """Where the work of a step is enqueued."""

    def inputs_ready(self) -> None:
        """All that the next `run` reads is enqueued by now, on the stream that is current."""
        ...

    def run(self, work: Callable[[], None], inputs: object) -> None:
        """Enqueue `work`, which reads `inputs`; their memory stays theirs until `join`."""
        ...

    def join(self) -> None:
        """What is enqueued from now on, on the stream that is current, sees what `run` wrote.

        Also the other way round: the next `run` starts after what has been enqueued until it is called.
        """
        ...


class CallersStream:
    """No stream of its own: work is enqueued where the caller's is, in its order."""

    def inputs_ready(self) -> None:
        """See UpdateStream."""

    def run(self, work: Callable[[], None], inputs: object) -> None:
        """See UpdateStream."""
        work()

    def join(self) -> None:
        """See UpdateStream."""


class SideStream:
    """A stream of its own.

    Args:
        device: Where the rows live.

    Raises:
        ValueError: `device` is not a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(
                f"update_beside: True with rows on {str(device)!r}; allowed: False (another stream needs a "
                "CUDA device)"
            )
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._ready: torch.Event | None = None
        self._done: torch.Event | None = None
        self._home: torch.cuda.Stream | None = None
        self._inputs: object = None

    def inputs_ready(self) -> None:
        """See UpdateStream."""
        self._ready = torch.cuda.current_stream(self._device).record_event()

    def run(self, work: Callable[[], None], inputs: object) -> None:
        """See UpdateStream."""
        ready = self._ready
        if ready is None:
            ready = torch.cuda.current_stream(self._device).record_event()
        self.join()
        self._stream.wait_event(ready)
        with torch.cuda.stream(self._stream):
            work()
        self._home = torch.cuda.current_stream(self._device)
        self._done, self._inputs = self._stream.record_event(), inputs

    def join(self) -> None:
        """See UpdateStream."""
        self._ready = None
        if self._done is None:
            return
        assert self._home is not None
        # The allocator gives the inputs' memory to later work of the stream they were made on.
        for stream in (self._home, torch.cuda.current_stream(self._device)):
            stream.wait_event(self._done)
        self._done, self._inputs = None, None
