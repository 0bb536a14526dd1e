"""Depth compression of trained convolutional networks to a latency budget that holds when measured.

    result = depthcomp.compress_depth(model, "75%", data=loader)
    result.measured_ms, result.original_ms
    result.save("compressed")
    network = depthcomp.load("compressed")

Nothing here touches CUDA, TensorRT, onnxruntime or matplotlib before it is needed.
"""

from depthcomp import errors
from depthcomp.artifacts import load
from depthcomp.budget import Budget
from depthcomp.compress import compress_depth
from depthcomp.errors import DepthCompError
from depthcomp.result import CompressionResult

__all__ = ["Budget", "CompressionResult", "DepthCompError", "compress_depth", "errors", "load"]
