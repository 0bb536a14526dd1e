"""Drop casts that change nothing: left in place, they would tie the graph to the type that it was captured in."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

__all__ = ["DropCasts"]

_METHODS = ("float", "double", "half", "bfloat16")


class DropCasts(PassBase):
    """Erase `x.float()` and `x.to(dtype)` where x has that type already; types must be known at the nodes.

    Networks write such casts to compute a sensitive part in single precision; `gm.double()` then fails where one
    operand is cast and the other is not.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        found = [node for node in graph_module.graph.nodes if _is_cast(node) and _changes_nothing(node)]
        for node in found:
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
        if found:
            graph_module.recompile()
        return PassResult(graph_module, bool(found))


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
