"""ModelParallelSoftmax: the sharded classifier.

One step (docs/architecture.md), with B valid samples of all ranks:

    normalise, pack, all-gather (1)          exchange.py          [B, D] on every rank
    draw candidate rows                      candidates.py        no communication
    sweep the shard                          kernels/             total, pull, target cosine
    all-reduce (total, t) (2)                2 numbers a sample   (a running maximum: all-gather of 3)
    Phi and its derivatives                  objectives/          vectors of length B, same on all ranks
    reduce-scatter feature gradients (3)     in backward          [b, D]
    class gradients, fused with the update   in step()            class_table.py, row_optim.py
"""

import tempfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import ProcessGroup

from mpsoftmax.comm import Comm
from mpsoftmax.head import forward as forward_pass
from mpsoftmax.head.arguments import Description, check_choice, check_whole
from mpsoftmax.head.backward import HeadFunction, Recorded, feature_gradient
from mpsoftmax.head.baskets import Baskets, Miner
from mpsoftmax.head.candidates import Candidates
from mpsoftmax.head.centres import ClassMeans, class_sums, moved_centres
from mpsoftmax.head.class_table import (
    UNTOUCHED,
    ClassTable,
    check_directions,
    is_direction,
    local_range,
)
from mpsoftmax.head.exchange import Exchange, GlobalBatch, LocalBatch
from mpsoftmax.head.fused_update import update_in_kernel
from mpsoftmax.head.gradient import Contribution, coefficients, pending_gradient
from mpsoftmax.head.merged import MergedClasses, shared_rows
from mpsoftmax.head.nearest import nearest_classes
from mpsoftmax.head.negatives import Negatives
from mpsoftmax.head.objectives import Objective
from mpsoftmax.head.optimizer import Optimizer
from mpsoftmax.head.phases import Phases
from mpsoftmax.head.row_optim import RowRule
from mpsoftmax.head.row_store import STORAGES
from mpsoftmax.head.running_state import RunningState
from mpsoftmax.head.table_state import load_table_state, table_names, table_state
from mpsoftmax.head.update_stream import SideStream, UpdateStream
from mpsoftmax.head.weights import ClassCentres, Weights
from mpsoftmax.kernels.select import select

COMPUTE_DTYPES = (torch.float64, torch.float32, torch.bfloat16)
ROW_DTYPES = (torch.float64, torch.float32, torch.bfloat16)


class ModelParallelSoftmax(nn.Module):
    """Margin softmax whose class rows are partitioned over the ranks.

    Four free axes: objective x negatives (and baskets) x candidates x class weights. A combination without
    meaning is refused with its reason.

    Args:
        embedding_dim: D.
        num_classes: Classes over all ranks; rank r owns those of `local_range`.
        objective: An Objective, or the name of one with its default margins.
        candidates: "all", or Uniform(rate), UniformBlocks(rate), DSoftmaxK(rate), DSoftmaxB(rate): who takes
            part in a step.
        negatives: "all", or NoiseFilter(threshold): what look-alikes of other classes do.
        baskets: Baskets(sizes, rule) where the classes come from several data sets with labels of their own.
        weights: "learned", SubCentres(num), or ClassCentres(...): what a class's rows are.
        optimizer: RowSGD(...) (default) or RowAdamW(...): how learned rows move in `step()`.
        untouched: What happens to rows outside the candidates: "frozen" stay as they are, "lazy" are caught
            up exactly as if every step had moved them with a zero gradient.
        compute_dtype: dtype of the matrix products: float64, float32 or bfloat16. Sums are float32 or wider.
        row_dtype: dtype of rows and optimiser rows: float32, float64, or bfloat16, rounded stochastically.
        kernel: "auto", "blocked", "native", "reference" or "triton" (docs/kernels.md).
        e_budget_bytes: Bytes of exponentials kept between forward and step(); past it they are recomputed.
        batch_capacity: Largest local batch. With it a step has three collectives; without it a fourth
            exchanges the sizes.
        storage: Where rows and optimiser rows live: "device"; "host", in (pinned) host memory; or "mapped",
            in a mapped file that holds touched rows only. The last two need sampled candidates and learned
            rows; `prefetch` reads the next step's rows beside the backbone.
        storage_dir: Folder of the mapped file; None: the system's for temporary files. The file is scratch,
            and unlinked as soon as it is open.
        update_beside: Whether `step()` moves the rows on a CUDA stream of its own, beside the backbone: it
            waits for the head's backward only, and the next use of the rows through this object waits for it.
            For learned rows on a CUDA device. Tensors of rows taken before `step()` must be taken again.
        init_std: Standard deviation of the initial rows.
        device: Where the rows live; default CPU.
        seed: Key of initial rows and candidate draws.
        process_group: None takes the default group where one exists, else world size 1.

    Raises:
        ValueError: an argument is out of range, a combination has no meaning, or the ranks do not agree on
            the arguments.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        *,
        objective: Objective | str = "arcface",
        candidates: Candidates | str = "all",
        negatives: Negatives | str = "all",
        baskets: Baskets | None = None,
        weights: Weights | str = "learned",
        optimizer: RowRule | None = None,
        untouched: str = "frozen",
        compute_dtype: torch.dtype = torch.float32,
        row_dtype: torch.dtype = torch.float32,
        kernel: str = "auto",
        e_budget_bytes: int = 2**30,
        batch_capacity: int | None = None,
        storage: str = "device",
        storage_dir: str | Path | None = None,
        update_beside: bool = False,
        init_std: float = 0.01,
        device: torch.device | str | None = None,
        seed: int = 0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_choice("untouched", untouched, UNTOUCHED)
        check_choice("compute_dtype", compute_dtype, COMPUTE_DTYPES)
        check_choice("row_dtype", row_dtype, ROW_DTYPES)
        check_choice("storage", storage, STORAGES)
        check_whole("embedding_dim", embedding_dim, 1)
        check_whole("num_classes", num_classes, 1)
        check_whole("e_budget_bytes", e_budget_bytes, 0)
        check_whole("seed", seed, 0)
        if batch_capacity is not None:
            check_whole("batch_capacity", batch_capacity, 1)
        if not 0 < init_std < float("inf"):
            raise ValueError(f"init_std: {init_std!r}; allowed: a positive number")
        described = Description.of(
            objective,
            candidates,
            negatives,
            baskets,
            weights,
            optimizer,
            untouched,
            num_classes,
            storage,
        )
        self.embedding_dim, self.num_classes = embedding_dim, num_classes
        self.objective, self.candidates = described.objective, described.candidates
        self.negatives, self.baskets = described.negatives, described.baskets
        self.weights, self.row_rule = described.weights, described.optimizer
        self.compute_dtype, self.e_budget_bytes, self.seed = compute_dtype, e_budget_bytes, seed
        self.comm, self.phases = Comm(process_group), Phases()
        numbers = (embedding_dim, num_classes, compute_dtype, e_budget_bytes, seed, kernel)
        self._agree(described, *numbers, untouched, row_dtype, batch_capacity, init_std, storage)
        self.local_range = local_range(num_classes, self.comm.world, self.comm.rank)
        where = torch.device("cpu" if device is None else device)
        self._exchange = Exchange(
            self.comm, embedding_dim, num_classes, compute_dtype, batch_capacity
        )
        self._kernel = select(kernel, where)
        self._table = ClassTable(
            num_classes=num_classes,
            dim=embedding_dim,
            local=self.local_range,
            dtype=row_dtype,
            device=where,
            seed=seed,
            init_std=init_std,
            rule=self.row_rule,
            untouched=untouched,
            num_centres=self.weights.num_centres,
            storage=storage,
            directory=self._storage_folder(storage, storage_dir),
            stream=self._update_stream(update_beside, storage, where),
            kernel=self._kernel,
        )
        self.merged_classes = MergedClasses(where)
        self._running = RunningState(self.objective)
        self.miner = self._make_miner(where)
        self._parts = forward_pass.Parts(
            objective=described.margins_applied(),
            candidates=self.candidates,
            negatives=self.negatives,
            weights=self.weights,
            miner=self.miner,
            merged=self.merged_classes,
            running=self._running,
            table=self._table,
            comm=self.comm,
            phases=self.phases,
            kernel=self._kernel,
            compute_dtype=compute_dtype,
            seed=seed,
        )
        self.optimizer = Optimizer(
            self._table.weight if storage == "device" else self._table.empty(0, embedding_dim),
            self.row_rule.defaults(),
            self.apply_contributions,
            self.drop_contributions,
        )
        self._contributions: list[Contribution] = []
        self._spare: Tensor | None = None  # memory of E of the last step, for the next forward
        self._last: forward_pass.Taken | None = None
        self._num_draws = 0  # training forwards since the last step: each draws its own candidates
        self.last_stats: dict[str, Tensor] = {}

    def _storage_folder(self, storage: str, given: str | Path | None) -> Path | None:
        """Folder of a mapped table's file."""
        if storage == "mapped":
            return Path(given or tempfile.gettempdir())
        if given is not None:
            raise ValueError(f"storage_dir: {str(given)!r} with storage {storage!r}; allowed: None")
        return None

    def _update_stream(
        self, beside: bool, storage: str, device: torch.device
    ) -> UpdateStream | None:
        """Where rows are moved."""
        if not beside:
            return None
        if storage != "device" or not self.weights.learned:
            what = f"storage {storage!r}" if storage != "device" else "class centres"
            raise ValueError(
                f"update_beside: True with {what}; allowed: False (it is for learned rows on the device)"
            )
        return SideStream(device)

    def _make_miner(self, device: torch.device) -> Miner | None:
        if self.baskets is None:
            return None
        return Miner(self.baskets, self.comm, self._kernel, self.local_range, device)

    def _agree(self, *arguments: object) -> None:
        """Raise on every rank where the ranks were given different heads; nothing is counted."""
        description = repr(arguments)
        different = self.comm.differing(description.encode())
        self.comm.reset_counters()
        if different:
            raise ValueError(
                f"ranks disagree about the head: ranks {different} differ from rank 0; this rank "
                f"({self.comm.rank}) has {description}; allowed: equal arguments on all ranks"
            )

    # -- forward and backward ------------------------------------------------------------------

    @torch.compiler.disable  # collectives, decisions on the host, compiled code: no graph to be had
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, features: Tensor, labels: Tensor
    ) -> Tensor:
        """Mean loss over the valid samples of all ranks; the same scalar on every rank.

        Collective: every rank calls it, with its own batch. Under no_grad nothing is kept and no state
        changes. The features' gradient is world_size times that of the loss, since data-parallel
        wrappers average gradients; class rows move by the gradient of the loss itself.

        Args:
            features: [b, D] raw (not normalised), any floating dtype; b may be 0 and differ between ranks.
            labels: int64 [b]; -1 ignores the sample.

        Returns:
            Scalar, float32 (float64 where the compute dtype is float64); 0 where no sample is valid.

        Raises:
            ValueError: on all ranks alike: a wrong shape, more than `batch_capacity` samples, or a label
                outside [0, num_classes), with its value, rank and position.
        """
        with no_autocast(features):
            if not torch.is_grad_enabled():
                return self._evaluate(features, labels)
            anchor = torch.zeros((), device=features.device, requires_grad=True)
            arguments = (features, anchor, labels, self._record, self._backward)
            return HeadFunction.apply(*arguments)  # type: ignore[return-value]

    @torch.no_grad()
    def prefetch(self, labels: Tensor) -> None:
        """Begin to read the rows that the next forward needs, beside the backbone. Collective.

        For storage "host" and "mapped"; nothing happens otherwise. One all-gather of the labels (two without
        `batch_capacity`). Where the next forward's labels turn out to be others, its rows are read then.

        Args:
            labels: int64 [b]: those that the next forward will be given.
        """
        if self._table.resident:
            return
        with self.phases("gather"):
            everyone = self._exchange.gather_labels(labels.to(self._table.device))
            forward_pass.read_ahead(self._parts, everyone, num_draws=self._num_draws)

    def _evaluate(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss alone."""
        _, batch = self._exchange.gather(features, labels)
        found = forward_pass.run(self._parts, batch, num_draws=self._num_draws, training=None)
        self._last = found.taken
        return found.derivatives.loss

    def _record(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Recorded]:
        """The forward pass of training: the loss, and what its backward needs."""
        with self.phases("gather"):
            local, batch = self._exchange.gather(features, labels)
        with self.phases("sweep"):
            return self._swept(local, batch)

    def _swept(self, local: LocalBatch, batch: GlobalBatch) -> tuple[Tensor, Recorded]:
        self._table.stream.join()  # before E of the last step is written over
        kept = sum(contribution.swept.kept_bytes for contribution in self._contributions)
        # Class centres have no class gradient, for which alone E is kept.
        budget = self.e_budget_bytes - kept if self.weights.learned else 0
        room = forward_pass.Room(max(0, budget), self._spare)
        self._spare = None
        found = forward_pass.run(self._parts, batch, num_draws=self._num_draws, training=room)
        self._num_draws += 1
        derivatives, swept = found.derivatives, found.swept
        candidates = torch.tensor(swept.problem.num_classes)
        self.last_stats = {**derivatives.statistics, "candidates": candidates}
        if not self._table.resident:
            self.last_stats["rows_ahead"] = torch.tensor(self._table.taken_ahead())
        self._last = found.taken
        contribution = Contribution(
            index=self._table.rows_of(found.taken.index),
            swept=swept,
            chosen=found.taken.chosen,
            unit=batch.unit.to(swept.total.dtype),
            norm=batch.norm,
            targets=found.targets,
            negatives=coefficients(swept, found.reduced, derivatives.by_negatives),
            target=derivatives.by_target,
            swept_own=self.candidates.holds_positives,
        )
        return derivatives.loss, Recorded(
            contribution=contribution,
            local=local,
            batch=batch,
            target_cosine=found.reduced.cosine,
            negatives=found.reduced.negatives,
            by_norm=derivatives.by_norm,
            scale_is_norm=self.objective.scale_is_norm,
            version=self._table.version,
        )

    def _backward(self, recorded: Recorded, factor: Tensor) -> Tensor:
        """[b, D] world size * factor * dL/d features; leaves the class rows' part for step()."""
        if recorded.version != self._table.version:
            raise RuntimeError(
                "backward() after the class rows moved (step(), load_rows() or load_state_dict()): the loss "
                "must be computed again"
            )
        part = recorded.contribution
        with no_autocast(part.unit), self.phases("sweep"):
            gradient = feature_gradient(recorded, self._exchange, self.phases)
        self._running.hold(recorded.target_cosine, recorded.batch.norm, recorded.negatives)
        self._contributions.append(part.scaled(factor))
        self._table.stream.inputs_ready()
        return gradient * (factor * self.comm.world)

    # -- update --------------------------------------------------------------------------------

    def step(self) -> None:
        """Move the candidate rows by the gradient that the backward calls since the last step left."""
        self.optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradient that the backward calls since the last step left."""
        self.drop_contributions()

    def drop_contributions(self) -> None:
        """Forget the backward calls since the last step; no state has moved."""
        self._contributions = []  # a step still under way may hold the others
        self._running.drop()
        self._num_draws = 0

    @torch.no_grad()
    def apply_contributions(self, hyper: Mapping[str, Any]) -> None:
        """One optimiser step from the kept contributions; nothing happens where there are none."""
        if not self._contributions:
            return
        with self.phases("update"):
            if isinstance(self.weights, ClassCentres):
                self._move_centres(self.weights)
            else:
                parts = self._contributions
                self._table.stream.run(lambda: self._move_rows(parts, hyper), parts)
        self._running.commit()
        self._spare = self._contributions[-1].swept.kept  # its loss is refused from now on
        self.drop_contributions()

    def _move_rows(self, parts: list[Contribution], hyper: Mapping[str, Any]) -> None:
        if update_in_kernel(self._kernel, self._table, parts, hyper):
            return
        union, norms, gradient = pending_gradient(self._kernel, parts)
        self._table.update(union, gradient, norms, hyper)

    @torch.no_grad()
    def gradient_square(self) -> Tensor:
        """Scalar float64: squared L2 norm of this rank's part of the class gradient that step() would apply.

        Of the projected gradient, as the rows move by it. Formed tile by tile and not kept: one more pass of
        what step() does. No communication: all ranks' parts add up. 0 for class centres, which have none.
        """
        if not self._contributions or not self.weights.learned:
            return torch.zeros((), dtype=torch.float64, device=self._table.device)
        union, norms, gradient = pending_gradient(self._kernel, self._contributions)
        return self._table.gradient_square(union, gradient, norms)

    @torch.no_grad()
    def gradient_is_finite(self) -> Tensor:
        """Bool scalar: whether what step() would form this rank's class gradient from is finite.

        Looks at the vectors of a step, not at the table: no communication and no pass over rows.
        """
        finite = torch.ones((), dtype=torch.bool, device=self._table.device)
        for part in self._contributions:
            for numbers in (part.negatives, part.target, part.norm, part.unit):
                finite = finite & numbers.isfinite().all()
        return finite

    def scale_gradient(self, factor: Tensor | float) -> None:
        """Multiply what the backward calls since the last step left, as a factor on their loss would have."""
        self._table.stream.join()
        self._contributions = [part.scaled(factor) for part in self._contributions]

    def _move_centres(self, rule: ClassCentres) -> None:
        parts, table = self._contributions, self._table
        features = torch.cat(
            [forward_pass.centre_features(rule, part.unit, part.norm) for part in parts]
        )
        batch = class_sums(features, torch.cat([part.targets.own for part in parts]))
        seen = table.row_step[batch.classes] > 0
        centres = table.weight[batch.classes].to(table.work_dtype)
        moved = moved_centres(rule, centres, seen, batch)
        usable = is_direction(moved)  # elsewhere the old centre stays, or the class unseen
        table.move(batch.classes[usable], moved[usable])
        table.end_step()

    # -- the table -----------------------------------------------------------------------------

    def candidate_ids(self) -> Tensor:
        """int64 [n]: global ids of this rank's classes that were negatives in the last forward, ascending."""
        start, stop = self.local_range
        ids = torch.arange(start, stop, device=self._table.device)
        if self._last is None:
            return ids
        if self._last.index is not None:
            ids = self._last.index + start
        return ids if self._last.absent is None else ids[~self._last.absent]

    @property
    def last_chosen(self) -> Tensor | None:
        """int64 [m]: the valid samples, in rank order, that met their negatives last time; None: all."""
        return None if self._last is None else self._last.chosen

    @torch.no_grad()
    def class_rows(self, ids: Tensor) -> Tensor:
        """Rows of any classes, on every rank: [n, D] row dtype, or [n, K, D] with K sub-centres. Collective.

        All ranks give the same ids. A class merged into another has the other's row.

        Raises:
            ValueError: an id is outside [0, num_classes).
        """
        ids = self.merged_classes.canonical(self._checked_ids(ids))
        mine, local = self._owned(ids)
        shape = (ids.numel(), self._table.num_centres, self.embedding_dim)
        rows = self._table.empty(*shape)
        rows[mine] = self._table.current_rows(self._table.rows_of(local)).view(-1, *shape[1:])
        rows = rows if self._table.num_centres > 1 else rows[:, 0]
        return self.comm.all_reduce_sum(rows.contiguous())

    @torch.no_grad()
    def load_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Set the rows [n, D] ([n, K, D]) of classes `ids` [n]; their optimiser state starts afresh.

        Every rank may give the same ids; each takes its own. A class centre set so counts as seen; of a class
        merged into another, the shared row is set.

        Raises:
            ValueError: an id is outside [0, num_classes) or the shapes do not fit.
        """
        ids = self.merged_classes.canonical(self._checked_ids(ids))
        centres = () if self._table.num_centres == 1 else (self._table.num_centres,)
        shape = (ids.numel(), *centres, self.embedding_dim)
        if rows.shape != shape:
            raise ValueError(f"rows: shape {tuple(rows.shape)}; allowed: {shape}")
        self._refuse_between("load_rows()")
        check_directions(ids, rows)
        mine, local = self._owned(ids)
        index = self._table.rows_of(local)
        assert index is not None
        own = rows.to(self._table.device)[mine].reshape(-1, self.embedding_dim)
        self._table.set_rows(index, own, row_step=0 if self.weights.learned else 1)

    @torch.no_grad()
    def catch_up(self) -> None:
        """Bring all rows and optimiser rows that `untouched: lazy` has left behind up to now.

        Nothing else asks for it: rows are caught up when they are needed. It is for those who take the whole
        table elsewhere. Rows on the device only.
        """
        self._refuse_between("catch_up()")
        self._table.catch_up()

    def _refuse_between(self, what: str) -> None:
        if self._contributions:
            raise RuntimeError(f"{what} between backward() and step(): allowed after step()")

    # -- one identity, several classes -----------------------------------------------------------

    @property
    def merged(self) -> Tensor:
        """int64 [M, 2]: (class that keeps its row, class merged into it)."""
        return self.merged_classes.pairs

    @torch.no_grad()
    def merge_classes(self, pairs: Iterable[tuple[int, int]] | Tensor) -> None:
        """Classes that are one identity share the row of the first of each pair. Collective.

        The shared row is the mean of their directions, of mean length; optimiser rows start afresh. Of class
        centres those that had samples count. From now on samples of the second class train the shared row,
        the second row is nobody's negative, and with baskets the shared class belongs to both. Merging
        chains; `split_classes` undoes it.

        Raises:
            ValueError: an id is out of range, or a pair names one class twice.
        """
        listed = [(int(a), int(b)) for a, b in pairs]
        self._refuse_between("merge_classes()")
        named = self._checked_ids(torch.tensor(listed, dtype=torch.int64))
        joined = self.merged_classes.joined(listed)
        self._agree_on("pairs", joined)
        if self.miner is not None:
            self.miner.check_groups(joined)
        if not listed:
            return
        before = torch.unique(self.merged_classes.canonical(named))
        rows, seen = self.class_rows(before).to(self._table.work_dtype), self._seen(before)
        self.merged_classes.set(joined)
        after, place = torch.unique(self.merged_classes.canonical(before), return_inverse=True)
        shared, known = shared_rows(rows, seen, place, torch.searchsorted(before, after))
        self.load_rows(after[known], shared[known])

    def _seen(self, ids: Tensor) -> Tensor:
        """Bool [n]: classes whose row means something, learned or a centre that had samples. Collective."""
        if self.weights.learned:
            return torch.ones_like(ids, dtype=torch.bool)
        mine, local = self._owned(ids)
        seen = torch.zeros_like(ids)
        seen[mine] = (self._table.row_step[local] > 0).to(seen)
        return self.comm.all_reduce_sum(seen) > 0

    @torch.no_grad()
    def split_classes(self, ids: Iterable[int] | Tensor) -> None:
        """Undo merging: each given class gets a row of its own again, a copy of the shared one. Collective.

        Raises:
            ValueError: an id is not merged into another class.
        """
        wanted = torch.as_tensor(list(ids), dtype=torch.int64).reshape(-1)
        self._refuse_between("split_classes()")
        remaining = self.merged_classes.without(wanted)
        self._agree_on("ids", remaining)
        rows = self.class_rows(wanted) if wanted.numel() and self.weights.learned else None
        self.merged_classes.set(remaining)
        if rows is not None:
            self.load_rows(wanted, rows)

    def _agree_on(self, field: str, pairs: Tensor) -> None:
        """Raise on every rank where the ranks would merge differently."""
        different = self.comm.differing(pairs.numpy().tobytes())
        if different:
            raise ValueError(
                f"{field}: ranks {different} gave others than rank 0; allowed: the same on all ranks"
            )

    # -- passes over the data --------------------------------------------------------------------

    def class_means(self, *, by_label: bool = False) -> ClassMeans:
        """An empty accumulator of exact class means; every rank adds its share of the data.

        Args:
            by_label: Keep classes that were merged apart, each with its own samples.
        """
        exchange = Exchange(
            self.comm, self.embedding_dim, self.num_classes, self.compute_dtype, capacity=None
        )
        raw = isinstance(self.weights, ClassCentres) and self.weights.features == "raw"
        merged = None if by_label else self.merged_classes
        like = torch.empty(0, dtype=self._table.work_dtype, device=self._table.device)
        return ClassMeans(exchange, self.local_range, like, raw=raw, merged=merged)

    @torch.no_grad()
    def set_centres(self, means: ClassMeans) -> None:
        """Set the rows of all classes that have samples in `means` to their means. Class centres only.

        A class whose mean is zero or not finite keeps its row.

        Raises:
            ValueError: the weights are learned.
        """
        if not isinstance(self.weights, ClassCentres):
            raise ValueError(
                f"weights: {self.weights!r}; allowed for set_centres: ClassCentres(...)"
            )
        self._refuse_between("set_centres()")
        classes, centres = means.means()
        usable = is_direction(centres)
        self._table.set_rows(classes[usable], centres[usable], row_step=1)

    @torch.no_grad()
    def centre_angles(self, means: ClassMeans) -> tuple[Tensor, Tensor, Tensor]:
        """How far rows are from their class centres: this rank's classes that have samples in `means`.

        Returns:
            Class ids int64 [m]; angle in radians between centre and (nearest) row [m]; samples int64 [m].
        """
        classes, centres = means.means()
        rows = self._table.current_rows(self._table.rows_of(classes)).to(centres.dtype)
        rows = rows.view(-1, self._table.num_centres, self.embedding_dim)
        cosine = nn.functional.cosine_similarity(rows, centres[:, None], dim=2).amax(1)
        angle = torch.arccos(cosine.clamp(-1.0, 1.0))
        return classes + self.local_range[0], angle, means.counts[classes]

    def _checked_ids(self, ids: Tensor) -> Tensor:
        ids = torch.as_tensor(ids, device=self._table.device).reshape(-1).to(torch.int64)
        bad = (ids < 0) | (ids >= self.num_classes)
        if bool(bad.any()):
            raise ValueError(f"ids: {int(ids[bad][0])}; allowed: 0 <= id < {self.num_classes}")
        return ids

    def _owned(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        start, stop = self.local_range
        mine = (ids >= start) & (ids < stop)
        return mine, ids[mine] - start

    @torch.no_grad()
    def nearest_classes(
        self, features: Tensor, other_than: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The class of highest cosine for each of this rank's features. Collective.

        Args:
            features: [b, D] raw; b may differ between ranks.
            other_than: int64 [b], for each feature a class that is no answer, as its own; all ranks or none.

        Returns:
            class ids int64 [b] and cosines [b]; ties go to the lowest id. With no other class the cosine is
            -inf.
        """
        if other_than is not None:
            other_than = self.merged_classes.canonical(self._checked_ids(other_than))
        exchange = Exchange(
            self.comm, self.embedding_dim, self.num_classes, self.compute_dtype, capacity=None
        )
        with no_autocast(features):
            absent = forward_pass.absent_classes(self._parts, None)
            return nearest_classes(exchange, self._table, features, absent, other_than)

    # -- state ---------------------------------------------------------------------------------

    @property
    def row_names(self) -> list[str]:
        """Names in the state_dict of what goes by class: weight, optimiser rows, steps."""
        return self._table.names

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        tensors = table_state(self._table, self.comm)  # what goes by class, and what ranks share
        tensors |= {"objective_state": self._running.tensor(), "merged": self.merged_classes.pairs}
        for name, tensor in tensors.items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {
            key.removeprefix(prefix): value
            for key, value in state_dict.items()
            if key.startswith(prefix)
        }
        names = [*table_names(self._table, own), "objective_state", "merged"]
        missing_keys.extend(prefix + name for name in names if name not in own)
        unexpected_keys.extend(prefix + name for name in own if name not in names)
        if not set(names) <= set(own):
            return
        try:
            self._running.check(own["objective_state"])
            load_table_state(self._table, own)
            self._running.load(own["objective_state"])
            self.merged_classes.set(own["merged"])
            self.drop_contributions()
        except ValueError as error:
            error_msgs.append(str(error))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Refuse .to(), .half(), ...: rows do not move; device and dtypes are arguments."""
        probe = self._table.empty(0)
        moved = fn(probe)
        if moved.device != probe.device or moved.dtype != probe.dtype:
            raise RuntimeError(
                "the class table cannot be moved or cast; give device=, row_dtype= and compute_dtype= to "
                "ModelParallelSoftmax instead"
            )
        return self


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """The head states its own dtypes: a surrounding autocast must not lower them."""
    return torch.autocast(tensor.device.type, enabled=False)
