"""The activations that a signature may name, each as the ONNX nodes that it is exported to."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from onnx import NodeProto, TensorProto
from onnx.helper import make_node
from onnx.numpy_helper import from_array

__all__ = ["ACTIVATIONS", "Fragment"]


class Fragment(NamedTuple):
    """A piece of an ONNX graph: its nodes in order, and the weights that they read."""

    nodes: list[NodeProto]
    weights: list[TensorProto]


Builder = Callable[[str, str, tuple[int, ...]], Fragment]  # (input name, output name, shape of slopes) -> fragment


def _one_node(operator: str, **attributes: Any) -> Builder:
    def build(x: str, y: str, slopes: tuple[int, ...]) -> Fragment:
        return Fragment([make_node(operator, [x], [y], **attributes)], [])

    return build


def _clip(low: float, high: float) -> Builder:
    def build(x: str, y: str, slopes: tuple[int, ...]) -> Fragment:
        limits = {f"{y}_low": low, f"{y}_high": high}
        bounds = [from_array(np.array(limit, np.float32), name) for name, limit in limits.items()]
        return Fragment([make_node("Clip", [x, *(bound.name for bound in bounds)], [y])], bounds)

    return build


def _silu(x: str, y: str, slopes: tuple[int, ...]) -> Fragment:
    gate = f"{y}_gate"
    return Fragment([make_node("Sigmoid", [x], [gate]), make_node("Mul", [x, gate], [y])], [])


def _prelu(x: str, y: str, slopes: tuple[int, ...]) -> Fragment:
    slope = from_array(np.full(slopes, 0.25, np.float32), f"{y}_slope")
    return Fragment([make_node("PRelu", [x, slope.name], [y])], [slope])


ACTIVATIONS: dict[str, Builder] = {
    "celu": _one_node("Celu", alpha=1.0),
    "elu": _one_node("Elu", alpha=1.0),
    "gelu": _one_node("Gelu", approximate="none"),
    "gelu_tanh": _one_node("Gelu", approximate="tanh"),
    "hardsigmoid": _one_node("HardSigmoid", alpha=1 / 6, beta=0.5),
    "hardswish": _one_node("HardSwish"),
    "hardtanh": _clip(-1.0, 1.0),
    "leaky_relu": _one_node("LeakyRelu", alpha=0.01),
    "mish": _one_node("Mish"),
    "prelu": _prelu,
    "relu": _one_node("Relu"),
    "relu6": _clip(0.0, 6.0),
    "selu": _one_node("Selu"),
    "sigmoid": _one_node("Sigmoid"),
    "silu": _silu,
    "softplus": _one_node("Softplus"),
    "softsign": _one_node("Softsign"),
    "tanh": _one_node("Tanh"),
}
"""Name -> builder of the nodes that take a tensor of `channels` channels from one name to another."""
