import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from rank_pool import RankPool

settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("ci")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def ranks():
    """The pool of ranks: ranks.run(function, world, **kwargs) -> one result a rank."""
    pool = RankPool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real data sets in ../shared/data, which are not here")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
