"""Entries of `depthcomp bench`, read and checked: saved networks, ONNX files, engines and models by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthcomp.errors import ArtifactError, EngineError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from depthcomp.latency.timing import Network

__all__ = ["MODEL", "BenchEntry", "named", "read_entry", "require_same_inputs"]

MODEL = "model.onnx"  # the file of a saved network that is timed
ENGINES = (".engine", ".plan")
_SPELLING = (
    "give a folder that --out or result.save wrote, an .onnx file, an engine (.engine, .plan), or a model like "
    "timm:NAME"
)
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchEntry:
    """A network to time side by side with others.

    Attributes:
        name: name in the result.
        source: the path or the name of the model.
        content: an ONNX model with static shapes, or an engine.
        network: makes the PyTorch network; None where the source does not hold it.
        engine_for: "tensorrt" or "tensorrt_rtx" where `content` is an engine; None where it is ONNX.
        inputs: shape of each input.
        precision: "fp32", "fp16" or "int8".
        batch: size of the batch, for an engine or an ONNX file with a dynamic batch; None for a static one.
        command: command line of NVIDIA's tool that builds and times the engine; None where `content` is ONNX.
        file: the ONNX file that holds the network; None where `content` is an engine, or no file holds it.
        when_compressed: latencies of the original and of the network when it was compressed, and the environment; None
            where unknown.
    """

    name: str
    source: str
    content: bytes
    network: Callable[[], Network] | None = None
    engine_for: str | None = None
    inputs: tuple[Shape, ...]
    precision: str
    batch: int | None = None
    command: str | None = None
    file: Path | None = None
    when_compressed: dict[str, Any] | None = None

    def onnx(self) -> bytes:
        """Return the ONNX model."""
        return self.content

    def module(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """Return the network as a module with example inputs.

        Raises:
            ArtifactError: the source does not hold it.
        """
        if self.network is None:
            raise ArtifactError(
                f"{self.source} holds no PyTorch module, which the backend needs; choose --backend onnxruntime, or "
                "give the folder of a result or a model by name"
            )
        return self.network().module()


def named(words: Iterable[str]) -> dict[str, str]:
    """Return the sources by name: NAME of `NAME=SOURCE`, the last part of a path, or a model's whole spec.

    Raises:
        ArtifactError: two sources have one name.
    """
    sources: dict[str, str] = {}
    for word in words:
        name, source = _split(word)
        if name in sources:
            raise ArtifactError(
                f"{sources[name]} and {source} both have the name {name!r}; rename one, for example other={source}"
            )
        sources[name] = source
    return sources


def _split(word: str) -> tuple[str, str]:
    path = Path(word)
    if path.exists():
        return path.resolve().name, word
    name, equals, source = word.partition("=")
    if equals and name and source:
        return name, source
    return (word if ":" in word else path.name), word


def read_entry(name: str, source: str, batch: int | None = None) -> BenchEntry:
    """Return the entry of a source, ready to be built.

    Args:
        name: name in the result.
        source: a folder of results, an ONNX file, an engine, or a model as for `depthcomp compress`.
        batch: size of the batch; None for the saved one.

    Raises:
        ArtifactError: the source is missing, broken or of another batch, or its batch is dynamic and `batch` None.
        CaptureError: the model is unknown or cannot be captured.
        MissingPackageError: the model's library is not installed.
    """
    path = Path(source)
    if path.is_dir():
        return _folder(name, path, batch)
    if path.suffix in ENGINES and path.is_file():
        return _engine(name, path, batch)
    if path.suffix == ".onnx" and path.is_file():
        return _onnx(name, source, path, batch)
    if ":" in source and not path.exists():
        return _model(name, source, batch)
    raise ArtifactError(f"{source} {'has an unknown format' if path.exists() else 'does not exist'}; {_SPELLING}")


def require_same_inputs(entries: Iterable[BenchEntry]) -> None:
    """Refuse networks with inputs of different shapes, as their latencies cannot be compared.

    Raises:
        ArtifactError: the inputs of two networks differ.
    """
    first, *others = entries
    for other in others:
        if other.inputs != first.inputs:
            raise ArtifactError(
                f"{first.name} takes {_sizes(first)}, but {other.name} takes {_sizes(other)}, so they cannot be "
                "compared; give --batch, or export one of them anew for the size of the other"
            )


def _sizes(entry: BenchEntry) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in entry.inputs)


def _folder(name: str, folder: Path, batch: int | None) -> BenchEntry:
    file = folder / MODEL
    if not file.is_file():
        raise ArtifactError(f"{folder} holds no {MODEL}; {_SPELLING}")
    found = _read_onnx(file)
    then = _when_compressed(folder / "result.json")
    if batch is not None and _static_batch(found) not in (batch, None):
        entry, then = (
            _entry(name, str(folder), _exported_anew(folder, batch)),
            None,
        )  # those latencies are for another batch
    else:
        entry = _in_file(name, str(folder), found, file, batch)
    return replace(entry, network=lambda: _saved(folder, entry.inputs[0][0]), when_compressed=then)


def _when_compressed(path: Path) -> dict[str, Any] | None:
    """Return the latencies in a result; they are from another run, so they are shown beside the comparison."""
    try:
        content = json.loads(path.read_bytes())
        here = content["environment"]
        return {
            "original_ms": float(content["original"]["ms"]),
            "measured_ms": float(content["measured"]["ms"]),
            "backend": f"{here['backend']} {here['backend_version']}",
            "device": str(here["device"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a comparison does not need them


def _exported_anew(folder: Path, batch: int) -> Any:
    import onnx

    return onnx.load_from_string(_saved(folder, batch).onnx())


def _saved(folder: Path, batch: int) -> Network:
    from depthcomp.export.engine import with_batch
    from depthcomp.latency.timing import Network
    from depthcomp.results.loading import saved_inputs
    from depthcomp.results.stored_network import load
    from fx_passes import capture

    inputs = with_batch(saved_inputs(folder), batch)
    return Network(capture(load(folder), inputs), inputs)


def _onnx(name: str, source: str, path: Path, batch: int | None) -> BenchEntry:
    return _in_file(name, source, _read_onnx(path), path, batch)


def _in_file(name: str, source: str, model: Any, file: Path, batch: int | None) -> BenchEntry:
    dynamic = _static_batch(model) is None
    return replace(_entry(name, source, _with_batch(model, file, batch)), file=file, batch=batch if dynamic else None)


def _model(name: str, spec: str, batch: int | None) -> BenchEntry:
    import onnx

    from depthcomp.commands.models import input_names, load_model, require_example
    from depthcomp.data.inputs import Inputs
    from depthcomp.export.engine import with_batch
    from depthcomp.latency.timing import Network
    from fx_passes import capture

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*random weights")  # latencies do not depend on them
        model, example = load_model(spec)
    one = require_example(spec, example)
    inputs = with_batch(one.tensors, batch or len(one))
    given = input_names(model).given(Inputs.of(inputs))
    network = Network(capture(model, given), inputs)
    return replace(_entry(name, spec, onnx.load_from_string(network.onnx())), network=lambda: network)


def _entry(name: str, source: str, model: Any) -> BenchEntry:
    from latency_tables.backends.tensorrt.onnx_check import precision_of

    return BenchEntry(
        name=name, source=source, content=model.SerializeToString(), inputs=tuple(_shapes(model).values()),
        precision=precision_of(model),
    )  # fmt: skip


def _read_onnx(path: Path) -> Any:
    from latency_tables.backends.tensorrt.onnx_check import sound_model

    try:
        model = sound_model(path)
    except EngineError as error:
        raise ArtifactError(f"{path} is truncated or cannot be used: {error}") from error
    shapes = _shapes(model).values()
    if not shapes or () in shapes:
        raise ArtifactError(f"{path} has no input, or an input without a batch; give a network that takes images")
    return model


def _shapes(model: Any) -> dict[str, tuple[Any, ...]]:
    from latency_tables.backends.tensorrt.onnx_check import shapes_of

    weights = {weight.name for weight in model.graph.initializer}
    return shapes_of(value for value in model.graph.input if value.name not in weights)


def _static_batch(model: Any) -> int | None:
    """Return the first size of the first input; None where it is dynamic."""
    size = next(iter(_shapes(model).values()))[0]
    return size if isinstance(size, int) else None


def _with_batch(model: Any, path: Path, batch: int | None) -> Any:
    """Return the model with the requested batch in place of a dynamic one."""
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed

    has = _static_batch(model)
    if has is not None and batch not in (None, has):
        raise _other_batch(path, has, batch)
    if has is None and batch is None:
        raise _needs_batch(path)
    for name in {shape[0] for shape in _shapes(model).values() if isinstance(shape[0], str)}:
        make_dim_param_fixed(model.graph, name, batch)
    return model


def _needs_batch(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} takes batches of any size; give the size to time with --batch")


def _other_batch(path: Path, has: int, batch: int | None) -> ArtifactError:
    return ArtifactError(
        f"{path} takes only batches of {has}, not --batch {batch}; leave --batch out, or export the network anew with "
        "`depthcomp export DIR --batch`"
    )


def _engine(name: str, path: Path, batch: int | None) -> BenchEntry:
    said, content = _sidecar(path), path.read_bytes()
    try:
        spec, shapes, size = said["spec"], said["inputs"], said["size_bytes"]
        built, flavour, precision = str(said["command"]), str(spec["flavour"]), str(spec["precision"])
        inputs = tuple(tuple(shape) for shape in shapes.values())
        dynamic = isinstance(inputs[0][0], str)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ArtifactError(f"{path}.json does not describe an engine ({error!r}); export the engine anew") from error
    if len(content) != size:
        raise ArtifactError(
            f"{path} has {len(content)} bytes, but {path.name}.json says {size}: it is truncated or from another "
            "build; export it anew"
        )
    if dynamic and batch is None:
        raise _needs_batch(path)
    if not dynamic and batch not in (None, inputs[0][0]):
        raise _other_batch(path, inputs[0][0], batch)
    return BenchEntry(
        name=name, source=str(path), content=content, engine_for=flavour, precision=precision,
        command=_timing_command(built, shapes, batch if dynamic else None),
        inputs=tuple((batch, *shape[1:]) if dynamic and batch else shape for shape in inputs),
        batch=batch if dynamic else None,
    )  # fmt: skip


def _timing_command(built: str, shapes: dict[str, Any], batch: int | None) -> str:
    """Return the command line that times an engine, made from the one that only builds it."""
    from latency_tables.backends.tensorrt.spec import shapes_option

    line = built.replace(" --skipInference", "")
    return line if batch is None else f"{line} {shapes_option('shapes', shapes, batch)}"


def _sidecar(path: Path) -> Any:
    from depthcomp.export.engine import sidecar_of

    try:
        return sidecar_of(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"no JSON: {error}"
        raise ArtifactError(
            f"{path}.json, which describes the engine, cannot be read ({reason}); export the engine anew with "
            "`depthcomp export`"
        ) from error
