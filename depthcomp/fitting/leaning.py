"""What the solution of a slot leans to, and how strongly it may."""

from __future__ import annotations

from collections.abc import Sequence

from depthcomp.fitting.ridge import STRENGTHS, starting_point
from fx_passes import Slot
from fx_passes.affine import AffineConv

__all__ = ["KEPT_STRENGTHS", "prior_of", "strengths_of"]

KEPT_STRENGTHS = (*STRENGTHS, 10.0, 100.0)
"""The last one leaves a kept layer all but as it was."""


def prior_of(slot: Slot) -> AffineConv:
    """Return what a solution leans to: a kept layer's own weights, else identity where shapes allow, else zero."""
    return slot.operator if slot.kept else starting_point(slot.operator)


def strengths_of(slot: Slot) -> Sequence[float]:
    """Return the strengths of the ridge to choose from."""
    return KEPT_STRENGTHS if slot.kept else STRENGTHS
