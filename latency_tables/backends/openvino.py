"""OpenVINO on the CPU."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from time import perf_counter_ns
from typing import Any

import numpy as np

from depthcomp_errors import BackendUnavailableError, MissingPackageError, TableError
from latency_tables.backends.layout_share import Profile, profiled_runs, share_of_changes
from latency_tables.backends.part import PartRunner
from latency_tables.backends.protocol import Runner
from latency_tables.backends.tensors import Measurable, require_measurable
from latency_tables.operators.models import call_overhead_model
from latency_tables.tables.environment import Environment, cpu_name

__all__ = ["OpenVinoBackend", "OpenVinoRunner"]

DEVICE = "CPU"
LAYOUT_CHANGES = ("Reorder", "Transpose")
PRECISION = "f32"  # where the processor has bf16 instructions, OpenVINO's own choice is bf16
_TELEMETRY = "openvino_telemetry"
_INPUT_SEED = 0


class OpenVinoBackend:
    """Runs models with OpenVINO's CPU plugin: one stream, tuned for latency, arithmetic in f32.

    Args:
        threads: threads that one inference may use.

    Raises:
        BackendUnavailableError: `threads` is below 1.
    """

    name = "openvino"

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise BackendUnavailableError(f"threads (={threads}) must be at least 1.")
        self.threads = threads

    def environment(self) -> Environment:
        """Return where this backend measures.

        Raises:
            MissingPackageError: openvino is not installed.
        """
        return Environment.here(
            backend=self.name,
            backend_version=_version(_library()),
            device=cpu_name(),
            threads=self.threads,
        )

    def build(self, onnx_model: bytes) -> "OpenVinoRunner":
        """Return a runner for a serialised ONNX model with static inputs and outputs, float32 or integers.

        Raises:
            MissingPackageError: openvino is not installed.
            BackendUnavailableError: OpenVINO does not compute in f32.
            TableError: openvino refuses the model, or a shape is not static float32.
        """
        return OpenVinoRunner(_library(), self._compiled(onnx_model, self._config()))

    def build_part(self, onnx_model: bytes) -> PartRunner:
        """Return a runner for a part of a network, which takes and returns images channels-last.

        That is the layout that its neighbours leave feature maps in. Where kernels still want another one, the runner
        knows what share of its time that takes.

        Raises:
            MissingPackageError: openvino is not installed.
            BackendUnavailableError: OpenVINO does not compute in f32.
            TableError: openvino refuses the model, or a shape is not static float32.
        """
        config = self._config()
        counted = OpenVinoRunner(_library(), self._compiled(onnx_model, {**config, "PERF_COUNT": True}, _channels_last))
        runner = OpenVinoRunner(_library(), self._compiled(onnx_model, config, _channels_last))
        return PartRunner(runner, self._idle, share_of_changes(counted.profile(self._idle)))

    @cached_property
    def _idle(self) -> "OpenVinoRunner":
        return self.build(call_overhead_model())

    def _compiled(
        self, onnx_model: bytes, config: dict[str, Any], prepared: Callable[[Any], Any] = lambda model: model
    ) -> Any:
        library = _library()
        core = _core(library)
        try:
            model = core.read_model(onnx_model)
            for port in (*model.inputs, *model.outputs):
                _measurable(port)
            compiled = core.compile_model(prepared(model), DEVICE, config)
        except RuntimeError as error:
            raise TableError(f"openvino {_version(library)} refuses the model: {_words(error)}") from error
        _require_precision(compiled, _version(library))
        return compiled

    def _config(self) -> dict[str, Any]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": PRECISION,
        }


class OpenVinoRunner:
    """A request whose inputs and outputs are memory of ours, set once, so that a call copies nothing."""

    def __init__(self, library: Any, compiled: Any) -> None:
        rng = np.random.default_rng(_INPUT_SEED)
        self.inputs = [_measurable(port).drawn(rng) for port in compiled.inputs]
        self.outputs = [_measurable(port).empty() for port in compiled.outputs]
        self._request = compiled.create_infer_request()
        for index, values in enumerate(self.inputs):
            self._request.set_input_tensor(index, library.Tensor(values, shared_memory=True))
        for index, values in enumerate(self.outputs):
            self._request.set_output_tensor(index, library.Tensor(values, shared_memory=True))

    def time_ms(self, inner: int) -> float:
        """Return the wall time in ms of `inner` inferences, one right after the other, together."""
        run = self._request.infer
        start = perf_counter_ns()
        for _ in range(inner):
            run(share_outputs=True)  # else the outputs are copied
        return (perf_counter_ns() - start) / 1e6

    def profile(self, idle: Runner) -> Profile:
        """Return the time of each operation of a part compiled with counters; `idle` is as in `PartRunner`."""
        samples: dict[tuple[str, str], list[float]] = {}
        for _ in profiled_runs(PartRunner(self, idle)):
            for operation in self._request.profiling_info:
                name = (operation.node_name, operation.node_type)
                samples.setdefault(name, []).append(operation.real_time.total_seconds())
        return [(operation in LAYOUT_CHANGES, times) for (_, operation), times in samples.items()]

    def close(self) -> None:
        """Release the request and its tensors."""
        del self._request, self.inputs, self.outputs


def _library() -> Any:
    try:
        with _no_telemetry():
            import openvino
    except ImportError as error:
        raise MissingPackageError(
            "the backend 'openvino' needs the package openvino; run `pip install 'depthcomp[openvino]'`."
        ) from error
    return openvino


@contextmanager
def _no_telemetry() -> Iterator[None]:
    """Hide the package that OpenVINO, when it is imported, reports to its makers with; OpenVINO does without it."""
    if _TELEMETRY in sys.modules:
        yield
        return
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # Python's way to say: not to be found
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]


@cache
def _core(library: Any) -> Any:
    """Return the one that lives as long as the process: the last to go would unload the plugins that it loaded."""
    return library.Core()


def _channels_last(model: Any) -> Any:
    """Return a model whose images come and go with their channels in the last dimension.

    Around linear layers they are there already.
    """
    from openvino import Layout
    from openvino.preprocess import PrePostProcessor

    if any(operation.get_type_name() == "MatMul" for operation in model.get_ops()):
        return model
    steps = PrePostProcessor(model)
    for index in range(len(model.inputs)):
        steps.input(index).tensor().set_layout(Layout("NHWC"))
        steps.input(index).model().set_layout(Layout("NCHW"))
    for index in range(len(model.outputs)):
        steps.output(index).tensor().set_layout(Layout("NHWC"))
        steps.output(index).model().set_layout(Layout("NCHW"))
    return steps.build()


def _version(library: Any) -> str:
    return str(library.__version__).partition("-")[0]  # the rest names the build


def _measurable(port: Any) -> Measurable:
    kind = port.get_element_type()
    shape = [length.get_length() if length.is_static else str(length) for length in port.get_partial_shape()]
    name = port.get_any_name() if port.get_names() else port.get_node().get_friendly_name()
    return require_measurable(name, kind.to_dtype().name, shape)


def _require_precision(compiled: Any, version: str) -> None:
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != PRECISION:
        raise BackendUnavailableError(
            f"openvino {version} computes in {found} here although {PRECISION} is asked for, so its latencies are not"
            " those of the network; choose the backend onnxruntime."
        )


def _words(error: RuntimeError) -> str:
    """Return OpenVINO's message in one line, without places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith("Exception from")]
    return " ".join(line for line in lines if line) or type(error).__name__
