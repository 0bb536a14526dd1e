"""Body of a choice: the small graph that takes a span's place, its new convolutions still without weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import TensorMetadata

from fx_passes.affine import AffineConv
from fx_passes.operators import image_shape
from fx_passes.slot_layers import run_operator
from fx_passes.slots import Slot

__all__ = ["Body", "BodyBuilder", "copied_body"]


@dataclass(frozen=True, slots=True)
class Body:
    """The operators that take a span's place, from the tensor at its entry to a tensor of the network.

    A new convolution is a node that calls an `AffineConv` on the meta device. Other nodes call layers of the network.

    Attributes:
        graph: the operators between one input and one output; there are none where the span is dropped.
        at: name of the node of the network whose tensor the body computes.
    """

    graph: fx.Graph
    at: str

    @property
    def operators(self) -> dict[str, AffineConv]:
        """The new convolutions, by the names of their nodes."""
        return {node.name: node.target for node in self.graph.nodes if isinstance(node.target, AffineConv)}

    @torch.no_grad()
    def run(self, gm: fx.GraphModule, entry: Tensor, weights: Mapping[str, AffineConv]) -> Tensor:
        """Return the tensor that the body computes from the tensor at the span's entry.

        Args:
            gm: the network, whose layers the body may call.
            entry: images (n, c, h, w).
            weights: the convolutions to compute, by the names of their nodes.
        """
        result: Tensor = _Run(gm, self.graph, weights).run(entry)
        return result


class BodyBuilder:
    """Builds the body of one choice, node by node.

    Its nodes have the names of the network's nodes.

    Args:
        entry: name of the node whose tensor the span reads.
        in_shape: (n, c, h, w) of that tensor.

    Attributes:
        entry: the body's input.
    """

    def __init__(self, entry: str, in_shape: tuple[int, int, int, int]) -> None:
        self._graph = fx.Graph()
        self.entry = self._graph.create_node("placeholder", entry, name=entry)
        self.entry.meta["tensor_meta"] = _described(in_shape)

    def convolution(self, source: fx.Node, operator: AffineConv, name: str) -> fx.Node:
        """Return a new convolution of the tensor at `source`."""
        shape = image_shape(source)
        assert shape is not None  # bodies hold images only
        node = self._graph.create_node("call_function", operator, (source,), name=name)
        node.meta["tensor_meta"] = _described((shape[0], operator.out_channels, *operator.out_size(shape[2:])))
        return node

    def layer(self, source: fx.Node, original: fx.Node, *, shaped_like: fx.Node | None = None) -> fx.Node:
        """Return a call of the layer that a node of the network calls.

        Args:
            source: what the layer reads.
            original: the network's node.
            shaped_like: a node with the shape of the result; None where the layer keeps the shape of its input.
        """
        node = self._graph.create_node("call_module", original.target, (source,), name=original.name)
        node.meta["tensor_meta"] = (shaped_like or source).meta["tensor_meta"]
        return node

    def build(self, result: fx.Node, at: str) -> Body:
        """Return the body that ends at `result` and computes the tensor at the network's node `at`."""
        self._graph.output(result)
        return Body(self._graph, at)


def copied_body(
    nodes: Mapping[str, fx.Node], entry: str, names: Iterable[str], exit_: str, slots: Iterable[Slot]
) -> Body:
    """Return the body that computes what the network does between two tensors, some layers with other weights.

    Args:
        nodes: the nodes of the network, by name.
        entry: name of the node whose tensor the body reads.
        names: names of the nodes between the two, in order.
        exit_: name of the last one, whose tensor the body computes.
        slots: these layers.
    """
    replaced = {slot.node: slot for slot in slots}
    graph = fx.Graph()
    made = {nodes[entry]: graph.create_node("placeholder", entry, name=entry)}
    made[nodes[entry]].meta.update(nodes[entry].meta)

    def copied(source: fx.Node) -> fx.Node:
        """Return the copy of a node that another one reads."""
        if source not in made:  # a tensor of the network, which no input reaches
            made[source] = graph.node_copy(source)
        return made[source]

    for name in names:
        made[nodes[name]] = node = graph.node_copy(nodes[name], copied)
        if name in replaced:
            slot = replaced[name]
            node.op, node.target, node.args, node.kwargs = "call_function", slot.operator, node.args[:1], {}
            node.meta["axis"] = slot.axis
    graph.output(made[nodes[exit_]])
    return Body(graph, exit_)


class _Run(fx.Interpreter):
    """Runs a body with the given convolutions in place of its own, which have no weights."""

    def __init__(self, gm: fx.GraphModule, graph: fx.Graph, weights: Mapping[str, AffineConv]) -> None:
        super().__init__(gm, graph=graph)
        self._weights = weights

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node; a new convolution runs with the given weights."""
        if not isinstance(n.target, AffineConv):
            return super().run_node(n)
        (source,) = self.fetch_args_kwargs_from_env(n)[0]
        return run_operator(self._weights[n.name], source, n.meta.get("axis", 1))


def _described(shape: tuple[int, ...]) -> TensorMetadata:
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return TensorMetadata(torch.Size(shape), torch.float32, False, strides, None, False, {})
