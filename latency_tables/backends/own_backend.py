"""Backends by name; a user's own backend goes by the place of its definition, `package.module:factory`."""

import importlib
import os
import sys

from depthcomp_errors import BackendUnavailableError, DepthCompError
from latency_tables.backends.protocol import AnyBackend
from latency_tables.backends.registry import as_backend, create_backend

__all__ = ["find_backend"]


def find_backend(name: str, *, threads: int = 1) -> AnyBackend:
    """Return the backend of that name, or what a user's function returns.

    Args:
        name: a name that `create_backend` knows, or `package.module:factory`, a function that takes the number of
            threads and returns a backend; modules are also looked for in the current directory.
        threads: threads that one inference may use.

    Raises:
        BackendUnavailableError: the name is unknown, the function is not there or fails, or returns no backend.
        MissingPackageError: the backend's library is not installed.
    """
    source, colon, factory = name.partition(":")
    if not colon:
        return create_backend(name, threads=threads)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(source), factory)(threads)
    except DepthCompError:
        raise
    except Exception as error:  # a user's code can fail in any way
        raise BackendUnavailableError(
            f"backend {name} cannot be made: {type(error).__name__}: {error}; name a function that takes the number of"
            " threads and returns a backend."
        ) from error
    return as_backend(found)
