"""What every test finds."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """A job in the background of a shell starts with Ctrl-C ignored; the tests of interruption need it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
