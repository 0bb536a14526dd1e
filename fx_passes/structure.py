"""The program structure tree of a graph: chains of cuts, and the parallel regions between them.

A cut is a tensor through which all data of its level passes (it dominates the level's exit). Between two cuts
stands one *unit*: an operator with the normalisation and activation that follow it, or a region of parallel
branches with the node that joins them. Each branch is a level of its own. Tangled branches
have no single exit, and make the region irreducible. Its longest chains of cuts are levels too, and may hold regions
with further levels.

Source: Johnson, Pearson and Pingali, The Program Structure Tree, PLDI 1994; dominators by networkx.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import networkx as nx
from torch import fx

from depthcomp_errors import PlanError
from fx_passes.exclusion import exclusion
from fx_passes.facts import GraphFacts
from fx_passes.operators import NORMS, Role
from fx_passes.regions import cut_chains
from fx_passes.spatial_layers import AVG_POOLS, CONVOLUTIONS

__all__ = ["INPUTS", "Level", "Unit", "require_captured", "structure_tree"]

INPUTS = "<inputs>"
"""The cut before the inputs of a network that has several: no tensor, so no span of one entry begins there."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The part of a graph between two neighbouring cuts.

    Attributes:
        nodes: names of the nodes in the chain from the first operator or join to the cut, in order.
        region: names of all nodes that `nodes[0]` joins, in order; empty for a plain operator.
        branches: the levels that run in parallel inside the region.
        tangled: whether the branches are chains of an irreducible region. One may begin where another ends or
            branches off, and some nodes may be in none of them.
    """

    nodes: tuple[str, ...]
    region: tuple[str, ...] = ()
    branches: tuple[Level, ...] = ()
    tangled: bool = False

    @property
    def exit(self) -> str:
        """Name of the node whose tensor is the cut after this unit."""
        return self.nodes[-1]


@dataclass(frozen=True, slots=True)
class Level:
    """A chain of cuts: cut 0 is the tensor at `entry`, cut k is the exit of unit k - 1."""

    entry: str
    units: tuple[Unit, ...]

    @property
    def cuts(self) -> tuple[str, ...]:
        """Names of the nodes whose tensors are the cuts 0..L."""
        return (self.entry, *(unit.exit for unit in self.units))

    def levels(self) -> Iterator[Level]:
        """Yield this level and all levels nested in it, outermost first."""
        yield self
        for unit in self.units:
            for branch in unit.branches:
                yield from branch.levels()


def structure_tree(gm: fx.GraphModule | GraphFacts) -> Level:
    """Return the structure of a captured graph; the graph is not changed.

    Nodes that no input reaches (fetched weights) or that reach no output are left out.
    """
    graph = gm if isinstance(gm, GraphFacts) else _facts(gm)
    return _tree(graph, _data_flow(graph.gm))


def _facts(gm: fx.GraphModule) -> GraphFacts:
    require_captured(gm)
    return GraphFacts(gm)


def _tree(graph: GraphFacts, flow: nx.DiGraph[str]) -> Level:
    gm = graph.gm
    output = next(iter(gm.graph.find_nodes(op="output"))).name
    entries = [node.name for node in gm.graph.find_nodes(op="placeholder") if node.name in flow]
    entry = entries[0] if len(entries) == 1 else INPUTS
    builder = _Builder(graph)
    return builder.level(flow.subgraph(_between(flow, entry, output)), entry, output)


def require_captured(gm: object) -> None:
    """Raise a PlanError unless `gm` is a captured graph or made from one."""
    if not isinstance(gm, fx.GraphModule):
        raise PlanError(f"a captured graph is needed, and a {type(gm).__name__} was given; pass what capture returned")
    if not any("tensor_meta" in node.meta for node in gm.graph.nodes):
        raise PlanError("the graph holds no shapes; pass what capture returned")


def _data_flow(gm: fx.GraphModule) -> nx.DiGraph[str]:
    flow: nx.DiGraph[str] = nx.DiGraph()
    for node in gm.graph.nodes:
        flow.add_edges_from((source.name, node.name) for source in node.all_input_nodes)
    inputs = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    flow.add_edges_from((INPUTS, name) for name in inputs)
    output = next(iter(gm.graph.find_nodes(op="output"))).name
    alive = _between(flow, INPUTS, output)
    return nx.DiGraph(flow.subgraph(alive))


def _between(flow: nx.DiGraph[str], entry: str, exit_: str) -> set[str]:
    """Return the nodes on a path from `entry` to `exit_`, both ends included."""
    after: set[str] = nx.descendants(flow, entry) | {entry}
    before: set[str] = nx.ancestors(flow, exit_) | {exit_}
    return after & before


class _Builder:
    """Builds levels out of sub-graphs; holds what all of them share."""

    def __init__(self, graph: GraphFacts) -> None:
        self._graph = graph
        self._order = {INPUTS: -1, **graph.order}

    def level(self, flow: nx.DiGraph[str], entry: str, exit_: str) -> Level:
        """Return the level between two nodes of a graph in which every node lies on a path between them."""
        parents = nx.immediate_dominators(flow, entry)
        steps = [exit_]
        while steps[-1] != entry:
            steps.append(parents[steps[-1]])
        steps.reverse()
        inner = _split(flow, steps, self._order)
        units: list[Unit] = []
        for before, after, nodes in zip(steps, steps[1:], inner, strict=False):
            branches, tangled = self._region(flow, before, after, nodes)
            if units and not nodes and self._belongs(units[-1], after):
                units[-1] = replace(units[-1], nodes=(*units[-1].nodes, after))
            else:
                region = tuple(sorted(nodes, key=self._order.__getitem__))
                units.append(Unit((after,), region, branches, tangled))
        return Level(entry, tuple(units))

    def _region(self, flow: nx.DiGraph[str], entry: str, exit_: str, inner: set[str]) -> tuple[tuple[Level, ...], bool]:
        """Return the branches between two neighbouring cuts, and whether they are tangled."""
        if not inner:
            return (), False
        branches: list[Level] = [Level(entry, ())] if flow.has_edge(entry, exit_) else []
        tangled = False
        for part in self._components(flow, inner):
            ends = [name for name in part if flow.has_edge(name, exit_)]
            if len(ends) == 1:
                branches.append(self.level(flow.subgraph(part | {entry}), entry, ends[0]))
            else:
                tangled = True
                branches.extend(self._chains(flow.subgraph(part | {entry, exit_}), entry, exit_))
        return tuple(branches), tangled

    def _components(self, flow: nx.DiGraph[str], inner: set[str]) -> list[set[str]]:
        parts = [set(part) for part in nx.weakly_connected_components(flow.subgraph(inner))]
        return sorted(parts, key=lambda part: min(self._order[name] for name in part))

    def _chains(self, flow: nx.DiGraph[str], entry: str, exit_: str) -> Iterator[Level]:
        """Yield the chains of cuts of a tangled part, in the program's order."""
        chains = cut_chains(flow, entry, exit_)
        for chain in sorted(chains, key=lambda chain: self._order[chain.cuts[1]]):
            yield self.level(flow.subgraph(chain.nodes), chain.cuts[0], chain.cuts[-1])

    def _belongs(self, unit: Unit, name: str) -> bool:
        """Say whether a node goes with the unit before it: norms and one activation follow an operator."""
        if self._stays(name) != self._stays(unit.exit):
            return False
        roles = [self._role(node) for node in unit.nodes]
        mine = self._role(name)
        if mine is Role.PASS:
            return True
        if all(self._pads(node) for node in unit.nodes):
            return mine is Role.AFFINE
        if mine is Role.ACTIVATION:
            return Role.ACTIVATION not in roles and Role.BARRIER not in roles
        return self._is_norm(name) and Role.ACTIVATION not in roles and Role.BARRIER not in roles

    def _stays(self, name: str) -> bool:
        return name in self._graph.nodes and bool(exclusion(self._graph.nodes[name]))

    def _role(self, name: str) -> Role:
        return self._graph.roles[name]

    def _is_norm(self, name: str) -> bool:
        return isinstance(self._graph.layer(name), NORMS)

    def _pads(self, name: str) -> bool:
        module = self._graph.layer(name)
        learned = isinstance(module, (*CONVOLUTIONS, *AVG_POOLS, *NORMS))
        return self._role(name) is Role.AFFINE and not learned


def _split(flow: nx.DiGraph[str], steps: list[str], order: dict[str, int]) -> list[set[str]]:
    """Return, for each pair of neighbouring cuts, the nodes strictly between them."""
    positions = [order[name] for name in steps]
    inner: list[set[str]] = [set() for _ in steps[1:]]
    step = 0
    for name in sorted(set(flow) - set(steps), key=order.__getitem__):
        while order[name] > positions[step + 1]:
            step += 1
        inner[step].add(name)
    return inner
