"""Phases, throughput, time left and stragglers, on clocks that tests turn."""

from types import SimpleNamespace

import pytest
import torch

from mpsoftmax.comm import Comm
from mpsoftmax.head import phases as head_phases
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.phases import DeviceTimer, HostTimer, Phases
from mpsoftmax.track import step_clock
from mpsoftmax.track.profiler import Profiler
from mpsoftmax.track.step_clock import BACKBONE, UPDATE, StepClock

CPU = torch.device("cpu")


class Clock:
    """perf_counter that moves only when told."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


def clock_of(monkeypatch, tmp_path, comm=None, num_steps=100):
    clock = Clock()
    for module in (head_phases, step_clock):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    phases = Phases()
    profiler = Profiler(None, tmp_path, 0, CPU, phases)
    sizes = {"batch_size": 10, "num_steps": num_steps}
    return clock, phases, StepClock(phases, profiler, comm or Comm(), CPU, **sizes)


def one_step(clock, phases, steps, number, waits, sweeps=2.0):
    steps.begin(number)
    clock.now += waits
    steps.enter(BACKBONE)
    clock.now += 1.0
    with phases("sweep"):
        clock.now += sweeps
        with phases("reduce"):
            clock.now += 0.5
    clock.now += 1.0
    steps.enter(UPDATE)
    clock.now += 0.25
    steps.end(number)


def test_means_over_the_interval(monkeypatch, tmp_path):
    clock, phases, steps = clock_of(monkeypatch, tmp_path)
    one_step(clock, phases, steps, 1, waits=9.0)
    assert "eta_s" not in steps.read(1)
    for number in (2, 3):
        one_step(clock, phases, steps, number, waits=number / 4, sweeps=number)
        clock.now += 10.0  # an evaluation belongs to no step
    timing = steps.read(3)
    mean_wait, mean_sweep = 0.625, 2.5
    step_s = mean_wait + 2.0 + mean_sweep + 0.5 + 0.25
    assert timing["data_wait_s"] == pytest.approx(mean_wait)
    assert timing["step_s"] == pytest.approx(step_s)
    assert timing["images_per_s"] == pytest.approx(10 / step_s)
    assert timing["phases_s"] == pytest.approx(
        {"data": mean_wait, "backbone": 2.0, "sweep": mean_sweep, "reduce": 0.5, "update": 0.25}
    )
    assert timing["eta_s"] == pytest.approx(97 * (step_s + 10.0))  # evaluations included
    assert "slowest_data_rank" not in timing
    with phases("sweep"):
        clock.now += 1.0
    assert steps.read(3)["phases_s"] == {}  # nothing is timed outside of a step


def waiting(monkeypatch=None):
    """Rank 1 waits for its data."""
    patch, comm = pytest.MonkeyPatch(), Comm()
    try:
        clock, phases, steps = clock_of(patch, None, comm)
        one_step(clock, phases, steps, 1, waits=4.0 if comm.rank == 1 else 0.5)
        return steps.read(1)
    finally:
        patch.undo()


def test_the_slowest_rank_is_named(ranks):
    for rank, timing in enumerate(ranks.run(waiting, 3)):
        assert timing["data_wait_s"] == (4.0 if rank == 1 else 0.5)
        assert timing["slowest_data_wait_s"] == 4.0
        assert timing["slowest_data_rank"] == 1


def test_the_head_marks_its_phases(monkeypatch):
    """Whatever reads the clock takes a second: the phases add up to all of it."""
    head = ModelParallelSoftmax(8, 20, objective="npcface", batch_capacity=6)
    ticks = iter(range(1000))
    monkeypatch.setattr(head_phases, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    timer = head.phases.timer = HostTimer()
    timer.switch("backbone")
    features = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    head(features, torch.arange(6)).backward()
    head.step()
    timer.switch(None)
    seconds = timer.take()
    assert set(seconds) == {"backbone", "gather", "sweep", "reduce", "update"}
    assert sum(seconds.values()) == next(ticks) - 1
    assert timer.take() == {}


def test_numbers_do_not_depend_on_timing():
    losses = []
    for timer in (None, HostTimer()):
        head = ModelParallelSoftmax(8, 20, batch_capacity=6)
        head.phases.timer = timer
        if timer is not None:
            timer.switch("backbone")
        features = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
        for _ in range(3):
            head(features, torch.arange(6)).backward()
            head.step()
        losses.append(head(features, torch.arange(6)).item())
    assert losses[0] == losses[1]


class Event:
    """A CUDA event on a clock of the test's."""

    clock, made = Clock(), 0

    def __init__(self, enable_timing):
        assert enable_timing
        Event.made += 1

    def record(self):
        self.at = Event.clock.now

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


def test_device_events_are_read_late_and_used_again(monkeypatch):
    """Against a stand-in for torch.cuda.Event: there is no GPU here."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    timer, made = DeviceTimer(), []
    for _ in range(3):
        for name, seconds in (("data", 1.0), ("sweep", 2.0), ("data", 0.5), (None, 7.0)):
            timer.switch(name)
            Event.clock.now += seconds
        assert timer.take() == pytest.approx({"data": 1.5, "sweep": 2.0})
        assert timer.take() == {}
        made.append(Event.made)
    assert made == [4, 4, 4]
    timer.switch("sweep")
    Event.clock.now += 1.0
    timer.take()  # in the middle of a phase: what follows is not lost
    Event.clock.now += 2.0
    timer.switch(None)
    assert timer.take() == pytest.approx({"sweep": 3.0})
