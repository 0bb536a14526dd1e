"""ONNX Runtime on the CPU, or on an NVIDIA GPU through its CUDA or TensorRT provider."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from depthcomp_errors import BackendUnavailableError, MissingPackageError, TableError
from latency_tables.backends.gpu import cuda, gpu_driver, gpu_name
from latency_tables.backends.layout_share import Profile, profiled_runs, share_of_changes
from latency_tables.backends.part import PartRunner
from latency_tables.backends.tensors import FLOAT32, Measurable, require_measurable
from latency_tables.operators.models import call_overhead_model
from latency_tables.tables.environment import Environment, cpu_name

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["FLAVOURS", "OnnxRuntimeBackend", "OnnxRuntimeRunner"]

CONFIG = {"session.intra_op.allow_spinning": "0"}  # idle threads that spin slow down whatever runs next
GPU_CONFIG = {"session.disable_cpu_ep_fallback": "1"}  # a model that the GPU cannot run whole is refused
LAYOUT_CHANGES = ("ReorderInput", "ReorderOutput")  # to and from the blocks of channels of its convolutions
_SILENT = 4  # log severity; what goes wrong is in the exception too
_INPUT_SEED = 0


@dataclass(frozen=True, slots=True)
class Flavour:
    """Where a session runs.

    Attributes:
        providers: ONNX Runtime's execution providers with their options; the first runs the model, the others what
            it leaves over.
        device: what ONNX Runtime calls the place of the tensors.
        precision: arithmetic of the operators.
        config: entries of the session's configuration.
    """

    providers: Mapping[str, Mapping[str, str]]
    device: str
    precision: str
    config: Mapping[str, str]

    @property
    def provider(self) -> str:
        """The provider that runs the model."""
        return next(iter(self.providers))


_CUDA = {"CUDAExecutionProvider": {"use_tf32": "0"}}
FLAVOURS = {
    "onnxruntime": Flavour({"CPUExecutionProvider": {}}, "cpu", "fp32", CONFIG),
    "onnxruntime_cuda": Flavour(_CUDA, "cuda", "fp32", CONFIG | GPU_CONFIG),
    "onnxruntime_tensorrt": Flavour(
        {"TensorrtExecutionProvider": {}, **_CUDA}, "cuda", "fp32 with TF32", CONFIG | GPU_CONFIG
    ),
}
"""The flavours by the names of their backends."""


class OnnxRuntimeBackend:
    """Runs models with ONNX Runtime, all graph optimisations on, threads not spinning.

    Denormals are left as they are: ONNX Runtime would flush them for the calling thread until the process
    ends, which changes arithmetic everywhere else in it. On a GPU inputs and outputs stay there, and a call ends
    when its results are there; CUDA's TF32 is off, TensorRT's on, as it is everywhere in TensorRT.

    Args:
        threads: threads that one inference may use; 1 on a GPU, which does the work.
        flavour: "onnxruntime" for the CPU, "onnxruntime_cuda" or "onnxruntime_tensorrt".

    Raises:
        BackendUnavailableError: `threads` is below 1, or not 1 on a GPU.
    """

    def __init__(self, threads: int = 1, flavour: str = "onnxruntime") -> None:
        if threads < 1:
            raise BackendUnavailableError(f"threads (={threads}) must be at least 1.")
        self.name = flavour
        self.threads = threads
        self._flavour = FLAVOURS[flavour]
        if self._on_gpu and threads != 1:
            raise BackendUnavailableError(f"threads (={threads}) must be 1 with {flavour}: the GPU does the work.")

    @property
    def _on_gpu(self) -> bool:
        return self._flavour.device == "cuda"

    def environment(self) -> Environment:
        """Return where this backend measures.

        Raises:
            MissingPackageError: onnxruntime is not installed.
            BackendUnavailableError: this build of onnxruntime lacks the provider, or there is no GPU.
        """
        version = self._library().__version__
        return Environment.here(
            backend=self.name,
            backend_version=f"{version}, CUDA {cuda().version.cuda}" if self._on_gpu else version,
            device=gpu_name() if self._on_gpu else cpu_name(),
            threads=self.threads,
            precision=self._flavour.precision,
            driver=gpu_driver() if self._on_gpu else None,
        )

    def build(self, onnx_model: bytes) -> "OnnxRuntimeRunner":
        """Return a runner for a serialised ONNX model with static inputs and outputs, float32 or integers.

        Raises:
            MissingPackageError: onnxruntime is not installed.
            BackendUnavailableError: this build of onnxruntime lacks the provider, or the provider did not take the
                model.
            TableError: onnxruntime refuses the model, or a shape or type cannot be measured.
        """
        return OnnxRuntimeRunner(self._session(onnx_model), self._flavour.device)

    def build_part(self, onnx_model: bytes) -> "OnnxRuntimeRunner | PartRunner":
        """Return a runner for a part of a network; on the CPU it runs as in the middle of the network.

        Errors are those of `build`.
        """
        runner = self.build(onnx_model)
        if self._on_gpu:
            return runner
        return PartRunner(runner, self._idle, share_of_changes(self._profile(onnx_model)))

    def _profile(self, onnx_model: bytes) -> Profile:
        """Return the time of each operation of a model."""
        with TemporaryDirectory() as folder:
            session = self._session(onnx_model, profile=f"{folder}/profile")
            for _ in profiled_runs(PartRunner(OnnxRuntimeRunner(session, self._flavour.device), self._idle)):
                pass
            events = json.loads(Path(session.end_profiling()).read_bytes())
        samples: dict[tuple[str, str], list[float]] = {}
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                samples.setdefault((event["name"], event["args"]["op_name"]), []).append(event["dur"])
        return [(operation in LAYOUT_CHANGES, times) for (_, operation), times in samples.items()]

    @cached_property
    def _idle(self) -> "OnnxRuntimeRunner":
        return self.build(call_overhead_model())

    def _session(self, onnx_model: bytes, profile: str | None = None) -> "onnxruntime.InferenceSession":
        library = self._library()
        providers = [(name, dict(options)) for name, options in self._flavour.providers.items()]
        options = self._options(library)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        try:
            session = library.InferenceSession(onnx_model, options, providers=providers, enable_fallback=False)
        except Exception as error:  # its error classes share no base but Exception
            raise TableError(f"onnxruntime {library.__version__} refuses the model: {error}") from error
        self._require_provider(session)
        return session

    def _library(self) -> Any:
        library = _library()
        if not self._on_gpu:
            return library
        available = library.get_available_providers()
        if self._flavour.provider not in available:
            raise BackendUnavailableError(
                f"the backend {self.name!r} needs {self._flavour.provider}, but onnxruntime {library.__version__} here"
                f" offers {', '.join(available)}; run `pip install onnxruntime-gpu` in place of onnxruntime."
            )
        cuda()  # a GPU, and the libraries of CUDA that torch brings along
        library.preload_dlls()
        return library

    def _require_provider(self, session: "onnxruntime.InferenceSession") -> None:
        """Refuse a session that silently runs elsewhere, as ONNX Runtime lets it where a provider does not load."""
        found = session.get_providers()[0]
        if found != self._flavour.provider:
            remedy = "the CUDA libraries that it needs" if self._on_gpu else "a build of onnxruntime with that provider"
            raise BackendUnavailableError(
                f"onnxruntime runs the model on {found}, not on {self._flavour.provider}; install {remedy}."
            )

    def _options(self, library: Any) -> Any:
        options = library.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _SILENT
        for key, value in self._flavour.config.items():
            options.add_session_config_entry(key, value)
        return options


class OnnxRuntimeRunner:
    """A session whose inputs and outputs are bound once, on its device, so that a call copies nothing.

    Attributes:
        inputs: what they hold at first; on a CPU, the memory itself.
        outputs: likewise.
    """

    def __init__(self, session: "onnxruntime.InferenceSession", device: str) -> None:
        rng = np.random.default_rng(_INPUT_SEED)
        self.inputs = [_measurable(tensor).drawn(rng) for tensor in session.get_inputs()]
        self.outputs = [_measurable(tensor).empty() for tensor in session.get_outputs()]
        self._session = session
        self._binding = session.io_binding()
        bind = _library().OrtValue.ortvalue_from_numpy
        self._bound = [bind(values, device) for values in (*self.inputs, *self.outputs)]  # the binding borrows these
        for tensor, value in zip(session.get_inputs(), self._bound, strict=False):
            self._binding.bind_ortvalue_input(tensor.name, value)
        for tensor, value in zip(session.get_outputs(), self._bound[len(self.inputs) :], strict=True):
            self._binding.bind_ortvalue_output(tensor.name, value)

    def time_ms(self, inner: int) -> float:
        """Return the wall time in ms of `inner` inferences, one right after the other, together."""
        run, binding = self._session.run_with_iobinding, self._binding
        start = perf_counter_ns()
        for _ in range(inner):
            run(binding)
        return (perf_counter_ns() - start) / 1e6

    def close(self) -> None:
        """Release the session and its tensors."""
        del self._binding, self._bound, self._session, self.inputs, self.outputs


def _library() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            "the backend 'onnxruntime' needs the package onnxruntime; run `pip install onnxruntime`."
        ) from error
    return onnxruntime


def _measurable(tensor: Any) -> Measurable:
    dtype = tensor.type.removeprefix("tensor(").removesuffix(")")
    return require_measurable(tensor.name, FLOAT32 if dtype == "float" else dtype, tensor.shape)
