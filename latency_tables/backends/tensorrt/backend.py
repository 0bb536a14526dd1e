"""TensorRT and TensorRT for RTX as backends that measure, on the GPU of this machine."""

from dataclasses import replace
from pathlib import Path

from depthcomp_errors import BackendUnavailableError, EngineError, TableError
from latency_tables.backends.gpu import cuda, gpu_driver, gpu_name
from latency_tables.backends.gpu_state import DeviceState, read_device_state
from latency_tables.backends.tensorrt.build import build_engine
from latency_tables.backends.tensorrt.library import load_library
from latency_tables.backends.tensorrt.onnx_check import precision_of, shapes_of, sound_model
from latency_tables.backends.tensorrt.runner import TensorRtRunner
from latency_tables.backends.tensorrt.spec import BuildSpec, shapes_option
from latency_tables.tables.environment import Environment

__all__ = ["TensorRtBackend"]


class TensorRtBackend:
    """Builds engines and times them on the first visible GPU.

    Feature maps enter and leave parts of a network in the layout that kernels leave them in, and an inference
    uses one stream, so that the latencies of parts add up to the whole. TF32 is on, as everywhere in TensorRT.

    Args:
        flavour: "tensorrt" or "tensorrt_rtx".
        threads: 1; the GPU does the work.
        timing_cache: a file of what earlier builds have learnt, with tensorrt; None: `keep_timings_beside` tells it.

    Raises:
        BackendUnavailableError: `threads` is not 1.
    """

    def __init__(self, flavour: str, threads: int = 1, timing_cache: Path | None = None) -> None:
        if threads != 1:
            raise BackendUnavailableError(f"threads (={threads}) must be 1 with {flavour}: the GPU does the work.")
        self.name = flavour
        self.spec = BuildSpec(flavour=flavour, aux_streams=0)
        self.timing_cache = timing_cache

    def environment(self) -> Environment:
        """Return where this backend measures.

        Raises:
            MissingPackageError: the library or torch is not installed.
            BackendUnavailableError: there is no GPU.
        """
        trt, torch = load_library(self.name), cuda()
        return Environment.here(
            backend=self.name,
            backend_version=f"{trt.__version__}, CUDA {torch.version.cuda}",
            device=gpu_name(),
            threads=1,
            precision="fp32 with TF32",
            driver=gpu_driver(),
        )

    def build(self, onnx_model: bytes) -> TensorRtRunner:
        """Return a runner for a serialised ONNX model of a whole network with static shapes, in its own precision.

        Raises:
            MissingPackageError: the library or torch is not installed.
            BackendUnavailableError: there is no GPU, or it cannot run the engine.
            TableError: the library refuses the model.
        """
        return self._built(onnx_model, channels_last_io=False)

    def build_part(self, onnx_model: bytes) -> TensorRtRunner:
        """Return a runner for a part of a network, without layout changes at its ends; raises like `build`."""
        return self._built(onnx_model, channels_last_io=True)

    def load(self, engine: bytes, batch: int | None = None) -> TensorRtRunner:
        """Return a runner for an engine that was built before.

        Args:
            engine: the engine.
            batch: size of the first dimension of its inputs, where that is dynamic.

        Raises:
            MissingPackageError: the library or torch is not installed.
            BackendUnavailableError: there is no GPU, or it cannot run the engine.
        """
        cuda()
        return TensorRtRunner(load_library(self.name), engine, batch)

    def command(self, onnx_model: bytes, file: str, *, dynamic: bool = False) -> str:
        """Return the line for NVIDIA's own tool that builds a whole network as `build` does, and times it.

        Args:
            onnx_model: the network.
            file: name of the ONNX file that holds it.
            dynamic: whether the batch is dynamic in that file, so that the line has to tell the shapes.

        Raises:
            EngineError: the model is no sound ONNX.
        """
        model = sound_model(onnx_model)
        spec = replace(self.spec, precision=precision_of(model))
        shapes = shapes_of(model.graph.input)
        line = spec.command(file, f"{file}.engine", shapes, inference=True)
        return f"{line} {shapes_option('shapes', shapes)}" if dynamic else line

    def device_state(self) -> DeviceState | None:
        """Return the GPU's state now, from NVML; None where NVML is silent."""
        return read_device_state()

    def keep_timings_beside(self, file: Path) -> None:
        """Keep the timing cache in the folder of `file`, one for each environment, unless it has a place already."""
        if self.timing_cache is None and self.name == "tensorrt":
            self.timing_cache = file.with_name(f"{self.name}-{self.environment().fingerprint()}.timing_cache")

    def _built(self, onnx_model: bytes, *, channels_last_io: bool) -> TensorRtRunner:
        cuda()  # a missing GPU is said before minutes of building
        trt = load_library(self.name)
        try:
            precision = precision_of(sound_model(onnx_model))
            spec = replace(self.spec, precision=precision, channels_last_io=channels_last_io)
            engine = build_engine(onnx_model, spec, timing_cache=self.timing_cache)
        except EngineError as error:
            raise TableError(str(error)) from error
        return TensorRtRunner(trt, engine.data)
