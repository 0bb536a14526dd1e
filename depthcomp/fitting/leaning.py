"""Prior weights of a slot's solution, and the candidate strengths of its ridge."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from depthcomp.fitting.ridge import STRENGTHS, starting_point
from fx_passes import Slot
from fx_passes.affine import AffineConv

__all__ = ["KEPT_STRENGTHS", "least_strength", "prior_of", "strengths_of"]

KEPT_STRENGTHS = (*STRENGTHS, 10.0, 100.0)
"""Strengths for kept layers; the last one leaves a layer almost as it was."""


def prior_of(slot: Slot) -> AffineConv:
    """Return the prior of a slot's solution: a kept layer's weights, else identity where shapes allow, else zero."""
    return slot.operator if slot.kept else starting_point(slot.operator)


def strengths_of(slot: Slot, precision: torch.dtype) -> Sequence[float]:
    """Return the candidate strengths of a slot's ridge, for sums in a precision.

    Without some of its inputs, a layer needs other weights for those that are left, so the least strength is small: a
    layer loses nothing with one of two equal inputs.
    """
    if not slot.kept:
        return STRENGTHS
    return (least_strength(precision), *KEPT_STRENGTHS) if slot.widths else KEPT_STRENGTHS


def least_strength(precision: torch.dtype) -> float:
    """Return a ridge, relative to the mean power of an input, that still hides the rounding errors of sums."""
    return float(torch.finfo(precision).eps ** 0.75)
