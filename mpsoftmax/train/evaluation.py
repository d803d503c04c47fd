"""Evaluation of a backbone on all ranks: during training, and for `mpsoftmax evaluate`.

Every rank embeds its share of the images, the embeddings are gathered, and every rank computes the same
figures from them, so no rank waits for another one's metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpsoftmax.comm import Comm
from mpsoftmax.config import Config
from mpsoftmax.config.checks import HELD_BACK
from mpsoftmax.data.balanced_pairs import NUM_FOLDS, class_pairs
from mpsoftmax.data.geometry_transforms import Flip
from mpsoftmax.data.glyph_pairs import glyph_pairs
from mpsoftmax.data.glyphs import open_glyphs
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.near_names import near_name
from mpsoftmax.data.pairs import read_bin, read_pairs
from mpsoftmax.data.thumbnail import thumbnail
from mpsoftmax.evaluate.curves import Curves, curves
from mpsoftmax.evaluate.embed import embed, raw_pixels
from mpsoftmax.evaluate.hardest import JudgedPairs
from mpsoftmax.evaluate.retrieval import recall_at_1
from mpsoftmax.evaluate.verification import VerificationResult, verify
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.train.build import build_augment
from mpsoftmax.train.datasets import glyph_options, open_held_back
from mpsoftmax.train.precision import autocast_dtype

GLYPH_SETS = {"glyphs-open": "open", "glyphs-closed": "closed"}
NUM_PAIRS = 6000
LABELLED = (".tar", ".rec", ".arrow", ".parquet", ".json")
"""Suffixes of files that hold labelled images and no pairs."""
EMBED_BATCH = 64


@dataclass(frozen=True)
class EvaluationSet:
    """What one entry of data.eval stands for."""

    name: str
    images: ImageSet
    pairs: np.ndarray
    """int64 [P, 2] into images."""
    same: np.ndarray
    """bool [P]."""
    mirror: bool
    """Whether an image and its mirror image show the same thing."""
    fonts: np.ndarray | None = None
    """Glyph sets: int [n], the font of each image."""
    families: np.ndarray | None = None
    """Glyph sets: int [n], the font family of each image."""


def open_evaluation_set(spec: str, config: Config, field: str = "data.eval") -> EvaluationSet:
    """A verification set by its name in data.eval.

    Args:
        spec: `glyphs-open`, `glyphs-closed`, `held-back`, a .bin file, or a pair list, with the folder or
            tar that holds its images after an @ (default: the list's own folder).
        config: Whose glyph settings apply.
        field: Where the user named it, for messages.

    Raises:
        ValueError: no such set, a malformed file, or pairs that `check_pairs` refuses.
    """
    if spec in GLYPH_SETS:
        images = open_glyphs(**glyph_options(config, GLYPH_SETS[spec]))
        pairs, same = glyph_pairs(images, NUM_PAIRS, seed=config.data.seed)
        return EvaluationSet(
            spec, images, pairs, same, mirror=False, fonts=images.fonts, families=images.families
        )
    if spec == HELD_BACK:
        return _held_back_set(config, field)
    path, _, holder = spec.partition("@")
    if not Path(path).is_file() or path.lower().endswith(LABELLED):
        what = f"no such file{near_name(path)}"
        if Path(path).exists():
            what = "a labelled set, and verification needs pairs"
        raise ValueError(
            f"{field}: {spec!r}: {what}; allowed: {', '.join(GLYPH_SETS)}, "
            f"{HELD_BACK}, a .bin file, or a pair list as LIST or LIST@FOLDER-OR-TAR"
        )
    name = Path(path).stem
    found = (
        read_bin(path) if path.endswith(".bin") else read_pairs(path, holder or Path(path).parent)
    )
    check_pairs(found.same, f"{field}: {path}")
    return EvaluationSet(name, found.images, found.pairs, found.same, mirror=True)


def _held_back_set(config: Config, field: str) -> EvaluationSet:
    """Pairs of the classes that the training does not see."""
    if not config.data.held_back:
        raise ValueError(
            f"{field}: {HELD_BACK!r}: the training held no classes back (data.held_back: 0); allowed: "
            "another set, or a training with data.held_back=N"
        )
    images = open_held_back(config)
    try:
        pairs, same = class_pairs(images.labels, NUM_PAIRS, seed=config.data.seed)
    except ValueError as error:
        raise ValueError(f"data.held_back: {config.data.held_back}: {error}") from error
    return EvaluationSet(HELD_BACK, images, pairs, same, mirror=mirrors(config))


def check_pairs(same: np.ndarray, where: str) -> None:
    """Refuse pairs that ten-fold verification cannot judge, before anything is embedded.

    Args:
        same: bool [P].
        where: What the message begins with: field and file.

    Raises:
        ValueError: fewer than ten pairs, or all of one kind.
    """
    num, num_same = len(same), int(same.sum())
    if num < NUM_FOLDS or num_same in (0, num):
        raise ValueError(
            f"{where}: {num} pairs, {num_same} of them of the same class; allowed: at least {NUM_FOLDS}, of "
            "both kinds"
        )


def mirrors(config: Config) -> bool:
    """Whether the training takes an image and its mirror image for the same thing."""
    return any(isinstance(one, Flip) for one in build_augment(config))


def pair_similarity(embeddings: Tensor, pairs: np.ndarray) -> np.ndarray:
    """Cosine of each pair: unit embeddings [n, D] -> float64 [P]."""
    first, second = (embeddings[torch.from_numpy(pairs[:, side])].double() for side in (0, 1))
    return (first * second).sum(1).numpy()


def embed_as_configured(
    net: nn.Module,
    images: ImageSet,
    config: Config,
    comm: Comm,
    device: torch.device,
    *,
    mirror: bool,
    normalise: bool = True,
    batch_size: int = EMBED_BATCH,
) -> Tensor:
    """`embed` with the image size, decoder, crop, workers and precision of a training; collective.

    Returns:
        float32 [n, D], the same on every rank, on the CPU.

    Raises:
        ValueError: see `embed`; on all ranks.
    """
    data = config.data
    return embed(
        net,
        images,
        size=data.image_size,
        decoder=data.decoder,
        crop=data.crop,
        batch_size=batch_size,
        workers=data.workers,
        flip=mirror,
        normalise=normalise,
        device=device,
        dtype=autocast_dtype(config),
        rank=comm.rank,
        world=comm.world,
        gather=comm.all_gather_rows,
        together=comm.together,
    )


class Evaluator:
    """The sets of data.eval, opened when first needed.

    Args:
        config: Image size, decoder, workers, precision and the sets.
        class_names: Names of the training classes, for sets that share them; of several datasets as each
            has them, so that a name may occur twice.
        comm: The ranks that evaluate together.
        device: Where the backbone is.
    """

    def __init__(
        self, config: Config, class_names: Sequence[str], comm: Comm, device: torch.device
    ) -> None:
        self.config, self.class_names, self.comm, self.device = config, class_names, comm, device
        self._sets: dict[str, EvaluationSet] = {}
        self.curves: dict[str, Curves] = {}
        """Of each set's newest evaluation, on rank 0."""
        self.pairs: dict[str, JudgedPairs] = {}
        """The same, where track.report asks for it."""

    def run(self, net: nn.Module, head: ModelParallelSoftmax | None) -> list[dict[str, Any]]:
        """Figures of every set in data.eval, the same on every rank; collective."""
        return [self.figures(chosen, net, head) for chosen in self.open_all()]

    def open_all(self) -> list[EvaluationSet]:
        """The sets of data.eval.

        Raises:
            ValueError: two of them have the same name.
        """
        chosen = [self.open(spec) for spec in self.config.data.eval]
        names = [one.name for one in chosen]
        if len(set(names)) < len(names):
            raise ValueError(
                f"data.eval: {names}; allowed: file names that differ before the suffix"
            )
        return chosen

    def open(self, spec: str) -> EvaluationSet:
        """The set of that name."""
        if spec not in self._sets:
            self._sets[spec] = open_evaluation_set(spec, self.config)
        return self._sets[spec]

    def embeddings(self, chosen: EvaluationSet, net: nn.Module) -> Tensor:
        """Unit embeddings [n, D] of all images of a set, on every rank, on the CPU; collective."""
        return embed_as_configured(
            net, chosen.images, self.config, self.comm, self.device, mirror=chosen.mirror
        )

    def figures(
        self, chosen: EvaluationSet, net: nn.Module, head: ModelParallelSoftmax | None
    ) -> dict[str, Any]:
        """One line of metrics for one set."""
        embeddings = self.embeddings(chosen, net)
        line = {"set": chosen.name, **summarise(verify_set(embeddings, chosen, num_bootstrap=0))}
        if self.comm.rank == 0:
            self._keep(chosen, pair_similarity(embeddings, chosen.pairs))
        if chosen.fonts is not None:
            line["recall_at_1"] = glyph_recall(embeddings, chosen)
        if chosen.name == "glyphs-closed" and head is not None:
            line["top1"] = self._top1(embeddings, chosen, head)
        return line

    def _keep(self, chosen: EvaluationSet, similarity: np.ndarray) -> None:
        """Curves and pairs of the newest evaluation, for trackers."""
        self.curves[chosen.name] = curves(similarity, chosen.same)
        data, images = self.config.data, chosen.images
        if not self.config.track.report:
            return
        self.pairs[chosen.name] = JudgedPairs(
            similarity,
            chosen.same,
            chosen.pairs,
            name=images.name,
            picture=lambda index: thumbnail(
                images, index, size=data.image_size, decoder=data.decoder, crop=data.crop
            ),
        )

    def _top1(
        self,
        embeddings: Tensor,
        chosen: EvaluationSet,
        head: ModelParallelSoftmax,
    ) -> float:
        """Share of images whose nearest class row is a class of their name; collective, in equal chunks."""
        merged = dict(head.merged.flip(1).tolist())
        known: dict[str, set[int]] = {}
        for number, name in enumerate(self.class_names):
            known.setdefault(str(name), set()).add(merged.get(number, number))
        names, labels = chosen.images.class_names, chosen.images.labels
        hits, chunk, num = 0, 256, len(labels)
        for start in range(0, num, chunk * self.comm.world):
            low = min(num, start + chunk * self.comm.rank)
            high = min(num, low + chunk)
            ids, _ = head.nearest_classes(embeddings[low:high].to(self.device))
            expected = [known.get(str(names[int(label)]), ()) for label in labels[low:high]]
            hits += sum(one in right for one, right in zip(ids.tolist(), expected, strict=True))
        total = self.comm.all_reduce_sum(torch.tensor([hits], device=self.device))
        return int(total) / max(1, num)


def verify_set(
    embeddings: Tensor, chosen: EvaluationSet, num_bootstrap: int = 1000, protocol: str = "exact"
) -> VerificationResult:
    """Ten-fold verification of a set from its unit embeddings; no intervals with num_bootstrap 0."""
    similarity = pair_similarity(embeddings, chosen.pairs)
    return verify(similarity, chosen.same, num_bootstrap=num_bootstrap, protocol=protocol)


def baseline(chosen: EvaluationSet, protocol: str) -> VerificationResult:
    """The same protocol on raw pixels: what no learning at all reaches."""
    return verify_set(raw_pixels(chosen.images), chosen, protocol=protocol)


def glyph_recall(embeddings: Tensor, chosen: EvaluationSet) -> float:
    """Recall@1: gallery one font (the one that draws most characters), queries the other families."""
    assert chosen.fonts is not None
    assert chosen.families is not None
    gallery = chosen.fonts == np.bincount(chosen.fonts).argmax()
    labels = np.asarray(chosen.images.labels)
    others = chosen.families != chosen.families[gallery][0]
    queries = others & np.isin(labels, labels[gallery])
    return recall_at_1(
        embeddings[torch.from_numpy(gallery)],
        torch.from_numpy(labels[gallery]),
        embeddings[torch.from_numpy(queries)],
        torch.from_numpy(labels[queries]),
    )


def summarise(result: VerificationResult) -> dict[str, float]:
    """The figures of a verification that go into metrics.jsonl."""
    tars = {f"tar_at_far_{t.far:g}": t.tar for t in result.tar_at_far if t.supported}
    return {
        "accuracy": result.accuracy,
        "accuracy_std": result.accuracy_std,
        "auc": result.auc,
        "eer": result.eer,
        **tars,
    }
