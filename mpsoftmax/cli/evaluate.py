"""`mpsoftmax evaluate`."""

import argparse
import json
from pathlib import Path

from mpsoftmax.cli.arguments import (
    Commands,
    add_json,
    add_nproc,
    add_reader,
    add_trust_code,
    count,
    reader_options,
    share,
    whole,
)
from mpsoftmax.cli.ranks import spawn, wants_ranks

PROTOCOLS = ("verification", "identification", "retrieval", "reid", "template")


def add(commands: Commands) -> argparse.ArgumentParser:
    """`evaluate MODEL --data PATH` and its options."""
    evaluate = commands.add_parser(
        "evaluate",
        help="judge a trained model",
        description="Judge a model by a protocol, with 95 % confidence intervals; compare two models.",
        epilog="""examples:
  mpsoftmax evaluate runs/faces --data lfw.bin --json lfw.json
  mpsoftmax evaluate runs/faces --data lfw.bin --against runs/older
  mpsoftmax evaluate runs/faces --data pairs.csv@images.tar --nproc 2

exit status: 0; 1 a rank was lost; 2 a mistake in what was given""",
    )
    evaluate.add_argument(
        "model",
        help="run folder, one of its checkpoints/step-N, a .safetensors, a .onnx, or a .parquet file of "
        "embeddings",
    )
    evaluate.add_argument(
        "--data",
        metavar="PATH",
        help="glyphs-open, glyphs-closed, a .bin file, a pair list as LIST or LIST@FOLDER-OR-TAR, a labelled "
        "folder or archive, a re-ID set, an IJB folder; left out: the labels of given embeddings",
    )
    evaluate.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="default: what the data is made for, where that is clear",
    )
    evaluate.add_argument(
        "--against", metavar="MODEL", help="a second model: differences with paired tests"
    )
    _add_choices(evaluate)
    add_json(evaluate, "result")
    add_trust_code(evaluate)
    add_nproc(evaluate)
    return evaluate


def _add_choices(evaluate: argparse.ArgumentParser) -> None:
    """What single protocols take."""
    evaluate.add_argument(
        "--thresholds",
        choices=["exact", "insightface"],
        default="exact",
        help="verification: over all similarities, or insightface's grid, to compare with arcface_torch",
    )
    evaluate.add_argument(
        "--baseline", action="store_true", help="verification: also judge raw pixels"
    )
    evaluate.add_argument(
        "--gallery", metavar="PATH", help="identification, retrieval: search this labelled set"
    )
    evaluate.add_argument(
        "--distractors",
        metavar="PATH",
        help="add images of nobody to the gallery; reid: 'images' for Market-1501's folder of them",
    )
    evaluate.add_argument(
        "--gallery-images",
        type=count,
        default=1,
        metavar="N",
        help="identification: images of a person in the gallery (default 1)",
    )
    evaluate.add_argument(
        "--unknown",
        type=share,
        metavar="SHARE",
        help="identification: share of the people kept out of the gallery (default 0.2; 0 with --gallery)",
    )
    evaluate.add_argument(
        "--fusion",
        choices=["max", "mean"],
        default="max",
        help="identification: of several gallery images the most similar one, or their mean",
    )
    evaluate.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="add the mirror image's embedding (default: for all but glyphs)",
    )
    evaluate.add_argument(
        "--no-norm", action="store_true", help="template: faces weigh the same whatever their norm"
    )
    evaluate.add_argument(
        "--no-score", action="store_true", help="template: leave the detector's score out"
    )
    evaluate.add_argument(
        "--backend", choices=["torch", "faiss"], default="torch", help="retrieval: what searches"
    )
    evaluate.add_argument(
        "--skip-missing", action="store_true", help="leave out images without a given embedding"
    )
    evaluate.add_argument(
        "--bootstrap",
        type=whole,
        metavar="N",
        help="replicates behind intervals (default 1000; 0, which is none, for more than a million items)",
    )
    add_reader(evaluate)


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Judge; any number of ranks gives the same figures."""
    if wants_ranks(options):
        return spawn(options.nproc, given)
    from mpsoftmax.comm import connected
    from mpsoftmax.judge.judge import judge
    from mpsoftmax.judge.options import Options

    with connected(600.0) as comm:
        report = judge(
            options.model,
            options.data,
            comm,
            protocol=options.protocol,
            against=options.against,
            options=Options(
                thresholds=options.thresholds,
                with_baseline=options.baseline,
                gallery=options.gallery,
                distractors=options.distractors,
                gallery_images=options.gallery_images,
                unknown=options.unknown,
                fusion=options.fusion,
                mirror=options.mirror,
                by_norm=not options.no_norm,
                by_score=not options.no_score,
                backend=options.backend,
                reader=reader_options(options),
                num_bootstrap=options.bootstrap,
            ),
            trust_code=options.trust_code,
            skip_missing=options.skip_missing,
        )
    if comm.rank == 0:
        print(report.text)
        if options.json:
            Path(options.json).write_text(json.dumps(report.values, indent=1) + "\n")
    return 0
