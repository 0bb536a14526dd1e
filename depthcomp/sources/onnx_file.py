"""Networks that exist as ONNX files only, read through onnx2torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from depthcomp.errors import CaptureError, MissingPackageError
from depthcomp.export.onnx_names import NAMES
from depthcomp_errors.first_line import first_line
from fx_passes.graph_edit import attach_attributes
from fx_passes.preconditions import as_tensors

if TYPE_CHECKING:
    import onnx

__all__ = ["read_onnx"]

_NEWEST_OPSET = 17  # onnx2torch 1.5 knows no operator of a later one
_PADS_EVENLY = ("SAME_UPPER", "SAME_LOWER")


def read_onnx(path: str | os.PathLike[str], example_inputs: Any = None) -> tuple[nn.Module, Tensor]:
    """Return the network in an ONNX file, in evaluation mode, and an example input for it.

    Its weights are parameters. The names of its inputs and outputs, and whether its batch size is free, lie in its
    attribute `NAMES`; an export takes them from there.

    Args:
        path: the file.
        example_inputs: a batch of images; None for one random image of the size in the file.

    Raises:
        CaptureError: the file cannot be read or converted, has several inputs, or leaves the image size open.
        MissingPackageError: onnx2torch is not installed.
    """
    model = _loaded(Path(path))
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise CaptureError(f"{path} has {len(inputs)} inputs ({', '.join(v.name for v in inputs)}), and must have one")
    example = _example(inputs[0], example_inputs, path)
    network = _converted(model, example.shape, path)
    sizes = inputs[0].type.tensor_type.shape.dim
    names = {"inputs": [inputs[0].name], "outputs": [value.name for value in model.graph.output]}
    attach_attributes(network, {NAMES: {**names, "dynamic_batch": bool(sizes) and sizes[0].dim_value <= 0}})
    return network.eval(), example


def _loaded(path: Path) -> onnx.ModelProto:
    import onnx

    if not path.is_file():
        raise CaptureError(f"the ONNX file {path} does not exist; check the path")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # of protobuf, of the checker, or of a file with the weights
        raise CaptureError(
            f"{path} cannot be read as ONNX ({type(error).__name__}: {first_line(error)}); export the network again"
        ) from error
    return model


def _example(value: onnx.ValueInfoProto, example_inputs: Any, path: str | os.PathLike[str]) -> Tensor:
    """Return the example that was given, or a random image of the input's size."""
    if example_inputs is not None:
        given = as_tensors(example_inputs)
        if len(given) != 1:
            raise CaptureError(f"example_inputs holds {len(given)} inputs, and {path} has one; pass one tensor")
        return given[0]
    batch, *size = [dim.dim_value for dim in value.type.tensor_type.shape.dim] or [0]
    if not size or min(size) <= 0:
        raise CaptureError(
            f"{path} leaves the size of its input {value.name} open; give example_inputs, or export the network with a "
            "fixed height and width"
        )
    return torch.randn(max(batch, 1), *size, generator=torch.Generator().manual_seed(0))


def _converted(model: onnx.ModelProto, shape: Sequence[int], path: str | os.PathLike[str]) -> fx.GraphModule:
    try:
        from onnx2torch import convert
    except ImportError as error:
        raise MissingPackageError(
            f'{path} is read by the package onnx2torch; run `pip install "depthcomp[onnx]"`'
        ) from error
    try:
        network: fx.GraphModule = convert(_plain(model, shape))
    except Exception as error:  # onnx2torch and onnx raise errors of any type
        version = next((entry.version for entry in model.opset_import if not entry.domain), 0)
        raise CaptureError(
            f"{path} (opset {version}) cannot be converted to PyTorch ({type(error).__name__}: {first_line(error)}); "
            f"export the network with an opset from 11 to {_NEWEST_OPSET}, or give the network in PyTorch"
        ) from error
    return network


def _plain(model: onnx.ModelProto, shape: Sequence[int]) -> onnx.ModelProto:
    """Return a model with operators and attributes that onnx2torch knows, for inputs of a shape."""
    import onnx_ir as ir
    from onnx.version_converter import convert_version
    from onnx_ir.passes import common

    if any(not entry.domain and entry.version > _NEWEST_OPSET for entry in model.opset_import):
        model = convert_version(model, _NEWEST_OPSET)
    passes = (
        common.InlinePass(), common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.IdentityEliminationPass(), common.RemoveUnusedNodesPass(),
    )  # fmt: skip
    found = ir.serde.deserialize_model(model)
    for each in passes:
        found = each(found).model
    plain = ir.serde.serialize_model(found)
    _write_out_padding(plain, shape)
    for node in plain.graph.node:
        zero = [a for a in node.attribute if a.name == "allowzero" and a.i]
        if zero and not _has_zero(plain, node.input[1]):
            node.attribute.remove(zero[0])
    return plain


def _has_zero(model: onnx.ModelProto, name: str) -> bool:
    """Say whether the shape stored under a name may hold a 0."""
    from onnx import numpy_helper

    found = next((weight for weight in model.graph.initializer if weight.name == name), None)
    return found is None or 0 in numpy_helper.to_array(found)


def _write_out_padding(model: onnx.ModelProto, shape: Sequence[int]) -> None:
    """Put numbers in the place of `auto_pad`, in place, for inputs of a shape."""
    from onnx import helper

    automatic = [node for node in model.graph.node if any(a.name == "auto_pad" for a in node.attribute)]
    sizes = _sizes(model, shape) if automatic else {}
    for node in automatic:
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        mode = options.pop("auto_pad").decode()
        if mode in _PADS_EVENLY:
            kernel = options.get("kernel_shape") or sizes[node.input[1]][2:]  # a convolution may leave it out
            options["pads"] = _even_pads(options, sizes[node.input[0]][2:], kernel, mode)
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in options.items())


def _even_pads(options: dict[str, Any], size: Sequence[int], kernel: Sequence[int], mode: str) -> list[int]:
    """Return padding with which a window at every stride sees a pixel (ONNX, operator Conv, auto_pad)."""
    strides, dilations = (options.get(name, [1] * len(kernel)) for name in ("strides", "dilations"))
    total = [
        max((-(-pixels // stride) - 1) * stride + (width - 1) * dilation + 1 - pixels, 0)
        for pixels, stride, width, dilation in zip(size, strides, kernel, dilations, strict=True)
    ]
    less, more = [pad // 2 for pad in total], [pad - pad // 2 for pad in total]
    return less + more if mode == "SAME_UPPER" else more + less


def _sizes(model: onnx.ModelProto, shape: Sequence[int]) -> dict[str, list[int]]:
    """Return the size of each tensor for inputs of a shape."""
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for dim, size in zip(fixed.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = size
    graph = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    values = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.input)}
    return values | {weight.name: list(weight.dims) for weight in graph.initializer}
