"""Graph edits that passes share: add a module, redirect a node, keep the user's attributes, tidy up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

__all__ = [
    "add_module",
    "attach_attributes",
    "device_and_dtype",
    "nodes_by_name",
    "preserve_attributes",
    "preserved_attributes",
    "redirect",
    "tidy",
]

_PRESERVED = "_user_preserved_attributes"  # torch.fx re-attaches what stands here whenever it rebuilds a GraphModule


def add_module(gm: fx.GraphModule, hint: str, module: nn.Module) -> str:
    """Register `module` on `gm` under `hint`, or `hint` and a number where that is taken; return the name.

    The module takes over the training mode of `gm`.
    """
    base = hint.replace(".", "_")
    name, number = base, 1
    while hasattr(gm, name):
        name, number = f"{base}_{number}", number + 1
    gm.add_submodule(name, module.train(gm.training))
    return name


def device_and_dtype(gm: fx.GraphModule, node: fx.Node) -> tuple[torch.device, torch.dtype]:
    """Return the device and type of a graph's weights; without any, the CPU and the type captured at `node`."""
    for tensor in (*gm.parameters(), *gm.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), node.meta["tensor_meta"].dtype


def nodes_by_name(gm: fx.GraphModule) -> dict[str, fx.Node]:
    """Return the nodes of a graph by their names, in the graph's order."""
    return {node.name: node for node in gm.graph.nodes}


def redirect(node: fx.Node, *, target: str, args: tuple[Any, ...]) -> None:
    """Turn `node` in place into a call of the module `target`, keeping its name and its users."""
    node.op, node.target, node.args, node.kwargs = "call_module", target, args, {}


def tidy(gm: fx.GraphModule) -> fx.GraphModule:
    """Drop dead nodes and unused modules and tensors, check the graph and recompile it; return `gm`."""
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    _delete_unused_tensors(gm)
    gm.graph.lint()
    gm.recompile()
    return gm


def preserve_attributes(source: nn.Module, gm: fx.GraphModule) -> None:
    """Carry the plain public attributes of `source` (num_classes, pretrained_cfg, ...) over to `gm`."""
    kept = {
        name: value
        for name, value in vars(source).items()
        if not name.startswith("_") and name != "training" and not hasattr(gm, name)
    }
    attach_attributes(gm, kept)


def attach_attributes(gm: fx.GraphModule, attributes: Mapping[str, Any]) -> None:
    """Set plain attributes on `gm` so that they survive copies and recompiling."""
    gm.meta[_PRESERVED] = {**gm.meta.get(_PRESERVED, {}), **attributes}
    for name, value in attributes.items():
        setattr(gm, name, value)


def preserved_attributes(gm: fx.GraphModule) -> dict[str, Any]:
    """Return the plain attributes that `gm` carries with it."""
    return dict(gm.meta.get(_PRESERVED, {}))


def _delete_unused_tensors(gm: fx.GraphModule) -> None:
    """Delete the parameters and buffers of pure containers that no node fetches."""
    fetched = {node.target for node in gm.graph.find_nodes(op="get_attr")}
    containers = [(path, m) for path, m in gm.named_modules() if m is gm or type(m) is nn.Module]
    for path, module in containers:
        for name in [*module._parameters, *module._buffers]:
            if f"{path}.{name}".lstrip(".") not in fetched:
                delattr(module, name)
