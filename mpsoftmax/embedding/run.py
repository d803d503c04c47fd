"""A set of images into a Parquet file of embeddings, by all ranks, resumable."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from mpsoftmax.backbones.execution import evaluation_mode, lowered
from mpsoftmax.comm import Comm
from mpsoftmax.data.decode import CorruptImage, decode
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.loader import Batch, Loader
from mpsoftmax.embedding.fingerprint import digest_of_images, digest_of_net, pixel_settings
from mpsoftmax.embedding.parts import PART_IMAGES, Parts, part_table
from mpsoftmax.evaluate.embed import raw_batch
from mpsoftmax.models import TrainedModel
from mpsoftmax.models.header import versions
from mpsoftmax.train.precision import autocast_dtype

ON_ERROR = ("stop", "skip")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Embedded:
    """What was written.

    Attributes:
        path: The file.
        num_images: Images of the set.
        num_resumed: Images whose embeddings an earlier, interrupted job had left.
        skipped: (name, problem) of images that could not be read.
    """

    path: Path
    num_images: int
    num_resumed: int
    skipped: tuple[tuple[str, str], ...]


def embed_to_parquet(
    model: TrainedModel,
    images: ImageSet,
    out: str | Path,
    *,
    mirror: bool = False,
    on_error: str = "stop",
    batch_size: int = 64,
    workers: int | None = None,
    part_images: int = PART_IMAGES,
    comm: Comm | None = None,
    progress: Progress | None = None,
) -> Embedded:
    """Embed all images into a Parquet file; collective. Started again after an interruption, it goes on.

    The columns are `name` (string), `label` (int64) and `class_name` (string), null where not known,
    `embedding` (fixed_size_list<float32>[D], unit length) and `norm` (float32, the norm before). The schema's
    metadata `mpsoftmax` is JSON: model, step, preprocessing, options, versions. Rows are in the order of the
    set and do not depend on the number of ranks or on interruptions.

    Args:
        model: From `open_model`.
        images: From `open_to_embed`, not empty.
        out: A new file; OUT.parts beside it holds what is done until all is.
        mirror: Average with the embedding of the mirror image.
        on_error: "stop" at an image that cannot be decoded, naming it; or "skip" it: it has no row and
            stands in OUT.skipped.json.
        batch_size: Images the backbone sees at a time.
        workers: Processes that decode; None: as in training.
        part_images: Images that are lost at most by an interruption, a rank.
        comm: The ranks that share the work; None: this process alone.
        progress: Called on rank 0 with (images done, all images).

    Raises:
        ValueError: OUT exists, was begun with another model, data or options, or an image cannot be decoded.
    """
    comm = comm or Comm()
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error: {on_error!r}; allowed: {', '.join(ON_ERROR)}")
    if len(images) == 0:
        raise ValueError("images: there are none to embed")
    if workers is not None:
        data = replace(model.config.data, workers=workers)
        model = replace(model, config=replace(model.config, data=data))
    job = Job(model, images, mirror, on_error == "skip", batch_size)
    parts = Parts(Path(out), len(images), part_images)
    manifest = comm.share(comm.together(lambda: job.manifest(part_images)))[0]
    comm.together(lambda: parts.open(manifest) if comm.rank == 0 else None)
    missing: list[int] = comm.share(parts.missing())[0]
    resumed = len(images) - sum(b - a for a, b in map(parts.range, missing))
    mine = missing[comm.rank :: comm.world]
    tables = job.tables([parts.range(number) for number in mine])
    done = resumed
    for turn in range(-(-len(missing) // comm.world)):
        comm.together(lambda turn=turn: write_next(parts, mine[turn : turn + 1], tables))
        finished = missing[turn * comm.world : (turn + 1) * comm.world]
        done += sum(b - a for a, b in map(parts.range, finished))
        if progress is not None and comm.rank == 0:
            progress(done, len(images))
    facts = {**manifest, "source": str(model.source), "step": model.step, "versions": versions()}
    joined = comm.together(lambda: parts.join(facts) if comm.rank == 0 else [])
    skipped = comm.share(joined)[0]
    return Embedded(parts.out, len(images), resumed, tuple(tuple(one) for one in skipped))


def write_next(parts: Parts, numbers: Sequence[int], tables: Iterator[pa.Table]) -> None:
    """This rank's part of a round; none where others have more."""
    for number in numbers:
        parts.write(number, next(tables))


@dataclass(frozen=True)
class Job:
    """What is embedded by what, and how."""

    model: TrainedModel
    images: ImageSet
    mirror: bool
    skip: bool
    batch_size: int

    def manifest(self, part_images: int) -> dict[str, Any]:
        """Everything that decides the rows; equal for equal jobs."""
        return {
            "model": digest_of_net(self.model.net, self.model.identity),
            "data": digest_of_images(self.images),
            "num_images": len(self.images),
            "preprocessing": pixel_settings(self.model.config),
            "mirror": self.mirror,
            "on_error": ON_ERROR[self.skip],
            "batch_size": self.batch_size,
            "part_images": part_images,
        }

    def tables(self, ranges: Sequence[tuple[int, int]]) -> Iterator[pa.Table]:
        """The rows of each range of images, in one stream over all of them."""
        config, device = self.model.config, self.model.device
        loader = Loader(
            self.images,
            None,
            size=config.data.image_size,
            decoder=config.data.decoder,
            crop=config.data.crop,
            workers=config.data.workers,
            max_corrupt=len(self.images) if self.skip else 0,
        )
        cuts = [
            (low, min(low + self.batch_size, last))
            for first, last in ranges
            for low in range(first, last, self.batch_size)
        ]
        batches = loader.stream(cuts)
        for first, last in ranges:
            chosen: list[int] = []
            skipped: list[tuple[str, str]] = []
            rows: list[Tensor] = []
            for low in range(first, last, self.batch_size):
                batch = next(batches)
                whole = self._whole(batch, low, skipped)
                with (
                    evaluation_mode(self.model.net),
                    torch.no_grad(),
                    lowered(device, autocast_dtype(config)),
                ):
                    raw = raw_batch(
                        self.model.net, batch.images, self.batch_size, self.mirror, device
                    )
                rows.append(raw.cpu()[whole])
                chosen += [low + place for place in whole]
            embeddings = torch.cat(rows) / (2 if self.mirror else 1)
            norms = embeddings.norm(dim=1).numpy()
            unit = F.normalize(embeddings).numpy()
            yield part_table(self.images, chosen, np.ascontiguousarray(unit), norms, skipped)

    def _whole(self, batch: Batch, low: int, skipped: list[tuple[str, str]]) -> list[int]:
        """Places of the images of a batch that were decoded; the others are added to `skipped`."""
        if not batch.skipped:
            return list(range(len(batch.images)))
        names, whole = set(batch.skipped), []
        for place in range(len(batch.images)):
            name = self.images.name(low + place)
            problem = self._problem(low + place) if name in names else None
            if problem is None:
                whole.append(place)
            else:
                skipped.append((name, problem))
        return whole

    def _problem(self, index: int) -> str | None:
        """Why an image cannot be decoded; None where it can."""
        data = self.model.config.data
        try:
            decode(self.images.image(index), data.image_size, data.decoder, data.crop)
        except CorruptImage as error:
            return str(error)
        return None
