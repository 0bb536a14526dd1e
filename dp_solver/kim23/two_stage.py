"""The two-stage program of Kim et al. 2023, solved by the recursion of this package.

The network has positions 0..L: position 0 is its input, position j the place behind its j-th convolution, where an
activation may stand (state 1) or not (state 0). Two tables are given:

- T[i, j]: the latency in ms of all convolutions in (i, j] merged into one;
- I[i, j, a, b]: the importance of doing without all activations strictly between i and j while i is in state a and j in
  state b. Higher is better: it is the change in accuracy, mostly negative.

The solver finds the positions that keep an activation (the paper's A) and the ends of merged convolutions (S). Their
importance adds up to as much as possible within the latency budget T_0. Finding the best A and S for the trained
network itself is NP-hard; the sum stands in for it. With 0 = p_0 < p_1 < ... < p_n = L for the ends of spans
and b_k for the state at p_k, b_0 = 1,

    maximise    sum over k of I_ext[p_(k-1), p_k, b_(k-1), b_k]
    subject to  sum over k of T_opt[p_(k-1), p_k] <= T_0

Two stages find A and S together: first the best latency and importance of each span, then the spans to take.

Stage 1 finds the best latency of a span. A span without activations inside need not become a single convolution: two
smaller merges may be faster, since a merged kernel grows. The last of its merges is either the only one, or it begins
at some m, and the merges before it make (i, m] as fast as possible. Hence, with T_opt for the best
latency (Algorithm 1, in section 4 of the paper),

    T_opt[i, j] = min(T[i, j], min over i < m < j of T_opt[i, m] + T[m, j])

where T is infinite for missing spans. The chosen m are the *breaks* of the span.

The importance is extended likewise, because a whole span may score worse than its parts together (Algorithm 3, in
appendix B of the paper, with the normalisation below):

    I_ext[i, j, a, b] = max(I[i, j, a, b], max over i < m < j of I_ext[i, m, a, 0] + I[m, j, 0, b])

The state at m is 0, since the activation there, inside the span, is gone. I is minus infinity for missing entries.
Both are computed only for the spans and entries of the tables.

Entries are scores against the original network, each lowered by the short training before its measurement. A plan of
many spans adds up this loss many times. The caller removes it beforehand with `normalized`, which subtracts alpha times
the mean score of single layers from all entries. It counts the layers that lose no activation, or all layers; the
authors' tables use all, and an alpha of 1.2 to 1.6.

    >>> from dp_solver import normalized
    >>> latencies = {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 2.0}
    >>> scores = {(0, 1, 1, 1): -0.1, (1, 2, 1, 1): -0.1, (0, 2, 1, 1): -0.15}
    >>> two_stage(latencies, scores, 2.0).kept_activations
    (2,)
    >>> two_stage(latencies, normalized(scores, activations=[1, 2]), 2.0).kept_activations
    (1, 2)

Stage 2 walks over positions and states. With D[j, b](t) for the most importance of a plan from position 0 to position j
that ends there in state b and takes at most t,

    D[0, 1](t) = 0        D[j, b](t) = max over i < j, a of D[i, a](t - T_opt[i, j]) + I_ext[i, j, a, b]

and the answer is the better D[L, b](T_0), as the network may end in either state. A plan whose last span is (i, j] has
t - T_opt[i, j] left for the spans before, and D[i, a] is their best importance. The authors tabulate D over t in steps
of a grid, with T_opt rounded down to it. Among plans of equal importance the faster wins, then the plan that leaves
fewer positions without an activation: positions inside its spans, and ends in state 0.
Here positions are the cuts of a `Chain` with these states, and a span's choices are its (a, b). Labels stand in for D
over all t, so costs are never rounded and one solve answers every budget: see `dp_solver.labels`.

A holds the positions on the chosen path in state 1, S all positions on the path and the breaks of its spans.

LayerMerge (Kim et al., ICML 2024, arXiv 2406.12837) prunes convolutions, too, so that a span can be merged to several
kernels, each with a latency and an importance of its own: T[i, j, k] and I[i, j, a, b, k] with any hashable k. Each
entry is then one convolution as it stands, and there is neither a first stage nor an extension.

    >>> T = {(0, 1): 2.0, (1, 2): 2.0, (0, 2): 3.5}
    >>> I = {(0, 1, 1, 1): 0.0, (1, 2, 1, 1): 0.0, (0, 2, 1, 1): -0.3}
    >>> two_stage(T, I, budget_ms=3.8)
    TwoStageResult(value=-0.3, cost_ms=3.5, kept_activations=(2,), merge_ends=(2,), keys=((0, 2, 1, 1),))
    >>> two_stage(T, I, budget_ms=4.0).kept_activations
    (1, 2)

References:
    Kim et al., Efficient Latency-Aware CNN Depth Compression via Two-Stage Dynamic Programming, ICML 2023, arXiv
    2301.12187; the numbers of its algorithms are those that the authors' code gives for its tables
    (github.com/snu-mllab/Efficient-CNN-Depth-Compression).
"""

from __future__ import annotations

import reprlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from depthcomp_errors import ProblemError
from dp_solver.frontier import Frontier, frontier
from dp_solver.kim23.tables import Importances, Latencies, Span, extended_importance, joined, optimal_latency
from dp_solver.problem import Chain, Choice

__all__ = ["TwoStageProblem", "TwoStageResult", "two_stage", "two_stage_problem"]

ENTRY = 1  # the state of position 0: the network's input counts as activated


@dataclass(frozen=True, slots=True)
class TwoStageResult:
    """The answer to one budget.

    Attributes:
        value: sum of the chosen entries of I_ext.
        cost_ms: sum of their T_opt, in ms, never above the budget.
        kept_activations: the positions that keep an activation [A], the last one included if it does.
        merge_ends: the positions where the merged network's convolutions end [S].
        keys: the chosen entries of I in order.
    """

    value: float
    cost_ms: float
    kept_activations: tuple[int, ...]
    merge_ends: tuple[int, ...]
    keys: tuple[tuple[Hashable, ...], ...]


@dataclass(frozen=True, slots=True)
class TwoStageProblem:
    """The tables as a chain; `two_stage_problem` makes it.

    Attributes:
        chain: cuts are positions, choices are the entries of I with their keys, losses are negative importances.
        breaks: the positions inside each span where its best merges end.
    """

    chain: Chain
    breaks: Mapping[Span, tuple[int, ...]]

    def result(self, front: Frontier, budget_ms: float) -> TwoStageResult:
        """Return the best plan of the chain's frontier within a budget.

        Args:
            front: the frontier of `chain`; one serves all budgets.
            budget_ms: latency in ms, at least 0.

        Raises:
            ProblemError: the budget is NaN, negative or not a number, or the frontier is none or that of another
                problem.
            BudgetInfeasibleError: every plan costs more; `best_ms` is the smallest cost.
        """
        _require_frontier(front)
        k = front.at(budget_ms)
        plan = front.plan(k)
        self._require_plan(plan)
        return self._described(plan, -float(front.losses[k]), float(front.costs[k]))

    def describe(self, keys: Sequence[Hashable]) -> TwoStageResult:
        """Return the kept activations and the merge ends of a plan, for example one of `best_plans(chain, ...)`.

        Args:
            keys: the plan's keys in order from position 0 to the last.

        Raises:
            ProblemError: the keys are no sequence, one is none of this problem's, or they do not lead from position 0
                to the last.

        Example:
            >>> problem = two_stage_problem({(0, 1): 2.0}, {(0, 1, 1, 1): 0.0, (0, 1, 1, 0): -0.1})
            >>> problem.describe([(0, 1, 1, 0)])
            TwoStageResult(value=-0.1, cost_ms=2.0, kept_activations=(), merge_ends=(1,), keys=((0, 1, 1, 0),))
        """
        _require_sequence(keys)
        plan: tuple[Any, ...] = tuple(keys)
        items = self._require_plan(plan)
        cost, loss = 0.0, 0.0
        for key in plan:
            cost, loss = cost + items[key].cost, loss + items[key].loss
        return self._described(plan, -loss, cost)

    def _described(self, keys: tuple[Any, ...], value: float, cost_ms: float) -> TwoStageResult:
        ends = {j for _, j, *_ in keys}.union(*(self.breaks.get((i, j), ()) for i, j, *_ in keys))
        kept = tuple(j for _, j, _, b, *_ in keys if b == 1)
        return TwoStageResult(value, cost_ms, kept, tuple(sorted(ends)), keys)

    def _require_plan(self, keys: tuple[Any, ...]) -> dict[Hashable, Choice]:
        """Return the choices by their keys; raises ProblemError where `keys` are no plan of them."""
        items = (item for items in self.chain.spans.values() for item in items)
        own: dict[Hashable, Choice] = {item.key: item for item in items if isinstance(item, Choice)}
        for key in keys:
            if not isinstance(key, Hashable) or key not in own:
                raise ProblemError(f"key {key!r} is none of this problem's; give a plan or frontier of its own chain")
        places = [(0, ENTRY), *((j, b) for _, j, _, b, *_ in keys)]
        if [(i, a) for i, _, a, *_ in keys] != places[:-1] or places[-1][0] != self.chain.length:
            raise ProblemError(
                f"keys (={reprlib.repr(keys)}) must lead from position 0 in state {ENTRY} to position "
                f"{self.chain.length}, each from the position and state where the one before ends; give a whole plan"
            )
        return own


def _require_frontier(front: object) -> None:
    if not isinstance(front, Frontier):
        given = reprlib.repr(front)
        raise ProblemError(f"the frontier (={given}) must be a Frontier; give frontier(problem.chain)")


def _require_sequence(keys: object) -> None:
    if not isinstance(keys, Sequence):
        given = reprlib.repr(keys)
        raise ProblemError(f"keys (={given}) must be a sequence of entries of I; give those of a plan")


def two_stage(
    T: Latencies,  # noqa: N803 -- the paper's symbols
    I: Importances,  # noqa: E741, N803
    budget_ms: float,
    *,
    extend_importance: bool = True,
) -> TwoStageResult:
    """Return which activations to keep and where merges end, for the most importance within a budget.

    For several budgets take `two_stage_problem` and its frontier once.

    Args:
        T: {(i, j): ms}, or {(i, j, k): ms} with LayerMerge's kernels.
        I: {(i, j, a, b): importance}, higher is better, or {(i, j, a, b, k): importance}, taken as it stands: scores
            that carry the loss of a short training go through `normalized` first.
        budget_ms: latency in ms, at least 0.
        extend_importance: whether I is still to be extended; False where it is I_ext already. Kernels are not extended.

    Raises:
        ProblemError: as `two_stage_problem`, or the budget is NaN, negative or not a number.
        BudgetInfeasibleError: every plan costs more; `best_ms` is the smallest cost.

    Complexity: O(s * L) for s entries to find T_opt and I_ext, then that of `frontier`.
    """
    problem = two_stage_problem(T, I, extend_importance=extend_importance)
    return problem.result(frontier(problem.chain), budget_ms)


def two_stage_problem(
    T: Latencies,  # noqa: N803
    I: Importances,  # noqa: E741, N803
    *,
    extend_importance: bool = True,
) -> TwoStageProblem:
    """Return the chain whose frontier answers every budget.

    The tables are joined by key, whatever the order of their entries. A span with a latency but no importance takes
    part in stage 1 alone; an importance without a latency is refused, since it shows that the tables do not belong
    together.

    Args:
        T: {(i, j): ms} or {(i, j, k): ms}, not modified.
        I: {(i, j, a, b): importance} or {(i, j, a, b, k): importance}, not modified.
        extend_importance: whether I is still to be extended; False where it is I_ext already.

    Raises:
        ProblemError: a table is empty, a key is malformed, kernels are named in one table only, an importance has no
            latency, the tables end at different positions, a number is not finite, a latency is negative, or no plan
            leads to the last position.
    """
    latency, importance = joined(T, I)
    breaks: dict[Span, tuple[int, ...]] = {}
    if all(len(key) == 2 for key in latency):
        latency, breaks = optimal_latency(latency)
        importance = extended_importance(importance) if extend_importance else importance
    spans: dict[Span, list[Choice]] = {}
    for (i, j, a, b, *kernel), value in importance.items():
        without = j - i - 1 + (b == 0)  # positions that end up without an activation
        choice = Choice((i, j, a, b, *kernel), latency[i, j, *kernel], -value, before=a, after=b, changes=without)
        spans.setdefault((i, j), []).append(choice)
    return TwoStageProblem(Chain(max(j for _, j in spans), spans, start=ENTRY), breaks)
