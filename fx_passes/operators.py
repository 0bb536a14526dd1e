"""Roles of graph nodes in depth compression: affine, activation, join, pass-through or barrier.

Nothing here knows an architecture; a node is judged by its operator alone.
"""

from __future__ import annotations

import operator
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from fx_passes import affine
from fx_passes.affine import AffineConv, NotAffineError
from fx_passes.channel_affine import ChannelAffine
from fx_passes.module_paths import module_path
from fx_passes.spatial_layers import (
    AVG_POOLS,
    BATCH_NORMS,
    CONVOLUTIONS,
    ZERO_PADS,
    cut_off,
    holds_signals,
    on_both_axes,
    rank_obstacle,
)

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "PASSED",
    "Role",
    "affine_operator",
    "before_norms",
    "called_module",
    "describe",
    "image_shape",
    "is_folded",
    "known_layer",
    "role",
    "zero_padding",
]

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid,
)  # fmt: skip

NORMS: tuple[type[nn.Module], ...] = (*BATCH_NORMS, ChannelAffine)
"""Layers that scale and shift each channel, and that any runtime folds into a convolution before them."""

PASSED: tuple[type[nn.Module], ...] = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity)
"""Layers that return what they read."""

_LINEAR_LAYERS: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, *NORMS, *AVG_POOLS, *ZERO_PADS)
_KNOWN = frozenset((*ACTIVATIONS, *_LINEAR_LAYERS, *PASSED))
_ONLY_PER_CHANNEL = "{} with a constant merges only if the constant is one fixed number per channel of an image"
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
_PRODUCTS = (operator.mul, torch.mul, torch.multiply, "mul", "multiply")
_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv)


class Role(Enum):
    """The part that a node plays in a span."""

    AFFINE = "affine"
    ACTIVATION = "activation"
    ADD = "add"
    CONCAT = "concat"
    PASS = "pass"
    BARRIER = "barrier"


def called_module(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the module that `node` calls, or None where it calls none."""
    return gm.get_submodule(str(node.target)) if node.op == "call_module" else None


def known_layer(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Return the layer that `node` calls if its class tells what it computes, else None.

    A subclass of a known layer counts as known if it runs its parent's forward; with its own forward it may compute
    anything.
    """
    module = called_module(gm, node)
    if module is None:
        return None
    kind = _kind(type(module))
    return module if kind is not None and _runs_forward_of(kind, module) else None


def image_shape(node: fx.Node) -> tuple[int, int, int, int] | None:
    """Return (batch, channels, height, width) of the tensor at `node`, or None where it is no image.

    A signal (batch, channels, length) is an image of height 1.
    """
    shape = tuple(map(int, getattr(node.meta.get("tensor_meta"), "shape", ())))
    if len(shape) == 3:
        shape = *shape[:2], 1, shape[2]
    return shape if len(shape) == 4 else None


def role(gm: fx.GraphModule, node: fx.Node) -> Role:
    """Return the part that `node` plays."""
    return _judge(gm, node)[0]


def before_norms(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the node before a chain of norms that ends at `node`; `node` itself, if it calls no norm."""
    while isinstance(known_layer(gm, node), NORMS):
        node = node.all_input_nodes[0]
    return node


def is_folded(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a node calls a norm that any runtime folds into the convolution before it."""
    source = before_norms(gm, node)
    convolution = isinstance(known_layer(gm, source), CONVOLUTIONS) or isinstance(source.target, AffineConv)
    return convolution and source is not node


def describe(gm: fx.GraphModule, node: fx.Node) -> str:
    """Return why `node` ends every span, as a clause; empty where it does not."""
    return _judge(gm, node)[1]


def affine_operator(
    gm: fx.GraphModule,
    node: fx.Node,
    channels: int,
    *,
    device: str = "cpu",
    largest_kernel: tuple[int, int] | None = None,
) -> AffineConv:
    """Return the float64 operator of an AFFINE node that reads `channels` channels.

    It is computed on `device`; on "meta" it has shapes only. With `largest_kernel`, a dilated kernel keeps only its
    central taps.
    """
    module = known_layer(gm, node)
    if isinstance(module, CONVOLUTIONS):
        return affine.from_conv(module, device=device, largest_kernel=largest_kernel)
    if isinstance(module, BATCH_NORMS):
        return affine.from_batch_norm(module, device=device)
    if isinstance(module, ChannelAffine):
        return affine.from_channel_affine(module, device=device)
    if isinstance(module, AVG_POOLS):
        return affine.from_avg_pool(module, channels, device=device)
    return affine.from_padding(channels, zero_padding(module, node), device=device)


def _judge(gm: fx.GraphModule, node: fx.Node) -> tuple[Role, str]:
    module = known_layer(gm, node)
    if module is None and node.op == "call_module":
        return Role.BARRIER, _unknown(gm.get_submodule(str(node.target)))
    if isinstance(module, ACTIVATIONS):
        return Role.ACTIVATION, ""
    if isinstance(module, PASSED):
        return Role.PASS, ""
    if node.target in _ARITHMETIC and sum(isinstance(a, fx.Node) and a.op != "get_attr" for a in node.args) == 1:
        return Role.BARRIER, _ONLY_PER_CHANNEL.format(_title(module, node))
    if node.target is operator.add or node.target in _CONCATENATIONS:
        return _judge_join(node)
    if node.target in _PRODUCTS and len(node.all_input_nodes) > 1:
        return Role.BARRIER, "a gate multiplies two computed tensors, which is no convolution"
    if isinstance(module, _LINEAR_LAYERS) or node.target is F.pad or _cuts_pixels_off(node):
        obstacle = _obstacle(module, node)
        return (
            (Role.BARRIER, f"{_title(module, node)} is not one convolution: {obstacle}")
            if obstacle
            else (Role.AFFINE, "")
        )
    return Role.BARRIER, f"{_title(module, node)} is not a convolution and cannot be merged into one"


def _cuts_pixels_off(node: fx.Node) -> bool:
    return node.target is operator.getitem and cut_off(node) is not None


def _kind(layer: type[nn.Module]) -> type[nn.Module] | None:
    """Return the nearest known layer that a class is or inherits from."""
    return next((base for base in layer.__mro__ if base in _KNOWN), None)


def _runs_forward_of(kind: type[nn.Module], module: nn.Module) -> bool:
    """Say whether a module of this kind, or of a subclass, computes what the kind's own forward does."""
    methods = ("forward", "_conv_forward") if issubclass(kind, CONVOLUTIONS) else ("forward",)
    return all(getattr(getattr(module, name), "__func__", None) is getattr(kind, name) for name in methods)


def _unknown(module: nn.Module) -> str:
    """Return why an unknown layer ends every span."""
    name, kind = type(module).__name__, _kind(type(module))
    if isinstance(module, _ConvNd) and kind is None:
        what = "a transposed convolution" if module.transposed else "a convolution of volumes"
        return f"{name} is {what}, and only plain convolutions of images or signals can be merged"
    if kind is None:
        return f"{name} is not a convolution and cannot be merged into one"
    return f"{name} inherits from {kind.__name__} but has a forward of its own, which may compute anything"


def _obstacle(module: nn.Module | None, node: fx.Node) -> str:
    """Return why a node is not position-invariant and affine; empty where it is."""
    obstacle = rank_obstacle(module, node)
    if obstacle:
        return obstacle
    if isinstance(module, CONVOLUTIONS):
        if module.padding_mode != "zeros":
            return f"it pads with padding_mode={module.padding_mode!r}, and only zero padding can be moved"
    elif isinstance(module, BATCH_NORMS):
        if module.running_mean is None or module.running_var is None:
            return "it keeps no running statistics, so its output depends on the whole batch"
    elif isinstance(module, ChannelAffine):
        return ""
    elif isinstance(module, AVG_POOLS):
        if module.ceil_mode and on_both_axes(module, "stride") != (1, 1):
            return "it rounds its output size up (ceil_mode=True), so its last windows are cut short"
        if any(on_both_axes(module, "padding")) and not module.count_include_pad:
            return "it averages fewer pixels at the border (count_include_pad=False)"
    elif _padding_arguments(module, node) is None:
        return "only zero padding of height and width by fixed numbers of pixels can be moved"
    return ""


def _judge_join(node: fx.Node) -> tuple[Role, str]:
    operands = node.all_input_nodes
    shapes = [image_shape(operand) for operand in operands]
    alike = None not in shapes and len({holds_signals(operand) for operand in operands}) == 1
    if node.target is operator.add:
        if alike and len(set(shapes)) == 1:
            return Role.ADD, ""
        return Role.BARRIER, "a sum that broadcasts, or is not of images, cannot be merged into a convolution"
    named = node.kwargs.get("dim", node.kwargs.get("axis", 0))
    axis = node.args[1] if len(node.args) > 1 else named
    if alike and axis in (1, -2 if holds_signals(operands[0]) else -3):
        return Role.CONCAT, ""
    return (
        Role.BARRIER,
        "a concatenation along another axis than the channels cannot be merged into a convolution",
    )


def zero_padding(module: nn.Module | None, node: fx.Node) -> affine.Sides:
    """Return the padding of an AFFINE padding node at (top, bottom, left, right), in pixels."""
    pad = _padding_arguments(module, node)
    if pad is None:
        raise NotAffineError(f"{module_path(node)} is no padding with zeros")
    left, right, top, bottom = pad
    return top, bottom, left, right


def _padding_arguments(module: nn.Module | None, node: fx.Node) -> tuple[int, int, int, int] | None:
    """Return (left, right, top, bottom) of a padding with zeros, or None for any other node."""
    names = ("input", "pad", "mode", "value")
    options: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if node.target is operator.getitem:
        options = {"pad": cut_off(node)}
    if isinstance(module, ZERO_PADS):
        options = {"pad": module.padding, "value": module.value}
    pad = () if isinstance(options["pad"], fx.Node) else tuple(options["pad"])
    constant = options.get("mode", "constant") == "constant" and not options.get("value")
    pads_pixels = len(pad) in ((2,) if holds_signals(node) else (2, 4)) and all(isinstance(p, int) for p in pad)
    if not constant or not pads_pixels:
        return None
    return (*pad, 0, 0)[:4]


def _title(module: nn.Module | None, node: fx.Node) -> str:
    if module is not None:
        return type(module).__name__
    return str(getattr(node.target, "__name__", node.target))
