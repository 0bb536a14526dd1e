"""The registry of backends by name."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec

from depthcomp_errors import BackendUnavailableError, MissingPackageError
from latency_tables.backends.onnxruntime import FLAVOURS as ONNXRUNTIME_FLAVOURS
from latency_tables.backends.onnxruntime import OnnxRuntimeBackend
from latency_tables.backends.openvino import OpenVinoBackend
from latency_tables.backends.protocol import AnyBackend, Backend, ModuleBackend
from latency_tables.backends.tensorrt.backend import TensorRtBackend
from latency_tables.backends.tensorrt.library import FLAVOURS as TENSORRT_FLAVOURS
from latency_tables.backends.tensorrt.library import gpu_is_visible

__all__ = ["BACKEND_NAMES", "as_backend", "create_backend"]


def _torch(threads: int, *, compiled: bool) -> AnyBackend:
    try:
        from latency_tables.backends.torch import TorchBackend
    except ImportError as error:
        raise MissingPackageError("the backend 'torch' needs the package torch; run `pip install torch`.") from error
    return TorchBackend(threads, compiled=compiled)


_BACKENDS: Mapping[str, Callable[[int], AnyBackend]] = {
    **{flavour: partial(OnnxRuntimeBackend, flavour=flavour) for flavour in ONNXRUNTIME_FLAVOURS},
    "openvino": OpenVinoBackend,
    "torch": partial(_torch, compiled=False),
    "torch_compile": partial(_torch, compiled=True),
    **{flavour: partial(TensorRtBackend, flavour) for flavour in TENSORRT_FLAVOURS},
}
BACKEND_NAMES = ("auto", *_BACKENDS)
"""What `create_backend` knows."""

logger = logging.getLogger(__name__)


def create_backend(name: str = "auto", *, threads: int = 1) -> AnyBackend:
    """Return the backend of that name; "auto" picks the best for this machine and logs which.

    Args:
        name: one of `BACKEND_NAMES`: "onnxruntime", "openvino", or "torch" and "torch_compile", on a CPU, the last
            two on a GPU where torch sees one and one thread is asked for; "onnxruntime_cuda",
            "onnxruntime_tensorrt", "tensorrt" and "tensorrt_rtx", on a GPU; or "auto": TensorRT where a GPU and its
            package are there and one thread is asked for, else ONNX Runtime on the CPU.
        threads: threads that one inference may use; 1 on a GPU.

    Raises:
        BackendUnavailableError: the name is unknown or `threads` is out of range.
        MissingPackageError: the name is "torch" or "torch_compile", and torch is not installed.

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


def as_backend(backend: str | AnyBackend) -> AnyBackend:
    """Return the backend of that name, or the object itself where it can measure.

    Raises:
        BackendUnavailableError: the name is unknown, or the object is no backend.
        MissingPackageError: torch is not installed, and the name asks for it.
    """
    if isinstance(backend, str):
        return create_backend(backend)
    if isinstance(backend, type) or not isinstance(backend, Backend | ModuleBackend):
        raise BackendUnavailableError(
            f"backend (={backend!r}) must be one of {_known()}, or an instance such as"
            " create_backend('onnxruntime', threads=4)."
        )
    return backend


def _best(threads: int) -> str:
    usable = [flavour for flavour in TENSORRT_FLAVOURS if find_spec(flavour) is not None]
    return usable[0] if usable and threads == 1 and gpu_is_visible() else "onnxruntime"


def _known() -> str:
    return ", ".join(BACKEND_NAMES)
