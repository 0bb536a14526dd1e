"""What tests of several packages share, and the fast tier."""

import signal

import pytest

WHOLE = "\npytestmark = pytest.mark.whole"  # of a file that the fast tier leaves out, without importing it


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help="leave out the files that are marked as whole")


def pytest_ignore_collect(collection_path, config):
    if config.getoption("--fast") and collection_path.suffix == ".py":
        return True if WHOLE in collection_path.read_text() else None
    return None


@pytest.fixture
def ctrl_c_raises():
    """As in a terminal; programs that a shell starts in the background inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
