"""What is no problem, no frontier and no text of one is refused with a sentence."""

import json
import sys

import numpy as np
import pytest

from depthcomp_errors import ProblemError
from dp_solver import Chain, Choice, Frontier, Parallel, best_plans, enumerate_plans, frontier, solve, two_stage_problem

FRONT = frontier(Chain(1, {(0, 1): [Choice(None, 1.0, 0.0)]}))


@pytest.mark.parametrize(
    "call", [frontier, enumerate_plans, lambda given: solve(given, 1.0), lambda given: best_plans(given, 1.0, 1)]
)
@pytest.mark.parametrize("given", [None, {}, [1]])
def test_no_chain(call: object, given: object) -> None:
    with pytest.raises(ProblemError, match=r"the problem \(=.*\) must be a Chain; make one of its spans"):
        call(given)


@pytest.mark.parametrize("text", [None, 3, {}])
def test_no_text(text: object) -> None:
    with pytest.raises(ProblemError, match=r"the frontier is of type .* and must be JSON text; give what"):
        Frontier.from_json(text)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("costs", "[1" + 400 * "0" + "]", "costs of the frontier must be a list of finite numbers"),
        ("slack_ms", "1" + 400 * "0", r"slack_ms \(=1000+\) of the frontier must be a number of at least 0"),
        ("slack_ms", "1e999", r"slack_ms \(=inf\) of the frontier must be a number"),
        ("keys", "[1e999]", "a key of the frontier is a number too large for a float; write it with"),
        ("schema_version", "true", "the frontier has schema_version True, and this release reads 1"),
    ],
)
def test_damaged_fields(field: str, value: str, sentence: str) -> None:
    fields = {name: json.dumps(part) for name, part in json.loads(FRONT.to_json()).items()} | {field: value}
    with pytest.raises(ProblemError, match=sentence):
        Frontier.from_json("{" + ", ".join(f'"{name}": {part}' for name, part in fields.items()) + "}")


def test_a_frontier_of_another_problem() -> None:
    problem = two_stage_problem({(0, 1): 1.0}, {(0, 1, 1, 1): 0.0})
    with pytest.raises(ProblemError, match=r"key None is none of this problem's; give a plan or frontier of its own"):
        problem.result(FRONT, 9.0)


def test_the_number_of_a_plan_is_an_integer() -> None:
    for k in ("x", np.array([0, 0])):
        with pytest.raises(IndexError, match=r"the frontier has no plan .*; use 0\.\.0"):
            FRONT.plan(k)


def test_regions_within_regions_beyond_the_stack() -> None:
    chain = Chain(0, {})
    for _ in range(sys.getrecursionlimit()):
        chain = Chain(1, {(0, 1): [Parallel(0.0, (chain,))]})
    with pytest.raises(ProblemError, match="has too many regions within regions for Python's stack; write a Parallel"):
        frontier(chain)


def test_ends_may_be_an_array() -> None:
    chain = Chain(1, {(0, 1): [Choice("a", 1.0, 0.0, after=1)]}, ends=np.array([0, 1]))
    assert chain.ends == {0, 1}
