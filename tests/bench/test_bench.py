"""Each command runs at a tiny size, writes what it found, and its yardsticks compute what the head does."""

import argparse
import csv
import textwrap
from pathlib import Path

import pytest
import torch

from mpsoftmax.bench import collectives, record
from mpsoftmax.bench.case import Case, HeadStep
from mpsoftmax.bench.incumbent import Incumbent
from mpsoftmax.bench.yardsticks import BareProducts, PlainSoftmax
from mpsoftmax.cli import main
from mpsoftmax.comm import connect, disconnect

TINY = ("--classes", "40", "--dim", "16", "--batch", "6")
PICTURE = b"\x89PNG"
STARTS_PROCESSES = pytest.mark.timeout(300)  # each imports torch; minutes on a loaded machine


def measured(what, folder, *more):
    """Lines of the CSV after one run."""
    options = [] if what == "loader" else TINY
    assert main(["bench", what, *options, "--repeat", "2", "--out", str(folder), *more]) == 0
    assert (folder / f"bench_{what}.png").read_bytes().startswith(PICTURE)
    with (folder / f"bench_{what}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def ordered(row, name):
    """Least, median and largest of a time are in this order."""
    least, middle, largest = (float(row[f"{name}{end}"]) for end in ("_min", "", "_max"))
    return 0 <= least <= middle <= largest


def test_head_appends_a_line_a_case(tmp_path):
    rows = measured("head", tmp_path, "--dtype", "float32", "bfloat16")
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]
    for row in rows:
        assert row["candidates_drawn"] == "40"
        assert all(ordered(row, f"{name}_cpu_s") for name in ("head", "plain", "blocked", "whole"))
        assert row["incumbent_cpu_s"] == ""
        assert all(row[name] for name in ("cpu", "torch", "date", "cores"))
        assert row["threads"] == "1"
    sampled = ["--candidates", "uniform", "--rate", "0.5", "--untouched", "lazy"]
    rows = measured("head", tmp_path, *sampled, "--storage", "host", "--row-dtype", "bfloat16")
    assert len(rows) == 3
    assert rows[-1]["candidates_drawn"] == "20"


@STARTS_PROCESSES
def test_memory_says_what_is_beyond_the_table(tmp_path):
    (row,) = measured("memory", tmp_path, "--classes", "30000", "--dim", "64", "--repeat", "1")
    assert float(row["table_mib"]) == pytest.approx(30000 * 64 * 8 / 2**20, abs=0.06)
    assert float(row["kept_mib"]) == pytest.approx(30000 * 6 * 4 / 2**20, abs=0.06)
    assert 0 < float(row["extra_mib"]) < 20


@pytest.mark.slow
@STARTS_PROCESSES
def test_scaling_varies_one_factor_at_a_time(tmp_path):
    rows = measured("scaling", tmp_path, "--classes", "40", "80", "--rate", "0.5")
    assert [(row["factor"], float(row["value"]), row["world"]) for row in rows] == [
        ("classes", 40, "1"),
        ("classes", 80, "1"),
        ("batch", 6, "1"),
        ("world", 1, "1"),
        ("rate", 1, "1"),
        ("rate", 0.5, "1"),
        ("rate", 0.5, "1"),
        ("world", 2, "2"),
    ]
    assert {row["candidates"] for row in rows if row["factor"] == "rate"} == {
        "all", "uniform", "dsoftmax_k",
    }  # fmt: skip
    assert all(ordered(row, "cpu_s") for row in rows)


@pytest.mark.slow
@STARTS_PROCESSES
def test_collectives_counts_what_the_head_hands_over(tmp_path):
    rows = measured("collectives", tmp_path)
    assert [row["world"] for row in rows] == ["1", "2"]
    for row in rows:
        world = int(row["world"])
        capacity = 6 // world
        assert int(row["all_gather_bytes"]) == (capacity + 1) * (16 + 16 * 4)
        assert int(row["all_reduce_bytes"]) == 8 * 6
        assert int(row["reduce_scatter_bytes"]) == 6 * 16 * 4
        assert all(row[f"{kind}_calls"] == "1" for kind in collectives.KINDS)
        hidden = {kind: float(row[f"{kind}_share_hidden"]) for kind in collectives.KINDS}
        assert hidden["reduce_scatter"] == 0
        assert (0 < hidden["all_reduce"] < 1) if world > 1 else (hidden["all_reduce"] == 0)
        assert 0 < float(row["share_of_step"]) < 1


def test_loader_reads_every_format(tmp_path):
    rows = measured("loader", tmp_path, "--images", "40", "--size", "16")
    found = {row["what"] for row in rows if row["decoder"] == "pillow"}
    assert found == {"bare", "folder", "tar", "recordio", "arrow", "parquet"}
    for row in rows:
        assert float(row["images_per_core_s"]) > 0
        assert float(row["share_of_bare"]) > 0
        assert float(row["share_of_tar"]) > 0
        if row["what"] == "tar":
            assert float(row["share_of_tar"]) == 1


def test_plain_softmax_is_the_head_s_loss():
    """Value, and gradient by the features, on the same inputs and rows."""
    case = Case(classes=40, dim=16, batch=6)
    step, plain = HeadStep(case), PlainSoftmax(case)
    with torch.no_grad():
        plain.weight.copy_(step.head.class_rows(torch.arange(40)))
    torch.testing.assert_close(plain.features, step.features)
    ours, theirs = step.head(step.features, step.labels), plain.loss()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(step.features.grad, plain.features.grad, rtol=1e-3, atol=1e-4)


def test_bare_products_are_those_three():
    bare = BareProducts(rows=2100, dim=8, batch=5, dtype=torch.float32)
    for way in (bare.whole, bare.blocked):
        bare.by_features.zero_()
        way()
        logits = bare.rows @ bare.features.T
        torch.testing.assert_close(bare.logits, logits)
        torch.testing.assert_close(bare.by_features, logits.T @ bare.rows, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(bare.by_rows, logits @ bare.features, rtol=1e-3, atol=1e-3)


INCUMBENT = {
    # The interface of arcface_torch's files, so that the command is tested without them.
    "losses.py": """
        import torch

        class ArcFace(torch.nn.Module):
            def __init__(self, s, margin):
                super().__init__()
                self.s, self.margin = s, margin

            def forward(self, logits, labels):
                return logits * self.s
        """,
    "partial_fc_v2.py": """
        import torch
        from torch import distributed

        class PartialFC_V2(torch.nn.Module):
            def __init__(self, margin_loss, embedding_size, num_classes, sample_rate, fp16):
                super().__init__()
                assert distributed.is_initialized()
                self.weight = torch.nn.Parameter(torch.randn(num_classes, embedding_size))
                self.margin_loss = margin_loss

            def forward(self, features, labels):
                logits = self.margin_loss(features @ self.weight.T, labels.cuda())
                return torch.nn.functional.cross_entropy(logits, labels)
        """,
}


def incumbent(folder):
    for name, text in INCUMBENT.items():
        (folder / name).write_text(textwrap.dedent(text))
    return folder


def test_head_measures_an_incumbent(tmp_path):
    (row,) = measured("head", tmp_path / "out", "--incumbent", str(incumbent(tmp_path)))
    assert ordered(row, "incumbent_cpu_s")
    assert float(row["incumbent_over_head"]) > 0
    assert not torch.distributed.is_initialized()


def test_the_incumbent_has_the_head_s_inputs_and_moves(tmp_path):
    case = Case(classes=40, dim=16, batch=6)
    step = HeadStep(case)
    connect(60.0)
    try:
        other = Incumbent(incumbent(tmp_path), case)
        torch.testing.assert_close(other.features, step.features)
        assert torch.equal(other.labels, step.labels)
        before = other.module.weight.detach().clone()
        other.run()
        assert not torch.equal(other.module.weight, before)
    finally:
        disconnect()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["head", "--storage", "host"], "storage"),
        (["head", "--candidates", "uniform", "--rate", "1.5"], "Uniform.rate: 1.5"),
        (["head", "--incumbent", "nowhere"], "holds no partial_fc_v2.py"),
        (["head", "--incumbent", "x", "--candidates", "dsoftmax_k"], "allowed: all, uniform"),
        (["collectives", "--world", "9", "--batch", "3"], "--batch: 3"),
        (["loader", "--augment", "faces"], "--augment: 'faces'"),
        (["loader", "--data", "nowhere.tar", "--images", "5"], "nowhere.tar"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, arguments, words):
    sizes = [] if arguments[0] == "loader" else TINY
    assert main(["bench", arguments[0], *sizes, *arguments[1:], "--out", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_numbers_below_one_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "head", "--repeat", "0", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "at least 1" in capsys.readouterr().err


def test_results_keep_lines_with_other_columns(tmp_path):
    path = Path(tmp_path) / "some.csv"
    record.append(path, [{"a": 1, "b": 2}])
    record.append(path, [{"a": 3, "c": 4}, {"a": 5, "c": 6}])
    assert path.read_text().splitlines() == ["a,b,c", "1,2,", "3,,4", "5,,6"]


@STARTS_PROCESSES
def test_a_failing_rank_is_an_error():
    from mpsoftmax.bench import processes

    with pytest.raises(RuntimeError, match="no_such_function"):
        processes.alone("mpsoftmax.bench.memory:no_such_function", argparse.Namespace().__dict__)
