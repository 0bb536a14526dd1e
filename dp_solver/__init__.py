"""A solver for the choices that meet a latency budget at the least loss: numbers in, plan out.

The problem. A network's tensors through which all data pass are *cuts* 0..L. The operators between cuts i and
j are a *span* (i, j], and each span offers *choices*: keep it, merge it into one convolution, drop it. A
choice has a *cost* (latency in ms, >= 0) and a *loss* (expected loss increase, any sign), and both add up
along a plan. A *plan* walks from cut 0 to cut L, one choice a span. The solver finds the *frontier*: all plans
that no other plan beats in both.

The recursion. Let F(j) be the frontier of the plans from cut 0 to cut j. A best plan to j ends with a
choice of some span (i, j]. Its beginning may be taken from F(i), because replacing a beaten beginning by the one
that beats it never makes the plan worse. Hence

    F(0) = {(0, 0)}
    F(j) = best of { (cost + c, loss + l) : span (i, j], choice (c, l) in it, (cost, loss) in F(i) }

where *best of* sorts by cost and keeps each point whose loss is below all before it. A point of F(j) is a
*label*; it remembers the choice and the label of F(i) that it came from, so F(L) leads back to the plans
themselves.

States. A partial plan may stand at a cut in a *state* (an activation is there or not, the tensor is wide or narrow)
that decides which choices may follow. There is one F for each cut and state.

Parallel regions. A span may hold branches that all run and then join, each a chain of its own. A `Parallel`
adds one point from each branch's frontier and the cost of the join. It keeps the best sums, and each of them
counts as a choice.

`frontier` answers every budget at once, and `solve` one budget. `best_plans` also gives the runners-up. `two_stage`
takes the tables of the method's authors. `labels` holds the recursion, and `kim23.two_stage` states it in the paper's
terms.

The source is Kim et al. 2023 (ICML, arXiv 2301.12187; latency table T, importance I, budget T_0). Their
solver runs over a grid of budgets with each cost rounded down to the grid, so that a budget can be overshot.
Labels hold real costs: they need no grid and keep every budget.

    >>> from dp_solver import Chain, Choice, frontier, solve
    >>> spans = {
    ...     (0, 1): [Choice("keep a", 2.0, 0.0), Choice("drop a", 0.0, 0.9)],
    ...     (1, 2): [Choice("keep b", 2.0, 0.0)],
    ...     (0, 2): [Choice("merge ab", 2.5, 0.1)],
    ... }
    >>> front = frontier(Chain(2, spans))
    >>> [(cost, front.plan(k)) for k, cost in enumerate(front.costs.tolist())]
    [(2.0, ('drop a', 'keep b')), (2.5, ('merge ab',)), (4.0, ('keep a', 'keep b'))]
    >>> solve(Chain(2, spans), budget_ms=3.0).keys
    ('merge ab',)
"""

from dp_solver.brute_force import enumerate_plans
from dp_solver.frontier import Frontier, frontier
from dp_solver.kim23.tables import extended_importance, normalized, optimal_latency
from dp_solver.kim23.two_stage import TwoStageProblem, TwoStageResult, two_stage, two_stage_problem
from dp_solver.problem import Chain, Choice, Parallel
from dp_solver.solve import Solution, best_plans, solve

__all__ = [
    "Chain",
    "Choice",
    "Frontier",
    "Parallel",
    "Solution",
    "TwoStageProblem",
    "TwoStageResult",
    "best_plans",
    "enumerate_plans",
    "extended_importance",
    "frontier",
    "normalized",
    "optimal_latency",
    "solve",
    "two_stage",
    "two_stage_problem",
]
