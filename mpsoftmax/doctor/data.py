"""What the configuration reads: data, decoders, fonts, credentials."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, features

from mpsoftmax.config import Config
from mpsoftmax.data.decode import DECODERS, check_decoder, decode
from mpsoftmax.data.font_files import OUTLINE_SUFFIXES, font_files
from mpsoftmax.data.shards import expand, is_pattern
from mpsoftmax.doctor.finding import Finding
from mpsoftmax.track.wandb_run import has_credentials

SECTION = "data and tracking"
MADE = ("glyphs", "synthetic", "glyphs-open", "glyphs-closed", "held-back")
"""Sets that are no file."""


def data(config: Config) -> list[Finding]:
    """Of this rank."""
    return [
        *paths(config),
        *(decoder(name, wanted=config.data.decoder == name) for name in DECODERS),
        formats(),
        fonts(config),
        tracking(config),
    ]


def paths(config: Config) -> list[Finding]:
    """Training and verification sets are where the configuration says."""
    datasets = config.data.datasets
    several = len(datasets) > 1
    named = [(f"data.train {one.name}" if several else "data.train", one.path) for one in datasets]
    for spec in config.data.eval:
        listed, _, holder = spec.partition("@")
        named += [("data.eval", path) for path in (listed, holder) if path]
    return [
        Finding(
            SECTION,
            name,
            path,
            "" if path in MADE or is_there(path) else "no such file or folder on this rank",
        )
        for name, path in named
    ]


def is_there(spec: str) -> bool:
    """Whether every file or folder that a name stands for exists."""
    if is_pattern(spec) and not Path(spec).exists():
        try:
            return bool(expand(spec))
        except ValueError:
            return False
    listed, _, holder = spec.partition("@")
    return Path(spec).exists() or (bool(holder) and Path(listed).exists() and Path(holder).exists())


def decoder(name: str, *, wanted: bool) -> Finding:
    """A JPEG is decoded to the size asked for."""
    label = f"decoder {name}"
    try:
        check_decoder(name)
    except ValueError as error:
        return Finding(SECTION, label, "not installed", str(error) if wanted else "")
    out = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(out, "jpeg")
    try:
        shape = decode(out.getvalue(), (8, 8), name).shape
    except Exception as error:  # a library that does not load says so in its own way
        return Finding(SECTION, label, "fails", f"{type(error).__name__}: {error}")
    good = shape == (8, 8, 3)
    return Finding(
        SECTION, label, "decodes JPEG" if good else f"gives {shape}", "" if good else "reinstall it"
    )


def formats() -> Finding:
    """What Pillow was built with."""
    built = [name for name in ("jpg", "zlib", "webp", "avif", "jpg_2000") if features.check(name)]
    turbo = "with" if features.check_feature("libjpeg_turbo") else "without"
    text = f"{', '.join(built)}; {turbo} libjpeg-turbo"
    missing = {"jpg", "zlib"} - set(built)
    return Finding(SECTION, "Pillow", text, "reinstall Pillow: no JPEG or PNG" if missing else "")


def fonts(config: Config) -> Finding:
    """Font files that glyphs are rendered from."""
    options = config.data.glyphs
    try:
        files = font_files(
            options.fonts,
            use_matplotlib=options.matplotlib_fonts,
            use_system=options.system_fonts,
        )
    except ValueError as error:
        return Finding(SECTION, "fonts", "not readable", f"data.glyphs.{error}")
    num = sum(path.name.lower().endswith(OUTLINE_SUFFIXES) for path in files)
    rendered = any(one.path == "glyphs" for one in config.data.datasets)
    cure = f"data.train: glyphs needs at least {options.min_fonts}: install fonts, or data.glyphs.fonts"
    few = rendered and num < options.min_fonts
    return Finding(SECTION, "fonts", f"{num} outline font files", cure if few else "")


def tracking(config: Config) -> Finding:
    """Whether W&B could log in; nothing of the credentials is shown."""
    mode, known = config.track.wandb, has_credentials()
    text = f"{mode}, credentials {'found' if known else 'not found'}"
    cure = "" if known or mode != "online" else "set WANDB_API_KEY, or track.wandb: offline"
    return Finding(SECTION, "track.wandb", text, cure)
