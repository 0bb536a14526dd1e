"""Constants of a graph: values that follow from the model's own tensors alone, computed once for all images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fx_passes.operators import called_module

__all__ = ["Constants"]


class Constants:
    """The nodes of a graph whose values depend on no input, and their values.

    Args:
        gm: the graph; it is not changed.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._learned: dict[fx.Node, bool] = {}
        self._values: dict[fx.Node, Any] = {}
        for node in gm.graph.nodes:
            if node.op == "get_attr":
                tensor = _fetch(gm, node)
                self._learned[node] = isinstance(tensor, nn.Parameter) and tensor.requires_grad
            elif node.op in ("call_function", "call_method", "call_module"):
                sources = [self._learned.get(source) for source in node.all_input_nodes]
                if sources and None not in sources:
                    self._learned[node] = any(sources) or _is_trained(called_module(gm, node))

    def __contains__(self, node: object) -> bool:
        """Say whether a node's value depends on no input."""
        return node in self._learned

    def is_learned(self, node: fx.Node) -> bool:
        """Say whether a constant is computed from a parameter that is trained."""
        return self._learned[node]

    def value(self, node: fx.Node) -> Any:
        """Return a constant's value, without a gradient."""
        if node not in self._values:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.value)
            with torch.no_grad():
                self._values[node] = self._compute(node, args, kwargs)
        return self._values[node]

    def _compute(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.op == "get_attr":
            value = _fetch(self._gm, node)
            return value.detach() if isinstance(value, Tensor) else value
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        module = called_module(self._gm, node)
        if module is not None:
            return module(*args, **kwargs)
        assert callable(node.target)  # a function: fx has no other nodes that compute
        return node.target(*args, **kwargs)


def _is_trained(module: nn.Module | None) -> bool:
    return module is not None and any(parameter.requires_grad for parameter in module.parameters())


def _fetch(gm: fx.GraphModule, node: fx.Node) -> Any:
    owner, _, name = str(node.target).rpartition(".")
    return getattr(gm.get_submodule(owner), name)
