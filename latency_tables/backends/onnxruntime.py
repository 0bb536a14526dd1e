"""ONNX Runtime on the CPU."""

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from depthcomp_errors import BackendUnavailableError, MissingPackageError, TableError
from latency_tables.environment import Environment, cpu_name

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxRuntimeBackend", "OnnxRuntimeRunner"]

PROVIDER = "CPUExecutionProvider"
_SILENT = 4  # log severity; what goes wrong is in the exception too
_INPUT_SEED = 0


class OnnxRuntimeBackend:
    """Runs models with ONNX Runtime's CPU provider, all graph optimisations on, threads not spinning.

    Denormals are left as they are: ONNX Runtime would flush them for the calling thread until the process
    ends, which changes arithmetic everywhere else in it.

    Args:
        threads: threads that one inference may use.

    Raises:
        BackendUnavailableError: `threads` is below 1.
    """

    name = "onnxruntime"

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise BackendUnavailableError(f"threads (={threads}) must be at least 1.")
        self.threads = threads

    def environment(self) -> Environment:
        """Return where this backend measures.

        Raises:
            MissingPackageError: onnxruntime is not installed.
        """
        return Environment.here(
            backend=self.name,
            backend_version=_library().__version__,
            device=cpu_name(),
            threads=self.threads,
        )

    def build(self, onnx_model: bytes) -> "OnnxRuntimeRunner":
        """Return a runner for a serialised ONNX model with static float32 inputs and outputs.

        Raises:
            MissingPackageError: onnxruntime is not installed.
            BackendUnavailableError: the CPU provider did not take the model.
            TableError: onnxruntime refuses the model, or a shape is not static float32.
        """
        library = _library()
        try:
            session = library.InferenceSession(onnx_model, self._options(library), providers=[PROVIDER])
        except Exception as error:  # its error classes share no base but Exception
            raise TableError(f"onnxruntime {library.__version__} refuses the model: {error}") from error
        if session.get_providers()[0] != PROVIDER:
            raise BackendUnavailableError(
                f"onnxruntime runs the model on {session.get_providers()[0]}, not on {PROVIDER};"
                " install a build of onnxruntime with the CPU provider."
            )
        return OnnxRuntimeRunner(session)

    def _options(self, library: Any) -> Any:
        options = library.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _SILENT
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options


class OnnxRuntimeRunner:
    """A session whose inputs and outputs are bound once, so that a call copies nothing."""

    def __init__(self, session: "onnxruntime.InferenceSession") -> None:
        library, rng = _library(), np.random.default_rng(_INPUT_SEED)
        self._session = session
        self._binding = session.io_binding()
        self._bound = []  # the binding borrows their memory
        for tensor in session.get_inputs():
            values = rng.standard_normal(_static_shape(tensor), dtype=np.float32)
            self._bound.append(library.OrtValue.ortvalue_from_numpy(values))
            self._binding.bind_ortvalue_input(tensor.name, self._bound[-1])
        for tensor in session.get_outputs():
            values = np.empty(_static_shape(tensor), np.float32)
            self._bound.append(library.OrtValue.ortvalue_from_numpy(values))
            self._binding.bind_ortvalue_output(tensor.name, self._bound[-1])

    def time_ms(self, inner: int) -> float:
        """Return the wall time in ms of `inner` inferences, one right after the other, together."""
        run, binding = self._session.run_with_iobinding, self._binding
        start = perf_counter_ns()
        for _ in range(inner):
            run(binding)
        return (perf_counter_ns() - start) / 1e6

    def close(self) -> None:
        """Release the session and its tensors."""
        del self._binding, self._bound, self._session


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            "the backend 'onnxruntime' needs the package onnxruntime; run `pip install onnxruntime`."
        ) from error
    return onnxruntime


def _static_shape(tensor: Any) -> tuple[int, ...]:
    if tensor.type != "tensor(float)" or not all(isinstance(length, int) for length in tensor.shape):
        raise TableError(
            f"tensor {tensor.name!r} of the model is {tensor.type} with shape {tensor.shape}; measuring needs"
            " float32 with a static shape, so export the model in fp32 with fixed input sizes."
        )
    return tuple(tensor.shape)
