"""What a trained net and head are judged by."""

from collections.abc import Mapping
from typing import Any

import torch
from long_tail import group_of_sizes
from net import embedded
from sources import Images
from torch import Tensor, nn
from torch.nn import functional

FARS = (1e-3, 1e-4, 1e-5, 1e-6)
MIN_FALSE_ACCEPTS = 10
BLOCK = 512


def open_set(features: Tensor, images: Images) -> dict[str, float]:
    """Recall@1 and TAR at FAR over all pairs of images of different groups, in percent.

    Recall@1: the share of images whose most similar comparable image is of their class, among those that
    have one. TAR is given at each FAR that at least ten false accepts support.

    Args:
        features: float [n, D], raw.
        images: Their labels and groups.
    """
    unit = functional.normalize(features, dim=1)
    labels, groups = images.labels.to(torch.int32), images.groups.to(torch.int32)
    genuine, impostor = [], TopValues()
    hits = queries = 0
    for part in torch.randperm(len(unit), generator=torch.Generator().manual_seed(0)).split(BLOCK):
        cosine = unit[part] @ unit.T
        cosine.masked_fill_(groups[part, None] == groups, -2)
        nearest = cosine.argmax(1)
        same = labels[part, None] == labels
        of_same = cosine[same]
        genuine.append(of_same[of_same > -2])
        has_match = cosine.masked_fill(~same, -2).amax(1) > -2
        hits += int((labels[nearest] == labels[part])[has_match].sum())
        queries += int(has_match.sum())
        impostor.add(cosine.masked_fill_(same, -2))
    figures = tar_at_far(torch.cat(genuine), impostor)
    return {"recall_at_1": 100 * hits / queries, **figures}


class TopValues:
    """The largest similarities of impostor pairs (each met twice), and how many pairs there are.

    The first block, a random one, sets a floor below which no FAR asked for can have its threshold.
    """

    def __init__(self) -> None:
        self.num, self.floor = 0, -2.0
        self.kept: list[Tensor] = []

    def add(self, cosine: Tensor) -> None:
        """Similarities of a block of pairs; -2 where there is no impostor pair."""
        if not self.kept:
            values = cosine[cosine > -2]
            wanted = max(1, int(8 * max(FARS) * len(values)))
            self.floor = float(values.topk(wanted).values[-1])
        self.num += int((cosine > -2).sum())
        self.kept.append(cosine[cosine > self.floor])

    def values(self) -> Tensor:
        """The values kept, from large to small."""
        return torch.cat(self.kept).sort(descending=True).values


def tar_at_far(genuine: Tensor, impostor: TopValues) -> dict[str, float]:
    """TAR in percent at each supported FAR: accepted is what exceeds the first impostor not allowed."""
    figures: dict[str, float] = {"num_impostors": impostor.num // 2}
    largest = impostor.values()
    for far in FARS:
        allowed = int(far * impostor.num)
        if allowed / 2 < MIN_FALSE_ACCEPTS:
            continue
        assert allowed < len(largest), "the floor is too high"
        figures[f"tar_{far:.0e}"] = percent(genuine > largest[allowed])
    return figures


def closed_set(head: Any, features: Tensor, labels: Tensor, sizes: Tensor) -> dict[str, float]:
    """Top-1 against the class rows in percent, over all images and by the size of their class.

    Args:
        head: The trained head.
        features: float [n, D], raw, of images held out.
        labels: int64 [n].
        sizes: int64 [num_classes], training images of each class.
    """
    found = torch.cat([head.nearest_classes(part)[0] for part in features.split(BLOCK)])
    right = found == labels
    figures = {"closed": percent(right)}
    for name, classes in group_of_sizes(sizes).items():
        of_group = classes[labels]
        if of_group.any() and not of_group.all():
            figures[f"closed_{name}"] = percent(right[of_group])
    return figures


def held_out_recall(features: Tensor, images: Images, sizes: Tensor) -> dict[str, float]:
    """Recall@1 of held-out images among themselves by the size of their class: the embedding alone."""
    unit = functional.normalize(features, dim=1)
    nearest = torch.cat([_nearest_other(unit, images, part) for part in positions(len(unit))])
    right = images.labels[nearest] == images.labels
    return {
        f"held_out_recall_{name}": percent(right[classes[images.labels]])
        for name, classes in group_of_sizes(sizes).items()
        if classes[images.labels].any()
    }


def _nearest_other(unit: Tensor, images: Images, part: Tensor) -> Tensor:
    cosine = unit[part] @ unit.T
    return cosine.masked_fill_(images.groups[part, None] == images.groups, -2).argmax(1)


def positions(num: int) -> tuple[Tensor, ...]:
    """0 .. num - 1 in blocks."""
    return torch.arange(num).split(BLOCK)


def percent(right: Tensor) -> float:
    """Share of true values, bool [n], in percent."""
    return 100 * float(right.double().mean())


def angles(head: Any, means: Any, sizes: Tensor) -> dict[str, object]:
    """Mean angle in degrees between class weight and class centre, by class size and by group.

    Args:
        head: The trained head.
        means: Its class means over the training images.
        sizes: int64 [num_classes], training images of each class.
    """
    ids, angle_rad, _ = head.centre_angles(means)
    degrees, size = torch.rad2deg(angle_rad.double()), sizes[ids]
    by_size = {
        int(value): round(float(degrees[size == value].mean()), 2) for value in size.unique()
    }
    figures: dict[str, object] = {"angle": float(degrees.mean()), "angle_by_size": by_size}
    for name, classes in group_of_sizes(sizes).items():
        if classes[ids].any():
            figures[f"angle_{name}"] = float(degrees[classes[ids]].mean())
    return figures


def all_open_sets(net: nn.Module, sets: Mapping[str, Images | None]) -> dict[str, float]:
    """`open_set` of each set, names prefixed by the set's."""
    figures = {}
    for prefix, images in sets.items():
        if images is not None:
            found = open_set(embedded(net, images.pixels), images)
            figures.update({prefix + name: value for name, value in found.items()})
    return figures
