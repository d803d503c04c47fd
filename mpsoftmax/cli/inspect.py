"""`mpsoftmax inspect`."""

import argparse
import shlex
from pathlib import Path

from mpsoftmax.cli.arguments import Commands, add_reader, reader_options

DAMAGED = 1


def add(commands: Commands) -> argparse.ArgumentParser:
    """`inspect PATH` and its options."""
    inspect = commands.add_parser(
        "inspect",
        help="say what a data set or a run's checkpoints hold and what is wrong with them",
        description="Classes, images, class sizes, image sizes, problems. Of a run folder or a checkpoint: "
        "whether every file is what was written.",
        epilog="""examples:
  mpsoftmax inspect faces.tar
  mpsoftmax inspect train.lst@images/ --reader dialect=face2rec
  mpsoftmax inspect runs/faces

exit status: 0; 1 a checkpoint is damaged; 2 a mistake in what was given""",
    )
    inspect.add_argument(
        "path",
        help="folder, .tar, .rec, .arrow, .parquet, list of paths, pattern of shards, .bin, glyphs, "
        "synthetic, run or checkpoint",
    )
    inspect.add_argument(
        "--sample",
        type=int,
        default=10_000,
        metavar="N",
        help="images decoded (default 10000; -1: all)",
    )
    add_reader(inspect)
    return inspect


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Look; status 1 if a checkpoint is damaged."""
    from mpsoftmax.train.verify import checkpoints_in, report

    checkpoints = checkpoints_in(Path(options.path))
    if checkpoints:
        text, good = report(checkpoints)
        print(text)
        return 0 if good else DAMAGED
    from mpsoftmax.data.inspect import inspect

    sample = None if options.sample == -1 else options.sample
    found = inspect(options.path, sample=sample, **reader_options(options))
    print(found.render())
    if found.num_pairs is None and found.num_classes > 1:
        print(f"next: mpsoftmax train {shlex.quote(f'data.train={options.path}')} --dry-run")
    return 0
