"""Spans found again in a linearized graph, by the names that their ends keep."""

from __future__ import annotations

from torch import fx

from depthcomp_errors import PlanError
from fx_passes.choice import SpanChoice
from fx_passes.facts import GraphFacts

__all__ = ["not_linearized", "span_ends"]


def span_ends(linearized: GraphFacts, choice: SpanChoice) -> tuple[fx.Node, fx.Node]:
    """Return the nodes at the entry and at the exit of a span that was linearized by a choice.

    Raises:
        PlanError: the graph lacks one of the span's ends.
    """
    nodes = linearized.nodes
    missing = [name for name in (choice.entry, choice.exit) if name not in nodes]
    if missing:
        raise not_linearized(choice, f"{missing[0]} is not in the graph")
    return nodes[choice.entry], nodes[choice.exit]


def not_linearized(choice: SpanChoice, found: str) -> PlanError:
    """Return the error of a graph that is not the form that `linearize` gives it by a choice."""
    return PlanError(f"{choice} is not in this form ({found}); merge needs the graph linearized by this plan")
