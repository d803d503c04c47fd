"""Learning-rate factors, worked by hand."""

import pytest

from mpsoftmax.comm import AgreedError
from mpsoftmax.config import ScheduleConfig, load
from mpsoftmax.train.build import check_parts
from mpsoftmax.train.inputs import total_steps
from mpsoftmax.train.schedule import learning_rate_factor


def factors(num_steps, **fields):
    schedule = ScheduleConfig(**fields)
    return [learning_rate_factor(schedule, step, num_steps) for step in range(num_steps)]


def test_warmup_counts_steps_or_a_fraction():
    assert factors(8, kind="constant", warmup=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors(8, kind="constant", warmup=0.5) == factors(8, kind="constant", warmup=4)


def test_polynomial_and_cosine():
    assert factors(4, kind="polynomial", power=2.0) == pytest.approx([1, 9 / 16, 4 / 16, 1 / 16])
    assert factors(4, kind="cosine") == pytest.approx(
        [1, 0.8535533905932737, 0.5, 0.14644660940672627]
    )
    assert factors(4, kind="cosine", end=0.5)[2] == pytest.approx(0.75)


def test_step_milestones():
    assert factors(5, kind="step", milestones=(2, 4), gamma=0.1) == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )


def test_warmup_ends_where_the_shape_begins():
    shape = factors(10, kind="cosine", warmup=2)
    assert shape[1] == 1.0
    assert shape[2] == 1.0
    assert shape[-1] > 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.schedule.warmup=10",
            r"train\.schedule\.warmup: 10; allowed: below the number of steps, 10",
        ),
        (
            "train.schedule={kind: step, milestones: [4, 10]}",
            r"train\.schedule\.milestones: 10; allowed: at least 0 and below the number of steps, 10",
        ),
        (
            "train.schedule={kind: step, milestones: [-1]}",
            r"train\.schedule\.milestones: -1; allowed",
        ),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(override, message):
    """As soon as the steps are known: from the configuration, or from the number of images."""
    with pytest.raises(ValueError, match=message):
        check_parts(load(None, ["train.steps=10", override]))
    by_epochs = load(None, ["train.epochs=2", "train.batch_size=20", override])
    check_parts(by_epochs)
    with pytest.raises(AgreedError, match=message):
        total_steps(by_epochs, 100)


def test_a_schedule_that_fits_passes():
    for warmup in (9, 0.99):
        check_parts(load(None, ["train.steps=10", f"train.schedule.warmup={warmup}"]))
    check_parts(load(None, ["train.steps=1", "train.schedule.warmup=0.6"]))
    check_parts(load(None, ["train.steps=10", "train.schedule={kind: step, milestones: [9]}"]))
