"""From a signature to the ONNX model that stands for it: an operator, its epilogue and random weights."""

from collections.abc import Callable
from functools import partial
from math import prod

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from latency_tables.activations import ACTIVATIONS, Fragment
from latency_tables.signature import OperatorSignature

__all__ = ["call_overhead_model", "operator_model"]

OPSET = 20  # the first with Gelu
IR_VERSION = 9  # the one that came with opset 20: every runtime that knows the opset reads it

Stage = Callable[[str, str], Fragment]  # (input name, output name) -> fragment


def operator_model(signature: OperatorSignature, *, seed: int = 0) -> bytes:
    """Return the ONNX model of one operator, with weights of He scale drawn from `seed`.

    Inputs are `x` of shape (batch, in_channels, height, width) and, for a residual, `residual` of the
    output's shape; the output is `y` of shape (batch, out_channels, out_height, out_width).

    Example:
        >>> pool = OperatorSignature(op="avg_pool", batch=1, in_channels=8, out_channels=8, in_size=(6, 6),
        ...                          kernel=(2, 2), stride=(2, 2))
        >>> [node.op_type for node in onnx.load_from_string(operator_model(pool)).graph.node]
        ['AveragePool']
    """
    body = _chain(_stages(signature, np.random.default_rng(seed)))
    result = _tensor("y", signature.out_channels, signature.out_size, signature)
    inputs = [_tensor("x", signature.in_channels, signature.in_size, signature)]
    if signature.residual:
        inputs.append(_tensor("residual", signature.out_channels, signature.out_size, signature))
    return _checked(body, inputs, result)


def call_overhead_model() -> bytes:
    """Return a model with next to nothing in it: its latency is what a call costs by itself."""
    ends = [make_tensor_value_info(name, TensorProto.FLOAT, (1, 1, 1, 1)) for name in "xy"]
    return _checked(Fragment([make_node("Relu", ["x"], ["y"])], []), ends[:1], ends[1])


def _stages(signature: OperatorSignature, rng: np.random.Generator) -> list[Stage]:
    operator = {"conv": _conv, "avg_pool": _avg_pool, "scale": _scale}[signature.op]
    stages: list[Stage] = [partial(operator, signature, rng)]
    if signature.residual:
        stages.append(_add_residual)
    if signature.activation is not None:
        activation = ACTIVATIONS[signature.activation]
        stages.append(lambda x, y: activation(x, y, signature.out_channels))
    return stages


def _chain(stages: list[Stage]) -> Fragment:
    names = ["x", *(f"stage{index}" for index in range(1, len(stages))), "y"]
    whole = Fragment([], [])
    for stage, x, y in zip(stages, names[:-1], names[1:], strict=True):
        piece = stage(x, y)
        whole = Fragment(whole.nodes + piece.nodes, whole.weights + piece.weights)
    return whole


def _conv(signature: OperatorSignature, rng: np.random.Generator, x: str, y: str) -> Fragment:
    shape = (signature.out_channels, signature.in_channels // signature.groups, *signature.kernel)
    he_scale = np.sqrt(2 / prod(shape[1:]))
    weight = _normal(rng, shape, he_scale, "weight")
    bias = _normal(rng, shape[:1], 0.1, "bias")
    node = make_node(
        "Conv",
        [x, weight.name, bias.name],
        [y],
        kernel_shape=signature.kernel,
        strides=signature.stride,
        pads=_onnx_pads(signature),
        dilations=signature.dilation,
        group=signature.groups,
    )
    return Fragment([node], [weight, bias])


def _avg_pool(signature: OperatorSignature, rng: np.random.Generator, x: str, y: str) -> Fragment:
    node = make_node(
        "AveragePool",
        [x],
        [y],
        kernel_shape=signature.kernel,
        strides=signature.stride,
        pads=_onnx_pads(signature),
        count_include_pad=1,
    )
    return Fragment([node], [])


def _scale(signature: OperatorSignature, rng: np.random.Generator, x: str, y: str) -> Fragment:
    channels = (signature.in_channels,)
    weights = [
        _normal(rng, channels, 0.1, "gain", mean=1.0),
        _normal(rng, channels, 0.1, "shift"),
        _normal(rng, channels, 0.1, "mean"),
        from_array(rng.uniform(0.5, 1.5, channels).astype(np.float32), "variance"),
    ]
    return Fragment([make_node("BatchNormalization", [x, *(weight.name for weight in weights)], [y])], weights)


def _add_residual(x: str, y: str) -> Fragment:
    return Fragment([make_node("Add", [x, "residual"], [y])], [])


def _normal(
    rng: np.random.Generator, shape: tuple[int, ...], scale: float, name: str, *, mean: float = 0.0
) -> TensorProto:
    return from_array((mean + scale * rng.standard_normal(shape)).astype(np.float32), name)


def _onnx_pads(signature: OperatorSignature) -> list[int]:
    top, bottom, left, right = signature.padding
    return [top, left, bottom, right]  # ONNX: all beginnings, then all ends


def _tensor(name: str, channels: int, size: tuple[int, int], signature: OperatorSignature) -> ValueInfoProto:
    return make_tensor_value_info(name, TensorProto.FLOAT, (signature.batch, channels, *size))


def _checked(body: Fragment, inputs: list[ValueInfoProto], result: ValueInfoProto) -> bytes:
    graph = make_graph(body.nodes, "operator", inputs, [result], body.weights)
    model: ModelProto = make_model(graph, opset_imports=[make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
