"""Are planted errors found? Label errors and split identities in real data, by `mpsoftmax clean`.

    python benchmarks/clean.py plant omniglot ../shared/data/omniglot32.npz FOLDER
    python benchmarks/clean.py plant lfw ../shared/data/lfw_train.tar FOLDER
    mpsoftmax train ... data.train=FOLDER/NAME.arrow run.dir=RUN
    python benchmarks/clean.py find RUN FOLDER/NAME

`plant` writes FOLDER/NAME.arrow and what was planted as FOLDER/NAME.json; of Omniglot also classes without
errors, which are other characters: the model of that case has never seen the ones that are cleaned. The model
of LFW is trained with the errors in its data, which is the usual case.

Reported: of label errors among images of classes of at least 4 images, average precision of the ranking,
precision at the number planted, precision and recall of what is suggested (relabel or drop), and how often
the class suggested is the true one; of split identities the same of the pairs.
"""

import argparse
from pathlib import Path

import numpy as np
from planting import LEAST_IMAGES, Planted, plant
from sklearn.metrics import average_precision_score

from mpsoftmax.clean.find import find
from mpsoftmax.clean.finding import Finding
from mpsoftmax.data.convert import convert
from mpsoftmax.data.image_set import ImageSet, keep_classes
from mpsoftmax.data.open import open_images
from mpsoftmax.models import open_model

SEED, SWAPPED = 0, 0.05
SPLIT = {"omniglot": 0.05, "lfw": 0.2}
"""LFW has few people with six images or more."""


class Drawings:
    """One split of Omniglot; an ``ImageSet``."""

    def __init__(self, file: Path, split: int) -> None:
        data = np.load(file)
        chosen = data["split"] == split
        self._pixels = data["x"][chosen]
        numbers, labels = np.unique(data["y"][chosen], return_inverse=True)
        self.labels = labels.astype(np.int64)
        self.class_names = [f"c{number:04d}" for number in numbers]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """RGB pixels uint8 [32, 32, 3]."""
        return np.repeat(self._pixels[index][:, :, None], 3, axis=2)

    def name(self, index: int) -> str:
        """Its number."""
        return f"drawing {index}"


def plant_into(name: str, source: Path, folder: Path) -> None:
    """Write the planted set and what was planted."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "omniglot":
        convert(Drawings(source, 0), folder / "omniglot_others.arrow")
        images: ImageSet = Drawings(source, 1)
    else:
        images = keep_classes(open_images(source), 2)
    planted, truth = plant(images, swapped=SWAPPED, split=SPLIT[name], seed=SEED)
    convert(planted, folder / f"{name}.arrow")
    truth.save(folder / f"{name}.json")
    print(f"{len(planted)} images, {len(planted.class_names)} classes")
    print(f"planted: {len(truth.swapped)} swapped labels, {len(truth.split)} split identities")


def ranking(correct: np.ndarray, scores: np.ndarray, suggested: np.ndarray, num: int) -> str:
    """Average precision, precision at the number planted, precision and recall of what is suggested.

    Args:
        correct: bool [n], which candidates were planted.
        scores: [n].
        suggested: bool [n].
        num: Planted ones, also those that are no candidates.
    """
    reached = correct.sum() / num
    average = average_precision_score(correct, scores) * reached
    best = correct[np.argsort(-scores)[:num]].sum() / num
    precision = correct[suggested].mean() if suggested.any() else 0.0
    recall = correct[suggested].sum() / num
    return (
        f"average precision {average:.3f}, precision at {num} {best:.3f}; suggested {suggested.sum()}: "
        f"precision {precision:.3f}, recall {recall:.3f}"
    )


def judge_labels(listed: list[Finding], images: ImageSet, truth: Planted) -> str:
    """How well swapped labels are found; images that are not listed rank last."""
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    scores, suggested = np.full(len(images), -1e9), np.zeros(len(images), bool)
    to = {}
    for one in listed:
        if one.kind == "label":
            scores[one.image], suggested[one.image] = one.score, one.action != "keep"
            to[one.image] = one.to_class if one.action == "relabel" else -1
    wrong = np.zeros(len(images), bool)
    wrong[[image for image, _ in truth.swapped]] = True
    part = counts[images.labels] >= LEAST_IMAGES
    halves = dict(truth.split)
    right = [to.get(image, -1) in (true, halves.get(true, true)) for image, true in truth.swapped]
    text = ranking(wrong[part], scores[part], suggested[part], int(wrong.sum()))
    return f"{text}; true class suggested for {np.mean(right):.3f}"


def judge_identities(listed: list[Finding], truth: Planted) -> str:
    """How well split identities are found."""
    some = [one for one in listed if one.kind == "identity"]
    planted = {tuple(sorted(pair)) for pair in truth.split}
    correct = np.array([(one.class_id, one.to_class) in planted for one in some], bool)
    scores = np.array([one.score for one in some])
    suggested = np.array([one.action == "merge" for one in some], bool)
    return ranking(correct, scores, suggested, len(planted))


def main() -> None:
    """Plant, or find and judge."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    planting = commands.add_parser("plant")
    planting.add_argument("name", choices=sorted(SPLIT))
    planting.add_argument("source", type=Path)
    planting.add_argument("folder", type=Path)
    finding = commands.add_parser("find")
    finding.add_argument("model")
    finding.add_argument("planted", help="FOLDER/NAME")
    finding.add_argument("--mirror", action="store_true")
    options = parser.parse_args()
    if options.command == "plant":
        plant_into(options.name, options.source, options.folder)
        return
    images = open_images(f"{options.planted}.arrow")
    truth = Planted.load(Path(f"{options.planted}.json"))
    kinds = ("label", "identity")
    found = find(open_model(options.model), images, mirror=options.mirror, kinds=kinds)
    print(f"labels:     {judge_labels(found.listed, images, truth)}")
    print(f"identities: {judge_identities(found.listed, truth)}")


if __name__ == "__main__":
    main()
