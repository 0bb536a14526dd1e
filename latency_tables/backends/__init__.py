"""The backends by name. Importing this package loads none of their libraries."""

import logging
from collections.abc import Callable

from depthcomp_errors import BackendUnavailableError
from latency_tables.backends.onnxruntime import OnnxRuntimeBackend
from latency_tables.protocol import Backend

__all__ = ["create_backend"]

_BACKENDS: dict[str, Callable[[int], Backend]] = {"onnxruntime": OnnxRuntimeBackend}
_AUTO = "onnxruntime"

logger = logging.getLogger(__name__)


def create_backend(name: str = "auto", *, threads: int = 1) -> Backend:
    """Return the backend of that name; "auto" picks the best for this machine and logs which.

    Args:
        name: "auto" or "onnxruntime".
        threads: threads that one inference may use.

    Raises:
        BackendUnavailableError: the name is unknown or `threads` is below 1.

    Example:
        >>> create_backend("auto").name
        'onnxruntime'
    """
    if name == "auto":
        logger.info("backend 'auto' is %r, with threads=%d", _AUTO, threads)
        return create_backend(_AUTO, threads=threads)
    if name not in _BACKENDS:
        known = ", ".join(["auto", *sorted(_BACKENDS)])
        raise BackendUnavailableError(f"backend {name!r} is unknown; choose one of {known}.")
    return _BACKENDS[name](threads)
