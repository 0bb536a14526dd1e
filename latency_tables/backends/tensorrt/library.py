"""The package behind a flavour of TensorRT, its log, and whether there is a GPU."""

import ctypes
import importlib
from pathlib import Path
from typing import Any

from depthcomp_errors import BackendUnavailableError, EngineError, MissingPackageError

__all__ = [
    "FLAVOURS",
    "NO_GPU",
    "create_builder",
    "flavour_of",
    "gpu_is_visible",
    "load_library",
    "new_log",
    "version_of",
]

FLAVOURS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx-cu13"}
"""The flavours, which are the names of their modules, and what pip calls them."""

_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_DRIVER_FILES = Path("/proc/driver/nvidia/gpus")  # a folder per GPU, where the driver is loaded
NO_GPU = "no NVIDIA GPU with a working driver is visible here (does nvidia-smi list it?)"


def flavour_of(name: str) -> str:
    """Return the flavour that a user means by "tensorrt", "tensorrt-rtx" or "tensorrt_rtx".

    Raises:
        EngineError: the name is another.
    """
    flavour = name.replace("-", "_")
    if flavour not in FLAVOURS:
        raise EngineError(f"{name!r} is no flavour of TensorRT; choose tensorrt or tensorrt-rtx.")
    return flavour


def load_library(flavour: str) -> Any:
    """Return the module of a flavour.

    Raises:
        MissingPackageError: its package is not installed.
        BackendUnavailableError: the package is there, but its libraries do not load.
    """
    try:
        return importlib.import_module(flavour)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{flavour.replace('_', '-')} needs the package {FLAVOURS[flavour]}; run `pip install {FLAVOURS[flavour]}`."
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailableError(
            f"the package {FLAVOURS[flavour]} is installed, but does not load ({error}); install the CUDA"
            " libraries and the NVIDIA driver that it asks for."
        ) from error


def version_of(trt: Any) -> tuple[int, int]:
    """Return the major and the minor number of a library."""
    major, minor = trt.__version__.split(".")[:2]
    return int(major), int(minor)


def create_builder(trt: Any, log: Any) -> Any:
    """Return a builder of engines.

    Raises:
        BackendUnavailableError: the library needs a GPU to build, and there is none.
    """
    try:
        return trt.Builder(log)
    except TypeError as error:  # what the bindings make of a null pointer
        raise BackendUnavailableError(
            f"{trt.__name__} {trt.__version__} builds an engine only on the GPU that will run it, and {NO_GPU};"
            " build there, or build with tensorrt-rtx, which needs none."
        ) from error


def gpu_is_visible(driver_files: Path = _DRIVER_FILES) -> bool:
    """Return whether the NVIDIA driver counts a GPU; nothing is started on it."""
    try:
        if any(driver_files.iterdir()):
            return True
    except OSError:
        pass  # not Linux, or a container that hides the folder
    return any(_counted_by(name) > 0 for name in _DRIVERS)


def _counted_by(driver: str) -> int:
    try:
        library = ctypes.CDLL(driver)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def new_log(trt: Any) -> Any:
    """Return a log that keeps what the library says: `messages` of (severity, text), and `texts(*severities)`."""
    base: Any = trt.ILogger

    class Log(base):  # type: ignore[misc]  # the base class is known only when the library is there
        def __init__(self) -> None:
            base.__init__(self)
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.messages.append((severity.name, message))

        def texts(self, *severities: str) -> list[str]:
            return [text for severity, text in self.messages if severity in severities]

    return Log()
