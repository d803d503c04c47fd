"""Processes killed and hung, data lost: what is said, that nobody waits for ever, that the run goes on."""

import os
import re
import shutil
import signal
import sys
import time

import pytest
import torch
from launched import Launched
from small_runs import assert_equal_states, lines, settings, train

from mpsoftmax.comm import Comm
from mpsoftmax.roll_call import LostRank
from mpsoftmax.train.checkpoint import Checkpoints
from mpsoftmax.train.loop import Trainer
from mpsoftmax.train.sums import damage

SLOWLY = ("data.image_size=[48, 48]", "train.batch_size=48", "train.steps=36")


def a_rank_is_late(how):
    """Of three ranks the last does not come in time; what the others meet."""
    import datetime

    import torch.distributed as dist

    limit = datetime.timedelta(seconds=1.0)
    comm = Comm(dist.new_group(timeout=limit), limit)
    if comm.rank == 2:
        time.sleep(6.0)
        return None
    try:
        if how == "all_reduce":
            comm.all_reduce_sum(torch.zeros(3))
        elif how == "barrier":
            comm.barrier()
        else:
            comm.share("something")
    except LostRank as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize(
    ("how", "operation"),
    [
        ("all_reduce", "all_reduce of 12 bytes a rank"),
        pytest.param("share", "all_gather of plain values", marks=pytest.mark.slow),
    ],
)
def test_a_late_rank_is_named_with_the_operation(ranks, how, operation):
    first, second, _ = ranks.run(a_rank_is_late, 3, how=how)
    for rank, text in enumerate((first, second)):
        assert text.startswith(f"rank {rank}: {operation}: ")
        assert text.endswith("no sign of rank 2: killed, hung, or cut off")


def evaluation_with_a_slow_rank(folder, batches):
    """One rank takes far longer over the evaluation's images than the collectives' time-out."""
    import datetime

    import torch.distributed as dist

    module = sys.modules["mpsoftmax.evaluate.embed"]  # the package's name is the function

    limit = datetime.timedelta(seconds=2.0)
    comm = Comm(dist.new_group(timeout=limit), limit)
    trainer = Trainer(
        settings(
            folder, "data.eval=[glyphs-open]", "data.glyphs.system_fonts=false",
            "data.glyphs.min_fonts=4", "train.steps=1",
        ),
        comm,
    )  # fmt: skip
    embed_batch, slept = module.raw_batch, []

    def slow(*arguments):
        if comm.rank == 1 and len(slept) < batches:
            time.sleep(0.8)
            slept.append(0.8)
        return embed_batch(*arguments)

    module.raw_batch = slow
    try:
        began = time.monotonic()
        found = trainer._evaluate()
        return time.monotonic() - began, found[0]["accuracy"]
    finally:
        module.raw_batch = embed_batch
        trainer.log.close()


@pytest.mark.slow
def test_an_evaluation_may_take_longer_than_the_time_out(ranks, tmp_path):
    results = ranks.run(evaluation_with_a_slow_rank, 2, folder=tmp_path, batches=5)
    assert all(seconds > 4.0 for seconds, _ in results)
    assert len({accuracy for _, accuracy in results}) == 1


def test_ranks_without_classes(ranks, tmp_path):
    """Four ranks share two classes; stopped and resumed like any other."""
    every = ("data.synthetic.num_classes=2", "train.steps=6", "train.checkpoint_every=2")
    ranks.run(train, 4, folder=tmp_path / "a", overrides=every)
    ranks.run(train, 4, folder=tmp_path / "b", overrides=every, stop_after=3)
    ranks.run(train, 4, folder=tmp_path / "b", overrides=every)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert_equal_states(tmp_path / "a", tmp_path / "b")


def test_a_rank_without_data_is_refused(ranks, tmp_path):
    said = r"train.batch_size: 2; allowed with 4 ranks .* at least 4, a sample a rank"
    with pytest.raises(AssertionError, match=said):
        ranks.run(train, 4, folder=tmp_path, overrides=("train.batch_size=2",))


def shard_lost(folder, harm):
    """A run on a .rec of which one rank alone finds something wrong."""
    try:
        Trainer(settings(folder / "run", f"data.train={folder / 'a.rec'}"), Comm()).run()
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("harm", ["missing", "truncated", "changed"])
def test_a_data_file_that_is_gone_or_damaged_is_named_on_all_ranks(ranks, tmp_path, harm):
    from mpsoftmax.data.convert import convert
    from mpsoftmax.data.synthetic import Synthetic

    convert(Synthetic(num_classes=6, images_per_class=3, size=(16, 16)), tmp_path / "a.rec")
    path = tmp_path / "a.rec"
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        data = bytearray(path.read_bytes())
        data[: len(data) // 2] = bytes(len(data) // 2)
        path.write_bytes(data)
    for text in ranks.run(shard_lost, 2, folder=tmp_path, harm=harm):
        assert text is not None
        assert "a.rec" in text


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run of two ranks that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    with Launched(folder, *SLOWLY) as run:
        assert run.end() == 0, run.text()
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_started_again(undisturbed, tmp_path, rank):
    with Launched(tmp_path / "run", *SLOWLY, restarts=2) as run:
        run.wait_for_step(13)
        os.kill(run.ranks()[rank], signal.SIGKILL)
        assert run.end() == 0, run.text()
        assert "resuming from" in run.text()
        said = ("the store where ranks meet does not answer: rank 0", "no sign of rank 1: killed")[
            rank
        ]
        assert said in run.text()
    assert lines(tmp_path / "run") == lines(undisturbed)
    assert_equal_states(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hung_rank_is_named_and_the_run_goes_on(undisturbed, tmp_path):
    """SIGSTOP: nothing ends by itself; the time-out finds it, torchrun ends it after its grace."""
    limits = ("train.timeout_s=8",)
    with Launched(
        tmp_path / "run", *SLOWLY, *limits, restarts=2, launcher=("--shutdown-timeout", "5")
    ) as run:
        run.wait_for_step(13)
        os.kill(run.ranks()[1], signal.SIGSTOP)
        stopped = time.monotonic()
        assert run.end(350) == 0, run.text()
        assert time.monotonic() - stopped < 150
        said = run.text()
        assert re.search(r"rank 0: .*(timed out|timeout).*; no sign of rank 1", said, re.I), said
        assert "resuming from" in said
    assert lines(tmp_path / "run") == lines(undisturbed)
    assert_equal_states(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_data_worker_is_named_and_the_run_goes_on(undisturbed, tmp_path):
    with Launched(tmp_path / "run", *SLOWLY, "data.workers=1", restarts=2) as run:
        run.wait_for_step(13)
        os.kill(data_workers(run.ranks()[1])[0], signal.SIGKILL)
        assert run.end() == 0, run.text()
        assert "a data worker of this rank was killed" in run.text()
        assert "resuming from" in run.text()
    assert lines(tmp_path / "run") == lines(undisturbed)
    assert_equal_states(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ranks_end_with_a_killed_launcher(tmp_path):
    """They have sessions of their own, and would go on writing beside their successors."""
    with Launched(tmp_path / "run", *SLOWLY, restarts=2) as run:
        run.wait_for_step(3)
        assert len(run.ranks()) == 2
        run.process.kill()
        deadline = time.monotonic() + 30
        while run.ranks():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert run.steps() < 36


def data_workers(rank):
    """Grandchildren of a rank: what its forkserver forked."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry))
    return [grandchild for child in children[rank] for grandchild in children.get(child, [])]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_node_leaves_a_smaller_world(tmp_path):
    """Two agents; one and its ranks are killed, the other goes on alone from the checkpoint."""
    with Launched(tmp_path / "run", *SLOWLY, nproc=None) as whole:
        assert whole.end() == 0, whole.text()
    shutil.rmtree(tmp_path / "run")
    port = 29500 + os.getpid() % 1000
    conf = "timeout=60,last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
    launcher = (
        "--nnodes", "1:2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "nodes",
        "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1",
    )  # fmt: skip
    more = (*SLOWLY, "train.timeout_s=8")
    with (
        Launched(
            tmp_path / "run", *more, restarts=3, agents=launcher, conf=conf + ",is_host=1"
        ) as a,
        Launched(
            tmp_path / "run", *more, restarts=3, agents=launcher, conf=conf + ",is_host=0", log="b"
        ) as b,
    ):
        a.wait_for_step(13)
        victims = [pid for pid in a.ranks().values() if parent_of(pid) == b.process.pid]
        assert len(victims) == 1
        for pid in (b.process.pid, *victims):
            os.kill(pid, signal.SIGKILL)
        assert a.end(350) == 0, a.text()
        assert "1 rank(s)" in a.text()
        assert "resuming from" in a.text()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", Comm())
    assert checkpoints.latest().name == "step-36"
    assert damage(checkpoints.latest()) == []
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 37))


def parent_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])
