"""What the readers of the training images found and did not use, in a line."""

from collections import Counter

from mpsoftmax.data.folder import FolderImages, TarImages
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.train.data_facts import sets_beneath


def left_out(images: ImageSet) -> str | None:
    """How many files and folders of class folders are not used, by reason; None if all are.

    The readers noted them when they opened the set: nothing is read again.
    """
    folders = [one for one in sets_beneath(images) if isinstance(one, FolderImages | TarImages)]
    reasons = Counter(
        problem.rpartition(": ")[2].removesuffix(", not used")
        for one in folders
        for problem in one.problems
    )
    if not reasons:
        return None
    counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    return f"data.train: {reasons.total():,} not used ({counts}); mpsoftmax inspect shows some"
