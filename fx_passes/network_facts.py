"""Facts about a captured graph as a whole, each computed once: its structure, workload and channels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

import networkx as nx
from torch import fx

from fx_passes.channels import ChannelTies, channel_ties
from fx_passes.facts import GraphFacts
from fx_passes.inner_channels import InnerChannels, InnerFamily, families_apart, inner_channels
from fx_passes.norm_statistics import ChannelMoments
from fx_passes.structure import Level, require_captured, structure_tree
from fx_passes.workload import Workload

__all__ = ["NetworkFacts"]

_UNKNOWN: Mapping[str, ChannelMoments] = MappingProxyType({})

_SEVERAL_INPUTS = "the smallest part around them has several inputs of the network"


class NetworkFacts(GraphFacts):
    """A captured graph with its structure, workload and channels; the graph must not change any more.

    Args:
        gm: what `capture` returned, or a graph made from it.
        statistics: moments of channels on the training data, by node name, as `norm_statistics` finds them.

    Raises:
        PlanError: `gm` is no captured graph.
    """

    def __init__(self, gm: fx.GraphModule, statistics: Mapping[str, ChannelMoments] = _UNKNOWN) -> None:
        require_captured(gm)
        super().__init__(gm)
        self.statistics = statistics

    @cached_property
    def tree(self) -> Level:
        """The program structure tree."""
        return structure_tree(self)

    @cached_property
    def post_dominators(self) -> dict[str, str]:
        """The next node that all paths to the output pass, by name; nodes without such paths are left out."""
        output = next(reversed(self.nodes))
        back = nx.DiGraph((name, source.name) for name, node in self.nodes.items() for source in node.all_input_nodes)
        return {name: below for name, below in nx.immediate_dominators(back, output).items() if name != output}

    @cached_property
    def workload(self) -> Workload:
        """The operators, as a runtime runs them."""
        return Workload(self)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """All levels of the tree, outermost first."""
        return tuple(self.tree.levels())

    @cached_property
    def channels(self) -> ChannelTies:
        """The channels of each tensor, and which of them can only be removed together."""
        return channel_ties(self.gm)

    @cached_property
    def inner_channels(self) -> dict[tuple[str, str], InnerChannels]:
        """The channels that can be removed inside a span, by the names of its entry and exit."""
        found = inner_channels(self._families_apart[0], self.levels)
        return {(each.level.cuts[each.start], each.level.cuts[each.stop]): each for each in found}

    @cached_property
    def staying_channels(self) -> dict[int, str]:
        """Why channels cannot be removed inside any span, as a clause, by id."""
        families, staying = self._families_apart
        placed = {family.tensor for inner in self.inner_channels.values() for family in inner.families}
        apart = (family for family in families if family.tensor not in placed)
        return staying | {label: _SEVERAL_INPUTS for family in apart for label in family.ids if label >= 0}

    @cached_property
    def _families_apart(self) -> tuple[list[InnerFamily], dict[int, str]]:
        return families_apart(self, self.channels)
