"""Small runs under another engine, and how far two runs lie apart."""

from pathlib import Path

import torch
from small_runs import final_tensors, losses


def distances(first: Path, second: Path) -> dict[str, float]:
    """Largest |difference| of losses, backbone (with its optimiser's state) and class rows of two runs."""
    a, b = final_tensors(first), final_tensors(second)
    assert a.keys() == b.keys()
    curves = torch.tensor([losses(first), losses(second)], dtype=torch.float64)
    out = {"loss": float((curves[0] - curves[1]).abs().max())}
    for part in ("backbone", "optimizer", "head"):
        pairs = [(a[n].double(), b[n].double()) for n in a if n.startswith(part + ".")]
        sizes = [float((x - y).abs().max()) for x, y in pairs if x.numel()]
        out[part] = max(sizes, default=0.0)
    return out
