import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcomp_errors import TableError
from latency_tables import fit_affine

latencies = st.floats(0.01, 100)
points = st.lists(st.tuples(latencies, latencies), min_size=1, max_size=8)


@given(points)
def test_the_slope_is_positive_and_the_line_inverts(pairs: list[tuple[float, float]]) -> None:
    line = fit_affine(*zip(*pairs, strict=True))
    assert line.slope > 0
    assert line.n == len(pairs)
    assert line.residual_ms >= 0
    assert line.predict(line.invert(3.0)) == pytest.approx(3.0, rel=1e-6, abs=1e-6)


@given(st.floats(-0.5, 0.5), st.floats(0.5, 2), st.lists(latencies, min_size=3, max_size=8, unique=True))
def test_points_on_a_line_give_the_line(intercept: float, slope: float, sums: list[float]) -> None:
    line = fit_affine(sums, [intercept + slope * value for value in sums])
    predictions = [line.predict(value) for value in sums]
    if max(sums) > 1.2 * min(sums):
        assert predictions == pytest.approx([intercept + slope * value for value in sums], abs=1e-6)


def test_one_bad_measurement_does_not_tilt_the_line() -> None:
    sums = np.linspace(1, 5, 7)
    measured = 0.3 + 0.9 * sums
    measured[6] = 20.0
    line = fit_affine(sums, measured)
    assert line.slope == pytest.approx(0.9, rel=0.05)
    assert line.predict(3.0) == pytest.approx(3.0, rel=0.05)
    assert line.residual_ms > 1


@pytest.mark.parametrize(
    ("sums", "measured", "intercept"),
    [
        ([2.0], [2.5], 0.5),
        ([2.0, 4.0], [2.5, 4.1], 0.3),
        ([2.0, 2.0, 2.0], [2.1, 2.3, 9.0], 0.3),
        ([2.0, 2.01, 2.02], [2.1, 2.31, 9.0], 0.3),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], 0.0),
    ],
    ids=["one point", "two points", "equal sums", "all but equal sums", "falling"],
)
def test_what_cannot_tell_a_slope_keeps_slope_one(sums: list[float], measured: list[float], intercept: float) -> None:
    line = fit_affine(sums, measured)
    assert line.slope == 1.0
    assert line.intercept_ms == pytest.approx(intercept)


@pytest.mark.parametrize(("sums", "measured"), [([], []), ([1.0], [1.0, 2.0])])
def test_points_come_in_pairs(sums: list[float], measured: list[float]) -> None:
    with pytest.raises(TableError, match=f"there are {len(sums)} sums and {len(measured)} latencies"):
        fit_affine(sums, measured)


def test_numbers_are_finite() -> None:
    with pytest.raises(TableError, match=r"needs finite numbers, not sums \[1.0\] and latencies \[nan\]"):
        fit_affine([1.0], [float("nan")])
