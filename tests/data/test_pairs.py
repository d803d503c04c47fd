"""Verification sets: .bin in both variants without executing anything, and pair lists."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from mpsoftmax.data.pairs import PairSet, read_bin, read_pairs, write_bin

ITEMS = [b"\xff\xd8one", b"\xff\xd8two", b"\xff\xd8one", b"\x89three\n"]
PAIRS = [[0, 1], [0, 2]]


def python2_pickle(items, same):
    """Protocol 2 with Python 2 ``str`` opcodes, as the published files have."""
    out = b"\x80\x02]q\x01("
    for item in items:
        out += b"T" + len(item).to_bytes(4, "little") + item
    out += b"e]q\x02("
    return out + b"".join(b"\x88" if flag else b"\x89" for flag in same) + b"e\x86."


def check(pair_set):
    assert pair_set.pairs.tolist() == PAIRS
    assert pair_set.same.tolist() == [True, False]
    assert pair_set.same.dtype == bool
    assert [pair_set.images.image(i) for i in range(3)] == [ITEMS[0], ITEMS[1], ITEMS[3]]
    assert pair_set.images.labels.tolist() == [-1, -1, -1]
    assert pair_set.images.name(2).endswith("image 3")


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("variant", ["bytes", "column", "flat", "numpy bool", "tuples"])
def test_bin_variants(tmp_path, protocol, variant):
    items, same = list(ITEMS), [True, False]
    if variant == "column":
        items = [np.frombuffer(item, np.uint8)[:, None] for item in items]
    if variant == "flat":
        items = [np.frombuffer(item, np.uint8) for item in items]
    if variant == "numpy bool":
        same = [np.bool_(True), np.bool_(False)]
    content = (tuple(items), tuple(same)) if variant == "tuples" else (items, same)
    path = tmp_path / "a.bin"
    path.write_bytes(pickle.dumps(content, protocol))
    check(read_bin(path))


def test_bin_of_python_2_and_old_numpy(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(python2_pickle(ITEMS, [True, False]))
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(path.read_bytes())
    check(read_bin(path))
    data = pickle.dumps(([np.frombuffer(item, np.uint8) for item in ITEMS], [True, False]), 3)
    path.write_bytes(data.replace(b"numpy._core.", b"numpy.core."))
    check(read_bin(path))


def test_bin_round_trip(tmp_path):
    (tmp_path / "a.bin").write_bytes(pickle.dumps((ITEMS, [1, 0])))
    write_bin(tmp_path / "b.bin", read_bin(tmp_path / "a.bin"))
    assert pickle.loads((tmp_path / "b.bin").read_bytes()) == (ITEMS, [True, False])
    check(read_bin(tmp_path / "b.bin"))
    with pytest.raises(ValueError, match="exists already"):
        write_bin(tmp_path / "b.bin", read_bin(tmp_path / "a.bin"))


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def global_call(module, name, argument):
    """GLOBAL module.name called with one string, protocol 0."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


def hostile_pickles(flag):
    command = f"touch {flag}"
    for protocol in range(5):
        yield pickle.dumps(Hostile(os.system, command), protocol)
        yield pickle.dumps(([Hostile(os.system, command)], [True]), protocol)
        yield pickle.dumps(([Hostile(exec, f"open({str(flag)!r}, 'w')")] * 2, [True]), protocol)
        yield pickle.dumps((Hostile(eval, f"open({str(flag)!r}, 'w')"), []), protocol)
    yield global_call("os", "system", command)
    yield global_call("numpy", "load", flag)
    yield global_call("numpy.testing._private.utils", "runstring", "1")
    yield global_call("builtins", "open", flag)
    yield global_call("codecs", "open", flag)
    yield (
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c"
        + bytes([len(command)])
        + command.encode()
        + b"\x85R."
    )
    yield f"(V{command}\nios\nsystem\n.".encode()  # INST
    yield f"(cos\nsystem\nV{command}\no.".encode()  # OBJ
    yield b"\x80\x02\x82\x01."  # EXT1
    yield b"\x80\x02U\x01aQ."  # BINPERSID


def test_nothing_in_a_bin_is_executed(tmp_path):
    flag = tmp_path / "ran"
    for number, data in enumerate(hostile_pickles(flag)):
        (tmp_path / "a.bin").write_bytes(data)
        with pytest.raises(ValueError, match="refused"):
            read_bin(tmp_path / "a.bin")
        assert not flag.exists(), f"hostile pickle {number} was executed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin"]


def test_the_refused_global_is_named(tmp_path):
    (tmp_path / "a.bin").write_bytes(pickle.dumps(Hostile(os.system, "true")))
    with pytest.raises(ValueError, match=r"a\.bin.*refused to load posix\.system"):
        read_bin(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (([b"a", b"b"],), "a pair"),
        ([b"a", b"b", b"c"], "a pair"),
        (b"ab", "a pair"),
        (([b"a", b"b", b"c"], [True]), "found 3 for 1 pairs"),
        (([b"a", "b"], [True]), "image 1: .*found str"),
        (([b"a", b"b"], [2]), "pair 0: True or False"),
        (([b"a", b"b"], [None]), "pair 0: .*NoneType"),
        (([np.zeros(3), b"b"], [True]), "type 'f8'"),
        (([np.zeros((2, 2), np.uint8), b"b"], [True]), r"shape \(2, 2\)"),
        (([b"a", b"b"], [np.float64(1)]), "only bool"),
    ],
)
def test_bin_of_another_content(tmp_path, content, message):
    (tmp_path / "a.bin").write_bytes(pickle.dumps(content, 4))
    with pytest.raises(ValueError, match=message) as error:
        read_bin(tmp_path / "a.bin")
    assert "a.bin" in str(error.value)


FILES = {
    "Ann/Ann_0001.jpg": b"a1",
    "Ann/Ann_0012.jpg": b"a12",
    "Bo b/Bo b_0001.jpg": b"b1",
    "Cy/Cy_0001.jpg": b"c1",
}


@pytest.fixture(params=["folder", "tar"])
def source(request, tmp_path):
    if request.param == "folder":
        for name, data in FILES.items():
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path / "images"
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for name, data in FILES.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return tmp_path / "images.tar"


A1, A12, B1, C1 = FILES
LISTS = {
    "csv": f"fold,same,file1,file2\n0,1,{A1},{A12}\n1,0,{C1},{A1}\n",
    "csv in another order": f"file2,file1,same\r\n{A12},{A1},1\r\n{A1},{C1},0\r\n",
    "tab": f"{A1}\t{A12}\t1\n\n{C1}\t{A1}\t0\n",
    "space": f"{A1} {A12} 1\n./{C1}   {A1} 0",
    "lfw": "1\t1\nAnn\t1\t12\nCy\t1\tAnn\t1\n",
    "lfw view 1": "1\nAnn 1 12\nCy 1 Ann 1\n",
}


@pytest.mark.parametrize("name", LISTS)
def test_pair_lists(tmp_path, source, name):
    (tmp_path / "pairs.txt").write_text(LISTS[name], newline="")
    pair_set = read_pairs(tmp_path / "pairs.txt", source)
    assert isinstance(pair_set, PairSet)
    assert pair_set.pairs.tolist() == [[0, 1], [2, 0]]
    assert pair_set.same.tolist() == [True, False]
    assert [pair_set.images.image(i) for i in range(3)] == [b"a1", b"a12", b"c1"]
    assert pair_set.images.name(2).endswith(C1)
    folds = {"csv": [0, 1], "lfw": [0, 0], "lfw view 1": [0, 0]}.get(name)
    assert (None if pair_set.folds is None else pair_set.folds.tolist()) == folds


def test_paths_with_spaces_need_tabs(tmp_path, source):
    (tmp_path / "pairs.txt").write_text(f"{A1}\t{B1}\t0\n")
    assert read_pairs(tmp_path / "pairs.txt", source).images.image(1) == b"b1"
    (tmp_path / "pairs.txt").write_text(f"{A1} {B1} 0\n")
    with pytest.raises(ValueError, match="found 5 fields"):
        read_pairs(tmp_path / "pairs.txt", source)


def test_lfw_folds_and_suffix(tmp_path, source):
    (tmp_path / "p.txt").write_text("2 1\nAnn 1 12\nAnn 1 Cy 1\nAnn 12 1\nCy 1 Ann 12\n")
    assert read_pairs(tmp_path / "p.txt", source).folds.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"p\.txt:2: .*'Ann/Ann_0001\.png'"):
        read_pairs(tmp_path / "p.txt", source, suffix=".png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no pairs"),
        (f"{A1}\t{A12}\n", ":1: .*found 2 fields"),
        (f"{A1}\t{A12}\t1\n{A1}\t{A12}\tyes\n", ":2: 0 or 1 expected"),
        (f"{A1}\t{A12}\t1\n{A1}\tAnn/none.jpg\t1\n", ":2: no .*Ann/none.jpg"),
        (f"{A1}\t../secret.jpg\t1\n", ":1: path inside .* expected"),
        (f"{A1}\t/etc/passwd\t1\n", ":1: path inside .* expected"),
        (f"fold,same,file1,file2\n0,1,{A1}\n", ":2: 4 columns expected"),
        (f"fold,same,file1,file2\nx,1,{A1},{A12}\n", ":2: .*'fold', found 'x'"),
        (f"fold,same,file1,file2\n0,2,{A1},{A12}\n", ":2: 0 or 1"),
        (f'same,file1,file2\n1,"{A1},{A12}\n', "csv expected|columns expected"),
        ("1\t2\nAnn\t1\t12\nCy\t1\tAnn\t1\n", "found 2 lines of pairs"),
        ("1\t1\nAnn\t1\t12\nCy\t1\n", ":3: 'name n1 n2'"),
        ("1\t1\nAnn\t1\tx\nCy\t1\tAnn\t1\n", ":2: 'name n1 n2'"),
        ("0\t0\n", "0 folds of 0"),
    ],
)
def test_malformed_lists_name_the_line(tmp_path, source, text, message):
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_pairs(tmp_path / "pairs.txt", source)
    assert "pairs.txt" in str(error.value)


def test_list_and_source_must_exist(tmp_path, source):
    with pytest.raises(ValueError, match="no such file"):
        read_pairs(tmp_path / "none.csv", source)
    (tmp_path / "p.txt").write_text(f"{A1}\t{A12}\t1\n")
    with pytest.raises(ValueError, match="no such folder or tar"):
        read_pairs(tmp_path / "p.txt", tmp_path / "none")
    with pytest.raises(ValueError, match="dialect is 'xml'"):
        read_pairs(tmp_path / "p.txt", source, dialect="xml")
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        read_pairs(tmp_path / "p.txt", source)


def test_real_bin_variants(shared_data):
    classic = read_bin(shared_data / "lfw_test_a_small.bin")
    assert (len(classic), int(classic.same.sum())) == (200, 100)
    arrays = read_bin(shared_data / "insightface_small_lfw.bin")
    assert (len(arrays), int(arrays.same.sum())) == (10, 10)
    for pair_set in (classic, arrays):
        for index in range(len(pair_set.images)):
            assert pair_set.images.image(index)[:3] == b"\xff\xd8\xff"


def test_real_pair_list_equals_the_bin(shared_data):
    packed = read_bin(shared_data / "lfw_test_a.bin")
    listed = read_pairs(shared_data / "lfw_test_a_pairs.csv", shared_data / "lfw_test_a.tar")
    assert len(packed) == 2400
    np.testing.assert_array_equal(packed.pairs, listed.pairs)
    np.testing.assert_array_equal(packed.same, listed.same)
    assert len(packed.images) == len(listed.images) == 1708
    assert all(packed.images.image(i) == listed.images.image(i) for i in range(1708))
    np.testing.assert_array_equal(listed.folds, np.arange(2400) // 240)
