"""Layers behind slots: read their operators, run them, and load operators with other weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from fx_passes.affine import AffineConv, conv_padding
from fx_passes.channel_affine import ChannelAffine
from fx_passes.exclusion import exclusion
from fx_passes.facts import GraphFacts
from fx_passes.operators import NORMS, Role, affine_operator, called_module, known_layer, role
from fx_passes.spatial_layers import BATCH_NORMS, CONVOLUTIONS, BatchNorm, Convolution, image_kernel, on_both_axes

__all__ = [
    "as_images",
    "can_be_solved",
    "channel_axis",
    "layers_of_slot",
    "linear_at",
    "load_operator",
    "operator_at",
    "run_operator",
]

DEAD = 1e-6  # relative to a norm's largest scale: a channel with a smaller scale is lost, whatever its weights


def can_be_solved(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether the layer at a node can be a slot: an undilated, zero-padded convolution, or a linear layer.

    Excluded layers cannot.

    A linear layer is a 1x1 convolution of an image of one pixel where it reads a vector for each image, else of the
    pixels that it reads.
    """
    if exclusion(node):
        return False
    layer = known_layer(gm, node)
    if isinstance(layer, CONVOLUTIONS):
        return on_both_axes(layer, "dilation") == (1, 1) and layer.padding_mode == "zeros"
    return linear_at(gm, node) is not None


def linear_at(gm: fx.GraphModule, node: fx.Node) -> nn.Linear | None:
    """Return the linear layer that a node calls on one vector or more for each image, or None where it calls none."""
    layer, shape = called_module(gm, node), getattr(node.meta.get("tensor_meta"), "shape", ())
    return layer if type(layer) is nn.Linear and len(shape) > 1 else None


def channel_axis(gm: fx.GraphModule, node: fx.Node) -> int:
    """Return the axis of the channels in the tensors of the layer at a node: 1, or -1 for a linear layer."""
    return 1 if linear_at(gm, node) is None else -1


def operator_at(gm: fx.GraphModule, node: fx.Node) -> AffineConv:
    """Return the operator of the layer that a node calls; it shares the layer's weights."""
    linear = linear_at(gm, node)
    layer = _convolution(gm, node) if linear is None else linear
    bias = layer.weight.new_zeros(len(layer.weight)).detach() if layer.bias is None else layer.bias.detach()
    if isinstance(layer, nn.Linear):
        return AffineConv(layer.weight.detach()[..., None, None], bias, (1, 1), (0, 0, 0, 0), 1)
    return AffineConv(image_kernel(layer), bias, on_both_axes(layer, "stride"), conv_padding(layer), layer.groups)


def load_operator(graph: GraphFacts, name: str, operator: AffineConv) -> None:
    """Load an operator into the layer of the slot at a node, in place; the operator has the layer's shape.

    A norm that is not folded stands behind the convolution. It keeps its statistics, and its scale except in channels
    that it scales to nothing. The convolution's weights and the norm's shift change, so that both compute the operator.
    """
    gm = graph.gm
    *behind, node = layers_of_slot(gm, graph.nodes[name])
    norms = [each for each in behind if isinstance(known_layer(gm, each), NORMS)]
    linear = linear_at(gm, node)
    if linear is not None:
        linear.weight.data.copy_(operator.weight[..., 0, 0])
        _set_bias(linear, operator.bias)
    elif norms:
        _load_before_norms(gm, _convolution(gm, node), node, norms, operator)
    else:
        _load_convolution(_convolution(gm, node), operator)


def layers_of_slot(gm: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Return the nodes of the layers behind a slot: activations inserted under its name, norms, the layer itself."""
    found = [node]
    while role(gm, found[-1]) is Role.ACTIVATION or isinstance(known_layer(gm, found[-1]), NORMS):
        found.append(found[-1].all_input_nodes[0])
    return found


def as_images(tensor: Tensor, axis: int) -> Tensor:
    """Return a tensor of any rank, with its channels along an axis, as images (n, c, h, w); signals have height 1."""
    first = tensor.movedim(axis, 1)
    return first if first.ndim == 4 else first.reshape(*first.shape[:2], 1, -1)


def run_operator(operator: AffineConv, tensor: Tensor, axis: int) -> Tensor:
    """Return the output of a kept convolution or linear layer with a new operator, for the tensor that it reads."""
    image = as_images(tensor, axis)
    computed = operator.to(image)(image)
    if axis == 1:
        return computed if tensor.ndim == 4 else computed.squeeze(2)
    return computed.movedim(1, -1).reshape(*tensor.shape[:-1], -1)


def _load_convolution(conv: Convolution, operator: AffineConv) -> None:
    image_kernel(conv).copy_(operator.weight)
    _set_bias(conv, operator.bias)


def _load_before_norms(
    gm: fx.GraphModule, conv: Convolution, node: fx.Node, norms: Sequence[fx.Node], operator: AffineConv
) -> None:
    """Let a convolution and the norms behind it, the last one first, compute an operator together."""
    bias = affine_operator(gm, node, conv.in_channels).bias
    scale, shift = _scale_and_shift(gm, norms, bias)
    dead = scale.abs() <= DEAD * scale.abs().max()
    if dead.any():
        for norm in norms:
            _pass_on(known_layer(gm, norm), dead)
        scale, shift = _scale_and_shift(gm, norms, bias)
    image_kernel(conv).copy_(operator.weight / scale[:, None, None, None])
    last = known_layer(gm, norms[0])
    if isinstance(last, BatchNorm | ChannelAffine) and last.bias is not None:
        last.bias.data.add_((operator.bias - shift).to(last.bias))
    else:
        _set_bias(conv, bias + (operator.bias - shift) / scale)


def _scale_and_shift(gm: fx.GraphModule, norms: Sequence[fx.Node], bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale of each channel by norms (the last one first), and what they make of a convolution's bias."""
    scale, shift = torch.ones_like(bias), bias
    for node in reversed(norms):
        norm = affine_operator(gm, node, len(bias))
        scale, shift = norm.weight.flatten() * scale, norm.weight.flatten() * shift + norm.bias
    return scale, shift


def _pass_on(norm: nn.Module | None, channels: Tensor) -> None:
    """Set the scale of some channels of a norm to one, if it has scales of its own."""
    if isinstance(norm, BATCH_NORMS) and norm.affine and norm.running_var is not None:
        norm.weight.data[channels] = (norm.running_var[channels] + norm.eps).sqrt()
    elif isinstance(norm, ChannelAffine) and norm.weight is not None:
        norm.weight.data[channels] = 1.0


def _convolution(gm: fx.GraphModule, node: fx.Node) -> Convolution:
    conv = known_layer(gm, node)
    assert isinstance(conv, CONVOLUTIONS)  # the only slots besides linear layers
    return conv


def _set_bias(layer: Convolution | nn.Linear, bias: Tensor) -> None:
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(len(layer.weight)).to(layer.weight))
    layer.bias.data.copy_(bias)
