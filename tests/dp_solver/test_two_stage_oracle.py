"""T_opt, I_ext and the answer of the two-stage program, against all ways to cut written out one by one."""

import itertools
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from depthcomp_errors import BudgetInfeasibleError
from dp_solver import extended_importance, normalized, optimal_latency, two_stage

pytestmark = pytest.mark.whole

LONGEST = 5
Latency = dict[tuple[int, int], float]
Importance = dict[tuple[int, int, int, int], float]
EIGHTHS = st.integers(0, 24).map(lambda n: n / 8)  # sums of these are exact, and ties are frequent
SCORES = st.integers(-12, 6).map(lambda n: n / 8)


def subsets(inner: range) -> list[tuple[int, ...]]:
    return [cuts for size in range(len(inner) + 1) for cuts in itertools.combinations(inner, size)]


def steps(i: int, cuts: tuple[int, ...], j: int) -> list[tuple[int, int]]:
    return list(itertools.pairwise((i, *cuts, j)))


def measured_ways(latency: Latency, i: int, j: int) -> dict[tuple[int, ...], float]:
    """The latency of (i, j] by the cut points inside it, for all sets of cut points between merges that T has."""
    ways = {cuts: steps(i, cuts, j) for cuts in subsets(range(i + 1, j))}
    return {cuts: sum(latency[span] for span in way) for cuts, way in ways.items() if set(way) <= latency.keys()}


def promise(importance: Importance, i: int, j: int, a: int, b: int, shift: float = 0.0) -> float:
    """The most that parts of (i, j] add up to, each less `shift`, all states at the cuts between them 0."""
    sums = []
    for cuts in subsets(range(i + 1, j)):
        states = (a, *(0 for _ in cuts), b)
        entries = [(*span, *ends) for span, ends in zip(steps(i, cuts, j), itertools.pairwise(states), strict=True)]
        if set(entries) <= importance.keys():
            sums.append(sum(importance[entry] - shift for entry in entries))
    return max(sums, default=-math.inf)


@st.composite
def latencies(draw: DrawFn) -> Latency:
    length = draw(st.integers(1, LONGEST))
    spans = [(i, j) for j in range(1, length + 1) for i in range(j)]
    kept = draw(st.lists(st.sampled_from(spans), unique=True, max_size=len(spans) // 2)) if draw(st.booleans()) else []
    return {span: draw(EIGHTHS) for span in spans if span not in kept or span == (0, length)}


@st.composite
def problems(draw: DrawFn) -> tuple[Latency, Importance]:
    """Both tables of one network; entries may be missing, as where a span is measured in one state only."""
    latency = draw(latencies())
    entries = [(*span, a, b) for span in latency for a in (0, 1) for b in (0, 1)]
    gone = draw(st.sets(st.sampled_from(entries))) if draw(st.booleans()) else set()
    whole = (0, max(j for _, j in latency), 1, 1)
    return latency, {entry: draw(SCORES) for entry in entries if entry not in gone or entry == whole}


@settings(max_examples=500, deadline=None)
@given(latencies())
def test_optimal_latency_is_the_least_over_all_ways_to_cut(latency: Latency) -> None:
    optimal, breaks = optimal_latency(latency)
    assert optimal.keys() == breaks.keys() == latency.keys()
    for (i, j), ms in optimal.items():
        ways = measured_ways(latency, i, j)
        assert ms == min(ways.values())
        assert breaks[i, j] == min((cuts for cuts in ways if ways[cuts] == ms), key=lambda cuts: cuts[::-1])


@settings(max_examples=500, deadline=None)
@given(problems())
def test_extended_importance_is_the_most_over_all_ways_to_cut(problem: tuple[Latency, Importance]) -> None:
    _, importance = problem
    extended = extended_importance(importance)
    assert extended == {key: promise(importance, *key) for key in importance}


@settings(max_examples=300, deadline=None)
@given(problems(), st.sampled_from([0.0, 0.5, 1.0, 1.6]), st.sets(st.integers(1, LONGEST)), st.data())
def test_each_part_pays_the_normalisation(
    problem: tuple[Latency, Importance], alpha: float, activations: set[int], data: st.DataObject
) -> None:
    _, importance = problem
    baseline = data.draw(st.sampled_from(["original", "single", "all"]))
    own = {0, *activations}
    counted = [
        value
        for (i, j, a, b), value in importance.items()
        if baseline == "all" or (j == i + 1 and (baseline == "single" or (a, b) == (int(i in own), int(j in own))))
    ]
    assume(counted)
    shift = alpha * sum(counted) / len(counted)
    given_activations = activations if baseline == "original" else None
    changed = normalized(importance, activations=given_activations, alpha=alpha, baseline=baseline)
    extended = extended_importance(changed)
    expected = {key: promise(importance, *key, shift=shift) for key in importance}
    assert extended == pytest.approx(expected, abs=1e-12)


def all_plans(latency: Latency, importance: Importance) -> list[tuple[float, float]]:
    """(latency, importance) of every path of positions and states from (0, 1), each span at its best in both."""
    last = max(j for _, j in latency)
    plans = []
    for cuts in subsets(range(1, last)):
        spans = steps(0, cuts, last)
        for states in itertools.product((0, 1), repeat=len(spans)):
            entries = [(*span, *ends) for span, ends in zip(spans, itertools.pairwise((1, *states)), strict=True)]
            if set(entries) <= importance.keys():
                cost = sum(min(measured_ways(latency, *span).values()) for span in spans)
                plans.append((cost, sum(promise(importance, *entry) for entry in entries)))
    return plans


@settings(max_examples=300, deadline=None)
@given(problems(), st.floats(0, 1))
def test_the_answer_is_the_best_of_all_plans(problem: tuple[Latency, Importance], share: float) -> None:
    latency, importance = problem
    plans = all_plans(latency, importance)
    costs = [cost for cost, _ in plans]
    budget = share * (max(costs) + 1)
    within = [(-value, cost) for cost, value in plans if cost <= budget]
    if not within:
        with pytest.raises(BudgetInfeasibleError, match="no plan meets a budget") as caught:
            two_stage(latency, importance, budget)
        assert caught.value.best_ms == min(costs)
        return
    value, cost = min(within)  # of equal importance the faster
    found = two_stage(latency, importance, budget)
    assert (-found.value, found.cost_ms) == (value, cost)
    spans = steps(0, found.merge_ends[:-1], found.merge_ends[-1])
    assert sum(latency[span] for span in spans) == found.cost_ms  # the merges themselves take what is said


def test_a_way_leads_on_from_where_no_span_was_measured_as_a_whole() -> None:
    latency = {(0, 1): 1.0, (1, 2): 1.0, (2, 3): 1.0, (0, 3): 9.0}
    assert optimal_latency(latency)[0][0, 3] == 3.0
    assert optimal_latency(latency)[1][0, 3] == (1, 2)
    scores = {(0, 1, 1, 0): -0.1, (1, 2, 0, 0): -0.1, (2, 3, 0, 1): -0.1, (0, 3, 1, 1): -9.0}
    assert extended_importance(scores)[0, 3, 1, 1] == pytest.approx(-0.3)


def test_positions_that_are_far_apart_take_no_longer() -> None:
    far = 10**15
    assert optimal_latency({(0, 1): 1.0, (1, far): 1.0, (0, far): 3.0})[1][0, far] == (1,)
    assert extended_importance({(0, 1, 1, 0): 0.0, (1, far, 0, 1): 0.0, (0, far, 1, 1): -1.0})[0, far, 1, 1] == 0.0
