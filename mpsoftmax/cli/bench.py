"""`mpsoftmax bench`."""

import argparse

from mpsoftmax.cli.arguments import Commands, count

WHAT = {
    "head": "a full head step against the bare matrix products and plain autograd softmax",
    "memory": "peak memory of a step beyond class rows, optimiser rows and E",
    "scaling": "CPU time of a step with classes, batch, ranks and sampling rate",
    "collectives": "how often ranks talk, how much, for how long",
    "loader": "images a core decodes and augments a second, by format",
}
DTYPES = ("float32", "bfloat16", "float64")
KERNELS = ("auto", "blocked", "native", "reference")
CANDIDATES = ("all", "uniform", "uniform_blocks", "dsoftmax_k")


def add(commands: Commands) -> argparse.ArgumentParser:
    """`bench WHAT` and its options."""
    bench = commands.add_parser(
        "bench",
        help="measure on this machine",
        description="Interleaved repetitions on one thread; CPU seconds (user and system) and wall time, "
        "medians with least and largest. A line is appended to OUT/bench_WHAT.csv, a plot written beside it.",
        epilog="""examples:
  mpsoftmax bench head --classes 100000 --dim 512 --batch 256
  mpsoftmax bench loader --data faces.tar --images 2000

exit status: 0; 2 a mistake in what was given""",
    )
    what = bench.add_subparsers(dest="what", required=True, metavar="WHAT")
    for name, text in WHAT.items():
        example = f"example: mpsoftmax bench {name} --repeat 3"
        command = what.add_parser(name, help=text, description=text, epilog=example)
        command.add_argument("--out", default="benchmarks/results", help="folder of results")
        command.add_argument("--repeat", type=count, default=7, help="repetitions (default 7)")
        if name == "loader":
            add_loader(command)
        else:
            add_head(command)
        if name == "head":
            command.add_argument(
                "--incumbent", metavar="PATH", help="insightface's recognition/arcface_torch"
            )
        if name in ("scaling", "collectives"):
            add_sizes(command, "--world", "ranks", 1, 2)
    return bench


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Measure on one thread."""
    import importlib

    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        importlib.import_module(f"mpsoftmax.bench.{options.what}").run(options)
    finally:
        torch.set_num_threads(threads)
    return 0


def add_sizes(command: argparse.ArgumentParser, flag: str, text: str, *default: int) -> None:
    """One or several whole numbers."""
    command.add_argument(flag, type=count, nargs="+", default=list(default), help=text)


def add_head(command: argparse.ArgumentParser) -> None:
    """What is measured of a head. Of several sizes every combination; `scaling` varies one at a time."""
    add_sizes(command, "--classes", "classes over all ranks", 100_000)
    add_sizes(command, "--dim", "embedding dimension", 512)
    add_sizes(command, "--batch", "samples over all ranks", 256)
    command.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["float32"], help="of the products"
    )
    command.add_argument("--candidates", choices=CANDIDATES, default="all")
    command.add_argument(
        "--rate", type=float, nargs="+", default=[0.1], help="share of the classes drawn"
    )
    command.add_argument("--untouched", choices=["frozen", "lazy"], default="frozen")
    command.add_argument("--row-dtype", choices=DTYPES, default="float32")
    command.add_argument("--storage", choices=["device", "host", "mapped"], default="device")
    command.add_argument("--optimizer", choices=["sgd", "adamw"], default="sgd")
    command.add_argument("--kernel", choices=KERNELS, default="auto")
    command.add_argument("--e-budget-bytes", type=int, default=2**30, help="of kept exponentials")


def add_loader(command: argparse.ArgumentParser) -> None:
    """What is read."""
    command.add_argument(
        "--data",
        metavar="PATH",
        help="image folder, .tar, .rec, .arrow, .parquet, list or shards; default: synthetic JPEGs",
    )
    add_sizes(command, "--images", "images read", 2000)
    command.add_argument("--size", type=count, default=112, help="pixels a side")
    command.add_argument("--augment", default="face", help="none, face, reid or glyph")
