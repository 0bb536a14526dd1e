"""Merges that cost nothing: spans that are one convolution already, whatever their weights.

Networks trained with parallel branches or with linear convolutions in a row hold such spans, RepVGG and MobileOne
in every block. A merge is free where

- no activation stands inside, so that nothing has to be given up;
- no zeros are added to a tensor inside, so that the padding that a merge moves to the entry was there before.
  Adding zeros to a tensor that is zero beyond its frame anyway changes nothing: so it is with the entry, with what
  pads it, and with 1x1 convolutions of it that have no bias;
- the one convolution takes no more multiply-adds than what it replaces.

The first two make it exact at every pixel (Ding et al. 2021, RepVGG, section 3.3, for branches without inner layers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from fx_passes.borders import pads_only_zeros
from fx_passes.choices import SpanLimits
from fx_passes.operators import Role, role
from fx_passes.plan import Plan, SpanChoice
from fx_passes.spans import Span, SpanWalker
from fx_passes.structure import Level, structure_tree

__all__ = ["free_merges"]

_UNLIMITED = 10**9


def free_merges(gm: fx.GraphModule) -> Plan:
    """Return the merges that change nothing about a captured graph but its depth and its latency.

    They do not overlap, and no other set of free merges leaves fewer multiply-adds or, among equals, fewer
    operators. The graph is not changed. `merge(linearize(gm, plan), plan)` carries them out.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fx_passes import capture
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), nn.ReLU())
        >>> [str(choice) for choice in free_merges(capture(net, torch.zeros(1, 3, 8, 8)))]
        ['merge 3x3 (input_1 -> _2]']
    """
    limits = SpanLimits(_UNLIMITED, _UNLIMITED, largest_mac_growth=1.0, layer_pruning=False, other_ends=())
    tree = structure_tree(gm)
    return Plan.of(_Finder(gm, SpanWalker(gm, limits)).best(tree).choices)


@dataclass(frozen=True, slots=True)
class _Saving:
    """Free merges and what they save together: multiply-adds, then operators."""

    macs: int = 0
    operators: int = 0
    choices: tuple[SpanChoice, ...] = ()

    def __add__(self, other: _Saving) -> _Saving:
        return _Saving(self.macs + other.macs, self.operators + other.operators, self.choices + other.choices)

    @property
    def rank(self) -> tuple[int, int]:
        """By what two savings compare: multiply-adds first, then operators."""
        return self.macs, self.operators


class _Finder:
    """Finds the best free merges of a level by dynamic programming over its cuts."""

    def __init__(self, gm: fx.GraphModule, walker: SpanWalker) -> None:
        self._gm = gm
        self._walker = walker
        self._nodes = {node.name: node for node in gm.graph.nodes}

    def best(self, level: Level) -> _Saving:
        """Return the free merges of a level and of all levels inside it that save most."""
        upto: dict[int, _Saving] = {0: _Saving()}  # per cut: the best free merges before it
        for start, unit in enumerate(level.units):
            kept = sum(map(self.best, unit.branches), _Saving())
            for stop, saving in [(start + 1, kept), *self._merged(level, start)]:
                upto[stop] = max(upto.get(stop, _Saving(-1)), upto[start] + saving, key=lambda s: s.rank)
        return upto[len(level.units)]

    def _merged(self, level: Level, start: int) -> Iterator[tuple[int, _Saving]]:
        """Yield where the free spans that begin at a cut end, and what each saves."""
        for span in self._walker.spans_from(level, start):
            if not self._is_exact(span):
                return  # nor is any longer span
            for choice in span.choices:
                if choice.kind == "merge" and span.operator is not None and span.in_shape is not None:
                    macs = span.in_shape[0] * span.operator.macs(span.in_shape[2:])
                    yield span.stop, _Saving(span.macs - macs, len(span.inner) - 1, (choice,))

    def _is_exact(self, span: Span) -> bool:
        """Say whether the span's collapse computes the same, at the border too."""
        if span.operator is None:
            return False
        inner = [self._nodes[name] for name in span.inner]
        active = any(role(self._gm, node) is Role.ACTIVATION for node in inner)
        return not active and pads_only_zeros(self._gm, self._nodes[span.entry], inner)
