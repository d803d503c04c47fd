"""`mpsoftmax clean`."""

import argparse
from pathlib import Path

from mpsoftmax.cli.arguments import (
    Commands,
    add_nproc,
    add_reader,
    add_trust_code,
    reader_options,
    reader_words,
)
from mpsoftmax.cli.ranks import spawn, wants_ranks

KINDS = ("label", "two_clusters", "near_duplicate", "identity")


def add(commands: Commands) -> argparse.ArgumentParser:
    """`clean MODEL DATA OUT_FOLDER`, `clean --apply TABLE DATA OUT` and their options."""
    clean = commands.add_parser(
        "clean",
        help="find label errors, near-duplicates and split identities; apply what a person has reviewed",
        usage="mpsoftmax clean MODEL DATA OUT_FOLDER [options]\n"
        "       mpsoftmax clean --apply TABLE DATA OUT.view.json [--under PATH] [--reader KEY=VALUE]",
        description="Writes OUT_FOLDER/findings.csv and findings.html. After a person has changed the column "
        "action or deleted lines, --apply makes a small view of the data set, without copying an image, that "
        "data.train and every command opens.",
        epilog="""examples:
  mpsoftmax clean runs/faces faces.tar review/ --mirror

exit status: 0 written; 1 a rank was lost; 2 a mistake in what was given: nothing was written""",
    )
    clean.add_argument("paths", nargs="+", metavar="PATH", help=argparse.SUPPRESS)
    clean.add_argument("--apply", metavar="TABLE", help="a reviewed findings.csv")
    clean.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="DATA",
        help="another data set whose identities are looked for in this one; may be repeated",
    )
    clean.add_argument(
        "--find",
        nargs="+",
        choices=KINDS,
        default=list(KINDS),
        help="what to look for (default: all)",
    )
    clean.add_argument(
        "--mirror", action="store_true", help="average with the embedding of the mirror image"
    )
    add_reader(clean)
    add_nproc(clean)
    add_trust_code(clean)
    return clean


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Find, or apply."""
    if options.apply is not None:
        return run_apply(options)
    if len(options.paths) != 3:
        raise ValueError(f"{len(options.paths)} paths; allowed: MODEL DATA OUT_FOLDER")
    if wants_ranks(options):
        return spawn(options.nproc, given)
    return run_find(options)


def run_apply(options: argparse.Namespace) -> int:
    """Write the view."""
    from mpsoftmax.clean.apply import apply_table
    from mpsoftmax.data.open import open_images

    if len(options.paths) != 2:
        raise ValueError(
            f"{len(options.paths)} paths with --apply TABLE; allowed: DATA OUT.view.json"
        )
    for name, unset in (("other", []), ("find", list(KINDS)), ("mirror", False), ("nproc", None)):
        if getattr(options, name) != unset:
            raise ValueError(f"--{name}: {getattr(options, name)}; not used with --apply")
    source, out = options.paths
    images = open_images(source, **reader_options(options))
    view = apply_table(options.apply, source, images, out)
    before, after = len(images.class_names), len(view.class_names)
    print(f"{out}: {len(view)} of {len(images)} images, {after} of {before} classes")
    return 0


def run_find(options: argparse.Namespace) -> int:
    """Look, and write the table and the pictures."""
    from mpsoftmax.clean.find import find, set_names
    from mpsoftmax.clean.finding import write_findings
    from mpsoftmax.clean.page import write_page
    from mpsoftmax.comm import connected
    from mpsoftmax.data.open import open_images
    from mpsoftmax.models import open_model
    from mpsoftmax.train.duplicates import write_duplicates

    model_path, source, out = options.paths
    folder = Path(out)
    table, page = folder / "findings.csv", folder / "findings.html"
    with connected(3600.0) as comm:
        if any(comm.share(table.exists() or page.exists())):
            raise ValueError(f"{folder} holds findings already; allowed: a new folder")
        model = open_model(model_path, comm=comm, trust_code=options.trust_code)
        images = comm.together(lambda: open_images(source, **reader_options(options)))
        sources = [source, *options.other]
        names = set_names(sources)
        others = [
            (name, comm.together(lambda one=one: open_images(one)))
            for name, one in zip(names[1:], options.other, strict=True)
        ]
        found = find(
            model,
            images,
            others=others,
            name=names[0],
            mirror=options.mirror,
            kinds=options.find,
            comm=comm,
        )

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            if found.sets is not None:
                write_duplicates(folder / "identities.csv", found.between, found.sets)
            write_page(page, images, found.listed)
            write_findings(table, found.listed)

        comm.together(lambda: write() if comm.rank == 0 else None)
    if comm.rank == 0:
        for kind, actions in found.counts().items():
            said = ", ".join(f"{count} {action}" for action, count in sorted(actions.items()))
            print(f"{kind:<15} {sum(actions.values()):>6}  {said}")
        if found.sets is not None:
            print(f"between data sets: {len(found.between)}: {folder / 'identities.csv'}")
        print(
            f"look at {page}, change {table}, then: mpsoftmax clean --apply {table} {source} OUT.view.json"
            f"{reader_words(options)}"
        )
    return 0
