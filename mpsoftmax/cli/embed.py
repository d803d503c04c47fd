"""`mpsoftmax embed`."""

import argparse
import sys

from mpsoftmax.cli.arguments import (
    Commands,
    add_nproc,
    add_reader,
    add_trust_code,
    count,
    reader_options,
)
from mpsoftmax.cli.ranks import spawn, wants_ranks

PATIENCE_S = 3600.0
"""Ranks wait for each other after every part, and the slowest may read from a slow disk."""


def add(commands: Commands) -> argparse.ArgumentParser:
    """`embed MODEL DATA OUT` and its options."""
    embed = commands.add_parser(
        "embed",
        help="embed a data set into a Parquet file",
        description="Columns name, label, class_name, embedding (unit length), norm. Interrupted, the same "
        "command goes on where it stopped; the file does not depend on that, nor on the number of ranks.",
        epilog="""examples:
  mpsoftmax embed runs/faces photos/ photos.parquet --mirror

exit status: 0 written, complete; 1 a rank was lost; 2 a mistake in what was given, or an image that
  cannot be decoded: what was embedded stays, and the same command goes on""",
    )
    embed.add_argument("model", help="run folder, a checkpoint in it, a .safetensors or a .onnx")
    embed.add_argument(
        "data",
        help="folder (with or without class folders), .tar, .rec, .arrow, .parquet, pattern of shards, .bin, "
        "LIST@FOLDER-OR-TAR of pairs or of labelled images, glyphs, synthetic",
    )
    embed.add_argument("out", help="a new .parquet file")
    embed.add_argument(
        "--mirror", action="store_true", help="average with the embedding of the mirror image"
    )
    embed.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="what an image that cannot be decoded does (default stop; skip lists it in OUT.skipped.json)",
    )
    embed.add_argument("--batch-size", type=count, default=64, metavar="N", help="default 64")
    embed.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes a rank that decode (default: as in training)",
    )
    add_reader(embed)
    add_nproc(embed)
    add_trust_code(embed)
    return embed


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Embed; any number of ranks gives the same file."""
    if not options.out.lower().endswith(".parquet"):
        raise ValueError(f"OUT: {options.out}; allowed: a name ending in .parquet")
    if wants_ranks(options):
        return spawn(options.nproc, given)
    from mpsoftmax.comm import connected
    from mpsoftmax.embedding import embed_to_parquet, open_to_embed
    from mpsoftmax.models import open_model

    with connected(PATIENCE_S) as comm:
        model = open_model(options.model, comm=comm, trust_code=options.trust_code)
        images = comm.together(lambda: open_to_embed(options.data, **reader_options(options)))
        done = embed_to_parquet(
            model,
            images,
            options.out,
            mirror=options.mirror,
            on_error=options.on_error,
            batch_size=options.batch_size,
            workers=options.workers,
            comm=comm,
            progress=show if sys.stderr.isatty() else None,
        )
    if comm.rank == 0:
        went_on = f", {done.num_resumed} of them from before" if done.num_resumed else ""
        print(f"{done.path}: {done.num_images - len(done.skipped)} embeddings{went_on}")
        if done.skipped:
            print(f"{len(done.skipped)} images skipped: {done.path}.skipped.json")
    return 0


def show(done: int, total: int) -> None:
    """A line that counts up."""
    print(f"\r{done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
