"""The best plan for one budget, and the best few."""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from dp_solver.frontier import Frontier, frontier
from dp_solver.labels import solve_labels
from dp_solver.pareto import FloatArray, IntArray, skyband
from dp_solver.problem import Chain
from dp_solver.quantities import as_budget, as_count

__all__ = ["Solution", "best_plans", "solve"]


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

    The recursion is the frontier's, with labels that are dropped once `count` others beat them or they cost more than
    the budget.

    Args:
        chain: the problem, not modified.
        budget_ms: latency in ms, at least 0.
        count: how many, at least 1.

    Raises:
        ProblemError: the budget is NaN, negative or not a number, or `count` is no integer of at least 1.
        BudgetInfeasibleError: every plan costs more; `best_ms` is the smallest cost.

    Complexity: up to `count` times as many labels as the frontier has, and `count` passes over their extensions.

    Example:
        >>> from dp_solver import Choice
        >>> keep, fast, merge = Choice("keep", 2.0, 0.0), Choice("fast", 1.0, 0.2), Choice("merge", 2.5, 0.1)
        >>> best = best_plans(Chain(2, {(0, 1): [keep, fast], (1, 2): [keep], (0, 2): [merge]}), 3.0, count=2)
        >>> [(plan.keys, plan.loss) for plan in best]
        [(('merge',), 0.1), (('fast', 'keep'), 0.2)]
    """
    wanted, budget = as_count(count), as_budget(budget_ms)
    _require_feasible(chain, budget)

    def prune(points: FloatArray) -> IntArray:
        within = np.flatnonzero(points[0] <= budget)  # costs are at least 0: no sum falls below the budget again
        kept: IntArray = within[skyband(points[:, within], wanted)]
        return kept

    solved = solve_labels(chain, prune)
    costs, losses, changes = solved.points
    best = np.lexsort((changes, costs, losses))[:wanted].tolist()
    return [Solution(solved.plan(k), float(costs[k]), float(losses[k])) for k in best]


def _require_feasible(chain: Chain, budget_ms: float) -> None:
    """Raise BudgetInfeasibleError where the cheapest plan, found with one label at each place, costs too much."""
    cheapest = solve_labels(chain, lambda points: points[0].argmin(keepdims=True))
    Frontier(cheapest.points[0], cheapest.points[1], cheapest).at(budget_ms)
