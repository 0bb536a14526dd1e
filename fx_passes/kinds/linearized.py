"""Lookup of a span in a linearized graph, by the names of its entry and exit."""

from __future__ import annotations

from torch import fx

from depthcomp_errors import PlanError
from fx_passes.choice import SpanChoice
from fx_passes.facts import GraphFacts

__all__ = ["not_linearized", "span_ends"]


def span_ends(linearized: GraphFacts, choice: SpanChoice) -> tuple[fx.Node, fx.Node]:
    """Return the entry and exit nodes of a span that was linearized by a choice.

    Raises:
        PlanError: the graph lacks one of the span's ends.
    """
    nodes = linearized.nodes
    missing = [name for name in (choice.entry, choice.exit) if name not in nodes]
    if missing:
        raise not_linearized(choice, f"{missing[0]} is not in the graph")
    return nodes[choice.entry], nodes[choice.exit]


def not_linearized(choice: SpanChoice, found: str) -> PlanError:
    """Return the error for a graph that does not hold a choice in its linearized form."""
    return PlanError(
        f"the graph does not hold {choice} in linearized form ({found}); merge needs the graph linearized by this plan"
    )
