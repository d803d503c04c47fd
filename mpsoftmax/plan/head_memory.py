"""The head's items of memory, tensor by tensor (docs/planning.md says where each comes from).

Per-sample matrices are [n, D]; per-row vectors are of the S candidate rows. Bytes of an element: `wide` of
sums, `compute` of products, `row` of stored rows, `work` of rows that move.
"""

from mpsoftmax.head.class_table import MOVE_ROWS
from mpsoftmax.head.exchange import line_bytes
from mpsoftmax.kernels.blocked import CPU_WIDE_BYTES
from mpsoftmax.plan.memory import ALWAYS, Item, phases
from mpsoftmax.plan.shape import HeadShape

# Blocks of logits, in the wide dtype, that masking.py has alive at once (counted on CPU).
MASKING_BLOCKS = 6
RUNNING_MAXIMUM_BLOCKS = 3
# Bytes a drawn class costs while it is drawn: draws, their sorted copies, what is deleted from them.
DRAW_BYTES = 64
# Bytes a moved row costs while the keys of stochastic rounding are hashed: ids and uint64 temporaries.
ROUNDING_BYTES = 48


def head_items(shape: HeadShape) -> list[Item]:
    """All items of one rank's head."""
    listed = [
        *table_items(shape),
        *batch_items(shape),
        *sweep_items(shape),
        *backward_items(shape),
        *(step_items(shape) if shape.parts.weights.learned else centre_items(shape)),
    ]
    return [item for item in listed if item.num_bytes]


def table_items(shape: HeadShape) -> list[Item]:
    """Rows, optimiser rows, and what goes by class or row."""
    rows = shape.local_rows * shape.dim * shape.row_dtype.itemsize
    place = {"device": "device", "host": "host", "mapped": "disk"}[shape.storage]
    # Of a mapped row: its step, and where it lies in the file, both in memory.
    numbers = "host" if shape.storage == "mapped" else place
    items = [
        Item("class rows", rows, ALWAYS, place),
        Item("optimiser rows", rows * shape.num_states, ALWAYS, place),
        Item("row steps", 8 * shape.local_rows, ALWAYS, numbers),
    ]
    if shape.parts.baskets is not None:
        members = 16 if shape.mines else 8
        items.append(Item("baskets of classes", members * shape.local_classes, ALWAYS))
    return items


def batch_items(shape: HeadShape) -> list[Item]:
    """Gathered features and own rows."""
    n, wide, compute = shape.samples, shape.wide_dtype.itemsize, shape.compute_dtype.itemsize
    matrix, own = n * shape.dim, n * shape.num_centres * shape.dim
    unit = matrix * compute + (matrix * wide if compute != wide else 0)
    line, lines = line_bytes(shape.dim, shape.compute_dtype), shape.capacity + 1
    padded = shape.world * shape.capacity * line
    gathered = lines * line + (shape.world > 1) * (shape.world * lines * line + padded)
    gathered += n * line if n < shape.world * shape.capacity else 0
    local = shape.capacity * shape.dim * wide
    own_copies = own * (shape.row_dtype.itemsize + 2 * wide)
    own_copies += own * wide if shape.row_dtype != shape.wide_dtype else 0
    to_step, all_of_it = phases("gather", "head step"), shape.accumulation
    return [
        Item("gathered features", all_of_it * (unit + n * (wide + 8)), to_step),
        Item("own features", local, phases("gather", "head backward")),
        Item("own class rows", all_of_it * n * (shape.dim * wide + 8 * wide), to_step),
        Item("own class rows, copies", own_copies, phases("gather")),
        Item("collectives' buffers", gathered, phases("gather")),
    ]


def sweep_items(shape: HeadShape) -> list[Item]:
    """Sampled rows, E, sums and the scratch of a block."""
    wide, compute = shape.wide_dtype.itemsize, shape.compute_dtype.itemsize
    m, rows, all_of_it = shape.swept_samples, shape.swept_rows, shape.accumulation
    to_step = phases("sweep", "head step")
    kept_alive = ALWAYS if all_of_it == 1 else to_step
    items = [
        Item("E kept", shape.kept_bytes, kept_alive),
        Item("feature gradients", all_of_it * m * shape.dim * wide, to_step),
        Item("row factors", all_of_it * rows * wide, to_step),
        Item("block scratch", block_scratch(shape), phases("sweep")),
    ]
    if shape.casts:
        items.append(Item("product by the features", m * shape.dim * compute, phases("sweep")))
    if shape.sampled:
        host = "device" if shape.device == "cpu" else "host"
        items.append(
            Item("drawing", DRAW_BYTES * shape.swept_classes, phases("gather"), host, True)
        )
        items.append(Item("candidate ids", 8 * all_of_it * shape.swept_classes, to_step))
        items.extend(row_copies(shape))
    return items


def row_copies(shape: HeadShape) -> list[Item]:
    """Rows of a step beside the table."""
    parts = 1 + shape.num_states
    row, work = shape.row_dtype.itemsize, shape.work_dtype.itemsize
    copied = shape.accumulation * shape.swept_rows * shape.dim * row
    sampled = Item("sampled rows", copied, phases("sweep", "head step"))
    if shape.storage == "device":
        return [sampled]
    held = shape.moved_rows * shape.dim
    items = [Item("rows held for the step", parts * held * work, phases("gather", "head step"))]
    if row != work:
        items.append(Item("rows read", parts * held * row, phases("gather")))
    if row != work or not shape.parts.candidates.holds_positives:
        items.append(sampled)  # else the sweep looks at the held rows themselves
    if shape.prefetch:
        ahead = phases("backbone forward", "gather")
        items.append(Item("rows read ahead", parts * held * row, ahead))
    if shape.row_dtype != shape.work_dtype:
        items.append(Item("rows to be written", parts * held * row, phases("head step")))
    return items


def block_scratch(shape: HeadShape) -> float:
    """Logits of a block, its rows cast, and what more than exponentials takes."""
    wide, compute = shape.wide_dtype.itemsize, shape.compute_dtype.itemsize
    logits = shape.block_rows * shape.swept_samples
    scratch = logits * compute
    if shape.casts:
        scratch += shape.block_rows * shape.dim * compute
        if shape.device == "cuda":
            scratch += shape.block_rows * shape.dim * wide
    elif compute != wide and shape.device == "cpu":
        # Norms in float32 and factors on bfloat16 logits: torch's CPU loops cast whole operands.
        scratch += (2 * logits + shape.block_rows * shape.dim) * wide
    if not shape.is_plain:
        scratch += MASKING_BLOCKS * logits * wide
    elif shape.has_running_maximum:
        scratch += RUNNING_MAXIMUM_BLOCKS * logits * wide
    elif compute < wide and shape.device == "cpu":
        scratch += min(logits * wide, CPU_WIDE_BYTES)
    return scratch


def backward_items(shape: HeadShape) -> list[Item]:
    """From the sums to this rank's feature gradients."""
    wide = shape.wide_dtype.itemsize
    everyone = shape.world * shape.capacity * shape.dim * wide
    buffers = 2 * shape.samples * shape.dim * wide
    buffers += everyone if shape.samples < shape.world * shape.capacity else 0
    buffers += everyone / shape.world if shape.world > 1 else 0
    own = 4 * shape.capacity * shape.dim * wide
    return [Item("collectives' buffers", buffers + own, phases("head backward"))]


def step_items(shape: HeadShape) -> list[Item]:
    """A tile of the class gradient, and what goes by moved row."""
    wide, work = shape.wide_dtype.itemsize, shape.work_dtype.itemsize
    compute, moved = shape.compute_dtype.itemsize, shape.moved_rows
    by_row = moved * (wide + work + 8)
    if shape.sampled:
        by_row += moved * 8
        if not shape.parts.candidates.holds_positives:
            by_row += moved * 16
    if shape.row_dtype != shape.work_dtype:
        by_row = moved * wide + max(moved * (work + 12 + 4 * shape.num_states), rounding(shape))
    tile = shape.tile_rows * shape.dim
    tiles = tile * work + (tile * compute if shape.casts or compute != work else 0)
    if shape.kept_bytes < shape.e_bytes:
        tiles += block_scratch(shape)
    elif shape.has_running_maximum:  # logits are kept, from which E is formed again
        blocks = RUNNING_MAXIMUM_BLOCKS if shape.is_plain else MASKING_BLOCKS
        tiles += blocks * shape.tile_rows * shape.swept_samples * wide
    if not shape.parts.candidates.holds_positives or shape.accumulation > 1:
        tiles += 2 * tile * wide
    update = (3 + 2 * shape.num_states) * MOVE_ROWS * shape.dim * work
    matrices = shape.swept_samples * shape.dim * (compute + wide) + shape.samples * shape.dim * wide
    return [
        Item("weighted features", shape.accumulation * matrices, phases("head step")),
        Item("numbers of moved rows", by_row, phases("head step")),
        Item("gradient tile", tiles + update, phases("head step")),
    ]


def rounding(shape: HeadShape) -> float:
    """Keys of stochastic rounding while they are made; before the other numbers of moved rows exist."""
    return shape.moved_rows * (ROUNDING_BYTES + 4 * (1 + shape.num_states))


def centre_items(shape: HeadShape) -> list[Item]:
    """Class centres: sums of the batch's features by class."""
    matrix = shape.accumulation * shape.samples * shape.dim * shape.wide_dtype.itemsize
    return [Item("class sums", 5 * matrix, phases("head step"))]
