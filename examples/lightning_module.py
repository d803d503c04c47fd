"""The sharded head inside Lightning: manual optimisation, any number of devices.

Run it:

    python examples/lightning_module.py --devices 2
"""

import argparse
from typing import Any

import lightning
import torch
from patterns import Patterns
from torch import Tensor
from torch.utils.data import DataLoader

from mpsoftmax import CosFace, ModelParallelSoftmax, RowSGD
from mpsoftmax.backbones import build_backbone


class Embedding(lightning.LightningModule):
    """A backbone under Lightning's strategy, and the head outside it."""

    def __init__(self, num_classes: int, steps: int) -> None:
        super().__init__()
        # The head moves its own rows, whose gradient never exists: Lightning must not step for it.
        self.automatic_optimization = False
        self.num_classes, self.steps = num_classes, steps
        self.net = build_backbone("small", embedding_dim=64, image_size=(32, 32))
        self._heads: list[ModelParallelSoftmax] = []

    @property
    def head(self) -> ModelParallelSoftmax:
        """Not a submodule: its rows differ from rank to rank, so DDP must not see them."""
        return self._heads[0]

    def configure_optimizers(self) -> dict[str, Any]:
        """For the backbone; called when the process group exists, which the head needs."""
        if not self._heads:
            self._heads.append(
                ModelParallelSoftmax(
                    embedding_dim=64,
                    num_classes=self.num_classes,
                    objective=CosFace(scale=32.0, margin=0.2),
                    optimizer=RowSGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
                    device=self.device,
                )
            )
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def training_step(self, batch: list[Tensor], batch_index: int) -> None:
        """One step of backbone and head."""
        images, labels = batch
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        loss = self.head(self.net(images), labels)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.head.optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
        self.head.step()
        schedule.step()
        self.log("loss", loss.detach(), prog_bar=True)
        self.log("target cosine", self.head.last_stats["target_cosine"], prog_bar=True)


def main() -> None:
    """Train for some steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accelerator", default="auto")
    options = parser.parse_args()

    lightning.seed_everything(0)
    dataset = Patterns()
    trainer = lightning.Trainer(
        max_steps=options.steps,
        devices=options.devices,
        accelerator=options.accelerator,
        strategy="ddp" if options.devices > 1 else "auto",
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(dataset, batch_size=64 // options.devices, shuffle=True, drop_last=True)
    trainer.fit(Embedding(dataset.num_classes, options.steps), loader)
    if trainer.is_global_zero:
        figures = trainer.callback_metrics
        print(
            f"step {trainer.global_step}: loss {float(figures['loss']):.3f}, "
            f"target cosine {float(figures['target cosine']):.3f}"
        )


if __name__ == "__main__":
    main()
