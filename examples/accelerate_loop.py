"""The sharded head beside Hugging Face Accelerate.

Run it:

    accelerate launch --num_processes 2 --cpu examples/accelerate_loop.py
"""

import argparse

import torch
from accelerate import Accelerator
from patterns import Patterns
from torch.utils.data import DataLoader

from mpsoftmax import CosFace, ModelParallelSoftmax, RowSGD
from mpsoftmax.backbones import build_backbone


def main() -> None:
    """Train for some steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    options = parser.parse_args()

    accelerator = Accelerator(cpu=options.cpu)  # makes the process group, which the head needs
    torch.manual_seed(0)
    dataset = Patterns()
    net = build_backbone("small", embedding_dim=64, image_size=(32, 32))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        dataset, batch_size=64 // accelerator.num_processes, shuffle=True, drop_last=True
    )
    # The head is not prepared: it shards itself, and its rows are no parameters to wrap.
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    head = ModelParallelSoftmax(
        embedding_dim=64,
        num_classes=dataset.num_classes,
        objective=CosFace(scale=32.0, margin=0.2),
        optimizer=RowSGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
        device=accelerator.device,
    )

    step = 0
    while step < options.steps:
        for images, labels in loader:
            loss = head(model(images), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            head.step()
            step += 1
            if step % 20 == 0 or step == options.steps:
                cosine = float(head.last_stats["target_cosine"])
                accelerator.print(
                    f"step {step}: loss {float(loss.detach()):.3f}, target cosine {cosine:.3f}"
                )
            if step == options.steps:
                break
    accelerator.end_training()


if __name__ == "__main__":
    main()
