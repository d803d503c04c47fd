"""Faces brought to one frame: the similarity transform that takes five points to ArcFace's template."""

import numpy as np
from PIL import Image

SIZE = (112, 112)
"""(height, width) of the template, pixels."""
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
"""Eyes, nose, corners of the mouth: (x, y) in pixels, (0, 0) the centre of the first one (insightface)."""


def similarity_transform(points: np.ndarray, target: np.ndarray = TEMPLATE) -> np.ndarray:
    """Rotation, scale and shift nearest to taking ``points`` to ``target``, in least squares.

    The solution of Umeyama (Least-squares estimation of transformation parameters between two point patterns,
    TPAMI 1991) without reflections; in the plane, with points as complex numbers, a regression on one number.

    Args:
        points: float [k, 2].
        target: float [k, 2].

    Returns:
        float64 [2, 3]: target ~ A p + b, as [A | b].

    Raises:
        ValueError: points that are all one, or not finite.
    """
    source, wanted = (one[:, 0] + 1j * one[:, 1] for one in (np.asarray(points, float), target))
    centred = source - source.mean()
    spread = float((abs(centred) ** 2).sum())
    if not np.isfinite(spread) or spread == 0:
        raise ValueError(f"points: {points.tolist()}: different finite points expected")
    turn = (centred.conj() * (wanted - wanted.mean())).sum() / spread
    shift = wanted.mean() - turn * source.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def align(pixels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The face at the template's place: uint8 [h, w, 3] and its points float [5, 2] -> uint8 [112, 112, 3].

    Bilinear resampling by Pillow in float32, rounded (of bytes it would cut off what is behind the point);
    black outside the image. insightface uses OpenCV's, which rounds places to 1/32 of a pixel: the two differ
    by a few grey levels at edges.

    Raises:
        ValueError: points that are all one, not finite, or that the template cannot be brought back from.
    """
    forward = similarity_transform(points)
    if np.linalg.det(forward[:, :2]) < 1e-12:
        raise ValueError(f"points: {points.tolist()}: no similarity takes them to the template")
    back = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
    # Pillow counts from the corner of the first pixel, half a pixel before its centre.
    back[:, 2] += 0.5 - back[:, :2].sum(1) / 2
    height, width = SIZE
    planes = [
        Image.fromarray(plane).transform(
            (width, height),
            Image.Transform.AFFINE,
            tuple(back.ravel()),
            resample=Image.Resampling.BILINEAR,
        )
        for plane in np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    ]
    return np.stack([np.rint(np.asarray(plane)) for plane in planes], 2).astype(np.uint8)
