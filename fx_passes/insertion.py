"""Insertion of one convolution into a graph, at an existing node."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn.utils import skip_init

from depthcomp_errors import PlanError
from fx_passes.affine import AffineConv
from fx_passes.graph_edit import add_module, device_and_dtype, redirect
from fx_passes.hoist_padding import pad
from fx_passes.module_paths import module_path

__all__ = ["insert_convolution"]


def insert_convolution(
    gm: fx.GraphModule, node: fx.Node, source: fx.Node, operator: AffineConv, hint: str
) -> nn.Conv2d:
    """Turn `node` into the convolution `operator` of the tensor at `source`, and return the new module.

    The node keeps its name and users. Padding that nn.Conv2d cannot express becomes a node of its own.

    Raises:
        PlanError: the weights are beyond the range of the graph's type.
    """
    top, bottom, left, right = operator.padding
    symmetric = top == bottom >= 0 and left == right >= 0
    device, dtype = device_and_dtype(gm, source)
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
            f"the new convolution at {module_path(node)} has weights up to {largest:.3g}, and {conv.weight.dtype} ends "
            f"at {torch.finfo(conv.weight.dtype).max:.3g}; plan shorter spans there, or merge in float32 first"
        )
