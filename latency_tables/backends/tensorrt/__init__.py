"""TensorRT and TensorRT for RTX: engines from ONNX models, with or without a GPU, and their latency with one.

Importing this loads neither library.
"""

from latency_tables.backends.tensorrt.build import Engine, build_engine, require_buildable
from latency_tables.backends.tensorrt.fused_plan import FusedPlan, Kernel, KernelTensor
from latency_tables.backends.tensorrt.library import FLAVOURS, flavour_of, gpu_is_visible, load_library
from latency_tables.backends.tensorrt.spec import PRECISIONS, BuildSpec

__all__ = [
    "FLAVOURS",
    "PRECISIONS",
    "BuildSpec",
    "Engine",
    "FusedPlan",
    "Kernel",
    "KernelTensor",
    "build_engine",
    "flavour_of",
    "gpu_is_visible",
    "load_library",
    "require_buildable",
]
