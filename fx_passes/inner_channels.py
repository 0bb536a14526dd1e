"""Inner channels: channels that live inside a span, between layers that make them and layers that read them.

They can be removed without a change of the tensors at the span's cuts. Examples: the expansion of an inverted residual,
the middle of a bottleneck, the hidden tensors of a plain chain, the inputs of a concatenation whose readers are inside.
Channels that a residual sum carries past their own readers belong to a whole stage, and are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
from torch import fx

from fx_passes.channels import ChannelFamily, ChannelTies
from fx_passes.channels.layout import Layout, Layouts, layouts_in
from fx_passes.channels.makers import maker_of
from fx_passes.facts import GraphFacts
from fx_passes.operators import Role, called_module
from fx_passes.slot_layers import can_be_solved, operator_at
from fx_passes.structure import INPUTS, Level

__all__ = ["InnerChannels", "InnerFamily", "families_apart", "inner_channels", "read_power"]

_Hull = tuple[int, int]  # numbers of the cuts around a family


@dataclass(frozen=True, slots=True)
class InnerFamily:
    """Channels that occur in the same tensors, all inside one span.

    Attributes:
        tensor: name of the last node whose tensor holds these channels and no others that can be removed.
        ids: the id of each channel of that tensor, -1 for those that stay.
        nodes: names of the nodes whose results hold them.
        readers: names of the nodes that read them and make other channels.
    """

    tensor: str
    ids: tuple[int, ...]
    nodes: tuple[str, ...]
    readers: tuple[str, ...]

    @property
    def channels(self) -> int:
        """Number of channels of the tensor that can be removed."""
        return sum(label >= 0 for label in self.ids)

    @property
    def step(self) -> int:
        """Number of channels of the tensor that can only be removed together."""
        return self.channels // len(set(self.ids) - {-1})


@dataclass(frozen=True, slots=True)
class InnerChannels:
    """The channels that live inside one span.

    Attributes:
        level: the level of the span.
        start: number of the cut that it reads.
        stop: number of the cut that it produces.
        families: the channels, in the graph's order.
    """

    level: Level
    start: int
    stop: int
    families: tuple[InnerFamily, ...]


def inner_channels(families: Iterable[InnerFamily], levels: Iterable[Level]) -> list[InnerChannels]:
    """Return the channels inside the smallest span around each family, and inside rows of such spans.

    A row's spans overlap, one after another, so that no plan can hold them side by side.

    Args:
        families: the channels that can be removed inside spans of a graph.
        levels: the levels of the graph's structure, outermost first.
    """
    waiting, found = list(families), list[InnerChannels]()
    for level in reversed(list(levels)):  # inner levels first
        units = {name: number for number, unit in enumerate(level.units) for name in (*unit.region, *unit.nodes)}
        own = [(hull, family) for family in waiting if (hull := _hull(level, units, family)) is not None]
        waiting = [family for family in waiting if all(family is not one for _, one in own)]
        for start, stop in _rows({hull for hull, _ in own}):
            inside = tuple(family for (one, other), family in own if start <= one and other <= stop)
            found.append(InnerChannels(level, start, stop, inside))
    return found


def families_apart(graph: GraphFacts, ties: ChannelTies) -> tuple[list[InnerFamily], dict[int, str]]:
    """Return the channels that can be removed inside spans, and why all others stay, as a clause, by id."""
    flow = nx.DiGraph((source.name, name) for name, node in graph.nodes.items() for source in node.all_input_nodes)
    made = [_family(graph, ties, each) for each in ties.families]
    several = Counter(family.tensor for family in made if family is not None)
    families, staying = list[InnerFamily](), dict(ties.fixed)
    for each, family in zip(ties.families, made, strict=True):
        if len(each.ids) == 1:
            staying |= dict.fromkeys(each.ids, "there is only one, or all of them go together")
        elif family is None or several[family.tensor] > 1:
            staying |= dict.fromkeys(each.ids, "their tensors hold other channels, too, or hold them unevenly")
        elif _is_stream(graph, flow, family):
            staying |= dict.fromkeys(each.ids, "a residual sum carries them past the layers that read them")
        else:
            families.append(family)
    return families, staying


def read_power(graph: GraphFacts, ties: ChannelTies, family: InnerFamily) -> dict[int, float]:
    """Return the sum of the squared weights of the layers that read each channel of a family, by id."""
    power = dict[int, float]()
    for node in (graph.nodes[name] for name in family.readers):
        read = ties.made[node.all_input_nodes[0].name]
        if can_be_solved(graph.gm, node) and isinstance(read, Layout):
            columns = operator_at(graph.gm, node).weight.square().sum((0, 2, 3))
            for label, value in zip(read.ids.tolist(), columns.tolist(), strict=True):
                power[label] = power.get(label, 0.0) + value
    return power


def _family(graph: GraphFacts, ties: ChannelTies, family: ChannelFamily) -> InnerFamily | None:
    """Return the tensor, and the readers, of channels; None where each tensor holds others, or uneven numbers."""
    own, users = set(family.ids), dict.fromkeys(user for name in family.nodes for user in graph.nodes[name].users)
    readers = tuple(user.name for user in users if user.name not in family.nodes or _mixes(graph, user))
    counts = {name: _counts(ties.made[name], own) for name in family.nodes}
    if any(len(set(several.values())) > 1 for several in counts.values()):
        return None
    for name in reversed(family.nodes):
        layout = ties.made[name]
        if isinstance(layout, Layout) and all(label in own or label in ties.fixed for label in layout.ids.tolist()):
            ids = tuple(label if label in own else -1 for label in layout.ids.tolist())
            return InnerFamily(name, ids, family.nodes, readers)
    return None


def _counts(layouts: Layouts, labels: Collection[int]) -> Counter[int]:
    """Return how often each id occurs in the tensors of a node."""
    return Counter(label for layout in layouts_in([layouts]) for label in layout.ids.tolist() if label in labels)


def _mixes(graph: GraphFacts, node: fx.Node) -> bool:
    """Say whether a layer makes each channel of all that it reads."""
    layer = called_module(graph.gm, node)
    maker = maker_of(layer)
    return maker is not None and maker.groups(layer) == 1


def _is_stream(graph: GraphFacts, flow: nx.DiGraph[str], family: InnerFamily) -> bool:
    """Say whether a sum holds the channels that depends on a reader of them."""
    sums = [name for name in family.nodes if graph.roles[name] is Role.ADD]
    behind = {below for reader in family.readers for below in nx.descendants(flow, reader)} if sums else set[str]()
    return not behind.isdisjoint(sums)


def _hull(level: Level, units: Mapping[str, int], family: InnerFamily) -> _Hull | None:
    """Return the cuts of a level around a family and its readers.

    None where some of them are in none of its units, or where the first cut stands for several inputs.
    """
    numbers = [units.get(name, -1) for name in (*family.nodes, *family.readers)]
    first = min(numbers)
    return (first, max(numbers) + 1) if first >= 0 and level.cuts[first] != INPUTS else None


def _rows(hulls: Collection[_Hull]) -> Iterator[_Hull]:
    """Yield the cuts around one hull, or around several that overlap."""
    for start in sorted({start for start, _ in hulls}):
        for stop in sorted({stop for _, stop in hulls}):
            if _overlap(sorted((one, other) for one, other in hulls if start <= one and other <= stop), start, stop):
                yield start, stop


def _overlap(hulls: Sequence[_Hull], start: int, stop: int) -> bool:
    """Say whether hulls, sorted, cover all units between two cuts, each beginning before the ones before it end."""
    reached = start + 1
    for one, other in hulls:
        if one >= reached:
            return False
        reached = max(reached, other)
    return bool(hulls) and reached == stop
