"""Credentials in the environment reach no file of a run and nothing it prints."""

import pytest
from launched import Launched

PLANTED = "planted-5f3759df-secret"
NAMES = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "SLURM_JWT")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_planted_secret_is_nowhere(tmp_path):
    environment = dict.fromkeys(NAMES, PLANTED)
    overrides = ("track.wandb=offline", "train.steps=6", "data.workers=1")
    with Launched(tmp_path / "run", *overrides, nproc=None, environment=environment) as run:
        assert run.end(250) == 0, run.text()
        assert PLANTED not in run.text()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".wandb", ".jsonl", ".yaml", ".distcp", ".json"} <= kinds
    for path in files:
        assert PLANTED.encode() not in path.read_bytes(), path
