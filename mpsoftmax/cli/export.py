"""`mpsoftmax export`."""

import argparse

from mpsoftmax.cli.arguments import Commands, add_trust_code, count


def add(commands: Commands) -> argparse.ArgumentParser:
    """`export MODEL OUT` and its options."""
    export = commands.add_parser(
        "export",
        help="write a trained backbone as ONNX, safetensors or torch.export, or its class rows as Arrow",
        description="The suffix of OUT says the format. A graph (.onnx, .pt2) is compared with the backbone "
        "at batches of 1, 7 and 64 before it gets its name: a difference above 1e-5 is an error.",
        epilog="""examples:
  mpsoftmax export runs/faces faces.onnx --preprocessing inside

exit status: 0 written and compared; 2 a mistake in what was given, or a graph that differs:
  nothing was written""",
    )
    export.add_argument(
        "model", help="run folder, one of its checkpoints/step-N, or a .safetensors"
    )
    export.add_argument("out", help="a new .onnx, .safetensors, .pt2, or .arrow (class rows)")
    export.add_argument(
        "--preprocessing",
        choices=["beside", "inside"],
        default="beside",
        help="graphs: take floats in [-1, 1], or pixels uint8 that are normalised inside (crop and resize "
        "stay beside)",
    )
    export.add_argument(
        "--layout",
        choices=["nchw", "nhwc"],
        help="of the pixels with --preprocessing inside (default nchw)",
    )
    export.add_argument("--opset", type=count, help="of .onnx (default 20)")
    export.add_argument(
        "--figures",
        action="append",
        default=[],
        metavar="JSON",
        help="what mpsoftmax evaluate --json wrote, for the card of a .safetensors; may be repeated",
    )
    export.add_argument(
        "--no-names",
        action="store_true",
        help=".arrow: class numbers alone, where the training data are not at hand",
    )
    add_trust_code(export)
    return export


def run(options: argparse.Namespace, given: list[str]) -> int:
    """Write, and say what came of it."""
    from mpsoftmax.export import export
    from mpsoftmax.export.graph import OPSET
    from mpsoftmax.models.onnx_file import BESIDE, NCHW, NHWC

    inside = options.preprocessing == "inside"
    if options.layout and not inside:
        raise ValueError(f"--layout: {options.layout}; allowed with --preprocessing inside")
    if options.opset and not options.out.lower().endswith(".onnx"):
        raise ValueError(f"--opset: {options.opset}; allowed with .onnx")
    form = {"nhwc": NHWC}.get(options.layout, NCHW) if inside else BESIDE
    written = export(
        options.model,
        options.out,
        form=form,
        opset=options.opset or OPSET,
        figures=options.figures,
        names=not options.no_names,
        trust_code=options.trust_code,
    )
    print("\n".join(f"wrote {path}" for path in written.paths))
    if options.out.lower().endswith((".onnx", ".pt2")):
        print(f"largest difference from the backbone: {written.difference:.1e} of an embedding")
    return 0
