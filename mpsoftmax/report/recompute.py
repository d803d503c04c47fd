"""RUN/report/ made again from the newest checkpoint: for runs that kept nothing, or were stopped."""

from dataclasses import replace
from pathlib import Path

from mpsoftmax.comm import Comm
from mpsoftmax.data.union import Union
from mpsoftmax.models import open_model
from mpsoftmax.track.protocol import Evaluation
from mpsoftmax.track.run_record import CLASSES, FOLDER, REPLICATES, write_evaluation, write_json
from mpsoftmax.train.build import build_head
from mpsoftmax.train.class_quality import class_quality
from mpsoftmax.train.datasets import names_within, sizes_of
from mpsoftmax.train.duplicates import merge_listed, with_known_pairs
from mpsoftmax.train.evaluation import Evaluator
from mpsoftmax.train.inputs import open_in_turn
from mpsoftmax.train.start import start_from


def recompute(folder: Path, comm: Comm, *, trust_code: bool = False) -> None:
    """Judge the sets of data.eval and look at the classes; collective.

    Classes that training linked count as separate; those that head.baskets.merge names do not.

    Args:
        folder: The run folder.
        comm: The ranks that share the work.
        trust_code: See open_model.

    Raises:
        ValueError: no checkpoint, or the data is not where the configuration says.
    """
    model = open_model(folder, comm=comm, trust_code=trust_code)
    config = model.config
    config = replace(
        config,
        head=replace(config.head, start_from=str(model.source)),
        backbone=replace(config.backbone, start_from=None),
        track=replace(config.track, report=True),
    )
    images = open_in_turn(config, comm)
    several = images if isinstance(images, Union) else None
    for_head = comm.together(lambda: with_known_pairs(config, several))
    head = build_head(for_head, sizes_of(images), comm.world, model.device)
    merge_listed(config, several, head)
    start_from(config, model.net, head, comm, images)
    evaluator = Evaluator(config, names_within(images), comm, model.device)
    comm.together(evaluator.open_all)
    for line in evaluator.run(model.net, head):
        if comm.rank == 0:
            name = line["set"]
            found = Evaluation(
                step=model.step,
                name=name,
                figures={key: value for key, value in line.items() if key != "set"},
                curves=evaluator.curves[name],
                pairs=evaluator.pairs[name],
            )
            (folder / FOLDER).mkdir(exist_ok=True)
            write_evaluation(folder / FOLDER, found, num_bootstrap=REPLICATES)
    samples = model.step * config.train.batch_size
    tree = class_quality(config, images, model.net, head, comm, step=model.step, samples=samples)
    if comm.rank == 0:
        write_json(folder / FOLDER / CLASSES, tree)
