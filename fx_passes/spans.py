"""Candidate spans of a captured graph, with the choices for each or a sentence that refuses it.

A span (i, j] holds all operators between cut i and cut j of one level.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import fx

from depthcomp_errors import PlanError
from fx_passes.choice import SpanChoice
from fx_passes.limits import SpanLimits
from fx_passes.network import CapturedNetwork, as_network
from fx_passes.plan import Plan
from fx_passes.span import Span
from fx_passes.structure import Level

__all__ = ["enumerate_spans", "find_span", "random_plan"]


def enumerate_spans(gm: fx.GraphModule | CapturedNetwork, limits: SpanLimits | None = None) -> list[Span]:
    """Return the candidate spans of a captured graph, level by level, outermost first.

    A unit that cannot be part of any span appears once, refused, if it holds a convolution, a pooling or a norm, or
    stands next to one; longer spans across it are not listed. The graph is not changed.
    Complexity: O(units x longest_span) compositions without weights.
    """
    return as_network(gm).spans(limits or SpanLimits())


def find_span(gm: fx.GraphModule | CapturedNetwork, entry: str, exit_: str) -> Span:
    """Return the span from the tensor at `entry` to the one at `exit_`, whatever its length.

    Raises:
        PlanError: the two are not cuts of one level, or the span between them cannot be compressed.
    """
    span = as_network(gm).span(entry, exit_)
    if not span.choices:
        raise PlanError(f"the span ({entry}, {exit_}] cannot be compressed: {span.refusal}")
    return span


def random_plan(
    gm: fx.GraphModule | CapturedNetwork, rng: np.random.Generator, limits: SpanLimits | None = None
) -> Plan:
    """Return random non-overlapping choices of every kind over all levels; equal generators give equal plans."""
    if not isinstance(rng, np.random.Generator):
        raise PlanError(f"rng (={rng!r}) must draw random numbers; pass numpy.random.default_rng(seed)")
    network = as_network(gm)
    spans: dict[tuple[Level, int], list[Span]] = {}
    for span in network.spans(limits or SpanLimits()):
        if span.choices:
            spans.setdefault((span.level, span.start), []).append(span)
    return Plan.of(_draw(network.tree, spans, rng))


def _draw(level: Level, spans: dict[tuple[Level, int], list[Span]], rng: np.random.Generator) -> Iterator[SpanChoice]:
    cut = 0
    while cut < len(level.units):
        options = spans.get((level, cut), [])
        if options and rng.random() < 0.5:  # so that about half of the network is kept
            choice, cut = _drawn(options, rng)
            yield choice
        else:
            for branch in level.units[cut].branches:
                yield from _draw(branch, spans, rng)
            cut += 1


def _drawn(options: list[Span], rng: np.random.Generator) -> tuple[SpanChoice, int]:
    """Return a random choice, and the cut where it ends; each kind has the same chance."""
    by_kind: dict[str, list[tuple[SpanChoice, int]]] = {}
    for span in options:
        for choice in span.choices:
            by_kind.setdefault(choice.kind, []).append((choice, span.stop))
    names = sorted(by_kind)
    drawn = by_kind[names[rng.integers(len(names))]]
    return drawn[rng.integers(len(drawn))]
