import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("mpsoftmax/kernels/native.cpp")
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
]


class BuildLibrary(build_ext):
    """Builds a plain shared library: no module that Python could import, so no Python headers either.

    By g++ and anew each time: setuptools would take the compiler that built Python, and an old object file.
    """

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".lib.so"

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        compiler = (os.environ.get("CXX") or shutil.which("g++") or "g++").split()
        define = f'-DSOURCE_DIGEST="{hashlib.sha256(NATIVE.read_bytes()).hexdigest()}"'
        with tempfile.TemporaryDirectory() as folder:
            compiled = str(Path(folder) / "native.o")
            try:
                subprocess.run(
                    [*compiler, *FLAGS, define, "-c", str(NATIVE), "-o", compiled], check=True
                )
                # Without -fopenmp: its functions are found in the runtime that torch brings.
                subprocess.run([*compiler, "-shared", compiled, "-o", str(target)], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                self.warn(f"mpsoftmax goes without its compiled kernel for CPUs: {error}")


class PlatformWheel(bdist_wheel):
    """For this platform and every Python: the library knows none."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


# Everything else is in pyproject.toml. Namespace packages, because kernels/ (reached through the
# symlink mpsoftmax/kernels) has no __init__.py: an installed package named `kernels` must keep working.
builds = sys.platform == "linux" and NATIVE.exists()
setup(
    packages=find_namespace_packages(include=["mpsoftmax*"]),
    ext_modules=[Extension("mpsoftmax.kernels.native", [str(NATIVE)], optional=True)]
    if builds
    else [],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
