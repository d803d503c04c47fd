"""PartialFC_V2 of arcface_torch, its signature and its loop, on our head.

The user's optimiser holds backbone and classifier and knows nothing of shards or samples. Here
`parameters()` gives one number, the pulse. Every backward adds the factor of its loss to the pulse's
gradient (1, the loss scale of a GradScaler, 1 / gradient_acc), and whatever the loop does to gradients it
does to the pulse's too. Once the optimiser has made its step, a hook finds the pulse among its parameters and
moves the class rows by that group's learning rate, momentum and decay, with their gradient multiplied as the
pulse's was since. A gradient that was dropped (zero_grad) takes the class rows' with it.
"""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from mpsoftmax.comm import local_rows
from mpsoftmax.compat.margins import MarginLoss
from mpsoftmax.head.candidates import Uniform
from mpsoftmax.head.head import ModelParallelSoftmax
from mpsoftmax.head.negatives import AllNegatives
from mpsoftmax.head.objectives import Objective
from mpsoftmax.head.row_optim import RowAdamW, RowRule, RowSGD

RULES: dict[str, tuple[type[RowRule], type[torch.optim.Optimizer]]] = {
    "sgd": (RowSGD, torch.optim.SGD),
    "adamw": (RowAdamW, torch.optim.AdamW),
}
PLAIN = {"dampening": 0, "nesterov": False, "maximize": False, "amsgrad": False}
"""Options of torch's optimisers that move class rows as ours do."""


class PartialFC_V2(nn.Module):
    """The sharded margin softmax under arcface_torch's name.

    Args:
        margin_loss: CombinedMarginLoss, ArcFace or CosFace of mpsoftmax.compat, or an Objective of ours.
        embedding_size: D.
        num_classes: Classes over all ranks.
        sample_rate: Share of the classes that take part in a step; 1: all.
        fp16: Matrix products in bfloat16, which needs no loss scale of its own.
        optimizer: "sgd" or "adamw": what the loop's optimiser is.
        untouched: "lazy": rows that a sampled step leaves out move by momentum and decay, as there, once they
            are next needed; "frozen": they stay.
        seed: Key of initial rows and samples.
        device: Where the rows live; None: this process's GPU, or the CPU where there is none.

    Raises:
        ValueError: an argument is out of range, or a margin loss is code of somebody else's.
    """

    _version = 2

    def __init__(
        self,
        margin_loss: MarginLoss | Objective,
        embedding_size: int,
        num_classes: int,
        sample_rate: float = 1.0,
        fp16: bool = False,
        *,
        optimizer: str = "sgd",
        untouched: str = "lazy",
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if optimizer not in RULES:
            raise ValueError(f"optimizer: {optimizer!r}; allowed: {', '.join(RULES)}")
        loss = described(margin_loss)
        if device is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        rule, self._kind = RULES[optimizer]
        self._held = (  # in a tuple: a child module's state would be DTensors, which are not for torch.save
            ModelParallelSoftmax(
                embedding_size,
                num_classes,
                objective=loss.objective,
                negatives=loss.negatives,
                candidates=Uniform(sample_rate) if sample_rate < 1 else "all",
                optimizer=rule(),
                untouched=untouched,
                compute_dtype=torch.bfloat16 if fp16 else torch.float32,
                device=device,
                seed=seed,
            ),
        )
        self.embedding_size, self.sample_rate, self.fp16 = embedding_size, sample_rate, fp16
        self.rank, self.world_size = self.head.comm.rank, self.head.comm.world
        self.class_start, stop = self.head.local_range
        self.num_local = stop - self.class_start
        self.pulse = nn.Parameter(torch.zeros(1, device=device))
        self._beaten = 0.0
        self.pulse.register_hook(self._count)
        follow_steps(self)

    @property
    def head(self) -> ModelParallelSoftmax:
        """The head itself."""
        return self._held[0]

    @property
    def weight(self) -> Tensor:
        """This rank's rows [num_local, D], live."""
        return local_rows(self.head.state_dict()["weight"])

    def forward(self, local_embeddings: Tensor, local_labels: Tensor) -> Tensor:
        """Mean loss over the samples of all ranks; collective.

        Args:
            local_embeddings: [b, D]; b may differ between ranks.
            local_labels: int [b] or [b, 1]; -1 leaves a sample out.

        Raises:
            ValueError: on all ranks, for a label that is no class.
        """
        labels = local_labels.reshape(-1).long()
        if not torch.is_grad_enabled():
            return self.head(local_embeddings, labels)
        if self._beaten and not self._pulse_gradient():  # zero_grad() instead of step()
            self._drop()
        return self.head(local_embeddings, labels) + (self.pulse - self.pulse.detach()).sum()

    def _pulse_gradient(self) -> float:
        return 0.0 if self.pulse.grad is None else float(self.pulse.grad)

    def _count(self, gradient: Tensor) -> None:
        self._beaten += float(gradient)

    def _drop(self) -> None:
        self.head.zero_grad()
        self._beaten = 0.0

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the class rows as `optimizer`, which has just made a step, moves what it holds.

        Nothing happens where it does not hold this module's parameter.

        Raises:
            ValueError: it is an optimiser of another kind than this module was made for.
        """
        groups = [g for g in optimizer.param_groups if any(p is self.pulse for p in g["params"])]
        if not groups or not self._beaten:
            return
        group = groups[0]
        self._check(optimizer, group)
        factor = self._pulse_gradient() / self._beaten
        if factor == 0:  # the optimiser saw no gradient
            self._drop()
            return
        if factor != 1:
            self.head.scale_gradient(factor)
        own = self.head.optimizer.param_groups[0]
        own.update({name: group[name] for name in self.head.row_rule.defaults()})
        self.head.step()
        self._beaten = 0.0
        with torch.no_grad():
            self.pulse.zero_()

    def _check(self, optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> None:
        wanted = self._kind
        if type(optimizer) is not wanted:
            names = {kind.__name__: name for name, (_, kind) in RULES.items()}
            name = type(optimizer).__name__
            cure = f"PartialFC_V2(..., optimizer={names[name]!r})" if name in names else names
            raise ValueError(
                f"PartialFC_V2: its parameters were given to {name}, but it was made for {wanted.__name__}; "
                f"allowed: {cure}"
            )
        for option, value in PLAIN.items():
            if group.get(option, value) != value:
                raise ValueError(
                    f"PartialFC_V2: {wanted.__name__} with {option}={group[option]!r}; allowed: {value!r}"
                )

    # -- state -----------------------------------------------------------------------------------

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """`weight` [num_local, D], as there, and beside it the optimiser's rows: this rank's, plain."""
        for name, value in self.head.state_dict().items():
            destination[prefix + name] = local_rows(value)

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
        """What `state_dict` gave, at the same world size; or `weight` alone, as arcface_torch saves it."""
        own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        rows = own.get("weight")
        if not isinstance(rows, Tensor) or rows.shape != (self.num_local, self.embedding_size):
            shape = tuple(rows.shape) if isinstance(rows, Tensor) else None
            error_msgs.append(
                f"weight: shape {shape}; allowed: {(self.num_local, self.embedding_size)}: rows of rank "
                f"{self.rank} of {self.world_size} by the torch.chunk rule (mpsoftmax convert re-cuts files)"
            )
            return
        self._drop()
        if own.keys() == {"weight"}:
            stop = self.class_start + self.num_local
            self.head.load_rows(torch.arange(self.class_start, stop), rows)
            return
        try:
            self.head.load_state_dict(whole_again(self.head, own))
        except (RuntimeError, ValueError) as error:
            error_msgs.append(str(error))

    def _apply(self, fn: Any, recurse: bool = True) -> "PartialFC_V2":
        """`.cuda()` and the like: the rows are where they were made and stay there, or it is an error."""
        self.head._apply(fn)
        return super()._apply(fn, recurse)


class PartialFC(PartialFC_V2):
    """PartialFC of before 2023: rows that a sampled step leaves out stay as they are.

    Its forward was given the optimiser too; here the optimiser's steps are followed.
    """

    def __init__(self, *arguments: Any, untouched: str = "frozen", **more: Any) -> None:
        super().__init__(*arguments, untouched=untouched, **more)

    def forward(
        self,
        local_embeddings: Tensor,
        local_labels: Tensor,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Tensor:
        """See PartialFC_V2.forward; `optimizer` is not needed."""
        return super().forward(local_embeddings, local_labels)


def described(margin_loss: object) -> MarginLoss:
    """The margin loss as the head takes it.

    Raises:
        ValueError: it is none of ours.
    """
    if isinstance(margin_loss, MarginLoss):
        return margin_loss
    if isinstance(margin_loss, Objective):
        return MarginLoss(margin_loss, AllNegatives())
    raise ValueError(
        f"margin_loss: a {type(margin_loss).__module__}.{type(margin_loss).__name__}; allowed: "
        "CombinedMarginLoss, ArcFace, CosFace of mpsoftmax.compat, or an Objective such as mpsoftmax.AdaFace"
    )


def whole_again(head: ModelParallelSoftmax, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This rank's plain rows as parts of the whole table."""
    return {
        name: head.comm.shard_rows(value, head.num_classes) if name in head.row_names else value
        for name, value in own.items()
    }


def follow_steps(module: PartialFC_V2) -> None:
    """Tell the module of every optimiser's steps for as long as it lives."""
    known = weakref.ref(module)

    def after_step(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        alive = known()
        if alive is not None:
            alive.follow(optimizer)

    weakref.finalize(module, register_optimizer_step_post_hook(after_step).remove)
