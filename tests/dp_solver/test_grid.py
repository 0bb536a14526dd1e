import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_trees import all_plans, points, trees

from depthcomp_errors import BudgetInfeasibleError, ProblemError
from dp_solver import Chain, Choice, frontier, solve
from dp_solver.grid import Grid

pytestmark = pytest.mark.whole


def random_chain(length: int, seed: int) -> Chain:
    rng = np.random.default_rng(seed)
    spans = [(i, j) for i in range(length) for j in range(i + 1, min(i + 4, length) + 1)]
    return Chain(
        length, {(i, j): [Choice((i, j), rng.uniform(0.5, 1.0) * (j - i) ** 0.7, rng.random())] for i, j in spans}
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees(), st.sampled_from([1e-6, 0.1, 0.7, 3.0, 1e4]), st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_bound_holds_and_no_budget_is_exceeded(tree: Chain, resolution_ms: float, shares: list[float]) -> None:
    exact, rounded = frontier(tree), frontier(tree, resolution_ms=resolution_ms)
    assert {(*point, rounded.plan(k)) for k, point in enumerate(points(rounded))} <= set(all_plans(tree))
    assert (rounded.costs[0], rounded.losses[-1]) == (exact.costs[0], exact.losses[-1])
    for share in shares:
        budget = float(exact.costs[0] + share * (exact.costs[-1] - exact.costs[0]))
        found = rounded.at(budget)
        assert rounded.costs[found] <= budget
        assert rounded.losses[found] - exact.losses[exact.at(budget)] <= rounded.given_up(budget)
    for cost, loss in points(exact):  # what `slack_ms` says
        assert rounded.losses[rounded.at(cost + rounded.slack_ms)] <= loss


def test_few_labels_and_a_loss_within_the_bound() -> None:
    chain = random_chain(120, seed=0)
    exact, rounded = frontier(chain), frontier(chain, resolution_ms=0.25)
    assert len(rounded) <= (exact.costs[-1] - exact.costs[0]) / 0.25 + 2
    assert len(rounded) < len(exact) / 2
    middle = float(exact.costs.mean())
    given_up = rounded.losses[rounded.at(middle)] - exact.losses[exact.at(middle)]
    assert 0 <= given_up <= rounded.given_up(middle)
    assert rounded.slack_ms == pytest.approx(120 * 0.25)


def test_a_fine_grid_is_exact() -> None:
    chain = random_chain(30, seed=1)
    assert points(frontier(chain, resolution_ms=1e-12)) == points(frontier(chain))


def test_the_smallest_feasible_budget_stays_exact() -> None:
    chain = random_chain(30, seed=2)
    best_ms = float(frontier(chain).costs[0])
    assert solve(chain, best_ms, resolution_ms=5.0).cost == best_ms
    with pytest.raises(BudgetInfeasibleError, match="no plan meets a budget"):
        solve(chain, math.nextafter(best_ms, 0.0), resolution_ms=5.0)


def test_solve_reports_what_it_may_have_given_up() -> None:
    chain = random_chain(30, seed=3)
    front = frontier(chain, resolution_ms=0.5)
    budget = float(front.costs[len(front) // 2])
    assert solve(chain, budget, resolution_ms=0.5).given_up == front.given_up(budget) > 0
    assert solve(chain, budget).given_up == 0


@pytest.mark.parametrize("costs", [[0.0, 1e-9, 1e300], [1e300, 1e300], [0.0, 5e-324, 1.0], [3.0]])
@pytest.mark.parametrize("resolution_ms", [1e-300, 1e-9, 1.0, 1e300])
def test_costs_are_never_rounded_down(costs: list[float], resolution_ms: float) -> None:
    rounded = Grid(resolution_ms)._rounded_up(np.array(costs))
    assert np.isfinite(rounded).all()
    assert (rounded >= costs).all()
    assert (rounded - costs <= resolution_ms + 8 * np.spacing(np.maximum(costs, rounded))).all()
    assert (np.diff(rounded) >= 0).all()


@pytest.mark.parametrize("resolution_ms", [0, -1.0])
def test_resolutions_that_are_too_small(resolution_ms: float) -> None:
    with pytest.raises(ProblemError, match=r"resolution_ms \(=.*\) must be above 0 ms; leave it out for the exact"):
        frontier(Chain(0, {}), resolution_ms=resolution_ms)


@pytest.mark.parametrize("resolution_ms", [math.nan, math.inf, "1"])
def test_unusable_resolutions(resolution_ms: object) -> None:
    with pytest.raises(ProblemError, match=r"resolution_ms \(=.*\) must be a finite number"):
        frontier(Chain(0, {}), resolution_ms=resolution_ms)
