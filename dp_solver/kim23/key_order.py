"""A sort order for keys of any types, the same on every run and for every order of the input."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

__all__ = ["key_order"]


def key_order(key: object) -> tuple[Any, ...]:
    """Return the sort key of a key: its value for plain types, its text for others.

    None comes first, then numbers by value (booleans are 0 and 1), then strings, then tuples part by part. Other keys
    are ordered by the name of their type and their `repr`, so their order is stable only if the `repr` is.

    Example:
        >>> sorted([("b", 1), (10,), "b", 9, (9,), None, "a", 10], key=key_order)
        [None, 9, 10, 'a', 'b', (9,), (10,), ('b', 1)]
    """
    if key is None:
        return (0,)
    if isinstance(key, Real) and not math.isnan(key):
        return (1, key)
    if isinstance(key, str):
        return (2, key)
    if isinstance(key, tuple):
        return (3, tuple(map(key_order, key)))
    return (4, type(key).__qualname__, repr(key))
