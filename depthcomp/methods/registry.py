"""Registry of the methods of compression.

A new method is one file in this folder that calls `register(Method(...))`.
"""

from __future__ import annotations

from depthcomp.errors import DepthCompError
from depthcomp.methods.method import Method
from depthcomp.registry import Registry

__all__ = ["METHODS", "find_method", "register"]

METHODS: Registry[Method] = Registry("depthcomp.methods")


def register(method: Method) -> Method:
    """Add a method under its name, and return it.

    Raises:
        DepthCompError: the name is taken.
    """
    return METHODS.register(method.name, method)


def find_method(name: str) -> Method:
    """Return the method called `name`.

    Raises:
        DepthCompError: no method has that name.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise DepthCompError(f"method (={name!r}) must be one of {', '.join(METHODS)}")
    return METHODS[name]
