# pyright: reportGeneralTypeIssues=false
"""Device code of mpsoftmax.kernels.triton_update."""

import triton
import triton.language as tl

from mpsoftmax.kernels.triton_entries import INTERPRETED


@triton.jit
def update_kernel(
    entries,  # [n, B] compute dtype: F, or E where TIMES_FACTOR
    weighted,  # [B, D] compute dtype
    factor,  # float32 [n] scale / |w|
    unit,  # float32 [N, D] features of all samples
    pull,  # float32 [N] what multiplies them in the gradient of the own class's row
    owner_rows,  # int64 [P] sorted rows of the samples' own classes
    owner_samples,  # int64 [P]
    bounds,  # int64 [tiles + 1] where each tile's begin in the two above
    index,  # int64 [n] row of the table each swept row is, or None: `weight` begins with the first
    weight,  # float32 [rows, D], moved in place; so are the states
    first_state,  # momentum, or first moment; None without momentum
    second_state,  # second moment, or None
    correction1,  # float32 [n] 1 - beta1^age, or None
    correction2,  # float32 [n] sqrt(1 - beta2^age), or None
    num_rows,
    batch,
    dim,
    first_row,
    scale,
    lr,
    decay,
    kept,  # 1 - lr decay; this and the rests from float64
    beta1,  # or momentum
    beta2,
    rest1,  # 1 - beta1
    rest2,  # 1 - beta2
    eps,
    TIMES_FACTOR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """One tile of rows: gradient, projection, update."""
    tile = tl.program_id(0)
    c, b, d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_B), tl.arange(0, CHUNK)
    r = tile * BLOCK_C + c
    in_rows = r < num_rows
    gradient = ()
    for j in tl.static_range(CHUNKS):
        gradient = gradient + (tl.zeros((BLOCK_C, CHUNK), tl.float32),)
    line = entries + (tile * BLOCK_C).to(tl.int64) * batch + c[:, None] * batch
    for first in range(0, batch, BLOCK_B):
        samples = first + b
        f = tl.load(
            line + samples[None, :], mask=in_rows[:, None] & (samples < batch)[None, :], other=0.0
        )
        if INTERPRETED:
            f = f.to(tl.float32)
        more = ()
        for j in tl.static_range(CHUNKS):
            inside = (samples < batch)[:, None] & (d < dim - j * CHUNK)[None, :]
            place = samples[:, None] * dim + (d + j * CHUNK)[None, :]
            v = tl.load(weighted + place, mask=inside, other=0.0)
            if INTERPRETED:
                v = v.to(tl.float32)
            more = more + (tl.dot(f, v, gradient[j], input_precision="ieee"),)
        gradient = more
    row_factor = tl.load(factor + r, mask=in_rows, other=1.0)
    if TIMES_FACTOR:
        more = ()
        for j in tl.static_range(CHUNKS):
            more = more + (gradient[j] * row_factor[:, None],)
        gradient = more
    for owner in range(tl.load(bounds + tile), tl.load(bounds + tile + 1)):
        own = (r + first_row) == tl.load(owner_rows + owner)
        sample = tl.load(owner_samples + owner)
        weight_of_sample = tl.load(pull + sample)
        more = ()
        for j in tl.static_range(CHUNKS):
            x = tl.load(unit + sample * dim + j * CHUNK + d, mask=d < dim - j * CHUNK, other=0.0)
            more = more + (
                gradient[j] + tl.where(own[:, None], (x * weight_of_sample)[None, :], 0.0),
            )
        gradient = more
    place = r.to(tl.int64)
    if index is not None:
        place = tl.load(index + r, mask=in_rows, other=0)
    place = (place * dim)[:, None] + d[None, :]
    along = tl.zeros((BLOCK_C,), tl.float32)
    for j in tl.static_range(CHUNKS):
        inside = in_rows[:, None] & (d < dim - j * CHUNK)[None, :]
        w = tl.load(weight + place + j * CHUNK, mask=inside, other=0.0)
        along += tl.sum(gradient[j] * w, 1)
    norm = scale / row_factor
    along = along / (norm * norm)
    for j in tl.static_range(CHUNKS):
        inside = in_rows[:, None] & (d < dim - j * CHUNK)[None, :]
        w = tl.load(weight + place + j * CHUNK, mask=inside, other=0.0)
        g = gradient[j] - along[:, None] * w
        if second_state is None:
            g += decay * w
            if first_state is not None:
                m = tl.load(first_state + place + j * CHUNK, mask=inside, other=0.0)
                g += beta1 * m
                tl.store(first_state + place + j * CHUNK, g, mask=inside)
            w -= lr * g
        else:
            m = tl.load(first_state + place + j * CHUNK, mask=inside, other=0.0)
            m += rest1 * (g - m)
            tl.store(first_state + place + j * CHUNK, m, mask=inside)
            s = tl.load(second_state + place + j * CHUNK, mask=inside, other=0.0)
            s = beta2 * s + rest2 * g * g
            tl.store(second_state + place + j * CHUNK, s, mask=inside)
            unbiased1 = tl.load(correction1 + r, mask=in_rows, other=1.0)[:, None]
            unbiased2 = tl.load(correction2 + r, mask=in_rows, other=1.0)[:, None]
            w *= kept
            w -= lr * (m / unbiased1) / (tl.sqrt_rn(s) / unbiased2 + eps)
        tl.store(weight + place + j * CHUNK, w, mask=inside)
