"""State into and out of the head: checkpoints at other world sizes, skipped steps, schedulers, rows."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard

import mpsoftmax as mp

DIM, CLASSES = 6, 19


def head_after(steps, untouched="lazy", seed=0):
    head = mp.ModelParallelSoftmax(
        DIM, CLASSES, candidates=mp.Uniform(0.4), untouched=untouched, seed=seed, batch_capacity=3
    )
    stream = torch.Generator().manual_seed(7)
    for _ in range(steps):
        everyone = torch.randn(head.comm.world, 3, DIM, generator=stream)
        labels = torch.randint(0, CLASSES, (head.comm.world, 3), generator=stream)
        features = everyone[head.comm.rank].requires_grad_()
        head(features, labels[head.comm.rank]).backward()
        head.step()
    return head


def whole(head):
    """Every row tensor, gathered."""
    out = {}
    for name, value in head.state_dict().items():
        out[name] = value.full_tensor() if isinstance(value, DTensor) else value
    return {name: value.clone() for name, value in out.items()}


def save(path):
    import torch.distributed.checkpoint as dcp

    head = head_after(5)
    state = head.state_dict()
    for name in ("weight", "momentum", "row_step"):
        assert isinstance(state[name], DTensor)
        assert state[name].placements == (Shard(0),)
        assert state[name].shape[0] == CLASSES
    dcp.save(state, checkpoint_id=path)
    return whole(head)


def load(path):
    import torch.distributed.checkpoint as dcp

    head = head_after(0, seed=1)
    state = head.state_dict()
    state["step_log"] = torch.empty(5, 3, dtype=torch.float64)
    dcp.load(state, checkpoint_id=path)
    head.load_state_dict(state)
    return whole(head), head.class_rows(torch.arange(CLASSES))


def test_saved_on_four_ranks_loads_on_any_number(ranks, tmp_path):
    saved = ranks.run(save, 4, path=tmp_path / "step")[0]
    assert saved["momentum"].abs().sum() > 0
    assert len(set(saved["row_step"].tolist())) > 1
    rows = []
    for world in (4, 3, 2, 1):
        for loaded, current in ranks.run(load, world, path=tmp_path / "step"):
            assert loaded.keys() == saved.keys()
            for name, value in saved.items():
                assert torch.equal(loaded[name], value), (world, name)
            rows.append(current)
    assert all(torch.equal(row, rows[0]) for row in rows)


def load_plain(state):
    head = head_after(0, seed=1)
    head.load_state_dict(state)
    return whole(head)


def test_plain_state_without_a_process_group_loads_anywhere(ranks):
    head = head_after(4)
    state = {name: value.clone() for name, value in head.state_dict().items()}
    assert not any(isinstance(value, DTensor) for value in state.values())
    for world in (1, 3):
        for loaded in ranks.run(load_plain, world, state=state):
            for name, value in state.items():
                assert torch.equal(loaded[name], value), name


def test_states_that_do_not_fit_are_refused():
    state = head_after(2).state_dict()
    with pytest.raises(RuntimeError, match="19 classes; allowed: num_classes=18"):
        mp.ModelParallelSoftmax(DIM, 18, untouched="lazy").load_state_dict(state)
    with pytest.raises(RuntimeError, match="momentum"):
        head_after(0).load_state_dict({k: v for k, v in state.items() if k != "momentum"})
    for saved, loading in (("frozen", "lazy"), ("lazy", "frozen")):
        head = head_after(0, untouched=loading)
        before = whole(head)
        other = head_after(2, untouched=saved).state_dict()
        with pytest.raises(
            RuntimeError, match=f"'{loading}', but the state was saved after 2 steps"
        ):
            head.load_state_dict(other)
        assert all(torch.equal(value, before[name]) for name, value in whole(head).items())


def test_a_skipped_step_leaves_no_trace():
    plain, skipping = head_after(3), head_after(3)
    features = torch.randn(3, DIM, requires_grad=True)
    skipping(features, torch.tensor([0, 1, 2])).backward()
    skipping.optimizer.zero_grad()
    skipping.step()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, skipping.state_dict()[name]), name


def test_a_dropped_backward_can_be_taken_again():
    """What zero_grad() drops is not lent to the next forward while its loss can still be used."""
    rows = []
    for interrupted in (False, True):
        head = head_after(3)
        features = torch.randn(3, DIM, generator=torch.Generator().manual_seed(0))
        loss = head(features.requires_grad_(), torch.tensor([0, 1, 2]))
        if interrupted:
            loss.backward(retain_graph=True)
            head.zero_grad()
            head(features * 2, torch.tensor([3, 4, 5]))
        loss.backward()
        head.step()
        rows.append(head.class_rows(torch.arange(CLASSES)))
    assert torch.equal(*rows)


def test_torch_schedulers_drive_the_rows():
    head = mp.ModelParallelSoftmax(
        DIM,
        CLASSES,
        optimizer=mp.RowSGD(lr=0.5, momentum=0.0, weight_decay=0.0),
        row_dtype=torch.float64,  # in float32 the difference of rows is mostly rounding
    )
    scheduler = torch.optim.lr_scheduler.StepLR(head.optimizer, step_size=1, gamma=0.5)
    moves = []
    for _ in range(2):
        rows = head.class_rows(torch.arange(CLASSES))
        head.load_rows(torch.arange(CLASSES), torch.eye(CLASSES, DIM) + 0.1)
        before = head.class_rows(torch.arange(CLASSES))
        head(torch.ones(2, DIM, requires_grad=True), torch.tensor([0, 1])).backward()
        head.step()
        scheduler.step()
        moves.append(head.class_rows(torch.arange(CLASSES)) - before)
        assert rows.shape == before.shape
    assert head.optimizer.param_groups[0]["lr"] == 0.125
    torch.testing.assert_close(moves[1], moves[0] / 2, rtol=1e-4, atol=1e-7)


def test_the_table_is_not_moved_or_cast():
    head = mp.ModelParallelSoftmax(DIM, CLASSES)
    assert head.to(torch.float32) is head
    with pytest.raises(RuntimeError, match="row_dtype="):
        head.to(torch.float16)
    assert list(head.parameters()) == []


def rows_by_id():
    head = head_after(2)
    ids = torch.tensor([18, 0, 7, 7])
    before = head.class_rows(ids)
    head.load_rows(torch.tensor([7, 18]), torch.full((2, DIM), 2.0))
    # More than batch_capacity, which is about training steps.
    features = torch.randn(5 - head.comm.rank, DIM, generator=torch.Generator().manual_seed(3))
    nearest, cosine = head.nearest_classes(features)
    everything = torch.nn.functional.normalize(head.class_rows(torch.arange(CLASSES)))
    table = torch.nn.functional.normalize(features) @ everything.T
    exact = torch.equal(nearest, table.argmax(1)) and torch.allclose(cosine, table.amax(1))
    return before, head.class_rows(ids), exact, head.local_range


def test_rows_by_class_id_on_every_rank(ranks):
    for world in (1, 3):
        results = ranks.run(rows_by_id, world)
        for before, after, exact, _ in results:
            assert torch.equal(before, results[0][0])
            assert torch.equal(after[1], before[1])
            assert (after[[0, 2, 3]] == 2.0).all()
            assert exact
        bounds = [bounds for *_, bounds in results]
        assert [low for low, _ in bounds] == [0, *(high for _, high in bounds[:-1])]
        assert bounds[-1][1] == CLASSES


def test_unknown_ids_are_refused():
    head = mp.ModelParallelSoftmax(DIM, CLASSES)
    with pytest.raises(ValueError, match="ids: 19; allowed: 0 <= id < 19"):
        head.class_rows(torch.tensor([3, 19]))
    with pytest.raises(ValueError, match=r"rows: shape \(1, 3\); allowed: \(1, 6\)"):
        head.load_rows(torch.tensor([1]), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="class 1 has norm 0"):
        head.load_rows(torch.tensor([1]), torch.zeros(1, DIM))
    assert not dist.is_initialized()


def trained(use, autocast=False):
    head = mp.ModelParallelSoftmax(DIM, CLASSES, objective=mp.CosFace(16.0, 0.1))
    features = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = head(features, torch.tensor([0, 1, 2, 3]))
    use(head, features, loss)
    return features.grad, head.class_rows(torch.arange(CLASSES))


def backward_and_step(head, features, loss):
    loss.backward()
    head.step()


def test_a_surrounding_autocast_does_not_lower_the_head():
    for plain, lowered in zip(
        trained(backward_and_step), trained(backward_and_step, autocast=True), strict=True
    ):
        assert torch.equal(plain, lowered)


def test_inference_mode_gives_the_loss():
    head = mp.ModelParallelSoftmax(DIM, CLASSES)
    features, labels = torch.randn(4, DIM), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        plain = head(features, labels)
    with torch.inference_mode():
        assert head(features, labels) == plain


def test_a_backward_after_the_rows_moved_is_refused():
    def late(head, features, loss):
        other = head(features.detach().requires_grad_(), torch.tensor([3, 2, 1, 0]))
        other.backward()
        head.step()
        loss.backward()

    with pytest.raises(RuntimeError, match="after the class rows moved"):
        trained(late)

    def replace_rows(head, features, loss):
        loss.backward()
        head.load_rows(torch.tensor([1]), torch.ones(1, DIM))

    with pytest.raises(RuntimeError, match="between backward"):
        trained(replace_rows)


def test_a_zero_feature_gets_no_gradient():
    head = mp.ModelParallelSoftmax(DIM, CLASSES)
    features = torch.zeros(2, DIM).index_fill_(0, torch.tensor([1]), 1.0).requires_grad_()
    head(features, torch.tensor([0, 1])).backward()
    assert (features.grad[0] == 0).all()
    assert features.grad[1].abs().sum() > 0


def test_two_forwards_before_one_backward_draw_apart():
    head = mp.ModelParallelSoftmax(DIM, 200, candidates=mp.Uniform(0.2))
    features, labels = torch.randn(2, DIM, requires_grad=True), torch.tensor([0, 1])
    first = head(features, labels)
    ids = head.candidate_ids()
    second = head(features, labels)
    assert not torch.equal(ids, head.candidate_ids())
    (first + second).backward()
    head.step()
    assert not torch.equal(ids, head.candidate_ids())


def test_one_cycle_drives_rate_and_betas_of_adamw():
    head = mp.ModelParallelSoftmax(DIM, CLASSES, optimizer=mp.RowAdamW(lr=0.1), untouched="lazy")
    scheduler = torch.optim.lr_scheduler.OneCycleLR(head.optimizer, max_lr=0.1, total_steps=6)
    seen = set()
    for _ in range(3):
        before = head.class_rows(torch.arange(CLASSES))
        head(torch.ones(2, DIM, requires_grad=True), torch.tensor([0, 1])).backward()
        head.step()
        assert not torch.equal(before, head.class_rows(torch.arange(CLASSES)))
        seen.add((head.optimizer.param_groups[0]["lr"], head.optimizer.param_groups[0]["betas"][0]))
        scheduler.step()
    assert len(seen) == 3
