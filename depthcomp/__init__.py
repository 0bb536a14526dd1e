"""Depth compression of trained convolutional networks to a latency budget that holds when measured.

    result = depthcomp.compress_depth(model, "75%", data=loader)
    result.measured_ms, result.original_ms
    result.save("compressed")
    network = depthcomp.load("compressed")

Nothing here touches torch, CUDA, TensorRT, onnxruntime or matplotlib before it is needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from depthcomp import errors
from depthcomp.errors import DepthCompError

if TYPE_CHECKING:
    from depthcomp.budget import Budget
    from depthcomp.compress import compress_depth
    from depthcomp.results.result import CompressionResult
    from depthcomp.results.stored_network import load
    from depthcomp.training.config import FinetuneConfig

__all__ = ["Budget", "CompressionResult", "DepthCompError", "FinetuneConfig", "compress_depth", "errors", "load"]

_HOMES = {
    "Budget": "budget",
    "CompressionResult": "results.result",
    "FinetuneConfig": "training.config",
    "compress_depth": "compress",
    "load": "results.stored_network",
}


def __getattr__(name: str) -> Any:
    """Return a public name, importing its module when it is first asked for: most of them load torch, seconds long.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
