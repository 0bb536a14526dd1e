import importlib
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_trees import all_plans, trees

from depthcomp_errors import BudgetInfeasibleError, ProblemError
from dp_solver import Chain, Choice, Parallel, best_plans, solve
from dp_solver.pareto import nondominated, skyband

pytestmark = pytest.mark.whole


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees(), st.integers(1, 6), st.floats(0, 1))
def test_agrees_with_brute_force(tree: Chain, count: int, share: float) -> None:
    plans = all_plans(tree)
    costs = [cost for cost, _, _ in plans]
    budget = min(costs) + share * (max(costs) - min(costs))
    best = sorted((loss, cost) for cost, loss, _ in plans if cost <= budget)[:count]
    found = best_plans(tree, budget, count)
    assert [(plan.loss, plan.cost) for plan in found] == best
    assert {(plan.cost, plan.loss, plan.keys) for plan in found} <= set(plans)


def test_plans_that_are_not_on_the_frontier_come_too() -> None:
    items = [Choice("best", 1.0, 0.0), Choice("slower", 2.0, 0.1), Choice("worse", 1.0, 0.2), Choice("slow", 9.0, -1.0)]
    assert [plan.keys for plan in best_plans(Chain(1, {(0, 1): items}), 2.0, 9)] == [("best",), ("slower",), ("worse",)]


def test_plans_are_distinct_and_the_first_is_the_optimum() -> None:
    rng = np.random.default_rng(0)
    spans = {
        (i, j): [Choice((i, j), rng.random(), rng.random())] for j in range(1, 15) for i in range(max(j - 4, 0), j)
    }
    chain = Chain(14, spans)
    found = best_plans(chain, 2.0, 30)
    assert found[0] == solve(chain, 2.0)
    assert len({plan.keys for plan in found}) == 30
    assert sorted(plan.loss for plan in found) == [plan.loss for plan in found]


def test_states_hold_for_runners_up() -> None:
    spans = {
        (0, 1): [Choice("a", 1.0, 0.0, after=0), Choice("b", 1.0, 0.5, after=1)],
        (1, 2): [Choice("c", 1.0, 0.0, before=0), Choice("d", 1.0, 0.0, before=1)],
    }
    assert [plan.keys for plan in best_plans(Chain(2, spans), math.inf, 4)] == [("a", "c"), ("b", "d")]


def test_refusals() -> None:
    chain = Chain(1, {(0, 1): [Choice("a", 1.0, 0.0)]})
    with pytest.raises(BudgetInfeasibleError, match=r"budget of 0.5 ms: the fastest takes 1.0 ms"):
        best_plans(chain, 0.5, 1)
    with pytest.raises(ProblemError, match=r"count \(=0\) must be an integer of at least 1"):
        best_plans(chain, 1.0, 0)
    with pytest.raises(ProblemError, match=r"budget_ms \(=nan\) must be a number of at least 0"):
        best_plans(chain, math.nan, 1)


def test_more_plans_asked_for_than_there_are() -> None:
    chain = Chain(1, {(0, 1): [Choice("a", 1.0, 0.0), Choice("b", 2.0, 1.0)]})
    assert [plan.keys for plan in best_plans(chain, 9.0, 10**12)] == [("a",), ("b",)]


def test_a_loss_too_small_to_change_a_sum_ends_the_search_for_the_price() -> None:
    chain = Chain(1, {(0, 1): [Choice("slow", 1.0, -1.0), Choice("fast", 0.0, 1e-159)]})
    assert [plan.keys for plan in best_plans(chain, 0.0, 2)] == [("fast",)]


def test_labels_above_the_budget_are_dropped_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("dp_solver.solve")
    sizes = []

    def counted(points: np.ndarray, count: int) -> np.ndarray:
        sizes.append(points.shape[1])
        return skyband(points, count)

    monkeypatch.setattr(module, "skyband", counted)
    monkeypatch.setattr(module, "frontier", None)  # the whole frontier has 2**30 plans
    chain = Chain(30, {(i, i + 1): [Choice(0, 0.0, 0.0), Choice(1, 2.0**i, -(2.0**i))] for i in range(30)})
    assert [plan.cost for plan in best_plans(chain, 3.5, 2)] == [3.0, 2.0]
    assert max(sizes) <= 8


def test_a_region_above_the_budget_is_left_out() -> None:
    slow = Parallel(0.0, (Chain(1, {(0, 1): [Choice("slow", 9.0, -5.0)]}),), after="a")
    spans = {(0, 1): [slow, Choice("fast", 1.0, 0.0)], (1, 2): [Choice("x", 0.0, 0.0, "a"), Choice("y", 0.0, 0.0)]}
    assert [plan.keys for plan in best_plans(Chain(2, spans), 2.0, 3)] == [("fast", "y")]


POINTS = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=12)


@settings(max_examples=500, deadline=None)
@given(POINTS, st.integers(1, 4))
def test_skyband_by_definition(points: list[tuple[int, int, int]], count: int) -> None:
    order = sorted(range(len(points)), key=lambda k: (*points[k], k))
    kept = [k for place, k in enumerate(order) if sum(points[j][1] <= points[k][1] for j in order[:place]) < count]
    array = np.array(points, dtype=float).T
    assert skyband(array, count).tolist() == kept
    if count == 1:
        assert nondominated(array).tolist() == kept
