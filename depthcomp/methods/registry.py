"""Registry of the methods of compression.

A new method is one file in this folder that calls `register(Method(...))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from depthcomp.errors import DepthCompError
from depthcomp.methods.method import Method
from depthcomp.registry import Registry
from fx_passes.kinds import kind_names

__all__ = ["METHODS", "find_method", "register"]

METHODS: Registry[Method] = Registry("depthcomp.methods")


def register(method: Method) -> Method:
    """Add a method under its name, and return it.

    Raises:
        DepthCompError: the name is taken.
    """
    return METHODS.register(method.name, method)


def find_method(name: str, kinds: Sequence[str] | None = None) -> Method:
    """Return the method called `name`.

    Args:
        name: the name.
        kinds: names of the kinds of choices that the method may make; None for its own.

    Raises:
        DepthCompError: no method has that name, or no kind one of those.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise DepthCompError(f"method (={name!r}) must be one of {', '.join(METHODS)}")
    method = METHODS[name]
    return method if kinds is None else replace(method, limits=replace(method.limits, kinds=_known(kinds)))


def _known(kinds: Sequence[str]) -> tuple[str, ...]:
    known = kind_names()
    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(known):
        raise DepthCompError(f"kinds (={kinds!r}) must be a list of at least one of {', '.join(known)}")
    return tuple(kinds)
