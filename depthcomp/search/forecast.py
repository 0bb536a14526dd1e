"""Forecast of how long a search takes."""

from __future__ import annotations

from depthcomp.fitting.speed import Speed

__all__ = ["foretold_seconds"]

FORWARDS, MULTIPLY_ADDS, MEASUREMENTS = 100, 5e12, 4  # of a search; see `foretold_seconds`


def foretold_seconds(speed: Speed, measuring_seconds: float) -> float:
    """Return about how many seconds a search will take.

    The factors were fitted to runs with ResNet-18, ResNet-50 and EfficientNet-Lite0 (`scripts/bench_scaling.py`).

    Args:
        speed: speed of the machine.
        measuring_seconds: how long the measurement of the original network took.
    """
    return speed.seconds(forwards=FORWARDS, multiply_adds=MULTIPLY_ADDS) + MEASUREMENTS * measuring_seconds
