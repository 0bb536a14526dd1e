"""The backends by name. Importing this package loads none of their libraries."""

import logging
from collections.abc import Callable

from depthcomp_errors import BackendUnavailableError
from latency_tables.backends.onnxruntime import OnnxRuntimeBackend
from latency_tables.protocol import Backend

__all__ = ["as_backend", "create_backend"]

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
        raise BackendUnavailableError(f"backend {name!r} is unknown; choose one of {_known()}.")
    return _BACKENDS[name](threads)


def as_backend(backend: str | Backend) -> Backend:
    """Return the backend of that name, or the object itself where it can measure.

    Raises:
        BackendUnavailableError: the name is unknown, or the object is no backend.
    """
    if isinstance(backend, str):
        return create_backend(backend)
    complete = all(callable(getattr(backend, method, None)) for method in ("environment", "build"))
    if isinstance(backend, type) or not complete:
        raise BackendUnavailableError(
            f"backend (={backend!r}) must be one of {_known()}, or an instance such as"
            " create_backend('onnxruntime', threads=4)."
        )
    return backend


def _known() -> str:
    return ", ".join(["auto", *sorted(_BACKENDS)])
