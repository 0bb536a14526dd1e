"""Tracing of an nn.Module to a raw fx graph: symbolically, or with the example's shapes as constants."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from functools import cached_property
from inspect import Parameter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.fx.proxy import Scope
from torch.utils._pytree import tree_any, tree_map

from depthcomp_errors import CaptureError
from fx_passes.module_paths import Place, set_places
from fx_passes.parts import suggest_part

__all__ = ["trace"]

_FORWARDS: dict[Any, type[nn.Module]] = {
    F.conv2d: nn.Conv2d, F.batch_norm: nn.modules.batchnorm._BatchNorm, F.linear: nn.Linear,
    F.layer_norm: nn.LayerNorm, F.group_norm: nn.GroupNorm,
}  # fmt: skip
"""The functions that layers consist of; a subclass with a forward of its own is traced into and calls them."""


def trace(model: nn.Module, example_inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Return the fx graph of `model`, its modules shared with the model.

    A symbolic trace is tried first; it keeps every size symbolic. If it fails, a second trace takes the sizes of
    `example_inputs` as constants, so that a forward may branch on them. In this trace, a module without convolutions
    that cannot be traced (a gate that branches on values, an autograd function) stays one call.

    Raises:
        CaptureError: both fail; the message names the line of the model that cannot be traced.
    """
    try:
        return fx.GraphModule(model, SymbolicTracer(len(example_inputs)).trace(model), type(model).__name__)
    except Exception as symbolic:
        try:
            return fx.GraphModule(model, ConcreteShapeTracer(example_inputs).trace(model), type(model).__name__)
        except Exception as concrete:
            raise CaptureError(_explain(model, concrete)) from symbolic


class SymbolicTracer(fx.Tracer):
    """A tracer that calls the forward with one placeholder for each example input.

    All other arguments keep their defaults. A forward may branch on these constants: `if mask is not None`.
    """

    def __init__(self, given: int) -> None:
        super().__init__()
        self._given = given  # the number of arguments that the example fills

    def create_args_for_root(self, root_fn: Any, *rest: Any, **options: Any) -> tuple[Any, list[Any]]:
        """Return the forward and its arguments: the network, then placeholders."""
        names = _argument_names(root_fn, self._given)
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    def create_arg(self, a: Any) -> Any:
        """Return an argument of a node.

        NumPy's numbers and arrays of integers become Python's, as do integers in tensors that bound a slice. An object
        of a class that is both dict and dataclass, as HuggingFace's ModelOutput, is built by a node; fx would make a
        dict of it.
        """
        if isinstance(a, np.generic) or (isinstance(a, np.ndarray) and np.issubdtype(a.dtype, np.integer)):
            return a.tolist()
        if isinstance(a, slice):
            a = slice(*map(_as_integer, (a.start, a.stop, a.step)))
        if isinstance(a, dict) and is_dataclass(type(a)):
            fields = {name: self.create_arg(value) for name, value in a.items()}
            return self.create_node("call_function", type(a), (), fields)
        return super().create_arg(a)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace the call of a module; one that the forward makes, as `self.layers[:3]` does, is traced into."""
        installed = self.submodule_paths is None or m in self.submodule_paths
        return super().call_module(m, forward, args, kwargs) if installed else forward(*args, **kwargs)

    def create_node(self, kind: str, target: Any, *rest: Any, **options: Any) -> fx.Node:
        """Return a new node that records which of the user's modules it stands for."""
        node = super().create_node(kind, target, *rest, **options)
        if node.op == "call_module":
            set_places(node, [Place(target)])
        elif node.op in ("call_function", "call_method"):
            set_places(node, [_place_of_call(self.scope, target)])
        return node

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Trace the access to a parameter as fx does, but without a search through all parameters."""
        path = self._paths.get(attr_val) if isinstance(attr_val, nn.Parameter) else None
        if path is None:
            return attr_val
        if path not in parameter_proxy_cache:
            parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {})
        return parameter_proxy_cache[path]

    @cached_property
    def _paths(self) -> dict[nn.Parameter, str]:
        return {parameter: path for path, parameter in self.root.named_parameters()}


class ConcreteShapeTracer(SymbolicTracer):
    """A tracer that knows each tensor's shape, so that Python may branch on shapes, types and devices.

    It computes a fake tensor for every proxy. A value that is no tensor (a size, a dtype, a comparison) becomes a
    constant of the graph.
    """

    def __init__(self, example_inputs: Sequence[Tensor]) -> None:
        super().__init__(len(example_inputs))
        self._fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._inputs: Iterator[Tensor] = iter([self._fake_mode.from_tensor(x) for x in example_inputs])
        self._evaluating = False
        self._fetched: dict[str, Any] = {}  # fx's own cache of the nodes that fetch parameters

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return a proxy that answers questions about its shape."""
        return ShapedProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """Return a proxy for a tensor, or the plain value of anything else."""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        self._evaluating = True
        try:
            with torch.no_grad(), self._fake_mode:
                value = self._evaluate(kind, target, tree_map(_value, args), tree_map(_value, kwargs))
        finally:
            self._evaluating = False
        proxy.node.meta["example"] = value
        return proxy if tree_any(lambda leaf: isinstance(leaf, Tensor), value) else value

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace the call of a module, or just call it while an example value is computed."""
        if self._evaluating:
            return forward(*args, **kwargs)
        traced, depth = len(self.graph.nodes), len(self.module_stack)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if any(isinstance(part, nn.Conv2d) for part in m.modules()):
                raise
            self._forget(list(self.graph.nodes)[traced:])
            while len(self.module_stack) > depth:  # fx leaves a module that failed on its stack
                self.module_stack.popitem(last=True)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Trace the access to a parameter, or just fetch it while an example value is computed."""
        if self._evaluating:
            return attr_val
        self._fetched = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def _forget(self, nodes: list[fx.Node]) -> None:
        """Remove the last nodes from the graph."""
        for node in reversed(nodes):
            self.graph.erase_node(node)
        for path in [path for path, proxy in self._fetched.items() if proxy.node in nodes]:
            del self._fetched[path]

    def _evaluate(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if op == "placeholder":
            return next(self._inputs)
        if op == "get_attr":
            return _fetch(self.root, target)
        if op == "call_module":
            return self._evaluate_module(self.root.get_submodule(target), args, kwargs)
        if op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def _evaluate_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return a module's output for fake tensors; a module that asks for values runs on zeros."""
        try:
            return module(*args, **kwargs)
        except DataDependentOutputException:
            with unset_fake_temporarily(), torch.no_grad():
                value = module(*tree_map(_zeros, args), **tree_map(_zeros, kwargs))
            return tree_map(lambda leaf: self._fake_mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf, value)


class ShapedProxy(fx.Proxy):
    """A proxy whose plain attributes and length are those of its example value."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.node.meta.get("example"), name, None)
        if value is None or callable(value) or isinstance(value, Tensor):
            return super().__getattr__(name)
        return value

    def __len__(self) -> int:
        return len(self.node.meta["example"])

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self))])  # type: ignore[index]  # fx adds operators at run time


def _as_integer(bound: Any) -> Any:
    """Return the integer in a constant tensor; anything else as it is."""
    return bound.item() if isinstance(bound, Tensor) else bound


def _argument_names(forward: Callable[..., Any], count: int) -> list[str]:
    """Return the names of the first `count` arguments after `self`; those of `*inputs` are inputs_0, inputs_1, ..."""
    _, *parameters = inspect.signature(forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind < Parameter.VAR_POSITIONAL]
    starred = next((parameter.name for parameter in parameters if parameter.kind is Parameter.VAR_POSITIONAL), "input")
    return [*names, *(f"{starred}_{index}" for index in range(count - len(names)))][:count]


def _place_of_call(scope: Scope, target: Any) -> Place:
    """Return the place of a function or method that the forward of the module at `scope` calls."""
    layer = _FORWARDS.get(target)
    if layer is not None and scope.module_type is not None and issubclass(scope.module_type, layer):
        return Place(scope.module_path)
    return Place.of_call(scope.module_path, getattr(target, "__name__", str(target)))


def _value(leaf: Any) -> Any:
    return leaf.node.meta["example"] if isinstance(leaf, fx.Proxy) else leaf


def _zeros(leaf: Any) -> Any:
    return torch.zeros(leaf.shape, dtype=leaf.dtype, device=leaf.device) if isinstance(leaf, Tensor) else leaf


def _fetch(root: nn.Module, path: str) -> Any:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _explain(model: nn.Module, error: Exception) -> str:
    """Say which line of the model's own code could not be traced, and what to do."""
    torch_home = str(Path(torch.__file__).parent)
    own = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((torch_home, own, "<"))
    ]
    where = f" at {frames[-1].filename}:{frames[-1].lineno}: `{frames[-1].line}`" if frames else ""
    reason = str(error).strip().split("\n")[0]
    return (
        f"{type(model).__name__} cannot be traced{where} ({type(error).__name__}: {reason}). "
        "The forward must take tensors and not branch on their values; rewrite that line with torch.where, "
        f"or wrap it in a function marked with torch.fx.wrap{suggest_part(model)}."
    )
