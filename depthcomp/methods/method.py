"""Method of compression: its rewrites, its losses, and how it chooses.

All methods share capture, latency table, measured search, merge and measurement, so their results differ by the method
alone. Each method is one file of this folder. The file of a paper's method says where it deviates from the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from depthcomp.fitting.channel_orders import ChannelOrders
from depthcomp.latency.pricing import Candidate
from depthcomp.methods.baselines import Draw
from fx_passes import CapturedNetwork, SpanLimits

__all__ = ["Method"]

Allows = Callable[[CapturedNetwork, Candidate], bool]


def _anything(network: CapturedNetwork, candidate: Candidate) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Method:
    """A method that chooses the rewrites of a network.

    Attributes:
        name: name for users.
        summary: one line on what it does.
        limits: limits of the choices that are enumerated.
        allows: returns whether the method may take a candidate; called with the network and the candidate.
        importance: name of the importance that the paper pairs with the method, None where there is none; the user's
            `importance` decides.
        draw: yields the plans of a method without a solver; None for the solver's frontier.
        scored: whether it needs the losses of choices.
        fits: whether new convolutions are solved for on calibration images. A solver's plans are then compared by true
            loss. If False, fine-tuning starts from merged weights.
        orders: decides which inner channels stay.
    """

    name: str
    summary: str
    limits: SpanLimits
    allows: Allows = field(default=_anything, repr=False)
    importance: str | None = None
    draw: Draw | None = field(default=None, repr=False)
    scored: bool = True
    fits: bool = False
    orders: type[ChannelOrders] = field(default=ChannelOrders, repr=False)

    def candidates(self, network: CapturedNetwork, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the rewrites of a network that the method may take."""
        return [candidate for candidate in candidates if self.allows(network, candidate)]
