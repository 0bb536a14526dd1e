"""The latency-loss frontier of a chain: all plans that no other plan beats, and how to choose one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from depthcomp_errors import BudgetInfeasibleError
from dp_solver.frontier_json import frontier_from_json, frontier_to_json
from dp_solver.grid import Grid
from dp_solver.labels import Keys, Solved, solve_labels
from dp_solver.pareto import FloatArray, nondominated
from dp_solver.problem import Chain
from dp_solver.quantities import as_budget, as_count, as_integer

__all__ = ["Frontier", "frontier"]

FLAT = 1e-9  # a corner of the frontier that stands out by less, as a share of its width and height, is rounding


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """All plans of a chain that no other plan beats in both cost and loss, one for each such pair.

    Attributes:
        costs: (n,) latency in ms, float64, read-only, strictly increasing.
        losses: (n,) expected loss increase, float64, read-only, strictly decreasing.
        slack_ms: 0 where the frontier is exact. On a grid of costs: for every possible plan, this frontier holds one
            with no more loss that costs at most this much more.

    Example:
        >>> from dp_solver import Choice
        >>> spans = {(0, 1): [Choice("keep", 2.0, 0.0), Choice("merge", 1.0, 0.5), Choice("slow", 3.0, 0.1)]}
        >>> front = frontier(Chain(1, spans))
        >>> front.costs.tolist(), front.losses.tolist(), front.plan(front.at(1.5))
        ([1.0, 2.0], [0.5, 0.0], ('merge',))
        >>> Frontier.from_json(front.to_json()).plan(0)
        ('merge',)
    """

    costs: FloatArray
    losses: FloatArray
    _plans: Solved | Sequence[Keys] = field(repr=False)
    slack_ms: float = 0.0

    def __post_init__(self) -> None:
        self.costs.setflags(write=False)
        self.losses.setflags(write=False)

    def __len__(self) -> int:
        return len(self.costs)

    def __reduce__(self) -> tuple[type[Frontier], tuple[object, ...]]:
        plans = [self.plan(k) for k in range(len(self))]  # a copy needs no more than the plans themselves
        return Frontier, (self.costs, self.losses, plans, self.slack_ms)

    def plan(self, k: int) -> Keys:
        """Return the keys of plan `k` in order along the chain, those of a `Parallel` branch by branch.

        Args:
            k: 0 is the fastest plan, -1 the one of least loss.

        Raises:
            IndexError: the frontier has no such plan.

        Complexity: O(number of keys).
        """
        number = as_integer(k)
        if number is None or not -len(self) <= number < len(self):
            raise IndexError(f"the frontier has no plan {k!r}; use 0..{len(self) - 1}")
        return self._plans.plan(number) if isinstance(self._plans, Solved) else self._plans[number]

    def at(self, budget_ms: float) -> int:
        """Return the index of the plan of least loss among those of cost <= `budget_ms`.

        Args:
            budget_ms: latency in ms, at least 0; `math.inf` asks for the plan of least loss.

        Raises:
            ProblemError: the budget is NaN, negative or not a number.
            BudgetInfeasibleError: every plan costs more; `best_ms` is the smallest cost.

        Complexity: O(log n).
        """
        budget = as_budget(budget_ms)
        best_ms = float(self.costs[0])
        if budget < best_ms:
            raise BudgetInfeasibleError(
                f"no plan meets a budget of {budget} ms: the fastest takes {best_ms} ms; "
                "raise the budget or offer cheaper choices",
                best_ms=best_ms,
            )
        return int(np.searchsorted(self.costs, budget, side="right")) - 1

    def nearest(self, budget_ms: float, count: int) -> list[int]:
        """Return the indices of the plans whose cost is nearest to a budget, on either side of it, in rising order.

        A predicted latency is not a measured one, so the best measured plan may be predicted to miss the budget a
        little.

        Args:
            budget_ms: latency in ms, at least 0; of two equally near plans the faster one counts as nearer.
            count: the number of plans; fewer are returned where the frontier has fewer.

        Raises:
            ProblemError: the budget is NaN, negative or not a number, or `count` is no integer of at least 1.

        Example:
            >>> front = Frontier(np.array([1.0, 2.0, 3.0, 5.0]), np.array([4.0, 3.0, 2.0, 0.0]), [()] * 4)
            >>> front.nearest(3.2, 2), front.nearest(9.0, 2)
            ([1, 2], [2, 3])
        """
        budget = min(as_budget(budget_ms), float(self.costs[-1]))
        nearest = np.argsort(np.abs(self.costs - budget), kind="stable")[: as_count(count)]
        return sorted(nearest.tolist())

    def knee(self) -> int:
        """Return the index of the plan beyond which more speed costs more than before.

        It is the plan farthest below the straight line from the fastest plan to the one of least loss, with both axes
        scaled to the range between these two; among equally far plans it is the fastest. Where no plan lies below
        that line, as with one or two plans, the plan of least loss is returned.

        Complexity: O(n).

        Example:
            >>> front = Frontier(np.array([1.0, 2.0, 5.0]), np.array([8.0, 1.0, 0.0]), [()] * 3)
            >>> front.knee()
            1

        References:
            Das, On characterizing the "knee" of the Pareto curve based on Normal-Boundary Intersection, Structural
            Optimization 18 (1999), whose definition this is for two criteria.
        """
        if len(self) < 3:
            return len(self) - 1
        width, height = self.costs[-1] - self.costs[0], self.losses[0] - self.losses[-1]
        below = 1 - (self.costs - self.costs[0]) / width - (self.losses - self.losses[-1]) / height
        return int(np.argmax(below >= below.max() - FLAT)) if below.max() > FLAT else len(self) - 1

    def given_up(self, budget_ms: float) -> float:
        """Return a bound on the loss that `at(budget_ms)` gives up against the exact optimum; 0 on an exact frontier.

        By the meaning of `slack_ms`, this frontier holds a plan with no more loss than the exact optimum within
        budget + slack. Hence the loss at `budget_ms + slack_ms` is at most the optimal loss, and its difference from
        the loss at `budget_ms` bounds the loss that is given up.

        Raises:
            ProblemError, BudgetInfeasibleError: as `at`.
        """
        return float(self.losses[self.at(budget_ms)] - self.losses[self.at(as_budget(budget_ms) + self.slack_ms)])

    def to_json(self) -> str:
        """Return the frontier with all its plans as JSON text; equal frontiers give equal text.

        Raises:
            ProblemError: a key is no string, number, boolean, None or tuple of these.
        """
        plans = [self.plan(k) for k in range(len(self))]
        return frontier_to_json(self.costs.tolist(), self.losses.tolist(), plans, self.slack_ms)

    @classmethod
    def from_json(cls, text: str) -> Frontier:
        """Return the frontier that `to_json` wrote, to the last bit.

        Raises:
            ProblemError: the text is not JSON, of another schema version, or a field is missing or malformed.
        """
        content = frontier_from_json(text)
        costs, losses = np.array(content.costs), np.array(content.losses)
        return cls(costs, losses, content.plans, content.slack_ms)


def frontier(chain: Chain, *, resolution_ms: float | None = None) -> Frontier:
    """Return the Pareto frontier of `chain`, exact over real-valued costs unless a resolution is given.

    One solve answers all budgets. `chain` is not modified.

    Ties. Among plans of equal cost and loss, the plan with fewer changes wins. `Choice.changes` counts them; by default
    each key that is not None is one change. Among plans that are still equal, the first in this order wins, read from
    the plan's end: smallest start cut of its last span; place of the item in that span; cheapest point of a `Parallel`;
    cheapest plan up to the start cut. Where only rounding made two sums equal, the plan with fewer changes may have
    been dropped before. On a grid, the tie goes to the lower cost and then to this order.

    Costs are added from left to right; a `Parallel` adds its join cost and then its branches one by one.
    `brute_force.enumerate_plans` adds in this order too. Rounded addition keeps order, so pruning loses nothing
    by rounding, and both agree to the last bit. A cost of n terms is within a share of n * 1.2e-16 of the exact
    sum, a loss within that share of the sum of its terms' magnitudes.

    Args:
        chain: the problem.
        resolution_ms: None for the exact frontier. Otherwise labels are compared with their costs rounded up to a
            grid of this width, and each cut keeps at most one label for each step. The returned plans have their true
            costs, so no budget is overshot; `slack_ms` and `given_up` bound the error.

    Raises:
        ProblemError: the problem is no Chain, or the resolution is no number above 0.

    Complexity: O(c log c) time for c extended labels. A cut has as many labels as its frontier has points:
    tens in a random chain of 50 cuts and 1,275 spans, but in the worst case twice as many at each next cut.

    Example:
        >>> from dp_solver import Choice, Parallel
        >>> conv = Chain(1, {(0, 1): [Choice("keep", 2.0, 0.0), Choice("drop", 0.0, 0.4)]})
        >>> block = Parallel(0.1, (conv, Chain(0, {})))
        >>> front = frontier(Chain(1, {(0, 1): [block, Choice("merge", 1.0, 0.1)]}))
        >>> [(float(cost), front.plan(k)) for k, cost in enumerate(front.costs)]
        [(0.1, ('drop',)), (1.0, ('merge',)), (2.1, ('keep',))]

    References:
        Kim et al., Efficient Latency-Aware CNN Depth Compression via Two-Stage Dynamic Programming, ICML
        2023, arXiv 2301.12187, whose recursion this is with labels in place of a grid of budgets.
    """
    if resolution_ms is None:
        solved = solve_labels(chain, nondominated)
        return Frontier(solved.points[0], solved.points[1], solved)
    grid = Grid(resolution_ms)
    solved = solve_labels(chain, grid.prune)
    return Frontier(solved.points[0], solved.points[1], solved, grid.slack_ms(chain, float(solved.points[0, -1])))
