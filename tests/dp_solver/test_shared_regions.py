"""A chain or region that stands in several places, as one object, is solved once and answers as if it were copies."""

import copy

import numpy as np
import pytest
from random_trees import best_of, points

from dp_solver import Chain, Choice, Parallel, best_plans, enumerate_plans, frontier
from dp_solver.labels import solve_labels
from dp_solver.pareto import nondominated

BRANCH = Chain(2, {(0, 1): [Choice("a", 2.0, 0.0), Choice("b", 1.0, 0.5)], (1, 2): [Choice("c", 1.0, 0.1)]})


def calls_of_prune(chain: Chain) -> int:
    calls = 0

    def counted(candidates: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return nondominated(candidates)

    solve_labels(chain, counted)
    return calls


def network(copies: bool, blocks: int = 4) -> Chain:
    """Blocks of two equal branches; with `copies` every one is an object of its own."""

    def block() -> Parallel:
        return Parallel(0.25, (again(BRANCH), again(BRANCH)))

    def again(thing: Chain | Parallel) -> Chain | Parallel:
        return copy.deepcopy(thing) if copies else thing

    region = block()
    return Chain(blocks, {(i, i + 1): [again(region)] for i in range(blocks)})


def test_the_answer_is_that_of_copies() -> None:
    shared, apart = frontier(network(copies=False)), frontier(network(copies=True))
    assert points(shared) == points(apart) == best_of(enumerate_plans(network(copies=False)))
    assert [shared.plan(k) for k in range(len(shared))] == [apart.plan(k) for k in range(len(apart))]
    assert best_plans(network(copies=False), 20.0, 5) == best_plans(network(copies=True), 20.0, 5)
    rough, rough_apart = (frontier(network(copies), resolution_ms=0.5) for copies in (False, True))
    assert (points(rough), rough.slack_ms) == (points(rough_apart), rough_apart.slack_ms)


def test_it_is_solved_once() -> None:
    assert calls_of_prune(network(copies=False)) == 4 + 2 + 2  # places of the network, of a branch, and a join of two
    assert calls_of_prune(network(copies=True)) == 4 + 4 * (2 * 2 + 2)


def test_equal_chains_keep_their_own_keys() -> None:
    one, true = (Chain(1, {(0, 1): [Choice(key, 1.0, 0.0)]}) for key in (1, True))
    assert one == true
    plan = frontier(Chain(1, {(0, 1): [Parallel(0.0, (one, true))]})).plan(0)
    assert [type(key) for key in plan] == [int, bool]


@pytest.mark.parametrize("resolution_ms", [None, 1.0])
def test_sharing_at_every_depth_takes_time_by_depth(resolution_ms: float | None) -> None:
    chain = Chain(1, {(0, 1): [Choice("a", 0.0, 0.0)]})
    for _ in range(40):  # 2**40 copies, were they apart
        chain = Chain(1, {(0, 1): [Parallel(0.0, (chain, chain))]})
    assert len(frontier(chain, resolution_ms=resolution_ms)) == 1
