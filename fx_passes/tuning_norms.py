"""Batch norms after fitted convolutions, for the time of fine-tuning; the merge folds them away.

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

from fx_passes.ends import core_of
from fx_passes.graph_edit import add_module, redirect, tidy
from fx_passes.operators import follows_convolution, known_layer
from fx_passes.placed import PlacedConvolution, placed_convolutions, span_ends
from fx_passes.plan import Plan, SpanChoice

__all__ = ["Moments", "fits_without_norm", "insert_norms"]

Moments = tuple[Tensor, Tensor]
"""Mean and variance by channel, (c,) each."""


def insert_norms(linearized: fx.GraphModule, plan: Plan, moments: Mapping[str, Moments]) -> fx.GraphModule:
    """Return a copy of a linearized graph with a batch norm after each fitted convolution; the same function so far.

    Tensors keep their names: the norm takes the convolution's node, and the convolution moves before it. `merge` takes
    the result like the graph itself, trained or not. A convolution that has its norm already keeps that one.

    Args:
        linearized: what `linearize` made of a captured graph with `plan`; not changed.
        plan: that plan.
        moments: of the output of each fitted convolution without a norm, by the name of its node.

    Raises:
        PlanError: the graph is not the plan's linearized form.
    """
    copied = copy.deepcopy(linearized)
    nodes = {node.name: node for node in copied.graph.nodes}
    for place in fits_without_norm(copied, plan):
        _insert(copied, nodes[place.core], place.module, *moments[place.core])
    return tidy(copied)


def fits_without_norm(linearized: fx.GraphModule, plan: Plan) -> list[PlacedConvolution]:
    """Return the convolutions of the fitted spans of `plan` that no norm follows, in the order in which they run.

    Raises:
        PlanError: the graph is not the plan's linearized form.
    """
    fits = (choice for choice in plan if choice.kind == "fit")
    return placed_convolutions(linearized, Plan.of(choice for choice in fits if not _has_norm(linearized, choice)))


def _has_norm(gm: fx.GraphModule, choice: SpanChoice) -> bool:
    core = core_of(gm, span_ends(gm, choice)[1])
    return isinstance(known_layer(gm, core), nn.BatchNorm2d) and follows_convolution(gm, core)


def _insert(gm: fx.GraphModule, node: fx.Node, conv: nn.Conv2d, mean: Tensor, variance: Tensor) -> None:
    with gm.graph.inserting_before(node):
        moved = gm.graph.node_copy(node)
    norm = _norm(conv, mean, variance)
    conv.register_parameter("bias", None)  # a norm takes any constant away
    redirect(node, target=add_module(gm, f"norm_{node.name}", norm), args=(moved,))


def _norm(conv: nn.Conv2d, mean: Tensor, variance: Tensor) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018 # it tracks them
    with torch.no_grad():
        norm.running_mean.copy_(mean if conv.bias is None else mean.double() - conv.bias.double())
        norm.running_var.copy_(variance)
        norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
        norm.bias.copy_(mean)
    return norm
