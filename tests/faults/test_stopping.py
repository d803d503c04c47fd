"""Asked to stop: all ranks save at the same step, and the exit status says why they ended."""

import os
import signal

import pytest
from launched import Launched
from small_runs import assert_equal_states, lines, train

from mpsoftmax.comm import Comm
from mpsoftmax.train.checkpoint import Checkpoints, read_state
from mpsoftmax.train.stopping import StopSignals

SLOWLY = ("data.image_size=[48, 48]", "train.batch_size=48", "train.steps=60")
EVERY = ("train.checkpoint_every=3", "train.eval_every=5")


def stopped_by(folder, signum, rank, at):
    """A run of which one rank gets a signal during a step; the step that was saved."""
    from small_runs import settings

    from mpsoftmax.train.loop import Trainer
    from mpsoftmax.train.stopping import Stopped

    trainer = Trainer(settings(folder, *EVERY), Comm())
    step = trainer._step

    def signalled(*arguments):
        if trainer.step == at and trainer.comm.rank == rank:
            os.kill(os.getpid(), signum)
        return step(*arguments)

    trainer._step = signalled
    before = signal.getsignal(signum)
    try:
        trainer.run()
    except Stopped as stopped:
        assert signal.getsignal(signum) == before
        return trainer.step, stopped.status, str(stopped)
    return None


@pytest.mark.parametrize(
    ("signum", "status"),
    [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGUSR1", "SIGINT"],
)
def test_all_ranks_stop_at_one_step_and_the_run_goes_on(ranks, tmp_path, signum, status):
    """Step 5 begins when the signal comes, its evaluation is left to the run that goes on."""
    found = ranks.run(stopped_by, 3, folder=tmp_path / "a", signum=signum, rank=1, at=3)
    for step, code, text in found:
        assert (step, code) == (5, status)
        assert f"stopped by {signal.Signals(signum).name} after step 5, which is saved" in text
    checkpoint = Checkpoints(tmp_path / "a" / "checkpoints", Comm()).latest()
    assert checkpoint.name == "step-5"
    assert read_state(checkpoint)["unevaluated"]
    if signum == signal.SIGTERM:
        ranks.run(train, 3, folder=tmp_path / "a", overrides=EVERY)
        ranks.run(train, 3, folder=tmp_path / "whole", overrides=EVERY)
        assert lines(tmp_path / "a") == lines(tmp_path / "whole")
        assert_equal_states(tmp_path / "a", tmp_path / "whole")


def test_a_signal_in_the_last_step_ends_as_usual(ranks, tmp_path):
    arguments = {"folder": tmp_path, "signum": signal.SIGTERM, "rank": 0, "at": 9}
    assert ranks.run(stopped_by, 2, **arguments) == [None, None]


def test_a_second_interrupt_does_not_wait(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("mpsoftmax.train.stopping.time.monotonic", lambda: clock[0])
    with StopSignals(Comm()) as stops:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun passes on what the terminal sent
        stops.ask()
        assert stops.agreed() == signal.SIGINT
        clock[0] += 6.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_process_alone_ends_with_143(tmp_path):
    with Launched(tmp_path / "run", *SLOWLY, "data.workers=1", nproc=None) as run:
        run.wait_for_step(3)
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 143, run.text()
        assert "stopped by SIGTERM after step" in run.text()
    assert Checkpoints(tmp_path / "run" / "checkpoints", Comm()).latest() is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("signum", "status"),
    [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGUSR1", "SIGINT"],
)
def test_under_torchrun(tmp_path, signum, status):
    """The launcher passes the signal on; all processes of a Slurm step or a terminal get it as well."""
    with Launched(tmp_path / "run", *SLOWLY, "data.workers=1", restarts=3) as run:
        run.wait_for_step(3)
        os.killpg(run.process.pid, signum)
        assert run.end() == status, run.text()
        assert f"stopped by {signum.name} after step" in run.text()
        reached = run.steps()
        assert reached < 60
    checkpoint = Checkpoints(tmp_path / "run" / "checkpoints", Comm()).latest()
    assert checkpoint.name == f"step-{reached}"
    with Launched(tmp_path / "run", *SLOWLY, nproc=2) as run:
        assert run.end() == 0, run.text()
        assert f"resuming from {checkpoint}" in run.text()
