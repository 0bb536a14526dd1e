"""Weights that a forward computes anew for every image, computed once and stored."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fx_passes.constants import Constants

__all__ = ["FoldLayerConstants"]

_LAYERS = (F.conv1d, F.conv2d, F.batch_norm)


class FoldLayerConstants(PassBase):
    """Store each weight of a functional convolution or norm that the model computes from its own tensors.

    Weight-standardised convolutions become plain ones that way. The stored tensor is a parameter if a trained parameter
    goes into it; training then changes the computed weights themselves. Constants of other operations, for example
    position biases from a shared table, stay computed.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        constants = Constants(graph_module)
        layers = [node for node in graph_module.graph.nodes if node.target in _LAYERS and node not in constants]
        found = {c: None for node in layers for c in node.all_input_nodes if c in constants and c.op != "get_attr"}
        for constant in found:
            value = constants.value(constant)
            if isinstance(value, Tensor):
                _store(graph_module, constant, value, learned=constants.is_learned(constant))
        return PassResult(graph_module, bool(found))


def _store(gm: fx.GraphModule, node: fx.Node, value: Tensor, *, learned: bool) -> None:
    """Turn a node into a fetch of `value`, stored beside the first tensor that it is computed from."""
    owner = _first_source(node).rpartition(".")[0]
    module, name = gm.get_submodule(owner), f"folded_{node.name}"
    if learned:
        module.register_parameter(name, nn.Parameter(value.clone()))
    else:
        module.register_buffer(name, value.clone())
    node.op, node.target, node.args, node.kwargs = "get_attr", f"{owner}.{name}".lstrip("."), (), {}


def _first_source(node: fx.Node) -> str:
    """Return the path of the first of the model's tensors that goes into a constant."""
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    return str(node.target)
