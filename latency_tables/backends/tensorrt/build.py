"""The build of an engine from an ONNX model, for both flavours of TensorRT."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from depthcomp_errors import EngineError
from latency_tables.backends.protocol import Progress
from latency_tables.backends.tensorrt.fused_plan import FusedPlan, read_plan
from latency_tables.backends.tensorrt.library import create_builder, load_library, new_log, version_of
from latency_tables.backends.tensorrt.monitor import Stop, new_monitor, stopped_by_interrupt
from latency_tables.backends.tensorrt.onnx_check import checked_model, parse_into, shapes_of
from latency_tables.backends.tensorrt.spec import BuildSpec
from latency_tables.backends.tensorrt.timing_cache import TimingCache

__all__ = ["Engine", "build_engine", "require_buildable"]

_ERRORS = ("INTERNAL_ERROR", "ERROR")
_IMAGE_CHANNELS = 4  # tensors with more are feature maps


@dataclass(frozen=True, slots=True)
class Engine:
    """A built engine.

    Attributes:
        data: what the library's runtime loads. Two builds of the same give different bytes.
        spec: what it was built for.
        version: of the library that built it, the only one that is sure to load it.
        onnx_sha256: hash of the model that it was built from: of the bytes given, or of a file's with its weights.
        inputs: shape of each input; a name stands for a dynamic size.
        outputs: shape of each output.
        plan: its kernels; None where the library's log does not list them in a known form.
        warnings: what the library warned of.
    """

    data: bytes
    spec: BuildSpec
    version: str
    onnx_sha256: str
    inputs: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]
    plan: FusedPlan | None
    warnings: tuple[str, ...]


def build_engine(
    onnx_model: bytes | str | os.PathLike[str],
    spec: BuildSpec,
    progress: Progress | None = None,
    *,
    timing_cache: Path | None = None,
) -> Engine:
    """Return the engine of an ONNX model, given as bytes or a file. Nothing but the timing cache is written.

    Args:
        onnx_model: in the precision of `spec`.
        spec: what to build for.
        progress: called as (parts done, 1000, phase); where it raises, the build stops and the error is passed on.
        timing_cache: a file of what earlier builds on this GPU have learnt, read and added to; tensorrt_rtx has none.

    Raises:
        MissingPackageError: the flavour's package is not installed.
        BackendUnavailableError: a GPU is needed to build, and there is none.
        EngineError: the model or a target cannot be built; all nodes at fault are named.
        KeyboardInterrupt: Ctrl-C, once the build has stopped.

    Warns:
        UserWarning: the timing cache cannot be used or kept; the build goes on without.
    """
    model = checked_model(onnx_model, spec)
    trt = load_library(spec.flavour)
    log = new_log(trt)
    data = _serialized(trt, model, spec, log, progress, TimingCache(timing_cache, trt, log))
    return Engine(
        data=data,
        spec=spec,
        version=str(trt.__version__),
        onnx_sha256=hashlib.sha256(_bytes_of(onnx_model, model)).hexdigest(),
        inputs=shapes_of(model.graph.input),
        outputs=shapes_of(model.graph.output),
        plan=read_plan(log.texts("VERBOSE")),
        warnings=tuple(dict.fromkeys(log.texts("WARNING"))),
    )


def require_buildable(spec: BuildSpec) -> None:
    """Refuse a specification that no model can be built for here.

    Raises:
        MissingPackageError: the flavour's package is not installed.
        BackendUnavailableError: a GPU is needed to build, and there is none.
        EngineError: the library does not know a target.
    """
    trt = load_library(spec.flavour)
    create_builder(trt, new_log(trt))
    _targets(trt, spec)


def _bytes_of(source: bytes | str | os.PathLike[str], model: ModelProto) -> bytes:
    return source if isinstance(source, bytes) else model.SerializeToString()


def _serialized(
    trt: Any, model: ModelProto, spec: BuildSpec, log: Any, progress: Progress | None, timings: TimingCache
) -> bytes:
    builder = create_builder(trt, log)
    network = builder.create_network(_network_flags(trt))
    parse_into(network, model, trt, log)
    config, stop = _config(trt, builder, spec), Stop()
    _set_profile(builder, network, config, spec)
    if spec.channels_last_io:
        _set_layouts(trt, network)
    timings.attach(config)
    config.progress_monitor = monitor = new_monitor(trt, progress, stop)
    with stopped_by_interrupt(stop):
        memory = builder.build_serialized_network(network, config)
    del monitor
    if memory is None:
        _forget_failure(trt)
        stop.raise_if_wanted()
        raise _refusal(trt, spec, log.texts(*_ERRORS))
    stop.raise_if_wanted()
    timings.keep(config)
    return bytes(memory)


def _network_flags(trt: Any) -> int:
    """Return the flags of a network whose types are the model's own: later than 10.x, and RTX, know no other."""
    if trt.__name__ == "tensorrt" and version_of(trt)[0] == 10:
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def _config(trt: Any, builder: Any, spec: BuildSpec) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the log lists the kernels then
    config.avg_timing_iterations = spec.timing_iterations
    if spec.aux_streams is not None:
        config.max_aux_streams = spec.aux_streams
    (config.set_flag if spec.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    targets = _targets(trt, spec)
    if targets:
        config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(target, index)
    return config


def _targets(trt: Any, spec: BuildSpec) -> list[Any]:
    if not spec.targets:
        return []  # tensorrt has no list of them
    known = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    unknown = [target for target in spec.targets if f"SM{target}" not in known]
    if unknown:
        names = ", ".join(name.removeprefix("SM") for name in known)
        raise EngineError(
            f"{trt.__name__} {trt.__version__} cannot build for GPUs of compute capability {unknown[0]}; choose from"
            f" {names}, or build with tensorrt on that GPU."
        )
    return [known[f"SM{target}"] for target in spec.targets]


def _set_profile(builder: Any, network: Any, config: Any, spec: BuildSpec) -> None:
    if spec.batch is None:
        return
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sizes = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((batch, *sizes) for batch in spec.batch))
    config.add_optimization_profile(profile)


def _set_layouts(trt: Any, network: Any) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in (*inputs, *outputs):
        if len(tensor.shape) == 4 and tensor.shape[1] > _IMAGE_CHANNELS:
            half = tensor.dtype == trt.DataType.HALF
            tensor.allowed_formats = 1 << int(trt.TensorFormat.HWC8 if half else trt.TensorFormat.HWC)


def _refusal(trt: Any, spec: BuildSpec, errors: list[str]) -> EngineError:
    reason = "; ".join(" ".join(error.split()) for error in dict.fromkeys(errors)) or "no reason is given"
    advice = "change what it names"
    if 75 in spec.targets and spec.precision == "fp32":
        advice = "Turing (75) takes no fp32 matrix products, so build for it in fp16, in an engine of its own"
    return EngineError(f"{trt.__name__} {trt.__version__} cannot build the engine: {reason.rstrip('.')}; {advice}.")


def _forget_failure(trt: Any) -> None:
    """Build a network of one node: tensorrt_rtx 1.7.1 plans the next build for the targets of one that failed."""
    if trt.__name__ != "tensorrt_rtx":
        return
    builder = create_builder(trt, new_log(trt))
    network = builder.create_network(0)
    layer = network.add_identity(network.add_input("x", trt.DataType.FLOAT, (1,)))
    network.mark_output(layer.get_output(0))
    builder.build_serialized_network(network, builder.create_builder_config())
