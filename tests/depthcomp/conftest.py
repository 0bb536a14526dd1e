"""What the tests of the compression share: one thread, and a machine whose latencies are arithmetic."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import onnx
import pytest
import torch

from latency_tables import Environment

CALL_MS = 0.05
NODE_MS = 0.004
MACS_PER_MS = 2e6


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Toy nets run fastest on one thread, and do not wait for busy cores then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def convolution_macs(model):
    """Return the multiply-adds of each convolution of an ONNX model, in order."""
    return macs_of_nodes(model, "Conv")


def macs_of_nodes(model, op):
    """Return the multiply-adds of each node that applies weights, in order: a convolution or a matrix product."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in _values(graph)}
    shapes |= {weight.name: list(weight.dims) for weight in graph.initializer}
    weights = [(shapes[node.output[0]], shapes[node.input[1]]) for node in graph.node if node.op_type == op]
    return [math.prod(made) * (math.prod(weight[1:]) if op == "Conv" else weight[0]) for made, weight in weights]


def _values(graph):
    return [*graph.value_info, *graph.input, *graph.output]


def honest_ms(onnx_model):
    """A call, a little for each node, and the multiply-adds: additive but for the call."""
    model = onnx.load_from_string(onnx_model)
    macs = sum(convolution_macs(model)) + sum(macs_of_nodes(model, "MatMul"))
    return CALL_MS + NODE_MS * len(model.graph.node) + macs / MACS_PER_MS


@dataclass
class ArithmeticRunner:
    ms: float
    closed: Callable[[], None]

    def time_ms(self, inner):
        return inner * self.ms

    def close(self):
        self.closed()


@dataclass
class ArithmeticBackend:
    """Times a model by reading it; `hidden(model, ms)` may change what a model takes."""

    name: str = "arithmetic"
    device: str = "abacus"
    hidden: Callable[[bytes, float], float] = lambda model, ms: ms
    built: list[bytes] = field(default_factory=list)
    live: int = 0

    def environment(self):
        return Environment(
            backend="arithmetic", backend_version="1.0", device=self.device, threads=1, precision="fp32",
            os="none", python="3.11", machine="wood",
        )  # fmt: skip

    def build(self, onnx_model):
        self.built.append(onnx_model)
        self.live += 1
        return ArithmeticRunner(self.ms(onnx_model), self._close)

    def ms(self, onnx_model):
        return self.hidden(onnx_model, honest_ms(onnx_model))

    def _close(self):
        self.live -= 1


@pytest.fixture(scope="session")
def arithmetic_backend():
    """The class, so that a test builds the machine that it needs."""
    return ArithmeticBackend


@pytest.fixture(scope="session")
def macs_of():
    """A function from ONNX bytes to the multiply-adds of each convolution."""
    return lambda data: convolution_macs(onnx.load_from_string(data))
