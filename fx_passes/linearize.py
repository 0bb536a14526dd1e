"""plan -> trainable graph: activations inside spans removed, padding moved to each span's entry.

In this form merging is exact everywhere: the entry of a span is padded once, inner operators are not, and
where paths of different reach meet, the shorter one is cropped.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import skip_init

from depthcomp_errors import PlanError
from fx_passes.affine import AffineConv, Sides
from fx_passes.borders import NO_BORDER, border_needed, pads_only_zeros
from fx_passes.collapse import collapse
from fx_passes.ends import core_of, set_end
from fx_passes.graph_edit import add_module, number_kind, redirect, tidy
from fx_passes.layer_pruning import with_norms
from fx_passes.operators import NORMS, Role, image_shape, known_layer, role
from fx_passes.plan import Plan, SpanChoice
from fx_passes.spans import Span, find_spans

__all__ = [
    "PlacedConvolution",
    "insert_convolution",
    "linearize",
    "placed_convolutions",
]


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
    if not isinstance(plan, Plan):
        raise PlanError(f"a Plan is needed, and a {type(plan).__name__} was given; Plan.from_json reads JSON text")
    spans = find_spans(gm, [(choice.entry, choice.exit) for choice in plan])
    _require_disjoint(spans)
    for choice, span in zip(plan, spans, strict=True):
        _require_choice(choice, span)
    copied = copy.deepcopy(gm)
    nodes = {node.name: node for node in copied.graph.nodes}
    for choice, span in zip(plan, spans, strict=True):
        _rewrite(copied, nodes, choice, span, exact_border)
    return tidy(copied)


def insert_convolution(
    gm: fx.GraphModule, node: fx.Node, source: fx.Node, operator: AffineConv, hint: str
) -> nn.Conv2d:
    """Make `node` the convolution `operator` of the tensor at `source`, and return the new module.

    Padding that nn.Conv2d cannot express becomes a node of its own. The node keeps its name and users.

    Raises:
        PlanError: the weights are beyond the range of the graph's type.
    """
    top, bottom, left, right = operator.padding
    symmetric = top == bottom >= 0 and left == right >= 0
    device, dtype = number_kind(gm, source)
    conv: nn.Conv2d = skip_init(  # type: ignore[no-untyped-call]  # draws no random numbers, unlike nn.Conv2d
        nn.Conv2d, operator.in_channels, operator.out_channels, operator.kernel, operator.stride,
        padding=(top, left) if symmetric else 0, groups=operator.groups,
        device=device, dtype=dtype,
    )  # fmt: skip
    conv.weight.data.copy_(operator.weight)
    assert conv.bias is not None  # built with one
    conv.bias.data.copy_(operator.bias)
    _require_finite(conv, operator, node)
    if not symmetric:
        source = pad(gm, node, source, operator.padding)
    redirect(node, target=add_module(gm, hint, conv), args=(source,))
    return conv


def _require_finite(conv: nn.Conv2d, operator: AffineConv, node: fx.Node) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in conv.parameters()):
        largest = max(float(operator.weight.abs().max()), float(operator.bias.abs().max()))
        raise PlanError(
            f"the one convolution at {node.name} has weights up to {largest:.3g}, and {conv.weight.dtype} ends at "
            f"{torch.finfo(conv.weight.dtype).max:.3g}; plan shorter spans there, or merge in float32 first"
        )


@dataclass(frozen=True, slots=True)
class PlacedConvolution:
    """A convolution that stands for a fitted span in a linearized graph.

    Attributes:
        entry: name of the node whose tensor it reads, before any padding.
        core: name of the node that calls it.
        module: the convolution.
        operator: what it computes, its padding included, in float64.
    """

    entry: str
    core: str
    module: nn.Conv2d
    operator: AffineConv

    def load(self, fitted: AffineConv) -> None:
        """Give the module the weights of an operator of the same shape."""
        self.module.weight.data.copy_(fitted.weight)
        assert self.module.bias is not None  # built with one
        self.module.bias.data.copy_(fitted.bias)


def placed_convolutions(linearized: fx.GraphModule, plan: Plan) -> list[PlacedConvolution]:
    """Return the convolutions of the fitted spans of `plan` in the order in which they run."""
    nodes = {node.name: node for node in linearized.graph.nodes}
    order = {name: position for position, name in enumerate(nodes)}
    placed = []
    for choice in plan:
        if choice.kind == "fit":
            core = core_of(linearized, nodes[choice.exit])
            module, shape = known_layer(linearized, core), image_shape(nodes[choice.entry])
            assert isinstance(module, nn.Conv2d)  # linearize put it there
            assert shape is not None  # an image is read there
            inner = [core] if core.args[0] is nodes[choice.entry] else [core.args[0], core]
            operator = collapse(linearized, nodes[choice.entry], inner, shape[1])[core]  # type: ignore[arg-type]
            placed.append(PlacedConvolution(choice.entry, core.name, module, operator))
    return sorted(placed, key=lambda place: order[place.core])


def pad(gm: fx.GraphModule, before: fx.Node, source: fx.Node, sides: Sides) -> fx.Node:
    """Return a new node, placed before another, that pads (where negative: crops) the tensor at `source`."""
    top, bottom, left, right = sides
    with gm.graph.inserting_before(before):
        padded = gm.graph.call_function(F.pad, (source, (left, right, top, bottom)))
    padded.meta = dict(source.meta)
    return padded


def _require_disjoint(spans: Sequence[Span]) -> None:
    seen: set[str] = set()
    for span in spans:
        if not seen.isdisjoint(span.nodes):
            raise PlanError(f"the plan rewrites {sorted(seen & set(span.nodes))[0]} twice: its spans must not overlap")
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
        insert_convolution(gm, core, entry, guess, f"fitted_{core.name}")
    else:
        linear = _drop_activations(gm, inner)
        if not (exact_border and _has_exact_border(gm, entry, linear, span)):
            _hoist_padding(gm, entry, linear)


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


def _hoist_padding(gm: fx.GraphModule, entry: fx.Node, inner: list[fx.Node]) -> None:
    """Move all padding of a span to its entry.

    Walking backwards, each tensor learns the border that its readers need beyond its own frame; each edge is
    cropped where its reader needs less than the tensor has.
    """
    border: dict[fx.Node, Sides] = {inner[-1]: NO_BORDER}
    needed: dict[fx.Node, Sides] = {}
    for node in reversed(inner):
        needed[node] = border_needed(gm, node, border[node])
        for source in node.all_input_nodes:
            border[source] = _widest(border.get(source, needed[node]), needed[node])
    first = inner[0]
    padded = entry if border[entry] == NO_BORDER else pad(gm, first, entry, border[entry])
    for node in inner:
        for source in node.all_input_nodes:
            reader = padded if source is entry else source
            crop = tuple(need - have for need, have in zip(needed[node], border[source], strict=True))
            if any(crop):
                reader = pad(gm, node, reader, crop)  # type: ignore[arg-type]
            node.replace_input_with(source, reader)
        _stop_padding(gm, node)


def _stop_padding(gm: fx.GraphModule, node: fx.Node) -> None:
    module = known_layer(gm, node)
    if isinstance(module, nn.Conv2d):
        module.padding = (0, 0)
    elif isinstance(module, nn.AvgPool2d):
        module.padding = 0
    elif role(gm, node) is Role.AFFINE and not isinstance(module, NORMS):
        redirect(node, target=add_module(gm, f"unpadded_{node.name}", nn.Identity()), args=node.args[:1])


def _widest(one: Sides, other: Sides) -> Sides:
    top, bottom, left, right = (max(a, b) for a, b in zip(one, other, strict=True))
    return top, bottom, left, right
