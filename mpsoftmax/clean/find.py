"""Everything suspicious in a data set, by a trained model."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mpsoftmax.clean.centres import Fit, class_sums, fit
from mpsoftmax.clean.finding import KINDS, Finding, ordered
from mpsoftmax.clean.identities import Calibration, calibrate, likely_pairs
from mpsoftmax.clean.labels import cluster_findings, label_findings
from mpsoftmax.clean.near_duplicates import near_pairs, same_pictures
from mpsoftmax.comm import Comm
from mpsoftmax.data.decode import CorruptImage, decode
from mpsoftmax.data.image_set import IGNORE, ImageSet, Subset
from mpsoftmax.data.union import Union
from mpsoftmax.head.duplicates import Pair
from mpsoftmax.models import TrainedModel


@dataclass(frozen=True)
class Findings:
    """What was found.

    Attributes:
        listed: Within the data set, by kind, the most suspicious first.
        between: Likely one identity in two data sets, by class number in `sets`.
        sets: The data set and the others, where there are others.
    """

    listed: list[Finding]
    between: list[Pair]
    sets: Union | None

    def counts(self) -> dict[str, Counter[str]]:
        """How many of each kind, by suggested action."""
        counts = {kind: Counter[str]() for kind in KINDS}
        for one in self.listed:
            counts[one.kind][one.action] += 1
        return counts


def find(
    model: TrainedModel,
    images: ImageSet,
    *,
    others: Sequence[tuple[str, ImageSet]] = (),
    name: str = "data",
    mirror: bool = False,
    kinds: Sequence[str] = KINDS,
    comm: Comm | None = None,
) -> Findings:
    """Look for label errors, near-duplicates, and identities that have several classes; collective.

    Embedding is shared by the ranks; what follows is rank 0's, and takes 4 D bytes an image of memory and
    time that grows with images times classes (label), images squared (near_duplicate), classes squared
    (identity).

    Args:
        model: Trained on these images or on others of their kind.
        images: The set, at least two classes.
        others: Names and further sets, whose identities are compared with this one's.
        name: What the set itself is called.
        mirror: Average with the embedding of the mirror image.
        kinds: What to look for.
        comm: The ranks.

    Returns:
        On rank 0 all findings; on other ranks none.

    Raises:
        ValueError: an unknown kind, too few classes, or an image that cannot be decoded.
    """
    comm = comm or Comm()
    strange = [kind for kind in kinds if kind not in KINDS]
    if strange:
        raise ValueError(f"kinds: {strange[0]!r}; allowed: {', '.join(KINDS)}")
    sets = [(name, images), *others]
    embedded = [embed_labelled(model, one, mirror, comm) for _, one in sets]
    return comm.together(
        lambda: search(model, sets, embedded, kinds) if comm.rank == 0 else Findings([], [], None)
    )


def embed_labelled(
    model: TrainedModel, images: ImageSet, mirror: bool, comm: Comm
) -> tuple[np.ndarray, Tensor]:
    """Which images have a class, int64 [n], and their unit embeddings [n, D]."""
    places = np.flatnonzero(images.labels != IGNORE)
    if len(np.unique(images.labels[places])) < 2:
        raise ValueError("data: fewer than two classes with images; there is nothing to compare")
    everything = np.arange(len(images.class_names), dtype=np.int64)
    labelled = Subset(images, places.astype(np.int64), everything)
    return places, model.embed(labelled, mirror=mirror, comm=comm)


def search(
    model: TrainedModel,
    sets: Sequence[tuple[str, ImageSet]],
    embedded: Sequence[tuple[np.ndarray, Tensor]],
    kinds: Sequence[str],
) -> Findings:
    """The findings from embeddings."""
    images, (places, unit) = sets[0][1], embedded[0]
    labels, num = torch.from_numpy(images.labels[places]), len(images.class_names)
    fitted = fit(unit, labels, num)
    listed: list[Finding] = []
    if "label" in kinds:
        listed += label_findings(images, places, fitted)
    if "two_clusters" in kinds:
        # two parts as far apart as an image is from other classes' means are hardly one class
        listed += cluster_findings(images, places, unit, apart=float(fitted.other.median()))
    if "near_duplicate" in kinds:
        listed += near_findings(model, images, places, unit, fitted)
    between: list[Pair] = []
    if "identity" in kinds:
        inside, between = identity_findings(sets, embedded, calibrate(unit, labels, num))
        listed += inside
    union = Union([one for _, one in sets], [name for name, _ in sets]) if len(sets) > 1 else None
    return Findings(ordered(settled(listed)), between, union)


def settled(listed: Sequence[Finding]) -> list[Finding]:
    """The findings, without labels suggested from a class to one that is likely the same identity."""
    one_identity = {
        frozenset((one.class_id, one.to_class)) for one in listed if one.action == "merge"
    }
    return [
        replace(one, action="keep", evidence=f"{one.evidence}; the classes are likely one identity")
        if one.action == "relabel" and frozenset((one.class_id, one.to_class)) in one_identity
        else one
        for one in listed
    ]


def near_findings(
    model: TrainedModel, images: ImageSet, places: np.ndarray, unit: Tensor, fitted: Fit
) -> list[Finding]:
    """Images that are nearly another one; of the two, the one that fits its class less is to be dropped."""
    data = model.config.data

    def pixels(row: int) -> np.ndarray:
        index = int(places[row])
        try:
            return decode(images.image(index), data.image_size, data.decoder, data.crop)
        except CorruptImage as error:
            raise ValueError(f"{images.name(index)}: {error}") from error

    found = []
    for a, b, correlation in same_pictures(near_pairs(unit), pixels):
        fits = [float(fitted.own[one].nan_to_num(-1.0)) for one in (a, b)]
        worse, better = (a, b) if fits[0] < fits[1] else (b, a)
        drop, kept = int(places[worse]), int(places[better])
        labels = int(images.labels[drop]), int(images.labels[kept])
        where = "within a class" if labels[0] == labels[1] else "in two classes"
        found.append(
            Finding(
                kind="near_duplicate",
                action="drop",
                score=correlation,
                class_id=labels[0],
                class_name=str(images.class_names[labels[0]]),
                image=drop,
                image_name=images.name(drop),
                to_class=labels[1],
                to_class_name=str(images.class_names[labels[1]]),
                other_image=kept,
                evidence=f"{where}: correlation {correlation:.3f}, cosine {float(unit[a] @ unit[b]):.3f}",
            )
        )
    return found


def identity_findings(
    sets: Sequence[tuple[str, ImageSet]],
    embedded: Sequence[tuple[np.ndarray, Tensor]],
    calibration: Calibration,
) -> tuple[list[Finding], list[Pair]]:
    """Pairs of classes of the first set, and pairs between sets, that are likely one identity."""
    images, sizes = sets[0][1], [len(one.class_names) for _, one in sets]
    means = torch.cat(
        [
            F.normalize(
                class_sums(unit, torch.from_numpy(one.labels[places]), torch.ones(len(unit)), size)
            )
            for (_, one), (places, unit), size in zip(sets, embedded, sizes, strict=True)
        ]
    )
    found, between = [], []
    for pair in likely_pairs(means, sizes, calibration.listed):
        if pair.class_a >= sizes[0]:
            continue  # within or between the others: not what was asked
        if pair.class_b >= sizes[0]:
            between += [pair] if calibration.trusts(pair) else []
            continue
        found.append(
            Finding(
                kind="identity",
                action="merge" if calibration.trusts(pair) else "keep",
                score=pair.cosine + pair.lead,
                class_id=pair.class_a,
                class_name=str(images.class_names[pair.class_a]),
                to_class=pair.class_b,
                to_class_name=str(images.class_names[pair.class_b]),
                evidence=f"cosine {pair.cosine:.3f} of the means, lead {pair.lead:.3f}; halves of one class "
                f"reach {calibration.merge:.3f} in three of four cases",
            )
        )
    return found, between


def set_names(paths: Sequence[str]) -> list[str]:
    """A name for each data set: the last part of its path, numbered where several share it."""
    names = [Path(path).name.split(".")[0] or path for path in paths]
    return [
        f"{name}-{names[:i].count(name) + 1}" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]
