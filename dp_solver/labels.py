"""The recursion itself: labels pushed forward along a chain.

For each cut and each state in which a plan may stand there, the *labels* are the partial plans from cut 0 that are
worth going on with. A label is a point (cost, loss, changes) and knows how it arose: which item it ends with and
which label it extends. With F(i, a) for the labels at cut i in state a,

    F(0, start) = {(0, 0, 0)}
    F(j, b)     = prune { label + item : span (i, j], item in it with before = a and after = b, label in F(i, a) }

At the last cut all accepted states count as one, so that what is left there is the answer. A `Parallel` is first turned
into the pruned sums of one point from each branch's answer, which then extend labels as if each were a choice.

Which labels are worth going on with is the caller's to say (`Prune`): those that no other beats give the frontier,
those that fewer than k others beat give the k best plans, and on a grid of costs there are few.

A label's number is found, not stored: candidates stand in blocks, one for each pair of labels and items that leave the
same cut in the same state, and `kept` holds places among them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from dp_solver.pareto import FloatArray, IntArray
from dp_solver.problem import Chain, Choice, Parallel, State

__all__ = ["Keys", "Prune", "Solved", "solve_labels"]

Keys: TypeAlias = tuple[Hashable, ...]
Prune: TypeAlias = Callable[[FloatArray], IntArray]
Place: TypeAlias = tuple[int, State]  # a cut and a state there
_ANY_END = object()  # the state of the last cut: all that are accepted count as one


class Solved(NamedTuple):
    """The labels of a chain at its last cut, with all that is needed to read their plans.

    Attributes:
        points: (3, n) costs, losses and changes of the plans, as the pruning ordered them.
        tables: the labels of every place that plans reach, those of the last cut last.
    """

    points: FloatArray
    tables: Sequence[_Labels]

    def plan(self, k: int) -> Keys:
        """Returns the keys of plan `k` in order along the chain, those of a `Parallel` branch by branch.

        Complexity: O(items log(items into a cut)).
        """
        steps = reversed(list(self._walk_back(k)))
        return tuple(key for item, point in steps for key in _keys(item, point))

    def _walk_back(self, k: int) -> Iterator[tuple[Choice | _Joined, int]]:
        """Yields the items of one plan, last first, each with the number of its point."""
        labels, k = self.tables[-1], range(len(self.tables[-1].kept))[k]
        while labels.blocks:
            candidate = int(labels.kept[k])
            place = int(np.searchsorted(labels.ends, candidate, side="right"))
            block = labels.blocks[place]
            first = int(labels.ends[place - 1]) if place else 0
            labels = self.tables[block.table]
            step, k = divmod(candidate - first, len(labels.kept))
            yield block.steps[step]


class _Labels(NamedTuple):
    """The partial plans that are gone on with from one place; n of them."""

    kept: IntArray  # (n,), places among the candidates, which stand block after block
    ends: IntArray  # (blocks,), the place after each block's last candidate
    blocks: Sequence[_Block]


class _Block(NamedTuple):
    """What leaves one place for one other: each of p steps extends each label, all labels of the first step first."""

    table: int  # whose labels are extended
    points: FloatArray  # (3, p)
    steps: Sequence[tuple[Choice | _Joined, int]]  # the item, and the number of its point


class _Joined(NamedTuple):
    """The pruned sums over the b branches of a parallel region; n points."""

    points: FloatArray  # (3, n)
    picks: IntArray  # (n, b), the number of a plan of each branch
    branches: tuple[Solved, ...]


def solve_labels(chain: Chain, prune: Prune) -> Solved:
    """Returns the labels of `chain` at its last cut.

    Args:
        chain: the problem, not modified.
        prune: (3, n) points -> the indices of those to keep, called once at each place that plans reach and once for
            each branch of a `Parallel`.

    Example:
        >>> from dp_solver.pareto import nondominated
        >>> chain = Chain(1, {(0, 1): [Choice("keep", 2.0, 0.0), Choice("merge", 1.0, 0.5), Choice("slow", 3.0, 0.1)]})
        >>> solved = solve_labels(chain, nondominated)
        >>> solved.points[:2].tolist(), solved.plan(0)
        ([[1.0, 2.0], [0.5, 0.0]], ('merge',))
    """
    arrivals = _arrivals(chain)
    last_use = {start: place for place, starts in arrivals.items() for start in starts}
    numbers: dict[Place, int] = {(0, chain.start): 0}
    points = np.zeros((3, 1))
    tables, live = [_origin()], {0: points}  # `live`: the points of each table that are still to be extended
    for place, starts in arrivals.items():
        reached = {start: items for start, items in starts.items() if start in numbers}
        if reached:
            blocks = [_block(numbers[start], items, prune) for start, items in reached.items()]
            labels, points = _extend(live, blocks, prune)
            numbers[place] = len(tables)
            live[len(tables)] = points
            tables.append(labels)
        for start in reached:
            if last_use[start] == place:
                del live[numbers[start]]
    return Solved(points, tables)


def _origin() -> _Labels:
    return _Labels(np.zeros(1, dtype=np.intp), np.zeros(0, dtype=np.intp), ())


def _arrivals(chain: Chain) -> dict[Place, dict[Place, list[Choice | Parallel]]]:
    """Returns the items by the place where they end and the place where they start, in the order that settles ties."""
    arrivals: dict[Place, dict[Place, list[Choice | Parallel]]] = {}
    for (start, end), items in chain.spans.items():
        for item in items:
            if chain.accepts(end, item.after):
                place = (end, item.after if end < chain.length else _ANY_END)
                arrivals.setdefault(place, {}).setdefault((start, item.before), []).append(item)
    return arrivals


def _block(table: int, items: Sequence[Choice | Parallel], prune: Prune) -> _Block:
    if len(items) == 1 and isinstance(items[0], Choice):  # most blocks of a plain chain
        return _Block(table, _point(items[0]), ((items[0], 0),))
    parts, steps = list[FloatArray](), list[tuple[Choice | _Joined, int]]()
    for item in items:
        step = item if isinstance(item, Choice) else _join(item, prune)
        points = _point(step) if isinstance(step, Choice) else step.points
        parts.append(points)
        steps.extend((step, number) for number in range(points.shape[1]))
    return _Block(table, np.concatenate(parts, axis=1), steps)


def _point(choice: Choice) -> FloatArray:
    return np.array(((choice.cost,), (choice.loss,), (choice.key is not None,)), dtype=np.float64)


def _join(parallel: Parallel, prune: Prune) -> _Joined:
    """Returns the sums over the branches, pruned after each branch."""
    branches = tuple(solve_labels(branch, prune) for branch in parallel.branches)
    points, picks = np.array([[parallel.join_cost], [0.0], [0.0]]), np.zeros((1, 0), dtype=np.intp)
    for branch in branches:
        sums = _sums(points, branch.points)
        kept = prune(sums)
        before, pick = np.divmod(kept, branch.points.shape[1])
        points, picks = sums[:, kept], np.column_stack((picks[before], pick))
    return _Joined(points, picks, branches)


def _extend(live: Mapping[int, FloatArray], blocks: Sequence[_Block], prune: Prune) -> tuple[_Labels, FloatArray]:
    """Returns the labels of the next place and their points: each step extends each label, the best stay."""
    parts = [_sums(block.points, live[block.table]) for block in blocks]
    candidates = np.concatenate(parts, axis=1)
    kept = prune(candidates)
    ends = np.cumsum([part.shape[1] for part in parts])
    return _Labels(kept, ends, blocks), candidates[:, kept]


def _sums(first: FloatArray, second: FloatArray) -> FloatArray:
    """Returns (3, n * m), each of n points added to each of m, all of the second for the first of the first."""
    if first.shape[1] == 1:
        return second + first
    return (first[:, :, np.newaxis] + second[:, np.newaxis, :]).reshape(3, -1)


def _keys(item: Choice | _Joined, point: int) -> Keys:
    if isinstance(item, Choice):
        return (item.key,)
    picks = zip(item.branches, item.picks[point].tolist(), strict=True)
    return tuple(key for branch, pick in picks for key in branch.plan(pick))
