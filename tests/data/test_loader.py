"""Batches: the same from any number of workers, corrupt images counted, workers ended."""

import io
import multiprocessing
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from mpsoftmax.data.assembly import Assembly, Draws, Request
from mpsoftmax.data.loader import Loader
from mpsoftmax.data.order import ImagesOrder, share
from mpsoftmax.data.transforms import Affine, Colour, Crop, Flip

SIZE = (20, 12)  # rectangular


@dataclass(frozen=True)
class Images:
    """PNG bytes (or anything else) with labels."""

    data: tuple
    labels: np.ndarray
    class_names: tuple[str, ...] = ("a", "b", "c", "d")

    def __len__(self):
        return len(self.data)

    def image(self, index):
        if isinstance(self.data[index], Exception):
            raise self.data[index]
        return self.data[index]

    def name(self, index):
        return f"image-{index}"


def pixels(index):
    return np.random.default_rng(index).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def png(index):
    buffer = io.BytesIO()
    Image.fromarray(pixels(index)).save(buffer, "PNG")
    return buffer.getvalue()


def images(num=23, replaced=None):
    data = [png(i) if i % 2 else pixels(i) for i in range(num)]
    for index, value in (replaced or {}).items():
        data[index] = value
    return Images(tuple(data), np.arange(num) % 4)


def collected(loader, cuts):
    batches = list(loader.stream(cuts))
    return (
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        tuple(name for batch in batches for name in batch.skipped),
    )


def cuts(num, size):
    return [(start, min(start + size, num)) for start in range(0, num, size)]


AUGMENT = (Flip(), Crop(pad=2), Affine(), Colour())


def loader(data=None, **options):
    data = data or images()
    options = {"size": SIZE, "augment": AUGMENT, "seed": 3, **options}
    return Loader(data, ImagesOrder(data.labels, 1), **options)


@pytest.fixture(autouse=True)
def no_worker_left():
    """Every test must end the processes it started (others may belong to the test session)."""
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_a_pixel(workers):
    expected = collected(loader(), cuts(60, 7))
    found = collected(loader(workers=workers), cuts(60, 7))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_cutting_and_ranks_do_not_change_a_pixel():
    whole = collected(loader(), [(0, 46)])
    pieces = collected(
        loader(),
        [
            (a, b)
            for start in (0, 23)
            for a, b in [(start + share(23, r, 3)[0], start + share(23, r, 3)[1]) for r in range(3)]
        ],
    )
    assert torch.equal(whole[0], pieces[0])
    # The second time round, the same sample is augmented differently.
    order = ImagesOrder(images().labels, 1).samples(0, 46)
    again = 23 + int(np.flatnonzero(order[23:] == order[0])[0])
    assert not torch.equal(whole[0][0], whole[0][again])
    other_seed = collected(loader(seed=4), [(0, 46)])
    assert not torch.equal(whole[0], other_seed[0])


def test_draws_of_a_position_are_those_of_a_fresh_generator():
    """Whatever was drawn before: a run resumed at a position augments it as the run before did."""
    seed = 2**64 - 1
    draws = Draws(seed)
    for position in (5, 0, 10**12, 5):
        key, counter = np.array([seed, position], np.uint64), np.array([0, 0, 0, 1], np.uint64)
        fresh = np.random.Generator(np.random.Philox(key=key, counter=counter))
        found = draws.at(position)
        for _ in range(3):  # 32-bit draws leave half a word behind
            assert found.integers(0, 9, dtype=np.uint32) == fresh.integers(0, 9, dtype=np.uint32)
            assert found.random() == fresh.random()


def test_a_worker_writes_into_shared_memory():
    """Else the DataLoader copies every batch into it."""
    assembly = Assembly(images(), SIZE, "pillow", 1.0, AUGMENT, 3)
    info = "mpsoftmax.data.assembly.get_worker_info"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(info, object)
        shared = assembly[Request(2, np.arange(5))]
        assert shared[0].is_shared()
        assert assembly[Request(2, np.arange(0))][0].shape == (0, 3, *SIZE)
    alone = assembly[Request(2, np.arange(5))]
    assert not alone[0].is_shared()
    assert torch.equal(alone[0], shared[0])


def test_without_order_and_augmentation_images_pass_unchanged():
    data = images()
    out, labels, skipped = collected(Loader(data, None, size=SIZE), [(0, 5), (5, 5), (5, 23)])
    assert out.shape == (23, 3, 20, 12)
    assert out.dtype == torch.uint8
    assert out.is_contiguous()
    expected = np.stack([pixels(i) for i in range(23)]).transpose(0, 3, 1, 2)
    assert np.array_equal(out.numpy(), expected)
    assert labels.dtype == torch.int64
    assert labels.tolist() == data.labels.tolist()
    assert skipped == ()
    with pytest.raises(ValueError, match=r"cuts: \(20, 24\)"):
        list(Loader(data, None, size=SIZE).stream([(20, 24)]))


def test_images_are_resized():
    out, _, _ = collected(Loader(images(), None, size=(8, 16)), [(0, 3)])
    assert out.shape == (3, 3, 8, 16)


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_blanked_named_and_counted(workers):
    data = images(replaced={4: b"broken", 9: b""})
    out, labels, skipped = collected(
        Loader(data, None, size=SIZE, workers=workers, max_corrupt=2), cuts(23, 5)
    )
    assert skipped == ("image-4", "image-9")
    assert labels[4] == labels[9] == -1
    assert labels[5] == 1
    assert not out[4].any()
    assert out[5].any()
    with pytest.raises(ValueError, match=r"corrupt image image-9: .*max_corrupt: 1"):
        collected(Loader(data, None, size=SIZE, workers=workers, max_corrupt=1), cuts(23, 5))
    with pytest.raises(ValueError, match="corrupt image image-4"):
        collected(Loader(data, None, size=SIZE, workers=workers), [(0, 23)])


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_surface_with_their_message(workers):
    data = images(replaced={3: OSError("the disk went away")})
    with pytest.raises(OSError, match="the disk went away"):
        collected(Loader(data, None, size=SIZE, workers=workers, max_corrupt=9), cuts(23, 5))


def test_closing_an_endless_stream_ends_its_workers():
    endless = ((start, start + 4) for start in range(0, 10**9, 4))
    stream = loader(workers=2).stream(endless)
    first = next(stream)
    assert len(first.labels) == 4
    assert len(multiprocessing.active_children()) == 2
    stream.close()


def test_the_global_generator_of_torch_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    collected(loader(workers=1), cuts(23, 5))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loader_can_be_pickled_for_spawned_workers():
    expected = collected(loader(), [(0, 9)])
    assert torch.equal(collected(pickle.loads(pickle.dumps(loader())), [(0, 9)])[0], expected[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers: -1"),
        ({"max_corrupt": -1}, "max_corrupt: -1"),
        ({"size": (0, 3)}, "size"),
        ({"seed": -2}, "seed: -2"),
        ({"decoder": "magic"}, "decoder: 'magic'"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        loader(**options)
