"""A backend whose latencies follow from the ONNX graph alone, so that two runs measure the same to the last bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from latency_tables import Environment

__all__ = ["ArithmeticBackend"]

# Whole picoseconds: their sum does not depend on the order of the nodes.
CALL_PS = 50_000_000
NODE_PS = 2_000_000
MAC_PS = 50  # 20 billion multiply-adds a second
GROUPED_MAC_PS = 200  # grouped convolutions reach a fraction of the speed of dense ones
ELEMENT_PS = 100
PS_PER_MS = 10**9
WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class ArithmeticRunner:
    """A model that takes the same time at every call.

    Attributes:
        latency_ps: time of one inference in picoseconds.
    """

    latency_ps: int

    def time_ms(self, inner: int) -> float:
        """Return the time of `inner` inferences in ms."""
        return inner * self.latency_ps / PS_PER_MS

    def close(self) -> None:
        """Release nothing."""


@dataclass(frozen=True, slots=True)
class ArithmeticBackend:
    """Computes the latency of a model from its nodes in place of running it."""

    name: str = "arithmetic"

    def environment(self) -> Environment:
        """Return an environment that is the same on every machine in all that decides."""
        return Environment.here(backend=self.name, backend_version="1", device="arithmetic", threads=1)

    def build(self, onnx_model: bytes) -> ArithmeticRunner:
        """Return a runner for a serialised ONNX model with static shapes."""
        graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(onnx_model)).graph
        values = (*graph.value_info, *graph.input, *graph.output)
        shapes = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}
        shapes |= {weight.name: list(weight.dims) for weight in graph.initializer}
        return ArithmeticRunner(CALL_PS + sum(_node_ps(node, shapes) for node in graph.node))


def _node_ps(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int:
    """Return the time of a node in picoseconds: its multiply-adds, or its output's elements where it has none."""
    output = shapes[node.output[0]]
    if node.op_type not in WEIGHTED:
        return NODE_PS + ELEMENT_PS * math.prod(output)
    weight = shapes[node.input[1]]
    channels = output[1 if node.op_type == "Conv" else -1]
    macs = math.prod(output) * math.prod(weight) // channels  # both have the output channels
    group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return NODE_PS + macs * (MAC_PS if group == 1 else GROUPED_MAC_PS)
