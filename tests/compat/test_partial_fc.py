"""PartialFC_V2 under its public signature: the loop of train_v2.py, in simplified form, against float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

import mpsoftmax
from mpsoftmax.compat import ArcFace, CombinedMarginLoss, CosFace, PartialFC, PartialFC_V2

CLASSES, DIM, WIDTH, STEPS, BATCH = 11, 6, 5, 6, 8


def data():
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(STEPS, BATCH, WIDTH, generator=generator)
    labels = torch.randint(0, CLASSES, (STEPS, BATCH), generator=generator)
    return images, labels


def small_net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(WIDTH, DIM).to(dtype)


def optimizer_of(kind, groups):
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=0.3, momentum=0.9, weight_decay=5e-3)
    return torch.optim.AdamW(groups, lr=0.02, weight_decay=0.1)


def loop(kind="sgd", margins=(1.0, 0.5, 0.0), accumulation=1, scaled=False, skip=None, **arguments):
    """train_v2.py's loop: one optimiser for both, clipping of the backbone, a schedule a step."""
    import torch.distributed as dist

    world = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    backbone = small_net()
    if world > 1:
        backbone = nn.parallel.DistributedDataParallel(backbone)
    margin_loss = CombinedMarginLoss(64, *margins, 0)
    module_partial_fc = PartialFC_V2(
        margin_loss, DIM, CLASSES, optimizer=kind, device="cpu", **arguments
    )
    module_partial_fc.train()
    opt = optimizer_of(
        kind, [{"params": backbone.parameters()}, {"params": module_partial_fc.parameters()}]
    )
    lr_scheduler = torch.optim.lr_scheduler.PolynomialLR(opt, total_iters=2 * STEPS, power=1.0)
    amp = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
    images, labels = data()
    cut = [0, 3, BATCH] if world == 2 else [0, BATCH]
    losses, ids = [], torch.arange(CLASSES)
    start = module_partial_fc.head.class_rows(ids)
    for global_step in range(1, STEPS + 1):
        mine = slice(cut[rank], cut[rank + 1])
        loss = module_partial_fc(
            backbone(images[global_step - 1, mine]), labels[global_step - 1, mine, None]
        )
        losses.append(loss.item())
        amp.scale(loss / accumulation).backward()
        if skip == global_step:
            opt.zero_grad()
        elif global_step % accumulation == 0:
            amp.unscale_(opt)
            nn.utils.clip_grad_norm_(backbone.parameters(), 5)
            amp.step(opt)
            amp.update()
            opt.zero_grad()
        lr_scheduler.step()
    inner = backbone.module if world > 1 else backbone
    return {
        "losses": losses,
        "start": start,
        "rows": module_partial_fc.head.class_rows(ids),
        "net": inner.weight.detach().clone(),
        "mine": (module_partial_fc.class_start, module_partial_fc.num_local),
        "shape": tuple(module_partial_fc.weight.shape),
    }


def dense(start, kind="sgd", margins=(1.0, 0.5, 0.0), accumulation=1, skip=None):
    """The same in float64: all logits, torch's optimiser on all rows, nothing distributed."""
    _, m2, m3 = margins
    backbone, weight = small_net(torch.float64), nn.Parameter(start.double())
    opt = optimizer_of(kind, [{"params": backbone.parameters()}, {"params": [weight]}])
    lr_scheduler = torch.optim.lr_scheduler.PolynomialLR(opt, total_iters=2 * STEPS, power=1.0)
    images, labels = data()
    losses = []
    for global_step in range(1, STEPS + 1):
        x = normalize(backbone(images[global_step - 1].double()))
        cosine = x @ normalize(weight).T
        own = torch.nn.functional.one_hot(labels[global_step - 1], CLASSES).bool()
        moved = torch.cos(torch.acos(cosine) + m2) - m3
        loss = nn.functional.cross_entropy(
            64 * torch.where(own, moved, cosine), labels[global_step - 1]
        )
        losses.append(loss.item())
        (loss / accumulation).backward()
        if skip == global_step:
            opt.zero_grad()
        elif global_step % accumulation == 0:
            nn.utils.clip_grad_norm_(backbone.parameters(), 5)
            opt.step()
            opt.zero_grad()
        lr_scheduler.step()
    return losses, weight.detach(), backbone.weight.detach()


CASES = {
    "arcface": {},
    "cosface": {"margins": (1.0, 0.0, 0.4)},
    "adamw": {"kind": "adamw"},
    "accumulation": {"accumulation": 2},
    "skipped": {"skip": 3},
}


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")  # as in train_v2.py
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_the_loop_equals_a_dense_one_in_float64(ranks, world, case):
    answers = ranks.run(loop, world, **CASES[case])
    losses, rows, net = dense(answers[0]["start"], **CASES[case])
    for answer in answers:
        torch.testing.assert_close(
            torch.tensor(answer["losses"]), torch.tensor(losses), rtol=2e-4, atol=2e-4
        )
        torch.testing.assert_close(answer["rows"].double(), rows, rtol=2e-3, atol=2e-4)
        torch.testing.assert_close(answer["net"].double(), net, rtol=2e-3, atol=2e-4)
    assert not torch.equal(answers[0]["rows"], answers[0]["start"])
    assert [answer["mine"] for answer in answers] == [[(0, 11)], [(0, 6), (6, 5)]][world - 1]
    assert [answer["shape"] for answer in answers] == [[(11, 6)], [(6, 6), (5, 6)]][world - 1]


def test_a_loss_scale_is_taken_out_again(ranks):
    plain, scaled = (ranks.run(loop, 1, scaled=scaled)[0] for scaled in (False, True))
    torch.testing.assert_close(scaled["rows"], plain["rows"], rtol=1e-5, atol=1e-6)


def by_hand(untouched):
    """Our head, stepped by hand as the loop's optimiser would."""
    backbone, ids = small_net(), torch.arange(CLASSES)
    head = mpsoftmax.ModelParallelSoftmax(
        DIM,
        CLASSES,
        objective=mpsoftmax.ArcFace(64.0, 0.5),
        candidates=mpsoftmax.Uniform(0.4),
        optimizer=mpsoftmax.RowSGD(0.3, 0.9, 5e-3),
        untouched=untouched,
    )
    opt = torch.optim.SGD(backbone.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-3)
    images, labels = data()
    for step in range(STEPS):
        head(backbone(images[step]), labels[step]).backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), 5)
        rate = 0.3 * (1 - step / (2 * STEPS))
        for optimizer in (opt, head.optimizer):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        opt.zero_grad()
    return head.class_rows(ids)


@pytest.mark.parametrize("untouched", ["lazy", "frozen"])
def test_sampled_steps_are_those_of_our_head(ranks, untouched):
    rows = ranks.run(loop, 1, sample_rate=0.4, untouched=untouched)[0]["rows"]
    expected = ranks.run(by_hand, 1, untouched=untouched)[0]
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)


def test_the_optimiser_holds_one_number():
    """No gradient and no momentum of the class table's size in the user's optimiser."""
    module = PartialFC_V2(ArcFace(), DIM, 100_000, device="cpu")
    assert sum(p.numel() for p in module.parameters()) == 1
    opt = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.randn(4, DIM, requires_grad=True), torch.arange(4)).backward()
    opt.step()
    assert sum(s["momentum_buffer"].numel() for s in opt.state.values()) == 1
    assert float(module.pulse.detach()) == 0


def test_state_dict_resumes_and_theirs_loads(tmp_path):
    images, labels = data()

    def steps(module, some):
        net = small_net()
        opt = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-3)
        for step in some:
            module(net(images[step]), labels[step]).backward()
            opt.step()
            opt.zero_grad()

    def new():
        return PartialFC_V2(CosFace(), DIM, CLASSES, device="cpu")

    whole, first, second = new(), new(), new()
    steps(whole, range(STEPS))
    steps(first, range(3))
    torch.save(first.state_dict(), tmp_path / "softmax_fc.pt")
    kept = torch.load(tmp_path / "softmax_fc.pt", weights_only=True)
    assert kept["weight"].shape == (CLASSES, DIM)
    second.load_state_dict(kept)
    steps(second, range(3, STEPS))
    assert torch.equal(second.weight, whole.weight)

    theirs = {"weight": torch.randn(CLASSES, DIM)}
    second.load_state_dict(theirs)
    assert torch.equal(second.weight, theirs["weight"])
    with pytest.raises(RuntimeError, match=r"weight: shape \(3, 6\); allowed: \(11, 6\)"):
        second.load_state_dict({"weight": torch.ones(3, DIM)})


def test_labels_and_evaluation():
    module = PartialFC_V2(ArcFace(), DIM, CLASSES, device="cpu")
    features, labels = torch.randn(4, DIM), torch.tensor([1, -1, 2, -1])
    with torch.no_grad():
        loss = module(features, labels)
        torch.testing.assert_close(loss, module(features[::2], labels[::2]))
        assert loss.item() > 0
        rows = torch.randn(CLASSES, DIM)
        rows[0], rows[1:] = -features[0], features[0]
        module.load_state_dict({"weight": rows})
        big = module(features[:1], torch.tensor([0]))
    assert big.item() > 69.0776 + 40  # there the printed loss ends at -ln 1e-30
    assert math.isfinite(big.item())
    with pytest.raises(ValueError, match="label"):
        module(features, torch.tensor([0, 1, 2, CLASSES]))


def test_the_old_name_takes_the_optimiser(ranks):
    module = PartialFC(CosFace(), DIM, CLASSES, 0.3, device="cpu")
    opt = torch.optim.SGD(module.parameters(), lr=0.3, momentum=0.9)
    before = module.weight.clone()
    module(torch.randn(2, DIM, requires_grad=True), torch.tensor([0, 1]), opt).backward()
    opt.step()
    moved = (module.weight != before).any(1)
    assert bool(moved[0])
    assert 0 < int(moved.sum()) <= 3 + 2  # frozen: 0.3 of 11 classes and the two own ones at most


def test_mistakes():
    with pytest.raises(ValueError, match=r"margins \(1.0, 0.5, 0.4\); allowed"):
        CombinedMarginLoss(64, 1.0, 0.5, 0.4)
    with pytest.raises(ValueError, match=r"margins \(2.0, 0.5, 0.0\)"):
        CombinedMarginLoss(64, 2.0, 0.5, 0.0)
    with pytest.raises(ValueError, match="margin_loss: a torch"):
        PartialFC_V2(nn.Identity(), DIM, CLASSES)
    with pytest.raises(ValueError, match="optimizer: 'adam'; allowed: sgd, adamw"):
        PartialFC_V2(ArcFace(), DIM, CLASSES, optimizer="adam")
    module = PartialFC_V2(mpsoftmax.AdaFace(), DIM, CLASSES, device="cpu")
    for opt, message in (
        (torch.optim.AdamW(module.parameters()), r"PartialFC_V2\(..., optimizer='adamw'\)"),
        (torch.optim.SGD(module.parameters(), 0.1, 0.9, nesterov=True), "nesterov=True"),
    ):
        module(torch.randn(2, DIM, requires_grad=True), torch.tensor([0, 1])).backward()
        with pytest.raises(ValueError, match=message):
            opt.step()
        opt.zero_grad()


def test_others_optimisers_and_the_end_of_a_module():
    import gc

    from torch.optim.optimizer import _global_optimizer_post_hooks

    gc.collect()
    number = len(_global_optimizer_post_hooks)
    module = PartialFC_V2(ArcFace(), DIM, CLASSES, device="cpu")
    assert len(_global_optimizer_post_hooks) == number + 1
    before = module.weight.clone()
    module(torch.randn(2, DIM, requires_grad=True), torch.tensor([0, 1])).backward()
    other = nn.Linear(2, 2)
    opt = torch.optim.SGD(other.parameters(), lr=0.1)
    other(torch.ones(1, 2)).sum().backward()
    opt.step()
    assert torch.equal(module.weight, before)
    del module
    gc.collect()
    assert len(_global_optimizer_post_hooks) == number
