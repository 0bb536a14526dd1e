"""Pieces of a graph that collapse into one convolution, and spans: the places of pieces, with their choices."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from torch import fx, nn

from fx_passes.affine import AffineConv
from fx_passes.choice import SpanChoice
from fx_passes.collapse import operands
from fx_passes.facts import GraphFacts
from fx_passes.layer_pruning import Prunings
from fx_passes.operators import NORMS, Role, is_folded
from fx_passes.structure import Level

__all__ = ["NO_LAYERS", "Piece", "Span", "macs_of"]

NO_LAYERS = "there is no convolution in it"
"""Why nothing can be done with a piece without layers."""


@dataclass(frozen=True)
class Piece:
    """The part of a graph between two tensors, which collapses into one convolution.

    Attributes:
        entry: name of the node whose tensor it reads.
        exit: name of the node whose tensor it produces.
        pre_activation: name of the node whose tensor stands before the activation at its end.
        nodes: names of its nodes in order.
        operator: its collapse into one convolution, weights on the meta device.
        in_shape: (batch, channels, height, width) at the entry.
        prunings: the convolutions to prune for each smaller kernel; None where they are not known.
        graph: the graph that it is a part of.
    """

    entry: str
    exit: str
    pre_activation: str
    nodes: tuple[str, ...]
    operator: AffineConv
    in_shape: tuple[int, int, int, int]
    prunings: Prunings | None
    graph: GraphFacts = field(repr=False, compare=False)

    @cached_property
    def inner(self) -> tuple[str, ...]:
        """Names of the nodes up to the pre-activation."""
        if self.pre_activation not in self.nodes:
            return ()
        return self.nodes[: self.nodes.index(self.pre_activation) + 1]

    @property
    def inner_nodes(self) -> list[fx.Node]:
        """The nodes up to the pre-activation."""
        return [self.graph.nodes[name] for name in self.inner]

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of its convolutions as they are, for the whole batch."""
        return macs_of(self.graph, self.nodes)

    @cached_property
    def layers(self) -> int:
        """Number of operators that a runtime computes; norms behind a convolution are folded."""
        modules = [self.graph.layer(name) for name in self.nodes]
        folded = sum(is_folded(self.graph.gm, self.graph.nodes[name]) for name in self.nodes)
        return sum(isinstance(module, (nn.Conv2d, nn.AvgPool2d, *NORMS)) for module in modules) - folded

    @cached_property
    def joins(self) -> bool:
        """Whether one of its nodes adds or concatenates tensors."""
        return any(_joins(self.graph, name) for name in self.nodes)


@dataclass(frozen=True, slots=True)
class Span:
    """All operators between two cuts of one level.

    Attributes:
        level: the chain that the span belongs to.
        start: number i of the cut that it reads.
        stop: number j of the cut that it produces.
        nodes: names of its nodes in order, the end activation included.
        piece: the span as one convolution; None where a layer in it cannot be part of one.
        choices: what the span may become instead of being kept.
        refusal: why it has no choices, as a sentence; empty where it has some.
    """

    level: Level
    start: int
    stop: int
    nodes: tuple[str, ...]
    piece: Piece | None
    choices: tuple[SpanChoice, ...]
    refusal: str

    @property
    def entry(self) -> str:
        """Name of the node whose tensor the span reads."""
        return self.level.cuts[self.start]

    @property
    def exit(self) -> str:
        """Name of the node whose tensor the span produces."""
        return self.level.cuts[self.stop]


def macs_of(graph: GraphFacts, names: Iterable[str]) -> int:
    """Return the multiply-adds of nodes as they are, for the whole batch."""
    return sum(_macs(graph, name) for name in names)


def _macs(graph: GraphFacts, name: str) -> int:
    module, shape = graph.layer(name), graph.shape(name)
    if shape is None or not isinstance(module, nn.Conv2d):
        return 0 if shape is None or graph.roles[name] is not Role.AFFINE else math.prod(shape)
    return shape[0] * shape[2] * shape[3] * module.weight.numel()


def _joins(graph: GraphFacts, name: str) -> bool:
    if graph.roles[name] is Role.CONCAT:
        return len(operands(graph.nodes[name], Role.CONCAT)) > 1
    return graph.roles[name] is Role.ADD
