"""Merges that cost nothing: spans that are one convolution already, whatever their weights.

Networks trained with parallel branches or with linear convolutions in a row hold such spans, RepVGG and MobileOne
in every block. A merge is free where

- no activation stands inside, so that nothing has to be given up;
- no tensor inside is padded, so the padding that a merge moves to the entry was there before. Tensors that are zero
  beyond their frame may be padded: the entry, padded forms of it, and 1x1 convolutions of it without bias;
- the merged convolution takes no more multiply-adds than the span that it replaces.

The first two conditions make it exact at every pixel (Ding et al. 2021, RepVGG, section 3.3, for branches without
inner layers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from fx_passes.borders import pads_only_zeros
from fx_passes.choice import SpanChoice
from fx_passes.limits import SpanLimits
from fx_passes.network import CapturedNetwork, as_network
from fx_passes.operators import Role
from fx_passes.plan import Plan
from fx_passes.span import Piece
from fx_passes.structure import Level
from fx_passes.walker import SpanWalker

__all__ = ["free_merges"]

_UNLIMITED = 10**9
_FREE = SpanLimits(_UNLIMITED, _UNLIMITED, largest_mac_growth=1.0, layer_pruning=False, other_ends=(), kinds=("merge",))


def free_merges(gm: fx.GraphModule | CapturedNetwork) -> Plan:
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
    network = as_network(gm)
    return Plan.of(_Finder(network, SpanWalker(network, _FREE)).best(network.tree).choices)


@dataclass(frozen=True, slots=True)
class _Saving:
    """Free merges, and the multiply-adds and operators that they save together."""

    macs: int = 0
    operators: int = 0
    choices: tuple[SpanChoice, ...] = ()

    def __add__(self, other: _Saving) -> _Saving:
        return _Saving(self.macs + other.macs, self.operators + other.operators, self.choices + other.choices)

    @property
    def rank(self) -> tuple[int, int]:
        """Sort key of a saving: multiply-adds first, then operators."""
        return self.macs, self.operators


class _Finder:
    """Finds the best free merges of a level by dynamic programming over its cuts."""

    def __init__(self, network: CapturedNetwork, walker: SpanWalker) -> None:
        self._network = network
        self._walker = walker

    def best(self, level: Level) -> _Saving:
        """Return the free merges of a level and of all levels inside it that save most."""
        upto: dict[int, _Saving] = {0: _Saving()}  # per cut: the best free merges before it
        for start, unit in enumerate(level.units):
            kept = sum(map(self.best, unit.branches), _Saving())
            for stop, saving in [(start + 1, kept), *self._merged(level, start)]:
                upto[stop] = max(upto.get(stop, _Saving(-1)), upto[start] + saving, key=lambda s: s.rank)
        return upto[len(level.units)]

    def _merged(self, level: Level, start: int) -> Iterator[tuple[int, _Saving]]:
        """Yield, for each free span from a cut, the cut where it ends and its saving."""
        for span in self._walker.spans_from(level, start):
            piece = span.piece
            if piece is None or not self._is_exact(piece):
                return  # nor is any longer span
            macs = piece.in_shape[0] * piece.operator.macs(piece.in_shape[2:])
            for choice in span.choices:
                yield span.stop, _Saving(piece.macs - macs, len(piece.inner) - 1, (choice,))

    def _is_exact(self, piece: Piece) -> bool:
        """Say whether a piece's collapse is exact, also at the border."""
        active = any(self._network.roles[name] is Role.ACTIVATION for name in piece.inner)
        return not active and pads_only_zeros(self._network.gm, self._network.nodes[piece.entry], piece.inner_nodes)
