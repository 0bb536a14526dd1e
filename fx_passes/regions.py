"""Chains of cuts inside a region with tangled branches, found by dominance alone.

A part between two tensors a and b is closed if it reads only a and itself, and the rest of the graph reads only b of
it. In terms of dominance, with one exit that all data reaches:

- a dominates b, and b post-dominates everything strictly between them;
- a closed part from a to b is a chain of closed parts, each from a node's immediate dominator to the node, so one
  candidate a node is enough;
- two closed parts in a row, a to b and b to c, form one closed part if c is b's immediate post-dominator, because then
  nothing outside reads b.

Source: Johnson, Pearson and Pingali, The Program Structure Tree, PLDI 1994, here with tensors as edges.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import networkx as nx

__all__ = ["CutChain", "cut_chains"]


@dataclass(frozen=True, slots=True)
class CutChain:
    """Cuts in a row with a closed part between any two of them.

    Attributes:
        cuts: names of the cuts; others may read the first and the last.
        nodes: names of all nodes from the first cut to the last, both included.
    """

    cuts: tuple[str, ...]
    nodes: frozenset[str]


def cut_chains(flow: nx.DiGraph[str], entry: str, exit_: str) -> list[CutChain]:
    """Return the longest chains of cuts between two nodes, without those inside a part of another chain.

    Every other closed part of the graph lies inside one of them. They share no nodes but first cuts.

    Args:
        flow: an acyclic graph in which every node lies on a path from `entry` to `exit_`; it is not changed.
        entry: the first node, which may be the first cut of chains.
        exit_: the last node, which is no cut of any chain.

    Example:
        >>> ladder = nx.DiGraph(["ab", "bc", "cd", "bd", "de", "df", "ef", "af"])
        >>> [chain.cuts for chain in cut_chains(ladder, "a", "f")]
        [('a', 'b', 'd'), ('d', 'e')]

    Notes:
        Complexity: close to linear. The walk back from a join ends at the first tensor that is also read outside,
        and steps over known closed parts.
    """
    finder = _Finder(flow, entry, exit_)
    hidden = {name for inner in finder.closed.values() for name in inner}
    chains: dict[str, list[str]] = {}  # by last cut
    for name in finder.closed:
        if name not in hidden:
            source = finder.above[name]
            longer = source in chains and finder.below[source] == name
            chains[name] = [*chains.pop(source), name] if longer else [source, name]
    return [CutChain(tuple(cuts), frozenset(finder.within(cuts))) for cuts in chains.values()]


class _Finder:
    """Finds, for each node, whether the part from its immediate dominator to it is closed.

    Attributes:
        above: each node's immediate dominator.
        below: each node's immediate post-dominator.
        closed: for each node that ends a closed part, in topological order: the nodes inside, without the insides of
            nested closed parts.
    """

    def __init__(self, flow: nx.DiGraph[str], entry: str, exit_: str) -> None:
        self.above: dict[str, str] = nx.immediate_dominators(flow, entry)
        self.below: dict[str, str] = nx.immediate_dominators(flow.reverse(copy=False), exit_)
        self.closed: dict[str, set[str]] = {}
        self._sources = flow.pred
        order = list(nx.topological_sort(flow))
        self._position = {name: position for position, name in enumerate(order)}
        for name in order:
            inner = None if name in (entry, exit_) else self._inner(name)
            if inner is not None:
                self.closed[name] = inner

    def within(self, cuts: list[str]) -> Iterator[str]:
        """Yield all nodes from the first cut to the last, both included."""
        pending = list(cuts)
        while pending:
            name = pending.pop()
            yield name
            if name != cuts[0]:
                pending.extend(self.closed.get(name, ()))

    def _inner(self, name: str) -> set[str] | None:
        """Return the nodes between a node and its dominator, or None where one of them is also read outside.

        The walk takes the latest node first. A tensor's immediate post-dominator comes after the tensor, so the walk
        already knows whether it is inside.
        """
        top, inner = self.above[name], set[str]()
        pending = self._latest_first(self._sources[name])
        while pending:
            source = heapq.heappop(pending)[1]
            if source == top or source in inner:
                continue
            if self.below[source] != name and self.below[source] not in inner:
                return None
            inner.add(source)
            read = [self.above[source]] if source in self.closed else self._sources[source]
            for item in self._latest_first(read):
                heapq.heappush(pending, item)
        return inner

    def _latest_first(self, names: Iterable[str]) -> list[tuple[int, str]]:
        """Return a heap whose first item holds the name that comes last in the graph."""
        return sorted((-self._position[name], name) for name in names)
