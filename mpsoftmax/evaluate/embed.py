"""Embeddings of an image set: by a model, this rank's share of them, or raw pixels."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpsoftmax.backbones.execution import evaluation_mode, lowered
from mpsoftmax.data.decode import decode
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.loader import Loader
from mpsoftmax.data.order import share
from mpsoftmax.data.pixels import to_float

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, of R, G, B


def embed(
    model: nn.Module,
    images: ImageSet,
    *,
    size: tuple[int, int],
    decoder: str = "pillow",
    crop: float = 1.0,
    batch_size: int = 64,
    workers: int = 0,
    flip: bool = True,
    normalise: bool = True,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    rank: int = 0,
    world: int = 1,
    gather: Callable[[Tensor], Tensor] | None = None,
    together: Callable[[Callable[[], Tensor]], Tensor] | None = None,
) -> Tensor:
    """Embed all images of a set, without augmentation, in evaluation mode.

    Each rank embeds a contiguous share. Every batch is filled up to ``batch_size``, so an image
    goes through the same kernels wherever the shares are cut. An image that cannot be decoded is
    an error.

    Args:
        model: images float [b, 3, H, W] in [-1, 1] -> raw embeddings [b, D], on ``device``; the
            bare module, not one wrapped for data parallelism (ranks run unequal numbers of
            batches). Its modules' training flags are restored.
        images: what to embed, n > 0.
        size: (H, W) in pixels.
        decoder: one of ``mpsoftmax.data.decode.DECODERS``.
        crop: central share of each side that is kept before resizing, in (0, 1].
        batch_size: images at a time.
        workers: worker processes that decode; 0 = this one.
        flip: add the embedding of the mirrored image before normalising, as the field does.
        normalise: to unit length; else embeddings are as the model gives them, summed with the mirrored
            image's under ``flip``: their norm tells how sure the model is (templates).
        device: where the model is.
        dtype: run under autocast to this type; None = as the model is.
        rank: this process, 0 .. world-1.
        world: number of processes.
        gather: makes the shares float32 [m_r, D] of all ranks, unequal and perhaps empty, on
            ``device``, into the whole [n, D], in the order of ranks; called once on every rank.
            Needed if ``world`` > 1.
        together: runs an action on every rank, and raises on all what fails on one (``Comm.together``);
            called with every batch, equally often on every rank, so that an image that one rank cannot
            read stops all, and nobody waits longer for another one than a batch takes.

    Returns:
        float32 [n, D] on the CPU, unit rows if ``normalise``, in the order of the images, the same on all
        ranks.

    Raises:
        ValueError: no images, ``gather`` missing or returning another shape, or an embedding
            that is not [b, D].
    """
    if len(images) == 0:
        raise ValueError("images: there are none to embed")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if world > 1 and gather is None:
        raise ValueError(f"gather must be given with world = {world}")
    start, stop = share(len(images), rank, world)
    loader = Loader(images, None, size=size, decoder=decoder, crop=crop, workers=workers)
    largest = -(-len(images) // world)
    lows = [min(start + low, stop) for low in range(0, largest, batch_size)]
    batches = loader.stream((low, min(low + batch_size, stop)) for low in lows)

    def next_rows() -> Tensor:
        rows = raw_batch(model, next(batches).images, batch_size, flip, device)
        return F.normalize(rows) if normalise else rows

    with evaluation_mode(model), torch.no_grad(), lowered(torch.device(device), dtype):
        parts = [next_rows() if together is None else together(next_rows) for _ in lows]
    embeddings = torch.cat(parts)
    if gather is not None:
        dim = embeddings.shape[1]
        embeddings = gather(embeddings)
        if embeddings.shape != (len(images), dim):
            raise ValueError(
                f"gather must return [{len(images)}, {dim}], got {list(embeddings.shape)}"
            )
    return embeddings.cpu()


def raw_batch(
    model: nn.Module, pixels: Tensor, batch_size: int, flip: bool, device: str | torch.device
) -> Tensor:
    """Raw embeddings of one batch, filled up so that all batches go through the same kernels.

    Args:
        model: as in `embed`, in evaluation mode.
        pixels: uint8 [b, 3, H, W], 0 <= b <= ``batch_size``.
        batch_size: images the model sees at a time.
        flip: add the embedding of the mirrored image.
        device: where the model is.

    Returns:
        float32 [b, D] on ``device``, not normalised.

    Raises:
        ValueError: the model's output is not [b, D].
    """
    num = len(pixels)
    pixels = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, batch_size - num)).to(device)
    inputs = to_float(pixels)
    embeddings = model(inputs)
    if not isinstance(embeddings, Tensor) or embeddings.dim() != 2:
        shape = list(getattr(embeddings, "shape", [])) or type(embeddings).__name__
        raise ValueError(f"model must return embeddings [b, D], got {shape}")
    embeddings = embeddings.float()
    if flip:
        embeddings = embeddings + model(inputs.flip(3)).float()
    return embeddings[:num]


def raw_pixels(
    images: ImageSet, size: tuple[int, int] = (32, 32), decoder: str = "pillow"
) -> Tensor:
    """The baseline without learning: grey pixels, each image's mean taken off, unit length.

    Args:
        images: n images.
        size: (height, width) in pixels.
        decoder: one of ``mpsoftmax.data.decode.DECODERS``.

    Returns:
        float32 [n, height * width]; an image of one grey alone becomes zeros.
    """
    rows = np.empty((len(images), size[0] * size[1]), np.float32)
    for index in range(len(images)):
        rows[index] = (decode(images.image(index), size, decoder) @ _LUMA).ravel()
    centred = torch.from_numpy(rows)
    centred = centred - centred.mean(1, keepdim=True)
    # below a millionth of a grey level a pixel it is rounding
    norm = centred.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e-3, centred / norm.clamp_min(1e-3), 0.0)
