"""Borders of the tensors inside a span: which of them are zero beyond their frame, and may be padded.

A span merges exactly if it pads only tensors that are zero beyond their frame: its entry, padded forms of it, and 1x1
convolutions of it. A 1x1 convolution with a bias is zero there only if it reads the bias from an input channel, 1
inside the frame and 0 beyond. One constant channel carries the biases of all convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx

from fx_passes.affine import Sides, conv_padding
from fx_passes.operators import NORMS, Role, known_layer, role, zero_padding
from fx_passes.spatial_layers import AVG_POOLS, CONVOLUTIONS, on_both_axes

__all__ = ["NO_BORDER", "border_needed", "pads_only_zeros", "zero_beyond_frame"]

NO_BORDER: Sides = (0, 0, 0, 0)


def pads_only_zeros(
    gm: fx.GraphModule, entry: fx.Node, inner: Iterable[fx.Node], *, carry_biases: bool = False
) -> bool:
    """Say whether a span adds zeros only to tensors that are zero beyond their frame.

    Args:
        gm: the graph; it is not changed.
        entry: the node whose tensor the span reads.
        inner: the span's nodes in order.
        carry_biases: whether a constant channel at the entry carries the biases of 1x1 convolutions.
    """
    inner = list(inner)
    zero = {entry, *zero_beyond_frame(gm, entry, inner, carry_biases=carry_biases)}
    adding = (node for node in inner if max(border_needed(gm, node, NO_BORDER)) > 0)
    return all(zero.issuperset(node.all_input_nodes) for node in adding)


def zero_beyond_frame(
    gm: fx.GraphModule, entry: fx.Node, inner: Sequence[fx.Node], *, carry_biases: bool = False
) -> set[fx.Node]:
    """Return the nodes of a span whose tensors are zero beyond their frame; arguments as for `pads_only_zeros`."""
    zero = {entry}
    for node in inner:
        if zero.issuperset(node.all_input_nodes) and _keeps_zeros(gm, node, carry_biases):
            zero.add(node)
    return zero - {entry}


def border_needed(gm: fx.GraphModule, node: fx.Node, border: Sides) -> Sides:
    """Return the border beyond its input's frame that `node` reads to compute `border` beyond its own frame."""
    module = known_layer(gm, node)
    if role(gm, node) is not Role.AFFINE or isinstance(module, NORMS):
        return border
    if isinstance(module, CONVOLUTIONS):
        padding, (vertical, horizontal) = conv_padding(module), on_both_axes(module, "stride")
    elif isinstance(module, AVG_POOLS):
        rows, columns = on_both_axes(module, "padding")
        padding, (vertical, horizontal) = (rows, rows, columns, columns), on_both_axes(module, "stride")
    else:
        padding, (vertical, horizontal) = zero_padding(module, node), (1, 1)
    steps = (vertical, vertical, horizontal, horizontal)
    top, bottom, left, right = (p + s * b for p, s, b in zip(padding, steps, border, strict=True))
    return top, bottom, left, right


def _keeps_zeros(gm: fx.GraphModule, node: fx.Node, carry_biases: bool) -> bool:
    """Say whether a node's tensor is zero beyond its frame if all tensors that it reads are."""
    module, padding = known_layer(gm, node), border_needed(gm, node, NO_BORDER)
    if isinstance(module, CONVOLUTIONS):
        reads_pixel = on_both_axes(module, "kernel_size") == (1, 1) and not any(padding)
        return reads_pixel and (carry_biases or module.bias is None)
    if isinstance(module, NORMS):
        return carry_biases
    if carry_biases:  # the constant channel has one tap: nothing may shift it
        return not any(padding) and not isinstance(module, AVG_POOLS)
    return min(padding) >= 0 and not isinstance(module, AVG_POOLS)
