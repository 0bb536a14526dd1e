"""Enumeration of a level's spans: compose its units one after another, and ask each kind for choices.

A span without its inner activations is one convolution. Its geometry (kernel, stride, padding, groups) follows from
the algebra, without weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx

from fx_passes import affine
from fx_passes.affine import AffineConv, NotAffineError
from fx_passes.choice import SpanChoice
from fx_passes.collapse import collapse_node
from fx_passes.ends import pre_activation_of
from fx_passes.kinds import kinds
from fx_passes.layer_pruning import UNPRUNED, LayerPruner, Prunings
from fx_passes.limits import SpanLimits
from fx_passes.module_paths import module_path
from fx_passes.network_facts import NetworkFacts
from fx_passes.operators import describe
from fx_passes.output_nodes import is_output
from fx_passes.refusals import holds_layers, is_boundary
from fx_passes.span import NO_LAYERS, OneConvolution, Piece, Span
from fx_passes.structure import Level, Unit

__all__ = ["SpanWalker"]


class SpanWalker:
    """Enumerates the spans of levels; prunings are computed once for each unit.

    Args:
        graph: a captured network; it is not changed.
        limits: limits on the choices.

    Attributes:
        limits: the limits.

    Raises:
        PlanError: the limits name a kind that is not registered.
    """

    def __init__(self, graph: NetworkFacts, limits: SpanLimits) -> None:
        self._graph = graph
        self.limits = limits
        self._kinds = kinds(limits.kinds)
        self._pruner = LayerPruner(graph)

    def spans(self, level: Level) -> Iterator[Span]:
        """Yield the spans of a level, by the cut that they read."""
        for start in range(len(level.units)):
            yield from self.spans_from(level, start)

    def span(self, level: Level, start: int, stop: int) -> Span:
        """Return the span between two cuts, or the refused span of the first unit that stands in its way."""
        for span in self.spans_from(level, start, only=stop):
            if span.stop == stop or span.piece is None:
                return span
        return self.span(level, span.stop, stop)

    def concerns_convolutions(self, span: Span) -> bool:
        """Say whether the refusal of a span is worth listing; nobody expects sizes, inputs and outputs to merge."""
        if any(holds_layers(self._graph, unit) for unit in span.level.units[span.start : span.stop]):
            return True
        return span.piece is None and is_boundary(self._graph, span.level, span.start)

    def spans_from(self, level: Level, start: int, *, only: int | None = None) -> Iterator[Span]:
        """Yield the spans that begin at cut `start`, shortest first, up to the first refusal.

        If `only` is given, choices are enumerated only for the span that ends at that cut.
        """
        values = self._at_entry(level.cuts[start])
        prunings = UNPRUNED if self.limits.layer_pruning else None
        nodes: list[str] = []
        for stop in range(start + 1, min(start + self.limits.longest_span, len(level.units)) + 1):
            unit = level.units[stop - 1]
            nodes += [*unit.region, *unit.nodes]
            reason = self._extend(values, unit)
            if reason:
                if stop == start + 1:
                    yield Span(level, start, stop, tuple(nodes), None, (), reason)
                return
            prunings = self._prune(prunings, unit)
            piece = self._piece(level, start, stop, tuple(nodes), values, prunings)
            choices = tuple(self._choices(piece)) if only in (None, stop) else ()
            refusal = "" if choices else self._refusal(piece)
            yield Span(level, start, stop, tuple(nodes), piece, choices, refusal)

    def _at_entry(self, entry: str) -> dict[fx.Node, AffineConv]:
        """Return the identity at a cut; empty where the cut holds no images."""
        shape = self._graph.shape(entry) if entry in self._graph.nodes else None
        return {} if shape is None else {self._graph.nodes[entry]: affine.identity(shape[1], device="meta")}

    def _extend(self, values: dict[fx.Node, AffineConv], unit: Unit) -> str:
        """Add the operators of a unit's nodes to `values`; return why that is impossible, or nothing."""
        nodes = self._graph.nodes
        if not values:
            first = nodes[unit.nodes[0]]
            if first.op == "placeholder" or is_output(first):
                return f"{module_path(first)} of the network is no layer"
            obstacle = describe(self._graph.gm, first) if holds_layers(self._graph, unit) else ""
            return f"{module_path(first)}: {obstacle}" if obstacle else f"{module_path(first)} reads no batch of images"
        for name in (*unit.region, *unit.nodes):
            node = nodes[name]
            try:
                values[node] = collapse_node(self._graph.gm, node, values, device="meta")
            except NotAffineError as reason:
                if name in unit.nodes or "tensor_meta" in node.meta:  # the consumer of a size tells more
                    return str(reason)
        return ""

    def _prune(self, before: Prunings | None, unit: Unit) -> Prunings | None:
        """Return the prunings of a span that is extended by a unit of affine operators."""
        following = None if before is None else self._pruner.of_unit(unit)
        return None if before is None or following is None else before.then(following)

    def _piece(
        self, level: Level, start: int, stop: int, nodes: tuple[str, ...],
        values: Mapping[fx.Node, AffineConv], prunings: Prunings | None,
    ) -> Piece:  # fmt: skip
        entry, exit_, found = level.cuts[start], level.cuts[stop], self._graph.nodes
        last = pre_activation_of(self._graph.gm, found[exit_], found[entry])
        return Piece(entry, exit_, nodes, OneConvolution(last.name, values[last], prunings), self._graph)

    def _choices(self, piece: Piece) -> Iterator[SpanChoice]:
        for each in self._kinds if piece.layers else ():
            yield from each.enumerate(piece, self.limits)

    def _refusal(self, piece: Piece) -> str:
        """Return a sentence that says why a piece has no choices; kinds with the same reason share a clause."""
        where = self._graph.words(piece.nodes)
        if not piece.layers:
            return f"{where}: {NO_LAYERS}"
        done: dict[str, list[str]] = {}
        for each in self._kinds:
            if each.takes_one_convolution:
                done.setdefault(each.refusal(piece, self.limits), []).append(each.done)
        clauses = (f"cannot be {' or '.join(kinds)}, as {reason}" for reason, kinds in done.items())
        return f"{where}: {'; '.join(clauses)}"
