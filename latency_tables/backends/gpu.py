"""The GPU that backends measure on, as torch sees it; torch's builds for CUDA bring the libraries along."""

from typing import Any

from depthcomp_errors import BackendUnavailableError, MissingPackageError
from latency_tables.backends.gpu_state import read_device_state

__all__ = ["cuda", "gpu_driver", "gpu_name"]


def cuda() -> Any:
    """Return torch, whose tensors and streams are used on the GPU.

    Raises:
        MissingPackageError: torch is not installed.
        BackendUnavailableError: torch sees no GPU.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError("timing on a GPU needs the package torch; run `pip install torch`.") from error
    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            "torch sees no NVIDIA GPU; install the driver and a build of torch for CUDA, or choose the backend"
            " onnxruntime."
        )
    return torch


def gpu_name() -> str:
    """Return the name and the compute capability of the first visible GPU.

    Raises:
        MissingPackageError: torch is not installed.
        BackendUnavailableError: torch sees no GPU.
    """
    properties = cuda().cuda.get_device_properties(0)
    return f"{properties.name} (SM{properties.major}{properties.minor})"


def gpu_driver() -> str | None:
    """Return the version of NVIDIA's driver; None where nvidia-ml-py is not installed or there is no driver."""
    driver = (read_device_state() or {}).get("driver")
    return None if driver is None else str(driver)
