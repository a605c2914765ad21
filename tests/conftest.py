"""What every test finds."""

import os
import signal
from collections.abc import Generator

import pytest


def pytest_configure() -> None:
    """Workers of pytest-xdist share the cores; the processes that tests start inherit this."""
    n_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    if n_workers:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n_workers)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Workers send what a test logged as UTF-8, which names of files need not be."""
    report = yield
    sections = report.sections
    report.sections = [(t, text.encode(errors="backslashreplace").decode()) for t, text in sections]
    return report


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """A job in the background of a shell starts with Ctrl-C ignored, which tests need."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
