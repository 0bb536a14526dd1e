"""Losses of choices inside plans, learnt from the losses of whole plans.

A plan's loss is taken to be the sum of its choices' losses alone, each times a factor. Factors are Gaussian with mean
1. Their covariance has four parts: one is common to all choices, one is shared by choices of one kind, one by choices
that end at the same tensor, and one is each choice's own. With the losses alone l, the covariance K of losses, plans P
(a row of 0 and 1 for each) that lose y, and the noise R of a plan's loss, the posterior has

    mean    l + K P^T (P K P^T + R)^-1 (y - P l)
    sample  l' + K P^T (P K P^T + R)^-1 (y + e - P l')

where l' is a sample of the prior and e one of the noise (Matheron's rule; Wilson et al., Pathwise conditioning of
Gaussian processes, JMLR 2021). To compare the best plan for each of several samples is Thompson sampling (Thompson,
Biometrika 1933): plans that may be the best are tried, and plans that surely are not do not cost time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fx_passes import Plan, SpanChoice

__all__ = ["LearnedLosses"]

# Standard deviations of a factor's parts. Random plans of one to six choices lose 0.2 to 1.4 times their sums (10 to
# 90 % of 240 plans, docs/importance.json); how that divides among the parts is a guess.
COMMON, OF_KIND, OF_EXIT, OWN = 0.4, 0.3, 0.3, 0.3
NOISE = 0.1  # standard deviation of a plan's loss, relative to it
LEAST = 0.1  # smallest scale, relative to the median loss of a plan by choice: no loss alone is no proof of none
LARGEST = 4.0  # larger plan losses count as so many medians; how bad a useless plan is says nothing about others
LEAST_FACTOR = 0.1  # a loss stays at least this share of the loss alone

_Array = NDArray[np.float64]


class LearnedLosses:
    """Losses of choices inside plans.

    Args:
        losses: the loss of each choice alone.
        seed: seed of the samples.
    """

    def __init__(self, losses: Mapping[SpanChoice, float], seed: int) -> None:
        self._choices = {choice: number for number, choice in enumerate(losses)}
        self._alone: _Array = np.array([*losses.values()])
        kinds, exits = ([getattr(choice, name) for choice in losses] for name in ("kind", "exit"))
        self._groups = [(OF_KIND, _numbers(kinds)), (OF_EXIT, _numbers(exits))]
        self._rng = np.random.default_rng(seed)

    def posterior_mean(self, plans: Mapping[Plan, float]) -> dict[SpanChoice, float]:
        """Return the mean of the losses, given the losses of whole plans."""
        return self._by_choice(self._conditioned(plans, self._alone, np.zeros(len(plans))))

    def sample(self, plans: Mapping[Plan, float]) -> dict[SpanChoice, float]:
        """Return a sample of the losses, given the losses of whole plans."""
        draw, count = self._rng.standard_normal, len(self._alone)
        factors = COMMON * draw() + OWN * draw(count)
        for deviation, numbers in self._groups:
            factors += deviation * draw(count)[numbers]
        prior = self._alone + self._scale(plans) * factors
        return self._by_choice(self._conditioned(plans, prior, draw(len(plans))))

    def _conditioned(self, plans: Mapping[Plan, float], prior: _Array, noise: _Array) -> _Array:
        """Return a prior sample of the losses, conditioned on the losses of plans; plans without loss teach nothing."""
        median = _median_loss(plans)
        if median <= 0:
            return prior
        design = np.zeros((len(plans), len(prior)))
        for row, plan in zip(design, plans, strict=True):
            row[[self._choices[choice] for choice in plan]] = 1.0
        lost = np.minimum([*plans.values()], LARGEST * median)
        spread = NOISE * np.maximum(lost, LEAST * median)
        cross = self._cross_covariance(design, self._scale(plans))
        surprise = lost + spread * noise - design @ prior
        return prior + cross @ np.linalg.solve(design @ cross + np.diag(spread**2), surprise)

    def _cross_covariance(self, design: _Array, scale: _Array) -> _Array:
        """Return K P^T (choices, plans)."""
        own = scale[:, None] * design.T
        parts: _Array = COMMON**2 * own.sum(0) + OWN**2 * own
        for deviation, numbers in self._groups:
            by_group = np.zeros((len(own), len(design)))
            np.add.at(by_group, numbers, own)
            parts += deviation**2 * by_group[numbers]
        return scale[:, None] * parts

    def _scale(self, plans: Mapping[Plan, float]) -> _Array:
        """Return the loss that the factor of each choice multiplies."""
        by_choice = {plan: loss / max(len(plan), 1) for plan, loss in plans.items()}
        scale: _Array = np.maximum(self._alone, LEAST * max(_median_loss(by_choice), 0.0))
        return scale

    def _by_choice(self, losses: _Array) -> dict[SpanChoice, float]:
        least = np.minimum(self._alone, LEAST_FACTOR * self._alone)  # of two bounds where the loss alone is negative
        return dict(zip(self._choices, np.maximum(losses, least).tolist(), strict=True))


def _numbers(names: Sequence[str]) -> NDArray[np.intp]:
    """Return for each name the number of its group of equal names."""
    return np.unique(names, return_inverse=True)[1]


def _median_loss(plans: Mapping[Plan, float]) -> float:
    """Return the median of the finite losses; 0 without any."""
    finite = [loss for loss in plans.values() if np.isfinite(loss)]
    return float(np.median(finite)) if finite else 0.0
