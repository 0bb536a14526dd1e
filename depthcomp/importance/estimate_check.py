"""Check of estimated losses by true ones, and corrections of the estimates: a monotone curve, then a factor by exit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression
from scipy.stats import spearmanr

from fx_passes import SpanChoice

__all__ = ["EstimateCheck", "check_estimates", "correction", "exit_factors"]

LEAST = 1e-9  # losses below are rounding errors
LEAST_PAIRS = 8  # fewer show no curve

Losses = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EstimateCheck:
    """Agreement of estimated losses with true ones.

    Attributes:
        choices: number of choices with both losses.
        rank_correlation: Spearman's correlation of both; None where either is constant.
        median_ratio: median of estimate over true loss.
        low_ratio: ratio that a tenth of the choices lies below.
        high_ratio: ratio that a tenth of the choices lies above.
    """

    choices: int
    rank_correlation: float | None
    median_ratio: float
    low_ratio: float
    high_ratio: float


def check_estimates(estimates: Sequence[float], true: Sequence[float]) -> EstimateCheck | None:
    """Return the agreement of estimated losses with true ones; None where no pair is finite."""
    estimate, loss = _finite_pairs(estimates, true)
    if not len(estimate):
        return None
    low, median, high = np.quantile(estimate / loss, (0.1, 0.5, 0.9))
    varied = min(len(set(estimate)), len(set(loss))) > 1
    rank = float(spearmanr(estimate, loss).statistic) if varied else None
    return EstimateCheck(len(estimate), rank, float(median), float(low), float(high))


def correction(estimates: Sequence[float], true: Sequence[float]) -> Callable[[float], float]:
    """Return an increasing function from estimated to true losses, fitted to pairs of them.

    Isotonic regression of the logarithms gives blocks of pairs. The function passes smoothly through the blocks' means
    and keeps the ratio of the first and of the last block beyond them. It is the identity for fewer than LEAST_PAIRS
    pairs.
    """
    estimate, loss = _finite_pairs(estimates, true)
    if len(estimate) < LEAST_PAIRS:
        return lambda value: value
    order = np.argsort(estimate, kind="stable")
    x, y = np.log(estimate[order]), np.log(loss[order])
    borders = isotonic_regression(y).blocks
    blocks = [slice(start, stop) for start, stop in itertools.pairwise(borders)]
    x_mean, y_mean = (np.array([values[block].mean() for block in blocks]) for values in (x, y))
    before = np.maximum.accumulate(np.concatenate([[-np.inf], x_mean[:-1]]))
    apart = x_mean > before  # blocks of estimates that are equal, up to rounding, have no curve between them
    return _through(x_mean[apart], y_mean[apart])


def exit_factors(corrected: Mapping[SpanChoice, float], true: Mapping[SpanChoice, float]) -> dict[str, float]:
    """Return, for each exit of choices with both losses, the factor that brings corrected losses nearer to true ones.

    It is the geometric mean of the ratios, drawn towards 1 as if one more choice had this ratio.
    """
    ratios: dict[str, list[float]] = {}
    for choice, loss in true.items():
        if math.isfinite(loss) and math.isfinite(corrected[choice]):
            ratio = max(loss, LEAST) / max(corrected[choice], LEAST)
            ratios.setdefault(choice.exit, []).append(math.log(ratio))
    return {exit_: math.exp(sum(several) / (len(several) + 1)) for exit_, several in ratios.items()}


def _through(x: Losses, y: Losses) -> Callable[[float], float]:
    """Return the increasing function through points of logarithms; beyond them the ratio of the nearest point stays."""
    inner = PchipInterpolator(x, y) if len(x) > 1 else None

    def corrected(value: float) -> float:
        """Return the true loss to expect for an estimate."""
        place = np.log(max(value, LEAST))
        inside = np.clip(place, x[0], x[-1])
        middle = y[0] if inner is None else inner(inside)
        return float(np.exp(middle + place - inside))

    return corrected


def _finite_pairs(estimates: Sequence[float], true: Sequence[float]) -> tuple[Losses, Losses]:
    estimate, loss = np.asarray(estimates, float), np.asarray(true, float)
    finite = np.isfinite(estimate) & np.isfinite(loss)
    return estimate[finite].clip(LEAST), loss[finite].clip(LEAST)
