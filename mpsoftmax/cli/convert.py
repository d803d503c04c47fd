"""`mpsoftmax convert`."""

import argparse
from pathlib import Path

from mpsoftmax.cli.arguments import Commands, add_reader, count, reader_options


def add(commands: Commands) -> argparse.ArgumentParser:
    """`convert SOURCE DESTINATION` and its options."""
    convert = commands.add_parser(
        "convert",
        help="data sets into other formats; configs, backbones and checkpoints of arcface_torch",
        description="What SOURCE is decides what is made of it. A data set (folder, .tar, .rec, .arrow, "
        ".parquet, a list of paths, WebDataset shards) is copied into another format; image bytes, order and "
        "labels are kept. A config of arcface_torch (.py) becomes a configuration of ours (.yaml); its state "
        "dict of a backbone (.pth, .pt) a checkpoint that evaluate, embed, export and backbone.start_from "
        "open; a folder of its checkpoint_gpu_*.pt, or of rank_*_softmax_weight.pt, a run folder that "
        "resumes with any number of ranks. With --to arcface_torch a run of ours becomes such a folder. "
        "docs/migration.md shows each.",
        epilog="""examples:
  mpsoftmax convert faces.rec faces.arrow
  mpsoftmax convert 'train-*.parquet' faces.tar --number-classes --regroup
  mpsoftmax convert train.lst@images/ faces.rec
  mpsoftmax convert configs/ms1mv3_r50.py faces.yaml --world 8

exit status: 0 written, complete; 2 a mistake in what was given: nothing was written""",
    )
    convert.add_argument(
        "source",
        help="data set (folder, .tar, .rec, .arrow, .parquet, list of paths, pattern of shards, glyphs, "
        "synthetic); arcface_torch's config, backbone or folder; a run",
    )
    convert.add_argument(
        "destination",
        help="what to write: nothing may be there; for data a new folder, or a file named .tar, .rec, .arrow "
        "or .parquet",
    )
    convert.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="settings of the configuration made"
    )
    data = convert.add_argument_group("data sets")
    data.add_argument(
        "--style", choices=["auto", "insightface", "im2rec"], default="auto", help="of .rec"
    )
    data.add_argument("--regroup", action="store_true", help="order the images by class first")
    data.add_argument(
        "--number-classes", action="store_true", help="name classes by their zero-padded index"
    )
    add_reader(data)
    theirs = convert.add_argument_group("arcface_torch")
    theirs.add_argument(
        "--world",
        type=count,
        metavar="N",
        help="GPUs: of the old run, by which batch_size counts (default: 1, or as many as there are "
        "files); with --to, files to write",
    )
    theirs.add_argument(
        "--config", metavar="FILE", help="what a checkpoint was trained with: theirs (.py) or ours"
    )
    theirs.add_argument("--to", choices=["arcface_torch"], help="write a run of ours for them")
    return convert


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Convert, and say what was written."""
    from mpsoftmax.migrate.shards import holds_classifier

    source = Path(options.source)
    if options.to is not None:
        return write_theirs(options, source)
    if source.suffix == ".py":
        return config(options, source)
    if source.suffix in (".pth", ".pt"):
        return backbone(options, source)
    if holds_classifier(source):
        return classifier(options, source)
    return data_set(options)


OF_DATA = ("style", "regroup", "number_classes", "under", "reader")
"""Arguments for data sets alone."""


def refuse(options: argparse.Namespace, what: str, *names: str) -> None:
    """Raise ValueError for an argument that means nothing here."""
    for name in names:
        value = getattr(options, name)
        if value and (name, value) != ("style", "auto"):
            word = name if name == "overrides" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{word}: {value}; not used for {what}")


def config(options: argparse.Namespace, source: Path) -> int:
    """Their config into ours."""
    from mpsoftmax.migrate.configs import write_config
    from mpsoftmax.migrate.tables import as_table

    refuse(options, "a config", "config", *OF_DATA)
    destination = Path(options.destination)
    made = write_config(source, destination, options.world or 1, options.overrides)
    print(as_table(made.rows))
    print(f"{destination}: written for {options.world or 1} GPU(s) of the old run (--world)")
    print(f"next: mpsoftmax train {destination}")
    return 0


def backbone(options: argparse.Namespace, source: Path) -> int:
    """Their backbone into a checkpoint directory."""
    from mpsoftmax.migrate.backbones import convert_backbone

    refuse(options, "a backbone", "config", "world", *OF_DATA)
    net = convert_backbone(source, Path(options.destination), options.overrides)
    print(
        f"{options.destination}: {net.name}, embedding_dim {net.embedding_dim}, images "
        f"{net.image_size[0]} x {net.image_size[1]}; every tensor fits"
    )
    print(f"next: mpsoftmax evaluate {options.destination} --data PAIRS.bin, or")
    print(f"      mpsoftmax train CONFIG backbone.start_from={options.destination}")
    return 0


def classifier(options: argparse.Namespace, source: Path) -> int:
    """Their checkpoint into a run folder."""
    from mpsoftmax.migrate.classifiers import convert_classifier

    refuse(options, "a checkpoint", *OF_DATA)
    destination = Path(options.destination)
    made = convert_classifier(
        source,
        destination,
        config_file=None if options.config is None else Path(options.config),
        world=options.world,
        overrides=options.overrides,
    )
    rows = ", ".join(made.carried) or "no optimiser rows"
    print(
        f"{destination}: {made.num_classes} classes x {made.embedding_dim} from {made.files} files, with "
        f"{rows}; optimiser state of {made.momenta} backbone parameters; goes on at step {made.step}"
    )
    for note in made.notes:
        print(f"note: {note}")
    print(f"next: mpsoftmax train {destination / 'config.yaml'}")
    return 0


def write_theirs(options: argparse.Namespace, source: Path) -> int:
    """A run of ours into their checkpoint."""
    from mpsoftmax.migrate.arcface_output import write_checkpoints

    refuse(options, "--to arcface_torch", "config", "overrides", *OF_DATA)
    written = write_checkpoints(str(source), Path(options.destination), options.world or 1)
    for line in written:
        print(line)
    return 0


def data_set(options: argparse.Namespace) -> int:
    """A data set into another format."""
    from mpsoftmax.data.convert import convert

    refuse(options, "a data set", "config", "world", "overrides")
    converted = convert(
        options.source,
        options.destination,
        style=options.style,
        regroup=options.regroup,
        number_classes=options.number_classes,
        **reader_options(options),
    )
    print(
        f"{converted.path}: {converted.format}, {converted.num_images} images, "
        f"{converted.num_classes} classes"
    )
    print(f"next: mpsoftmax inspect {converted.path}")
    return 0
