"""The sharded head inside a plain PyTorch loop with DistributedDataParallel.

Run it, on one process or several, with half of the classes each on two:

    python examples/plain_loop.py                                        # one process
    torchrun --nproc-per-node 2 examples/plain_loop.py                   # two ranks, half of the classes each
"""

import argparse
import os

import torch
import torch.distributed as dist
from patterns import Patterns
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from mpsoftmax import CosFace, ModelParallelSoftmax, RowSGD
from mpsoftmax.backbones import build_backbone


def main() -> None:
    """Train for some steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps

    cuda = torch.cuda.is_available()
    distributed = "RANK" in os.environ
    if distributed:
        dist.init_process_group("nccl" if cuda else "gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    )

    torch.manual_seed(
        0
    )  # the same backbone on every rank; the head's rows depend on its seed alone
    dataset = Patterns()
    net = build_backbone("small", embedding_dim=64, image_size=(32, 32)).to(device)
    model = DistributedDataParallel(net) if distributed else net
    head = ModelParallelSoftmax(
        embedding_dim=64,
        num_classes=dataset.num_classes,
        objective=CosFace(scale=32.0, margin=0.2),
        optimizer=RowSGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
        device=device,
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    # One schedule for both: the head's optimiser is a torch.optim.Optimizer too.
    schedules = [
        torch.optim.lr_scheduler.CosineAnnealingLR(one, steps)
        for one in (optimizer, head.optimizer)
    ]

    sampler = DistributedSampler(dataset, world, rank)
    loader = DataLoader(dataset, batch_size=64 // world, sampler=sampler)
    step, epoch = 0, 0
    while step < steps:
        sampler.set_epoch(epoch)
        for images, labels in loader:
            loss = head(model(images.to(device)), labels.to(device))  # mean over all ranks' samples
            optimizer.zero_grad()
            loss.backward()  # features' gradient comes times world, as DDP averages
            optimizer.step()
            head.step()  # class rows move; their gradient never exists as a whole
            for schedule in schedules:
                schedule.step()
            step += 1
            if rank == 0 and (step % 20 == 0 or step == steps):
                cosine = float(head.last_stats["target_cosine"])
                print(f"step {step}: loss {float(loss.detach()):.3f}, target cosine {cosine:.3f}")
            if step == steps:
                break
        epoch += 1
    if distributed:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
