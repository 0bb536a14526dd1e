"""Parts shared by the kinds that replace a span by one convolution: limits, ends, body and merge."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch.nn.functional as F
from torch import fx

from depthcomp_errors import PlanError
from fx_passes.affine import AffineConv, NotAffineError, crop_kernel
from fx_passes.body import Body, BodyBuilder
from fx_passes.borders import pads_only_zeros
from fx_passes.choice import End, Kernel, SpanChoice
from fx_passes.collapse import collapse, collapse_carrying_biases
from fx_passes.ends import activation_to_insert, end_activation, pre_activation_of
from fx_passes.facts import GraphFacts
from fx_passes.insertion import insert_convolution
from fx_passes.kinds.linearized import not_linearized, span_ends
from fx_passes.limits import SpanLimits
from fx_passes.module_paths import copy_places, cover_places, module_path
from fx_passes.operators import Role, image_shape, role
from fx_passes.span import Piece
from fx_passes.spatial_layers import holds_signals

__all__ = [
    "body_of", "end_obstacle", "ends", "inner_of", "limit_obstacle", "merge_into_one", "odd", "odd_sides",
    "one_layer", "size_text",
]  # fmt: skip


def size_text(kernel: Kernel) -> str:
    """Return a kernel's size as text."""
    return f"{kernel[0]}x{kernel[1]}"


def odd(size: int) -> int:
    """Return the largest odd number up to `size`; a kernel of odd size has a central pixel."""
    return size - 1 + size % 2


def odd_sides(piece: Piece, limits: SpanLimits) -> list[int]:
    """Return the odd sides of kernels to try in a piece's place, the shortest first.

    Kernels over signals may have as many taps as kernels over images.
    """
    longest = odd(max(piece.operator.kernel))
    sides = range(1, min(longest, limits.largest_kernel) + 1, 2)
    more = (side**2 for side in sides) if _reads_signals(piece) else ()
    return sorted({min(side, longest) for side in (*sides, *more)})


def _longest_side(piece: Piece, limits: SpanLimits) -> int:
    return limits.largest_kernel**2 if _reads_signals(piece) else limits.largest_kernel


def _reads_signals(piece: Piece) -> bool:
    return holds_signals(piece.graph.nodes[piece.entry])


def one_layer(piece: Piece) -> str:
    """Return the clause that refuses a convolution in the place of a single layer of equal size."""
    return f"it is one {size_text(piece.operator.kernel)} layer already"


def limit_obstacle(piece: Piece, kernel: Kernel, limits: SpanLimits) -> str:
    """Return why limits rule out a convolution of this size in a piece's place; empty where they allow it."""
    if max(kernel) > _longest_side(piece, limits):
        return f"one convolution needs a kernel larger than {_longest_side(piece, limits)} pixels a side"
    sides = zip(kernel, piece.operator.stride, piece.operator.kernel, strict=True)
    if not limits.skips_pixels and any(size < min(stride, odd(full)) for size, stride, full in sides):
        return "a smaller kernel would leave pixels unread"
    macs = piece.in_shape[0] * math.prod(piece.operator.out_size(piece.in_shape[2:]))
    per_pixel = piece.operator.weight.numel() // math.prod(piece.operator.kernel) * math.prod(kernel)
    if macs * per_pixel > limits.largest_mac_growth * piece.macs:
        return (
            f"one convolution would cost more than {limits.largest_mac_growth:g} times the multiply-adds of what it "
            "replaces"
        )
    return ""


def ends(piece: Piece, limits: SpanLimits) -> Iterator[End]:
    """Yield the possible ends of the convolution in a piece's place, the original end first."""
    yield "original"
    for end in limits.other_ends:
        if not end_obstacle(piece, end):
            yield end


def end_obstacle(piece: Piece, end: End) -> str:
    """Return why the convolution in a piece's place cannot have an end; empty where it can."""
    gm, nodes = piece.graph.gm, piece.graph.nodes
    last = nodes[piece.pre_activation]
    active = end_activation(gm, last, nodes[piece.exit]) is not None
    if end == "none" and not active:
        return "it ends without an activation, so none can be removed"
    if end == "inserted" and active:
        return "it ends with an activation already, so none can be inserted"
    if end == "inserted" and activation_to_insert(gm, [nodes[name] for name in piece.nodes], last) is None:
        return "no activation inside it suits the tensor at its end, so none can be inserted"
    return ""


def body_of(piece: Piece, kernel: Kernel, end: End) -> Body:
    """Return the body of one convolution with an end; its kernel is the central part of the piece's collapse."""
    builder, nodes = BodyBuilder(piece.entry, piece.in_shape), piece.graph.nodes
    last = builder.convolution(builder.entry, crop_kernel(piece.operator, kernel), piece.pre_activation)
    if end == "original":
        return builder.build(last, at=piece.pre_activation)
    if end == "inserted":
        inside = [nodes[name] for name in piece.nodes]
        activation = activation_to_insert(piece.graph.gm, inside, nodes[piece.pre_activation])
        assert activation is not None  # possible only where there is one
        last = builder.layer(last, activation)
    return builder.build(last, at=piece.exit)


def inner_of(copied: GraphFacts, piece: Piece) -> list[fx.Node]:
    """Return the nodes up to a piece's pre-activation in a copy of its graph."""
    return [copied.nodes[name] for name in piece.inner]


def merge_into_one(linearized: GraphFacts, choice: SpanChoice, kernel: Kernel) -> None:
    """Collapse a linearized span into one convolution of this size, in place.

    Raises:
        PlanError: the graph is not the choice's linearized form, or a weight leaves the range of its type.
    """
    gm = linearized.gm
    entry, exit_ = span_ends(linearized, choice)
    last = pre_activation_of(gm, exit_, entry)
    inner, channels = _inner(gm, choice, entry, last)
    try:
        merged, source = _collapsed(gm, choice, entry, inner, channels)
    except NotAffineError as reason:
        raise not_linearized(choice, str(reason)) from reason
    if merged.kernel != kernel:
        raise not_linearized(choice, f"its kernel is {size_text(merged.kernel)}")
    cover_places(last, inner)
    insert_convolution(gm, last, source, merged, f"merged_{last.name}")


def _collapsed(
    gm: fx.GraphModule, choice: SpanChoice, entry: fx.Node, inner: list[fx.Node], channels: int
) -> tuple[AffineConv, fx.Node]:
    """Return the convolution that a linearized span collapses into, and the node that it reads."""
    last = inner[-1]
    if pads_only_zeros(gm, entry, inner):
        return collapse(gm, entry, inner, channels)[last], entry
    if pads_only_zeros(gm, entry, inner, carry_biases=True):
        return collapse_carrying_biases(gm, entry, inner, channels)[last], _with_ones(gm, last, entry)
    raise not_linearized(choice, "tensors inside are padded")


def _inner(gm: fx.GraphModule, choice: SpanChoice, entry: fx.Node, last: fx.Node) -> tuple[list[fx.Node], int]:
    """Return the nodes of a linearized span and the number of channels that it reads."""
    inner, shape = _between(entry, last), image_shape(entry)
    if shape is None:
        raise PlanError(f"the shape at {choice.entry} is not known: linearize a graph that `capture` returned")
    active = [module_path(node) for node in inner if role(gm, node) is Role.ACTIVATION]
    if active:
        raise not_linearized(choice, f"the activation {active[0]} stands inside")
    return inner, shape[1]


def _with_ones(gm: fx.GraphModule, before: fx.Node, source: fx.Node) -> fx.Node:
    """Return a new node, placed before another, that gives the tensor at `source` a last channel of ones."""
    pixels = (0, 0) if holds_signals(source) else (0, 0, 0, 0)
    with gm.graph.inserting_before(before):
        ones = gm.graph.call_function(F.pad, (source, (*pixels, 0, 1), "constant", 1.0))
    copy_places(before, ones)
    return ones


def _between(entry: fx.Node, last: fx.Node) -> list[fx.Node]:
    """Return the nodes on paths from `entry` (excluded) to `last` (included), in the graph's order."""
    found, pending = {last}, [last]
    while pending:
        for source in pending.pop().all_input_nodes:
            if source is not entry and source not in found:
                found.add(source)
                pending.append(source)
    return [node for node in entry.graph.nodes if node in found]
