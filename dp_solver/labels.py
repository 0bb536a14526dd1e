"""The recursion over labels, which are pushed forward along a chain.

The *labels* of a cut and a state are the partial plans from cut 0 to there that are worth extending. A label is a
point (cost, loss, changes). It knows the item that it ends with and the label that it extends. With F(i, a) for the
labels at cut i in state a,

    F(0, start) = {(0, 0, 0)}
    F(j, b)     = prune { label + item : span (i, j], item in it with before = a and after = b, label in F(i, a) }

At the last cut all accepted states count as one, and the labels there are the answer. A `Parallel` first becomes the
pruned sums of one point from each branch's answer; each sum then extends labels like a choice. A `Chain` or `Parallel`
object that stands in several places is solved once.

The caller decides which labels are worth extending (`Prune`). Labels that no other label beats give the frontier.
Labels that fewer than k others beat give the k best plans. A grid of costs leaves few labels.

The origin of a label follows from its place among the candidates. Candidates are ordered by step, and each step extends
all labels of its start in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from depthcomp_errors import ProblemError
from dp_solver.pareto import FloatArray, IntArray
from dp_solver.problem import Chain, Choice, Parallel, State, require_chain

__all__ = ["Keys", "Prune", "Solved", "solve_labels"]

Keys: TypeAlias = tuple[Hashable, ...]
Prune: TypeAlias = Callable[[FloatArray], IntArray]
Place: TypeAlias = tuple[int, State]  # a cut and a state there
_ANY_END = object()  # the state of the last cut: all that are accepted count as one


class Solved(NamedTuple):
    """The labels of a chain at its last cut, with the tables from which their plans are read.

    Attributes:
        points: (3, n) costs, losses and changes of the plans, as the pruning ordered them.
        tables: the labels of every place that plans reach, the last cut's labels last.
    """

    points: FloatArray
    tables: Sequence[_Labels]

    @property
    def size(self) -> int:
        """Number of labels that were kept, without the labels inside `Parallel` items."""
        return sum(len(labels.kept) for labels in self.tables)

    def plan(self, k: int) -> Keys:
        """Return the keys of plan `k` in order along the chain, those of a `Parallel` branch by branch.

        Complexity: O(items log(items into a cut)).
        """
        steps = reversed(list(self._walk_back(k)))
        return tuple(key for step in steps for key in _keys(step))

    def _walk_back(self, k: int) -> Iterator[_Step]:
        """Yield the steps of one plan, last first."""
        labels, k = self.tables[-1], range(len(self.tables[-1].kept))[k]
        while labels.steps:
            candidate = int(labels.kept[k])
            number = int(np.searchsorted(labels.ends, candidate, side="right"))
            step = labels.steps[number]
            k = candidate - (int(labels.ends[number - 1]) if number else 0)
            labels = self.tables[step.table]
            yield step


class _Labels(NamedTuple):
    """The n labels that are kept at one place."""

    kept: IntArray  # (n,), places among the candidates
    ends: IntArray  # (steps,), the place after each step's last candidate
    steps: Sequence[_Step]


class _Step(NamedTuple):
    """A choice, or one point of a parallel region, that starts at the place of a table."""

    table: int
    item: Choice | _Joined
    point: int  # 0 for a choice


class _Joined(NamedTuple):
    """The pruned sums over the b branches of a parallel region; n points."""

    points: FloatArray  # (3, n)
    picks: IntArray  # (n, b), the number of a plan of each branch
    branches: tuple[Solved, ...]


def solve_labels(chain: Chain, prune: Prune) -> Solved:
    """Return the labels of `chain` at its last cut.

    Args:
        chain: the problem, not modified.
        prune: maps (3, n) points to the indices of the points to keep. It is called once at each place that plans
            reach and once for each branch of a `Parallel`, however often that chain or region is in the problem.

    Raises:
        ProblemError: the problem is no Chain, or regions lie within regions too deep for Python's stack.

    Example:
        >>> from dp_solver.pareto import nondominated
        >>> chain = Chain(1, {(0, 1): [Choice("keep", 2.0, 0.0), Choice("merge", 1.0, 0.5), Choice("slow", 3.0, 0.1)]})
        >>> solved = solve_labels(chain, nondominated)
        >>> solved.points[:2].tolist(), solved.plan(0)
        ([[1.0, 2.0], [0.5, 0.0]], ('merge',))
    """
    require_chain(chain)
    try:
        return _Solver(prune).solve(chain)
    except RecursionError as error:
        raise ProblemError(
            "the problem has too many regions within regions for Python's stack; write a Parallel of one branch as "
            "items of the chain around it, or raise the limit with sys.setrecursionlimit"
        ) from error


class _Solver:
    """Solves a problem and each chain within it once.

    Results are cached by identity, since equal chains may differ in their plans: 1 equals True as a key. The problem
    holds all its chains, so no identity passes to another object meanwhile.
    """

    def __init__(self, prune: Prune) -> None:
        self._prune = prune
        self._solved: dict[int, Solved] = {}  # by the chain's identity
        self._joined: dict[int, _Joined] = {}  # by the region's identity

    def solve(self, chain: Chain) -> Solved:
        """Return the labels of a chain at its last cut."""
        if id(chain) not in self._solved:
            self._solved[id(chain)] = self._push_labels(chain)
        return self._solved[id(chain)]

    def _push_labels(self, chain: Chain) -> Solved:
        arrivals = _arrivals(chain)
        last_use = {start: place for place, items in arrivals.items() for start, _ in items}
        numbers: dict[Place, int] = {(0, chain.start): 0}
        points = np.zeros((3, 1))
        tables, live = [_origin()], {0: points}  # `live`: the points of each table that are still to be extended
        for place, items in arrivals.items():
            reached = {start: numbers[start] for start, _ in items if start in numbers}
            if reached:
                labels, points = self._extend(
                    live, [(reached[start], item) for start, item in items if start in reached]
                )
                numbers[place] = len(tables)
                live[len(tables)] = points
                tables.append(labels)
            for start, table in reached.items():
                if last_use[start] == place:
                    del live[table]
        return Solved(points, tables)

    def _extend(
        self, live: Mapping[int, FloatArray], arrivals: Sequence[tuple[int, Choice | Parallel]]
    ) -> tuple[_Labels, FloatArray]:
        """Return the labels of the next place and their points: each step extends each label, and `prune` selects."""
        steps, added = list[_Step](), list[tuple[float, float, float]]()
        for table, item in arrivals:
            if isinstance(item, Choice):
                steps.append(_Step(table, item, 0))
                added.append((item.cost, item.loss, item.change_count))
            else:
                joined = self._join(item)
                steps.extend(_Step(table, joined, point) for point in range(joined.points.shape[1]))
                added.extend(joined.points.T.tolist())
        if not steps:  # a region of which the pruning left nothing
            return _origin()._replace(kept=np.zeros(0, dtype=np.intp)), np.zeros((3, 0))
        extended = [live[step.table] for step in steps]
        sizes = [points.shape[1] for points in extended]
        candidates = np.concatenate(extended, axis=1)
        candidates += np.array(added).T.repeat(sizes, axis=1)
        kept = self._prune(candidates)
        return _Labels(kept, np.cumsum(sizes), steps), candidates[:, kept]

    def _join(self, parallel: Parallel) -> _Joined:
        """Return the points of a region."""
        if id(parallel) not in self._joined:
            self._joined[id(parallel)] = self._add_branches(parallel)
        return self._joined[id(parallel)]

    def _add_branches(self, parallel: Parallel) -> _Joined:
        """Return the sums over the branches, pruned after each branch."""
        branches = tuple(self.solve(branch) for branch in parallel.branches)
        points, picks = np.array([[parallel.join_cost], [0.0], [0.0]]), np.zeros((1, 0), dtype=np.intp)
        for branch in branches:
            sums = (points[:, :, np.newaxis] + branch.points[:, np.newaxis, :]).reshape(3, -1)
            kept = self._prune(sums)
            before, pick = np.divmod(kept, branch.points.shape[1])
            points, picks = sums[:, kept], np.column_stack((picks[before], pick))
        return _Joined(points, picks, branches)


def _origin() -> _Labels:
    return _Labels(np.zeros(1, dtype=np.intp), np.zeros(0, dtype=np.intp), ())


def _arrivals(chain: Chain) -> dict[Place, list[tuple[Place, Choice | Parallel]]]:
    """Return the items by the place where they end, each with its start, in the order that breaks ties."""
    arrivals: dict[Place, list[tuple[Place, Choice | Parallel]]] = {}
    for (start, end), items in chain.spans.items():
        for item in items:
            if chain.accepts(end, item.after):
                place = (end, item.after if end < chain.length else _ANY_END)
                arrivals.setdefault(place, []).append(((start, item.before), item))
    return arrivals


def _keys(step: _Step) -> Keys:
    if isinstance(step.item, Choice):
        return (step.item.key,)
    picks = zip(step.item.branches, step.item.picks[step.point].tolist(), strict=True)
    return tuple(key for branch, pick in picks for key in branch.plan(pick))
