"""Exact search of a large gallery: time, and peak memory against the formula.

    python benchmarks/search.py
    python benchmarks/search.py --gallery 200000 --queries 100 --backend faiss

The gallery is random directions, with every query's nearest planted at a known place; the search must find
all of them. Peak memory is what the operating system counts beyond the gallery and the queries.
"""

import argparse
import json
import time
from typing import Any

import torch

from mpsoftmax.bench import record
from mpsoftmax.bench.resident import peak_bytes
from mpsoftmax.evaluate.search import BACKENDS, GALLERY_BLOCK, search, search_bytes
from mpsoftmax.track.memory import resident_bytes


def main() -> None:
    """Search once, and print the figures as JSON."""
    options = arguments()
    torch.manual_seed(0)
    gallery = torch.empty(options.gallery, options.dim)
    for rows in gallery.split(GALLERY_BLOCK):
        rows.normal_()
    query = torch.randn(options.queries, options.dim)
    planted = torch.randperm(options.gallery)[: options.queries]
    gallery[planted] = query + 0.5 * torch.randn_like(query)
    search(query[:2], gallery[:100], 1, backend=options.backend)  # libraries load
    before = resident_bytes("VmRSS")
    found: list[Any] = []

    def run() -> None:
        found.append(search(query, gallery, options.k, backend=options.backend))

    start = time.monotonic()
    peak = peak_bytes(run) - before
    figures = {
        **vars(options),
        "seconds": round(time.monotonic() - start, 1),
        "peak_bytes": peak,
        "formula_bytes": search_bytes(options.queries, options.gallery, options.dim, options.k),
        "planted_found": int((found[0].index[:, 0] == planted).sum()),
        "threads": torch.get_num_threads(),
        "machine": record.machine(),
    }
    print(json.dumps(figures, indent=1))


def arguments() -> argparse.Namespace:
    """Sizes and backend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gallery", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--backend", choices=BACKENDS, default="torch")
    return parser.parse_args()


if __name__ == "__main__":
    main()
