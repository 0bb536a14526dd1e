"""Chains of cuts inside a region whose branches are tangled, by dominance alone.

Between two tensors a and b stands a closed part when nothing in it reads anything but a and itself, and nothing
outside reads anything of it but b. In terms of dominance, where the exit is what all data runs into:

- a dominates b, and b post-dominates everything strictly between them;
- a closed part from a to b is a chain of closed parts, from each node's immediate dominator to the node, so that
  only these, one a node, need to be looked for;
- two of them in a row, a to b and b to c, are closed together when c is b's immediate post-dominator: then nobody
  outside reads b.

Source: Johnson, Pearson and Pingali, The Program Structure Tree, PLDI 1994, with tensors for edges.
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
        flow: an acyclic graph whose every node lies on a path from `entry` to `exit_`; it is not changed.
        entry: may be the first cut of chains.
        exit_: is no cut of any chain.

    Example:
        >>> ladder = nx.DiGraph(["ab", "bc", "cd", "bd", "de", "df", "ef", "af"])
        >>> [chain.cuts for chain in cut_chains(ladder, "a", "f")]
        [('a', 'b', 'd'), ('d', 'e')]

    Notes:
        Complexity: close to linear. The walk behind a join ends at the first tensor that is also read outside,
        and steps over closed parts that are known.
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
        closed: for each node at the end of a closed part, in topological order: what stands inside, without what
            stands inside closed parts in there.
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
        """Return what stands between a node and its dominator, or None where that is also read outside.

        Latest first, so that a tensor's immediate post-dominator, which comes after it, is known to stand inside
        by the time that the tensor is met.
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
