"""Operators of a network as a runtime runs them, each with its fused epilogue.

Norms are folded into the convolution before them. Activations and residual sums run within the operator that computes
their tensor; a sum belongs to the operand that is computed last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import fx, nn

from fx_passes.affine import AffineConv
from fx_passes.body import Body
from fx_passes.facts import GraphFacts
from fx_passes.operators import NORMS, Role, affine_operator, image_shape, is_folded, known_layer, role
from fx_passes.slot_layers import linear_at, operator_at
from fx_passes.spatial_layers import AVG_POOLS, CONVOLUTIONS, holds_signals, on_both_axes

__all__ = ["Operator", "Workload"]

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Epilogue:
    """The activation and the residual sum that a runtime fuses into an operator.

    Attributes:
        activation: the layer's type; None where there is none.
        residual: whether another tensor is added before the activation.
    """

    activation: type[nn.Module] | None = None
    residual: bool = False


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator as a runtime runs it.

    Attributes:
        op: a convolution, a linear layer, an average pooling, or a norm that follows no convolution.
        geometry: its channels, kernel, stride, padding and groups; its weights are not to be read.
        in_shape: (n, c, h, w) of what it reads; a linear layer reads these pixels with the channels last.
        epilogue: what is fused into it.
        dilation: of a convolution's kernel, (vertical, horizontal).
        signals: whether it reads signals (n, c, w), given as images of height 1.
    """

    op: Literal["conv", "linear", "avg_pool", "scale"]
    geometry: AffineConv
    in_shape: tuple[int, int, int, int]
    epilogue: Epilogue
    dilation: Pair = (1, 1)
    signals: bool = False

    def without(self, read: int, made: int) -> Operator:
        """Return the operator with so many channels less that it reads, and that it makes."""
        batch, channels, height, width = self.in_shape
        groups = self.geometry.groups * (channels - read) // channels if self.geometry.groups > 1 else 1
        shape = self.geometry.out_channels - made, (channels - read) // groups, *self.geometry.kernel
        weight = torch.empty(shape, device="meta")
        geometry = replace(self.geometry, weight=weight, bias=weight[:, 0, 0, 0], groups=groups)
        return replace(self, geometry=geometry, in_shape=(batch, channels - read, height, width))


class Workload:
    """Operators that a runtime runs for a captured graph, and for bodies in the place of its spans.

    Args:
        graph: a captured graph; it is not changed.
    """

    def __init__(self, graph: GraphFacts) -> None:
        self._graph = graph

    @cached_property
    def kept(self) -> dict[str, Operator]:
        """Operators of the unchanged graph, by node name; nodes that cost next to nothing are left out."""
        found = ((name, self._kept(node)) for name, node in self._graph.nodes.items())
        return {name: operator for name, operator in found if operator is not None}

    def convolutions(self, names: tuple[str, ...]) -> int:
        """Return how many of these nodes call convolutions."""
        return sum(isinstance(self._graph.layer(name), CONVOLUTIONS) for name in names)

    def of_body(self, body: Body) -> tuple[Operator, ...]:
        """Return the operators of a body at its place in the graph."""
        return tuple(self._body_operators(body))

    def _body_operators(self, body: Body) -> Iterator[Operator]:
        for node in body.graph.nodes:
            operator = self._new(node, body) if isinstance(node.target, AffineConv) else self._kept(node, body)
            if operator is not None:
                yield operator

    def _new(self, node: fx.Node, body: Body) -> Operator:
        (source,) = node.all_input_nodes
        assert isinstance(node.target, AffineConv)  # as the caller checks
        if node.meta.get("axis") == -1:
            return Operator("linear", node.target, _pixels_read(source), self._epilogue(node, body, folds=False))
        shape = image_shape(source)
        assert shape is not None  # as `BodyBuilder` makes it
        signals = holds_signals(self._graph.nodes[node.name])  # its shape in a body is that of images
        return Operator("conv", node.target, shape, self._epilogue(node, body), signals=signals)

    def _kept(self, node: fx.Node, body: Body | None = None) -> Operator | None:
        """Return the operator at an unchanged node, or None if it costs next to nothing."""
        gm, shape = self._graph.gm, _read_shape(node)
        if linear_at(gm, node) is not None:
            source = node.all_input_nodes[0]
            epilogue = self._epilogue(node, body, folds=False)
            return Operator("linear", operator_at(gm, node), _pixels_read(source), epilogue)
        if shape is None or role(gm, node) is not Role.AFFINE:
            return None
        module, signals = known_layer(gm, node), holds_signals(node)
        if isinstance(module, CONVOLUTIONS):
            epilogue, dilation = self._epilogue(node, body), on_both_axes(module, "dilation")
            return Operator("conv", operator_at(gm, node), shape, epilogue, dilation, signals)
        if is_folded(gm, node):
            return None
        if not isinstance(module, (*AVG_POOLS, *NORMS)):
            return None
        geometry = affine_operator(gm, node, shape[1], device="meta")
        op: Literal["avg_pool", "scale"] = "avg_pool" if isinstance(module, AVG_POOLS) else "scale"
        return Operator(op, geometry, shape, self._epilogue(node, body), signals=signals)

    def _epilogue(self, node: fx.Node, body: Body | None, *, folds: bool = True) -> Epilogue:
        """Return the epilogue of a node that norms are folded into, or not; behind a body, the network continues."""
        residual = False
        while len(node.users) == 1:
            user = next(iter(node.users))
            if body is not None and user.op == "output":
                node, body = self._graph.nodes[body.at], None
                continue
            kind = role(self._graph.gm, user)
            if kind is Role.ACTIVATION:
                return Epilogue(_type_of(known_layer(self._graph.gm, user)), residual)
            if kind is Role.ADD and not residual and self._computed_last(node, user):
                residual = True
            elif kind is not Role.PASS and not (folds and isinstance(known_layer(self._graph.gm, user), NORMS)):
                break
            node = user
        return Epilogue(None, residual)

    def _computed_last(self, node: fx.Node, join: fx.Node) -> bool:
        order = self._graph.order
        return all(order[node.name] >= order[other.name] for other in join.all_input_nodes)


def _type_of(layer: nn.Module | None) -> type[nn.Module]:
    assert layer is not None  # only known layers are activations
    return type(layer)


def _pixels_read(source: fx.Node) -> tuple[int, int, int, int]:
    """Return (n, c, h, w) of what a linear layer reads."""
    batch, *size, channels = map(int, source.meta["tensor_meta"].shape)
    return batch, channels, math.prod(size[:-1]), math.prod(size[-1:])


def _read_shape(node: fx.Node) -> tuple[int, int, int, int] | None:
    source = node.args[0] if node.args else None
    return image_shape(source) if isinstance(source, fx.Node) else None
