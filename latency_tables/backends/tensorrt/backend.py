"""TensorRT and TensorRT for RTX as backends that measure, on the GPU of this machine."""

from depthcomp_errors import BackendUnavailableError, EngineError, TableError
from latency_tables.backends.gpu import cuda, gpu_name
from latency_tables.backends.tensorrt.build import build_engine
from latency_tables.backends.tensorrt.library import load_library
from latency_tables.backends.tensorrt.runner import TensorRtRunner
from latency_tables.backends.tensorrt.spec import BuildSpec
from latency_tables.environment import Environment

__all__ = ["TensorRtBackend"]


class TensorRtBackend:
    """Builds engines and times them on the first visible GPU.

    Feature maps enter and leave parts of a network in the layout that kernels leave them in, and an inference
    uses one stream, so that the latencies of parts add up to the whole. TF32 is on, as everywhere in TensorRT.

    Args:
        flavour: "tensorrt" or "tensorrt_rtx".
        threads: 1; the GPU does the work.

    Raises:
        BackendUnavailableError: `threads` is not 1.
    """

    def __init__(self, flavour: str, threads: int = 1) -> None:
        if threads != 1:
            raise BackendUnavailableError(f"threads (={threads}) must be 1 with {flavour}: the GPU does the work.")
        self.name = flavour
        self.spec = BuildSpec(flavour=flavour, aux_streams=0, channels_last_io=True)

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
        )

    def build(self, onnx_model: bytes) -> TensorRtRunner:
        """Return a runner for a serialised ONNX model with static float32 inputs and outputs.

        Raises:
            MissingPackageError: the library or torch is not installed.
            BackendUnavailableError: there is no GPU, or it cannot run the engine.
            TableError: the library refuses the model.
        """
        cuda()  # a missing GPU is said before minutes of building
        trt = load_library(self.name)
        try:
            engine = build_engine(onnx_model, self.spec)
        except EngineError as error:
            raise TableError(str(error)) from error
        return TensorRtRunner(trt, engine.data)
