"""Images of the three sources as tensors, 32 x 32, grey; decoded or rendered once and cached.

The cache is $MPSOFTMAX_CACHE, else ~/.cache/mpsoftmax: never the repository. The shared data lies in
../shared/data beside the repository.
"""

import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpsoftmax.data.font_files import font_files
from mpsoftmax.data.glyph_cache import default_cache_dir
from mpsoftmax.data.glyphs import open_glyphs

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FONTS = ("wqy-microhei.ttc", "wqy-zenhei.ttc", "uming.ttc", "ukai.ttc")
"""Of the Debian packages fonts-wqy-microhei, fonts-wqy-zenhei, fonts-arphic-uming and fonts-arphic-ukai."""
NUM_OPEN_CHARACTERS = 2000
FACE_SIZE, FACE_BORDER = 32, 8
PERSON_CAP = 10


@dataclass(frozen=True)
class Images:
    """Images with labels."""

    pixels: Tensor
    """uint8 [n, 1, 32, 32]; Omniglot and glyphs: ink 255 on 0."""
    labels: Tensor
    """int64 [n], 0 .. num_classes - 1."""
    groups: Tensor
    """int64 [n]: images of one group are not compared: the image itself, or a font family."""

    def at(self, which: Tensor) -> "Images":
        """Some of the images: a mask or positions."""
        return Images(self.pixels[which], self.labels[which], self.groups[which])


def omniglot() -> tuple[Images, Images]:
    """964 background classes to train on, 659 evaluation classes; 20 drawings each."""
    arrays = np.load(SHARED / "omniglot32.npz")
    pixels = torch.from_numpy(255 - arrays["x"])[:, None]
    labels, test = torch.from_numpy(arrays["y"].astype(np.int64)), arrays["split"] == 1
    images = Images(pixels, labels, torch.arange(len(labels)))
    train, unseen = (images.at(torch.from_numpy(which)) for which in (~test, test))
    return (
        replace(train, labels=numbered(train.labels)),
        replace(unseen, labels=numbered(unseen.labels)),
    )


def glyphs() -> tuple[Images, Images, Images]:
    """Ideographs: training characters, the same in an unseen family, and 2,000 characters never seen."""
    found = font_files((), use_matplotlib=False, use_system=True)
    fonts = sorted(path for path in found if path.name in FONTS)
    if len(fonts) < len(FONTS):
        raise ValueError(f"fonts: {[path.name for path in fonts]} found of {FONTS}; see sources.py")
    train, closed, unseen = (_glyph_split(fonts, split) for split in ("train", "closed", "open"))
    step = (int(unseen.labels.max()) + 1) / NUM_OPEN_CHARACTERS
    wanted = (torch.arange(NUM_OPEN_CHARACTERS) * step).long()
    unseen = unseen.at(torch.isin(unseen.labels, wanted))
    return train, closed, replace(unseen, labels=numbered(unseen.labels))


def _glyph_split(fonts: list[Path], split: str) -> Images:
    versions = "-".join(str(path.stat().st_size) for path in fonts)
    arrays = cached(f"ideographs-{split}-{versions}", lambda: _render(fonts, split))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Images(tensors["pixels"][:, None], tensors["labels"], tensors["families"])


def _render(fonts: list[Path], split: str) -> dict[str, np.ndarray]:
    chosen = open_glyphs(
        split=split,
        fonts=fonts,
        use_system_fonts=False,
        use_matplotlib_fonts=False,
        min_fonts=2,
        code_points="cjk",
    )
    pixels = np.stack([chosen.image(index)[:, :, 0] for index in range(len(chosen))])
    return {"pixels": pixels, "labels": chosen.labels, "families": chosen.families}


def lfw() -> tuple[Images, Images]:
    """LFW View 1: DevTrain people with two images or more, and DevTest (a) with at most 10 each."""
    train, test = (_faces(name) for name in ("lfw_train", "lfw_test_a"))
    several = torch.bincount(train.labels)[train.labels] >= 2
    train = train.at(several)
    place = torch.arange(len(test.labels)) - torch.searchsorted(test.labels, test.labels)
    return replace(train, labels=numbered(train.labels)), test.at(place < PERSON_CAP)


def _faces(name: str) -> Images:
    """Faces of a tar, people in alphabetical order: the middle 96 x 96 of 112 x 112, at 32 x 32."""
    arrays = cached(f"{name}-{FACE_SIZE}", lambda: _decode(SHARED / f"{name}.tar"))
    pixels = torch.from_numpy(arrays["pixels"])[:, None]
    labels = torch.from_numpy(np.unique(arrays["people"], return_inverse=True)[1]).long()
    return Images(pixels, labels, torch.arange(len(labels)))


def _decode(path: Path) -> dict[str, np.ndarray]:
    from PIL import Image

    pixels, people = [], []
    box = (FACE_BORDER, FACE_BORDER, 112 - FACE_BORDER, 112 - FACE_BORDER)
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if not member.name.endswith(".jpg"):
                continue
            file = archive.extractfile(member)
            assert file is not None
            image = Image.open(io.BytesIO(file.read())).convert("L")
            small = image.resize((FACE_SIZE, FACE_SIZE), Image.Resampling.BOX, box=box)
            pixels.append(np.asarray(small))
            people.append(member.name.split("/")[-2])
    return {"pixels": np.stack(pixels), "people": np.array(people)}


def cached(name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays from the cache, made first if it has none. Several processes may ask at once."""
    path = default_cache_dir() / f"quality-{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{os.getpid()}-{path.name}")
        np.savez(partial, **make())  # pyright: ignore[reportArgumentType]
        os.replace(partial, path)
    return dict(np.load(path))


def numbered(labels: Tensor) -> Tensor:
    """Labels replaced by their ranks: 0 .. m - 1."""
    return torch.unique(labels, return_inverse=True)[1]
