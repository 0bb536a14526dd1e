import itertools
import math

import numpy as np
import pytest

from depthcomp_errors import BudgetInfeasibleError, ProblemError
from dp_solver import (
    Chain,
    best_plans,
    extended_importance,
    frontier,
    normalized,
    optimal_latency,
    two_stage,
    two_stage_problem,
)

# Three convolutions, worked out by hand. Merging all three into one is slower than merging the first two.
T = {(0, 1): 4.0, (1, 2): 3.0, (2, 3): 2.0, (0, 2): 5.0, (1, 3): 6.0, (0, 3): 9.0}
T_OPT = {(0, 1): 4.0, (1, 2): 3.0, (2, 3): 2.0, (0, 2): 5.0, (1, 3): 5.0, (0, 3): 7.0}
BREAKS = {(0, 1): (), (1, 2): (), (2, 3): (), (0, 2): (), (1, 3): (2,), (0, 3): (2,)}
# The network has activations behind 1 and 3; position 2 is a linear bottleneck.
IMPORTANCE = {
    (0, 1, 1, 1): 0.0,
    (0, 1, 1, 0): -0.2,
    (1, 2, 1, 0): 0.0,
    (1, 2, 1, 1): 0.1,
    (1, 2, 0, 0): -0.1,
    (2, 3, 0, 1): 0.0,
    (2, 3, 1, 1): 0.1,
    (0, 2, 1, 0): -0.5,
    (1, 3, 1, 1): -0.3,
    (0, 3, 1, 1): -1.0,
}


def test_optimal_latency_by_hand() -> None:
    assert optimal_latency(T) == (T_OPT, BREAKS)
    assert list(optimal_latency(dict(reversed(T.items())))[0]) == list(reversed(T))


def test_of_equal_latencies_the_single_merge_wins_then_the_first_break() -> None:
    single = {(i, i + 1): 1.0 for i in range(3)}
    assert optimal_latency(single | {(0, 2): 2.0})[1][0, 2] == ()
    assert optimal_latency(single | {(0, 2): 2.0, (1, 3): 2.0, (0, 3): 9.0})[1][0, 3] == (1,)


def test_a_break_needs_a_span_behind_it() -> None:
    assert optimal_latency({(0, 1): 1.0, (0, 2): 5.0})[0][0, 2] == 5.0


def test_extended_importance_by_hand() -> None:
    extended = extended_importance(IMPORTANCE)
    assert extended[0, 2, 1, 0] == max(-0.5, -0.2 - 0.1)  # without the activation at 1, by parts
    assert extended[1, 3, 1, 1] == 0.0  # (1, 2, 1, 0) and (2, 3, 0, 1)
    assert extended[0, 3, 1, 1] == extended[0, 2, 1, 0] + 0.0  # extended twice
    assert {key for key in IMPORTANCE if extended[key] != IMPORTANCE[key]} == {
        (0, 2, 1, 0), (1, 3, 1, 1), (0, 3, 1, 1),
    }  # fmt: skip


def test_the_answer_by_hand() -> None:
    everything = two_stage(T, IMPORTANCE, math.inf)
    assert everything.value == 0.2
    assert everything.cost_ms == 9.0
    assert everything.kept_activations == everything.merge_ends == (1, 2, 3)  # 2 gains an activation
    fast = two_stage(T, IMPORTANCE, 8.9)
    assert fast.keys == ((0, 3, 1, 1),)
    assert (fast.cost_ms, fast.kept_activations, fast.merge_ends) == (7.0, (3,), (2, 3))  # 2 is a break of (0, 3]
    assert fast.value == pytest.approx(-0.3)
    assert two_stage(T, IMPORTANCE, 8.9, extend_importance=False).value == pytest.approx(-0.5)


def test_one_frontier_answers_every_budget() -> None:
    problem = two_stage_problem(T, IMPORTANCE)
    front = frontier(problem.chain)
    for budget in (7.0, 8.0, 9.0, math.inf):
        assert problem.result(front, budget) == two_stage(T, IMPORTANCE, budget)
    with pytest.raises(BudgetInfeasibleError, match=r"budget of 6.9 ms: the fastest takes 7.0 ms") as caught:
        two_stage(T, IMPORTANCE, 6.9)
    assert caught.value.best_ms == 7.0


def test_the_network_may_end_in_either_state_and_only_state_1_is_kept() -> None:
    ends = {(0, 1, 1, 0): 0.5, (0, 1, 1, 1): 0.4}
    assert two_stage({(0, 1): 1.0}, ends, 1.0).kept_activations == ()
    assert two_stage({(0, 1): 1.0}, ends, 1.0).merge_ends == (1,)
    assert two_stage({(0, 1): 1.0}, {(0, 1, 1, 1): 0.5, (0, 1, 1, 0): 0.4}, 1.0).kept_activations == (1,)


def test_position_0_has_state_1() -> None:
    assert two_stage({(0, 1): 1.0}, {(0, 1, 1, 1): 0.0, (0, 1, 0, 1): 9.0}, 1.0).value == 0.0


def test_ties_go_to_the_plan_that_removes_fewer_activations() -> None:
    latency = {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 5.0}  # (0, 2] costs 2.0 by parts
    entries = [(0, 1, 1, 1), (0, 1, 1, 0), (1, 2, 1, 1), (1, 2, 0, 1), (0, 2, 1, 1)]
    scores = dict.fromkeys(entries, 0.0) | {(0, 2, 1, 1): -1.0}
    assert two_stage(latency, scores, 2.0).kept_activations == (1, 2)
    ends = {(0, 1, 1, 0): 0.0, (0, 1, 1, 1): 0.0}
    assert two_stage({(0, 1): 1.0}, ends, 1.0).kept_activations == (1,)


def best_value(latency, importance, budget) -> float:
    """All sets of positions and states, each path priced by the definitions."""
    last = max(j for _, j in latency)
    values = [-math.inf]
    for size in range(last):
        for inner in itertools.combinations(range(1, last), size):
            path = (0, *inner, last)
            for states in itertools.product((0, 1), repeat=size + 1):
                steps = list(zip(path, path[1:], (1, *states), states, strict=False))
                if all(step in importance for step in steps):
                    cost = sum(latency[step[:2]] for step in steps)
                    values += [sum(importance[step] for step in steps)] if cost <= budget else []
    return max(values)


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_all_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spans = [(i, j) for j in range(1, 6) for i in range(j)]
    latency = {span: int(rng.integers(8, 40)) / 8 for span in spans}  # sums of these are exact
    measured = {(*span, a, b): int(rng.integers(-64, 8)) / 8 for span in spans for a in (0, 1) for b in (0, 1)}
    optimal, extended = optimal_latency(latency)[0], extended_importance(measured)
    for budget in rng.uniform(5, 20, size=5):
        expected = best_value(optimal, extended, budget)
        if math.isfinite(expected):
            assert two_stage(latency, measured, budget).value == expected


def test_layermerge_kernels_are_choices() -> None:
    merged = {(0, 1, "3x3"): 1.0, (1, 2, "3x3"): 1.0, (0, 2, "3x3"): 1.2, (0, 2, "5x5"): 3.0}
    scores = {(0, 1, 1, 1, "3x3"): 1.0, (1, 2, 1, 1, "3x3"): 1.0, (0, 2, 1, 1, "3x3"): 0.8, (0, 2, 1, 1, "5x5"): 2.5}
    assert two_stage(merged, scores, 1.5).keys == ((0, 2, 1, 1, "3x3"),)
    assert two_stage(merged, scores, 2.0).keys == ((0, 1, 1, 1, "3x3"), (1, 2, 1, 1, "3x3"))
    whole = two_stage(merged, scores, 3.0)
    assert whole.keys == ((0, 2, 1, 1, "5x5"),)
    assert whole.cost_ms == 3.0  # one convolution as it stands: no first stage
    assert whole.merge_ends == (2,)


def test_normalized_by_hand() -> None:
    own = [(0, 1, 1, 1), (1, 2, 1, 0), (2, 3, 0, 1)]  # activations behind 1 and 3
    scores = dict.fromkeys(IMPORTANCE, -0.5) | dict(zip(own, (0.3, 0.6, 0.9), strict=True))
    assert normalized(scores, activations={1, 3})[0, 3, 1, 1] == pytest.approx(-0.5 - 0.6)
    assert normalized(scores, activations={1, 3}, alpha=0.5)[0, 1, 1, 1] == pytest.approx(0.3 - 0.3)
    assert normalized(scores, activations={1, 3}, alpha=0.0) == scores
    single = (0.3 + 0.6 + 0.9 - 4 * 0.5) / 7
    assert normalized(scores, baseline="single")[0, 3, 1, 1] == pytest.approx(-0.5 - single)
    assert normalized(scores, baseline="all")[0, 3, 1, 1] == pytest.approx(-0.5 - (1.8 - 7 * 0.5) / 10)


def test_normalization_takes_spans_that_are_many() -> None:
    """Each entry carries the loss of a short training; a plan of many spans would pay it many times."""
    latency = {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 2.0}
    scores = {(0, 1, 1, 1): -0.1, (1, 2, 1, 1): -0.1, (0, 2, 1, 1): -0.15}
    assert two_stage(latency, scores, 2.0).kept_activations == (2,)
    assert two_stage(latency, normalized(scores, activations=[1, 2]), 2.0).kept_activations == (1, 2)


def test_normalization_refusals() -> None:
    with pytest.raises(ProblemError, match=r"baseline \(='mean'\) must be one of original, single, all"):
        normalized(IMPORTANCE, baseline="mean")
    with pytest.raises(
        ProblemError, match=r"no entry of I is a baseline of kind 'original' with activations \(=\[2\]\)"
    ):
        normalized({(1, 2, 1, 1): 0.0}, activations=[2])


@pytest.mark.parametrize("given", [{}, {"baseline": "original"}])
def test_the_original_baseline_needs_activations(given: dict) -> None:
    with pytest.raises(ProblemError, match=r"baseline 'original' needs activations, and none were given; name the"):
        normalized(IMPORTANCE, **given)


def test_a_network_without_activations_says_so() -> None:
    scores = {(0, 1, 1, 0): -0.2, (0, 1, 1, 1): -0.6}
    assert normalized(scores, activations=())[0, 1, 1, 0] == 0.0


@pytest.mark.parametrize("baseline", ["single", "all"])
def test_other_baselines_take_no_activations(baseline: str) -> None:
    with pytest.raises(
        ProblemError, match=r"activations \(=\[1\]\) go with baseline 'original' only, .* leave them out"
    ):
        normalized(IMPORTANCE, baseline=baseline, activations=[1])


def test_a_latency_without_importance_still_counts_in_stage_1() -> None:
    importance = {(0, 2, 1, 1): -0.1}
    assert two_stage({(0, 1): 1.0, (1, 2): 1.0, (0, 2): 5.0}, importance, 2.0).merge_ends == (1, 2)


@pytest.mark.parametrize(
    ("latency", "importance", "sentence"),
    [
        (None, IMPORTANCE, r"T \(=None\) must map keys to numbers; give a dict"),
        (T, [1], r"I \(=\[1\]\) must map keys to numbers; give a dict"),
        ({}, IMPORTANCE, r"T has 0 entries and I 10; each needs at least one"),
        (T, {}, r"T has 6 entries and I 0; each needs at least one"),
        (
            {(0, 1): 1.0},
            {(0, 1, 1, 1): 0.0, (0, 2, 1, 1): 0.0},
            r"1 entries of I have no latency in T: \(0, 2, 1, 1\); ",
        ),
        ({(0, 1): 1.0, (1, 2): 1.0}, {(0, 1, 1, 1): 0.0}, r"T ends at position 2 and I at position 1"),
        ({(0, 1): 1.0}, {(0, 1, 1, 1, 3): 0.0}, r"some keys of T and I name a kernel and some do not"),
        ({(0, 1): 1.0, (0, 1, 3): 1.0}, {(0, 1, 1, 1): 0.0}, r"some keys of T and I name a kernel and some do not"),
        ({(1, 0): 1.0}, {(0, 1, 1, 1): 0.0}, r"key \(1, 0\) of T must be \(i, j\) of integers with 0 <= i < j"),
        ({(0.0, 1): 1.0}, {(0, 1, 1, 1): 0.0}, r"key \(0.0, 1\) of T must be \(i, j\) of integers with"),
        ({"01": 1.0}, {(0, 1, 1, 1): 0.0}, r"key '01' of T must be \(i, j\) or, with a kernel, \(i, j, k\)"),
        (T, {(0, 1, 1): 0.0}, r"key \(0, 1, 1\) of I must be \(i, j, a, b\) or, with a kernel, \(i, j, a, b, k\)"),
        (
            T,
            {(0, 3, 1, 2): 0.0},
            r"key \(0, 3, 1, 2\) of I must be \(i, j, a, b\) of integers .* states a and b of 0 or 1",
        ),
        ({(0, 1): math.nan}, {(0, 1, 1, 1): 0.0}, r"T\[\(0, 1\)\] \(=nan\) must be a finite number"),
        ({(0, 1): -1.0}, {(0, 1, 1, 1): 0.0}, r"T\[\(0, 1\)\] \(=-1.0\) must be at least 0 ms"),
        ({(0, 1): 1.0}, {(0, 1, 1, 1): math.inf}, r"I\[\(0, 1, 1, 1\)\] \(=inf\) must be a finite number"),
        (T, {(0, 3, 0, 1): 0.0}, r"from cut 0 as far as cut 0 \(state 1\), never to cut 3"),
    ],
)
def test_tables_that_do_not_fit(latency: dict, importance: dict, sentence: str) -> None:
    with pytest.raises(ProblemError, match=sentence):
        two_stage_problem(latency, importance)


def test_numpy_integers_are_integers() -> None:
    def counted(table: dict) -> dict:
        return {tuple(map(np.int64, key)): value for key, value in table.items()}

    found = two_stage(counted(T), counted(IMPORTANCE), 8.9)
    assert found == two_stage(T, IMPORTANCE, 8.9)
    assert {type(part) for key in found.keys for part in key} == {int}
    assert normalized(counted(IMPORTANCE), activations=np.array([1, 3])) == normalized(IMPORTANCE, activations=[1, 3])


@pytest.mark.parametrize(
    ("function", "table", "sentence"),
    [
        (optimal_latency, [1], r"T \(=\[1\]\) must map keys to numbers"),
        (optimal_latency, {(0, 1): "fast"}, r"T\[\(0, 1\)\] \(='fast'\) must be a finite number"),
        (optimal_latency, {(0, 1, 3): 1.0}, r"key \(0, 1, 3\) of T names a kernel, .* leave the kernel out"),
        (extended_importance, None, r"I \(=None\) must map keys to numbers"),
        (extended_importance, {(0, 1): 1.0}, r"key \(0, 1\) of I must be \(i, j, a, b\)"),
        (extended_importance, {(0, 1, 1, 1, 3): 1.0}, r"key \(0, 1, 1, 1, 3\) of I names a kernel"),
        (normalized, {(0, 1, 1, 1): math.nan}, r"I\[\(0, 1, 1, 1\)\] \(=nan\) must be a finite number"),
        (normalized, 3, r"I \(=3\) must map keys to numbers"),
    ],
)
def test_malformed_tables_of_one_stage(function: object, table: object, sentence: str) -> None:
    with pytest.raises(ProblemError, match=sentence):
        function(table)


def test_malformed_normalization() -> None:
    with pytest.raises(ProblemError, match=r"alpha \(=nan\) must be a finite number"):
        normalized(IMPORTANCE, activations=[1], alpha=math.nan)
    with pytest.raises(ProblemError, match=r"activations \(=3\) must be a collection of positions, integers each"):
        normalized(IMPORTANCE, activations=3)
    for positions in (np.array(1), np.array([[1, 2]]), [np.array([1, 2])], "12"):
        with pytest.raises(ProblemError, match=r"activations \(=.*\) must be a collection of positions"):
            normalized(IMPORTANCE, activations=positions)
    with pytest.raises(ProblemError, match=r"baseline \(=\[\]\) must be one of"):
        normalized(IMPORTANCE, baseline=[])


def test_runners_up_are_described() -> None:
    problem = two_stage_problem(T, IMPORTANCE)
    plans = best_plans(problem.chain, 9.0, 3)
    described = [problem.describe(plan.keys) for plan in plans]
    assert described[0] == two_stage(T, IMPORTANCE, 9.0)
    assert [(found.cost_ms, found.value) for found in described] == [(plan.cost, -plan.loss) for plan in plans]
    assert problem.describe([(0, 3, 1, 1)]).merge_ends == (2, 3)


@pytest.mark.parametrize("keys", [[], [(0, 1, 1, 1)], [(2, 3, 0, 1)], [(0, 2, 1, 0), (2, 3, 1, 1)]])
def test_what_is_no_plan_is_not_described(keys: list) -> None:
    with pytest.raises(ProblemError, match=r"keys \(=.*\) must lead from position 0 in state 1 to position 3, each"):
        two_stage_problem(T, IMPORTANCE).describe(keys)
    for foreign in ("x", [1]):
        with pytest.raises(ProblemError, match=r"key .* is none of this problem's"):
            two_stage_problem(T, IMPORTANCE).describe([foreign])


@pytest.mark.parametrize("keys", [None, 3, {(0, 3, 1, 1)}, (key for key in [(0, 3, 1, 1)])])
def test_what_is_no_sequence_is_not_described(keys: object) -> None:
    with pytest.raises(ProblemError, match=r"keys \(=.*\) must be a sequence of entries of I; give those of a plan"):
        two_stage_problem(T, IMPORTANCE).describe(keys)


def test_only_a_frontier_of_the_problem_gives_a_result() -> None:
    problem = two_stage_problem(T, IMPORTANCE)
    with pytest.raises(ProblemError, match=r"the frontier \(=None\) must be a Frontier; give frontier"):
        problem.result(None, 9.0)
    part = two_stage_problem({(0, 1): 4.0}, {(0, 1, 1, 1): 0.0})  # its keys are keys of the problem, too
    for front in (frontier(part.chain), frontier(Chain(0, {}))):
        with pytest.raises(ProblemError, match=r"keys \(=.*\) must lead from position 0 in state 1 to position 3"):
            problem.result(front, 9.0)
