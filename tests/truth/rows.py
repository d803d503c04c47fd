"""How class rows move: textbook optimisers on the dense matrix, and the rules of class centres."""

import torch
from torch.nn.functional import normalize


class Dense:
    """The optimiser on all rows at once: who was touched decides who moves."""

    def __init__(self, kind, rows, untouched, lr, **p):
        self.kind, self.lazy, self.lr, self.p = kind, untouched == "lazy", lr, p
        self.m, self.v = torch.zeros_like(rows), torch.zeros_like(rows)
        self.age = torch.zeros_like(rows.select(-1, 0)).unsqueeze(-1)

    def step(self, rows, gradient, touched):
        mask = touched.view(-1, *[1] * (rows.ndim - 1))
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


def directions(features, kind):
    """What a class centre is the mean of: unit features, or the features as they are."""
    return normalize(features, dim=1) if kind == "normalised" else features


class Centres:
    """Class centres as rows (IR-Softmax): no gradient, one class after the other."""

    def __init__(self, rows, rule, alpha, kind):
        self.rows, self.rule, self.alpha, self.kind = rows, rule, alpha, kind
        self.seen = torch.zeros(rows.shape[0], dtype=torch.bool)

    def of_batch(self, features, labels):
        """Rows as this batch sees them: a class's first batch gives it its mean."""
        rows, points = self.rows.clone(), directions(features.detach(), self.kind)
        for c in set(labels.tolist()) - {-1}:
            if not self.seen[c]:
                rows[c] = points[labels == c].mean(0)
        return rows

    def refresh(self, features, labels):
        """Exact means of a whole data set."""
        points = directions(features, self.kind)
        for c in set(labels.tolist()) - {-1}:
            self.rows[c] = points[labels == c].mean(0)
            self.seen[c] = True

    def step(self, features, labels):
        """Move the centres of the batch's classes."""
        first, points = self.of_batch(features, labels), directions(features.detach(), self.kind)
        for c in set(labels.tolist()) - {-1}:
            mine, row = points[labels == c], self.rows[c]
            if not self.seen[c]:
                row = first[c]
            elif self.rule == "ema":
                row = (1 - self.alpha) * row + self.alpha * mine.mean(0)
            elif self.rule == "center_loss":
                row = row - self.alpha * sum(row - x for x in mine) / (1 + len(mine))
            self.rows[c] = row
            self.seen[c] = True
