"""Which classes are a sample's negatives, which are hard, and their logits; choices without gradient."""

import torch

from truth.targets import turned_exactly


def basket_of(classes, sizes):
    """Data set of each class id: the classes of all sets lie side by side."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[classes]


def members(sizes, merged):
    """Data sets that each class belongs to: its own, and those of classes merged into it."""
    basket = basket_of(torch.arange(sum(sizes)), sizes).tolist()
    sets = [{b} for b in basket]
    for kept, parked in merged:
        sets[kept].add(basket[parked])
    return basket, sets


def mined(sample, rule, cosine, target, others, baskets):
    """Classes of other baskets that a rule lets through: a set, for one sample.

    `others`: their ids; `cosine` [C] of this sample; `rule`: its name and its numbers.
    """
    name, *numbers = rule
    if name == "all_distinct":
        return set(others)
    if name == "own":
        return set()
    if name == "known":
        return set(others) - partners(sample, numbers[0])
    if name == "threshold":
        return {j for j in others if cosine[j] < numbers[0]}
    if name == "target_relative":
        delta, kappa = (*numbers, 1.0)[:2]
        return {j for j in others if cosine[j] < kappa * target - delta}
    if name == "hardest":
        num, after = numbers
        left = mined(sample, after, cosine, target, others, baskets)
        return set(sorted(left, key=lambda j: -cosine[j])[:num])
    dropped = set()
    for basket in {int(baskets[j]) for j in others}:
        ranked = sorted((j for j in others if baskets[j] == basket), key=lambda j: -cosine[j])
        if name == "top_one":
            dropped |= {j for j in ranked[:1] if cosine[j] > numbers[0]}
        else:
            assert name == "top_k"
            dropped |= set(ranked[: numbers[0]])
    return set(others) - dropped


def partners(class_id, pairs):
    """Every class named in one pair with this one."""
    return {b for a, b in pairs if a == class_id} | {a for a, b in pairs if b == class_id}


def negative_mask(method, cosine, t, labels, available, step, merged):
    """bool [n, C]: N_i. `available` bool [C]: who may be a negative at all."""
    own = torch.nn.functional.one_hot(labels, cosine.shape[1]).bool()
    mask = available[None, :] & ~own
    if not method.baskets:
        return mask
    baskets, sets = members(method.baskets, merged)
    rule = ("own",) if step < method.warmup else method.rule
    for i, label in enumerate(labels.tolist()):
        others = [j for j in torch.nonzero(mask[i])[:, 0].tolist() if not sets[j] & sets[label]]
        left = mined(label, rule, cosine[i].tolist(), float(t[i]), others, baskets)
        for j in set(others) - left:
            mask[i, j] = False
    return mask


def threshold_of_hard(name, t, p):
    """[n] cosine above which a negative is hard, or None."""
    if name == "mvsoftmax" and p["variant"] == "am":
        return t - p["margin"]
    if name in ("mvsoftmax", "curricularface"):
        return turned_exactly(t, p["margin"])
    if name == "npcface":
        return turned_exactly(t, p["mask_margin"])
    if name == "circle":
        return 0 * t - p["relaxation"]
    return None


def hard_logit(name, z, p, state):
    """Value of a hard negative over the scale; autograd gives the slope."""
    if name == "mvsoftmax":
        return p["hard_scale"] * z + p["hard_scale"] - 1
    if name == "npcface":
        return p["hard_scale"] * z + p["hard_shift"]
    return z * (state["ema"] + z)


def logits(method, cosine, hard, mask, scale, p, state):
    """[n, C] with gradient; -inf where a class is no negative. `scale` [n]."""
    value = cosine
    if method.objective == "circle":
        # The slope is the weight: it is no factor to be differentiated.
        weight = torch.relu(cosine.detach() + p["relaxation"])
        value = weight * (cosine - p["relaxation"])
    elif hard.any():
        value = torch.where(hard, hard_logit(method.objective, cosine, p, state), cosine)
    value = scale[:, None] * value
    if method.noise is not None:
        value = torch.where(cosine > method.noise, torch.zeros_like(value), value)
    return value.masked_fill(~mask, -torch.inf)
