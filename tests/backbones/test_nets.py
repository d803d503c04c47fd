"""Every net: shapes, rectangular inputs, gradients, checkpointing, options and their errors."""

import copy

import pytest
import torch

from mpsoftmax.backbones import build_backbone

NAMES = [
    "iresnet18",
    "iresnet34",
    "iresnet50",
    "iresnet100",
    "iresnet200",
    "mobilefacenet",
    "vit_t",
    "vit_s",
    "vit_b",
    "vit_l",
    "small",
]
TINY = {  # the smallest size of each kind that has all its parts
    "iresnet18": ((16, 32), {}),  # not (32, 16): docs/numerics.md, maps that are two wide
    "mobilefacenet": ((32, 16), {}),
    "vit_t": ((27, 18), {"mask_ratio": 0.4, "drop_path": 0.2}),
    "small": ((32, 16), {"widths": [8, 16], "depths": [2, 1], "strides": [2, 2]}),
}


def tiny(name, **arguments):
    size, options = TINY[name]
    torch.manual_seed(1)
    net = build_backbone(name, embedding_dim=8, image_size=size, options=options, **arguments)
    return net, torch.rand(4, 3, *size) * 2 - 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(112, 112), (128, 48)])
def test_shapes(name, size):
    with torch.device("meta"):
        net = build_backbone(name, embedding_dim=96, image_size=size)
        output = net(torch.zeros(2, 3, *size))
    assert output.shape == (2, 96)
    assert output.dtype == torch.float32


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (64, 32), (48, 16)])
def test_small_takes_small_and_rectangular_images(size):
    net = build_backbone("small", embedding_dim=10, image_size=size)
    assert net(torch.zeros(2, 3, *size)).shape == (2, 10)


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_learns(name):
    net, images = tiny(name)
    net(images).square().sum().backward()
    for parameter_name, parameter in net.named_parameters():
        if parameter_name == "features.weight" and name in ("iresnet18", "small"):
            assert parameter.grad is None  # frozen at 1
        else:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", TINY)
def test_checkpointing_changes_no_number(name):
    plain, images = tiny(name)
    checkpointed = tiny(name, activation_checkpointing=True)[0]
    assert checkpointed.activation_checkpointing
    outputs = []
    for net in (plain, checkpointed):
        torch.manual_seed(2)  # dropped paths and masks
        output = net(images)
        output.square().sum().backward()
        outputs.append(output)
    assert torch.equal(*outputs)
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        if one.requires_grad:
            assert torch.equal(one.grad, other.grad), name
    # the second forward must not count as a second batch
    for (name, one), other in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(one, other), name


def test_checkpointing_keeps_fewer_activations():
    def saved(**arguments):
        net, images = tiny("iresnet18", **arguments)
        num_bytes = 0

        def pack(tensor):
            nonlocal num_bytes
            num_bytes += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(images)
        weights = sum(parameter.nbytes for parameter in net.parameters())
        return num_bytes, weights

    plain, weights = saved()
    assert saved(activation_checkpointing=True)[0] < plain - 0.5 * weights


@pytest.mark.parametrize("name", TINY)
def test_last_layers_are_in_full_precision_under_autocast(name):
    net, images = tiny(name)
    net.eval()
    with torch.no_grad():
        exact = net(images)
        with torch.autocast("cpu", torch.bfloat16):
            output = net(images)
    assert output.dtype == torch.float32
    assert torch.equal(output, output.bfloat16().float()) is False
    assert (output - exact).norm() < 0.1 * exact.norm()


def test_float64():
    net, images = tiny("small")
    assert net.double()(images.double()).dtype == torch.float64


def test_group_norm_keeps_samples_apart():
    net = build_backbone("small", embedding_dim=8, image_size=(32, 32), options={"norm": "group"})
    images = torch.rand(4, 3, 32, 32)
    assert list(net.buffers()) == []
    torch.testing.assert_close(net(images)[:1], net(images[:1]))
    other = build_backbone("small", embedding_dim=8, image_size=(32, 32))
    assert (other(images)[:2] - other(images[:2])).abs().max() > 1e-3


def test_transformer_masks_and_drops_only_in_training():
    net, images = tiny("vit_t")
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))
    kept = []
    net.train()
    net.blocks[0].register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].shape[1]))
    net(images)
    assert kept == [3]  # 6 patches, 40 % masked


def test_transformer_puts_kept_patches_back_into_their_places():
    net, _ = tiny("vit_t")
    tokens = torch.arange(6.0).expand(2, 6)[..., None].expand(2, 6, 256)
    order = torch.tensor([[4, 0, 3, 1, 2, 5], [5, 4, 3, 2, 1, 0]])
    kept = tokens.gather(1, order[:, :3, None].expand(-1, -1, 256))
    with torch.no_grad():
        net.mask_token.fill_(-1)
        places = net._with_mask_tokens(kept, order)[..., 0]
    assert places.tolist() == [[0, -1, -1, 3, 4, -1], [-1, -1, -1, 3, 4, 5]]


def test_same_seed_same_net():
    one, two = tiny("mobilefacenet")[0], tiny("mobilefacenet")[0]
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_deep_copy_works():  # torch.optim.swa_utils and the like
    net, images = tiny("small", activation_checkpointing=True)
    assert torch.equal(copy.deepcopy(net).eval()(images), net.eval()(images))


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("iresnet5", (112, 112), {}, "did you mean 'iresnet50'.*mobilefacenet.*small.*timm:NAME"),
        ("", (112, 112), {}, "unknown backbone ''"),
        ("iresnet50", (100, 112), {}, "image_size.*multiple of 16.*IResNet.*100 x 112"),
        ("mobilefacenet", (112, 24), {}, "image_size.*multiple of 16.*112 x 24"),
        ("vit_t", (8, 112), {}, "one patch of 9 x 9"),
        ("small", (36, 32), {}, "multiple of 16 .*36 x 32"),
        ("small", (32, 0), {}, r"image_size\[1\].*at least 1, got 0"),
        ("small", (32,), {}, "image_size must hold 2"),
        (
            "small",
            (32, 32),
            {"dropuot": 0.1},
            "no option 'dropuot', did you mean 'dropout'.*widths",
        ),
        ("iresnet18", (32, 32), {"widths": [8]}, "no option 'widths'; it takes dropout"),
        ("iresnet18", (32, 32), {"depths": [1, 1, 1, 1]}, "no option 'depths'"),
        ("small", (32, 32), {"dropout": 1}, "dropout must be a number in .0, 1., got 1"),
        ("small", (32, 32), {"dropout": "1e-1"}, "dropout must be a number"),
        ("small", (32, 32), {"widths": []}, "widths must hold at least one"),
        ("small", (32, 32), {"widths": "64"}, "widths must be a list"),
        ("small", (32, 32), {"widths": [16, 16]}, "depths .as many as widths. must hold 2"),
        ("small", (32, 32), {"depths": [1, 1, 1, 0]}, r"depths.*\[3\].*at least 1, got 0"),
        ("small", (32, 32), {"strides": [1, 2, 3, 2]}, "strides must be 1 or 2"),
        ("small", (32, 32), {"norm": "layer"}, "norm must be one of batch, group, got 'layer'"),
        ("small", (32, 32), {"norm": "group", "widths": [8, 8, 8, 12]}, "multiples of 8"),
        ("mobilefacenet", (32, 32), {"blocks": [1, 2]}, "blocks must hold 4"),
        ("mobilefacenet", (32, 32), {"scale": True}, "scale must be a whole number"),
        ("vit_t", (32, 32), {"patch_size": 0}, "patch_size"),
        ("vit_t", (32, 32), {"mask_ratio": 0.99}, "masks all 9 patches"),
        ("vit_t", (32, 32), {"drop_path": -0.1}, "drop_path"),
    ],
)
def test_errors_name_what_is_wrong(name, size, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_backbone(name, embedding_dim=8, image_size=size, options=options)


@pytest.mark.parametrize("dim", [0, -3, 2.5, True])
def test_embedding_dim_is_checked(dim):
    with pytest.raises(ValueError, match="embedding_dim must be a whole number"):
        build_backbone("small", embedding_dim=dim, image_size=(32, 32))
