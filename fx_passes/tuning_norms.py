"""Batch norms after fitted convolutions during fine-tuning; the merge folds them.

A convolution y = W x + b whose output has mean m and variance v by channel becomes

    z = W x          norm(z) = s (z - (m - b)) / sqrt(v + eps) + m        s = sqrt(v + eps)

with m - b and v as the norm's running statistics and s and m as its weight and bias: the same function in
evaluation mode, and nearly so in training mode, where a batch has its own mean and variance.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from fx_passes.facts import GraphFacts
from fx_passes.graph_edit import add_module, redirect, tidy
from fx_passes.kinds import kind_of
from fx_passes.operators import known_layer
from fx_passes.plan import Plan
from fx_passes.spatial_layers import CONVOLUTIONS, BatchNorm, Convolution

__all__ = ["Moments", "insert_norms", "solved_without_norm"]

Moments = tuple[Tensor, Tensor]
"""Mean and variance by channel, (c,) each."""


def insert_norms(linearized: fx.GraphModule, plan: Plan, moments: Mapping[str, Moments]) -> fx.GraphModule:
    """Return a copy of a linearized graph with a batch norm after each fitted convolution; its outputs stay equal.

    Tensors keep their names: the norm takes the convolution's node, and the convolution moves to a new node before it.
    `merge` accepts the result, trained or not. A convolution that already has a norm keeps it.

    Args:
        linearized: what `linearize` made of a captured graph with `plan`; not changed.
        plan: that plan.
        moments: mean and variance of the output of each fitted convolution without a norm, by node name.

    Raises:
        PlanError: the graph is not the plan's linearized form.
    """
    copied = copy.deepcopy(linearized)
    for node in _without_norm(copied, plan):
        _insert(copied, node, *moments[node.name])
    return tidy(copied)


def solved_without_norm(linearized: fx.GraphModule, plan: Plan) -> dict[str, nn.Module]:
    """Return the solved convolutions of `plan` that no norm follows, by node name, in order.

    Raises:
        PlanError: the graph is not the plan's linearized form.
    """
    found = _without_norm(linearized, plan)
    return {node.name: linearized.get_submodule(str(node.target)) for node in found}


def _without_norm(linearized: fx.GraphModule, plan: Plan) -> list[fx.Node]:
    graph = GraphFacts(linearized)
    nodes = (node for choice in plan for node in kind_of(choice).solved_nodes(graph, choice))
    bare = [node for node in nodes if isinstance(graph.layer(node.name), CONVOLUTIONS)]
    return sorted(bare, key=lambda node: graph.order[node.name])


def _insert(gm: fx.GraphModule, node: fx.Node, mean: Tensor, variance: Tensor) -> None:
    conv = known_layer(gm, node)
    assert isinstance(conv, CONVOLUTIONS)  # `_without_norm` found it as one
    with gm.graph.inserting_before(node):
        moved = gm.graph.node_copy(node)
    norm = _norm(conv, mean, variance)
    conv.register_parameter("bias", None)  # a norm takes any constant away
    redirect(node, target=add_module(gm, f"norm_{node.name}", norm), args=(moved,))


def _norm(conv: Convolution, mean: Tensor, variance: Tensor) -> BatchNorm:
    kind = nn.BatchNorm1d if isinstance(conv, nn.Conv1d) else nn.BatchNorm2d
    norm = kind(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018 # it tracks them
    with torch.no_grad():
        norm.running_mean.copy_(mean if conv.bias is None else mean.double() - conv.bias.double())
        norm.running_var.copy_(variance)
        norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
        norm.bias.copy_(mean)
    return norm
