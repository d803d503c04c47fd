"""How well single classes are learned: a bounded sample of the training images, looked at after training.

Of every class in the sample: how alike its images are, the nearest other class, and the angle between its
row in the table and the mean of its images. Classes are drawn evenly over their sizes (1, 2-3, 4-7, ...
images), so that large and small classes can be compared whatever their numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mpsoftmax.comm import Comm
from mpsoftmax.config import Config
from mpsoftmax.data.image_set import ImageSet, Subset
from mpsoftmax.data.order import share
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.train.centres import DataPass

MAX_CLASSES, MAX_IMAGES, IMAGES_OF_CLASS = 1024, 4096, 8
LEAST_IMAGES, SHARE_OF_TRAINING = 256, 20
MOST_COSINES = 4_000_000_000
"""Classes of the table x classes of the sample; beyond, other classes are looked for in the sample only."""
T = TypeVar("T")


def sample_classes(labels: np.ndarray, num_classes: int, max_images: int, seed: int) -> np.ndarray:
    """Indices int64 [m], ascending, of images of at most MAX_CLASSES classes; m <= max_images.

    Args:
        labels: int64 [n]; -1 is no class.
        num_classes: Classes, also those without images.
        max_images: Most images.
        seed: Draws classes, and at most IMAGES_OF_CLASS images of each.
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(labels[labels >= 0], minlength=num_classes)
    order = rng.permutation(np.flatnonzero(sizes))
    bins = np.log2(sizes[order]).astype(np.int64)
    by_bin = np.argsort(bins, kind="stable")
    turn = np.empty_like(bins)  # a class's number within its bin: bins take turns
    turn[by_bin] = np.arange(len(bins)) - np.searchsorted(bins[by_bin], bins[by_bin])
    order = order[np.lexsort((bins, turn))][:MAX_CLASSES]
    taken = np.minimum(sizes[order], IMAGES_OF_CLASS).cumsum()
    chosen = np.zeros(num_classes, bool)
    chosen[order[taken <= max_images]] = True
    found = rng.permutation(np.flatnonzero((labels >= 0) & chosen[labels]))
    found = found[np.argsort(labels[found], kind="stable")]
    place = np.arange(len(found)) - np.searchsorted(labels[found], labels[found])
    return np.sort(found[place < IMAGES_OF_CLASS])


def images_allowed(samples_trained: int) -> int:
    """Most images of the sample: a twentieth of what training passed, within LEAST_IMAGES .. MAX_IMAGES."""
    return min(MAX_IMAGES, max(LEAST_IMAGES, samples_trained // SHARE_OF_TRAINING))


def class_quality(
    config: Config,
    images: ImageSet,
    net: nn.Module,
    head: ModelParallelSoftmax,
    comm: Comm,
    *,
    step: int,
    samples: int,
) -> dict[str, Any]:
    """Look at a sample of classes; collective, the same on all ranks.

    Args:
        config: Of the training.
        images: The training images.
        net: The bare backbone, whole.
        head: Its rows.
        comm: The ranks.
        step: Steps taken.
        samples: Images that training passed, repeats counted.

    Returns:
        The tree of classes.json, columns of equal length under "classes": id, name, images (in the training
        set), used (in the sample), within (mean cosine of its images' pairs; null below two), other and
        other_name (the nearest other class), other_cosine (to the mean of its images), angle_rad (its row to
        that mean).

    Raises:
        ValueError: a rank could not embed its share; on all ranks.
    """
    device = next(net.parameters()).device
    num_classes = len(images.class_names)
    indices = sample_classes(images.labels, num_classes, images_allowed(samples), config.train.seed)
    ids = np.unique(images.labels[indices])
    chosen = Subset(images, indices, ids)
    tolerant = replace(config, data=replace(config.data, max_corrupt=len(chosen)))
    data_pass = DataPass(tolerant, chosen, comm, device)
    features, labels = agreed(comm, lambda: data_pass.features(net))
    features = normalize(comm.all_gather_rows(features))
    labels = comm.all_gather_rows(labels[:, None])[:, 0]
    features, labels = features[labels >= 0], labels[labels >= 0]
    means, counts, within = class_statistics(features, labels, len(ids))
    kept = torch.nonzero(counts > 0)[:, 0]
    ids = torch.from_numpy(ids).to(device)[kept]
    means, counts, within = means[kept], counts[kept], within[kept]
    everyone = config.head.storage == "device" and num_classes * len(ids) <= MOST_COSINES
    other, cosine = (nearest_in_table if everyone else nearest_in_sample)(head, ids, means, comm)
    sizes = np.bincount(images.labels[images.labels >= 0], minlength=num_classes)
    numbers, others = ids.tolist(), other.tolist()
    return {
        "step": step,
        "num_classes": num_classes,
        "sampled_images": len(features),
        "among": "table" if everyone else "sample",
        "classes": {
            "id": numbers,
            "name": [str(images.class_names[number]) for number in numbers],
            "images": sizes[numbers].tolist(),
            "used": counts.tolist(),
            "within": finite(within),
            "other": others,
            "other_name": [str(images.class_names[number]) for number in others],
            "other_cosine": finite(cosine),
            "angle_rad": finite(row_angles(head, ids, means)),
        },
    }


def agreed(comm: Comm, action: Callable[[], T]) -> T:
    """`comm.together`, whatever goes wrong: looking back must not leave a rank waiting.

    Raises:
        ValueError: on all ranks.
    """

    def act() -> T:
        try:
            return action()
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    return comm.together(act)


def class_statistics(features: Tensor, labels: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of unit features [m, D] with labels int64 [m] in 0 .. num-1, by class.

    Returns:
        Unit means [num, D]; images int64 [num]; mean cosine of the pairs of different images [num], NaN
        where there is none: (|sum f|^2 - k) / (k (k - 1)) of k images.
    """
    sums = features.new_zeros(num, features.shape[1]).index_add_(0, labels, features)
    counts = torch.bincount(labels, minlength=num)
    k = counts.double()
    square = sums.double().square().sum(1)
    within = torch.where(counts > 1, (square - k) / (k * (k - 1)).clamp_min(1.0), torch.nan)
    return normalize(sums), counts, within


def nearest_in_table(
    head: ModelParallelSoftmax, ids: Tensor, means: Tensor, comm: Comm
) -> tuple[Tensor, Tensor]:
    """Of each class the nearest other row of the whole table: ids int64 [n], cosines [n]; collective."""
    low, high = share(len(ids), comm.rank, comm.world)
    found, cosine = head.nearest_classes(means[low:high], other_than=ids[low:high])
    gathered = comm.all_gather_rows(torch.stack([found.double(), cosine.double()], 1))
    return gathered[:, 0].to(torch.int64), gathered[:, 1]


def nearest_in_sample(
    head: ModelParallelSoftmax, ids: Tensor, means: Tensor, comm: Comm
) -> tuple[Tensor, Tensor]:
    """The same among the means of the sample."""
    cosine = means @ means.T
    cosine.masked_fill_(torch.eye(len(ids), dtype=torch.bool, device=ids.device), -torch.inf)
    value, place = cosine.max(1)
    return ids[place], value


def row_angles(head: ModelParallelSoftmax, ids: Tensor, means: Tensor) -> Tensor:
    """Angle [n] in radians between each class's (nearest) row and the mean of its images; collective."""
    rows = head.class_rows(ids).to(means.dtype).view(len(ids), -1, means.shape[1])
    cosine = nn.functional.cosine_similarity(rows, means[:, None], dim=2).amax(1)
    return torch.arccos(cosine.clamp(-1.0, 1.0))


def finite(values: Tensor) -> Sequence[float | None]:
    """Numbers with five decimals; None for one that is not finite."""
    return [round(v, 5) if np.isfinite(v) else None for v in values.double().tolist()]
