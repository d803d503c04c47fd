"""Own cosine after margin, objective by objective. Margins may be one number a sample."""

import math

import torch

HELD = 1 - 1e-5  # margins on the angle stop here: their slope is infinite at one


def turned(t, angle):
    """cos(arccos t + angle), expanded: no arccos, exact slope; t held within +-HELD, without gradient."""
    t, angle = t.clamp(-HELD, HELD), torch.as_tensor(angle, dtype=t.dtype)
    return t * angle.cos() - torch.sqrt(1 - t * t) * angle.sin()


def turned_exactly(t, angle):
    """The same without gradient, up to t = +-1."""
    t, angle = t.detach().clamp(-1, 1), torch.as_tensor(angle, dtype=t.dtype)
    return t * angle.cos() - torch.sqrt(1 - t * t) * angle.sin()


def with_fallback(t, m):
    """ArcFace until theta + m passes pi, then t - m sin m."""
    m = torch.as_tensor(m, dtype=t.dtype)
    return torch.where(t > -m.cos(), turned(t, m), t - m * m.sin())


def arcface(t, p):
    m, variant = p["margin"], p.get("variant", "exact")
    if variant == "exact":
        return turned(t, m)
    if variant == "straight_through":  # the right value, the slope of t
        return t + turned_exactly(t, m) - t.detach()
    if variant == "easy":
        return torch.where(t > 0, turned(t, m), t)
    assert variant == "fallback"
    return with_fallback(t, m)


def combined(t, p):
    m1, m2, m3 = p["m1"], p["m2"], p["m3"]
    if m1 == 1:
        return turned(t, m2) - m3
    assert m1 == 1.5  # cos(3 theta / 2) by half angles: theta/2 lies in [0, pi/2]
    t = t.clamp(-HELD, HELD)
    half, sine_half = torch.sqrt((1 + t) / 2), torch.sqrt((1 - t) / 2)
    cosine, sine = 4 * half**3 - 3 * half, 3 * sine_half - 4 * sine_half**3
    return cosine * math.cos(m2) - sine * math.sin(m2) - m3


def sphereface(t, p, step):
    m, held = p["margin"], t.clamp(-HELD, HELD)
    chebyshev = [torch.ones_like(t), held]
    for _ in range(m - 1):
        chebyshev.append(2 * held * chebyshev[-1] - chebyshev[-2])
    k = sum((t < math.cos(j * math.pi / m)).to(t.dtype) for j in range(1, m)) if m > 1 else 0 * t
    psi = (-1) ** k * chebyshev[m] - 2 * k
    lam = max(p["lam"], p.get("lam_start", 0.0) / (1 + p.get("lam_decay", 0.1) * step))
    return (lam * t + psi) / (1 + lam)


def adaface(t, norm, p, state):
    a = norm.detach().clamp(1e-3, 100.0)
    k = (p["h"] * (a - state["norm_mean"]) / (state["norm_std"] + 1e-3)).clamp(-1, 1)
    angle = torch.arccos(t.detach().clamp(-HELD, HELD)) - p["margin"] * k
    cosine = turned(t, -p["margin"] * k)
    cosine = torch.where(angle < 1e-3, math.cos(1e-3), cosine)
    cosine = torch.where(angle > math.pi - 1e-3, -math.cos(1e-3), cosine)
    return cosine - p["margin"] - p["margin"] * k


def magface(t, norm, p):
    share = (norm - p["lower_norm"]) / (p["upper_norm"] - p["lower_norm"])
    share = torch.where(share > 1, 1.0, torch.where(share < 0, 0.0, share))
    margin = p["lower_margin"] * (1 - share) + p["upper_margin"] * share
    return torch.where(t > 0, turned(t, margin), t)


def magface_regulariser(norm, p):
    a = torch.minimum(torch.maximum(norm, 0 * norm + p["lower_norm"]), 0 * norm + p["upper_norm"])
    return p["regulariser"] * (a / p["upper_norm"] ** 2 + 1 / a)


def mvsoftmax(t, p):
    m = torch.as_tensor(p["margin"], dtype=t.dtype)
    if p["variant"] == "am":
        return torch.where(t > m, t - m, t)
    return torch.where(t > 0, turned(t, m), t)


def circle(t, p):
    weight = torch.relu(1 + p["relaxation"] - t.detach())
    return weight * (t - 1 + p["relaxation"])


def target_cosine(name, t, norm, p, *, step, state, mean_hard):
    """Own cosine after margin, to be multiplied by the scale."""
    if name in ("normface", "dsoftmax", "adacos"):
        return t
    if name == "cosface":
        return t - p["margin"]
    if name == "npcface":
        return torch.where(t > 0, turned(t, p["m0"] + p["m1"] * mean_hard), t)
    return {
        "arcface": lambda: arcface(t, p),
        "combined": lambda: combined(t, p),
        "sphereface": lambda: sphereface(t, p, step),
        "mvsoftmax": lambda: mvsoftmax(t, p),
        "curricularface": lambda: with_fallback(t, p["margin"]),
        "adaface": lambda: adaface(t, norm, p, state),
        "magface": lambda: magface(t, norm, p),
        "circle": lambda: circle(t, p),
    }[name]()
