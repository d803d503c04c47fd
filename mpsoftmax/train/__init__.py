"""Training: parts built from a configuration, the loop, schedules, checkpoints, logging."""
