"""The exact latency-loss frontier of a chain, by forward labels.

State of the recursion: for each cut, its *labels*, the non-dominated partial plans from cut 0 to that cut. A
label is a cost, a loss and two back-pointers: the step that it ended with and the label that it extended. The
steps into a cut are the choices of all spans that end there and, for a `Parallel`, the points of its
branches' summed frontier.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np

from depthcomp_errors import BudgetInfeasibleError, ProblemError
from dp_solver.pareto import FloatArray, IntArray, nondominated
from dp_solver.problem import Chain, Choice, Parallel, real_or_nan

__all__ = ["Frontier", "frontier"]

Keys: TypeAlias = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """All plans of a chain that no other plan beats in both cost and loss, one for each such pair.

    Attributes:
        costs: (n,) latency in ms, float64, read-only, strictly increasing.
        losses: (n,) expected loss increase, float64, read-only, strictly decreasing.

    Example:
        >>> spans = {(0, 1): [Choice("keep", 2.0, 0.0), Choice("merge", 1.0, 0.5), Choice("slow", 3.0, 0.1)]}
        >>> front = frontier(Chain(1, spans))
        >>> front.costs.tolist(), front.losses.tolist(), front.plan(front.at(1.5))
        ([1.0, 2.0], [0.5, 0.0], ('merge',))
    """

    costs: FloatArray
    losses: FloatArray
    _cuts: tuple[_Labels, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.costs)

    def plan(self, k: int) -> Keys:
        """Returns the keys of plan `k` in order along the chain, those of a `Parallel` branch by branch.

        Args:
            k: 0 is the fastest plan, -1 the one of least loss.

        Raises:
            IndexError: the frontier has no such plan.

        Complexity: O(number of keys).
        """
        if not -len(self) <= k < len(self):
            raise IndexError(f"plan {k} of a frontier of {len(self)} plans; use 0..{len(self) - 1}")
        steps = reversed(list(_walk_back(self._cuts, k)))
        return tuple(key for step in steps for key in _keys(step))

    def at(self, budget_ms: float) -> int:
        """Returns the index of the plan of least loss among those of cost <= `budget_ms`.

        Args:
            budget_ms: latency in ms, at least 0; `math.inf` asks for the plan of least loss.

        Raises:
            ProblemError: the budget is NaN, negative or not a number.
            BudgetInfeasibleError: every plan costs more; `best_ms` is the smallest cost.

        Complexity: O(log n).
        """
        budget = _budget(budget_ms)
        best_ms = float(self.costs[0])
        if budget < best_ms:
            raise BudgetInfeasibleError(
                f"no plan meets a budget of {budget} ms: the fastest takes {best_ms} ms; "
                "raise the budget or offer cheaper choices",
                best_ms=best_ms,
            )
        return int(np.searchsorted(self.costs, budget, side="right")) - 1


def frontier(chain: Chain) -> Frontier:
    """Returns the exact Pareto frontier of `chain` over real-valued costs; nothing is rounded to a grid.

    One solve answers all budgets. `chain` is not modified.

    On equal cost and loss the first in this order wins: smallest start cut of the last span; place of the
    item in that span; cheapest point of a `Parallel`; cheapest plan up to the start cut.

    A plan's cost is added up from left to right, a `Parallel`'s being its join cost plus its branches one by
    one, and `brute_force.enumerate_plans` adds in the same order. Since rounded addition keeps order, pruning
    loses nothing by rounding: both agree to the last bit. A cost of n terms is within a share of n * 1.2e-16
    of the exact sum, a loss within that share of the sum of its terms' magnitudes.

    Complexity: O(c log c) time for c extended labels. A cut has as many labels as its frontier has points:
    tens in a random chain of 50 cuts and 1,275 spans, but in the worst case twice as many at each next cut.

    Example:
        >>> conv = Chain(1, {(0, 1): [Choice("keep", 2.0, 0.0), Choice("drop", 0.0, 0.4)]})
        >>> block = Parallel(0.1, (conv, Chain(0, {})))
        >>> front = frontier(Chain(1, {(0, 1): [block, Choice("merge", 1.0, 0.1)]}))
        >>> [(float(cost), front.plan(k)) for k, cost in enumerate(front.costs)]
        [(0.1, ('drop',)), (1.0, ('merge',)), (2.1, ('keep',))]

    References:
        Kim et al., Efficient Latency-Aware CNN Depth Compression via Two-Stage Dynamic Programming, ICML
        2023, arXiv 2301.12187, whose recursion this is with labels in place of a grid of budgets.
    """
    arrivals = _arrivals(chain)
    cuts = [_origin()]
    for steps in arrivals[1:]:
        cuts.append(_extend(cuts, steps))
    return Frontier(_read_only(cuts[-1].costs), _read_only(cuts[-1].losses), tuple(cuts))


class _Step(NamedTuple):
    """An item as it leaves its start cut: a choice, or one point of a parallel region."""

    start: int
    cost: float
    loss: float
    item: Choice | _Joined
    point: int  # index into the points of a _Joined, 0 for a choice


class _Labels(NamedTuple):
    """The non-dominated partial plans that end at one cut, by rising cost; arrays are (n,)."""

    costs: FloatArray
    losses: FloatArray
    last: IntArray  # the step that a label ends with, an index into `steps`
    before: IntArray  # the label that it extends, an index into the labels of that step's start cut
    steps: Sequence[_Step]


class _Joined(NamedTuple):
    """The frontier of a parallel region of b branches."""

    costs: FloatArray  # (n,)
    losses: FloatArray  # (n,)
    picks: IntArray  # (n, b), an index into each branch's frontier
    branches: tuple[Frontier, ...]


def _arrivals(chain: Chain) -> list[list[_Step]]:
    """Returns the steps into each cut, ordered as ties are broken."""
    arrivals: list[list[_Step]] = [[] for _ in range(chain.length + 1)]
    for (start, end), items in chain.spans.items():
        for item in items:
            arrivals[end].extend(_steps(start, item))
    return arrivals


def _steps(start: int, item: Choice | Parallel) -> list[_Step]:
    if isinstance(item, Choice):
        return [_Step(start, item.cost, item.loss, item, 0)]
    joined = _join(item)
    points = enumerate(zip(joined.costs.tolist(), joined.losses.tolist(), strict=True))
    return [_Step(start, cost, loss, joined, point) for point, (cost, loss) in points]


def _join(parallel: Parallel) -> _Joined:
    """Returns the Minkowski sum of the branches' frontiers, pruned after each branch."""
    branches = tuple(frontier(branch) for branch in parallel.branches)
    costs, losses, picks = np.array([parallel.join_cost]), np.zeros(1), np.zeros((1, 0), dtype=np.intp)
    for branch in branches:
        all_costs = np.add.outer(costs, branch.costs).ravel()
        all_losses = np.add.outer(losses, branch.losses).ravel()
        kept = nondominated(all_costs, all_losses)
        before, pick = np.divmod(kept, len(branch))
        costs, losses, picks = all_costs[kept], all_losses[kept], np.column_stack((picks[before], pick))
    return _Joined(costs, losses, picks, branches)


def _origin() -> _Labels:
    none = np.zeros(1, dtype=np.intp)
    return _Labels(np.zeros(1), np.zeros(1), none, none, ())


def _extend(cuts: Sequence[_Labels], steps: Sequence[_Step]) -> _Labels:
    """Returns the labels of the next cut: each step in extends each label of its start cut, the best stay."""
    if not steps:
        empty = np.zeros(0, dtype=np.intp)
        return _Labels(np.zeros(0), np.zeros(0), empty, empty, ())
    sizes = np.array([len(cuts[step.start].costs) for step in steps])
    costs = np.concatenate([cuts[step.start].costs for step in steps])
    costs += np.repeat([step.cost for step in steps], sizes)
    losses = np.concatenate([cuts[step.start].losses for step in steps])
    losses += np.repeat([step.loss for step in steps], sizes)
    kept = nondominated(costs, losses)
    ends = np.cumsum(sizes)
    last = np.searchsorted(ends, kept, side="right")
    return _Labels(costs[kept], losses[kept], last, kept - (ends - sizes)[last], steps)


def _walk_back(cuts: Sequence[_Labels], label: int) -> Iterator[_Step]:
    """Yields the steps of one label of the last cut, last step first."""
    cut = len(cuts) - 1
    while cut > 0:
        labels = cuts[cut]
        step = labels.steps[labels.last[label]]
        yield step
        cut, label = step.start, int(labels.before[label])


def _keys(step: _Step) -> Keys:
    if isinstance(step.item, Choice):
        return (step.item.key,)
    picks = zip(step.item.branches, step.item.picks[step.point], strict=True)
    return tuple(key for branch, pick in picks for key in branch.plan(int(pick)))


def _budget(budget_ms: object) -> float:
    budget = real_or_nan(budget_ms)
    if not budget >= 0:  # NaN compares false
        raise ProblemError(f"budget_ms (={budget_ms!r}) must be a number of at least 0; give a latency in ms")
    return budget


def _read_only(array: FloatArray) -> FloatArray:
    array.setflags(write=False)
    return array
