"""Random numbers of a training: told by its seed and its place in it alone, and the caller's left as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["mixed", "own_randomness", "seed_everything"]


def seed_everything(*numbers: int) -> None:
    """Seed the random numbers of torch, NumPy and Python by some numbers together."""
    seed = mixed(*numbers)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def mixed(*numbers: int) -> int:
    """Return one seed that depends on each of some numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Give the caller's random numbers back as they were, however many are drawn inside."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device.index or 0] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
