"""What a run tells the world: metrics.jsonl, Weights & Biases, TensorBoard, callbacks, a progress bar.

Rank 0 alone writes. Everything that depends on the clock or the machine sits under "timing", so that two
equal runs have equal files apart from it. `Callback` is the door for others: docs/tracking.md.
"""

from mpsoftmax.track.log import Log
from mpsoftmax.track.protocol import Callback, Ending, Evaluation, RunStart, SavedCheckpoint

__all__ = ["Callback", "Ending", "Evaluation", "Log", "RunStart", "SavedCheckpoint"]
