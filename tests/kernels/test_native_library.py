"""The library behind the compiled kernel: that it is built, from what, and what is said where it is not."""

import ast
import ctypes
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mpsoftmax.kernels import blocked, native, native_library, select

GCC = sys.platform == "linux" and shutil.which("g++") is not None
needs_compiler = pytest.mark.skipif(not GCC, reason="needs g++ on Linux")


@needs_compiler
def test_it_is_there_where_it_can_be_built():
    """Else every test of the compiled kernel would be skipped, and nobody would see it."""
    assert native_library.obstacle() is None
    assert select.select("auto") is select.select("native") is native


@pytest.fixture
def fresh_library():
    """The library is looked for anew, in the test and after it."""
    for cached in (native_library.library, select.warn_once):
        cached.cache_clear()
    yield
    native_library.library.cache_clear()


def test_not_built(monkeypatch, tmp_path, fresh_library, caplog):
    """By name an error that says what to do; `auto` takes `blocked`, as where there is no compiler."""
    monkeypatch.setattr(native_library, "LIBRARY", tmp_path / "native.lib.so")
    with pytest.raises(
        ValueError,
        match=r"kernel: 'native' was not built: .*install .*; allowed here: auto, blocked, ref",
    ):
        select.select("native")
    assert select.select("auto") is blocked
    assert not caplog.records


@needs_compiler
def test_built_from_another_source(monkeypatch, tmp_path, fresh_library, caplog):
    """A library that is there and cannot be used is not passed over silently."""
    source = tmp_path / "native.cpp"
    source.write_bytes(native_library.SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(native_library, "SOURCE", source)
    with pytest.raises(ValueError, match=r"kernel: 'native' was built from another native\.cpp"):
        select.select("native")
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            assert select.select("auto") is blocked
    (record,) = caplog.records
    assert "auto is blocked" in record.getMessage()
    assert "another native.cpp" in record.getMessage()


def test_cannot_be_loaded(monkeypatch, tmp_path, fresh_library):
    broken = tmp_path / "native.lib.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(native_library, "LIBRARY", broken)
    with pytest.raises(
        ValueError, match=r"kernel: 'native' cannot be loaded: .*; install mpsoftmax"
    ):
        select.select("native")


def test_rows_elsewhere_are_not_for_it():
    with pytest.raises(
        ValueError, match="kernel: 'native' is for rows on a CPU, and these are on 'cuda:0'"
    ):
        select.select("native", torch.device("cuda", 0))
    assert select.select("auto", torch.device("cuda", 0)) is blocked


def flags(root):
    """What setup.py compiles with."""
    for node in ast.parse((root / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "FLAGS":
            return ast.literal_eval(node.value)
    raise AssertionError("setup.py names no FLAGS")


def built_for(march, root, folder):
    """The library for one instruction set."""
    compiled, target = folder / f"{march}.o", folder / f"{march}.so"
    define = ["-DFOR_EVERY_PROCESSOR=", '-DSOURCE_DIGEST="x"', f"-march={march}"]
    source = str(root / "kernels/native.cpp")
    subprocess.run(["g++", *flags(root), *define, "-c", source, "-o", str(compiled)], check=True)
    subprocess.run(["g++", "-shared", str(compiled), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


def answers_of(library):
    """Bytes of what each function makes of the same numbers, at sizes that fill no vector."""
    stream, found = np.random.default_rng(0), []
    for dim in (1, 15, 64, 333):
        rows, gradient, state = (stream.standard_normal((7, dim), np.float32) for _ in range(3))
        out, factor, sums = (
            np.empty((7, dim), np.uint16),
            np.empty(7, np.float32),
            np.zeros(dim, np.float32),
        )
        arrays = [part.ctypes.data for part in (rows, out, factor, sums, gradient, state)]
        row, cast, by, total, push, momentum = map(ctypes.c_void_p, arrays)
        size = (ctypes.c_int64(7), ctypes.c_int64(dim))
        library.prepare_float32_bfloat16(
            row, cast, by, *size, ctypes.c_float(9.0), ctypes.c_int32(1)
        )
        found.append(out.tobytes() + factor.tobytes())
        library.exponentiate_bfloat16(
            cast, None, *size, ctypes.c_float(1.5), total, ctypes.c_int32(1)
        )
        found.append(out.tobytes() + sums.tobytes())
        numbers = {"lr": 0.1, "decay": 0.01, "kept": 0.999, "beta1": 0.9, "rest1": 0.1}
        move = native_library.Move(
            gradient=push, rows=row, first=momentum, num_rows=7, dim=dim, num_threads=1, **numbers
        )
        library.move_rows(ctypes.byref(move))
        found.append(rows.tobytes() + state.tobytes())
        library.exponentiate_times_factor_float32(
            row, by, *size, ctypes.c_float(1.5), total, ctypes.c_int32(1)
        )
        found.append(rows.tobytes() + sums.tobytes())
    return found


@needs_compiler
def test_the_instruction_set_changes_no_bit(pytestconfig, tmp_path):
    """Every set that this processor has, against the oldest."""
    info = Path("/proc/cpuinfo").read_text()
    if "sse2" not in info:
        pytest.skip("needs an x86-64 processor")
    sets = [("x86-64-v3", "avx2"), ("x86-64-v4", "avx512vl")]
    first = answers_of(built_for("x86-64", pytestconfig.rootpath, tmp_path))
    tried = [march for march, needed in sets if needed in info]
    for march in tried:
        assert answers_of(built_for(march, pytestconfig.rootpath, tmp_path)) == first, march


@needs_compiler
@pytest.mark.slow
def test_a_wheel_holds_the_library_and_its_source(pytestconfig, tmp_path):
    """For every Python of the platform; without a compiler it is made all the same, without the library."""
    import zipfile

    copy = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", str(pytestconfig.rootpath), str(copy)], check=True)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", str(copy)]
    for compiler, built in (("g++", True), ("no-such-compiler", False)):
        folder = tmp_path / compiler
        subprocess.run(
            [*pip, "-w", str(folder)], check=True, env={"PATH": "/usr/bin:/bin", "CXX": compiler}
        )
        (wheel,) = folder.glob("*.whl")
        assert "-py3-none-linux_" in wheel.name
        names = zipfile.ZipFile(wheel).namelist()
        assert ("mpsoftmax/kernels/native.lib.so" in names) == built
        assert "mpsoftmax/kernels/native.cpp" in names
