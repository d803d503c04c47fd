"""The class-weights axis: what a class's rows are.

Learned rows move by gradient. Sub-centres are K learned rows a class, of which the nearest speaks for it.
Class centres follow the class's features and have neither gradient nor optimiser.
"""

from dataclasses import dataclass
from typing import ClassVar


class Weights:
    """What every kind of class weights offers."""

    num_centres: int = 1
    """K: rows of a class."""
    learned: ClassVar[bool] = True
    """Whether rows move by gradient."""


@dataclass(frozen=True)
class Learned(Weights):
    """One learned row a class."""


@dataclass(frozen=True)
class SubCentres(Weights):
    """K learned rows a class, the nearest counts: robust to noisy labels. Deng et al., ECCV 2020.

    All K rows of a class live on one rank. The cosine of a sample and a class is the largest of the K;
    gradient goes to that row only.
    """

    num: int = 3

    def __post_init__(self) -> None:
        """Check the number."""
        if isinstance(self.num, bool) or not isinstance(self.num, int) or not 1 <= self.num <= 64:
            raise ValueError(f"SubCentres.num: {self.num!r}; allowed: a whole number from 1 to 64")

    @property
    def num_centres(self) -> int:  # type: ignore[override]
        """K."""
        return self.num


CENTRE_RULES = ("ema", "center_loss", "exact")
CENTRE_FEATURES = ("normalised", "raw")


@dataclass(frozen=True)
class ClassCentres(Weights):
    """IR-Softmax: a class's weight is the centre of its features. Zhu et al., ACCV 2020 (arXiv 2011.11155).

    That weights are centres is the paper's; how they follow is our reconstruction. In `head.step()`, for each
    class with samples in the batch (mu their mean, n their number):

        ema          c <- (1 - alpha) c + alpha mu
        center_loss  c <- c - alpha sum(c - x) / (1 + n)         (Wen et al., ECCV 2016)
        exact        nothing: only a pass over the data sets the centres (`head.class_means`)

    A class is nobody's negative before its first sample, whose batch mean becomes its centre at once.

    Attributes:
        rule: How centres follow between passes.
        alpha: Weight of the batch.
        features: Average unit features ("normalised") or features as they are ("raw").
        refresh_every: Steps between passes over the data that set all centres exactly, the first before
            step 0; 0 for none. Whoever runs the loop does the pass (`mpsoftmax train` does).
    """

    learned: ClassVar[bool] = False
    rule: str = "ema"
    alpha: float = 0.5
    features: str = "normalised"
    refresh_every: int = 0

    def __post_init__(self) -> None:
        """Check the fields."""
        for name, allowed in (("rule", CENTRE_RULES), ("features", CENTRE_FEATURES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"ClassCentres.{name}: {value!r}; allowed: {', '.join(allowed)}")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"ClassCentres.alpha: {self.alpha!r}; allowed: 0 < alpha <= 1")
        if isinstance(self.refresh_every, bool) or not isinstance(self.refresh_every, int):
            raise ValueError(f"ClassCentres.refresh_every: {self.refresh_every!r}; allowed: steps")
        if self.refresh_every < 0:
            raise ValueError(f"ClassCentres.refresh_every: {self.refresh_every!r}; allowed: >= 0")


WEIGHTS: dict[str, type[Weights]] = {
    "learned": Learned,
    "sub_centres": SubCentres,
    "class_centres": ClassCentres,
}
