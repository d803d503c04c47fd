"""What is trained, in plain words, and its loss from the full matrix of logits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from truth import negatives, targets


@dataclass(frozen=True)
class Method:
    """An objective, and what its negatives are."""

    objective: str
    p: Mapping = field(default_factory=dict)
    """Numbers of the formula, named as the head's objectives name them."""
    noise: float | None = None
    """Noise filter: cosines above it get the logit 0."""
    baskets: tuple[int, ...] = ()
    """Classes of each data set."""
    rule: tuple = ("all_distinct",)
    """Mining rule: name, numbers; ("hardest", n, after) takes another rule."""
    warmup: int = 0
    """Steps in which the own basket alone gives negatives."""
    margins: tuple = ()
    """Margin of each basket, None for the objective's own."""


@dataclass
class Outcome:
    loss: Tensor
    state: dict
    """Running statistics with this batch."""
    gap: float
    """Least distance of a cosine from a threshold: what is decided by less is decided by rounding."""
    negatives: Tensor
    """bool [n, C]"""
    hard: Tensor
    """bool [n, C]"""


def start_state(name):
    """Running statistics before the first batch."""
    return {"curricularface": {"ema": 0.0}, "adaface": {"norm_mean": 20.0, "norm_std": 100.0}}.get(
        name, {}
    )


def next_scale(t, logits, before):
    """AdaCos: what the scale becomes after a batch, from the exponentials themselves; never below 1."""
    mean = torch.exp(logits.double()).sum(1).mean()
    middle = torch.arccos(t.double()).sort().values[(len(t) - 1) // 2]
    scale = float(mean.log() / torch.cos(middle.clamp(max=math.pi / 4)))
    return scale if 1 <= scale <= 1e6 else before


def advanced(name, p, state, t, norm):
    """Running statistics with one more batch."""
    if name == "curricularface":
        return {"ema": p["momentum"] * float(t.mean()) + (1 - p["momentum"]) * state["ema"]}
    if name == "adaface":
        new = {"norm_mean": norm.clamp(1e-3, 100).mean(), "norm_std": norm.clamp(1e-3, 100).std()}
        if norm.numel() < 2:  # one sample deviates from nothing
            new["norm_std"] = state["norm_std"]
        m = p["momentum"]
        return {key: m * float(new[key]) + (1 - m) * state[key] for key in state}
    return dict(state)


def cosines(features, rows, labels, bf16):
    """Cosines [n, C] to each class and [n] to the own one; of several rows a class, the nearest counts.

    With bf16 the matrix product takes bfloat16 operands, as plain mixed-precision code would.
    """
    x = normalize(features, dim=1)
    w = normalize(rows if rows.ndim == 3 else rows[:, None], dim=2)
    product = torch.einsum("nd,ckd->nck", x, w)
    if bf16:
        flat = x.bfloat16() @ w.flatten(0, 1).bfloat16().T
        product = flat.to(x.dtype).view(product.shape)
    own = torch.einsum("nd,nkd->nk", x, w[labels])
    return product.max(2).values, own.max(1).values


def loss(
    method, features, rows, labels, candidates, *, step=0, state=None, training=True, chosen=None,
    merged=(), bf16=False,
):  # fmt: skip
    """Mean loss over valid samples.

    `candidates` bool [C]: who counts as a negative; `chosen`: positions among the valid samples whose inter
    part counts (DSoftmaxB); `merged`: pairs (class, parked class) that share the first one's row; a
    sample's margin is that of the basket it came from.
    """
    name, p = method.objective, dict(method.p)
    state = start_state(name) if state is None else state
    valid = labels >= 0
    features, labels = features[valid], labels[valid]
    if labels.numel() == 0:
        nobody = torch.zeros(0, rows.shape[0], dtype=torch.bool)
        return Outcome(features.sum() * 0, dict(state), torch.inf, nobody, nobody)
    original = labels
    for kept, parked in merged:
        labels = torch.where(labels == parked, kept, labels)
        candidates = candidates & (torch.arange(len(candidates)) != parked)
    norm = features.norm(dim=1)
    cosine, t = cosines(features, rows, labels, bf16)
    if any(m is not None for m in method.margins):
        margins = [p["margin"] if m is None else m for m in method.margins]
        margins = torch.tensor(margins, dtype=torch.float64).to(t.dtype)
        p["margin"] = margins[negatives.basket_of(original, method.baskets)]
    if training:
        state = advanced(name, p, state, t.detach().double(), norm.detach().double())
    fixed, own = cosine.detach(), t.detach()
    mask = negatives.negative_mask(method, fixed, own, labels, candidates, step, merged)
    edge = negatives.threshold_of_hard(name, own, p)
    hard = mask & (fixed > (torch.full_like(own, torch.inf) if edge is None else edge)[:, None])
    scale = norm if name == "sphereface" else torch.full_like(norm, p.get("scale", 64.0))
    if name == "adacos" and state:
        scale = torch.full_like(norm, state["scale"])
    logits = negatives.logits(method, cosine, hard, mask, scale, p, state)
    mean_hard = (fixed * hard).sum(1) / hard.sum(1).clamp(min=1)
    phi = targets.target_cosine(name, t, norm, p, step=step, state=state, mean_hard=mean_hard)
    intra, inter = per_sample(name, p, t, norm, logits, phi * scale)
    if name == "adacos" and training and p["dynamic"]:
        before = float(scale[0])
        after = next_scale(own, logits.detach(), before)
        state = {"scale": p["momentum"] * after + (1 - p["momentum"]) * before}
    value = intra.mean() + (inter if chosen is None else inter[chosen]).mean()
    edges = [*constants(method, own), *([] if edge is None else [edge])]
    return Outcome(value, state, gap(fixed, labels, edges), mask, hard)


def gap(cosine, labels, edges):
    """Least distance of another class's cosine [n, C] from one of the edges, each [n]."""
    other = torch.nn.functional.one_hot(labels, cosine.shape[1]) == 0
    distances = [(cosine - edge[:, None]).abs()[other] for edge in edges]
    return float(torch.cat([torch.full((1,), torch.inf), *distances]).min())


def per_sample(name, p, t, norm, logits, phi):
    """(own part, part of the negatives) of each sample's loss; one of them 0 where they are not apart."""
    if name == "dsoftmax":
        end = p["end_point"] + p["margin"]
        intra = torch.log1p(torch.exp(p["scale"] * (end - t)))
        return intra, log_one_more(logits)
    extra = targets.magface_regulariser(norm, p) if name == "magface" else 0 * norm
    if t.dtype == torch.float64:
        return extra, log_one_more(logits - phi[:, None])
    return extra, torch.logsumexp(torch.cat([logits, phi[:, None]], 1), 1) - phi


def log_one_more(logits):
    """[n] log(1 + sum of e^logit): good to the last digit of a small loss; e^700 is within float64."""
    if logits.dtype == torch.float64:
        return torch.log1p(torch.exp(logits).sum(1))
    return torch.logsumexp(torch.cat([logits, logits.new_zeros(len(logits), 1)], 1), 1)


def constants(method, t):
    """Thresholds of the noise filter and the mining rule, each [n]."""
    if method.noise is not None:
        yield 0 * t + method.noise
    rule = method.rule
    while method.baskets and rule[0] == "hardest":
        rule = rule[2]
    if method.baskets and rule[0] in ("threshold", "top_one"):
        yield 0 * t + rule[1]
    if method.baskets and rule[0] == "target_relative":
        yield (*rule, 1.0)[2] * t - rule[1]
