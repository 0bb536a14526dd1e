import random
from collections.abc import Hashable

import pytest

from dp_solver import frontier, two_stage, two_stage_problem
from dp_solver.kim23.key_order import key_order

IN_ORDER = [
    None,
    -1,
    0.5,
    True,
    9,
    10,
    "10",
    "9",
    "a",
    (),
    (9,),
    (9, 1),
    (10,),
    ("a",),
    b"bytes",
    float("nan"),
    frozenset(),
]


@pytest.mark.parametrize("seed", range(5))
def test_keys_of_any_kind_have_one_order(seed: int) -> None:
    mixed = random.Random(seed).sample(IN_ORDER, len(IN_ORDER))
    assert list(map(repr, sorted(mixed, key=key_order))) == list(map(repr, IN_ORDER))


@pytest.mark.parametrize(
    "kernels",
    [(9, 10), ((3, 1, False), (10, 1, False)), (0.5, 3), (None, 3), (9, "3x3"), ((2,), (10, 1))],
    ids=repr,
)
def test_of_tables_that_tie_the_least_kernel_wins_by_value(kernels: tuple[Hashable, Hashable]) -> None:
    for order in (kernels, kernels[::-1]):
        latency = {(0, 1, kernel): 1.0 for kernel in order}
        scores = {(0, 1, 1, 1, kernel): 0.5 for kernel in order}
        assert two_stage(latency, scores, 1.0).keys == ((0, 1, 1, 1, kernels[0]),)


def test_spans_and_states_are_ordered_by_value_too() -> None:
    spans = [(i, j) for j in range(1, 13) for i in range(j)]
    latency = dict.fromkeys(spans, 1.0)
    scores = {(*span, a, b): 0.0 for span in spans for a in (0, 1) for b in (0, 1)}
    shuffled = dict(random.Random(0).sample(list(scores.items()), len(scores)))
    problem, mixed = two_stage_problem(latency, scores), two_stage_problem(latency, shuffled)
    assert [item.key for items in mixed.chain.spans.values() for item in items] == [
        (i, j, a, b) for i, j in spans for a in (0, 1) for b in (0, 1)
    ]
    assert frontier(mixed.chain).plan(0) == frontier(problem.chain).plan(0)
