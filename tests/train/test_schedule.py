"""Learning-rate factors, worked by hand."""

import pytest

from mpsoftmax.config import ScheduleConfig
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
