"""Baseline method: random rewrites until the budget holds, without any importance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from depthcomp.methods.baselines import Materials, Rewrites, disjoint, growing
from depthcomp.methods.method import Method
from depthcomp.methods.registry import register
from depthcomp.preparation import DEFAULT_LIMITS

__all__ = ["at_random"]

WALKS = 30  # random orders; enough plans to come near any budget


def at_random(materials: Materials) -> Iterator[Rewrites]:
    """Yield plans of several random orders; each order adds one rewrite at a time until no more fits."""
    rng = np.random.default_rng(materials.seed)
    for _ in range(WALKS):
        order = rng.permutation(len(materials.candidates))
        yield from growing(disjoint(materials.candidates[index] for index in order))


register(
    Method(
        "random",
        "random rewrites until the budget holds, refitted",
        DEFAULT_LIMITS,
        draw=at_random,
        scored=False,
        fits=True,
    )
)
