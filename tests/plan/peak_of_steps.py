"""Run by test_memory.py in a fresh process: peak resident bytes that a head and three of its steps add."""

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plan_cases import Case

from mpsoftmax.bench.resident import peak_bytes
from mpsoftmax.track.memory import resident_bytes


def step(head, features, labels):
    features.grad = None
    head(features, labels).backward()
    head.step()


def main(case):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    features = torch.randn(case.batch, case.dim, requires_grad=True)
    few = 500  # libraries load, and make their own buffers
    head = case.head(few)
    step(head, features, torch.randint(0, few, (case.batch,)))
    del head
    features.grad = None
    gc.collect()
    trim = ctypes.CDLL("libc.so.6").malloc_trim
    trim(0)
    before = resident_bytes("VmRSS")
    head = case.head()
    gc.collect()
    trim(0)
    labels = torch.randint(0, case.classes, (case.batch,))

    def steps():
        for _ in range(3):
            step(head, features, labels)

    print(peak_bytes(steps) - before)


if __name__ == "__main__":
    main(Case(**json.loads(sys.argv[1])))
