"""`mpsoftmax report`."""

import argparse
from pathlib import Path

from mpsoftmax.cli.arguments import Commands, add_nproc, add_trust_code
from mpsoftmax.cli.ranks import spawn, wants_ranks


def add(commands: Commands) -> argparse.ArgumentParser:
    """`report RUN ...` and its options."""
    report = commands.add_parser(
        "report",
        help="see what happened in a run, or compare runs",
        description="One HTML page without network: summary, evaluation with the hardest pairs, curves, "
        "classes, time, setup. Of several runs the same, overlaid, with differences to the first. Training "
        "writes the page of its own run when it ends.",
        epilog="""examples:
  mpsoftmax report runs/arcface runs/cosface --out compared.html

exit status: 0 written; 1 a rank was lost (--recompute); 2 a mistake in what was given""",
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    report.add_argument(
        "--out",
        metavar="FILE",
        help="the page; default: RUN/report.html of one run, report.html here of several",
    )
    report.add_argument(
        "--recompute",
        action="store_true",
        help="judge the newest checkpoint again, for what RUN/report/ lacks; needs the data",
    )
    add_trust_code(report)
    add_nproc(report)
    return report


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Write the page."""
    folders = [Path(name) for name in options.runs]
    if options.recompute:
        if wants_ranks(options):
            return spawn(options.nproc, given)
        from mpsoftmax.comm import connected
        from mpsoftmax.report.recompute import recompute

        with connected(600.0) as comm:
            for folder in folders:
                recompute(folder, comm, trust_code=options.trust_code)
        if comm.rank != 0:
            return 0
    from mpsoftmax.report import write_report

    usual = folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    print(write_report(folders, Path(options.out) if options.out else usual))
    return 0
