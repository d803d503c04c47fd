"""Images that do not fit their class, and classes that fall into two parts.

Every cut counts deviations from what is usual for this model and this set: from the median of all images, in
standard deviations estimated by the median deviation, which a few per cent of errors do not move. They were
chosen on Omniglot with planted errors and then looked at on LFW (docs/cleaning.md).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mpsoftmax.clean.centres import Fit, deviations
from mpsoftmax.clean.finding import Finding
from mpsoftmax.data.image_set import ImageSet

RELABEL, LISTED = 4.0, 1.5
"""Deviations of the margin from which an image nearer to another class is suggested for it; is listed."""
LEAST_CLASS = 3
"""In a class of two, nobody can tell which image is the wrong one."""
LEAST_CLUSTERED, SMALL_CLUSTER = 6, 2
OUTLIER = 6.0
"""An image is to be left out where its cosine to its class is so many deviations below the median."""


def label_findings(images: ImageSet, places: np.ndarray, fitted: Fit) -> list[Finding]:
    """Likely label errors.

    Args:
        images: The set.
        places: int64 [n], which of its images `fitted` is about.
        fitted: Of these.

    Returns:
        Those nearer to another class's mean than to their own, and outliers that fit none; the score is the
        margin's deviation.
    """
    labels = torch.from_numpy(images.labels[places])
    large = torch.bincount(labels)[labels] >= LEAST_CLASS
    scores = deviations(fitted.margin, large)
    nearer, outlier = fitted.margin > 0, deviations(fitted.own, large) < -OUTLIER
    found = []
    listed = large & ((nearer & (scores >= LISTED)) | outlier)
    for row in torch.nonzero(listed)[:, 0].tolist():
        score, place = float(scores[row]), int(places[row])
        relabel = bool(nearer[row]) and score >= RELABEL
        action = "relabel" if relabel else "drop" if outlier[row] else "keep"
        label, near = int(labels[row]), int(fitted.nearest[row])
        found.append(
            Finding(
                kind="label",
                action=action,
                score=score,
                class_id=label,
                class_name=str(images.class_names[label]),
                image=place,
                image_name=images.name(place),
                to_class=near,
                to_class_name=str(images.class_names[near]),
                evidence=f"cosine {fitted.own[row]:.3f} to its class, {fitted.other[row]:.3f} to the other",
            )
        )
    return found


@dataclass(frozen=True)
class Halves:
    """A class in two parts: cosine of their means, and the size of the smaller one."""

    class_id: int
    cosine: float
    smaller: int


def two_parts(unit: Tensor, steps: int = 10) -> tuple[float, int]:
    """Spherical 2-means of one class, begun at the image farthest from the mean and the one farthest from it.

    Args:
        unit: float32 [n, D] unit embeddings, n >= 2.
        steps: Rounds at most.

    Returns:
        Cosine of the two means, and the size of the smaller part.
    """
    first = int((unit @ F.normalize(unit.sum(0), dim=0)).argmin())
    second = int((unit @ unit[first]).argmin())
    means = unit[[first, second]]
    part = torch.full((len(unit),), -1)
    for _ in range(steps):
        new = (unit @ means.T).argmax(1)
        if torch.equal(new, part) or len(torch.unique(new)) < 2:
            break
        part = new
        means = F.normalize(torch.stack([unit[part == k].sum(0) for k in (0, 1)]))
    counts = torch.bincount(part.clamp_min(0), minlength=2)
    return float(means[0] @ means[1]), int(counts.min())


def cluster_findings(
    images: ImageSet, places: np.ndarray, unit: Tensor, apart: float
) -> list[Finding]:
    """Classes whose images form two clusters as far apart as different classes are.

    Args:
        images: The set.
        places: int64 [n], which of its images `unit` is about.
        unit: float32 [n, D].
        apart: Cosine of two parts' means below which they are listed.
    """
    labels = images.labels[places]
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    found = []
    for members in np.split(order, cuts):
        if len(members) < LEAST_CLUSTERED:
            continue
        cosine, smaller = two_parts(unit[torch.from_numpy(members)])
        if smaller < SMALL_CLUSTER or cosine >= apart:
            continue
        label = int(labels[members[0]])
        found.append(
            Finding(
                kind="two_clusters",
                action="keep",
                score=1.0 - cosine,
                class_id=label,
                class_name=str(images.class_names[label]),
                evidence=f"{smaller} of {len(members)} images apart: cosine {cosine:.3f} between the parts",
            )
        )
    return found
