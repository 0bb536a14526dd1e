"""Modules that torch.export returns, as plain graph modules."""

from __future__ import annotations

import copy

from torch import fx, nn

__all__ = ["plain"]

_EXPORT = "torch.export"
_GUARDS = "_guards_fn"  # the module that checks the sizes of inputs


def plain(model: nn.Module) -> nn.Module:
    """Return a graph module that computes what an exported module does, without its checks of inputs.

    Any other model is returned as it is. The weights are shared.
    """
    if not isinstance(model, fx.GraphModule) or not _is_exported(model):
        return model
    graph = copy.deepcopy(model.graph)
    for node in graph.find_nodes(op="call_module", target=_GUARDS):
        graph.erase_node(node)
    return fx.GraphModule(model, graph).train(model.training)


def _is_exported(model: nn.Module) -> bool:
    return any(hook.__module__.startswith(_EXPORT) for hook in model._forward_pre_hooks.values())
