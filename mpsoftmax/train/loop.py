"""The training loop: one for every launcher and world size.

A step takes `train.batch_size` consecutive samples of the endless stream (docs/architecture.md), cut into
micro-batches, each cut into the ranks' shares. The position in the stream is the number of samples
consumed, so any world size continues where another stopped.
"""

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
from mpsoftmax.data.ahead import on_device
from mpsoftmax.data.image_set import ImageSet
from mpsoftmax.data.loader import Batch, Loader
from mpsoftmax.data.new_files import replaced
from mpsoftmax.data.order import share
from mpsoftmax.data.union import Union
from mpsoftmax.kernels.select import chosen
from mpsoftmax.roll_call import LostRank
from mpsoftmax.track.environment import environment
from mpsoftmax.track.log import Log
from mpsoftmax.track.profiler import Profiler
from mpsoftmax.track.run_record import CLASSES, FOLDER, write_json
from mpsoftmax.track.step_clock import BACKBONE, UPDATE, StepClock
from mpsoftmax.train.build import build_augment, build_head, build_net, changed_settings
from mpsoftmax.train.centres import DataPass, drift_of, refresh_every, share_buffers
from mpsoftmax.train.checkpoint import Checkpoints, read_state
from mpsoftmax.train.class_names import write_names
from mpsoftmax.train.class_quality import class_quality
from mpsoftmax.train.culprits import MicroBatch
from mpsoftmax.train.datasets import build_order, names_within, sizes_of
from mpsoftmax.train.duplicates import merge_listed, with_known_pairs
from mpsoftmax.train.engines import Surroundings, describe_engine
from mpsoftmax.train.evaluation import Evaluator
from mpsoftmax.train.identities import Identities
from mpsoftmax.train.inputs import describe_data, open_in_turn, total_steps, training_device
from mpsoftmax.train.left_out import left_out
from mpsoftmax.train.precision import LossScale, autocast_dtype, resolve_precision
from mpsoftmax.train.run_lock import WAIT_S, RunLock
from mpsoftmax.train.saving import Saver
from mpsoftmax.train.schedule import learning_rate_factor
from mpsoftmax.train.skips import Skips, describe
from mpsoftmax.train.start import start_from
from mpsoftmax.train.state import is_copy, load_run_state, read_backbone, run_state
from mpsoftmax.train.step import Outcome, Step
from mpsoftmax.train.stopping import Stopped, StopSignals


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
        self.comm, self.folder, self.device = comm, Path(config.run.dir), training_device()
        self.lock: RunLock | None = None  # rank 0 has it
        config, chosen = resolve_precision(config, self.device)
        self.config = config
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints", comm, config.train.keep_checkpoints
        )
        resume = self._open_folder()
        images = open_in_turn(config, comm)
        self.images, self.data = images, describe_data(images, comm)
        self.num_steps = total_steps(config, len(images))
        torch.manual_seed(config.train.seed)
        net = comm.together(lambda: build_net(config)).to(self.device)
        memory_format = (
            torch.channels_last if config.backbone.channels_last else torch.contiguous_format
        )
        net.to(memory_format=memory_format)  # type: ignore[call-overload]
        several = images if isinstance(images, Union) else None
        for_head = comm.together(lambda: with_known_pairs(config, several))
        self.head = build_head(for_head, sizes_of(images), comm.world, self.device)
        self.data_pass = DataPass(config, images, comm, self.device)
        self.identities = Identities(config, images, self.head, self.data_pass, self.folder, comm)
        started = [] if chosen is None else [chosen]
        if resume is None:
            started += start_from(config, net, self.head, comm, images)
            merge_listed(config, several, self.head)
        self.num_parameters = sum(value.numel() for value in net.parameters())
        self._start_engine(net, memory_format)
        self.step, self.samples = 0, 0
        self.unevaluated = False  # a checkpoint is saved before the evaluation of its step
        self.corrupt: set[str] = set()
        self.skips = Skips(config.train.max_skipped)
        if resume is not None:
            self._resume(resume)
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
        comm.together(lambda: self._write_names(images))
        self.log = comm.together(self._open_log)
        self.stops = StopSignals(comm)
        self.saver = Saver(
            self.checkpoints,
            beside=config.train.checkpoint_async,
            max_failed=config.train.max_failed_saves,
            say=self.log.say,
            owned=is_copy,
            saved=self.log.checkpoint,
        )
        comm.together(lambda: self.identities.open(self.step))
        self._describe(resume, started, images)

    def _start_engine(self, net: nn.Module, memory_format: torch.memory_format) -> None:
        """Who runs the backbone, and how a step is taken; collective."""
        config, autocast = self.config, autocast_dtype(self.config)
        around = Surroundings(config, self.comm, self.device, autocast)
        self.engine = self.comm.together(lambda: describe_engine(config)).start(net, around)
        torch.manual_seed(config.train.seed + 1 + self.comm.rank)  # dropout differs between ranks
        self.scale = LossScale(
            config.train.loss_scale if config.train.precision == "fp16" else None
        )
        self.clock = self._make_clock()
        self._take = Step(
            config.train,
            self.engine,
            self.head,
            self.comm,
            device=self.device,
            memory_format=memory_format,
            scale=self.scale,
            autocast=autocast,
            update_begins=lambda: self.clock.enter(UPDATE),
        )

    @property
    def net(self) -> nn.Module:
        """The backbone as its engine holds it."""
        return self.engine.net

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

        self.comm.together(self._make_folder)
        found = self.comm.share(self.comm.together(find))
        if len(set(found)) > 1 or not all(self.comm.share(self.folder.is_dir())):
            raise AgreedError(
                f"run.dir: {self.folder} is not the same folder on all ranks; allowed: one on a file system "
                "that all nodes share"
            )
        if found[0] is None:
            return None
        return self.checkpoints.last_good(self.checkpoints.folder / found[0])

    def _make_folder(self) -> None:
        """The run folder, by rank 0, which holds its lock."""
        if self.comm.rank > 0:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"run.dir: {self.folder} cannot be created: {error.strerror}"
            ) from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise ValueError(f"run.dir: {self.folder} cannot be written to: permission denied")
        self.lock = RunLock(self.folder, min(WAIT_S, self.config.train.timeout_s / 2))

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
        load_run_state(path, self.engine, self.config.train.optimizer.kind, self.head, self.comm)
        self.identities.load_state(state.get("linking"))
        self.skips.load_state(state.get("skipped"))
        self.scale.load_state(state.get("loss_scale"))
        self.step, self.samples = state["step"], state["samples"]
        self.unevaluated = state.get("unevaluated", False)

    def _write_names(self, images: ImageSet) -> None:
        if self.comm.rank == 0:
            write_names(self.folder, images.class_names)

    def _open_log(self) -> Log:
        """config.yaml, and every sink of metrics: written once the run is known to fit."""
        if self.comm.rank == 0:
            with replaced(self.folder / "config.yaml") as part:
                part.write_text(to_yaml(self.config), encoding="utf-8")
        return Log(
            self.config,
            self.folder,
            self.num_steps,
            self.step,
            self.comm.rank,
            world=self.comm.world,
            read_backbone=read_backbone,
            facts=self._facts(),
        )

    def _facts(self) -> dict[str, Any]:
        """What trackers are told of the run beside its configuration."""
        if self.comm.rank != 0:
            return {}
        return {
            "data": self.data,
            "parameters": self.num_parameters,
            "environment": {
                **environment(self.device),
                "kernel": chosen(self.config.head.kernel, self.device),
            },
        }

    def _make_clock(self) -> StepClock:
        phases, train = self.head.phases, self.config.train
        folder = self.folder / "profile"
        profiler = Profiler(train.profile, folder, self.comm.rank, self.device, phases)
        sizes = {"batch_size": train.batch_size, "num_steps": self.num_steps}
        return StepClock(phases, profiler, self.comm, self.device, **sizes)

    def _describe(self, resume: Path | None, started: list[str], images: ImageSet) -> None:
        locked = [self.lock.note] if self.lock is not None and self.lock.note is not None else []
        for line in [*locked, *started, *self.checkpoints.notes]:
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
        elif self.config.train.checkpoint_every is None and self.num_steps >= LONG:
            self.log.say(
                f"no checkpoint before step {self.num_steps}, the last; train.checkpoint_every=N saves every "
                "N steps"
            )
        if isinstance(images, Union):
            for name, part in zip(images.names, images.parts, strict=True):
                self.log.say(f"  {name}: {len(part)} images, {len(part.class_names)} classes")
        self.log.say(
            f"{len(images)} images, {len(images.class_names)} classes, {self.comm.world} rank(s), "
            f"{self.device.type}; {self.num_steps} steps of {self.config.train.batch_size}; run folder "
            f"{self.folder}"
        )
        if (unused := left_out(images)) is not None:
            self.log.say(unused)

    def run(self) -> Summary:
        """Train to the last step; evaluate and checkpoint as configured.

        Raises:
            Stopped: a signal asked to stop before the last step; the step reached is saved.
        """
        train, evaluations = self.config.train, []
        batches = on_device(self.loader.stream(self._cuts()), self.device)
        unfinished = self.step < self.num_steps
        try:
            if self.step == 0 and refresh_every(self.head) is not None:
                self._refresh_centres()
            if self.unevaluated and self._lacks_evaluation():
                evaluations = self._evaluate()
            with self.stops:
                while self.step < self.num_steps:
                    self.stops.ask()
                    self._after_step(self._step(batches))
                    if self.unevaluated:
                        evaluations = self._evaluate()
            if unfinished:
                self._list_duplicates()
                self._look_at_classes()
        finally:
            self.saver.close(train.timeout_s)
            self.identities.close()
            self.engine.close()
            batches.close()
            self.clock.close()
            error = sys.exception()
            self.log.close(self.step, None if isinstance(error, Stopped) else error)
            if self.lock is not None:
                self.lock.close()
        return Summary(self.folder, self.step, evaluations)

    def _after_step(self, line: dict[str, Any]) -> None:
        """What is due after a step, up to its evaluation, which may fail: the checkpoint comes first.

        Raises:
            Stopped: a signal asked to before the last step; the step is saved.
        """
        train, last = self.config.train, self.step == self.num_steps
        if due(refresh_every(self.head), self.step):
            self._refresh_centres()
        if due(self.identities.every, self.step):
            with self.engine.whole() as net:
                self.log.write(self.identities.link(self.step, net))
        if due(train.log_every, self.step) or last:
            self.log.write({**resolved(line), "timing": self.clock.read(self.step)})
        self.unevaluated = due(train.eval_every, self.step) or last
        signum = self.stops.agreed()
        if last or due(train.checkpoint_every, self.step) or signum is not None:
            self._save(last=last or signum is not None)
        if signum is not None and not last:  # else little is left
            raise Stopped(signum, self.step)

    def _cuts(self) -> Iterator[tuple[int, int]]:
        """This rank's share of every micro-batch from here to the end, as stream positions."""
        size = self.config.train.batch_size
        for start in range(self.samples, self.samples + (self.num_steps - self.step) * size, size):
            for micro in range(self.config.train.accumulation):
                yield self._share_of(start, micro)

    def _share_of(self, start: int, micro: int) -> tuple[int, int]:
        """This rank's share of one micro-batch of the step that begins at stream position `start`."""
        train = self.config.train
        low, high = share(train.batch_size, micro, train.accumulation)
        first, last = share(high - low, self.comm.rank, self.comm.world)
        return start + low + first, start + low + last

    def _step(self, batches: Iterator[Batch]) -> dict[str, Any]:
        """One optimiser step over all micro-batches; returns its line of metrics (as tensors)."""
        self.clock.begin(self.step + 1)
        first, parts = self.samples, self.config.train.accumulation
        spans = [self._share_of(first, micro) for micro in range(parts)]
        micro_batches = [MicroBatch(self._next(batches), low) for low, _ in spans]
        self.clock.enter(BACKBONE)
        factor = self._set_learning_rates()
        outcome = self._take(micro_batches)
        self.step += 1
        self.samples += self.config.train.batch_size
        self.clock.end(self.step)
        self.skips.count(outcome)
        if outcome.culprits is not None:
            self._say_skipped(outcome)
        return {
            "kind": "train",
            "step": self.step,
            "samples": self.samples,
            "loss": outcome.loss,
            "lr_factor": factor,
            **self.head.last_stats,
            **self._norms(outcome),
            "skipped_steps": self.skips.total,
            **({"loss_scale": self.scale.value} if self.scale.moves else {}),
        }

    def _norms(self, outcome: Outcome) -> dict[str, Tensor]:
        """Norms that the user asked for."""
        if self.config.train.clip_norm is None:
            return {}
        of_head = outcome.head_norm
        return {
            "gradient_norm": outcome.norm,
            **({} if of_head is None else {"class_gradient_norm": of_head}),
        }

    def _say_skipped(self, outcome: Outcome) -> None:
        """A skipped step is named when it happens, whatever log_every is.

        Raises:
            ValueError: too many in a row.
        """
        assert outcome.culprits is not None
        scale = f"; loss scale now {self.scale.value:g}" if self.scale.moves else ""
        self.log.say(f"step {self.step} skipped on all ranks: {describe(outcome)}{scale}")
        numbers = resolved({"loss": outcome.loss, "gradient_norm": outcome.norm})
        self.log.write({"kind": "skip", "step": self.step, **numbers, **outcome.culprits.as_dict()})
        self.skips.check(self.step, outcome)

    def _set_learning_rates(self) -> float:
        factor = learning_rate_factor(self.config.train.schedule, self.step, self.num_steps)
        self.engine.set_learning_rate(self.config.train.optimizer.lr * factor)
        for group in self.head.optimizer.param_groups:
            group["lr"] = self.head.row_rule.lr * factor
        return factor

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch; what had to be left out of it is named and counted, once an image."""
        batch = next(batches)
        for name in sorted(set(batch.skipped) - self.corrupt):
            self.corrupt.add(name)
            where = f"rank {self.comm.rank}: skipped undecodable image {name}"
            print(f"{where} ({len(self.corrupt)} so far)", flush=True)  # noqa: T201
        return batch

    def _refresh_centres(self) -> None:
        """Every class with images gets its exact mean as its centre."""
        with self.engine.whole() as net:
            means = self.data_pass.class_means(net, self.head)
        if self.step > 0:  # before, rows are no centres of anything
            drift = drift_of(self.head, means, self.comm)
            self.log.write({"kind": "centres", "step": self.step, **drift})
        self.head.set_centres(means)

    def _list_duplicates(self) -> None:
        with self.engine.whole() as net:
            found = self.identities.list_duplicates(net)
        if found is not None:
            self.log.say(found)

    def _look_at_classes(self) -> None:
        """RUN/report/classes.json. Training is over and saved: what goes wrong here is said and no error."""
        if not self.config.track.report:
            return
        try:
            with self.engine.whole() as net:
                share_buffers(net, self.comm)
                found = class_quality(
                    self.config,
                    self.images,
                    net,
                    self.head,
                    self.comm,
                    step=self.step,
                    samples=self.samples,
                )
            if self.comm.rank == 0:
                write_json(self.folder / FOLDER / CLASSES, found)
        except LostRank:
            raise
        except Exception as error:
            self.log.say(f"report: the classes could not be looked at: {error}")

    def _lacks_evaluation(self) -> bool:
        """Whether the run died between the checkpoint it goes on from and the evaluation of that step."""
        lacks = self.log.lacks_evaluation(self.step, len(self.config.data.eval))
        return self.comm.share(lacks)[0]

    def _evaluate(self) -> list[dict[str, Any]]:
        with self.engine.whole() as net:
            share_buffers(net, self.comm)  # judge the model that a checkpoint would hold
            lines = self.evaluator.run(net, self.head)
        self.log.evaluated(self.step, lines, self.evaluator.curves, self.evaluator.pairs)
        self.unevaluated = False
        return lines

    def _save(self, *, last: bool = False) -> None:
        tensors = run_state(self.engine, self.head, self.comm)
        state = {
            "samples": self.samples,
            "world": self.comm.world,
            "num_classes": self.head.num_classes,
            "data": self.data,
            "linking": self.identities.state(),
            "unevaluated": self.unevaluated,
            "skipped": self.skips.state(),
            "loss_scale": self.scale.state(),
            "config": to_tree(self.config),
        }
        self.saver.save(self.step, tensors, state, last=last)


LONG = 1000  # steps after which somebody would miss a checkpoint


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
