"""Removal of run-time shape assertions; the capture has checked the shapes."""

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

__all__ = ["DropAsserts"]


class DropAsserts(PassBase):
    """Erase `torch._assert` nodes, which dead-code elimination would keep for their side effect."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        found = graph_module.graph.find_nodes(op="call_function", target=torch._assert)
        for node in found:
            graph_module.graph.erase_node(node)
        return PassResult(graph_module, bool(found))
