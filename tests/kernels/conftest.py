import importlib.util

import pytest
from lone_worker import LoneWorker


def worker(**environment):
    if importlib.util.find_spec("triton") is None:
        pytest.skip(
            "needs the package triton (launch/requirements-test.txt), which is not installed"
        )
    lone = LoneWorker(**environment)
    yield lone
    lone.close()


@pytest.fixture(scope="session")
def interpreter():
    """A process in which Triton's kernels run on CPU tensors."""
    yield from worker(TRITON_INTERPRET="1")


@pytest.fixture(scope="session")
def compiler():
    """A process in which Triton compiles: for a GPU that is not there."""
    yield from worker(TRITON_INTERPRET="0")
