"""The data sets of the quality benchmarks, by name: "omniglot/hold=164,baskets=3,overlap=50".

Names and their options:
    omniglot   hold=N: the last N of the 964 training classes are kept for choosing settings;
               baskets=N, overlap=P: identities dealt into N baskets (baskets.py), P in percent;
               tail=steep|celeba: long-tailed class sizes (long_tail.py)
    glyphs     classes=N: that many of the training characters (all, about 16,000, if not given); tail
    lfw        hold=N: the last N of the 1,184 training people with two images or more
Everything here is a function of the name alone: the seed of a run changes the run, not the data.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from baskets import deal
from long_tail import impose
from sources import Images, glyphs, lfw, omniglot
from torch import Tensor


@dataclass(frozen=True)
class Benchmark:
    """What a run trains on and what it is judged by."""

    train: Images
    test: Images
    """Classes never trained on: the figures that are reported."""
    select: Images | None = None
    """Other classes never trained on: the figures by which settings are chosen."""
    closed: Images | None = None
    """Images of the trained classes, held out."""
    basket_sizes: tuple[int, ...] = ()
    identities: Tensor | None = None
    """int64 [num_classes]: true identity of each class, where baskets cut identities up."""

    @property
    def num_classes(self) -> int:
        """Classes trained on."""
        return int(self.train.labels.max()) + 1


def open_benchmark(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ValueError: the data set or an option is not known.
    """
    source, _, text = name.partition("/")
    options = dict(part.split("=") for part in text.split(",") if part)
    if source not in _SOURCES:
        raise ValueError(f"dataset: {source!r}; allowed: {', '.join(_SOURCES)}")
    benchmark = _SOURCES[source](options)
    if "tail" in options:
        benchmark = _long_tailed(benchmark, options.pop("tail"))
    if "baskets" in options:
        num, overlap = int(options.pop("baskets")), int(options.pop("overlap")) / 100
        benchmark = _in_baskets(benchmark, num, overlap)
    if options:
        raise ValueError(f"dataset: {name!r}: options not known: {', '.join(options)}")
    return benchmark


def _omniglot(options: dict[str, str]) -> Benchmark:
    train, test = omniglot()
    train, select = hold_back(train, int(options.pop("hold", 0)))
    return Benchmark(train, test, select)


def _lfw(options: dict[str, str]) -> Benchmark:
    train, test = lfw()
    train, select = hold_back(train, int(options.pop("hold", 0)))
    return Benchmark(train, test, select)


def _glyphs(options: dict[str, str]) -> Benchmark:
    train, closed, test = glyphs()
    chosen = torch.arange(int(train.labels.max()) + 1)
    held = chosen % 25 == 24
    select, kept = of_classes(train, chosen[held]), chosen[~held]
    if "classes" in options:
        num = int(options.pop("classes"))
        kept = kept[torch.linspace(0, len(kept) - 1, num).long()]
    return Benchmark(of_classes(train, kept), test, select, of_classes(closed, kept))


_SOURCES: dict[str, Callable[[dict[str, str]], Benchmark]] = {
    "omniglot": _omniglot,
    "glyphs": _glyphs,
    "lfw": _lfw,
}


def hold_back(images: Images, num: int) -> tuple[Images, Images | None]:
    """The images without those of the last `num` classes, and these."""
    classes = torch.arange(int(images.labels.max()) + 1)
    if num == 0:
        return images, None
    return of_classes(images, classes[:-num]), of_classes(images, classes[-num:])


def of_classes(images: Images, classes: Tensor) -> Images:
    """The images of some classes (int64 [m], ascending), which become 0 .. m - 1."""
    part = images.at(torch.isin(images.labels, classes))
    return replace(part, labels=torch.searchsorted(classes, part.labels))


def _long_tailed(benchmark: Benchmark, kind: str) -> Benchmark:
    chosen, held_out = impose(benchmark.train.labels, kind)
    return replace(benchmark, train=benchmark.train.at(chosen), closed=benchmark.train.at(held_out))


def _in_baskets(benchmark: Benchmark, num: int, overlap: float) -> Benchmark:
    dealt = deal(benchmark.train.labels, num, overlap)
    return replace(
        benchmark,
        train=replace(benchmark.train, labels=dealt.labels),
        basket_sizes=dealt.sizes,
        identities=dealt.identities,
    )
