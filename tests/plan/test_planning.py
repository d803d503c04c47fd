"""From a configuration to a plan: floors, what fits, the page, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from plan_cases import Case
from torch import nn

from mpsoftmax.backbones import build_backbone
from mpsoftmax.cli import main
from mpsoftmax.cli.train import machine_here
from mpsoftmax.config import load
from mpsoftmax.plan.advice import MOST_CLASSES, alternatives, fits, largest_classes
from mpsoftmax.plan.backbone import backbone_cost, probe
from mpsoftmax.plan.machines import MACHINES, machine_found, machine_of
from mpsoftmax.plan.planning import head_shape
from mpsoftmax.plan.times import head_time
from mpsoftmax.plan.work import head_work, moved_outside
from mpsoftmax.train.build import build_head
from mpsoftmax.train.settings import settings_of

H100 = MACHINES["H100-80GB"]
SMALL = [
    "data.train=synthetic",
    "data.image_size=[16, 16]",
    "backbone={name: small, embedding_dim: 16}",
    "backbone.options={widths: [8, 16], depths: [1, 1], strides: [2, 2]}",
    "head.objective=npcface",
    "train.steps=1",
    "train.batch_size=12",
]


def sharded(classes=10**7, world=8, batch=1024, **more):
    """D = 512, bfloat16 products, every E kept."""
    case = Case(classes, 512, batch, "bfloat16", e_budget_bytes=2**50)
    return replace(case.shape(), world=world, capacity=batch // world, **more)


def test_operations_and_bytes_are_those_of_the_formulas():
    """6 B C D / W operations; 4 B C / W bytes of E and 20 C D / W of rows: read; read and written twice."""
    shape = sharded()
    work = head_work(shape, cache_bytes=float("inf"))
    assert work.flops == 6 * 1024 * 10**7 * 512 / 8
    assert work.again_flops == 0
    assert work.logit_bytes == 4 * 1024 * 10**7 / 8
    assert work.row_bytes == 20 * 10**7 * 512 / 8
    time = head_time(shape, H100)
    assert time.products_s == pytest.approx(3.97e-3, rel=0.01)  # KERNELS, section 4
    assert time.bound == "memory"
    assert head_time(sharded(batch=8192), H100).bound == "FLOP"
    assert head_time(sharded(classes=10**5, world=64), H100).bound == "network"


def test_nothing_kept_is_one_product_more():
    work = head_work(sharded(e_budget_bytes=0), cache_bytes=float("inf"))
    assert work.all_flops == 8 * 1024 * 10**7 * 512 / 8
    assert work.logit_bytes == 0


def test_sampling_moves_the_sample():
    whole, tenth = Case(10**6, 128, 256), Case(10**6, 128, 256, candidates="uniform")
    works = [head_work(case.shape(), float("inf")) for case in (whole, tenth)]
    assert works[1].flops == 0.1 * works[0].flops
    assert works[1].row_bytes < 0.2 * works[0].row_bytes
    stored = replace(tenth, storage="host").shape()
    assert moved_outside(stored) == 2 * 2 * 100_000 * 128 * 4  # rows and momentum, to and fro


def test_a_link_between_nodes_is_slower():
    inside = head_time(sharded(world=8), H100).network_s
    across = head_time(sharded(world=8), replace(H100, per_node=4)).network_s
    assert across > inside > 3 * H100.latency_s


@pytest.mark.parametrize("candidates", ["all", "uniform"])
def test_the_largest_class_count_fits_and_one_more_does_not(candidates):
    shape = replace(Case(1000, 128, 64, candidates=candidates).shape(), device="cuda")
    most = largest_classes(shape, [], H100)
    assert 10**7 < most < MOST_CLASSES
    assert fits(shape.with_classes(most), [], H100)
    assert not fits(shape.with_classes(most + most // 1000), [], H100)
    assert largest_classes(shape, [], replace(H100, memory=1e9)) == 0


def test_alternatives_change_what_they_say():
    shape = replace(Case(10**6, 512, 1024).shape(), device="cuda", e_budget_bytes=2**34)
    judged = {one.settings: one for one in alternatives(shape, [], H100)}
    own = largest_classes(shape, [], H100)
    assert judged["head.row_dtype=bfloat16"].largest_classes > 1.5 * own
    assert judged["head.compute_dtype=bfloat16"].step_s < head_time(shape, H100).predicted_s / 3
    assert judged["uniform as above, head.storage=mapped"].host_bytes > 2 * 10**6 * 512 * 4
    assert judged["head.e_budget_bytes=0"].peak_bytes < judged["head.row_dtype=bfloat16"].peak_bytes


def test_the_shape_is_that_of_the_head_that_train_builds():
    config = load(None, [*SMALL, "head.candidates={kind: uniform, rate: 0.5}"])
    shape, head = (
        head_shape(config, [100], 1, "cpu"),
        build_head(config, [100], 1, torch.device("cpu")),
    )
    loss = head(torch.randn(12, 16, requires_grad=True), torch.arange(12))
    loss.backward()
    assert shape.swept_classes == head.last_stats["candidates"] == 50
    assert (shape.capacity, shape.samples, shape.dim) == (12, 12, 16)
    assert (shape.compute_dtype, shape.row_dtype) == (torch.float32, torch.float32)


def test_a_backbone_is_followed_storage_by_storage():
    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4))

    cost = probe(build, (8, 8), 6, bf16=False, fake=True)
    assert cost.kept_bytes == 4 * 6 * (16 + 4)  # the ReLU's result and the embedding
    assert cost.forward_flops == 2 * 6 * (192 * 16 + 16 * 4)
    assert cost.parameter_bytes == cost.gradient_bytes == 4 * (192 * 16 + 16 + 16 * 4 + 4)
    assert cost.peak_bytes >= cost.gradient_bytes


def test_shapes_alone_cost_what_values_do():
    def build(checkpointing=False):
        return build_backbone(
            "small", embedding_dim=8, image_size=(16, 16), activation_checkpointing=checkpointing,
            options={"widths": [8, 16], "depths": [1, 1], "strides": [2, 2]},
        )  # fmt: skip

    fake = backbone_cost(build, (16, 16), 64)
    assert fake.kept_bytes == backbone_cost(build, (16, 16), 64, fake=False).kept_bytes
    assert fake == probe(build, (16, 16), 64, bf16=False, fake=False)
    assert backbone_cost(lambda: build(True), (16, 16), 64).kept_bytes < 0.7 * fake.kept_bytes


def test_the_command_plans_without_data(tmp_path, capsys):
    out = tmp_path / "plan.json"
    words = [
        "plan",
        str(quiet(tmp_path)),
        "--classes",
        "50000000",
        "--gpus",
        "16",
        "--json",
        str(out),
    ]
    assert main([*words, "train.batch_size=64", "data.train=/nowhere.rec"]) == 0
    page, plan = capsys.readouterr().out, json.loads(out.read_text())
    assert plan["classes_of_largest_shard"] == 50_000_000 / 16
    # NPCFace over so many classes needs a running maximum: maximum, total and two hard sums are gathered.
    assert plan["payload_bytes"]["all_gather"] == (4 + 1) * (16 + 16 * 4) + 4 * 64 * 4
    assert plan["payload_bytes"]["all_reduce"] == 4 * 64  # target cosines
    assert plan["machine"]["name"] == "H100-80GB"
    assert plan["fits"] is True
    for text in ("class rows", "bound by", "most classes", "50,000,000 classes"):
        assert text in page


def test_the_data_are_counted_where_no_number_is_given(tmp_path, capsys):
    assert (
        main(["plan", str(quiet(tmp_path)), "--gpu", "cpu", "data.synthetic.num_classes=77"]) == 0
    )
    assert capsys.readouterr().out.startswith("77 classes")


def quiet(folder):
    """A configuration file."""
    path = folder / "plan.yaml"
    path.write_text("\n".join(["data: {train: synthetic}", "head: {objective: npcface}"]) + "\n")
    config = load(path, [*SMALL])
    from mpsoftmax.config import to_yaml

    path.write_text(to_yaml(config))
    return path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--classes", "1e5"], "--classes: '1e5'; allowed: a whole number"),
        (["--classes", "10,20"], "--classes: '10,20'; allowed"),
        (["--classes", "10", "--gpu", "H1000"], "--gpu: 'H1000'; did you mean 'H100-80GB'"),
        (["--classes", "10", "--gpus", "0"], "--gpus: 0; allowed: at least 1"),
        (["--classes", "10", "--gpus", "2", "--nodes", "3"], "--nodes: 3; allowed: 1 to --gpus=2"),
        (["--classes", "10", "--memory", "-1"], "--memory: -1.0; allowed: a positive number"),
        (["--classes", "10", "--gpus", "13"], "train.batch_size: 12; allowed with 13 ranks"),
        (["--classes", "10", "head.storage=host"], "head: storage: 'host' with candidates"),
        (["--classes", "10", "head.objective=arcfacs"], "did you mean 'arcface'?"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, words, named):
    assert main(["plan", str(quiet(tmp_path)), *words]) == 2
    assert named in capsys.readouterr().err


def test_figures_replace_the_machines():
    machine = machine_of("A100-80GB", memory=64e9, flops=1e14, per_node=4)
    assert (machine.memory, machine.per_node, machine.bandwidth) == (64e9, 4, 2.04e12)
    assert set(machine.flops.values()) == {1e14}
    assert "flops" in machine.source
    assert "memory" in machine.source
    assert machine_of("cpu") == MACHINES["cpu"]


def test_a_gpu_that_torch_finds_is_judged_by_its_own_memory(monkeypatch):
    small = machine_found("NVIDIA A100-SXM4-40GB", 39.4e9)
    assert (small.memory, small.name) == (39.4e9, "NVIDIA A100-SXM4-40GB")
    assert small.bandwidth == MACHINES["A100-40GB"].bandwidth
    assert machine_found("NVIDIA GeForce RTX 4090", 25e9).flops == MACHINES["RTX4090-24GB"].flops
    unknown = machine_found("NVIDIA T4", 15e9)
    assert (unknown.memory, unknown.name) == (15e9, "NVIDIA T4 (times as of H100-80GB)")
    assert not unknown.holds(14e9)
    properties = type("Properties", (), {"name": "NVIDIA T4", "total_memory": 15e9})
    monkeypatch.setattr("mpsoftmax.train.inputs.training_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert machine_here() == unknown


def test_the_data_alone_are_enough_for_a_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = "data.synthetic={num_classes: 1000, images_per_class: 20}"
    given = ["data.train=synthetic", sizes, "data.image_size=[32, 32]"]
    assert main(["plan", *given, "backbone.name=small", "--gpus", "2"]) == 0
    said = capsys.readouterr().out
    assert "settings chosen from the data" in said
    assert "2 rank(s) on H100-80GB" in said
    names = [settings_of(None, given, 2, gpu=gpu)[0].backbone.name for gpu in (True, False)]
    assert names == ["iresnet18", "small"]
