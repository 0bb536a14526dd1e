"""Method of compression: which rewrites it may choose from, what it takes for loss, how it chooses.

All methods go through the same capture, latency table, measured search for the budget, merge and measurement. What
differs between their results is therefore the method alone. Each method is one file of this folder; a file of a paper's
method says where it deviates from the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from depthcomp.latency.pricing import Candidate
from depthcomp.methods.baselines import Draw
from fx_passes import CapturedNetwork, SpanLimits

__all__ = ["Method"]

Allows = Callable[[CapturedNetwork, Candidate], bool]


def _anything(network: CapturedNetwork, candidate: Candidate) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Method:
    """A way to choose what is rewritten.

    Attributes:
        name: what users call it.
        summary: what it does, in a line.
        limits: which choices are enumerated for it.
        allows: which of these choices it may take; called with the network and the candidate.
        importance: name of the importance that belongs to it; a compression takes the one that it is told to take.
        draw: makes the plans that it chooses among where no solver does; None for the solver's frontier.
        scored: whether it needs the losses of choices.
        fits: whether new convolutions are solved for on calibration images, and a solver's plans compared by their
            true loss. Where not, fine-tuning starts from merged weights.
    """

    name: str
    summary: str
    limits: SpanLimits
    allows: Allows = field(default=_anything, repr=False)
    importance: str = "calibrated"
    draw: Draw | None = field(default=None, repr=False)
    scored: bool = True
    fits: bool = False

    def candidates(self, network: CapturedNetwork, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the rewrites of a network that the method may take."""
        return [candidate for candidate in candidates if self.allows(network, candidate)]
