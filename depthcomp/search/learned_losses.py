"""Losses of choices beside others, learnt from the losses of whole plans.

A choice loses more or less beside other choices than alone. What it loses beside others is taken to be its loss alone
times a factor around one, and a plan to lose the sum. Factors are Gaussian: a part is common to all choices, a part to
the choices with one exit, and a part is each choice's own. The losses of compared plans then tell about the factors in
closed form, and the solver finds the best plan for any draw of them. Plans for random draws are worth comparing: they
are likely to be the best, as far as is known (Thompson, On the likelihood that one unknown probability exceeds another,
Biometrika 1933).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fx_passes import Plan, SpanChoice

__all__ = ["LearnedLosses"]

COMMON, OF_EXIT, OWN = 0.5, 0.3, 0.3  # standard deviations of the parts of a factor
NOISE = 0.1  # standard deviation of a plan's loss, relative to it
LEAST = 0.01  # least scale of a loss, relative to the largest one of a plan, as what loses nothing alone may beside
LEAST_FACTOR = 0.1  # no factor is less

_Vector = NDArray[np.float64]


class LearnedLosses:
    """Losses of choices beside others.

    Args:
        losses: the loss of each choice alone.
        seed: seed of the draws.
    """

    def __init__(self, losses: Mapping[SpanChoice, float], seed: int) -> None:
        self._choices = {choice: number for number, choice in enumerate(losses)}
        self._alone: _Vector = np.array([*losses.values()])
        exits = [choice.exit for choice in losses]
        self._exits = np.unique(exits, return_inverse=True)[1]  # number of each choice's exit
        self._rng = np.random.default_rng(seed)

    def expected(self, plans: Mapping[Plan, float]) -> dict[SpanChoice, float]:
        """Return the expected losses of all choices, given the losses of whole plans."""
        return self._given(plans, np.zeros_like(self._alone), np.zeros(len(plans)))

    def drawn(self, plans: Mapping[Plan, float]) -> dict[SpanChoice, float]:
        """Return random losses of all choices, as likely as the losses of whole plans leave them."""
        scale, count = self._scale(plans), len(self._alone)
        common, of_exit = self._rng.standard_normal(), self._rng.standard_normal(count)[self._exits]
        factors = COMMON * common + OF_EXIT * of_exit + OWN * self._rng.standard_normal(count)
        return self._given(plans, scale * factors, self._rng.standard_normal(len(plans)))

    def _given(self, plans: Mapping[Plan, float], change: _Vector, noise: _Vector) -> dict[SpanChoice, float]:
        """Return the losses with a change, corrected by what plans with noise lose (Matheron's rule)."""
        losses = self._alone + change
        if max(plans.values(), default=0.0) > 0:
            lost, scale = np.array([*plans.values()]), self._scale(plans)
            holds = np.zeros((len(plans), len(losses)))
            for row, plan in zip(holds, plans, strict=True):
                row[[self._choices[choice] for choice in plan]] = 1.0
            same = self._exits[:, None] == self._exits
            kernel = scale[:, None] * scale * (COMMON**2 + OF_EXIT**2 * same + OWN**2 * np.eye(len(losses)))
            spread = NOISE * np.maximum(lost, LEAST * lost.max())
            seen = holds @ kernel @ holds.T + np.diag(spread**2)
            losses = losses + kernel @ holds.T @ np.linalg.solve(seen, lost + spread * noise - holds @ losses)
        least = np.minimum(self._alone, LEAST_FACTOR * self._alone)
        return dict(zip(self._choices, np.maximum(losses, least).tolist(), strict=True))

    def _scale(self, plans: Mapping[Plan, float]) -> _Vector:
        largest = max(plans.values(), default=0.0)
        return np.maximum(self._alone, LEAST * largest)
