"""The number of ranks changes at every restart: which samples are consumed, and what is learned."""

import json

import pytest
import torch
from small_runs import Interrupted, losses, settings

from mpsoftmax.comm import Comm
from mpsoftmax.data.loader import Loader
from mpsoftmax.train.loop import Trainer

IMAGES, BATCH = 92, 12
EVERY = ("train.checkpoint_every=2", "train.steps=23", "data.augment=none")
WORLDS = ((4, 6), (3, 11), (2, 16), (1, 19), (4, None))
"""Ranks, and the step after which the run ends without a word; three epochs in all."""


def consumed(folder, overrides, stop_after):
    """A run that writes down which samples each step of this rank consumes."""
    trainer = Trainer(settings(folder, *overrides), Comm())
    step, samples, taken = trainer._step, Loader._samples, []
    path = folder.parent / f"consumed-{stop_after}-{trainer.comm.rank}.jsonl"

    def recorded(self, start, stop):
        out = samples(self, start, stop)
        taken.append((start, out.tolist()))
        return out

    def stepped(*arguments):
        if trainer.step == stop_after:
            raise Interrupted
        taken.clear()
        out = step(*arguments)
        with path.open("a") as file:
            file.write(json.dumps([trainer.step, *taken]) + "\n")
        return out

    Loader._samples, trainer._step = recorded, stepped
    try:
        trainer.run()
    except Interrupted:
        pass
    finally:
        Loader._samples = samples
        trainer.saver.close(30.0)
    return [json.loads(line) for line in path.read_text().splitlines()]


def history(runs):
    """(position, sample) of every step, as the run that counts took it: later runs redo what was lost."""
    steps = {}
    for results in runs:
        redone = {step for lines in results for step, *_ in lines}
        steps = {step: taken for step, taken in steps.items() if step not in redone}
        for lines in results:
            for step, *parts in lines:
                steps.setdefault(step, []).extend(
                    (start + offset, sample)
                    for start, ids in parts
                    for offset, sample in enumerate(ids)
                )
    return [pair for step in sorted(steps) for pair in sorted(steps[step])]


def test_no_sample_is_seen_twice_or_missed_in_an_epoch(ranks, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    runs = [
        ranks.run(consumed, world, folder=folder, overrides=EVERY, stop_after=stop)
        for world, stop in WORLDS
    ]
    taken = [len({step for lines in results for step, *_ in lines}) for results in runs]
    assert sum(taken) == 23 + 2  # steps 11 and 19 were lost behind a checkpoint and came again
    pairs = history(runs)
    assert [position for position, _ in pairs] == list(range(23 * BATCH))
    for epoch in range(3):
        seen = [sample for _, sample in pairs[epoch * IMAGES : (epoch + 1) * IMAGES]]
        assert sorted(seen) == list(range(IMAGES)), epoch
    (tmp_path / "one").mkdir()
    whole = ranks.run(consumed, 2, folder=tmp_path / "one" / "run", overrides=EVERY, stop_after=99)
    assert history([whole]) == pairs
    # Without batch statistics and sampling the world size changes the order of sums and nothing else.
    assert losses(folder) == pytest.approx(losses(tmp_path / "one" / "run"), rel=1e-4)
    assert len(losses(folder)) == 23
    assert torch.tensor(losses(folder)).isfinite().all()
