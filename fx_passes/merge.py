"""Merge of a linearized graph into a shallow graph with equal outputs, up to rounding."""

from __future__ import annotations

import copy

from torch import fx, nn

from fx_passes.affine import AffineConv
from fx_passes.facts import GraphFacts
from fx_passes.graph_edit import redirect, tidy
from fx_passes.kinds import kind_of
from fx_passes.module_paths import copy_places
from fx_passes.normalise.modules import DropIdentities
from fx_passes.operators import NORMS, Role, affine_operator, known_layer, role
from fx_passes.plan import Plan, require_plan
from fx_passes.spatial_layers import CONVOLUTIONS, Convolution, image_kernel
from fx_passes.structure import require_captured

__all__ = ["collapse_spans", "fold_batch_norms", "merge"]


def merge(linearized: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    """Return the shallow network in evaluation mode; `linearized` is not changed.

    Every rewritten span takes its merged form, remaining norms fold into the convolutions before them, and dropout
    is removed. Weights are derived in float64 and cast once to the model's type.

    Args:
        linearized: what `linearize` made of a captured graph with the same plan, trained or not.
        plan: that plan.

    Raises:
        PlanError: the graph is not the plan's linearized form, or a merged weight leaves the range of its type.
    """
    merged = collapse_spans(linearized, plan)
    fold_batch_norms(merged)
    _drop_dropout(merged)
    DropIdentities()(merged)
    return tidy(merged)


def collapse_spans(linearized: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    """Return a copy in evaluation mode in which only the spans of `plan` collapse; norms and dropout elsewhere stay.

    The result is a captured graph like any other. Arguments and errors are as for `merge`.
    """
    require_plan(plan)
    require_captured(linearized)
    collapsed = copy.deepcopy(linearized).eval()
    linearized_copy = GraphFacts(collapsed)
    for choice in plan:
        kind_of(choice).merge(linearized_copy, choice)
    return tidy(collapsed)


def fold_batch_norms(gm: fx.GraphModule) -> None:
    """Fold each norm into the convolution before it, where that convolution feeds nothing else; in place.

    The convolution moves to the norm's node, so that the names of tensors after the norm stay.
    """
    for node in list(gm.graph.nodes):
        norm, source = known_layer(gm, node), node.args[0] if node.args else None
        if not isinstance(norm, NORMS) or not isinstance(source, fx.Node) or len(source.users) > 1:
            continue
        conv = known_layer(gm, source)
        if isinstance(conv, CONVOLUTIONS) and role(gm, node) is Role.AFFINE:
            _fold(conv, affine_operator(gm, node, conv.out_channels, device=str(conv.weight.device)))
            redirect(node, target=str(source.target), args=source.args)
            copy_places(source, node)
            gm.graph.erase_node(source)
    gm.recompile()


def _fold(conv: Convolution, norm: AffineConv) -> None:
    """Fold the norm after `conv`, one scale and shift per channel, into its weights."""
    weight = (image_kernel(conv).double() * norm.weight).reshape_as(conv.weight)
    bias = norm.bias if conv.bias is None else norm.bias + norm.weight.flatten() * conv.bias.detach().double()
    conv.weight, conv.bias = (nn.Parameter(tensor.to(conv.weight.dtype)) for tensor in (weight, bias))


def _drop_dropout(gm: fx.GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if role(gm, node) is Role.PASS:
            node.replace_all_uses_with(node.all_input_nodes[0])
            gm.graph.erase_node(node)
