"""The best plan for one budget, and the best few."""

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from dp_solver.frontier import frontier
from dp_solver.labels import solve_labels
from dp_solver.lagrangian import Relaxation, relaxation
from dp_solver.pareto import FloatArray, IntArray, skyband
from dp_solver.problem import Chain
from dp_solver.quantities import as_budget, as_count

__all__ = ["Solution", "best_plans", "solve"]

FIRST_GUESS = 1 / 16  # of the largest difference between a plan and its bound: how far above it the best plans may lie
GROWTH = 2.0  # of the guess, where it was too low


@dataclass(frozen=True, slots=True)
class Solution:
    """A plan that meets a budget.

    Attributes:
        keys: the choices' keys in order along the chain, those of a `Parallel` branch by branch.
        cost: latency in ms.
        loss: expected loss increase.
        given_up: bound on how far `loss` is above the least possible loss; 0 where the solution is exact.
    """

    keys: tuple[Hashable, ...]
    cost: float
    loss: float
    given_up: float = 0.0


def solve(chain: Chain, budget_ms: float, *, resolution_ms: float | None = None) -> Solution:
    """Return the plan of least loss whose cost, as the frontier adds it up, is at most `budget_ms`.

    For several budgets call `frontier` once: one solve costs as much as the whole frontier.

    Args:
        chain: the problem, not modified.
        budget_ms: latency in ms, at least 0; `math.inf` asks for the plan of least loss.
        resolution_ms: None for the exact answer, else the grid that `frontier` compares costs on.

    Raises:
        ProblemError: the budget is NaN, negative or not a number, or the resolution no number above 0.
        BudgetInfeasibleError: every plan costs more; `best_ms` is the smallest cost.

    Example:
        >>> from dp_solver import Choice
        >>> keep, fast, merge = Choice("keep", 2.0, 0.0), Choice("fast", 1.0, 0.2), Choice("merge", 2.5, 0.1)
        >>> solve(Chain(2, {(0, 1): [keep, fast], (1, 2): [keep], (0, 2): [merge]}), budget_ms=3.0)
        Solution(keys=('merge',), cost=2.5, loss=0.1, given_up=0.0)
    """
    front = frontier(chain, resolution_ms=resolution_ms)
    k = front.at(budget_ms)
    return Solution(front.plan(k), float(front.costs[k]), float(front.losses[k]), front.given_up(budget_ms))


def best_plans(chain: Chain, budget_ms: float, count: int) -> list[Solution]:
    """Return exactly the `count` plans of least loss within `budget_ms`, on the frontier or not, the best first.

    The first is `solve`'s answer. Of equal losses the faster plan comes first, then the one with fewer changes. Fewer
    plans are returned where fewer meet the budget. Each path through the chain is a plan of its own, even if its keys
    equal another path's.

    The recursion is the frontier's. A label is dropped once `count` others beat it, once it costs more than the budget,
    or once all plans that extend it lose more than a limit, by the bounds of `dp_solver.lagrangian`. The limit is
    guessed low, and raised until enough plans are within it.

    Args:
        chain: the problem, not modified.
        budget_ms: latency in ms, at least 0.
        count: how many, at least 1.

    Raises:
        ProblemError: the budget is NaN, negative or not a number, or `count` is no integer of at least 1.
        BudgetInfeasibleError: every plan costs more; `best_ms` is the smallest cost.

    Complexity: in the worst case `count` times as many labels as the frontier has, and `count` passes over their
    extensions.

    Example:
        >>> from dp_solver import Choice
        >>> keep, fast, merge = Choice("keep", 2.0, 0.0), Choice("fast", 1.0, 0.2), Choice("merge", 2.5, 0.1)
        >>> best = best_plans(Chain(2, {(0, 1): [keep, fast], (1, 2): [keep], (0, 2): [merge]}), 3.0, count=2)
        >>> [(plan.keys, plan.loss) for plan in best]
        [(('merge',), 0.1), (('fast', 'keep'), 0.2)]
    """
    wanted, budget = as_count(count), as_budget(budget_ms)
    relaxed = relaxation(chain, budget)
    gap = FIRST_GUESS * max(relaxed.attained - relaxed.bound, relaxed.spread / 512)
    while True:
        prune = _BestWithin(budget, wanted, relaxed, relaxed.bound + gap)
        solved = solve_labels(chain, prune)
        costs, losses, changes = solved.points
        best = np.lexsort((changes, costs, losses))[:wanted]
        enough = len(best) == wanted and losses[best[-1]] <= relaxed.bound + gap
        if enough or not prune.dropped:
            return [Solution(solved.plan(k), float(costs[k]), float(losses[k])) for k in best.tolist()]
        gap = GROWTH * gap if gap > 0 else math.inf


class _BestWithin:
    """Keeps the labels that may begin one of the best plans within a budget, as far as these lose at most a limit.

    Attributes:
        dropped: whether a label was dropped that a higher limit would keep.
    """

    def __init__(self, budget: float, count: int, relaxed: Relaxation, limit: float) -> None:
        self._budget, self._count, self._relaxed, self._limit = budget, count, relaxed, limit
        self.dropped = False

    def __call__(self, points: FloatArray) -> IntArray:
        """Return the indices of the points (3, n) to keep."""
        within = points[0] <= self._budget  # costs are at least 0: no sum falls below the budget again
        low = self._relaxed.of_labels(points) <= self._limit
        self.dropped |= bool((within & ~low).any())
        kept = np.flatnonzero(within & low)
        best: IntArray = kept[skyband(points[:, kept], self._count)]
        return best
