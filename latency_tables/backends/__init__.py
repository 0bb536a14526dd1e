"""The backends by name. Importing this package loads none of their libraries."""

import logging
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from depthcomp_errors import BackendUnavailableError
from latency_tables.backends.onnxruntime import OnnxRuntimeBackend
from latency_tables.backends.tensorrt.backend import TensorRtBackend
from latency_tables.backends.tensorrt.library import FLAVOURS, gpu_is_visible
from latency_tables.protocol import Backend

__all__ = ["as_backend", "create_backend"]

_BACKENDS: dict[str, Callable[[int], Backend]] = {
    "onnxruntime": OnnxRuntimeBackend,
    **{flavour: partial(TensorRtBackend, flavour) for flavour in FLAVOURS},
}

logger = logging.getLogger(__name__)


def create_backend(name: str = "auto", *, threads: int = 1) -> Backend:
    """Return the backend of that name; "auto" picks the best for this machine and logs which.

    Args:
        name: "onnxruntime", "tensorrt", "tensorrt_rtx", or "auto": TensorRT where a GPU and its package are
            there and one thread is asked for, else ONNX Runtime.
        threads: threads that one inference may use.

    Raises:
        BackendUnavailableError: the name is unknown or `threads` is below 1.

    Example:
        >>> create_backend("onnxruntime").name
        'onnxruntime'
    """
    if name == "auto":
        best = _best(threads)
        logger.info("backend 'auto' is %r, with threads=%d", best, threads)
        return create_backend(best, threads=threads)
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


def _best(threads: int) -> str:
    usable = [flavour for flavour in FLAVOURS if find_spec(flavour) is not None]
    return usable[0] if usable and threads == 1 and gpu_is_visible() else "onnxruntime"


def _known() -> str:
    return ", ".join(["auto", *sorted(_BACKENDS)])
