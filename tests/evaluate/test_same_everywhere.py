"""Embeddings and figures do not depend on the number of ranks and on the batch size."""

import numpy as np
import pytest
import torch

from mpsoftmax.backbones.small import Small
from mpsoftmax.comm import Comm
from mpsoftmax.evaluate.embed import embed
from mpsoftmax.evaluate.identification import identify
from mpsoftmax.evaluate.retrieval import retrieve
from mpsoftmax.evaluate.verification import verify

BATCHES = (16, 60, 250)


class Pictures:
    """Noisy pictures 16 x 16 of classes of 20; decoded already."""

    def __init__(self, num):
        rng = np.random.default_rng(0)
        self.labels = np.arange(num) // 20
        self.class_names = [str(k) for k in range(num // 20 + 1)]
        means = rng.integers(60, 196, (num // 20 + 1, 16, 16, 3))[self.labels]
        noise = rng.normal(0, 12, means.shape)
        self.pixels = np.clip(means + noise, 0, 255).astype(np.uint8)

    def __len__(self):
        return len(self.labels)

    def image(self, index):
        return self.pixels[index]

    def name(self, index):
        return f"picture {index}"


def embedded(num, batch_size):
    torch.manual_seed(0)
    net = Small(embedding_dim=32, image_size=(16, 16), widths=(8, 16), depths=(1, 1))
    comm = Comm()
    return embed(
        net,
        Pictures(num),
        size=(16, 16),
        batch_size=batch_size,
        rank=comm.rank,
        world=comm.world,
        gather=comm.all_gather_rows,
        together=comm.together,
    )


def figures(rows, labels):
    """Of all three protocols, to 4 digits."""
    own = np.arange(len(labels))
    gallery = own % 20 < 2
    known = gallery & (labels % 5 > 0)
    probes = np.flatnonzero(~gallery)[::4]
    searched = identify(rows[known], labels[known], rows[probes], labels[probes])
    draw = np.random.default_rng(1).integers(0, len(labels), (4000, 2))
    draw[::2, 1] = draw[::2, 0] // 20 * 20 + draw[::2, 1] % 20
    draw = draw.clip(max=len(labels) - 1)
    similarity = (rows[draw[:, 0]].double() * rows[draw[:, 1]].double()).sum(1).numpy()
    pairs = verify(similarity, labels[draw[:, 0]] == labels[draw[:, 1]], num_bootstrap=0)
    found = {
        **retrieve(rows, labels, rows, labels, own=own, recalls=(1, 5)).values(),
        **searched.values(),
    }
    found |= {"accuracy": pairs.accuracy, "auc": pairs.auc}
    return {name: round(value, 4) for name, value in found.items()}


@pytest.mark.parametrize(
    "num", [400, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_ranks_and_batches_do_not_matter(ranks, num):
    labels = Pictures(num).labels
    whole, expected = None, None
    for batch_size in BATCHES:
        for world in (1, 2, 3):
            each = ranks.run(embedded, world, num=num, batch_size=batch_size)
            assert all(torch.equal(each[0], other) for other in each[1:])
            if whole is None:
                whole, expected = each[0], figures(each[0], labels)
                assert 0.02 < expected["mAP_at_R"] < 0.99
                continue
            cosines = (each[0].double() * whole.double()).sum(1)
            assert (cosines - 1).abs().max() < 1e-5
            if not torch.equal(each[0], whole):
                assert figures(each[0], labels) == expected
