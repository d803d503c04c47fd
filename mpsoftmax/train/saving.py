"""When and how checkpoints are written during training: beside it by a thread, or in its way.

Beside it, a step waits only until the state is copied to host memory; a thread with a process group of its
own writes the copy. At most one save is under way: the next one waits for it. What it met is told then, on
all ranks. A save that could not be written (a full disk) is given up: the earlier checkpoints are whole and
training goes on, until too many in a row were.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from mpsoftmax.comm import AgreedError, is_sharded, local_rows
from mpsoftmax.train.checkpoint import Checkpoints


class Saver:
    """Saves the checkpoints of one run.

    Args:
        checkpoints: Where to.
        beside: Whether a thread writes while training goes on.
        max_failed: Saves that may be given up one after the other.
        say: Takes a line for people.
        owned: Whether a tensor of that name is the saver's already and need not be copied.
        saved: Told step and folder of every checkpoint that is complete, in training's own thread.

    Attributes:
        failed: Saves given up since the last one that succeeded.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        beside: bool,
        max_failed: int,
        say: Callable[[str], None],
        owned: Callable[[str], bool],
        saved: Callable[[int, Path], None],
    ) -> None:
        self._checkpoints, self._beside, self._max_failed = checkpoints, beside, max_failed
        self._say, self._owned, self._saved = say, owned, saved
        self._written: tuple[int, Path] | None = None
        self._writing: Checkpoints | None = None
        self._thread: threading.Thread | None = None
        self._problem: BaseException | None = None
        self.failed = 0

    def save(
        self, step: int, tensors: dict[str, Tensor], state: dict[str, Any], *, last: bool = False
    ) -> None:
        """Write a checkpoint or begin to; collective. The arguments may change afterwards.

        Args:
            step: Names it.
            tensors: As Checkpoints.save.
            state: As Checkpoints.save.
            last: Wait until it is written, and raise if it is not.

        Raises:
            ValueError: it, or the one before, could not be written, and no more may be given up.
            LostRank: a rank did not take part.
        """
        self.settle()
        if not self._beside:
            self._write(self._checkpoints, step, tensors, state)
        else:
            checkpoints = self._other_group()
            copies = {
                name: value if self._owned(name) else copied(value, checkpoints)
                for name, value in tensors.items()
            }
            arguments = (checkpoints, step, copies, dict(state))
            self._thread = threading.Thread(
                target=self._write, args=arguments, name="checkpoint", daemon=True
            )
            self._thread.start()
        if last or not self._beside:
            self.settle(last=last)

    def _other_group(self) -> Checkpoints:
        """The same checkpoints over a group of their own: a thread's collectives must not meet training's."""
        if self._writing is None:
            own = self._checkpoints
            self._writing = Checkpoints(own.folder, own.comm.beside(), own.keep)
        return self._writing

    def _write(
        self, checkpoints: Checkpoints, step: int, tensors: dict[str, Tensor], state: dict[str, Any]
    ) -> None:
        try:
            self._written = (step, checkpoints.save(step, tensors, state))
        except BaseException as error:
            self._problem = error

    def settle(self, *, last: bool = False) -> None:
        """Wait for the save under way; the same on all ranks.

        Raises:
            ValueError: as save.
            LostRank: as save.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        problem, self._problem = self._problem, None
        written, self._written = self._written, None
        if problem is None:
            self.failed = 0
            if written is not None:
                self._saved(*written)
            return
        if not isinstance(problem, AgreedError):
            raise problem
        self.failed += 1
        if last or self.failed > self._max_failed:
            raise AgreedError(f"{problem}; {self._newest()}") from problem
        self._say(
            f"WARNING: {problem}; training goes on, {self._newest()} ({self.failed} given up in a row, "
            f"train.max_failed_saves: {self._max_failed})"
        )

    def _newest(self) -> str:
        link: Path = self._checkpoints.folder / "latest"
        return (
            f"the newest checkpoint is {link.resolve()}" if link.exists() else "there is none yet"
        )

    def close(self, timeout_s: float) -> None:
        """Let the save under way end, for a training that ends by an error; what it met is not told."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if not self._thread.is_alive() and self._problem is None and self._written is not None:
                self._saved(*self._written)
                self._written = None


def copied(tensor: Tensor, checkpoints: Checkpoints) -> Tensor:
    """A copy in host memory; of a DTensor `Shard(0)`, one over the group of `checkpoints`."""
    local = local_rows(tensor).detach().to("cpu", copy=True)
    return checkpoints.comm.shard_rows(local, tensor.shape[0]) if is_sharded(tensor) else local
