"""Channels that can only be removed together, all over a network.

Convolutions and linear layers make new channels. Other operators pass channels on: activations, norms, pooling,
concatenations, slices. What an operator passes on is found by running it (`fx_passes.channels.probing`), so nothing
has to be known about it. Sums, products and grouped convolutions tie channels. An operator that mixes channels, or
needs all of them (`fx_passes.channels.trial`), fixes those that it reads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, fx

from fx_passes.channels.layout import Ids, Layout, Layouts, layouts_in
from fx_passes.channels.makers import Mask
from fx_passes.channels.narrowing import describe_without, narrow_node
from fx_passes.channels.tracer import Tracer
from fx_passes.channels.trial import Trial
from fx_passes.graph_edit import nodes_by_name, tidy

__all__ = ["ChannelFamily", "ChannelTies", "channel_ties"]


@dataclass(frozen=True, slots=True)
class ChannelFamily:
    """Channels that can be removed one by one, and that occur in the same tensors.

    Attributes:
        nodes: names of the nodes whose results hold them, in the graph's order.
        ids: their ids.
    """

    nodes: tuple[str, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ChannelTies:
    """The channels of a network, by the tensors at its nodes.

    Channels of equal id are tied: they can only be removed together.

    Attributes:
        made: the channels of each node's result; nodes without known channels are left out.
        fixed: why channels cannot be removed, as a clause, by id.
        count: number of ids.
    """

    made: Mapping[str, Layouts]
    fixed: Mapping[int, str]
    count: int

    @cached_property
    def families(self) -> tuple[ChannelFamily, ...]:
        """All channels that can be removed, by the tensors that hold them."""
        places: dict[int, list[str]] = {label: [] for label in range(self.count) if label not in self.fixed}
        for name, found in self.made.items():
            for label in {int(label) for layout in layouts_in([found]) for label in layout.ids} & places.keys():
                places[label].append(name)
        families: dict[tuple[str, ...], list[int]] = {}
        for label, names in places.items():
            families.setdefault(tuple(names), []).append(label)
        return tuple(ChannelFamily(nodes, tuple(ids)) for nodes, ids in families.items())

    def width(self, name: str) -> int:
        """Return the number of channels of the tensor at a node; 0 where they are not known."""
        layout = self.made.get(name)
        return len(layout.ids) if isinstance(layout, Layout) else 0

    def without(self, gm: fx.GraphModule, removed: Set[int]) -> fx.GraphModule:
        """Return a copy of the graph without some channels.

        Args:
            gm: the graph; it is not changed.
            removed: ids of the channels; none of them is fixed, and some channel of each tensor is left.
        """
        copied = copy.deepcopy(gm)
        self.narrow(copied, self.made, removed)
        return tidy(copied)

    def narrow(self, gm: fx.GraphModule, names: Iterable[str], removed: Set[int]) -> None:
        """Bring nodes to fewer channels, in place.

        Args:
            gm: the graph, or a copy with other changes elsewhere.
            names: names of the nodes: all that make, pass on or read the channels.
            removed: ids of the channels, as for `without`.
        """
        gone = np.zeros(self.count, bool)
        gone[list(removed)] = True

        def kept(layout: Layout) -> Mask:
            """Return which places of a layout are left."""
            return np.logical_not(gone[layout.ids])

        nodes = nodes_by_name(gm)
        for node in (nodes[name] for name in names):
            sources = node.all_input_nodes
            read, made = self.made.get(sources[0].name) if sources else None, self.made.get(node.name)
            narrow_node(gm, node, read, made, kept)
            describe_without(node, made, kept)


def channel_ties(gm: fx.GraphModule) -> ChannelTies:
    """Return the channels of a captured graph, which is not changed.

    Every operator runs about 2 log2(channels) times on random inputs.
    """
    inputs, tracer = _example_inputs(gm), Tracer(gm)
    with torch.no_grad():
        tracer.run(*inputs)
        count, labels = tracer.groups()
        made = {name: _relabelled(found, labels) for name, found in tracer.made.items()}
        fixed = dict[int, str]()
        for ids, reason in tracer.fixed:
            for label in map(int, labels[ids]):
                fixed.setdefault(label, reason)
        Trial(gm, made, fixed, count).run(*inputs)
    return ChannelTies(made, fixed, count)


def _example_inputs(gm: fx.GraphModule) -> list[Tensor]:
    """Return random inputs of the shapes that a graph was captured with, with its weights' precision and device."""
    generator = torch.Generator().manual_seed(0)
    metas = [node.meta["tensor_meta"] for node in gm.graph.find_nodes(op="placeholder")]
    inputs = [torch.randn(meta.shape, generator=generator).to(meta.dtype) for meta in metas]
    weight = next((each for each in gm.parameters() if each.is_floating_point()), None)
    if weight is None:
        return inputs
    return [each.to(weight) if each.is_floating_point() else each.to(weight.device) for each in inputs]


def _relabelled(found: Layouts, labels: Ids) -> Layouts:
    if isinstance(found, tuple):
        return tuple(_relabelled(part, labels) for part in found)
    return None if found is None else Layout(found.axis, labels[found.ids])
