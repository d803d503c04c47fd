"""The single-process truth: every logit materialised, plain autograd, formulas written out anew.

Nothing here is imported from the package, and where possible the algebra is another one: cos(theta + m) is
expanded, SphereFace's psi is a Chebyshev polynomial, mining rules are Python loops over samples and baskets,
the zero logit of D-Softmax is one more column, the optimisers are the textbook updates on the dense matrix.

    targets.py    logit of the sample's own class after margin
    negatives.py  which classes are negatives, which are hard, and their logits
    method.py     Method (what is trained) and its loss
    rows.py       how rows move: dense optimisers, class centres
"""

from truth.method import Method, Outcome, loss, start_state
from truth.rows import Centres, Dense, directions

__all__ = ["Centres", "Dense", "Method", "Outcome", "directions", "loss", "start_state"]
