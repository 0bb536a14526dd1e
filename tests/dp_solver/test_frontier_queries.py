import math

import numpy as np
import pytest

from depthcomp_errors import BudgetInfeasibleError, ProblemError
from dp_solver import Frontier


def front(*points: tuple[float, float]) -> Frontier:
    costs, losses = np.array(points, dtype=float).T
    return Frontier(costs, losses, [(k,) for k in range(len(points))])


def test_knee_of_a_corner() -> None:
    assert front((1, 9), (2, 1), (10, 0)).knee() == 1
    assert front((1, 9), (2, 5), (3, 1), (6, 0.5), (10, 0)).knee() == 2


def test_knee_does_not_depend_on_units() -> None:
    points = [(1, 9), (2, 5), (3, 1), (6, 0.5), (10, 0)]
    assert front(*((cost * 1e-6, loss * 1e5 - 3e5) for cost, loss in points)).knee() == 2


def test_of_equally_far_plans_the_fastest_is_the_knee() -> None:
    assert front((0, 4), (1, 2), (2, 1), (4, 0)).knee() == 1


@pytest.mark.parametrize(
    "points",
    [
        [(1, 0)],
        [(1, 1), (2, 0)],
        [(0.1, 0.3), (0.2, 0.2), (0.3, 0.1)],  # on a straight line up to rounding
        [(0, 4), (2, 3), (3, 2), (4, 0)],  # bulging outwards
    ],
)
def test_without_a_knee_the_plan_of_least_loss_stands(points: list[tuple[float, float]]) -> None:
    assert front(*points).knee() == len(points) - 1


def test_nearest_plans_lie_on_both_sides() -> None:
    four = front((1, 3), (2, 2), (3, 1), (5, 0))
    assert four.nearest(2.6, 1) == [2]
    assert four.nearest(2.6, 2) == [1, 2]
    assert four.nearest(4.0, 1) == [2]  # as near as 5.0, and faster
    assert four.nearest(0.0, 2) == [0, 1]
    assert four.nearest(math.inf, 2) == [2, 3]
    assert four.nearest(2.0, 99) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [0, -1, 1.0, None, np.array([1, 1])])
def test_unusable_count(count: object) -> None:
    with pytest.raises(ProblemError, match=r"count \(=.*\) must be an integer of at least 1"):
        front((1, 0)).nearest(1.0, count)


def test_unusable_budget() -> None:
    with pytest.raises(ProblemError, match=r"budget_ms \(=nan\) must be a number of at least 0"):
        front((1, 0)).nearest(math.nan, 1)
    with pytest.raises(BudgetInfeasibleError, match=r"budget of 0.5 ms: the fastest takes 1.0 ms"):
        front((1, 0)).given_up(0.5)


def test_an_exact_frontier_gives_nothing_up() -> None:
    assert front((1, 2), (2, 1)).given_up(1.5) == 0
    assert front((1, 2), (2, 1)).given_up(math.inf) == 0
