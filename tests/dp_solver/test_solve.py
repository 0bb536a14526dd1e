import math

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from depthcomp_errors import BudgetInfeasibleError, ProblemError
from dp_solver import Chain, Choice, Parallel, Solution, solve

pytestmark = pytest.mark.whole

COST_STEP = 1 / 64  # budgets lie half a step off: the MILP's feasibility tolerance of 1e-6 decides nothing


def random_chain(rng: np.random.Generator, length: int, states: tuple[object, ...] = (None,)) -> Chain:
    """Every span of at most 6 operators, two choices between each two states; merging is faster and costs loss."""

    def choice(i: int, j: int, key: int, before: object, after: object) -> Choice:
        cost = int(rng.integers(20, 80) * (j - i) ** 0.6) * COST_STEP
        return Choice((i, j, key), cost, (j - i - 1 + key) ** 1.3 * rng.random(), before, after)

    def choices(i: int, j: int) -> list[Choice]:
        return [choice(i, j, key, a, b) for key in (0, 1) for a in states for b in states]

    spans = [(i, j) for i in range(length) for j in range(i + 1, min(i + 6, length) + 1)]
    return Chain(length, {span: choices(*span) for span in spans}, start=states[0])


def with_region(chain: Chain, start: int, end: int, region: Parallel) -> Chain:
    """`chain` with `region` as one more item of span (start, end], and no other span that overlaps it."""
    apart = {span: items for span, items in chain.spans.items() if span[1] <= start or span[0] >= end}
    return Chain(chain.length, apart | {(start, end): [*chain.spans[start, end], region]}, chain.start, chain.ends)


class FlowModel:
    """The problem as a 0/1 flow: one variable an item, unit flow through each chain that is used."""

    def __init__(self, chain: Chain) -> None:
        self.costs: list[float] = []
        self.losses: list[float] = []
        self.rows: list[dict[int, int]] = []  # {variable: coefficient}, one row a cut
        self.totals: list[float] = []
        self.add_chain(chain, entry=None)

    def add_variable(self, cost: float, loss: float) -> int:
        self.costs.append(cost)
        self.losses.append(loss)
        return len(self.costs) - 1

    def add_chain(self, chain: Chain, entry: int | None) -> None:
        """What leaves the start is the entry's value (1 at the root), what leaves another state of a cut came in."""
        balance: dict[tuple[int, object], dict[int, int]] = {(0, chain.start): {}}
        for (start, end), items in chain.spans.items():
            for item in items:
                variable = self.add_item(item)
                balance.setdefault((start, item.before), {})[variable] = 1
                if end < chain.length:
                    balance.setdefault((end, item.after), {})[variable] = -1
                elif not chain.accepts(end, item.after):
                    balance.setdefault(("refused", item.after), {})[variable] = -1
        if chain.length:
            if entry is not None:
                balance[0, chain.start][entry] = -1
            self.rows += balance.values()
            self.totals += [float(place == (0, chain.start) and entry is None) for place in balance]

    def add_item(self, item: Choice | Parallel) -> int:
        if isinstance(item, Choice):
            return self.add_variable(item.cost, item.loss)
        variable = self.add_variable(item.join_cost, 0.0)
        for branch in item.branches:
            self.add_chain(branch, entry=variable)
        return variable

    def least_loss(self, budget_ms: float) -> float:
        flow = np.zeros((len(self.rows), len(self.costs)))
        for row, terms in zip(flow, self.rows, strict=True):
            row[list(terms)] = list(terms.values())
        result = milp(
            self.losses,
            constraints=[
                LinearConstraint(flow, self.totals, self.totals),
                LinearConstraint(np.array([self.costs]), ub=budget_ms),
            ],
            integrality=np.ones(len(self.costs)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0},
        )
        return float(result.fun)


def check_against_milp(chain: Chain) -> None:
    fastest, best = smallest_cost(chain), solve(chain, math.inf)
    model = FlowModel(chain)
    for fraction in (0.1, 0.3, 0.5, 0.7, 0.9):
        budget_ms = (math.floor((fastest + fraction * (best.cost - fastest)) / COST_STEP) + 0.5) * COST_STEP
        solution = solve(chain, budget_ms)
        assert solution.cost <= budget_ms
        assert solution.loss == pytest.approx(model.least_loss(budget_ms), rel=1e-6)


def smallest_cost(chain: Chain) -> float:
    with pytest.raises(BudgetInfeasibleError, match="no plan meets a budget") as caught:
        solve(chain, 0.0)
    return caught.value.best_ms


def random_tree(seed: int) -> Chain:
    """A chain of 20 to 60 cuts: with two states in half of the seeds, with nested regions in a third of them."""
    rng = np.random.default_rng(seed)
    states = ("on", "off") if seed % 2 else (None,)
    chain = random_chain(rng, int(rng.integers(20, 61)), states)
    if seed % 3 == 0:
        inner = Parallel(5 * COST_STEP, (random_chain(rng, 3), Chain(0, {})), states[-1], states[0])
        branches = (with_region(random_chain(rng, 8, states), 2, 4, inner), random_chain(rng, 6), Chain(0, {}))
        chain = with_region(chain, 5, 11, Parallel(9 * COST_STEP, branches, states[0], states[-1]))
    return chain


@pytest.mark.parametrize("seed", range(30))
def test_agrees_with_milp(seed: int) -> None:
    tree = random_tree(seed)
    assert 20 <= tree.length <= 60
    check_against_milp(tree)


def test_end_states_agree_with_milp() -> None:
    rng = np.random.default_rng(0)
    chain = random_chain(rng, 20, ("on", "off"))
    check_against_milp(Chain(chain.length, chain.spans, chain.start, ends=["off"]))


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_milp_on_parallel_regions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inner = Parallel(5 * COST_STEP, (random_chain(rng, 3), Chain(0, {})))
    branches = (with_region(random_chain(rng, 8), 2, 4, inner), random_chain(rng, 6), Chain(0, {}))
    chain = with_region(random_chain(rng, 20), 5, 11, Parallel(9 * COST_STEP, branches))
    assert len(solve(chain, math.inf).keys) == (20 - 6) + (8 - 2) + 3 + 6  # all is kept
    check_against_milp(chain)


def test_solution_of_a_small_chain() -> None:
    a, b, ab = Choice("a", 2.0, 0.0), Choice("b", 2.0, 0.0), Choice("ab", 3.0, 0.5)
    spans = {(0, 1): [a], (1, 2): [b], (0, 2): [ab]}
    assert solve(Chain(2, spans), 4.0) == Solution(keys=("a", "b"), cost=4.0, loss=0.0)
    assert solve(Chain(2, spans), 3.9) == Solution(keys=("ab",), cost=3.0, loss=0.5)
    assert type(solve(Chain(2, spans), 4.0).cost) is float


def test_costs_are_not_rounded_to_a_grid() -> None:
    pairs = [Choice("keep", 0.99, 0.0), Choice("merge", 0.5, 1.0)]
    chain = Chain(10, {(i, i + 1): pairs for i in range(10)})
    assert solve(chain, 9.0).keys.count("merge") == 2  # floored to whole ms, all ten would be kept at 9.9 ms


def test_infeasible_budget_names_the_smallest_feasible_one() -> None:
    chain = Chain(1, {(0, 1): [Choice("keep", 2.0, 0.0), Choice("merge", 1.25, 1.0)]})
    assert smallest_cost(chain) == 1.25
    assert solve(chain, 1.25).keys == ("merge",)


@pytest.mark.parametrize("budget", [math.nan, -1.0])
def test_malformed_budget(budget: object) -> None:
    with pytest.raises(ProblemError, match=r"budget_ms \(=.*\) must be a number of at least 0"):
        solve(Chain(0, {}), budget)
