"""The line from the sum of isolated operators to the latency of the whole network that they make up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from depthcomp_errors import TableError

__all__ = ["Calibration", "fit_affine"]

INTERCEPT = 0.2  # of a network: what is not among its parts, such as pooling and the classifier
NOISE = 0.03  # of a prediction: what parts and whole are apart when both are measured again
REWEIGHTINGS = 20


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

    intercept_ms: Annotated[float, Field(allow_inf_nan=False)]
    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    residual_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    n: Annotated[int, Field(ge=1)]

    def predict(self, sum_ms: float) -> float:
        """Return the latency in ms of a network whose parts sum up to `sum_ms`."""
        return self.intercept_ms + self.slope * sum_ms

    def invert(self, total_ms: float) -> float:
        """Return the sum in ms at which a network takes `total_ms`; negative below the intercept."""
        return (total_ms - self.intercept_ms) / self.slope


def fit_affine(
    sums_ms: Sequence[float],
    measured_ms: Sequence[float],
    *,
    intercept_share: float = INTERCEPT,
    unpriced_ms: float = 0.0,
) -> Calibration:
    """Return the line through measured networks, robust against single bad measurements.

    Least squares of relative errors under a prior: a network is about its parts and what has no price, so the intercept
    is from 0 to `unpriced_ms`, give or take 20 % of a network. Measurements that are further off the line than noise
    count less and less (Huber's weights). A single network whose operators all have a price thus gives the line through
    the origin, and so do networks that all but fall.

    Args:
        sums_ms: sum of table entries of each network, in ms, 0 or above; a plan may leave nothing that a table prices.
        measured_ms: measured latency of the same networks, in ms, above 0.
        intercept_share: how far the intercept is from that, as a share of the median network; `math.inf` for no prior.
        unpriced_ms: what the networks take at most beyond their sums, in ms, as operators without a price are in none.

    Raises:
        TableError: there is no point, the lengths differ, a number is not finite, all sums are 0, or a latency is not
            above 0.

    Example:
        >>> line = fit_affine([1.0, 2.0, 4.0], [1.1, 2.2, 4.4])
        >>> round(line.slope, 6), round(line.intercept_ms, 6)
        (1.1, 0.0)
        >>> round(line.invert(line.predict(3.0)), 6)
        3.0
    """
    sums, measured = _checked(sums_ms, measured_ms)
    intercept, slope = _line(sums, measured, intercept_share, unpriced_ms)
    residuals = measured - (intercept + slope * sums)
    return Calibration(intercept, slope, float(np.sqrt(np.mean(residuals**2))), len(sums))


def _line(
    sums: NDArray[np.float64], measured: NDArray[np.float64], intercept_share: float, unpriced_ms: float
) -> tuple[float, float]:
    """Return intercept and slope."""
    usual_ms = intercept_share * np.median(measured)
    prior, expected_ms = np.array([NOISE / usual_ms, 0.0]), max(unpriced_ms - usual_ms, 0.0)
    columns = np.stack([1 / measured, sums / measured], axis=1)
    weights = np.ones(len(sums))
    for _ in range(REWEIGHTINGS):
        rows = np.vstack([columns * weights[:, None], prior])
        intercept, slope = np.linalg.lstsq(rows, np.append(weights, prior[0] * expected_ms))[0]
        errors = np.abs(intercept / measured + slope * sums / measured - 1)
        weights = np.sqrt(NOISE / np.maximum(NOISE, errors))
    priced = sums > 0
    return (float(intercept), float(slope)) if slope > 0 else (0.0, float(np.median(measured[priced] / sums[priced])))


def _checked(sums_ms: Sequence[float], measured_ms: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    sums, measured = np.asarray(sums_ms, np.float64), np.asarray(measured_ms, np.float64)
    if sums.shape != measured.shape or sums.ndim != 1 or not len(sums):
        raise TableError(
            f"a calibration needs as many sums as measured latencies, at least one of each; there are"
            f" {sums.size} sums and {measured.size} latencies."
        )
    usable = np.isfinite([sums, measured]).all() and sums.min() >= 0 < sums.max() and measured.min() > 0
    if not usable:
        raise TableError(
            "a calibration needs finite latencies above 0, and sums of 0 or above of which one is above 0, not sums "
            f"{sums.tolist()} and latencies {measured.tolist()}; measure anew."
        )
    return sums, measured
