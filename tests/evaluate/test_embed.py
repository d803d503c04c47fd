"""Embeddings of a set: batches, shares, mirroring, modes, raw pixels."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpsoftmax.backbones import build_backbone
from mpsoftmax.evaluate.embed import embed, raw_pixels

SIZE = (32, 16)


@dataclass
class Pictures:
    """Random pictures in memory, an ImageSet."""

    num: int
    pixels: np.ndarray = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (self.num, *SIZE, 3), dtype=np.uint8)
        self.labels = np.full(self.num, -1, np.int64)
        self.class_names = ()

    def __len__(self):
        return self.num

    def image(self, index):
        return self.pixels[index]

    def name(self, index):
        return f"picture {index}"


class Mean(nn.Module):
    """Mean colour of the left half, for hand-worked embeddings."""

    def forward(self, images):
        return images[..., : images.shape[3] // 2].mean((2, 3))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    options = {"widths": [8, 16], "depths": [1, 1], "strides": [2, 2], "dropout": 0.5}
    net = build_backbone("small", embedding_dim=12, image_size=SIZE, options=options)
    for _ in range(3):  # running statistics unlike those of a batch
        net(torch.randn(8, 3, *SIZE))
    return net


@pytest.fixture(scope="module")
def whole(net):
    return embed(net, Pictures(23), size=SIZE, batch_size=8)


def test_by_hand():
    pictures = Pictures(3)
    left = (pictures.pixels[:, :, :8].astype(float) - 127.5) / 127.5
    right = (pictures.pixels[:, :, 8:].astype(float) - 127.5) / 127.5
    for flip, total in ((False, left.mean((1, 2))), (True, left.mean((1, 2)) + right.mean((1, 2)))):
        found = embed(Mean(), pictures, size=SIZE, batch_size=2, flip=flip)
        expected = F.normalize(torch.from_numpy(total)).float()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_form(whole):
    assert whole.shape == (23, 12)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(23))
    assert not whole.requires_grad


@pytest.mark.parametrize("batch_size", [1, 5, 23, 64])
def test_batch_size_does_not_matter(net, whole, batch_size):
    found = embed(net, Pictures(23), size=SIZE, batch_size=batch_size)
    torch.testing.assert_close(found, whole, atol=2e-6, rtol=1e-5)


def shares(net, num, world, **options):
    """What each rank hands to gather: embeddings [m_r, D]."""
    parts = []

    def gather(part):
        parts.append(part)
        return part.new_zeros(num, part.shape[1])

    for rank in range(world):
        embed(net, Pictures(num), size=SIZE, rank=rank, world=world, gather=gather, **options)
    return parts


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_shares_do_not_matter(net, whole, world):
    parts = shares(net, 23, world, batch_size=8)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    # an image's place in its batch is another one; the batch always has 8 rows
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-6, rtol=1e-5)


def test_more_ranks_than_images(net):
    parts = shares(net, 2, 4, batch_size=8)
    assert sorted(part.shape for part in parts) == [(0, 12), (0, 12), (1, 12), (1, 12)]
    torch.testing.assert_close(
        torch.cat(parts), embed(net, Pictures(2), size=SIZE, batch_size=8), atol=1e-6, rtol=1e-5
    )


def test_gathered_rows_are_what_comes_back(net, whole):
    found = embed(
        net,
        Pictures(23),
        size=SIZE,
        batch_size=8,
        rank=0,
        world=2,
        gather=lambda part: torch.cat([part, whole[len(part) :]]),
    )
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-5)


def test_workers_do_not_matter(net, whole):
    found = embed(net, Pictures(23), size=SIZE, batch_size=8, workers=1)
    assert torch.equal(found, whole)


def test_all_batches_have_the_same_size(net):
    seen = []
    hook = net.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    embed(net, Pictures(5), size=SIZE, batch_size=4, flip=False)
    hook.remove()
    assert seen == [(4, 3, *SIZE)] * 2


def test_model_is_left_as_it_was(net):
    net.train()
    net.stages[0].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    embed(net, Pictures(3), size=SIZE)
    assert net.training
    assert not net.stages[0].training
    assert net.stages[1].training
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(ValueError, match="embeddings"):
        embed(nn.Identity().train(), Pictures(3), size=SIZE)
    net.train()


def test_mode_comes_back_after_an_error():
    class Failing(nn.Module):
        def forward(self, images):
            raise RuntimeError("out of memory")

    model = Failing()
    with pytest.raises(RuntimeError, match="out of memory"):
        embed(model, Pictures(3), size=SIZE)
    assert model.training


def test_autocast(net, whole):
    found = embed(net, Pictures(23), size=SIZE, batch_size=8, dtype=torch.bfloat16)
    assert found.dtype == torch.float32
    assert not torch.equal(found, whole)
    torch.testing.assert_close(found, whole, atol=0.05, rtol=0)


def test_images_of_another_size_are_resized():
    found = embed(Mean(), Pictures(2), size=(8, 8), batch_size=2)
    expected = embed(Mean(), Pictures(2), size=SIZE, batch_size=2)
    assert (found * expected).sum(1).min() > 0.9


def test_corrupt_image_is_named(net):
    pictures = Pictures(3)
    pictures.image = lambda index: b"no image" if index == 1 else pictures.pixels[index]
    with pytest.raises(ValueError, match="picture 1"):
        embed(net, pictures, size=SIZE)


@pytest.mark.parametrize(
    ("num", "options", "message"),
    [
        (0, {}, "images: there are none"),
        (3, {"batch_size": 0}, "batch_size must be at least 1"),
        (3, {"world": 2}, "gather must be given with world = 2"),
        (3, {"gather": lambda part: part[:2]}, r"gather must return \[3, 12\], got \[2, 12\]"),
        (3, {"decoder": "magic"}, "decoder"),
    ],
)
def test_errors(net, num, options, message):
    with pytest.raises(ValueError, match=message):
        embed(net, Pictures(num), size=SIZE, **options)


# --- raw pixels ----------------------------------------------------------------------------


class Flat(Pictures):
    def image(self, index):
        colours = [(255, 0, 0), (200, 200, 200)]
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[:, :16] = colours[index]
        if index == 1:
            picture[:] = colours[1]
        return picture


def test_raw_pixels_by_hand():
    found = raw_pixels(Flat(2))
    assert found.shape == (2, 1024)
    half = torch.cat([torch.ones(16), -torch.ones(16)]) / 32  # +- one half of 0.299 * 255, unit
    torch.testing.assert_close(found[0].reshape(32, 32), half.expand(32, 32))
    assert torch.equal(found[1], torch.zeros(1024))  # a picture of one grey tells nothing


def test_raw_pixels_ignore_brightness_and_contrast():
    pictures = Pictures(2)
    pictures.pixels[0] //= 2
    pictures.pixels[1] = pictures.pixels[0] + 100
    found = raw_pixels(pictures, size=SIZE)
    assert (found[0] @ found[1]).item() == pytest.approx(1.0, abs=1e-5)
