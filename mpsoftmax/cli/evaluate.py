"""`mpsoftmax evaluate`."""

import argparse
import json
from pathlib import Path

from mpsoftmax.cli.arguments import Commands, add_json, add_nproc, add_trust_code
from mpsoftmax.cli.ranks import spawn, wants_ranks


def add(commands: Commands) -> argparse.ArgumentParser:
    """`evaluate MODEL --data PATH` and its options."""
    evaluate = commands.add_parser(
        "evaluate",
        help="judge a trained model",
        description="Verification accuracy, TAR at FAR, AUC and EER with confidence intervals.",
        epilog="""examples:
  mpsoftmax evaluate runs/faces --data lfw.bin --json lfw.json
  mpsoftmax evaluate runs/faces --data pairs.csv@images.tar --nproc 2

exit status: 0; 1 a rank was lost; 2 a mistake in what was given""",
    )
    evaluate.add_argument("model", help="run folder, or one of its checkpoints/step-N")
    evaluate.add_argument(
        "--data",
        required=True,
        help="glyphs-open, glyphs-closed, a .bin file, or a pair list as LIST or LIST@FOLDER-OR-TAR",
    )
    evaluate.add_argument("--protocol", choices=["verification"], default="verification")
    evaluate.add_argument(
        "--thresholds",
        choices=["exact", "insightface"],
        default="exact",
        help="exact: over all similarities; insightface: its grid, for comparison with arcface_torch",
    )
    add_json(evaluate, "result")
    add_trust_code(evaluate)
    evaluate.add_argument("--baseline", action="store_true", help="also judge raw pixels")
    add_nproc(evaluate)
    return evaluate


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Judge; any number of ranks gives the same figures."""
    if wants_ranks(options):
        return spawn(options.nproc, given)
    from mpsoftmax.comm import connect, disconnect
    from mpsoftmax.judge.judge import judge

    comm = connect(600.0)
    try:
        report = judge(
            options.model,
            options.data,
            comm,
            with_baseline=options.baseline,
            trust_code=options.trust_code,
            thresholds=options.thresholds,
        )
    finally:
        disconnect()
    if comm.rank == 0:
        print(report.text)
        if options.json:
            Path(options.json).write_text(json.dumps(report.values, indent=1) + "\n")
    return 0
