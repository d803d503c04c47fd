"""Who does not answer: after a failed collective every rank that can signs a list in the store they met at.

A backend's error says which socket failed and not which rank is gone, and the ranks around a lost one fail
in turn. Whoever has not signed after a moment is the one to look at.
"""

import contextlib
import os
import threading
import time
from typing import Any, Protocol

SIGNS = (
    "timed out",
    "timeout",
    "connection closed",
    "connection reset",
    "connection refused",
    "broken pipe",
    "socket",
    "nccl",
)
"""What the errors of gloo and NCCL hold when a peer is gone, in lower case."""
WAIT_S = 2.0


class Store(Protocol):
    """What is used of torch.distributed's stores."""

    def set(self, key: str, value: str) -> Any:
        """Write a key."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        ...


class LostRank(RuntimeError):
    """A collective failed because a rank did not take part: names the operation and who is missing."""


def is_lost(error: BaseException) -> bool:
    """Whether an error of a backend says that a peer is gone or late."""
    text = str(error).lower()
    return any(sign in text for sign in SIGNS)


def missing_ranks(store: Store, rank: int, world: int, wait_s: float = WAIT_S) -> list[int] | None:
    """Ranks that did not sign within `wait_s` of this one; None where the store does not answer either.

    The store's own calls may wait far longer, on a host that is cut off: they run beside.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    signed: set[int] = set()
    answered = threading.Event()

    def call() -> None:
        with contextlib.suppress(Exception):
            store.set(f"mpsoftmax/fault/{attempt}/{rank}", "here")
            end = time.monotonic() + wait_s
            while time.monotonic() < end and len(signed) < world:
                for other in set(range(world)) - signed:
                    if store.check([f"mpsoftmax/fault/{attempt}/{other}"]):
                        signed.add(other)
                answered.set()
                time.sleep(0.05)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(wait_s + 1.0)
    return sorted(set(range(world)) - signed) if answered.is_set() else None


def describe_loss(
    operation: str, rank: int, error: BaseException, missing: list[int] | None
) -> str:
    """One line: this rank, the operation, the backend's words, and who is missing."""
    words = " ".join(str(error).split())
    # gloo begins with the place in its own source
    cause = words.partition("] ")[2] if words.startswith("[") and "] " in words else words
    if missing is None:
        who = "the store where ranks meet does not answer: rank 0, which holds it, has ended or is cut off"
    elif missing:
        names = ", ".join(map(str, missing))
        who = f"no sign of rank {names}: killed, hung, or cut off"
    else:
        who = "all ranks still answer: one of them was late, or ended with an error of its own"
    return f"rank {rank}: {operation}: {cause[:200]}; {who}"
