"""Baseline method: single units rewritten at evenly spread places, without any importance."""

from __future__ import annotations

from collections.abc import Iterator

from depthcomp.methods.baselines import Materials, Rewrites, disjoint, in_order
from depthcomp.methods.method import Method
from depthcomp.methods.registry import register
from depthcomp.preparation import DEFAULT_LIMITS

__all__ = ["evenly_spread"]

SHIFTS = 4  # shifted copies of the evenly spread places, by equal parts of their distance


def evenly_spread(materials: Materials) -> Iterator[Rewrites]:
    """Yield plans that rewrite evenly spread units, each with the rewrite that saves most by the table."""
    units = [c for c in materials.candidates if c.span.stop == c.span.start + 1]
    units.sort(key=lambda candidate: -materials.savings_ms[candidate.choice])
    places = in_order(disjoint(units), materials.network)
    for count in range(1, len(places) + 1):
        for shift in range(SHIFTS):
            yield [places[int((k + shift / SHIFTS) * len(places) / count)] for k in range(count)]


register(
    Method(
        "uniform",
        "single units rewritten, evenly spread, refitted",
        DEFAULT_LIMITS,
        draw=evenly_spread,
        scored=False,
        fits=True,
    )
)
