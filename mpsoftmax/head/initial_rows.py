"""Initial class rows: a function of (seed, class id), whoever makes them.

So the table is the same at every world size, no two shards start alike, and a row that was never touched need
not be stored.
"""

import numpy as np

INIT_CHUNK_ROWS = 16_384
SCATTERED_ROWS = 1024
WORDS_OF_A_BLOCK = 4  # Philox gives four 64-bit words a counter


def initial_rows(start: int, stop: int, dim: int, seed: int, std: float) -> np.ndarray:
    """Normal rows of classes start..stop-1, each a function of (seed, class id): float32 [n, dim].

    Philox counters are addressed by class id; Box-Muller (two 32-bit uniforms to two normals, in float64)
    because it consumes a fixed number of bits per row, unlike the ziggurat.
    """
    bits, per_row = row_bits(seed, dim)
    bits.advance(start * per_row // WORDS_OF_A_BLOCK)
    words = bits.random_raw((stop - start) * per_row).reshape(stop - start, per_row)
    return normals(words, dim, std)


def initial_rows_of(ids: np.ndarray, dim: int, seed: int, std: float) -> np.ndarray:
    """The same for any rows, ids int64 [n] ascending: float32 [n, dim]."""
    bits, per_row = row_bits(seed, dim)
    rows = np.empty((ids.size, dim), dtype=np.float32)
    words = np.empty((SCATTERED_ROWS, per_row), dtype=np.uint64)
    at = 0
    for first in range(0, ids.size, len(words)):
        some = ids[first : first + len(words)].tolist()
        for place, row in enumerate(some):
            bits.advance((row - at) * per_row // WORDS_OF_A_BLOCK)
            words[place] = bits.random_raw(per_row)
            at = row + 1
        rows[first : first + len(some)] = normals(words[: len(some)], dim, std)
    return rows


def row_bits(seed: int, dim: int) -> tuple[np.random.Philox, int]:
    """The generator of initial rows, at row 0, and its 64-bit words per row: whole counters."""
    key = np.random.SeedSequence([seed, 0x524F5753]).generate_state(2, np.uint64)
    num_pairs = -(-dim // 2)
    return np.random.Philox(key=key), -(-num_pairs // WORDS_OF_A_BLOCK) * WORDS_OF_A_BLOCK


def normals(words: np.ndarray, dim: int, std: float) -> np.ndarray:
    """Box-Muller: uint64 [n, >= dim / 2] to float32 [n, dim]."""
    num_pairs = -(-dim // 2)
    words = words[:, :num_pairs]
    uniform = (words >> np.uint64(32)).astype(np.float64) + 0.5
    radius = np.sqrt(-2.0 * np.log(uniform * 2.0**-32)) * std
    turn = (words & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * np.pi * 2.0**-32)
    rows = np.empty((len(words), 2 * num_pairs), dtype=np.float32)
    rows[:, 0::2] = radius * np.cos(turn)
    rows[:, 1::2] = radius * np.sin(turn)
    return rows[:, :dim]
