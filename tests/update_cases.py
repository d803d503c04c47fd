"""Whole heads whose rows a kernel moves itself, against `blocked`: for every such kernel."""

import torch
from kernel_cases import relative

import mpsoftmax as mp
from mpsoftmax.head import head as head_module

SGD, ADAMW = mp.RowSGD(lr=0.3), mp.RowAdamW(lr=0.05)


def trained(kernel, calls, compute_dtype=torch.float32, **axes):
    """State of a head of 40 classes after three steps, and whether each moved its rows in the kernel."""

    seen, sound = [], head_module.update_in_kernel

    def watched(*arguments):
        seen.append(sound(*arguments))
        return seen[-1]

    head_module.update_in_kernel = watched
    try:
        head = mp.ModelParallelSoftmax(
            12, 40, kernel=kernel, compute_dtype=compute_dtype, seed=5, init_std=0.3, **axes
        )
        stream = torch.Generator().manual_seed(2)
        for _ in range(3):
            for _ in range(calls):
                features = torch.randn(11, 12, generator=stream).requires_grad_()
                head(features, torch.randint(0, 40, (11,), generator=stream)).backward()
            head.step()
    finally:
        head_module.update_in_kernel = sound
    return head.state_dict(), seen


def compare_heads(kernel, limit=2e-5, calls=1, taken=True, **axes):
    """Whole heads after three steps; `taken`: whether the kernel moved the rows each time."""
    ours, seen = trained(kernel, calls, **axes)
    assert seen == [taken] * 3
    theirs, seen = trained("blocked", calls, **axes)
    assert seen == [False] * 3
    assert ours.keys() == theirs.keys()
    start, _ = trained("blocked", 0, **axes)
    assert relative(start["weight"], ours["weight"]) > 1e-2  # they moved
    for name, found in ours.items():
        if found.is_floating_point() and found.numel():
            assert relative(found, theirs[name]) < limit, name
        else:
            assert torch.equal(found, theirs[name]), name
