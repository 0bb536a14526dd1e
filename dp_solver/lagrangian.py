"""Lagrangian relaxations of the budget: at a price for each ms, no plan within the budget undercuts some loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dp_solver.frontier import Frontier
from dp_solver.labels import Solved, solve_labels
from dp_solver.pareto import FloatArray
from dp_solver.problem import Chain

__all__ = ["Relaxation", "relaxation"]

ROUNDING = 1e-9  # relative to the terms of a sum: smaller differences may be rounding
LARGEST = 1e12  # a price beyond is a slope between costs that differ by rounding alone
RATIOS = (0.0, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0, 16.0)  # of the prices to the one with the largest bound


@dataclass(frozen=True, slots=True)
class Relaxation:
    """Lower bounds on the loss of plans within a budget, at several prices p.

    Attributes:
        prices: (p,) loss that one ms is worth, at least 0.
        bounds: (p,) no plan within the budget has less loss.
        attained: loss of one plan within the budget.
        spread: by how much the losses of the cheapest plan and of the plan of least loss differ.
    """

    prices: FloatArray
    bounds: FloatArray
    attained: float
    spread: float

    @property
    def bound(self) -> float:
        """The largest bound."""
        return float(self.bounds.max())

    def of_labels(self, points: FloatArray) -> FloatArray:
        """Return a lower bound on the loss of plans within the budget that extend a label, for all labels of a place.

        In a plan that extends a label, the label with the least loss plus price of cost at that place can stand
        instead. The plan is therefore above the relaxation's bound at least by the difference of these two labels.

        Args:
            points: (3, n) the labels at one place.
        """
        if not points.shape[1]:
            return np.zeros(0)
        costs = self.prices[:, None] * points[0]
        excess = points[1] + costs
        excess -= excess.min(axis=1, keepdims=True) + ROUNDING * (np.abs(points[1]) + costs)
        highest: FloatArray = (self.bounds[:, None] + excess).max(axis=0)
        return highest


def relaxation(chain: Chain, budget_ms: float) -> Relaxation:
    """Return the relaxations around the one with the largest bound.

    The largest bound is at the slope of the convex hull of all plans at the budget. Each step replaces one of two
    plans, one within the budget and one beyond it, by the plan that is best at the price of the line between them. A
    step keeps one label at each place.

    Raises:
        BudgetInfeasibleError: every plan costs more; `best_ms` is the smallest cost.

    References:
        Handler and Zang, A Dual Algorithm for the Constrained Shortest Path Problem, Networks 10 (1980).
    """
    cheapest = solve_labels(chain, lambda points: points[0].argmin(keepdims=True))
    Frontier(cheapest.points[0], cheapest.points[1], cheapest).at(budget_ms)
    within, beyond = _plan(cheapest), _best_at(chain, 0.0)
    spread, price = within[1] - beyond[1], 0.0
    if beyond[0] <= budget_ms:
        return Relaxation(np.zeros(1), np.array([beyond[1]]), beyond[1], spread)
    between = True
    while between:
        price = min(max(within[1] - beyond[1], 0.0) / (beyond[0] - within[0]), LARGEST)
        cost, loss = _best_at(chain, price)
        between = loss + price * cost < within[1] + price * within[0] and within[0] < cost < beyond[0]
        if between:
            within, beyond = ((cost, loss), beyond) if cost <= budget_ms else (within, (cost, loss))
    prices = price * np.unique(RATIOS)
    plans = np.array([_best_at(chain, price) for price in prices.tolist()])
    return Relaxation(prices, plans[:, 1] + prices * (plans[:, 0] - budget_ms), within[1], spread)


def _best_at(chain: Chain, price: float) -> tuple[float, float]:
    """Return cost and loss of the plan of least loss plus price times cost."""
    return _plan(solve_labels(chain, lambda points: (points[1] + price * points[0]).argmin(keepdims=True)))


def _plan(solved: Solved) -> tuple[float, float]:
    return float(solved.points[0, 0]), float(solved.points[1, 0])
