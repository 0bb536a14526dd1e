"""Make every module call its own: no sharing, no no-ops."""

import copy
from collections import Counter

from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fx_passes.graph_edit import add_module

__all__ = ["CloneSharedModules", "DropIdentities"]


class CloneSharedModules(PassBase):
    """Give each call of a module that is called more than once a copy of its own."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        calls: Counter[str] = Counter()
        modified = False
        for node in graph_module.graph.find_nodes(op="call_module", sort=True):
            calls[node.target] += 1
            if calls[node.target] > 1:
                clone = copy.deepcopy(graph_module.get_submodule(node.target))
                node.target = add_module(graph_module, f"{node.target}_call{calls[node.target]}", clone)
                modified = True
        return PassResult(graph_module, modified)


class DropIdentities(PassBase):
    """Erase calls of nn.Identity."""

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        modified = False
        for node in graph_module.graph.find_nodes(op="call_module"):
            if type(graph_module.get_submodule(node.target)) is nn.Identity:
                node.replace_all_uses_with(node.args[0])
                graph_module.graph.erase_node(node)
                modified = True
        return PassResult(graph_module, modified)
