"""Plans of methods without a solver, ordered from fast to slow like a solver's frontier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depthcomp.errors import BudgetInfeasibleError
from depthcomp.latency.pricing import Candidate
from fx_passes import CapturedNetwork, SpanChoice

__all__ = ["BaselineFrontier", "Draw", "Materials", "Rewrites", "disjoint", "growing", "in_order"]

Rewrites = Sequence[Candidate]
"""The choices of one plan."""


@dataclass(frozen=True, slots=True)
class Materials:
    """Inputs of a method that draws plans.

    Attributes:
        network: the captured network.
        candidates: the rewrites.
        losses: losses by choice; empty for methods that need none.
        savings_ms: latency that each rewrite saves in ms, by choice.
        total_ms: sum of the latencies of the network's operators.
        seed: seed of everything random.
    """

    network: CapturedNetwork
    candidates: Sequence[Candidate]
    losses: Mapping[SpanChoice, float]
    savings_ms: Mapping[SpanChoice, float]
    total_ms: float
    seed: int


class BaselineFrontier:
    """Plans by the sum of their latencies, with the interface of a solver's frontier; their losses need not be minimal.

    The slowest plan keeps everything.

    Args:
        plans: the choices of all other plans; of plans with equal sums the first stays.
        materials: the latencies and losses of choices; a choice without a loss counts as 0.

    Attributes:
        costs: (n,) sums in ms, strictly increasing.
        losses: (n,) sums of losses.
    """

    def __init__(self, plans: Iterable[Rewrites], materials: Materials) -> None:
        by_cost: dict[float, tuple[SpanChoice, ...]] = {materials.total_ms: ()}
        for plan in plans:
            choices = tuple(candidate.choice for candidate in in_order(plan, materials.network))
            by_cost.setdefault(materials.total_ms - sum(materials.savings_ms[choice] for choice in choices), choices)
        self.costs: NDArray[np.float64] = np.array(sorted(by_cost))
        self._plans = [by_cost[cost] for cost in self.costs.tolist()]
        sums = [sum(materials.losses.get(choice, 0.0) for choice in plan) for plan in self._plans]
        self.losses: NDArray[np.float64] = np.array(sums)

    def __len__(self) -> int:
        return len(self.costs)

    def plan(self, k: int) -> tuple[SpanChoice, ...]:
        """Return the choices of plan number `k`; plan 0 is the fastest."""
        return self._plans[k]

    def at(self, budget_ms: float) -> int:
        """Return the number of the slowest plan whose sum is at most `budget_ms`.

        Raises:
            BudgetInfeasibleError: the sum of the fastest plan is larger.
        """
        k = int(np.searchsorted(self.costs, budget_ms, side="right")) - 1
        if k < 0:
            raise BudgetInfeasibleError(
                f"the fastest plan sums to {self.costs[0]:.3f} ms, more than {budget_ms:.3f} ms; give a larger budget",
                best_ms=float(self.costs[0]),
            )
        return k


Draw = Callable[[Materials], Iterator[Rewrites]]
"""Function of a method that yields plans."""


def growing(candidates: Rewrites) -> Iterator[Rewrites]:
    """Yield the plans of the first candidate, the first two, and so on."""
    for count in range(1, len(candidates) + 1):
        yield candidates[:count]


def disjoint(candidates: Iterable[Candidate]) -> Rewrites:
    """Return the candidates that overlap no earlier one."""
    taken: set[str] = set()
    chosen = []
    for candidate in candidates:
        if taken.isdisjoint(candidate.span.nodes):
            taken.update(candidate.span.nodes)
            chosen.append(candidate)
    return chosen


def in_order(candidates: Iterable[Candidate], network: CapturedNetwork) -> Rewrites:
    """Return candidates in the order of their spans in the network."""
    return sorted(candidates, key=lambda candidate: network.order[candidate.span.exit])
