"""Hoisting of a span's padding to its entry, where the merged convolution pads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn

from fx_passes.affine import Sides
from fx_passes.borders import NO_BORDER, border_needed
from fx_passes.exclusion import without_mark
from fx_passes.graph_edit import add_module, redirect
from fx_passes.module_paths import copy_places
from fx_passes.operators import NORMS, Role, image_shape, known_layer, role
from fx_passes.spatial_layers import AVG_POOLS, CONVOLUTIONS, holds_signals

__all__ = ["hoist_padding", "pad"]


def hoist_padding(gm: fx.GraphModule, entry: fx.Node, inner: list[fx.Node]) -> None:
    """Move all padding of a span to its entry, in place.

    A backward walk finds the border that the consumers of each tensor need beyond its frame. An edge is cropped where
    its consumer needs less than the tensor has.
    """
    border: dict[fx.Node, Sides] = {inner[-1]: NO_BORDER}
    needed: dict[fx.Node, Sides] = {}
    for node in reversed(inner):
        needed[node] = border_needed(gm, node, border[node])
        for source in node.all_input_nodes:
            border[source] = _widest(border.get(source, needed[node]), needed[node])
    for node in inner:
        _enlarge(node, border[node])
    first = inner[0]
    padded = entry if border[entry] == NO_BORDER else pad(gm, first, entry, border[entry])
    for node in inner:
        for source in node.all_input_nodes:
            enlarged = padded if source is entry else source
            crop = tuple(need - have for need, have in zip(needed[node], border[source], strict=True))
            if any(crop):
                enlarged = pad(gm, node, enlarged, crop)  # type: ignore[arg-type]
            node.replace_input_with(source, enlarged)
        _stop_padding(gm, node)


def pad(gm: fx.GraphModule, before: fx.Node, source: fx.Node, sides: Sides) -> fx.Node:
    """Return a new node before another that pads the tensor at `source`; negative sides crop."""
    top, bottom, left, right = sides
    pixels = (left, right) if holds_signals(source) else (left, right, top, bottom)
    with gm.graph.inserting_before(before):
        padded = gm.graph.call_function(F.pad, (source, pixels))
    padded.meta = without_mark(source.meta)
    copy_places(before, padded)
    _enlarge(padded, sides)
    return padded


def _stop_padding(gm: fx.GraphModule, node: fx.Node) -> None:
    module = known_layer(gm, node)
    if isinstance(module, CONVOLUTIONS):
        module.padding = (0,) * len(module.kernel_size)
    elif isinstance(module, AVG_POOLS):
        module.padding = (0,) if isinstance(module, nn.AvgPool1d) else 0
    elif role(gm, node) is Role.AFFINE and not isinstance(module, NORMS):
        redirect(node, target=add_module(gm, f"unpadded_{node.name}", nn.Identity()), args=node.args[:1])


def _enlarge(node: fx.Node, sides: Sides) -> None:
    """Record that the image at a node has grown by a border; negative sides shrink it."""
    meta, shape = node.meta.get("tensor_meta"), image_shape(node)
    if meta is not None and shape is not None:
        top, bottom, left, right = sides
        size = (left + right,) if holds_signals(node) else (top + bottom, left + right)
        pixels = (pixels + more for pixels, more in zip(meta.shape[2:], size, strict=True))
        node.meta["tensor_meta"] = meta._replace(shape=torch.Size((*shape[:2], *pixels)))


def _widest(one: Sides, other: Sides) -> Sides:
    top, bottom, left, right = (max(a, b) for a, b in zip(one, other, strict=True))
    return top, bottom, left, right
