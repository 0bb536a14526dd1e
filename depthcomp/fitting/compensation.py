"""Kept convolutions and classifiers behind a changed span, refitted towards what they gave in the original.

What reads a changed tensor computes something else than it was trained for, and errors add up along a network. Behind
every change the kept convolutions are therefore fitted once more, each towards the original network's tensor at its end
and leaning to its own weights, as far as that holds on images that the fit has not seen. A summand is fitted towards
the original's sum less the other summand as it is now: it makes up for what that one lost. Shape and latency stay.
A linear layer that reads a vector for each image is a 1x1 convolution of an image of one pixel.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from fx_passes import Plan
from fx_passes.affine import AffineConv
from fx_passes.channel_affine import ChannelAffine
from fx_passes.operators import NORMS, Role, affine_operator, called_module, known_layer, role

__all__ = ["STRENGTHS", "KeptConvolution", "as_images", "kept_behind", "load_operator", "readers_of", "run_operator"]

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # of the ridge; the last leaves a kept convolution all but as it was
DEAD = 1e-6  # of a norm's largest scale: no weights make a channel with a smaller one show


@dataclass(frozen=True, slots=True)
class KeptConvolution:
    """A convolution, or linear layer, that stays and reads what has changed.

    Attributes:
        entry: name of the node whose tensor it reads.
        core: name of the node that calls it.
        operator: what it computes, in float64.
        target: name of the node whose tensor it shall restore: its own, or the sum that it goes into.
        other: name of the sum's other operand; None where it goes into none.
    """

    entry: str
    core: str
    operator: AffineConv
    target: str
    other: str | None = None


def kept_behind(linearized: fx.GraphModule, plan: Plan, *, nearest: bool = False) -> list[KeptConvolution]:
    """Return the kept convolutions and linear layers that read what a plan has changed, in order.

    Dilated ones, and those that pad with other than zeros, are not among them.

    Args:
        linearized: the plan's linearized graph, its norms folded.
        plan: the plan.
        nearest: only the first ones behind each change, which nothing refitted comes before. None of them depends on
            another: a summand whose other summand a refit restores aims at its own output.
    """
    return _behind(linearized, {choice.exit for choice in plan}, _rewritten(linearized, plan), nearest=nearest)


def readers_of(gm: fx.GraphModule, name: str) -> list[KeptConvolution]:
    """Return the first convolutions and linear layers behind a tensor, as `kept_behind` does the nearest."""
    return _behind(gm, {name}, set(), nearest=True)


def _behind(gm: fx.GraphModule, ends: Set[str], own: Set[str], *, nearest: bool) -> list[KeptConvolution]:
    """Return what can be refitted behind the tensors called `ends`, but for the nodes called `own`."""
    order = {node: position for position, node in enumerate(gm.graph.nodes)}
    changed, restored = set[str](), set[str]()
    found = []
    for node in gm.graph.nodes:
        sources = {source.name for source in node.all_input_nodes}
        behind, reads = not restored.isdisjoint(sources), not changed.isdisjoint(sources)
        fits = reads and not behind and node.name not in own and _can_be_fitted(gm, node)
        if fits:
            kept = _kept(gm, node, order)
            found.append(replace(kept, target=kept.core, other=None) if kept.other in restored else kept)
        if node.name in ends:
            changed.add(node.name)
        elif nearest and (fits or behind):
            restored.add(node.name)
        elif reads:
            changed.add(node.name)
    return found


def _rewritten(linearized: fx.GraphModule, plan: Plan) -> set[str]:
    """Return the nodes of a plan's spans."""
    nodes = {node.name: node for node in linearized.graph.nodes}
    found = set[str]()
    for choice in plan:
        pending = [nodes[choice.exit]]
        while pending:
            node = pending.pop()
            if node.name not in found and node is not nodes[choice.entry]:
                found.add(node.name)
                pending.extend(node.all_input_nodes)
    return found


def as_images(tensor: Tensor) -> Tensor:
    """Return a tensor (n, c, h, w) as it is, vectors (n, c) as images of one pixel."""
    return tensor[..., None, None] if tensor.ndim == 2 else tensor


def run_operator(operator: AffineConv, tensor: Tensor) -> Tensor:
    """Return what a kept convolution or linear layer with a new operator computes from the tensor that it reads."""
    image = as_images(tensor)
    computed = operator.to(image)(image)
    return computed if tensor.ndim == 4 else computed[..., 0, 0]


def _can_be_fitted(gm: fx.GraphModule, node: fx.Node) -> bool:
    layer = known_layer(gm, node)
    plain = isinstance(layer, nn.Conv2d) and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    return plain or _linear(gm, node) is not None


def _linear(gm: fx.GraphModule, node: fx.Node) -> nn.Linear | None:
    """Return the linear layer that a node calls on a vector for each image, or None where it calls none."""
    layer, shape = called_module(gm, node), getattr(node.meta.get("tensor_meta"), "shape", ())
    return layer if type(layer) is nn.Linear and len(shape) == 2 else None


def _operator(gm: fx.GraphModule, node: fx.Node) -> AffineConv:
    linear = _linear(gm, node)
    if linear is None:
        return affine_operator(gm, node, _convolution(gm, node).in_channels)
    weight = linear.weight.detach().double().cpu()[..., None, None]
    bias = torch.zeros(len(weight)).double() if linear.bias is None else linear.bias.detach().double().cpu()
    return AffineConv(weight, bias, (1, 1), (0, 0, 0, 0), 1)


def _kept(gm: fx.GraphModule, node: fx.Node, order: dict[fx.Node, int]) -> KeptConvolution:
    entry, operator = node.all_input_nodes[0].name, _operator(gm, node)
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is not None and role(gm, user) is Role.ADD:
        others = [operand for operand in user.all_input_nodes if operand is not node]
        if len(others) == 1 and order[others[0]] < order[node]:
            return KeptConvolution(entry, node.name, operator, user.name, others[0].name)
    return KeptConvolution(entry, node.name, operator, node.name)


def load_operator(gm: fx.GraphModule, name: str, operator: AffineConv) -> None:
    """Let the convolution or linear layer at a node compute an operator of its shape; in place.

    Where norms are not folded, one stands at the node: it keeps its statistics, and its scale but for channels that it
    scales to nothing, and its convolution's weights and its own shift become those that together compute the operator.
    """
    node = next(node for node in gm.graph.nodes if node.name == name)
    linear = _linear(gm, node)
    if linear is None:
        _load_convolution(gm, node, operator)
    else:
        linear.weight.data.copy_(operator.weight[..., 0, 0])
        _add_to_bias(linear, operator.bias - _operator(gm, node).bias)


def _load_convolution(gm: fx.GraphModule, node: fx.Node, operator: AffineConv) -> None:
    norms = []
    while isinstance(known_layer(gm, node), NORMS):
        norms.append(node)
        node = node.all_input_nodes[0]
    conv = _convolution(gm, node)
    bias = affine_operator(gm, node, conv.in_channels).bias
    scale, shift = _scale_and_shift(gm, norms, bias)
    dead = scale.abs() <= DEAD * scale.abs().max()
    if dead.any():
        for norm in norms:
            _pass_on(known_layer(gm, norm), dead)
        scale, shift = _scale_and_shift(gm, norms, bias)
    conv.weight.data.copy_(operator.weight / scale[:, None, None, None])
    last = known_layer(gm, norms[0]) if norms else None
    if isinstance(last, nn.BatchNorm2d | ChannelAffine) and last.bias is not None:
        last.bias.data.add_((operator.bias - shift).to(last.bias))
    else:
        _add_to_bias(conv, (operator.bias - shift) / scale)


def _scale_and_shift(gm: fx.GraphModule, norms: Sequence[fx.Node], bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return by what norms, the last one first, scale the channels of a convolution, and what they make of its bias."""
    scale, shift = torch.ones_like(bias), bias
    for place in reversed(norms):
        norm = affine_operator(gm, place, len(bias))
        scale, shift = norm.weight.flatten() * scale, norm.weight.flatten() * shift + norm.bias
    return scale, shift


def _pass_on(norm: nn.Module | None, channels: Tensor) -> None:
    """Let a norm scale some channels by one, where it has scales of its own."""
    if isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.running_var is not None:
        norm.weight.data[channels] = (norm.running_var[channels] + norm.eps).sqrt()
    elif isinstance(norm, ChannelAffine) and norm.weight is not None:
        norm.weight.data[channels] = 1.0


def _convolution(gm: fx.GraphModule, node: fx.Node) -> nn.Conv2d:
    conv = known_layer(gm, node)
    assert isinstance(conv, nn.Conv2d)  # all that can be fitted besides linear layers; norms are folded into one
    return conv


def _add_to_bias(layer: nn.Conv2d | nn.Linear, change: Tensor) -> None:
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros(len(layer.weight)).to(layer.weight))
    layer.bias.data.add_(change.to(layer.bias))
