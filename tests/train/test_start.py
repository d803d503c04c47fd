"""Starting from another run: its backbone, its class rows, at another world size and storage."""

import pytest
import torch
from small_runs import settings, train

from mpsoftmax.comm import Comm
from mpsoftmax.train.loop import Trainer

SAMPLED = ("head.candidates={kind: uniform, rate: 0.5}",)


def state_at_start(folder, overrides):
    """Backbone, rows, momentum and position of a run that has not made a step."""
    trainer = Trainer(settings(folder, *overrides), Comm())
    net = {name: value.clone() for name, value in trainer.net.state_dict().items()}
    everyone = torch.arange(trainer.head.num_classes)
    rows = trainer.head.class_rows(everyone)
    trainer.log.close()
    moments = [value for name, value in trainer.head.state_dict().items() if "momentum" in name]
    quiet = all(float(getattr(m, "to_local", lambda m=m: m)().abs().sum()) == 0 for m in moments)
    return trainer.step, net, rows, quiet and not trainer.engine.optimizer.state


def rows_of(folder, overrides=()):
    trainer = Trainer(settings(folder, *overrides), Comm())
    rows = trainer.head.class_rows(torch.arange(trainer.head.num_classes))
    net = {name: value.clone() for name, value in trainer.net.state_dict().items()}
    trainer.log.close()
    return net, rows


@pytest.mark.parametrize("storage", ["device", "mapped"])
@pytest.mark.parametrize("centres", [(), ("head.weights={kind: sub_centres, num: 2}",)])
def test_rows_and_backbone(ranks, tmp_path, storage, centres):
    old = (*SAMPLED, *centres, f"head.storage={storage}", "backbone.options.norm=batch")
    ranks.run(train, 2, folder=tmp_path / "old", overrides=old)
    net, rows = ranks.run(rows_of, 2, folder=tmp_path / "old", overrides=old)[0]
    for world, other in ((3, "device"), (1, "mapped")):
        new = (
            *SAMPLED, *centres, f"head.storage={other}", "backbone.options.norm=batch",
            f"head.start_from={tmp_path / 'old'}",
            f"backbone.start_from={tmp_path / 'old' / 'checkpoints' / 'step-10'}",
        )  # fmt: skip
        folder = tmp_path / f"new{world}"
        for step, started, loaded, fresh in ranks.run(
            state_at_start, world, folder=folder, overrides=new
        ):
            assert step == 0
            assert fresh
            assert torch.equal(loaded, rows)
            assert all(torch.equal(started[name], value) for name, value in net.items())


def test_learned_rows_become_class_centres(ranks, tmp_path):
    """IR-Softmax from a learned table: every class counts as seen from the first step on."""
    ranks.run(train, 2, folder=tmp_path / "old")
    _, rows = ranks.run(rows_of, 2, folder=tmp_path / "old")[0]
    new = ("head.weights=class_centres", f"head.start_from={tmp_path / 'old'}")
    _, loaded = ranks.run(rows_of, 2, folder=tmp_path / "new", overrides=new)[0]
    torch.testing.assert_close(loaded, torch.nn.functional.normalize(rows, dim=1))
    ranks.run(train, 2, folder=tmp_path / "new", overrides=new)


def test_what_does_not_fit_is_refused(ranks, tmp_path):
    ranks.run(train, 1, folder=tmp_path / "old")

    def refused(message, *overrides):
        with pytest.raises(AssertionError, match=message):
            ranks.run(state_at_start, 2, folder=tmp_path / "new", overrides=overrides)

    old = tmp_path / "old"
    refused("head.start_from: .*nowhere: no such folder", f"head.start_from={tmp_path}/nowhere")
    refused(
        "head.start_from: checkpoint .* has 23 classes; allowed: 24",
        f"head.start_from={old}", "data.synthetic={num_classes: 24, images_per_class: 4}",
    )  # fmt: skip
    refused(
        "backbone.start_from: .*shape", f"backbone.start_from={old}", "backbone.embedding_dim=8"
    )
    refused("head.start_from: .*shape", f"head.start_from={old}", "backbone.embedding_dim=8")
