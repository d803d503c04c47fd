"""Which versions are here, and whether they are the ones that mpsoftmax and the configuration need."""

import importlib.metadata
import importlib.util
import platform
from pathlib import Path

import torch
import torch.cuda.nccl
from packaging.requirements import Requirement

from mpsoftmax.config import Config
from mpsoftmax.doctor.finding import Finding
from mpsoftmax.kernels import native_library

SECTION = "versions"
OPTIONAL = ("triton", "deepspeed", "timm", "transformers", "tensorboardX", "simplejpeg")


def versions(config: Config) -> list[Finding]:
    """Python, mpsoftmax, what it requires, what it can use, CUDA and its libraries."""
    return [
        Finding(SECTION, "python", platform.python_version()),
        Finding(
            SECTION, "system", f"{platform.system()} {platform.release()} {platform.machine()}"
        ),
        package("mpsoftmax"),
        *(required(requirement) for requirement in requirements()),
        *(optional(name, wanted_by(name, config)) for name in OPTIONAL),
        compiled(config),
        *cuda(),
    ]


def requirements() -> list[Requirement]:
    """Of mpsoftmax itself, without extras."""
    try:
        texts = importlib.metadata.requires("mpsoftmax") or []
    except importlib.metadata.PackageNotFoundError:
        texts = []
    found = [Requirement(text) for text in texts]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def version_of(name: str) -> str | None:
    """An installed package's version."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package(name: str) -> Finding:
    """A package that need not be installed to be here."""
    return Finding(SECTION, name, version_of(name) or "not installed, imported from its folder")


def required(requirement: Requirement) -> Finding:
    """A package that mpsoftmax cannot do without."""
    name, version = requirement.name, version_of(requirement.name)
    if version is None:
        return Finding(SECTION, name, "missing", f"pip install '{requirement}'")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(SECTION, name, version, f"pip install '{requirement}'")
    return Finding(SECTION, name, version)


def optional(name: str, wanted: str) -> Finding:
    """A package that some settings need."""
    version = version_of(name)
    if version is None and wanted:
        return Finding(SECTION, name, "not installed", f"pip install {name}, for {wanted}")
    return Finding(SECTION, name, version or "not installed (optional)")


def wanted_by(name: str, config: Config) -> str:
    """The setting that needs an optional package; empty where none does."""
    door = config.backbone.name.partition(":")[0]
    engine = config.train.engine
    engine = engine if isinstance(engine, str) else engine.get("kind")
    needs = {
        "triton": config.head.kernel == "triton" and "head.kernel: triton",
        "timm": door == "timm" and f"backbone.name: {config.backbone.name}",
        "transformers": door == "transformers" and f"backbone.name: {config.backbone.name}",
        "tensorboardX": config.track.tensorboard and "track.tensorboard: true",
        "simplejpeg": config.data.decoder == "simplejpeg" and "data.decoder: simplejpeg",
        "deepspeed": engine == "deepspeed" and "train.engine: deepspeed",
    }
    return needs[name] or ""


def compiled(config: Config) -> Finding:
    """Whether the compiled kernel for rows on a CPU is here; without it they take longer."""
    reason = native_library.obstacle()
    if reason is None:
        return Finding(SECTION, "kernel for CPUs", "native (compiled)")
    cure = "build it, for head.kernel: native" if config.head.kernel == "native" else ""
    return Finding(SECTION, "kernel for CPUs", f"blocked; native {reason}", cure)


def cuda() -> list[Finding]:
    """CUDA, cuDNN, NCCL and the driver, or why GPUs are not used."""
    driver = Path("/proc/driver/nvidia/version")
    if torch.version.cuda is None:
        cure = "install a build of torch with CUDA" if driver.exists() else ""
        return [Finding(SECTION, "CUDA", "torch is built without it", cure)]
    if not torch.cuda.is_available():
        cure = "install the NVIDIA driver, or give the container its GPUs (--gpus all)"
        return [Finding(SECTION, "CUDA", f"{torch.version.cuda}, but no GPU is usable", cure)]
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    words = driver.read_text().split() if driver.exists() else []
    numbers = [word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit()]
    return [
        Finding(SECTION, "CUDA", torch.version.cuda),
        Finding(SECTION, "cuDNN", str(torch.backends.cudnn.version())),
        Finding(SECTION, "NCCL", nccl),
        Finding(SECTION, "NVIDIA driver", numbers[0] if numbers else "unknown"),
    ]
