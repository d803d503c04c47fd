"""Backbones from elsewhere: an import path, timm, transformers."""

import sys
import types

import pytest
import torch

from mpsoftmax.backbones import build_backbone

USER_CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, embedding_dim, image_size, scale=1.0):
        super().__init__()
        self.frozen = nn.Dropout().eval()
        self.fc = nn.Linear(3 * image_size[0] * image_size[1], embedding_dim)
        self.scale = scale

    def forward(self, images):
        return self.scale * self.fc(images.flatten(1))

class Nets:
    net = Net

def wrong_width(embedding_dim, image_size):
    return Net(embedding_dim + 1, image_size)

def wrong_size(embedding_dim, image_size):
    return Net(embedding_dim, (8, 8))

def two_outputs(embedding_dim, image_size):
    net = Net(embedding_dim, image_size)
    net.forward = lambda images: (images, images)
    return net

def no_net(embedding_dim, image_size):
    return "net"

def broken(embedding_dim, image_size):
    return 1 + "a"

number = 3
"""


@pytest.fixture
def user_code(tmp_path, monkeypatch):
    folder = tmp_path / "my_nets"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "faces.py").write_text(USER_CODE)
    (folder / "needy.py").write_text("import no_such_package_of_theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "my_nets"]:
        del sys.modules[name]


def build(name, options=None, **arguments):
    return build_backbone(name, embedding_dim=5, image_size=(4, 6), options=options, **arguments)


@pytest.mark.parametrize("path", ["my_nets.faces:Net", "my_nets.faces:Nets.net"])
def test_import_path(user_code, path):
    net = build(path, {"scale": 2.0})
    assert net.scale == 2.0
    assert net(torch.zeros(3, 3, 4, 6)).shape == (3, 5)
    assert net.training  # the check of its output leaves every mode as it was
    assert not net.frozen.training


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("my_nets.faces:Nte", {}, "has no attribute 'Nte'"),
        ("my_nets.feces:Net", {}, "no module named 'my_nets.feces'; is its folder on PYTHONPATH"),
        ("nobodys_nets:Net", {}, "no module named 'nobodys_nets'"),
        ("my_nets.faces:number", {}, "not callable but int"),
        ("my_nets.faces:", {}, "not of the form package.module:name"),
        ("timn:resnet 18", {}, "not of the form"),
        ("my_nets.faces:Net", {"skale": 1}, "unexpected keyword argument 'skale'"),
        ("my_nets.faces:Net", {"image_size": (1, 1)}, "'image_size' is set by the configuration"),
        ("my_nets.faces:wrong_width", {}, r"must return \[b, 5\], got \[2, 6\]"),
        ("my_nets.faces:wrong_size", {}, "cannot take images of image_size 4 x 6"),
        ("my_nets.faces:two_outputs", {}, "must return one tensor, got tuple"),
        ("my_nets.faces:no_net", {}, "must return a torch.nn.Module, got str"),
    ],
)
def test_import_path_errors(user_code, path, options, message):
    with pytest.raises(ValueError, match=message):
        build(path, options)


def test_faults_inside_the_users_code_are_not_renamed(user_code):
    with pytest.raises(TypeError, match="unsupported operand"):
        build("my_nets.faces:broken")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_theirs"):
        build("my_nets.needy:Net")


def test_checkpointing_is_refused_where_we_cannot_do_it(user_code):
    with pytest.raises(ValueError, match="activation_checkpointing is up to the callable"):
        build("my_nets.faces:Net", activation_checkpointing=True)


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_missing_package_says_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        build(f"{package}:resnet18")


def fake_timm(created):
    """The three timm calls that the door makes, so that it is tested without timm too."""
    timm = types.SimpleNamespace()
    timm.is_model = lambda name: name in ("vit", "resnet")
    timm.list_models = lambda pattern: ["resnet"]
    timm.get_pretrained_cfg = lambda name, allow_unregistered: types.SimpleNamespace(
        fixed_input_size=name == "vit"
    )

    def create_model(name, **arguments):
        created.update(arguments, name=name)
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(72, arguments["num_classes"])
        )

    timm.create_model = create_model
    return timm


def test_timm_gets_width_size_and_options(monkeypatch):
    created = {}
    monkeypatch.setitem(sys.modules, "timm", fake_timm(created))
    build("timm:vit", {"drop_rate": 0.1})
    assert created == {"name": "vit", "num_classes": 5, "img_size": (4, 6), "drop_rate": 0.1}
    created.clear()
    build("timm:resnet")
    assert created == {"name": "resnet", "num_classes": 5}
    with pytest.raises(ValueError, match=r"no model 'rsenet'; near: \['resnet'\]"):
        build("timm:rsenet")
    with pytest.raises(ValueError, match="timm:resnet does not support activation_checkpointing"):
        build("timm:resnet", activation_checkpointing=True)


@pytest.mark.filterwarnings("ignore")
def test_real_timm():
    pytest.importorskip("timm", exc_type=ImportError)
    net = build_backbone(
        "timm:vit_tiny_patch16_224",
        embedding_dim=7,
        image_size=(32, 48),
        activation_checkpointing=True,
        options={"depth": 2},
    )
    output = net(torch.zeros(2, 3, 32, 48))
    output.sum().backward()
    assert output.shape == (2, 7)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_real_transformers(checkpointing):
    pytest.importorskip("transformers", exc_type=ImportError)
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    net = build_backbone(
        "transformers:vit",
        embedding_dim=7,
        image_size=(32, 48),
        activation_checkpointing=checkpointing,
        options=small,
    )
    output = net(torch.zeros(2, 3, 32, 48))
    output.sum().backward()
    assert output.shape == (2, 7)
    with pytest.raises(ValueError, match="no option 'hiden_size'"):
        build("transformers:vit", {"hiden_size": 3})
    with pytest.raises(ValueError, match="trust_remote_code"):
        build("transformers:vit", {"trust_remote_code": True})
