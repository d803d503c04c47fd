"""Every Triton kernel compiled for sm_80 and sm_90 with the launches the code makes, without a GPU.

The kernels are replaced by recorders while sweep and update run on CPU tensors, so what is compiled is what
would be launched: types, alignment, variants, tiles, warps, stages. Held to: tensor-core instructions in
bfloat16 products and none in float32 ones (no silent TF32), no register spilled, shared memory within the
chip's.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from kernel_cases import WISHES, awkward

from mpsoftmax.kernels.row_update import OwnPulls, Rows

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
TENSOR_CORES = re.compile(r"(wgmma\.mma_async|(?<!wg)mma\.sync)\S*bf16")


class Recorder:
    """Stands for a kernel: notes the arguments of each launch and runs nothing."""

    def __init__(self, kernel, launches):
        self._kernel, self._launches = kernel, launches

    def __getitem__(self, grid):
        assert all(side > 0 for side in grid)
        return lambda *args, **kwargs: self._launches.append((self._kernel, args, kwargs))


def recorded(modules, action):
    """[(kernel, args, kwargs)] of the launches `action` makes through the modules' kernels."""
    launches, found = [], []
    for module in modules:
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            found.append((module, name, getattr(module, name)))
            setattr(module, name, Recorder(getattr(module, name), launches))
    try:
        action()
    finally:
        for module, name, kernel in found:
            setattr(module, name, kernel)
    return launches


def compiled(kernel, args, kwargs, chip):
    """(PTX, shared bytes) of one launch, by the way Triton's own launcher takes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    target = GPUTarget("cuda", chip, 32)
    backend = make_backend(target)
    kwargs = {**kwargs, "debug": False, "instrumentation_mode": ""}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, special, options = binder(*args, **kwargs)
    options, signature, constants, attributes = kernel._pack_args(
        backend, kwargs, bound, special, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    out = triton.compile(source, target=target, options=options.__dict__)
    return out.asm["ptx"], out.metadata.shared


def resources(ptx, chip):
    """(registers a thread, bytes spilled) as the assembler reports them."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        arch = "sm_90a" if chip == 90 else "sm_80"
        options = ["-v", "--regAllocOptLevel=2", f"--gpu-name={arch}"]  # as Triton 3.7.1 calls it
        command = [triton.knobs.nvidia.ptxas.path, *options, str(path)]
        done = subprocess.run(
            [*command, "-o", f"{path}.o"], capture_output=True, text=True, check=True
        )
    registers = int(re.search(r"Used (\d+) registers", done.stderr)[1])
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    return registers, int(spilled[1]) + int(spilled[2])


def report(launches, chip):
    """One line a different launch: what it takes on the chip, checked against its limits."""
    lines = {}
    for kernel, args, kwargs in launches:
        ptx, shared = compiled(kernel, args, kwargs, chip)
        if ptx in lines:
            continue
        name = kernel.__name__
        registers, spilled = resources(ptx, chip)
        lines[ptx] = f"sm_{chip} {name}: {registers} registers, {shared} bytes shared"
        assert spilled == 0, f"{lines[ptx]}, {spilled} bytes spilled"
        assert shared <= SHARED_BYTES[chip], lines[ptx]
        product = name in ("logits_kernel", "update_kernel")
        tensors = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        narrow = any(value.dtype == torch.bfloat16 for value in tensors)
        instructions = {found[1] for found in TENSOR_CORES.finditer(ptx)}
        lines[ptx] += f", {' '.join(instructions) or 'no tensor cores'}"
        assert bool(instructions) == (product and narrow), lines[ptx]
        if chip == 90 and narrow and name == "logits_kernel":
            assert instructions == {"wgmma.mma_async"}, lines[ptx]
        assert "tf32" not in ptx, lines[ptx]
    return list(lines.values())


def sweep(chip, batch, dim, dtype, shift, wish):
    """Compiles what a sweep, and its recomputation, of a problem launches."""
    from mpsoftmax.kernels import triton_sweep
    from mpsoftmax.kernels.problem import weigh

    asked = awkward(batch, 512, dim, dtype, shift, wish, least_gap=0.0)

    def action():
        swept = triton_sweep.sweep(asked, want_pull=True, keep_bytes=0)
        out = torch.empty(512, dim)
        triton_sweep.class_gradient(swept, weigh(swept, swept.total), 0, 512, out)

    return report(recorded([triton_sweep], action), chip)


def update(chip, dim, dtype, rule, batch=256):
    """Compiles the class gradient with update of rows chosen by an index."""
    from mpsoftmax.kernels import triton_sweep, triton_update
    from mpsoftmax.kernels.problem import weigh

    asked = awkward(batch, 512, dim, dtype, 3.0)
    states = (torch.zeros(1024, dim),) * (1 if rule == "sgd" else 2)
    names = ("lr", "momentum", "beta1", "beta2", "eps", "weight_decay")

    def action():
        swept = triton_sweep.sweep(asked, want_pull=True, keep_bytes=2**40)
        triton_update.update_rows(
            swept,
            weigh(swept, swept.total),
            OwnPulls(asked.features.float(), torch.ones(batch), asked.own),
            Rows(torch.zeros(1024, dim), states, torch.arange(0, 1024, 2)),
            rule,
            dict.fromkeys(names, 0.25),
            torch.ones(512, dtype=torch.int64),
        )

    launches = recorded([triton_sweep, triton_update], action)
    launches = [launch for launch in launches if launch[0].__name__ == "update_kernel"]
    assert len(launches) == 1
    return report(launches, chip)


def names_in(lines):
    return {line.split()[1].rstrip(":") for line in lines}


@pytest.mark.parametrize("chip", [80, 90])
@pytest.mark.parametrize("shift", [3.0, None], ids=["constant", "maximum"])
@pytest.mark.parametrize(
    ("batch", "dtype", "wish"),
    [
        (256, torch.bfloat16, "nothing"),
        pytest.param(2048, torch.bfloat16, "nothing", marks=pytest.mark.slow),
        pytest.param(64, torch.bfloat16, "nothing", marks=pytest.mark.slow),
        *(pytest.param(256, torch.bfloat16, wish, marks=pytest.mark.slow) for wish in WISHES),
        pytest.param(2048, torch.bfloat16, "all", marks=pytest.mark.slow),
        pytest.param(2048, torch.bfloat16, "kept", marks=pytest.mark.slow),
        pytest.param(32, torch.float32, "nothing", marks=pytest.mark.slow),
        pytest.param(32, torch.float32, "all", marks=pytest.mark.slow),
        pytest.param(256, torch.float32, "all", marks=pytest.mark.slow),
        pytest.param(256, torch.float32, "nothing", marks=pytest.mark.slow),
        # Batches that are no multiple of 16 are other code: narrower loads, no asynchronous copies of E.
        pytest.param(250, torch.bfloat16, "nothing", marks=pytest.mark.slow),
        pytest.param(250, torch.bfloat16, "all", marks=pytest.mark.slow),
        pytest.param(2049, torch.bfloat16, "all", marks=pytest.mark.slow),
    ],
)
def test_sweep(compiler, chip, shift, batch, dtype, wish):
    lines = compiler.run(
        sweep, chip=chip, batch=batch, dim=512, dtype=dtype, shift=shift, wish=wish
    )
    print(*lines, sep="\n")
    fused = batch <= (1024 if dtype == torch.bfloat16 else 32)
    expected = {"prepare_kernel", "logits_kernel" if fused else "entries_kernel"}
    assert names_in(lines) == expected | ({"entries_kernel"} if shift is None else set())


@pytest.mark.parametrize("chip", [80, 90])
@pytest.mark.parametrize(
    ("dim", "dtype", "rule"),
    [
        (512, torch.bfloat16, "sgd"),
        pytest.param(512, torch.float32, "sgd", marks=pytest.mark.slow),
        pytest.param(512, torch.bfloat16, "adamw", marks=pytest.mark.slow),
        pytest.param(512, torch.float32, "adamw", marks=pytest.mark.slow),
        pytest.param(256, torch.bfloat16, "sgd", marks=pytest.mark.slow),
        pytest.param(256, torch.bfloat16, "adamw", marks=pytest.mark.slow),
        pytest.param(128, torch.bfloat16, "sgd", marks=pytest.mark.slow),
        pytest.param(128, torch.bfloat16, "adamw", marks=pytest.mark.slow),
        pytest.param(256, torch.float32, "adamw", marks=pytest.mark.slow),
        pytest.param(128, torch.float32, "adamw", marks=pytest.mark.slow),
    ],
)
def test_update(compiler, chip, dim, dtype, rule):
    print(*compiler.run(update, chip=chip, dim=dim, dtype=dtype, rule=rule), sep="\n")


@pytest.mark.slow
@pytest.mark.parametrize("chip", [80, 90])
@pytest.mark.parametrize("dim", [256, 512])
@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_update_of_a_batch_of_any_size(compiler, chip, dim, rule):
    case = {"dim": dim, "dtype": torch.bfloat16, "rule": rule, "batch": 250}
    print(*compiler.run(update, chip=chip, **case), sep="\n")
