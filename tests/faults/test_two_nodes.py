"""Two network namespaces as two nodes: the link is cut, and the node that holds the store goes on alone."""

import os
import shutil
import subprocess
import time

import pytest
from launched import Launched
from small_runs import lines

from mpsoftmax.comm import Comm
from mpsoftmax.train.checkpoint import Checkpoints
from mpsoftmax.train.sums import damage

LIMIT_S = 10
SLOWLY = (
    "data.image_size=[48, 48]", "train.batch_size=48", "train.steps=36", f"train.timeout_s={LIMIT_S}"
)  # fmt: skip


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def nodes():
    """Names of two namespaces joined by a link: addresses 10.77.0.1 and 10.77.0.2."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("two nodes on one machine need root and the command ip")
    names = [f"mp{os.getpid()}{side}" for side in "ab"]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", f"{names[0]}v", "type", "veth", "peer", "name", f"{names[1]}v")
        for number, name in enumerate(names, start=1):
            ip("link", "set", f"{name}v", "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", f"{name}v")
            ip("-n", name, "link", "set", f"{name}v", "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        for name in made:
            ip("netns", "del", name)
        pytest.skip(f"this machine allows no network namespaces: {error.stderr!r}")
    yield names
    for name in names:
        ip("netns", "del", name)


def node(names, number, folder):
    """The agent of one node, with one rank."""
    name = names[number - 1]
    conf = (
        "timeout=60,last_call_timeout=3,join_timeout=60,keep_alive_interval=1,keep_alive_max_attempt=3,"
        f"is_host={'true' if number == 1 else 'false'}"
    )
    agents = (
        "--nnodes", "1:2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "nodes",
        "--rdzv-endpoint", "10.77.0.1:29661", "--local-addr", f"10.77.0.{number}",
        "--shutdown-timeout", "5",
    )  # fmt: skip
    return Launched(
        folder, *SLOWLY, restarts=3, agents=agents, conf=conf, log=str(number),
        prefix=("ip", "netns", "exec", name), environment={"GLOO_SOCKET_IFNAME": f"{name}v"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_equal_one(nodes, tmp_path):
    with Launched(tmp_path / "one", *SLOWLY, nproc=2) as one:
        assert one.end(250) == 0, one.text()
    with node(nodes, 1, tmp_path / "two") as a, node(nodes, 2, tmp_path / "two") as b:
        assert a.end(250) == 0, a.text()
        assert b.end(60) == 0, b.text()
    assert lines(tmp_path / "two") == lines(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_link_is_cut(nodes, tmp_path):
    with node(nodes, 1, tmp_path / "run") as a, node(nodes, 2, tmp_path / "run") as b:
        a.wait_for_step(13, 200)
        assert "2 rank(s)" in a.text() + b.text()
        ip("-n", nodes[1], "link", "set", f"{nodes[1]}v", "down")
        cut, reached = time.monotonic(), a.steps()
        while "1 rank(s)" not in a.text():
            assert a.process.poll() is None, a.text()
            assert time.monotonic() - cut < 200, a.text()
            time.sleep(0.1)
        assert time.monotonic() - cut < 2 * LIMIT_S + 15  # of which seconds are importing torch
        assert a.end(250) == 0, a.text()
        assert "no sign of rank 1" in a.text()
        assert "resuming from" in a.text()
        assert reached < 36
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", Comm())
    assert checkpoints.latest().name == "step-36"
    assert damage(checkpoints.latest()) == []
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 37))
