"""The training loop: one for every launcher and world size.

A step takes `train.batch_size` consecutive samples of the endless stream (docs/architecture.md), cut into
micro-batches, each cut into the ranks' shares. The position in the stream is the number of samples
consumed, so any world size continues where another stopped.
"""

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpsoftmax.comm import AgreedError, Comm
from mpsoftmax.config import Config, to_tree, to_yaml
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.loader import Batch, Loader
from mpsoftmax.data.order import share
from mpsoftmax.data.pixels import to_float
from mpsoftmax.data.union import Union
from mpsoftmax.track.log import Log
from mpsoftmax.track.profiler import Profiler
from mpsoftmax.track.step_clock import BACKBONE, UPDATE, StepClock
from mpsoftmax.train.build import (
    build_augment,
    build_head,
    build_net,
    build_optimizer,
    changed_settings,
)
from mpsoftmax.train.centres import DataPass, drift_of, refresh_every, share_buffers
from mpsoftmax.train.checkpoint import Checkpoints, read_state
from mpsoftmax.train.datasets import build_order, names_within, sizes_of
from mpsoftmax.train.duplicates import merge_listed, with_known_pairs
from mpsoftmax.train.evaluation import Evaluator
from mpsoftmax.train.identities import Identities
from mpsoftmax.train.inputs import describe_data, open_in_turn, total_steps, training_device
from mpsoftmax.train.schedule import learning_rate_factor
from mpsoftmax.train.start import start_from
from mpsoftmax.train.state import load_run_state, read_backbone, run_state


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    folder: Path
    steps: int
    evaluations: list[dict[str, Any]]


class Trainer:
    """One run of one configuration on one group of ranks.

    Args:
        config: The resolved configuration.
        comm: The ranks.

    Raises:
        ValueError: data, run folder or checkpoint do not fit the configuration; on all ranks alike.
    """

    def __init__(self, config: Config, comm: Comm) -> None:
        self.config, self.comm = config, comm
        self.folder = Path(config.run.dir)
        self.device = training_device()
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints", comm, config.train.keep_checkpoints
        )
        resume = self._open_folder()
        images = open_in_turn(config, comm)
        self.data = describe_data(images, comm)
        self.num_steps = total_steps(config, len(images))
        torch.manual_seed(config.train.seed)
        self.net = comm.together(lambda: build_net(config)).to(self.device)
        self.memory_format = (
            torch.channels_last if config.backbone.channels_last else torch.contiguous_format
        )
        self.net.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(config.train.optimizer, self.net)
        several = images if isinstance(images, Union) else None
        for_head = comm.together(lambda: with_known_pairs(config, several))
        self.head = build_head(for_head, sizes_of(images), comm.world, self.device)
        self.data_pass = DataPass(config, images, comm, self.device)
        self.identities = Identities(config, images, self.head, self.data_pass, self.folder, comm)
        torch.manual_seed(config.train.seed + 1 + comm.rank)  # dropout differs between ranks
        self.step, self.samples = 0, 0
        self.skipped: set[str] = set()
        if resume is not None:
            self._resume(resume)
        started = []
        if resume is None:
            started = start_from(config, self.net, self.head, comm)
            merge_listed(config, several, self.head)
        self.loader = Loader(
            images,
            build_order(config, images),
            size=config.data.image_size,
            decoder=config.data.decoder,
            crop=config.data.crop,
            augment=build_augment(config),
            seed=config.train.seed,
            workers=config.data.workers,
            max_corrupt=config.data.max_corrupt,
        )
        self.evaluator = Evaluator(config, names_within(images), comm, self.device)
        # A missing set is better found now than at the first evaluation.
        comm.together(self.evaluator.open_all)
        self.log = comm.together(self._open_log)
        self.clock = self._make_clock()
        comm.together(lambda: self.identities.open(self.step))
        self._describe(resume, started, images)

    def _open_folder(self) -> Path | None:
        """The checkpoint to continue from, the same for all ranks.

        Raises:
            ValueError: the folder holds a run that is not to be continued, or is not shared by all ranks.
        """

        def find() -> str | None:
            latest = self.checkpoints.latest()
            started = (self.folder / "metrics.jsonl").exists() or latest is not None
            if started and not self.config.run.resume:
                raise ValueError(
                    f"run.dir: {self.folder} already holds a run; allowed: a new folder, or run.resume=true"
                )
            return None if latest is None else latest.name

        found = self.comm.share(self.comm.together(find))
        if self.comm.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.comm.barrier()
        if len(set(found)) > 1 or not all(self.comm.share(self.folder.is_dir())):
            raise AgreedError(
                f"run.dir: {self.folder} is not the same folder on all ranks; allowed: one on a file system "
                "that all nodes share"
            )
        return None if found[0] is None else self.checkpoints.folder / found[0]

    def _resume(self, path: Path) -> None:
        state = self.comm.together(lambda: read_state(path))
        saved = state.get("data")
        if (
            saved != self.data
            and saved is not None
            and saved["num_classes"] == self.data["num_classes"]
        ):
            raise AgreedError(
                f"data.train: {self.data}; checkpoint {path} was trained on {saved}; allowed: the same "
                "images in the same order, or a new run.dir"
            )
        load_run_state(path, self.net, self.optimizer, self.head, self.comm)
        self.identities.load_state(state.get("linking"))
        self.step, self.samples = state["step"], state["samples"]

    def _open_log(self) -> Log:
        """config.yaml, and every sink of metrics: written once the run is known to fit."""
        if self.comm.rank == 0:
            replacement = self.folder / "config.yaml.new"
            replacement.write_text(to_yaml(self.config), encoding="utf-8")
            os.replace(replacement, self.folder / "config.yaml")
        return Log(
            self.config,
            self.folder,
            self.num_steps,
            self.step,
            self.comm.rank,
            world=self.comm.world,
            read_backbone=read_backbone,
        )

    def _make_clock(self) -> StepClock:
        phases, train = self.head.phases, self.config.train
        folder = self.folder / "profile"
        profiler = Profiler(train.profile, folder, self.comm.rank, self.device, phases)
        sizes = {"batch_size": train.batch_size, "num_steps": self.num_steps}
        return StepClock(phases, profiler, self.comm, self.device, **sizes)

    def _describe(self, resume: Path | None, started: list[str], images: ImageSet) -> None:
        for line in started:
            self.log.say(line)
        if resume is not None:
            self.log.say(f"resuming from {resume} at step {self.step}")
            for change in changed_settings(read_state(resume)["config"], to_tree(self.config)):
                self.log.say(f"  changed {change}")
        if self.step >= self.num_steps:
            self.log.say(
                f"nothing left to do: step {self.step} of {self.num_steps} is reached; raise train.steps, or "
                "choose another run.dir"
            )
        if isinstance(images, Union):
            for name, part in zip(images.names, images.parts, strict=True):
                self.log.say(f"  {name}: {len(part)} images, {len(part.class_names)} classes")
        self.log.say(
            f"{len(images)} images, {len(images.class_names)} classes, {self.comm.world} rank(s), "
            f"{self.device.type}; {self.num_steps} steps of {self.config.train.batch_size}; run folder "
            f"{self.folder}"
        )

    def run(self) -> Summary:
        """Train to the last step; evaluate and checkpoint as configured."""
        if self.config.backbone.compile:
            self.net.compile()  # in place: names of parameters stay
        net = self.comm.data_parallel(self.net)
        train, evaluations = self.config.train, []
        batches = iter(self.loader.stream(self._cuts()))
        unfinished = self.step < self.num_steps
        try:
            if self.step == 0 and refresh_every(self.head) is not None:
                self._refresh_centres()
            while self.step < self.num_steps:
                line = self._step(net, batches)  # type: ignore[arg-type]
                last = self.step == self.num_steps
                if due(refresh_every(self.head), self.step):
                    self._refresh_centres()
                if due(self.identities.every, self.step):
                    self.log.write(self.identities.link(self.step, self.net))
                if due(train.log_every, self.step) or last:
                    self.log.write({**resolved(line), "timing": self.clock.read(self.step)})
                if due(train.eval_every, self.step) or last:
                    evaluations = self._evaluate()
                if due(train.checkpoint_every, self.step) or last:
                    self._save()
            found = self.identities.list_duplicates(self.net) if unfinished else None
            if found is not None:
                self.log.say(found)
        finally:
            self.identities.close()
            batches.close()  # type: ignore[attr-defined]
            self.clock.close()
            self.log.close(self.step, sys.exception())
        return Summary(self.folder, self.step, evaluations)

    def _cuts(self) -> Iterator[tuple[int, int]]:
        """This rank's share of every micro-batch from here to the end, as stream positions."""
        size, parts = self.config.train.batch_size, self.config.train.accumulation
        for start in range(self.samples, self.samples + (self.num_steps - self.step) * size, size):
            for micro in range(parts):
                low, high = share(size, micro, parts)
                first, last = share(high - low, self.comm.rank, self.comm.world)
                yield start + low + first, start + low + last

    def _step(self, net: nn.Module, batches: Iterator[Batch]) -> dict[str, Any]:
        """One optimiser step over all micro-batches; returns its line of metrics (as tensors)."""
        self.clock.begin(self.step + 1)
        parts = [self._next(batches) for _ in range(self.config.train.accumulation)]
        self.clock.enter(BACKBONE)
        factor = self._set_learning_rates()
        loss = torch.zeros((), device=self.device)
        for number, (batch, weight) in enumerate(zip(parts, self._weights(parts), strict=True)):
            loss += self._backward(net, batch, weight, last=number == len(parts) - 1)
        self.clock.enter(UPDATE)
        norm = self._clip()
        self._check_finite(loss, norm)
        self.optimizer.step()
        self.head.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.samples += self.config.train.batch_size
        self.clock.end(self.step)
        return {
            "kind": "train",
            "step": self.step,
            "samples": self.samples,
            "loss": loss,
            "lr_factor": factor,
            **self.head.last_stats,
            **({} if norm is None else {"gradient_norm": norm}),
        }

    def _backward(self, net: nn.Module, batch: Batch, weight: float, *, last: bool) -> Tensor:
        """Forward and backward of one micro-batch; its share of the step's loss."""
        images = to_float(batch.images.to(self.device, non_blocking=True))
        images = images.to(memory_format=self.memory_format)
        labels = batch.labels.to(self.device, non_blocking=True)
        self.head.prefetch(labels)  # rows stored elsewhere are read beside the backbone
        # Gradients are reduced once a step, with the last micro-batch.
        local = isinstance(net, torch.nn.parallel.DistributedDataParallel) and not last
        with net.no_sync() if local else contextlib.nullcontext():  # type: ignore[operator]
            bf16 = self.config.train.precision == "bf16"
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
                features = net(images)
            loss = self.head(features.float(), labels) * weight
            loss.backward()
        return loss.detach().to(torch.float32)

    def _weights(self, parts: list[Batch]) -> list[float]:
        """Share of the step's valid samples in each micro-batch: their losses are means over those."""
        if len(parts) == 1:
            return [1.0]
        valid = torch.tensor([int((batch.labels >= 0).sum()) for batch in parts])
        counts = self.comm.all_reduce_sum(valid.to(self.device)).tolist()
        return [count / max(1, sum(counts)) for count in counts]

    def _check_finite(self, loss: Tensor, norm: Tensor | None) -> None:
        """Stop on all ranks before anything non-finite reaches a weight.

        Raises:
            ValueError: the loss or the clipped gradient's norm is not finite.
        """
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if value is not None and not math.isfinite(value.item()):
                raise AgreedError(
                    f"{name} {value.item()} at step {self.step + 1}: stopped, no weight has moved; lower the "
                    "learning rate, warm up longer, or clip (train.clip_norm)"
                )

    def _set_learning_rates(self) -> float:
        factor = learning_rate_factor(self.config.train.schedule, self.step, self.num_steps)
        base = self.config.train.optimizer.lr
        for group in self.optimizer.param_groups:
            group["lr"] = base * factor
        for group in self.head.optimizer.param_groups:
            group["lr"] = self.head.row_rule.lr * factor
        return factor

    def _clip(self) -> Tensor | None:
        """The backbone's gradient norm, clipped; None where no limit is set."""
        limit = self.config.train.clip_norm
        if limit is None:
            return None
        return nn.utils.clip_grad_norm_(self.net.parameters(), limit)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch; what had to be left out of it is named and counted, once an image."""
        batch = next(batches)
        for name in sorted(set(batch.skipped) - self.skipped):
            self.skipped.add(name)
            where = f"rank {self.comm.rank}: skipped undecodable image {name}"
            print(f"{where} ({len(self.skipped)} so far)", flush=True)  # noqa: T201
        return batch

    def _refresh_centres(self) -> None:
        """Every class with images gets its exact mean as its centre."""
        means = self.data_pass.class_means(self.net, self.head)
        if self.step > 0:  # before, rows are no centres of anything
            drift = drift_of(self.head, means, self.comm)
            self.log.write({"kind": "centres", "step": self.step, **drift})
        self.head.set_centres(means)

    def _evaluate(self) -> list[dict[str, Any]]:
        share_buffers(self.net, self.comm)  # judge the model that a checkpoint would hold
        lines = self.evaluator.run(self.net, self.head)
        self.log.evaluated(self.step, lines, self.evaluator.curves)
        return lines

    def _save(self) -> None:
        tensors = run_state(self.net, self.optimizer, self.head, self.comm)
        state = {
            "samples": self.samples,
            "world": self.comm.world,
            "num_classes": self.head.num_classes,
            "data": self.data,
            "linking": self.identities.state(),
            "config": to_tree(self.config),
        }
        saved = self.checkpoints.save(self.step, tensors, state)
        self.log.checkpoint(self.step, saved)


def due(every: int | None, step: int) -> bool:
    """Whether something that happens every n steps is due after `step`."""
    return every is not None and step % every == 0


def resolved(line: dict[str, Any]) -> dict[str, Any]:
    """Tensors as numbers; null for one that is not finite, which JSON cannot hold."""
    numbers = {
        key: value.item() if isinstance(value, Tensor) else value for key, value in line.items()
    }
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in numbers.items()
    }
