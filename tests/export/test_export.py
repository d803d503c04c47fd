"""`mpsoftmax export`: every format read back by others' programs gives the backbone's numbers."""

import json

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_runs import BASE, final_tensors

from mpsoftmax.cli import main
from mpsoftmax.comm import Comm, connect, disconnect
from mpsoftmax.config import load
from mpsoftmax.data.given import GivenImages
from mpsoftmax.data.pairs import PairSet, write_bin
from mpsoftmax.data.synthetic import Synthetic
from mpsoftmax.export import export
from mpsoftmax.export.graph import check_onnx, onnx_bytes, write_program
from mpsoftmax.export.parity import check_parity
from mpsoftmax.judge.judge import judge
from mpsoftmax.models import open_model
from mpsoftmax.models.onnx_file import BESIDE, NCHW, NHWC
from mpsoftmax.train.loop import Trainer


def trained(folder, *overrides):
    settings = [*BASE, f"run.dir={folder}", "train.steps=4", *overrides]
    return Trainer(load(None, settings), Comm()).run().evaluations


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    images = Synthetic(num_classes=8, images_per_class=5, size=(16, 16), seed=4)
    first = np.arange(40)
    second = np.where(first % 2, (first + 7) % 40, first // 5 * 5 + (first + 1) % 5)
    path = tmp_path_factory.mktemp("pairs") / "eight.bin"
    rows = np.stack([first, second], 1)
    write_bin(path, PairSet(images, rows, images.labels[first] == images.labels[second]))
    return path


@pytest.fixture(scope="module")
def run(ranks, tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("run") / "faces"
    ranks.run(trained_with, 2, folder=folder, overrides=[f"data.eval=[{pairs}]"])
    return folder


def trained_with(folder, overrides=()):
    trained(folder, *overrides)


def some_images(num):
    draw = np.random.default_rng(num)
    return [draw.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(num)]


def by_hand(run, pixels):
    """The run's backbone in PyTorch: raw embeddings of uint8 [n, 16, 16, 3]."""
    net = open_model(run).net
    x = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() - 127.5) / 127.5
    with torch.no_grad():
        return net(x).numpy(), x.numpy()


@pytest.fixture(scope="module")
def graphs(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    for name, form in (("beside", BESIDE), ("nhwc", NHWC)):
        assert export(run, folder / f"{name}.onnx", form=form).difference < 1e-5
    return folder


def test_onnx_gives_the_backbones_numbers_at_any_batch(run, graphs):
    for num in (1, 7, 64):
        pixels = some_images(num)
        expected, floats = by_hand(run, pixels)
        for name, given in (("beside", floats), ("nhwc", np.stack(pixels))):
            session = onnxruntime.InferenceSession(graphs / f"{name}.onnx")
            (found,) = session.run(["embeddings"], {"images": given})
            assert found.shape == (num, 16)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    graph = onnx.load(graphs / "beside.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert [one.version for one in graph.opset_import if one.domain == ""] == [20]
    batch = graph.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param
    assert not batch.HasField("dim_value")


def test_what_is_told_beside_a_graph(graphs):
    said = json.loads((graphs / "nhwc.onnx.json").read_text())
    assert said["graph"]["input"] == {
        "name": "images",
        "shape": ["batch", 16, 16, 3],
        "dtype": "uint8",
        "values": "0..255, R, G, B",
    }
    assert said["graph"]["normalisation"] == "inside the graph"
    assert said["graph"]["opset"] == 20
    assert said["graph"]["largest_difference"] < 1e-5
    metadata = {one.key: one.value for one in onnx.load(graphs / "nhwc.onnx").metadata_props}
    inside = json.loads(metadata["mpsoftmax"])
    assert inside["preprocessing"] == said["preprocessing"]
    assert metadata["mpsoftmax.preprocessing"] == NHWC
    assert str(graphs.parent) not in json.dumps(said)  # no path of this machine


def test_exported_models_open_and_judge_as_the_run_does(run, graphs, pairs, tmp_path):
    file = tmp_path / "faces.safetensors"
    export(run, file)
    images = GivenImages(some_images(9))
    expected = open_model(run).embed(images, mirror=True)
    assert torch.equal(open_model(file).embed(images, mirror=True), expected)
    figures = judge(str(run), str(pairs), Comm()).values
    for path in (file, graphs / "beside.onnx", graphs / "nhwc.onnx"):
        opened = open_model(path)
        assert opened.step == 4
        torch.testing.assert_close(opened.embed(images, mirror=True), expected, rtol=0, atol=1e-5)
        values = judge(str(path), str(pairs), Comm()).values
        assert values["verification"]["auc"] == pytest.approx(
            figures["verification"]["auc"], abs=1e-3
        )
    onward = tmp_path / "again.safetensors"
    export(file, onward)
    with safe_open(onward, "pt") as first, safe_open(file, "pt") as second:
        one, two = (json.loads(opened.metadata()["mpsoftmax"]) for opened in (first, second))
    assert one == two


def test_the_card(run, pairs, tmp_path, capsys):
    judged = tmp_path / "judged.json"
    assert main(["evaluate", str(run), "--data", str(pairs), "--json", str(judged)]) == 0
    file = tmp_path / "faces.safetensors"
    assert main(["export", str(run), str(file), "--figures", str(judged)]) == 0
    capsys.readouterr()
    card = (tmp_path / "faces.md").read_text()
    line = json.loads(judged.read_text())["verification"]
    low, high = line["auc_interval"]
    assert f"| eight.bin | auc | {line['auc']:.4f} | {low:.4f} .. {high:.4f} (95 %) |" in card
    assert "metrics.jsonl, step 4" in card
    assert "(standard deviation over 10 folds)" in card
    assert 'open_model("faces.safetensors")' in card
    assert "| num_classes | 23 |" in card
    assert "## Licence\n\nTO BE FILLED IN" in card
    assert str(tmp_path) not in card
    assert main(["export", str(run), str(file)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_weights_where_nothing_can_be_written(run):
    """Below /proc nobody may make a file, not even root."""
    with pytest.raises(ValueError, match=r"^/proc/w\.safetensors: cannot be written: .*I/O error"):
        export(run, "/proc/w.safetensors")


def changed(file, out, tensors=None, **tree):
    """The file with other tensors or with other values in its header."""
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["mpsoftmax"])
    save_file(
        load_file(file) if tensors is None else tensors,
        out,
        metadata={"mpsoftmax": json.dumps({**header, **tree})},
    )
    return header


def test_hostile_safetensors_are_refused(run, tmp_path):
    file, bad = tmp_path / "faces.safetensors", tmp_path / "bad.safetensors"
    export(run, file)
    tensors = load_file(file)
    header = changed(file, bad)
    config = header["config"]
    code = {**config, "backbone": {**config["backbone"], "name": "os:abort", "options": {}}}
    changed(file, bad, config=code)
    with pytest.raises(ValueError, match="only with --trust-code"):
        open_model(bad)
    huge = {**config, "backbone": {**config["backbone"], "embedding_dim": 10**12}}
    changed(file, bad, config=huge)
    with pytest.raises(ValueError, match="the backbone has"):
        open_model(bad)
    for tree, problem in (
        ({"format": 2}, "no format known here"),
        ({"step": "x"}, "damaged: step or config"),
        ({"config": {"backbone": {"nam": 1}}}, "backbone"),
    ):
        changed(file, bad, **tree)
        with pytest.raises(ValueError, match=problem):
            open_model(bad)
    name = next(iter(tensors))
    changed(file, bad, {key: one for key, one in tensors.items() if key != name})
    with pytest.raises(ValueError, match="is missing"):
        open_model(bad)
    save_file(tensors, bad)
    with pytest.raises(ValueError, match="no metadata"):
        open_model(bad)
    bad.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged"):
        open_model(bad)
    with pytest.raises(ValueError, match="no such file"):
        open_model(tmp_path / "none.onnx")


def test_onnx_with_weights_elsewhere_is_refused(graphs, tmp_path):
    graph = onnx.load(graphs / "beside.onnx")
    onnx.save(graph, tmp_path / "out.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(ValueError, match="lie in other files"):
        open_model(tmp_path / "out.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk\.onnx"):
        open_model(tmp_path / "junk.onnx")


@pytest.mark.parametrize("place", ["sparse", "function"])
def test_onnx_with_weights_elsewhere_is_refused_wherever_it_hides_them(tmp_path, place):
    hidden = onnx.numpy_helper.from_array(np.ones(2, np.float32), "hidden")
    onnx.external_data_helper.set_external_data(hidden, "/etc/hostname")
    hidden.ClearField("raw_data")
    inner = onnx.helper.make_graph([], "inner", [], [], initializer=[hidden])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    images, embeddings = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])
        for name in ("images", "embeddings")
    )
    nodes = [onnx.helper.make_node("Identity", ["images"], ["embeddings"])]
    places = onnx.numpy_helper.from_array(np.arange(2), "places")
    sparse = [onnx.helper.make_sparse_tensor(hidden, places, [4])] if place == "sparse" else []
    graph = onnx.helper.make_graph(nodes, "g", [images], [embeddings], sparse_initializer=sparse)
    opsets = [onnx.helper.make_opsetid("", 20)]
    function = onnx.helper.make_function("own", "f", ["c"], ["y"], [node], opsets)
    functions = [function] if place == "function" else []
    onnx.save(onnx.helper.make_model(graph, functions=functions), tmp_path / "out.onnx")
    with pytest.raises(ValueError, match="lie in other files"):
        open_model(tmp_path / "out.onnx")


def test_a_graph_that_differs_is_an_error_and_is_not_written(run, tmp_path, monkeypatch):
    net = open_model(run).net
    with pytest.raises(ValueError, match="differs from the backbone by"):
        check_parity(lambda x: net((x.float() - 127.5) / 127.5) * 1.00002, net, (16, 16))

    def only_one(pixels):
        assert len(pixels) == 1, "a fixed batch"
        return net((pixels.float() - 127.5) / 127.5)

    with pytest.raises(ValueError, match="fails at a batch of 7: a fixed batch"):
        check_parity(only_one, net, (16, 16))
    monkeypatch.setattr("mpsoftmax.export.graph.check_parity", broken)
    with pytest.raises(ValueError, match="for the test"):
        export(run, tmp_path / "x.pt2")
    assert list(tmp_path.iterdir()) == []
    for arguments, problem in (
        (["x.bin"], "allowed: .onnx"),
        (["x.arrow", "--preprocessing", "inside"], "allowed: .onnx, .pt2"),
        (["x.onnx", "--layout", "nhwc"], "allowed with --preprocessing inside"),
        (["x.pt2", "--opset", "18"], "allowed with .onnx"),
        (["x.onnx", "--figures", "f.json"], "allowed: .safetensors"),
    ):
        with pytest.raises(ValueError, match=problem):
            raise_of(["export", str(run), str(tmp_path / arguments[0]), *arguments[1:]])


def broken(*_, **__):
    raise ValueError("for the test")


def raise_of(arguments):
    from mpsoftmax.cli import parser

    options = parser().parse_args(arguments)
    options.run(options, arguments)


def test_torch_export_round_trip(run, tmp_path):
    assert export(run, tmp_path / "faces.pt2", form=NCHW).difference < 1e-5
    graph = torch.export.load(tmp_path / "faces.pt2").module()
    for num in (1, 7, 64):
        pixels = some_images(num)
        expected, _ = by_hand(run, pixels)
        with torch.no_grad():
            found = graph(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous())
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


TABLES = (
    (),
    ("head.weights={kind: sub_centres, num: 2}",),
    ("head.weights=class_centres",),
    ("head.candidates={kind: uniform, rate: 0.2}", "head.storage=mapped"),
    ("head.candidates={kind: uniform, rate: 0.2}", "head.untouched=lazy"),
    ("head.row_dtype=bfloat16",),
)


def class_rows(folder):
    """The rows as a head that resumes the run has them, whole: by the training's own way."""
    config = load(None, [*BASE, f"run.dir={folder}", "run.resume=true", *overrides_of(folder)])
    head = Trainer(config, Comm()).head
    return head.class_rows(torch.arange(23)).float()


def overrides_of(folder):
    return json.loads((folder.parent / f"{folder.name}.json").read_text())


@pytest.mark.parametrize("number", range(len(TABLES)))
def test_class_rows_are_the_heads(ranks, tmp_path, number):
    """Saved by three ranks, mapped or not, lagging or not: unit rows, names and numbers."""
    folder = tmp_path / "run"
    overrides = [*TABLES[number], "train.steps=6"]
    (tmp_path / "run.json").write_text(json.dumps(overrides))
    ranks.run(trained_with, 3, folder=folder, overrides=overrides)
    rows = ranks.run(class_rows, 1, folder=folder)[0].reshape(-1, 16)
    export(folder, tmp_path / "rows.arrow")
    with pa.memory_map(str(tmp_path / "rows.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    found = torch.tensor(table["row"].to_pylist())
    expected = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    centres = len(rows) // 23
    assert table["class_id"].to_pylist() == [k // centres for k in range(len(rows))]
    assert table["centre"].to_pylist() == list(range(centres)) * 23
    names = Synthetic(num_classes=23, images_per_class=4, size=(16, 16)).class_names
    assert table["class_name"].to_pylist()[::centres] == list(names)


def test_class_names_need_the_training_data(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mpsoftmax.export.one_file.open_training_images", broken)
    with pytest.raises(ValueError, match=r"for the test; allowed: .* or --no-names"):
        export(run, tmp_path / "rows.arrow")
    export(run, tmp_path / "rows.arrow", names=False)
    with pa.memory_map(str(tmp_path / "rows.arrow")) as file:
        assert set(pa.ipc.open_file(file).read_all()["class_name"].to_pylist()) == {None}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["mobilefacenet", "iresnet18", "vit_t"])
def test_every_backbone(name, tmp_path):
    from mpsoftmax.backbones.build import build_backbone

    torch.manual_seed(0)
    net = build_backbone(name, embedding_dim=32, image_size=(112, 112)).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    data = onnx_bytes(net, NCHW, (112, 112), 20, {})
    assert check_onnx(data, net, NCHW, (112, 112)) < 1e-5
    assert write_program(tmp_path / "x.pt2", net, BESIDE, (112, 112), {}) < 1e-5


def test_without_a_process_group_a_run_opens_without_a_warning(run):
    open_model(run)
    connect(30.0)
    try:
        assert open_model(run, comm=Comm()).step == 4
    finally:
        disconnect()
    assert len(final_tensors(run)) > 4
