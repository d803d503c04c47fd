# pyright: reportPossiblyUnboundVariable=false
"""Device code of the sweep: from products <v, w> to E, F and their sums. Three kernels, all class-major.

    prepare_kernel     rows [n, D] -> factor scale / |w| [n], and the rows times it in the compute dtype
    entries_kernel     products or logits [n, B] -> E or F in place, and sums over the tile's classes
    logits_kernel      rows, features -> the same in one go: the product's accumulator never leaves registers

The last two share `negatives_of_tile`, the device form of mpsoftmax.kernels.masking. A pointer that is None
compiles to nothing: absent classes, hard negatives, selection and limits are variants of one source.

Sums are written per tile of classes, [tiles, k, B], and added by the caller: no atomics, so the same inputs
give the same bits. k counts total, then hard_sum and hard_count, then rejected and mined, as far as asked.
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
"""Whether kernels run in Triton's interpreter, which (3.7.1) multiplies bit patterns in a bfloat16 product
and truncates where hardware rounds to the nearest. There, and only there, operands are widened before a
product (bfloat16 times bfloat16 is exact in float32) and numbers are rounded before a cast."""


@triton.jit
def narrowed(x, like):
    """Cast x to the element type behind the pointer `like`, rounded to the nearest, ties to even."""
    if INTERPRETED and like.dtype.element_ty == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(like.dtype.element_ty)


@triton.jit
def prepare_kernel(
    rows,  # float32 [n, D]
    factor,  # float32 [n], written
    cast,  # [n, D] compute dtype, written; or None
    num_rows,
    dim,
    scale,
    norm_floor,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Row factors scale / max(|w|, floor), and rows times their factor."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    d = tl.arange(0, BLOCK_D)
    inside = (r < num_rows)[:, None] & (d < dim)[None, :]
    place = r[:, None] * dim + d[None, :]
    w = tl.load(rows + place, mask=inside, other=0.0)
    norm = tl.sqrt_rn(tl.sum(w * w, 1))
    f = scale / tl.maximum(norm, norm_floor)
    tl.store(factor + r, f, mask=r < num_rows)
    if cast is not None:
        tl.store(cast + place, narrowed(w * f[:, None], cast), mask=inside)


@triton.jit
def negatives_of_tile(
    u,  # float32 [C, B] cosine logits s z
    r,  # int32 [C] rows of the block
    b,  # int32 [B] samples
    place,  # int32 [C, B] where they lie in the tile
    inside,  # bool [C, B]
    num_rows,
    batch,
    first_class,
    own,
    absent,
    unit,
    threshold,
    v0,
    v1,
    v2,
    d0,
    d1,
    easy,
    class_members,
    sample_members,
    limit,
    marked,  # of the tile
    MARKED_ARE_KEPT: tl.constexpr,
):
    """Logits (-inf off the negatives), slopes, and what is counted: hard, their cosine, rejected, mined.

    Entries that nobody asked for are other tensors of the same shape: unread, they compile to nothing.
    """
    classes = r + first_class
    in_rows, in_batch = r < num_rows, b < batch
    out = inside & False
    rejected, mined = out, out
    if class_members is not None:
        class_bits = tl.load(class_members + classes, mask=in_rows, other=0)
        sample_bits = tl.load(sample_members + b, mask=in_batch, other=0)
        others = (class_bits[:, None] & sample_bits[None, :]) == 0
        if marked is not None:
            mark = tl.load(marked + place, mask=inside, other=0) != 0
        if MARKED_ARE_KEPT:
            out = others & (mark == 0)
        else:
            if limit is not None:
                ceiling = tl.load(limit + b, mask=in_batch, other=0.0)
                ceiling *= tl.load(unit + b, mask=in_batch, other=1.0)
                out = others & (u >= ceiling[None, :])
            if marked is not None:
                out = out | (others & mark)
        counted = others & inside
        if absent is not None:
            gone = tl.load(absent + classes, mask=in_rows, other=0) != 0
            counted = counted & (gone == 0)[:, None]
        rejected, mined = counted & out, counted & (out == 0)
    if absent is not None:
        gone = tl.load(absent + classes, mask=in_rows, other=0) != 0
        out = out | gone[:, None]
    own_class = tl.load(own + b, mask=in_batch, other=-1).to(tl.int32)
    out = out | (classes[:, None] == own_class[None, :])
    out = out | (inside == 0)
    g, slope, z, hard = u, u, u, out
    if threshold is not None:
        scale = tl.load(unit + b, mask=in_batch, other=1.0)[None, :]
        least = tl.load(threshold + b, mask=in_batch, other=0.0)[None, :]
        hard = (u > least * scale) & (out == 0)
        z = u / scale
        g = tl.where(hard, scale * (v0 + z * (v1 + v2 * z)), easy * u)
        slope = tl.where(hard, d0 + d1 * z, easy)
        z = tl.where(hard, z, 0.0)
    return tl.where(out, -float("inf"), g), slope, z, hard, rejected, mined


@triton.jit
def entries_kernel(
    source,  # [n, B] compute dtype: products <v, w>, or logits where LOGITS_AS_THEY_ARE
    out,  # [n, B] compute dtype, written; may be `source`
    factor,  # float32 [n], or None: rows took their factor along
    maximum,  # float32 [B] what to subtract, or None: `shift`
    sums,  # float32 [tiles, k, B], written; or None
    num_rows,
    batch,
    first_class,
    shift,
    own,  # int64 [B]
    absent,  # bool [num_classes], or None
    unit,  # float32 [B] logit / cosine; None without hard negatives and limit
    threshold,  # float32 [B] cosine, or None
    v0,
    v1,
    v2,
    d0,
    d1,
    easy,
    class_members,  # int64 [num_classes], or None
    sample_members,  # int64 [B], or None
    limit,  # float32 [B] cosine, or None
    marked,  # int8 [n, B] dropped or kept pairs of this block, or None
    MARKED_ARE_KEPT: tl.constexpr,
    LOGITS_AS_THEY_ARE: tl.constexpr,
    FIND_MAXIMUM: tl.constexpr,
    NUM_SUMS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
    TILES: tl.constexpr,
):
    """E (F where rows have a factor) and sums; with FIND_MAXIMUM cosine logits and their largest."""
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    tile, c = tl.program_id(1), tl.arange(0, BLOCK_C)
    place = c[:, None] * batch + b[None, :]
    total = tl.full((BLOCK_C, BLOCK_B), -float("inf") if FIND_MAXIMUM else 0.0, tl.float32)
    zeros = tl.zeros((BLOCK_C, BLOCK_B), tl.float32)
    hard_sum, hard_count, num_rejected, num_mined = zeros, zeros, zeros, zeros
    less = shift
    if maximum is not None:
        less = tl.load(maximum + b, mask=b < batch, other=0.0)[None, :]
    for step in range(TILES):
        first = (tile * TILES + step) * BLOCK_C
        offset = first.to(tl.int64) * batch
        r = first + c
        inside = (r < num_rows)[:, None] & (b < batch)[None, :]
        marks = marked
        if marked is not None:
            marks = marked + offset
        u = tl.load(source + offset + place, mask=inside, other=0.0).to(tl.float32)
        if factor is not None:
            f = tl.load(factor + r, mask=r < num_rows, other=0.0)[:, None]
            if not LOGITS_AS_THEY_ARE:
                u *= f
        g, slope, z, hard, rejected, mined = negatives_of_tile(
            u, r, b, place, inside, num_rows, batch, first_class, own, absent, unit, threshold,
            v0, v1, v2, d0, d1, easy, class_members, sample_members, limit, marks, MARKED_ARE_KEPT,
        )  # fmt: skip
        if FIND_MAXIMUM:
            tl.store(out + offset + place, narrowed(u, out), mask=inside)
            total = tl.maximum(total, g)
        else:
            e = tl.exp(g - less)
            total += narrowed(e, out).to(tl.float32)  # the sum of what is kept
            if threshold is not None:
                e *= slope
                hard_sum += z
                hard_count += hard.to(tl.float32)
            if class_members is not None:
                num_rejected += rejected.to(tl.float32)
                num_mined += mined.to(tl.float32)
            if factor is not None:
                e *= f
            tl.store(out + offset + place, narrowed(e, out), mask=inside)
    if sums is not None:
        line = sums + tile.to(tl.int64) * NUM_SUMS * batch + b
        if FIND_MAXIMUM:
            tl.store(line, tl.max(total, 0), mask=b < batch)
        else:
            write_sums(
                line, total, hard_sum, hard_count, num_rejected, num_mined, b, batch,
                threshold is not None, class_members is not None,
            )  # fmt: skip


@triton.jit
def write_sums(
    line,
    total,
    hard_sum,
    hard_count,
    rejected,
    mined,
    b,
    batch,
    HARD: tl.constexpr,
    SELECTED: tl.constexpr,
):
    """Sums over the classes of a tile [C, B] into lines of B numbers."""
    tl.store(line, tl.sum(total, 0), mask=b < batch)
    if HARD:
        tl.store(line + batch, tl.sum(hard_sum, 0), mask=b < batch)
        tl.store(line + 2 * batch, tl.sum(hard_count, 0), mask=b < batch)
        line += 2 * batch
    if SELECTED:
        tl.store(line + batch, tl.sum(rejected, 0), mask=b < batch)
        tl.store(line + 2 * batch, tl.sum(mined, 0), mask=b < batch)


@triton.jit
def logits_kernel(
    rows,  # [n, D] compute dtype
    features,  # [B, D] compute dtype
    dim,
    out,  # [n, B] compute dtype, written: E, F, or with FIND_MAXIMUM cosine logits
    factor,  # this and all that follows: as in entries_kernel
    sums,
    num_rows,
    batch,
    first_class,
    shift,
    own,
    absent,
    unit,
    threshold,
    v0,
    v1,
    v2,
    d0,
    d1,
    easy,
    class_members,
    sample_members,
    limit,
    marked,
    maximum,
    MARKED_ARE_KEPT: tl.constexpr,
    FIND_MAXIMUM: tl.constexpr,
    NUM_SUMS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The product, and entries_kernel's work on its accumulator."""
    batch_tiles = tl.cdiv(batch, BLOCK_B)
    tile = tl.program_id(0) // batch_tiles  # neighbours share a tile of rows
    first_sample = (tl.program_id(0) % batch_tiles) * BLOCK_B
    c, d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D)
    r, b = tile * BLOCK_C + c, first_sample + tl.arange(0, BLOCK_B)
    u = tl.zeros((BLOCK_C, BLOCK_B), tl.float32)
    row_line = rows + (tile * BLOCK_C).to(tl.int64) * dim + c[:, None] * dim
    feature_line = features + first_sample.to(tl.int64) * dim + tl.arange(0, BLOCK_B)[None, :] * dim
    for first in range(0, dim, BLOCK_D):
        deep = d < dim - first
        w = tl.load(
            row_line + (d + first)[None, :],
            mask=(r < num_rows)[:, None] & deep[None, :],
            other=0.0,
        )
        v = tl.load(
            feature_line + (d + first)[:, None],
            mask=(b < batch)[None, :] & deep[:, None],
            other=0.0,
        )
        if INTERPRETED:
            w, v = w.to(tl.float32), v.to(tl.float32)
        u = tl.dot(w, v, u, input_precision="ieee")
    inside = (r < num_rows)[:, None] & (b < batch)[None, :]
    if factor is not None:
        f = tl.load(factor + r, mask=r < num_rows, other=0.0)[:, None]
        u *= f
    offset = (tile * BLOCK_C).to(tl.int64) * batch
    place = c[:, None] * batch + b[None, :]
    marks = marked
    if marked is not None:
        marks = marked + offset
    g, slope, z, hard, rejected, mined = negatives_of_tile(
        u, r, b, place, inside, num_rows, batch, first_class, own, absent, unit, threshold,
        v0, v1, v2, d0, d1, easy, class_members, sample_members, limit, marks, MARKED_ARE_KEPT,
    )  # fmt: skip
    line = sums
    if sums is not None:
        line = sums + tile.to(tl.int64) * NUM_SUMS * batch + b
    if FIND_MAXIMUM:
        tl.store(out + offset + place, narrowed(u, out), mask=inside)
        tl.store(line, tl.max(g, 0), mask=b < batch)
    else:
        less = shift
        if maximum is not None:
            less = tl.load(maximum + b, mask=b < batch, other=0.0)[None, :]
        e = tl.exp(g - less)
        if sums is not None:
            write_sums(
                line, narrowed(e, out).to(tl.float32), z, hard.to(tl.float32),
                rejected.to(tl.float32), mined.to(tl.float32), b, batch,
                threshold is not None, class_members is not None,
            )  # fmt: skip
        if threshold is not None:
            e *= slope
        if factor is not None:
            e *= f
        tl.store(out + offset + place, narrowed(e, out), mask=inside)
