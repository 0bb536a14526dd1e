"""Successive halving: ever fewer candidates are scored on ever more images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from depthcomp.importance.ways import Ways, least
from depthcomp.latency.pricing import Candidate
from fx_passes import SpanChoice

__all__ = ["LEAST_SCORED", "Score", "halve", "survivors"]

LEAST_SCORED = 64  # this many candidates see all judging batches

Score = Callable[[Sequence[Candidate], int], Iterable[Ways]]
"""Function that returns the losses of candidates on the judging batch of a number."""


def halve(
    losses: Mapping[SpanChoice, list[Ways]],
    candidates: Sequence[Candidate],
    savings_ms: Mapping[SpanChoice, float],
    batches: Sequence[int],
    score: Score,
) -> None:
    """Add the losses of the candidates that go on: before each batch, the half with less loss per saved ms.

    Args:
        losses: the losses of each choice so far, on equal batches; new ones are appended.
        candidates: the candidates.
        savings_ms: latency that each choice saves, in ms.
        batches: the numbers of the judging batches to come.
        score: scores candidates on a batch.
    """
    scored = list(candidates)
    for size, number in zip(survivors(len(candidates), len(batches)), batches, strict=True):
        scored.sort(key=lambda candidate: _price(losses[candidate.choice], savings_ms[candidate.choice]))
        scored = scored[:size]
        for candidate, ways in zip(scored, score(scored, number), strict=True):
            losses[candidate.choice].append(ways)


def survivors(candidates: int, batches: int) -> list[int]:
    """Return the number of candidates that go on to each of the batches to come."""
    sizes: list[int] = []
    for _ in range(batches):
        candidates = min(candidates, max(LEAST_SCORED, (candidates + 1) // 2))
        sizes.append(candidates)
    return sizes


def _price(losses: Sequence[Ways], saving_ms: float) -> float:
    """Return the loss per saved ms; infinity where the loss is NaN."""
    loss = least(losses)
    return math.inf if math.isnan(loss) else loss / saving_ms
