"""Positional inputs: every layer takes its input tensor by position."""

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

__all__ = ["PositionalInputs"]

_INPUT_NAMES = ("input", "tensors")


class PositionalInputs(PassBase):
    """Turn `layer(input=x)` into `layer(x)`, and `torch.cat(tensors=[a, b])` likewise."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        modified = False
        for node in graph_module.graph.nodes:
            named = [name for name in _INPUT_NAMES if name in node.kwargs and not node.args]
            if node.op in ("call_module", "call_function") and named:
                node.args = (node.kwargs[named[0]],)
                node.kwargs = {name: value for name, value in node.kwargs.items() if name != named[0]}
                modified = True
        return PassResult(graph_module, modified)
