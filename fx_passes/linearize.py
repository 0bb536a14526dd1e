"""plan -> trainable graph: activations inside spans removed, padding moved to each span's entry.

In this form merging is exact everywhere: the entry of a span is padded once, inner operators are not, and
where paths of different reach meet, the shorter one is cropped.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from torch import fx, nn

from depthcomp_errors import PlanError
from fx_passes.borders import pads_only_zeros
from fx_passes.collapse import collapse
from fx_passes.ends import set_end
from fx_passes.graph_edit import add_module, redirect, tidy
from fx_passes.hoist_padding import hoist_padding
from fx_passes.layer_pruning import with_norms
from fx_passes.module_paths import cover_places, module_path
from fx_passes.operators import NORMS, Role, known_layer, role
from fx_passes.placed import insert_convolution
from fx_passes.plan import Plan, SpanChoice, require_plan
from fx_passes.spans import Span, find_spans
from fx_passes.structure import require_captured

__all__ = ["linearize"]


def linearize(gm: fx.GraphModule, plan: Plan, *, exact_border: bool = False) -> fx.GraphModule:
    """Return a copy of a captured graph in which `plan` is carried out, but nothing is merged yet.

    Spans to merge keep their convolutions and norms, with nn.Identity in the place of pruned ones; spans to fit
    hold one convolution, the centre of the merged kernel until a fit or training replaces it; dropped spans hold
    nn.Identity. The names of the spans' entry and exit nodes stay. `gm` is not changed.

    Args:
        gm: what `capture` returned.
        plan: what to do.
        exact_border: leave the padding of a merged span where it is, if only the entry and 1x1 convolutions of it
            are padded. The span then computes at the border, too, what the network would with its activations as
            identity; its merged convolution reads one constant channel more. Padding of other spans moves to their
            entry all the same, and so does that of spans that merge into a grouped convolution.

    Raises:
        PlanError: a span of the plan does not exist in the graph, cannot be rewritten so, or overlaps
            another.
    """
    require_plan(plan)
    require_captured(gm)
    plan = _naming_convolutions(gm, plan)
    spans = find_spans(gm, [(choice.entry, choice.exit) for choice in plan])
    _require_disjoint(gm, spans)
    for choice, span in zip(plan, spans, strict=True):
        _require_choice(choice, span)
    copied = copy.deepcopy(gm)
    nodes = {node.name: node for node in copied.graph.nodes}
    for choice, span in zip(plan, spans, strict=True):
        _rewrite(copied, nodes, choice, span, exact_border)
    return tidy(copied)


def _naming_convolutions(gm: fx.GraphModule, plan: Plan) -> Plan:
    """Return `plan` as one for `gm` where it was made for the form of `gm` with norms folded.

    There a convolution has the name of the norm behind it; only the names of pruned convolutions tell.
    """
    nodes = {node.name: node for node in gm.graph.nodes}

    def convolution(name: str) -> str:
        while name in nodes and isinstance(known_layer(gm, nodes[name]), NORMS):
            name = nodes[name].all_input_nodes[0].name
        return name

    return Plan.of(replace(choice, pruned=tuple(map(convolution, choice.pruned))) for choice in plan)


def _require_disjoint(gm: fx.GraphModule, spans: Sequence[Span]) -> None:
    seen: set[str] = set()
    for span in spans:
        if not seen.isdisjoint(span.nodes):
            twice = next(node for node in gm.graph.nodes if node.name in seen and node.name in span.nodes)
            raise PlanError(f"the plan rewrites {module_path(twice)} twice: its spans must not overlap")
        seen.update(span.nodes)


def _require_choice(choice: SpanChoice, span: Span) -> None:
    if choice not in span.choices:
        offered = ", ".join(str(option) for option in span.choices) or "nothing"
        raise PlanError(f"{choice} is not possible; this span offers {offered}")


def _rewrite(gm: fx.GraphModule, nodes: dict[str, fx.Node], choice: SpanChoice, span: Span, exact_border: bool) -> None:
    entry, exit_ = nodes[span.entry], nodes[span.exit]
    if choice.kind == "drop":
        redirect(exit_, target=add_module(gm, f"dropped_{exit_.name}", nn.Identity()), args=(entry,))
        return
    _prune(gm, [nodes[name] for name in choice.pruned])
    inner = set_end(gm, choice.end, [nodes[name] for name in span.inner], exit_)
    if choice.kind == "fit":
        assert span.in_shape is not None  # a span with choices has one
        assert choice.kernel is not None  # a fit has one
        core = inner[-1]
        guess = collapse(gm, entry, inner, span.in_shape[1], largest_kernel=choice.kernel)[core]
        cover_places(core, inner)
        insert_convolution(gm, core, entry, guess, f"fitted_{core.name}")
    else:
        linear = _drop_activations(gm, inner)
        if not (exact_border and _has_exact_border(gm, entry, linear, span)):
            hoist_padding(gm, entry, linear)


def _has_exact_border(gm: fx.GraphModule, entry: fx.Node, inner: list[fx.Node], span: Span) -> bool:
    """Say whether a span can be merged with its padding where it is, at the price of a constant channel."""
    assert span.operator is not None  # a span with choices has one
    return span.operator.groups == 1 and pads_only_zeros(gm, entry, inner, carry_biases=True)


def _prune(gm: fx.GraphModule, convolutions: Sequence[fx.Node]) -> None:
    for node in with_norms(gm, convolutions):
        redirect(node, target=add_module(gm, f"pruned_{node.name}", nn.Identity()), args=node.args[:1])


def _drop_activations(gm: fx.GraphModule, inner: list[fx.Node]) -> list[fx.Node]:
    """Take activations and dropout out of a span; return the nodes that stay."""
    kept = []
    for node in inner:
        pruned = isinstance(known_layer(gm, node), nn.Identity)  # may be the core, which others look for by name
        if role(gm, node) in (Role.ACTIVATION, Role.PASS) and not pruned:
            node.replace_all_uses_with(node.all_input_nodes[0])
            gm.graph.erase_node(node)
        else:
            kept.append(node)
    return kept
