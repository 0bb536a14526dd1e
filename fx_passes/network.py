"""Captured network with the facts of its graph, each computed once: nodes, structure, spans, workload."""

from __future__ import annotations

import math
from functools import cached_property

import networkx as nx
from torch import fx

from depthcomp_errors import PlanError
from fx_passes.choice import SpanChoice
from fx_passes.facts import GraphFacts
from fx_passes.kinds import kind_of
from fx_passes.limits import SpanLimits
from fx_passes.span import NO_LAYERS, Piece, Span
from fx_passes.structure import Level, require_captured, structure_tree
from fx_passes.walker import SpanWalker
from fx_passes.workload import Workload

__all__ = ["CapturedNetwork", "as_network"]


class CapturedNetwork(GraphFacts):
    """A captured graph with its structure, spans and workload; the graph must not change any more.

    Args:
        gm: what `capture` returned, or a graph made from it.

    Raises:
        PlanError: `gm` is no captured graph.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        require_captured(gm)
        super().__init__(gm)
        self._found: dict[tuple[str, str], Span] = {}

    @cached_property
    def tree(self) -> Level:
        """The program structure tree."""
        return structure_tree(self)

    @cached_property
    def post_dominators(self) -> dict[str, str]:
        """The next node that all paths to the output pass, by name; nodes without such paths are left out."""
        output = next(reversed(self.nodes))
        back = nx.DiGraph((name, source.name) for name, node in self.nodes.items() for source in node.all_input_nodes)
        return {name: below for name, below in nx.immediate_dominators(back, output).items() if name != output}

    @cached_property
    def workload(self) -> Workload:
        """The operators, as a runtime runs them."""
        return Workload(self)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """All levels of the tree, outermost first."""
        return tuple(self.tree.levels())

    def spans(self, limits: SpanLimits) -> list[Span]:
        """Return the candidate spans, as `fx_passes.enumerate_spans` does."""
        walker = SpanWalker(self, limits)
        found = (span for level in self.levels for span in walker.spans(level))
        return [span for span in found if span.choices or walker.concerns_convolutions(span)]

    def span(self, entry: str, exit_: str) -> Span:
        """Return the span between two tensors, whatever its length; results are cached.

        Raises:
            PlanError: the two are not cuts of one level, or a layer between them cannot be part of any span.
        """
        if (entry, exit_) not in self._found:
            self._found[entry, exit_] = self._find(entry, exit_)
        return self._found[entry, exit_]

    def piece(self, choice: SpanChoice) -> Piece:
        """Return the piece that a choice is for.

        Raises:
            PlanError: there is no such span, or the choice is not possible there; the message says why.
        """
        kind, span = kind_of(choice), self.span(choice.entry, choice.exit)
        assert span.piece is not None  # or `span` refuses it
        reason = kind.check(choice, span.piece) if span.piece.layers else NO_LAYERS
        if reason:
            possible = "; ".join(dict.fromkeys(kind_of(other).describe(other) for other in span.choices)) or "nothing"
            where = f"{self.words(span.nodes)} (plan: {choice})"
            raise PlanError(f"{where} cannot be {kind.describe(choice)}, as {reason}; possible here: {possible}")
        return span.piece

    @cached_property
    def _unlimited(self) -> SpanWalker:
        longest = max(len(level.cuts) for level in self.levels)
        return SpanWalker(self, SpanLimits(longest_span=longest, largest_kernel=10**9, largest_mac_growth=math.inf))

    def _find(self, entry: str, exit_: str) -> Span:
        for level in self.levels:
            cuts = level.cuts
            if entry in cuts and exit_ in cuts and cuts.index(entry) < cuts.index(exit_):
                span = self._unlimited.span(level, cuts.index(entry), cuts.index(exit_))
                if span.piece is not None:
                    return span
                raise PlanError(f"the span ({entry}, {exit_}] cannot be compressed: {span.refusal}")
        unknown = [name for name in (entry, exit_) if name not in self.nodes]
        if unknown:
            raise PlanError(f"the network has no tensor {unknown[0]!r}; check that the plan was made for this network")
        raise PlanError(
            f"the network has no span from {entry!r} to {exit_!r}: the first must come before the second, and all data "
            "must pass through both"
        )


def as_network(gm: fx.GraphModule | CapturedNetwork) -> CapturedNetwork:
    """Return the network of a captured graph; a network is returned as it is.

    Raises:
        PlanError: `gm` is no captured graph.
    """
    return gm if isinstance(gm, CapturedNetwork) else CapturedNetwork(gm)
