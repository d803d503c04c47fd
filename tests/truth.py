"""The single-process truth: every logit materialised, plain autograd, formulas written out anew.

Nothing here is imported from the package: margins use other algebra (cos(theta + m) expanded, Chebyshev
polynomials for SphereFace), the optimisers are the textbook updates on the dense matrix.
"""

import math

import torch
from torch.nn.functional import normalize


def target_logit(name, t, norm, p):
    """Logit of the target after margin."""
    s, sine = p.get("scale", 64.0), torch.sqrt(1 - t * t)
    if name == "normface":
        return s * t
    if name == "cosface":
        return s * (t - p["margin"])
    if name == "arcface":
        m = p["margin"]
        return s * (t * math.cos(m) - sine * math.sin(m))
    if name == "combined":
        assert p["m1"] == 1
        return s * (t * math.cos(p["m2"]) - sine * math.sin(p["m2"]) - p["m3"])
    assert name == "sphereface"
    assert p["margin"] == 4
    k = sum((t < math.cos(j * math.pi / 4)).to(t.dtype) for j in (1, 2, 3))
    psi = (-1) ** k * (8 * t**4 - 8 * t**2 + 1) - 2 * k
    return norm * (p["lam"] * t + psi) / (1 + p["lam"])


def loss(name, features, rows, labels, candidates, p, bf16=False):
    """Mean loss over valid samples; `candidates` bool [C]: who counts as a negative.

    With bf16 the matrix product takes bfloat16 operands, as plain mixed-precision code would.
    """
    valid = labels >= 0
    features, labels = features[valid], labels[valid]
    if labels.numel() == 0:
        return features.sum() * 0
    norm = features.norm(dim=1)
    x, w = normalize(features, dim=1), normalize(rows, dim=1)
    cosine = (x.bfloat16() @ w.bfloat16().T).to(x.dtype) if bf16 else x @ w.T
    own = torch.nn.functional.one_hot(labels, rows.shape[0]).bool()
    t = (x * w[labels]).sum(1)
    scale = norm[:, None] if name == "sphereface" else p.get("scale", 64.0)
    logits = (scale * cosine).masked_fill(~(candidates | own), -torch.inf)
    target = target_logit(name, t, norm, p)
    logits = torch.where(own, target[:, None], logits)
    return (torch.logsumexp(logits, 1) - target).mean()


class Dense:
    """The optimiser on all rows at once: who was touched decides who moves."""

    def __init__(self, kind, rows, untouched, lr, **p):
        self.kind, self.lazy, self.lr, self.p = kind, untouched == "lazy", lr, p
        self.m, self.v = torch.zeros_like(rows), torch.zeros_like(rows)
        self.age = torch.zeros(rows.shape[0], 1, dtype=rows.dtype)

    def step(self, rows, gradient, touched):
        mask = touched[:, None]
        new = (self.sgd if self.kind == "sgd" else self.adamw)(rows, gradient, mask)
        if self.lazy:
            rows[:], self.m, self.v, self.age = new
            return
        old = (rows, self.m, self.v, self.age)
        rows[:], self.m, self.v, self.age = (
            torch.where(mask, a, b) for a, b in zip(new, old, strict=True)
        )

    def sgd(self, rows, gradient, mask):
        m = self.p["momentum"] * self.m + gradient + self.p["weight_decay"] * rows
        return rows - self.lr * m, m, self.v, self.age

    def adamw(self, rows, gradient, mask):
        (b1, b2), age = self.p["betas"], self.age + 1
        m = b1 * self.m + (1 - b1) * gradient
        v = b2 * self.v + (1 - b2) * gradient**2
        move = m / (1 - b1**age) / ((v / (1 - b2**age)).sqrt() + self.p["eps"])
        rows = rows * (1 - self.lr * self.p["weight_decay"]) - self.lr * move * mask
        return rows, m, v, age
