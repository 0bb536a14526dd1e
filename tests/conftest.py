"""What tests of several packages share."""

import signal

import pytest


@pytest.fixture
def ctrl_c_raises():
    """As in a terminal; programs that a shell starts in the background inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
