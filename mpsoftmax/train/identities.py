"""What a run does about identities that occur in several datasets: linking on the way, a table at the end."""

from pathlib import Path
from typing import Any

from torch import nn

from mpsoftmax.comm import Comm
from mpsoftmax.config import BasketsConfig, Config, LinkingConfig
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.union import Union
from mpsoftmax.head.duplicates import likely_duplicates
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.linking import IdentityLinker
from mpsoftmax.track.json_lines import JsonLines, lines_up_to
from mpsoftmax.train.centres import DataPass
from mpsoftmax.train.duplicates import name_in_set, write_duplicates, write_merged


class Identities:
    """Links classes of different datasets during training, and lists likely duplicates at its end.

    RUN/links.jsonl holds one event a line: step, kind, the two classes by number and by name, the cosine.
    RUN/merged.csv lists what was merged in the end, for another training to start from. Of one dataset there
    is nothing to do.

    Args:
        config: head.baskets and head.linking.
        images: The training images.
        head: The head.
        data_pass: The way over the images.
        folder: The run folder.
        comm: The ranks.
    """

    def __init__(
        self,
        config: Config,
        images: ImageSet,
        head: ModelParallelSoftmax,
        data_pass: DataPass,
        folder: Path,
        comm: Comm,
    ) -> None:
        self._images = images if isinstance(images, Union) else None
        self._head, self._pass, self._folder, self._comm = head, data_pass, folder, comm
        self._threshold = (config.head.baskets or BasketsConfig()).duplicates
        linking = config.head.linking
        self.every = None if linking is None else linking.every
        self._linker = None if linking is None else build_linker(linking, head)
        self._events: JsonLines | None = None

    def state(self) -> list[list[int]] | None:
        """What a checkpoint needs beside the head's state, JSON-ready."""
        return None if self._linker is None else self._linker.state()

    def load_state(self, state: list[list[int]] | None) -> None:
        """What `state` gave; None where the run did not link before."""
        if self._linker is not None and state is not None:
            self._linker.load_state(state)

    def open(self, step: int) -> None:
        """Ready to write; events after `step` are cut from links.jsonl, since they will come again."""
        if self._linker is not None and self._comm.rank == 0:
            events = self._folder / "links.jsonl"
            self._events = JsonLines(events, lines_up_to(events, step))

    def close(self) -> None:
        """No more events."""
        if self._events is not None:
            self._events.close()

    def link(self, step: int, net: nn.Module) -> dict[str, Any]:
        """One check of the linker, after a pass over the images; collective.

        Returns:
            A line of metrics: events by kind, and the number of classes merged into others so far.
        """
        assert self._linker is not None
        events = self._linker.update(self._pass.class_means(net, self._head, by_label=True))
        counts = {"link": 0, "split": 0, "conflict": 0}
        for event in events:
            counts[event.kind] += 1
            if self._events is not None:
                names = {"a": self._named(event.class_a), "b": self._named(event.class_b)}
                self._events.write({"step": step, **event.as_dict(), **names})
        merged = len(self._head.merged)
        return {"kind": "linking", "step": step, **counts, "merged": merged}

    def list_duplicates(self, net: nn.Module) -> str | None:
        """Write RUN/merged.csv and RUN/duplicates.csv, the latter after a pass over the images; collective.

        Returns:
            What to say about it; None where there is nothing to list.
        """
        if self._images is None:
            return None
        merged, writes = self._head.merged.tolist(), self._comm.rank == 0
        if merged and writes:
            write_merged(self._folder / "merged.csv", merged, self._images)
        if self._threshold is None:
            return None
        means = self._pass.class_means(net, self._head, by_label=True)
        pairs = likely_duplicates(self._head, means, self._threshold)
        path = self._folder / "duplicates.csv"
        if writes:
            write_duplicates(path, pairs, self._images)
        return (
            f"{len(merged)} classes merged; {len(pairs)} more likely duplicate identities: {path}"
        )

    def _named(self, class_id: int) -> str:
        assert self._images is not None
        return ":".join(name_in_set(self._images, class_id))


def build_linker(linking: LinkingConfig, head: ModelParallelSoftmax) -> IdentityLinker:
    """head.linking.

    Raises:
        ValueError: the head has no learned rows.
    """
    try:
        return IdentityLinker(
            head,
            threshold=linking.threshold,
            doubt=linking.doubt,
            lead=linking.lead,
            stable=linking.stable,
            release=linking.release,
        )
    except ValueError as error:
        raise ValueError(f"head.{error}") from error
