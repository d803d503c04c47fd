"""Are the checkpoints of a run whole: `mpsoftmax inspect RUN`, or `RUN/checkpoints/step-200`."""

from pathlib import Path

from mpsoftmax.train.checkpoint import damage_of, read_state, saved_in, stored_tensors
from mpsoftmax.train.sums import SUMS_FILE


def checkpoints_in(path: Path) -> list[Path]:
    """The checkpoint directories meant by a run folder or by one of them, oldest first; else none."""
    if (path / "state.json").is_file() or (path / SUMS_FILE).is_file():
        return [path]
    return [one for _, one in saved_in(path / "checkpoints")]


def report(paths: list[Path]) -> tuple[str, bool]:
    """A line for each checkpoint and its problems, and whether all are whole."""
    lines, good = [], True
    for path in paths:
        found = problems(path)
        good = good and not found
        lines.append(f"{path}: damaged" if found else f"{path}: {describe(path)}")
        lines += [f"  {problem}" for problem in found]
    return "\n".join(lines), good


def problems(path: Path) -> list[str]:
    """What is wrong with a checkpoint: its sums, its state, its index."""
    found = damage_of(path)
    for read in (read_state, stored_tensors):
        try:
            read(path)
        except ValueError as error:
            found.append(str(error))
    return found


def describe(path: Path) -> str:
    """What a whole checkpoint holds."""
    state, size = read_state(path), sum(one.stat().st_size for one in path.iterdir())
    sums = "every sum fits" if (path / SUMS_FILE).exists() else "format 1, which has no sums"
    return (
        f"step {state['step']}, {state['num_classes']} classes, saved by {state['world']} rank(s), "
        f"{len(stored_tensors(path))} tensors, {size} bytes; {sums}"
    )
