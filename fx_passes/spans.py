"""Candidate spans of a captured graph, the choices for each, and a sentence for every refusal.

A span (i, j] holds all operators between cut i and cut j of one level. With its inner activations taken as
identity it is one convolution, whose geometry (kernel, stride, padding, groups) follows from the algebra
without touching a weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx

from depthcomp_errors import PlanError
from fx_passes import affine
from fx_passes.affine import AffineConv, NotAffineError
from fx_passes.choices import Offers, Piece, SpanLimits
from fx_passes.collapse import collapse_node
from fx_passes.layer_pruning import UNPRUNED, LayerPruner, Prunings
from fx_passes.module_paths import module_path
from fx_passes.operators import Role, image_shape, role
from fx_passes.plan import Plan, SpanChoice
from fx_passes.refusals import holds_layers, is_boundary
from fx_passes.structure import Level, Unit, structure_tree

__all__ = ["Span", "SpanLimits", "SpanWalker", "enumerate_spans", "find_span", "find_spans", "random_plan"]


@dataclass(frozen=True, slots=True)
class Span:
    """All operators between two cuts of one level.

    Attributes:
        level: the chain that the span belongs to.
        start: number i of the cut that it reads.
        stop: number j of the cut that it produces.
        nodes: names of its nodes in order, the end activation included.
        core: name of the node whose tensor is the cut before its end activation.
        operator: its collapse into one convolution, weights on the meta device; None where it is refused.
        in_shape: (batch, channels, height, width) at the entry; None where that is no image.
        macs: multiply-adds of its convolutions as they are, for the whole batch.
        choices: what may be done with it instead of keeping it.
        refusal: why it has no choices, as a sentence; empty where it has some.
    """

    level: Level
    start: int
    stop: int
    nodes: tuple[str, ...]
    core: str
    operator: AffineConv | None
    in_shape: tuple[int, int, int, int] | None
    macs: int
    choices: tuple[SpanChoice, ...]
    refusal: str

    @property
    def entry(self) -> str:
        """Name of the node whose tensor the span reads."""
        return self.level.cuts[self.start]

    @property
    def exit(self) -> str:
        """Name of the node whose tensor the span produces."""
        return self.level.cuts[self.stop]

    @property
    def inner(self) -> tuple[str, ...]:
        """Names of the nodes up to the core, that is, without the end activation."""
        return self.nodes[: self.nodes.index(self.core) + 1] if self.core in self.nodes else ()


def enumerate_spans(gm: fx.GraphModule, limits: SpanLimits | None = None) -> list[Span]:
    """Return the candidate spans of a captured graph, level by level, outermost first.

    A unit that cannot be part of any span appears once, refused, if it holds a convolution, a pooling or a norm, or
    stands next to one; longer spans across it are not listed. The graph is not changed.
    Complexity: O(units x longest_span) compositions without weights.
    """
    tree = structure_tree(gm)
    walker = SpanWalker(gm, limits or SpanLimits())
    spans = (span for level in tree.levels() for span in walker.spans(level))
    return [span for span in spans if span.choices or walker.concerns_convolutions(span)]


def find_span(gm: fx.GraphModule, entry: str, exit_: str) -> Span:
    """Return the span from the tensor at `entry` to the one at `exit_`, whatever its length.

    Raises:
        PlanError: the two are not cuts of one level, or what stands between them is not one convolution.
    """
    return find_spans(gm, [(entry, exit_)])[0]


def find_spans(gm: fx.GraphModule, ends: Iterable[tuple[str, str]]) -> list[Span]:
    """Return the span for each pair of `ends`, as `find_span` does, with the structure analysed once."""
    levels = list(structure_tree(gm).levels())
    longest = max(len(level.cuts) for level in levels)
    walker = SpanWalker(gm, SpanLimits(longest_span=longest, largest_kernel=10**9, largest_mac_growth=math.inf))
    return [_find(levels, walker, entry, exit_) for entry, exit_ in ends]


def _find(levels: list[Level], walker: SpanWalker, entry: str, exit_: str) -> Span:
    for level in levels:
        cuts = level.cuts
        if entry in cuts and exit_ in cuts and cuts.index(entry) < cuts.index(exit_):
            span = walker.span(level, cuts.index(entry), cuts.index(exit_))
            if span.choices:
                return span
            raise PlanError(f"the span ({entry}, {exit_}] cannot be compressed: {span.refusal}")
    raise PlanError(f"the graph has no span ({entry}, {exit_}]: both must be cuts of one level, in this order")


def random_plan(gm: fx.GraphModule, rng: np.random.Generator, limits: SpanLimits | None = None) -> Plan:
    """Return random non-overlapping choices of every kind over all levels, the same for one generator."""
    if not isinstance(rng, np.random.Generator):
        raise PlanError(f"rng (={rng!r}) must draw random numbers; pass numpy.random.default_rng(seed)")
    spans: dict[tuple[Level, int], list[Span]] = {}
    for span in enumerate_spans(gm, limits):
        if span.choices:
            spans.setdefault((span.level, span.start), []).append(span)
    return Plan.of(_draw(structure_tree(gm), spans, rng))


def _draw(level: Level, spans: dict[tuple[Level, int], list[Span]], rng: np.random.Generator) -> Iterator[SpanChoice]:
    cut = 0
    while cut < len(level.units):
        options = spans.get((level, cut), [])
        if options and rng.random() < 0.5:  # half of the chances, so that kept parts stand between rewritten ones
            kinds = sorted({choice.kind for span in options for choice in span.choices})
            kind = kinds[rng.integers(len(kinds))]
            drawn = [(c, span.stop) for span in options for c in span.choices if c.kind == kind]
            choice, cut = drawn[rng.integers(len(drawn))]
            yield choice
        else:
            for branch in level.units[cut].branches:
                yield from _draw(branch, spans, rng)
            cut += 1


class SpanWalker:
    """Walks levels; holds the graph, the limits and what was computed for a node once."""

    def __init__(self, gm: fx.GraphModule, limits: SpanLimits) -> None:
        self._gm = gm
        self._limits = limits
        self._nodes = {node.name: node for node in gm.graph.nodes}
        self._roles = {node.name: role(gm, node) for node in gm.graph.nodes}
        self._offers = Offers(gm, limits)
        self._pruner = LayerPruner(gm)

    def spans(self, level: Level) -> Iterator[Span]:
        """Yield the spans of a level, by the cut that they read."""
        for start in range(len(level.units)):
            yield from self.spans_from(level, start)

    def span(self, level: Level, start: int, stop: int) -> Span:
        """Return the span between two cuts, or the refused span of the first unit that stands in its way."""
        for span in self.spans_from(level, start):
            if span.stop == stop or span.operator is None:
                return span
        return self.span(level, span.stop, stop)

    def concerns_convolutions(self, span: Span) -> bool:
        """Say whether the refusal of a span is worth listing: sizes, inputs and outputs are no convolution anyway."""
        if any(holds_layers(self._gm, self._nodes, unit) for unit in span.level.units[span.start : span.stop]):
            return True
        return span.operator is None and is_boundary(self._gm, self._nodes, span.level, span.start)

    def spans_from(self, level: Level, start: int) -> Iterator[Span]:
        """Yield the spans that begin at cut `start`, shortest first, up to the first refusal."""
        entry = self._nodes.get(level.cuts[start])
        shape = None if entry is None else image_shape(entry)
        values = {} if shape is None or entry is None else {entry: affine.identity(shape[1], device="meta")}
        prunings = UNPRUNED if self._limits.layer_pruning else None
        nodes: list[str] = []
        for stop in range(start + 1, min(start + self._limits.longest_span, len(level.units)) + 1):
            unit = level.units[stop - 1]
            nodes += [*unit.region, *unit.nodes]
            reason = self._extend(values, unit)
            if reason:
                if stop == start + 1:
                    yield Span(level, start, stop, tuple(nodes), nodes[-1], None, shape, 0, (), reason)
                return
            prunings = self._prune(prunings, unit)
            yield self._span(level, start, stop, tuple(nodes), values, prunings)

    def _extend(self, values: dict[fx.Node, AffineConv], unit: Unit) -> str:
        """Add the operators of a unit's nodes to `values`; return why that is impossible, or nothing."""
        if not values:
            first = self._nodes[unit.nodes[0]]
            if first.op in ("placeholder", "output"):
                return f"{module_path(first)} of the network is no layer"
            return f"{module_path(first)} does not read a batch of images"
        for name in (*unit.region, *unit.nodes):
            node = self._nodes[name]
            try:
                values[node] = collapse_node(self._gm, node, values, device="meta")
            except NotAffineError as reason:
                if name in unit.nodes or "tensor_meta" in node.meta:  # of a size, what reads it tells more
                    return str(reason)
        return ""

    def _prune(self, before: Prunings | None, unit: Unit) -> Prunings | None:
        """Return the prunings of a span that goes on by a unit of affine operators."""
        following = None if before is None else self._pruner.of_unit(unit)
        return None if before is None or following is None else before.then(following)

    def _span(
        self, level: Level, start: int, stop: int, nodes: tuple[str, ...],
        values: Mapping[fx.Node, AffineConv], prunings: Prunings | None,
    ) -> Span:  # fmt: skip
        entry, exit_, core = level.cuts[start], level.cuts[stop], self._core(level, stop)
        operator, shape = values[self._nodes[core]], image_shape(self._nodes[entry])
        assert shape is not None  # values would be empty
        piece = Piece(entry, exit_, core, nodes, operator, shape, self._offers.macs(nodes), prunings)
        choices = tuple(self._offers.choices(piece))
        refusal = "" if choices else self._offers.refusal(piece)
        return Span(level, start, stop, nodes, core, operator, shape, piece.macs, choices, refusal)

    def _core(self, level: Level, stop: int) -> str:
        """Return the node before the activation and dropout at the end of the unit before cut `stop`."""
        before = level.cuts[stop - 1]
        for name in level.units[stop - 1].nodes:
            if self._roles[name] is Role.ACTIVATION:
                break
            if self._roles[name] is not Role.PASS:
                before = name
        return before
