"""What the tests of hand-worked values share: a whole head in two dimensions, every cosine chosen.

A sample lies along e1 with norm a; a class with cosine z to it has the row (z, sqrt(1 - z^2)), so that every
cosine is chosen, and the gradient by the feature (f1, f2) is

    df1 = dL/da                                                                 the radial part
    df2 = (Phi_t sqrt(1 - t^2) + sum_j Phi_l pi_j g'_j sqrt(1 - z_j^2)) / a     the tangential part

with pi_j = e^{g_j - l}. Figures: mpmath at 200 digits from these formulas and those above each test, 20
of them pasted; nothing comes from the package. Usual negatives: Z = 0.28, -0.6, 0 with s = 16, hence
l = log(e^4.48 + e^-9.6 + 1).
"""

import math

import torch

import mpsoftmax as mp

Z = (0.28, -0.6, 0.0)
NO_MOVE = mp.RowSGD(lr=0.0, momentum=0.0, weight_decay=0.0)


def head_of(objective, rows, **kwargs):
    """A float64 head with these rows [[w1, w2], ...] that do not move."""
    dtypes = {"compute_dtype": torch.float64, "row_dtype": torch.float64}
    optimizer = {} if "weights" in kwargs else {"optimizer": NO_MOVE}
    head = mp.ModelParallelSoftmax(
        2, len(rows), objective=objective, **{**dtypes, **optimizer, **kwargs}
    )
    head.load_rows(torch.arange(len(rows)), torch.tensor(rows, dtype=torch.float64))
    return head


def row(z):
    """The row of cosine z with e1."""
    return [z, math.sqrt(1 - z * z)]


def along(*norms):
    """Features along e1."""
    return torch.tensor([[a, 0.0] for a in norms], dtype=torch.float64, requires_grad=True)


def close(value, expected, rtol=1e-12, atol=1e-13):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    value = torch.as_tensor(value).detach().double()
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol)


def watched(head, name, expected):
    """A statistic: float32."""
    close(head.last_stats[name], expected, rtol=1e-6, atol=1e-7)


def check(objective, t, others, loss, tangent, radial=0.0, a=1.0, **kwargs):
    """One sample of class 0 against classes 1, 2, ... of these cosines."""
    head = head_of(objective, [row(z) for z in (t, *others)], **kwargs)
    features = along(a)
    value = head(features, torch.tensor([0]))
    value.backward()
    close(value, loss)
    close(features.grad, [[radial, tangent]])
    return head
