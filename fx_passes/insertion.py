"""Insertion of one convolution into a graph, at an existing node."""

from __future__ import annotations

import torch
from torch import fx

from depthcomp_errors import PlanError
from fx_passes.affine import AffineConv
from fx_passes.graph_edit import add_module, device_and_dtype, redirect
from fx_passes.hoist_padding import pad
from fx_passes.module_paths import module_path
from fx_passes.spatial_layers import Convolution, holds_signals, image_kernel, new_convolution

__all__ = ["insert_convolution"]


def insert_convolution(
    gm: fx.GraphModule, node: fx.Node, source: fx.Node, operator: AffineConv, hint: str
) -> Convolution:
    """Turn `node` into the convolution `operator` of the tensor at `source`, and return the new module.

    The node keeps its name and users. Padding that differs between two sides becomes a node of its own.

    Raises:
        PlanError: the weights are beyond the range of the graph's type.
    """
    top, bottom, left, right = operator.padding
    symmetric = top == bottom >= 0 and left == right >= 0
    device, dtype = device_and_dtype(gm, source)
    conv = new_convolution(
        (operator.in_channels, operator.out_channels), operator.kernel, signals=holds_signals(source),
        stride=operator.stride, padding=(top, left) if symmetric else (0, 0), groups=operator.groups,
        device=device, dtype=dtype,
    )  # fmt: skip
    image_kernel(conv).copy_(operator.weight)
    assert conv.bias is not None  # built with one
    conv.bias.data.copy_(operator.bias)
    _require_finite(conv, operator, node)
    if not symmetric:
        source = pad(gm, node, source, operator.padding)
    redirect(node, target=add_module(gm, hint, conv), args=(source,))
    return conv


def _require_finite(conv: Convolution, operator: AffineConv, node: fx.Node) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in conv.parameters()):
        largest = max(float(operator.weight.abs().max()), float(operator.bias.abs().max()))
        raise PlanError(
            f"the new convolution at {module_path(node)} has weights up to {largest:.3g}, and {conv.weight.dtype} ends "
            f"at {torch.finfo(conv.weight.dtype).max:.3g}; plan shorter spans there, or merge in float32 first"
        )
