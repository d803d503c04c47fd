"""The sharded head beside a DeepSpeed engine, whose ZeRO stages shard the backbone.

Run it:

    deepspeed --num_gpus 2 examples/deepspeed_engine.py --stage 2
    torchrun --nproc-per-node 2 examples/deepspeed_engine.py --stage 2
"""

import argparse
import os

os.environ.setdefault("DS_ACCELERATOR", "cuda" if os.path.exists("/dev/nvidia0") else "cpu")

import deepspeed
import torch
import torch.distributed as dist
from patterns import Patterns
from torch.utils.data import DataLoader, DistributedSampler

from mpsoftmax import CosFace, ModelParallelSoftmax, RowSGD
from mpsoftmax.backbones import build_backbone


def main() -> None:
    """Train for some steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--local_rank", type=int, default=0, help="the launcher gives it")
    options = parser.parse_args()

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if cuda else "gloo")
    world = dist.get_world_size()
    # Serves inference only, and would be compiled for minutes at the first use.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.manual_seed(0)
    dataset = Patterns()
    net = build_backbone("small", embedding_dim=64, image_size=(32, 32))
    engine, _, _, _ = deepspeed.initialize(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4),
        config={
            "train_batch_size": 64,
            "gradient_clipping": 0.0,  # left out, DeepSpeed clips at 1
            "zero_optimization": {"stage": options.stage},
            "zero_allow_untested_optimizer": True,
        },
        dist_init_required=False,
    )
    head = ModelParallelSoftmax(
        embedding_dim=64,
        num_classes=dataset.num_classes,
        objective=CosFace(scale=32.0, margin=0.2),
        optimizer=RowSGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
        device=engine.device,
    )

    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=64 // world, sampler=sampler, drop_last=True)
    step, epoch = 0, 0
    while step < options.steps:
        sampler.set_epoch(epoch)
        for images, labels in loader:
            loss = head(engine(images.to(engine.device)), labels.to(engine.device))
            engine.backward(loss)  # averages over ranks, which the head's factor world undoes
            engine.step()
            head.step()
            step += 1
            if dist.get_rank() == 0 and (step % 20 == 0 or step == options.steps):
                cosine = float(head.last_stats["target_cosine"])
                print(f"step {step}: loss {float(loss.detach()):.3f}, target cosine {cosine:.3f}")
            if step == options.steps:
                break
        epoch += 1
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
