"""Enumeration of all plans of a chain: the oracle that the frontier is tested against."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import TypeAlias

from dp_solver.problem import Chain, Choice, Parallel, State, require_chain

__all__ = ["enumerate_plans"]

PricedPlan: TypeAlias = tuple[float, float, tuple[Hashable, ...]]


def enumerate_plans(chain: Chain) -> Iterator[PricedPlan]:
    """Yield (cost in ms, loss, keys) of every plan of `chain`, added up in the order that `frontier` uses.

    Raises:
        ProblemError: the problem is no Chain.

    Complexity: the number of plans, exponential in the length; for small chains only.

    Example:
        >>> keep, merge = Choice("keep", 1.0, 0.0), Choice("merge", 1.5, 0.2)
        >>> list(enumerate_plans(Chain(2, {(0, 1): [keep], (1, 2): [keep], (0, 2): [merge]})))
        [(1.5, 0.2, ('merge',)), (2.0, 0.0, ('keep', 'keep'))]
    """
    require_chain(chain)
    return (plan for plan, state in _plans_to(chain, chain.length) if chain.accepts(chain.length, state))


def _plans_to(chain: Chain, cut: int) -> Iterator[tuple[PricedPlan, State]]:
    if cut == 0:
        yield (0.0, 0.0, ()), chain.start
    for (start, end), items in chain.spans.items():
        if end == cut and items:
            for before, state in _plans_to(chain, start):
                for item in items:
                    if item.before == state:
                        yield from ((_add(before, step), item.after) for step in _realisations(item))


def _realisations(item: Choice | Parallel) -> Iterator[PricedPlan]:
    if isinstance(item, Choice):
        yield item.cost, item.loss, (item.key,)
    else:
        yield from _joined(item.branches, (item.join_cost, 0.0, ()))


def _joined(branches: tuple[Chain, ...], so_far: PricedPlan) -> Iterator[PricedPlan]:
    if not branches:
        yield so_far
        return
    for plan in enumerate_plans(branches[0]):
        yield from _joined(branches[1:], _add(so_far, plan))


def _add(first: PricedPlan, second: PricedPlan) -> PricedPlan:
    return first[0] + second[0], first[1] + second[1], first[2] + second[2]
