"""Forecast of how long a search takes."""

from __future__ import annotations

from depthcomp.fitting.speed import Speed

__all__ = ["foretold_seconds"]

FORWARDS, MEASUREMENTS = 400.0, 10.0


def foretold_seconds(speed: Speed, measuring_seconds: float) -> float:
    """Return about how many seconds a search will take.

    The time goes into forwards of single batches, for the comparison and the refits of plans, and into measured
    networks. The factors are fitted to the networks of `scripts/bench_scaling.py`.

    Args:
        speed: speed of the machine.
        measuring_seconds: how long the measurement of the original network took.
    """
    return FORWARDS * speed.batch_seconds + MEASUREMENTS * measuring_seconds
