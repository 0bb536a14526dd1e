"""One form for every sum of two tensors: a call of `operator.add`."""

import operator

import torch
from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

__all__ = ["UnifyAdditions"]

_FUNCTIONS = (torch.add, operator.iadd)
_METHODS = ("add", "add_", "__add__", "__iadd__", "__radd__")


class UnifyAdditions(PassBase):
    """Turn `torch.add(a, b)`, `a.add_(b)` and `a += b` into `a + b`; a scaled sum stays as it is."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        found = [node for node in graph_module.graph.nodes if _is_plain_sum(node)]
        for node in found:
            node.op, node.target = "call_function", operator.add
            node.args, node.kwargs = (*node.args, *node.kwargs.values()), {}
        return PassResult(graph_module, bool(found))


def _is_plain_sum(node: fx.Node) -> bool:
    named = (node.op == "call_function" and node.target in _FUNCTIONS) or (
        node.op == "call_method" and node.target in _METHODS
    )
    return named and len(node.args) + len(node.kwargs) == 2 and set(node.kwargs) <= {"input", "other"}
