"""The doctor's page: what is well, what needs a look and why, and what must not be on it."""

import json
import os
import platform
import resource
import subprocess
import sys
import time

import pytest
import torch

from mpsoftmax.comm import Comm
from mpsoftmax.config import load
from mpsoftmax.doctor import data, disk, machine, versions
from mpsoftmax.doctor import ranks as between
from mpsoftmax.doctor.finding import Finding, anonymous, merged, render
from mpsoftmax.kernels import native_library

CONFIG = (
    "train.steps=1",
    "data.train=synthetic",
    "backbone.embedding_dim=16",
    "train.batch_size=12",
)


STARTS_PROCESSES = pytest.mark.timeout(300)  # each imports torch; minutes on a loaded machine


def config(*overrides):
    return load(None, [*CONFIG, *overrides])


def by_name(findings):
    return {finding.name: finding for finding in findings}


def talk(overrides=(), late_s=0.0):
    """What the ranks find about each other; the last rank's clock is late."""
    comm = Comm()
    device = torch.device("cpu")
    late = late_s if comm.rank == comm.world - 1 else 0.0
    found = between.ranks(config(*overrides), comm, device)
    return [*found, between.clocks(comm, now=lambda: time.time() - late)]


def test_compiled_kernel(monkeypatch):
    """Here; or not, which needs a look only where the configuration asks for it."""
    monkeypatch.setattr(native_library, "obstacle", lambda: None)
    assert versions.compiled(config()).value == "native (compiled)"
    monkeypatch.setattr(native_library, "obstacle", lambda: "was not built")
    found = versions.compiled(config())
    assert found.ok
    assert found.value == "blocked; native was not built"
    assert (
        versions.compiled(config("head.kernel=native")).cure == "build it, for head.kernel: native"
    )


@pytest.mark.parametrize("world", [1, 2])
def test_ranks_reach_each_other_at_the_configured_sizes(ranks, world):
    answers = ranks.run(talk, world)
    assert all(answer == answers[0] for answer in answers)
    found = by_name(answers[0])
    assert all(finding.ok for finding in found.values())
    assert found["ranks"].value == f"{world} on 1 machine(s), cpu"
    share = 12 // world
    sizes = {
        "all-gather (1)": (share + 1) * (16 + 4 * 16),
        "all-reduce (2)": 4 * 2 * 12,
        "reduce-scatter (3)": 4 * world * share * 16,
    }
    for name, num_bytes in sizes.items():
        assert found[name].value.startswith(f"{num_bytes:,} bytes")
        assert ("MB/s" in found[name].value) == (world > 1)


def test_clocks_apart_need_a_look(ranks):
    for answer in ranks.run(talk, 2, late_s=3.0):
        late = answer[-1]
        assert not late.ok
        assert "NTP" in late.cure
        assert 2900 < float(late.value.split()[2]) < 3600


def look_at_folder(folders):
    comm = Comm()
    return disk.disk(str(folders[comm.rank % len(folders)]), comm)


def test_a_run_folder_that_ranks_do_not_share(ranks, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for answer in ranks.run(look_at_folder, 2, folders=[tmp_path / "a" / "run"]):
        found = by_name(answer)
        assert found["run.dir"].ok
        assert float(found["write"].value.split()[0]) > 0
        assert float(found["read"].value.split()[0]) > 0
    for answer in ranks.run(look_at_folder, 2, folders=[tmp_path / "a", tmp_path / "b"]):
        assert "rank(s) [1] do not see it" in by_name(answer)["run.dir"].cure
    assert list((tmp_path / "a").iterdir()) == list((tmp_path / "b").iterdir()) == []


def test_few_open_files_need_a_look(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    found = machine.open_files()
    assert (found.value, found.cure) == ("1024 (hard limit 4096)", "ulimit -n 65536")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert machine.open_files().ok


def test_little_shared_memory_needs_a_look(monkeypatch):
    many = config("data.workers=100", "data.image_size=[512, 512]", "train.batch_size=4096")
    assert machine.batches_bytes(many, 4) == 100 * 5 * 1024 * 3 * 512 * 512
    assert "--shm-size" in machine.shared_memory(many, 1, 1).cure
    assert machine.shared_memory(config("data.workers=0"), 1, 1).ok


def test_threads_that_get_in_each_others_way(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert machine.cores(4).cure.startswith("export OMP_NUM_THREADS=2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert machine.cores(4).ok


def test_what_the_configuration_needs_is_looked_for(tmp_path, monkeypatch):
    wanted = config(
        f"data.train={tmp_path / 'faces.tar'}", "data.decoder=opencv", "track.wandb=online",
        "track.tensorboard=true", "backbone={name: 'timm:resnet50', embedding_dim: 16}",
        "train.engine={kind: deepspeed, stage: 2}",
    )  # fmt: skip
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(versions, "version_of", lambda name: None)
    found = by_name([*data.data(wanted), *versions.versions(wanted)])
    looks = {name: finding.cure for name, finding in found.items() if not finding.ok}
    assert looks["data.train"] == "no such file or folder on this rank"
    assert looks["track.wandb"] == "set WANDB_API_KEY, or track.wandb: offline"
    assert looks["timm"] == "pip install timm, for backbone.name: timm:resnet50"
    assert looks["tensorboardX"] == "pip install tensorboardX, for track.tensorboard: true"
    assert looks["deepspeed"] == "pip install deepspeed, for train.engine: deepspeed"
    assert looks["torch"] == "pip install 'torch>=2.6'"
    assert "simplejpeg" not in looks
    assert found["decoder pillow"].value == "decodes JPEG"


def test_an_old_package_needs_a_look(monkeypatch):
    monkeypatch.setattr(versions, "version_of", lambda name: "1.0")
    found = by_name(versions.required(one) for one in versions.requirements())
    assert found["numpy"].cure == "pip install 'numpy>=1.26'"
    assert len(found) == 8


def test_equal_findings_of_ranks_are_one_line():
    same, first, second = (Finding("s", name, "v") for name in ("same", "other", "other"))
    other = Finding("s", "other", "w", "cure it")
    lines = merged({0: [same, first], 4: [same, second], 8: [same, other]})
    assert [(f.name, f.value, f.ranks) for f in lines] == [
        ("same", "v", ()), ("other", "v", (0, 4)), ("other", "w", (8,)),
    ]  # fmt: skip
    page = render(lines, "title")
    assert "LOOK other                     w [rank 8]\n" in page
    assert "-> cure it" in page
    assert page.endswith("3 findings, 1 line(s) to LOOK at")


def test_no_names_and_no_secrets(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "gpu-node-17.cluster.example")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    monkeypatch.setenv("HOME", "/home/somebody")
    text = "gpu-node-17 gpu-node-17.cluster.example hf_abcdefghijklmnop s3://key:pw@host/ /home/somebody/x"
    found = anonymous(Finding("s", "n", text))
    assert found.value == "HOST HOST [redacted] s3://[redacted]@host/ ~/x"


def run(*arguments, environment=()):
    done = subprocess.run(
        [sys.executable, "-m", "mpsoftmax", "doctor", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **dict(environment)},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    return done


@pytest.mark.slow
@STARTS_PROCESSES
def test_the_command_on_two_ranks(tmp_path):
    out = tmp_path / "doctor.json"
    secret = {"MY_API_KEY": "sk-1234567890"}
    folder = f"run.dir={tmp_path / 'run'}"
    done = run(*CONFIG, folder, "--nproc", "2", "--json", str(out), environment=secret)
    assert done.returncode == 0, done.stdout + done.stderr
    values = json.loads(out.read_text())
    assert values["ok"]
    sections = {finding["section"] for finding in values["findings"]}
    assert sections == {"versions", "data and tracking", "machine", "run folder", "ranks"}
    assert "2 on 1 machine(s), cpu" in done.stdout
    assert done.stdout.rstrip().endswith("all ok")
    assert "sk-1234567890" not in done.stdout + out.read_text()
    assert list(tmp_path.iterdir()) == [out]


@STARTS_PROCESSES
def test_the_command_alone_with_something_to_look_at(tmp_path):
    done = run("data.train=nowhere.tar", f"run.dir={tmp_path}")
    assert done.returncode == 1, done.stderr
    assert "LOOK data.train                nowhere.tar\n" in done.stdout
    assert done.stdout.rstrip().endswith("1 line(s) to LOOK at")


def test_mistakes_are_named(capsys):
    from mpsoftmax.cli import main

    assert main(["doctor", "trian.steps=1"]) == 2
    assert "trian: unknown key" in capsys.readouterr().err
    assert main(["doctor", "--timeout-s", "0"]) == 2
    assert "--timeout-s: 0.0; allowed: a positive number" in capsys.readouterr().err
    assert main(["doctor", "--nproc", "0"]) == 2
    assert "--nproc: 0; allowed: at least 1" in capsys.readouterr().err


@pytest.mark.slow
@STARTS_PROCESSES
def test_ranks_that_cannot_meet_are_a_finding(tmp_path):
    """One of two ranks never comes: the page says so, in time."""
    alone = {
        "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    began = time.monotonic()
    done = run("data.train=synthetic", "--timeout-s", "3", environment=alone)
    assert time.monotonic() - began < 250  # gloo's own patience is 30 minutes
    assert done.returncode == 1, done.stderr
    assert "LOOK ranks" in done.stdout
    assert "GLOO_SOCKET_IFNAME" in done.stdout


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_sets_of_several_files_are_looked_for(tmp_path, monkeypatch):
    from mpsoftmax.doctor.data import is_there

    monkeypatch.chdir(tmp_path)
    for name in ("a-0.tar", "a-1.tar", "list.txt"):
        (tmp_path / name).touch()
    there = ["a-{0..1}.tar", "a-*.tar", "list.txt@a-0.tar", "a-0.tar"]
    missing = ["a-{0..2}.tar", "b-*.tar", "list.txt@b.tar", "lost.txt@a-0.tar", "b.tar"]
    assert [is_there(one) for one in there] == [True] * 4
    assert [is_there(one) for one in missing] == [False] * 5
