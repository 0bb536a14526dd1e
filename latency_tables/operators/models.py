"""ONNX models for signatures: an operator, its epilogue and random weights."""

from collections.abc import Callable
from functools import partial
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from latency_tables.operators.activations import ACTIVATIONS, Fragment
from latency_tables.operators.signature import OperatorSignature

__all__ = ["Weights", "call_overhead_model", "input_shapes", "operator_model", "operator_weights", "output_shape"]

OPSET = 20  # the first with Gelu
IR_VERSION = 9  # the one that came with opset 20: every runtime that knows the opset reads it

Stage = Callable[[str, str], Fragment]  # (input name, output name) -> fragment
Weights = dict[str, NDArray[np.float32]]


def operator_model(signature: OperatorSignature, *, seed: int = 0) -> bytes:
    """Return the ONNX model of one operator, with weights of He scale drawn from `seed`.

    Inputs are `x` and, for a residual, `residual`; the output is `y`. Their shapes are those of `input_shapes` and
    `output_shape`.

    Example:
        >>> pool = OperatorSignature(op="avg_pool", batch=1, in_channels=8, out_channels=8, in_size=(6, 6),
        ...                          kernel=(2, 2), stride=(2, 2))
        >>> [node.op_type for node in onnx.load_from_string(operator_model(pool)).graph.node]
        ['AveragePool']
    """
    body = _chain(_stages(signature, operator_weights(signature, seed=seed)))
    inputs = [_tensor(name, shape) for name, shape in input_shapes(signature).items()]
    return _checked(body, inputs, _tensor("y", output_shape(signature)))


def input_shapes(signature: OperatorSignature) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an operator's inputs, by name.

    Example:
        >>> input_shapes(OperatorSignature(op="linear", batch=2, in_channels=8, out_channels=4, in_size=(7, 5)))
        {'x': (2, 7, 5, 8)}
    """
    shapes = {"x": _shape(signature, signature.in_channels, signature.in_size)}
    return shapes | ({"residual": output_shape(signature)} if signature.residual else {})


def output_shape(signature: OperatorSignature) -> tuple[int, ...]:
    """Return the shape of an operator's output.

    Example:
        >>> output_shape(OperatorSignature(op="linear", batch=2, in_channels=8, out_channels=4, in_size=(1, 1)))
        (2, 4)
    """
    return _shape(signature, signature.out_channels, signature.out_size)


def call_overhead_model() -> bytes:
    """Return a model with next to nothing in it: its latency is what a call costs by itself."""
    ends = [make_tensor_value_info(name, TensorProto.FLOAT, (1, 1, 1, 1)) for name in "xy"]
    return _checked(Fragment([make_node("Relu", ["x"], ["y"])], []), ends[:1], ends[1])


def operator_weights(signature: OperatorSignature, *, seed: int = 0) -> Weights:
    """Return the weights of an operator by name, drawn from `seed`; those of its activation are no random ones."""
    rng, channels = np.random.default_rng(seed), (signature.out_channels,)
    if signature.op == "conv":
        kernel = signature.along_axes(signature.kernel)
        shape = (signature.out_channels, signature.in_channels // signature.groups, *kernel)
        he_scale = np.sqrt(2 / prod(shape[1:]))
        return {"weight": _normal(rng, shape, he_scale), "bias": _normal(rng, channels, 0.1)}
    if signature.op == "linear":
        he_scale = np.sqrt(2 / signature.in_channels)
        weight = _normal(rng, (signature.in_channels, signature.out_channels), he_scale)
        return {"weight": weight, "bias": _normal(rng, channels, 0.1)}
    if signature.op == "scale":
        affine = {"gain": _normal(rng, channels, 0.1, mean=1.0), "shift": _normal(rng, channels, 0.1)}
        mean, variance = _normal(rng, channels, 0.1), rng.uniform(0.5, 1.5, channels).astype(np.float32)
        return {**affine, "mean": mean, "variance": variance}
    return {}


def _stages(signature: OperatorSignature, weights: Weights) -> list[Stage]:
    operator = _OPERATORS[signature.op]
    tensors = [from_array(values, name) for name, values in weights.items()]
    stages: list[Stage] = [partial(operator, signature, tensors)]
    if signature.residual:
        stages.append(_add_residual)
    if signature.activation is not None:
        activation = ACTIVATIONS[signature.activation]
        pixel = () if signature.op == "linear" else signature.along_axes((1, 1))
        slopes = (signature.out_channels, *pixel)
        stages.append(lambda x, y: activation(x, y, slopes))
    return stages


def _chain(stages: list[Stage]) -> Fragment:
    names = ["x", *(f"stage{index}" for index in range(1, len(stages))), "y"]
    whole = Fragment([], [])
    for stage, x, y in zip(stages, names[:-1], names[1:], strict=True):
        piece = stage(x, y)
        whole = Fragment(whole.nodes + piece.nodes, whole.weights + piece.weights)
    return whole


def _conv(signature: OperatorSignature, weights: list[TensorProto], x: str, y: str) -> Fragment:
    node = make_node(
        "Conv",
        [x, *(tensor.name for tensor in weights)],
        [y],
        kernel_shape=signature.along_axes(signature.kernel),
        strides=signature.along_axes(signature.stride),
        pads=_onnx_pads(signature),
        dilations=signature.along_axes(signature.dilation),
        group=signature.groups,
    )
    return Fragment([node], weights)


def _linear(signature: OperatorSignature, weights: list[TensorProto], x: str, y: str) -> Fragment:
    weight, bias = (tensor.name for tensor in weights)
    if signature.in_size == (1, 1):
        return Fragment([make_node("Gemm", [x, weight, bias], [y])], weights)
    product = f"{y}_product"
    return Fragment([make_node("MatMul", [x, weight], [product]), make_node("Add", [product, bias], [y])], weights)


def _avg_pool(signature: OperatorSignature, weights: list[TensorProto], x: str, y: str) -> Fragment:
    node = make_node(
        "AveragePool",
        [x],
        [y],
        kernel_shape=signature.along_axes(signature.kernel),
        strides=signature.along_axes(signature.stride),
        pads=_onnx_pads(signature),
        count_include_pad=1,
    )
    return Fragment([node], [])


def _scale(signature: OperatorSignature, weights: list[TensorProto], x: str, y: str) -> Fragment:
    return Fragment([make_node("BatchNormalization", [x, *(tensor.name for tensor in weights)], [y])], weights)


_OPERATORS = {"conv": _conv, "linear": _linear, "avg_pool": _avg_pool, "scale": _scale}


def _add_residual(x: str, y: str) -> Fragment:
    return Fragment([make_node("Add", [x, "residual"], [y])], [])


def _normal(
    rng: np.random.Generator, shape: tuple[int, ...], scale: float, *, mean: float = 0.0
) -> NDArray[np.float32]:
    return (mean + scale * rng.standard_normal(shape)).astype(np.float32)


def _onnx_pads(signature: OperatorSignature) -> list[int]:
    top, bottom, left, right = signature.padding
    return [*signature.along_axes((top, left)), *signature.along_axes((bottom, right))]  # all beginnings, then all ends


def _shape(signature: OperatorSignature, channels: int, size: tuple[int, int]) -> tuple[int, ...]:
    if signature.op != "linear":
        return signature.batch, channels, *signature.along_axes(size)
    return (signature.batch, *(() if size == (1, 1) else size), channels)


def _tensor(name: str, shape: tuple[int, ...]) -> ValueInfoProto:
    return make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _checked(body: Fragment, inputs: list[ValueInfoProto], result: ValueInfoProto) -> bytes:
    graph = make_graph(body.nodes, "operator", inputs, [result], body.weights)
    model: ModelProto = make_model(graph, opset_imports=[make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
