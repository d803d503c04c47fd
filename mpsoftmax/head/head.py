"""ModelParallelSoftmax: the sharded classifier.

One step (docs/architecture.md), with B valid samples of all ranks:

    normalise, pack, all-gather (1)          exchange.py          [B, D] on every rank
    draw candidate rows                      candidates.py        no communication
    sweep the shard                          kernels/             total, pull, target cosine
    all-reduce (total, t) (2)                2 numbers a sample   (a running maximum: all-gather of 3)
    Phi and its derivatives                  objectives.py        vectors of length B, same on all ranks
    reduce-scatter feature gradients (3)     in backward          [b, D]
    class gradients, fused with the update   in step()            class_table.py, row_optim.py
"""

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import ProcessGroup

from mpsoftmax.comm import Comm
from mpsoftmax.head.arguments import check_choice, check_part, check_whole
from mpsoftmax.head.backward import HeadFunction, Recorded, feature_gradient, target_units
from mpsoftmax.head.candidates import All, Candidates
from mpsoftmax.head.class_table import UNTOUCHED, ClassTable, local_range
from mpsoftmax.head.derivatives import Derivatives, Reduced, differentiate
from mpsoftmax.head.exchange import Exchange, GlobalBatch, LocalBatch
from mpsoftmax.head.gradient import (
    Contribution,
    TileSource,
    coefficients,
    row_norms,
    union_of,
)
from mpsoftmax.head.objectives import Objective, objective_named
from mpsoftmax.head.optimizer import Optimizer
from mpsoftmax.head.row_optim import RowRule, RowSGD
from mpsoftmax.head.shift import static_shift
from mpsoftmax.head.table_state import load_table_state, table_state
from mpsoftmax.kernels.problem import Problem, Swept, finite
from mpsoftmax.kernels.select import select

COMPUTE_DTYPES = (torch.float64, torch.float32, torch.bfloat16)
ROW_DTYPES = (torch.float64, torch.float32)


class ModelParallelSoftmax(nn.Module):
    """Margin softmax whose class rows are partitioned over the ranks.

    Args:
        embedding_dim: D.
        num_classes: Classes over all ranks; rank r owns those of `local_range`.
        objective: An Objective, or the name of one with its default margins.
        candidates: "all", or Uniform(rate): which rows take part in a step.
        optimizer: RowSGD(...) (default) or RowAdamW(...): how rows move in `step()`.
        untouched: What happens to rows outside the candidates: "frozen" stay as they are, "lazy" are caught
            up exactly as if every step had moved them with a zero gradient.
        compute_dtype: dtype of the matrix products: float64, float32 or bfloat16. Sums are float32 or wider.
        row_dtype: dtype of rows and optimiser rows: float32 or float64.
        kernel: "auto", "blocked" or "reference".
        e_budget_bytes: Bytes of exponentials kept between forward and step(); past it they are recomputed.
        batch_capacity: Largest local batch. With it a step has three collectives; without it a fourth
            exchanges the sizes.
        init_std: Standard deviation of the initial rows.
        device: Where the rows live; default CPU.
        seed: Key of initial rows and candidate draws.
        process_group: None takes the default group where one exists, else world size 1.

    Raises:
        ValueError: an argument is out of range, or the ranks do not agree on the arguments.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_classes: int,
        *,
        objective: Objective | str = "arcface",
        candidates: Candidates | str = "all",
        optimizer: RowRule | None = None,
        untouched: str = "frozen",
        compute_dtype: torch.dtype = torch.float32,
        row_dtype: torch.dtype = torch.float32,
        kernel: str = "auto",
        e_budget_bytes: int = 2**30,
        batch_capacity: int | None = None,
        init_std: float = 0.01,
        device: torch.device | str | None = None,
        seed: int = 0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_choice("untouched", untouched, UNTOUCHED)
        check_choice("compute_dtype", compute_dtype, COMPUTE_DTYPES)
        check_choice("row_dtype", row_dtype, ROW_DTYPES)
        check_whole("embedding_dim", embedding_dim, 1)
        check_whole("num_classes", num_classes, 1)
        check_whole("e_budget_bytes", e_budget_bytes, 0)
        check_whole("seed", seed, 0)
        if batch_capacity is not None:
            check_whole("batch_capacity", batch_capacity, 1)
        if not 0 < init_std < float("inf"):
            raise ValueError(f"init_std: {init_std!r}; allowed: a positive number")
        self.embedding_dim, self.num_classes = embedding_dim, num_classes
        self.objective = objective_named(objective) if isinstance(objective, str) else objective
        self.candidates = (
            candidates_named(candidates) if isinstance(candidates, str) else candidates
        )
        check_part("objective", self.objective, Objective)
        check_part("candidates", self.candidates, Candidates)
        self.compute_dtype, self.e_budget_bytes, self.seed = compute_dtype, e_budget_bytes, seed
        self.row_rule = optimizer or RowSGD()
        self.comm = Comm(process_group)
        self._agree(kernel, untouched, row_dtype, batch_capacity, init_std)
        self.local_range = local_range(num_classes, self.comm.world, self.comm.rank)
        self._kernel = select(kernel)
        self._shift = static_shift(self.objective.logit_range(), num_classes, compute_dtype)
        self._exchange = Exchange(
            self.comm, embedding_dim, num_classes, compute_dtype, batch_capacity
        )
        self._table = ClassTable(
            num_classes=num_classes,
            dim=embedding_dim,
            local=self.local_range,
            dtype=row_dtype,
            device=torch.device("cpu" if device is None else device),
            seed=seed,
            init_std=init_std,
            rule=self.row_rule,
            untouched=untouched,
        )
        self.optimizer = Optimizer(
            self._table.weight,
            self.row_rule.defaults(),
            self.apply_contributions,
            self.drop_contributions,
        )
        self._contributions: list[Contribution] = []
        self._spare: Tensor | None = None  # memory of E of the last step, for the next forward
        self._candidate_index: Tensor | None = None
        self._num_draws = 0  # training forwards since the last step: each draws its own candidates
        self.last_stats: dict[str, Tensor] = {}

    def _agree(self, *more: object) -> None:
        """Raise on every rank where the ranks were given different heads; nothing is counted."""
        own = (self.embedding_dim, self.num_classes, self.objective, self.candidates, self.row_rule)
        numbers = (self.compute_dtype, self.e_budget_bytes, self.seed)
        description = repr((*own, *numbers, *more))
        digest = int.from_bytes(hashlib.sha256(description.encode()).digest()[:7], "little")
        digests = self.comm.all_gather(torch.tensor([digest], device=self.comm.device))[:, 0]
        self.comm.reset_counters()
        different = torch.nonzero(digests != digests[0])[:, 0].tolist()
        if different:
            raise ValueError(
                f"ranks disagree about the head: ranks {different} differ from rank 0; this rank "
                f"({self.comm.rank}) has {description}; allowed: equal arguments on all ranks"
            )

    # -- forward and backward ------------------------------------------------------------------

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
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
                return self._forward(features, labels, want_gradient=False)[0].loss
            anchor = torch.zeros((), device=features.device, requires_grad=True)
            arguments = (features, anchor, labels, self._record, self._backward)
            return HeadFunction.apply(*arguments)  # type: ignore[return-value]

    def _forward(
        self, features: Tensor, labels: Tensor, *, want_gradient: bool
    ) -> tuple[Derivatives, Swept, LocalBatch, GlobalBatch, Reduced]:
        """The forward pass up to the derivatives of Phi."""
        local, batch = self._exchange.gather(features, labels)
        index, target = self._draw(batch.labels)
        self._candidate_index = index
        rows = self._table.current_rows(index)
        swept = self._sweep(batch, rows, target, want_gradient)
        reduced = self._reduce(swept, self._target_cosine(batch, rows, target))
        derivatives = differentiate(self.objective, reduced, batch.norm)
        return derivatives, swept, local, batch, reduced

    def _record(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Recorded]:
        """The forward pass of training: the loss, and what its backward needs."""
        derivatives, swept, local, batch, reduced = self._forward(
            features, labels, want_gradient=True
        )
        self._num_draws += 1
        candidates = torch.tensor(swept.problem.num_rows)
        self.last_stats = {**derivatives.statistics, "candidates": candidates}
        contribution = Contribution(
            index=self._candidate_index,
            swept=swept,
            unit=batch.unit.to(swept.total.dtype),
            negatives=coefficients(swept, reduced, derivatives.by_negatives),
            target=derivatives.by_target,
        )
        return derivatives.loss, Recorded(
            contribution=contribution,
            local=local,
            batch=batch,
            target_cosine=reduced.cosine,
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
        with no_autocast(part.unit):
            gradient = feature_gradient(recorded, self._exchange)
        self._contributions.append(
            replace(part, negatives=part.negatives * factor, target=part.target * factor)
        )
        return gradient * (factor * self.comm.world)

    def _draw(self, labels: Tensor) -> tuple[Tensor | None, Tensor]:
        """This shard's candidate rows and, for every sample, its class's place among them or -1."""
        start, stop = self.local_range
        owned = (labels >= start) & (labels < stop)
        if isinstance(self.candidates, All):
            return None, torch.where(owned, labels - start, -1)
        positives = np.unique((labels[owned] - start).cpu().numpy())
        key = (self.seed, self.comm.rank, self._table.num_steps, self._num_draws)
        drawn = self.candidates.draw(stop - start, positives, key)
        index = torch.from_numpy(drawn).to(labels.device)
        return index, torch.where(owned, torch.searchsorted(index, labels - start), -1)

    def _sweep(
        self, batch: GlobalBatch, rows: Tensor, target: Tensor, want_gradient: bool
    ) -> Swept:
        features = batch.unit
        if self.objective.scale_is_norm:
            features = (features * batch.norm[:, None]).to(self.compute_dtype)
        problem = Problem(
            features=features,
            rows=rows,
            scale=self.objective.cosine_scale,
            target=target,
            shift=self._shift,
        )
        kept = sum(contribution.swept.kept_bytes for contribution in self._contributions)
        budget = max(0, self.e_budget_bytes - kept)
        if not want_gradient:
            return self._kernel.sweep(problem, want_pull=False, keep_bytes=0)
        spare, self._spare = self._spare, None
        return self._kernel.sweep(problem, want_pull=True, keep_bytes=budget, spare=spare)

    def _target_cosine(self, batch: GlobalBatch, rows: Tensor, target: Tensor) -> Tensor:
        """[n] cosine between each sample and its class where this shard owns it, else 0."""
        units = target_units(rows, target, batch.norm.dtype)
        cosine = torch.linalg.vecdot(batch.unit.to(batch.norm.dtype), units)
        return cosine.masked_fill(target < 0, 0.0)

    def _reduce(self, swept: Swept, cosine: Tensor) -> Reduced:
        """Collective (2): the row statistics over all shards.

        With a static shift two numbers a sample are summed; with a running maximum three are gathered.
        """
        if swept.maximum is None:
            total, cosine = self.comm.all_reduce_sum(torch.stack([swept.total, cosine]))
            return Reduced(total, torch.full_like(total, self._shift or 0.0), cosine)
        shards = self.comm.all_gather(torch.stack([swept.total, swept.maximum, cosine]))
        maximum = finite(shards[:, 1].amax(0))
        total = (shards[:, 0] * torch.exp(shards[:, 1] - maximum)).sum(0)
        return Reduced(total, maximum, shards[:, 2].sum(0))

    # -- update --------------------------------------------------------------------------------

    def step(self) -> None:
        """Move the candidate rows by the gradient that the backward calls since the last step left."""
        self.optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradient that the backward calls since the last step left."""
        self.drop_contributions()

    def drop_contributions(self) -> None:
        """Forget the backward calls since the last step; no state has moved."""
        self._contributions.clear()
        self._num_draws = 0

    @torch.no_grad()
    def apply_contributions(self, hyper: Mapping[str, Any]) -> None:
        """One optimiser step from the kept contributions; nothing happens where there are none."""
        if not self._contributions:
            return
        union = union_of([part.index for part in self._contributions])
        sources = [TileSource(self._kernel, part, union) for part in self._contributions]

        def gradient(start: int, stop: int, out: Tensor) -> Tensor:
            for number, source in enumerate(sources):
                source.write(start, stop, out, add=number > 0)
            return out

        self._table.update(union, gradient, row_norms(self._contributions, union), hyper)
        self._spare = self._contributions[-1].swept.kept  # its loss is refused from now on
        self.drop_contributions()

    # -- the table -----------------------------------------------------------------------------

    def candidate_ids(self) -> Tensor:
        """int64 [n]: global ids of this rank's candidate rows in the last forward, ascending."""
        start, stop = self.local_range
        if self._candidate_index is None:
            return torch.arange(start, stop, device=self._table.weight.device)
        return self._candidate_index + start

    @torch.no_grad()
    def class_rows(self, ids: Tensor) -> Tensor:
        """Rows of any classes, on every rank: [n, D] row dtype. Collective; all ranks give the same ids.

        Raises:
            ValueError: an id is outside [0, num_classes).
        """
        ids = self._checked_ids(ids)
        mine, local = self._owned(ids)
        rows = self._table.weight.new_zeros(ids.numel(), self.embedding_dim)
        rows[mine] = self._table.current_rows(local)
        return self.comm.all_reduce_sum(rows)

    @torch.no_grad()
    def load_rows(self, ids: Tensor, rows: Tensor) -> None:
        """Set the rows [n, D] of classes `ids` [n]; their optimiser state starts afresh.

        Every rank may give the same ids; each takes its own.

        Raises:
            ValueError: an id is outside [0, num_classes) or the shapes do not fit.
        """
        ids = self._checked_ids(ids)
        if rows.shape != (ids.numel(), self.embedding_dim):
            raise ValueError(
                f"rows: shape {tuple(rows.shape)}; allowed: ({ids.numel()}, {self.embedding_dim})"
            )
        if self._contributions:
            raise RuntimeError("load_rows() between backward() and step(): allowed after step()")
        mine, local = self._owned(ids)
        self._table.set_rows(local, rows.to(self._table.weight.device)[mine])

    def _checked_ids(self, ids: Tensor) -> Tensor:
        ids = torch.as_tensor(ids, device=self._table.weight.device).reshape(-1).to(torch.int64)
        bad = (ids < 0) | (ids >= self.num_classes)
        if bool(bad.any()):
            raise ValueError(f"ids: {int(ids[bad][0])}; allowed: 0 <= id < {self.num_classes}")
        return ids

    def _owned(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        start, stop = self.local_range
        mine = (ids >= start) & (ids < stop)
        return mine, ids[mine] - start

    @torch.no_grad()
    def nearest_classes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The class of highest cosine for each of this rank's features. Collective.

        Args:
            features: [b, D] raw; b may differ between ranks.

        Returns:
            class ids int64 [b] and cosines [b]; ties go to the lowest id.
        """
        labels = torch.zeros(features.shape[0], dtype=torch.int64, device=features.device)
        exchange = Exchange(self.comm, self.embedding_dim, 1, self.compute_dtype, capacity=None)
        with no_autocast(features):
            return self._nearest(exchange, *exchange.gather(features, labels))

    def _nearest(
        self, exchange: Exchange, local: LocalBatch, batch: GlobalBatch
    ) -> tuple[Tensor, Tensor]:
        best, where = torch.full_like(batch.norm, -torch.inf), torch.zeros_like(batch.labels)
        unit, start = batch.unit.to(batch.norm.dtype), self.local_range[0]
        rows = self._table.current_rows(None)
        for first in range(0, rows.shape[0], 4096):
            block = nn.functional.normalize(rows[first : first + 4096].to(unit.dtype), dim=1)
            value, position = (unit @ block.T).max(1)
            better = value > best
            best = torch.where(better, value, best)
            where = torch.where(better, position + (start + first), where)
        values, ids = self.comm.all_gather(best), self.comm.all_gather(where)
        winner = values.argmax(0, keepdim=True)
        found, cosine = ids.gather(0, winner)[0], values.gather(0, winner)[0]
        num = local.norm.shape[0]
        return exchange.own(found, batch)[:num], exchange.own(cosine, batch)[:num]

    # -- state ---------------------------------------------------------------------------------

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name, tensor in table_state(self._table, self.comm).items():
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
        names = [*self._table.tensors(), *self._table.progress()]
        own = {
            key.removeprefix(prefix): value
            for key, value in state_dict.items()
            if key.startswith(prefix)
        }
        missing_keys.extend(prefix + name for name in names if name not in own)
        unexpected_keys.extend(prefix + name for name in own if name not in names)
        if not set(names) <= set(own):
            return
        try:
            load_table_state(self._table, own)
            self.drop_contributions()
        except ValueError as error:
            error_msgs.append(str(error))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Refuse .to(), .half(), ...: rows do not move; device and dtypes are arguments."""
        probe = self._table.weight[:0]
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


def candidates_named(name: str) -> Candidates:
    """The candidates of that name.

    Raises:
        ValueError: the name is not known.
    """
    if name != "all":
        raise ValueError(f"candidates: {name!r} is not known; allowed: 'all' or Uniform(rate=...)")
    return All()
