"""Run by test_search.py in a fresh process: peak resident bytes that a search adds."""

import ctypes
import gc
import json
import sys

import torch

from mpsoftmax.bench.resident import peak_bytes
from mpsoftmax.evaluate.search import search
from mpsoftmax.track.memory import resident_bytes


def main(case):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    query = torch.randn(case["queries"], case["dim"])
    gallery = torch.randn(case["gallery"], case["dim"])
    if case["kind"] == "one row":
        gallery[:] = gallery[0].clone()
    search(query, gallery[:100], 10)  # libraries load, and make their own buffers
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident_bytes("VmRSS")
    peak = peak_bytes(lambda: search(query, gallery, case["k"], gallery_block=case["block"]))
    print(peak - before)


if __name__ == "__main__":
    for case in json.loads(sys.argv[1]):
        main(case)
