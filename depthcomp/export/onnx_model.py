"""ONNX export through torch.export, checked in onnxruntime against torch."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from depthcomp.errors import ArtifactError
from depthcomp.export.onnx_names import NAMES
from depthcomp_files import write_atomically
from fx_passes.output_nodes import returned_nodes
from fx_passes.outputs import tensors_of

__all__ = ["BATCH", "OPSET_VERSION", "export_onnx", "relative_error", "require_sound", "to_onnx"]

OPSET_VERSION = 20  # the newest that TensorRT 10 and onnxruntime both read, and the exporter writes natively
BATCH = "batch"  # name of a dynamic first dimension
_TOLERANCE = {torch.float16: 2e-2, torch.float64: 1e-10}  # relative to the largest output
_SINGLE_TOLERANCE = 1e-4
_SEED = 0  # draws the second input of the comparison

Array = NDArray[Any]
Evaluator = Callable[[Sequence[Array]], Sequence[Array]]


def to_onnx(gm: nn.Module, example_inputs: tuple[Tensor, ...], *, dynamic_batch: bool = False) -> bytes:
    """Return the network in evaluation mode as an ONNX model with the shapes of `example_inputs`.

    The model keeps the network's precision. `gm` is not changed.

    Args:
        gm: the network.
        example_inputs: inputs that give the shapes.
        dynamic_batch: whether the first dimension of all inputs is dynamic, with one name, `BATCH`.

    Raises:
        ArtifactError: the network cannot be exported; the message names the operator or line that failed.
    """
    inputs = tuple(tensor.clone() for tensor in example_inputs)  # a tensor given twice would become one input
    if dynamic_batch:
        inputs = tuple(torch.cat([tensor, tensor]) for tensor in inputs)  # a size of 1 would become a constant
    batch = torch.export.Dim(BATCH)
    dynamic_shapes = tuple({0: batch} for _ in inputs) if dynamic_batch else None
    with torch.no_grad():
        try:
            program = torch.export.export(_exportable(gm), inputs, dynamic_shapes=dynamic_shapes, strict=False)
            onnx_program = torch.onnx.export(
                program, (), dynamo=True, opset_version=OPSET_VERSION, optimize=True, verbose=False
            )
            if onnx_program is None:
                raise ValueError("the exporter returned nothing")
            data = _with_named_batch(onnx_program.model_proto, dynamic_batch)
        except Exception as error:  # the exporter's stages raise errors of any type
            raise ArtifactError(
                f"{type(gm).__name__} cannot be exported to ONNX: {_innermost(error)}; "
                "replace that operator by one that the exporter of torch knows"
            ) from error
    return data


def export_onnx(gm: nn.Module, example_inputs: tuple[Tensor, ...], path: str | os.PathLike[str]) -> Path:
    """Write the network as ONNX and return the path.

    Before the file is written, onnx.checker checks the model, and its outputs are compared with torch on the example
    inputs and on random inputs of equal shapes. The file is written whole or not at all. A network that was read from
    an ONNX file keeps the names of its inputs and outputs, and its free batch size.

    Raises:
        ArtifactError: the network cannot be exported, its outputs differ from torch, or the path cannot be written.
    """
    names = getattr(gm, NAMES, None) or {}
    data = to_onnx(gm, example_inputs, dynamic_batch=bool(names.get("dynamic_batch")))
    data = _renamed(data, names) if names else data
    require_sound(data, gm, (example_inputs, _random_like(example_inputs)))
    return write_atomically(path, data)


def require_sound(data: bytes, gm: nn.Module, trials: Sequence[tuple[Tensor, ...]]) -> None:
    """Refuse an ONNX model that is invalid, or whose outputs differ from `gm` on a trial input.

    Raises:
        ArtifactError: the model fails onnx.checker, or its outputs differ.
    """
    _check(data)
    model, run_onnx = _in_evaluation(gm), _evaluator(data)
    for inputs in trials:
        _require_parity(model, run_onnx, inputs)


def relative_error(data: bytes, gm: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Return the relative error of an ONNX model in a lower precision against `gm`, over all outputs.

    Args:
        data: the model; its inputs may be float16.
        gm: the network in its own precision.
        inputs: inputs in the precision of `gm`.

    Returns:
        The root mean square of the differences, divided by the root mean square of the outputs of `gm`.
    """
    import onnx

    values = onnx.load_from_string(data).graph.input
    dtypes = [onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in values]
    found = _evaluator(data)([x.detach().cpu().numpy().astype(dtype) for x, dtype in zip(inputs, dtypes, strict=True)])
    with torch.no_grad():
        leaves = tensors_of(_in_evaluation(gm)(*inputs))
    wanted = np.concatenate([leaf.detach().double().cpu().numpy().ravel() for leaf in leaves])
    difference = np.concatenate([array.astype(np.float64).ravel() for array in found]) - wanted
    return float(np.linalg.norm(difference) / max(float(np.linalg.norm(wanted)), float(np.finfo(np.float64).tiny)))


def _renamed(data: bytes, names: Mapping[str, Any]) -> bytes:
    """Return a model whose inputs and outputs have other names."""
    import onnx
    import onnx_ir as ir

    model = ir.serde.deserialize_model(onnx.load_from_string(data))
    taken = {*names["inputs"], *names["outputs"]}
    for value in [each for node in model.graph for each in node.outputs if each.name in taken]:
        value.name = f"inner_{value.name}"
    for values, wanted in ((model.graph.inputs, names["inputs"]), (model.graph.outputs, names["outputs"])):
        for value, name in zip(values, wanted, strict=False):
            value.name = name
    written: bytes = ir.serde.serialize_model(model).SerializeToString()
    return written


def _with_named_batch(model: Any, dynamic_batch: bool) -> bytes:
    """Serialise a model with its dynamic dimension named `BATCH`; the exporter names it after a symbol."""
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    sizes = [size for value in values for size in value.type.tensor_type.shape.dim]
    symbols = {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input} if dynamic_batch else set()
    for size in sizes:
        if size.dim_param in symbols:
            size.dim_param = BATCH
    data: bytes = model.SerializeToString()
    return data


def _exportable(gm: nn.Module) -> nn.Module:
    """Return a network in evaluation mode whose output is its tensors, without constants and the user's classes."""
    network = _in_evaluation(gm)
    if not isinstance(network, fx.GraphModule):
        return network
    plain = fx.GraphModule(network, copy.deepcopy(network.graph), type(gm).__name__)
    output = next(iter(plain.graph.find_nodes(op="output")))
    output.args = (tuple(returned_nodes(output)),)
    plain.recompile()
    return plain.eval()


def _in_evaluation(gm: nn.Module) -> nn.Module:
    return copy.deepcopy(gm).eval() if any(module.training for module in gm.modules()) else gm


def _innermost(error: BaseException) -> str:
    """Return the first line of the error at the bottom of the chain: the exporter wraps it several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {text[0].rstrip('.')}"


def _check(data: bytes) -> None:
    import onnx

    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(
            f"the exported network is not valid ONNX of opset {OPSET_VERSION} ({error}); "
            "export it in float32 or float16, or report it with the network"
        ) from error


def _random_like(example_inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(_SEED)
    return tuple(_random_input(tensor, generator) for tensor in example_inputs)


def _random_input(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.is_floating_point():
        drawn = torch.randn(tensor.shape, generator=generator)
        return drawn.to(tensor.device, tensor.dtype)
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    return tensor.flatten()[order].reshape(tensor.shape)


def _require_parity(model: nn.Module, run_onnx: Evaluator, inputs: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        wanted = tensors_of(model(*inputs))
    found = run_onnx([tensor.detach().cpu().numpy() for tensor in inputs])
    if len(wanted) != len(found):
        raise ArtifactError(
            f"the exported network has {len(found)} outputs, but the network has {len(wanted)}; return each tensor once"
        )
    for index, (tensor, array) in enumerate(zip(wanted, found, strict=True)):
        error, tolerance = _relative_error(tensor, array), _TOLERANCE.get(tensor.dtype, _SINGLE_TOLERANCE)
        if not error <= tolerance:
            raise ArtifactError(
                f"output {index} of the exported network differs from torch by {error:.2g} of the largest "
                f"value, but only {tolerance:g} is allowed; report it with the network"
            )


def _relative_error(wanted: Tensor, found: Array) -> float:
    reference = wanted.detach().double().cpu().numpy()
    if reference.shape != found.shape:
        return float("inf")
    if reference.size == 0:
        return 0.0
    scale = max(float(np.abs(reference).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(reference - found.astype(np.float64)).max()) / scale


def _evaluator(data: bytes) -> Evaluator:
    """Return a function that runs a model: in onnxruntime, or in onnx's evaluator where that lacks the precision."""
    import onnx
    import onnxruntime
    from onnx.reference import ReferenceEvaluator
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernelError

    model = onnx.load_from_string(data)
    names = [value.name for value in model.graph.input]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        run = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run
    except NoKernelError:
        run = ReferenceEvaluator(model).run
    return lambda arrays: [np.asarray(x) for x in run(None, dict(zip(names, arrays, strict=True)))]
