"""Rows moved on a stream of their own: nobody reads them too early, nothing is moved too early.

Without a GPU in two halves. A stand-in for the stream, on which what an update wrote stays hidden until it
is joined, runs whole trainings against the truth; and the real one is run with streams and events that only
keep clocks, to see what is ordered before what.
"""

import contextlib
import weakref
from dataclasses import replace

import pytest
import torch
from head_cases import Case
from head_runs import assert_exact, train_all

import mpsoftmax as mp
from mpsoftmax.head import class_table, update_stream
from mpsoftmax.head import head as head_module

CASES = [
    Case(steps=3, micros=2),
    Case(optimiser="adamw", steps=3),
    Case(candidates=("uniform", 0.3), untouched="lazy", steps=4),
    Case(candidates=("dsoftmax_k", 0.3, "drawn"), objective="dsoftmax", steps=3, micros=2),
    Case(objective="npcface", steps=3),
    Case(weights=("sub_centres", 3), steps=3),
    Case(rule=("top_one", 0.3), steps=3),
    Case(merged=((1, 9), (0, 5)), steps=3),
    Case(more={"e_budget_bytes": 0}, steps=3),
]


class Hidden:
    """What `run` wrote is not to be seen, and would be lost if written over, until `join`."""

    def __init__(self, device):
        self.table, self.written, self.at_ready = None, None, None

    def _tensors(self):
        store = self.table.store
        return [store.weight, *store.states, store.row_step]

    def inputs_ready(self):
        self.at_ready = [tensor.clone() for tensor in self._tensors()]

    def run(self, work, inputs):
        begun, before = self.at_ready, [tensor.clone() for tensor in self._tensors()]
        self.join()
        if begun is not None:  # it may begin as early as that: nothing may have changed since
            for then, now in zip(begun, before, strict=True):
                assert torch.equal(then, now)
        work()
        self.written = [tensor.clone() for tensor in self._tensors()]
        for tensor in self._tensors():
            tensor.fill_(float("nan") if tensor.is_floating_point() else -(2**40))

    def join(self):
        self.at_ready = None
        if self.written is not None:
            for tensor, value in zip(self._tensors(), self.written, strict=True):
                tensor.copy_(value)
            self.written = None


@contextlib.contextmanager
def hidden_streams():
    """Heads made in here that update beside do so on a Hidden."""

    class Table(class_table.ClassTable):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.stream.table = self

    originals = head_module.SideStream, head_module.ClassTable
    head_module.SideStream, head_module.ClassTable = Hidden, Table
    try:
        yield
    finally:
        head_module.SideStream, head_module.ClassTable = originals


def train_hidden(cases):
    with hidden_streams():
        return train_all(cases)


@pytest.mark.parametrize("world", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_truth(ranks, world):
    cases = [
        replace(case, more={**case.more, "update_beside": True, "batch_capacity": 7})
        for case in CASES
    ]
    by_rank = ranks.run(train_hidden, world, cases=cases)
    for k, case in enumerate(cases):
        assert_exact(case, [answers[k] for answers in by_rank], world)


def one_step(head):
    """Forward and backward; step() is the caller's."""
    stream = torch.Generator().manual_seed(head._table.num_steps)
    features = torch.randn(6, 8, generator=stream).requires_grad_()
    head(features, torch.randint(0, 30, (6,), generator=stream)).backward()


def of_rows(head, what):
    """Something that reads or writes rows, and what it says."""
    ids = torch.arange(30)
    if what == "state":
        return [value.clone() for value in head.state_dict().values()]
    if what == "loaded":
        head.load_state_dict({k: v.clone() for k, v in head.state_dict().items()})
        return []
    if what == "set":
        head.load_rows(ids[:4], torch.eye(30)[:4, :8])
        return []
    if what == "caught up":
        head.catch_up()
        return [head.class_rows(ids)]
    if what == "nearest":
        features = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
        return list(head.nearest_classes(features))
    if what == "weight":
        return [head._table.weight.clone(), head._table.row_step.clone()]
    return [head.gradient_square()]


@pytest.mark.parametrize(
    "what", ["state", "loaded", "set", "caught up", "nearest", "weight", "square"]
)
def test_whoever_uses_rows_waits(what):
    """After step(), and again with the next step's backward behind."""
    arguments = {"candidates": mp.Uniform(0.5), "untouched": "lazy", "seed": 3}
    with hidden_streams():
        beside = mp.ModelParallelSoftmax(8, 30, update_beside=True, **arguments)
    inline = mp.ModelParallelSoftmax(8, 30, **arguments)
    said = []
    for head in (beside, inline):
        said.append([])
        for _ in range(3):
            one_step(head)
            if what == "square":
                said[-1] += of_rows(head, what)
                head.scale_gradient(0.5)
                if head is beside:  # the product with 0.5 is younger than the backward
                    assert head._table.stream.at_ready is None
            head.step()
            said[-1] += of_rows(head, what)
        said[-1].append(head.class_rows(torch.arange(30)))
    for mine, other in zip(*said, strict=True):
        assert mine.isfinite().all()
        assert torch.equal(mine, other)


# -- the real stream, on clocks --------------------------------------------------------------------


class Event:
    def __init__(self, clock):
        self.clock = clock


class Stream:
    """Work enqueued on it happens after everything its clock knows."""

    def __init__(self, name):
        self.name, self.clock = name, {}

    def enqueue(self):
        """A piece of work: (stream, number)."""
        self.clock[self.name] = self.clock.get(self.name, 0) + 1
        return self.name, self.clock[self.name]

    def knows(self, work):
        return self.clock.get(work[0], 0) >= work[1]

    def record_event(self):
        return Event(dict(self.clock))

    def wait_event(self, event):
        for name, number in event.clock.items():
            self.clock[name] = max(number, self.clock.get(name, 0))


@pytest.fixture
def streams(monkeypatch):
    """(main, side, the SideStream made of them)."""
    main, side, current = Stream("main"), Stream("side"), []
    current.append(main)

    @contextlib.contextmanager
    def on(stream):
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    return main, side, update_stream.SideStream(torch.device("cuda", 0)), on


def test_an_update_waits_for_the_heads_backward_and_not_for_the_backbones(streams):
    main, side, stream, _ = streams
    of_head = main.enqueue()
    stream.inputs_ready()
    of_backbone = main.enqueue()
    done = []
    stream.run(
        lambda: done.append((side.knows(of_head), side.knows(of_backbone), side.enqueue())), 0
    )
    assert done[0][:2] == (True, False)
    next_backbone = main.enqueue()
    assert not main.knows(done[0][2])
    assert next_backbone == ("main", 3)
    stream.join()
    assert main.knows(done[0][2])


def test_what_looked_at_rows_in_between_is_waited_for(streams):
    main, side, stream, _ = streams
    stream.inputs_ready()
    stream.join()  # as whoever asks the table for rows does
    reading = main.enqueue()
    seen = []
    stream.run(lambda: seen.append(side.knows(reading)), 0)
    assert seen == [True]


def test_two_updates_follow_each_other_and_inputs_live_until_their_stream_waited(streams):
    main, side, stream, on = streams

    inputs = Event({})  # anything
    alive = weakref.ref(inputs)
    first = []
    stream.run(lambda: first.append(side.enqueue()), inputs)
    del inputs
    assert alive() is not None
    other = Stream("other")
    with on(other):
        stream.join()
    assert alive() is None
    assert other.knows(first[0])
    assert main.knows(first[0])  # whose memory the inputs are
    second = []
    stream.run(lambda: second.append(side.knows(first[0])), 0)
    assert second == [True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "update_beside: True with rows on 'cpu'; allowed: False"),
        ({"storage": "host", "candidates": mp.Uniform(0.5)}, "update_beside: True with storage 'host'"),
        ({"weights": "class_centres"}, "update_beside: True with class centres"),
    ],
)  # fmt: skip
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        mp.ModelParallelSoftmax(8, 30, update_beside=True, **arguments)
