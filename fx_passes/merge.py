"""Trainable graph -> shallow graph: a planned span becomes one convolution, the same function to rounding."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import fx, nn

from depthcomp_errors import PlanError
from fx_passes.affine import AffineConv, NotAffineError
from fx_passes.borders import pads_only_zeros
from fx_passes.collapse import collapse, collapse_carrying_biases
from fx_passes.ends import core_of
from fx_passes.graph_edit import redirect, tidy
from fx_passes.module_paths import copy_places, cover_places, module_path
from fx_passes.normalise.modules import DropIdentities
from fx_passes.operators import NORMS, Role, affine_operator, image_shape, known_layer, role
from fx_passes.placed import insert_convolution, not_linearized, span_ends
from fx_passes.plan import Plan, SpanChoice, require_plan
from fx_passes.structure import require_captured

__all__ = ["collapse_spans", "fold_batch_norms", "merge"]


def merge(linearized: fx.GraphModule, plan: Plan) -> fx.GraphModule:
    """Return the shallow network in evaluation mode; `linearized` is not changed.

    Every span of `plan` collapses into one convolution, remaining norms fold into the convolutions before
    them, and dropout goes. Derived in float64 and cast once to the model's type.

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

    The result is a captured graph like any other. Arguments and errors are those of `merge`.
    """
    require_plan(plan)
    require_captured(linearized)
    collapsed = copy.deepcopy(linearized).eval()
    for choice in plan:
        _merge_span(collapsed, choice)
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
        if isinstance(conv, nn.Conv2d) and role(gm, node) is Role.AFFINE:
            _fold(conv, affine_operator(gm, node, conv.out_channels, device=str(conv.weight.device)))
            redirect(node, target=str(source.target), args=source.args)
            copy_places(source, node)
            gm.graph.erase_node(source)
    gm.recompile()


def _merge_span(gm: fx.GraphModule, choice: SpanChoice) -> None:
    entry, exit_ = span_ends(gm, choice)
    if choice.kind == "drop":
        if not isinstance(known_layer(gm, exit_), nn.Identity) or exit_.args[0] is not entry:
            raise not_linearized(choice, f"{choice.exit} is not an identity of {choice.entry}")
        return
    core = core_of(gm, exit_)
    inner, channels = _inner(gm, choice, entry, core)
    try:
        if pads_only_zeros(gm, entry, inner):
            operator, source = collapse(gm, entry, inner, channels)[core], entry
        elif pads_only_zeros(gm, entry, inner, carry_biases=True):
            operator, source = collapse_carrying_biases(gm, entry, inner, channels)[core], _with_ones(gm, core, entry)
        else:
            raise not_linearized(choice, "tensors inside are padded")
    except NotAffineError as reason:
        raise not_linearized(choice, str(reason)) from reason
    if operator.kernel != choice.kernel:
        height, width = operator.kernel
        raise not_linearized(choice, f"its kernel is {height}x{width}")
    cover_places(core, inner)
    insert_convolution(gm, core, source, operator, f"merged_{core.name}")


def _inner(gm: fx.GraphModule, choice: SpanChoice, entry: fx.Node, core: fx.Node) -> tuple[list[fx.Node], int]:
    """Return the nodes of a linearized span and the number of channels that it reads."""
    inner, shape = _between(entry, core), image_shape(entry)
    if shape is None:
        raise PlanError(f"the shape at {choice.entry} is not known: linearize a graph that `capture` returned")
    active = [module_path(node) for node in inner if role(gm, node) is Role.ACTIVATION]
    if active:
        raise not_linearized(choice, f"the activation {active[0]} stands inside")
    return inner, shape[1]


def _with_ones(gm: fx.GraphModule, before: fx.Node, source: fx.Node) -> fx.Node:
    """Return a new node, placed before another, that gives the tensor at `source` a last channel of ones."""
    with gm.graph.inserting_before(before):
        ones = gm.graph.call_function(F.pad, (source, (0, 0, 0, 0, 0, 1), "constant", 1.0))
    copy_places(before, ones)
    return ones


def _between(entry: fx.Node, core: fx.Node) -> list[fx.Node]:
    """Return the nodes on paths from `entry` (excluded) to `core` (included), in the graph's order."""
    found, pending = {core}, [core]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source is not entry and source not in found:
                found.add(source)
                pending.append(source)
    return [node for node in entry.graph.nodes if node in found]


def _fold(conv: nn.Conv2d, norm: AffineConv) -> None:
    """Let `conv` compute what a norm after it, one scale and shift per channel, makes of its output."""
    weight = conv.weight.detach().double() * norm.weight
    bias = norm.bias if conv.bias is None else norm.bias + norm.weight.flatten() * conv.bias.detach().double()
    conv.weight, conv.bias = (nn.Parameter(tensor.to(conv.weight.dtype)) for tensor in (weight, bias))


def _drop_dropout(gm: fx.GraphModule) -> None:
    for node in list(gm.graph.nodes):
        if role(gm, node) is Role.PASS:
            node.replace_all_uses_with(node.all_input_nodes[0])
            gm.graph.erase_node(node)
