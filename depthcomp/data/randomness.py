"""Random numbers that depend only on a seed and a place in the data, without a change to the caller's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["entered", "mixed", "own_randomness", "seed_everything"]


def seed_everything(*numbers: int) -> None:
    """Seed torch, NumPy and Python from several numbers together."""
    seed = mixed(*numbers)
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def mixed(*numbers: int) -> int:
    """Return one seed that depends on all the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Restore the caller's random state after the block."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device.index or 0] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def entered(data: Any, seed: int, epoch: int) -> Iterator[None]:
    """Seed the generators of data for an epoch and announce the epoch; restore the generators after the block."""
    owners = (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None))
    generators = (getattr(owner, "generator", None) for owner in owners)
    found = [generator for generator in generators if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in found]
    seed_everything(seed, epoch, 0)
    for generator in found:
        generator.manual_seed(mixed(seed, epoch))
    for owner in owners:
        set_epoch = getattr(owner, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
    try:
        yield
    finally:
        for generator, state in zip(found, states, strict=True):
            generator.set_state(state)
