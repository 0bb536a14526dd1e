"""Faults that were seen in other solvers of this problem, each of which this one may not have."""

import ast
import random
from pathlib import Path

import pytest

import dp_solver
from depthcomp_errors import BudgetInfeasibleError, ProblemError
from dp_solver import Chain, Choice, Frontier, frontier, solve, two_stage, two_stage_problem

FORBIDDEN_CALLS = {"exit", "quit", "eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "torch"}


def test_costs_that_are_rounded_down_overshoot_the_budget() -> None:
    """Each of ten spans takes 0.99 ms: on a grid of 1 ms, rounded down, all of them would be free."""
    spans = {(i, i + 1): [Choice("keep", 0.99, 0.0), Choice("merge", 0.5, 1.0)] for i in range(10)}
    for resolution_ms in (None, 1.0, 0.05):
        for budget_ms in (5.0, 6.1, 8.0, 9.89):
            assert solve(Chain(10, spans), budget_ms, resolution_ms=resolution_ms).cost <= budget_ms
    T = {(i, i + 1): 0.99 for i in range(10)} | {(i, i + 2): 1.2 for i in range(9)}
    scores = {(i, j, 1, 1): float(i - j + 1) for i, j in T}
    assert two_stage(T, scores, 9.0).cost_ms <= 9.0
    assert two_stage(T, scores, 9.0).value == -2.0  # two merges save 1.56 ms, one would leave 9.12 ms


@pytest.mark.parametrize("seed", range(5))
def test_tables_are_joined_by_key_and_not_by_row_order(seed: int) -> None:
    kernels = ["3x3", "5x5", "1x1"]
    T = {
        (i, j, k): 1.0 + 0.1 * n + 0.3 * i + 0.2 * j for i, j in ((0, 1), (1, 2), (0, 2)) for n, k in enumerate(kernels)
    }
    scores = {(i, j, 1, 1, k): -0.1 * n - (j - i - 1) for i, j, k in T for n, k2 in enumerate(kernels) if k == k2}
    shuffled = dict(random.Random(seed).sample(list(scores.items()), len(scores)))
    in_order, mixed = two_stage_problem(T, scores), two_stage_problem(T, shuffled)
    assert mixed == in_order
    front = frontier(mixed.chain)
    for k in range(len(front)):
        keys = front.plan(k)
        assert front.costs[k] == pytest.approx(sum(T[i, j, kernel] for i, j, _, _, kernel in keys))
        assert front.losses[k] == pytest.approx(-sum(scores[key] for key in keys))


def test_no_exit_eval_exec_or_pickle() -> None:
    for path in sorted(Path(dp_solver.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", None))
                assert name not in FORBIDDEN_CALLS, f"{path.name}, line {node.lineno}"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not modules & FORBIDDEN_MODULES, f"{path.name}, line {node.lineno}"


def test_an_impossible_budget_is_an_error_to_catch_and_text_is_never_run() -> None:
    with pytest.raises(BudgetInfeasibleError, match="no plan meets a budget"):
        two_stage({(0, 1): 2.0}, {(0, 1, 1, 1): 0.0}, 1.0)
    with pytest.raises(ProblemError, match="the frontier is not JSON"):
        Frontier.from_json("__import__('os').abort()")


def test_plans_that_tie_may_end_merges_elsewhere() -> None:
    """Two ways of the same latency and value: either is right, so nothing may ask for one set of boundaries."""
    T = {(0, 1): 1.0, (1, 2): 1.0, (2, 3): 1.0, (0, 2): 1.5, (1, 3): 1.5}
    scores = {(0, 1, 1, 1): 0.0, (1, 2, 1, 1): 0.0, (2, 3, 1, 1): 0.0, (0, 2, 1, 1): -0.5, (1, 3, 1, 1): -0.5}
    found = two_stage(T, scores, 2.9)
    assert (found.value, found.cost_ms) == (-0.5, 2.5)
    assert found.kept_activations in ((1, 3), (2, 3))
    assert found.merge_ends == found.kept_activations
    assert found == two_stage(dict(reversed(T.items())), dict(reversed(scores.items())), 2.9)  # yet always the same one
