"""Prior weights of a slot's solution, and the candidate strengths of its ridge."""

from __future__ import annotations

from collections.abc import Sequence

from depthcomp.fitting.ridge import STRENGTHS, starting_point
from fx_passes import Slot
from fx_passes.affine import AffineConv

__all__ = ["KEPT_STRENGTHS", "prior_of", "strengths_of"]

KEPT_STRENGTHS = (*STRENGTHS, 10.0, 100.0)
"""Strengths for kept layers; the last one leaves a layer almost as it was."""


def prior_of(slot: Slot) -> AffineConv:
    """Return the prior of a slot's solution: a kept layer's weights, else identity where shapes allow, else zero."""
    return slot.operator if slot.kept else starting_point(slot.operator)


def strengths_of(slot: Slot) -> Sequence[float]:
    """Return the candidate strengths of a slot's ridge."""
    return KEPT_STRENGTHS if slot.kept else STRENGTHS
