"""A trained backbone with what it needs to embed images as in training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsoftmax.comm import Comm
from mpsoftmax.config import Config, from_tree
from mpsoftmax.data.given import GivenImage, GivenImages
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.models.onnx_file import OnnxNet, open_onnx
from mpsoftmax.models.safetensors_file import check_fits, open_safetensors
from mpsoftmax.models.trust import check_trusted
from mpsoftmax.train.build import build_net
from mpsoftmax.train.checkpoint import check_undamaged, checkpoint_of, read_state
from mpsoftmax.train.evaluation import embed_as_configured
from mpsoftmax.train.inputs import training_device
from mpsoftmax.train.state import load_backbone, read_backbone


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A backbone and its preprocessing.

    Attributes:
        net: images float [b, 3, H, W] in [-1, 1] -> raw embeddings [b, D], on ``device``.
        config: Of the training; its data section is the preprocessing.
        source: The checkpoint directory or file it comes from.
        step: Of the training.
        device: Where the net is.
        header: What an exported file says of itself (header.py); empty for a run.
    """

    net: nn.Module
    config: Config
    source: Path
    step: int
    device: torch.device
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> bytes:
        """What tells the model apart beside its tensors: an .onnx file's digest, else nothing."""
        return self.net.digest if isinstance(self.net, OnnxNet) else b""

    def embed(
        self,
        images: ImageSet | Sequence[GivenImage],
        *,
        mirror: bool,
        normalise: bool = True,
        comm: Comm | None = None,
        batch_size: int = 64,
    ) -> Tensor:
        """Embeddings float32 [n, D] of all images, on every rank, on the CPU; collective.

        Args:
            images: What to embed, n > 0: a set, or a list of image files, encoded images or RGB pixels uint8
                [H, W, 3].
            mirror: Add the embedding of the mirror image before normalising; for things that look the
                same in a mirror (faces, people, not characters).
            normalise: To unit length; else as the net gives them, an image's and its mirror image's added.
            comm: The ranks that share the work; None: this process alone.
            batch_size: Images at a time; the result does not depend on it but for rounding.

        Raises:
            ValueError: no images, or one that cannot be decoded.
        """
        if not isinstance(images, ImageSet):
            images = GivenImages(images)
        return embed_as_configured(
            self.net,
            images,
            self.config,
            comm or Comm(),
            self.device,
            mirror=mirror,
            normalise=normalise,
            batch_size=batch_size,
        )


def open_model(
    path: str | Path, *, comm: Comm | None = None, trust_code: bool = False
) -> TrainedModel:
    """Open a trained backbone; collective.

    Args:
        path: Run folder (its latest checkpoint), a checkpoint directory in it, or a .safetensors or .onnx
            file that `mpsoftmax export` wrote.
        comm: The ranks that open it together; None: this process alone.
        trust_code: Import the backbone that the checkpoint names by package.module:callable.

    Raises:
        ValueError: no such model, a damaged one, or a backbone that is code without ``trust_code``.
    """
    comm = comm or Comm()
    file = Path(path)
    if file.suffix.lower() in (".safetensors", ".onnx"):
        return comm.together(lambda: open_file(file, trust_code))
    checkpoint = comm.together(lambda: checkpoint_of("model", str(path), comm))
    check_undamaged(checkpoint, comm)
    state = comm.together(lambda: read_state(checkpoint))
    config = from_tree(state["config"])
    check_trusted(config, "model", trust_code)
    device = training_device()
    net = build_net(config).to(device)
    if comm.connected:
        load_backbone(checkpoint, net)
    else:
        tensors = read_backbone(checkpoint)
        check_fits(checkpoint, tensors, net)
        net.load_state_dict(tensors)
    return TrainedModel(net.eval(), config, checkpoint, state["step"], device)


def open_file(path: Path, trust_code: bool) -> TrainedModel:
    """An exported model, by its suffix."""
    if not path.is_file():
        raise ValueError(f"model: {path}: no such file")
    if path.suffix.lower() == ".onnx":
        net, config, tree = open_onnx(path)
    else:
        net, config, tree = open_safetensors(path, trust_code=trust_code)
    device = training_device()
    return TrainedModel(net.to(device).eval(), config, path, tree["step"], device, tree)
