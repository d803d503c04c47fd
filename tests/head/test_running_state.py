"""What training moves beside rows: in checkpoints, alike on all ranks, unmoved by steps that do not count."""

from dataclasses import dataclass

import pytest
import torch

import mpsoftmax as mp
from mpsoftmax.head.objectives.base import EMPTY

DIM, CLASSES = 6, 12


def head_after(steps, **axes):
    """A head trained on batches that depend on the step only: every rank takes every W-th sample."""
    head = mp.ModelParallelSoftmax(
        DIM, CLASSES, compute_dtype=torch.float64, row_dtype=torch.float64, init_std=0.5, **axes
    )
    go_on(head, range(steps))
    return head


def go_on(head, steps):
    for step in steps:
        loss_of(head, step).backward()
        head.step()


def loss_of(head, step):
    stream = torch.Generator().manual_seed(step)
    features = torch.randn(8, DIM, generator=stream, dtype=torch.float64) * 20
    labels = torch.randint(0, CLASSES, (8,), generator=stream)
    mine = slice(head.comm.rank, None, head.comm.world)
    return head(features[mine].clone().requires_grad_(), labels[mine])


AXES = {
    "curricularface": {"objective": mp.CurricularFace(momentum=0.3)},
    "adaface": {"objective": mp.AdaFace(momentum=0.3)},
    "adacos": {"objective": mp.AdaCos(momentum=0.3)},
    "sphereface": {"objective": mp.SphereFace(lam_start=50.0)},
    "class centres": {"objective": mp.CosFace(), "weights": mp.ClassCentres()},
    "baskets": {"objective": mp.NPCFace(), "baskets": mp.Baskets([5, 7], warmup=3)},
}


@pytest.mark.parametrize("name", ["curricularface", "adaface"])
def test_two_forwards_before_their_backwards_count_both(name):
    """Each backward call adds its batch to what is pending, whenever its forward was."""
    by_turns, together = head_after(1, **AXES[name]), head_after(1, **AXES[name])
    for step in (1, 2):
        loss_of(by_turns, step).backward()
    by_turns.step()
    (loss_of(together, 1) + loss_of(together, 2)).backward()
    together.step()
    one, other = (head.state_dict()["objective_state"] for head in (by_turns, together))
    only_one = head_after(1, **AXES[name])
    loss_of(only_one, 1).backward()
    only_one.step()
    assert not torch.allclose(one, only_one.state_dict()["objective_state"])
    # The second batch's target cosines are the same: no row moved between. Norms and means commute only
    # in the order of the backward calls, which autograd takes from the last to the first.
    expected = head_after(1, **AXES[name])
    for step in (2, 1):
        loss_of(expected, step).backward()
    expected.step()
    torch.testing.assert_close(other, expected.state_dict()["objective_state"], rtol=1e-12, atol=0)


def resumed(name, state):
    """Loss of the fifth step, from a checkpoint after four."""
    head = head_after(0, **AXES[name])
    head.load_state_dict(state)
    return loss_of(head, 4).item()


@pytest.mark.parametrize("name", AXES)
def test_a_checkpoint_holds_it(ranks, name):
    """A run resumed on 1 to 3 ranks goes on as if it had never stopped."""
    head = head_after(4, **AXES[name])
    state = {key: value.clone() for key, value in head.state_dict().items()}
    expected = loss_of(head, 4).item()
    for world in (1, 2, 3):
        for loss in ranks.run(resumed, world, name=name, state=state):
            assert abs(loss - expected) < 1e-10 * expected


def test_a_checkpoint_holds_merged_classes(ranks):
    head = head_after(2, **AXES["baskets"])
    head.merge_classes([(1, 8)])
    go_on(head, [2, 3])
    state = {key: value.clone() for key, value in head.state_dict().items()}
    expected = loss_of(head, 4).item()
    for world in (1, 3):
        for loss in ranks.run(resumed, world, name="baskets", state=state):
            assert abs(loss - expected) < 1e-10 * expected


def test_another_objective_is_refused():
    state = head_after(1, objective="adaface").state_dict()
    head = head_after(0, objective="curricularface")
    with pytest.raises(RuntimeError, match="objective_state"):
        head.load_state_dict(state)


@pytest.mark.parametrize("name", ["curricularface", "adaface", "class centres"])
def test_what_does_not_count_moves_nothing(name):
    """Evaluation, a forward without backward, a skipped step."""
    plain, other = head_after(3, **AXES[name]), head_after(3, **AXES[name])
    with torch.no_grad():
        loss_of(other, 7)
    loss_of(other, 8)
    other.step()
    loss_of(other, 9).backward()
    other.optimizer.zero_grad()
    other.step()
    for key, value in plain.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_a_value_that_is_not_finite_is_dropped():
    """One infinite feature: the average stays what it was."""
    for objective, watched in ((mp.CurricularFace(), "ema"), (mp.AdaFace(), "norm_std")):
        head = head_after(2, objective=objective)
        before = head.state_dict()["objective_state"].clone()
        features = torch.randn(3, DIM, dtype=torch.float64) * 20
        features[1, 0] = torch.nan
        head(features.requires_grad_(), torch.tensor([0, 1, 2])).backward()
        assert not head.last_stats[watched].isfinite()
        head.step()
        assert torch.equal(head.state_dict()["objective_state"], before)


def micro_batches(name):
    """State after two backward calls in one step, and after two steps of one each, rows held still."""
    out = []
    for calls in ([(0, 1)], [(0,), (1,)]):
        head = head_after(0, **AXES[name], optimizer=mp.RowSGD(0.0, 0.0, 0.0))
        for step in calls:
            for batch in step:
                loss_of(head, batch).backward()
            head.step()
        out.append(head.state_dict()["objective_state"].clone())
    return out


@pytest.mark.parametrize("name", ["curricularface", "adaface"])
def test_every_micro_batch_moves_the_average(ranks, name):
    """Where rows stand still, two micro-batches of one step move it as two steps do; alike on all ranks."""
    results = ranks.run(micro_batches, 3, name=name)
    for once, twice in results:
        torch.testing.assert_close(once, twice, rtol=1e-12, atol=0)
        assert torch.equal(once, results[0][0])


def angles(features, **axes):
    """The statistic of two steps, and the angles it should be, from the rows themselves."""
    weights = mp.ClassCentres(features=features)
    head = head_after(3, objective=mp.CosFace(), weights=weights, **axes)
    out = []
    for step in (3, 4):
        stream = torch.Generator().manual_seed(step)
        samples = torch.randn(8, DIM, generator=stream, dtype=torch.float64) * 20
        labels = torch.randint(0, CLASSES, (8,), generator=stream)
        if features == "normalised":
            samples /= samples.norm(dim=1, keepdim=True)
        classes = labels.unique()
        means = torch.stack([samples[labels == label].mean(0) for label in classes])
        rows = head.class_rows(classes)
        cosine = torch.nn.functional.cosine_similarity(rows, means)
        cosine[~head._seen(classes)] = 1.0  # a new class's centre is its mean in this batch
        go_on(head, [step])
        out.append((head.last_stats["centre_angle_rad"].item(), cosine.arccos().mean().item()))
    return out


@pytest.mark.parametrize("features", ["normalised", "raw"])
@pytest.mark.parametrize("world", [1, 3])
def test_the_angle_between_rows_and_batch_means(ranks, world, features):
    """From target cosines alone, alike on all ranks, in forward order: before the rows move."""
    for result in ranks.run(angles, world, features=features, candidates=mp.Uniform(0.5)):
        for measured, expected in result:
            assert measured == pytest.approx(expected, rel=1e-6)
            assert measured > 0.1


@pytest.mark.parametrize(
    ("mine", "theirs"), [("adacos", "curricularface"), ("curricularface", "adacos")]
)
def test_statistics_of_another_objective_are_refused(mine, theirs):
    """Both have one number: a mean cosine would be a scale near 0, a scale a mean cosine above 1."""
    state = head_after(3, **AXES[theirs]).state_dict()
    head = head_after(0, **AXES[mine])
    with pytest.raises(
        (ValueError, RuntimeError), match=r"objective_state: \w+ .*of another objective"
    ):
        head.load_state_dict(state)


@dataclass(frozen=True)
class AdaCosWithMargin(mp.AdaCos):
    """Somebody's own objective: a scale that moves, and a margin that data sets may have of their own."""

    margin: float = 0.1

    def loss(self, t, negatives, norm, context=EMPTY):
        return super().loss(t - self.margin, negatives, norm, context)


def test_a_moving_scale_with_a_margin_for_each_data_set():
    """Equal margins for both: as without."""
    objective = AdaCosWithMargin(scale=5.0, momentum=1.0)
    heads = [
        head_after(
            0,
            objective=objective,
            baskets=mp.Baskets([5, 7], margins=margins, rule=mp.AllDistinct()),
        )
        for margins in (None, [0.1, 0.1])
    ]
    for step in range(4):
        losses = [loss_of(head, step) for head in heads]
        for head, loss in zip(heads, losses, strict=True):
            loss.backward()
            head.step()
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    assert abs(heads[1].state_dict()["objective_state"].item() - 5.0) > 0.5
