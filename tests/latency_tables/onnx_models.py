"""Small ONNX models, good and bad."""

import ml_dtypes
import numpy as np
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

FLOATS = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


def model_of(nodes, x_shape, y_shape, *, dtype=TensorProto.FLOAT, opset=20, weights=(), more_inputs=()):
    ends = [make_tensor_value_info("x", dtype, x_shape), make_tensor_value_info("y", dtype, y_shape)]
    graph = make_graph(nodes, "small", [ends[0], *more_inputs], ends[1:] if y_shape else [], list(weights))
    return make_model(graph, opset_imports=[make_opsetid("", opset)], ir_version=9).SerializeToString()


def chain_model(*operators, dtype=TensorProto.FLOAT, shape=(1, 3), opset=20):
    """One node after another, called node0, node1, ..."""
    names = ["x", *(f"t{index}" for index in range(1, len(operators))), "y"]
    nodes = [
        make_node(operator, [names[index]], [names[index + 1]], name=f"node{index}")
        for index, operator in enumerate(operators)
    ]
    return model_of(nodes, shape, shape, dtype=dtype, opset=opset)


def index_model():
    """Rows by their numbers, and the contrary of a mask: integers and booleans in and out."""
    integers, booleans = TensorProto.INT64, TensorProto.BOOL
    kinds = {"index": integers, "mask": booleans, "y": integers, "other": booleans}
    index, mask, *outputs = [make_tensor_value_info(name, kind, [2]) for name, kind in kinds.items()]
    nodes = [make_node("Gather", ["rows", "index"], ["y"]), make_node("Not", ["mask"], ["other"])]
    graph = make_graph(nodes, "small", [index, mask], outputs, [from_array(np.array([1, 2, 3]), "rows")])
    return make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=9).SerializeToString()


def residual_model(dtype=TensorProto.FLOAT, channels=16, size=14):
    """A 3x3 convolution, an addition and a ReLU: the end of a residual block."""
    shape, kind = (1, channels, size, size), FLOATS[dtype]
    rng = np.random.default_rng(0)
    weight = from_array(rng.standard_normal((channels, channels, 3, 3)).astype(kind), "weight")
    bias = from_array(rng.standard_normal(channels).astype(kind), "bias")
    nodes = [
        make_node("Conv", ["x", "weight", "bias"], ["c"], name="conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        make_node("Add", ["c", "residual"], ["s"], name="add"),
        make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    residual = make_tensor_value_info("residual", dtype, shape)
    return model_of(nodes, shape, shape, dtype=dtype, weights=[weight, bias], more_inputs=[residual])


def quantized_model(zero_point):
    """A convolution on a quantized input, symmetric where `zero_point` is 0."""
    rng = np.random.default_rng(0)
    weights = [
        from_array(rng.integers(-9, 9, (16, 16, 1, 1)).astype(np.int8), "weight"),
        from_array(np.full(16, 0.01, np.float32), "weight_scale"),
        from_array(np.zeros(16, np.int8), "weight_zero"),
        from_array(np.float32(0.1), "scale"),
        from_array(np.int8(zero_point), "zero"),
    ]
    nodes = [
        make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="dequantize"),
        make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], name="weights", axis=0),
        make_node("Conv", ["d", "w"], ["y"], name="conv"),
    ]
    return model_of(nodes, (1, 16, 7, 7), (1, 16, 7, 7), weights=weights)


def product_model(dtype):
    """A matrix product."""
    weight = from_array(np.ones((16, 8), FLOATS[dtype]), "weight")
    nodes = [make_node("MatMul", ["x", "weight"], ["y"], name="product")]
    return model_of(nodes, (4, 16), (4, 8), dtype=dtype, weights=[weight])


def unsupported_model():
    """Two nodes, `a` and `b`, that are valid ONNX and that TensorRT has no layer for."""
    nodes = [
        make_node("Det", ["x"], ["d"], name="a"),
        make_node("Det", ["x"], ["e"], name="b"),
        make_node("Add", ["d", "e"], ["y"], name="sum"),
    ]
    return model_of(nodes, (2, 3, 3), (2,))
