"""A small training as insightface's arcface_torch leaves it, written anew from its documented layout."""

from pathlib import Path

import torch

from mpsoftmax.backbones import build_backbone

NUM_CLASSES, DIM, SIZE = 23, 16, 16
SMALL = {"blocks": [1, 1, 1, 1], "scale": 1}
CONFIG = """from easydict import EasyDict as edict

config = edict()
config.margin_list = (1.0, 0.5, 0.0)
config.network = "mbf"
config.output = None
config.embedding_size = 16
config.sample_rate = 1.0
config.fp16 = False
config.batch_size = 4
config.lr = 0.1
config.rec = "synthetic"
config.num_classes = 23
config.num_image = 92
config.num_epoch = 4
config.warmup_epoch = config.num_epoch // 4
config.val_targets = []
"""
BASE = """from easydict import EasyDict as edict

config = edict()
config.margin_list = (1.0, 0.5, 0.0)
config.network = "r50"
config.resume = False
config.save_all_states = False
config.output = "ms1mv3_arcface_r50"
config.embedding_size = 512
config.sample_rate = 1
config.interclass_filtering_threshold = 0
config.fp16 = False
config.batch_size = 128
config.optimizer = "sgd"
config.lr = 0.1
config.momentum = 0.9
config.weight_decay = 5e-4
config.verbose = 2000
config.frequent = 10
config.dali = False
config.dali_aug = False
config.gradient_acc = 1
config.seed = 2048
config.num_workers = 2
config.wandb_key = "0123456789"
config.suffix_run_name = None
config.using_wandb = False
config.wandb_entity = "entity"
config.wandb_project = "project"
config.wandb_log_all = True
config.save_artifacts = False
config.wandb_resume = False
"""


def write_config(folder: Path, text: str = CONFIG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.py").write_text(BASE)
    path = folder / "small_mbf.py"
    path.write_text(text)
    return path


def net():
    torch.manual_seed(7)
    return build_backbone(
        "mobilefacenet", embedding_dim=DIM, image_size=(SIZE, SIZE), options=SMALL
    )


def shard_range(num_classes, world, rank):
    """insightface's rule: the first C mod W ranks hold one class more."""
    start = num_classes // world * rank + min(rank, num_classes % world)
    return start, start + num_classes // world + int(rank < num_classes % world)


def optimizer_of(kind, backbone, weight):
    groups = [{"params": list(backbone.parameters())}, {"params": [weight]}]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=5e-4)
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)


def write_checkpoints(
    folder: Path, world: int = 3, kind: str = "sgd", steps: int = 2, iterations: int | None = None
):
    """checkpoint_gpu_{rank}.pt of every rank after some steps on random gradients.

    Returns:
        Class rows, their optimiser rows by torch's names, backbone, and its optimiser state by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(NUM_CLASSES, DIM, generator=generator)
    pushes = torch.randn(steps, NUM_CLASSES, DIM, generator=generator)
    rows, states = [], []
    for rank in range(world):
        backbone = net()
        low, high = shard_range(NUM_CLASSES, world, rank)
        weight = torch.nn.Parameter(table[low:high].clone())
        optimizer = optimizer_of(kind, backbone, weight)
        same = torch.Generator().manual_seed(2)
        for step in range(steps):
            for parameter in backbone.parameters():
                parameter.grad = 0.01 * torch.randn(parameter.shape, generator=same)
            weight.grad = pushes[step, low:high]
            optimizer.step()
        checkpoint = {
            "epoch": 1,
            "global_step": 7 * steps if iterations is None else iterations,
            "state_dict_backbone": backbone.state_dict(),
            "state_dict_softmax_fc": {"weight": weight.detach()},
            "state_optimizer": optimizer.state_dict(),
            "state_lr_scheduler": {"total_iters": 28, "power": 1.0, "warmup_iters": 7},
        }
        torch.save(checkpoint, folder / f"checkpoint_gpu_{rank}.pt")
        rows.append(weight.detach())
        states.append(optimizer.state[weight])
    names = {parameter: name for name, parameter in backbone.named_parameters()}
    moments = {names[p]: dict(s) for p, s in optimizer.state.items() if p in names}
    keys = [key for key, value in states[0].items() if value.dim() == 2]
    of_rows = {key: torch.cat([state[key] for state in states]) for key in keys}
    return torch.cat(rows), of_rows, backbone.state_dict(), moments
