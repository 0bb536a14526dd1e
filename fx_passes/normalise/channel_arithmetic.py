"""Layers for arithmetic of an image or signal with one constant per channel."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from fx_passes.channel_affine import ChannelAffine
from fx_passes.constants import Constants
from fx_passes.graph_edit import add_module, device_and_dtype, redirect
from fx_passes.module_paths import cover_places
from fx_passes.operators import ACTIVATIONS, PASSED, Role, called_module, image_shape, role
from fx_passes.spatial_layers import holds_signals

__all__ = ["ChannelArithmetic"]

_SYMBOLS: dict[Any, str] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), "+"),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_"), "-"),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"), "*"),
    **dict.fromkeys(
        (operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide, "div", "div_"), "/"
    ),
}
_SIGNAL_LAYERS = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.AvgPool1d, nn.MaxPool1d)
_NEUTRAL = (("+", 0), ("-", 0), ("*", 1), ("/", 1))


class ChannelArithmetic(PassBase):
    """Turn `x * c`, `x + c`, `x - c`, `c - x` and `x / c` into calls of `ChannelAffine`, and neighbours into one.

    `x` is an image or signal, `c` a number or a constant with one value, or with one per channel. A constant that is
    computed from trained parameters stays trained, with one value per channel. Arithmetic that changes nothing
    (`x + 0`) is removed. Shapes must be known at the nodes.
    """

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite `graph_module` in place."""
        constants = Constants(graph_module)
        modified = False
        for node in list(graph_module.graph.nodes):
            arithmetic = _read(constants, node)
            if arithmetic is not None and _is_spatial(graph_module, arithmetic.image):
                _replace(graph_module, node, arithmetic)
                modified = True
        return PassResult(graph_module, modified)


@dataclass(frozen=True, slots=True)
class _Part:
    """A scale or a shift, (c,) in float64, and whether it is trained."""

    value: Tensor
    learned: bool = False

    def __mul__(self, other: _Part) -> _Part:
        return _Part(self.value * other.value, self.learned or other.learned)

    def __add__(self, other: _Part) -> _Part:
        return _Part(self.value + other.value, self.learned or other.learned)


@dataclass(frozen=True, slots=True)
class _Map:
    """The map x -> scale x + shift; a missing part is None."""

    scale: _Part | None
    shift: _Part | None

    def after(self, first: _Map) -> _Map:
        """Return x -> self(first(x))."""
        moved = _combined(operator.mul, first.shift, self.scale) if first.shift is not None else None
        return _Map(_combined(operator.mul, first.scale, self.scale), _combined(operator.add, moved, self.shift))


@dataclass(frozen=True, slots=True)
class _Arithmetic:
    """What a node does to the image that it reads; `change` is None where it changes nothing."""

    image: fx.Node
    change: _Map | None


def _combined(operation: Any, first: _Part | None, second: _Part | None) -> _Part | None:
    return operation(first, second) if first is not None and second is not None else first or second


def _read(constants: Constants, node: fx.Node) -> _Arithmetic | None:
    """Return the arithmetic that a node does on an image, or None for any other node."""
    symbol, operands, shape = _SYMBOLS.get(node.target), _operands(node), image_shape(node)
    if symbol is None or shape is None or len(operands) != 2:
        return None
    swapped = not _is_image(constants, operands[0])
    image, other = reversed(operands) if swapped else operands
    if not _is_image(constants, image) or not _keeps_kind(image, node) or (swapped and symbol == "/"):
        return None
    value = constants.value(other) if other in constants else other
    if not _fits(value, shape[1], 3 if holds_signals(image) else 4):
        return None
    if isinstance(value, int | float) and (symbol, value) in _NEUTRAL and not (swapped and symbol == "-"):
        return _Arithmetic(image, None)
    part = _Part(_per_channel(value, shape[1]), other in constants and constants.is_learned(other))
    change = _change(symbol, part, swapped)
    return _Arithmetic(image, change) if _is_finite(change, node.meta["tensor_meta"].dtype) else None


def _operands(node: fx.Node) -> list[Any]:
    """Return the operands of an arithmetic node in order; none where options change the operation."""
    named = [node.kwargs[name] for name in ("input", "other") if name in node.kwargs]
    is_call = node.op in ("call_function", "call_method")
    return [*node.args, *named] if is_call and len(named) == len(node.kwargs) else []


def _change(symbol: str, constant: _Part, swapped: bool) -> _Map:
    if symbol == "+":
        return _Map(None, constant)
    if symbol == "-":
        minus = _Part(-torch.ones_like(constant.value))
        return _Map(minus, constant) if swapped else _Map(None, constant * minus)
    return _Map(constant if symbol == "*" else _Part(1 / constant.value, constant.learned), None)


def _is_image(constants: Constants, operand: Any) -> bool:
    return isinstance(operand, fx.Node) and operand not in constants and image_shape(operand) is not None


def _is_spatial(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether a node holds images, or signals; (n, tokens, features) of transformers have their shape, too.

    Signals are made or read by a layer of signals, with nothing but activations, arithmetic and concatenations of
    channels between.
    """
    if not holds_signals(node):
        return True
    return _meets_signals(gm, [node], "all_input_nodes") or _meets_signals(gm, node.users, "users")


def _meets_signals(gm: fx.GraphModule, nodes: Iterable[fx.Node], onward: str) -> bool:
    """Say whether one of the nodes, or of those that follow in a direction, calls a layer of signals."""
    pending, seen = list(nodes), set[fx.Node]()
    while pending:
        node = pending.pop()
        layer = called_module(gm, node)
        if isinstance(layer, _SIGNAL_LAYERS):
            return True
        passed = isinstance(layer, (*ACTIVATIONS, *PASSED, ChannelAffine)) or node.target in _SYMBOLS
        if node not in seen and (passed or role(gm, node) is Role.CONCAT):
            pending.extend(getattr(node, onward))
        seen.add(node)
    return False


def _keeps_kind(image: fx.Node, node: fx.Node) -> bool:
    """Say whether a node's tensor has the shape and type of the image that it reads."""
    before, after = image.meta["tensor_meta"], node.meta["tensor_meta"]
    return bool(before.shape == after.shape and before.dtype == after.dtype and before.dtype.is_floating_point)


def _fits(value: Any, channels: int, rank: int) -> bool:
    """Say whether a value is one number, or one per channel of a batch of images or signals of a rank."""
    if not isinstance(value, Tensor):
        return isinstance(value, int | float) and not isinstance(value, bool)
    shape, pixel = (1,) * (rank - value.dim()) + tuple(value.shape), (1,) * (rank - 2)
    return shape in ((1, 1, *pixel), (1, channels, *pixel)) and not value.is_complex()


def _per_channel(value: float | Tensor, channels: int) -> Tensor:
    if isinstance(value, Tensor):
        value = value.cpu()  # some devices know no float64
    return torch.as_tensor(value, dtype=torch.float64).flatten().expand(channels)


def _is_finite(change: _Map, dtype: torch.dtype) -> bool:
    """Say whether a map is finite in a type; x / 0 is not."""
    return all(bool(part.value.to(dtype).isfinite().all()) for part in (change.scale, change.shift) if part)


def _replace(gm: fx.GraphModule, node: fx.Node, arithmetic: _Arithmetic) -> None:
    source, change = arithmetic.image, arithmetic.change
    if change is None:
        node.replace_all_uses_with(source)
        gm.graph.erase_node(node)
        return
    before = called_module(gm, source)
    joins = isinstance(before, ChannelAffine) and len(source.users) == 1
    if joins:
        change = change.after(_map_of(before))  # type: ignore[arg-type]  # `joins` says so
    args = source.args if joins else (source,)
    redirect(node, target=add_module(gm, f"{node.name}_affine", _layer(gm, node, change)), args=args)
    if joins:
        cover_places(node, [source, node])
        gm.graph.erase_node(source)


def _map_of(layer: ChannelAffine) -> _Map:
    scale, shift = (
        None if tensor is None else _Part(tensor.detach().cpu().double(), isinstance(tensor, nn.Parameter))
        for tensor in (layer.weight, layer.bias)
    )
    return _Map(scale, shift)


def _layer(gm: fx.GraphModule, node: fx.Node, change: _Map) -> ChannelAffine:
    """Return the layer of a map, in the type of the tensor at `node`; trained parts are parameters, others buffers."""
    shape, dtype = image_shape(node), node.meta["tensor_meta"].dtype
    assert shape is not None  # arithmetic is only read of images
    layer = ChannelAffine(shape[1], change.scale is not None, change.shift is not None)
    for name, part in (("weight", change.scale), ("bias", change.shift)):
        if part is not None:
            tensor = part.value.to(device_and_dtype(gm, node)[0], dtype).contiguous()
            delattr(layer, name)
            setattr(layer, name, nn.Parameter(tensor) if part.learned else nn.Buffer(tensor))
    return layer
