"""Choices that can still enter the frontier, so that the others are never fitted, and few consumers are refitted.

A fit with a large kernel costs most and seldom pays. A larger kernel over the same span loses less than a smaller one,
but rarely by much: over the choices of EfficientNet-Lite0, a 3x3 fit loses 0.75 times as much as the 1x1 fit (median;
0.40 at the 5 % quantile), a 5x5 fit 0.87 times as much as the 3x3 fit (0.61). So the loss of a smaller kernel bounds
that of a larger one from below, up to a factor. A choice that stands on no frontier even with its bound is left out.

Refits of the consumers of a change bound its loss in the same way: behind fits they leave 1.0 times as much in the
median, 0.59 times at the 5 % quantile. Behind drops and merges they often leave a tenth, which bounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from depthcomp.fitting.candidates import design_of_slot
from depthcomp.fitting.consumers import restores_its_exit
from depthcomp.latency.pricing import Candidate
from fx_passes import Slot, SpanChoice

__all__ = ["Contenders", "OnFrontier", "Round", "on_first_layers"]

LEAST_SHARE = 0.5  # of a smaller kernel's loss; a larger kernel is taken to lose at least this
REFITTED_SHARE = 0.6  # of a fit's loss; with refitted consumers it is taken to lose at least this
CHEAP = 600  # unknowns; larger fits wait until it is known whether they can pay
LAYERS = 2  # of the frontier in each round: the second saves later rounds, each a pass over the images

OnFrontier = Callable[[Mapping[SpanChoice, float]], Set[SpanChoice]]
"""Function that returns the choices on the latency-loss frontier, given the losses of all that may be taken."""


@dataclass(frozen=True, slots=True)
class Round:
    """Candidates to score next.

    Attributes:
        candidates: the candidates.
        bare: choices to score without refits of consumers.
    """

    candidates: list[Candidate]
    bare: frozenset[SpanChoice]


class Contenders:
    """Rounds of candidates to score, until no other candidate can enter the frontier.

    Args:
        candidates: all candidates.
        on_frontier: returns the choices on the frontier; None to score all candidates at once.
    """

    def __init__(self, candidates: Sequence[Candidate], on_frontier: OnFrontier | None) -> None:
        self._candidates, self._on_frontier = candidates, on_frontier
        self._smaller = _smaller(candidates)

    def rounds(self, losses: Mapping[SpanChoice, float]) -> Iterator[Round]:
        """Yield the candidates to score next; fits come twice, if they may pay with refitted consumers.

        Args:
            losses: the losses of the candidates scored so far, NaN where there is none; the caller adds those of each
                round before it asks for the next.
        """
        waiting = {c.choice for c in self._candidates if self._on_frontier and self._waits(c)}
        bare = {c.choice for c in self._candidates if self._on_frontier and c.slots and not restores_its_exit(c)}
        wanted: Set[SpanChoice] = {c.choice for c in self._candidates} - waiting
        while wanted:
            yield Round([c for c in self._candidates if c.choice in wanted], frozenset(bare))
            wanted = self._next(losses, waiting, bare)
            bare -= wanted - waiting
            waiting -= wanted

    def _waits(self, candidate: Candidate) -> bool:
        largest = max((slot.operator.weight[0].numel() for slot in candidate.slots), default=0)
        return largest > CHEAP and candidate.choice in self._smaller

    def _next(
        self, losses: Mapping[SpanChoice, float], waiting: Set[SpanChoice], bare: Set[SpanChoice]
    ) -> set[SpanChoice]:
        """Return the choices on the first layers of the frontier that wait for a score, or for one with refits."""
        if self._on_frontier is None:
            return set()
        known = {choice: loss for choice, loss in losses.items() if not math.isnan(loss)}
        bounds = {choice: self._bound(choice, losses) for choice in waiting}
        bounds |= {choice: loss * (REFITTED_SHARE if choice in bare else 1.0) for choice, loss in known.items()}
        among = waiting | (bare & known.keys())
        return on_first_layers(self._on_frontier, bounds, among) if among else set()

    def _bound(self, choice: SpanChoice, losses: Mapping[SpanChoice, float]) -> float:
        """Return the least loss that a choice is taken to have, by the smaller kernels that are scored."""
        known = (losses.get(smaller, math.nan) for smaller in self._smaller[choice])
        return LEAST_SHARE * min((loss for loss in known if not math.isnan(loss)), default=0.0)


def on_first_layers(
    on_frontier: OnFrontier, losses: Mapping[SpanChoice, float], among: Set[SpanChoice]
) -> set[SpanChoice]:
    """Return choices on the frontier, and on those that remain without the ones found.

    Args:
        on_frontier: returns the choices on the frontier.
        losses: losses of the choices to choose from.
        among: the choices to look for; the result is empty where the frontier has none of them.
    """
    found = set[SpanChoice]()
    for _ in range(LAYERS):
        layer = on_frontier({choice: loss for choice, loss in losses.items() if choice not in found}) & among
        if not layer:
            break
        found |= layer
    return found


def _smaller(candidates: Sequence[Candidate]) -> dict[SpanChoice, list[SpanChoice]]:
    """Return the choices with a smaller kernel over the same span, for each choice that has any."""
    spans: dict[object, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.slots:
            spans.setdefault(_place(candidate), []).append(candidate)
    found = {
        candidate.choice: [other.choice for other in several if _is_smaller(other, candidate)]
        for several in spans.values()
        for candidate in several
    }
    return {choice: smaller for choice, smaller in found.items() if smaller}


def _place(candidate: Candidate) -> object:
    """Return everything that candidates over one span have in common but the size of their kernels."""
    choice, nodes = candidate.choice, tuple(node.name for node in candidate.body.graph.nodes)
    return choice.kind, choice.entry, choice.exit, nodes, tuple(map(_form, candidate.slots))


def _form(slot: Slot) -> object:
    return slot.node, slot.target, design_of_slot(slot), tuple(slot.operator.weight.shape[:2])


def _is_smaller(one: Candidate, other: Candidate) -> bool:
    kernels = [(a.operator.kernel, b.operator.kernel) for a, b in zip(one.slots, other.slots, strict=True)]
    return all(a[0] <= b[0] and a[1] <= b[1] for a, b in kernels) and any(a != b for a, b in kernels)
