"""The sections of the configuration that describe the head."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class BasketsConfig:
    """Several datasets whose identities may overlap (data.train: a list of at least two)."""

    rule: str | dict[str, Any] = "top_one"
    """Which classes of other datasets are negatives: all_distinct, own, threshold, target_relative,
    top_one, top_k, hardest, known; or {kind: top_one, tau: 0.3}."""
    warmup: int = 0
    """First steps, in which a sample's negatives are the classes of its own dataset only."""
    merge: str | None = None
    """A list of classes to merge before the first step: RUN/merged.csv of a training that linked, or a
    reviewed RUN/duplicates.csv."""
    duplicates: float | None = 0.5
    """Cosine of class means from which two classes of different datasets are listed in RUN/duplicates.csv at
    the end, after one more pass over the images; null for no pass and no list."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkingConfig:
    """Classes of different datasets found to be one identity become one class during training."""

    every: int = 1000
    """Steps between checks, each a pass over the images."""
    threshold: float = 0.5
    """Least cosine of class means."""
    doubt: float = 0.1
    """Share of the nearest classes within a dataset, certainly different identities, whose lead over the
    runner-up may be as large as that of a trusted pair."""
    lead: float = 0.05
    """Least lead over the runner-up that is ever trusted, in cosine."""
    stable: int = 2
    """Checks in a row that must trust a pair before it is linked."""
    release: float = 0.3
    """A linked class whose images' mean falls below this cosine to the rest of its group is split off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """The sharded classifier."""

    objective: str | dict[str, Any] = "arcface"
    """normface, cosface, arcface, combined, sphereface, dsoftmax, npcface, mvsoftmax, curricularface,
    adaface, magface, circle, adacos; or {kind: arcface, scale: 64, margin: 0.5}; or your own,
    package.module:Class."""
    negatives: str | dict[str, Any] = "all"
    """all, or {kind: noise_filter, threshold: 0.4}."""
    candidates: str | dict[str, Any] = "all"
    """all, uniform (rate 0.1), uniform_blocks, dsoftmax_k, dsoftmax_b, or {kind: uniform, rate: 0.2}."""
    weights: str | dict[str, Any] = "learned"
    """learned, sub_centres, class_centres, or {kind: class_centres, rule: ema, alpha: 0.5}."""
    baskets: BasketsConfig | None = None
    """Treatment of several datasets; null takes the defaults where data.train lists several."""
    linking: LinkingConfig | None = None
    """Linking of identities between datasets; null for none."""
    optimizer: str | dict[str, Any] | None = None
    """sgd, adamw, or {kind: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5e-4}; lr defaults to
    train.optimizer's. Null is sgd, and none for class_centres."""
    untouched: Literal["frozen", "lazy"] = "frozen"
    """What sampled steps do with rows they leave out."""
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """dtype of the head's matrix products."""
    row_dtype: Literal["float32", "bfloat16", "float64"] | None = None
    """dtype of class rows and their optimiser rows, bfloat16 with stochastic rounding; null: float32, or
    float64 where the products are."""
    storage: Literal["device", "host", "mapped"] = "device"
    """Where class rows live: on the device; in host memory; in a mapped file of touched rows. The last two
    need sampled candidates."""
    storage_dir: str | None = None
    """Folder of the mapped file, which is scratch; null: RUN/rows."""
    kernel: Literal["auto", "blocked", "native", "reference", "triton"] = "auto"
    """Which kernel sweeps the classes: auto (native on a CPU where it was built, else blocked), blocked,
    native, reference, triton ([kernels](kernels.md))."""
    e_budget_bytes: int = 2**30
    """Bytes of exponentials kept between forward and update; the rest is recomputed."""
    update_beside: bool = False
    """Whether rows on a CUDA device move on a stream of their own, beside the backbone
    ([kernels](kernels.md#streams))."""
    init_std: float = 0.01
    """Standard deviation of the initial class rows."""
    start_from: str | None = None
    """Run folder or checkpoint whose rows this run starts from, class by class in their order, of as many
    classes; with new_rows by class names; null: from scratch."""
    new_rows: Literal["random", "class_mean"] | None = None
    """Rows of head.start_from go to the classes of the same names, and those of other classes begin random,
    or as the mean of their images' features by backbone.start_from; null: the same classes, by number."""
    renamed: str | None = None
    """With new_rows: CSV of columns old,new: classes of the old run that are called otherwise here; several
    of one new name are averaged, one of none is left."""
