import copy
import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_trees import WHOLE, all_plans, best_of, points, trees

from depthcomp_errors import BudgetInfeasibleError, ProblemError
from dp_solver import Chain, Choice, Parallel, enumerate_plans, frontier

pytestmark = pytest.mark.whole


def random_chain(length: int, seed: int) -> Chain:
    rng = np.random.default_rng(seed)
    spans = [(i, j) for i in range(length) for j in range(i + 1, length + 1)]
    return Chain(length, {span: [Choice(span, rng.random(), rng.normal())] for span in spans})


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees())
def test_agrees_with_brute_force(tree: Chain) -> None:
    plans = all_plans(tree)
    front = frontier(tree)
    assert points(front) == best_of(plans)
    assert {(*point, front.plan(k)) for k, point in enumerate(points(front))} <= set(plans)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees(kinds=[WHOLE]))
def test_ties_go_to_the_fewest_changes(tree: Chain) -> None:
    fewest: dict[tuple[float, float], int] = {}
    for cost, loss, keys in all_plans(tree):
        fewest[cost, loss] = min(changes(keys), fewest.get((cost, loss), len(keys)))
    front = frontier(tree)
    assert [changes(front.plan(k)) for k in range(len(front))] == [fewest[point] for point in points(front)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=12, max_size=12))
def test_ties_go_to_the_least_sum_of_the_changes_given(drawn: list[tuple[int, int, int]]) -> None:
    spans: dict[tuple[int, int], list[Choice]] = {}
    for place, (cost, loss, count) in enumerate(drawn):
        span = list(itertools.combinations(range(4), 2))[place % 6]
        spans.setdefault(span, []).append(Choice((place, count), cost, loss, changes=count))
    chain = Chain(1, {(0, 1): [Parallel(0.0, (Chain(3, spans),))]})
    fewest: dict[tuple[float, float], int] = {}
    for cost, loss, keys in enumerate_plans(chain):
        count = sum(count for _, count in keys)
        fewest[cost, loss] = min(count, fewest.get((cost, loss), count))
    front = frontier(chain)
    found = [sum(count for _, count in front.plan(k)) for k in range(len(front))]
    assert found == [fewest[point] for point in points(front)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=30, max_size=30), st.integers(1, 4))
def test_remaining_ties_go_to_the_first_in_order(drawn: list[tuple[int, int, int]], length: int) -> None:
    numbers = iter(drawn)
    spans: dict[tuple[int, int], list[Choice]] = {}
    for i, j in itertools.combinations(range(length + 1), 2):
        for place in range(3):
            cost, loss, state = next(numbers)
            spans.setdefault((i, j), []).append(Choice((i, place), cost, loss, None if i == 0 else 0, state // 2))
    spans[0, length].append(Choice((0, 3), 9, 9, None, 0))
    chain = Chain(length, spans)
    best: dict[tuple[float, float], list[tuple[int, list[object], tuple[object, ...]]]] = {}
    for cost, loss, keys in enumerate_plans(chain):
        best.setdefault((cost, loss), []).append((len(keys), list(reversed(keys)), keys))  # read from the plan's end
    front = frontier(chain)
    assert [front.plan(k) for k in range(len(front))] == [min(best[point])[2] for point in points(front)]


def changes(keys: tuple[object, ...]) -> int:
    return sum(key is not None for key in keys)


def test_plans_add_up_to_the_reported_costs_and_losses() -> None:
    chain = random_chain(30, seed=1)
    front = frontier(chain)
    for k in range(len(front)):
        chosen = [chain.spans[key][0] for key in front.plan(k)]
        assert math.fsum(choice.cost for choice in chosen) == pytest.approx(front.costs[k], rel=1e-12)
        magnitude = math.fsum(abs(choice.loss) for choice in chosen)
        total = math.fsum(choice.loss for choice in chosen)
        assert total == pytest.approx(front.losses[k], abs=1e-12 * magnitude)


def test_plans_step_from_cut_to_cut() -> None:
    front = frontier(random_chain(30, seed=2))
    for k in range(len(front)):
        starts, ends = zip(*front.plan(k), strict=True)
        assert (*starts, 30) == (0, *ends)


def test_frontier_that_doubles_with_each_cut() -> None:
    chain = Chain(10, {(i, i + 1): [Choice(0, 0.0, 0.0), Choice(1, 2.0**i, -(2.0**i))] for i in range(10)})
    front = frontier(chain)
    assert points(front) == [(n, -n) for n in range(1024)]
    assert front.plan(0b1000000101) == (1, 0, 1, 0, 0, 0, 0, 0, 0, 1)


def test_keys_of_nested_branches_come_in_order() -> None:
    def leaf(name: str) -> Chain:
        return Chain(1, {(0, 1): [Choice(name, 1.0, 0.0)]})

    inner = Chain(1, {(0, 1): [Parallel(0.25, (leaf("b"), Chain(0, {}), leaf("c")))]})
    outer = Parallel(0.5, (leaf("a"), inner, leaf("d")))
    spans = {(0, 1): [Choice("first", 1.0, 0.0)], (1, 2): [outer], (2, 3): [Choice("last", 1.0, 0.0)]}
    front = frontier(Chain(3, spans))
    assert points(front) == [(6.75, 0.0)]
    assert front.plan(0) == ("first", "a", "b", "c", "d", "last")


def test_identity_chain() -> None:
    front = frontier(Chain(0, {}))
    assert points(front) == [(0.0, 0.0)]
    assert front.plan(0) == ()
    assert front.at(0) == 0


def test_ties_go_to_the_earliest_start_then_to_the_first_item() -> None:
    one, two = Choice("one", 1.0, 0.0), Choice("two", 2.0, 0.0)
    halves = {(1, 2): [one], (0, 1): [one, Choice("other", 1.0, 0.0)]}
    assert frontier(Chain(2, halves)).plan(0) == ("one", "one")
    assert frontier(Chain(2, halves | {(0, 2): [two]})).plan(0) == ("two",)


def test_ties_go_to_the_plan_with_fewer_changes_before_the_first_item() -> None:
    merge, keep, other = Choice("merge", 2.0, 0.0), Choice(None, 1.0, 0.0), Choice("other", 1.0, 0.0)
    spans = {(0, 1): [other, keep], (1, 2): [keep], (0, 2): [merge]}
    assert frontier(Chain(2, spans)).plan(0) == (None, None)
    worse = Choice(None, 2.0, 1.0)
    assert frontier(Chain(1, {(0, 1): [worse, merge]})).plan(0) == ("merge",)  # less loss counts first


def test_order_of_the_mapping_does_not_matter() -> None:
    chain = random_chain(12, seed=3)
    rounded = {span: [Choice(span, round(c.cost, 1), round(c.loss))] for span, (c,) in chain.spans.items()}
    forwards, backwards = frontier(Chain(12, rounded)), frontier(Chain(12, dict(reversed(rounded.items()))))
    assert points(forwards) == points(backwards)
    assert all(forwards.plan(k) == backwards.plan(k) for k in range(len(forwards)))


def test_arrays_are_read_only_float64() -> None:
    front = frontier(random_chain(3, seed=4))
    assert front.costs.dtype == front.losses.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        front.costs[0] = 0.0


def test_frontier_survives_copies_and_pickling() -> None:
    front = frontier(Chain(1, {(0, 1): [Parallel(1.0, (random_chain(3, seed=5),))]}))
    for twin in (pickle.loads(pickle.dumps(front)), copy.deepcopy(front)):  # noqa: S301 -- our own bytes
        assert points(twin) == points(front)
        assert [twin.plan(k) for k in range(len(twin))] == [front.plan(k) for k in range(len(front))]
        assert not twin.costs.flags.writeable


def test_plan_out_of_range() -> None:
    front = frontier(Chain(1, {(0, 1): [Choice("slow", 2.0, 0.0), Choice("fast", 1.0, 1.0)]}))
    assert front.plan(-1) == front.plan(1) == ("slow",)
    for k in (2, -3):
        with pytest.raises(IndexError, match=rf"the frontier has no plan {k}; use 0\.\.1"):
            front.plan(k)


def test_at_finds_the_last_plan_within_the_budget() -> None:
    front = frontier(Chain(10, {(i, i + 1): [Choice(0, 0.1, 1.0), Choice(1, 0.2, 0.0)] for i in range(10)}))
    for k, cost in enumerate(front.costs):
        assert front.at(cost) == k
        assert front.at(np.nextafter(cost, math.inf)) == k
        assert k == 0 or front.at(np.nextafter(cost, 0.0)) == k - 1
    assert front.at(math.inf) == len(front) - 1


def test_budget_below_the_fastest_plan() -> None:
    front = frontier(Chain(1, {(0, 1): [Choice("keep", 1.5, 0.0)]}))
    with pytest.raises(BudgetInfeasibleError, match=r"budget of 1.0 ms: the fastest takes 1.5 ms") as caught:
        front.at(1.0)
    assert caught.value.best_ms == 1.5


@pytest.mark.parametrize("budget", [math.nan, -1.0, -math.inf, None, "70%", True, np.array(1.0)])
def test_malformed_budget(budget: object) -> None:
    with pytest.raises(ProblemError, match=r"budget_ms \(=.*\) must be a number of at least 0"):
        frontier(Chain(0, {})).at(budget)
