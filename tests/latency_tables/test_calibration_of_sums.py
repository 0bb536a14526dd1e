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


@given(st.floats(0.5, 2), st.lists(latencies, min_size=1, max_size=8))
def test_networks_that_are_the_sum_of_their_parts_give_a_line_through_the_origin(slope, sums) -> None:
    line = fit_affine(sums, [slope * value for value in sums])
    assert line.slope == pytest.approx(slope)
    assert line.intercept_ms == pytest.approx(0, abs=1e-6 * max(sums))
    assert line.residual_ms == pytest.approx(0, abs=1e-6 * max(sums))


def test_the_more_networks_the_less_the_prior_says() -> None:
    lines = []
    for points in (1, 2, 10, 100):
        sums = np.linspace(1.0, 2.0, points)
        lines.append(fit_affine(sums, 0.3 + 0.9 * sums))
        predictions = [lines[-1].predict(value) for value in sums]
        assert predictions == pytest.approx((0.3 + 0.9 * sums).tolist(), rel=0.02)
    intercepts = [line.intercept_ms for line in lines]
    assert intercepts == sorted(intercepts)
    assert intercepts[0] == pytest.approx(0, abs=1e-9)
    assert intercepts[-1] == pytest.approx(0.3, rel=0.03)


def test_the_line_is_the_least_squares_of_relative_errors_where_the_prior_is_weak() -> None:
    sums = np.tile(np.linspace(1.0, 3.0, 50), 20)
    measured = (0.2 + 1.1 * sums) * np.random.default_rng(0).normal(1, 0.01, sums.size)
    slope, intercept = np.polyfit(sums, measured, 1, w=1 / measured)
    line = fit_affine(sums, measured)
    assert (line.slope, line.intercept_ms) == pytest.approx((slope, intercept), rel=0.01)


def test_what_has_no_price_is_expected_in_the_intercept_beyond_what_is_usual() -> None:
    sums, measured = [1.0, 0.8], [5.0, 4.8]
    known = fit_affine(sums, measured, unpriced_ms=4.0)
    assert known.predict(0.2) == pytest.approx(4.2, rel=0.1)
    assert fit_affine(sums, measured).predict(0.2) < 2.5
    assert fit_affine(sums, measured, unpriced_ms=0.9) == fit_affine(sums, measured)


def test_one_bad_measurement_does_not_tilt_the_line() -> None:
    sums = np.linspace(1, 5, 7)
    measured = 0.1 + 0.9 * sums
    measured[3] = 20.0
    line = fit_affine(sums, measured)
    assert line.slope == pytest.approx(0.9, rel=0.05)
    assert line.predict(3.0) == pytest.approx(2.8, rel=0.05)
    assert line.residual_ms > 1


def test_networks_that_get_faster_the_larger_they_are_give_a_line_through_the_origin() -> None:
    line = fit_affine([1.0, 2.0, 3.0], [30.0, 2.0, 0.1])
    assert (line.slope, line.intercept_ms) == (1.0, 0.0)


@pytest.mark.parametrize(("sums", "measured"), [([], []), ([1.0], [1.0, 2.0])])
def test_points_come_in_pairs(sums: list[float], measured: list[float]) -> None:
    with pytest.raises(TableError, match=f"there are {len(sums)} sums and {len(measured)} latencies"):
        fit_affine(sums, measured)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_numbers_are_positive_and_finite(value: float) -> None:
    with pytest.raises(TableError, match=r"needs finite latencies above 0, .* not sums \[1.0\] and latencies"):
        fit_affine([1.0], [value])
    with pytest.raises(TableError, match=r"needs finite latencies above 0, and sums .* not sums"):
        fit_affine([value], [1.0])


def test_a_network_with_nothing_that_a_table_prices_gives_the_intercept() -> None:
    line = fit_affine([2.0, 1.5, 0.0], [3.0, 2.5, 1.0])
    assert line.predict(0.0) == pytest.approx(1.0, rel=0.05)
    assert fit_affine([1.0, 0.0], [1.0, 9.0]).slope > 0
