"""Captured network with its spans."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property

from torch import fx

from depthcomp_errors import PlanError
from fx_passes.choice import SpanChoice
from fx_passes.exclusion import exclusion
from fx_passes.kinds import kind_of, kinds
from fx_passes.limits import SpanLimits
from fx_passes.module_paths import module_path
from fx_passes.network_facts import NetworkFacts
from fx_passes.span import NO_LAYERS, Piece, Span
from fx_passes.structure import Level
from fx_passes.walker import SpanWalker

__all__ = ["CapturedNetwork", "as_network"]


class CapturedNetwork(NetworkFacts):
    """A captured graph with its facts and spans. Arguments and errors are those of `NetworkFacts`."""

    @cached_property
    def _found(self) -> dict[tuple[str, str], Span]:
        return {}

    def spans(self, limits: SpanLimits) -> list[Span]:
        """Return the candidate spans, as `fx_passes.enumerate_spans` does."""
        walker, chosen = SpanWalker(self, limits), kinds(limits.kinds)
        walked = self.levels if any(each.takes_one_convolution for each in chosen) else ()
        found = {(s.level, s.start, s.stop): s for level in walked for s in walker.spans(level)}
        for place in {place for each in chosen for place in each.places(self, limits)}:
            if place not in found or found[place].piece is None:
                span = self._any_span(*place, limits)
                found |= {place: span} if span.choices else {}
        position = {level: number for number, level in enumerate(self.levels)}
        ordered = sorted(found.values(), key=lambda span: (position[span.level], span.start, span.stop))
        return [span for span in ordered if span.choices or walker.concerns_convolutions(span)]

    def span(self, entry: str, exit_: str) -> Span:
        """Return the span between two tensors, whatever its length; results are cached.

        Raises:
            PlanError: the two are not cuts of one level.
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
        assert span.piece is not None  # as `_find` makes it
        reason = self._exclusion(span.nodes)
        if kind.takes_one_convolution:
            if span.piece.as_one is None:
                raise PlanError(f"the span ({choice.entry}, {choice.exit}] cannot be compressed: {span.refusal}")
            reason = reason or ("" if span.piece.layers else NO_LAYERS)
        reason = reason or kind.check(choice, span.piece)
        if reason:
            possible = "; ".join(dict.fromkeys(kind_of(other).describe(other) for other in span.choices)) or "nothing"
            where = f"{self.words(span.nodes)} (plan: {choice})"
            raise PlanError(f"{where} cannot be {kind.describe(choice)}, as {reason}; possible here: {possible}")
        return span.piece

    @cached_property
    def _unlimited(self) -> SpanWalker:
        longest = max(len(level.cuts) for level in self.levels)
        return SpanWalker(self, SpanLimits(longest_span=longest, largest_kernel=10**9, largest_mac_growth=math.inf))

    def _any_span(self, level: Level, start: int, stop: int, limits: SpanLimits, refusal: str = "") -> Span:
        """Return a span that is not one convolution, with the choices of the kinds that take any piece.

        Args:
            level: the span's level.
            start: number of the cut that it reads.
            stop: number of the cut that it produces.
            limits: limits on the choices.
            refusal: why it is not one convolution, as a sentence.
        """
        units, cuts = level.units[start:stop], level.cuts
        nodes = tuple(name for unit in units for name in (*unit.region, *unit.nodes))
        piece = Piece(cuts[start], cuts[stop], nodes, None, self)
        stays = self._exclusion(nodes)
        takers = [each for each in kinds(limits.kinds) if not each.takes_one_convolution and not stays]
        choices = tuple(choice for each in takers for choice in each.enumerate(piece, limits))
        return Span(level, start, stop, nodes, piece, choices, refusal)

    def _exclusion(self, names: Iterable[str]) -> str:
        """Return why one of these nodes must stay as it is, as a clause; empty where all may change."""
        stay = (node for node in map(self.nodes.__getitem__, names) if exclusion(node))
        return next((f"{module_path(node)} must stay: {exclusion(node)}" for node in stay), "")

    def _find(self, entry: str, exit_: str) -> Span:
        for level in self.levels:
            cuts = level.cuts
            if entry in cuts and exit_ in cuts and cuts.index(entry) < cuts.index(exit_):
                place = level, cuts.index(entry), cuts.index(exit_)
                span = self._unlimited.span(*place)
                return span if span.piece is not None else self._any_span(*place, self._unlimited.limits, span.refusal)
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
