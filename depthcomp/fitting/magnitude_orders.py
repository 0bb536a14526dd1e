"""Orders of inner channels by the weights that make them, smallest first."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence

from depthcomp.fitting.channel_orders import ChannelOrders
from fx_passes.channels.layout import Layout
from fx_passes.inner_channels import InnerFamily
from fx_passes.slot_layers import can_be_solved, operator_at

__all__ = ["MagnitudeOrders"]


class MagnitudeOrders(ChannelOrders):
    """Decides by the norms of weights which inner channels stay; it looks at no image. Arguments as `ChannelOrders`."""

    def _order(self, family: InnerFamily, unseen: int | None) -> Sequence[int]:
        return self._by_made_weights[family.tensor]

    @functools.cached_property
    def _by_made_weights(self) -> dict[str, Sequence[int]]:
        """The ids of each family, by tensor."""
        return {family.tensor: self._sorted(family) for family in self._families.values()}

    def _sorted(self, family: InnerFamily) -> Sequence[int]:
        power, gm = Counter[int](), self._network.gm
        for name in family.nodes:
            node, layout = self._network.nodes[name], self._network.channels.made[name]
            if isinstance(layout, Layout) and can_be_solved(gm, node):
                squares = operator_at(gm, node).weight.square().sum((1, 2, 3))
                for label, square in zip(layout.ids.tolist(), squares.tolist(), strict=True):
                    power[label] += square
        return sorted(set(family.ids) - {-1}, key=lambda label: (power[label], label))
