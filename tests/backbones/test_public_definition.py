"""Names, shapes and sizes of the field's published nets, written down by hand.

Source: insightface recognition/arcface_torch/backbones (iresnet.py, mobilefacenet.py, vit.py).
"""

import pytest
import torch
from torch import nn

from mpsoftmax.backbones import build_backbone


def build(name, size=(112, 112), **options):
    with torch.device("meta"):
        return build_backbone(name, embedding_dim=512, image_size=size, options=options)


def state_shapes(net):
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def norm(name, channels):
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{v}": (channels,) for v in vectors} | {f"{name}.num_batches_tracked": ()}


def iresnet_block(name, before, channels, first):
    shapes = norm(f"{name}.bn1", before)
    shapes[f"{name}.conv1.weight"] = (channels, before, 3, 3)
    shapes |= norm(f"{name}.bn2", channels)
    shapes[f"{name}.prelu.weight"] = (channels,)
    shapes[f"{name}.conv2.weight"] = (channels, channels, 3, 3)
    shapes |= norm(f"{name}.bn3", channels)
    if first:
        shapes[f"{name}.downsample.0.weight"] = (channels, before, 1, 1)
        shapes |= norm(f"{name}.downsample.1", channels)
    return shapes


def test_iresnet50_names_and_shapes():
    expected = {"conv1.weight": (64, 3, 3, 3), "prelu.weight": (64,)} | norm("bn1", 64)
    before = 64
    for stage, (num_blocks, channels) in enumerate(
        [(3, 64), (4, 128), (14, 256), (3, 512)], start=1
    ):
        for block in range(num_blocks):
            name = f"layer{stage}.{block}"
            expected |= iresnet_block(name, before, channels, first=block == 0)
            before = channels
    expected |= norm("bn2", 512) | norm("features", 512)
    expected |= {"fc.weight": (512, 512 * 7 * 7), "fc.bias": (512,)}
    assert state_shapes(build("iresnet50")) == expected


def conv(name, out, per_group, kernel, prelu=True):
    shapes = {f"{name}.layers.0.weight": (out, per_group, kernel, kernel)}
    shapes |= norm(f"{name}.layers.1", out)
    return shapes | ({f"{name}.layers.2.weight": (out,)} if prelu else {})


def depthwise(name, before, inner, out):
    return (
        conv(f"{name}.layers.0", inner, before, 1)
        | conv(f"{name}.layers.1", inner, 1, 3)
        | conv(f"{name}.layers.2", out, inner, 1, prelu=False)
    )


def test_mobilefacenet_names_and_shapes():
    expected = conv("layers.0", 128, 3, 3) | conv("layers.1", 128, 2, 3)
    rows = {
        2: (128, 128, 128, 0),
        3: (128, 128, 128, 4),
        4: (128, 256, 256, 0),
        5: (256, 256, 256, 6),
        6: (256, 512, 256, 0),
        7: (256, 256, 256, 2),
    }
    for layer, (before, inner, out, num_blocks) in rows.items():
        if num_blocks == 0:
            expected |= depthwise(f"layers.{layer}", before, inner, out)
        for block in range(num_blocks):
            expected |= depthwise(f"layers.{layer}.layers.{block}", before, inner, out)
    expected |= conv("conv_sep", 512, 256, 1)
    expected |= conv("features.layers.0", 512, 1, 7, prelu=False)
    expected |= {"features.layers.2.weight": (512, 512)} | norm("features.layers.3", 512)
    assert state_shapes(build("mobilefacenet")) == expected


def test_vit_t_names_and_shapes():
    dim, tokens = 256, 12 * 12
    expected = {
        "patch_embed.proj.weight": (dim, 3, 9, 9),
        "patch_embed.proj.bias": (dim,),
        "pos_embed": (1, tokens, dim),
        "mask_token": (1, 1, dim),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "feature.0.weight": (dim, dim * tokens),
        "feature.2.weight": (512, dim),
    }
    expected |= norm("feature.1", dim) | norm("feature.3", 512)
    for block in range(12):
        for name, shape in {
            "norm1.weight": (dim,),
            "norm1.bias": (dim,),
            "attn.qkv.weight": (3 * dim, dim),
            "attn.proj.weight": (dim, dim),
            "attn.proj.bias": (dim,),
            "norm2.weight": (dim,),
            "norm2.bias": (dim,),
            "mlp.fc1.weight": (4 * dim, dim),
            "mlp.fc1.bias": (4 * dim,),
            "mlp.fc2.weight": (dim, 4 * dim),
            "mlp.fc2.bias": (dim,),
        }.items():
            expected[f"blocks.{block}.{name}"] = shape
    assert state_shapes(build("vit_t")) == expected


@pytest.mark.parametrize(
    ("name", "millions"),
    [("iresnet18", 24.02), ("iresnet50", 43.59), ("iresnet100", 65.15)],
)
def test_parameter_counts_known_in_the_field(name, millions):
    num_parameters = sum(parameter.numel() for parameter in build(name).parameters())
    assert num_parameters // 10_000 == round(millions * 100)  # published figures are cut off


@pytest.mark.parametrize(
    ("name", "depths"), [("iresnet34", [3, 4, 6, 3]), ("iresnet200", [6, 26, 60, 6])]
)
def test_stages_of_the_other_iresnets(name, depths):
    net = build(name)
    assert [len(getattr(net, f"layer{stage}")) for stage in (1, 2, 3, 4)] == depths


@pytest.mark.parametrize(
    ("name", "dim", "depth"), [("vit_s", 512, 12), ("vit_b", 512, 24), ("vit_l", 768, 24)]
)
def test_sizes_of_the_other_transformers(name, dim, depth):
    net = build(name)
    assert (net.pos_embed.shape[2], len(net.blocks)) == (dim, depth)


def test_iresnet_starts_as_published():
    torch.manual_seed(0)
    net = build_backbone("iresnet18", embedding_dim=64, image_size=(32, 32))
    deviations = [m.weight.std().item() for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert deviations == pytest.approx([0.1] * len(deviations), rel=0.1)
    assert not net.features.weight.requires_grad
    assert torch.equal(net.features.weight, torch.ones(64))
    assert {m.eps for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)} == {
        1e-5
    }
