import hashlib
import os
import sys
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext

NATIVE = Path("kernels/native.cpp")


class BuildLibrary(build_ext):
    """Builds a plain shared library: no module that Python could import, so no Python headers either."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".lib.so"


def native() -> Extension:
    """The compiled half of mpsoftmax.kernels.native. Where no compiler is, mpsoftmax goes without."""
    return Extension(
        "mpsoftmax.kernels.native",
        [str(NATIVE)],
        define_macros=[("SOURCE_DIGEST", f'"{hashlib.sha256(NATIVE.read_bytes()).hexdigest()}"')],
        # OpenMP's functions are not linked: they are found in the runtime that torch brings.
        extra_compile_args=[
            "-std=c++17",
            "-O3",
            "-g0",
            "-fopenmp",
            "-ffp-contract=off",
            "-fno-math-errno",
            "-fno-trapping-math",
        ],
        optional=True,
    )


# Everything else is in pyproject.toml. Namespace packages, because kernels/ (reached through the
# symlink mpsoftmax/kernels) has no __init__.py: an installed package named `kernels` must keep working.
setup(
    packages=find_namespace_packages(include=["mpsoftmax*"]),
    ext_modules=[native()] if sys.platform == "linux" else [],
    cmdclass={"build_ext": BuildLibrary},
)
