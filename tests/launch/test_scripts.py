"""What stands in launch/ and docker/: scripts, a stand-in for Slurm, the YAML of a job, the image."""

import os
import shutil
import signal
import subprocess
import time

import pytest
import yaml

SCRIPTS = [
    "launch/environment.sh", "launch/job.sh", "launch/docs", "launch/quickstart", "launch/test",
    "launch/torchrun.sh", "launch/deepspeed.sh", "launch/slurm.sbatch",
    "docker/build_without_docker.sh", ".ci/run",
]  # fmt: skip


@pytest.fixture
def root(pytestconfig):
    return pytestconfig.rootpath


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_parses(root, script):
    subprocess.run(["bash", "-n", root / script], check=True)


def test_every_script_is_listed(root):
    found = {
        str(path.relative_to(root))
        for folder in ("launch", "docker", ".ci")
        for path in (root / folder).iterdir()
        if path.read_text().startswith("#!") or path.suffix == ".sh"
    }
    assert found == set(SCRIPTS)


@pytest.mark.parametrize("script", ["launch/torchrun.sh", "launch/deepspeed.sh"])
def test_without_a_configuration_a_script_says_what_it_takes(root, script):
    done = subprocess.run([root / script], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{script} configs/" in done.stdout
    assert "#" not in done.stdout.split("\n")[0]


def test_several_nodes_need_a_place_to_meet(root):
    environment = {**os.environ, "NNODES": "2", "NPROC": "1"}
    environment.pop("RDZV", None)
    command = [root / "launch/torchrun.sh", "configs/quickstart.yaml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "RDZV is not set with NNODES=2; allowed: host:port" in done.stderr


# A cluster of one: srun runs the task here, scontrol writes down what it is asked.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
echo "$NNODES $RDZV $JOB $*" > "$SEEN/task"
trap 'echo signalled >> "$SEEN/task"; exit 143' USR1
if [ -n "${LONG:-}" ]; then for _ in $(seq 200); do sleep 0.05; done; fi
exit "${STATUS:-0}"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo node7; echo node8; else echo "$*" >> "$SEEN/asked"; fi
"""


@pytest.fixture
def slurm(root, tmp_path):
    """Starts slurm.sbatch under the stand-ins; `seen` has what they were asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    copied = tmp_path / "slurm_script"  # as Slurm does
    shutil.copy(root / "launch" / "slurm.sbatch", copied)

    def start(*arguments, **more):
        environment = {
            **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SEEN": str(tmp_path),
            "SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2",
            "SLURM_SUBMIT_DIR": str(root), **more,
        }  # fmt: skip
        command = ["bash", str(copied), *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    start.seen = tmp_path
    return start


@pytest.mark.parametrize(("status", "asked"), [(0, None), (143, "requeue 41234\n"), (3, None)])
def test_slurm_requeues_what_was_saved_on_request_only(slurm, status, asked):
    job = slurm("configs/x.yaml", "run.dir=/shared/x", STATUS=str(status))
    job.communicate(timeout=60)
    assert job.returncode == status
    task = (slurm.seen / "task").read_text()
    assert task == "2 node7:21234 slurm-41234 launch/torchrun.sh configs/x.yaml run.dir=/shared/x\n"
    found = slurm.seen / "asked"
    assert (found.read_text() if found.exists() else None) == asked


def test_slurm_waits_for_the_save(slurm):
    """A signal to the batch shell ends neither it nor its wait; one to the step saves and requeues."""
    job = slurm("configs/x.yaml", LONG="1")
    deadline = time.monotonic() + 30
    while not (slurm.seen / "task").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert job.poll() is None
    (step,) = subprocess.run(
        ["pgrep", "-P", str(job.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(step), signal.SIGUSR1)
    job.communicate(timeout=60)
    assert job.returncode == 143
    assert (slurm.seen / "task").read_text().endswith("signalled\n")
    assert (slurm.seen / "asked").read_text() == "requeue 41234\n"


def test_slurm_without_a_configuration(slurm):
    job = slurm()
    job.communicate(timeout=60)
    assert job.returncode == 2


def test_kubernetes_runs_what_is_here_as_an_ordinary_user(root):
    job = yaml.safe_load((root / "launch" / "kubernetes.yaml").read_text())
    assert (job["kind"], job["apiVersion"]) == ("PyTorchJob", "kubeflow.org/v1")
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    pod = worker["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 1000
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    module = container["command"][-1]
    assert (root / (module.replace(".", "/") + ".py")).is_file()
    (config,) = [argument for argument in container["args"] if argument.endswith(".yaml")]
    assert (root / config).is_file()
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    elastic = job["spec"]["elasticPolicy"]
    assert elastic["minReplicas"] <= worker["replicas"] <= elastic["maxReplicas"]


def test_the_image_is_of_an_ordinary_user_and_pinned(root):
    """What hadolint (launch/test) does not ask."""
    lines = (root / "docker" / "Dockerfile").read_text().splitlines()
    stages = [line for line in lines if line.startswith("FROM ")]
    assert stages[-1] == "FROM runtime"
    runtime = lines[lines.index("FROM system AS runtime") :]
    assert "USER 1000:1000" in runtime
    assert any(line.startswith("HEALTHCHECK ") for line in runtime)
    for file in ("requirements.txt", "requirements-test.txt"):
        for line in (root / "launch" / file).read_text().splitlines():
            assert "==" in line, line


def test_nothing_that_is_not_committed_enters_the_image(root):
    """.dockerignore leaves out everything and lets in what git tracks at the top."""
    if not (root / ".git").exists():
        pytest.skip("needs git's list of what is committed, which is not here")
    names = subprocess.run(
        ["git", "-C", root, "ls-files"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rules = (root / ".dockerignore").read_text().splitlines()
    assert "**" in rules
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    tops = {name.split("/")[0] for name in names} - {".gitignore", ".dockerignore"}
    assert let_in == tops
