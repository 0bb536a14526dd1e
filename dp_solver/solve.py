"""The best plan for one budget."""

from collections.abc import Hashable
from dataclasses import dataclass

from dp_solver.frontier import frontier
from dp_solver.problem import Chain

__all__ = ["Solution", "solve"]


@dataclass(frozen=True, slots=True)
class Solution:
    """A plan that meets a budget.

    Attributes:
        keys: the choices' keys in order along the chain, those of a `Parallel` branch by branch.
        cost: latency in ms.
        loss: expected loss increase.
    """

    keys: tuple[Hashable, ...]
    cost: float
    loss: float


def solve(chain: Chain, budget_ms: float) -> Solution:
    """Returns the plan of least loss whose cost, as the frontier adds it up, is at most `budget_ms`.

    For several budgets take `frontier` once and ask it: a solve costs as much as the whole frontier.

    Args:
        chain: the problem, not modified.
        budget_ms: latency in ms, at least 0; `math.inf` asks for the plan of least loss.

    Raises:
        ProblemError: the budget is NaN, negative or not a number.
        BudgetInfeasibleError: every plan costs more; `best_ms` is the smallest cost.

    Example:
        >>> from dp_solver import Choice
        >>> keep, fast, merge = Choice("keep", 2.0, 0.0), Choice("fast", 1.0, 0.2), Choice("merge", 2.5, 0.1)
        >>> solve(Chain(2, {(0, 1): [keep, fast], (1, 2): [keep], (0, 2): [merge]}), budget_ms=3.0)
        Solution(keys=('merge',), cost=2.5, loss=0.1)
    """
    front = frontier(chain)
    k = front.at(budget_ms)
    return Solution(front.plan(k), float(front.costs[k]), float(front.losses[k]))
