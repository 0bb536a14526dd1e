"""Removal of casts and copies without effect, which tie a graph to a type or separate two layers."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

__all__ = ["DropCasts", "DropCopies"]

_METHODS = ("float", "double", "half", "bfloat16")
_COPIES = ("clone", "contiguous", torch.clone)
_VIEWS = ("view", "view_as")  # they need the layout that a copy makes


class DropCasts(PassBase):
    """Erase `x.float()` and `x.to(dtype)` where x has that type already; types must be known at the nodes.

    Networks use these casts to compute a sensitive part in single precision. After `gm.double()` they fail where one
    operand is cast and the other is not.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        found = [node for node in graph_module.graph.nodes if _is_cast(node) and _changes_nothing(node)]
        return PassResult(graph_module, _drop(graph_module, found))


class DropCopies(PassBase):
    """Erase `x.clone()` and `x.contiguous()` where nothing after them depends on the layout.

    No node of the graph may overwrite its input, as a copy would protect the tensor from that.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        copies = [node for node in graph_module.graph.nodes if node.op != "output" and node.target in _COPIES]
        found = [node for node in copies if not any(user.target in _VIEWS for user in node.users)]
        return PassResult(graph_module, _drop(graph_module, found))


def _drop(gm: fx.GraphModule, nodes: list[fx.Node]) -> bool:
    """Let the consumers of each node read its input instead, and return whether there was any node."""
    for node in nodes:
        node.replace_all_uses_with(node.all_input_nodes[0])
        gm.graph.erase_node(node)
    if nodes:
        gm.recompile()
    return bool(nodes)


def _is_cast(node: fx.Node) -> bool:
    if node.op != "call_method":
        return False
    plain = node.target in _METHODS and len(node.args) == 1 and not node.kwargs
    options = [*node.args[1:], *node.kwargs.values()]
    return plain or (node.target == "to" and len(options) == 1 and isinstance(options[0], torch.dtype))


def _changes_nothing(node: fx.Node) -> bool:
    source = node.args[0]
    before = source.meta.get("tensor_meta") if isinstance(source, fx.Node) else None
    after = node.meta.get("tensor_meta")
    return before is not None and after is not None and before.dtype == after.dtype
