"""Checks of numbers: real, finite and no boolean; a cost, a budget or a count is not negative either."""

import math
import operator
from numbers import Real

from depthcomp_errors import ProblemError

__all__ = ["as_budget", "as_cost", "as_count", "as_integer", "as_number"]

LARGEST = 1e300  # 1e8 such numbers still add up to a finite float64


def as_number(value: object, name: str, *labels: object) -> float:
    """Return `value` as a float.

    Args:
        value: any real number of Python or NumPy.
        name: what to call it in the error, a format string for `labels`.
        labels: only formatted where there is an error.

    Raises:
        ProblemError: it is no real number (a boolean is none), not finite, or larger than 1e300 in magnitude.

    Example:
        >>> as_number(2, "loss of choice {!r}", "keep")
        2.0
    """
    number = _real_or_nan(value)
    if not abs(number) <= LARGEST:  # NaN compares false
        raise ProblemError(
            f"{name.format(*labels)} (={value!r}) must be a finite number of magnitude up to {LARGEST:g}; "
            "correct it or leave the choice out"
        )
    return number


def as_cost(value: object, name: str, *labels: object) -> float:
    """Return `value`, a latency in ms, as a float.

    Raises:
        ProblemError: as `as_number`, or it is negative.
    """
    cost = as_number(value, name, *labels)
    if cost < 0:
        raise ProblemError(f"{name.format(*labels)} (={cost}) must be at least 0 ms; correct it")
    return cost


def as_budget(value: object) -> float:
    """Return a budget in ms as a float; infinity is one.

    Raises:
        ProblemError: it is NaN, negative or no real number.
    """
    budget = _real_or_nan(value)
    if not budget >= 0:  # NaN compares false
        raise ProblemError(f"budget_ms (={value!r}) must be a number of at least 0; give a latency in ms")
    return budget


def as_count(value: object) -> int:
    """Return how many plans are asked for.

    Raises:
        ProblemError: it is no integer of at least 1.
    """
    count = as_integer(value)
    if count is None or count < 1:
        raise ProblemError(f"count (={value!r}) must be an integer of at least 1; say how many plans you want")
    return count


def as_integer(value: object) -> int | None:
    """Return `value` as an int, or None where it is no integer.

    Example:
        >>> as_integer(3), as_integer(3.0)
        (3, None)
    """
    try:
        return operator.index(value)  # type: ignore[arg-type]  # what has no index raises
    except TypeError:  # as arrays do, which have the method all the same
        return None


def _real_or_nan(value: object) -> float:
    """Return NaN for what is no real number, infinity for what is too large for a float."""
    if isinstance(value, bool):
        return math.nan
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.inf
