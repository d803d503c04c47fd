"""A run of ours as arcface_torch would have left it: checkpoint_gpu_{rank}.pt for any number of GPUs.

One process reads the run; class rows and their optimiser rows must fit into memory. Rows that lazy steps left
behind are caught up first, and classes that were merged get the row that they share.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsoftmax.comm import Comm, local_rows
from mpsoftmax.config import Config, from_tree
from mpsoftmax.data.new_files import new_files
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.migrate.networks import NETWORKS
from mpsoftmax.migrate.shards import STATES, shard_sizes
from mpsoftmax.train.build import build_net, row_dtype
from mpsoftmax.train.checkpoint import check_undamaged, checkpoint_of, read_alone, read_state
from mpsoftmax.train.engines.protocol import OPTIMIZER
from mpsoftmax.train.parts import build_candidates, build_objective, build_row_rule, build_weights
from mpsoftmax.train.schedule import learning_rate_factor, warmup_steps
from mpsoftmax.train.state import load_backbone, load_head


def write_checkpoints(model: str, folder: Path, world: int) -> list[str]:
    """Write checkpoint_gpu_{rank}.pt of `world` GPUs, and model.pt, the backbone alone.

    Args:
        model: Run folder or checkpoint directory.
        folder: A new folder.
        world: Files; 1 holds the whole table.

    Returns:
        What to say.

    Raises:
        ValueError: no such checkpoint, or one whose classes have no row each as there.
    """
    comm = Comm()
    path = checkpoint_of("source", model, comm)
    check_undamaged(path, comm)
    state = read_state(path)
    config = from_tree(state["config"])
    net, head = build_net(config), head_of(config, state["num_classes"])
    load_backbone(path, net)
    load_head(path, head, comm)
    head.catch_up()
    whole = rows_of(head)
    common = progress(config, state)
    optimizer = read_alone(path, OPTIMIZER)
    low = 0
    with new_files(folder) as (partial,):
        partial.mkdir()
        for rank, size in enumerate(shard_sizes(head.num_classes, world)):
            part = {name: value[low : low + size].clone() for name, value in whole.items()}
            low += size
            file = {
                **common,
                "state_dict_backbone": net.state_dict(),
                "state_dict_softmax_fc": {"weight": part["weight"]},
                "state_optimizer": optimizer_state(config, net, optimizer, part, whole, state),
            }
            torch.save(file, partial / f"checkpoint_gpu_{rank}.pt")
        torch.save(net.state_dict(), partial / "model.pt")
    return said(config, folder, path, head, world, common)


def head_of(config: Config, num_classes: int) -> ModelParallelSoftmax:
    """A head of one process, to hold the rows.

    Raises:
        ValueError: a class has several rows.
    """
    weights = build_weights(config)
    if weights.num_centres > 1:
        raise ValueError(
            f"head.weights: {config.head.weights!r}; allowed: one row a class, as arcface_torch has"
        )
    return ModelParallelSoftmax(
        config.backbone.embedding_dim,
        num_classes,
        objective=build_objective(config),
        candidates=build_candidates(config),
        weights=weights,
        optimizer=build_row_rule(config),
        untouched=config.head.untouched,
        row_dtype=row_dtype(config.head),
        init_std=config.head.init_std,
        seed=config.train.seed,
    )


def rows_of(head: ModelParallelSoftmax) -> dict[str, Tensor]:
    """Rows, optimiser rows float32 [C, D] and updates int64 [C] of all classes."""
    shared = head.merged_classes.canonical(torch.arange(head.num_classes))
    tensors = head.state_dict()
    found = {name: local_rows(tensors[name])[shared] for name in head.row_names}
    return {n: v.float() if v.is_floating_point() else v for n, v in found.items()}


def progress(config: Config, state: dict[str, Any]) -> dict[str, Any]:
    """Epoch, iteration and schedule as train_v2.py and its lr_scheduler.py keep them."""
    train, step = config.train, state["step"]
    images = (state.get("data") or {}).get("num_images")
    epoch = state["samples"] // images if images else 0
    last = train.steps or 0
    iterations = step * train.accumulation
    rate = train.optimizer.lr * learning_rate_factor(train.schedule, step, max(1, last))
    schedule = {
        "total_iters": last * train.accumulation,
        "power": train.schedule.power,
        "warmup_iters": warmup_steps(train.schedule, last) * train.accumulation,
        "base_lrs": [train.optimizer.lr] * 2,
        "last_epoch": iterations,
        "_step_count": iterations + 1,
        "_get_lr_called_within_step": False,
        "_last_lr": [rate] * 2,
    }
    return {"epoch": epoch, "global_step": iterations, "state_lr_scheduler": schedule}


def optimizer_state(
    config: Config,
    net: nn.Module,
    of_net: dict[str, Tensor],
    part: dict[str, Tensor],
    whole: dict[str, Tensor],
    state: dict[str, Any],
) -> dict[str, Any]:
    """state_dict of the one optimiser that train_v2.py has: backbone first, class rows last."""
    train = config.train
    optimizer, names = train.optimizer, STATES[train.optimizer.kind]
    weight = nn.Parameter(part["weight"])
    groups = [{"params": list(net.parameters())}, {"params": [weight]}]
    rate, decay = optimizer.lr, optimizer.weight_decay
    if optimizer.kind == "sgd":
        made: torch.optim.Optimizer = torch.optim.SGD(
            groups, lr=rate, momentum=optimizer.momentum, weight_decay=decay
        )
    else:
        made = torch.optim.AdamW(groups, lr=rate, betas=optimizer.betas, weight_decay=decay)
    factor = learning_rate_factor(train.schedule, state["step"], max(1, train.steps or 0))
    for group in made.param_groups:
        group["initial_lr"], group["lr"] = rate, rate * factor
    for name, parameter in net.named_parameters():
        found = {k: of_net[f"{name}.{k}"] for k in (*names, "step") if f"{name}.{k}" in of_net}
        if found:
            made.state[parameter] = found
    if all(ours in part for ours in names.values()):
        made.state[weight] = {theirs: part[ours] for theirs, ours in names.items()}
        if optimizer.kind == "adamw":
            made.state[weight]["step"] = whole["row_step"].max().float()
    return made.state_dict()


def said(
    config: Config,
    folder: Path,
    path: Path,
    head: ModelParallelSoftmax,
    world: int,
    common: dict[str, Any],
) -> list[str]:
    """What was written, and what arcface_torch will not understand."""
    lines = [
        f"{folder}: checkpoint_gpu_0..{world - 1}.pt and model.pt from {path}: {head.num_classes} classes x "
        f"{head.embedding_dim}, epoch {common['epoch']}, iteration {common['global_step']}"
    ]
    if config.backbone.name not in {name for name, _ in NETWORKS.values()}:
        lines.append(f"note: arcface_torch has no backbone {config.backbone.name}")
    if config.train.schedule.kind != "polynomial":
        lines.append(
            f"note: its schedule is polynomial, this run's is {config.train.schedule.kind}"
        )
    return lines
