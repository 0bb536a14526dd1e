"""From the sum of isolated operators to the latency of the whole network that they make up."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from depthcomp_errors import TableError

__all__ = ["Calibration", "fit_affine"]

LEAST_POINTS = 3  # two points would hand their noise to the slope
LEAST_RANGE = 0.05  # of the median sum; over a smaller range, timing noise of 2 % decides the slope


@dataclass(frozen=True, slots=True)
class Calibration:
    """The line `measured = intercept_ms + slope * sum` through a few measured networks.

    Attributes:
        intercept_ms: what the networks share beyond their parts, in ms; negative where the parts overcount.
        slope: measured ms per ms of the sum; always positive.
        residual_ms: root mean square of measured minus predicted, in ms.
        n: networks behind the fit.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    intercept_ms: float
    slope: float
    residual_ms: float
    n: int

    def predict(self, sum_ms: float) -> float:
        """Return the latency in ms of a network whose parts sum up to `sum_ms`."""
        return self.intercept_ms + self.slope * sum_ms

    def invert(self, total_ms: float) -> float:
        """Return the sum in ms at which a network takes `total_ms`; negative below the intercept."""
        return (total_ms - self.intercept_ms) / self.slope


def fit_affine(sums_ms: Sequence[float], measured_ms: Sequence[float]) -> Calibration:
    """Return the line through measured networks, robust against single bad measurements.

    The slope is the median over all pairs of points (Theil-Sen), the intercept the median that is left. With
    fewer than three points, sums that are all but equal, or a slope that is not positive, the slope is 1.

    Args:
        sums_ms: sum of table entries of each network, in ms.
        measured_ms: measured latency of the same networks, in ms.

    Raises:
        TableError: there is no point, the lengths differ, or a number is not finite.

    Example:
        >>> line = fit_affine([1.0, 2.0, 4.0], [1.5, 2.4, 4.2])
        >>> round(line.slope, 6), round(line.intercept_ms, 6)
        (0.9, 0.6)
        >>> round(line.invert(line.predict(3.0)), 6)
        3.0
    """
    sums, measured = _checked(sums_ms, measured_ms)
    slope = _slope(sums, measured)
    intercept = float(np.median(measured - slope * sums))
    residuals = measured - (intercept + slope * sums)
    return Calibration(intercept, slope, float(np.sqrt(np.mean(residuals**2))), len(sums))


def _checked(sums_ms: Sequence[float], measured_ms: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    sums, measured = np.asarray(sums_ms, np.float64), np.asarray(measured_ms, np.float64)
    if sums.shape != measured.shape or sums.ndim != 1 or not len(sums):
        raise TableError(
            f"a calibration needs as many sums as measured latencies, at least one of each; there are"
            f" {sums.size} sums and {measured.size} latencies."
        )
    if not (np.isfinite(sums).all() and np.isfinite(measured).all()):
        raise TableError(
            f"a calibration needs finite numbers, not sums {sums.tolist()} and latencies {measured.tolist()};"
            " measure anew."
        )
    return sums, measured


def _slope(sums: NDArray[np.float64], measured: NDArray[np.float64]) -> float:
    if len(sums) < LEAST_POINTS or np.ptp(sums) <= LEAST_RANGE * abs(np.median(sums)):
        return 1.0
    pairs = [(i, j) for i, j in combinations(range(len(sums)), 2) if sums[i] != sums[j]]
    slope = float(np.median([(measured[j] - measured[i]) / (sums[j] - sums[i]) for i, j in pairs]))
    return slope if slope > 0 else 1.0
