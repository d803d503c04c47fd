"""The training loop: net and head on one thread, the head used as in the README."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from data import Benchmark
from heads import build_head
from linking import Linking
from net import augmented, build_net, embedded, prepared
from torch import Tensor, nn

MEANS_BLOCK = 512


@dataclass
class Trained:
    """What a run leaves."""

    net: nn.Module
    head: Any
    labels: Tensor
    """int64 [n], labels trained on: merged ones for the oracle."""
    num_steps: int
    last_loss: float = math.nan
    head_cpu_s: float = 0.0
    """CPU seconds in forward, backward and step() of the head, without passes over the data."""
    candidate_rows: list[int] = field(default_factory=list)
    """Of every step: class rows that may be negatives."""
    negatives: list[float] = field(default_factory=list)
    """Of every step: the same times the share of the samples that have an inter-class term (DSoftmaxB)."""
    linking: Linking | None = None

    def class_means(self, pixels: Tensor, **arguments: bool) -> Any:
        """The head's class means by a pass over the training images; arguments of head.class_means."""
        means = self.head.class_means(**arguments)
        features = embedded(self.net, pixels)
        labels = self.labels.split(MEANS_BLOCK)
        for block, own in zip(features.split(MEANS_BLOCK), labels, strict=True):
            means.add(block, own)
        return means


def train(benchmark: Benchmark, settings: Mapping[str, Any], seed: int) -> Trained:
    """Train a net and a head as settings say (claims.py has the defaults).

    With `restarts` the same training is done again from the beginning, from the classes that the one before
    merged.
    """
    run = _train_once(benchmark, settings, seed, None)
    for _ in range(settings.get("restarts", 0)):
        run = _train_once(benchmark, settings, seed, run.head.merged)
    return run


def _train_once(
    benchmark: Benchmark, settings: Mapping[str, Any], seed: int, merged: Tensor | None
) -> Trained:
    torch.manual_seed(seed)
    labels = benchmark.train.labels
    if settings["labels"] == "merged":
        assert benchmark.identities is not None
        labels = benchmark.identities[labels]
    net = build_net(settings["widths"], settings["halving"], settings["dim"]).train()
    head = build_head(settings, benchmark, int(labels.max()) + 1, seed)
    if merged is not None:
        head.merge_classes(merged)
    num_steps = min(
        settings["epochs"] * len(labels) // settings["batch"],
        settings.get("max_steps", 10**9),
    )
    run = Trained(net, head, labels, num_steps)
    if "linking" in settings:
        run.linking = Linking(head, settings["linking"])
    _loop(run, benchmark.train.pixels, settings, seed)
    return run


def _loop(run: Trained, pixels: Tensor, settings: Mapping[str, Any], seed: int) -> None:
    optimizer = torch.optim.SGD(
        run.net.parameters(),
        lr=settings["lr"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
    )
    groups = list(optimizer.param_groups)
    if run.head.weights.learned:
        groups += run.head.optimizer.param_groups
    highest = [group["lr"] for group in groups]
    random = torch.Generator().manual_seed(seed)
    refresh_every = refresh_interval(settings)
    for step, chosen in enumerate(batches(len(pixels), settings["batch"], random)):
        if step == run.num_steps:
            break
        for group, lr in zip(groups, highest, strict=True):
            group["lr"] = lr * schedule(step, run.num_steps, settings["warmup"])
        _passes(run, pixels, step, refresh_every)
        images = augmented(prepared(pixels[chosen]), settings["augment"], random)
        features = run.net(images)
        optimizer.zero_grad()
        features.backward(_head_step(run, features, run.labels[chosen]))
        optimizer.step()


def _passes(run: Trained, pixels: Tensor, step: int, refresh_every: int) -> None:
    """Passes over the training data that are due before this step."""
    if refresh_every and step % refresh_every == 0:
        run.head.set_centres(run.class_means(pixels))
    if run.linking is not None and run.linking.is_due(step):
        run.linking.update(run.class_means(pixels, by_label=True))


def _head_step(run: Trained, features: Tensor, labels: Tensor) -> Tensor:
    """One step of the head; the gradient of the features, [b, D]."""
    own = features.detach().requires_grad_()
    start = time.process_time()
    loss = run.head(own, labels)
    loss.backward()
    rows, chosen = len(run.head.candidate_ids()), run.head.last_chosen
    run.candidate_rows.append(rows)
    run.negatives.append(rows * (1.0 if chosen is None else len(chosen) / len(labels)))
    run.head.step()
    run.head_cpu_s += time.process_time() - start
    run.last_loss = float(loss.detach())
    if not math.isfinite(run.last_loss):
        raise FloatingPointError(f"loss is {run.last_loss} at step {len(run.candidate_rows)}")
    assert own.grad is not None
    return own.grad


def refresh_interval(settings: Mapping[str, Any]) -> int:
    """Steps between exact passes for class centres; 0: none."""
    name, arguments = settings["head"].get("weights", ["learned", {}])
    return arguments.get("refresh_every", 0) if name == "ClassCentres" else 0


def batches(num: int, size: int, random: torch.Generator) -> Iterator[Tensor]:
    """Positions int64 [size]: an endless stream of permutations, one after the other."""
    stream = torch.empty(0, dtype=torch.int64)
    while True:
        while len(stream) < size:
            stream = torch.cat([stream, torch.randperm(num, generator=random)])
        yield stream[:size]
        stream = stream[size:]


def schedule(step: int, num_steps: int, warmup: float) -> float:
    """Factor of the learning rate: linear over the first share `warmup`, then a cosine to zero."""
    num_warm = max(1, round(warmup * num_steps))
    if step < num_warm:
        return (step + 1) / num_warm
    return 0.5 * (1 + math.cos(math.pi * (step - num_warm) / max(1, num_steps - num_warm)))
