"""PyTorch modules for signatures, with the weights of their ONNX models.

Importing this loads torch, so it is imported only where a backend takes modules.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils import skip_init

from latency_tables.operators.models import Weights, input_shapes, operator_weights
from latency_tables.operators.signature import OperatorSignature

__all__ = ["ACTIVATION_MODULES", "call_overhead_module", "example_inputs", "operator_module"]

ACTIVATION_MODULES: Mapping[str, Callable[[int], nn.Module]] = {
    "celu": lambda channels: nn.CELU(),
    "elu": lambda channels: nn.ELU(),
    "gelu": lambda channels: nn.GELU(),
    "gelu_tanh": lambda channels: nn.GELU(approximate="tanh"),
    "hardsigmoid": lambda channels: nn.Hardsigmoid(),
    "hardswish": lambda channels: nn.Hardswish(),
    "hardtanh": lambda channels: nn.Hardtanh(),
    "leaky_relu": lambda channels: nn.LeakyReLU(),
    "mish": lambda channels: nn.Mish(),
    "prelu": lambda channels: nn.PReLU(channels, device="cpu", dtype=torch.float32),
    "relu": lambda channels: nn.ReLU(),
    "relu6": lambda channels: nn.ReLU6(),
    "selu": lambda channels: nn.SELU(),
    "sigmoid": lambda channels: nn.Sigmoid(),
    "silu": lambda channels: nn.SiLU(),
    "softplus": lambda channels: nn.Softplus(),
    "softsign": lambda channels: nn.Softsign(),
    "tanh": lambda channels: nn.Tanh(),
}
"""Name of an activation -> module for a tensor of so many channels."""


def operator_module(signature: OperatorSignature, *, seed: int = 0) -> fx.GraphModule:
    """Return the module of one operator in evaluation mode, with the weights of `models.operator_model`.

    It takes `x` and, for a residual, `residual`, as the ONNX model does. Each is a graph with code of its own, as
    torch.compile keeps only so many compiled forms of one piece of code. No random numbers of torch are drawn.

    Example:
        >>> pool = OperatorSignature(op="avg_pool", batch=1, in_channels=8, out_channels=8, in_size=(6, 6),
        ...                          kernel=(2, 2), stride=(2, 2))
        >>> operator_module(pool)(*example_inputs(pool)).shape
        torch.Size([1, 8, 3, 3])
    """
    layers = dict(_layers(signature, operator_weights(signature, seed=seed)))
    graph = fx.Graph()
    value = graph.placeholder("x")
    residual = graph.placeholder("residual") if signature.residual else None
    for name in layers:
        value = graph.call_module(name, (value,))
    if residual is not None:
        value = graph.call_function(torch.add, (value, residual))
    if signature.activation is not None:
        pixels_first = signature.op == "linear" and signature.in_size != (1, 1)
        channels = 1 if pixels_first else signature.out_channels  # torch's PReLU has its channels along axis 1
        layers["activation"] = ACTIVATION_MODULES[signature.activation](channels)
        value = graph.call_module("activation", (value,))
    graph.output(value)
    return fx.GraphModule(layers, graph).eval()


def example_inputs(signature: OperatorSignature) -> tuple[Tensor, ...]:
    """Return zeros of the shapes that the operator's module takes."""
    shapes = input_shapes(signature).values()
    return tuple(torch.zeros(shape, dtype=torch.float32, device="cpu") for shape in shapes)


def call_overhead_module() -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """Return a module whose latency is what a call costs by itself, and its example input.

    A view runs no kernel, so the launch of one, which every operator pays for itself, stays in the operators'
    latencies; an empty module would be too little, as torch.compile leaves it out altogether.
    """
    graph = fx.Graph()
    graph.output(graph.call_method("view", (graph.placeholder("x"), 1)))
    return fx.GraphModule({}, graph).eval(), (torch.zeros(1, 1, 1, 1, dtype=torch.float32, device="cpu"),)


def _layers(signature: OperatorSignature, weights: Weights) -> Iterator[tuple[str, nn.Module]]:
    """Yield the operator with its name, after its padding where that takes a layer of its own."""
    top, bottom, left, right = signature.padding
    padding = (top, left)
    most = [length // 2 for length in signature.kernel] if signature.op == "avg_pool" else padding
    if (top, left) != (bottom, right) or top > most[0] or left > most[1]:
        yield "pad", nn.ZeroPad1d((left, right)) if signature.signals else nn.ZeroPad2d((left, right, top, bottom))
        padding = (0, 0)
    yield "operator", _OPERATORS[signature.op](signature, padding, weights)


def _conv(signature: OperatorSignature, padding: tuple[int, int], weights: Weights) -> nn.Module:
    options = map(signature.along_axes, (signature.kernel, signature.stride, padding, signature.dilation))
    conv: nn.Module = skip_init(  # type: ignore[no-untyped-call]  # draws no random numbers, unlike nn.Conv2d
        nn.Conv1d if signature.signals else nn.Conv2d, signature.in_channels, signature.out_channels, *options,
        signature.groups, device="cpu", dtype=torch.float32,
    )  # fmt: skip
    return _loaded(conv, {"weight": weights["weight"], "bias": weights["bias"]})


def _linear(signature: OperatorSignature, padding: tuple[int, int], weights: Weights) -> nn.Module:
    linear: nn.Module = skip_init(  # type: ignore[no-untyped-call]  # as for a convolution
        nn.Linear, signature.in_channels, signature.out_channels, device="cpu", dtype=torch.float32
    )
    return _loaded(linear, {"weight": np.ascontiguousarray(weights["weight"].T), "bias": weights["bias"]})


def _avg_pool(signature: OperatorSignature, padding: tuple[int, int], weights: Weights) -> nn.Module:
    pool: Callable[..., nn.Module] = nn.AvgPool1d if signature.signals else nn.AvgPool2d
    return pool(*map(signature.along_axes, (signature.kernel, signature.stride, padding)))


def _scale(signature: OperatorSignature, padding: tuple[int, int], weights: Weights) -> nn.Module:
    names = {"weight": "gain", "bias": "shift", "running_mean": "mean", "running_var": "variance"}
    kind = nn.BatchNorm1d if signature.signals else nn.BatchNorm2d
    norm = kind(signature.in_channels, device="cpu", dtype=torch.float32)
    return _loaded(norm, {ours: weights[onnx] for ours, onnx in names.items()})


def _loaded(layer: nn.Module, weights: Mapping[str, NDArray[np.float32]]) -> nn.Module:
    layer.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()}, strict=False)
    return layer


_OPERATORS = {"conv": _conv, "linear": _linear, "avg_pool": _avg_pool, "scale": _scale}
