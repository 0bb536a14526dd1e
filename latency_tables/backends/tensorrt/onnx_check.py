"""Checks that TensorRT builds what an ONNX model says; the parser of TensorRT alone accepts too much."""

import os
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from depthcomp_errors import EngineError
from latency_tables.backends.tensorrt.spec import BuildSpec

__all__ = ["checked_model", "parse_into", "precision_of", "shapes_of", "sound_model"]

_FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def checked_model(source: bytes | str | os.PathLike[str], spec: BuildSpec) -> ModelProto:
    """Return a model, read from bytes or a file, that is valid ONNX and fits a specification.

    Raises:
        EngineError: it is empty, invalid, without nodes or outputs, has float64 inputs or outputs, is in another
            precision than the specification's, or its batch is dynamic and no profile is given, or the other way.
    """
    model = sound_model(source)
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            raise EngineError(f"{value.name!r} is float64, which TensorRT cannot compute; export the model in float32.")
    _require_precision(model, spec.precision)
    _require_batch(model, spec)
    return model


def sound_model(source: bytes | str | os.PathLike[str]) -> ModelProto:
    """Return a model, read from bytes or a file, that is valid ONNX and computes something.

    Raises:
        EngineError: it cannot be read, or is empty, truncated, invalid, of a future opset, or without nodes or outputs.
    """
    model = _read(source)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise EngineError(f"the model is no valid ONNX ({_first_line(error)}); export it anew.") from error
    _require_known_operators(model)
    if not model.graph.node or not model.graph.output:
        raise EngineError("the model has no nodes or no outputs, so there is nothing to build; export it anew.")
    return model


def precision_of(model: ModelProto) -> str:
    """Return "int8" for a model with QuantizeLinear nodes, "fp16" for one with a float16 input, else "fp32"."""
    if any(node.op_type in _QUANTIZERS for node in model.graph.node):
        return "int8"
    kinds = {value.type.tensor_type.elem_type for value in model.graph.input}
    return "fp16" if TensorProto.FLOAT16 in kinds else "fp32"


def shapes_of(values: Any) -> dict[str, tuple[int | str, ...]]:
    """Return the shape of each input or output; a dynamic size is its name, or "?"."""
    return {value.name: _shape(value) for value in values}


def parse_into(network: Any, model: ModelProto, trt: Any, log: Any) -> None:
    """Parse a model into an empty network.

    Raises:
        EngineError: the parser refuses nodes, all of which are named, or it found nothing to compute.
    """
    parser = trt.OnnxParser(network, log)
    accepted = parser.parse(model.SerializeToString())
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not accepted or errors:
        faults = "; ".join(dict.fromkeys(map(_fault, errors))) or "no reason is given"
        raise EngineError(
            f"{trt.__name__} {trt.__version__} cannot parse the model: {faults}. Export those nodes as others, or in"
            " float32 or float16."
        )
    if network.num_layers == 0 or network.num_outputs == 0:
        raise EngineError(f"{trt.__name__} {trt.__version__} found nothing to compute in the model; export it anew.")


def _read(source: bytes | str | os.PathLike[str]) -> ModelProto:
    if not isinstance(source, bytes):
        path = Path(source)
        try:
            return onnx.load(path)
        except OSError as error:
            raise EngineError(f"cannot read {path}: {error.strerror}; give an ONNX file.") from error
        except Exception as error:  # protobuf has error classes of its own for each of its implementations
            raise EngineError(f"{path} is no ONNX file ({_first_line(error)}); export it anew.") from error
    if not source:
        raise EngineError("the model is empty (0 bytes); give an ONNX model.")
    try:
        return onnx.load_from_string(source)
    except Exception as error:  # as above
        raise EngineError(
            f"the {len(source)} bytes are no ONNX model ({_first_line(error)}); export it anew."
        ) from error


def _require_known_operators(model: ModelProto) -> None:
    """Refuse a future version of the operators: neither onnx.checker nor the parser does."""
    newest = int(onnx.defs.onnx_opset_version())
    for imported in model.opset_import:
        if not imported.domain and imported.version > newest:
            raise EngineError(
                f"the model uses opset {imported.version} and onnx {onnx.__version__} knows up to {newest}; export it"
                " with that or an older one."
            )


def _require_precision(model: ModelProto, precision: str) -> None:
    quantized = any(node.op_type in _QUANTIZERS for node in model.graph.node)
    if quantized != (precision == "int8"):
        has = "has" if quantized else "has no"
        raise EngineError(
            f"precision is {precision}, but the model {has} QuantizeLinear nodes; export it in {precision}."
        )
    if precision not in _FLOATS:
        return
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        number = value.data_type if isinstance(value, TensorProto) else value.type.tensor_type.elem_type
        if number in _FLOATS.values() and number != _FLOATS[precision] and not _is_scalar(value):
            raise EngineError(f"precision is {precision}, but {value.name!r} is not; export the model in {precision}.")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, TensorProto) and not value.dims


def _require_batch(model: ModelProto, spec: BuildSpec) -> None:
    shapes = shapes_of(model.graph.input)
    dynamic = [name for name, shape in shapes.items() if any(isinstance(size, str) for size in shape)]
    if dynamic and spec.batch is None:
        raise EngineError(
            f"input {dynamic[0]!r} has the dynamic shape {shapes[dynamic[0]]}; give the smallest, typical and largest"
            " batch, such as 1,8,32, or export the model with a static shape."
        )
    if spec.batch is not None and not dynamic:
        raise EngineError(f"batch (={spec.batch}) needs a model with a dynamic batch, and every input is static.")
    odd = [name for name in dynamic if any(isinstance(size, str) for size in shapes[name][1:])]
    if odd:
        raise EngineError(f"input {odd[0]!r} has shape {shapes[odd[0]]}, and only the first dimension may be dynamic.")


def _shape(value: ValueInfoProto) -> tuple[int | str, ...]:
    sizes = value.type.tensor_type.shape.dim
    return tuple(size.dim_value if size.HasField("dim_value") else size.dim_param or "?" for size in sizes)


def _fault(parser_error: Any) -> str:
    name, operator = parser_error.node_name(), parser_error.node_operator()
    where = f"node {name!r} ({operator})" if name or operator else "the model"
    return f"{where}: {parser_error.code().name}, {_first_line(parser_error.desc())}"


def _first_line(message: object) -> str:
    lines = str(message).strip().splitlines() or [type(message).__name__]
    return lines[0].rstrip(".")
