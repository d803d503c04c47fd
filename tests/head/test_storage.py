"""Class rows in host memory and in sparse files: the same training, and what lies where."""

import gc
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from head_cases import Case
from head_runs import assert_exact, train_all

import mpsoftmax as mp
from mpsoftmax.head import row_store
from mpsoftmax.train.checkpoint import empty_like_stored, read_tensors, stored_tensors

ELSEWHERE = ["host", "mapped"]
CASES = [
    Case(candidates=("uniform", 0.3), untouched="lazy", steps=3, micros=2),
    Case(candidates=("uniform", 0.3), optimiser="adamw", steps=4),
    Case(candidates=("uniform_blocks", 0.5, 4), steps=3),
    Case(candidates=("dsoftmax_k", 0.3, "drawn"), objective="dsoftmax", untouched="lazy", steps=3),
    Case(candidates=("dsoftmax_k", 0.3, "excluded"), objective="npcface", steps=3),
    Case(candidates=("uniform", 0.4), weights=("sub_centres", 3), untouched="lazy", steps=3),
    Case(candidates=("uniform", 0.3), merged=((1, 9), (0, 5)), untouched="lazy", steps=3),
    Case(candidates=("uniform", 0.5), rule=("top_one", 0.3), steps=3),
    Case(candidates=("uniform", 0.2), classes=3, steps=3),
]


@pytest.mark.parametrize("world", [1, 2, pytest.param(3, marks=pytest.mark.slow), 4])
def test_truth(ranks, world):
    """Every kind of storage against the truth, and bit for bit against rows on the device."""
    cases = [
        replace(case, more={"storage": storage, "batch_capacity": 7})
        for storage in ("device", *ELSEWHERE)
        for case in CASES
    ]
    by_rank = ranks.run(train_all, world, cases=cases)
    for k, case in enumerate(cases):
        results = [answers[k] for answers in by_rank]
        assert_exact(case, results, world)
        for mine, device in zip(results, by_rank, strict=True):
            assert torch.equal(mine[2], device[k % len(CASES)][2])
            for one, other in zip(mine[1], device[k % len(CASES)][1], strict=True):
                assert one[0] == other[0]
                assert torch.equal(one[1], other[1])


DIM, CLASSES = 6, 41


def train(head, first, last, ahead=False, seed=7):
    """Steps first..last-1 of one stream of batches, cut over the ranks."""
    rank, world, losses = head.comm.rank, head.comm.world, []
    for step in range(first, last):
        stream = torch.Generator().manual_seed(1000 * seed + step)
        features = torch.randn(12, DIM, generator=stream)
        labels = torch.randint(0, head.num_classes, (12,), generator=stream)
        mine = slice(12 * rank // world, 12 * (rank + 1) // world)
        if ahead:
            head.prefetch(labels[mine])
        loss = head(features[mine].requires_grad_(), labels[mine])
        loss.backward()
        head.step()
        losses.append(loss.item())
    return losses


def new_head(storage, seed=0, **more):
    arguments = {"candidates": mp.Uniform(0.3), "untouched": "lazy", "batch_capacity": 12, **more}
    return mp.ModelParallelSoftmax(DIM, CLASSES, storage=storage, seed=seed, **arguments)


def ahead_and_not(storage, capacity):
    heads = [new_head(storage, batch_capacity=capacity) for _ in range(2)]
    losses = [train(head, 0, 4, ahead=ahead) for head, ahead in zip(heads, (0, 1), strict=True)]
    rows = [head.class_rows(torch.arange(CLASSES)) for head in heads]
    # Labels that turn out to be others: read again, nothing wrong.
    heads[1].prefetch(torch.zeros(3, dtype=torch.int64))
    losses[0] += train(heads[0], 4, 6)
    losses[1] += train(heads[1], 4, 6)
    calls = [dict(head.comm.calls) for head in heads]
    sizes = [dict(head.comm.payload_bytes) for head in heads]
    return losses, rows, calls, sizes, int(heads[1].last_stats.get("rows_ahead", 0))


@pytest.mark.parametrize("storage", ["device", *ELSEWHERE])
def test_reading_ahead_changes_nothing(ranks, storage):
    for world in (1, 3):
        results = ranks.run(ahead_and_not, world, storage=storage, capacity=12)
        for losses, rows, calls, sizes, num_ahead in results:
            assert losses[0] == losses[1]
            assert torch.equal(*rows)
            extra = 0 if storage == "device" else 5
            assert calls[1]["all_gather"] - calls[0]["all_gather"] == extra
            assert sizes[1]["all_gather"] - sizes[0]["all_gather"] == extra * 8 * 12
            assert num_ahead == 0  # of the last step, whose labels were not announced
    for losses, rows, *_ in ranks.run(ahead_and_not, 2, storage=storage, capacity=None):
        assert losses[0] == losses[1]
        assert torch.equal(*rows)


def test_rows_read_ahead_are_used():
    for storage in ELSEWHERE:
        head = new_head(storage)
        train(head, 0, 1, ahead=True)
        assert head.last_stats["rows_ahead"] == head.candidate_ids().numel()


@pytest.mark.parametrize("storage", ELSEWHERE)
def test_what_was_read_ahead_of_a_loaded_state_is_not_used(storage, tmp_path):
    arguments = {"candidates": mp.Uniform(0.3), "batch_capacity": 4, "objective": mp.CosFace()}
    where = {"storage_dir": tmp_path} if storage == "mapped" else {}
    stream = torch.Generator().manual_seed(1)
    features, labels = torch.randn(4, 16, generator=stream), torch.tensor([1, 5, 9, 33])

    def stepped(num):
        head = mp.ModelParallelSoftmax(16, 64, storage=storage, **where, **arguments)
        for _ in range(num):
            head(features.clone().requires_grad_(), labels).backward()
            head.step()
        return head

    later = {name: value.clone() for name, value in stepped(3).state_dict().items()}
    losses = []
    for ahead in (False, True):
        head = stepped(1)
        if ahead:
            head.prefetch(labels)
        head.load_state_dict(later)
        head._num_draws, head._table.num_steps = 0, 1  # the draw that was read ahead
        losses.append(head(features.clone().requires_grad_(), labels).item())
    assert losses[0] == losses[1]


def test_only_touched_rows_take_disk(tmp_path):
    """A hundred million classes: logically 25 GB, a few MB of it there; the others made from their ids."""
    head = mp.ModelParallelSoftmax(
        32, 10**8, candidates=mp.Uniform(1e-6), storage="mapped", storage_dir=tmp_path, init_std=0.3
    )
    descriptor = head._table.store._descriptor
    size = os.fstat(descriptor).st_size
    assert size == 10**8 * 2 * 32 * 4
    before = head.class_rows(torch.tensor([0, 99_999_999, 5]))
    labels = torch.tensor([99_999_999, 5])
    head(torch.randn(2, 32, requires_grad=True), labels).backward()
    head.step()
    after = head.class_rows(torch.tensor([0, 99_999_999, 5]))
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1:], after[1:])
    small = mp.ModelParallelSoftmax(32, 6, init_std=0.3)
    assert torch.equal(small.class_rows(torch.tensor([0, 5])), before[[0, 2]])
    state = head.state_dict()  # what is saved are the touched rows
    assert state["touched.0.ids"].numel() == 100
    assert state["touched.0.weight"].shape == (100, 32)
    taken = os.fstat(descriptor).st_blocks * 512
    assert 100 * 2 * 32 * 4 <= taken < 100 * 2 * 32 * 4 + 8192
    assert not list(tmp_path.iterdir())  # unlinked: whatever ends the process frees it
    del head
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def save(storage, dtype, path):
    import torch.distributed.checkpoint as dcp

    head = new_head(storage, row_dtype=dtype)
    train(head, 0, 5)
    dcp.save(head.state_dict(), checkpoint_id=path)
    return head.class_rows(torch.arange(CLASSES)), train(head, 5, 8)


def load(storage, dtype, path):
    head = new_head(storage, row_dtype=dtype, seed=0)
    train(head, 0, 2, seed=3)  # what was there before is forgotten
    state = {name: empty_like_stored(entry) for name, entry in stored_tensors(path).items()}
    read_tensors(path, state)
    head.load_state_dict(state)
    rows = head.class_rows(torch.arange(CLASSES))
    return rows, train(head, 5, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("storage", ELSEWHERE)
def test_saved_on_four_ranks_loads_on_any_number_and_storage(ranks, tmp_path, storage, dtype):
    path = tmp_path / "step"
    rows, losses = ranks.run(save, 4, storage=storage, dtype=dtype, path=path)[0]
    for world, loading in [(4, storage), (3, storage), (1, "device"), (2, "mapped")]:
        results = ranks.run(load, world, storage=loading, dtype=dtype, path=path)
        for loaded, after in results:
            assert torch.equal(loaded, rows), (world, loading)
            if world == 4:
                assert after == losses


def test_states_without_a_process_group():
    """One process: plain state, between all kinds of storage; what does not fit is refused."""
    heads = {storage: new_head(storage) for storage in ("device", *ELSEWHERE)}
    for head in heads.values():
        train(head, 0, 4)
    rows = heads["device"].class_rows(torch.arange(CLASSES))
    for name, head in heads.items():
        state = {key: value.clone() for key, value in head.state_dict().items()}
        for other in heads:
            loaded = new_head(other)
            train(loaded, 0, 2, seed=1)
            loaded.load_state_dict(state)
            assert torch.equal(loaded.class_rows(torch.arange(CLASSES)), rows), (name, other)
            assert train(loaded, 4, 6) == train_on_copy(state)
    state = heads["mapped"].state_dict()
    head = new_head("mapped")
    with pytest.raises(RuntimeError, match="momentum"):
        head.load_state_dict({k: v for k, v in state.items() if "momentum" not in k})
    with pytest.raises(RuntimeError, match="allowed: 0 <= row < 3"):
        mp.ModelParallelSoftmax(
            DIM, 3, candidates=mp.Uniform(0.5), untouched="lazy", storage="mapped"
        ).load_state_dict(state)


def train_on_copy(state):
    head = new_head("device")
    head.load_state_dict(state)
    return train(head, 4, 6)


def test_a_state_does_not_pass_through_the_device(tmp_path):
    """All rows that exist may be more than a device holds; "meta" stands in for one."""
    store = row_store.MappedStore(
        tmp_path,
        9,
        4,
        1,
        torch.float32,
        torch.device("meta"),
        lambda ids: np.zeros((len(ids), 4), "f4"),
    )
    index = torch.tensor([2, 5])
    store.write(index, [torch.ones(2, 4), torch.zeros(2, 4)], torch.ones(2, dtype=torch.int64))
    parts, row_step = store.read_home(store.existing())
    assert [part.device.type for part in (*parts, row_step)] == ["cpu"] * 3
    assert store.read(index)[0][0].device.type == "meta"


def test_load_rows_and_scheduling_go_on(tmp_path):
    for storage in ELSEWHERE:
        head, twin = new_head(storage), new_head("device")
        for one in (head, twin):
            train(one, 0, 2)
            one.load_rows(torch.tensor([3, 40]), torch.ones(2, DIM))
            one.optimizer.param_groups[0]["lr"] = 0.01
            train(one, 2, 4)
            features = torch.randn(5, DIM, generator=torch.Generator().manual_seed(1))
        everyone = torch.arange(CLASSES)
        assert torch.equal(head.class_rows(everyone), twin.class_rows(everyone))
        for mine, theirs in zip(
            head.nearest_classes(features), twin.nearest_classes(features), strict=True
        ):
            assert torch.equal(mine, theirs)


# -- refusals and faults -----------------------------------------------------------------------


def test_refusals(tmp_path):
    def make(**more):
        return mp.ModelParallelSoftmax(DIM, CLASSES, **more)

    with pytest.raises(ValueError, match="storage: 'disk'; allowed: device, host, mapped"):
        make(storage="disk")
    with pytest.raises(ValueError, match="storage: 'mapped' with candidates All"):
        make(storage="mapped")
    with pytest.raises(ValueError, match="storage: 'host' with candidates DSoftmaxB"):
        make(storage="host", objective=mp.DSoftmax(), candidates=mp.DSoftmaxB(0.5))
    with pytest.raises(ValueError, match="storage: 'host' with weights ClassCentres"):
        make(storage="host", candidates=mp.Uniform(0.5), weights=mp.ClassCentres())
    with pytest.raises(ValueError, match="storage_dir: 'x' with storage 'device'; allowed: None"):
        make(storage_dir="x")


def test_a_full_disk_is_an_error_before_it_is_full(monkeypatch):
    head = new_head("mapped")
    train(head, 0, 2)
    monkeypatch.setattr(row_store, "DISK_RESERVE_BYTES", 2**60)
    with pytest.raises(OSError, match=r"new class rows need up to \d+ MiB with the reserve"):
        train(head, 2, 30)  # a write fails behind the step: a later one says so


KILLED = """
import sys, torch, mpsoftmax as mp
head = mp.ModelParallelSoftmax(8, 1000, candidates=mp.Uniform(0.1), storage="mapped", storage_dir=sys.argv[1])
head(torch.randn(4, 8, requires_grad=True), torch.tensor([1, 2, 3, 4])).backward()
head.step()
head.state_dict()
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "rows")], env={**os.environ}, check=False
    )
    assert done.returncode == -9
    assert list((tmp_path / "rows").iterdir()) == []


def test_two_heads_of_one_folder_have_files_of_their_own(tmp_path):
    heads = [
        mp.ModelParallelSoftmax(
            8, 1000, candidates=mp.Uniform(0.1), storage="mapped", storage_dir=tmp_path, seed=seed
        )
        for seed in (1, 2)
    ]
    everyone = torch.arange(1000)
    for seed, head in zip((1, 2), heads, strict=True):
        head.load_rows(everyone[:10], torch.full((10, 8), float(seed)))
        fresh = mp.ModelParallelSoftmax(8, 1000, seed=seed)
        assert torch.equal(head.class_rows(everyone[10:]), fresh.class_rows(everyone[10:]))
    assert [float(head.class_rows(everyone[:1])[0, 0]) for head in heads] == [1.0, 2.0]
    assert list(tmp_path.iterdir()) == []
