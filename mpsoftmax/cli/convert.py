"""`mpsoftmax convert`."""

import argparse

from mpsoftmax.cli.arguments import Commands, add_reader, reader_options


def add(commands: Commands) -> argparse.ArgumentParser:
    """`convert SOURCE DESTINATION` and its options."""
    convert = commands.add_parser(
        "convert",
        help="copy a data set into another format",
        description="Between image folder, .tar, .rec, .arrow and .parquet; from lists and WebDataset. "
        "Image bytes, order and labels are kept.",
        epilog="""examples:
  mpsoftmax convert faces.rec faces.arrow
  mpsoftmax convert 'train-*.parquet' faces.tar --number-classes --regroup
  mpsoftmax convert train.lst@images/ faces.rec

exit status: 0 written, complete; 2 a mistake in what was given: nothing was written""",
    )
    convert.add_argument(
        "source",
        help="folder, .tar, .rec, .arrow, .parquet, list of paths, pattern of shards, glyphs or synthetic",
    )
    convert.add_argument(
        "destination", help="a new folder, or a file named .tar, .rec, .arrow or .parquet"
    )
    convert.add_argument(
        "--style", choices=["auto", "insightface", "im2rec"], default="auto", help="of .rec"
    )
    convert.add_argument("--regroup", action="store_true", help="order the images by class first")
    convert.add_argument(
        "--number-classes", action="store_true", help="name classes by their zero-padded index"
    )
    add_reader(convert)
    return convert


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Copy, and say what was written."""
    from mpsoftmax.data.convert import convert

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
