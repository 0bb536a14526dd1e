"""Plans that no solver chooses: whole blocks in turn, evenly spread units, random spans; from slow to fast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import fx

from depthcomp.errors import BudgetInfeasibleError
from depthcomp.latency.pricing import Candidate
from fx_passes import Level, SpanChoice, Unit, structure_tree
from fx_passes.operators import Role, role

__all__ = ["BaselineFrontier", "Draw", "Materials", "at_random", "evenly_spread", "whole_blocks"]

WALKS = 30  # random orders; their plans lie close enough together to come near any budget
SHIFTS = 4  # of evenly spread places, by parts of the distance between them
Steps = Sequence[Candidate]  # choices of one plan


@dataclass(frozen=True, slots=True)
class Materials:
    """What a plan may be made of.

    Attributes:
        gm: the captured graph.
        candidates: the rewrites.
        losses: what each costs in loss, by its choice; empty for methods that do not ask.
        savings_ms: what each saves, by its choice.
        total_ms: the sum of the latencies of the network's operators.
        seed: of everything random.
    """

    gm: fx.GraphModule
    candidates: Sequence[Candidate]
    losses: Mapping[SpanChoice, float]
    savings_ms: Mapping[SpanChoice, float]
    total_ms: float
    seed: int


class BaselineFrontier:
    """Plans by the sum of their latencies, as a solver's frontier gives them, but of no least loss.

    The slowest keeps everything.

    Args:
        plans: the choices of each of the others; among plans of equal sums the first stays.
        materials: their latencies and losses; a choice without a loss counts as none.

    Attributes:
        costs: (n,) sums in ms, strictly increasing.
        losses: (n,) sums of losses.
    """

    def __init__(self, plans: Iterable[Steps], materials: Materials) -> None:
        by_cost: dict[float, tuple[SpanChoice, ...]] = {materials.total_ms: ()}
        for plan in plans:
            choices = tuple(candidate.choice for candidate in _in_order(plan, materials.gm))
            by_cost.setdefault(materials.total_ms - sum(materials.savings_ms[choice] for choice in choices), choices)
        self.costs: NDArray[np.float64] = np.array(sorted(by_cost))
        self._plans = [by_cost[cost] for cost in self.costs.tolist()]
        sums = [sum(materials.losses.get(choice, 0.0) for choice in plan) for plan in self._plans]
        self.losses: NDArray[np.float64] = np.array(sums)

    def __len__(self) -> int:
        return len(self.costs)

    def plan(self, k: int) -> tuple[SpanChoice, ...]:
        """Return the choices of plan number `k`, 0 being the fastest."""
        return self._plans[k]

    def at(self, budget_ms: float) -> int:
        """Return the number of the slowest plan within a sum.

        Raises:
            BudgetInfeasibleError: the fastest is not within it.
        """
        k = int(np.searchsorted(self.costs, budget_ms, side="right")) - 1
        if k < 0:
            raise BudgetInfeasibleError(
                f"the fastest plan sums to {self.costs[0]:.3f} ms, more than {budget_ms:.3f} ms; ask for more time",
                best_ms=float(self.costs[0]),
            )
        return k


Draw = Callable[[Materials], Iterator[Steps]]


def whole_blocks(materials: Materials) -> Iterator[Steps]:
    """Yield the plans that merge the least important block, the two least important ones, and so on.

    A block is a region of parallel branches, or the units between two tensors that no activation made or that join
    such branches; what comes before the first of these tensors is none.
    """
    ends = {
        (level, *block) for level in structure_tree(materials.gm).levels() for block in _blocks(level, materials.gm)
    }
    scored = [candidate for candidate in materials.candidates if candidate.choice in materials.losses]
    blocks = [c for c in scored if (c.span.level, c.span.start, c.span.stop) in ends]
    yield from _prefixes(_disjoint(sorted(blocks, key=lambda candidate: materials.losses[candidate.choice])))


def _blocks(level: Level, gm: fx.GraphModule) -> Iterator[tuple[int, int]]:
    """Yield the cuts around each block of a level."""
    roles = {node.name: role(gm, node) for node in gm.graph.nodes}
    start = None
    for stop, unit in enumerate(level.units, start=1):
        if unit.region:
            yield stop - 1, stop
        elif not _linear(unit, roles):
            continue
        elif start is not None:
            yield start, stop
        start = stop


def _linear(unit: Unit, roles: Mapping[str, Role]) -> bool:
    return Role.ACTIVATION not in {roles[name] for name in unit.nodes}


def evenly_spread(materials: Materials) -> Iterator[Steps]:
    """Yield the plans that rewrite some of the network's units, evenly spread, each as saves most by the table."""
    units = [c for c in materials.candidates if c.span.stop == c.span.start + 1]
    units.sort(key=lambda candidate: -materials.savings_ms[candidate.choice])
    places = _in_order(_disjoint(units), materials.gm)
    for count in range(1, len(places) + 1):
        for shift in range(SHIFTS):
            yield [places[int((k + shift / SHIFTS) * len(places) / count)] for k in range(count)]


def at_random(materials: Materials) -> Iterator[Steps]:
    """Yield plans that grow by one random rewrite after the other until no room is left, many times over."""
    rng = np.random.default_rng(materials.seed)
    for _ in range(WALKS):
        order = rng.permutation(len(materials.candidates))
        yield from _prefixes(_disjoint(materials.candidates[index] for index in order))


def _prefixes(candidates: Steps) -> Iterator[Steps]:
    for count in range(1, len(candidates) + 1):
        yield candidates[:count]


def _disjoint(candidates: Iterable[Candidate]) -> Steps:
    """Return the candidates that overlap none before them."""
    taken: set[str] = set()
    chosen = []
    for candidate in candidates:
        if taken.isdisjoint(candidate.span.nodes):
            taken.update(candidate.span.nodes)
            chosen.append(candidate)
    return chosen


def _in_order(candidates: Iterable[Candidate], gm: fx.GraphModule) -> Steps:
    """Return candidates in the order in which their spans run."""
    order = {node.name: position for position, node in enumerate(gm.graph.nodes)}
    return sorted(candidates, key=lambda candidate: order[candidate.span.exit])
