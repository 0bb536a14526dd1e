"""Random problem trees for hypothesis, and what the frontier is by definition."""

from collections.abc import Iterable
from itertools import islice

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from dp_solver import Chain, Choice, Frontier, Parallel, enumerate_plans

Point = tuple[float, float]
PricedPlan = tuple[float, float, tuple[object, ...]]
Numbers = SearchStrategy[float]

MOST_PLANS = 2000  # larger trees are left out: the oracle is exponential
TENTHS = st.integers(0, 30).map(lambda n: n / 10)
WHOLE = (st.integers(0, 3), st.integers(-2, 2))  # ties are the rule, and sums are exact
COSTS_AND_LOSSES = [WHOLE, (TENTHS, TENTHS), (st.floats(0, 1e3), st.floats(-1e3, 1e3))]  # 0.1 + 0.2 against 0.3
STATES = [(None,), (0, 1), (None, "narrow", ("wide", 2))]


@st.composite
def items(draw: DrawFn, costs: Numbers, losses: Numbers, depth: int, states: SearchStrategy) -> list[Choice | Parallel]:
    keys = range(draw(st.integers(0, 3)))
    choices = [Choice(key or None, draw(costs), draw(losses), draw(states), draw(states)) for key in keys]
    if depth == 0 or draw(st.integers(0, 2)):
        return choices
    branches = draw(st.lists(chains(costs, losses, depth - 1), min_size=1, max_size=2))
    return [*choices, Parallel(draw(costs), tuple(branches), draw(states), draw(states))]


@st.composite
def chains(draw: DrawFn, costs: Numbers, losses: Numbers, depth: int) -> Chain:
    length = draw(st.integers(0, depth + 1))
    names = draw(st.sampled_from(STATES))
    states = st.sampled_from(names)
    spans = [(i, j) for j in range(1, length + 1) for i in range(j)]
    filled = {span: draw(items(costs, losses, depth, states)) for span in spans}
    start = end = draw(states)
    if length:
        end = draw(states)
        bridge = Choice("bridge", draw(costs), draw(losses), start, end)
        filled[0, length] = [*filled[0, length], bridge]
    ends = draw(st.none() | st.sets(states).map(lambda others: {end, *others}))
    return Chain(length, filled, start, ends)


def trees(depth: int = 2, kinds: list[tuple[Numbers, Numbers]] = COSTS_AND_LOSSES) -> SearchStrategy[Chain]:
    return st.one_of([chains(costs, losses, depth=depth) for costs, losses in kinds])


def all_plans(tree: Chain) -> list[PricedPlan]:
    plans = list(islice(enumerate_plans(tree), MOST_PLANS))
    assume(len(plans) < MOST_PLANS)
    return plans


def best_of(plans: Iterable[tuple[float, float, object]]) -> list[Point]:
    """The frontier by definition: rising cost, each loss below all losses before it."""
    front: list[Point] = []
    for cost, loss in sorted({(cost, loss) for cost, loss, _ in plans}):
        if not front or loss < front[-1][1]:
            front.append((cost, loss))
    return front


def points(front: Frontier) -> list[Point]:
    return list(zip(front.costs.tolist(), front.losses.tolist(), strict=True))
