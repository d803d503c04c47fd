"""ModelParallelSoftmax: the sharded classifier.

One step (DESIGN, section 3), with B valid samples of all ranks:

    normalise, pack, all-gather (1)          exchange.py          [B, D] on every rank
    draw candidate rows                      candidates.py        no communication
    sweep the shard                          kernels/             total, pull, target cosine
    all-reduce (total, t) (2)                2 numbers a sample   (a running maximum: all-gather of 3)
    Phi and its derivatives                  objectives.py        vectors of length B, same on all ranks
    reduce-scatter feature gradients (3)     in backward          [b, D]
    class gradients, fused with the update   in step()            class_table.py, row_optim.py
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpsoftmax.comm import Comm, ProcessGroup
from mpsoftmax.head.arguments import check_choice, check_whole
from mpsoftmax.head.candidates import All, Candidates
from mpsoftmax.head.class_table import UNTOUCHED, ClassTable, local_range
from mpsoftmax.head.exchange import Exchange, GlobalBatch, LocalBatch
from mpsoftmax.head.gradient import Contribution, TileSource, union_of
from mpsoftmax.head.objectives import Objective, objective_named
from mpsoftmax.head.optimizer import Optimizer
from mpsoftmax.head.row_optim import RowRule, RowSGD
from mpsoftmax.head.shift import static_shift
from mpsoftmax.head.table_state import load_table_state, table_state
from mpsoftmax.kernels.problem import NORM_FLOOR, Problem, Swept, finite
from mpsoftmax.kernels.select import select

COMPUTE_DTYPES = (torch.float64, torch.float32, torch.bfloat16)
ROW_DTYPES = (torch.float64, torch.float32)


@dataclass(frozen=True)
class Forward:
    """One forward's results, kept until its backward."""

    contribution: Contribution
    local: LocalBatch
    batch: GlobalBatch
    target_cosine: Tensor
    """[n] over all ranks."""
    norm_gradient: Tensor
    """[n]: dL/da."""


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
        self.compute_dtype, self.e_budget_bytes, self.seed = compute_dtype, e_budget_bytes, seed
        self.row_rule = optimizer or RowSGD()
        self.comm = Comm(process_group)
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
            device=torch.device(device or "cpu"),
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
        self.last_stats: dict[str, Tensor] = {}

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
        if not torch.is_grad_enabled():
            return self._evaluate(features, labels, want_gradient=False)[0]
        anchor = torch.zeros((), device=features.device, requires_grad=True)
        return HeadFunction.apply(features, anchor, labels, self)  # type: ignore[return-value]

    def _evaluate(
        self, features: Tensor, labels: Tensor, *, want_gradient: bool
    ) -> tuple[Tensor, Forward | None]:
        """The forward pass up to the derivatives of Phi."""
        local, batch = self._exchange.gather(features, labels)
        index, target = self._draw(batch.labels)
        rows = self._table.current_rows(index)
        swept = self._sweep(batch, rows, target, want_gradient)
        total, maximum, cosine = self._reduce(swept, self._target_cosine(batch, rows, target))
        loss, statistics, gradients = self._objective(total, maximum, cosine, batch.norm)
        self._candidate_index = index
        self.last_stats = {**statistics, "candidates": torch.tensor(rows.shape[0])}
        if not want_gradient:
            return loss, None
        by_target, by_negatives, by_norm = gradients
        relative = total if swept.maximum is None else total * torch.exp(maximum - swept.maximum)
        # 0/0 where a sample has no negatives anywhere: its negatives' gradient is exactly zero.
        coefficient = torch.where(total > 0, by_negatives / relative, torch.zeros_like(total))
        if swept.maximum is not None:  # a shard without any negatives of that sample
            coefficient = torch.where(swept.total > 0, coefficient, torch.zeros_like(total))
        contribution = Contribution(
            index, swept, batch.unit.to(swept.total.dtype), coefficient, by_target
        )
        return loss, Forward(contribution, local, batch, cosine, by_norm)

    def _draw(self, labels: Tensor) -> tuple[Tensor | None, Tensor]:
        """This shard's candidate rows and, for every sample, its class's place among them or -1."""
        start, stop = self.local_range
        owned = (labels >= start) & (labels < stop)
        if isinstance(self.candidates, All):
            return None, torch.where(owned, labels - start, -1)
        positives = np.unique((labels[owned] - start).cpu().numpy())
        key = (self.seed, self.comm.rank, self._table.num_steps, len(self._contributions))
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

    def _reduce(self, swept: Swept, cosine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Collective (2): (total, maximum, target cosine) over all shards, each [n].

        With a static shift two numbers a sample are summed; with a running maximum three are gathered.
        """
        if swept.maximum is None:
            summed = self.comm.all_reduce_sum(torch.stack([swept.total, cosine]))
            return summed[0], torch.full_like(summed[0], self._shift or 0.0), summed[1]
        shards = self.comm.all_gather(torch.stack([swept.total, swept.maximum, cosine]))
        maximum = finite(shards[:, 1].amax(0))
        total = (shards[:, 0] * torch.exp(shards[:, 1] - maximum)).sum(0)
        return total, maximum, shards[:, 2].sum(0)

    def _objective(
        self, total: Tensor, maximum: Tensor, cosine: Tensor, norm: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """Mean loss, statistics, and (dL/dt, dL/dl, dL/da) of the mean; computed in float64."""
        dtype = total.dtype
        t = cosine.double().requires_grad_()
        negatives = (maximum.double() + total.double().log()).requires_grad_()
        a = norm.double().requires_grad_()
        num = max(1, t.numel())
        with torch.enable_grad():
            loss = self.objective.loss(t, negatives, a).sum() / num
            gradients = torch.autograd.grad(
                loss, (t, negatives, a), allow_unused=True, materialize_grads=True
            )
        with torch.no_grad():
            finite_negatives = torch.where(total > 0, negatives, torch.zeros_like(negatives))
            statistics = {
                "target_cosine": (t.sum() / num).to(dtype),
                "negatives_logsumexp": (finite_negatives.sum() / num).to(dtype),
                "q": gradients[1].sum().to(dtype),
                "feature_norm": (a.sum() / num).to(dtype),
            }
        by_target, by_negatives, by_norm = (gradient.to(dtype) for gradient in gradients)
        return loss.detach().to(dtype), statistics, (by_target, by_negatives, by_norm)

    def backward_features(self, forward: Forward, factor: Tensor) -> Tensor:
        """Collective (3) of one forward, and the contribution to the class rows it leaves for step().

        Args:
            forward: What the forward pass kept.
            factor: Scalar: gradient of the user's total with respect to the loss.

        Returns:
            [b, D] accumulate dtype: world_size * factor * gradient of the loss by this rank's raw features.
        """
        part, batch, local = forward.contribution, forward.batch, forward.local
        self._contributions.append(
            replace(part, negatives=part.negatives * factor, target=part.target * factor)
        )
        assert part.swept.pull is not None
        by_unit = part.swept.pull * part.negatives[:, None]
        if self.objective.scale_is_norm:
            by_unit *= batch.norm[:, None]
        problem = part.swept.problem
        units = target_units(problem.rows, problem.target, by_unit.dtype)
        owned = (problem.target >= 0).to(by_unit.dtype)
        by_unit.addcmul_(units, (part.target * owned)[:, None])
        by_unit = self.comm.reduce_scatter_sum(self._exchange.spread(by_unit, batch))
        num = local.norm.shape[0]
        by_unit = by_unit[:num]
        along = torch.linalg.vecdot(by_unit, local.unit)
        by_feature = (by_unit - along[:, None] * local.unit) / local.norm.clamp_min(NORM_FLOOR)[
            :, None
        ]
        if self.objective.scale_is_norm:
            by_norm = self._own(forward.norm_gradient, batch)[:num]
            by_target = self._own(part.target * forward.target_cosine, batch)[:num]
            # Negatives' logits are a <x, w>: their pull along x, over a, is dl/da (FORMULAS 3.7).
            radial = by_norm + (along - by_target) / local.norm.clamp_min(NORM_FLOOR)
            by_feature += radial[:, None] * local.unit
        return by_feature * (factor * self.comm.world)

    def _own(self, values: Tensor, batch: GlobalBatch) -> Tensor:
        """This rank's part [capacity] of values [n] known for all valid samples."""
        return self._exchange.spread(values, batch)[self.comm.rank]

    # -- update --------------------------------------------------------------------------------

    def step(self) -> None:
        """Move the candidate rows by the gradient that the backward calls since the last step left."""
        self.optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradient that the backward calls since the last step left."""
        self.drop_contributions()

    def drop_contributions(self) -> None:
        """Forget the backward calls since the last step; no state has moved."""
        for part in self._contributions:
            self._spare = part.swept.kept
        self._contributions.clear()

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

        self._table.update(union, gradient, hyper)
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
        ignored = torch.full((features.shape[0],), 0, dtype=torch.int64, device=features.device)
        local, batch = self._exchange.gather(features, ignored)
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
        return self._own(found, batch)[:num], self._own(cosine, batch)[:num]

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

    def _apply(self, fn: Any, recurse: bool = True) -> "ModelParallelSoftmax":
        """Refuse .to(), .half(), ...: rows do not move; device and dtypes are arguments."""
        probe = self._table.weight[:0]
        moved = fn(probe)
        if moved.device != probe.device or moved.dtype != probe.dtype:
            raise RuntimeError(
                "the class table cannot be moved or cast; give device=, row_dtype= and compute_dtype= to "
                "ModelParallelSoftmax instead"
            )
        return self


class HeadFunction(torch.autograd.Function):
    """Binds the head's forward and backward to autograd; the class rows are no autograd inputs."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, features: Tensor, anchor: Tensor, labels: Tensor, head: ModelParallelSoftmax
    ) -> Tensor:
        """Loss; `anchor` only makes it differentiable where the features are frozen."""
        loss, ctx.kept = head._evaluate(features, labels, want_gradient=True)
        ctx.head, ctx.dtype = head, features.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """The features' gradient, in their dtype.

        What the forward kept is handed over, not shared: `step()` will reuse its memory.
        """
        kept, ctx.kept = ctx.kept, None
        if kept is None:
            raise RuntimeError(
                "backward through the same head loss twice: not supported; call the head again"
            )
        gradient = ctx.head.backward_features(kept, factor)
        return gradient.to(ctx.dtype), None, None, None


def target_units(rows: Tensor, target: Tensor, dtype: torch.dtype) -> Tensor:
    """[n, D] unit rows of each sample's class; arbitrary where target is -1; zeros without rows."""
    if rows.shape[0] == 0:
        return rows.new_zeros(target.shape[0], rows.shape[1], dtype=dtype)
    return nn.functional.normalize(rows[target.clamp_min(0)].to(dtype), dim=1, eps=NORM_FLOOR)


def candidates_named(name: str) -> Candidates:
    """The candidates of that name.

    Raises:
        ValueError: the name is not known.
    """
    if name != "all":
        raise ValueError(f"candidates: {name!r} is not known; allowed: 'all' or Uniform(rate=...)")
    return All()
