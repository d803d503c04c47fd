"""Does the exported graph give the numbers of the backbone? The check is part of the export."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mpsoftmax.data.pixels import to_float

BATCHES = (1, 7, 64)
TOLERANCE = 1e-5


def check_parity(
    run: Callable[[Tensor], Tensor],
    net: nn.Module,
    size: tuple[int, int],
    *,
    batches: Sequence[int] = BATCHES,
    tolerance: float = TOLERANCE,
) -> float:
    """Compare a graph with the backbone on made-up pictures, at several batch sizes.

    Args:
        run: The graph: pixels uint8 [b, 3, H, W] -> raw embeddings [b, D].
        net: The backbone in evaluation mode, on the CPU: float [b, 3, H, W] in [-1, 1] -> [b, D].
        size: (H, W).
        batches: Batch sizes.
        tolerance: Largest distance allowed between two embeddings of an image, as a share of their length;
            no coordinate of the unit embeddings differs by more.

    Returns:
        The largest such distance.

    Raises:
        ValueError: it is larger than ``tolerance``, or the graph fails at a batch size.
    """
    worst = 0.0
    for batch in batches:
        pixels = pictures(batch, size)
        with torch.no_grad():
            expected = net(to_float(pixels)).double()
        try:
            with torch.no_grad():
                found = run(pixels).double()
        except Exception as error:  # whatever the runtime of the graph raises
            raise ValueError(
                f"export: the graph fails at a batch of {batch}: {error!s:.500}"
            ) from error
        if found.shape != expected.shape:
            raise ValueError(
                f"export: the graph gives {list(found.shape)} at a batch of {batch}; the backbone "
                f"{list(expected.shape)}"
            )
        apart = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-12)
        worst = max(worst, float(apart.max()))
        if not worst <= tolerance:  # also where it is not a number
            raise ValueError(
                f"export: at a batch of {batch} the graph differs from the backbone by {worst:.2e} of an "
                f"embedding's length; allowed: {tolerance:g}"
            )
    return worst


def pictures(num: int, size: tuple[int, int]) -> Tensor:
    """Made-up pictures uint8 [num, 3, H, W]: soft blobs and noise, the same every time."""
    draw = torch.Generator().manual_seed(num)
    coarse = torch.rand(num, 3, 4, 4, generator=draw)
    blobs = nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=False)
    noise = torch.rand(num, 3, *size, generator=draw) - 0.5
    return ((blobs + 0.2 * noise) * 255).clamp(0, 255).to(torch.uint8)
