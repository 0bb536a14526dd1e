"""Give every in-place layer an output of its own."""

import inspect

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fx_passes.operators import called_module

__all__ = ["DropInplace"]


class DropInplace(PassBase):
    """Let later readers of an overwritten tensor read what overwrote it, and switch `inplace` off."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        order = {node: position for position, node in enumerate(graph_module.graph.nodes)}
        found = [node for node in order if _overwrites(graph_module, node)]
        for node in found:
            later = {user for user in node.all_input_nodes[0].users if order[user] > order[node]}
            node.all_input_nodes[0].replace_all_uses_with(node, delete_user_cb=later.__contains__)
        for module in graph_module.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
        return PassResult(graph_module, bool(found))


def _overwrites(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a node writes its result into the first tensor that it reads."""
    if not node.all_input_nodes:
        return False
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        return _asks_inplace(node) or getattr(node.target, "__name__", "").endswith("relu_")
    return bool(getattr(called_module(gm, node), "inplace", False))


def _asks_inplace(node: fx.Node) -> bool:
    """Say whether a functional layer is called with `inplace=True`, by name or by position."""
    names = list(inspect.signature(node.target).parameters) if inspect.isfunction(node.target) else []
    options = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return options.get("inplace") is True
