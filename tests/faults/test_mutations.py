"""Two hundred damaged files of every format, seeds 0 to 199: an error that names the file, or what was meant.

Three of four keep the format's magic bytes, so that the fields behind them are read. Hostile pickles run
nothing wherever a pickle is read.
"""

import copy
import json
import pickle
import random
import re
import shutil
import tarfile
import time

import pytest
import yaml
from given_images import GivenImages
from mutations import hostile_pickles, mutated
from small_runs import settings, summed, train

from mpsoftmax.config import load, to_yaml
from mpsoftmax.data.arrow_output import write_arrow
from mpsoftmax.data.convert import convert
from mpsoftmax.data.open import open_images
from mpsoftmax.data.pairs import read_bin

NUM = 200
SLOWEST_S = 20.0
"""Of CPU time, for one file."""
PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 40


SET = GivenImages((PNG, PNG + b"1", PNG * 2, PNG * 3), [0, 0, 1, 2], ("p", "q", "r"))


def read_images(path):
    images = open_images(path)
    for index in range(len(images)):
        images.image(index)


def attempt(read, *arguments):
    """The text of the ValueError; None where nothing was refused. Other exceptions go through."""
    began = time.process_time()
    try:
        read(*arguments)
    except ValueError as error:
        return str(error)
    finally:
        assert time.process_time() - began < SLOWEST_S
    return None


def survives(read, path, harmed, magic, protected_of=lambda seed: seed % 4 != 0):
    """Read `NUM` damaged copies of a file; how many were refused, and how many kept their magic."""
    data, refused, kept = harmed.read_bytes(), 0, 0
    for seed in range(NUM):
        changed = mutated(data, seed, magic if protected_of(seed) else 0)
        kept += changed[:magic] == data[:magic] and changed != data
        harmed.write_bytes(changed)
        said = attempt(read, path)
        if said is not None:
            assert path.stem in said, seed
            refused += 1
    harmed.write_bytes(data)
    read(path)
    assert kept >= NUM / 2
    return refused


def test_rec_and_its_index(tmp_path):
    path = tmp_path / "a.rec"
    convert(SET, path)
    assert survives(read_images, path, path, magic=4) > NUM / 3
    assert survives(read_images, path, path.with_suffix(".idx"), magic=0) > NUM / 2


def test_arrow(tmp_path):
    path = tmp_path / "a.arrow"
    write_arrow(path, SET)
    assert survives(read_images, path, path, magic=6) > NUM / 5


def test_tar(tmp_path):
    path = tmp_path / "a.tar"
    convert(SET, path)
    # "ustar" stands at 257 of the first header, which is its magic.
    assert survives(read_images, path, path, magic=263) > 0


def test_bin(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(pickle.dumps(([PNG, PNG + b"1", PNG, PNG + b"2"], [True, False]), 4))
    assert survives(read_bin, path, path, magic=2) > NUM / 3


@pytest.mark.parametrize("name", ["../a/1.jpg", "/etc/1.jpg", "a/../../1.jpg", "..\\a\\1.jpg"])
@pytest.mark.parametrize("kind", ["file", "link", "hard link"])
def test_members_of_an_archive_cannot_escape(tmp_path, name, kind):
    """Nothing is ever unpacked; converting to a folder writes below it or refuses."""
    import io

    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"not for you")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        good = tarfile.TarInfo("b/2.jpg")
        good.size = len(PNG)
        archive.addfile(good, io.BytesIO(PNG))
        member = tarfile.TarInfo(name)
        if kind == "file":
            member.size = len(PNG)
        else:
            member.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
            member.linkname = str(secret)
        archive.addfile(member, io.BytesIO(PNG) if kind == "file" else None)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    attempt(read_images, tmp_path / "a.tar")
    attempt(convert, tmp_path / "a.tar", tmp_path / "out" / "copy")
    for path in tmp_path.rglob("*"):
        inside = (tmp_path / "out") in (path, *path.parents)
        assert inside or path in before, path
        if path.is_file() and inside:
            assert path.read_bytes() != secret.read_bytes()
    assert secret.read_bytes() == b"not for you"


STRANGE = (
    None, True, -1, 0, 2**70, -(2**70), 1e308, float("nan"), float("inf"), "", "x" * 999, "../../etc/passwd",
    [], {}, [[]], {"kind": "x"}, {"kind": None}, {1: 2}, [None], "null", "1e9", "$(id)", "{{7*7}}",
)  # fmt: skip


def leaves(tree, path=()):
    """Paths of a tree of mappings, sections among them."""
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


def read_config(path):
    from mpsoftmax.train.build import check_parts

    check_parts(load(path))


def test_configs_mutated_field_by_field(tmp_path):
    text = to_yaml(settings(tmp_path / "run"))
    whole = yaml.safe_load(text)
    paths = list(leaves(whole))
    assert len(paths) > 60
    file, refused = tmp_path / "c.yaml", 0
    for seed in range(NUM):
        chance, tree = random.Random(seed), copy.deepcopy(whole)
        for path in chance.sample(paths, chance.randint(1, 2)):
            section = tree
            for key in path[:-1]:
                section = section[key] if isinstance(section[key], dict) else {path[-1]: 0}
            section[path[-1] if chance.random() < 0.8 else path[-1] + "x"] = chance.choice(STRANGE)
        file.write_text(yaml.safe_dump(tree))
        refused += attempt(read_config, file) is not None
    assert refused > NUM / 2


def test_configs_damaged_as_text(tmp_path):
    file = tmp_path / "c.yaml"
    data = to_yaml(settings(tmp_path / "run")).encode()
    refused = 0
    for seed in range(NUM):
        file.write_bytes(mutated(data, seed))
        refused += attempt(read_config, file) is not None
    assert refused > NUM / 2


@pytest.mark.parametrize(
    "text",
    [
        "train: !!python/object/apply:os.system ['touch MARKER']\n",
        "train: !!python/name:os.system\n",
        "!!python/object/new:subprocess.Popen [[touch, MARKER]]\n",
        "a: &a [x]\nb: &b [*a, *a]\ntrain: *b\n",
        "&a [*a]\n",
        "train: &a {steps: *a}\n",
        "a: &a {" + ", ".join(f"k{n}: 1" for n in range(99)) + "}\ntrain: {<<: *a}\n",
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 40)),
        "train: " + "[" * 20_000 + "\n",
        "train: {steps: 1, steps: 2}\n",
        "train: {? [a, b] : 1}\n",
        "train: {steps: 0x" + "f" * 5000 + "}\n",
        "train: {steps: " + "9" * 5000 + "}\n",
        "train: {steps: 1:2:3}\ndata: {train: 2001-01-01}\n",
        "\x00\x01",
        "--- a\n--- b\n",
    ],
    ids=range(16),
)
def test_hostile_configs(tmp_path, text):
    marker = tmp_path / "executed"
    (tmp_path / "c.yaml").write_text(text.replace("MARKER", str(marker)))
    said = attempt(read_config, tmp_path / "c.yaml")
    assert said is not None
    assert len(said) < 5000
    assert not marker.exists()


@pytest.fixture(scope="module")
def checkpoint(ranks, tmp_path_factory):
    """A checkpoint of two ranks."""
    folder = tmp_path_factory.mktemp("checkpoint")
    ranks.run(train, 2, folder=folder / "run", overrides=("train.steps=2",))
    return folder / "run"


def restored(folder):
    """Resume the run and end at once."""
    from mpsoftmax.comm import Comm
    from mpsoftmax.train.loop import Trainer

    trainer = Trainer(settings(folder, "train.steps=2"), Comm())
    trainer.log.close()
    return trainer


def damaged_checkpoints(run, name, seeds, magic):
    """Resume from copies of a checkpoint with one damaged file and sums that fit; how many were refused."""
    latest = (run / "checkpoints" / "latest").resolve()
    data, refused, kept = (latest / name).read_bytes(), 0, 0
    for seed in seeds:
        changed = mutated(data, seed, magic if seed % 4 else 0)
        kept += changed[:magic] == data[:magic]
        (latest / name).write_bytes(changed)
        summed(latest)
        refused += attempt(restored, run) is not None
    (latest / name).write_bytes(data)
    summed(latest)
    restored(run)
    return refused, kept


@pytest.mark.parametrize(
    ("name", "magic"), [(".metadata", 2), ("__0_0.distcp", 4), ("state.json", 1)]
)
def test_checkpoints_damaged_although_the_sums_fit(ranks, checkpoint, tmp_path, name, magic):
    """67 of each file: 201 in all."""
    shutil.copytree(checkpoint, tmp_path / "run", symlinks=True)
    arguments = {"run": tmp_path / "run", "name": name, "seeds": range(67), "magic": magic}
    refused, kept = ranks.run(damaged_checkpoints, 1, **arguments)[0]
    assert kept >= 67 / 2
    assert refused > 67 / 5


def index_fields(metadata):
    """Changes of one field each of an index, as functions of it."""
    import torch
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, ChunkStorageMetadata

    name = next(name for name in metadata.state_dict_metadata if name.endswith("head.weight"))
    entry = metadata.state_dict_metadata[name]
    index = next(index for index in metadata.storage_data if index.fqn == name)
    place = metadata.storage_data[index]

    def set_of(thing, field, value):
        return lambda: setattr(thing, field, value)

    sizes = [
        torch.Size(size) for size in ((2**40, 2**40), (2**61, 4), (0, 16), (24, 16), (23,), ())
    ]
    for size in sizes:
        yield set_of(entry, "size", size)
        yield set_of(entry.chunks[0], "sizes", size)
        yield set_of(entry.chunks[0], "offsets", size)
    for value in (None, [], "x", (23, 16), -1, 2.5):
        yield set_of(entry, "size", value)
        yield set_of(entry, "chunks", value)
        yield set_of(entry, "properties", value)
        yield set_of(entry.properties, "dtype", value)
        yield set_of(place, "offset", value)
        yield set_of(place, "length", value)
        yield set_of(metadata, "storage_data", value)
        yield set_of(metadata, "state_dict_metadata", value)
    for path in (
        "../../../etc/passwd",
        "/etc/passwd",
        "state.json",
        "",
        ".",
        "latest",
        "x\0y",
        7,
        None,
    ):
        yield set_of(place, "relative_path", path)
    for number in (2**63, 2**40, -5):
        yield set_of(place, "offset", number)
        yield set_of(place, "length", number)
    yield set_of(place, "transform_descriptors", ("zstd",))
    yield lambda: entry.chunks.append(entry.chunks[0])
    yield lambda: entry.chunks.pop()
    yield lambda: entry.chunks.append(
        ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([23, 16]))
    )
    yield lambda: metadata.state_dict_metadata.update({name: BytesStorageMetadata()})
    yield lambda: metadata.state_dict_metadata.update({7: entry})
    yield lambda: metadata.state_dict_metadata.pop(name)
    yield lambda: metadata.storage_data.pop(index)
    yield lambda: metadata.storage_data.update({"x": place})


def index_mutations(run):
    """Texts of what was said about each changed index; None where it was accepted."""
    latest = (run / "checkpoints" / "latest").resolve()
    data = (latest / ".metadata").read_bytes()
    num = len(list(index_fields(pickle.loads(data))))
    said = []
    for number in range(num):
        metadata = pickle.loads(data)
        list(index_fields(metadata))[number]()
        (latest / ".metadata").write_bytes(pickle.dumps(metadata))
        summed(latest)
        said.append(attempt(restored, run))
    (latest / ".metadata").write_bytes(data)
    summed(latest)
    restored(run)
    return said


def test_an_index_mutated_field_by_field(ranks, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "run", symlinks=True)
    said = ranks.run(index_mutations, 1, run=tmp_path / "run")[0]
    assert len(said) > 80
    accepted = [number for number, text in enumerate(said) if text is None]
    assert accepted == []


def state_mutations(run):
    """Every field of state.json in turn becomes strange."""
    latest = (run / "checkpoints" / "latest").resolve()
    text = (latest / "state.json").read_text()
    strange = [value for value in STRANGE if value == value]
    refused = 0
    for field in json.loads(text):
        for value in (*strange, "absent"):
            state = {**json.loads(text), field: value}
            if value == "absent":
                del state[field]
            (latest / "state.json").write_text(json.dumps(state))
            summed(latest)
            refused += attempt(restored, run) is not None
    (latest / "state.json").write_text(text)
    summed(latest)
    restored(run)
    return refused


def test_a_state_mutated_field_by_field(ranks, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "run", symlinks=True)
    assert ranks.run(state_mutations, 1, run=tmp_path / "run")[0] > 100


def test_hostile_pickles_as_verification_sets(tmp_path):
    marker = tmp_path / "executed"
    for name, data in hostile_pickles(marker).items():
        (tmp_path / "a.bin").write_bytes(data)
        said = attempt(read_bin, tmp_path / "a.bin")
        assert said is not None, name
        assert "a.bin" in said, name
        assert not marker.exists(), name


def hostile_checkpoints(run, marker):
    """Each pickle as the index of a checkpoint, and as the pickle inside a piece of a tensor."""
    latest = (run / "checkpoints" / "latest").resolve()
    index, piece = (latest / ".metadata").read_bytes(), (latest / "__0_0.distcp").read_bytes()
    accepted = []
    for name, data in hostile_pickles(marker).items():
        for where, changed in (
            (".metadata", data),
            ("__0_0.distcp", with_pickle(piece, data)),
        ):
            (latest / ".metadata").write_bytes(index)
            (latest / "__0_0.distcp").write_bytes(piece)
            (latest / where).write_bytes(changed)
            summed(latest)
            if attempt(restored, run) is None or marker.exists():
                accepted.append((name, where))
    return accepted


PIECE = re.compile(rb"\x80\x02ctorch\._utils\n_rebuild_tensor_v2\n.*?Rq.\.", re.DOTALL)


def with_pickle(piece, data):
    """A file of a checkpoint in which the pickle of every tensor became another of the same length."""

    def replaced(found):
        room = len(found[0])
        return data.ljust(room, b"N") if len(data) <= room else found[0]

    changed = PIECE.sub(replaced, piece)
    assert changed != piece
    assert len(changed) == len(piece)
    return changed


def test_hostile_pickles_in_checkpoints(ranks, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "run", symlinks=True)
    marker = tmp_path / "executed"
    assert ranks.run(hostile_checkpoints, 1, run=tmp_path / "run", marker=marker) == [[]]
    assert not marker.exists()
