"""What all tests of the passes share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Toy nets run fastest on one thread, and do not wait for busy cores then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
