"""Merge of a linearized graph into a shallow graph with equal outputs, up to rounding."""

from __future__ import annotations

import copy

from torch import fx, nn

from fx_passes.affine import AffineConv
from fx_passes.exclusion import exclusion
from fx_passes.facts import GraphFacts
from fx_passes.graph_edit import redirect, tidy
from fx_passes.kinds import kind_of
from fx_passes.module_paths import copy_places
from fx_passes.normalise.modules import DropIdentities
from fx_passes.operators import NORMS, Role, affine_operator, known_layer, role
from fx_passes.plan import Plan, require_plan
from fx_passes.spatial_layers import CONVOLUTIONS, Convolution, image_kernel
from fx_passes.structure import require_captured

__all__ = ["collapse_spans", "fold_batch_norms", "merge", "without_leftovers"]


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
    return without_leftovers(collapse_spans(linearized, plan))


def without_leftovers(collapsed: fx.GraphModule) -> fx.GraphModule:
    """Fold the norms of a graph and take out dropout and identities, in place; return the graph."""
    fold_batch_norms(collapsed)
    _drop_dropout(collapsed)
    DropIdentities()(collapsed)
    return tidy(collapsed)


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
    """Fold each norm into a copy of the convolution before it, where that convolution feeds nothing else.

    The graph changes in place. The convolution moves to the norm's node, so that the names of tensors after the norm
    stay. Excluded layers stay as they are.
    """
    for node in list(gm.graph.nodes):
        norm, source = known_layer(gm, node), node.args[0] if node.args else None
        if not isinstance(norm, NORMS) or not isinstance(source, fx.Node) or len(source.users) > 1:
            continue
        conv, stays = known_layer(gm, source), exclusion(node) or exclusion(source)
        if isinstance(conv, CONVOLUTIONS) and role(gm, node) is Role.AFFINE and not stays:
            folded = _folded(conv, affine_operator(gm, node, conv.out_channels, device=str(conv.weight.device)))
            gm.set_submodule(str(source.target), folded)
            redirect(node, target=str(source.target), args=source.args)
            copy_places(source, node)
            gm.graph.erase_node(source)
    gm.recompile()


def _folded(conv: Convolution, norm: AffineConv) -> Convolution:
    """Return a copy of `conv` that computes the norm after it, too: one scale and shift per channel."""
    weight = (image_kernel(conv).double() * norm.weight).reshape_as(conv.weight)
    bias = norm.bias if conv.bias is None else norm.bias + norm.weight.flatten() * conv.bias.detach().double()
    folded = copy.deepcopy(conv)
    folded.weight, folded.bias = (nn.Parameter(tensor.to(conv.weight.dtype)) for tensor in (weight, bias))
    return folded


def _drop_dropout(gm: fx.GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if role(gm, node) is Role.PASS:
            node.replace_all_uses_with(node.all_input_nodes[0])
            gm.graph.erase_node(node)
