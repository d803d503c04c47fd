"""A trained backbone with what it needs to embed images as in training."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mpsoftmax.comm import Comm
from mpsoftmax.config import Config, from_tree
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.evaluate.embed import embed
from mpsoftmax.train.build import build_net
from mpsoftmax.train.checkpoint import check_undamaged, checkpoint_of, read_state
from mpsoftmax.train.inputs import training_device
from mpsoftmax.train.precision import autocast_dtype
from mpsoftmax.train.state import load_backbone


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A backbone and its preprocessing.

    Attributes:
        net: images float [b, 3, H, W] in [-1, 1] -> raw embeddings [b, D], on ``device``.
        config: Of the training; its data section is the preprocessing.
        source: The checkpoint directory it comes from.
        step: Of the training.
        device: Where the net is.
    """

    net: nn.Module
    config: Config
    source: Path
    step: int
    device: torch.device

    def embed(
        self,
        images: ImageSet,
        *,
        mirror: bool,
        normalise: bool = True,
        comm: Comm | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Embeddings float32 [n, D] of all images, on every rank, on the CPU; collective.

        Args:
            images: What to embed, n > 0.
            mirror: Add the embedding of the mirror image before normalising; for things that look the
                same in a mirror (faces, people, not characters).
            normalise: To unit length; else as the net gives them, an image's and its mirror image's added.
            comm: The ranks that share the work; None: this process alone.
            batch_size: Images at a time; the result does not depend on it but for rounding.

        Raises:
            ValueError: no images, or one that cannot be decoded.
        """
        comm = comm or Comm()
        data = self.config.data
        return embed(
            self.net,
            images,
            size=data.image_size,
            decoder=data.decoder,
            crop=data.crop,
            batch_size=batch_size,
            workers=data.workers,
            flip=mirror,
            normalise=normalise,
            device=self.device,
            dtype=autocast_dtype(self.config),
            rank=comm.rank,
            world=comm.world,
            gather=comm.all_gather_rows,
            keep_pace=comm.barrier,
        )


def open_model(
    path: str | Path, *, comm: Comm | None = None, trust_code: bool = False
) -> TrainedModel:
    """Open the backbone of a run; collective.

    Args:
        path: Run folder (its latest checkpoint), or a checkpoint directory in it.
        comm: The ranks that open it together; None: this process alone.
        trust_code: Import the backbone that the checkpoint names by package.module:callable.

    Raises:
        ValueError: no such model, a damaged checkpoint, or a backbone that is code without ``trust_code``.
    """
    comm = comm or Comm()
    checkpoint = comm.together(lambda: checkpoint_of("model", str(path), comm))
    check_undamaged(checkpoint, comm)
    state = comm.together(lambda: read_state(checkpoint))
    config = from_tree(state["config"])
    door, colon, _ = config.backbone.name.partition(":")
    if colon and door not in ("timm", "transformers") and not trust_code:
        raise ValueError(
            f"model: its backbone is {config.backbone.name!r}: code named by a checkpoint is run only with "
            "--trust-code"
        )
    device = training_device()
    net = build_net(config).to(device)
    load_backbone(checkpoint, net)
    return TrainedModel(net, config, checkpoint, state["step"], device)
