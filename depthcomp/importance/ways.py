"""Losses of a choice without and with a refit of the kept layers that read its change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fx_passes import SpanChoice

__all__ = ["Ways", "least", "profiting"]

LEAST_GAIN = 0.05  # of a loss; less is noise, and a refit of a whole plan costs more than it gives

Ways = tuple[float, ...]
"""Losses of a choice on a batch: without refitted consumers and, where they were judged on this batch, with them."""


def least(losses: Sequence[Ways]) -> float:
    """Return the lesser mean loss over batches, without or with refits; NaN counts as more than any number."""
    return min(_means(losses), key=lambda mean: (math.isnan(mean), mean))


def profiting(losses: Mapping[SpanChoice, Sequence[Ways]]) -> frozenset[SpanChoice]:
    """Return the choices whose mean loss is less with refitted consumers, by more than a small share."""
    means = {choice: _means(found) for choice, found in losses.items()}
    return frozenset(
        choice for choice, (bare, *refitted) in means.items() if any(_is_less(way, bare) for way in refitted)
    )


def _is_less(loss: float, bare: float) -> bool:
    return loss < bare - LEAST_GAIN * abs(bare) if math.isfinite(bare) else math.isfinite(loss)


def _means(losses: Sequence[Ways]) -> list[float]:
    """Return the mean loss over all batches, and the one with refitted consumers if any batch has it.

    A refit that only some batches judged changes the loss of the others in the same proportion.
    """
    bare, both = _mean([way[0] for way in losses]), [way for way in losses if len(way) > 1]
    if not both:
        return [bare]
    known, refitted = (_mean(way) for way in zip(*both, strict=True))
    if len(both) == len(losses) or not math.isfinite(known):
        return [bare, refitted]
    return [bare, bare * refitted / known if known > 0 else bare + refitted - known]


def _mean(losses: Sequence[float]) -> float:
    return math.fsum(losses) / len(losses)
