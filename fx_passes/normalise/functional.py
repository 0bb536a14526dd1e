"""Modules in place of functional layers, so that training mode and rewrites work on both."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fx_passes.graph_edit import add_module, redirect

__all__ = ["NORMS_BY_RANK", "FunctionalNorms", "FunctionalToModules"]

_ELEMENTWISE: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU, F.relu_: nn.ReLU, torch.relu: nn.ReLU, torch.relu_: nn.ReLU,
    "relu": nn.ReLU, "relu_": nn.ReLU,
    F.relu6: nn.ReLU6, F.hardtanh: nn.Hardtanh, F.hardswish: nn.Hardswish, F.hardsigmoid: nn.Hardsigmoid,
    F.silu: nn.SiLU, F.gelu: nn.GELU, F.mish: nn.Mish, F.elu: nn.ELU, F.celu: nn.CELU, F.selu: nn.SELU,
    F.leaky_relu: nn.LeakyReLU, F.softplus: nn.Softplus, F.softsign: nn.Softsign, F.logsigmoid: nn.LogSigmoid,
    F.sigmoid: nn.Sigmoid, torch.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid, "sigmoid_": nn.Sigmoid,
    F.tanh: nn.Tanh, torch.tanh: nn.Tanh, "tanh": nn.Tanh, "tanh_": nn.Tanh,
    F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d,
}  # fmt: skip
_BUILTIN_PARAMETERS: dict[Any, tuple[str, ...]] = {  # of functions that carry no Python signature
    **dict.fromkeys(
        (F.conv1d, F.conv2d), ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    ),
    F.linear: ("input", "weight", "bias"),
    F.avg_pool1d: ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    F.avg_pool2d: (
        "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
    ),
    F.softplus: ("input", "beta", "threshold"),
    torch.prelu: ("input", "weight"),
}  # fmt: skip

_TENSORS = ("weight", "bias", "running_mean", "running_var")

Arguments = dict[str, Any]
_Build = Callable[[fx.GraphModule, fx.Node], tuple[nn.Module, fx.Node] | None]
_NormKind = type[nn.BatchNorm1d] | type[nn.BatchNorm2d] | type[nn.BatchNorm3d]
NORMS_BY_RANK: dict[int, _NormKind] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class FunctionalToModules(PassBase):
    """Replace functional activations, dropout, pooling, linear layers and convolution.

    The weights of a functional layer must be the model's own parameters (`get_attr` nodes); they are shared
    with the new module.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        return PassResult(graph_module, _replace_all(graph_module, _build))


class FunctionalNorms(PassBase):
    """Replace functional batch normalisation; shapes must be known at the nodes, as the module depends on them.

    A norm that uses batch statistics in evaluation mode stays a function.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        return PassResult(graph_module, _replace_all(graph_module, _build_norm))


def _replace_all(gm: fx.GraphModule, build: _Build) -> bool:
    """Turn each node for which there is a module into a call of it, and return whether there was any."""
    found = [(node, build(gm, node)) for node in gm.graph.nodes]
    for node, built in found:
        if built is not None:
            target = add_module(gm, _owner(node) or f"{node.name}_module", built[0])
            redirect(node, target=target, args=(built[1],))
    return any(built is not None for _, built in found)


def _build_norm(gm: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, fx.Node] | None:
    """Return the batch norm that computes `node` and the tensor that it reads, or None where there is none."""
    arguments = _arguments(node) if node.target is F.batch_norm else {}
    source = arguments.pop("input", None)
    if not isinstance(source, fx.Node) or _has_computed_options(arguments):
        return None
    kind = NORMS_BY_RANK.get(len(getattr(source.meta.get("tensor_meta"), "shape", ())))
    module = None if kind is None else _batch_norm(gm, kind, arguments)
    return None if module is None else (module, source)


def _build(gm: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, fx.Node] | None:
    """Return the module that computes `node` and the tensor that it reads, or None where there is none."""
    if node.op not in ("call_function", "call_method"):
        return None
    arguments = _arguments(node)
    source = arguments.pop("input", None)
    if not isinstance(source, fx.Node) or _has_computed_options(arguments):
        return None
    module: nn.Module | None = None
    if node.target in _ELEMENTWISE:
        module = _elementwise(_ELEMENTWISE[node.target], arguments)
    elif node.target in (F.conv1d, F.conv2d):
        module = _conv(gm, arguments)
    elif node.target is F.linear:
        module = _linear(gm, arguments)
    elif node.target is F.avg_pool1d:
        module = nn.AvgPool1d(**arguments)
    elif node.target is F.avg_pool2d:
        module = nn.AvgPool2d(**arguments)
    elif node.target is torch.prelu:
        module = _prelu(gm, arguments)
    return None if module is None else (module, source)


def _has_computed_options(arguments: Arguments) -> bool:
    """Say whether an option is computed in the graph, as from a size; no module can hold it."""
    found: list[fx.Node] = []
    options = {name: value for name, value in arguments.items() if name not in _TENSORS}
    fx.node.map_arg(options, found.append)
    return bool(found)


def _owner(node: fx.Node) -> str:
    """Return the path of the module whose weights `node` reads; empty where it reads none."""
    paths = [str(used.target) for used in node.all_input_nodes if used.op == "get_attr"]
    return paths[0].rpartition(".")[0] if paths else ""


def _arguments(node: fx.Node) -> Arguments:
    """Return the arguments of `node` by name; empty where a positional argument has no known name."""
    if node.target in _BUILTIN_PARAMETERS:
        names = _BUILTIN_PARAMETERS[node.target]
    elif isinstance(node.target, str) or not inspect.isfunction(node.target):
        names = ("input",)
    else:
        names = tuple(inspect.signature(node.target).parameters)
    if len(node.args) > len(names):
        return {}
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _elementwise(kind: type[nn.Module], arguments: Arguments) -> nn.Module | None:
    known = inspect.signature(kind).parameters
    options = {k: v for k, v in arguments.items() if k in known and k != "inplace"}
    if any(isinstance(value, fx.Node) for value in options.values()):
        return None
    return kind(**options)


def _batch_norm(gm: fx.GraphModule, kind: _NormKind, arguments: Arguments) -> nn.Module | None:
    mean, variance = (_tensor(gm, arguments.get(key)) for key in ("running_mean", "running_var"))
    weight, bias = (_tensor(gm, arguments.get(key)) for key in ("weight", "bias"))
    if arguments.get("training"):
        return None  # statistics of the batch, also in evaluation mode
    if mean is None or variance is None or (weight is None) != (bias is None):
        return None
    module = kind(mean.numel(), eps=arguments.get("eps", 1e-5), momentum=arguments.get("momentum", 0.1), affine=False)
    module.running_mean, module.running_var = mean, variance
    if weight is not None and bias is not None:
        module.affine = True
        module.weight, module.bias = _parameter(weight), _parameter(bias)
    return module


def _conv(gm: fx.GraphModule, arguments: Arguments) -> nn.Module | None:
    weight, bias = (_tensor(gm, arguments.get(key)) for key in ("weight", "bias"))
    if weight is None or (arguments.get("bias") is not None and bias is None):
        return None
    groups = arguments.get("groups", 1)
    options = {key: arguments[key] for key in ("stride", "padding", "dilation") if key in arguments}
    kind = nn.Conv1d if weight.dim() == 3 else nn.Conv2d
    module = kind(
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]),  # type: ignore[arg-type]
        groups=groups, bias=bias is not None, device="meta", **options,
    )  # fmt: skip
    module.weight = _parameter(weight)
    module.bias = None if bias is None else _parameter(bias)
    return module


def _linear(gm: fx.GraphModule, arguments: Arguments) -> nn.Module | None:
    weight, bias = (_tensor(gm, arguments.get(key)) for key in ("weight", "bias"))
    if weight is None or weight.dim() != 2 or (arguments.get("bias") is not None and bias is None):
        return None
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    module.weight = _parameter(weight)
    if bias is not None:
        module.bias = _parameter(bias)
    return module


def _prelu(gm: fx.GraphModule, arguments: Arguments) -> nn.Module | None:
    weight = _tensor(gm, arguments.get("weight"))
    if weight is None:
        return None
    module = nn.PReLU(weight.numel(), device="meta")
    module.weight = _parameter(weight)
    return module


def _tensor(gm: fx.GraphModule, node: Any) -> torch.Tensor | None:
    """Return the model's own tensor that a `get_attr` node fetches."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(gm.get_submodule(owner), name)
    return value if isinstance(value, torch.Tensor) else None


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
