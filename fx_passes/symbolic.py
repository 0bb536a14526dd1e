"""Symbolic trace of a forward: proxies pass through it, and every size stays symbolic."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import cached_property
from inspect import Parameter
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.proxy import Scope

from fx_passes.module_paths import Place, set_places

__all__ = ["SymbolicTracer", "argument_names"]

_FORWARDS: dict[Any, type[nn.Module]] = {
    F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.batch_norm: nn.modules.batchnorm._BatchNorm, F.linear: nn.Linear,
    F.layer_norm: nn.LayerNorm, F.group_norm: nn.GroupNorm,
}  # fmt: skip
"""The functions that layers consist of; a subclass with a forward of its own is traced into and calls them."""


class SymbolicTracer(fx.Tracer):
    """A tracer that calls the forward with one placeholder for each example input.

    All other arguments keep their defaults. A forward may branch on these constants: `if mask is not None`.

    Args:
        given: the number of arguments that the example fills, the first ones; or their names.
    """

    def __init__(self, given: int | Sequence[str]) -> None:
        super().__init__()
        self._given = given

    def trace(self, *args: Any, **kwargs: Any) -> fx.Graph:
        """Return the graph; a network with it can be unpickled, as users' own `torch.save` needs."""
        graph = super().trace(*args, **kwargs)
        graph._tracer_cls = None  # torch.fx would build this class anew without its arguments
        return graph

    def create_args_for_root(self, root_fn: Any, *rest: Any, **options: Any) -> tuple[Any, list[Any]]:
        """Return the forward and its arguments: the network, then placeholders."""
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in self.names_for(root_fn)]
        return self.called_with_names(root_fn), [self.root, *proxies]

    def names_for(self, forward: Callable[..., Any]) -> Sequence[str]:
        """Return the names of the arguments that the example fills."""
        return argument_names(forward, self._given) if isinstance(self._given, int) else self._given

    def called_with_names(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of the network and its inputs that passes these by name where they have been named."""
        if isinstance(self._given, int):
            return forward
        names = self._given
        return lambda root, *inputs: forward(root, **dict(zip(names, inputs, strict=True)))

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


def _as_integer(bound: Any) -> Any:
    """Return the integer in a constant tensor; anything else as it is."""
    return bound.item() if isinstance(bound, Tensor) else bound


def argument_names(forward: Callable[..., Any], count: int) -> list[str]:
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
