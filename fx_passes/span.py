"""Pieces of a graph, and spans: the places of pieces, with their choices."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from torch import fx

from fx_passes.affine import AffineConv
from fx_passes.choice import SpanChoice
from fx_passes.collapse import operands
from fx_passes.facts import GraphFacts
from fx_passes.layer_pruning import Prunings
from fx_passes.network_facts import NetworkFacts
from fx_passes.operators import NORMS, Role, is_folded
from fx_passes.spatial_layers import AVG_POOLS, CONVOLUTIONS
from fx_passes.structure import Level

__all__ = ["NO_LAYERS", "OneConvolution", "Piece", "Span", "macs_of"]

NO_LAYERS = "there is no convolution in it"
"""Why nothing can be done with a piece without layers."""


@dataclass(frozen=True)
class OneConvolution:
    """A piece of a graph, its inner activations left out, as one convolution.

    Attributes:
        pre_activation: name of the node whose tensor stands before the activation at the piece's end.
        operator: the convolution, weights on the meta device.
        prunings: the convolutions to prune for each smaller kernel; None where they are not known.
    """

    pre_activation: str
    operator: AffineConv
    prunings: Prunings | None


@dataclass(frozen=True)
class Piece:
    """The part of a graph between two tensors.

    Attributes:
        entry: name of the node whose tensor it reads.
        exit: name of the node whose tensor it produces.
        nodes: names of its nodes in order.
        as_one: the piece as one convolution; None where a layer in it cannot be part of one.
        graph: the network that it is a part of.
    """

    entry: str
    exit: str
    nodes: tuple[str, ...]
    as_one: OneConvolution | None
    graph: NetworkFacts = field(repr=False, compare=False)

    @property
    def in_shape(self) -> tuple[int, int, int, int]:
        """(batch, channels, height, width) at the entry, which holds images."""
        shape = self.graph.shape(self.entry)
        assert shape is not None
        return shape

    @property
    def pre_activation(self) -> str:
        """Name of the node before the activation at the end of a piece that is one convolution."""
        return self._one.pre_activation

    @property
    def operator(self) -> AffineConv:
        """The collapse of a piece that is one convolution, weights on the meta device."""
        return self._one.operator

    @property
    def prunings(self) -> Prunings | None:
        """The convolutions to prune for each smaller kernel; None where they are not known."""
        return self._one.prunings

    @property
    def _one(self) -> OneConvolution:
        assert self.as_one is not None  # or only kinds see it that take any piece
        return self.as_one

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
        return sum(isinstance(module, (*CONVOLUTIONS, *AVG_POOLS, *NORMS)) for module in modules) - folded

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
        piece: the part of the graph; None where no kind takes it.
        choices: what the span may become instead of being kept.
        refusal: why it has no choices, or is not one convolution, as a sentence; else empty.
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
    if shape is None or not isinstance(module, CONVOLUTIONS):
        return 0 if shape is None or graph.roles[name] is not Role.AFFINE else math.prod(shape)
    return shape[0] * shape[2] * shape[3] * module.weight.numel()


def _joins(graph: GraphFacts, name: str) -> bool:
    if graph.roles[name] is Role.CONCAT:
        return len(operands(graph.nodes[name], Role.CONCAT)) > 1
    return graph.roles[name] is Role.ADD
