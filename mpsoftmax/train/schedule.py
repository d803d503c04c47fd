"""Learning-rate schedules: the factor on every learning rate, a pure function of the step."""

import math

from mpsoftmax.config import ScheduleConfig


def learning_rate_factor(schedule: ScheduleConfig, step: int, num_steps: int) -> float:
    """Factor at `step` (0 is the first) of `num_steps`; dimensionless.

    The warm-up rises linearly to 1 at its last step; the shape then runs over the remaining steps and
    reaches `end` one step past the last.
    """
    warmup = warmup_steps(schedule, num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.kind == "constant":
        return 1.0
    if schedule.kind == "step":
        return schedule.gamma ** sum(step >= milestone for milestone in schedule.milestones)
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    if schedule.kind == "cosine":
        shape = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        shape = (1.0 - progress) ** schedule.power
    return schedule.end + (1.0 - schedule.end) * shape


def warmup_steps(schedule: ScheduleConfig, num_steps: int) -> int:
    """Length of the warm-up: a number of steps, or a fraction of all steps where below 1."""
    warmup = schedule.warmup
    return round(warmup * num_steps) if warmup < 1 else round(warmup)


def check_schedule(schedule: ScheduleConfig, num_steps: int) -> None:
    """Raise ValueError for a warm-up or milestones that `num_steps` steps never get past."""
    if schedule.warmup >= 1 and warmup_steps(schedule, num_steps) >= num_steps:
        raise ValueError(
            f"train.schedule.warmup: {schedule.warmup:g}; allowed: below the number of steps, {num_steps}, "
            "or a fraction of them below 1"
        )
    late = [milestone for milestone in schedule.milestones if not 0 <= milestone < num_steps]
    if late:
        raise ValueError(
            f"train.schedule.milestones: {late[0]}; allowed: at least 0 and below the number of steps, "
            f"{num_steps}"
        )
